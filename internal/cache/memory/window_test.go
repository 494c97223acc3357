package memory_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	"github.com/spillway/spillway/internal/cache/memory"
)

// What is new is there for a while, however full the level is of what was asked for
// often: people ask again at once.
func TestWhatIsNewStaysAWhile(t *testing.T) {
	const room = 200
	now := time.Now()
	l := memory.New(room*8<<10, nil)
	for i := range room {
		e := sized(fmt.Sprint("hot ", i), now, 8<<10)
		put(t, l, e)
		for range 4 {
			has(t, l, e, now)
		}
	}
	var fresh []*cache.Entry
	for i := range room / 20 {
		fresh = append(fresh, sized(fmt.Sprint("new ", i), now, 8<<10))
		put(t, l, fresh[i])
	}
	for _, e := range fresh {
		if !has(t, l, e, now) {
			t.Errorf("%s is gone", e.Question)
		}
	}
}

// An entry is in one place only: a newer one replaces it, and a purge forgets it,
// wherever it has moved.
func TestEntriesAreInOnePlace(t *testing.T) {
	const room = 100
	now := time.Now()
	l := memory.New(room*4<<10, nil)
	r := rand.New(rand.NewPCG(1, 2))
	newest := make(map[int]*cache.Entry)
	for range 20_000 {
		i := r.IntN(2 * room)
		switch r.IntN(4) {
		case 0:
			newest[i] = sized(fmt.Sprint(i), now, 4<<10)
			put(t, l, newest[i])
		case 1:
			key := cachetest.Key(fmt.Sprint(i))
			if n, err := l.Purge(t.Context(), cache.Filter{Key: &key}); err != nil || n > 1 {
				t.Fatalf("Purge of a key = %d, %v", n, err)
			}
			delete(newest, i)
		default:
			e, err := l.Get(t.Context(), cachetest.Key(fmt.Sprint(i)), now)
			if err == nil && e != newest[i] {
				t.Fatalf("Get(%d) is not the entry that was put last", i)
			}
		}
		if got := census(t, l); got.Bytes > room*4<<10 {
			t.Fatalf("%+v, more than %d bytes", got, room*4<<10)
		}
	}
	if n, err := l.Purge(t.Context(), cache.Filter{}); err != nil || n == 0 || census(t, l) != (cache.Census{}) {
		t.Errorf("Purge of all = %d, %v, and %+v is left", n, err, census(t, l))
	}
}

// A purged entry does not come back through a reader that had found it.
func TestPurgedStaysPurged(t *testing.T) {
	now := time.Now()
	l := memory.New(1<<20, nil)
	key := cachetest.Key("a")
	for range 300 {
		put(t, l, cachetest.NewEntry("a", now))
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for range 10 {
					l.Get(t.Context(), key, now)
				}
			})
		}
		if n, err := l.Purge(t.Context(), cache.Filter{Key: &key}); n != 1 || err != nil {
			t.Fatalf("Purge = %d, %v", n, err)
		}
		all.Wait()
		if _, err := l.Get(t.Context(), key, now); err == nil {
			t.Fatal("a purged entry is back")
		}
	}
}

// What is asked for is remembered beyond what there is room for, so that a question
// asked now and then finds its place among those asked once.
func TestHistoryOutlivesEntries(t *testing.T) {
	const room, rare = 300, 20
	now := time.Now()
	l := memory.New(room*1400, nil)
	hits := 0
	for i := range 60 * room / 10 {
		for j := range 10 { // asked once
			put(t, l, sized(fmt.Sprint("once ", i, j), now, 1400))
		}
		e := sized(fmt.Sprint("rare ", i%rare), now, 1400) // once in 200 others
		if _, err := l.Get(t.Context(), e.Key, now); err == nil {
			hits++
		} else {
			put(t, l, e)
		}
	}
	if want := 60 * room / 10 / 2; hits < want {
		t.Errorf("got %d hits of %d, want half", hits, 60*room/10)
	}
}
