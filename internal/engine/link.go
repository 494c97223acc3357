package engine

import (
	"context"
	"net"
	"syscall"
)

// link is a client connection that the step loop may write to past net/http.
type link struct {
	net.Conn
	raw syscall.RawConn
}

type linkKey struct{}

// ConnContext belongs into http.Server.ConnContext of a server that serves an [Engine]: it lets the step loop write
// events straight to plain HTTP/1.1 connections. Without it everything works, at the cost of one goroutine switch per event.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) { // the exact types: a wrapper may count or delay writes
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return ctx
	}
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, linkKey{}, &link{Conn: c, raw: raw})
}

// linkOf is the connection behind a request, or nil when it cannot be written to directly.
func linkOf(ctx context.Context) *link {
	l, _ := ctx.Value(linkKey{}).(*link)
	return l
}

// abrupt makes the next Close a TCP reset.
func (l *link) abrupt() {
	if c, ok := l.Conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0) // on a closed connection there is nothing left to reset
	}
}
