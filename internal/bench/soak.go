package bench

import (
	"context"
	"time"
)

// Constants of soak: short streams at a rate that two cores carry together with
// engines and clients.
const (
	soakRate   = 800.0
	soakTokens = 8
)

// playSoak sends many streams, none of which may break.
func playSoak(ctx context.Context, r *rig) error {
	if err := r.start(ctx, 2, "--step-base", "5ms", "--step-per-seq", "5us", "--step-per-prompt-token", "1us", "--max-seqs", "512"); err != nil {
		return err
	}
	r.say("%d streams of %d tokens at %.0f/s", r.Count, soakTokens, soakRate)
	cfg := r.config("streams", soakRate, time.Duration(float64(r.Count)/soakRate*float64(time.Second)))
	cfg.Schedule.Arrivals = "uniform"
	cfg.Request.PromptTokens, cfg.Request.OutputTokens = 32, soakTokens
	systems, err := r.play(ctx, job{cfg: cfg})
	if err != nil {
		return err
	}
	s := systems[0]
	r.expect("streams", float64(s.Offered), AtLeast, float64(r.Count), "")
	r.expect("streams broken", float64(failures(s)), Exactly, 0, "")
	return r.expectZero(ctx)
}
