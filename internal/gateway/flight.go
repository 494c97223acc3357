package gateway

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// errLeft is the cause of a flight's end when its last reader has left.
var errLeft = errors.New("the last reader left")

// flight is one generation in progress, from the plan to the upstream's body.
type flight struct {
	g   *Gateway
	set *settings
	req *inference.Request
	out Reader

	ctx     context.Context // ends when the last reader has left
	cancel  context.CancelCauseFunc
	readers atomic.Int32
	leave   func()

	plan     *fleet.Plan
	tried    []*fleet.Instance
	busy     []*fleet.Instance // those of them that said so
	underWay []*attempt        // not settled yet: two in a race, else one
	first    error             // the first failure, which is the one that is reported

	shared  *shared // nil: a flight of one reader
	receipt Receipt // of the limits; nil: none are held

	begun   bool      // the head is with the reader
	comment time.Time // when the next keep-alive is due; zero is never
	waited  time.Time // until when rec.Upstream has counted
	rec     inference.Record
}

// launch begins a flight with one reader.
func (g *Gateway) launch(ctx context.Context, req *inference.Request, out Reader) *flight {
	f := &flight{g: g, set: g.settings.Load(), req: req, out: out}
	f.rec.Request = req
	f.ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	f.leave = f.join(ctx)
	if req.Stream && f.set.comments[req.Surface] != nil {
		f.comment = req.Received.Add(f.set.KeepAlive.Grace)
	}
	return f
}

// join adds a reader, which leaves when its own context ends or leave is called.
func (f *flight) join(ctx context.Context) (leave func()) {
	f.readers.Add(1)
	left := func() {
		if f.readers.Add(-1) > 0 {
			return
		}
		if stop, ok := errors.AsType[*inference.Error](context.Cause(ctx)); ok {
			f.cancel(stop) // the server ended the reader, and says why
			return
		}
		f.cancel(errLeft)
	}
	stop := context.AfterFunc(ctx, left)
	return func() {
		if stop() {
			left()
		}
	}
}

// land ends the flight: everything that was held is given back before the record
// is handed over. An attempt is still under way only when Serve panics.
func (f *flight) land() {
	f.abandon()
	f.leave()
	f.rec.Duration = time.Since(f.req.Received)
	if f.receipt != nil {
		f.receipt.Settle(f.req.Received.Add(f.rec.Duration), &f.rec)
	}
	f.g.parts.Recorder.Record(&f.rec)
}

// follows takes a plan over, and the request as it is planned.
func (f *flight) follows(plan *fleet.Plan) {
	f.plan, f.req = plan, plan.Request
	f.rec.Request, f.rec.Rule, f.rec.Arm = plan.Request, plan.Rule, plan.Arm
}

// reserve takes what the request may use of its limits. What Spillway asks for itself
// has none.
func (f *flight) reserve() (err error) {
	if f.g.parts.Limits != nil && f.req.Class != inference.Idle {
		f.receipt, err = f.g.parts.Limits.Reserve(f.ctx, time.Now(), f.req)
	}
	return err
}

// abandon gives back what a flight holds that did not come to its end.
func (f *flight) abandon() {
	for len(f.underWay) > 0 {
		f.settle(f.underWay[0], &inference.Failure{Verdict: inference.VerdictCanceled, Reason: "panic"})
		f.rec.Code = inference.CodeInternal
	}
}

// refuse answers with an error. An answer of the upstream that is the client's
// own fault is passed on as it is.
func (f *flight) refuse(err error) *inference.Record {
	e, told := errors.AsType[*inference.Error](err) // as it is, though a failure may be its cause
	if failure, ok := errors.AsType[*inference.Failure](err); ok && !told {
		if failure.Head != nil && !f.begun && f.ctx.Err() == nil {
			f.passOn(failure)
			return &f.rec
		}
		e, told = f.clientError(failure), true
	}
	if !told {
		e = inference.Errorf(inference.CodeInternal, "internal error")
		e.Err = err
	}
	f.rec.Code, f.rec.Reason = e.Code, e.Reason
	f.out.Fail(e)
	return &f.rec
}

// passOn gives the client the upstream's own answer to its mistake.
func (f *flight) passOn(failure *inference.Failure) {
	f.rec.Code, f.rec.Reason = inference.CodeInvalidRequest, failure.Reason
	head := *failure.Head
	head.Length = int64(len(failure.Body))
	if f.head(&head) == nil {
		_ = f.send(failure.Body, true) // a client that left misses nothing else
	}
}

// head begins the answer, once.
func (f *flight) head(h *inference.Head) error {
	if f.begun {
		return nil
	}
	f.begun = true
	f.rec.Status = h.Status
	if f.shared == nil {
		f.g.parts.Recorder.Begin(&f.rec)
	}
	if f.receipt != nil {
		h = withLimits(h, f.receipt.Fields(time.Now()))
	}
	return f.out.Head(h)
}

