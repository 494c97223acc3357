package admission

import (
	"fmt"
	"slices"
)

// Check returns what is wrong with the governor's books: sums that do not add up,
// heaps out of order, places that point elsewhere.
func (g *Governor) Check() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := checker{g: g, waiting: map[*account]int{}, queues: map[*account]int{}}
	for key, l := range *g.lanes.Load() {
		c.lane(key, l)
	}
	switch {
	case c.err != nil:
		return c.err
	case int64(c.requests) != g.waiting.Load():
		return fmt.Errorf("%d requests in lanes, %d counted", c.requests, g.waiting.Load())
	case c.bytes != g.mu.bytes:
		return fmt.Errorf("%d bytes in lanes, %d counted", c.bytes, g.mu.bytes)
	case c.tickets != g.mu.tickets:
		return fmt.Errorf("%d tickets out, %d counted", c.tickets, g.mu.tickets)
	}
	for tenant, a := range g.mu.accounts {
		if a.waiting != c.waiting[a] || len(a.queues) != c.queues[a] {
			return fmt.Errorf("account of %q: %d wait in %d queues, %d in %d counted", tenant, c.waiting[a], c.queues[a], a.waiting, len(a.queues))
		}
		delete(c.waiting, a)
	}
	if len(c.waiting) != 0 {
		return fmt.Errorf("%d accounts have waiters and are not in the books", len(c.waiting))
	}
	return nil
}

// checker goes through the lanes.
type checker struct {
	g                 *Governor
	err               error
	requests, tickets int
	bytes             int64
	waiting, queues   map[*account]int
}

// want notes the first mistake.
func (c *checker) want(ok bool, format string, args ...any) {
	if !ok && c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// waiter checks what holds for every waiter.
func (c *checker) waiter(l *lane, w *Waiter) {
	c.requests++
	c.bytes += w.bytes
	c.want(w.lane == l && !w.done && w.lease == nil && w.err == nil, "a waiter of lane %s is done or elsewhere", l.model)
}

// lane checks one lane.
func (c *checker) lane(key uint64, l *lane) {
	before := c.requests
	c.want(l.key == key, "lane %s has another key", l.model)
	for _, p := range l.pools {
		c.want(slices.Contains(p.lanes, l), "pool %s does not know its lane %s", p.fleet.Name, l.model)
	}
	for _, w := range l.again {
		c.waiter(l, w)
		c.want(w.again, "a first attempt stands at the head of lane %s", l.model)
	}
	for i := range l.class {
		c.class(l, i)
	}
	c.want(c.requests-before == l.waiting, "lane %s: %d wait, %d counted", l.model, c.requests-before, l.waiting)
}

// class checks one class of a lane.
func (c *checker) class(l *lane, class int) {
	q := &l.class[class]
	n, held, weights := len(q.back), 0.0, 0.0
	for _, w := range q.back {
		c.waiter(l, w)
		c.waiting[w.account]++
		held += float64(w.plan.Tokens)
		c.want(w.ticket && int(w.class) == class, "class %d of lane %s: not a ticket's holder", class, l.model)
	}
	for at, t := range q.tenants {
		c.want(t.at == at && t.of == q && len(t.waiters) > 0, "class %d of lane %s: a tenant is misplaced", class, l.model)
		c.want(at == 0 || t.rank() >= q.tenants[(at-1)/2].rank(), "class %d of lane %s: tenants out of order", class, l.model)
		c.queues[t.account]++
		weights += t.account.weight
		for i, w := range t.waiters {
			c.waiter(l, w)
			n++
			c.waiting[w.account]++
			held += float64(w.plan.Tokens)
			c.want(w.at == i && w.queue == t && w.account == t.account && int(w.class) == class, "class %d of lane %s: a waiter is misplaced", class, l.model)
			c.want(i == 0 || w.before >= t.waiters[(i-1)/2].before, "class %d of lane %s: waiters out of order", class, l.model)
		}
	}
	c.want(n == q.n && held == q.held, "class %d of lane %s: %d wait with %v tokens, %d with %v counted", class, l.model, n, held, q.n, q.held)
	c.want(weights-q.weights < 1e-6 && q.weights-weights < 1e-6, "class %d of lane %s: weights %v, %v counted", class, l.model, weights, q.weights)
	c.tickets += len(q.pledges.out)
	for i := 1; i < len(q.pledges.out); i++ {
		c.want(!q.pledges.out[i].due.Before(q.pledges.out[i-1].due), "class %d of lane %s: tickets out of order", class, l.model)
	}
}

// Lanes is the number of lanes.
func (g *Governor) Lanes() int { return len(*g.lanes.Load()) }
