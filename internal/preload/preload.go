// Package preload has popular answers ready before the rush: it counts which
// answers are asked for, forecasts who will be asked for next, and refreshes what
// would not stay fresh until then, with what the servers have to spare.
//
// Every look-up of the cache is told to a Stream as an Asked event. Demand is the
// embedded one: it keeps the hottest keys in bounded memory, counts their asks in
// windows of event time, and is the Predictor of the window to come as well. Both
// are small interfaces, so that a stream engine can take their place and predict
// for many gateways.
//
// Once a window, Lead before the next one begins, the Preloader plans: of the
// predicted answers those that pay, within a budget, spread over the time that is
// left. Run carries the plan out through a Runner, which asks as the class idle,
// and gives up what is left of it when the window begins. Warm sends an operator's
// list through the same runner.
//
// Observe runs on the goroutine of the request and takes one of 16 locks for well
// under a microsecond. Run owns the goroutines that refresh, and waits for them
// before it returns; Warm does the same for its own. No lock is held while a
// Runner runs, and none while another is taken but for the rhythm's, which is
// taken last. All decisions take their instant as a parameter.
//
// What is kept of a request to ask it again has no credentials: see Strip.
package preload

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Asked is one look-up of an answer.
type Asked struct {
	Key     [32]byte
	Request *inference.Request // valid during the call only; nil when it is not known
	At      time.Time          // when it was asked: the event's own time
	Hit     bool               // a kept answer was used
	Tokens  int64              // that the answer has; 0 is not known
	// Varies says whether a header field is part of the key, as the query is; nil is none.
	Varies func(name string) bool
}

// Stream takes the events of a gateway. Observe is called on the request path, from
// many goroutines: it does not block, and keeps nothing of the request but copies.
type Stream interface {
	Observe(a Asked)
}

// Window is a half-open range of time.
type Window struct{ Start, End time.Time }

// Prediction is an answer that will be asked for.
type Prediction struct {
	Key     [32]byte
	Request *inference.Request // what to ask, without credentials; never changed
	Asks    float64            // expected from the window's start until the horizon
	Tokens  int64              // that an answer takes, prompt included
}

// Predictor says what will be asked for.
type Predictor interface {
	// Predict lists what is expected from the start of the window until the horizon
	// behind it, as seen at now, in any order. The slice is the caller's.
	Predict(now time.Time, w Window, horizon time.Duration) []Prediction
}

// Runner asks a request, so that its answer is kept, and returns when the answer is
// complete. It does not take a kept one, and waits while others wait. It is called
// from several goroutines.
type Runner interface {
	Run(ctx context.Context, req *inference.Request) error
}

// Freshness says whether an answer is kept and stays fresh until an instant.
type Freshness interface {
	Fresh(key [32]byte, until time.Time) bool
}

// Parts are what a preloader is made of.
type Parts struct {
	Runner    Runner
	Freshness Freshness
	Stream    Stream    // nil: the embedded one
	Predictor Predictor // nil: the embedded one
	// Publish is told once a window what is expected in the next one, for people and
	// other systems to see; nil is nobody. Run waits for it.
	Publish func(ctx context.Context, expected []Prediction)
	Log     *slog.Logger // nil: none
}

// settings are what Apply replaces.
type settings struct {
	Config
	slots    chan struct{} // one a refresh under way
	replaced chan struct{} // closed when newer settings are there
}

// Preloader refreshes answers ahead of demand. It is safe for concurrent use.
type Preloader struct {
	parts    Parts
	settings atomic.Pointer[settings]
	demand   atomic.Pointer[Demand]
	serial   atomic.Uint64 // of the requests sent
	meter    *meter
	apply    sync.Mutex // one Apply or Forget at a time
	mu       struct {
		sync.Mutex
		running map[[32]byte]struct{} // keys that are being refreshed
	}
}

// New returns a preloader over its parts. It does nothing until Run.
func New(cfg Config, parts Parts) *Preloader {
	if parts.Log == nil {
		parts.Log = slog.New(slog.DiscardHandler)
	}
	p := &Preloader{parts: parts, meter: newMeter()}
	p.mu.running = make(map[[32]byte]struct{})
	p.Apply(cfg)
	return p
}

// Apply replaces the configuration. What was counted is kept unless the window, the
// number of keys or the bytes change. The plan of the current window is given up;
// refreshes that Warm has under way go on.
func (p *Preloader) Apply(cfg Config) {
	p.apply.Lock()
	defer p.apply.Unlock()
	p.replace(cfg)
}

// Forget drops the requests that the embedded engine keeps, with what routing decided
// for them, and gives the plan of the current window up: it is for when routing decides
// anew. Demand stays counted, and a request that is asked again is kept again.
func (p *Preloader) Forget() {
	p.apply.Lock()
	defer p.apply.Unlock()
	p.demand.Load().Forget()
	p.replace(p.settings.Load().Config)
}

// replace puts newer settings in force. The caller holds apply.
func (p *Preloader) replace(cfg Config) {
	s := &settings{Config: cfg, slots: make(chan struct{}, cfg.Concurrency), replaced: make(chan struct{})}
	old := p.settings.Load()
	if d := p.demand.Load(); d == nil || !d.same(cfg) {
		p.demand.Store(NewDemand(cfg))
	}
	p.settings.Store(s)
	if old != nil {
		close(old.replaced)
	}
}

// Observe implements Stream: it hands the event on, unless preloading is off.
func (p *Preloader) Observe(a Asked) {
	if !p.settings.Load().Enabled {
		return
	}
	if p.parts.Stream != nil {
		p.parts.Stream.Observe(a)
		return
	}
	p.demand.Load().Observe(a)
}

// Tick moves the event time on to now when no event has.
func (p *Preloader) Tick(now time.Time) { p.demand.Load().Tick(now) }

// predictor is the one in use.
func (p *Preloader) predictor() Predictor {
	if p.parts.Predictor != nil {
		return p.parts.Predictor
	}
	return p.demand.Load()
}

// Run plans and refreshes, window by window, until its context ends.
func (p *Preloader) Run(ctx context.Context) error {
	var last time.Time // start of the window planned for last
	for ctx.Err() == nil {
		s := p.settings.Load()
		now := time.Now()
		w := s.target(now)
		if !w.Start.After(last) {
			w = Window{Start: w.End, End: w.End.Add(s.Window)}
		}
		if !s.Enabled {
			wait(ctx, s, time.Time{})
			continue
		}
		if at := w.Start.Add(-s.Lead); at.After(now) {
			wait(ctx, s, at)
			continue
		}
		p.Tick(now)
		last = w.Start
		if p.parts.Publish != nil {
			p.parts.Publish(ctx, p.predictor().Predict(now, w, s.Window))
		}
		p.carryOut(ctx, s, p.Plan(now))
	}
	return nil
}

// wait ends at an instant, with the context, or when the settings are replaced, and
// says whether it was the instant. The zero instant never comes.
func wait(ctx context.Context, s *settings, until time.Time) bool {
	var due <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-s.replaced:
		return false
	case <-due:
		return ctx.Err() == nil && !s.old()
	}
}

// old says whether the settings are replaced.
func (s *settings) old() bool {
	select {
	case <-s.replaced:
		return true
	default:
		return false
	}
}
