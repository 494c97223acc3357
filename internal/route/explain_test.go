package route_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

func TestExplain(t *testing.T) {
	spare := pool("spare", 1, 0)
	spare.Backup = true
	f := routetest.Fleet(t, region("eu", pool("gpu", 2, 2), spare), region("us", pool("far", 1, 0)))
	for i, r := range f.Snapshot().Regions {
		r.Live.ObserveRoundTrip(time.Duration(1+40*i) * time.Millisecond)
	}
	at(t, f, "gpu0:1").Live.SetDraining(true)
	routetest.Hold(t, at(t, f, "gpu1:1"), 1, ask("m"))
	r := newRouter(t, route.Default(), map[string]route.TierConfig{"eu/gpu": sticky(route.AffinityConfig{By: "user"})}, f)
	plan, got, err := r.Explain(context.Background(), ask("m"))
	if err != nil {
		t.Fatal(err)
	}
	want := []route.Step{
		{Node: "eu", Policy: "latency", Load: 1, Tokens: 100, Chosen: true},
		{Node: "eu/gpu", Policy: "least_request", Load: 1, Tokens: 100, Chosen: true},
		{Node: "eu/gpu/gpu0:1", Policy: "round_robin", Affinity: "user", Status: fleet.Draining},
		{Node: "eu/gpu/gpu1:1", Policy: "round_robin", Affinity: "user", Load: 1, Tokens: 100, Chosen: true},
		{Node: "eu/spare", Policy: "least_request", Backup: true},
		{Node: "eu/spare/spare0:1", Policy: "least_request"},
		{Node: "us", Policy: "latency"},
		{Node: "us/far", Policy: "least_request"},
		{Node: "us/far/far0:1", Policy: "least_request"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
	if n := at(t, f, "gpu1:1").Live.InFlight(); n != 1 {
		t.Errorf("explaining took a slot: %d in flight", n)
	}
	if plan.Candidates[0].Pool.Name != "eu/gpu" {
		t.Errorf("the plan begins with %s", plan.Candidates[0].Pool.Name)
	}
	if plan, steps, err := r.Explain(context.Background(), ask("unknown")); err == nil || plan.Request.Model != "unknown" || len(steps) > 0 {
		t.Errorf("an unknown model: got %+v, %v, %v", plan, steps, err)
	}
	r.Steer(acts(route.Action{Pools: map[string]int{"none": 1}, Strict: true, Class: "batch"}), nil)
	if plan, _, err := r.Explain(context.Background(), ask("m")); err == nil || plan.Rule != "r" || plan.Request.Class != inference.Batch || len(plan.Candidates) > 0 {
		t.Errorf("a rule that leaves nowhere: got %+v, %v", plan, err)
	}
}
