package upstream

import (
	"bytes"
	"io"
	"net"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// canned is a connection that gives bytes in pieces of n.
type canned struct {
	net.Conn
	rest []byte
	n    int
}

func (c *canned) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(c.n, len(p))], c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (*canned) SetReadDeadline(time.Time) error { return nil }

// ReadAnswer parses raw as an answer that arrives in pieces of n bytes.
func ReadAnswer(raw []byte, n int) (*inference.Head, []byte, error) {
	buf := make([]byte, bufferSize)
	d := &direct{body: body{c: &conn{nc: &canned{rest: bytes.Clone(raw), n: n}, buf: &buf}}}
	until := time.Now().Add(time.Hour)
	h, err := d.readHead(until, new(Answer))
	if err != nil {
		return nil, nil, err
	}
	d.wait(until)
	b, err := io.ReadAll(io.LimitReader(d, 1<<20))
	return &h.Head, b, err
}
