package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spillway/spillway/internal/wire"
)

// Bounds on what is read of one answer, in bytes.
const (
	maxEvent  = 1 << 20
	maxAnswer = 16 << 20
	maxError  = 64 << 10
	// keptBuffer is the largest buffer that waits for the next request; longer
	// prompts are rare enough to allocate.
	keptBuffer = 1 << 20
)

// drainTime bounds the wait for the end of a body whose last event has come.
const drainTime = time.Second

// state is what one request needs while it runs, reused by later ones.
type state struct {
	out    outcome
	gaps   gaps
	body   body
	events wire.EventReader
	event  []byte    // the event reader's buffer
	text   []byte    // request, then an answer in one piece
	rest   time.Time // the end of the client's time, where its patience ends before
}

// result is how one attempt ended.
type result struct {
	code      string
	truncated bool
	retry     bool // an SDK may try again
	hints     retryHints
	end       time.Duration // when the answer was read; 0 means now
	status    int           // 0 when no answer began
	asked     time.Duration // the wait that an error status asked for
	ticket    string        // of an error status
	server    time.Duration // the time in the server that an error status names
}

// send runs one row, which has a place in flight, to its end: all attempts,
// within the client's time.
func (g *Generator) send(ctx context.Context, j job) {
	st := g.states.Get().(*state)
	st.out = outcome{class: j.class, tenant: j.tenant, due: j.due}
	a := attempt{at: j.due, deadline: g.live.start.Add(j.due + g.cfg.Client.Timeout)}
	for g.once(ctx, st, j, &a) {
		o := st.out
		g.recycle(st)
		if !g.await(ctx, a.at) {
			g.finish(&o)
			return
		}
		st = g.states.Get().(*state)
		st.out = o
	}
	g.finish(&st.out)
	g.live.inFlight.Add(-1)
	g.recycle(st)
}

// once makes one attempt and says whether the client makes another; a is that
// one then.
func (g *Generator) once(ctx context.Context, st *state, j job, a *attempt) bool {
	o := &st.out
	o.hasDelta, o.streamed, o.first, o.last, o.tokens = false, false, 0, 0, 0
	r := g.attempt(ctx, st, j, a)
	g.rec.flush(&st.gaps)
	if o.end = r.end; o.end == 0 {
		o.end = g.live.Elapsed()
	}
	o.code, o.truncated = r.code, r.truncated
	o.attempts++
	if ctx.Err() != nil && r.code != "" {
		o.code, r.retry = codeCanceled, false
		if errors.Is(context.Cause(ctx), errUndrained) {
			o.code = codeUndrained
		}
	}
	g.tell(o, j, *a, r)
	if r.code == "" || !r.retry || a.n >= g.cfg.Client.Retries {
		return false
	}
	if g.cfg.Client.IgnoreRetryAfter {
		r.hints.after, r.hints.afterMS, r.asked = "", "", 0
	}
	wait, ok := r.hints.delay(a.n, time.Now(), jitter(g.cfg.Seed, j.seq, a.n))
	*a = attempt{n: a.n + 1, at: o.end + wait, deadline: a.deadline, ticket: r.ticket, returner: r.ticket != "" && r.asked > 0}
	return ok && !g.live.start.Add(a.at).After(a.deadline)
}

// await gives the place in flight up until the instant of the next attempt. It
// returns false when there is no next one: the run is over, or a bound is
// reached.
func (g *Generator) await(ctx context.Context, at time.Duration) bool {
	g.live.inFlight.Add(-1)
	waiting := g.live.waiting.Add(1)
	defer g.live.waiting.Add(-1)
	if waiting > int64(g.cfg.Client.MaxWaiting) {
		g.rec.invalidate(fmt.Sprintf("client.max_waiting: %d requests waited to be sent again, later ones were given up", g.cfg.Client.MaxWaiting))
		return false
	}
	return newAlarm().wait(ctx, g.live.start.Add(at)) && g.enter()
}

// recycle keeps the state for another request.
func (g *Generator) recycle(st *state) {
	if cap(st.text) > keptBuffer {
		st.text = nil
	}
	if cap(st.event) > keptBuffer {
		st.event = nil
	}
	g.states.Put(st)
}

// attempt sends the request once and reads its answer.
func (g *Generator) attempt(ctx context.Context, st *state, j job, a *attempt) result {
	ep := g.endpoints[(j.seq+uint64(a.n))%uint64(len(g.endpoints))]
	st.text = g.planner.write(st.text[:0], ep, j, *a)
	a.sent = g.live.Elapsed()
	if a.n == 0 {
		g.rec.sent(a.sent - j.due)
	}
	deadline := a.deadline
	st.rest = time.Time{}
	if early := g.live.start.Add(a.at + j.patience); j.patience > 0 && j.stream && early.Before(deadline) {
		deadline, st.rest = early, deadline
	}
	c, err := g.transport.open(ctx, ep, deadline)
	if err != nil {
		if !time.Now().Before(deadline) {
			return result{code: codeTimeout}
		}
		return result{code: codeConnect, retry: true}
	}
	// A server may refuse a request before it has read all of it: its answer
	// counts, a failed write alone does not.
	_, writeErr := c.nc.Write(st.text)
	h, err := c.readHead()
	if err != nil {
		g.transport.release(ep, c, false)
		return headFailure(errors.Join(err, writeErr))
	}
	st.body.reset(c, h)
	r := g.answer(st, h, j, ep)
	r.end, r.status = g.live.Elapsed(), h.status // the wait for the body's end is not the client's
	g.transport.release(ep, c, writeErr == nil && !h.close && drained(&st.body))
	return r
}

