package app

import (
	"context"
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/identity/jwt"
	keysql "github.com/spillway/spillway/internal/identity/sql"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	limitredis "github.com/spillway/spillway/internal/limit/redis"
)

// buildKeys makes what tells callers apart.
func (a *App) buildKeys(file *config.File) (err error) {
	parts := identity.Parts{Tokens: jwt.New(jwt.Parts{Log: a.log.Logger}), Log: a.log.Logger}
	if file.Identity.SQL {
		if a.databases == nil {
			return fmt.Errorf("identity: sql: there is no database: set store.directory or store.sql.databases")
		}
		parts.Database = keysql.New(a.databases)
	}
	if a.keys, err = identity.New(file.Identity, parts); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

// buildLimits makes what limits callers.
func (a *App) buildLimits(file *config.File) (err error) {
	parts := limit.Parts{Emergency: func() bool { return a.emergency.Profile(time.Now()) != nil }, Log: a.log.Logger}
	if file.Limit.Store.Kind == limit.KindRedis && a.redis != nil {
		parts.Store = limitredis.New(a.redis, file.Limit.Store)
	}
	if a.ledger != nil {
		parts.Ledger = a.ledger
	}
	if a.limiter, err = limit.New(file.Limit, parts); err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	a.limitKind = file.Limit.Store.Kind
	return nil
}

// applyLimits replaces the limits. Where buckets are kept changes with a restart.
func (a *App) applyLimits(file *config.File) error {
	cfg := file.Limit
	cfg.Store.Kind = a.limitKind
	return a.limiter.Apply(cfg)
}

// limits adapts the limiter to what the gateway calls.
type limits struct{ *limit.Limiter }

// Reserve implements gateway.Limits.
func (l limits) Reserve(ctx context.Context, now time.Time, req *inference.Request) (gateway.Receipt, error) {
	r, err := l.Limiter.Reserve(ctx, now, req)
	if err != nil {
		return nil, err
	}
	return r, nil
}
