package bench

import (
	"context"
	"fmt"
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
