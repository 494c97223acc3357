package bench

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// Bounds of a run with processes: two processor cores carry engines, gateway and
// load together.
const (
	// mostEvents is how many tokens a second they can carry at the capacity.
	mostEvents = 12_000
	// fewerEngines is how many engines there are above it.
	fewerEngines = 2
)

// Live plays the comparison with processes: engines, gateway or proxy, and the load
// over HTTP. Everything that a system was set to stands in the report's notes.
func (o *Overload) Live(ctx context.Context) (*Result, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	mix, err := o.Mix()
	if err != nil {
		return nil, err
	}
	own := *o
	dir, err := os.MkdirTemp("", "spillway-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l := &liveBench{dir: dir, drain: liveDrain, overloadBench: overloadBench{
		Overload: &own, mix: mix, result: &Result{Report: load.NewReport("overload", o.Seed), Verdicts: []Verdict{}},
	}}
	defer http.DefaultClient.CloseIdleConnections()
	if err := l.ready(); err != nil {
		return nil, err
	}
	l.terms()
	if o.Scenario != "" {
		l.result.Scenario = o.Scenario
		return l.result, l.scenarios(ctx)
	}
	if l.tuned, err = l.tune(ctx); err != nil {
		return nil, err
	}
	return l.result, l.compare(ctx)
}

// liveBench is a comparison with processes under way. One goroutine uses it.
type liveBench struct {
	overloadBench
	dir   string
	drain time.Duration // see liveDrain
	notes []string      // of all systems
}

// ready finds out whether everything is there, and whether the machine can carry it.
func (l *liveBench) ready() error {
	for _, s := range []string{SystemNginx, SystemHAProxy} {
		if slices.Contains(l.Systems, s) {
			if _, err := proxyBinary(s); err != nil {
				return err
			}
		}
	}
	fleet, err := l.Fleet()
	if err != nil {
		return err
	}
	capacity := NewOptimum(fleet, sloTPOT, l.mix.Lengths)
	events := capacity.Rate * meansOf(l.mix.Lengths).output
	if events > mostEvents && l.Engines > fewerEngines {
		l.note("%d engines instead of %d, which would make %.0f tokens/s", fewerEngines, l.Engines, events)
		l.Engines = fewerEngines
	}
	return nil
}

// note says something that stands in every system's notes.
func (l *liveBench) note(format string, args ...any) {
	l.notes = append(l.notes, fmt.Sprintf(format, args...))
	l.say(format, args...)
}

// compare runs every system at every load.
func (l *liveBench) compare(ctx context.Context) error {
	var trials []liveTrial
	for _, x := range l.Loads {
		for _, system := range l.Systems {
			trials = append(trials, liveTrial{trial: l.trial(system, x)})
		}
	}
	systems, _, err := l.runs(ctx, trials)
	if err != nil {
		return err
	}
	l.result.Verdicts = append(l.result.Verdicts, compareSystems(systems, goodRetries)...)
	l.result.Verdicts = append(l.result.Verdicts, refusedWell(systems)...)
	return nil
}

// runs plays each trial with every seed, seed by seed, so that what disturbs the
// machine for a while disturbs all of them, and reports them.
func (l *liveBench) runs(ctx context.Context, trials []liveTrial) ([]load.System, [][]*liveRun, error) {
	runs := make([][]*liveRun, len(trials))
	for n := range l.Seeds {
		for i, t := range trials {
			t.seed = t.Seed + uint64(n)
			r, err := l.valid(ctx, &t)
			if err != nil {
				return nil, nil, err
			}
			runs[i] = append(runs[i], r)
		}
	}
	systems := make([]load.System, len(trials))
	for i := range runs {
		systems[i] = l.report(runs[i])
	}
	return systems, runs, nil
}

// mostReplays is how often a run that proves nothing is played again.
const mostReplays = 2

// valid plays a trial, and plays it again when the machine was too busy with
// something else. What makes a run invalid is the generator's lag and the engines'
// late steps, never how well a system did.
func (l *liveBench) valid(ctx context.Context, t *liveTrial) (*liveRun, error) {
	for again := 0; ; again++ {
		r, err := l.play(ctx, t)
		if err != nil || r.system.InvalidReason == "" || again == mostReplays {
			return r, err
		}
		l.say("  played again, since it proves nothing: %s", r.system.InvalidReason)
	}
}

// report makes one entry of the runs of a system at a load, and requires that
// nothing was left behind.
func (l *liveBench) report(runs []*liveRun) load.System {
	all, systems := make([]*played, len(runs)), make([]load.System, len(runs))
	var refused, server []time.Duration
	for i, r := range runs {
		all[i], systems[i] = &r.played, r.system
		refused, server = append(refused, r.refused...), append(server, r.server...)
	}
	pooled := pool(all)
	pooled.Rejections = RejectionScore{quantiles(refused), quantiles(server)}
	sys := gathered(systems)
	pooled.Fill(&sys)
	mean, half := spread(all, func(p *played) float64 { return p.GoodputRatio })
	sys.Notes = append(slices.Clone(l.notes), sys.Notes...)
	sys.Notes = append(sys.Notes, fmt.Sprintf("%d seeds; goodput ratio %.4f, 95%% within %.4f", len(runs), mean, half))
	l.result.Add(sys)
	l.zero(fmt.Sprintf("%s %gx", sys.Name, sys.Load), pooled.leaks)
	return sys
}

// gathered adds what generators have counted of one system. Of the lag and the late
// steps the worst counts; other distributions are those of a single one, or not
// there.
func gathered(all []load.System) load.System {
	sys := all[0]
	sys.Errors = map[string]int64{}
	sys.Offered, sys.Answered, sys.Attempts, sys.Retries, sys.Truncated, sys.OutputTokens = 0, 0, 0, 0, 0, 0
	sys.InvalidReason, sys.Tenants = "", nil
	seen := map[string]bool{}
	for _, s := range all {
		for to, from := range map[*int64]int64{
			&sys.Offered: s.Offered, &sys.Answered: s.Answered, &sys.Attempts: s.Attempts, &sys.Retries: s.Retries,
			&sys.Truncated: s.Truncated, &sys.OutputTokens: s.OutputTokens,
		} {
			*to += from
		}
		for code, n := range s.Errors {
			sys.Errors[code] += n
		}
		if s.ScheduleLag != nil && (sys.ScheduleLag == nil || s.ScheduleLag.P99 > sys.ScheduleLag.P99) {
			sys.ScheduleLag = s.ScheduleLag
		}
		if s.LateSteps != nil && (sys.LateSteps == nil || *s.LateSteps > *sys.LateSteps) {
			sys.LateSteps = s.LateSteps
		}
		if why := s.InvalidReason; why != "" && !seen[why] {
			seen[why] = true
			sys.InvalidReason += map[bool]string{true: "; ", false: ""}[sys.InvalidReason != ""] + why
		}
	}
	sys.Availability = shareOf(int(sys.Answered), int(sys.Offered))
	if len(all) > 1 {
		sys.TTFT, sys.ITL, sys.TPOT, sys.E2E, sys.TokensPerS = nil, nil, nil, nil, nil
	}
	return sys
}
