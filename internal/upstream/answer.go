package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// maxErrorBody bounds what is read of an error answer, in bytes.
const maxErrorBody = 64 << 10

// exchange is one request's way on one connection.
type exchange interface {
	// readHead waits for the final head, no longer than until.
	readHead(until time.Time, a *Answer) (*parsedHead, error)
	// Read reads the body as body.Read does, no longer than the instant given to wait.
	Read(p []byte) (int, error)
	// wait sets the instant for the next Reads.
	wait(until time.Time)
	// finish ends the exchange. The connection is kept when the answer was read
	// to its end, and closed otherwise.
	finish(keep bool)
}

// Answer is one attempt's answer in progress. It is for one goroutine; the
// attempt's context, when it ends, closes the connection under it. All waits
// take an instant and return inference.ErrNotYet when it passes; they may then
// be resumed. Every other error is an *inference.Failure, or io.EOF at the true
// end of a complete answer.
type Answer struct {
	ctx   context.Context
	req   *inference.Request
	lease *fleet.Lease
	pool  *pool
	ex    exchange
	stop  func() bool // detaches the context from the connection

	start    time.Time
	lastData time.Time
	interim  int // 1xx heads seen
	head     *parsedHead
	events   wire.EventReader
	errBody  []byte   // of an error answer, while it is being read
	rebuilt  *rebuilt // an answer in one piece that is asked for as a stream; else nil

	delta, finished, done, ended bool
}

// edits are what the instance is asked otherwise than the client asked.
func (a *Answer) edits() wire.Edits {
	return wire.Edits{
		Model:        a.lease.Candidate.Model,
		Stream:       a.rebuilt != nil,
		IncludeUsage: a.pool.cfg.IncludeUsage || a.rebuilt != nil,
		MaxTokens:    a.lease.MaxTokens,
	}
}

// Head waits until the answer begins. An answer that is an error is a Failure
// with the verdict that its status and body imply.
func (a *Answer) Head(until time.Time) (*inference.Head, error) {
	limit := a.firstLimit(until)
	if a.head == nil {
		h, err := a.ex.readHead(limit, a)
		if err != nil && a.stale(err) {
			if err := a.again(); err != nil {
				return nil, err
			}
			h, err = a.ex.readHead(limit, a)
		}
		if err != nil {
			return nil, a.fail(err, until, "head")
		}
		a.head = h
		a.lastData = time.Now()
		if a.lease.Instance.Pool.Provider {
			h.quota.cool(a.lease.Instance.Live, a.lastData)
		}
		if h.Stream {
			a.events.Reset(a.ex, *buffers.Get().(*[]byte), 0)
		}
		a.beginRebuilt()
	}
	if a.head.Status >= 200 && a.head.Status < 300 {
		return &a.head.Head, nil
	}
	return nil, a.readError(until, limit)
}

// readError reads the body of an error answer and classifies it.
func (a *Answer) readError(until, limit time.Time) error {
	a.ex.wait(limit)
	piece := make([]byte, 2048)
	for len(a.errBody) < maxErrorBody {
		n, err := a.ex.Read(piece)
		a.errBody = append(a.errBody, piece[:n]...)
		if errors.Is(err, inference.ErrNotYet) {
			return a.fail(err, until, "error_body")
		}
		if err != nil {
			a.ended = err == io.EOF
			break
		}
	}
	return a.failure(a.head.Status, a.errBody)
}

// failure builds the Failure for an error answer.
func (a *Answer) failure(status int, body []byte) *inference.Failure {
	f := &inference.Failure{Status: status}
	f.Verdict, f.Reason = classify(status, body, a.pool.cfg.ForwardAuth)
	f.Final = !retryable(f.Verdict, status)
	f.RetryAfter = min(a.head.retryAfter, a.pool.cfg.MaxRetryAfter)
	if f.Verdict == inference.VerdictYours {
		head := a.head.Head
		if head.Status < 400 {
			e, _ := wire.ParseErrorBody(body)
			head.Status = impliedStatus(e)
		}
		f.Head, f.Body = &head, bytes.Clone(body)
		if key := a.pool.key; key != "" { // some servers repeat what they were shown, and this one is not the client's
			f.Body = bytes.ReplaceAll(f.Body, []byte(key), []byte("(hidden)"))
		}
	}
	return f
}

// Event waits for the next event of a stream. Comments are passed over and do
// not reset the idle watchdog. Before the first delta each event is parsed
// strictly; behind it only what ends, fails or bills the answer is. An event
// whose Raw is nil is for the gateway alone.
func (a *Answer) Event(until time.Time) (inference.Event, error) {
	for {
		ev, err := a.nextEvent(until)
		if err != nil {
			return ev, err
		}
		if ev.Kind == inference.EventUsage && !a.req.IncludeUsage && a.pool.cfg.IncludeUsage {
			ev.Raw = nil
			return ev, nil
		}
		if ev.Raw = wire.CleanEvent(ev.Raw); ev.Raw == nil {
			continue
		}
		ev.More = a.events.Ready()
		return ev, nil
	}
}

