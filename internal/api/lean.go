package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// lean is the front for the requests that nearly all are: plain HTTP/1.1, POST to
// a surface, with a length. It reads and answers them on one goroutine a
// connection, without net/http's second goroutine, its context tree and its
// copies, and holds no buffer for a connection that is idle. Whatever is
// anything else (another method or path, chunked or oversized bodies, Expect,
// HTTP/2, a head that is malformed or merely unusual, a request that is refused
// before its body is read) is handed to net/http with the bytes that were read,
// at a request's boundary. So every rule about odd requests exists once, there.
//
// Each connection's goroutine is owned by serve, which waits for all of them. A
// client that leaves while its request is in progress is seen by hangups.
type lean struct {
	server  *Server
	hangups *hangups
	handoff *handoff
	clock   clock
	wg      sync.WaitGroup

	mu struct {
		sync.Mutex
		conns   map[*leanConn]struct{}
		closing bool
	}
}

// newLean returns the front, or an error where the system has no way to see a
// client leave beside its request.
func newLean(s *Server, addr net.Addr) (*lean, error) {
	h, err := newHangups()
	if err != nil {
		return nil, err
	}
	l := &lean{server: s, hangups: h, handoff: newHandoff(addr)}
	l.mu.conns = make(map[*leanConn]struct{})
	return l, nil
}

// serve accepts connections until the listener closes.
func (l *lean) serve(ln net.Listener) error {
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				time.Sleep(5 * time.Millisecond) // out of files for now: those that are open will end
				continue
			}
			return err
		}
		tc, ok := nc.(*net.TCPConn)
		if !ok {
			if !l.handoff.give(nc) {
				nc.Close()
			}
			continue
		}
		c := &leanConn{lean: l, nc: tc}
		if !l.add(c) {
			tc.Close()
			continue
		}
		l.wg.Go(func() {
			defer l.remove(c)
			c.serve()
		})
	}
}

// add registers a connection unless the front is closing.
func (l *lean) add(c *leanConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closing {
		return false
	}
	l.mu.conns[c] = struct{}{}
	return true
}

// remove forgets a connection.
func (l *lean) remove(c *leanConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.conns, c)
}

// each calls f for every connection.
func (l *lean) each(f func(*leanConn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.mu.conns {
		f(c)
	}
}

// stop lets requests in progress finish and closes idle connections.
func (l *lean) stop() {
	l.mu.Lock()
	l.mu.closing = true
	l.mu.Unlock()
	l.each(func(c *leanConn) {
		if !c.busy.Load() {
			_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // wakes its reader, which sees that the front is closing
		}
	})
}

// closing says whether the front stops.
func (l *lean) closing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.closing
}

// wait waits for all connections, no longer than ctx.
func (l *lean) wait(ctx context.Context) error {
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }() // ends with the last connection, which close makes sure of
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cut ends the requests in progress with a reason that their clients are told.
func (l *lean) cut(why error) {
	l.each(func(c *leanConn) { c.cancel(why) })
}

// close closes every connection and waits for their goroutines.
func (l *lean) close() {
	l.each(func(c *leanConn) { c.nc.Close() })
	l.wg.Wait()
	l.hangups.close()
}

// leanConn is one client's connection, for one goroutine; cancel may be called
// from any.
type leanConn struct {
	lean   *lean
	nc     *net.TCPConn
	peer   netip.Addr
	read   lazyDeadline
	write  lazyDeadline
	buf    []byte // nil while idle
	r, w   int    // unread bytes are buf[r:w]
	header http.Header
	res    leanResponse

	busy    atomic.Bool
	gone    atomic.Bool // the client has closed its side
	current atomic.Pointer[context.CancelCauseFunc]
}

// headSize is the size of a connection's read buffer, and so of the longest head
// that the lean front reads, in bytes.
const headSize = 4 << 10

// heads holds read buffers.
var heads = sync.Pool{New: func() any { b := make([]byte, headSize); return &b }}

// cancel ends the request in progress, if there is one.
func (c *leanConn) cancel(why error) {
	if f := c.current.Load(); f != nil {
		(*f)(why)
	}
}

