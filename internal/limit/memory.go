package limit

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// shards is how many locks a Memory has. The entry bound is per shard, so keys that
// are not spread evenly cost a little room.
const shards = 64

// EntryBytes is about what a bucket takes in a Memory, its share of the index
// included.
const EntryBytes = 48

// leastEntries is the smallest bound: 64 a shard, more than one request asks for and
// an eviction looks at together, so that a request never evicts what it asks for.
const leastEntries = 64 * shards

// mostAsks bounds the buckets of one request.
const mostAsks = 40

// Memory is a Store in this process, exact and bounded. It knows of no other gateway.
//
// The locks of all shards that a request touches are taken in their order, so that
// all of its buckets are checked, and then charged, at one instant, and no two
// requests wait for each other in a circle. Nothing but memory is touched under them.
type Memory struct {
	clock Clock
	most  atomic.Int64 // entries a shard
	shard [shards]shard
}

// shard is a part of the buckets with a lock of its own.
type shard struct {
	mu struct {
		sync.Mutex
		table
		// held has the buckets of which something is under way and no others, so it is
		// bounded by the requests that are.
		held map[Key]int64
	}
	_ [64]byte // shards are written by different cores
}

// NewMemory returns an empty store of at most so many metered buckets, at least 4096.
func NewMemory(entries int) *Memory {
	m := &Memory{clock: NewClock()}
	for i := range m.shard {
		s := &m.shard[i].mu
		s.table, s.held = newTable(), make(map[Key]int64)
	}
	m.resize(entries)
	return m
}

// resize changes the bound. What is too much goes as new ones come.
func (m *Memory) resize(entries int) { m.most.Store(int64(max(entries, leastEntries) / shards)) }

// place is the shard of a key. Tables use the other half of the key.
func place(k Key) uint64 { return k[1] % shards }

// lock takes the locks of a set of shards in order; the i-th bit is the i-th shard.
func (m *Memory) lock(set uint64) {
	for ; set != 0; set &= set - 1 {
		m.shard[bits.TrailingZeros64(set)].mu.Lock()
	}
}

// unlock gives them back.
func (m *Memory) unlock(set uint64) {
	for ; set != 0; set &= set - 1 {
		m.shard[bits.TrailingZeros64(set)].mu.Unlock()
	}
}

// touched is the set of shards of the asks.
func touched(asks []Ask) (set uint64) {
	for i := range asks {
		set |= 1 << place(asks[i].Key)
	}
	return set
}

// Take implements Store. It does not allocate for buckets that are known.
func (m *Memory) Take(_ context.Context, now time.Time, asks []Ask) (bool, error) {
	t := m.clock.Nano(now)
	if len(asks) == 1 && asks[0].Kind == Metered {
		return m.one(t, &asks[0]), nil
	}
	set := touched(asks)
	m.lock(set)
	ok := true
	for i := range asks {
		a := &asks[i]
		a.State = m.shard[place(a.Key)].state(a, t)
		ok = ok && !a.Over()
	}
	if ok {
		for i := range asks {
			a := &asks[i]
			m.shard[place(a.Key)].charge(a, t, int(m.most.Load()))
		}
	}
	m.unlock(set)
	return ok, nil
}

// one is Take of a single metered bucket.
func (m *Memory) one(now int64, a *Ask) bool {
	s := &m.shard[place(a.Key)]
	s.mu.Lock()
	a.State = s.state(a, now)
	over := a.Over()
	if !over {
		s.charge(a, now, int(m.most.Load()))
	}
	s.mu.Unlock()
	return !over
}

// state is a bucket's state. The caller holds mu.
func (s *shard) state(a *Ask, now int64) int64 {
	if a.Kind == Held {
		return s.mu.held[a.Key]
	}
	if e := s.mu.find(a.Key); e != nil {
		return max(0, e.tat-now)
	}
	return 0
}

// charge adds an ask's cost. The caller holds mu.
func (s *shard) charge(a *Ask, now int64, most int) {
	if a.Kind == Held {
		n := s.mu.held[a.Key] + a.Cost
		if n > 0 {
			s.mu.held[a.Key] = n
		} else {
			delete(s.mu.held, a.Key)
		}
		a.State = max(0, n)
		return
	}
	e := s.mu.find(a.Key)
	if e == nil {
		if a.Cost <= 0 {
			return // a refund of what was forgotten
		}
		e = s.mu.add(a.Key, now, most)
	}
	if a.Cost > 0 {
		e.tat = min(max(e.tat, now)+a.Cost, now+longestTime)
	} else {
		e.tat += a.Cost
	}
	a.State = max(0, e.tat-now)
}

// Give implements Store. It does not wait for more than other calls of a Memory.
func (m *Memory) Give(now time.Time, asks []Ask) {
	t := m.clock.Nano(now)
	for i := range asks {
		a := asks[i]
		s := &m.shard[place(a.Key)]
		s.mu.Lock()
		s.charge(&a, t, int(m.most.Load()))
		s.mu.Unlock()
	}
}

// mirror takes over what another store said of buckets, so that a gateway that has to
// do without it goes on from there.
func (m *Memory) mirror(now time.Time, asks []Ask) {
	t := m.clock.Nano(now)
	for i := range asks {
		a := asks[i]
		s := &m.shard[place(a.Key)]
		s.mu.Lock()
		switch {
		case a.Kind == Held:
			s.charge(&a, t, 0)
		case a.State > 0:
			e := s.mu.find(a.Key)
			if e == nil {
				e = s.mu.add(a.Key, t, int(m.most.Load()))
			}
			e.tat = t + a.State
		}
		s.mu.Unlock()
	}
}

// Beat implements Store: there is one gateway.
func (m *Memory) Beat(context.Context) (int, error) { return 1, nil }

// Run implements Store: there is nothing to do.
func (m *Memory) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// census is what a Memory holds and has done.
type census struct {
	entries, held, bytes int
	idle, live           uint64 // evictions
}

// census counts.
func (m *Memory) census() (c census) {
	for i := range m.shard {
		s := &m.shard[i].mu
		s.Lock()
		c.entries += s.n
		c.held += len(s.held)
		c.bytes += s.bytes()
		c.idle += s.idle
		c.live += s.live
		s.Unlock()
	}
	return c
}
