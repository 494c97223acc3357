// Package memory keeps answers in this process: level 1 of the cache.
//
// Entries are kept as they are, without a binary form: a hit is a look-up in a hash
// table and allocates nothing. What stays is decided by W-TinyLFU (Einziger,
// Friedman, Manes: "TinyLFU: A Highly Efficient Cache Admission Policy", 2017): a
// small window takes in what is new, a larger part keeps what was asked for most
// often, and a newcomer displaces an entry only if it was asked for more often. A
// run of questions that are asked once therefore displaces nothing of worth.
//
// The bound is in bytes, counted by cache.Entry.Size. Entries leave at their Stale
// instant: reads do not see them from then on, and the next write or Sweep frees
// them.
//
// An entry is in the window or in the larger part, never in both: whatever moves,
// replaces or forgets one holds the window's lock, and takes no other but the
// library's own. A hit in the larger part takes no lock.
//
// The package owns no goroutine. The work on the order of entries is put off and
// done in batches by whoever writes, sweeps, or reads when a batch is full, one at a
// time and without waiting for each other, so that with one caller and a clock of
// the test's a run has the same course each time, but for the hashing of keys.
package memory

import (
	"context"
	"math"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/spillway/spillway/internal/cache"
)

// shares is how many entries of the greatest size fill the level: a larger one is
// not kept, so that no answer displaces all others.
const shares = 16

// Level keeps entries in memory. It implements cache.Level and cache.Counter;
// contexts are not looked at, since nothing here waits.
type Level struct {
	entries *otter.Cache[cache.Key, *cache.Entry]
	window  window
	clock   func() time.Time
	most    int // size of the largest entry that is kept, in bytes
}

// The library counts how often keys were asked for in a sketch, which by default it
// makes for the entries that it has at that moment, and makes anew, empty, whenever
// they have become more than it was made for: with a bound in bytes it keeps losing
// what it counted. It is made once instead, for what keys of usualSize bytes there
// are in the level and three times as many that are not. A key takes 8 bytes of it,
// and about as much of the hash table.
const (
	usualSize   = 4 << 10
	remembered  = 4
	mostCounted = 1 << 19
	leastKeys   = 1 << 12
)

// New returns an empty level of at most maxBytes. The clock says when entries are
// past their Stale instant and their memory is free again; nil means time.Now.
func New(maxBytes int64, clock func() time.Time) *Level {
	if clock == nil {
		clock = time.Now
	}
	maxBytes = max(maxBytes, 1)
	l := &Level{clock: clock, most: int(min(maxBytes/shares, math.MaxUint32))}
	l.window.prepare(maxBytes / windowShare)
	l.entries = otter.Must(&otter.Options[cache.Key, *cache.Entry]{
		MaximumWeight:    uint64(maxBytes - l.window.bound),
		InitialCapacity:  int(min(max(remembered*maxBytes/usualSize, leastKeys), mostCounted)),
		Weigher:          func(_ cache.Key, e *cache.Entry) uint32 { return uint32(e.Size()) },
		ExpiryCalculator: otter.ExpiryWritingFunc(l.left),
		Clock:            timer(clock),
		Executor:         func(work func()) { work() },
	})
	l.entries.StopAllGoroutines() // the one that waits for ticks, which there are none of
	return l
}

// left is how long an entry is kept from now on. It is a little longer than Get
// gives the entry out, and never 0, which would mean no change.
func (l *Level) left(e otter.Entry[cache.Key, *cache.Entry]) time.Duration {
	return max(e.Value.Stale.Sub(time.Unix(0, e.SnapshotAtNano))+time.Millisecond, time.Nanosecond)
}

// timer is a clock without ticks: Sweep does what they are for.
type timer func() time.Time

// NowNano implements otter.Clock.
func (t timer) NowNano() int64 { return t().UnixNano() }

// Tick implements otter.Clock.
func (timer) Tick(time.Duration) <-chan time.Time { return nil }

