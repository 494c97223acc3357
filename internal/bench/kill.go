package bench

import (
	"cmp"
	"context"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// Constants of kill: together 1,000 requests/s, most of them answers in one
// piece that take about 20 ms, a tenth streams of about 200 ms.
const (
	killJSONRate   = 900.0
	killStreamRate = 100.0
	killJSONTokens = 4
	killStream     = 40
	killFor        = 4 * time.Second
	// killBack is how long a restored instance may take to get work: the probes'
	// interval and an ejection's first length, which are 5 s each, side by side.
	killBack = 8 * time.Second
	// cutGrace covers the way of a first delta from the killed engine to the
	// client.
	cutGrace = 50 * time.Millisecond
)

// playKill kills one of three instances under load and restores it.
func playKill(ctx context.Context, r *rig) error {
	if err := r.start(ctx, 3, "--step-base", "4500us", "--step-per-seq", "10us", "--step-per-prompt-token", "1us"); err != nil {
		return err
	}
	killAt := r.Duration * 3 / 10
	restoreAt := killAt + min(killFor, r.Duration*3/10)
	r.say("three instances, %.0f requests/s for %v; one is killed (SIGKILL) at %v and restored at %v",
		(killJSONRate+killStreamRate)*cmp.Or(r.Share, 1), r.Duration, killAt, restoreAt)
	const victim = 1
	whole := job{cfg: r.config("json", killJSONRate, r.Duration)}
	whole.cfg.Request.Streamed, whole.cfg.Request.PromptTokens, whole.cfg.Request.OutputTokens = 0, 32, killJSONTokens
	streams := job{cfg: r.config("streams", killStreamRate, r.Duration), hooks: []load.Hook{
		{At: killAt, Name: "kill", Do: func(_ context.Context, live *load.Live) error {
			_, err := live.Cut(instanceName("eu", r.engines.at[victim]), cutGrace, r.engines.all[victim].kill)
			return err
		}},
		{At: restoreAt, Name: "restore", Do: func(ctx context.Context, _ *load.Live) error { return r.engines.restart(ctx, victim) }},
	}}
	streams.cfg.Request.PromptTokens, streams.cfg.Request.OutputTokens = 32, killStream
	systems, err := r.play(ctx, whole, streams)
	if err != nil {
		return err
	}
	j, s := systems[0], systems[1]
	cut := string(inference.CodeUpstreamCut)
	r.expect("answers in one piece that failed", float64(failures(j)), Exactly, 0, "")
	r.expect("streams that failed otherwise than by upstream_cut", float64(failures(s, cut)), Exactly, 0, "")
	var open int64
	if s.CutOpen != nil {
		open = *s.CutOpen
	}
	r.expect("streams cut, at most those open on the killed instance", float64(s.Errors[cut]), AtMost, float64(open), "")
	if r.Duration-restoreAt >= killBack {
		back, err := r.gateway.metrics(ctx, r.engines.urls()[victim])
		if err != nil {
			return err
		}
		r.expect("answers of the restored instance", back.sum("vllm:request_success_total"), AtLeast, 1, "")
	}
	return r.expectZero(ctx)
}
