package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Sizes and times of connections.
const (
	readBuffer = 4 << 10 // first size of a connection's buffer: a head, and several events
	maxHead    = 64 << 10
	// maxIdle drops idle connections before servers do: uvicorn, which vLLM and
	// SGLang run on, closes them after 5 s.
	maxIdle = 4 * time.Second
)

// The errors of a broken answer. Both mean that the connection is lost to us.
var (
	errHead    = errors.New("malformed response head")
	errFraming = errors.New("malformed chunk")
)

// endpoint is one base URL with its idle connections.
type endpoint struct {
	host   string // host:port to dial, and the name of an instance without one
	server string // TLS server name; empty without TLS
	line   []byte // request line and Host header
	self   atomic.Pointer[instance]
	mu     struct {
		sync.Mutex
		idle []*conn // the last one was used last
	}
}

// transport opens and keeps HTTP/1.1 connections. It speaks the least that a
// load generator needs at the least cost: one write per request, answers
// parsed where they were read, no goroutine per connection.
type transport struct {
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	tls     *tls.Config
	connect time.Duration // bound on one connection attempt
	mu      struct {
		sync.Mutex
		stopped bool
		active  map[*conn]struct{}
	}
}

func newTransport(cfg Client, opts Options) *transport {
	t := &transport{dial: opts.Dial, tls: opts.TLS, connect: cfg.ConnectTimeout}
	if t.dial == nil {
		t.dial = new(net.Dialer).DialContext
	}
	if t.tls == nil {
		t.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.mu.active = map[*conn]struct{}{}
	return t
}

// conn is a connection with what has been read ahead.
type conn struct {
	nc    net.Conn
	buf   []byte
	r, w  int // unread bytes are buf[r:w]
	since time.Time
}

// open returns an idle connection of the endpoint that is still alive, or a
// new one, with the deadline set.
func (t *transport) open(ctx context.Context, ep *endpoint, deadline time.Time) (*conn, error) {
	c := ep.reuse()
	if c == nil {
		var err error
		if c, err = t.dialNew(ctx, ep, deadline); err != nil {
			return nil, err
		}
	}
	err := c.nc.SetDeadline(deadline)
	t.mu.Lock()
	stopped := t.mu.stopped
	if !stopped && err == nil {
		t.mu.active[c] = struct{}{}
	}
	t.mu.Unlock()
	if stopped {
		err = context.Canceled
	}
	if err != nil {
		// The connection is given up; its own close error adds nothing.
		_ = c.nc.Close()
		return nil, err
	}
	return c, nil
}

// extend moves the deadline of a connection in use, unless all have been
// interrupted. A connection that is lost shows with the next read.
func (t *transport) extend(c *conn, deadline time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.mu.stopped {
		_ = c.nc.SetDeadline(deadline)
	}
}

// instance is the counters of this endpoint as an instance.
func (ep *endpoint) instance(l *Live) *instance {
	in := ep.self.Load()
	if in == nil {
		in = l.instance([]byte(ep.host))
		ep.self.Store(in)
	}
	return in
}

// reuse takes the connection that was used last, if it is fresh and alive.
func (ep *endpoint) reuse() *conn {
	for {
		ep.mu.Lock()
		n := len(ep.mu.idle)
		if n == 0 {
			ep.mu.Unlock()
			return nil
		}
		c := ep.mu.idle[n-1]
		ep.mu.idle = ep.mu.idle[:n-1]
		ep.mu.Unlock()
		if time.Since(c.since) < maxIdle && alive(c.nc) {
			return c
		}
		_ = c.nc.Close()
	}
}

func (t *transport) dialNew(ctx context.Context, ep *endpoint, deadline time.Time) (*conn, error) {
	limit := time.Now().Add(t.connect)
	if deadline.Before(limit) {
		limit = deadline
	}
	ctx, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	nc, err := t.dial(ctx, "tcp", ep.host)
	if err != nil {
		return nil, err
	}
	if ep.server != "" {
		cfg := t.tls.Clone()
		if cfg.ServerName == "" {
			cfg.ServerName = ep.server
		}
		secure := tls.Client(nc, cfg)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = nc.Close()
			return nil, fmt.Errorf("TLS: %w", err)
		}
		nc = secure
	}
	return &conn{nc: nc, buf: make([]byte, readBuffer)}, nil
}