// errClientGone is the cause of requests whose client closed the connection.
var errClientGone = errors.New("the client closed the connection")

// hangup is told by hangups that the client closed its side.
func (c *leanConn) hangup() {
	c.gone.Store(true)
	c.cancel(errClientGone)
}

// serve reads and answers requests until the connection ends or is handed on.
func (c *leanConn) serve() {
	if ap, err := netip.ParseAddrPort(c.nc.RemoteAddr().String()); err == nil {
		c.peer = ap.Addr().Unmap()
	}
	raw, err := c.nc.SyscallConn()
	if err != nil {
		c.nc.Close()
		return
	}
	var ticket hangupTicket
	if err := raw.Control(func(fd uintptr) { ticket, err = c.lean.hangups.add(int(fd), c) }); err != nil || ticket == 0 {
		c.nc.Close()
		return
	}
	handed := false
	defer func() {
		c.lean.hangups.remove(ticket)
		if v := recover(); v != nil { // as net/http does: one request's panic is not every client's
			c.cancel(errClientGone)
			c.lean.server.parts.Log.Error("panic while serving a request", "component", "api", "panic", v, "stack", string(debug.Stack()))
			handed = false
		}
		if !handed {
			c.nc.Close()
		}
		c.release()
	}()
	idle := c.readWhenReady()
	for again := true; again; {
		handed, again = c.next(raw, idle)
	}
}

// release gives the read buffer back.
func (c *leanConn) release() {
	if c.buf != nil {
		b := c.buf[:headSize]
		heads.Put(&b)
		c.buf, c.r, c.w = nil, 0, 0
	}
}

// readWhenReady returns the function that a raw connection calls until there is
// something to read, so that the wait for it holds no buffer.
func (c *leanConn) readWhenReady() func(fd uintptr) bool {
	return func(fd uintptr) bool {
		if c.buf == nil {
			c.buf = *heads.Get().(*[]byte)
		}
		for {
			n, err := syscall.Read(int(fd), c.buf)
			switch {
			case err == syscall.EINTR:
				continue
			case err == syscall.EAGAIN:
				c.release()
				return false
			case err != nil:
				n = 0
			}
			c.w = max(n, 0)
			return true
		}
	}
}

// idleRead waits for the first bytes of a request. It returns false when the
// connection is over.
func (c *leanConn) idleRead(raw syscall.RawConn, ready func(uintptr) bool) bool {
	now := time.Now()
	cfg := c.lean.server.cfg.Load()
	if c.read.set(now.Add(cfg.IdleTimeout), c.nc.SetReadDeadline) != nil {
		return false
	}
	for !c.lean.closing() {
		err := raw.Read(ready)
		if err == nil {
			return c.w > 0
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || c.lean.closing() || !c.read.early(time.Now(), c.nc.SetReadDeadline) {
			return false
		}
	}
	return false
}

// next reads and answers one request. handed says that the connection is
// net/http's now; again that it may carry another request.
func (c *leanConn) next(raw syscall.RawConn, ready func(uintptr) bool) (handed, again bool) {
	c.busy.Store(false)
	if c.r == c.w {
		c.release()
		if !c.idleRead(raw, ready) {
			return false, false
		}
	}
	c.busy.Store(true)
	received := time.Now()
	if c.header == nil {
		c.header = make(http.Header, 16)
	}
	clear(c.header)
	h, state := parseLean(c.buf[c.r:c.w], c.header)
	for state == leanPartial && c.w-c.r < headSize {
		if err := c.more(received.Add(c.lean.server.cfg.Load().ReadHeaderTimeout)); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.front().refuse(inference.CodeBodyTimeout, "the request head did not arrive in time")
			}
			return false, false
		}
		h, state = parseLean(c.buf[c.r:c.w], c.header)
	}
	if state == leanWhole {
		return c.request(h, received)
	}
	return c.hand(nil), false
}

// more reads more of a request into the buffer, no later than until.
func (c *leanConn) more(until time.Time) error {
	if c.r > 0 {
		c.w = copy(c.buf, c.buf[c.r:c.w])
		c.r = 0
	}
	n, err := c.readUntil(c.buf[c.w:], until)
	c.w += n
	return err
}

