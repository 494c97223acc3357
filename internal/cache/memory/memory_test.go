package memory_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	"github.com/spillway/spillway/internal/cache/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLevel(t *testing.T) {
	cachetest.TestLevel(t, func(*testing.T) cache.Level { return memory.New(64<<20, nil) })
}

// put keeps entries.
func put(t testing.TB, l *memory.Level, entries ...*cache.Entry) {
	t.Helper()
	if err := l.Put(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

// has says whether the level has the entry itself.
func has(t testing.TB, l *memory.Level, e *cache.Entry, now time.Time) bool {
	t.Helper()
	got, err := l.Get(t.Context(), e.Key, now)
	if err != nil && !errors.Is(err, cache.ErrMiss) {
		t.Fatal(err)
	}
	if err == nil && got != e {
		t.Fatalf("Get = another entry than the one that was put:\n%s", cachetest.Diff(e, got))
	}
	return err == nil
}

// census is what the level holds.
func census(t testing.TB, l *memory.Level) cache.Census {
	t.Helper()
	c, err := l.Census(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sized is an entry of about n bytes.
func sized(name string, now time.Time, n int) *cache.Entry {
	e := cachetest.OnePiece(cachetest.NewEntry(name, now), nil)
	e.Answer.Body = make([]byte, n-e.Size())
	return e
}

func TestBoundedByBytes(t *testing.T) {
	const bound, size = 1 << 20, 8 << 10
	now := time.Now()
	l := memory.New(bound, nil)
	for i := range 1000 {
		put(t, l, sized(fmt.Sprint(i), now, size))
		if got := census(t, l); got.Bytes > bound || got.Entries > bound/size {
			t.Fatalf("after %d entries of %d bytes: %+v, want at most %d bytes", i+1, size, got, bound)
		}
	}
	if got := census(t, l); got.Bytes < bound*9/10 {
		t.Errorf("%+v of %d bytes in use", got, bound)
	}
}

func TestLargeEntriesAreNotKept(t *testing.T) {
	const bound = 1 << 20
	now := time.Now()
	l := memory.New(bound, nil)
	small, large := sized("a", now, bound/16), sized("a", now, bound/16+1)
	put(t, l, small)
	if !has(t, l, small, now) {
		t.Fatal("an entry of a sixteenth of the bound is not kept")
	}
	put(t, l, large)
	if has(t, l, large, now) {
		t.Error("an entry beyond a sixteenth of the bound is kept, or the one that it replaces")
	}
}

func TestNoRoomAtAll(t *testing.T) {
	now := time.Now()
	for _, bound := range []int64{-1, 0, 1, 1000} {
		l := memory.New(bound, nil)
		e := cachetest.NewEntry("a", now)
		put(t, l, e)
		if has(t, l, e, now) {
			t.Errorf("%d bytes have room for an entry of %d", bound, e.Size())
		}
	}
}

func TestOftenAskedStays(t *testing.T) {
	const room = 64
	now := time.Now()
	l := memory.New(room*8<<10, nil)
	var hot []*cache.Entry
	for i := range room / 4 {
		hot = append(hot, sized(fmt.Sprint("hot ", i), now, 8<<10))
	}
	put(t, l, hot...)
	for range 8 {
		for _, e := range hot {
			has(t, l, e, now)
		}
	}
	for i := range room * 20 { // asked for once each
		put(t, l, sized(fmt.Sprint("once ", i), now, 8<<10))
	}
	stayed := 0
	for _, e := range hot {
		if has(t, l, e, now) {
			stayed++
		}
	}
	if stayed < len(hot)*3/4 {
		t.Errorf("%d of %d entries that are asked for often outlive a run of others, want three quarters", stayed, len(hot))
	}
}

func TestSweepFreesByTheLevelsClock(t *testing.T) {
	var now atomic.Int64
	start := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) // a virtual time, far from the machine's
	clock := func() time.Time { return start.Add(time.Duration(now.Load())) }
	l := memory.New(1<<20, clock)
	for i := range 10 {
		e := cachetest.NewEntry(fmt.Sprint(i), start)
		e.Stale = start.Add(time.Duration(i) * time.Hour)
		put(t, l, e)
	}
	for hour := range 11 {
		now.Store(int64(time.Duration(hour)*time.Hour + time.Minute))
		if _, err := l.Sweep(t.Context(), clock()); err != nil {
			t.Fatal(err)
		}
		// The library's wheel of timers takes up to 1.2 hours over lifetimes of hours.
		if got, want := census(t, l).Entries, int64(9-hour); got < want || got > want+3 {
			t.Errorf("after %d hours: %d entries, want about %d", hour, got, want)
		}
		for i := range 10 {
			if _, err := l.Get(t.Context(), cachetest.Key(fmt.Sprint(i)), clock()); (err == nil) != (i > hour) {
				t.Errorf("after %d hours: Get of an entry kept for %d = %v", hour, i, err)
			}
		}
	}
	now.Store(int64(24 * time.Hour))
	l.Sweep(t.Context(), clock())
	if got := census(t, l); got != (cache.Census{}) {
		t.Errorf("after a day: %+v, want nothing", got)
	}
}

func TestExpiryMovesWithTheEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memory.New(1<<20, nil)
		short := cachetest.NewEntry("a", time.Now())
		short.Stale = short.Stored.Add(time.Minute)
		long := cachetest.NewEntry("a", time.Now())
		put(t, l, short)
		put(t, l, long)
		time.Sleep(time.Hour)
		if !has(t, l, long, time.Now()) {
			t.Error("an entry is gone with the Stale instant of the one that it replaced")
		}
		put(t, l, short) // past it already
		if has(t, l, short, time.Now()) {
			t.Error("an entry past its Stale instant is kept")
		}
		put(t, l, long)
		time.Sleep(time.Hour + time.Second)
		if has(t, l, long, long.Stale) {
			t.Error("an entry is there past its Stale instant")
		}
	})
}

