package admission_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// newGovernor is a governor over n idle instances, and a plan for a request.
func newGovernor(tb testing.TB, n int, cfg admission.Config) (*admission.Governor, *fleet.Fleet, func() *fleet.Plan) {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	f := fleet.New(log)
	pool := fleet.PoolLayout{Name: "p", Weight: 1, Models: map[string]string{"m": "m"}, Surfaces: inference.Surfaces()}
	for i := range n {
		pool.Static = append(pool.Static, fleet.Target{URL: fmt.Sprintf("http://i%d:1", i), Weight: 1})
	}
	if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "r", Weight: 1, Pools: []fleet.PoolLayout{pool}}}}); err != nil {
		tb.Fatal(err)
	}
	g := admission.New(cfg, f, nil, log)
	picker, err := route.NewPolicy(route.DefaultTier().PolicyConfig)
	if err != nil {
		tb.Fatal(err)
	}
	req := &inference.Request{
		Surface: inference.Chat, Tenant: "t", Received: time.Now(), Deadline: time.Now().Add(time.Hour),
		Fields: inference.Fields{Model: "m", Stream: true, PromptBytes: 400},
	}
	return g, f, func() *fleet.Plan {
		p := fleet.NewPlan(req)
		p.Candidates = append(p.Candidates, fleet.Candidate{Pool: f.Snapshot().Regions[0].Pools[0], Model: "m", Picker: picker})
		return p
	}
}

// BenchmarkEnter is a slot taken and given back while nothing waits. The plan is
// the router's work and is not counted.
func BenchmarkEnter(b *testing.B) {
	for _, n := range []int{1, 4, 64} {
		b.Run(fmt.Sprintf("instances=%d", n), func(b *testing.B) {
			g, _, plan := newGovernor(b, n, admission.Default())
			p, now := plan(), time.Now()
			b.ReportAllocs()
			for b.Loop() {
				lease, _, err := g.Enter(now, p, nil, nil)
				if err != nil || lease == nil {
					b.Fatal("no lease", err)
				}
				lease.FirstToken(now, time.Millisecond, true)
				lease.Verdict = inference.VerdictOK
				lease.Release(now)
			}
		})
	}
}

// BenchmarkToken is one token of a stream.
func BenchmarkToken(b *testing.B) {
	g, _, plan := newGovernor(b, 1, admission.Default())
	now := time.Now()
	lease, _, err := g.Enter(now, plan(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	lease.FirstToken(now, time.Millisecond, true)
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(40 * time.Millisecond)
		lease.Token(now)
	}
}

// BenchmarkPick is the choice among 64 instances with room, as the lane makes it.
func BenchmarkPick(b *testing.B) {
	_, f, plan := newGovernor(b, 64, admission.Default())
	p := plan()
	pool := f.Snapshot().Regions[0].Pools[0]
	nodes, _ := pool.Nodes()
	q := &fleet.Query{Request: p.Request, Now: time.Now().UnixNano()}
	b.ReportAllocs()
	for b.Loop() {
		q.Rand += 0x9e3779b97f4a7c15
		if p.Candidates[0].Picker.Pick(q, nodes) < 0 {
			b.Fatal("nothing was picked")
		}
	}
}

// BenchmarkRefuse is a request that is refused because it would wait too long, with
// 100 waiting.
func BenchmarkRefuse(b *testing.B) {
	cfg := admission.Default()
	cfg.Limit, cfg.StaticLimit = admission.LimitStatic, 1
	g, _, plan := newGovernor(b, 1, cfg)
	now := time.Now()
	if _, _, err := g.Enter(now, plan(), nil, nil); err != nil {
		b.Fatal(err)
	}
	for range 100 {
		_, _, _ = g.Enter(now, plan(), nil, func(*admission.Waiter) {}) // most are refused too
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := g.Enter(now, plan(), nil, nil); err == nil {
			b.Fatal("not refused")
		}
	}
}