// readUntil reads once into p, no later than until.
func (c *leanConn) readUntil(p []byte, until time.Time) (int, error) {
	if err := c.read.set(until, c.nc.SetReadDeadline); err != nil {
		return 0, err
	}
	for {
		n, err := c.nc.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) || !c.read.early(time.Now(), c.nc.SetReadDeadline) {
			return n, err
		}
	}
}

// front is the connection as net/http may have it, with what was read of the
// request.
func (c *leanConn) front() *frontConn {
	f := &frontConn{Conn: c.nc, server: c.lean.server, prefix: append([]byte(nil), c.buf[c.r:c.w]...)}
	f.plain.Store(true)
	return f
}

// hand gives the connection to net/http with what was read of the request, and what
// its head was judged to be; nil when it was not judged.
func (c *leanConn) hand(j *judged) bool {
	_ = c.nc.SetDeadline(time.Time{}) // net/http sets its own
	f := c.front()
	f.judged = j
	return c.lean.handoff.give(f)
}

// judged is what a request's head was judged to be on another front: it is charged to
// its limits once.
type judged struct {
	w   *writer
	err error
}

// request answers a request whose head was understood.
func (c *leanConn) request(h leanHead, received time.Time) (handed, again bool) {
	s := c.lean.server
	cfg := s.cfg.Load()
	req := &inference.Request{ID: requestID(c.header), Surface: h.surface, Received: received, Header: c.header, RawQuery: h.query}
	w := &writer{w: &c.res, req: req, stall: cfg.WriteStallTimeout, armed: received}
	err := s.checkHead(w, http.MethodPost, c.peer)
	body := heldBody{mem: &s.memory}
	if err != nil || h.length > int64(cfg.MaxBody) || body.begin(h.length, cfg) != nil {
		body.release()
		return c.hand(&judged{w, err}), false // what refuses unread bodies is net/http's side
	}
	defer body.release()
	c.r += h.size
	c.res.reset(c)
	c.res.close = h.close
	c.res.header["X-Request-Id"] = []string{req.ID}
	if c.write.set(received.Add(w.stall), c.nc.SetWriteDeadline) != nil {
		return false, false
	}
	if err = c.readBody(&body, h.length, received, cfg); err != nil {
		c.res.close = true
		s.fail(w, err)
		_ = c.res.finish() // the connection ends in any case
		return false, false
	}
	w.read = time.Now()
	if c.r == c.w {
		c.release() // nothing is left to read until the answer has ended
	}
	c.answer(w, body.bytes)
	if w.aborted || c.res.finish() != nil {
		return false, false
	}
	return false, !c.res.close && !c.gone.Load()
}

// answer runs the request with a context that ends when the client leaves.
func (c *leanConn) answer(w *writer, body []byte) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c.current.Store(&cancel)
	if c.gone.Load() {
		cancel(errClientGone)
	}
	if c.lean.server.stopping.Load() {
		c.res.close = true
	}
	c.lean.server.answer(ctx, w, body)
	c.current.Store(nil)
	cancel(nil)
}

// readBody reads a body of known length, the first part of which may be in the
// buffer already. The error is an *inference.Error.
func (c *leanConn) readBody(b *heldBody, length int64, received time.Time, cfg *Config) error {
	n := min(int64(c.w-c.r), length, int64(cap(b.bytes)))
	b.bytes = append(b.bytes, c.buf[c.r:c.r+int(n)]...)
	c.r += int(n)
	until := received.Add(cfg.ReadBodyTimeout)
	for int64(len(b.bytes)) < length {
		if len(b.bytes) == cap(b.bytes) {
			if err := b.grow(length, cfg); err != nil {
				return err
			}
		}
		n, err := c.readUntil(b.bytes[len(b.bytes):min(int64(cap(b.bytes)), length)], until)
		b.bytes = b.bytes[:len(b.bytes)+n]
		if err != nil {
			return broken(err)
		}
	}
	return nil
}

// handoff is the listener through which net/http gets connections.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// newHandoff returns a listener at addr's name.
func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// give hands a connection over. It returns false when nobody takes it any more.
func (h *handoff) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }
