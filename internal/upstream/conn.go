package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// bufferSize is the read buffer of a connection in use, in bytes. Idle
// connections hold none.
const bufferSize = 4 << 10

// buffers holds read buffers of bufferSize.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// conn is one connection to an instance, used by one attempt at a time.
type conn struct {
	nc     net.Conn
	at     *endpoint
	buf    *[]byte // nil while idle
	r, w   int     // unread bytes are buf[r:w]
	armed  time.Time
	idleAt time.Time
	reused bool
	got    bool // bytes have come since the request was written
}

// fill reads once into the free part of the buffer, waiting no later than
// until. It returns inference.ErrNotYet when that instant passes first.
func (c *conn) fill(until time.Time) error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	}
	if c.w == len(*c.buf) {
		if c.r == 0 {
			return errBufferFull
		}
		c.w = copy(*c.buf, (*c.buf)[c.r:c.w])
		c.r = 0
	}
	n, err := c.read((*c.buf)[c.w:], until)
	c.w += n
	return err
}

// errBufferFull says that one element of an answer's head is too large.
var errBufferFull = errors.New("buffer is full")

// read reads once into p. The connection's read deadline is moved only when it
// would fire too late: an earlier one that fires is set anew, which costs one
// needless wake-up per period instead of a system timer per read.
func (c *conn) read(p []byte, until time.Time) (int, error) {
	for {
		if c.armed.IsZero() || until.Before(c.armed) {
			if err := c.nc.SetReadDeadline(until); err != nil {
				return 0, err
			}
			c.armed = until
		}
		n, err := c.nc.Read(p)
		if n > 0 {
			c.got = true
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
		c.armed = time.Time{}
		if !time.Now().Before(until) {
			return 0, inference.ErrNotYet
		}
	}
}

// release gives the read buffer back.
func (c *conn) release() {
	if c.buf != nil {
		buffers.Put(c.buf)
		c.buf, c.r, c.w = nil, 0, 0
	}
}

// close ends the connection. It is called once for each connection.
func (c *conn) close() {
	c.nc.Close()
	c.at.mu.Lock()
	c.at.mu.open--
	c.at.mu.Unlock()
}

// endpoint is where an instance listens, with its idle connections. The most
// recently used connection is taken first, so that the others may expire.
type endpoint struct {
	addr    string // host:port to dial
	tls     *tls.Config
	connect time.Duration
	maxIdle int
	maxAge  time.Duration

	mu struct {
		sync.Mutex
		idle   []*conn
		open   int // connections, idle and in use
		closed bool
	}
}

// take returns an idle connection, or nil.
func (e *endpoint) take(now time.Time) *conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := len(e.mu.idle)
	if n == 0 || now.Sub(e.mu.idle[n-1].idleAt) > e.maxAge {
		return nil // the newest is too old, so all are; the sweep closes them
	}
	c := e.mu.idle[n-1]
	e.mu.idle[n-1] = nil
	e.mu.idle = e.mu.idle[:n-1]
	c.reused, c.got = true, false
	return c
}

// put keeps a connection whose answer was read to its end.
func (e *endpoint) put(c *conn) {
	c.release()
	c.idleAt = time.Now()
	e.mu.Lock()
	if keep := !e.mu.closed && len(e.mu.idle) < e.maxIdle; keep {
		e.mu.idle = append(e.mu.idle, c)
		c = nil
	}
	e.mu.Unlock()
	if c != nil {
		c.close()
	}
}

// dial makes a new connection.
func (e *endpoint) dial(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, e.connect)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", e.addr)
	if err != nil {
		return nil, err
	}
	if e.tls != nil {
		tc := tls.Client(nc, e.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, err
		}
		nc = tc
	}
	e.mu.Lock()
	e.mu.open++
	e.mu.Unlock()
	return &conn{nc: nc, at: e}, nil
}

// sweep closes connections that have been idle too long, or all idle ones for
// good. It returns how many connections are left, those in use included.
func (e *endpoint) sweep(now time.Time, all bool) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.closed = e.mu.closed || all
	keep := e.mu.idle[:0]
	for _, c := range e.mu.idle {
		if all || now.Sub(c.idleAt) > e.maxAge {
			c.nc.Close()
			e.mu.open--
			continue
		}
		keep = append(keep, c)
	}
	clear(e.mu.idle[len(keep):])
	e.mu.idle = keep
	return e.mu.open
}
