package bench

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// reloads is the metric that counts them.
const (
	reloadsApplied = `spillway_config_reloads_total{result="applied"}`
	reloadsRefused = `spillway_config_reloads_total{result="refused"}`
)

// playReload reloads the configuration and flaps the instance list under load.
func playReload(ctx context.Context, r *rig) error {
	var err error
	if r.engines, err = startEngines(ctx, r.Binary, 3, r.Err, "--step-base", "5ms", "--step-per-seq", "10us", "--step-per-prompt-token", "1us"); err != nil {
		return err
	}
	if err := os.Mkdir(r.path("fleet"), 0o700); err != nil {
		return err
	}
	targets := r.path("fleet/targets.json")
	if err := replaceFile(targets, targetList(r.engines.at)); err != nil {
		return err
	}
	source := fmt.Sprintf("file: {path: %q}", targets)
	if r.gateway, err = startGatewayProcess(ctx, r, source); err != nil {
		return err
	}
	before, err := r.gateway.metrics(ctx, r.gateway.admin)
	if err != nil {
		return err
	}
	r.say("%d reloads, by SIGHUP and by change of the file, and one that must be refused; the instance list changes every second, for %v", r.Count, r.Duration)
	whole := job{cfg: r.config("json", 200, r.Duration)}
	whole.cfg.Request.Streamed, whole.cfg.Request.PromptTokens, whole.cfg.Request.OutputTokens = 0, 32, 4
	streams := job{cfg: r.config("streams", 30, r.Duration), hooks: r.reloadHooks(source, targets)}
	streams.cfg.Request.PromptTokens, streams.cfg.Request.OutputTokens = 32, 250
	systems, err := r.play(ctx, whole, streams)
	if err != nil {
		return err
	}
	after, err := r.gateway.metrics(ctx, r.gateway.admin)
	if err != nil {
		return err
	}
	r.expect("answers in one piece that failed", float64(failures(systems[0])), Exactly, 0, "")
	r.expect("streams that failed", float64(failures(systems[1])), Exactly, 0, "")
	r.expect("reloads applied", after[reloadsApplied]-before[reloadsApplied], Exactly, float64(r.Count), "")
	r.expect("reloads refused", after[reloadsRefused]-before[reloadsRefused], Exactly, 1, "")
	picture, err := r.gateway.fleet(ctx)
	if err != nil {
		return err
	}
	r.expect("instances at the end", float64(len(picture.Regions[0].Pools[0].Instances)), Exactly, float64(len(r.engines.at)), "")
	return r.expectZero(ctx)
}

// targetList is an instance list in Prometheus' form.
func targetList(addrs []string) []byte {
	return fmt.Appendf(nil, "[{%s}]\n", list(`"targets"`, addrs))
}

// reloadHooks are the reloads, spread over the run, one refused reload in the
// middle, and the flapping of the instance list.
func (r *rig) reloadHooks(source, targets string) []load.Hook {
	var hooks []load.Hook
	add := func(at time.Duration, name string, do func() error) {
		hooks = append(hooks, load.Hook{At: at, Name: name, Do: func(context.Context, *load.Live) error { return do() }})
	}
	gap := r.Duration / time.Duration(r.Count+2)
	for i := range r.Count {
		add(gap/2+gap*time.Duration(i), fmt.Sprintf("reload %d", i+1), func() error {
			if err := r.gateway.configure(source, 601+i); err != nil || i%2 == 0 {
				return err
			}
			return r.gateway.signal(syscall.SIGHUP)
		})
	}
	add(r.Duration-gap*5/4, "reload that must be refused", func() error { return r.gateway.configure(source, -1) })
	flaps := int(r.Duration / time.Second)
	for i := range flaps {
		add(time.Duration(i)*time.Second+300*time.Millisecond, fmt.Sprintf("flap %d", i+1), func() error {
			list := r.engines.at
			if i%2 == 0 && i < flaps-1 { // the last one lists them all again
				out := i / 2 % len(list)
				list = append(append([]string{}, list[:out]...), list[out+1:]...)
			}
			return replaceFile(targets, targetList(list))
		})
	}
	return hooks
}
