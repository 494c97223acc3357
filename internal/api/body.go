package api

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Sizes of the pooled buffers for request bodies, in bytes. A body is held as long
// as its request runs, so a short one does not get a large buffer.
const (
	shortBody = 2 << 10
	smallBody = 16 << 10
)

// shortBodies and smallBodies hold those buffers.
var (
	shortBodies = sync.Pool{New: func() any { b := make([]byte, 0, shortBody); return &b }}
	smallBodies = sync.Pool{New: func() any { b := make([]byte, 0, smallBody); return &b }}
)

// memory bounds the bytes of all bodies in memory.
type memory struct {
	used atomic.Int64
}

// take reserves n bytes, or returns false.
func (m *memory) take(n, limit int64) bool {
	if m.used.Add(n) > limit {
		m.used.Add(-n)
		return false
	}
	return true
}

// heldBody is a request's body in memory with what it takes of the bound.
type heldBody struct {
	bytes    []byte
	reserved int64
	mem      *memory
	pooled   bool // bytes came from one of the pools
}

// release gives the memory back.
func (b *heldBody) release() {
	b.mem.used.Add(-b.reserved)
	b.reserved = 0
	b.recycle()
}

// recycle gives the buffer back to the pool that it came from.
func (b *heldBody) recycle() {
	buf := b.bytes[:0]
	switch {
	case b.pooled && cap(buf) == shortBody:
		shortBodies.Put(&buf)
	case b.pooled && cap(buf) == smallBody:
		smallBodies.Put(&buf)
	}
	b.bytes, b.pooled = nil, false
}

// allocate gets an empty buffer for size bytes, at most smallBody.
func (b *heldBody) allocate(size int64) {
	b.pooled = true
	if size <= shortBody {
		b.bytes = (*shortBodies.Get().(*[]byte))[:0]
		return
	}
	b.bytes = (*smallBodies.Get().(*[]byte))[:0]
}

// reserve makes sure that size bytes are counted.
func (b *heldBody) reserve(size, limit int64) bool {
	if size <= b.reserved {
		return true
	}
	if !b.mem.take(size-b.reserved, limit) {
		return false
	}
	b.reserved = size
	return true
}

// readBody reads a whole body within the limits. The error is an
// *inference.Error. The caller releases the body in any case.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, cfg *Config) (*heldBody, error) {
	b := &heldBody{mem: &s.memory}
	if r.ContentLength > int64(cfg.MaxBody) {
		return b, tooLarge(int64(cfg.MaxBody))
	}
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(cfg.ReadBodyTimeout)); err != nil {
		return b, broken(err)
	}
	if err := b.begin(r.ContentLength, cfg); err != nil {
		return b, err
	}
	for {
		if len(b.bytes) == cap(b.bytes) {
			if int64(len(b.bytes)) == r.ContentLength {
				break
			}
			if err := b.grow(r.ContentLength, cfg); err != nil {
				return b, err
			}
		}
		n, err := r.Body.Read(b.bytes[len(b.bytes):cap(b.bytes)])
		b.bytes = b.bytes[:len(b.bytes)+n]
		if int64(len(b.bytes)) > int64(cfg.MaxBody) {
			return b, tooLarge(int64(cfg.MaxBody))
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return b, broken(err)
		}
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return b, broken(err)
	}
	return b, nil
}

// begin gets the first buffer of a body with the announced length, or -1. A length
// costs a client nothing to announce, so memory is taken as bytes arrive.
func (b *heldBody) begin(announced int64, cfg *Config) error {
	size := int64(smallBody)
	if announced >= 0 {
		size = min(announced, smallBody)
	}
	if !b.reserve(max(size, shortBody), int64(cfg.MaxBuffered)) {
		return noMemory()
	}
	b.allocate(size)
	return nil
}

// grow makes a full buffer larger, at most to the announced length or, without
// one, to where the body is too large.
func (b *heldBody) grow(announced int64, cfg *Config) error {
	limit := int64(cfg.MaxBody) + 1
	if announced >= 0 {
		limit = announced
	}
	next := min(4*int64(cap(b.bytes)), limit)
	if !b.reserve(next, int64(cfg.MaxBuffered)) {
		return noMemory()
	}
	bigger := append(make([]byte, 0, next), b.bytes...)
	b.recycle()
	b.bytes = bigger
	return nil
}

// tooLarge is the error of a body beyond the limit.
func tooLarge(limit int64) error {
	e := inference.Errorf(inference.CodeTooLarge, "the request body is larger than %d bytes", limit)
	e.NoRetry = true
	return e
}

// noMemory is the error when all bodies together reach their bound.
func noMemory() error {
	e := inference.Errorf(inference.CodeOverloaded, "too many request bodies are in memory")
	e.Reason, e.RetryAfter = "body_memory", time.Second
	return e
}

// broken words a body that could not be read.
func broken(err error) error {
	var e *inference.Error
	if errors.Is(err, os.ErrDeadlineExceeded) {
		e = inference.Errorf(inference.CodeBodyTimeout, "the request body did not arrive in time")
	} else {
		e = inference.Errorf(inference.CodeInvalidRequest, "the request body ended too early or was malformed")
		e.NoRetry = true
	}
	e.Err = err
	return e
}

// Bounds of what is read and thrown away so that a client that is still sending
// can read why it was refused.
const discardTime = 2 * time.Second

// discard reads what a refused client still sends: at most twice the limit, and
// no longer than discardTime.
func discard(w http.ResponseWriter, r *http.Request, limit int64) {
	rc := http.NewResponseController(w)
	if rc.Flush() != nil || rc.SetReadDeadline(time.Now().Add(discardTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, r.Body, 2*limit)
}
