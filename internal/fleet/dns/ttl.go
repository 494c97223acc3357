package dns

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// lifetime is the shortest time to live among the answers of one look-up. It is
// safe for concurrent use, because the resolver asks for several record types at
// once.
type lifetime struct {
	seconds atomic.Int64 // plus one; 0 is none seen
}

// holds is for how long the answers may be used.
func (l *lifetime) holds() time.Duration {
	n := l.seconds.Load()
	if n == 0 {
		return defaultTTL
	}
	return min(max(time.Duration(n-1)*time.Second, minTTL), maxTTL)
}

// resolver returns Go's resolver with connections that l reads along. server
// replaces the name servers of the system; "" does not.
func (l *lifetime) resolver(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if server != "" {
			address = server
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		// The resolver tells datagrams from a stream by the type of the connection.
		if udp, ok := c.(*net.UDPConn); ok {
			return &datagrams{UDPConn: udp, seen: l}, nil
		}
		return &stream{Conn: c, seen: l}, nil
	}}
}

// read notes the times to live of the answers in a message. What it cannot read
// is the resolver's to refuse.
func (l *lifetime) read(message []byte) {
	var p dnsmessage.Parser
	if h, err := p.Start(message); err != nil || !h.Response || h.Truncated || h.RCode != dnsmessage.RCodeSuccess {
		return
	}
	if p.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil || p.SkipAnswer() != nil {
			return
		}
		switch h.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME, dnsmessage.TypeSRV:
			l.shorten(int64(h.TTL) + 1)
		}
	}
}

// shorten lowers the lifetime to n, a number of seconds plus one.
func (l *lifetime) shorten(n int64) {
	for {
		old := l.seconds.Load()
		if old != 0 && old <= n || l.seconds.CompareAndSwap(old, n) {
			return
		}
	}
}

// datagrams is a UDP connection that is read along: one message each read.
type datagrams struct {
	*net.UDPConn
	seen *lifetime
}

// Read implements net.Conn.
func (c *datagrams) Read(p []byte) (int, error) {
	n, err := c.UDPConn.Read(p)
	if err == nil {
		c.seen.read(p[:n])
	}
	return n, err
}

// stream is a TCP connection that is read along: messages behind their length in
// two bytes (RFC 1035, 4.2.2). It belongs to one goroutine at a time.
type stream struct {
	net.Conn
	seen *lifetime
	held []byte // of the message under way; at most 64 KiB and what one read adds
}

// Read implements net.Conn.
func (c *stream) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.held = append(c.held, p[:n]...)
	for len(c.held) >= 2 {
		size := int(c.held[0])<<8 | int(c.held[1])
		if len(c.held) < 2+size {
			break
		}
		c.seen.read(c.held[2 : 2+size])
		c.held = c.held[2+size:]
	}
	return n, err
}
