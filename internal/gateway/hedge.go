package gateway

import (
	"context"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// hedgeAt is when a second instance is asked, or zero for never: after the
// pool's own quantile of recent times to first token ("The Tail at Scale", Dean
// and Barroso 2013). Before enough was observed nothing is hedged.
func (f *flight) hedgeAt(a *attempt) time.Time {
	pool := a.lease.Instance.Pool
	if !f.set.hedges(pool) || len(f.rec.Attempts)+1 >= f.set.Retry.Attempts {
		return time.Time{}
	}
	q := pool.Live.TTFTQuantile(f.set.Hedge.Quantile, a.lease.Stream())
	if q == 0 {
		return time.Time{}
	}
	return a.start.Add(max(q, f.set.Hedge.MinDelay))
}

// second takes a slot for a hedge, or returns nil: never while an instance of
// the pool is full, because a hedge would take what a request needs.
func (f *flight) second(a *attempt) *attempt {
	now := time.Now()
	for _, i := range a.lease.Instance.Pool.Instances {
		if s := i.Status(now.UnixNano()); s == fleet.Full || s == fleet.Cooling {
			return nil
		}
	}
	if !f.set.budget.spend(now) {
		return nil
	}
	f.plan.Again = true
	lease, place, err := f.g.parts.Admission.Enter(now, f.plan, f.tried)
	if place != nil {
		place.Leave(now) // others wait: a hedge does not
		return nil
	}
	if err != nil {
		return nil
	}
	b := f.attempt(lease)
	b.hedge = true
	return b
}

// outcome is what became of one side of a race.
type outcome struct {
	a   *attempt
	err error
}

// race lets two attempts run in parallel until one has its first parsed delta.
// The other one is cancelled and waited for, so that no goroutine outlives the
// call. When both fail the first one's error counts.
func (f *flight) race(first, second *attempt) (*attempt, error) {
	results := make(chan outcome, 2)
	ctx, cancel := context.WithCancel(f.ctx)
	second.cancel = cancel
	go func() { results <- outcome{first, f.late(first.advance(f.deadline(), f))} }()
	go func() {
		err := second.begin(ctx, f)
		if err == nil {
			err = f.late(second.advance(f.deadline(), f))
		}
		results <- outcome{second, err}
	}()
	var winner *attempt
	var lost error
	for pending := 2; pending > 0; {
		o, err := f.nextOutcome(results)
		if err != nil { // the client is gone: both are told, both come back
			_ = f.gone(err) // what it does matters here: it cancels
			continue
		}
		pending--
		switch {
		case o.err == nil && winner == nil:
			winner = o.a
			if pending > 0 {
				other := first
				if winner == first {
					other = second
				}
				other.cancel()
			}
		case winner != nil: // the loser, cancelled or late: nobody's fault
			f.settle(o.a, &inference.Failure{Verdict: inference.VerdictCanceled, Reason: "hedge_lost"})
		default:
			f.settle(o.a, o.err)
			if lost == nil || o.a == first {
				lost = o.err
			}
		}
	}
	if winner != nil {
		return winner, nil
	}
	return nil, lost
}

// nextOutcome waits for one side of a race and keeps the client waiting
// meanwhile. Its error is that of a client that cannot be written to.
func (f *flight) nextOutcome(results <-chan outcome) (outcome, error) {
	for {
		timer := time.NewTimer(time.Until(f.waitUntil(time.Time{})))
		select {
		case o := <-results:
			timer.Stop()
			return o, nil
		case now := <-timer.C:
			if err := f.keepAlive(now); err != nil {
				f.comment = time.Time{}
				return outcome{}, err
			}
		}
	}
}
