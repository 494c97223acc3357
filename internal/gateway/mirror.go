package gateway

import (
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// maxMirrors bounds the copies of requests that run at one time. Further ones are not
// made.
const maxMirrors = 64

// mirror runs a copy of a request as planned, and drops the answer. It runs when
// nothing else waits, holds nothing of its client's limits, and is neither looked up
// nor kept.
func (g *Gateway) mirror(plan *fleet.Plan) {
	if !g.renewal.beginCopy() {
		return
	}
	plan.Request = Background(plan.Request, time.Now(), g.Timeout())
	plan.Cookie = nil // it reads the client's own header fields, which are the next request's by then
	go func() {
		defer g.renewal.endCopy()
		defer survive(nil)
		f := g.launch(g.renewal.ctx, plan.Request, Discard{})
		defer f.land()
		defer survive(&f.rec)
		f.rec.Shadow = true
		f.follows(plan)
		winner, err := f.win()
		if err != nil {
			f.refuse(err)
			return
		}
		f.relay(winner)
	}()
}

// beginCopy reserves the place of a copy, unless there are too many.
func (r *renewal) beginCopy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.ended || r.mu.copies >= maxMirrors {
		return false
	}
	r.mu.copies++
	r.under.Add(1)
	return true
}

// endCopy gives it back.
func (r *renewal) endCopy() {
	r.mu.Lock()
	r.mu.copies--
	r.mu.Unlock()
	r.under.Done()
}

// survive ends a panic on a goroutine for which nobody waits, where it would be the end
// of the process. rec tells of it, unless it is nil.
func survive(rec *inference.Record) {
	if recover() != nil && rec != nil {
		rec.Complete, rec.Code, rec.Reason = false, inference.CodeInternal, "panic"
	}
}
