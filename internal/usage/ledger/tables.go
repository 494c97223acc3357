package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/store/sql"
)

// Migrations are the tables of the ledger, in every shard: ledger_NN, and
// ledger_batch_NN with the names of the batches that were written. Names are bytes:
// databases compare texts as people do, which would take one tenant for another.
func Migrations() sql.Migrations {
	return sql.Migrations{Name: "ledger", Steps: []sql.Step{first}}
}

// first makes the tables.
func first(d sql.Dialect) (list []string) {
	number, name, hash, id, engine := "INTEGER", "BLOB", "BLOB", "BLOB", ""
	switch d {
	case sql.Postgres:
		number, name, hash, id = "BIGINT", "BYTEA", "BYTEA", "BYTEA"
	case sql.MySQL:
		number, name, hash, id, engine = "BIGINT", "VARBINARY(512)", "BINARY(32)", "BINARY(16)", " ENGINE=InnoDB"
	}
	for n := range sql.Shards {
		table := sql.Table("ledger", n)
		columns := fmt.Sprintf("hash %s NOT NULL PRIMARY KEY, day %s NOT NULL, tenant %s NOT NULL, key_name %s NOT NULL, model %s NOT NULL", hash, number, name, name, name)
		for _, c := range amounts {
			columns += ", " + c + " " + number + " NOT NULL"
		}
		batch := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (id %s NOT NULL PRIMARY KEY, at_ms %s NOT NULL)%s", sql.Table("ledger_batch", n), id, number, engine)
		if d == sql.MySQL {
			list = append(list, "CREATE TABLE IF NOT EXISTS "+table+" ("+columns+", INDEX "+table+"_day (day))"+engine, batch)
		} else {
			list = append(list, "CREATE TABLE IF NOT EXISTS "+table+" ("+columns+")", "CREATE INDEX IF NOT EXISTS "+table+"_day ON "+table+" (day)", batch)
		}
	}
	return list
}

// amounts are the columns of an Amount, in order.
var amounts = []string{"requests", "prompt", "cached", "output", "reasoning", "estimated"}

// maxName bounds a name in a row, in bytes: what is longer is cut.
const maxName = 512

// texts are the statements for a shard.
type texts struct {
	add, batch, written, sum, list, sweep, sweepBatches string
}

// textsOf writes them.
func textsOf(s *sql.Shard) texts {
	d, table, batches := s.Dialect(), s.Table("ledger"), s.Table("ledger_batch")
	sums := make([]string, len(amounts))
	for i, c := range amounts {
		sums[i] = c + " = " + table + "." + c + " + EXCLUDED." + c
		if d == sql.MySQL {
			sums[i] = c + " = " + c + " + VALUES(" + c + ")"
		}
	}
	end := " ON CONFLICT (hash) DO UPDATE SET "
	if d == sql.MySQL {
		end = " ON DUPLICATE KEY UPDATE "
	}
	return texts{
		add: d.Bind("INSERT INTO "+table+" (hash, day, tenant, key_name, model, "+strings.Join(amounts, ", ")+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)") +
			end + strings.Join(sums, ", "),
		batch:        d.Bind("INSERT INTO " + batches + " (id, at_ms) VALUES (?, ?)"),
		written:      d.Bind("SELECT COUNT(*) FROM " + batches + " WHERE id = ?"),
		sum:          "SELECT COALESCE(SUM(prompt + output), 0) FROM " + table + " WHERE day >= ?",
		list:         d.Bind("SELECT day, tenant, key_name, model, " + strings.Join(amounts, ", ") + " FROM " + table + " WHERE day >= ? AND day <= ?"),
		sweep:        d.Bind("DELETE FROM " + table + " WHERE day < ?"),
		sweepBatches: d.Bind("DELETE FROM " + batches + " WHERE at_ms < ?"),
	}
}

// shardOf is the number of the shard of a tenant.
func shardOf(tenant string) int { return int(sha256.Sum256([]byte(tenant))[0] >> 4) }

// clip cuts a name to what a row holds.
func clip(s string) []byte { return []byte(s[:min(len(s), maxName)]) }

// apply writes a batch, once. Its name stands in the shard of its first row.
func (l *Ledger) apply(ctx context.Context, b batch) error {
	rows := make([]row, 0, len(b.rows))
	for r := range b.rows {
		rows = append(rows, r)
	}
	// In the order of their keys, so that batches of several gateways do not wait for one
	// another in a circle.
	slices.SortFunc(rows, func(x, y row) int {
		if d := shardOf(x.tenant) - shardOf(y.tenant); d != 0 {
			return d
		}
		hx, hy := x.hash(), y.hash()
		return bytes.Compare(hx[:], hy[:])
	})
	home := &l.texts[shardOf(rows[0].tenant)]
	return b.database.Write(ctx, func(ctx context.Context, c *sql.Conn) error {
		n, err := number(ctx, c, home.written, b.id[:])
		if err != nil || n > 0 {
			return err
		}
		if _, err := c.Bound.ExecContext(ctx, home.batch, b.id[:], time.Now().UnixMilli()); err != nil {
			return err
		}
		for _, r := range rows {
			a, hash := b.rows[r], r.hash()
			if _, err := c.Bound.ExecContext(ctx, l.texts[shardOf(r.tenant)].add, hash[:], r.day, clip(r.tenant), clip(r.key), clip(r.model),
				a.Requests, a.Prompt, a.Cached, a.Output, a.Reasoning, a.Estimated); err != nil {
				return err
			}
		}
		return nil
	})
}

