package gateway

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// attempt is one try of the request at one instance.
type attempt struct {
	lease  *fleet.Lease
	answer Answer
	cancel context.CancelFunc // ends this attempt alone; nil without hedging
	start  time.Time
	sent   time.Time
	hedge  bool

	head  *inference.Head
	held  []byte // the answer's beginning, not sent yet
	more  bool   // another event has arrived behind held
	whole bool   // held is the whole body
	ttft  time.Duration
	usage inference.Usage
}

// win tries instances until one gives a first delta, or a whole answer where
// nothing is streamed. Its error is that of the first failure.
func (f *flight) win() (*attempt, error) {
	f.set.budget.request(f.req.Received)
	for {
		lease, err := f.admit()
		if err != nil {
			return nil, f.firstError(err)
		}
		a, err := f.open(f.ctx, lease)
		if err == nil {
			if a, err = f.await(a); err == nil {
				return a, nil
			}
		}
		if err := f.firstError(err); !f.mayRetry(err) {
			return nil, f.first
		}
		f.plan.Again = true
		f.forgive()
		if err := f.backOff(); err != nil {
			return nil, f.first
		}
	}
}

// forgive lets instances that said busy be tried again when no other is left: they
// are none the worse for it once they have cooled down.
func (f *flight) forgive() {
	for i := range f.plan.Candidates {
		for _, one := range f.plan.Candidates[i].Pool.Instances {
			if !slices.Contains(f.tried, one) {
				return
			}
		}
	}
	f.tried = slices.DeleteFunc(f.tried, func(i *fleet.Instance) bool { return slices.Contains(f.busy, i) })
}

// admit takes a slot, and waits for one as long as admission lets it and the
// client stays. Attempts after the first wait at the head of their lane. Where
// readers have joined meanwhile that ask for more, it asks again for them.
func (f *flight) admit() (*fleet.Lease, error) {
	begun := time.Now()
	f.heed()
	lease, waited, err := f.enter(begun)
	for err != nil && f.ctx.Err() == nil && f.heed() {
		var more bool
		lease, more, err = f.enter(time.Now())
		waited = waited || more
	}
	if waited {
		f.rec.Queued += time.Since(begun)
	}
	return lease, err
}

// enter asks for a slot once.
func (f *flight) enter(now time.Time) (lease *fleet.Lease, waited bool, err error) {
	lease, place, err := f.g.parts.Admission.Enter(now, f.plan, f.tried)
	if place == nil {
		return lease, false, err
	}
	lease, err = f.wait(place)
	return lease, true, err
}

// wait waits at a place for a slot, and gives the place up when it ends without one:
// also when the flight becomes more urgent, which heed tells.
func (f *flight) wait(place Place) (*fleet.Lease, error) {
	ctx, done := f.waiting()
	defer done()
	for {
		lease, err := place.Wait(ctx, f.waitUntil(time.Time{}))
		switch {
		case err == nil:
			return lease, nil
		case ctx.Err() != nil:
			if errors.Is(err, inference.ErrNotYet) { // both at the same instant: the place is still held
				place.Leave(time.Now())
			}
			return nil, &inference.Failure{Verdict: inference.VerdictCanceled, Reason: "canceled", Err: err}
		case !errors.Is(err, inference.ErrNotYet):
			return nil, err
		}
		now := time.Now()
		if f.expired(now) {
			place.Leave(now)
			return nil, f.late(err)
		}
		if err := f.keepAlive(now); err != nil {
			place.Leave(now)
			return nil, f.gone(err)
		}
	}
}

// firstError keeps the first error and returns err, or the first when err only
// says that nothing else is left to try.
func (f *flight) firstError(err error) error {
	if f.first == nil {
		f.first = err
	}
	if _, ok := errors.AsType[*inference.Failure](err); !ok {
		return f.first
	}
	return err
}

