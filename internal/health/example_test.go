package health_test

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/inference"
)

func ExampleMonitor_Observe() {
	log := slog.New(slog.DiscardHandler)
	f := fleet.New(log)
	_ = f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Static: []fleet.Target{{URL: "http://a:8000"}, {URL: "http://b:8000"}},
	}}}}})
	m := health.New(f, log)
	_ = m.Apply(map[string]health.Pool{"eu/gpu": {Config: health.Default(), Metrics: health.DefaultMetrics()}})

	a, _ := f.Snapshot().Instance("a:8000")
	m.Observe(&fleet.Lease{Instance: a}, &inference.Failure{Verdict: inference.VerdictBroken, Reason: "connect"})
	fmt.Println(a.Status(time.Now().UnixNano()))
	// Output: ejected
}
