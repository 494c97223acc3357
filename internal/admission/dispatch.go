package admission

import (
	"container/heap"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// enqueue adds a waiter to its queue. The caller holds mu.
func (g *Governor) enqueue(now time.Time, w *Waiter) {
	l := w.lane
	l.waiting++
	l.used = now
	g.waiting.Add(1)
	g.mu.bytes += w.bytes
	if w.again {
		l.again = append(l.again, w)
		return
	}
	a := g.account(w.plan.Request)
	w.account = a
	q := &l.class[w.class]
	q.held += float64(w.plan.Tokens)
	if q.n++; q.n == 1 {
		q.backlog.since = now
	}
	a.waiting++
	if w.ticket {
		q.back = append(q.back, w)
		return
	}
	a.pace[w.class].change(now, 1)
	t := a.queue(q)
	if t == nil {
		t = &tenantQueue{of: q, account: a, lift: max(0, l.level(w.class)-a.counter)}
		a.queues = append(a.queues, t)
		t.waiters = append(t.waiters, w)
		heap.Push(&q.tenants, t)
		q.weights += a.weight
	} else {
		heap.Push(&t.waiters, w)
	}
	w.queue = t
}

// dequeue takes a waiter out of its queue. The caller holds mu.
func (g *Governor) dequeue(now time.Time, w *Waiter) {
	l := w.lane
	l.waiting--
	g.waiting.Add(-1)
	g.mu.bytes -= w.bytes
	if w.again {
		l.again = slices.DeleteFunc(l.again, func(x *Waiter) bool { return x == w })
		return
	}
	a, t, q := w.account, w.queue, &l.class[w.class]
	a.waiting--
	q.held -= float64(w.plan.Tokens)
	if q.n--; q.n == 0 {
		q.backlog.account(now)
	}
	if w.ticket {
		q.back = slices.DeleteFunc(q.back, func(x *Waiter) bool { return x == w })
		return
	}
	a.pace[w.class].change(now, -1)
	heap.Remove(&t.waiters, w.at)
	if len(t.waiters) == 0 {
		heap.Remove(&q.tenants, t.at)
		if q.weights -= a.weight; len(q.tenants) == 0 {
			q.weights = 0 // sums of what was added and taken off drift
		}
		a.queues = slices.DeleteFunc(a.queues, func(x *tenantQueue) bool { return x == t })
	}
}

// maxMisses bounds the attempts after the first, and then the heads, that are passed
// over in one round because the pool's room is none for them.
const maxMisses = 8

// dispatch sends the best heads to a pool as long as it has room. The caller holds
// mu.
func (g *Governor) dispatch(now time.Time, p *pool, set *settings) {
	var missed [2 * maxMisses]*Waiter
	misses := 0
	for g.waiting.Load() > 0 && misses < len(missed) {
		if s := p.fleet.Status(now.UnixNano()); s == fleet.Full || s == fleet.Cooling || s >= fleet.Draining {
			return
		}
		w := g.next(now, p, missed[:misses])
		if w == nil {
			return
		}
		if now.After(w.latest) && !w.again {
			g.expire(now, w, set)
			continue
		}
		w.refresh()
		lease, status := pick(now, w.plan, w.tried)
		switch {
		case lease != nil:
			g.grant(now, w, lease, set)
		case w.again && status > fleet.Cooling: // it has tried all there is
			g.dequeue(now, w)
			w.finish(nil, w.plan.Refusal(now, w.tried))
		default:
			missed[misses] = w
			misses++
		}
	}
}

// next is the request that a pool's room goes to. Attempts after the first go
// first, but a few that have tried what is open here do not hold up the rest. The
// caller holds mu.
func (g *Governor) next(now time.Time, p *pool, missed []*Waiter) *Waiter {
	var best *Waiter
	for _, l := range p.lanes {
		if len(missed) >= maxMisses {
			break
		}
		for _, w := range l.again {
			if (best == nil || w.arrived.Before(best.arrived)) && !slices.Contains(missed, w) {
				best = w
				break
			}
		}
	}
	if best != nil {
		return best
	}
	least := 0.0
	for _, c := range shared {
		w := g.head(now, p, c, missed)
		if w == nil {
			continue
		}
		if start := max(p.start[c], p.virtual); best == nil || start < least {
			best, least = w, start
		}
	}
	if best == nil {
		best = g.head(now, p, inference.Idle, missed)
	}
	return best
}

// head is the request of a class whose tenant was served least, in all lanes that
// the pool may serve now. The caller holds mu.
func (g *Governor) head(now time.Time, p *pool, c inference.Class, missed []*Waiter) *Waiter {
	var best *Waiter
	for _, l := range p.lanes {
		w := l.class[c].head()
		if w == nil || slices.Contains(missed, w) || l.standIn(p) && g.Step() < StepCheaperModel && !l.lost(now) {
			continue
		}
		if best == nil || w.ticket && !best.ticket || w.ticket == best.ticket && w.rank() < best.rank() {
			best = w
		}
	}
	return best
}

// Weights of prompt and output tokens in what tenants and classes are charged: an
// output token costs about two prompt tokens (VTC's w_p and w_q).
const (
	promptCost = 1.0
	outputCost = 2.0
)

// grant gives a waiter its lease. The caller holds mu.
func (g *Governor) grant(now time.Time, w *Waiter, lease *fleet.Lease, set *settings) {
	g.dequeue(now, w)
	g.admit(w.lane, lease)
	g.waits.WithLabelValues(w.class.String()).Observe(now.Sub(w.arrived).Seconds())
	expected := value(&w.lane.learned.output, firstOutput)
	if w.account != nil {
		expected = w.account.expected(expected)
	}
	cost := promptCost*float64(lease.Prompt) + outputCost*expected
	weight := set.weight[w.class]
	if w.class == inference.Batch && g.gives(StepYield) {
		weight /= yieldDivisor
	}
	p := g.pool(lease.Instance.Pool)
	p.charge(w.class, cost, weight)
	if a := w.account; a != nil {
		if !w.ticket && len(w.lane.class[w.class].tenants) > 0 {
			// Who goes out of turn, or alone, says nothing about the others.
			p.level[w.class] = w.rank()
		}
		a.charge(cost)
		lease.Payer, lease.Charge = a, outputCost*expected
		w.lane.class[w.class].backlog.sent++
		if !w.ticket {
			a.pace[w.class].sent++
		}
	}
	w.finish(lease, nil)
}
