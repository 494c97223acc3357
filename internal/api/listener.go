package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Listen opens a TCP listener whose connections have a bounded send buffer.
func Listen(ctx context.Context, addr string, sendBuffer int) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		if err := c.Control(func(fd uintptr) { serr = setSendBuffer(fd, sendBuffer) }); err != nil {
			return err
		}
		return serr
	}}
	return lc.Listen(ctx, "tcp", addr)
}

// frontListener wraps the connections of clients.
type frontListener struct {
	net.Listener
	server   *Server
	plain    bool          // HTTP without TLS: answers can be written past net/http
	proxies  trusted       // peers that write a PROXY protocol header; nil: none does
	patience time.Duration // longest wait for that header
}

// Accept implements net.Listener. It reads nothing, so one slow client cannot
// hold up the others.
func (l *frontListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &frontConn{Conn: nc, server: l.server}
	c.plain.Store(l.plain)
	if peer, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil && l.proxies.has(peer.Addr().Unmap()) {
		c.proxied, c.patience = true, l.patience
	}
	return c, nil
}

// frontConn is a client's connection. It gives the answers that net/http writes
// by itself (a malformed or oversized head) the shape of every other error, says
// 408 to a head that does not arrive, and reads the PROXY protocol header.
type frontConn struct {
	net.Conn
	server  *Server
	plain   atomic.Bool // speaks HTTP/1.1 without TLS
	begun   atomic.Bool // bytes of a head have come
	handled atomic.Bool // a handler has the request
	refused atomic.Bool // was answered here: nothing else is read or said
	read    lazyDeadline
	write   lazyDeadline

	prefix   []byte  // was read from the connection already
	judged   *judged // the first request's head; nil: it was not judged
	proxied  bool
	patience time.Duration // longest wait for a PROXY protocol header
	once     sync.Once
	buf      *bufio.Reader
	remote   net.Addr
	err      error
}

// proxyHeader reads the PROXY protocol header once, on the connection's own
// goroutine.
func (c *frontConn) proxyHeader() {
	c.once.Do(func() {
		c.buf = bufio.NewReaderSize(c.Conn, 4096)
		if c.err = c.Conn.SetReadDeadline(time.Now().Add(c.patience)); c.err != nil {
			return
		}
		defer func() { c.err = errors.Join(c.err, c.Conn.SetReadDeadline(time.Time{})) }()
		var ap netip.AddrPort
		if ap, c.err = readProxyHeader(c.buf); c.err == nil && ap.IsValid() {
			c.remote = net.TCPAddrFromAddrPort(ap)
		}
	})
}

// RemoteAddr implements net.Conn: the client's address as the proxy told it.
func (c *frontConn) RemoteAddr() net.Addr {
	if c.proxied {
		if c.proxyHeader(); c.remote != nil {
			return c.remote
		}
	}
	return c.Conn.RemoteAddr()
}

// Read implements net.Conn.
func (c *frontConn) Read(p []byte) (int, error) {
	for {
		if c.refused.Load() {
			return 0, io.EOF
		}
		n, err := c.readFirst(p)
		if n > 0 {
			c.begun.Store(true)
			return n, err
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || c.read.woken() {
			return n, err
		}
		if c.read.early(time.Now(), c.Conn.SetReadDeadline) {
			continue
		}
		if c.plain.Load() && c.begun.Load() && !c.handled.Load() {
			c.refuse(inference.CodeBodyTimeout, "the request head did not arrive in time")
		}
		return n, err
	}
}

// readFirst reads, and looks at the first bytes of each request as they arrived,
// however few of them net/http asks for.
func (c *frontConn) readFirst(p []byte) (int, error) {
	if !c.plain.Load() || c.begun.Load() || c.handled.Load() {
		return c.readOnce(p)
	}
	if len(c.prefix) == 0 {
		buf := heads.Get().(*[]byte)
		n, err := c.readOnce(*buf)
		c.prefix = append([]byte(nil), (*buf)[:n]...)
		heads.Put(buf)
		if n == 0 {
			return 0, err
		}
	}
	if reason := c.inspect(c.prefix); reason != "" {
		c.refuse(inference.CodeInvalidRequest, "the request head was refused: "+reason)
		return 0, io.EOF
	}
	return c.readOnce(p)
}

// inspect looks at the first bytes of a request: HTTP/2 is no business of ours, and
// a head that another reader may understand differently is refused.
func (c *frontConn) inspect(first []byte) (reason string) {
	if bytes.HasPrefix(first, []byte("PRI * HTTP/2")) {
		c.plain.Store(false)
		return ""
	}
	return badHead(first)
}

// readOnce reads what the client sent, behind what was read before and behind a
// PROXY protocol header.
func (c *frontConn) readOnce(p []byte) (int, error) {
	if len(c.prefix) > 0 {
		n := copy(p, c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	if !c.proxied {
		return c.Conn.Read(p)
	}
	if c.proxyHeader(); c.err != nil {
		return 0, c.err
	}
	return c.buf.Read(p)
}

// SetReadDeadline implements net.Conn.
func (c *frontConn) SetReadDeadline(t time.Time) error {
	return c.read.set(t, c.Conn.SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (c *frontConn) SetWriteDeadline(t time.Time) error {
	return c.write.set(t, c.Conn.SetWriteDeadline)
}

// SetDeadline implements net.Conn.
func (c *frontConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// bare marks the answers that net/http writes past any handler.
var bare = []byte("Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write implements net.Conn.
func (c *frontConn) Write(p []byte) (int, error) {
	if c.refused.Load() {
		return len(p), nil
	}
	if !c.handled.Load() && len(p) < 512 && c.plain.Load() && bytes.HasPrefix(p, []byte("HTTP/1.1 ")) && bytes.Contains(p, bare) {
		code := inference.CodeInvalidRequest
		if bytes.HasPrefix(p[9:], []byte("431")) {
			code = inference.CodeHeadTooLarge
		}
		_, reason, _ := bytes.Cut(p, bare)
		c.refuse(code, fmt.Sprintf("the request head was refused: %s", bytes.TrimSpace(reason)))
		return len(p), nil
	}
	written := 0
	for {
		n, err := c.Conn.Write(p[written:])
		written += n
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || !c.write.early(time.Now(), c.Conn.SetWriteDeadline) {
			return written, err
		}
	}
}

// refuse answers a request that no handler will see, and records it.
func (c *frontConn) refuse(code inference.Code, message string) {
	c.refused.Store(true)
	id := newRequestID()
	body := errorBody(inference.Chat, &inference.Error{Code: code, Message: message}, id)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	fmt.Fprintf(c.Conn, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-Request-Id: %s\r\nConnection: close\r\n\r\n%s",
		Status(code), statusText(Status(code)), len(body), id, body)
	req := &inference.Request{ID: id, Received: time.Now(), ClientIP: peerIP(c.RemoteAddr().String())}
	c.server.parts.Record(&inference.Record{Request: req, Code: code, Reason: "head", Status: Status(code)})
}
