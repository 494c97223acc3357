package admission

import (
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spillway/spillway/internal/inference"
)

// counters are what metrics show. All but the pressure only grow.
type counters struct {
	admitted [classes]atomic.Int64
	left     [classes]atomic.Int64
	issued   [classes]atomic.Int64
	claimed  [classes]atomic.Int64
	refused  [classes][len(reasons)]atomic.Int64
	retries  atomic.Int64
	forged   atomic.Int64
	capped   atomic.Int64
	pressure atomic.Uint64 // float64 bits
}

// refuse counts a refusal.
func (c *counters) refuse(class inference.Class, reason string) {
	c.refused[class][slices.Index(reasons[:], reason)].Add(1)
}

// setPressure notes the pressure.
func (c *counters) setPressure(p float64) { c.pressure.Store(math.Float64bits(p)) }

// Snapshot is what the governor does, for operators and for autoscaling.
type Snapshot struct {
	Step     Step
	Pressure float64 // longest predicted wait by what is allowed
	Waiting  int64   // requests
	Bytes    int64   // of waiting requests
	Tickets  int     // out
	Accounts int     // tenants whose service is counted
	Pools    []PoolState
	Models   map[ModelClass]ModelState
}

// ModelClass names a class of a model.
type ModelClass struct {
	Model string
	Class inference.Class
}

// ModelState is a class of a model's part of a Snapshot.
type ModelState struct {
	Waiting int // requests
	Tickets int // out
}

// PoolState is a pool's part of a Snapshot. Work is in tokens: prompts and expected
// answers. What several pools could do counts for the first.
type PoolState struct {
	Name     string
	InFlight int64
	Limit    int64   // sum of the learned limits; 0 is not known
	Waiting  int     // requests
	Held     float64 // work waiting
	Refused  float64 // work refused so far
	Unmet    float64 // work that has waited in vain so far
}

// Snapshot returns the present state.
func (g *Governor) Snapshot() Snapshot {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Snapshot{Step: g.Step(), Pressure: math.Float64frombits(g.count.pressure.Load()), Waiting: g.waiting.Load(), Bytes: g.mu.bytes, Accounts: len(g.mu.accounts)}
	s.Models = make(map[ModelClass]ModelState)
	held := make(map[*pool]*PoolState)
	for _, p := range g.mu.pools {
		st := &PoolState{Name: p.fleet.Name, InFlight: p.fleet.Live.InFlight(), Refused: p.refused, Unmet: p.unmet}
		for _, i := range p.fleet.Instances {
			limit, _, _ := i.Live.Limits()
			st.Limit += limit
		}
		held[p] = st
	}
	for _, l := range *g.lanes.Load() {
		st := held[l.pools[0]]
		st.Waiting += l.waiting
		for c := range l.class {
			q := &l.class[c]
			key := ModelClass{l.model, inference.Class(c)}
			m := s.Models[key]
			s.Models[key] = ModelState{m.Waiting + q.n, m.Tickets + len(q.pledges.out)}
			s.Tickets += len(q.pledges.out)
			st.Held += q.held + float64(q.n)*value(&l.learned.output, firstOutput)
		}
	}
	for _, st := range held {
		s.Pools = append(s.Pools, *st)
	}
	slices.SortFunc(s.Pools, func(a, b PoolState) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Idle says whether nothing waits and every account, lane and lease counter is
// back at zero.
func (g *Governor) Idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting.Load() != 0 || g.mu.bytes != 0 {
		return false
	}
	for _, l := range *g.lanes.Load() {
		if l.waiting != 0 {
			return false
		}
	}
	for _, a := range g.mu.accounts {
		if a.waiting != 0 || len(a.queues) != 0 {
			return false
		}
	}
	return true
}
