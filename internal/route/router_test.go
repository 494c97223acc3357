package route_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

// region describes a region of pools that serve the model "m" as "m-up".
func region(name string, pools ...fleet.PoolLayout) fleet.RegionLayout {
	return fleet.RegionLayout{Name: name, Pools: pools}
}

// pool describes a pool of n instances that take max requests each.
func pool(name string, n int, max int64) fleet.PoolLayout {
	p := fleet.PoolLayout{Name: name, Models: map[string]string{"m": "m-up"}, Surfaces: []inference.Surface{inference.Chat}, MaxInFlight: max, Discovered: true}
	for i := range n {
		p.Static = append(p.Static, fleet.Target{URL: fmt.Sprintf("http://%s%d:1", name, i)})
	}
	return p
}

// by is a configuration with a policy for regions.
func by(policy string) route.Config {
	c := route.Default()
	c.Policy = policy
	return c
}

// newRouter builds a router.
func newRouter(tb testing.TB, cfg route.Config, tiers map[string]route.TierConfig, f *fleet.Fleet) *route.Router {
	tb.Helper()
	r, err := route.New(cfg, tiers, f, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// ask is a request for a model.
func ask(model string) *inference.Request {
	return &inference.Request{ID: "r", Body: make([]byte, 400), Fields: inference.Fields{Model: model}}
}

// mustPlan plans a request.
func mustPlan(tb testing.TB, r *route.Router, req *inference.Request) *fleet.Plan {
	tb.Helper()
	p, err := r.Plan(context.Background(), req)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// order writes a plan's pools down, with the model in brackets where another one
// stands in.
func order(p *fleet.Plan) string {
	var out []string
	for _, c := range p.Candidates {
		s := c.Pool.Name
		if c.Fallback != "" {
			s += "(" + c.Fallback + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// run takes a slot for a request and returns the lease, to be given back by the
// test or its end.
func run(tb testing.TB, r *route.Router, req *inference.Request) *fleet.Lease {
	tb.Helper()
	l, err := mustPlan(tb, r, req).Acquire(time.Now(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Release(time.Now()) })
	return l
}

// at finds an instance by its host.
func at(tb testing.TB, f *fleet.Fleet, host string) *fleet.Instance {
	tb.Helper()
	i, ok := f.Snapshot().Instance(host)
	if !ok {
		tb.Fatalf("no instance %s", host)
	}
	return i
}

func TestPlanOrders(t *testing.T) {
	heavy := func(p fleet.PoolLayout) fleet.PoolLayout { p.Weight = 5; return p }
	backup := func(p fleet.PoolLayout) fleet.PoolLayout { p.Backup = true; return p }
	eu := region("eu", pool("a", 1, 0), heavy(pool("b", 1, 0)), backup(pool("c", 1, 0)))
	us := region("us", pool("d", 1, 0), pool("e", 1, 0))
	spare := region("spare", pool("f", 1, 0))
	us.Weight, spare.Backup = 3, true
	f := routetest.Fleet(t, spare, eu, us)
	// Loads decide: us and b are preferred by weight.
	tests := map[string]struct {
		down []string
		busy map[string]int
		want string
	}{
		"idle":             {busy: map[string]int{"e0:1": 1}, want: "us/d us/e eu/b eu/a eu/c spare/f"},
		"by load":          {busy: map[string]int{"d0:1": 4, "b0:1": 1}, want: "us/e us/d eu/b eu/a eu/c spare/f"},
		"us is busy":       {busy: map[string]int{"d0:1": 4, "e0:1": 5, "b0:1": 0}, want: "eu/b eu/a eu/c us/d us/e spare/f"},
		"us is down":       {down: []string{"d0:1", "e0:1"}, want: "eu/b eu/a eu/c us/d us/e spare/f"},
		"b is down":        {down: []string{"d0:1", "e0:1", "b0:1"}, want: "eu/a eu/b eu/c us/d us/e spare/f"},
		"b behind":         {down: []string{"b0:1"}, busy: map[string]int{"e0:1": 1}, want: "us/d us/e eu/a eu/b eu/c spare/f"},
		"only c of eu":     {down: []string{"d0:1", "e0:1", "b0:1", "a0:1"}, want: "eu/c eu/b eu/a us/d us/e spare/f"},
		"only the backup":  {down: []string{"d0:1", "e0:1", "b0:1", "a0:1", "c0:1"}, want: "spare/f us/d us/e eu/b eu/a eu/c"},
		"nothing is open":  {down: []string{"d0:1", "e0:1", "b0:1", "a0:1", "c0:1", "f0:1"}, want: "us/d us/e eu/b eu/a eu/c spare/f"},
		"backup is closed": {down: []string{"f0:1"}, busy: map[string]int{"e0:1": 1}, want: "us/d us/e eu/b eu/a eu/c spare/f"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, host := range tt.down {
				i := at(t, f, host)
				i.Live.SetDown(true, 1)
				defer i.Live.SetDown(false, 0)
			}
			for host, n := range tt.busy {
				defer routetest.Hold(t, at(t, f, host), n, ask("m"))()
			}
			r := newRouter(t, by("least_request"), nil, f)
			p := mustPlan(t, r, ask("m"))
			if got := order(p); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if c := p.Candidates[0]; c.Model != "m-up" || c.Fallback != "" {
				t.Errorf("first candidate: %+v", c)
			}
		})
	}
}

// TestSpill is the life of an overload: nearest region first, its sibling pool,
// its backup, the next region, the backup region; and back again.
func TestSpill(t *testing.T) {
	backup := pool("spot", 1, 1)
	backup.Backup = true
	spare := region("spare", pool("cloud", 1, 1))
	spare.Backup = true
	f := routetest.Fleet(t, region("eu", pool("gpu", 2, 2), pool("cpu", 1, 2), backup), region("us", pool("far", 1, 2)), spare)
	r := newRouter(t, route.Default(), map[string]route.TierConfig{"eu": {PolicyConfig: route.PolicyConfig{Policy: "peak_ewma"}}}, f)
	for _, reg := range f.Snapshot().Regions { // the gateway is near eu, and gpu is fast
		reg.Live.ObserveRoundTrip(map[string]time.Duration{"eu": time.Millisecond, "us": 90 * time.Millisecond, "spare": 2 * time.Millisecond}[reg.Name])
	}
	now := time.Now().UnixNano()
	f.Snapshot().Regions[0].Pools[0].Live.ObserveTTFT(now, time.Millisecond)
	f.Snapshot().Regions[0].Pools[1].Live.ObserveTTFT(now, time.Hour)

	var held []*fleet.Lease
	step := func(want string, n int) {
		t.Helper()
		got := map[string]int{}
		for range n {
			l := run(t, r, ask("m"))
			held = append(held, l)
			got[l.Instance.Pool.Name]++
		}
		if d := cmp.Diff(map[string]int{want: n}, got); d != "" {
			t.Errorf("requests by pool (-want +got):\n%s", d)
		}
	}
	// One pick in 64 explores the slow pool while it is idle; keep it from that.
	cpu := at(t, f, "cpu0:1")
	cpu.Live.SetDraining(true)
	step("eu/gpu", 4)
	cpu.Live.SetDraining(false)
	step("eu/cpu", 2)
	step("eu/spot", 1)
	step("us/far", 2)
	step("spare/cloud", 1)
	_, err := mustPlan(t, r, ask("m")).Acquire(time.Now(), nil)
	var e *inference.Error
	if !errors.As(err, &e) || e.Code != inference.CodeOverloaded {
		t.Fatalf("everything full: got %v", err)
	}
	for _, l := range held[:5] { // gpu and one of cpu
		l.Release(time.Now())
	}
	cpu.Live.SetDraining(true)
	step("eu/gpu", 2) // back home, one on each; the backups are left alone
	for _, host := range []string{"gpu0:1", "gpu1:1"} {
		at(t, f, host).Live.SetDown(true, 0)
	}
	held[7].Release(time.Now()) // one of us
	step("us/far", 1)
	at(t, f, "gpu1:1").Live.SetDown(false, 0)
	step("eu/gpu", 1)
}

func TestModelsAndSurfaces(t *testing.T) {
	embed := fleet.PoolLayout{Name: "embed", Models: map[string]string{"e": "e5", "m": "big"}, Surfaces: []inference.Surface{inference.Embeddings, inference.Completions}, Static: []fleet.Target{{URL: "http://e:1"}}}
	mute := fleet.PoolLayout{Name: "mute", Models: map[string]string{"z": "z"}}
	f := routetest.Fleet(t, region("eu", pool("gpu", 1, 0), embed, mute), region("us", pool("gpu", 1, 0)))
	r := newRouter(t, by("round_robin"), nil, f)
	tests := map[string]struct {
		model   string
		surface inference.Surface
		want    string // the plan, or what the error says
	}{
		"chat":          {"m", inference.Chat, "eu/gpu us/gpu"},
		"other surface": {"m", inference.Embeddings, "eu/embed"},
		"one pool":      {"e", inference.Completions, "eu/embed"},
		"wrong surface": {"e", inference.Chat, `the model "e" is not served on chat, but on completions, embeddings`},
		"no surface":    {"z", inference.Chat, `the model "z" is not served on any surface`},
		"bad surface":   {"m", inference.Surface(99), `the model "m" is not served on unknown, but on chat, completions, embeddings`},
		"unknown":       {"q", inference.Chat, `the model "q" is not served here`},
		"long":          {strings.Repeat("é", 10_000), inference.Chat, `the model "` + strings.Repeat("é", 64) + `..." is not served here`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			req := ask(tt.model)
			req.Surface = tt.surface
			p, err := r.Plan(context.Background(), req)
			if err == nil {
				if got := order(p); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
				return
			}
			var e *inference.Error
			if !errors.As(err, &e) || e.Code != inference.CodeModelNotFound || e.Param != "model" || e.Message != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

func TestRegionIsOpenOnlyThroughPoolsThatServe(t *testing.T) {
	other := pool("other", 1, 0)
	other.Models = map[string]string{"x": "x"}
	f := routetest.Fleet(t, region("eu", pool("gpu", 1, 0), other), region("us", pool("far", 1, 0)))
	f.Snapshot().Regions[0].Live.ObserveRoundTrip(time.Millisecond)
	f.Snapshot().Regions[1].Live.ObserveRoundTrip(time.Second)
	at(t, f, "gpu0:1").Live.SetDraining(true)
	r := newRouter(t, route.Default(), nil, f)
	if got, want := order(mustPlan(t, r, ask("m"))), "us/far eu/gpu"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFallbacks(t *testing.T) {
	small := pool("small", 1, 0)
	small.Models = map[string]string{"s": "s-up"}
	tiny := pool("tiny", 1, 0)
	tiny.Models = map[string]string{"t": "t-up"}
	f := routetest.Fleet(t, region("eu", pool("gpu", 1, 1), small), region("us", tiny))
	cfg := by("least_request")
	cfg.Fallbacks = map[string][]string{"m": {"s", "unknown", "t"}, "s": {"m"}, "alias": {"t"}, "void": {"unknown"}}
	r := newRouter(t, cfg, nil, f)
	for model, want := range map[string]string{
		"m": "eu/gpu eu/small(s) us/tiny(t)", "s": "eu/small eu/gpu(m)", "t": "us/tiny", "alias": "us/tiny(t)",
	} {
		if got := order(mustPlan(t, r, ask(model))); got != want {
			t.Errorf("%s: got %s, want %s", model, got, want)
		}
	}
	if _, err := r.Plan(context.Background(), ask("void")); err == nil {
		t.Error("a model whose fallbacks nobody serves was planned")
	}
	run(t, r, ask("m"))
	l := run(t, r, ask("m"))
	if c := l.Candidate; c.Pool.Name != "eu/small" || c.Fallback != "s" || c.Model != "s-up" {
		t.Errorf("full: got %+v", c)
	}
}

func TestFallbacksAreBalanced(t *testing.T) {
	var pools []fleet.PoolLayout
	for _, name := range []string{"x", "y", "z"} {
		p := pool(name, 1, 0)
		p.Models = map[string]string{"s": "s"}
		pools = append(pools, p)
	}
	f := routetest.Fleet(t, region("eu", append(pools, pool("gpu", 1, 0))...))
	cfg := route.Default()
	cfg.Fallbacks = map[string][]string{"m": {"s"}}
	r := newRouter(t, cfg, map[string]route.TierConfig{"eu": {PolicyConfig: route.PolicyConfig{Policy: "round_robin"}}}, f)
	gpu := at(t, f, "gpu0:1").Live
	got := map[string]int{}
	for range 6 {
		if o := order(mustPlan(t, r, ask("m"))); o != "eu/gpu eu/x(s) eu/y(s) eu/z(s)" {
			t.Fatalf("open: got %s", o)
		}
		gpu.SetDraining(true)
		l := run(t, r, ask("m"))
		l.Release(time.Now())
		got[l.Instance.Pool.Name]++
		gpu.SetDraining(false)
	}
	if d := cmp.Diff(map[string]int{"eu/x": 2, "eu/y": 2, "eu/z": 2}, got); d != "" {
		t.Errorf("requests by pool (-want +got):\n%s", d)
	}
}

func TestPlanFollowsTheFleet(t *testing.T) {
	f := routetest.Fleet(t, region("eu", pool("gpu", 0, 0)))
	r := newRouter(t, route.Default(), nil, f)
	if _, err := mustPlan(t, r, ask("m")).Acquire(time.Now(), nil); err == nil {
		t.Fatal("a pool without instances gave a slot")
	}
	f.Update("eu/gpu", []fleet.Target{{URL: "http://new:1"}})
	if got := run(t, r, ask("m")).Instance.URL.Host; got != "new:1" {
		t.Errorf("got %s", got)
	}
}

func TestApplyKeepsStateOrChangesNothing(t *testing.T) {
	f := routetest.Fleet(t, region("eu", pool("gpu", 3, 0)), region("us", pool("gpu", 1, 0)))
	rr := route.TierConfig{PolicyConfig: route.PolicyConfig{Policy: "round_robin"}}
	r := newRouter(t, by("round_robin"), map[string]route.TierConfig{"eu/gpu": rr}, f)
	next := func() string { return run(t, r, ask("m")).Instance.Name }
	if got := next(); got != "eu/gpu/gpu0:1" {
		t.Fatalf("first: %s", got)
	}
	bad := by("nowhere")
	bad.Cookie.Name = "sid"
	err := r.Apply(bad, map[string]route.TierConfig{"eu": {Affinity: route.AffinityConfig{By: "fate"}}})
	if err == nil {
		t.Fatal("a wrong configuration was applied")
	}
	for _, want := range []string{"policy: ", "cookie.name: ", "eu.affinity.by: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not tell of %s\n%v", want, err)
		}
	}
	if got := next(); got != "us/gpu/gpu0:1" {
		t.Errorf("after a refused reload: %s", got)
	}
	if err := r.Apply(by("round_robin"), map[string]route.TierConfig{"eu/gpu": rr, "us/gpu": rr}); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "eu/gpu/gpu1:1" {
		t.Errorf("after a reload the turns begin anew: %s", got)
	}
}

func TestAnsweredReachesThePolicy(t *testing.T) {
	f := routetest.Fleet(t, region("eu", pool("gpu", 16, 0)))
	tiers := map[string]route.TierConfig{"eu/gpu": {
		PolicyConfig: route.PolicyConfig{Policy: "prefix_affinity"}, Affinity: route.AffinityConfig{By: "header", Header: "X-Session"},
	}}
	r := newRouter(t, route.Default(), tiers, f)
	moved := 0
	for try := range 20 {
		req := func() *inference.Request {
			return routetest.WithPrompt(ask("m"), routetest.Prompt(try, 16<<10))
		}
		var home *fleet.Lease
		for _, cached := range []int64{0, 4000, 0} { // the last answer says: it is gone
			q := req()
			home = run(t, r, q)
			r.Answered(q, home, inference.Usage{PromptTokens: 4096, CachedTokens: cached})
			home.Release(time.Now())
		}
		if l := run(t, r, req()); l.Instance != home.Instance {
			moved++
		}
	}
	if moved < 10 {
		t.Errorf("%d of 20 moved after the instance forgot them", moved)
	}
}

func TestPlanUnderRaces(t *testing.T) {
	f := routetest.Fleet(t, region("eu", pool("gpu", 0, 4), pool("cpu", 2, 4)), region("us", pool("gpu", 2, 4)))
	cfg := by("peak_ewma")
	cfg.Affinity.By = "cookie"
	r := newRouter(t, cfg, map[string]route.TierConfig{"eu/gpu": {PolicyConfig: route.PolicyConfig{Policy: "prefix_affinity"}}}, f)
	f.Update("eu/gpu", []fleet.Target{{URL: "http://x:1"}})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 300 {
				req := routetest.WithPrompt(ask("m"), routetest.Prompt(n%7, 2048))
				p, err := r.Plan(context.Background(), req)
				if err != nil {
					t.Error(err)
					return
				}
				if l, err := p.Acquire(time.Now(), nil); err == nil {
					_ = p.Cookie(l.Instance)
					r.Answered(req, l, inference.Usage{PromptTokens: 500, CachedTokens: int64(g * 100)})
					l.Release(time.Now())
				}
			}
		})
	}
	wg.Go(func() {
		for n := range 100 {
			f.Update("eu/gpu", []fleet.Target{{URL: "http://x:1"}, {URL: fmt.Sprintf("http://y%d:1", n)}}[:1+n%2])
			if err := r.Apply(cfg, nil); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	for _, reg := range f.Snapshot().Regions {
		if n := reg.Live.InFlight(); n != 0 {
			t.Errorf("%s: %d left over", reg.Name, n)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	layouts := map[string][]fleet.RegionLayout{
		"1x1x4": {region("eu", pool("a", 4, 0))},
		"2x2x4": {region("eu", pool("a", 4, 0), pool("b", 4, 0)), region("us", pool("c", 4, 0), pool("d", 4, 0))},
		"3x4x64": {region("eu", pool("a", 64, 0), pool("b", 64, 0), pool("c", 64, 0), pool("d", 64, 0)),
			region("us", pool("e", 64, 0), pool("f", 64, 0), pool("g", 64, 0), pool("h", 64, 0)),
			region("ap", pool("i", 64, 0), pool("j", 64, 0), pool("k", 64, 0), pool("l", 64, 0))},
	}
	for name, layout := range layouts {
		f := routetest.Fleet(b, layout...)
		r := newRouter(b, route.Default(), nil, f)
		req := ask("m")
		b.Run(name+"/plan", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Plan(context.Background(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/plan_acquire_release", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := r.Plan(context.Background(), req)
				if err != nil {
					b.Fatal(err)
				}
				l, err := p.Acquire(time.Now(), nil)
				if err != nil {
					b.Fatal(err)
				}
				l.Release(time.Now())
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	f := routetest.Fleet(b, region("eu", pool("a", 64, 0), pool("b", 64, 0)), region("us", pool("c", 64, 0)))
	r := newRouter(b, route.Default(), nil, f)
	cfg := route.Default()
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Apply(cfg, nil); err != nil {
			b.Fatal(err)
		}
	}
}
