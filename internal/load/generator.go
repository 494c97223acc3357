package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Generator runs one load against one target, once.
type Generator struct {
	cfg       Config
	opts      Options
	surface   inference.Surface
	schedule  schedule     // nil with sessions
	sessions  *sessionPool // nil with a schedule
	planner   *planner
	transport *transport
	endpoints []*endpoint
	rec       *recorder
	live      *Live
	states    sync.Pool // of *state
	wg        sync.WaitGroup
	scrape    *scraper
}

// New prepares a run: it validates cfg and reads the tables that a trace
// needs. It starts nothing.
func New(cfg Config, opts Options) (*Generator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	surface, _ := inference.ParseSurface(cfg.Target.Surface)
	if surface == inference.Embeddings {
		cfg.Request.Streamed = 0
	}
	g := &Generator{
		cfg: cfg, opts: opts, surface: surface, planner: newPlanner(cfg, surface), transport: newTransport(cfg.Client, opts),
		rec: newRecorder(cfg.SLO, cfg.Classes), live: new(Live), scrape: newScraper(cfg.EngineMetrics, opts.TLS),
	}
	g.live.mu.instances = map[string]*instance{}
	g.states.New = func() any { return new(state) }
	for _, raw := range cfg.Target.BaseURLs {
		ep, err := newEndpoint(raw, surface)
		if err != nil {
			return nil, err
		}
		g.endpoints = append(g.endpoints, ep)
	}
	if f, err := cfg.Schedule.Trace.format(); err == nil && f == AgentSessions {
		g.sessions = newSessionPool(cfg.Schedule, opts)
		return g, nil
	}
	var err error
	g.schedule, err = newSchedule(cfg, opts)
	return g, err
}

// Live returns the counters of the run.
func (g *Generator) Live() *Live { return g.live }

// Run sends the load and reports what came of it. It may be called once. When
// ctx ends early, it returns what was measured so far, marked invalid, and the
// context's cause.
func (g *Generator) Run(ctx context.Context) (System, error) {
	before := g.scrape.read(ctx, g.rec)
	g.live.start = time.Now()
	run, stop := context.WithCancel(ctx)
	var side sync.WaitGroup
	for _, h := range g.opts.Hooks {
		side.Go(func() { g.hook(run, h) })
	}
	if g.opts.Progress != nil {
		side.Go(func() { g.show(run) })
	}
	// Only the caller's end interrupts requests; stop comes when all are done.
	release := context.AfterFunc(ctx, g.transport.interrupt)

	rows, cut := context.WithCancelCause(run)
	err := g.dispatch(rows)
	g.drain(cut)
	release()
	stop()
	side.Wait()
	for _, ep := range g.endpoints {
		ep.close()
	}
	if ctx.Err() != nil {
		g.rec.invalidate("interrupted")
		err = errors.Join(err, context.Cause(ctx))
	}
	after := g.scrape.read(context.WithoutCancel(ctx), g.rec)
	g.scrape.close()
	return g.system(before, after), err
}

// drain waits for the rows that were sent, at most for the configured time.
func (g *Generator) drain(cut context.CancelCauseFunc) {
	if d := g.cfg.Client.Drain; d > 0 {
		late := time.AfterFunc(d, func() {
			cut(errUndrained)
			g.transport.interrupt()
		})
		defer late.Stop()
	}
	g.wg.Wait()
	cut(nil)
}

// dispatch sends every row at its instant.
func (g *Generator) dispatch(ctx context.Context) error {
	if g.sessions != nil {
		return g.runSessions(ctx)
	}
	timer := newAlarm()
	for seq := uint64(0); ; seq++ {
		a, err := g.schedule.next()
		if err == io.EOF {
			return g.schedule.Close()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("schedule: %w", err), g.schedule.Close())
		}
		j := g.planner.plan(a, seq)
		if !timer.wait(ctx, g.live.start.Add(a.at)) {
			return g.schedule.Close()
		}
		g.launch(ctx, j)
	}
}

// launch sends one row in a goroutine of its own, or counts it as not sent.
func (g *Generator) launch(ctx context.Context, j job) {
	g.live.offered.Add(1)
	if !g.enter() {
		o := outcome{class: j.class, tenant: j.tenant, due: j.due, end: j.due, code: codeNotSent}
		g.tell(&o, j, attempt{at: j.due, sent: j.due}, result{})
		g.finish(&o)
		return
	}
	g.wg.Go(func() { g.send(ctx, j) })
}

// enter takes a place among the requests in flight, false when all are taken.
func (g *Generator) enter() bool {
	if n := g.live.inFlight.Add(1); n <= int64(g.cfg.Client.MaxInFlight) {
		return true
	}
	g.live.inFlight.Add(-1)
	g.rec.invalidate(fmt.Sprintf("client.max_in_flight: %d requests were in flight, later ones were not sent", g.cfg.Client.MaxInFlight))
	return false
}

// finish records how a row ended.
func (g *Generator) finish(o *outcome) {
	g.rec.finish(o)
	if o.answered() {
		g.live.answered.Add(1)
	} else {
		g.live.failed.Add(1)
	}
}