// nextEvent waits for the next event that is not a comment, as it came, and notes
// what it means for the answer.
func (a *Answer) nextEvent(until time.Time) (inference.Event, error) {
	for {
		a.ex.wait(a.eventLimit(until))
		raw, err := a.events.Next()
		if err != nil {
			return inference.Event{}, a.eventsEnd(err, until)
		}
		ev := a.classifyEvent(raw)
		if ev.Kind == inference.EventComment {
			continue
		}
		ev.At = time.Now()
		a.lastData = ev.At
		switch ev.Kind {
		case inference.EventError:
			return ev, a.failure(http.StatusOK, wire.EventData(raw))
		case inference.EventMalformed:
			return ev, &inference.Failure{Verdict: inference.VerdictBroken, Reason: "malformed_event"}
		case inference.EventDelta:
			a.delta = true
		case inference.EventFinish:
			if (!a.delta || a.rebuilt != nil) && bytes.Contains(raw, []byte(`"insufficient_system_resource"`)) {
				return ev, &inference.Failure{Verdict: inference.VerdictBusy, Reason: "insufficient_system_resource", Status: http.StatusOK}
			}
			a.finished = true
		case inference.EventDone:
			a.done = true
		}
		return ev, nil
	}
}

// classifyEvent parses strictly until the first delta and skims afterwards.
func (a *Answer) classifyEvent(raw []byte) inference.Event {
	if a.delta {
		return wire.SkimEvent(a.req.Surface, raw)
	}
	return wire.InspectEvent(a.req.Surface, raw)
}

// eventsEnd judges the end of a stream. A stream is whole when its terminal
// event came, or when it ended by its framing behind a finish reason.
func (a *Answer) eventsEnd(err error, until time.Time) error {
	switch {
	case errors.Is(err, inference.ErrNotYet):
		return a.fail(err, until, "stream_idle")
	case err == io.EOF && (a.done || a.finished):
		a.ended = true
		return io.EOF
	case a.done:
		// Whole, but the connection is not to be used again. Some SDKs close theirs as
		// soon as they have read the terminal event: that is no client that left.
		return io.EOF
	case errors.Is(err, wire.ErrEventTooLarge):
		return &inference.Failure{Verdict: inference.VerdictBroken, Reason: "event_too_large", Err: err}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return a.fail(err, until, "cut")
}

// Body appends the body of an answer that is not a stream to buf until it ends
// (io.EOF), buf holds max bytes (nil), or the instant passes.
func (a *Answer) Body(until time.Time, buf []byte, max int) ([]byte, error) {
	if a.rebuilt != nil {
		return a.rebuiltBody(until, buf, max)
	}
	a.ex.wait(a.firstLimit(until))
	for len(buf) < max {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := a.ex.Read(buf[len(buf):min(cap(buf), max)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			a.ended = true
			if !a.delta && wire.IsErrorBody(buf) {
				return buf, a.failure(http.StatusOK, buf)
			}
			return buf, io.EOF
		}
		if err != nil {
			return buf, a.fail(err, until, "cut")
		}
	}
	a.delta = true // what comes next is no longer the beginning
	return buf, nil
}

// Close ends the attempt: the connection is kept when the answer was read to
// its end, and closed at once otherwise, which is how a model server learns
// that nobody listens. Further calls do nothing.
func (a *Answer) Close() {
	if a.ex == nil {
		return
	}
	detached := a.stop()
	if b := a.events.Buffer(); cap(b) == bufferSize {
		buffers.Put(&b)
	}
	a.ex.finish(detached && a.ended && a.head.keepAlive)
	a.ex = nil
}

// firstLimit is the end of a wait for an answer's beginning.
func (a *Answer) firstLimit(until time.Time) time.Time {
	if t := a.pool.cfg.FirstTokenTimeout; t > 0 {
		return earlier(until, a.start.Add(t))
	}
	return until
}

// eventLimit is the end of a wait for the next event.
func (a *Answer) eventLimit(until time.Time) time.Time {
	if !a.delta {
		return a.firstLimit(until)
	}
	return earlier(until, a.lastData.Add(a.pool.cfg.StreamIdleTimeout))
}

// earlier is the earlier of two instants.
func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// fail words the error of a wait. A limit of our own that passed before until
// is the instance's silence, and its fault.
func (a *Answer) fail(err error, until time.Time, where string) error {
	switch {
	case a.ctx.Err() != nil:
		return &inference.Failure{Verdict: inference.VerdictCanceled, Reason: "canceled", Err: context.Cause(a.ctx)}
	case errors.Is(err, inference.ErrNotYet):
		if !time.Now().Before(until) {
			return inference.ErrNotYet
		}
		if !a.delta {
			where = "first_token_timeout"
		}
		return &inference.Failure{Verdict: inference.VerdictBroken, Reason: where}
	case errors.Is(err, errHead) || errors.Is(err, errChunk):
		where = "malformed_answer"
	case errors.Is(err, syscall.ECONNRESET):
		where = "reset"
	}
	return &inference.Failure{Verdict: inference.VerdictBroken, Reason: where, Err: err}
}
