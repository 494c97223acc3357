package app

import (
	"context"
	"reflect"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
)

// runningSource is a source of discovery at work.
type runningSource struct {
	settings any
	stop     context.CancelFunc
}

// runSources runs the pools' sources of discovery, follows reloads, and returns
// when ctx has ended and all of them have.
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
				if reflect.DeepEqual(old.settings, settings) {
					return
				}
				old.stop()
			}
			sctx, stop := context.WithCancel(ctx)
			running[name] = &runningSource{settings, stop}
			source := a.newSource(name, settings)
			wg.Go(func() { a.runSource(sctx, name, source) })
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
			wg.Wait()
			return nil
		}
	}
}

// firstWait is the longest that a reload waits for what new sources find.
const firstWait = 5 * time.Second

// discover asks the sources that come with a configuration for their first
// instances, all at once, so that a pool is there with them from the moment that
// rules may send requests to it. What a source has not said within firstWait
// follows when it does.
func (a *App) discover(ctx context.Context, old, now *config.File) map[string][]fleet.Target {
	ctx, stop := context.WithTimeout(ctx, firstWait)
	defer stop()
	running := make(map[string]any)
	eachPool(old, func(name string, p *config.Pool) { running[name] = sourceSettings(p) })
	var mu sync.Mutex
	found := make(map[string][]fleet.Target)
	var wg sync.WaitGroup
	eachPool(now, func(name string, p *config.Pool) {
		settings := sourceSettings(p)
		if settings == nil || reflect.DeepEqual(running[name], settings) {
			return
		}
		source := a.newSource(name, settings)
		wg.Go(func() {
			ctx, done := context.WithCancel(ctx)
			defer done()
			// Its error comes again, and is logged, when the source runs for good.
			_ = source.Run(ctx, func(targets []fleet.Target) {
				mu.Lock()
				defer mu.Unlock()
				found[name] = targets
				done()
			})
		})
	})
	wg.Wait()
	return found
}

// newSource returns the source of a pool by its settings.
func (a *App) newSource(pool string, settings any) fleet.Source {
	return newSource(settings, a.log.With("component", "fleet", "pool", pool))
}

// runSource runs one source until its context ends.
func (a *App) runSource(ctx context.Context, pool string, source fleet.Source) {
	err := source.Run(ctx, func(targets []fleet.Target) {
		if ctx.Err() == nil {
			a.fleet.Update(pool, targets)
		}
	})
	if err != nil && ctx.Err() == nil {
		a.log.Error("discovery ended", "component", "fleet", "pool", pool, "err", err)
	}
}
