package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// Virtual plays the comparison, or the scenario, in virtual time.
func (o *Overload) Virtual(ctx context.Context) (*Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	mix, err := o.Mix()
	if err != nil {
		return nil, err
	}
	b := &overloadBench{Overload: o, mix: mix, result: &Result{Report: load.NewReport("overload", o.Seed), Verdicts: []Verdict{}}}
	b.terms()
	if o.Scenario != "" {
		b.result.Scenario = o.Scenario
		return b.result, b.scenarios(ctx)
	}
	if b.tuned, err = b.tune(ctx); err != nil {
		return nil, err
	}
	if err := b.compare(ctx); err != nil {
		return nil, err
	}
	return b.result, nil
}

// scenarios plays those that are asked for.
func (b *overloadBench) scenarios(ctx context.Context) error {
	for _, s := range OverloadScenarios() {
		if s.Name != b.Scenario && (b.Scenario != AllScenarios || s.Long) {
			continue
		}
		b.say("\n%s: %s", s.Name, s.About)
		if err := s.play(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

// overloadBench is a comparison under way.
type overloadBench struct {
	*Overload
	mix    Mix
	tuned  tuning
	result *Result
}

// say tells what happens now.
func (b *overloadBench) say(format string, args ...any) {
	if b.Out != nil {
		fmt.Fprintf(b.Out, format+"\n", args...)
	}
}

// terms tells what is compared, and by what.
func (b *overloadBench) terms() {
	fleet, _ := b.Fleet() // the settings are valid
	opt := NewOptimum(fleet, sloTPOT, b.mix.Lengths)
	b.say("trace %s: capacity %.2f requests/s (bounds: ITL %.3f, sequences %.3f, KV %.3f s of work per second)", b.Trace, opt.Rate, opt.ITL, opt.Sequences, opt.KV)
	b.say("objectives, which the gateway is told as admission.classes.{vip,normal,batch}.{ttft,tpot}: first token within %v, %v and %v, %v per token",
		sloVIP, sloNormal, sloBatch, sloTPOT)
}

// compare runs every system at every load.
func (b *overloadBench) compare(ctx context.Context) error {
	var systems []load.System
	for _, x := range b.Loads {
		for _, system := range b.Systems {
			sys, _, err := b.runs(ctx, b.trial(system, x))
			if err != nil {
				return err
			}
			systems = append(systems, sys)
		}
	}
	b.result.Verdicts = append(b.result.Verdicts, b.compared(systems)...)
	return nil
}

// trial is a run of a system at a load.
func (b *overloadBench) trial(system string, x float64) trial {
	return trial{Overload: b.Overload, mix: b.mix, system: system, load: x, tuned: b.tuned}
}

// runs plays a trial with every seed and reports it.
func (b *overloadBench) runs(ctx context.Context, t trial) (load.System, []*played, error) {
	return b.all(ctx, t.seeds())
}

// all plays trials of one kind, reports them as one system and requires that nothing
// leaks.
func (b *overloadBench) all(ctx context.Context, trials []trial) (load.System, []*played, error) {
	begun := time.Now()
	runs, err := playAll(ctx, trials)
	if err != nil {
		return load.System{}, nil, err
	}
	t, all := trials[0], pool(runs)
	sys := load.System{Name: t.name(), Load: t.load, DurationS: t.Duration.Seconds()}
	all.Fill(&sys)
	sys.TTFT = all.anyTTFT().latency()
	mean, half := spread(runs, func(p *played) float64 { return p.GoodputRatio })
	sys.Notes = append(sys.Notes, fmt.Sprintf("%d seeds; goodput ratio %.4f, 95%% within %.4f", len(runs), mean, half))
	if note := t.note(); note != "" {
		sys.Notes = append(sys.Notes, note)
	}
	b.result.Add(sys)
	vip := all.Classes[inference.VIP]
	b.say("%-40s %5gx  goodput/optimum %.3f (+-%.3f)  feasible %.3f  vip %.3f p50 %4.2fs p99 %4.2fs  normal %.3f  batch %.3f  jain %.3f  starved %.1fs  refused %d  (%.1fs)",
		t.name(), t.load, mean, half, all.FeasibleRatio, vip.Attainment, vip.TTFT.P50.Seconds(), vip.TTFT.P99.Seconds(),
		all.Classes[inference.Normal].Attainment, all.Classes[inference.Batch].Attainment, all.Jain, all.Starvation.Seconds(), all.Rejections.Latency.N, time.Since(begun).Seconds())
	for _, c := range []inference.Class{inference.VIP, inference.Normal, inference.Batch} {
		if f := all.missed[c]; b.Trail != nil {
			fmt.Fprintf(b.Trail, "  %s: of %d offered %d refused, %d cut, %d late, %d slow\n", c, all.Classes[c].Offered, f.refused, f.cut, f.late, f.slow)
		}
	}
	b.zero(fmt.Sprintf("%s %gx", t.name(), t.load), all.leaks)
	return sys, runs, nil
}

// anyTTFT is over all classes.
func (p *played) anyTTFT() Quantiles {
	var all []time.Duration
	for _, v := range p.ttft {
		all = append(all, v...)
	}
	return quantiles(all)
}

// name is the system's in the report.
func (t *trial) name() string {
	if t.label == "" {
		return t.system
	}
	return t.system + " (" + t.label + ")"
}

// note is what a system was set to.
func (t *trial) note() string {
	switch {
	case t.system == SystemNginx:
		return "model of nginx: " + t.tuned.nginx.String()
	case t.system == SystemHAProxy:
		return "model of HAProxy: " + t.tuned.haproxy.String()
	case t.system != SystemDirect && t.limiter(t.system) == admission.LimitStatic:
		return fmt.Sprintf("static_limit %d", t.tuned.static)
	}
	return ""
}

// zero requires that every counter is back at zero.
func (b *overloadBench) zero(where string, leaks []string) {
	if len(leaks) > 0 {
		b.say("%s: not zero: %s", where, strings.Join(leaks, ", "))
	}
	b.result.Verdicts = append(b.result.Verdicts, verdict(where+zeroVerdict, float64(len(leaks)), Exactly, 0, ""))
}

// The search for what a baseline does best with: short runs at twice the capacity
// with a seed that no other run has.
const (
	searchLoad   = 2
	searchLength = 90 * time.Second
	searchWarmup = 30 * time.Second
	searchSeed   = 1 << 40
)

// tune searches for the settings of the systems that need them.
func (b *overloadBench) tune(ctx context.Context) (tuning, error) {
	static := slices.Contains(b.Systems, SystemSpillway+"-"+admission.LimitStatic) || b.Limiter == admission.LimitStatic
	nginx, haproxy := slices.Contains(b.Systems, SystemNginx), slices.Contains(b.Systems, SystemHAProxy)
	if !static && !nginx && !haproxy {
		return tuning{}, nil
	}
	var best tuning
	var err error
	if best.static, err = b.bestStatic(ctx, nil); err != nil {
		return best, err
	}
	b.say("best static limit at %dx: %d", searchLoad, best.static)
	if nginx {
		fleet, _ := b.Fleet() // the settings are valid
		grid := nginxGrid(NewOptimum(fleet, sloTPOT, b.mix.Lengths).Rate)
		if best.nginx, err = b.bestProxy(ctx, SystemNginx, grid); err != nil {
			return best, err
		}
	}
	if haproxy {
		if best.haproxy, err = b.bestProxy(ctx, SystemHAProxy, haproxyGrid(best.static)); err != nil {
			return best, err
		}
	}
	return best, nil
}

// searching are the settings of a search.
func (b *overloadBench) searching() *Overload {
	o := *b.Overload
	o.Duration, o.Warmup, o.Seeds, o.Seed, o.Retries, o.Trail = searchLength, searchWarmup, 1, searchSeed, 0, nil
	return &o
}

// bestStatic finds the best static limit: among steps of a half from 8 on, then
// between the neighbours of the best. change, where it is not nil, is what a
// scenario changes.
func (b *overloadBench) bestStatic(ctx context.Context, change func(*trial)) (int64, error) {
	best, most := int64(1), -1.0
	try := func(limits []int64) error {
		var trials []trial
		for _, l := range limits {
			t := trial{Overload: b.searching(), mix: b.mix, system: SystemSpillway + "-" + admission.LimitStatic, load: searchLoad, seed: searchSeed, tuned: tuning{static: l}}
			if change != nil {
				change(&t)
			}
			trials = append(trials, t)
		}
		runs, err := playAll(ctx, trials)
		for i, r := range runs {
			if err == nil && r.GoodputRatio > most {
				best, most = limits[i], r.GoodputRatio
			}
		}
		return err
	}
	if b.Short {
		return best, try([]int64{16, 48, 96})
	}
	var coarse []int64
	for l := int64(8); l <= 512; l += max(1, l/2) {
		coarse = append(coarse, l)
	}
	if err := try(coarse); err != nil {
		return 0, err
	}
	step := max(1, best/8)
	fine := []int64{best - 2*step, best - step, best + step, best + 2*step, best + 3*step}
	return best, try(slices.DeleteFunc(fine, func(l int64) bool { return l < 1 }))
}

// bestProxy finds the best of a proxy's settings.
func (b *overloadBench) bestProxy(ctx context.Context, system string, grid []Proxy) (Proxy, error) {
	if b.Short {
		grid = grid[len(grid)/2:][:1]
	}
	var trials []trial
	for _, p := range grid {
		trials = append(trials, trial{
			Overload: b.searching(), mix: b.mix, system: system, load: searchLoad, seed: searchSeed, tuned: tuning{nginx: p, haproxy: p},
		})
	}
	runs, err := playAll(ctx, trials)
	if err != nil {
		return Proxy{}, err
	}
	best := 0
	for i, r := range runs {
		if r.GoodputRatio > runs[best].GoodputRatio {
			best = i
		}
	}
	b.say("best of %d settings of %s at %dx: %v", len(grid), system, searchLoad, grid[best])
	return grid[best], nil
}
