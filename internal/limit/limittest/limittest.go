// Package limittest checks that a store of limits keeps the contract of limit.Store.
//
// Stores have clocks of their own, so every instant is near the real time, and the
// rates are such that the time that a test takes does not matter: either hardly
// anything comes back meanwhile, or all of it.
package limittest

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/testkit"
)

// unit is the cost of one request in the suite: nothing comes back within a test.
const unit = int64(time.Hour)

// suite is a store under test.
type suite struct {
	store limit.Store
	seed  uint64
}

// TestStore runs the suite against stores that open makes, which are running.
func TestStore(t *testing.T, open func(t *testing.T) limit.Store) {
	for name, check := range map[string]func(*suite, *testing.T){
		"burst":        (*suite).burst,
		"all or none":  (*suite).allOrNone,
		"larger":       (*suite).larger,
		"refund":       (*suite).refund,
		"late charge":  (*suite).late,
		"forgotten":    (*suite).forgotten,
		"recovers":     (*suite).recovers,
		"held":         (*suite).held,
		"held or none": (*suite).heldOrNone,
		"many at once": (*suite).many,
		"circles":      (*suite).circles,
		"beat":         (*suite).beat,
	} {
		t.Run(name, func(t *testing.T) { check(&suite{open(t), rand.Uint64()}, t) })
	}
}

// ask asks a bucket of size units for cost units.
func (s *suite) ask(bucket uint64, size, cost int64) limit.Ask {
	return limit.Ask{
		Key: limit.Key{s.seed + bucket, bucket * 0x9e3779b97f4a7c15}, Name: "suite-requests",
		Cost: cost * unit, Room: min(cost, size) * unit, Size: size * unit,
	}
}

// slot asks for one of size places.
func (s *suite) slot(bucket uint64, size int64) limit.Ask {
	a := s.ask(bucket, 1, 1)
	a.Kind, a.Cost, a.Room, a.Size = limit.Held, 1, 1, size
	return a
}

// take asks and fails the test on a fault.
func (s *suite) take(t testing.TB, asks ...limit.Ask) bool {
	t.Helper()
	ok, err := s.store.Take(context.Background(), time.Now(), asks)
	if err != nil {
		t.Fatalf("Take: %v", err)
	}
	return ok
}

// wantTaken fails the test unless the asks get the answer.
func (s *suite) wantTaken(t testing.TB, what string, want bool, asks ...limit.Ask) {
	t.Helper()
	if got := s.take(t, asks...); got != want {
		t.Errorf("%s: Take = %v, want %v", what, got, want)
	}
}

// eventually waits until the asks are taken: stores may give back in the background.
func (s *suite) eventually(t testing.TB, what string, asks ...limit.Ask) {
	t.Helper()
	testkit.Eventually(t, what, func() bool { return s.take(t, asks...) })
}

func (s *suite) burst(t *testing.T) {
	for i := range 5 {
		s.wantTaken(t, "within the burst", true, s.ask(1, 5, 1))
		asks := []limit.Ask{s.ask(2, 5, 1)}
		if ok, err := s.store.Take(context.Background(), time.Now(), asks); !ok || err != nil {
			t.Fatalf("Take = %v, %v", ok, err)
		}
		if want, got := int64(i+1)*unit, asks[0].State; got > want || got < want-int64(time.Minute) {
			t.Errorf("after %d: State = %v, want %v", i+1, time.Duration(got), time.Duration(want))
		}
	}
	asks := []limit.Ask{s.ask(1, 5, 1)}
	if ok, err := s.store.Take(context.Background(), time.Now(), asks); ok || err != nil {
		t.Errorf("beyond the burst: Take = %v, %v, want false", ok, err)
	}
	if a := &asks[0]; !a.Over() {
		t.Errorf("State = %v of %v, want over", time.Duration(a.State), time.Duration(a.Size))
	}
	s.wantTaken(t, "of another bucket", true, s.ask(3, 5, 5))
}

func (s *suite) allOrNone(t *testing.T) {
	s.wantTaken(t, "the first of the small one", true, s.ask(1, 1, 1))
	for range 20 {
		s.wantTaken(t, "with one that is over", false, s.ask(2, 3, 1), s.ask(1, 1, 1), s.ask(3, 3, 1))
	}
	s.wantTaken(t, "all of the others", true, s.ask(2, 3, 3), s.ask(3, 3, 3))
}

func (s *suite) larger(t *testing.T) {
	s.wantTaken(t, "more than the whole of a full bucket", true, s.ask(1, 5, 12))
	s.wantTaken(t, "a little of one in debt", false, s.ask(1, 5, 1))
	s.wantTaken(t, "a little of another", true, s.ask(2, 5, 1))
	s.wantTaken(t, "more than the whole of one that is not full", false, s.ask(2, 5, 12))
}

