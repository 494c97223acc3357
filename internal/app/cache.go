package app

import (
	"context"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/memory"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
)

// buildCache makes the levels that the configuration names, and what fills them
// ahead of demand.
func (a *App) buildCache(file *config.File) {
	a.preload = preload.New(file.Preload, preload.Parts{Runner: ahead{a}, Freshness: ahead{a}, Log: a.log.Logger})
	a.cache = cache.New(file.Cache, cache.Parts{
		Memory: memory.New(int64(file.Cache.Memory.Size), nil),
		Asked: func(q cache.Asked) {
			a.preload.Observe(preload.Asked{Key: q.Key, Request: q.Request, At: q.At, Hit: q.Hit, Tokens: q.Tokens})
		},
		Log: a.log.Logger,
	})
}

// answers adapts the cache to what the gateway calls.
type answers struct{ *cache.Cache }

// Lookup implements gateway.Cache.
func (c answers) Lookup(now time.Time, req *inference.Request, plan *fleet.Plan) gateway.Known {
	if h := c.Cache.Lookup(now, req, plan); h != nil {
		return h
	}
	return nil
}

// ahead adapts the gateway and the cache to what the preloader calls.
type ahead struct{ *App }

// Run implements preload.Runner: the answer is generated anew and kept.
func (a ahead) Run(ctx context.Context, req *inference.Request) error {
	r := gateway.Background(req, req.Received, req.Deadline.Sub(req.Received))
	rec := a.gateway.Serve(ctx, r, gateway.Discard{})
	if rec.Code != "" {
		return inference.Errorf(rec.Code, "%s", rec.Reason)
	}
	return nil
}

// Fresh implements preload.Freshness.
func (a ahead) Fresh(key [32]byte, until time.Time) bool {
	return a.cache.Fresh(key, time.Now(), until)
}
