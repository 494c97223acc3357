// Package upstream opens one attempt of a request at one instance and says what
// became of it.
//
// It is a small HTTP/1.1 client of its own: one pool of connections for each
// instance, one system call to send a request, the answer parsed in place in a
// 4 KiB buffer that idle connections do not hold. Go's http.Transport costs two
// goroutines and channel hand-offs a connection, about twice the CPU of all the
// rest, and is used only where a proxy or HTTP/2 is asked for.
//
// Data moves on the caller's goroutine alone: Open writes the request, the
// Answer's methods read. The attempt's context closes the connection when it
// ends, so a blocked read ends at once. Nothing is retried here but a request
// that met a connection which the instance had closed while idle: no byte of an
// answer had come, and nobody else was asked.
//
// An answer in one piece is asked for as a stream where it can be put together
// again (Config.Reassemble): the lease then hears of each token, which is what
// admission learns an instance's limit from, and whoever reads the Answer sees no
// difference but that its first bytes come with its last.
//
// Run owns the one goroutine of the package, which closes idle connections.
package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Client reaches the instances of all pools. It is safe for concurrent use.
type Client struct {
	pools atomic.Pointer[map[string]*pool]
}

// pool is what a pool's configuration means for its connections.
type pool struct {
	cfg    Config
	key    string
	header map[string]string
	tls    *tls.Config
	via    *http.Transport // nil: our own connections

	mu struct {
		sync.Mutex
		endpoints map[string]*endpoint // by scheme and host; pruned by sweep
	}
}

// New returns a client that knows no pool yet.
func New() *Client {
	c := new(Client)
	c.pools.Store(&map[string]*pool{})
	return c
}

// Apply replaces the pools' configurations ("region/pool" -> Config) all or
// nothing. Pools whose configuration and key are the same keep their
// connections; the others' idle connections are closed.
func (c *Client) Apply(configs map[string]Config) error {
	old := *c.pools.Load()
	next := make(map[string]*pool, len(configs))
	for name, cfg := range configs {
		p, err := newPool(cfg)
		if err != nil {
			return fmt.Errorf("pool %s: %w", name, err)
		}
		if o, ok := old[name]; ok && reflect.DeepEqual(o.cfg, p.cfg) && o.key == p.key {
			p = o
		}
		next[name] = p
	}
	c.pools.Store(&next)
	for name, p := range old {
		if next[name] != p {
			p.close()
		}
	}
	return nil
}

// newPool prepares a pool from its configuration.
func newPool(cfg Config) (*pool, error) {
	key, err := cfg.key()
	if err != nil {
		return nil, err
	}
	p := &pool{cfg: cfg, key: key, header: poolHeader(&cfg, key)}
	p.cfg.Headers = maps.Clone(cfg.Headers)
	p.mu.endpoints = make(map[string]*endpoint)
	p.tls = &tls.Config{ServerName: cfg.TLSServerName, MinVersion: tls.VersionTLS12}
	if cfg.TLSCAFile != "" {
		if p.tls.RootCAs, err = roots(cfg.TLSCAFile); err != nil {
			return nil, err
		}
	}
	if cfg.Proxy != "" || cfg.HTTP2 {
		if p.via, err = newTransport(&p.cfg, p.tls); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// roots reads a file of certificate authorities.
func roots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

// close ends what a replaced pool keeps open for later.
func (p *pool) close() {
	p.sweep(time.Now(), true)
	if p.via != nil {
		p.via.CloseIdleConnections()
	}
}

// endpoint finds or makes the endpoint of an instance.
func (p *pool) endpoint(i *fleet.Instance) *endpoint {
	key := i.URL.Scheme + "://" + i.URL.Host
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.mu.endpoints[key]
	if !ok {
		e = &endpoint{addr: i.URL.Host, connect: p.cfg.ConnectTimeout, maxIdle: p.cfg.MaxIdleConns, maxAge: p.cfg.IdleConnTimeout}
		if i.URL.Scheme == "https" {
			e.tls = p.tls.Clone()
			if e.tls.ServerName == "" {
				e.tls.ServerName = i.URL.Hostname()
			}
		}
		p.mu.endpoints[key] = e
	}
	return e
}

// sweep closes connections that are idle too long and forgets endpoints that
// have no connection at all.
func (p *pool) sweep(now time.Time, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, e := range p.mu.endpoints {
		if e.sweep(now, all) == 0 {
			delete(p.mu.endpoints, key)
		}
	}
}

// sweepEvery is how often idle connections are looked through.
const sweepEvery = 10 * time.Second

// Run closes connections that have been idle too long, until ctx ends; then it
// closes all idle ones.
func (c *Client) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			for _, p := range *c.pools.Load() {
				p.close()
			}
			return nil
		case now := <-tick.C:
			for _, p := range *c.pools.Load() {
				p.sweep(now, false)
			}
		}
	}
}

