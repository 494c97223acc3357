package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Limits of chunked framing.
const (
	maxChunkLine = 256     // bytes of a chunk's size line, extensions included
	maxTrailer   = 8 << 10 // bytes of the trailer section
)

// errChunk marks every complaint about chunked framing.
var errChunk = errors.New("malformed chunked body")

// body decodes an answer's body from a connection. A Read returns what is there
// without waiting for more, so that no event waits for another.
type body struct {
	c       *conn
	framing framing
	left    int64 // bytes left of the body (byLength) or chunk (byChunks); in the trailer section, bytes seen
	started bool  // a chunk was read, so its CR LF is due
	last    bool  // the last chunk was read, so the trailer section is due
	ended   bool
	until   time.Time // no Read waits longer than this
}

// Read implements io.Reader. io.EOF comes only at the true end of the body; a
// connection that ends early is io.ErrUnexpectedEOF; a wait that passes the
// instant in until is inference.ErrNotYet and may be resumed.
func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.ended:
		return 0, io.EOF
	case b.framing == byLength:
		return b.readLength(p)
	case b.framing == byClose:
		n, err := b.take(p)
		b.ended = err == io.EOF
		return n, err
	}
	return b.readChunks(p)
}

// take moves buffered bytes to p, or reads when there are none.
func (b *body) take(p []byte) (int, error) {
	c := b.c
	if c.r == c.w {
		if len(p) >= len(*c.buf) {
			return c.read(p, b.until)
		}
		if err := c.fill(b.until); err != nil {
			return 0, err
		}
	}
	n := copy(p, (*c.buf)[c.r:c.w])
	c.r += n
	return n, nil
}

// readLength reads a body of known length.
func (b *body) readLength(p []byte) (int, error) {
	if b.left == 0 {
		b.ended = true
		return 0, io.EOF
	}
	n, err := b.take(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if b.left == 0 {
		b.ended = true
	}
	return n, unexpected(err)
}

// readChunks decodes chunks until p is full or nothing more is buffered.
func (b *body) readChunks(p []byte) (int, error) {
	n := 0
	for {
		if b.left == 0 || b.last {
			if n > 0 && !b.chunkBuffered() {
				return n, nil
			}
			err := b.nextChunk()
			switch {
			case (err != nil || b.ended) && n > 0:
				return n, nil // what came is good; the end comes with the next call
			case b.ended:
				return 0, io.EOF
			case err != nil:
				return 0, unexpected(err)
			}
		}
		if n == len(p) || n > 0 && b.c.r == b.c.w {
			return n, nil
		}
		k, err := b.take(p[n : n+int(min(int64(len(p)-n), b.left))])
		n += k
		b.left -= int64(k)
		if err != nil {
			return n, unexpected(err)
		}
	}
}

// chunkBuffered says whether the next chunk's size line is in the buffer as a
// whole. The last chunk does not count: what came before it must not wait for
// the trailer section.
func (b *body) chunkBuffered() bool {
	rest := (*b.c.buf)[b.c.r:b.c.w]
	if b.started {
		if len(rest) < 2 {
			return false
		}
		rest = rest[2:]
	}
	return bytes.IndexByte(rest, '\n') >= 0 && rest[0] != '0'
}

// nextChunk reads the size line of the next chunk; after the last one it reads
// the trailer section and sets ended. It consumes nothing before a line is
// whole, so it may be called again after inference.ErrNotYet.
func (b *body) nextChunk() error {
	if b.last {
		return b.trailer()
	}
	if b.started {
		end, err := b.line(2)
		if err != nil {
			return err
		}
		if len(end) != 0 {
			return fmt.Errorf("%w: no line end behind a chunk", errChunk)
		}
		b.started = false
	}
	line, err := b.line(maxChunkLine)
	if err != nil {
		return err
	}
	digits, _, _ := bytes.Cut(line, []byte{';'})
	size, err := strconv.ParseUint(string(bytes.TrimRight(digits, " \t")), 16, 62)
	if err != nil {
		return fmt.Errorf("%w: size line %q", errChunk, line)
	}
	if size > 0 {
		b.left, b.started = int64(size), true
		return nil
	}
	b.last = true
	return b.trailer()
}

// trailer discards the trailer section.
func (b *body) trailer() error {
	for {
		line, err := b.line(bufferSize)
		if err != nil {
			return err
		}
		if b.left += int64(len(line)); b.left > maxTrailer {
			return fmt.Errorf("%w: trailer larger than %d bytes", errChunk, maxTrailer)
		}
		if len(line) == 0 {
			b.ended = true
			return nil
		}
	}
}

// line reads a line of at most max bytes that ends in CR LF, and returns it
// without them.
func (b *body) line(max int) ([]byte, error) {
	c := b.c
	for {
		have := (*c.buf)[c.r:c.w]
		if nl := bytes.IndexByte(have, '\n'); nl >= 0 {
			if nl == 0 || have[nl-1] != '\r' || nl+1 > max {
				return nil, fmt.Errorf("%w: line %q", errChunk, have[:min(nl, 40)])
			}
			c.r += nl + 1
			return have[:nl-1], nil
		}
		if len(have) >= max {
			return nil, fmt.Errorf("%w: line longer than %d bytes", errChunk, max)
		}
		if err := c.fill(b.until); err != nil {
			return nil, err
		}
	}
}

// unexpected turns an end of the connection inside a body into
// io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
