// Package sql is level 3 of the cache: answers in the tables of store/sql, in
// SQLite, PostgreSQL or MySQL.
//
// An entry is one row, by its key, in the table of its key's shard. The row has the
// entry's binary form, and beside it only what is needed to find rows: whose answer
// it is, the model, the end of its life and its size. A row is written as a whole by
// one statement, and what is read is checked against its key, so that a reader gets
// all of an entry or nothing. Get may ask a replica: where that lags, an entry is
// missed, and one that was purged may be given until the replica has followed.
//
// Put writes a batch in one transaction for each database, rows in the order of
// their keys, so that batches of several gateways do not wait for one another in a
// circle. Rows may be lost by a loss of power, never parts of them.
//
// Each shard has a sixteenth of the level's size. Sweep deletes first what is past
// its life, and then what is nearest to it, as long as a shard has more than its
// share. It knows how much a shard has from a count at least every minute and from
// what it has written since; between sweeps a shard may have more. It takes a piece of
// each shard in turn until none is left over or its context ends, and begins with
// another shard each time, so that none has to wait for the others for ever.
//
// A Level owns no goroutine. Nothing is created in a database before the first Put.
package sql

import (
	"bytes"
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/store/sql"
)

// Level is the level in databases.
type Level struct {
	store    *sql.Store
	packFrom int
	share    int64 // bytes of each shard
	shards   [sql.Shards]part
	sweeps   atomic.Uint32

	census struct {
		sync.Mutex
		cache.Census
		at time.Time
	}
}

// part is what is known of a shard.
type part struct {
	*sql.Shard
	texts
	size    atomic.Int64 // estimated bytes
	counted atomic.Int64 // when it was counted, Unix ms
}

// Bounds of single statements.
const (
	maxEntry     = 7 << 20 // bytes of an entry; larger ones are not kept. MariaDB takes statements of 16 MiB, in which each byte may take two.
	maxStatement = 4 << 20 // bytes of entries in a statement of several
	maxRows      = 64      // rows that a statement writes
	maxDelete    = 500     // rows that a statement deletes
	maxRounds    = 4       // of deletion in a shard, until it is the next one's turn
	overhead     = 150     // bytes of a row and its indexes beside the entry and the names, about
	countEvery   = time.Minute
	censusLife   = time.Second
	censusTime   = time.Second
)

// New makes the level. The store must have been opened with Migrations.
func New(store *sql.Store, cfg cache.SQLConfig) *Level {
	l := &Level{store: store, packFrom: int(cfg.CompressFrom), share: int64(cfg.Size) / sql.Shards}
	for n := range l.shards {
		l.shards[n].Shard = store.Shard(n)
		l.shards[n].texts = textsOf(store.Shard(n))
	}
	return l
}

// Get implements cache.Level.
func (l *Level) Get(ctx context.Context, key cache.Key, now time.Time) (*cache.Entry, error) {
	s := &l.shards[l.store.ShardOf(key).Number]
	var found *cache.Entry
	err := s.Read(ctx, func(ctx context.Context, c *sql.Conn) (err error) {
		found, err = s.entry(ctx, c, key)
		return err
	})
	switch {
	case errors.Is(err, sql.ErrAbsent):
		return nil, cache.ErrMiss
	case err != nil:
		return nil, fmt.Errorf("get %s: %w", key, err)
	case found == nil || now.After(found.Stale):
		return nil, cache.ErrMiss
	}
	return found, nil
}

// entry reads an entry; nil is none.
func (s *part) entry(ctx context.Context, c *sql.Conn, key cache.Key) (*cache.Entry, error) {
	rows, err := c.Bound.QueryContext(ctx, s.get, key[:])
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		return nil, rows.Err()
	}
	var data stdsql.RawBytes // the driver's, until rows is closed
	if err := rows.Scan(&data); err != nil {
		return nil, err
	}
	e, err := cache.Decode(key, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name(), err)
	}
	return e, rows.Close()
}

// row is an entry as it is written.
type row struct {
	*cache.Entry
	data  []byte
	shard *part
}

// size is what the row counts.
func (r *row) size() int64 { return int64(len(r.data)+len(r.Scope)+len(r.Model)) + overhead }