func (s *suite) refund(t *testing.T) {
	s.wantTaken(t, "all", true, s.ask(1, 10, 10))
	s.store.Give(time.Now(), []limit.Ask{s.ask(1, 10, -4)})
	s.eventually(t, "what was refunded", s.ask(1, 10, 4))
	s.wantTaken(t, "one more", false, s.ask(1, 10, 1))
}

func (s *suite) late(t *testing.T) {
	s.wantTaken(t, "a half", true, s.ask(1, 10, 5))
	s.store.Give(time.Now(), []limit.Ask{s.ask(1, 10, 30)}) // into debt
	testkit.Eventually(t, "the bucket is in debt", func() bool {
		asks := []limit.Ask{s.ask(1, 10, 10)} // more than may be there
		ok, err := s.store.Take(context.Background(), time.Now(), asks)
		if ok || err != nil {
			t.Fatalf("Take = %v, %v, want false", ok, err)
		}
		return asks[0].State > 34*unit
	})
	s.store.Give(time.Now(), []limit.Ask{s.ask(1, 10, -30)})
	s.eventually(t, "what is left", s.ask(1, 10, 5))
}

func (s *suite) forgotten(t *testing.T) {
	s.store.Give(time.Now(), []limit.Ask{s.ask(1, 3, -100)}) // of a bucket that never was
	s.store.Give(time.Now(), []limit.Ask{s.ask(2, 1, 5)})
	testkit.Eventually(t, "what was given has arrived", func() bool { return !s.take(t, s.ask(2, 1, 1), s.ask(3, 1, 0)) })
	s.wantTaken(t, "a full bucket", true, s.ask(1, 3, 3))
	s.wantTaken(t, "more than a full bucket", false, s.ask(1, 3, 1))
}

// quick is an ask whose bucket is full again at once.
func (s *suite) quick(bucket uint64) limit.Ask {
	a := s.ask(bucket, 1, 1)
	a.Cost, a.Room, a.Size = int64(time.Millisecond), int64(time.Millisecond), int64(time.Millisecond)
	return a
}

func (s *suite) recovers(t *testing.T) {
	for range 20 {
		s.eventually(t, "time gives back", s.quick(1), s.quick(2))
	}
}

func (s *suite) held(t *testing.T) {
	var asks [3][]limit.Ask
	for i := range asks {
		asks[i] = []limit.Ask{s.slot(1, 3)}
		if ok, err := s.store.Take(context.Background(), time.Now(), asks[i]); !ok || err != nil {
			t.Fatalf("Take = %v, %v", ok, err)
		}
		if got := asks[i][0].State; got != int64(i+1) {
			t.Errorf("State = %d, want %d", got, i+1)
		}
	}
	s.wantTaken(t, "a fourth", false, s.slot(1, 3))
	back := asks[1][0]
	back.Cost = -1
	s.store.Give(time.Now(), []limit.Ask{back})
	s.eventually(t, "one came back", s.slot(1, 3))
	s.wantTaken(t, "a fourth", false, s.slot(1, 3))
}

func (s *suite) heldOrNone(t *testing.T) {
	s.wantTaken(t, "all", true, s.ask(1, 1, 1))
	for range 10 {
		s.wantTaken(t, "with one that is over", false, s.slot(2, 2), s.ask(1, 1, 1))
	}
	s.wantTaken(t, "one", true, s.slot(2, 2), s.ask(3, 3, 1))
	s.wantTaken(t, "two", true, s.slot(2, 2), s.ask(3, 3, 1))
	s.wantTaken(t, "three", false, s.slot(2, 2), s.ask(3, 3, 1))
	s.wantTaken(t, "what three did not take", true, s.ask(3, 3, 1))
}

// many asks from many goroutines: exactly as many are taken as there is room for.
func (s *suite) many(t *testing.T) {
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if s.take(t, s.ask(1, 100, 1), s.ask(2, 1000, 1)) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := taken.Load(); got != 100 {
		t.Errorf("%d were taken, want 100", got)
	}
	s.wantTaken(t, "the rest of the larger one", true, s.ask(2, 1000, 900))
	s.wantTaken(t, "one more", false, s.ask(2, 1000, 1))
}

// circles asks for the same buckets in all orders.
func (s *suite) circles(t *testing.T) {
	var wg sync.WaitGroup
	for g := range uint64(6) {
		wg.Go(func() {
			for range 40 {
				s.take(t, s.ask(1+g%3, 1000, 1), s.ask(1+(g+1)%3, 1000, 1), s.ask(1+(g+2)%3, 1000, 1), s.slot(9, 1000))
			}
		})
	}
	wg.Wait()
	for b := range uint64(3) {
		s.wantTaken(t, "the rest", true, s.ask(1+b, 1000, 1000-240))
		s.wantTaken(t, "one more", false, s.ask(1+b, 1000, 1))
	}
}

func (s *suite) beat(t *testing.T) {
	if n, err := s.store.Beat(t.Context()); n != 1 || err != nil {
		t.Errorf("Beat = %d, %v, want 1", n, err)
	}
}
