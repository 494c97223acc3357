package app

import (
	"context"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/memory"
	"github.com/spillway/spillway/internal/cache/redis"
	"github.com/spillway/spillway/internal/cache/sql"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
	"github.com/spillway/spillway/internal/wire"
)

// buildCache makes the levels that the configuration names, and what fills them
// ahead of demand.
func (a *App) buildCache(file *config.File) {
	slower := a.levels(file)
	parts := preload.Parts{Runner: ahead{a}, Freshness: ahead{a}, Log: a.log.Logger}
	if a.shared != nil {
		parts.Publish = a.publishTopics
	}
	a.preload = preload.New(file.Preload, parts)
	a.cache = cache.New(file.Cache, cache.Parts{
		Memory: memory.New(int64(file.Cache.Memory.Size), nil),
		Slower: slower,
		Asked: func(q cache.Asked) {
			a.preload.Observe(preload.Asked{Key: q.Key, Request: q.Request, At: q.At, Hit: q.Hit, Tokens: q.Tokens, Varies: q.Varies})
		},
		Log: a.log.Logger,
	})
}

// levels makes the slower levels.
func (a *App) levels(file *config.File) (levels []cache.Named) {
	if c := file.Cache.Redis; c.Enabled && a.redis != nil {
		a.shared = redis.New(a.redis, c)
		levels = append(levels, cache.Named{Name: "redis", Level: a.shared})
	}
	if c := file.Cache.SQL; c.Enabled && a.databases != nil {
		levels = append(levels, cache.Named{Name: "sql", Level: sql.New(a.databases, c)})
	}
	return levels
}

// topicsTime bounds the time for writing the hot topics.
const topicsTime = time.Second

// publishTopics shows in Redis what will be asked most in the next window.
func (a *App) publishTopics(ctx context.Context, expected []preload.Prediction) {
	topics := make([]redis.Topic, len(expected))
	for i, p := range expected {
		topics[i] = redis.Topic{Model: p.Request.Model, Question: wire.Question(p.Request), Demand: p.Asks}
	}
	ctx, cancel := context.WithTimeout(ctx, topicsTime)
	defer cancel()
	if err := a.shared.Topics(ctx, topics); err != nil {
		a.log.Debug("hot topics", "component", "preload", "err", err)
	}
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
	return a.cache.Fresh(context.Background(), key, time.Now(), until)
}