// Put implements cache.Level.
func (l *Level) Put(ctx context.Context, entries []*cache.Entry) error {
	batches, err := l.batches(entries)
	errs := []error{err}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for d, rows := range batches {
		wg.Go(func() { // one database that is down does not keep the others from their part
			if err := d.WriteRelaxed(ctx, func(ctx context.Context, c *sql.Conn) error { return write(ctx, c, rows) }); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("put %d entries: %w", len(rows), err))
				return
			}
			for _, r := range rows {
				r.shard.size.Add(r.size())
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// batches are the rows for each database in the order of their keys, of each key the
// one that was stored last. The error is that of entries that have no binary form.
func (l *Level) batches(entries []*cache.Entry) (map[*sql.Database][]*row, error) {
	last := make(map[cache.Key]*row, len(entries))
	var errs []error
	for _, e := range entries {
		data, err := e.Encode(l.packFrom)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if old := last[e.Key]; old != nil && old.Newer(e) {
			continue
		}
		if len(data) <= maxEntry {
			last[e.Key] = &row{Entry: e, data: data, shard: &l.shards[l.store.ShardOf(e.Key).Number]}
		} else {
			delete(last, e.Key)
		}
	}
	batches := make(map[*sql.Database][]*row)
	for _, r := range last {
		batches[r.shard.Database] = append(batches[r.shard.Database], r)
	}
	for _, rows := range batches { // a key begins with its shard
		slices.SortFunc(rows, func(a, b *row) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	}
	return batches, errors.Join(errs...)
}

// write writes rows, several of a shard at once.
func write(ctx context.Context, c *sql.Conn, rows []*row) error {
	for len(rows) > 0 {
		s, n, size := rows[0].shard, 0, 0
		for n < s.rows && n < len(rows) && rows[n].shard == s && (n == 0 || size+len(rows[n].data) <= maxStatement) {
			size += len(rows[n].data)
			n++
		}
		args := make([]any, 0, columns*n)
		for _, r := range rows[:n] {
			args = append(args, r.Key[:], []byte(r.Scope), []byte(r.Model), r.Stale.UnixMilli(), r.size(), r.data, r.Stored.UnixMilli())
		}
		if _, err := c.Bound.ExecContext(ctx, s.put(n), args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// Purge implements cache.Level.
func (l *Level) Purge(ctx context.Context, f cache.Filter) (int, error) {
	list := make([]*part, 0, sql.Shards)
	for n := range l.shards {
		if f.Key == nil || l.store.ShardOf(*f.Key).Number == n {
			list = append(list, &l.shards[n])
		}
	}
	total := 0
	var errs []error
	for _, s := range list {
		n, err := s.purge(ctx, f)
		total += n
		if err != nil {
			errs = append(errs, fmt.Errorf("purge: %w", err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	l.forgetCensus()
	return total, errors.Join(errs...)
}

// purge deletes what a filter means, piece by piece.
func (s *part) purge(ctx context.Context, f cache.Filter) (total int, err error) {
	if absent, err := s.absent(ctx); absent || err != nil {
		return 0, err
	}
	var conditions []string
	var args []any
	if f.Key != nil {
		conditions, args = append(conditions, "hash = ?"), append(args, f.Key[:])
	}
	if f.Scope != "" {
		conditions, args = append(conditions, "scope = ?"), append(args, []byte(f.Scope))
	}
	if f.Model != "" {
		conditions, args = append(conditions, "model = ?"), append(args, []byte(f.Model))
	}
	for {
		n, err := s.delete(ctx, s.deleteSome(conditions), args...)
		total += n
		if n < maxDelete || err != nil {
			return total, err
		}
	}
}

// absent says that nothing was ever written, so that there is nothing to delete and
// nothing is created for it.
func (s *part) absent(ctx context.Context) (bool, error) {
	err := s.ReadLatest(ctx, func(context.Context, *sql.Conn) error { return nil })
	if errors.Is(err, sql.ErrAbsent) {
		return true, nil
	}
	return false, err
}

// delete runs a statement that deletes, and says how many rows it did.
func (s *part) delete(ctx context.Context, text string, args ...any) (int, error) {
	var n int64
	err := s.WriteRelaxed(ctx, func(ctx context.Context, c *sql.Conn) error {
		result, err := c.Bound.ExecContext(ctx, text, args...)
		if err != nil {
			return err
		}
		n, err = result.RowsAffected()
		return err
	})
	if err != nil {
		return 0, err // n is the writer's as long as it may be at work
	}
	s.counted.Store(0)
	return int(n), nil
}

// Sweep implements cache.Level.
func (l *Level) Sweep(ctx context.Context, now time.Time) (total int, err error) {
	var errs []error
	first := int(l.sweeps.Add(1))
	left := make([]*part, 0, sql.Shards)
	for i := range l.shards {
		left = append(left, &l.shards[(first+i)%sql.Shards])
	}
	for len(left) > 0 && ctx.Err() == nil {
		s := left[0]
		n, more, err := s.sweep(ctx, now, l.share)
		total += n
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep: %w", err))
		}
		if left = left[1:]; more {
			left = append(left, s)
		}
	}
	if total > 0 {
		l.forgetCensus()
	}
	if len(left) > 0 {
		errs = append(errs, fmt.Errorf("sweep: %d shards are left over: %w", len(left), ctx.Err()))
	}
	return total, errors.Join(errs...)
}

// sweep brings a shard within its bounds, or nearer to them, and then says that there
// may be more to delete.
func (s *part) sweep(ctx context.Context, now time.Time, share int64) (total int, more bool, err error) {
	if absent, err := s.absent(ctx); absent || err != nil {
		return 0, false, err
	}
	for range maxRounds {
		n, err := s.piece(ctx, now, share)
		total += n
		if err != nil || n == 0 {
			return total, false, err
		}
	}
	return total, true, nil
}

// piece deletes what is past its life, or else what is nearest to it beyond the share,
// as much as a statement may.
func (s *part) piece(ctx context.Context, now time.Time, share int64) (int, error) {
	past, err := s.number(ctx, s.past, now.UnixMilli())
	if err != nil {
		return 0, err
	}
	if past > 0 {
		return s.delete(ctx, s.deletePast, now.UnixMilli())
	}
	over, err := s.over(ctx, now, share)
	if err != nil || over == 0 {
		return 0, err
	}
	return s.delete(ctx, s.deleteNext, over)
}

// over estimates how many rows a shard has beyond its share, as far as a statement
// may delete.
func (s *part) over(ctx context.Context, now time.Time, share int64) (int64, error) {
	fresh := now.UnixMilli()-s.counted.Load() < countEvery.Milliseconds() && now.UnixMilli() >= s.counted.Load()
	if fresh && s.size.Load() <= share {
		return 0, nil
	}
	count, err := s.count(ctx)
	if err != nil {
		return 0, err
	}
	s.size.Store(count.Bytes)
	s.counted.Store(now.UnixMilli())
	if count.Bytes <= share || count.Entries == 0 {
		return 0, nil
	}
	mean := max(1, count.Bytes/count.Entries)
	return min(maxDelete, (count.Bytes-share+mean-1)/mean), nil
}

// number reads one number.
func (s *part) number(ctx context.Context, text string, args ...any) (n int64, err error) {
	err = s.ReadLatest(ctx, func(ctx context.Context, c *sql.Conn) error {
		return c.Bound.QueryRowContext(ctx, text, args...).Scan(&n)
	})
	return n, err
}

// count counts a shard.
func (s *part) count(ctx context.Context) (n cache.Census, err error) {
	err = s.ReadLatest(ctx, func(ctx context.Context, c *sql.Conn) error {
		return c.Bound.QueryRowContext(ctx, s.sum).Scan(&n.Entries, &n.Bytes)
	})
	if errors.Is(err, sql.ErrAbsent) {
		return cache.Census{}, nil
	}
	return n, err
}

// Census implements cache.Counter. It is of this moment or a second old, as it
// reads an index of all rows, and takes a second at most.
func (l *Level) Census(ctx context.Context) (cache.Census, error) {
	l.census.Lock()
	defer l.census.Unlock()
	if time.Since(l.census.at) < censusLife {
		return l.census.Census, nil
	}
	ctx, cancel := context.WithTimeout(ctx, censusTime)
	defer cancel()
	var total cache.Census
	for i := range l.shards {
		n, err := l.shards[i].count(ctx)
		if err != nil {
			return cache.Census{}, fmt.Errorf("census: %w", err)
		}
		total.Entries += n.Entries
		total.Bytes += n.Bytes
	}
	l.census.Census, l.census.at = total, time.Now()
	return total, nil
}

// forgetCensus makes the next Census count.
func (l *Level) forgetCensus() {
	l.census.Lock()
	defer l.census.Unlock()
	l.census.at = time.Time{}
}
