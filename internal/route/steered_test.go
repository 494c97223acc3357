package route_test

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/testkit"
)

// stage is a Steering that is written in place.
type stage func(req *inference.Request) route.Decision

// Steer implements route.Steering.
func (s stage) Steer(_ time.Time, req *inference.Request) route.Decision { return s(req) }

// always is a stage that decides the same for every request.
func always(d route.Decision) stage { return func(*inference.Request) route.Decision { return d } }

// acts is a stage with one action.
func acts(a route.Action) stage { return always(route.Decision{Rule: "r", Action: &a}) }

// world is a router over two regions: eu/gpu and eu/cpu serve m and small, us/gpu
// serves m alone.
func world(t testing.TB, rules, experiments route.Steering) *route.Router {
	t.Helper()
	return worldOf(t, route.Default(), rules, experiments)
}

// worldOf is a world with a configuration.
func worldOf(t testing.TB, cfg route.Config, rules, experiments route.Steering) *route.Router {
	t.Helper()
	f := fleet.New(testkit.Discard())
	both := map[string]string{"m": "m", "small": "small"}
	chat := []inference.Surface{inference.Chat}
	pool := func(name, host string, models map[string]string) fleet.PoolLayout {
		return fleet.PoolLayout{Name: name, Weight: 1, Models: models, Surfaces: chat, Static: []fleet.Target{{URL: "http://" + host}}}
	}
	if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{
		{Name: "eu", Weight: 1, Pools: []fleet.PoolLayout{pool("gpu", "a", both), pool("cpu", "b", both)}},
		{Name: "us", Weight: 1, Pools: []fleet.PoolLayout{pool("gpu", "c", map[string]string{"m": "m"})}},
	}}); err != nil {
		t.Fatal(err)
	}
	r, err := route.New(cfg, nil, f, testkit.Discard())
	if err != nil {
		t.Fatal(err)
	}
	r.Steer(rules, experiments)
	return r
}

// asks is a request for m.
func asks() *inference.Request {
	return &inference.Request{Class: inference.VIP, Header: http.Header{"X-A": {"1"}, "X-B": {"1"}}, Body: []byte("{}"), Fields: inference.Fields{Model: "m"}}
}

// pools lists a plan's candidates in order.
func pools(p *fleet.Plan) (names []string) {
	for _, c := range p.Candidates {
		names = append(names, c.Pool.Name)
	}
	return names
}

