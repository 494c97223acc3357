package sql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/uptrace/bun"
	"modernc.org/sqlite"
)

// Conn is a database, or a transaction in it, as a piece of work sees it.
//
// The methods of IDB are bun's builder and write arguments into the statement's
// text. Bound takes statements as the dialect has them (see Dialect.Bind) and keeps
// arguments apart: it is the one for large values and for statements that are run
// often, which it prepares where that saves time.
type Conn struct {
	bun.IDB
	Bound bun.IConn
}

// Work is what Read and Write do. It must use ctx, and may be done several times,
// as when a replica fails: what it captures it must set, never add to.
type Work func(ctx context.Context, c *Conn) error

// pool is the connections to one server, or to one SQLite file for one purpose.
type pool struct {
	*source

	db    *sql.DB
	bun   *bun.DB
	texts *texts // prepared statements; nil: the driver has its own
	plain *Conn  // outside of transactions
}

// connector is the driver's part of a pool.
func (s *source) connector(params string) (driver.Connector, error) {
	switch s.dialect {
	case Postgres:
		return stdlib.GetConnector(*s.postgres), nil
	case MySQL:
		return mysql.NewConnector(s.mysql)
	default:
		return sqlite.NewConnector(s.uri(params))
	}
}

// newPool makes a pool of at most n connections. It connects to nothing. The
// parameters are those of a SQLite file.
func newPool(src *source, cfg *Config, n int, params string) (*pool, error) {
	c, err := src.connector(params)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", src.name, err)
	}
	p := &pool{source: src}
	if src.dialect == SQLite {
		p.db = sql.OpenDB(c)
		p.texts = &texts{db: p.db}
		p.db.SetMaxIdleConns(n)
	} else {
		p.db = sql.OpenDB(newDialer(c, n, cfg.ConnectTimeout))
		p.db.SetMaxIdleConns(min(n, cfg.MaxIdle))
		p.db.SetConnMaxLifetime(cfg.MaxLifetime)
		p.db.SetConnMaxIdleTime(cfg.MaxIdleTime)
	}
	p.db.SetMaxOpenConns(n)
	p.bun = bun.NewDB(p.db, src.dialect.builder())
	p.plain = &Conn{IDB: p.bun, Bound: p.bound(nil)}
	return p, nil
}

// bound is the way for statements with arguments, in a transaction unless tx is nil.
func (p *pool) bound(tx *sql.Tx) bun.IConn {
	switch {
	case p.texts != nil:
		return prepared{p.texts, tx}
	case tx != nil:
		return tx
	}
	return p.db
}

// close ends the pool. Connections in use are closed when they are given back.
func (p *pool) close() { _ = p.db.Close() }

// conflicts is how often a transaction is done again that lost against another one.
const conflicts = 5

// transact does work in a transaction.
func (p *pool) transact(ctx context.Context, relaxed bool, do Work) error {
	for i := 1; ; i++ {
		err := p.once(ctx, relaxed, do)
		if classify(err) != faultConflict || i == conflicts {
			return err
		}
	}
}

// once does work in a transaction, once.
func (p *pool) once(ctx context.Context, relaxed bool, do Work) (err error) {
	tx, err := p.bun.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if r := tx.Rollback(); err == nil && r != nil && !errors.Is(r, sql.ErrTxDone) {
			err = r
		}
	}()
	if relaxed && p.dialect == Postgres {
		if _, err := tx.Tx.ExecContext(ctx, "SET LOCAL synchronous_commit TO OFF"); err != nil {
			return err
		}
	}
	if err := do(ctx, &Conn{IDB: tx, Bound: p.bound(tx.Tx)}); err != nil {
		return err
	}
	return tx.Commit()
}

// maxTexts bounds the statements that are kept prepared. Beyond it they are
// prepared for each use.
const maxTexts = 512

// texts are the prepared statements of a pool by their text: SQLite's driver
// compiles a statement anew each time otherwise.
type texts struct {
	db   *sql.DB
	stmt sync.Map // text -> *sql.Stmt
	n    atomic.Int64
}

// statement prepares a text, or returns nil: then it is run as it is, which shows
// what is wrong with it.
func (t *texts) statement(ctx context.Context, text string) *sql.Stmt {
	if s, ok := t.stmt.Load(text); ok {
		return s.(*sql.Stmt)
	}
	if t.n.Load() >= maxTexts {
		return nil
	}
	s, err := t.db.PrepareContext(ctx, text)
	if err != nil {
		return nil
	}
	if kept, ok := t.stmt.LoadOrStore(text, s); ok {
		_ = s.Close()
		return kept.(*sql.Stmt)
	}
	t.n.Add(1)
	return s
}

// prepared runs statements that are kept prepared, in a transaction unless tx is
// nil.
type prepared struct {
	texts *texts
	tx    *sql.Tx
}

// find is the statement to run; nil: there is none, use direct.
func (p prepared) find(ctx context.Context, text string) *sql.Stmt {
	s := p.texts.statement(ctx, text)
	if s != nil && p.tx != nil {
		return p.tx.StmtContext(ctx, s)
	}
	return s
}

// direct runs statements as they are.
func (p prepared) direct() bun.IConn {
	if p.tx != nil {
		return p.tx
	}
	return p.texts.db
}

// ExecContext implements bun.IConn.
func (p prepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if s := p.find(ctx, query); s != nil {
		return s.ExecContext(ctx, args...)
	}
	return p.direct().ExecContext(ctx, query, args...)
}

// QueryContext implements bun.IConn.
func (p prepared) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if s := p.find(ctx, query); s != nil {
		return s.QueryContext(ctx, args...)
	}
	return p.direct().QueryContext(ctx, query, args...)
}

// QueryRowContext implements bun.IConn.
func (p prepared) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if s := p.find(ctx, query); s != nil {
		return s.QueryRowContext(ctx, args...)
	}
	return p.direct().QueryRowContext(ctx, query, args...)
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
