package app

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
	"github.com/spillway/spillway/internal/wire"
)

// operatedCache is the cache as operators reach it.
type operatedCache struct{ *App }

// State implements admin.Cache.
func (c operatedCache) State(ctx context.Context) cache.State { return c.cache.State(ctx) }

// Purge implements admin.Cache.
func (c operatedCache) Purge(ctx context.Context, f cache.Filter) (map[string]int, error) {
	return c.cache.Purge(ctx, f)
}

// Inspect implements admin.Cache.
func (c operatedCache) Inspect(ctx context.Context, key cache.Key) ([]cache.Found, error) {
	return c.cache.Inspect(ctx, key)
}

// The reasons why a request is not warmed.
var (
	errNotKept  = errors.New("its answer is not kept: it needs temperature 0 or a seed, or a rule in cache.rules")
	errCacheOff = errors.New("its answer is not kept: the cache is off (cache.enabled)")
)

// Warm implements admin.Cache.
func (c operatedCache) Warm(ctx context.Context, items iter.Seq[admin.WarmItem], report func(admin.WarmResult)) error {
	var mu sync.Mutex               // of lines, and of report: refusals come from this goroutine
	lines := make(map[[32]byte]int) // of what is being asked
	ready := func(yield func(preload.Item) bool) {
		for item := range items {
			known, err := c.warmable(ctx, item)
			mu.Lock()
			_, twice := lines[known.Key]
			switch {
			case err != nil:
				report(admin.WarmResult{Line: item.Line, Outcome: "refused", Error: err.Error()})
			case twice:
				report(admin.WarmResult{Line: item.Line, Outcome: string(preload.Twice), Key: cache.Key(known.Key).String()})
			default:
				lines[known.Key] = item.Line
			}
			mu.Unlock()
			if err == nil && !twice && !yield(known) {
				return
			}
		}
	}
	return c.preload.Warm(ctx, ready, func(r preload.Result) {
		mu.Lock()
		defer mu.Unlock()
		res := admin.WarmResult{Line: lines[r.Key], Outcome: string(r.Outcome), Key: cache.Key(r.Key).String(), TookMS: r.Took.Milliseconds()}
		delete(lines, r.Key)
		if r.Err != nil {
			res.Error = r.Err.Error()
		}
		report(res)
	})
}

// warmable makes the request of a line, as its tenant would send it, and finds its
// key.
func (a *App) warmable(ctx context.Context, item admin.WarmItem) (preload.Item, error) {
	if item.Broken != nil {
		return preload.Item{}, item.Broken
	}
	surface, ok := inference.ParseSurface(item.Surface)
	if !ok {
		return preload.Item{}, fmt.Errorf("unknown surface %q", item.Surface)
	}
	fields, err := wire.ScanRequest(surface, item.Body)
	if err != nil {
		return preload.Item{}, err
	}
	now := time.Now()
	req := &inference.Request{
		Surface: surface, Body: item.Body, Fields: fields, Tenant: item.Tenant, Class: inference.Idle, Received: now, Deadline: now.Add(a.gateway.Timeout()),
		Header: http.Header{"Content-Type": {"application/json"}},
	}
	if req.Tenant == "" {
		req.Tenant = inference.Anonymous
	}
	plan, err := a.router.Plan(ctx, req)
	if err != nil {
		return preload.Item{}, err
	}
	known := a.cache.Lookup(now, plan.Request, plan) // as it is kept: rules may change what is part of the key
	switch {
	case known == nil && !a.File().Cache.Enabled:
		return preload.Item{}, errCacheOff
	case known == nil:
		return preload.Item{}, errNotKept
	}
	return preload.Item{Key: known.Key(), Request: req}, nil
}

var _ admin.Cache = operatedCache{}