// withLimits is a head with what the client is told of its limits, in the place of
// those of a provider's account, which are not its own. Others may read h.
func withLimits(h *inference.Head, limits []inference.HeaderField) *inference.Head {
	if len(limits) == 0 {
		return h
	}
	head := *h
	head.Fields = make([]inference.HeaderField, 0, len(h.Fields)+len(limits))
	for _, f := range h.Fields {
		if !slices.ContainsFunc(limits, func(l inference.HeaderField) bool { return l.Name == f.Name }) {
			head.Fields = append(head.Fields, f)
		}
	}
	head.Fields = append(head.Fields, limits...)
	return &head
}

// send hands bytes to the reader.
func (f *flight) send(p []byte, flush bool) error {
	f.rec.Bytes += int64(len(p))
	return f.out.Write(p, flush)
}

// clientError words an upstream's failure for the client.
func (f *flight) clientError(failure *inference.Failure) *inference.Error {
	e, stopped := errors.AsType[*inference.Error](context.Cause(f.ctx))
	switch {
	case stopped:
		return e
	case errors.Is(context.Cause(f.ctx), errLeft):
		e = inference.Errorf(inference.CodeCanceled, "the client closed the connection")
	case failure.Reason == "deadline":
		e = inference.Errorf(inference.CodeTimeout, "the request was not finished within %v", f.req.Deadline.Sub(f.req.Received).Round(time.Millisecond))
	case failure.Verdict == inference.VerdictBusy:
		e = inference.Errorf(inference.CodeOverloaded, "the servers of model %q are busy", f.req.Model)
		e.RetryAfter = max(time.Second, failure.RetryAfter)
	case failure.Verdict == inference.VerdictSpent:
		e = inference.Errorf(inference.CodeUpstreamError, "the provider's account cannot be used")
		e.NoRetry = true
	case failure.Reason == "first_token_timeout":
		e = inference.Errorf(inference.CodeTimeout, "the model server gave no first token in time")
	default:
		e = inference.Errorf(inference.CodeUpstreamError, "the model server failed: %s", failure.Reason)
	}
	e.Reason, e.Err = failure.Reason, failure
	return e
}

// late is what becomes of an attempt whose request has reached its deadline. The
// deadline is kept by the waits themselves, which costs no timer a request.
func (f *flight) late(err error) error {
	if !errors.Is(err, inference.ErrNotYet) {
		return err
	}
	return &inference.Failure{Verdict: inference.VerdictCanceled, Reason: "deadline", Err: context.DeadlineExceeded}
}

// waitUntil is the instant at which a wait has to be interrupted.
func (f *flight) waitUntil(hedge time.Time) time.Time {
	until := f.deadline()
	if !f.comment.IsZero() && f.comment.Before(until) {
		until = f.comment
	}
	if !hedge.IsZero() && hedge.Before(until) {
		until = hedge
	}
	return until
}

// streamHead is how a stream begins that has to begin before its upstream does.
func streamHead() *inference.Head {
	return &inference.Head{
		Status: 200, Length: -1, Stream: true,
		Fields: []inference.HeaderField{{Name: "Content-Type", Value: "text/event-stream; charset=utf-8"}},
	}
}

// keepAlive sends a comment when one is due. It stands between events because
// nothing else was sent yet.
func (f *flight) keepAlive(now time.Time) error {
	if f.comment.IsZero() || now.Before(f.comment) {
		return nil
	}
	f.comment = now.Add(f.set.KeepAlive.Interval)
	head := streamHead()
	if f.rec.Cache != "" {
		head.Fields = append(head.Fields, inference.HeaderField{Name: cacheField, Value: string(f.rec.Cache)})
	}
	if err := f.head(head); err != nil {
		return err
	}
	return f.send(f.set.comments[f.req.Surface], true)
}

// relay passes the winner's answer on to its end, then settles it.
func (f *flight) relay(a *attempt) *inference.Record {
	if f.plan.Cookie != nil && !f.begun && f.shared == nil { // a cookie is one client's
		if cookie := f.plan.Cookie(a.lease.Instance); cookie != "" {
			a.head.Fields = append(a.head.Fields, inference.HeaderField{Name: "Set-Cookie", Value: cookie})
		}
	}
	if f.set.NameInstance {
		a.head.Fields = append(a.head.Fields, inference.HeaderField{Name: "X-Spillway-Instance", Value: a.lease.Instance.Name})
	}
	if f.rec.Degraded = a.lease.Degraded; a.lease.Candidate.Fallback != "" {
		f.rec.Degraded = join(f.rec.Degraded, "model="+a.lease.Candidate.Fallback)
	}
	if f.rec.Degraded != "" {
		a.head.Fields = append(a.head.Fields, inference.HeaderField{Name: degradedField, Value: f.rec.Degraded})
	}
	var err error
	if a.head.Stream {
		err = f.relayEvents(a)
	} else {
		err = f.relayBody(a)
	}
	if err == io.EOF {
		f.rec.Complete = true
		f.settle(a, nil)
		putHeld(a.held)
		f.g.parts.Router.Answered(f.req, a.lease, f.rec.Usage)
		return &f.rec
	}
	f.settle(a, err)
	f.cut(err)
	return &f.rec
}

