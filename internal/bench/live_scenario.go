package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// LiveScenarios lists the scenarios that can be played with processes too.
func LiveScenarios() []string { return []string{"E2", "E4", "E6"} }

// scenarios plays the one that is asked for, or all of them.
func (l *liveBench) scenarios(ctx context.Context) error {
	plays := map[string]func(context.Context) error{"E2": l.steady, "E4": l.storm, "E6": l.kills}
	if l.Scenario != AllScenarios && plays[l.Scenario] == nil {
		return fmt.Errorf("scenario %s is played in virtual time only; with processes there are %v", l.Scenario, LiveScenarios())
	}
	for _, name := range LiveScenarios() {
		if l.Scenario != name && l.Scenario != AllScenarios {
			continue
		}
		l.say("\n%s", name)
		if err := plays[name](ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// with is the bench with other settings, for the same report.
func (l *liveBench) with(change func(*Overload)) *liveBench {
	o := *l.Overload
	change(&o)
	own := *l
	own.Overload = &o
	return &own
}

// steady is E2.
func (l *liveBench) steady(ctx context.Context) (err error) {
	v := l.with(func(o *Overload) { o.Loads = []float64{0.8, 1.2, 2, 3, 5, 10} })
	if v.tuned, err = v.tune(ctx); err != nil {
		return err
	}
	return v.compare(ctx)
}

// storm is E4.
func (l *liveBench) storm(ctx context.Context) error {
	phases, trigger := l.burst()
	for _, c := range []struct {
		retries int
		deaf    bool
	}{{2, false}, {5, false}, {2, true}, {5, true}} {
		v := l.with(func(o *Overload) { o.Retries = c.retries })
		name := fmt.Sprintf("%d retries", c.retries)
		if c.deaf {
			name += ", deaf"
		}
		t := liveTrial{deaf: c.deaf, trial: v.labelled(name, burstLoad, func(t *trial) {
			t.phases, t.terms = phases, func(terms *Terms) { terms.Trigger = trigger }
		})}
		_, runs, err := v.runs(ctx, []liveTrial{t})
		if err != nil {
			return err
		}
		v.recovers("E4 burst of 5x, "+name, scores(runs[0]))
	}
	return nil
}

// scores are the runs as those in virtual time are.
func scores(runs []*liveRun) []*played {
	out := make([]*played, len(runs))
	for i, r := range runs {
		out[i] = &r.played
	}
	return out
}

// kills is E6: engines are killed (SIGKILL) and started again. When all were, they
// start cold: slower at first, by a factor that falls evenly to one.
func (l *liveBench) kills(ctx context.Context) error {
	at := l.warmup() + (l.Duration-l.warmup())/4
	back := at + min(deadFor, (l.Duration-l.warmup())/4)
	for _, x := range []float64{0.7, 2} {
		for _, n := range []int{1, l.Engines} {
			name, cold := fmt.Sprintf("%d of %d killed", n, l.Engines), n == l.Engines
			t := liveTrial{killed: n, trial: l.labelled(name, x, func(t *trial) {
				t.phases = []Phase{{x, x, t.Duration}} // a trace's own ups and downs would be taken for the outage's
				t.terms = func(terms *Terms) { terms.Changes, terms.Trigger = liveOutage(terms.Fleet, n, cold, at, back) }
			})}
			t.faults = func(e *engines) []load.Hook { return liveKills(e, n, cold, at, back) }
			systems, runs, err := l.runs(ctx, []liveTrial{t})
			if err != nil {
				return err
			}
			l.recovers(fmt.Sprintf("E6 %s at %gx", name, x), scores(runs[0]))
			l.expect(fmt.Sprintf("E6 %s at %gx: goodput / feasible", name, x), *systems[0].FeasibleRatio, AtLeast, goodTransfer)
		}
	}
	return nil
}

// liveKills ends the first n engines and restores them, cold if need be.
func liveKills(e *engines, n int, cold bool, at, back time.Duration) []load.Hook {
	var hooks []load.Hook
	for i := range n {
		hooks = append(hooks,
			load.Hook{At: at, Name: fmt.Sprintf("kill %d", i+1), Do: func(context.Context, *load.Live) error { return e.all[i].kill() }},
			load.Hook{At: back, Name: fmt.Sprintf("restore %d", i+1), Do: func(ctx context.Context, _ *load.Live) error {
				if cold {
					e.all[i].args = append(e.all[i].args, "--faults", fmt.Sprintf(`{"slow_start":{"factor":%d,"period":"%v"}}`, coldFactor, coldFor))
				}
				return e.restart(ctx, i)
			}})
	}
	return hooks
}

// liveOutage is the same for the optimum: cold engines count, in each quarter of
// their cold time, as what they are at its end. The trigger ends when the engines
// are as before.
func liveOutage(fleet []Server, n int, cold bool, at, back time.Duration) ([]Change, Trigger) {
	changes := []Change{{at, fleet[n:]}}
	if !cold {
		return append(changes, Change{back, fleet}), Trigger{at, back}
	}
	const quarters = 4
	for q := range quarters {
		factor := coldFactor - float64(q+1)*(coldFactor-1)/quarters
		var slow []Server
		for _, s := range fleet {
			slow = append(slow, Server{s.Batching, s.speed() / factor})
		}
		changes = append(changes, Change{back + time.Duration(q)*coldFor/quarters, slow})
	}
	end := back + coldFor
	return append(changes, Change{end, fleet}), Trigger{at, end}
}
