package sql

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Database is one database with its replicas. It is safe for concurrent use.
type Database struct {
	*source

	cfg  *Config
	sets []Migrations
	log  *slog.Logger

	gate    gate
	queue   queue
	primary atomic.Pointer[pool] // of SQLite: the readers
	writer  *writer              // nil: a server
	copies  []*replica
	turn    atomic.Uint32 // of the replicas
	faults  [FaultOther + 1]atomic.Int64
}

// newDatabase prepares a database.
func newDatabase(cfg *Config, one DatabaseConfig, dir string, log *slog.Logger) (*Database, error) {
	src, err := parseDSN(one.DSN, dir)
	if err != nil {
		return nil, err
	}
	d := &Database{source: src, cfg: cfg, log: log.With("component", "store.sql", "database", src.name)}
	d.gate.tried = make(chan struct{})
	d.queue.max = int64(cfg.Queue)
	if src.dialect == SQLite {
		d.writer = newWriter(d)
	}
	for _, dsn := range one.Replicas {
		src, err := parseDSN(dsn, dir)
		if err != nil {
			return nil, err
		}
		d.copies = append(d.copies, &replica{source: src})
	}
	return d, nil
}

// Name is the database's address without secrets.
func (d *Database) Name() string { return d.name }

// Dialect is the kind of database.
func (d *Database) Dialect() Dialect { return d.dialect }

// Read does work that changes nothing. A replica may do it, so what was written a
// moment ago may not be seen. The error is ErrAbsent when nothing was ever written.
func (d *Database) Read(ctx context.Context, do Work) error {
	if err := d.gate.wait(ctx); err != nil {
		return err
	}
	if r := d.pick(); r != nil {
		err := d.try(ctx, r.pool.Load(), do)
		fault := classify(err)
		if r.judge(fault); fault == noFault || ctx.Err() != nil {
			return d.result(ctx, err)
		}
		d.log.DebugContext(ctx, "replica fails", "replica", r.name, "error", err)
	}
	return d.result(ctx, d.try(ctx, d.primary.Load(), do))
}

// ReadLatest does work that changes nothing, and sees everything that was written
// before.
func (d *Database) ReadLatest(ctx context.Context, do Work) error {
	if err := d.gate.wait(ctx); err != nil {
		return err
	}
	return d.result(ctx, d.try(ctx, d.primary.Load(), do))
}

// Write does work in a transaction, and returns once it will outlast a loss of
// power, as far as the server is configured to. Work that has begun when ctx ends
// may be done nevertheless; then nothing that it captured may be read. The error is
// ErrBusy when too many writes wait.
func (d *Database) Write(ctx context.Context, do Work) error { return d.write(ctx, do, false) }

// WriteRelaxed is Write for what may be lost: after a loss of power the last writes
// may be undone, as a whole and in order. It is much faster on SQLite.
func (d *Database) WriteRelaxed(ctx context.Context, do Work) error { return d.write(ctx, do, true) }

// write does work in a transaction.
func (d *Database) write(ctx context.Context, do Work, relaxed bool) error {
	if !d.queue.enter() {
		return d.result(ctx, fmt.Errorf("%s: %w", d.name, ErrBusy))
	}
	if d.writer != nil {
		return d.result(ctx, d.writer.write(ctx, do, relaxed))
	}
	defer d.queue.leave()
	if err := d.gate.wait(ctx); err != nil {
		return err
	}
	ctx, cancel := d.limit(ctx)
	defer cancel()
	return d.result(ctx, d.primary.Load().transact(ctx, relaxed, do))
}

// try does work outside of a transaction. A SQLite file that is locked is tried
// again: the driver's own wait does not end with ctx.
func (d *Database) try(ctx context.Context, p *pool, do Work) error {
	ctx, cancel := d.limit(ctx)
	defer cancel()
	var until time.Time
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := do(ctx, p.plain)
		if p.dialect != SQLite || classify(err) != FaultLocked {
			return err
		}
		if now := time.Now(); until.IsZero() {
			until = now.Add(d.cfg.LockTimeout)
		} else if now.After(until) {
			return err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return err
		}
	}
}

// limit bounds the time of one piece of work.
func (d *Database) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if at, ok := ctx.Deadline(); ok && time.Until(at) < d.cfg.Timeout {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, d.cfg.Timeout)
}