// Idle is the number of idle connections, for metrics.
func (c *Client) Idle() int {
	total := 0
	for _, p := range *c.pools.Load() {
		p.mu.Lock()
		for _, e := range p.mu.endpoints {
			e.mu.Lock()
			total += len(e.mu.idle)
			e.mu.Unlock()
		}
		p.mu.Unlock()
	}
	return total
}

// Open sends req to the lease's instance under the candidate's model name. The
// error is an *inference.Failure. The lease stays the caller's.
func (c *Client) Open(ctx context.Context, req *inference.Request, lease *fleet.Lease) (*Answer, error) {
	p, ok := (*c.pools.Load())[lease.Instance.Pool.Name]
	if !ok {
		return nil, &inference.Failure{Verdict: inference.VerdictBroken, Reason: "no_pool", Final: true}
	}
	a := &Answer{ctx: ctx, req: req, lease: lease, pool: p, start: time.Now()}
	if req.Rebuild && p.cfg.Reassemble == ReassembleAuto && !lease.Instance.Pool.Provider {
		a.rebuilt = new(rebuilt)
		lease.AsStream()
	}
	if p.via != nil {
		a.ex, a.stop = openPumped(ctx, a)
		return a, nil
	}
	e := p.endpoint(lease.Instance)
	if err := a.connect(e, e.take(a.start)); err != nil {
		return nil, err
	}
	return a, nil
}

// connect sends the request on an idle connection or, without one, on a new one.
func (a *Answer) connect(e *endpoint, c *conn) error {
	for {
		if c == nil {
			var err error
			begun := time.Now()
			if c, err = e.dial(a.ctx); err != nil {
				return a.fail(err, time.Time{}, "connect")
			}
			a.lease.Connected(time.Since(begun))
		}
		nc := c.nc
		a.stop = context.AfterFunc(a.ctx, func() { nc.Close() })
		c.buf = buffers.Get().(*[]byte)
		ex := &direct{body: body{c: c}}
		err := c.send(a)
		if err == nil || !c.reused && answered(c) {
			a.ex = ex
			return nil
		}
		a.stop()
		ex.finish(false)
		if !c.reused || a.ctx.Err() != nil {
			return a.fail(err, time.Time{}, "send")
		}
		c = nil
	}
}

// answered says whether an instance answered a request that it did not read to
// the end, as servers do that refuse a body for its size.
func answered(c *conn) bool {
	return c.fill(time.Now().Add(100*time.Millisecond)) == nil
}

// stale says whether err means that the instance had closed the connection
// while it was idle: reused, and not one byte came back.
func (a *Answer) stale(err error) bool {
	d, ok := a.ex.(*direct)
	return ok && d.body.c.reused && !d.body.c.got && a.ctx.Err() == nil &&
		(errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))
}

// again sends the request once more on a new connection.
func (a *Answer) again() error {
	e := a.ex.(*direct).body.c.at
	a.stop()
	a.ex.finish(false)
	a.ex = nil
	return a.connect(e, nil)
}

// direct is an exchange on one of our own connections.
type direct struct{ body body }

// readHead implements exchange.
func (d *direct) readHead(until time.Time, a *Answer) (*parsedHead, error) {
	h, err := d.body.c.readHead(until, a)
	if err == nil {
		d.body.framing, d.body.left = h.framing, max(h.Length, 0)
	}
	return h, err
}

// Read implements exchange.
func (d *direct) Read(p []byte) (int, error) { return d.body.Read(p) }

// wait implements exchange.
func (d *direct) wait(until time.Time) { d.body.until = until }

// finish implements exchange. A connection with bytes behind the answer's end
// is out of step and closed.
func (d *direct) finish(keep bool) {
	c := d.body.c
	if keep && d.body.ended && c.r == c.w {
		c.at.put(c)
		return
	}
	c.release()
	c.close()
}