// headFailure classifies an attempt without an answer.
func headFailure(err error) result {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return result{code: codeTimeout}
	case errors.Is(err, errHead):
		return result{code: codeBadAnswer}
	}
	return result{code: codeReset, retry: true}
}

// drained reads the rest of a body and says whether the connection can be used
// again.
func drained(b *body) bool {
	if b.ended {
		return b.reusable()
	}
	if b.toClose || b.c.nc.SetReadDeadline(time.Now().Add(drainTime)) != nil {
		return false
	}
	var sink [512]byte
	for range maxError / len(sink) {
		if _, err := b.Read(sink[:]); err != nil {
			return err == io.EOF && b.reusable()
		}
	}
	return false
}

// answer reads an answer whose head is in.
func (g *Generator) answer(st *state, h head, j job, ep *endpoint) result {
	in := ep.instance(g.live)
	if len(h.instance) > 0 {
		in = g.live.instance(h.instance)
	}
	switch {
	case h.status < 200 || h.status > 299:
		return g.refusal(st, h)
	case j.stream && h.sse:
		st.out.streamed = true
		return g.stream(st, in)
	}
	st.out.streamed = false
	return g.whole(st, j)
}

// refusal reads an error status with its body.
func (g *Generator) refusal(st *state, h head) result {
	r := result{
		code: fmt.Sprintf("http_%d", h.status), hints: h.hints, retry: h.hints.retryable(h.status),
		asked: h.hints.asked(time.Now()), ticket: h.ticket, server: h.server,
	}
	if text, err := st.readAll(maxError); err == nil {
		r.code = errorCode(text, r.code)
	}
	return r
}

// whole reads an answer in one piece. SDKs read it within the attempt, so a
// lost connection is tried again.
func (g *Generator) whole(st *state, j job) result {
	text, err := st.readAll(maxAnswer)
	if err != nil {
		code := lost(err)
		return result{code: code, retry: code == codeCut}
	}
	e := readAnswer(g.surface, text)
	switch {
	case e.code != "":
		return result{code: e.code}
	case e.done && g.opts.Judge != nil && !g.opts.Judge(g.planner.scribe.text(nil, j.prompt), j.output, text):
		return result{code: codeWrong}
	case e.done:
		st.out.tokens = e.tokens
		return result{}
	case len(text) > 0 && text[0] != '{':
		return result{code: codeBadAnswer}
	}
	return result{truncated: true}
}

// lost names the loss of an answer that had begun.
func lost(err error) string {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return codeTimeout
	case errors.Is(err, errFraming), errors.Is(err, wire.ErrEventTooLarge), errors.Is(err, errTooLong):
		return codeBadAnswer
	}
	return codeCut
}

// errTooLong says that an answer is longer than any server's.
var errTooLong = errors.New("answer too long")

// readAll reads the body into the state's text.
func (st *state) readAll(limit int) ([]byte, error) {
	st.text = st.text[:0]
	for {
		if len(st.text) > limit {
			return nil, errTooLong
		}
		if cap(st.text)-len(st.text) < 512 {
			st.text = append(st.text, make([]byte, max(512, len(st.text)))...)[:len(st.text)]
		}
		n, err := st.body.Read(st.text[len(st.text):cap(st.text)])
		st.text = st.text[:len(st.text)+n]
		if err == io.EOF {
			return st.text, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// stream reads a streamed answer event by event.
func (g *Generator) stream(st *state, in *instance) result {
	if st.event == nil {
		st.event = make([]byte, readBuffer)
	}
	st.events.Reset(&st.body, st.event, maxEvent)
	r := g.streamEvents(st, in)
	st.event = st.events.Buffer()
	if st.out.hasDelta {
		in.open.Add(-1)
	}
	return r
}

func (g *Generator) streamEvents(st *state, in *instance) result {
	o, finished := &st.out, false
	var usage int64
	for {
		raw, err := st.events.Next()
		if err != nil {
			// An end that the framing confirms is clean, whatever it left out.
			if st.body.ended {
				return result{truncated: true}
			}
			return result{code: lost(err)}
		}
		data := wire.EventData(raw)
		if len(data) == 0 {
			continue
		}
		e := readEvent(g.surface, data)
		if e.delta {
			g.token(st, in)
		}
		if e.code != "" {
			return result{code: e.code}
		}
		finished = finished || e.finish
		usage = max(usage, e.tokens)
		if e.done {
			if usage > 0 {
				o.tokens = usage
			}
			return result{truncated: !finished}
		}
	}
}

// token records one delta.
func (g *Generator) token(st *state, in *instance) {
	now := g.live.Elapsed()
	o := &st.out
	if o.hasDelta {
		st.gaps.add(int64(now-o.last), g.rec)
	} else {
		o.hasDelta, o.first = true, now
		if !st.rest.IsZero() { // it stays now
			g.transport.extend(st.body.c, st.rest)
		}
		in.begun.Add(1)
		in.open.Add(1)
	}
	o.last = now
	o.tokens++
	g.live.tokens.Add(1)
}
