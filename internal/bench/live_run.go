package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// liveRun is what became of one run with processes.
type liveRun struct {
	played
	system          load.System
	refused, server []time.Duration // of refusals inside the window, at the client and in the server
}

// Bounds of the clients' side of a run.
const (
	// liveDrain is how long answers are waited for behind the end of the load: no
	// client waits longer for its first token than a minute but those of batch,
	// which are served at once when nothing else comes.
	liveDrain = time.Minute
	// ownFiles is what the generator needs files for beside its requests.
	ownFiles     = 1000
	mostInFlight = 16_000
	mostTenants  = 256 // that the load generator can tell apart
)

// liveTrial is one run with processes.
type liveTrial struct {
	trial
	deaf   bool                         // clients choose their wait themselves
	killed int                          // engines, from the first on
	faults func(e *engines) []load.Hook // nil is none
}

// play runs a trial with processes.
func (l *liveBench) play(ctx context.Context, t *liveTrial) (run *liveRun, err error) {
	begun := time.Now()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s at %gx, seed %d: %w", t.name(), t.load, t.seed, err)
		}
	}()
	cfgs, opts, terms, err := l.offered(t)
	if err != nil {
		return nil, err
	}
	s, err := l.stage(ctx, t, cfgs[0].Tenants)
	if err != nil {
		return nil, err
	}
	defer s.end()
	quiet := l.watch(ctx, s, t)
	tries, systems, err := l.send(ctx, s, t, cfgs, opts)
	quiet()
	if err != nil {
		return nil, err
	}
	run = &liveRun{system: gathered(systems)}
	run.Scored = Score(tries, terms)
	judge := judging(tries, terms)
	run.ttft, run.e2e, run.missed = judge.ttft, judge.e2e, judge.missed()
	run.refused, run.server = judge.rejections, judge.server
	run.system.Notes = append(run.system.Notes, t.settings(s)...)
	note, err := s.refusals(ctx)
	if err != nil {
		return nil, err
	}
	run.system.Notes = append(run.system.Notes, note...)
	if run.leaks, err = s.leaks(ctx); err != nil {
		return nil, err
	}
	l.tell(t, run, time.Since(begun))
	return run, nil
}

// send sends the loads at the same time and returns every attempt.
func (l *liveBench) send(ctx context.Context, s *liveStage, t *liveTrial, cfgs []load.Config, opts load.Options) ([]Try, []load.System, error) {
	var ledger Ledger
	gens := make([]*load.Generator, len(cfgs))
	for i, cfg := range cfgs {
		cfg.Target.Name, cfg.Target.Model, cfg.Target.BaseURLs = t.name(), model, s.urls
		own := opts
		own.Outcome = func(o load.Outcome) {
			o.Row = o.Row*uint64(len(cfgs)) + uint64(i) // every load counts its rows from 0
			ledger.Add(o)
		}
		if i == 0 {
			cfg.EngineMetrics = s.engines.metrics(upTo(t.killed)...)
			own.Progress = l.Show
			if t.faults != nil {
				own.Hooks = t.faults(s.engines)
			}
		}
		var err error
		if gens[i], err = load.New(cfg, own); err != nil {
			return nil, nil, err
		}
	}
	systems, errs := make([]load.System, len(gens)), make([]error, len(gens))
	var wg sync.WaitGroup
	for i, g := range gens {
		wg.Go(func() { systems[i], errs[i] = g.Run(ctx) })
	}
	wg.Wait()
	return ledger.Tries(), systems, errors.Join(errs...)
}

// upTo are the first n indices.
func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// offered are the loads that a trial sends at the same time, and what it is judged
// by.
func (l *liveBench) offered(t *liveTrial) (cfgs []load.Config, opts load.Options, terms Terms, err error) {
	if t.phases == nil {
		cfgs = make([]load.Config, 1)
		cfgs[0], opts, err = t.Load(t.load, t.seed, t.mix)
	} else {
		cfgs, opts, err = t.Phases(t.phases, t.seed, t.mix)
	}
	if err != nil {
		return nil, opts, terms, err
	}
	if terms, err = t.Terms(t.mix); err != nil {
		return nil, opts, terms, err
	}
	if t.terms != nil {
		t.terms(&terms)
	}
	tenants, err := tenantsOf(cfgs, opts)
	for i := range cfgs {
		c := &cfgs[i]
		for k := range c.Classes {
			class, _ := inference.ParseClass(c.Classes[k].Name) // the names are the classes' own
			c.Classes[k].Patience = patience()[class]
		}
		c.Tenants, c.Client.IgnoreRetryAfter, c.Client.Drain = tenants, t.deaf, l.drain
		c.Client.MaxInFlight = min(mostInFlight, openFiles()-ownFiles)
	}
	return cfgs, opts, terms, err
}