// number reads one number.
func number(ctx context.Context, c *sql.Conn, text string, args ...any) (n int64, err error) {
	rows, err := c.Bound.QueryContext(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	if rows.Next() {
		if err := rows.Scan(&n); err != nil {
			return 0, err
		}
	}
	return n, rows.Err()
}

// ask sums up what the databases have for a question. A database without tables has
// nothing.
func (l *Ledger) ask(ctx context.Context, q question) (tokens int64, err error) {
	conditions, args := "", []any{q.since}
	for _, one := range []struct{ column, value string }{{"tenant", q.tenant}, {"key_name", q.key}, {"model", q.model}} {
		if one.value != "" {
			conditions += " AND " + one.column + " = ?"
			args = append(args, clip(one.value))
		}
	}
	for n := range sql.Shards {
		if q.tenant != "" && n != shardOf(q.tenant) {
			continue
		}
		s := l.store.Shard(n)
		var got int64
		err := s.ReadLatest(ctx, func(ctx context.Context, c *sql.Conn) (err error) {
			got, err = number(ctx, c, s.Dialect().Bind(l.texts[n].sum+conditions), args...)
			return err
		})
		if err != nil && !errors.Is(err, sql.ErrAbsent) {
			return 0, err
		}
		if err == nil {
			tokens += got
		}
	}
	return tokens, nil
}

// maxReport bounds the entries of a report.
const maxReport = 100_000

// ErrTooMany says that a report would have too many entries.
var ErrTooMany = fmt.Errorf("more than %d entries: ask for fewer days", maxReport)

// Entries lists what was spent from one day to another, both included, with what is
// written: the latest requests may be missing for the length of a flush. The order is
// by day, tenant, key and model.
func (l *Ledger) Entries(ctx context.Context, from, to time.Time) ([]Entry, error) {
	var all []Entry
	for n := range sql.Shards {
		s := l.store.Shard(n)
		var some []Entry
		err := s.Read(ctx, func(ctx context.Context, c *sql.Conn) (err error) {
			some, err = list(ctx, c, l.texts[n].list, dayOf(from), dayOf(to))
			return err
		})
		if err != nil && !errors.Is(err, sql.ErrAbsent) {
			return nil, err
		}
		if all = append(all, some...); len(all) > maxReport {
			return nil, ErrTooMany
		}
	}
	slices.SortFunc(all, func(a, b Entry) int {
		for _, pair := range [][2]string{{a.Day, b.Day}, {a.Tenant, b.Tenant}, {a.Key, b.Key}, {a.Model, b.Model}} {
			if d := strings.Compare(pair[0], pair[1]); d != 0 {
				return d
			}
		}
		return 0
	})
	return all, nil
}

// list reads the entries of a shard.
func list(ctx context.Context, c *sql.Conn, text string, from, to int64) ([]Entry, error) {
	rows, err := c.Bound.QueryContext(ctx, text, from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var some []Entry
	for rows.Next() && len(some) <= maxReport {
		var e Entry
		var day int64
		var tenant, key, model []byte
		if err := rows.Scan(&day, &tenant, &key, &model, &e.Requests, &e.Prompt, &e.Cached, &e.Output, &e.Reasoning, &e.Estimated); err != nil {
			return nil, err
		}
		e.Day = time.Unix(day*24*60*60, 0).UTC().Format(time.DateOnly)
		e.Tenant, e.Key, e.Model = string(tenant), string(key), string(model)
		some = append(some, e)
	}
	return some, rows.Err()
}

// sweep deletes the days that are not kept any more.
func (l *Ledger) sweep(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	for n := range sql.Shards {
		s := l.store.Shard(n)
		if s.ReadLatest(ctx, func(context.Context, *sql.Conn) error { return nil }) != nil {
			continue // there is nothing, or nobody to ask
		}
		err := s.Write(ctx, func(ctx context.Context, c *sql.Conn) error {
			if _, err := c.Bound.ExecContext(ctx, l.texts[n].sweep, dayOf(now)-l.days.Load()); err != nil {
				return err
			}
			_, err := c.Bound.ExecContext(ctx, l.texts[n].sweepBatches, now.Add(-batchLife).UnixMilli())
			return err
		})
		if err != nil {
			l.log.Debug("old days stay in the ledger", "err", err)
			return
		}
	}
}
