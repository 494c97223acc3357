// Package routetest is the conformance suite of route.Policy. Every policy, the
// built-in ones and those that come later, passes TestPolicy; its own behaviour is
// tested next to it. The package also has the fixtures that such tests need: real
// nodes of a real fleet in every state.
package routetest

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/route"
)

// Option says what else a policy promises.
type Option func(*suite)

// Weighted says that held requests spread over idle nodes by weight, each share
// within the given fraction of its due.
func Weighted(tolerance float64) Option {
	return func(s *suite) { s.tolerance = tolerance }
}

// Deterministic says that a request's node follows from the request and the nodes
// alone, and that few requests move when a node leaves.
func Deterministic() Option {
	return func(s *suite) { s.deterministic = true }
}

// suite is one run for one policy.
type suite struct {
	create        func() route.Policy
	tolerance     float64
	deterministic bool
}

// TestPolicy checks what route.Policy promises. create makes a new policy each
// time.
func TestPolicy(t *testing.T, create func() route.Policy, opts ...Option) {
	t.Helper()
	s := &suite{create: create}
	for _, o := range opts {
		o(s)
	}
	t.Run("empty", s.empty)
	t.Run("one", s.one)
	t.Run("states", s.states)
	t.Run("last_open", s.lastOpen)
	t.Run("tried", s.tried)
	t.Run("panic", s.panicking)
	t.Run("reach", s.reach)
	t.Run("lists", s.lists)
	t.Run("race", s.race)
	t.Run("allocations", s.allocations)
	if s.tolerance > 0 {
		t.Run("weights", s.weights)
	}
	if s.deterministic {
		t.Run("determinism", s.determinism)
		t.Run("stability", s.stability)
	}
}

// empty picks among nothing.
func (s *suite) empty(t *testing.T) {
	for name, nodes := range map[string][]*fleet.Node{"nil": nil, "none": {}} {
		if got := s.create().Pick(Query(1), nodes); got != -1 {
			t.Errorf("%s: got %d, want -1", name, got)
		}
	}
}

// one picks the only node, open and closed.
func (s *suite) one(t *testing.T) {
	p, nodes := s.create(), Nodes(t, 1)
	if got := p.Pick(Query(1), nodes); got != 0 {
		t.Errorf("open: got %d, want 0", got)
	}
	nodes[0].Live.SetDraining(true)
	if got := p.Pick(Query(1), nodes); got != -1 {
		t.Errorf("draining: got %d, want -1", got)
	}
}

// closers put an instance into each state in which it takes nothing.
func closers(t *testing.T) map[fleet.Status]func(*fleet.Instance) {
	now := time.Now().UnixNano()
	later := now + int64(time.Hour)
	return map[fleet.Status]func(*fleet.Instance){
		fleet.Full:     func(i *fleet.Instance) { Hold(t, i, int(i.Capacity), Request(0)) },
		fleet.Cooling:  func(i *fleet.Instance) { i.Live.Cool(later) },
		fleet.Ejected:  func(i *fleet.Instance) { i.Live.Eject(later) },
		fleet.Draining: func(i *fleet.Instance) { i.Live.SetDraining(true) },
		fleet.Down:     func(i *fleet.Instance) { i.Live.SetDown(true, now) },
	}
}

// capped returns n targets that take two requests each.
func capped(n int) []fleet.Target {
	targets := Targets(n)
	for i := range targets {
		targets[i].MaxInFlight = 2
	}
	return targets
}

// states closes nodes one after the other; none of them is picked from then on.
func (s *suite) states(t *testing.T) {
	for status, closeIt := range closers(t) {
		t.Run(status.String(), func(t *testing.T) {
			pool, p := Pool(t, capped(7)...), s.create()
			nodes, _ := pool.Nodes()
			for gone := range nodes {
				closeIt(pool.Instances[gone])
				if got := nodes[gone].Status(time.Now().UnixNano()); got != status {
					t.Fatalf("fixture: node is %v", got)
				}
				for n := range uint64(100) {
					q := Query(n)
					i := p.Pick(q, nodes)
					if gone == len(nodes)-1 {
						if i != -1 {
							t.Fatalf("nothing open: got %d, want -1", i)
						}
					} else if i < 0 || i >= len(nodes) || !q.Open(nodes[i]) {
						t.Fatalf("%d closed: got %d", gone+1, i)
					}
				}
			}
		})
	}
}

// lastOpen finds the one open node among many closed ones, wherever it stands.
func (s *suite) lastOpen(t *testing.T) {
	nodes, p := Nodes(t, 70), s.create()
	for _, n := range nodes {
		n.Live.SetDraining(true)
	}
	for want, n := range nodes {
		n.Live.SetDraining(false)
		for k := range uint64(5) {
			if got := p.Pick(Query(k), nodes); got != want {
				t.Fatalf("got %d, want %d", got, want)
			}
		}
		n.Live.SetDraining(true)
	}
}

// tried picks no node that was tried, until none is left.
func (s *suite) tried(t *testing.T) {
	pool, p := Pool(t, Targets(5)...), s.create()
	nodes, _ := pool.Nodes()
	for n := range uint64(50) {
		q := Query(n)
		seen := make(map[int]bool)
		for range nodes {
			i := p.Pick(q, nodes)
			if i < 0 || seen[i] {
				t.Fatalf("got %d after %v", i, seen)
			}
			seen[i] = true
			q.Tried = append(q.Tried, pool.Instances[i])
		}
		if i := p.Pick(q, nodes); i != -1 {
			t.Fatalf("all tried: got %d, want -1", i)
		}
	}
}

