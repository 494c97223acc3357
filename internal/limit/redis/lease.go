package redis

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/limit"
)

// Bounds of what is known of buckets in the mode lease.
const (
	creditShards = 16
	mostCredits  = 1 << 16 // of about 130 bytes
	lookedAt     = 8       // to forget one
)

// credit is what this gateway holds of one bucket. It was charged in Redis when it was
// taken, so what gateways admit together never goes beyond what Redis gave out: over
// any time it exceeds the limit by what they hold when that time begins, at most
// lease / gateways each.
//
// How much is taken ahead follows the demand: nothing for the first request, twice as
// much each time when it was used up within a lease, nothing again when it was not. What
// is too little goes back with the next call.
type credit struct {
	have     int64         // nanoseconds of the bucket's time
	until    int64         // when it ends, Unix nanoseconds
	extra    int64         // what was taken ahead the last time
	asked    int64         // when, Unix nanoseconds
	full     int64         // when the bucket would be full, as last heard, Unix nanoseconds
	asking   chan struct{} // closed when the call that is under way has ended; nil: none is
	denied   int64         // until when asking is of no use, Unix nanoseconds
	deniedAt int64         // for costs of at least so much
}

// credits are what this gateway holds, bounded.
type credits struct {
	shard [creditShards]struct {
		sync.Mutex
		all map[limit.Key]*credit
	}
}

// init makes them empty.
func (c *credits) init() {
	for i := range c.shard {
		c.shard[i].all = make(map[limit.Key]*credit)
	}
}

// with calls do for a bucket's credit under its lock.
func (c *credits) with(k limit.Key, do func(*credit)) {
	s := &c.shard[k[0]%creditShards]
	s.Lock()
	defer s.Unlock()
	one := s.all[k]
	if one == nil {
		if len(s.all) >= mostCredits/creditShards {
			var oldest limit.Key
			seen, least := 0, int64(math.MaxInt64)
			for other, x := range s.all { // begins anywhere
				if x.asked < least {
					oldest, least = other, x.asked
				}
				if seen++; seen == lookedAt {
					break
				}
			}
			delete(s.all, oldest)
		}
		one = &credit{}
		s.all[k] = one
	}
	do(one)
}

// lend is Take in the mode lease: what this gateway holds is used first, and Redis is
// asked for the rest, for all of it or none.
func (s *Store) lend(ctx context.Context, now time.Time, asks []limit.Ask) (bool, error) {
	t := s.clock.Nano(now)
	var space [8]want
	lacking := space[:0]
	for i := range asks {
		a := &asks[i]
		if a.Kind == limit.Held {
			lacking = append(lacking, want{ask: a})
			continue
		}
		// Who has to wait for another's call must have none to make that others wait for.
		w, answer := s.use(ctx, a, t, len(lacking) == 0)
		switch answer {
		case denied:
			s.undo(asks[:i], lacking, true)
			for j := i + 1; j < len(asks); j++ {
				asks[j].State = -1 // nobody looked at it
			}
			return false, nil
		case lacks:
			lacking = append(lacking, w)
		}
	}
	if len(lacking) == 0 {
		s.local.Add(1)
		return true, nil
	}
	ok, err := s.charge(ctx, lacking)
	if err == nil {
		for i := range lacking {
			if w := &lacking[i]; w.ask.Kind == limit.Metered {
				s.credits.with(w.ask.Key, func(c *credit) { c.heard(s, w, ok, t) })
			}
		}
	}
	if err != nil || !ok {
		s.undo(asks, lacking, false)
	}
	return ok && err == nil, err
}

// answer is what a bucket's credit says of an ask.
type answer uint8

// The answers.
const (
	used   answer = iota // the credit was enough
	denied               // the bucket is known to be empty
	lacks                // Redis must be asked
)

// use takes an ask from what is held. Where another request asks Redis for the same
// bucket it may wait for what that one brings: of a burst one call is made, not one for
// each. It waits no longer than for Redis itself.
func (s *Store) use(ctx context.Context, a *limit.Ask, t int64, mayWait bool) (w want, got answer) {
	var wait chan struct{}
	look := func(c *credit) {
		wait = nil
		switch {
		case c.until > t && c.have >= a.Cost:
			c.have -= a.Cost
			a.State, got = max(0, c.full-t-c.have), used
		case c.denied > t && a.Cost >= c.deniedAt:
			a.State, got = max(c.full-t, a.Size-a.Room+c.denied-t), denied
		case c.asking != nil && mayWait:
			wait = c.asking
		default:
			w, got = c.want(s, a, t), lacks
		}
	}
	if s.credits.with(a.Key, look); wait == nil {
		return w, got
	}
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	for wait != nil {
		select {
		case <-wait:
		case <-timer.C:
			mayWait = false
		case <-ctx.Done():
			mayWait = false
		}
		s.credits.with(a.Key, look)
	}
	return w, got
}

// want is what to ask Redis for, where what is held is not enough or has ended. That
// goes back first, so that it is not missing where it decides.
func (c *credit) want(s *Store, a *limit.Ask, t int64) want {
	w := want{ask: a}
	w.back, c.have = c.have, 0
	if c.asking != nil {
		return w // one call takes ahead, not all of a burst
	}
	w.credit, c.asking = c, make(chan struct{})
	if t-c.asked < int64(s.lease) {
		w.extra = min(max(2*c.extra, a.Cost), int64(s.lease)/s.gateways.Load())
	}
	return w
}

// heard notes what Redis said.
func (c *credit) heard(s *Store, w *want, ok bool, t int64) {
	if w.credit == c {
		c.ended()
	}
	c.full = t + w.ask.State
	// Of a bucket that is empty the next call is worth a part of what it can hold, so
	// that gateways that are all refused do not ask for every request.
	pause := min(int64(s.lease), w.ask.Size) / 4
	if !ok {
		if w.ask.Over() {
			w.ask.State = max(w.ask.State, w.ask.Size-w.ask.Room+pause)
			c.denied, c.deniedAt = t+min(w.ask.State+w.ask.Room-w.ask.Size, int64(s.lease)), w.ask.Cost
		}
		return
	}
	if w.got < w.extra { // nothing is left there
		c.denied, c.deniedAt = t+pause, 0
	} else if w.credit == c {
		c.denied = 0
	}
	c.have += w.got
	c.until, c.asked = t+int64(s.lease), t
	if w.credit == c {
		c.extra = w.extra
	}
	w.ask.State = max(0, w.ask.State-c.have)
}

// ended notes that the call of this bucket has ended, and wakes who waits for it.
func (c *credit) ended() {
	if c.asking != nil {
		close(c.asking)
		c.asking = nil
	}
}

// refunded notes that a bucket has more room than it had.
func (c *credits) refunded(k limit.Key) {
	c.with(k, func(c *credit) { c.denied = 0 })
}

// undo gives back what was used of what is held, of asks that were looked at. unasked
// says that Redis was not told, so that what was to go back there stays here.
func (s *Store) undo(asks []limit.Ask, lacking []want, unasked bool) {
	next := 0
	for i := range asks {
		a := &asks[i]
		lacks := next < len(lacking) && lacking[next].ask == a
		if a.Kind == limit.Metered {
			s.credits.with(a.Key, func(c *credit) {
				switch {
				case !lacks:
					c.have += a.Cost
				case lacking[next].credit == c:
					c.ended()
				}
				if lacks && unasked {
					c.have += lacking[next].back
				}
			})
		}
		if lacks {
			next++
		}
	}
}