// mayRetry says whether another attempt is allowed after err.
func (f *flight) mayRetry(err error) bool {
	failure, ok := errors.AsType[*inference.Failure](err)
	if !ok || failure.Final || f.ctx.Err() != nil || f.expired(time.Now()) || len(f.rec.Attempts) >= f.set.Retry.Attempts {
		return false
	}
	switch failure.Verdict {
	case inference.VerdictBusy, inference.VerdictSpent, inference.VerdictBroken:
		return f.set.budget.spend(time.Now())
	}
	return false
}

// backOff waits a random share of the exponential back-off (full jitter, AWS
// Architecture Blog 2015). The wait ends early with the flight.
func (f *flight) backOff() error {
	limit := min(f.set.Retry.Backoff<<(len(f.rec.Attempts)-1), f.set.Retry.MaxBackoff)
	if limit <= 0 {
		return f.ctx.Err()
	}
	timer := time.NewTimer(rand.N(limit))
	defer timer.Stop()
	select {
	case <-timer.C:
		return f.keepAlive(time.Now())
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

// open starts an attempt. When that fails the attempt is settled already.
func (f *flight) open(ctx context.Context, lease *fleet.Lease) (*attempt, error) {
	a := f.attempt(lease)
	if f.set.hedges(lease.Instance.Pool) {
		ctx, a.cancel = context.WithCancel(ctx)
	}
	if err := a.begin(ctx, f); err != nil {
		f.settle(a, err)
		return nil, err
	}
	return a, nil
}

// attempt notes a new attempt that holds a lease until it is settled.
func (f *flight) attempt(lease *fleet.Lease) *attempt {
	a := &attempt{lease: lease, start: time.Now()}
	f.tried = append(f.tried, lease.Instance)
	f.underWay = append(f.underWay, a)
	return a
}

// begin connects and sends the request.
func (a *attempt) begin(ctx context.Context, f *flight) error {
	answer, err := f.g.parts.Upstream(ctx, f.req, a.lease)
	if err != nil {
		return err
	}
	a.answer, a.sent = answer, time.Now()
	a.lease.Sent(a.sent)
	a.held = takeHeld()
	return nil
}

// await waits for the attempt's first delta, keeps the client waiting meanwhile,
// and asks a second instance when the pool is hedged and the first is late. It
// returns the attempt that won; a failed one is settled.
func (f *flight) await(a *attempt) (*attempt, error) {
	hedgeAt := f.hedgeAt(a)
	for {
		err := a.advance(f.waitUntil(hedgeAt), f)
		if err == nil {
			return a, nil
		}
		now := time.Now()
		if errors.Is(err, inference.ErrNotYet) && !f.expired(now) {
			if err = f.keepAlive(now); err == nil {
				if !hedgeAt.IsZero() && !now.Before(hedgeAt) {
					if !a.lease.Answered() { // an answer that is rebuilt from a stream may be under way
						if second := f.second(a); second != nil {
							return f.race(a, second)
						}
					}
					hedgeAt = time.Time{}
				}
				continue
			}
			err = f.gone(err)
		}
		err = f.late(err)
		f.settle(a, err)
		return nil, err
	}
}

// advance reads until the answer can be committed: to its first delta, or to the
// end of a body that is held back. It may be called again after
// inference.ErrNotYet.
func (a *attempt) advance(until time.Time, f *flight) error {
	if a.head == nil {
		head, err := a.answer.Head(until)
		if err != nil {
			return err
		}
		a.head = head
	}
	if a.head.Stream {
		return a.firstDelta(until, f)
	}
	var err error
	a.held, err = a.answer.Body(until, a.held, max(int(f.set.HoldAnswer), 1))
	switch {
	case err == io.EOF:
		a.whole = true
	case err != nil:
		return err
	}
	now := time.Now()
	if first := a.lease.First(); !first.IsZero() { // of the stream that the answer is put together from
		a.ttft = first.Sub(a.start)
		return nil
	}
	a.ttft = now.Sub(a.start)
	a.lease.FirstToken(now, a.ttft, false)
	return nil
}

// firstDelta holds events back until one of them commits the answer.
func (a *attempt) firstDelta(until time.Time, f *flight) error {
	for {
		ev, err := a.answer.Event(until)
		if err != nil {
			if err == io.EOF { // ended as it should, before any event that commits
				err = &inference.Failure{Verdict: inference.VerdictBroken, Reason: "empty_answer"}
			}
			return err
		}
		a.usage.Update(ev.Usage)
		if ev.Raw == nil {
			continue
		}
		if len(a.held)+len(ev.Raw) > int(f.set.HoldEvents) {
			return &inference.Failure{Verdict: inference.VerdictBroken, Reason: "no_delta"}
		}
		a.held = append(a.held, ev.Raw...)
		switch ev.Kind {
		case inference.EventDelta, inference.EventFinish, inference.EventDone:
			a.more = ev.More
			a.ttft = ev.At.Sub(a.start)
			a.lease.FirstToken(ev.At, a.ttft, true)
			return nil
		}
	}
}

// settle ends an attempt: the connection is given back, health learns what became
// of it, then the slot is given back, so that a half-open instance is judged
// before anybody else gets it. err is nil for a whole answer.
func (f *flight) settle(a *attempt, err error) {
	now := time.Now()
	f.underWay = slices.DeleteFunc(f.underWay, func(u *attempt) bool { return u == a })
	if a.answer != nil {
		a.answer.Close()
	}
	if a.cancel != nil {
		a.cancel()
	}
	rec := inference.Attempt{
		Region: a.lease.Instance.Pool.Region.Name, Pool: a.lease.Instance.Pool.Name, Instance: a.lease.Instance.Name,
		Model: a.lease.Candidate.Model, TTFT: a.ttft, Start: a.start.Sub(f.req.Received), Duration: now.Sub(a.start), Hedge: a.hedge, Panic: a.lease.Panic,
	}
	if !a.sent.IsZero() {
		rec.Connect = a.sent.Sub(a.start)
	}
	if a.head != nil {
		rec.Status = a.head.Status
	}
	var failure *inference.Failure
	if err == nil {
		f.finishUsage(a)
	} else {
		if !f.rec.Usage.Zero() { // all that came before it broke off counts
			f.mergeUsage(a)
		}
		putHeld(a.held) // of an attempt that failed nothing is sent any more
		a.held = nil
		failure = asFailure(err)
		rec.Verdict, rec.Reason = failure.Verdict, failure.Reason
		if failure.Status != 0 {
			rec.Status = failure.Status
		}
	}
	if rec.Verdict == inference.VerdictBusy {
		f.busy = append(f.busy, a.lease.Instance)
	}
	a.lease.Verdict, a.lease.Usage = rec.Verdict, f.rec.Usage
	defer a.lease.Release(now) // a defect in what comes between loses no slot
	f.g.parts.Health.Observe(a.lease, failure)
	f.rec.Attempts = append(f.rec.Attempts, rec)
	if from := later(a.start, f.waited); now.After(from) { // attempts in parallel count once
		f.rec.Upstream += now.Sub(from)
		f.waited = now
	}
}

// later is the later of two instants.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// asFailure is err as the failure that upstreams report.
func asFailure(err error) *inference.Failure {
	if failure, ok := errors.AsType[*inference.Failure](err); ok {
		return failure
	}
	return &inference.Failure{Verdict: inference.VerdictBroken, Reason: "error", Err: err}
}

// mergeUsage adds what the held part of an answer said; what came later counts more.
func (f *flight) mergeUsage(a *attempt) {
	said := a.usage
	said.Update(f.rec.Usage)
	f.rec.Usage = said
}

// finishUsage completes the record's usage with what the held part of the answer
// said.
func (f *flight) finishUsage(a *attempt) {
	f.mergeUsage(a)
	if a.whole {
		f.rec.Usage = wire.AnswerUsage(a.held)
		f.rec.Tokens = a.lease.Events() // where it was put together from a stream
	}
}
