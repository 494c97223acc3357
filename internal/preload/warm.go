package preload

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Outcome is what became of one refresh.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"     // asked, and kept
	Fresh   Outcome = "fresh"    // not asked: a kept answer is fresh
	Twice   Outcome = "twice"    // not asked: the same key is being refreshed
	Failed  Outcome = "failed"   // asked in vain
	GivenUp Outcome = "given_up" // out of time: its window began, or the preloader ends
)

// outcomes lists them.
var outcomes = []Outcome{Done, Fresh, Twice, Failed, GivenUp}

// Item is a request to refresh, and the key of its answer.
type Item struct {
	Key     [32]byte
	Request *inference.Request
}

// Result is what became of an Item.
type Result struct {
	Item
	Outcome Outcome
	Err     error         // of Failed and GivenUp
	Took    time.Duration // set by Warm
}

// carryOut does a plan until it is done or its window begins. A reload and the end
// of the context end it too. It returns when every refresh has ended.
func (p *Preloader) carryOut(ctx context.Context, s *settings, plan Plan) {
	ctx, cancel := context.WithDeadline(ctx, plan.Window.Start)
	var watch, running sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-s.replaced:
			cancel()
		case <-ctx.Done():
		}
	})
	defer running.Wait()
	for i, step := range plan.Steps {
		if !wait(ctx, s, step.At) || !take(ctx, s.slots) {
			p.meter.results(GivenUp).Add(float64(len(plan.Steps) - i))
			break
		}
		running.Go(func() {
			defer release(s.slots)
			item := Item{Key: step.Key, Request: step.Request}
			if r := p.Refresh(ctx, time.Now(), item, plan.Window.End); r.Outcome == Failed {
				p.parts.Log.Debug("refresh", slog.String("key", hex.EncodeToString(step.Key[:])), slog.Any("error", r.Err))
			}
		})
	}
}

// take waits for a slot, unless the context ends.
func take(ctx context.Context, slots chan struct{}) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// release gives it back.
func release(slots chan struct{}) { <-slots }

// Refresh asks one request at once, unless its answer is kept and fresh until the
// given instant, or its key is being refreshed. It waits for no slot: that is its
// caller's part.
func (p *Preloader) Refresh(ctx context.Context, now time.Time, item Item, until time.Time) Result {
	r := Result{Item: item}
	r.Outcome, r.Err = p.refresh(ctx, now, item, until)
	p.meter.results(r.Outcome).Inc()
	return r
}

// refresh is Refresh without its bookkeeping.
func (p *Preloader) refresh(ctx context.Context, now time.Time, item Item, until time.Time) (Outcome, error) {
	if !p.begin(item.Key) {
		return Twice, nil
	}
	defer p.end(item.Key)
	if p.parts.Freshness.Fresh(item.Key, until) {
		return Fresh, nil
	}
	if err := ctx.Err(); err != nil {
		return GivenUp, err
	}
	timeout := p.settings.Load().Timeout
	req := *item.Request
	req.ID = fmt.Sprintf("preload-%x-%d", item.Key[:4], p.serial.Add(1))
	req.Class, req.Received, req.Deadline = inference.Idle, now, now.Add(timeout)
	run, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := p.parts.Runner.Run(run, &req); err != nil {
		if ctx.Err() != nil {
			return GivenUp, err
		}
		return Failed, err
	}
	return Done, nil
}

// begin says whether the key may be refreshed now, and holds it until end.
func (p *Preloader) begin(key [32]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.mu.running[key]; ok {
		return false
	}
	p.mu.running[key] = struct{}{}
	return true
}

// end lets the key go.
func (p *Preloader) end(key [32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.running, key)
}

// Warm refreshes an operator's requests, through the same runner and as many at once
// as Run does, beside it. report is told of each, one at a time and in the order in
// which they end. Warm returns when all have, or with the context's error.
func (p *Preloader) Warm(ctx context.Context, items iter.Seq[Item], report func(Result)) error {
	slots := p.settings.Load().slots
	var running sync.WaitGroup
	var mu sync.Mutex
	for item := range items {
		if !take(ctx, slots) {
			break
		}
		running.Go(func() {
			defer release(slots)
			now := time.Now()
			item.Request = Strip(item.Request)
			r := p.Refresh(ctx, now, item, now)
			r.Took = time.Since(now)
			mu.Lock()
			defer mu.Unlock()
			report(r)
		})
	}
	running.Wait()
	return ctx.Err()
}
