package sql

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// How often a server is asked.
const (
	beat       = time.Second      // between two looks at replicas
	firstRetry = time.Second      // after a migration that failed; doubles
	lastRetry  = 30 * time.Second // as far as this
)

// replica is a copy of a server that may be read from.
type replica struct {
	*source

	pool   atomic.Pointer[pool]
	up     atomic.Bool
	lag    atomic.Int64 // ns
	failed atomic.Int32 // reads that failed one after the other
}

// tolerated is how many reads may fail, one after the other, before a replica is
// left alone until it is looked at again.
const tolerated = 3

// judge notes how a read went.
func (r *replica) judge(f Fault) {
	if f == noFault {
		r.failed.Store(0)
	} else if r.failed.Add(1) >= tolerated {
		r.up.Store(false)
	}
}

// pick is the next replica that may be read from, or nil.
func (d *Database) pick() *replica {
	if len(d.copies) == 0 {
		return nil
	}
	at := int(d.turn.Add(1) % uint32(len(d.copies)))
	for i := range d.copies {
		if r := d.copies[(at+i)%len(d.copies)]; r.up.Load() {
			return r
		}
	}
	return nil
}

// keep migrates a server, and then looks at its replicas until ctx ends.
func (d *Database) keep(ctx context.Context) {
	for wait := firstRetry; ctx.Err() == nil; wait = min(2*wait, lastRetry) {
		err := d.prepare(ctx)
		if err == nil {
			d.gate.set(nil, false)
			break
		}
		d.result(ctx, err) //nolint:errcheck // counts it
		err = explain(d.name, fmt.Errorf("the tables are not ready: %w", err))
		d.gate.set(err, false)
		if ctx.Err() == nil {
			d.log.WarnContext(ctx, "database cannot be used yet", "retry_in", wait, "error", err)
		}
		pause(ctx, wait)
	}
	for ctx.Err() == nil {
		if len(d.copies) > 0 {
			d.look(ctx)
		}
		pause(ctx, beat)
	}
}

// prepare connects and migrates.
func (d *Database) prepare(ctx context.Context) error {
	p := d.primary.Load()
	dial, cancel := context.WithTimeout(ctx, d.cfg.ConnectTimeout)
	defer cancel()
	if err := p.db.PingContext(dial); err != nil {
		return err
	}
	if !d.cfg.Migrate {
		return nil
	}
	return migrate(ctx, p, d.sets)
}

// look writes the time to the primary, and reads from each replica which time it
// has.
func (d *Database) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, min(d.cfg.Timeout, d.cfg.MaxLag/2))
	defer cancel()
	wrote := d.primary.Load().transact(ctx, true, func(ctx context.Context, c *Conn) error {
		_, err := c.Bound.ExecContext(ctx, d.dialect.Bind("INSERT INTO "+heartbeat+" (id, at_ms) VALUES (1, ?)")+d.dialect.Upsert("id", "at_ms"),
			time.Now().UnixMilli())
		return err
	})
	var wg sync.WaitGroup
	for _, r := range d.copies {
		wg.Go(func() { d.inspect(ctx, r, wrote == nil) })
	}
	wg.Wait()
}

// inspect decides whether a replica may be read from. While the primary cannot be
// written to nothing is new, and a replica that answers is as good as it was.
func (d *Database) inspect(ctx context.Context, r *replica, moving bool) {
	var at int64
	err := r.pool.Load().db.QueryRowContext(ctx, "SELECT at_ms FROM "+heartbeat+" WHERE id = 1").Scan(&at)
	was := r.up.Load()
	now := err == nil
	if now && moving {
		lag := max(0, time.Since(time.UnixMilli(at)))
		r.lag.Store(int64(lag))
		now = lag <= d.cfg.MaxLag
	} else if now {
		now = time.Duration(r.lag.Load()) <= d.cfg.MaxLag
	}
	r.failed.Store(0)
	r.up.Store(now)
	if was != now && ctx.Err() == nil {
		d.log.InfoContext(ctx, "replica changes", "replica", r.name, "used", now, "lag", time.Duration(r.lag.Load()), "error", err)
	}
}
