package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// conn is what net/http's ResponseWriter can do beyond its interface, for
// HTTP/1.1 and HTTP/2 alike.
type conn interface {
	http.ResponseWriter
	FlushError() error
	SetWriteDeadline(time.Time) error
}

// writer is the client's side of a flight: a gateway.Reader. Its bounded memory
// is net/http's 4 KiB buffer and the connection's send buffer: when they are
// full a Write blocks, so the upstream is no longer read, until the client takes
// something or the write deadline cuts it.
type writer struct {
	w       conn
	req     *inference.Request
	caller  inference.Caller
	stall   time.Duration
	armed   time.Time // when the write deadline was set last
	read    time.Time // when the body had been read; zero when it was not
	begun   bool
	stream  bool
	aborted bool // the connection must not end cleanly
}

// sentBy notes who sends the request.
func (w *writer) sentBy(c inference.Caller) {
	w.caller = c
	w.req.Tenant, w.req.Class, w.req.Key, w.req.Quota = c.Tenant, c.Class, c.Key, c.Quota
}

// Head implements gateway.Reader.
func (w *writer) Head(head *inference.Head) error {
	h := w.w.Header()
	for _, f := range head.Fields {
		h[f.Name] = append(h[f.Name], f.Value)
	}
	switch {
	case head.Stream:
		w.stream = true
		h["Cache-Control"] = noCache
		h["X-Accel-Buffering"] = noBuffering
	case head.Length >= 0:
		h["Content-Length"] = []string{strconv.FormatInt(head.Length, 10)}
	}
	w.begun = true
	w.w.WriteHeader(head.Status)
	return nil
}

// Header values that every stream has.
var (
	noCache     = []string{"no-cache"}
	noBuffering = []string{"no"}
)

// Write implements gateway.Reader. The write deadline is moved when a quarter of
// it has passed, so that it costs nothing on most events: a client is cut after
// three quarters of the stall time at the earliest, and after all of it at the
// latest.
func (w *writer) Write(p []byte, flush bool) error {
	if now := time.Now(); now.Sub(w.armed) > w.stall/4 {
		if err := w.w.SetWriteDeadline(now.Add(w.stall)); err != nil {
			return err
		}
		w.armed = now
	}
	if _, err := w.w.Write(p); err != nil {
		return err
	}
	if flush {
		return w.w.FlushError()
	}
	return nil
}

// Fail implements gateway.Reader.
func (w *writer) Fail(e *inference.Error) {
	if e.Code == inference.CodeCanceled {
		w.aborted = true // nobody is left to read it
		return
	}
	body := errorBody(w.req.Surface, e, w.req.ID)
	if !w.begun {
		h := w.w.Header()
		from := w.read
		if from.IsZero() { // refused by its head
			from = w.req.Received
		}
		setErrorHeader(h, e, time.Since(from))
		h.Set("Content-Type", "application/json")
		h.Set("Content-Length", strconv.Itoa(len(body)))
		w.begun = true
		w.w.WriteHeader(Status(e.Code))
		w.aborted = w.Write(body, false) != nil
		return
	}
	w.aborted = true
	if !w.stream {
		return
	}
	frame := make([]byte, 0, len(body)+32)
	if w.req.Surface == inference.Messages {
		frame = append(frame, "event: error\n"...)
	}
	frame = append(append(append(frame, "data: "...), body...), "\n\n"...)
	_ = w.Write(frame, true) // the connection is aborted in any case
}
