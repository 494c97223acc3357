package gateway

import (
	"sync"
	"time"
)

// budget bounds retries and hedges together: over a sliding window no more than
// a share of the requests, or a floor, whichever is larger (the retry budget of
// Finagle and Linkerd). It is safe for concurrent use.
type budget struct {
	share  float64
	floor  float64 // a second
	window int64   // seconds

	mu struct {
		sync.Mutex
		slots    [61]struct{ second, requests, retries int64 }
		requests int64 // in the window
		retries  int64
		oldest   int64 // first second that counts
	}
}

// newBudget returns a full budget.
func newBudget(r Retry) *budget {
	return &budget{share: r.Budget, floor: r.Floor, window: int64(r.Window / time.Second)}
}

// slot finds this second's counts, after dropping those that left the window.
// The caller holds mu.
func (b *budget) slot(second int64) *struct{ second, requests, retries int64 } {
	first := second - b.window + 1
	if b.mu.oldest < first-int64(len(b.mu.slots)) {
		b.mu.oldest = first - int64(len(b.mu.slots))
	}
	for ; b.mu.oldest < first; b.mu.oldest++ {
		s := &b.mu.slots[b.mu.oldest%int64(len(b.mu.slots))]
		if s.second == b.mu.oldest {
			b.mu.requests -= s.requests
			b.mu.retries -= s.retries
			*s = struct{ second, requests, retries int64 }{}
		}
	}
	s := &b.mu.slots[second%int64(len(b.mu.slots))]
	if s.second != second {
		b.mu.requests -= s.requests
		b.mu.retries -= s.retries
		*s = struct{ second, requests, retries int64 }{second: second}
	}
	return s
}

// request counts one request.
func (b *budget) request(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.slot(now.Unix()).requests++
	b.mu.requests++
}

// spend takes one retry or hedge out of the budget, if there is one.
func (b *budget) spend(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.slot(now.Unix())
	limit := max(b.share*float64(b.mu.requests), b.floor*float64(b.window))
	if float64(b.mu.retries) >= limit {
		return false
	}
	s.retries++
	b.mu.retries++
	return true
}
