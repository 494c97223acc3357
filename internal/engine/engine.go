package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// A step is late when it ends later than its deadline by more than lateShare of its length and more than lateMin,
	// about twice what a Go timer is off on an idle machine.
	lateMin   = 2 * time.Millisecond
	lateShare = 0.25
	// maxDebt is how far the loop may lag behind its deadlines and still catch up. Beyond it (a suspended process) the
	// lost time is gone: a burst of seconds' worth of steps would be no engine's behaviour.
	maxDebt = time.Second
)

// Engine is one simulated model server. It is an http.Handler; requests advance only while [Engine.Run] runs. All its
// methods are safe for concurrent use.
type Engine struct {
	cfg     Config
	log     *slog.Logger
	faults  *faultSource
	meter   *meter
	metrics http.Handler
	models  map[string]string // name -> JSON string
	routes  map[string]route
	epoch   time.Time
	wake    chan struct{} // of capacity 1: something was queued
	done    chan struct{} // closed when Run ends
	started atomic.Bool
	number  atomic.Uint64 // of the last request

	steps, late, events, cancelled, finished, refused atomic.Uint64

	mu struct {
		sync.Mutex
		batch *Batch
	}
}

// New makes an engine and starts nothing. It returns the configuration's mistakes.
func New(cfg Config, logger *slog.Logger) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("engine configuration: %w", err)
	}
	e := &Engine{
		cfg:    cfg,
		log:    logger,
		faults: newFaultSource(cfg.Faults, cfg.Seed),
		models: make(map[string]string, len(cfg.Models)),
		epoch:  time.Now(),
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
	}
	for _, m := range cfg.Models {
		e.models[m] = string(appendQuoted(nil, m))
	}
	e.mu.batch = NewBatch(cfg.Batching)
	registry, meter, err := newMeter(e)
	if err != nil {
		return nil, fmt.Errorf("engine metrics: %w", err)
	}
	e.meter = meter
	e.metrics = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	e.routes = e.table()
	return e, nil
}

// Run owns the step loop and returns nil when ctx ends; open answers are then broken off. It runs once.
func (e *Engine) Run(ctx context.Context) error {
	if !e.started.CompareAndSwap(false, true) {
		return errors.New("engine runs already")
	}
	defer close(e.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	hand := &pen{buf: make([]byte, headroom, 4096), meter: e.meter}
	next := time.Now()
	for ctx.Err() == nil {
		step := e.plan(next)
		if step.Duration == 0 {
			select {
			case <-ctx.Done():
			case <-e.wake:
				next = time.Now()
			}
			continue
		}
		next = next.Add(step.Duration)
		if wait := time.Until(next); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return nil
			case <-timer.C:
			}
		}
		now := time.Now()
		next = e.judge(now, next, step.Duration)
		e.deliver(hand, step, now)
	}
	return nil
}

// plan lets the batch do its next step.
func (e *Engine) plan(now time.Time) Step {
	pace := e.faults.pace(now)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.batch.SetPace(pace)
	return e.mu.batch.Step(now.Sub(e.epoch))
}

// judge counts the step and returns the instant the next one begins: its deadline, however late it was.
func (e *Engine) judge(now, deadline time.Time, length time.Duration) time.Time {
	e.steps.Add(1)
	behind := now.Sub(deadline)
	if behind > max(lateMin, time.Duration(lateShare*float64(length))) {
		e.late.Add(1)
	}
	if behind > maxDebt {
		e.log.Warn("engine lost time", "behind", behind)
		return now
	}
	return deadline
}

// deliver writes what the step yielded.
func (e *Engine) deliver(hand *pen, step Step, now time.Time) {
	for _, seq := range step.Emitted {
		seq.Owner.(*stream).token(hand, now)
	}
	for _, seq := range step.Finished {
		seq.Owner.(*stream).finish(hand)
	}
	e.events.Add(hand.events)
	hand.events = 0
}

// submit queues a stream's sequence.
func (e *Engine) submit(s *stream) error {
	e.mu.Lock()
	err := e.mu.batch.Submit(&s.seq, time.Since(e.epoch))
	e.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case e.wake <- struct{}{}:
	default:
	}
	return nil
}

// leave ends a stream: no event is written any more, and its work is out of the batch.
func (e *Engine) leave(s *stream, end outcome) {
	s.close()
	e.mu.Lock()
	e.mu.batch.Cancel(&s.seq)
	e.mu.Unlock()
	if end == complete {
		e.finished.Add(1)
		e.meter.success.WithLabelValues(s.answer.finish()).Inc()
		return
	}
	e.abandon()
}

// abandon counts a request that ends without its answer.
func (e *Engine) abandon() {
	e.cancelled.Add(1)
	e.meter.success.WithLabelValues("abort").Inc()
}

// Stats is a snapshot of an engine.
type Stats struct {
	Load
	// Steps done, and those of them that ended late: by more than 2 ms and more than a quarter of their length.
	Steps, LateSteps uint64
	// LateShare is LateSteps / Steps, 0 to 1.
	LateShare float64
	// Events is the number of data events written.
	Events uint64
	// Finished, Cancelled and Refused count requests: answered to the end, ended early (the client left, or a fault cut
	// it), and turned away because the queue was full.
	Finished, Cancelled, Refused uint64
	// KVUsage is the share of the KV budget in use, 0 to 1.
	KVUsage float64
}

// Stats reports the engine's state and counters.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	load := e.mu.batch.Load()
	e.mu.Unlock()
	s := Stats{
		Load: load, Steps: e.steps.Load(), LateSteps: e.late.Load(), Events: e.events.Load(),
		Finished: e.finished.Load(), Cancelled: e.cancelled.Load(), Refused: e.refused.Load(),
		KVUsage: float64(load.KVUsed) / float64(e.cfg.Batching.KVTokens),
	}
	if s.Steps > 0 {
		s.LateShare = float64(s.LateSteps) / float64(s.Steps)
	}
	return s
}
