package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// The breaker of a level opens after tripAfter faults in a row, stays open for
// firstRest, twice as long after each probe that fails, up to longestRest. Then one
// call in flight tries whether the level is back.
const (
	tripAfter   = 5
	firstRest   = 500 * time.Millisecond
	longestRest = 15 * time.Second
)

// errResting says that a level is not asked, because it failed.
var errResting = errors.New("the level is resting after faults")

// guard stands in front of a slow level: it counts what becomes of calls, and
// spares the level, and the requests, while it fails.
type guard struct {
	Level
	name  string
	log   *slog.Logger
	count levelCount

	open atomic.Int64 // until when the level rests, Unix nanoseconds; 0: it does not
	mu   struct {
		sync.Mutex
		faults int
		rest   time.Duration
		puts   int // that failed, one behind the other
	}
}

// levelCount is what became of calls to a level.
type levelCount struct {
	hits, misses, faults, skipped      atomic.Uint64 // of Get
	written, writeFaults, writeSkipped atomic.Uint64 // entries, of Put
	swept                              atomic.Uint64
}

// Get asks the level, unless it rests.
func (g *guard) Get(ctx context.Context, key Key, now time.Time) (*Entry, error) {
	if !g.ready(now) {
		g.count.skipped.Add(1)
		return nil, errResting
	}
	e, err := g.get(ctx, key, now)
	g.judge(err, time.Now())
	switch {
	case err == nil:
		g.count.hits.Add(1)
	case errors.Is(err, ErrMiss):
		g.count.misses.Add(1)
	default:
		g.count.faults.Add(1)
		g.log.Debug("look-up", "component", "cache", "level", g.name, "err", err)
	}
	return e, err
}

// get is the level's Get; a panic in it, as on bytes that nobody expected, is a fault
// of the level and not the end of the process.
func (g *guard) get(ctx context.Context, key Key, now time.Time) (e *Entry, err error) {
	defer func() {
		if p := recover(); p != nil {
			e, err = nil, fmt.Errorf("panic: %v", p)
			g.log.Error("look-up", "component", "cache", "level", g.name, "err", err, "stack", string(debug.Stack()))
		}
	}()
	return g.Level.Get(ctx, key, now)
}

// Put writes to the level, unless it rests.
func (g *guard) Put(ctx context.Context, entries []*Entry) error {
	n := uint64(len(entries))
	if !g.ready(time.Now()) {
		g.count.writeSkipped.Add(n)
		return errResting
	}
	err := g.Level.Put(ctx, entries)
	g.judge(err, time.Now())
	g.judgePut(err)
	if err != nil {
		g.count.writeFaults.Add(n)
		g.log.Debug("fill", "component", "cache", "level", g.name, "err", err)
		return err
	}
	g.count.written.Add(n)
	return nil
}

// sweepTime bounds one sweep of one level.
const sweepTime = 10 * time.Second

// clear sweeps the level, unless it rests, and says whether its time was too short for
// what there was to do.
func (g *guard) clear(ctx context.Context, now time.Time) (more bool) {
	if g.open.Load() != 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	n, err := g.Sweep(ctx, now)
	g.count.swept.Add(uint64(max(n, 0)))
	more = n > 0 && errors.Is(err, context.DeadlineExceeded)
	if err != nil && !more && !errors.Is(err, context.Canceled) {
		g.log.Warn("sweep", "component", "cache", "level", g.name, "err", err)
	}
	return more
}

// ready says whether the level may be asked. Of several callers that find its rest
// over, one is let through, and the others when that one comes back well.
func (g *guard) ready(now time.Time) bool {
	until := g.open.Load()
	return until == 0 || now.UnixNano() >= until && g.open.CompareAndSwap(until, now.Add(longestRest).UnixNano())
}

// judge notes whether a call went well. A miss is well.
func (g *guard) judge(err error, now time.Time) {
	if err == nil || errors.Is(err, ErrMiss) {
		if g.open.Load() == 0 && !g.troubled() {
			return
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.open.Swap(0) != 0 {
			g.log.Info("the level is back", "component", "cache", "level", g.name)
		}
		g.mu.faults, g.mu.rest = 0, 0
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.faults++
	if g.mu.faults < tripAfter {
		return
	}
	if until := g.open.Load(); g.mu.rest > 0 && until > now.UnixNano() && until <= now.Add(g.mu.rest).UnixNano() {
		return // it rests, and nobody probes: the call began before that
	}
	if g.mu.rest == 0 {
		g.mu.rest = firstRest
		g.log.Warn("the level fails and rests", "component", "cache", "level", g.name, "err", err)
	} else {
		g.mu.rest = min(2*g.mu.rest, longestRest)
	}
	g.open.Store(now.Add(g.mu.rest).UnixNano())
}

// judgePut notes whether a write went well. A level that gives what it has and takes
// nothing new, such as a full or read-only one, does not rest for it.
func (g *guard) judgePut(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err != nil:
		if g.mu.puts++; g.mu.puts == tripAfter {
			g.log.Warn("the level takes no new entries", "component", "cache", "level", g.name, "err", err)
		}
	case g.mu.puts >= tripAfter:
		g.log.Info("the level takes new entries again", "component", "cache", "level", g.name)
		fallthrough
	default:
		g.mu.puts = 0
	}
}

// refuses says whether no write has gone well for a while.
func (g *guard) refuses() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.puts >= tripAfter
}

// troubled says whether faults are counted.
func (g *guard) troubled() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.faults > 0
}
