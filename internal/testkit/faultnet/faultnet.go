// Package faultnet is a TCP proxy for tests whose network has faults: it is slow,
// narrow, silent, cut, or says what nobody sent.
//
// A Proxy passes bytes between clients and a target. Each connection has two
// goroutines a direction: one reads, one writes when the bytes are due. They end
// with the connection, and all of them with the test. Faults hold from the moment
// they are set, for connections that are open as well as for new ones.
package faultnet

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Faults are what goes wrong. The zero value is a network without faults.
type Faults struct {
	Delay     time.Duration // of every byte, in each direction
	Bandwidth int           // bytes a second of each connection, in each direction; 0: no bound
	BlackHole bool          // connections are accepted; nothing passes in either direction
	Refuse    bool          // new connections are reset at once
	Garbage   []byte        // stands in for every piece that the target sends
	CutAfter  int           // connections are reset when the target has sent so many bytes since Set; 0: never
}

// bounds of a direction's memory: chunks that wait for their time.
const (
	chunkSize = 16 << 10
	maxChunks = 64
)

// dialTimeout bounds the connection to the target.
const dialTimeout = 5 * time.Second

// Proxy is a listener with a target and faults. All methods are safe for concurrent
// use.
type Proxy struct {
	listener net.Listener
	ctx      context.Context // ends with the test
	wg       sync.WaitGroup
	accepted atomic.Int64

	mu struct {
		sync.Mutex
		target  string
		faults  Faults
		changed chan struct{} // closed when the faults change
		sent    int           // bytes from the target since the faults changed
		pairs   map[*pair]bool
	}
}

// pair is a client's connection and the one to the target.
type pair struct{ client, target *net.TCPConn }

// New starts a proxy before a target (host:port). It ends with the test.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{listener: l, ctx: ctx}
	p.mu.target, p.mu.changed, p.mu.pairs = target, make(chan struct{}), make(map[*pair]bool)
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		cancel()
		l.Close()
		p.Reset()
		p.wg.Wait()
	})
	return p
}

// Addr is where clients connect to (host:port).
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Accepted is how many connections there have been.
func (p *Proxy) Accepted() int64 { return p.accepted.Load() }

// Set replaces the faults.
func (p *Proxy) Set(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.faults, p.mu.sent = f, 0
	close(p.mu.changed)
	p.mu.changed = make(chan struct{})
}

// Retarget sends new connections to another target. Those that are open stay.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.target = target
}

// Cut ends all connections in order: both sides read an end of file.
func (p *Proxy) Cut() { p.drop(false) }

// Reset ends all connections with a reset.
func (p *Proxy) Reset() { p.drop(true) }

// drop ends all connections.
func (p *Proxy) drop(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.mu.pairs {
		c.close(reset)
	}
}

// close ends a pair. With reset, what is on its way is lost.
func (c *pair) close(reset bool) {
	for _, conn := range []*net.TCPConn{c.client, c.target} {
		if reset {
			conn.SetLinger(0)
		}
		conn.Close()
	}
}

// now returns the faults, and a channel that is closed when they change.
func (p *Proxy) now() (Faults, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.faults, p.mu.changed
}

// accept takes connections until the listener is closed.
func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		p.wg.Go(func() { p.serve(c.(*net.TCPConn)) })
	}
}

// serve passes the bytes of a connection until it ends.
func (p *Proxy) serve(client *net.TCPConn) {
	p.mu.Lock()
	f, target := p.mu.faults, p.mu.target
	p.mu.Unlock()
	if f.Refuse {
		client.SetLinger(0)
		client.Close()
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(p.ctx, "tcp", target)
	if err != nil {
		client.SetLinger(0)
		client.Close()
		return
	}
	c := &pair{client: client, target: conn.(*net.TCPConn)}
	p.mu.Lock()
	p.mu.pairs[c] = true
	p.mu.Unlock()
	if p.ctx.Err() != nil { // the end did not see this one
		c.close(true)
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(c, true) })
	both.Go(func() { p.pass(c, false) })
	both.Wait()
	c.close(false)
	p.mu.Lock()
	delete(p.mu.pairs, c)
	p.mu.Unlock()
}

// chunk is a piece on its way.
type chunk struct {
	bytes []byte
	came  time.Time
}

// pass moves bytes in one direction.
func (p *Proxy) pass(c *pair, up bool) {
	from, to := c.target, c.client
	if up {
		from, to = c.client, c.target
	}
	way := make(chan chunk, maxChunks)
	ended := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(way)
		for {
			b := make([]byte, chunkSize)
			n, err := from.Read(b)
			if n > 0 {
				select {
				case way <- chunk{b[:n], time.Now()}:
				case <-ended:
					return
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					c.close(true)
				}
				return
			}
		}
	})
	for next := range way {
		if !p.deliver(c, to, next, up) {
			c.close(true)
			break
		}
	}
	to.CloseWrite()
	close(ended)
	reader.Wait()
}

// deliver writes a piece when it is due, as the faults have it, and says whether
// the connection goes on.
func (p *Proxy) deliver(c *pair, to *net.TCPConn, next chunk, up bool) bool {
	for {
		f, changed := p.now()
		wait := f.Delay - time.Since(next.came)
		if f.Bandwidth > 0 {
			wait = max(wait, 0) + time.Duration(len(next.bytes))*time.Second/time.Duration(f.Bandwidth)
		}
		var due <-chan time.Time
		if !f.BlackHole {
			due = time.After(wait)
		}
		select {
		case <-p.ctx.Done():
			return false
		case <-changed: // judged anew by the faults that hold now
			continue
		case <-due:
		}
		b, goesOn := next.bytes, true
		if !up {
			b, goesOn = p.answer(f, b)
		}
		if _, err := to.Write(b); err != nil {
			return false
		}
		return goesOn
	}
}

// answer is what becomes of a piece that the target sends.
func (p *Proxy) answer(f Faults, b []byte) (passed []byte, goesOn bool) {
	if f.Garbage != nil {
		return f.Garbage, true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.sent += len(b)
	if over := p.mu.sent - f.CutAfter; f.CutAfter > 0 && over >= 0 {
		return b[:max(0, len(b)-over)], false
	}
	return b, true
}
