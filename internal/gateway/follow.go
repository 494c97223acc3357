package gateway

import (
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// follow passes the answer of a shared flight on to this request's reader, at the
// reader's own pace, and keeps the client waiting until there is something. It
// returns nil when the reader has been told all there is to tell, with the record
// complete, and otherwise an error of which the reader knows nothing yet.
func (f *flight) follow(s *seat) *inference.Error {
	r := &relayed{f: f, tape: s.flight.shared.tape, seat: s, collect: f.req.Assemble && !f.req.Stream}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		v := r.tape.next(s.at, r.collect)
		if v.from != nil {
			return nil // the caller replays it
		}
		if len(v.part) > 0 || v.ended {
			if done, err := r.take(v); done || err != nil {
				return err
			}
			continue
		}
		now := time.Now()
		until := f.req.Deadline
		if !r.begun {
			until = f.waitUntil(time.Time{})
		}
		timer.Reset(until.Sub(now))
		select {
		case <-v.wake:
			continue
		case <-f.ctx.Done():
			return r.stop(&inference.Failure{Verdict: inference.VerdictCanceled, Reason: "canceled", Err: f.ctx.Err()})
		case <-timer.C:
		}
		if now = time.Now(); !now.Before(f.req.Deadline) {
			return r.stop(f.late(inference.ErrNotYet))
		}
		if err := f.keepAlive(now); err != nil {
			return r.stop(f.gone(err))
		}
	}
}

// relayed is the part of an answer that one reader got of a shared flight.
type relayed struct {
	f       *flight
	tape    *tape
	seat    *seat
	collect bool            // the reader wants one piece, the tape holds events
	parts   *wire.Assembler // of a reader that collects from a window
	body    []byte          // of an answer that the reader cannot be given
	begun   bool            // the reader has some of the answer
	events  bool            // the answer is a stream
}

// take passes on what was found on the tape. done says that the reader has been
// told the end.
func (r *relayed) take(v view) (done bool, err *inference.Error) {
	if r.seat.lead && r.f.receipt != nil {
		r.f.receipt.Spend(time.Now(), r.seat.flight.shared.tokens.Load())
	}
	if r.collect && v.head != nil && v.head.Stream {
		return r.takeWhole(v)
	}
	if !r.begun && r.f.begun && v.head != nil && !v.head.Stream {
		return v.ended, r.noStream(v)
	}
	if len(v.part) > 0 {
		if !r.begun {
			r.begin(v.head)
		}
		if err := r.send(v.part); err != nil {
			return true, r.stop(r.f.gone(err))
		}
	}
	if v.ended {
		return r.finish(v)
	}
	return false, nil
}

// maxSaid is as much of a body as noStream looks at, in bytes.
const maxSaid = 16 << 10

// noStream is the error of a body in one piece for a reader whose answer comments
// have begun as a stream: it tells what the body says, once that is whole.
func (r *relayed) noStream(v view) *inference.Error {
	r.body = append(r.body, v.part[:min(len(v.part), maxSaid-len(r.body))]...)
	switch {
	case !v.ended:
		return nil
	case v.failed != nil:
		return v.failed
	}
	if from := &r.seat.flight.rec; from.Code == inference.CodeInvalidRequest {
		said, _ := wire.ParseErrorBody(r.body)
		e := inference.Errorf(from.Code, "the model server refused the request: %s", said.Message)
		e.Reason, e.NoRetry = from.Reason, true
		return e
	}
	e := inference.Errorf(inference.CodeUpstreamError, "the model server gave no stream")
	e.Reason = "no_stream"
	return e
}

// takeWhole passes an answer on in one piece when all of it is there.
func (r *relayed) takeWhole(v view) (done bool, err *inference.Error) {
	if v.window && r.parts == nil {
		r.parts = wire.NewAssembler(r.f.req.Surface)
	}
	if r.parts != nil {
		if err := r.parts.AddEvents(v.part); err != nil {
			return true, r.stop(brokenAnswer(err))
		}
	}
	if !v.ended {
		return false, nil
	}
	if v.failed != nil {
		return true, v.failed
	}
	var body []byte
	var broken error
	if r.parts != nil {
		body, broken = r.parts.Answer()
	} else {
		body, broken = r.tape.onePiece()
	}
	if broken != nil {
		return true, r.stop(brokenAnswer(broken))
	}
	r.begun = true
	head := *v.head
	head.Stream, head.Length, head.Fields = false, int64(len(body)), wire.OnePieceFields(r.fields(v.head))
	if err := r.f.replayBody(&head, body); err != nil {
		return true, r.stop(r.f.gone(err))
	}
	r.seat.outcome(&r.f.rec)
	return true, nil
}

// brokenAnswer is the failure of events from which no answer can be made.
func brokenAnswer(err error) *inference.Failure {
	return &inference.Failure{Verdict: inference.VerdictBroken, Reason: "malformed_event", Err: err}
}

// fields are the head's, and what the cache did.
func (r *relayed) fields(head *inference.Head) []inference.HeaderField {
	fields := append(make([]inference.HeaderField, 0, len(head.Fields)+1), head.Fields...)
	return append(fields, inference.HeaderField{Name: cacheField, Value: string(r.f.rec.Cache)})
}

// begin begins the answer.
func (r *relayed) begin(head *inference.Head) {
	r.begun, r.events = true, head.Stream
	now := time.Now()
	h := *head
	h.Fields = r.fields(head)
	if head.Stream {
		r.f.rec.TTFT = now.Sub(r.f.req.Received)
	}
	_ = r.f.head(&h) // a reader that is gone fails the write that follows
}

// send passes on whole events, or a piece of a body. An event that carries usage
// alone is for clients that asked for it.
func (r *relayed) send(p []byte) error {
	if !r.events || r.f.req.IncludeUsage {
		return r.f.send(p, true)
	}
	for from, end := 0, 0; from < len(p); {
		n := wire.EventEnd(p[end:])
		last := end+n == len(p)
		switch hidden := wire.SkimEvent(r.f.req.Surface, p[end:end+n]).Kind == inference.EventUsage; {
		case hidden:
			if err := r.f.send(p[from:end], last); err != nil {
				return err
			}
			from = end + n
		case last:
			return r.f.send(p[from:], true)
		}
		end += n
	}
	return nil
}

// finish tells the reader the end.
func (r *relayed) finish(v view) (done bool, err *inference.Error) {
	switch {
	case v.failed == nil:
		if !r.begun { // a body without a byte
			r.begin(v.head)
			_ = r.send(nil)
		}
		r.seat.outcome(&r.f.rec)
		return true, nil
	case !r.begun:
		return true, v.failed
	}
	r.f.rec.Code, r.f.rec.Reason = v.failed.Code, v.failed.Reason
	r.f.out.Fail(v.failed)
	return true, nil
}

// stop ends this reader's part in the flight by a failure of its own. It returns
// the error where the reader knows nothing of the answer yet.
func (r *relayed) stop(err error) *inference.Error {
	e := r.f.clientError(asFailure(err))
	if !r.begun {
		return e
	}
	r.f.rec.Code, r.f.rec.Reason = e.Code, e.Reason
	r.f.out.Fail(e)
	return nil
}