// panicking uses ejected nodes when nothing else is left.
func (s *suite) panicking(t *testing.T) {
	nodes, p := Nodes(t, 3), s.create()
	for _, n := range nodes {
		n.Live.Eject(time.Now().Add(time.Hour).UnixNano())
	}
	q := Query(1)
	q.Panic = true
	if i := p.Pick(q, nodes); i < 0 {
		t.Errorf("got %d, want an ejected node", i)
	}
}

// reach checks that different requests get to every one of equal, idle nodes.
func (s *suite) reach(t *testing.T) {
	nodes, p := Nodes(t, 5), s.create()
	seen := make(map[int]int)
	for n := range uint64(500) {
		seen[p.Pick(Query(n), nodes)]++
	}
	for i := range nodes {
		if seen[i] == 0 {
			t.Errorf("node %d was never picked: %v", i, seen)
		}
	}
}

// lists changes the list of nodes at every pick, as models and reloads do.
func (s *suite) lists(t *testing.T) {
	nodes, p := Nodes(t, 12), s.create()
	for n := range uint64(200) {
		from := int(n) % 6
		list := append([]*fleet.Node(nil), nodes[from:from+1+int(n)%7]...)
		if i := p.Pick(Query(n), list); i < 0 || i >= len(list) {
			t.Fatalf("got %d of %d", i, len(list))
		}
	}
}

// race picks and learns from many goroutines while states and loads change. The
// race detector judges; no pick may leave the list.
func (s *suite) race(t *testing.T) {
	pool, p := Pool(t, Targets(8)...), s.create()
	nodes, _ := pool.Nodes()
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			for n := range uint64(300) {
				q := Query(g<<32 | n%20)
				i := p.Pick(q, nodes)
				if i < -1 || i >= len(nodes) {
					t.Errorf("got %d", i)
					return
				}
				if o, ok := p.(route.Observer); ok && i >= 0 {
					o.Observe(q.Request, nodes[i], usage(1000, int64(n%2)*900))
				}
			}
		})
	}
	wg.Go(func() {
		for n := range 300 {
			live := nodes[n%len(nodes)].Live
			now := time.Now().UnixNano()
			live.SetDraining(n%3 == 0)
			live.SetDown(n%5 == 0, now)
			live.ObserveTTFT(now, time.Duration(n)*time.Millisecond)
			live.ObserveRoundTrip(time.Duration(n) * time.Microsecond)
			Hold(t, pool.Instances[7], 1, Request(0))()
			nodes[7].Live.SetDown(false, now)
			nodes[7].Live.SetDraining(false)
		}
	})
	wg.Wait()
}

// allocations counts what a pick leaves on the heap: nothing.
func (s *suite) allocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	nodes, p := Nodes(t, 64), s.create()
	queries := make([]*fleet.Query, 32)
	for i := range queries {
		queries[i] = Query(uint64(i))
	}
	for closed, name := range map[int]string{0: "open", 60: "mostly_closed"} {
		for _, n := range nodes[:closed] {
			n.Live.SetDraining(true)
		}
		n := 0
		got := testing.AllocsPerRun(200, func() {
			p.Pick(queries[n%len(queries)], nodes)
			n++
		})
		if got != 0 {
			t.Errorf("%s: got %v allocations a pick, want 0", name, got)
		}
		for _, n := range nodes[:closed] {
			n.Live.SetDraining(false)
		}
	}
}

// weights holds requests on nodes of different weights and compares the shares.
func (s *suite) weights(t *testing.T) {
	targets := Targets(4)
	total := 0
	for i, w := range []int{1, 2, 3, 4} {
		targets[i].Weight = w
		total += w
	}
	pool, p := Pool(t, targets...), s.create()
	const held = 4000
	for n := range uint64(held) {
		plan := fleet.NewPlan(Request(n))
		plan.Candidates = append(plan.Candidates, fleet.Candidate{Pool: pool, Model: "m", Picker: p})
		l, err := plan.Acquire(time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Release(time.Now())
	}
	for _, i := range pool.Instances {
		got, want := float64(i.Live.InFlight()), held*float64(i.Weight)/float64(total)
		if math.Abs(got-want) > s.tolerance*want {
			t.Errorf("weight %d: got %v requests, want %v within %v%%", i.Weight, got, want, 100*s.tolerance)
		}
	}
}

// determinism compares two policies that never met, on two fleets of the same
// names.
func (s *suite) determinism(t *testing.T) {
	a, b := Nodes(t, 9), Nodes(t, 9)
	p, other := s.create(), s.create()
	for n := range uint64(300) {
		q, q2 := Query(n), Query(n)
		q2.Rand = ^q.Rand
		if got, want := other.Pick(q2, b), p.Pick(q, a); got != want {
			t.Fatalf("request %d: got %d and %d", n, want, got)
		}
	}
}

// stability takes one of ten nodes away: its requests move, the others stay, and
// all return with it.
func (s *suite) stability(t *testing.T) {
	nodes, p := Nodes(t, 10), s.create()
	before := make(map[uint64]int)
	for n := range uint64(1000) {
		before[n] = p.Pick(Query(n), nodes)
	}
	nodes[3].Live.SetDraining(true)
	to := make(map[int]bool)
	for n, home := range before {
		got := p.Pick(Query(n), nodes)
		if home != 3 && got != home {
			t.Fatalf("request %d moved from %d to %d", n, home, got)
		}
		if home == 3 {
			to[got] = true
		}
	}
	if len(to) < 5 {
		t.Errorf("the node's requests went to %d others only", len(to))
	}
	nodes[3].Live.SetDraining(false)
	for n, home := range before {
		if got := p.Pick(Query(n), nodes); got != home {
			t.Fatalf("request %d did not return to %d: got %d", n, home, got)
		}
	}
}