// hook runs one hook at its instant.
func (g *Generator) hook(ctx context.Context, h Hook) {
	if !newAlarm().wait(ctx, g.live.start.Add(h.At)) {
		g.rec.invalidate(fmt.Sprintf("hook %s: the run ended before %s", h.Name, h.At))
		return
	}
	if err := h.Do(ctx, g.live); err != nil {
		g.rec.invalidate(fmt.Sprintf("hook %s: %v", h.Name, err))
	}
}

// show reports progress until the run ends.
func (g *Generator) show(ctx context.Context) {
	p := g.opts.Progress
	every := time.NewTicker(p.Every())
	defer every.Stop()
	defer p.Done()
	var tokens int64
	var at time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		s := Status{
			Name: g.cfg.Target.Name, Elapsed: g.live.Elapsed(), Total: g.planned(), Offered: g.live.Offered(),
			Answered: g.live.Answered(), Failed: g.live.Failed(), InFlight: g.live.InFlight(),
		}
		n := g.live.Tokens()
		s.TokensPerS = float64(n-tokens) / (s.Elapsed - at).Seconds()
		tokens, at = n, s.Elapsed
		p.Show(s)
	}
}

// planned is the length of the run, 0 when only its trace knows.
func (g *Generator) planned() time.Duration {
	s := g.cfg.Schedule
	if s.Profile == "" {
		return s.Duration
	}
	var total time.Duration
	segments, _ := ParseProfile(s.Profile) // New has validated it
	for _, seg := range segments {
		total += seg.Length
	}
	if s.Duration > 0 {
		total = min(total, s.Duration)
	}
	return total
}

// alarm waits for instants with one timer.
type alarm struct{ timer *time.Timer }

func newAlarm() alarm {
	t := time.NewTimer(0)
	t.Stop()
	return alarm{t}
}

// wait returns at the instant, false when ctx ends before.
func (a alarm) wait(ctx context.Context, at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return ctx.Err() == nil
	}
	a.timer.Reset(d)
	select {
	case <-a.timer.C:
		return true
	case <-ctx.Done():
		a.timer.Stop()
		return false
	}
}

// maxLag is the p99 of the schedule lag above which a run proves nothing: the
// generator, not the server, was late.
const maxLag = 5 * time.Millisecond

// system summarises the run and judges whether it proves anything.
func (g *Generator) system(before, after []steps) System {
	s := g.rec.system()
	s.Name, s.Load, s.CutOpen, s.Notes = g.cfg.Target.Name, g.cfg.Load, g.live.cutOpen(), g.cfg.notes()
	if lag := s.ScheduleLag; lag != nil && lag.P99 >= millis(maxLag) {
		g.rec.invalidate(fmt.Sprintf("schedule lag p99 %.1f ms, the bound is %s", lag.P99, maxLag))
	}
	if s.Offered == 0 {
		g.rec.invalidate("nothing was offered")
	}
	s.LateSteps = lateShare(before, after)
	if s.LateSteps != nil && *s.LateSteps > maxLateSteps {
		g.rec.invalidate(fmt.Sprintf("%.1f%% of the engines' steps were late, the bound is %.0f%%", 100**s.LateSteps, 100*maxLateSteps))
	}
	s.InvalidReason = g.rec.reasons()
	return s
}

// notes say how the load was made, where that is not in its numbers.
func (c Config) notes() []string {
	var out []string
	add := func(when bool, format string, args ...any) {
		if when {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	t := c.Schedule.Trace
	f, _ := t.format()
	add(t.Path != "", "trace %s at %gx its speed", path.Base(t.Path), t.Speed)
	add(t.Path != "" && c.Schedule.Duration > 0, "the trace repeats when it is shorter than the run")
	add(t.Spread, "rows that share a time stamp are spread evenly until the next one")
	add(f == ServeGen, "requests are drawn from fitted laws, rates times %g", t.RateScale)
	add(f == AgentSessions, "closed loop: %d concurrent sessions, think time counts from the previous answer, capped at %s (0 means as recorded)", t.Sessions, t.ThinkCap)
	add(c.Request.Repeat > 0, "%g of the requests repeat one of the last %d prompts", c.Request.Repeat, recent)
	add(c.Request.Popular.Share > 0, "%g of the requests ask one of %d popular questions by Zipf's law with exponent %g", c.Request.Popular.Share, c.Request.Popular.Questions, c.Request.Popular.Skew)
	add(c.Request.MaxPromptTokens > 0, "prompts are cut at %d tokens", c.Request.MaxPromptTokens)
	add(t.Path != "", "answers are cut at max_tokens %d", c.Request.MaxTokens)
	add(c.Client.Retries > 0, "clients retry up to %d times like the official SDKs", c.Client.Retries)
	add(c.Client.Retries > 0 && c.Client.IgnoreRetryAfter, "clients ignore Retry-After")
	add(c.Client.EchoTicket, "clients send the ticket of a refusal back")
	add(c.Client.Drain > 0, "answers are waited for until %s after the last request", c.Client.Drain)
	return out
}
