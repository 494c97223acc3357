package route_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

// configs is one valid configuration for each built-in policy.
var configs = map[string]route.PolicyConfig{
	"round_robin":     {Policy: "round_robin"},
	"least_request":   {Policy: "least_request"},
	"power_of_two":    {Policy: "power_of_two"},
	"peak_ewma":       {Policy: "peak_ewma"},
	"ip_hash":         {Policy: "ip_hash"},
	"consistent_hash": {Policy: "consistent_hash"},
	"prefix_affinity": {Policy: "prefix_affinity", PrefixAffinity: route.PrefixConfig{Blocks: 1024}},
	"random":          {Policy: "random"},
	"latency":         {Policy: "latency"},
}

// create builds a policy from a valid configuration.
func create(tb testing.TB, cfg route.PolicyConfig) route.Policy {
	tb.Helper()
	p, err := route.NewPolicy(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestBuiltin(t *testing.T) {
	opts := map[string][]routetest.Option{
		"round_robin":     {routetest.Weighted(0.01)},
		"least_request":   {routetest.Weighted(0.01)},
		"power_of_two":    {routetest.Weighted(0.05)},
		"peak_ewma":       {routetest.Weighted(0.01)},
		"ip_hash":         {routetest.Weighted(0.15), routetest.Deterministic()},
		"consistent_hash": {routetest.Weighted(0.26), routetest.Deterministic()},
		"prefix_affinity": {routetest.Weighted(0.05)},
		"random":          {routetest.Weighted(0.15)},
		"latency":         {routetest.Weighted(0.01)},
	}
	if len(configs) != len(route.Builtin()) {
		t.Errorf("%d policies are tested, %d are built in", len(configs), len(route.Builtin()))
	}
	for name := range route.Builtin() {
		t.Run(name, func(t *testing.T) {
			cfg, ok := configs[name]
			if !ok {
				t.Fatal("no configuration to test with")
			}
			routetest.TestPolicy(t, func() route.Policy { return create(t, cfg) }, opts[name]...)
		})
	}
}

func TestUnknownPolicyListsTheKnown(t *testing.T) {
	_, err := route.NewPolicy(route.PolicyConfig{Policy: "nearest"})
	if err == nil || !strings.Contains(err.Error(), `"nearest"`) || !strings.Contains(err.Error(), "latency, least_request") {
		t.Errorf("got %v", err)
	}
	if p, err := route.NewPolicy(route.PolicyConfig{}); err != nil || p != (route.LeastRequest{}) {
		t.Errorf("no name: got %T, %v; want the default", p, err)
	}
}

func BenchmarkPick(b *testing.B) {
	for name, cfg := range configs {
		for _, n := range []int{4, 64} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				p, nodes, q := create(b, cfg), routetest.Nodes(b, n), routetest.Query(1)
				b.ReportAllocs()
				for b.Loop() {
					q.Rand += 0x9e3779b97f4a7c15
					if p.Pick(q, nodes) < 0 {
						b.Fatal("nothing open")
					}
				}
			})
		}
	}
}
