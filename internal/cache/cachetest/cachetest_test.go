package cachetest_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
)

// shelf is the simplest level that keeps the contract: binary forms in a map.
type shelf struct {
	packFrom int
	mu       sync.Mutex
	entries  map[cache.Key][]byte
}

func (l *shelf) Get(_ context.Context, key cache.Key, now time.Time) (*cache.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.entries[key]
	if !ok {
		return nil, cache.ErrMiss
	}
	e, err := cache.Decode(key, b)
	if err != nil {
		return nil, err
	}
	if now.After(e.Stale) {
		return nil, cache.ErrMiss
	}
	return e, nil
}

func (l *shelf) Put(_ context.Context, entries []*cache.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		b, err := e.Encode(l.packFrom)
		if err != nil {
			return err
		}
		if old, err := cache.Decode(e.Key, l.entries[e.Key]); err == nil && old.Newer(e) {
			continue
		}
		l.entries[e.Key] = b
	}
	return nil
}

// forget drops the entries that doomed takes.
func (l *shelf) forget(doomed func(*cache.Entry) bool) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for key, b := range l.entries {
		e, err := cache.Decode(key, b)
		if err != nil {
			return n, err
		}
		if doomed(e) {
			delete(l.entries, key)
			n++
		}
	}
	return n, nil
}

func (l *shelf) Purge(_ context.Context, f cache.Filter) (int, error) { return l.forget(f.Match) }

func (l *shelf) Sweep(_ context.Context, now time.Time) (int, error) {
	return l.forget(func(e *cache.Entry) bool { return now.After(e.Stale) })
}

func (l *shelf) Census(context.Context) (cache.Census, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := cache.Census{Entries: int64(len(l.entries))}
	for _, b := range l.entries {
		c.Bytes += int64(len(b))
	}
	return c, nil
}

func TestBinaryFormsKeepTheContract(t *testing.T) {
	for name, packFrom := range map[string]int{"never packed": 1 << 30, "packed from 4 KiB": 4 << 10} {
		t.Run(name, func(t *testing.T) {
			cachetest.TestLevel(t, func(*testing.T) cache.Level {
				return &shelf{packFrom: packFrom, entries: make(map[cache.Key][]byte)}
			})
		})
	}
}

func ExampleNewEntry() {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	a, b := cachetest.NewEntry("a", now), cachetest.NewEntry("b", now)
	fmt.Println(a.Question, a.Answer.Stream(), len(a.Answer.Marks), a.Key == b.Key)
	fmt.Println(cachetest.Diff(a, a) == "", cachetest.Diff(a, b) == "")
	// Output:
	// what is a? true 3 false
	// true false
}