// plan plans, and fails the test where it cannot.
func plan(t testing.TB, r *route.Router, req *inference.Request) *fleet.Plan {
	t.Helper()
	p, err := r.Plan(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestActionsOrderPools(t *testing.T) {
	for name, c := range map[string]struct {
		action route.Action
		first  []string // in this order
		size   int
	}{
		"a region":               {route.Action{Region: "us"}, []string{"us/gpu"}, 3},
		"only a region":          {route.Action{Region: "us", Strict: true}, []string{"us/gpu"}, 1},
		"a pool":                 {route.Action{Pools: map[string]int{"eu/cpu": 1}}, []string{"eu/cpu"}, 3},
		"pools of a name":        {route.Action{Pools: map[string]int{"gpu": 1}, Strict: true}, nil, 2},
		"a pool of a region":     {route.Action{Region: "eu", Pools: map[string]int{"cpu": 1}}, []string{"eu/cpu", "eu/gpu", "us/gpu"}, 3},
		"only it":                {route.Action{Region: "eu", Pools: map[string]int{"cpu": 1}, Strict: true}, []string{"eu/cpu"}, 1},
		"a region that is not":   {route.Action{Region: "mars"}, nil, 3},
		"headers alone":          {route.Action{Headers: map[string]string{"X": "1"}}, nil, 3},
		"another pool's region":  {route.Action{Region: "us", Pools: map[string]int{"cpu": 1}}, []string{"us/gpu"}, 3},
		"a model of fewer pools": {route.Action{Model: "small", Pools: map[string]int{"cpu": 1}}, []string{"eu/cpu", "eu/gpu"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			got := pools(plan(t, world(t, acts(c.action), nil), asks()))
			if len(got) != c.size || !slices.Equal(got[:len(c.first)], c.first) {
				t.Errorf("got %v, want %d that begin with %v", got, c.size, c.first)
			}
		})
	}
}

// TestModelsThatStandInStayBehind the model itself, also where they are in a pool that
// is preferred.
func TestModelsThatStandInStayBehind(t *testing.T) {
	cfg := route.Default()
	cfg.Fallbacks = map[string][]string{"m": {"small"}}
	p := plan(t, worldOf(t, cfg, acts(route.Action{Pools: map[string]int{"eu/cpu": 1}}), nil), asks())
	var got []string
	for _, c := range p.Candidates {
		got = append(got, c.Pool.Name+" "+c.Fallback)
	}
	if len(got) != 5 || got[0] != "eu/cpu " || got[3] != "eu/cpu small" || got[4] != "eu/gpu small" {
		t.Errorf("got %q", got)
	}
}

func TestStrictLeavesNothing(t *testing.T) {
	_, err := world(t, acts(route.Action{Pools: map[string]int{"us/cpu": 1}, Strict: true}), nil).Plan(context.Background(), asks())
	e, ok := errors.AsType[*inference.Error](err)
	if !ok || e.Code != inference.CodeNoCapacity || e.Reason != "rule" || !e.NoRetry {
		t.Errorf("got %v", err)
	}
}

func TestPoolsAreDrawnByWeight(t *testing.T) {
	r := world(t, acts(route.Action{Pools: map[string]int{"eu/gpu": 3, "us/gpu": 1}}), nil)
	const n = 4000
	first := make(map[string]int)
	for range n {
		p := pools(plan(t, r, asks()))
		first[p[0]]++
		if p[2] != "eu/cpu" {
			t.Fatalf("the pool that is not named is not the last: %v", p)
		}
	}
	if got := first["eu/gpu"]; got < 2890 || got > 3110 || got+first["us/gpu"] != n { // 4 sigma of a binomial of 3/4
		t.Errorf("got %v, want 3 to 1", first)
	}
}

// TestAPoolThatIsDownLeavesItsShare to the others by their weights.
func TestAPoolThatIsDownLeavesItsShare(t *testing.T) {
	r := world(t, acts(route.Action{Pools: map[string]int{"eu/gpu": 60, "eu/cpu": 35, "us/gpu": 5}}), nil)
	const n = 4000
	ran := make(map[string]int)
	for i := range n {
		p := plan(t, r, asks())
		if i == 0 {
			for _, c := range p.Candidates {
				c.Pool.Instances[0].Live.SetDraining(c.Pool.Name == "eu/gpu")
			}
		}
		l, err := p.Acquire(time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ran[l.Instance.Pool.Name]++
		l.Release(time.Now())
	}
	if got := ran["us/gpu"]; got < 417 || got > 583 || got+ran["eu/cpu"] != n { // 4 sigma of a binomial of 5/40
		t.Errorf("got %v, want 1 in 8 at us/gpu and the rest at eu/cpu", ran)
	}
}

func TestActionsChangeACopy(t *testing.T) {
	req := asks()
	p := plan(t, world(t, acts(route.Action{Model: "small", Class: "batch", Headers: map[string]string{"x-a": "2", "X-B": "", "X-C": "3"}}), nil), req)
	if diff := cmp.Diff(asks(), req, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("the client's request was changed (-want +got):\n%s", diff)
	}
	got := p.Request
	if got == req || got.Model != "small" || got.Asked != "m" || got.Class != inference.Batch || p.Rule != "r" || got.Rule != "r" {
		t.Errorf("got %+v", got)
	}
	if diff := cmp.Diff(http.Header{"X-A": {"2"}, "X-C": {"3"}}, got.Header); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for asked, want := range map[inference.Class]inference.Class{inference.VIP: inference.Normal, inference.Normal: inference.Normal, inference.Batch: inference.Batch, inference.Idle: inference.Idle} {
		req := asks()
		req.Class = asked
		if got := plan(t, world(t, acts(route.Action{Class: "normal"}), nil), req).Request.Class; got != want {
			t.Errorf("%v becomes %v, want %v", asked, got, want)
		}
	}
	plain := asks()
	if p := plan(t, world(t, always(route.Decision{}), nil), plain); p.Request != plain || p.Rule != "" {
		t.Error("a decision to do nothing makes a copy")
	}
	unserved := acts(route.Action{Model: "gone"})
	if _, err := world(t, unserved, nil).Plan(context.Background(), asks()); err == nil {
		t.Error("a model that nobody serves is planned")
	}
}

func TestTheFirstActionCountsMost(t *testing.T) {
	r := world(t, always(route.Decision{
		Rule: "a,b,c", Action: &route.Action{Region: "us", Headers: map[string]string{"X-A": "first"}},
		More: []*route.Action{
			{Pools: map[string]int{"gpu": 1}, Strict: true, Headers: map[string]string{"X-A": "second", "X-C": "second"}, Model: "m"},
			{Class: "batch", Model: "small", Region: "eu", Headers: map[string]string{"X-C": "third"}},
		},
	}), nil)
	p := plan(t, r, asks())
	if got := pools(p); !slices.Equal(got, []string{"us/gpu", "eu/gpu"}) || p.Request.Model != "m" || p.Request.Asked != "" || p.Request.Class != inference.Batch {
		t.Errorf("got %v of %q instead of %q, %v", got, p.Request.Model, p.Request.Asked, p.Request.Class)
	}
	if diff := cmp.Diff(http.Header{"X-A": {"first"}, "X-B": {"1"}, "X-C": {"second"}}, p.Request.Header); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestExperimentsSeeWhatRulesDid(t *testing.T) {
	var saw string
	arm := inference.Arm{Experiment: "e", Arm: "b"}
	experiment := stage(func(req *inference.Request) route.Decision {
		saw = req.Model + " " + req.Class.String()
		return route.Decision{Arm: arm, Action: &route.Action{Region: "us", Headers: map[string]string{"X-Arm": "b"}}}
	})
	r := world(t, acts(route.Action{Class: "normal", Region: "eu", Headers: map[string]string{"X-Rule": "r"}}), experiment)
	p := plan(t, r, asks())
	if saw != "m normal" || p.Arm != arm || p.Rule != "r" || pools(p)[0] != "us/gpu" {
		t.Errorf("saw %q, got %+v %q %v", saw, p.Arm, p.Rule, pools(p))
	}
	if got := slices.Sorted(maps.Keys(p.Request.Header)); !slices.Equal(got, []string{"X-A", "X-Arm", "X-B", "X-Rule"}) {
		t.Errorf("got %v", got)
	}
	saw = ""
	background := asks()
	background.Class = inference.Idle
	if p := plan(t, r, background); saw != "" || p.Arm != (inference.Arm{}) || p.Rule != "r" {
		t.Errorf("what Spillway asks itself is part of an experiment: %+v", p.Arm)
	}
}

// TestARequestIsSteeredOnce although it is planned again, as for another attempt of a
// shared flight, or later to refresh its answer.
func TestARequestIsSteeredOnce(t *testing.T) {
	asked := 0
	r := world(t, nil, stage(func(*inference.Request) route.Decision {
		asked++
		return route.Decision{Arm: inference.Arm{Experiment: "e", Arm: "a"}, Mirror: nil, Action: &route.Action{Model: "small", Region: "eu"}}
	}))
	first := plan(t, r, asks())
	again := plan(t, r, first.Request)
	if asked != 1 || again.Request != first.Request || again.Arm != first.Arm || again.Request.Asked != "m" || again.Candidates[0].Model != "small" {
		t.Errorf("asked %d times: %+v", asked, again)
	}
}

// trials is a stage of experiments of which one arm runs.
type trials struct {
	stage
	runs inference.Arm
}

// Runs implements route.Arms.
func (t trials) Runs(arm inference.Arm) bool { return arm == t.runs }

// TestAnswersOfAnArmThatHasEnded are not made ahead any more; a client's request that
// is under way goes on.
func TestAnswersOfAnArmThatHasEnded(t *testing.T) {
	arm := inference.Arm{Experiment: "e", Arm: "a"}
	decides := always(route.Decision{Arm: arm})
	r := world(t, nil, trials{decides, arm})
	req := plan(t, r, asks()).Request
	background := *req
	background.Class = inference.Idle
	if p := plan(t, r, &background); p.Arm != arm {
		t.Errorf("while it runs: got %+v", p.Arm)
	}
	r.Steer(nil, trials{decides, inference.Arm{}})
	if _, err := r.Plan(context.Background(), &background); err == nil {
		t.Error("an answer is made ahead for an arm that has ended")
	}
	if p := plan(t, r, req); p.Arm != arm {
		t.Errorf("a request under way: got %+v", p.Arm)
	}
}

func TestAMirrorHasItsOwnPlan(t *testing.T) {
	mirror := route.Decision{Arm: inference.Arm{Experiment: "shadow", Arm: "mirror"}, Mirror: &route.Action{Pools: map[string]int{"us/gpu": 1}, Strict: true, Headers: map[string]string{"X-Shadow": "1"}}}
	r := world(t, acts(route.Action{Region: "eu"}), always(mirror))
	req := asks()
	p := plan(t, r, req)
	if p.Arm != (inference.Arm{}) || pools(p)[0] == "us/gpu" || p.Request.Header.Get("X-Shadow") != "" {
		t.Errorf("the client's own plan: %+v %v", p.Arm, pools(p))
	}
	if p.Mirror == nil || p.Mirror.Arm != mirror.Arm || !slices.Equal(pools(p.Mirror), []string{"us/gpu"}) || p.Mirror.Request.Header.Get("X-Shadow") != "1" || p.Mirror.Mirror != nil {
		t.Fatalf("the copy's plan: %+v", p.Mirror)
	}
	background := *p.Request
	background.Class = inference.Idle
	if again := plan(t, r, &background); again.Mirror != nil {
		t.Error("a refresh is mirrored too")
	}
	nowhere := route.Decision{Mirror: &route.Action{Pools: map[string]int{"us/none": 1}, Strict: true}}
	if p := plan(t, world(t, nil, always(nowhere)), asks()); p.Mirror != nil || len(p.Candidates) != 3 {
		t.Error("a mirror that is nowhere changes the client's plan")
	}
}

func BenchmarkPlanSteered(b *testing.B) {
	r := world(b, acts(route.Action{Pools: map[string]int{"eu/gpu": 3, "us/gpu": 1}, Headers: map[string]string{"X-Rule": "r"}}), nil)
	req := asks()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Plan(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}
