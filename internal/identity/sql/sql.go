// Package sql keeps API keys in a table of store/sql, in SQLite, PostgreSQL or MySQL.
//
// All keys are in the table of shard 0, a row each, by their public id; a unique index
// keeps a digest from standing there twice. A row has everything but the key. Beside
// it is a table with one row, a number that grows with each change, in the change's own
// transaction: gateways that have the keys of the number read nothing else. What is
// changed by hand they see when they read everything, once a minute.
//
// The whole table is read page by page along its primary key, from the primary, and
// has a bound: beyond it Load fails, and gateways go on with what they have. Nothing is
// created in a database before the first key. A Table owns no goroutine and has no
// state.
package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store/sql"
)

// Bounds of the table and of single statements.
const (
	MaxKeys = 200_000 // that a gateway reads
	page    = 1000    // rows
	maxBad  = 10      // rows whose mistakes are told
)

// Table is the keys in a database. It implements identity.Database and
// identity.Register.
type Table struct {
	shard *sql.Shard
	texts
	most int
}

// New returns the table in a store, which must have been opened with Migrations.
func New(store *sql.Store) *Table {
	shard := store.Shard(0)
	return &Table{shard, textsOf(shard), MaxKeys}
}

// Load implements identity.Database.
func (t *Table) Load(ctx context.Context, known int64) (keys []identity.Key, version int64, err error) {
	var bad []error
	err = t.shard.ReadLatest(ctx, func(ctx context.Context, c *sql.Conn) (err error) {
		keys, bad = nil, nil
		version, err = t.number(ctx, c) // before the rows: what changes between is read again the next time
		if err != nil || version == known {
			return err
		}
		keys, bad, err = t.all(ctx, c)
		return err
	})
	switch {
	case errors.Is(err, sql.ErrAbsent): // no key was ever made
		return nil, 0, nil
	case err != nil:
		return nil, -1, fmt.Errorf("read the keys: %w", err)
	case len(bad) > 0:
		return keys, version, fmt.Errorf("%w: %w", identity.ErrSomeKeys, errors.Join(bad...))
	}
	return keys, version, nil
}

// List implements identity.Register.
func (t *Table) List(ctx context.Context) ([]identity.Key, error) {
	keys, _, err := t.Load(ctx, -1)
	return keys, err
}

// number reads how often the keys have changed.
func (t *Table) number(ctx context.Context, c *sql.Conn) (n int64, err error) {
	err = c.Bound.QueryRowContext(ctx, t.version).Scan(&n)
	if errors.Is(err, stdsql.ErrNoRows) {
		return 0, nil
	}
	return n, err
}

// all reads all keys, in the order of their ids. bad is what is wrong with others, as
// far as anybody reads on.
func (t *Table) all(ctx context.Context, c *sql.Conn) (keys []identity.Key, bad []error, err error) {
	after, n := []byte{}, 0
	for {
		more, wrong, last, err := t.some(ctx, c, t.next, after, page)
		if err != nil {
			return nil, nil, err
		}
		keys, bad, n = append(keys, more...), append(bad, wrong...), n+len(more)+len(wrong)
		if n > t.most {
			return nil, nil, fmt.Errorf("more than %d keys", t.most)
		}
		if len(more)+len(wrong) < page {
			return keys, bad[:min(len(bad), maxBad)], nil
		}
		after = last
	}
}

// some reads rows: the keys, what is wrong with others, and the last id.
func (t *Table) some(ctx context.Context, c *sql.Conn, text string, args ...any) (keys []identity.Key, bad []error, last []byte, err error) {
	rows, err := c.Bound.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, nil, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		if err := rows.Scan(r.fields()...); err != nil {
			return nil, nil, nil, err
		}
		last = r.id
		if k, err := r.key(); err != nil {
			bad = append(bad, err)
		} else {
			keys = append(keys, k)
		}
	}
	return keys, bad, last, errors.Join(rows.Err(), rows.Close())
}

// row is a key as it is read.
type row struct {
	id, sum, tenant, class, models []byte
	kind, expires, revoked         int64
	quota                          inference.Quota
}

