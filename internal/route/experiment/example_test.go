package experiment_test

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
)

// A canary gets a tenth of the traffic. Its servers break one request in four, and it
// is rolled back.
func Example() {
	cfg := experiment.Default()
	cfg.Name = "new-servers"
	cfg.Arms = []experiment.Arm{
		{Name: "control", Weight: 90},
		{Name: "canary", Weight: 10, Then: route.Action{Pools: map[string]int{"eu/next": 1}}},
	}
	set, err := experiment.New([]experiment.Config{cfg}, experiment.Parts{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Now()
	for i := range 1000 {
		now = now.Add(10 * time.Millisecond)
		req := &inference.Request{ID: fmt.Sprintf("req-%d", i), Received: now}
		d := set.Steer(now, req)
		rec := &inference.Record{Request: req, Arm: d.Arm, Complete: true, TTFT: time.Second, Attempts: make([]inference.Attempt, 1)}
		if d.Action != nil && i%4 == 0 {
			rec.Code = inference.CodeUpstreamError
		}
		set.Observe(rec)
	}
	status := set.Status(now)[0]
	fmt.Println(status.State.State, status.Share, status.Arms[1].Errors["upstream_error"] > 3)
	// Output: rolled_back 0 true
}
