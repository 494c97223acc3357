package cachetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/cache"
)

func (s *suite) sweep() {
	if n, err := s.level.Sweep(s.ctx, s.now); n != 0 || err != nil {
		s.Fatalf("Sweep of an empty level = %d, %v, want 0", n, err)
	}
	var all []*cache.Entry
	for i := range 60 {
		e := NewEntry(fmt.Sprint(i), s.now)
		if i%2 == 1 {
			e.Expires, e.Stale = s.now.Add(-2*time.Minute), s.now.Add(-time.Minute)
		} else if i%4 == 2 {
			e.Expires = s.now.Add(-time.Minute).Truncate(time.Millisecond) // kept all the same
		}
		all = append(all, e)
	}
	s.put(all...)
	for calls := 0; ; calls++ { // each does a bounded piece of work
		n, err := s.level.Sweep(s.ctx, s.now)
		if err != nil || n < 0 || calls > len(all) {
			s.Fatalf("Sweep = %d, %v, in call %d", n, err, calls)
		}
		if n == 0 && calls > 0 {
			break
		}
	}
	for i, e := range all {
		if i%2 == 1 {
			s.misses(e.Key, s.now)
		} else {
			s.wants(e, s.now)
		}
	}
	if c, ok := s.level.(cache.Counter); ok {
		s.eventually("what was swept is no longer counted", func() bool {
			got, err := c.Census(s.ctx)
			return err == nil && got.Entries <= int64(len(all)/2)
		})
	}
}

func (s *suite) manyKeys() {
	const batches, size = 10, 64
	for i := range batches {
		var list []*cache.Entry
		for j := range size {
			list = append(list, NewEntry(fmt.Sprintf("%d of batch %d", j, i), s.now))
		}
		s.put(list...)
	}
	for i := range batches {
		for j := range size {
			s.wants(NewEntry(fmt.Sprintf("%d of batch %d", j, i), s.now), s.now)
		}
	}
}

// version is one of the entries that compete for a key.
func (s *suite) version(key, n int) *cache.Entry {
	e := NewEntry(fmt.Sprint("key ", key), s.now)
	e.Hits, e.Scope = uint32(n), fmt.Sprint("s", n%3)
	return OnePiece(e, Noise(uint64(key*1000+n), 100+n*700))
}

func (s *suite) concurrent() {
	const workers, rounds, keys, versions = 8, 60, 6, 10
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				key := (w + i) % keys
				if err := s.act(w*rounds+i, key, i%versions); err != nil {
					s.Errorf("worker %d, round %d: %v", w, i, err)
					return
				}
				e := s.version(key, 0)
				switch got, err := s.level.Get(s.ctx, e.Key, s.now); {
				case errors.Is(err, cache.ErrMiss):
				case err != nil:
					s.Errorf("Get = %v, want an entry or a miss", err)
				case Diff(s.version(key, int(got.Hits)), got) != "":
					s.Errorf("Get = a mix of entries (-want +got):\n%.2000s", Diff(s.version(key, int(got.Hits)), got))
				}
			}
		})
	}
	wg.Wait()
	e := s.version(0, 1)
	s.put(e)
	s.wants(e, s.now)
}

// act does one thing to the level, mostly a Put.
func (s *suite) act(turn, key, version int) error {
	var err error
	switch turn % 12 {
	case 3:
		k := s.version(key, 0).Key
		_, err = s.level.Purge(s.ctx, cache.Filter{Key: &k})
	case 6:
		_, err = s.level.Purge(s.ctx, cache.Filter{Scope: "s1"})
	case 9:
		_, err = s.level.Sweep(s.ctx, s.now)
	default:
		err = s.level.Put(s.ctx, []*cache.Entry{s.version(key, version), s.version((key+1)%3, version)})
	}
	return err
}

// cancelled checks that calls whose context has ended end, and do nothing by
// halves.
func (s *suite) cancelled() {
	e := NewEntry("kept", s.now)
	s.put(e)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if got, err := s.level.Get(ctx, e.Key, s.now); err == nil && Diff(e, got) != "" {
			s.Errorf("Get with an ended context = another entry:\n%s", Diff(e, got))
		}
		later := NewEntry("later", s.now)
		err := s.level.Put(ctx, []*cache.Entry{later})
		if got, after := s.level.Get(s.ctx, later.Key, s.now); after == nil && Diff(later, got) != "" {
			s.Errorf("after a Put with an ended context (%v), Get = another entry:\n%s", err, Diff(later, got))
		} else if after != nil && (err == nil || !errors.Is(after, cache.ErrMiss)) {
			s.Errorf("after a Put with an ended context (%v), Get = %v", err, after)
		}
		if n, err := s.level.Purge(ctx, cache.Filter{Scope: "nobody"}); n != 0 {
			s.Errorf("Purge with an ended context = %d, %v, want nothing forgotten", n, err)
		}
		if n, err := s.level.Sweep(ctx, s.now); n != 0 {
			s.Errorf("Sweep with an ended context = %d, %v, want nothing forgotten", n, err)
		}
	}()
	select {
	case <-ended:
	case <-time.After(patience / 2):
		s.Fatal("a call with an ended context does not end")
	}
	s.wants(e, s.now)
}

func (s *suite) census() {
	c, ok := s.level.(cache.Counter)
	if !ok {
		return
	}
	const n = 20
	before, err := c.Census(s.ctx)
	if err != nil || before.Entries != 0 {
		s.Fatalf("Census of an empty level = %+v, %v, want no entries", before, err)
	}
	for i := range n {
		s.put(OnePiece(NewEntry(fmt.Sprint(i), s.now), Noise(uint64(i), 20_000)))
	}
	s.eventually("all entries are counted", func() bool {
		got, err := c.Census(s.ctx)
		if err != nil {
			s.Fatal(err)
		}
		return got.Entries == n && got.Bytes >= n*20_000
	})
	s.purge(cache.Filter{})
	s.eventually("what was purged is no longer counted", func() bool {
		got, err := c.Census(s.ctx)
		return err == nil && got.Entries == 0
	})
}
