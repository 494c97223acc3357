package admission

import (
	"context"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Waiter is a request's place in its lane. It ends with a lease, with an error, or
// when its owner leaves.
type Waiter struct {
	g      *Governor
	lane   *lane
	plan   *fleet.Plan
	tried  []*fleet.Instance
	class  inference.Class
	again  bool // an attempt after the first: it goes to the head of its lane
	ticket bool // it came back with a ticket

	arrived time.Time
	budget  time.Duration
	latest  time.Time // after it sending the request makes no sense
	before  int64     // its rank among the tenant's requests: earlier is sent first
	bytes   int64

	account *account     // who pays; nil for an attempt after the first
	queue   *tenantQueue // where it waits; nil for an attempt after the first and with a ticket
	at      int          // in queue.waiters
	notify  func(*Waiter)
	ready   chan struct{}

	// Guarded by the governor's mutex until done.
	done  bool
	lease *fleet.Lease
	err   error
}

// rank orders the heads of a class: the smallest is sent first.
func (w *Waiter) rank() float64 {
	if w.queue != nil {
		return w.queue.rank()
	}
	return w.account.counter
}

// finish ends the wait. The caller holds the governor's mutex.
func (w *Waiter) finish(lease *fleet.Lease, err error) {
	w.done, w.lease, w.err = true, lease, err
	if w.notify != nil {
		w.notify(w)
		return
	}
	w.ready <- struct{}{} // its only value
}

// Outcome is what the wait ended with, once notify was called.
func (w *Waiter) Outcome() (*fleet.Lease, error) { return w.lease, w.err }

// Wait waits until the given instant. It returns a lease, an *inference.Error,
// inference.ErrNotYet when the wait may be resumed, or the context's error, after
// which the place is given up.
func (w *Waiter) Wait(ctx context.Context, until time.Time) (*fleet.Lease, error) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-w.ready:
		return w.lease, w.err
	case <-ctx.Done():
		w.Leave(time.Now())
		return nil, ctx.Err()
	case <-timer.C:
		return nil, inference.ErrNotYet
	}
}

// Leave gives the place up; a lease that was granted meanwhile goes back.
func (w *Waiter) Leave(now time.Time) {
	g := w.g
	g.mu.Lock()
	if !w.done {
		w.done = true
		g.dequeue(now, w)
		g.mu.Unlock()
		g.count.left[w.class].Add(1)
		return
	}
	g.mu.Unlock()
	if w.lease != nil {
		w.lease.Verdict = inference.VerdictCanceled
		w.lease.Release(now)
	}
}

// refresh points the plan at the current snapshot's pools: instances may have come
// and gone while the request waited. The caller holds the governor's mutex.
func (w *Waiter) refresh() {
	for i := range w.plan.Candidates {
		c := &w.plan.Candidates[i]
		if p, ok := w.g.mu.pools[c.Pool.Hash]; ok && p.fleet != c.Pool {
			c.Pool = p.fleet
		}
	}
	w.plan.Faithful = w.g.Step() < StepCheaperModel
}
