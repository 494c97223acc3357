package cache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/wire"
)

// faulty is a level that has nothing, and fails after a while when it is told to.
type faulty struct {
	fails atomic.Bool
	asked atomic.Int64
}

// Get implements cache.Level.
func (l *faulty) Get(ctx context.Context, _ cache.Key, _ time.Time) (*cache.Entry, error) {
	l.asked.Add(1)
	if !l.fails.Load() {
		return nil, cache.ErrMiss
	}
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
	return nil, errors.New("broken")
}

// Put, Purge and Sweep implement cache.Level.
func (*faulty) Put(context.Context, []*cache.Entry) error        { return nil }
func (*faulty) Purge(context.Context, cache.Filter) (int, error) { return 0, nil }
func (*faulty) Sweep(context.Context, time.Time) (int, error)    { return 0, nil }

// TestManyFaultsAtOnceAreOneRest: a level that fails many calls that are under way
// together rests no longer than one that fails a few.
func TestManyFaultsAtOnceAreOneRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		level := new(faulty)
		c := cache.New(cache.Default(), cache.Parts{Memory: new(faulty), Slower: []cache.Named{{Name: "far", Level: level}}, Log: testkit.Discard()})
		fetch := func(i int) {
			body := fmt.Appendf(nil, `{"model":"m","temperature":0,"messages":[{"role":"user","content":"%d"}]}`, i)
			fields, err := wire.ScanRequest(inference.Chat, body)
			if err != nil {
				t.Error(err)
			}
			req := &inference.Request{Surface: inference.Chat, Body: body, Fields: fields, Tenant: inference.Anonymous}
			plan := fleet.NewPlan(req)
			plan.Candidates = []fleet.Candidate{{Model: "m"}}
			c.Lookup(time.Now(), req, plan).Fetch(t.Context())
		}
		level.fails.Store(true)
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() { fetch(i) })
		}
		wg.Wait()
		time.Sleep(100 * time.Millisecond) // all of them have failed
		level.fails.Store(false)
		before := level.asked.Load()
		if fetch(100); level.asked.Load() != before {
			t.Error("a level that failed is asked at once")
		}
		time.Sleep(600 * time.Millisecond) // longer than the first rest
		for i := range 3 {
			fetch(200 + i)
		}
		time.Sleep(time.Second)
		if got := level.asked.Load() - before; got != 3 {
			t.Errorf("asked %d times of 3 behind its rest", got)
		}
	})
}
