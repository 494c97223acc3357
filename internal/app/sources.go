package app

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
)

// sourceWait is the longest that a reload waits for what new sources find, and the
// end of the gateway for sources that end. Some libraries cannot be interrupted: a
// kubeconfig may name a program that hangs.
const sourceWait = 5 * time.Second

// runningSource is a source of discovery at work.
type runningSource struct {
	settings any
	stop     context.CancelFunc
	ended    chan struct{} // closed when it runs no more
}

// follows says whether it runs with the given settings.
func (s *runningSource) follows(settings any) bool {
	select {
	case <-s.ended:
		return false
	default:
		return reflect.DeepEqual(s.settings, settings)
	}
}

// runSources runs the pools' sources of discovery, follows reloads, and returns
// when ctx has ended and all of them have, or sourceWait is over.
func (a *App) runSources(ctx context.Context) error {
	var wg sync.WaitGroup
	running := make(map[string]*runningSource)
	for {
		wanted := make(map[string]bool)
		eachPool(a.File(), func(name string, p *config.Pool) {
			settings := sourceSettings(p)
			if settings == nil {
				return
			}
			wanted[name] = true
			if old, ok := running[name]; ok {
				if old.follows(settings) {
					return
				}
				old.stop()
			}
			sctx, stop := context.WithCancel(ctx)
			s := &runningSource{settings, stop, make(chan struct{})}
			running[name] = s
			wg.Go(func() {
				defer close(s.ended)
				a.runSource(sctx, name, settings)
			})
		})
		for name, old := range running {
			if !wanted[name] {
				old.stop()
				delete(running, name)
			}
		}
		select {
		case <-a.reload.applied:
		case <-ctx.Done():
			for _, s := range running {
				s.stop()
			}
			if !ended(&wg, time.After(sourceWait)) {
				a.log.Warn("a source of discovery does not end; it is left behind", "component", "fleet")
			}
			return nil
		}
	}
}

// ended waits for a group, no longer than until late.
func ended(wg *sync.WaitGroup, late <-chan time.Time) bool {
	done := make(chan struct{})
	go func() { // ends with the group
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-late:
		return false
	}
}

// runSource runs one source until its context ends.
func (a *App) runSource(ctx context.Context, pool string, settings any) {
	source := newSource(settings, a.log.With("pool", pool))
	err := source.Run(ctx, func(targets []fleet.Target) {
		a.mu.Lock() // a reload replaces source and targets at once
		defer a.mu.Unlock()
		if ctx.Err() == nil && reflect.DeepEqual(sourcesOf(a.mu.file)[pool], settings) {
			a.fleet.Update(pool, targets)
		}
	})
	if err != nil && ctx.Err() == nil {
		a.log.Error("discovery ended; a reload begins it again", "component", "fleet", "pool", pool, "err", err)
	}
}

// sourcesOf are the settings of the pools' sources.
func sourcesOf(file *config.File) map[string]any {
	all := make(map[string]any)
	eachPool(file, func(name string, p *config.Pool) {
		if settings := sourceSettings(p); settings != nil {
			all[name] = settings
		}
	})
	return all
}

// discover asks the sources that come with a configuration for their first
// instances, all at once, so that a pool is there with them from the moment that
// rules may send requests to it. What a source has not said within sourceWait
// follows when it does.
func (a *App) discover(ctx context.Context, old, now *config.File) map[string][]fleet.Target {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	late := time.After(sourceWait)
	var wg sync.WaitGroup
	var mu sync.Mutex
	found := make(map[string][]fleet.Target)
	running, asked := sourcesOf(old), sourcesOf(now)
	for name, settings := range asked {
		if reflect.DeepEqual(running[name], settings) {
			delete(asked, name)
			continue
		}
		source := newSource(settings, slog.New(slog.DiscardHandler)) // what is wrong comes again when it runs for good
		wg.Go(func() {
			ctx, done := context.WithCancel(ctx)
			defer done()
			_ = source.Run(ctx, func(targets []fleet.Target) {
				mu.Lock()
				defer mu.Unlock()
				if ctx.Err() == nil {
					found[name] = targets
				}
				done()
			})
		})
	}
	ended(&wg, late)
	mu.Lock()
	defer mu.Unlock()
	stop() // nobody writes any more
	for name := range asked {
		if _, ok := found[name]; !ok {
			a.log.Warn("the new source of a pool has not answered yet", "component", "fleet", "pool", name)
		}
	}
	return found
}
