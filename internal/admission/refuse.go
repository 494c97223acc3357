package admission

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Reasons of refusals, as in X-Spillway-Reason and metrics.
const (
	reasonWait    = "predicted_wait" // it would wait beyond its budget
	reasonExpired = "wait_expired"   // it did
	reasonFull    = "queue_full"
	reasonShed    = "emergency"
	reasonDark    = "unavailable" // no instance is left
)

// reasons lists them for metrics.
var reasons = [...]string{reasonWait, reasonExpired, reasonFull, reasonShed, reasonDark}

// admitShare is the share of what its budget leaves that a request is predicted to
// wait at most: the rest is for what the prediction does not know.
const admitShare = 0.7

// retryShare is the same for a client's retry that holds no ticket: it was told to
// come later, or not at all.
const retryShare = 0.35

// judge refuses a request that cannot be sent in time. The caller holds mu.
func (g *Governor) judge(now time.Time, w *Waiter, set *settings) error {
	l, q := w.lane, &w.lane.class[w.class]
	switch {
	case g.sheds(now, w.class):
		return g.refuse(now, w, set, reasonShed, time.Minute)
	case w.again:
		return nil
	case g.full(w, set):
		return g.refuse(now, w, set, reasonFull, g.predict(now, w, set))
	case g.claim(now, w, set):
		w.ticket = true
		g.count.claimed[w.class].Add(1)
		return nil
	case l.dark:
		e := inference.Errorf(inference.CodeNoCapacity, "no server of model %q is available", w.plan.Request.Model)
		e.Reason, e.RetryAfter = reasonDark, 5*time.Second
		g.count.refuse(w.class, reasonDark)
		return e
	case q.n == 0:
		return nil
	}
	wait := g.predict(now, w, set)
	share := admitShare
	if w.plan.Request.Retry > 0 {
		share = retryShare
	}
	if wait > allowance(w.budget, l.firstToken(), share) {
		return g.refuse(now, w, set, reasonWait, wait)
	}
	return nil
}

// full says whether the queue has no place for the waiter. The caller holds mu.
func (g *Governor) full(w *Waiter, set *settings) bool {
	return int(g.waiting.Load()) >= set.Queue.Requests || g.mu.bytes+w.bytes > int64(set.Queue.Bytes)
}

// predict is how long a newcomer would wait: those ahead of it and the tickets
// that come due in time, at the rate at which its class is sent (Little's law). A
// tenant's own requests count by its share of the class, so that one that floods
// refuses itself; of a tenant that has been waiting its own rate is known. The caller holds mu.
func (g *Governor) predict(now time.Time, w *Waiter, set *settings) time.Duration {
	q := &w.lane.class[w.class]
	back := float64(len(q.back)) // they go first, whoever they are
	ahead := float64(q.n) - back
	back += q.pledges.due(now, now.Add(w.budget))
	rate := w.lane.rate(w.class, set)
	seconds := func(d float64) time.Duration { return time.Duration(d * float64(time.Second)) }
	if ahead > 0 {
		req := w.plan.Request
		total, own, mine := q.weights, 0.0, set.tenantWeight(req.Tenant)
		a := g.mu.accounts[req.Tenant]
		if t := a.queue(q); t != nil {
			own = float64(len(t.waiters))
			if pace := a.pace[w.class].perSecond(now); pace > 0 {
				return seconds((own+1)/pace + back/rate)
			}
		} else {
			total += mine
		}
		ahead = min(ahead, (own+1)*total/mine)
	}
	return seconds((ahead + back + 1) / rate)
}

// slowestRate keeps predictions finite, requests a second.
const slowestRate = 0.02

// rate is how many requests of a class the lane sends a second while they wait: as
// measured, where the class has waited long enough to measure it; else no less
// than its share of the whole.
func (l *lane) rate(c inference.Class, set *settings) float64 {
	q := &l.class[c]
	measured := q.backlog.perSecond()
	if q.backlog.time >= steadyBacklog {
		return max(measured, slowestRate)
	}
	flow, running, weights := 0.0, 0.0, set.weight[c]
	for _, other := range shared {
		flow += l.class[other].flow.perSecond
		if other != c && l.class[other].n > 0 {
			weights += set.weight[other]
		}
	}
	for _, p := range l.pools {
		running += float64(p.fleet.Live.InFlight())
	}
	// Where little was sent lately the lane can do what it could when it had to, and
	// what runs now is taken to end within a budget.
	total := max(flow, l.capacity, running/set.Classes.class(c).TTFT.Seconds())
	return max(measured, q.flow.perSecond, total*set.weight[c]/weights, slowestRate)
}

// steadyBacklog is the time of waiting, out of the last few seconds, from which a
// measured rate stands alone, in seconds: after five seconds without a break. A
// stall of a second or two, as when a server dies, is no rate.
const steadyBacklog = 2.4

