package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// newTransport is Go's own client, for outbound proxies and HTTP/2.
func newTransport(cfg *Config, tc *tls.Config) (*http.Transport, error) {
	t := &http.Transport{
		TLSClientConfig:     tc.Clone(),
		DialContext:         (&net.Dialer{Timeout: cfg.ConnectTimeout}).DialContext,
		TLSHandshakeTimeout: cfg.ConnectTimeout,
		MaxIdleConnsPerHost: cfg.MaxIdleConns,
		IdleConnTimeout:     cfg.IdleConnTimeout,
		ForceAttemptHTTP2:   cfg.HTTP2,
		DisableCompression:  true,
		ReadBufferSize:      bufferSize,
		WriteBufferSize:     bufferSize,
	}
	if cfg.Proxy != "" {
		u, err := url.Parse(cfg.Proxy)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		t.Proxy = http.ProxyURL(u)
	}
	return t, nil
}

// piece is what the pump's goroutine hands over: the head, or a part of the
// body, or the end.
type piece struct {
	res  *http.Response
	data []byte
	err  error
}

// pumped is an exchange through http.Transport. Its one goroutine reads ahead by
// one piece, so that waits can end at an instant; it ends with the attempt's
// context, which finish cancels.
type pumped struct {
	ctx    context.Context // of this exchange alone, ended by finish
	cancel context.CancelFunc
	pieces chan piece
	free   chan []byte // the buffer travels back and forth
	until  time.Time
	rest   []byte
	whole  []byte // the buffer that rest is a part of
	err    error
}

// openPumped starts the request.
func openPumped(ctx context.Context, a *Answer) (*pumped, func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	p := &pumped{ctx: ctx, cancel: cancel, pieces: make(chan piece), free: make(chan []byte, 1)}
	p.free <- make([]byte, bufferSize)
	u := *a.lease.Instance.URL
	u.Path += a.req.Surface.Path()
	u.RawQuery = a.req.RawQuery
	segs := wire.Rewrite(nil, a.req, a.edits())
	body := bytes.Join(segs, nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err == nil {
		a.pool.forward(a.req, req.Header.Add)
	}
	via := a.pool.via
	go p.run(func() (*http.Response, error) {
		if err != nil {
			return nil, err
		}
		return via.RoundTrip(req)
	})
	return p, func() bool { return true }
}

// run is the pump: head, then pieces of the body, then the end.
func (p *pumped) run(trip func() (*http.Response, error)) {
	hand := func(v piece) bool {
		select {
		case p.pieces <- v:
			return true
		case <-p.ctx.Done():
			return false
		}
	}
	res, err := trip()
	if err != nil {
		hand(piece{err: err})
		return
	}
	defer res.Body.Close()
	if !hand(piece{res: res}) {
		return
	}
	for {
		var buf []byte
		select {
		case buf = <-p.free:
		case <-p.ctx.Done():
			return
		}
		n, err := res.Body.Read(buf)
		if !hand(piece{data: buf[:n], err: err}) || err != nil {
			return
		}
	}
}

// next waits for a piece.
func (p *pumped) next() (piece, error) {
	timer := time.NewTimer(time.Until(p.until))
	defer timer.Stop()
	select {
	case v := <-p.pieces:
		return v, nil
	case <-timer.C:
		return piece{}, inference.ErrNotYet
	case <-p.ctx.Done():
		return piece{}, p.ctx.Err()
	}
}

// readHead implements exchange.
func (p *pumped) readHead(until time.Time, _ *Answer) (*parsedHead, error) {
	p.until = until
	v, err := p.next()
	if err != nil {
		return nil, err
	}
	if v.err != nil {
		return nil, v.err
	}
	h := &parsedHead{keepAlive: true}
	h.Status, h.Length = v.res.StatusCode, v.res.ContentLength
	var hints retryHints
	for name, values := range v.res.Header {
		for _, value := range values {
			if name != "Connection" && name != "Content-Length" && name != "Transfer-Encoding" {
				h.keep(name, []byte(value))
			}
			hints.read(name, []byte(value))
			h.readLimit(name, []byte(value))
		}
	}
	h.retryAfter = hints.wait()
	return h, nil
}

// Read implements exchange.
func (p *pumped) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		if p.whole != nil {
			p.free <- p.whole
			p.whole = nil
		}
		v, err := p.next()
		if err != nil {
			return 0, err
		}
		p.rest, p.whole, p.err = v.data, v.data[:cap(v.data)], v.err
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// wait implements exchange.
func (p *pumped) wait(until time.Time) { p.until = until }

// finish implements exchange. http.Transport keeps the connection by itself
// when the body was read to its end.
func (p *pumped) finish(bool) { p.cancel() }

// Aside is how requests beside the clients' own reach a pool's instances: health
// probes, scrapes, lists of models. They have connections of their own, so that
// a probe never takes one from a request or hides behind it. The caller closes
// the transport's idle connections when it is done with it.
func Aside(cfg Config) (*http.Transport, http.Header, error) {
	p, err := newPool(cfg)
	if err != nil {
		return nil, nil, err
	}
	t, err := newTransport(&cfg, p.tls)
	if err != nil {
		return nil, nil, err
	}
	t.MaxIdleConnsPerHost = 1
	h := make(http.Header, len(p.header))
	for name, value := range p.header {
		h.Set(name, value)
	}
	return t, h, nil
}