// join lists what was lowered.
func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// relayEvents passes a stream on, event by event. It returns io.EOF at the end
// of a whole answer.
func (f *flight) relayEvents(a *attempt) error {
	if err := f.head(a.head); err != nil {
		return f.gone(err)
	}
	err := f.send(a.held, !a.more)
	putHeld(a.held) // a stream holds nothing from here on
	a.held = nil
	last := time.Now()
	f.rec.TTFT = last.Sub(f.req.Received)
	f.rec.Tokens = 1
	at := last
	for err == nil {
		if held := time.Since(at); held > slowReader {
			a.lease.Held(held)
		}
		var ev inference.Event
		if ev, err = a.answer.Event(f.deadline()); err != nil {
			if errors.Is(err, inference.ErrNotYet) && !f.expired(time.Now()) {
				err = nil
				continue
			}
			return f.late(err)
		}
		at = ev.At
		f.rec.Usage.Update(ev.Usage)
		if ev.Raw == nil { // what was held for it must not wait for what comes next
			err = f.send(nil, true)
			continue
		}
		if ev.Kind == inference.EventDelta {
			f.rec.Tokens++
			f.spend(ev.At)
			f.rec.Gaps.Observe(ev.At.Sub(last))
			last = ev.At
		}
		a.lease.Token(ev.At)
		err = f.send(ev.Raw, !ev.More)
	}
	return f.gone(err)
}

// spend tells what was streamed so far: the limits, or the first reader of a shared flight,
// which has a receipt of its own.
func (f *flight) spend(at time.Time) {
	switch {
	case f.receipt != nil:
		f.receipt.Spend(at, f.rec.Tokens)
	case f.shared != nil:
		f.shared.tokens.Store(f.rec.Tokens)
	}
}

// slowReader is how long a write to the reader may take before it counts as the
// reader's pace and not the instance's.
const slowReader = 5 * time.Millisecond

// relayBody passes an answer on that is not a stream. What was held back goes
// out in one piece; the rest of one that is too large to hold follows as it comes.
func (f *flight) relayBody(a *attempt) error {
	head := *a.head
	if a.whole {
		head.Length = int64(len(a.held))
	}
	if err := f.head(&head); err != nil {
		return f.gone(err)
	}
	if err := f.send(a.held, true); err != nil {
		return f.gone(err)
	}
	if a.whole {
		return io.EOF
	}
	a.held = nil
	buf, end := make([]byte, 0, pieceSize), make([]byte, 0, 2*usageSize)
	for {
		var err error
		buf, err = a.answer.Body(f.deadline(), buf[:0], pieceSize)
		if len(buf) > 0 {
			end = append(end, buf[max(0, len(buf)-usageSize):]...)
			end = append(end[:0], end[max(0, len(end)-usageSize):]...)
			if werr := f.send(buf, true); werr != nil {
				return f.gone(werr)
			}
		}
		if err != nil && !(errors.Is(err, inference.ErrNotYet) && !f.expired(time.Now())) {
			a.usage = wire.AnswerUsage(end)
			return f.late(err)
		}
	}
}

// usageSize is how much of the end of an answer that is too large to hold is searched
// for what it cost.
const usageSize = 4 << 10

// gone is a reader that could not be written to: it left.
func (f *flight) gone(err error) error {
	f.cancel(errLeft)
	return &inference.Failure{Verdict: inference.VerdictCanceled, Reason: "client_write", Err: err}
}

// cut ends an answer that had begun: an error frame, then an aborted connection.
func (f *flight) cut(err error) {
	failure := asFailure(err)
	e := f.clientError(failure)
	if failure.Verdict != inference.VerdictCanceled {
		e = inference.Errorf(inference.CodeUpstreamCut, "the model server's answer was cut: %s", failure.Reason)
		e.Reason, e.Err = failure.Reason, failure
	}
	f.rec.Code, f.rec.Reason = e.Code, e.Reason
	f.out.Fail(e)
}

// heldSize is the size of the buffers in which an answer's beginning is held.
const heldSize = 4 << 10

// pieceSize is the size of the pieces in which an answer too large to hold is
// passed on, in bytes.
const pieceSize = 32 << 10

// heldBuffers holds those buffers.
var heldBuffers = sync.Pool{New: func() any { b := make([]byte, 0, heldSize); return &b }}

// takeHeld returns an empty buffer.
func takeHeld() []byte { return (*heldBuffers.Get().(*[]byte))[:0] }

// putHeld gives a buffer back; one that has grown is left to the collector.
func putHeld(b []byte) {
	if cap(b) == heldSize {
		heldBuffers.Put(&b)
	}
}