// tenantsOf are the tenants of loads with their keys: those that are configured, or
// else the trace's clients.
func tenantsOf(cfgs []load.Config, opts load.Options) ([]load.Tenant, error) {
	tenants := slices.Clone(cfgs[0].Tenants)
	if len(tenants) == 0 {
		names := map[string]bool{}
		for _, cfg := range cfgs {
			for p, err := range load.Plan(cfg, opts) {
				if err != nil {
					return nil, err
				}
				if p.Tenant != "" && len(names) < mostTenants {
					names[p.Tenant] = true
				}
			}
		}
		for _, n := range slices.Sorted(maps.Keys(names)) {
			tenants = append(tenants, load.Tenant{Name: n})
		}
	}
	for i := range tenants {
		tenants[i].APIKey = liveKey(tenants[i].Name)
	}
	return tenants, nil
}

// settings are the notes on what a run was made with.
func (t *trial) settings(s *liveStage) []string {
	engines := fmt.Sprintf("%d engines, each `spillway engine --prefix-cache=false %s`", len(s.engines.all), strings.Join(t.Args, " "))
	notes := []string{strings.TrimRight(strings.TrimSpace(engines), " `") + "`", "clients wait 10 s (vip), 15 s (normal), 120 s (batch) for a first token"}
	switch {
	case t.system == SystemDirect:
		return append(notes, "clients take the engines in turn")
	case s.proxy != nil:
		return append(notes, t.system+": "+t.proxy().String())
	}
	a := t.admission()
	note := fmt.Sprintf("admission.limit %s; objectives: first token within %v, %v and %v, %v per token; all else as in a file that says nothing, no access log",
		a.Limit, a.Classes.VIP.TTFT, a.Classes.Normal.TTFT, a.Classes.Batch.TTFT, a.Classes.VIP.TPOT)
	if t.tuned.static > 0 {
		note += fmt.Sprintf("; static_limit %d", t.tuned.static)
	}
	return append(notes, note)
}

// tell prints a run on one line.
func (l *liveBench) tell(t *liveTrial, r *liveRun, took time.Duration) {
	lag, late := 0.0, 0.0
	if r.system.ScheduleLag != nil {
		lag = r.system.ScheduleLag.P99
	}
	if r.system.LateSteps != nil {
		late = *r.system.LateSteps
	}
	vip := r.Classes[inference.VIP]
	l.say("%-30s %5gx seed %d  load %.2f  goodput/optimum %.3f  vip %.3f p50 %.2fs p99 %.2fs  normal %.3f  batch %.3f  jain %.3f  starved %.1fs  refused %d  lag %.2fms  late %.2f%%  (%.0fs)",
		t.name(), t.load, t.seed, r.Load, r.GoodputRatio, vip.Attainment, vip.TTFT.P50.Seconds(), vip.TTFT.P99.Seconds(),
		r.Classes[inference.Normal].Attainment, r.Classes[inference.Batch].Attainment, r.Jain, r.Starvation.Seconds(),
		r.Rejections.Latency.N, lag, 100*late, took.Seconds())
	for _, c := range []inference.Class{inference.VIP, inference.Normal, inference.Batch} {
		if f := r.missed[c]; l.Trail != nil {
			fmt.Fprintf(l.Trail, "  %s: of %d offered %d refused, %d cut, %d late, %d slow\n", c, r.Classes[c].Offered, f.refused, f.cut, f.late, f.slow)
		}
	}
}

// watchEvery is how often a trail is written.
const watchEvery = 5 * time.Second

// watch writes what the gateway's limits are, where a trail is wanted. The function
// that it returns ends it.
func (l *liveBench) watch(ctx context.Context, s *liveStage, t *liveTrial) (quiet func()) {
	if l.Trail == nil || s.gateway == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	begun := time.Now()
	go func() { // ends in quiet
		defer close(done)
		for pause(ctx, watchEvery) == nil {
			m, err := s.gateway.metrics(ctx, s.gateway.admin)
			if err != nil {
				continue // the next look may do better
			}
			fmt.Fprintf(l.Trail, "%s %gx seed %d %5.1fs: waiting %g, pressure %.2f, tickets %g, processor %.1fs\n", t.name(), t.load, t.seed,
				time.Since(begun).Seconds(), m.sum("spillway_admission_waiting"), m["spillway_admission_pressure"], m.sum("spillway_admission_tickets"), m["process_cpu_seconds_total"])
			for _, i := range slices.Sorted(maps.Keys(m)) {
				if strings.HasPrefix(i, "spillway_admission_instance_") {
					fmt.Fprintf(l.Trail, "  %s %g\n", strings.TrimPrefix(i, "spillway_admission_"), m[i])
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
