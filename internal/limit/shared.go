package limit

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// How a shared store is watched.
const (
	beatEvery = time.Second
	beatAgain = 250 * time.Millisecond // while the store rests
	beatTime  = time.Second            // for one
	tripAfter = 3                      // faults in a row: then the store rests until a beat goes well
	fewAfter  = 5                      // beats with fewer gateways in a row: then there are fewer
)

// shared stands in front of a store that gateways share: it knows how many they are,
// and spares the store, and the requests, while it fails. A beat, which no request
// waits for, finds out when it is back.
type shared struct {
	store Store
	log   *slog.Logger

	timeout  atomic.Int64 // a beat that takes longer does not end a rest; nanoseconds
	resting  atomic.Bool
	row      atomic.Int64 // faults in a row
	gateways atomic.Int64 // last known, at least 1
	fewer    int          // beats in a row that said so; Run's own

	faults, fallbacks atomic.Uint64
}

// take asks the store. false at the end says that it is of no use now, and that the
// request's asks are charged nowhere that counts.
func (s *shared) take(ctx context.Context, now time.Time, asks []Ask) (ok, asked bool) {
	if s.resting.Load() {
		s.fallbacks.Add(1)
		return false, false
	}
	ok, err := s.store.Take(ctx, now, asks)
	if err == nil {
		if s.row.Load() != 0 {
			s.row.Store(0)
		}
		return ok, true
	}
	s.fallbacks.Add(1)
	if ctx.Err() == nil { // a client that leaves says nothing about the store
		s.faults.Add(1)
		if s.row.Add(1) >= tripAfter {
			s.rest(err)
		}
	}
	return false, false
}

// rest spares the store from now on.
func (s *shared) rest(err error) {
	if !s.resting.Swap(true) {
		s.log.Warn("the shared store fails: limits are this gateway's share", "component", "limit", "gateways", s.gateways.Load(), "err", err)
	}
}

// watch beats until ctx ends.
func (s *shared) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		s.beat(ctx)
		if s.resting.Load() {
			timer.Reset(beatAgain)
		} else {
			timer.Reset(beatEvery)
		}
	}
}

// beat tells the store that this gateway lives, and notes what it says.
func (s *shared) beat(ctx context.Context) {
	bctx, cancel := context.WithTimeout(ctx, beatTime)
	defer cancel()
	began := time.Now()
	n, err := s.store.Beat(bctx)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		s.faults.Add(1)
		s.rest(err)
		return
	}
	s.count(int64(max(n, 1)))
	if time.Since(began) <= time.Duration(s.timeout.Load()) && s.resting.Load() {
		s.row.Store(0)
		s.resting.Store(false)
		s.log.Info("the shared store is back", "component", "limit", "gateways", n)
	}
}

// count notes how many gateways there are. A store that lost what it knew hears of
// them one after the other, so fewer are believed only when they stay fewer.
func (s *shared) count(n int64) {
	if n < s.gateways.Load() {
		if s.fewer++; s.fewer < fewAfter {
			return
		}
	}
	s.fewer = 0
	s.gateways.Store(n)
}

// scale makes the asks those of one gateway of n with the same share each: charges
// take n times as long to come back, and n gateways hold what one may.
func scale(asks []Ask, n int64) {
	for i := range asks {
		a := &asks[i]
		if a.Kind == Held {
			a.Size = max(1, a.Size/n)
			continue
		}
		a.Cost = times(a.Cost, n)
		a.Room = min(a.Cost, a.Size)
	}
}

// times is a cost n times over, bounded.
func times(cost, n int64) int64 {
	if n > 1 && (cost > longestTime/n || cost < -longestTime/n) {
		if cost < 0 {
			return -longestTime
		}
		return longestTime
	}
	return cost * n
}
