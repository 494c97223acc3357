package wire

import (
	"bytes"
	"errors"
	"io"
)

// ErrEventTooLarge says that one event is longer than the reader allows.
var ErrEventTooLarge = errors.New("event larger than the limit")

// DefaultMaxEvent is the size limit of one event when none is given, in bytes.
const DefaultMaxEvent = 1 << 20

// firstBuffer is the first size of an EventReader's buffer: several common
// events, and small enough for a thousand open streams.
const firstBuffer = 4 << 10

// EventReader splits a byte stream into server-sent events. An event ends at a
// blank line; lines end in LF or CR LF. It holds at most one event more than
// what has been read, bounded by the size limit. It is for one goroutine.
type EventReader struct {
	src        io.Reader
	buf        []byte
	start, end int // unread bytes are buf[start:end]
	scanned    int // buf[start:scanned] holds no complete event
	max        int
	err        error // from src, delivered after the last complete event
}

// NewEventReader reads events of at most max bytes from r; max <= 0 means
// DefaultMaxEvent.
func NewEventReader(r io.Reader, max int) *EventReader {
	e := new(EventReader)
	e.Reset(r, nil, max)
	return e
}

// Reset makes e read from r, using buf as its first buffer.
func (e *EventReader) Reset(r io.Reader, buf []byte, max int) {
	if max <= 0 {
		max = DefaultMaxEvent
	}
	*e = EventReader{src: r, buf: buf[:cap(buf)], max: max}
}

// Buffer returns the buffer for another Reset; the reader forgets it.
func (e *EventReader) Buffer() []byte {
	b := e.buf
	e.buf = nil
	return b
}

// Next returns the next event with the blank line that ends it. The bytes are
// valid until the next call. At the end of the source it returns the source's
// error; io.EOF with bytes left over that no blank line ended is
// io.ErrUnexpectedEOF. An error of the source that is temporary (a passed read
// deadline) may be followed by further calls.
func (e *EventReader) Next() ([]byte, error) {
	for {
		if raw := e.buffered(); raw != nil {
			return raw, nil
		}
		if e.err != nil {
			return nil, e.sourceError()
		}
		if err := e.makeRoom(); err != nil {
			return nil, err
		}
		n, err := e.src.Read(e.buf[e.end:])
		e.end += n
		e.err = err
	}
}

// sourceError delivers the source's error once, so that a passed deadline can be
// followed by another read.
func (e *EventReader) sourceError() error {
	err := e.err
	if err != io.EOF {
		e.err = nil
		return err
	}
	if rest := bytes.TrimSpace(e.buf[e.start:e.end]); len(rest) > 0 {
		return io.ErrUnexpectedEOF
	}
	return io.EOF
}

// Ready says whether Next would return, without reading, an event that is sure to
// have something to pass on: one that begins with a comment or an id may not.
func (e *EventReader) Ready() bool {
	s := e.scanned
	if e.eventEnd() < 0 {
		return false
	}
	e.scanned = max(s, e.start) // blank lines may have been passed over
	return e.buf[e.start] != ':' && e.buf[e.start] != 'i'
}

// buffered takes the next complete event out of the buffer.
func (e *EventReader) buffered() []byte {
	n := e.eventEnd()
	if n < 0 {
		return nil
	}
	raw := e.buf[e.start:n]
	e.start, e.scanned = n, n
	return raw
}

// eventEnd finds the offset behind the next blank line, or -1.
func (e *EventReader) eventEnd() int {
	if e.start == e.scanned {
		e.skipBlank()
	}
	for i := e.scanned; ; {
		nl := bytes.IndexByte(e.buf[i:e.end], '\n')
		if nl < 0 {
			return -1
		}
		i += nl + 1
		rest := e.buf[i:e.end]
		switch {
		case len(rest) > 0 && rest[0] == '\n':
			return i + 1
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return i + 2
		case len(rest) == 0 || len(rest) == 1 && rest[0] == '\r':
			return -1 // the line end is in, what follows it is not: scan it again
		}
		e.scanned = i
	}
}

