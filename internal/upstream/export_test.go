package upstream

import (
	"bytes"
	"io"
	"net"
	"time"

	"github.com/spillway/spillway/internal/fleet"
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

// ParseReset reads until when a limit is reset, to be fuzzed.
var ParseReset = parseReset

// Cooled is how long a head's fields keep an account out of use.
func Cooled(fields [][2]string, now time.Time) time.Duration {
	q, live := new(quota), new(fleet.Live)
	for _, f := range fields {
		q.read(f[0], []byte(f[1]), now)
	}
	q.cool(live, now)
	if live.CoolUntil() == 0 {
		return 0
	}
	return time.Unix(0, live.CoolUntil()).Sub(now)
}