// result counts a failure and says whose it is.
func (d *Database) result(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errClosedPool) || errors.Is(err, ErrClosed) || d.gate.closed() {
		return fmt.Errorf("%s: %w", d.name, ErrClosed)
	}
	fault := classify(err)
	if ctx.Err() != nil && fault < faults && !errors.Is(err, ctx.Err()) {
		fault, err = FaultTimeout, fmt.Errorf("%w: %w", ctx.Err(), err) // drivers name their own reasons for stopping
	}
	if fault < faults && !errors.Is(err, context.Canceled) {
		d.faults[fault].Add(1)
	} else if fault == faultConflict {
		d.faults[FaultOther].Add(1)
	}
	if fault == FaultBusy {
		return err
	}
	return explain(d.name, err)
}

// open makes the pools of a server. SQLite's are made by its writer.
func (d *Database) open() error {
	if d.writer != nil {
		return nil
	}
	p, err := newPool(d.source, d.cfg, d.cfg.MaxOpen, "")
	if err != nil {
		return err
	}
	d.primary.Store(p)
	for _, r := range d.copies {
		p, err := newPool(r.source, d.cfg, d.cfg.MaxOpen, "")
		if err != nil {
			d.close()
			return err
		}
		r.pool.Store(p)
	}
	return nil
}

// close ends what the database has open.
func (d *Database) close() {
	d.gate.set(fmt.Errorf("%s: %w", d.name, ErrClosed), true)
	if p := d.primary.Load(); p != nil {
		p.close()
	}
	for _, r := range d.copies {
		if p := r.pool.Load(); p != nil {
			p.close()
		}
	}
}

// run makes the database work until ctx ends.
func (d *Database) run(ctx context.Context) {
	defer d.close()
	if d.writer != nil {
		d.writer.run(ctx)
		return
	}
	d.keep(ctx)
}

// stats is how the pools are.
func (d *Database) stats() (list []Stats) {
	p := d.primary.Load()
	if p == nil || d.gate.closed() {
		return nil
	}
	main := p.stats("primary")
	if d.writer != nil {
		list = append(list, p.stats("reader"))
		main = d.writer.pool.Load().stats("writer")
	}
	main.Usable = d.gate.open.Load()
	main.Queue, main.QueueMax = int(d.queue.n.Load()), int(d.queue.max)
	for i := range main.Faults {
		main.Faults[i] = d.faults[i].Load()
	}
	list = append(list, main)
	for _, r := range d.copies {
		s := r.pool.Load().stats("replica")
		s.Usable, s.Lag = r.up.Load(), time.Duration(r.lag.Load())
		list = append(list, s)
	}
	return list
}

// stats is how a pool is.
func (p *pool) stats(role string) Stats {
	s := p.db.Stats()
	return Stats{
		Database: p.name, Role: role, Open: s.OpenConnections, InUse: s.InUse, Idle: s.Idle,
		Waits: s.WaitCount, Waited: s.WaitDuration,
	}
}

// queue bounds what waits to be written.
type queue struct {
	n   atomic.Int64
	max int64
}

// enter takes a place, if there is one.
func (q *queue) enter() bool {
	if q.n.Add(1) <= q.max {
		return true
	}
	q.n.Add(-1)
	return false
}

// leave gives the place back.
func (q *queue) leave() { q.n.Add(-1) }

// gate keeps work from a database until its tables are there.
type gate struct {
	open  atomic.Bool
	tried chan struct{} // closed with the first verdict
	mu    struct {
		sync.Mutex
		err    error // why the gate is closed; nil: not known yet
		set    bool
		closed bool // for good
	}
}

// wait returns nil when the gate is open. Before the first verdict it waits.
func (g *gate) wait(ctx context.Context) error {
	if g.open.Load() {
		return nil
	}
	select {
	case <-g.tried:
	case <-ctx.Done():
		return fmt.Errorf("wait for the tables: %w", ctx.Err())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.err
}

// set opens the gate, or closes it for a reason. Once it is closed for good, it
// stays so.
func (g *gate) set(err error, forGood bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.closed {
		return
	}
	g.open.Store(err == nil)
	g.mu.err, g.mu.closed = err, forGood
	if !g.mu.set {
		g.mu.set = true
		close(g.tried)
	}
}

// closed says whether the gate is closed for good.
func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.closed
}
