package bench

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/route/experiment"
)

// The load of `bench canary`: both arms get 10 requests a second, and one answer of
// twenty of the canary's servers is an error.
const (
	canaryRate   = 20.0
	canaryFaults = `{"error":{"probability":0.05,"status":500}}`
	canaryWithin = 60 * time.Second
)

// playCanary waits for an experiment to roll back by itself.
func playCanary(ctx context.Context, r *rig) error {
	flags := []string{"--step-base", "5ms", "--step-per-seq", "10us"}
	var err error
	if r.engines, err = startEngines(ctx, r.Binary, 2, r.Err, flags...); err != nil {
		return err
	}
	broken, err := startEngines(ctx, r.Binary, 1, r.Err, append(flags, "--faults", canaryFaults)...)
	if err != nil {
		return err
	}
	defer broken.stop()
	sections := `route: {experiments: [{name: canary, arms: [{name: control, weight: 1}, {name: canary, weight: 1, then: {pools: {canary: 1}}}]}]}`
	if err := r.serve(ctx, sections, poolOf("stable", r.engines.urls()), poolOf("canary", broken.urls(), "backup: true")); err != nil {
		return err
	}
	began := time.Now()
	watched, stop := context.WithCancel(ctx)
	defer stop()
	found := make(chan experiment.Status, 1)
	failed := make(chan error, 1)
	go func() { // ends with watched
		s, err := r.rolledBack(watched)
		failed <- err
		found <- s
	}()
	cfg := r.config("canary", canaryRate, r.Duration)
	cfg.Request.Streamed, cfg.Request.PromptTokens, cfg.Request.OutputTokens = 0.5, 32, 8
	r.say("%.0f requests/s for %v, half of them to a canary of whose answers 5%% are errors", canaryRate, r.Duration)
	systems, err := r.play(ctx, job{cfg: cfg})
	if err != nil {
		return err
	}
	stop()
	if err := <-failed; err != nil {
		return err
	}
	status := <-found
	at := canaryWithin + time.Second
	if status.State.State == experiment.RolledBack {
		at = status.Since.Sub(began)
		r.say("rolled back after %.1fs: %s", at.Seconds(), status.Reason)
	}
	r.expect("time until the canary rolled back", at.Seconds(), AtMost, canaryWithin.Seconds(), "s")
	r.expect("characters of its reason", float64(len(status.Reason)), AtLeast, 20, "")
	before, err := r.gateway.metrics(ctx, broken.urls()[0])
	if err != nil {
		return err
	}
	for range 50 {
		res, err := r.post(ctx, &http.Transport{DisableKeepAlives: true}, false, 1)
		if err != nil {
			return err
		}
		res.Body.Close()
	}
	after, err := r.gateway.metrics(ctx, broken.urls()[0])
	if err != nil {
		return err
	}
	r.expect("requests to the canary afterwards", after.sum("vllm:request_success_total")-before.sum("vllm:request_success_total"), Exactly, 0, "")
	r.expect("failures beside the canary's errors", float64(failures(systems[0], "upstream_error", "injected_fault")), Exactly, 0, "")
	return r.expectZero(ctx)
}

// rolledBack polls until the experiment has rolled back, or ctx ends.
func (r *rig) rolledBack(ctx context.Context) (s experiment.Status, err error) {
	for ctx.Err() == nil {
		text, err := r.gateway.get(ctx, r.gateway.admin+"/admin/experiments")
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return s, err
		}
		var page admin.ExperimentList
		if err := json.Unmarshal(text, &page); err != nil {
			return s, err
		}
		if len(page.Experiments) > 0 {
			s = page.Experiments[0]
		}
		if s.State.State == experiment.RolledBack {
			break
		}
		_ = pause(ctx, 200*time.Millisecond) // the loop sees the end
	}
	return s, nil
}