func TestPurgeStopsWithItsContext(t *testing.T) {
	l := memory.New(64<<20, nil)
	for i := range 5000 {
		put(t, l, cachetest.NewEntry(fmt.Sprint(i), time.Now()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := l.Purge(ctx, cache.Filter{}); !errors.Is(err, context.Canceled) || n >= 5000 {
		t.Errorf("Purge with an ended context = %d, %v", n, err)
	}
}

func TestBoundHoldsUnderUse(t *testing.T) {
	const bound = 1 << 20
	l := memory.New(bound, nil)
	now := time.Now()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 500 {
				e := sized(fmt.Sprint(w, i), now, 2<<10+i*20)
				if err := l.Put(t.Context(), []*cache.Entry{e}); err != nil {
					t.Error(err)
				}
				l.Get(t.Context(), cachetest.Key(fmt.Sprint(w, i/2)), now)
			}
		})
	}
	wg.Wait()
	l.Sweep(t.Context(), now)
	if got := census(t, l); got.Bytes > bound {
		t.Errorf("%+v, want at most %d bytes", got, bound)
	}
}

func TestHitDoesNotAllocate(t *testing.T) {
	l := memory.New(1<<20, nil)
	e, now := cachetest.NewEntry("a", time.Now()), time.Now()
	put(t, l, e)
	ctx, miss := t.Context(), cachetest.Key("nobody")
	if n := testing.AllocsPerRun(1000, func() {
		l.Get(ctx, e.Key, now)
		l.Get(ctx, miss, now)
	}); n != 0 {
		t.Errorf("a hit and a miss take %v allocations", n)
	}
}

func ExampleLevel() {
	ctx, now := context.Background(), time.Now()
	l := memory.New(64<<20, nil)
	if err := l.Put(ctx, []*cache.Entry{cachetest.NewEntry("a", now)}); err != nil {
		fmt.Println(err)
	}
	e, err := l.Get(ctx, cachetest.Key("a"), now)
	fmt.Println(e.Question, err)
	_, err = l.Get(ctx, cachetest.Key("b"), now)
	fmt.Println(err)
	// Output:
	// what is a? <nil>
	// not in the cache
}

func BenchmarkGet(b *testing.B) {
	for name, missing := range map[string]bool{"hit": false, "miss": true} {
		b.Run(name, func(b *testing.B) {
			l, now, ctx := memory.New(64<<20, nil), time.Now(), b.Context()
			var keys [1024]cache.Key
			for i := range keys {
				keys[i] = cachetest.Key(fmt.Sprint(i))
				if !missing {
					put(b, l, cachetest.NewEntry(fmt.Sprint(i), now))
				}
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, err := l.Get(ctx, keys[i%len(keys)], now); (err != nil) != missing {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func BenchmarkPut(b *testing.B) {
	l, now, ctx := memory.New(1<<20, nil), time.Now(), b.Context()
	var batches [8192][]*cache.Entry // ten times what there is room for
	for i := range batches {
		batches[i] = []*cache.Entry{cachetest.NewEntry(fmt.Sprint(i), now)}
	}
	b.ReportAllocs()
	var at atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Put(ctx, batches[int(at.Add(1))%len(batches)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
