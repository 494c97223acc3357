package sql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
)

// Migrations make the tables of one feature. A step that was published is never
// changed: what is wrong with it, a later one changes.
type Migrations struct {
	Name  string // of the feature, in lower-case letters; part of a table's name
	Steps []Step // in order
}

// Step is the statements of one step, for every shard: each database has the tables
// of all. It may be done twice, as MySQL cannot undo half of one: tables are made
// IF NOT EXISTS, and so on.
type Step func(d Dialect) []string

// heartbeat is a table with one row: when a gateway last looked at the replicas.
const heartbeat = "spillway_heartbeat"

// ownTables are the tables of this package.
func ownTables() Migrations {
	return Migrations{Name: "store", Steps: []Step{func(Dialect) []string {
		return []string{"CREATE TABLE IF NOT EXISTS " + heartbeat + " (id INTEGER NOT NULL PRIMARY KEY, at_ms BIGINT NOT NULL)"}
	}}}
}

// errApplied says that another process has done a step in the meantime.
var errApplied = errors.New("done by another process")

// migrate brings a database up to date. Of several processes, on SQLite too, one
// does each step. The lock of a server is held around all of it, because the library
// makes its table of versions before it asks for a lock of its own.
func migrate(ctx context.Context, p *pool, sets []Migrations) error {
	if p.dialect != SQLite {
		conn, err := p.db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		l := lock(p.dialect)
		if err := l.take(ctx, conn); err != nil {
			return fmt.Errorf("lock for migrations: %w", err)
		}
		defer l.give(context.WithoutCancel(ctx), conn)
	}
	for _, set := range sets {
		provider, err := set.provider(p)
		if err != nil {
			return fmt.Errorf("migrate %s: %w", set.Name, err)
		}
		for {
			_, err = provider.Up(ctx)
			if !errors.Is(err, errApplied) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("migrate %s: %w", set.Name, err)
		}
	}
	return nil
}

// provider is the set for goose.
func (m Migrations) provider(p *pool) (*goose.Provider, error) {
	versions := "spillway_" + m.Name + "_migrations"
	var list []*goose.Migration
	for i, step := range m.Steps {
		number := int64(i) + 1
		list = append(list, goose.NewGoMigration(number, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			return apply(ctx, tx, step(p.dialect), fmt.Sprintf("SELECT COUNT(*) FROM %s WHERE version_id = %d", versions, number))
		}}, nil))
	}
	options := []goose.ProviderOption{
		goose.WithTableName(versions), goose.WithGoMigrations(list...), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()),
	}
	kind := map[Dialect]goose.Dialect{SQLite: goose.DialectSQLite3, Postgres: goose.DialectPostgres, MySQL: goose.DialectMySQL}[p.dialect]
	return goose.NewProvider(kind, p.db, nil, options...)
}

// apply does a step, unless it is done. SQLite knows no locks beyond a transaction,
// but this transaction holds the one for writing from its beginning.
func apply(ctx context.Context, tx *sql.Tx, statements []string, done string) error {
	var n int
	if err := tx.QueryRowContext(ctx, done).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return errApplied
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(s), err)
		}
	}
	return nil
}

// lock is held by the session that migrates a server. It ends with the session.
type lock Dialect

// lockNumber names the lock in PostgreSQL: "spillway" in ASCII.
const lockNumber = 0x7370696c6c776179

// unlockTimeout bounds the time to give the lock back. It ends with the connection
// at the latest.
const unlockTimeout = 5 * time.Second

// take waits for the lock.
func (l lock) take(ctx context.Context, conn *sql.Conn) error {
	if Dialect(l) == Postgres {
		_, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(lockNumber))
		return err
	}
	// Locks of MySQL belong to the server, not to a database, and have names of at most 64.
	const get = "SELECT GET_LOCK(CONCAT('spillway.', MD5(DATABASE())), 3600)"
	var got sql.NullInt64
	if err := conn.QueryRowContext(ctx, get).Scan(&got); err != nil {
		return err
	}
	if got.Int64 != 1 {
		return errors.New("the lock for migrations is not to be had")
	}
	return nil
}

// give gives the lock back.
func (l lock) give(ctx context.Context, conn *sql.Conn) {
	give := "SELECT pg_advisory_unlock($1)"
	args := []any{int64(lockNumber)}
	if Dialect(l) == MySQL {
		give, args = "SELECT RELEASE_LOCK(CONCAT('spillway.', MD5(DATABASE())))", nil
	}
	ctx, cancel := context.WithTimeout(ctx, unlockTimeout)
	defer cancel()
	_, _ = conn.ExecContext(ctx, give, args...) // otherwise it ends with the connection
}