// skipBlank passes over blank lines before an event: they end nothing.
func (e *EventReader) skipBlank() {
	for e.start < e.end && (e.buf[e.start] == '\n' || e.buf[e.start] == '\r') {
		e.start++
	}
	e.scanned = e.start
}

// makeRoom makes space behind end, by moving or by growing within max.
func (e *EventReader) makeRoom() error {
	if e.end < len(e.buf) {
		return nil
	}
	if e.start > 0 {
		copy(e.buf, e.buf[e.start:e.end])
		e.end -= e.start
		e.scanned -= e.start
		e.start = 0
		return nil
	}
	if e.end >= e.max {
		return ErrEventTooLarge
	}
	next := make([]byte, min(max(2*len(e.buf), firstBuffer), e.max))
	copy(next, e.buf[:e.end])
	e.buf = next
	return nil
}

// EventData returns the data of an event: the payloads of its data lines,
// joined by LF when there are several. The common event with one line costs no
// allocation. nil means that the event has no data line.
func EventData(raw []byte) []byte {
	var data, joined []byte
	found := false
	for len(raw) > 0 {
		line := raw
		if nl := bytes.IndexByte(raw, '\n'); nl >= 0 {
			line, raw = raw[:nl], raw[nl+1:]
		} else {
			raw = nil
		}
		line = bytes.TrimSuffix(line, []byte{'\r'})
		payload, ok := bytes.CutPrefix(line, []byte("data:"))
		if !ok {
			continue
		}
		payload = bytes.TrimPrefix(payload, []byte{' '})
		if !found {
			data, found = payload, true
			continue
		}
		if joined == nil {
			joined = append(make([]byte, 0, len(data)+1+len(payload)+len(raw)), data...)
		}
		joined = append(append(joined, '\n'), payload...)
		data = joined
	}
	if found && data == nil {
		data = []byte{}
	}
	return data
}

// CleanEvent returns raw without comment lines and id fields. Comments are
// ours to send, in the framing that the client's surface can read, and an id
// before a comment breaks common clients. The common event is returned as it
// is; one that has nothing else left is nil.
func CleanEvent(raw []byte) []byte {
	if !hasLine(raw, ':') && !hasLine(raw, 'i') {
		return raw
	}
	clean := make([]byte, 0, len(raw))
	content := false
	for rest := raw; len(rest) > 0; {
		line := rest
		if nl := bytes.IndexByte(rest, '\n'); nl >= 0 {
			line, rest = rest[:nl+1], rest[nl+1:]
		} else {
			rest = nil
		}
		bare := bytes.TrimRight(line, "\r\n")
		if bytes.HasPrefix(bare, []byte{':'}) || bytes.HasPrefix(bare, []byte("id:")) || string(bare) == "id" {
			continue
		}
		content = content || len(bare) > 0
		clean = append(clean, line...)
	}
	if !content {
		return nil
	}
	return clean
}

// hasLine says whether a line of raw begins with c.
func hasLine(raw []byte, c byte) bool {
	if len(raw) > 0 && raw[0] == c {
		return true
	}
	for i := 0; ; {
		nl := bytes.IndexByte(raw[i:], '\n')
		if nl < 0 || i+nl+1 >= len(raw) {
			return false
		}
		i += nl + 1
		if raw[i] == c {
			return true
		}
	}
}

// EventEnd is the length of the first event in p with the blank line that ends it,
// or all of p where no blank line does.
func EventEnd(p []byte) int {
	for i := 0; ; {
		nl := bytes.IndexByte(p[i:], '\n')
		if nl < 0 {
			return len(p)
		}
		i += nl + 1
		switch {
		case i < len(p) && p[i] == '\n':
			return i + 1
		case i+1 < len(p) && p[i] == '\r' && p[i+1] == '\n':
			return i + 2
		}
	}
}
