package app

import (
	"context"
	"reflect"
	"sync"

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
			source, settings := sourceOf(p, a.log.With("component", "fleet", "pool", name))
			if source == nil {
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