// Get implements cache.Level. It does not allocate, but where an entry leaves the
// window.
func (l *Level) Get(_ context.Context, key cache.Key, now time.Time) (*cache.Entry, error) {
	e, ok := l.entries.GetIfPresent(key)
	if !ok {
		e, ok = l.again(key)
	}
	if !ok || now.After(e.Stale) {
		return nil, cache.ErrMiss
	}
	return e, nil
}

// again finds an entry in the window, and has it contend for a place in the larger
// part: it was asked for again. Where it loses, it stays.
func (l *Level) again(key cache.Key) (*cache.Entry, bool) {
	w := &l.window
	w.Lock()
	defer w.Unlock()
	e := w.get(key)
	if e == nil {
		return l.entries.GetIfPresent(key) // it may have moved meanwhile
	}
	if l.clock().After(e.Stale) {
		w.remove(key)
		return nil, false
	}
	l.entries.Set(key, e)
	if _, ok := l.entries.GetEntryQuietly(key); ok {
		w.remove(key)
	}
	return e, true
}

// Put implements cache.Level. An entry that is too large, or past its Stale instant,
// is not kept; what it replaces is forgotten all the same.
func (l *Level) Put(_ context.Context, entries []*cache.Entry) error {
	now := l.clock()
	w := &l.window
	w.Lock()
	defer w.Unlock()
	for _, e := range entries {
		old, there := l.entries.GetEntryQuietly(e.Key)
		switch waits := w.get(e.Key); {
		case there && old.Value.Newer(e) || waits != nil && waits.Newer(e):
		case e.Size() > l.most || now.After(e.Stale):
			l.entries.Invalidate(e.Key)
			w.remove(e.Key)
		case there:
			l.entries.Set(e.Key, e)
		default:
			w.put(e)
			for old := w.surplus(); old != nil; old = w.surplus() {
				l.entries.Set(old.Key, old)
			}
		}
	}
	return nil
}

// Purge implements cache.Level. Without a key it looks at every entry, in a time
// that grows with their number.
func (l *Level) Purge(ctx context.Context, f cache.Filter) (int, error) {
	w := &l.window
	w.Lock()
	defer w.Unlock()
	if f.Key != nil {
		if s := w.slots[*f.Key]; s != nil && f.Match(s.entry) {
			w.remove(*f.Key)
			return 1 + l.forget(*f.Key, f), nil
		}
		return l.forget(*f.Key, f), nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, looked := w.forget(f.Match, time.Time{}), 0
	for key := range l.entries.Keys() {
		if looked++; looked%1024 == 0 && ctx.Err() != nil {
			return n, ctx.Err()
		}
		n += l.forget(key, f)
	}
	return n, nil
}

// forget drops the entry under a key if it is meant, and counts it.
func (l *Level) forget(key cache.Key, f cache.Filter) int {
	n := 0
	l.entries.ComputeIfPresent(key, func(e *cache.Entry) (*cache.Entry, otter.ComputeOp) {
		if !f.Match(e) {
			return e, otter.CancelOp
		}
		n = 1
		return nil, otter.InvalidateOp
	})
	return n
}

// Sweep implements cache.Level, by the level's own clock.
func (l *Level) Sweep(context.Context, time.Time) (int, error) {
	none := func(*cache.Entry) bool { return false }
	l.window.Lock()
	n := l.window.forget(none, l.clock())
	l.window.Unlock()
	before := l.entries.EstimatedSize()
	l.entries.CleanUp()
	return n + max(0, before-l.entries.EstimatedSize()), nil
}

// Census implements cache.Counter. Entries past their Stale instant count until they
// are swept.
func (l *Level) Census(context.Context) (cache.Census, error) {
	l.window.Lock()
	defer l.window.Unlock()
	return cache.Census{
		Entries: int64(l.entries.EstimatedSize() + len(l.window.slots)),
		Bytes:   int64(l.entries.WeightedSize()) + l.window.bytes,
	}, nil
}