// release gives the connection back: to the idle list when its answer was read
// to the end, else closed.
func (t *transport) release(ep *endpoint, c *conn, reusable bool) {
	t.mu.Lock()
	delete(t.mu.active, c)
	stopped := t.mu.stopped
	t.mu.Unlock()
	if !reusable || stopped || c.r != c.w {
		_ = c.nc.Close()
		return
	}
	if len(c.buf) > readBuffer {
		c.buf = make([]byte, readBuffer)
	}
	c.r, c.w, c.since = 0, 0, time.Now()
	var stale *conn
	ep.mu.Lock()
	// Idle connections are used from the end, so the oldest is at the front: at
	// most one leaves for each that comes, and the list cannot keep a dead tail.
	if len(ep.mu.idle) > 0 && c.since.Sub(ep.mu.idle[0].since) >= maxIdle {
		stale = ep.mu.idle[0]
		ep.mu.idle = append(ep.mu.idle[:0], ep.mu.idle[1:]...)
	}
	ep.mu.idle = append(ep.mu.idle, c)
	ep.mu.Unlock()
	if stale != nil {
		_ = stale.nc.Close()
	}
}

// interrupt ends every read and write of the run and refuses new connections.
func (t *transport) interrupt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.stopped = true
	for c := range t.mu.active {
		_ = c.nc.SetDeadline(time.Unix(1, 0))
	}
}

// close closes the idle connections of the endpoint.
func (ep *endpoint) close() {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	for _, c := range ep.mu.idle {
		_ = c.nc.Close()
	}
	ep.mu.idle = nil
}

// fill reads more bytes behind the unread ones; the buffer grows up to limit.
func (c *conn) fill(limit int) error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(c.buf) {
		if c.r > 0 {
			c.w = copy(c.buf, c.buf[c.r:c.w])
			c.r = 0
		} else {
			if len(c.buf) >= limit {
				return errHead
			}
			c.buf = append(c.buf, make([]byte, len(c.buf))...)
		}
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// body reads an answer's body through its framing. It is an io.Reader whose
// io.EOF means that the server ended the body cleanly.
type body struct {
	c       *conn
	left    int64 // of the chunk, or of the body
	chunked bool
	toClose bool // the body ends with the connection
	ended   bool
	inside  bool // a chunk's data has been read, its line end not yet
}

func (b *body) reset(c *conn, h head) {
	*b = body{c: c, chunked: h.chunked}
	if h.chunked {
		return
	}
	b.left = h.length
	if h.length < 0 {
		b.toClose = true
	}
}

// reusable says whether the connection can carry another request.
func (b *body) reusable() bool { return b.ended && !b.toClose }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.ended {
		return 0, io.EOF
	}
	if b.left == 0 && !b.toClose {
		if err := b.nextChunk(); err != nil {
			return 0, err
		}
	}
	c := b.c
	if c.r == c.w {
		if err := c.fill(len(c.buf)); err != nil {
			return 0, b.broken(err)
		}
	}
	n := c.w - c.r
	if !b.toClose {
		n = int(min(int64(n), b.left))
	}
	n = copy(p, c.buf[c.r:c.r+n])
	c.r += n
	if !b.toClose {
		b.left -= int64(n)
	}
	return n, nil
}

// broken tells a clean end from a lost connection.
func (b *body) broken(err error) error {
	if err != io.EOF {
		return err
	}
	if b.toClose {
		b.ended = true
		return io.EOF
	}
	return io.ErrUnexpectedEOF
}

// nextChunk reads a chunk's size line, or finds the body's end.
func (b *body) nextChunk() error {
	if !b.chunked {
		b.ended = true
		return io.EOF
	}
	if b.inside {
		b.inside = false
		if line, err := b.c.line(); err != nil {
			return b.broken(err)
		} else if len(line) != 0 {
			return errFraming
		}
	}
	line, err := b.c.line()
	if err != nil {
		return b.broken(err)
	}
	size, ok := chunkSize(line)
	if !ok {
		return errFraming
	}
	if size > 0 {
		b.left, b.inside = size, true
		return nil
	}
	for { // trailers
		if line, err = b.c.line(); err != nil {
			return b.broken(err)
		}
		if len(line) == 0 {
			b.ended = true
			return io.EOF
		}
	}
}

// line reads one line of the framing.
func (c *conn) line() ([]byte, error) {
	for scanned := 0; ; {
		if i := bytes.IndexByte(c.buf[c.r+scanned:c.w], '\n'); i >= 0 {
			line := bytes.TrimSuffix(c.buf[c.r:c.r+scanned+i], []byte{'\r'})
			c.r += scanned + i + 1
			return line, nil
		}
		scanned = c.w - c.r
		if scanned > readBuffer {
			return nil, errFraming
		}
		if err := c.fill(maxHead); err != nil {
			return nil, err
		}
	}
}

// chunkSize reads the hexadecimal size before any extension.
func chunkSize(line []byte) (int64, bool) {
	if i := bytes.IndexByte(line, ';'); i >= 0 {
		line = line[:i]
	}
	line = bytes.TrimSpace(line)
	if len(line) == 0 || len(line) > 15 {
		return 0, false
	}
	var n int64
	for _, d := range line {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d >= 'a' && d <= 'f':
			d -= 'a' - 10
		case d >= 'A' && d <= 'F':
			d -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | int64(d)
	}
	return n, true
}