// claim says whether the request comes back with a ticket that is due, by the
// ticket itself or by its tenant and body. The caller holds mu.
func (g *Governor) claim(now time.Time, w *Waiter, set *settings) bool {
	req := w.plan.Request
	if !set.Tickets.Enabled || req.Ticket == "" && g.mu.tickets == 0 {
		return false
	}
	if req.Ticket == "" {
		return g.redeem(now, w, pledge{tenant: nameHash(req.Tenant), body: bodyHash(req)})
	}
	p, err := set.signer.read(req.Ticket, now, req)
	if err != nil {
		g.count.forged.Add(1)
		return false
	}
	if _, used := g.mu.spent[p.nonce]; used || len(g.mu.spent) >= maxSpent {
		return false
	}
	if !g.redeem(now, w, *p) { // another gateway's is not among ours
		g.mu.spent[p.nonce] = p.due.Add(ticketExpiry)
	}
	return true
}

// redeem takes a ticket out of those that are out for the class of the model, in
// whichever lane it was issued: the order of the pools may have changed since. The
// caller holds mu.
func (g *Governor) redeem(now time.Time, w *Waiter, p pledge) bool {
	for _, l := range *g.lanes.Load() {
		if l.model != w.lane.model {
			continue
		}
		if one, ok := l.class[w.class].pledges.claim(now, p.tenant, p.body, p.nonce); ok {
			g.mu.tickets--
			if len(g.mu.spent) < maxSpent { // else none that is shown is honoured
				g.mu.spent[one.nonce] = one.due.Add(ticketExpiry)
			}
			return true
		}
	}
	return false
}

// refuse words a refusal, with a ticket where a place can be kept. The caller
// holds mu.
func (g *Governor) refuse(now time.Time, w *Waiter, set *settings, reason string, wait time.Duration) error {
	req, l := w.plan.Request, w.lane
	e := inference.Errorf(inference.CodeOverloaded, "the servers of model %q are busy; try again later", req.Model)
	e.Reason = reason
	if reason != reasonShed {
		e.Position, e.Predicted = l.class[w.class].n+1, wait
	}
	g.count.refuse(w.class, reason)
	p := l.pools[0]
	p.refused += float64(w.plan.Tokens) + value(&l.learned.output, firstOutput)
	e.RetryAfter, e.NoRetry = longestWait, true
	if reason != reasonShed && set.Tickets.Enabled {
		g.promise(now, w, set, e)
	}
	return e
}

// promise sells the request a slot of its class's ticket clock, when there is one
// within a minute and the tenant does not hold more than its share of those out:
// whoever is refused most often would be promised most otherwise. The clock moves only then: a promise
// per refusal would grow by more than a second each second and outlive the burst.
// The caller holds mu.
func (g *Governor) promise(now time.Time, w *Waiter, set *settings, e *inference.Error) {
	req, q := w.plan.Request, &w.lane.class[w.class]
	g.mu.tickets -= q.pledges.forget(now)
	slot := time.Duration(float64(time.Second) / (set.Tickets.Share * w.lane.rate(w.class, set)))
	begin := now.Add(min(e.Predicted, longestWait))
	// What was sold at a lower rate takes less of the clock now.
	if busy := begin.Add(time.Duration(len(q.pledges.out)) * slot); q.pledges.next.After(busy) {
		begin = busy
	} else if q.pledges.next.After(begin) {
		begin = q.pledges.next
	}
	tenant, a := nameHash(req.Tenant), g.account(req)
	own, share := q.pledges.of(tenant), a.weight/q.buyers.weight(now, a, w.class)
	if float64(own) > share*float64(len(q.pledges.out)+1) && a.sold[w.class].After(begin) || own >= set.Tickets.PerTenant {
		return
	}
	if begin.Add(slot).Sub(now) > longestWait || len(q.pledges.out) >= set.Tickets.PerClass {
		return
	}
	q.pledges.next = begin.Add(slot)
	a.sold[w.class] = begin.Add(time.Duration(float64(slot) / share))
	random := rand.Uint64
	if w.plan.Random != nil {
		random = w.plan.Random
	}
	due := begin.Add(time.Duration(float64(random()>>11) / (1 << 53) * float64(slot))).Truncate(time.Millisecond)
	p := pledge{due: due, tenant: tenant, body: bodyHash(req), nonce: newNonce()}
	q.pledges.out = slices.Insert(q.pledges.out, q.pledges.index(due), p)
	g.mu.tickets++
	e.RetryAfter, e.NoRetry = max(due.Sub(now)+time.Millisecond, time.Millisecond), false
	e.Ticket = set.signer.write(req, &p)
	g.count.issued[w.class].Add(1)
}

// expire refuses a waiter whose time is over, or whose class is shed. The caller
// holds mu.
func (g *Governor) expire(now time.Time, w *Waiter, set *settings) {
	g.dequeue(now, w)
	w.lane.pools[0].unmet += float64(w.plan.Tokens) + value(&w.lane.learned.output, firstOutput)
	reason := reasonExpired
	if !now.After(w.latest) {
		reason = reasonShed
	}
	w.finish(nil, g.refuse(now, w, set, reason, g.predict(now, w, set)))
}