// fields are where a row's columns go.
func (r *row) fields() []any {
	q := &r.quota
	return []any{
		&r.id, &r.kind, &r.sum, &r.tenant, &r.class, &r.models, &r.expires, &r.revoked,
		&q.RequestsPerSecond, &q.RequestsPerMinute, &q.TokensPerMinute, &q.Concurrent, &q.TokensPerDay, &q.TokensPerMonth,
	}
}

// key judges a row as a line of a file is judged: somebody may have written it by hand.
func (r *row) key() (k identity.Key, err error) {
	k = identity.Key{ID: string(r.id), Tenant: string(r.tenant), Quota: r.quota, Expires: moment(r.expires), Revoked: moment(r.revoked)}
	if len(r.models) > 0 {
		k.Models = strings.Split(string(r.models), ",")
	}
	var ok bool
	if k.Class, ok = inference.ParseClass(string(r.class)); !ok {
		err = errors.New("a class is vip, normal or batch")
	}
	if r.kind != int64(identity.SHA256) && r.kind != int64(identity.HMAC) || len(r.sum) != len(k.Digest.Sum) {
		err = errors.Join(err, errors.New("it has no digest of a known kind"))
	}
	k.Digest.Kind = identity.Kind(r.kind)
	copy(k.Digest.Sum[:], r.sum)
	if err = errors.Join(err, k.Check()); err != nil {
		return k, fmt.Errorf("the key with the id %.20q: %w", k.ID, err)
	}
	return k, nil
}

// moment is a time in a row; 0 is none.
func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// millis is a time for a row.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Add implements identity.Register.
func (t *Table) Add(ctx context.Context, k identity.Key) error {
	return t.change(ctx, func(ctx context.Context, c *sql.Conn) error { return t.insert(ctx, c, &k) })
}

// insert writes a new row.
func (t *Table) insert(ctx context.Context, c *sql.Conn, k *identity.Key) error {
	if err := k.Check(); err != nil {
		return err
	}
	var taken, all int64
	if err := c.Bound.QueryRowContext(ctx, t.taken, []byte(k.ID), k.Digest.Sum[:]).Scan(&taken); err != nil {
		return err
	}
	if err := c.Bound.QueryRowContext(ctx, t.sum).Scan(&all); err != nil {
		return err
	}
	switch {
	case taken > 0:
		return identity.ErrTaken
	case all >= int64(t.most):
		return fmt.Errorf("there are %d keys, as many as there may be; delete what is not used any more", all)
	}
	var err error
	q := &k.Quota
	_, err = c.Bound.ExecContext(ctx, t.put, []byte(k.ID), int64(k.Digest.Kind), k.Digest.Sum[:], []byte(k.Tenant), []byte(k.Class.String()),
		[]byte(strings.Join(k.Models, ",")), millis(k.Expires), millis(k.Revoked), q.RequestsPerSecond, q.RequestsPerMinute,
		q.TokensPerMinute, q.Concurrent, q.TokensPerDay, q.TokensPerMonth)
	return err
}

// Update implements identity.Register.
func (t *Table) Update(ctx context.Context, id string, change func(k *identity.Key) (more *identity.Key, err error)) error {
	return t.change(ctx, func(ctx context.Context, c *sql.Conn) error {
		found, bad, _, err := t.some(ctx, c, t.one, []byte(id))
		if err != nil || len(bad) > 0 {
			return errors.Join(append(bad, err)...)
		}
		if len(found) == 0 {
			return identity.ErrUnknownKey
		}
		k := found[0]
		more, err := change(&k)
		if err != nil {
			return err
		}
		if _, err := c.Bound.ExecContext(ctx, t.end, millis(k.Expires), millis(k.Revoked), []byte(id)); err != nil {
			return err
		}
		if more == nil {
			return nil
		}
		return t.insert(ctx, c, more)
	})
}

// change does what changes keys, one of several at a time: the number's row is the lock.
func (t *Table) change(ctx context.Context, do sql.Work) error {
	err := t.shard.Write(ctx, func(ctx context.Context, c *sql.Conn) error {
		if _, err := c.Bound.ExecContext(ctx, t.count); err != nil {
			return err
		}
		return do(ctx, c)
	})
	if err != nil {
		return fmt.Errorf("change the keys: %w", err)
	}
	return nil
}
