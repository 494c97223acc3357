package gateway

import (
	"context"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// urgency is what the readers of a shared flight ask of it together: the most urgent
// one's class, the latest deadline, and the patience of the one that waits longest
// for a slot.
type urgency struct {
	mu struct {
		sync.Mutex
		class          inference.Class
		deadline       time.Time
		longest        time.Duration // what patience says of the most patient one
		wait, patience time.Duration // of that one's request
		more           bool          // than the flight's request says
		hurry          bool          // its class is more urgent
		stir           func()        // ends the wait for a slot; nil while there is none
	}
}

// patience is how long a request may wait for its slot at most, for all that its
// client says.
func patience(req *inference.Request) time.Duration {
	d := req.Deadline.Sub(req.Received)
	for _, limit := range [...]time.Duration{req.Wait, req.Patience} {
		if limit > 0 {
			d = min(d, limit)
		}
	}
	return d
}

// begin takes over what the first reader asks.
func (u *urgency) begin(req *inference.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mu.class, u.mu.deadline = req.Class, req.Deadline
	u.mu.longest, u.mu.wait, u.mu.patience = patience(req), req.Wait, req.Patience
}

// urge adds what a reader asks that joins. One of a more urgent class ends the
// flight's wait for a slot, so that it waits among its like. One that is merely more
// patient, or came later, does not: the flight would lose its place to each of them.
func (u *urgency) urge(req *inference.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if req.Deadline.After(u.mu.deadline) {
		u.mu.deadline = req.Deadline
	}
	if p := patience(req); p > u.mu.longest {
		u.mu.longest, u.mu.wait, u.mu.patience, u.mu.more = p, req.Wait, req.Patience, true
	}
	if req.Class.Urgency() <= u.mu.class.Urgency() {
		return
	}
	u.mu.class, u.mu.more, u.mu.hurry = req.Class, true, true
	if u.mu.stir != nil {
		u.mu.stir()
	}
}

// heed takes over what readers have asked for that joined, and says whether that is
// more than the request said. It is for flights that hold no place, whose plan the
// governor reads. A request is never changed, so it is another from then on.
func (f *flight) heed() (more bool) {
	if f.shared == nil {
		return false
	}
	u := &f.shared.urgent.mu
	u.Lock()
	defer u.Unlock()
	more, u.more, u.hurry = u.more, false, false
	if !more && u.deadline.Equal(f.req.Deadline) {
		return false
	}
	r := *f.req
	r.Class, r.Deadline, r.Wait, r.Patience = u.class, u.deadline, u.wait, u.patience
	f.req, f.plan.Request = &r, &r
	return more
}

// waiting returns a context for a wait that ends early when a reader makes the
// flight more urgent.
func (f *flight) waiting() (context.Context, context.CancelFunc) {
	if f.shared == nil {
		return f.ctx, func() {}
	}
	ctx, cancel := context.WithCancel(f.ctx)
	u := &f.shared.urgent.mu
	u.Lock()
	defer u.Unlock()
	if u.stir = cancel; u.hurry {
		cancel()
	}
	return ctx, func() {
		u.Lock()
		defer u.Unlock()
		u.stir = nil
		cancel()
	}
}

// deadline is when the answer must be finished: the latest of all readers'.
func (f *flight) deadline() time.Time {
	if f.shared == nil {
		return f.req.Deadline
	}
	u := &f.shared.urgent.mu
	u.Lock()
	defer u.Unlock()
	return u.deadline
}

// expired says whether the deadline has passed, for every reader.
func (f *flight) expired(now time.Time) bool { return !now.Before(f.deadline()) }
