package upstream

import (
	"errors"
	"io"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// rebuilt is an answer in one piece that the instance is asked for as a stream,
// so that its tokens are seen as they come. The client, and whoever reads the
// Answer, sees an answer in one piece.
type rebuilt struct {
	parts *wire.Assembler // nil until the stream begins
	body  []byte          // the answer, once it is whole; what is left to read of it
	whole bool
}

// beginRebuilt makes the head that of an answer in one piece. An instance that
// answers with JSON although it was asked for a stream, or with an error, is taken
// at its word.
func (a *Answer) beginRebuilt() {
	h := a.head
	if a.rebuilt == nil || !h.Stream || h.Status < 200 || h.Status >= 300 {
		a.rebuilt = nil
		return
	}
	a.rebuilt.parts = wire.NewAssembler(a.req.Surface)
	h.Stream, h.Length = false, -1
	h.Fields = wire.OnePieceFields(h.Fields)
}

// rebuiltBody is Body for such an answer. Nothing of it is there before all of it
// is, so a stream that breaks off is an attempt that failed, and may be repeated.
func (a *Answer) rebuiltBody(until time.Time, buf []byte, max int) ([]byte, error) {
	r := a.rebuilt
	for !r.whole {
		if err := a.addPart(until); err == io.EOF {
			if r.body, err = r.parts.Answer(); err != nil {
				return buf, brokenPart(err)
			}
			r.whole, r.parts = true, nil
			a.head.Length = int64(len(r.body))
		} else if err != nil {
			return buf, err
		}
	}
	n := min(len(r.body), max-len(buf))
	buf = append(buf, r.body[:n]...)
	if r.body = r.body[n:]; len(r.body) > 0 {
		return buf, nil
	}
	return buf, io.EOF
}

// addPart reads one event of the stream and tells the lease of its tokens. It
// returns io.EOF at the end of a whole stream.
func (a *Answer) addPart(until time.Time) error {
	began := a.delta || a.finished
	ev, err := a.nextEvent(until)
	if err != nil {
		return err
	}
	switch ev.Kind {
	case inference.EventDelta, inference.EventFinish:
		if began {
			a.lease.Token(ev.At)
		} else {
			a.lease.FirstToken(ev.At, ev.At.Sub(a.start), true)
		}
	case inference.EventDone:
		return nil
	}
	if data := wire.EventData(ev.Raw); data != nil {
		if err := a.rebuilt.parts.Add(data); err != nil {
			return brokenPart(err)
		}
	}
	return nil
}

// brokenPart is the failure of a stream from which no answer can be made.
func brokenPart(err error) error {
	f := &inference.Failure{Verdict: inference.VerdictBroken, Reason: "malformed_event", Err: err}
	switch {
	case errors.Is(err, wire.ErrAnswerTooLarge):
		f.Reason, f.Final = "answer_too_large", true
	case errors.Is(err, wire.ErrNoChoice):
		f.Reason = "empty_answer"
	}
	return f
}
