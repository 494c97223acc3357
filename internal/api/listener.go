package api

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
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
	plain   bool    // HTTP without TLS: answers can be written past net/http
	proxies trusted // peers that write a PROXY protocol header; nil: none does
}

// Accept implements net.Listener. It reads nothing, so one slow client cannot
// hold up the others.
func (l *frontListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &frontConn{Conn: nc}
	c.plain.Store(l.plain)
	if peer, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil && l.proxies.has(peer.Addr().Unmap()) {
		c.proxied = true
	}
	return c, nil
}

// frontConn is a client's connection. It gives the answers that net/http writes
// by itself (a malformed or oversized head) the shape of every other error, says
// 408 to a head that does not arrive, and reads the PROXY protocol header.
type frontConn struct {
	net.Conn
	plain   atomic.Bool // speaks HTTP/1.1 without TLS
	begun   atomic.Bool // bytes of a head have come
	handled atomic.Bool // a handler has the request
	read    lazyDeadline
	write   lazyDeadline

	prefix  []byte // was read from the connection already
	proxied bool
	once    sync.Once
	buf     *bufio.Reader
	remote  net.Addr
	err     error
}

// proxyHeader reads the PROXY protocol header once, on the connection's own
// goroutine.
func (c *frontConn) proxyHeader() {
	c.once.Do(func() {
		c.buf = bufio.NewReaderSize(c.Conn, 4096)
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
		n, err := c.readOnce(p)
		if n > 0 {
			if !c.begun.Swap(true) && bytes.HasPrefix(p[:n], []byte("PRI * HTTP/2")) {
				c.plain.Store(false)
			}
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

// refuse answers a request that no handler will see.
func (c *frontConn) refuse(code inference.Code, message string) {
	id := newRequestID()
	body := errorBody(inference.Chat, &inference.Error{Code: code, Message: message}, id)
	_ = c.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	fmt.Fprintf(c.Conn, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nX-Request-Id: %s\r\nConnection: close\r\n\r\n%s",
		Status(code), statusText(Status(code)), len(body), id, body)
}
