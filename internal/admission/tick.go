package admission

import (
	"math"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// sampleEvery is how often rates, tickets and time-outs are looked at.
const sampleEvery = 100 * time.Millisecond

// snapshot is the fleet's picture that the governor knows.
func (g *Governor) snapshot() *fleet.Snapshot { return g.known.Load() }

// resync takes note of a new picture of the fleet.
func (g *Governor) resync(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sync(now, g.fleet.Snapshot())
}

// sync takes note of the instances of a snapshot. The caller holds mu.
func (g *Governor) sync(now time.Time, snap *fleet.Snapshot) {
	set, old := g.set.Load(), *g.servers.Load()
	next := make(map[*fleet.Live]*server, len(old))
	snap.Instances(func(i *fleet.Instance) {
		s, ok := old[i.Live]
		if !ok {
			s = newServer(now, &set.Config, i)
		}
		s.mu.Lock()
		s.mu.instance = i
		s.mu.Unlock()
		next[i.Live] = s
	})
	for _, r := range snap.Regions {
		for _, p := range r.Pools {
			g.pool(p).fleet = p
		}
	}
	g.servers.Store(&next)
	g.known.Store(snap)
}

// Tick does what has to be done from time to time: it measures rates, refuses what
// has waited too long, lets the limiters decide every half second and sends what
// has room now. It is called every 100 ms, in order of time.
func (g *Governor) Tick(now time.Time) {
	if g.emergency != nil {
		g.emergency.Tick(now)
		g.reserve(now)
	}
	for _, s := range *g.servers.Load() {
		s.sample()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if snap := g.fleet.Snapshot(); snap != g.known.Load() {
		g.sync(now, snap)
	}
	set := g.set.Load()
	dt := now.Sub(g.mu.ticked).Seconds()
	if !g.mu.ticked.IsZero() && dt > 0 {
		for _, l := range *g.lanes.Load() {
			g.mu.tickets -= l.tick(now, dt)
		}
	}
	g.mu.ticked = now
	if now.Sub(g.mu.periods) >= period {
		g.mu.periods = now
		g.decide(now, set)
		for nonce, until := range g.mu.spent {
			if now.After(until) {
				delete(g.mu.spent, nonce)
			}
		}
	}
	g.brownout(now, set)
	g.overdue(now, set)
	for _, p := range g.mu.pools {
		g.dispatch(now, p, set)
	}
}

// capacityTau is the time constant in which a lane forgets what it could do, in
// seconds.
const capacityTau = 600.0

// tick measures the lane's rates and returns how many tickets have expired. The
// caller holds the governor's mutex.
func (l *lane) tick(now time.Time, dt float64) (expired int) {
	flow, steady := 0.0, false
	for c := range l.class {
		q := &l.class[c]
		q.flow.observe(float64(q.passed.Swap(0)), dt)
		if q.n > 0 {
			q.backlog.account(now)
		}
		q.backlog.forget(dt)
		expired += q.pledges.forget(now)
		flow += q.flow.perSecond
		steady = steady || q.backlog.time >= steadyBacklog
	}
	if l.capacity *= math.Exp(-dt / capacityTau); steady {
		l.capacity = flow
	}
	l.dark = l.closed(now)
	return expired
}

// closed says whether none of the lane's pools can take anything, now or soon.
func (l *lane) closed(now time.Time) bool {
	for _, p := range l.pools {
		if p.fleet.Status(now.UnixNano()) < fleet.Draining {
			return false
		}
	}
	return true
}

// overdue refuses what has waited too long, and what the emergency switch sheds.
// The caller holds mu.
func (g *Governor) overdue(now time.Time, set *settings) {
	if g.waiting.Load() == 0 {
		return
	}
	for _, l := range *g.lanes.Load() {
		for _, w := range slices.Clone(l.again) {
			if g.sheds(now, w.class) || !w.latest.IsZero() && now.After(w.latest) {
				g.expire(now, w, set)
			}
		}
		for c := range l.class {
			q := &l.class[c]
			shed := g.sheds(now, inference.Class(c))
			for _, w := range slices.Clone(q.back) { // they stand in the order in which they came
				if shed || now.After(w.latest) {
					g.expire(now, w, set)
				}
			}
			for _, t := range slices.Clone(q.tenants) {
				for len(t.waiters) > 0 && (shed || now.After(t.waiters[0].latest)) {
					g.expire(now, t.waiters[0], set)
				}
			}
		}
	}
}

// decide lets every limiter decide. The caller holds mu.
func (g *Governor) decide(now time.Time, set *settings) {
	waiting := make(map[uint64]bool)
	for _, l := range *g.lanes.Load() {
		if l.waiting > 0 {
			for _, p := range l.pools {
				waiting[p.hash] = true
			}
		}
	}
	d := g.demand(now, set)
	for _, s := range *g.servers.Load() {
		s.mu.Lock()
		pool := s.mu.instance.Pool.Hash
		s.mu.Unlock()
		d.waiting = waiting[pool]
		s.decide(now, d)
	}
}

// Demands are those of the classes that asked within activeFor. The budget for
// prompts is bounded, because a class that asks again would find what the others
// left in the instances' queues.
const (
	activeFor     = 30 * time.Second
	longestBudget = 5 * time.Second
)

// demand is the strictest of what the active classes want.
func (g *Governor) demand(now time.Time, set *settings) demand {
	d := demand{ttft: longestBudget}
	for c := range g.seen {
		if at := g.seen[c].Load(); at == 0 || now.UnixNano()-at > int64(activeFor) {
			continue
		}
		class := set.Classes.class(inference.Class(c))
		d.ttft = min(d.ttft, class.TTFT)
		if class.TPOT > 0 && (d.tpot == 0 || class.TPOT < d.tpot) {
			d.tpot = class.TPOT
		}
	}
	return d
}
