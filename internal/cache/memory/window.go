package memory

import (
	"sync"
	"time"

	"github.com/spillway/spillway/internal/cache"
)

// windowShare is the part of the level, as one in so many, that holds what is new
// whatever its frequency says. The W-TinyLFU paper shows 1% to be right for streams
// that are all frequency, and 20% to 40% for those that are recency first; the
// library's own window begins at 1%, and each step of its climber takes ten times as
// many requests as it counts keys. People who ask a question again mostly do so at
// once, so a part is given to that from the start. Of all possible hits a tenth of
// the entries then reaches 0.79 to 0.81 on RAGPulse for shares from a fifth to a
// twentieth, 0.74 without a window; where questions come without order (Zipf) it
// costs 0.003 of them (spillway bench cache).
const windowShare = 10

// window holds the newest entries in the order of their last use. Its methods are
// called with its lock held.
type window struct {
	sync.Mutex
	slots map[cache.Key]*slot
	order slot // a ring: next is the newest, last the one to leave
	bytes int64
	bound int64
}

// slot is an entry in a window.
type slot struct {
	entry      *cache.Entry
	next, last *slot
}

// prepare makes it empty.
func (w *window) prepare(bound int64) {
	w.slots, w.bound = make(map[cache.Key]*slot), bound
	w.order.next, w.order.last = &w.order, &w.order
}

// get returns the entry under a key, which is the newest from now on.
func (w *window) get(key cache.Key) *cache.Entry {
	s := w.slots[key]
	if s == nil {
		return nil
	}
	s.unlink()
	w.front(s)
	return s.entry
}

// put takes an entry in.
func (w *window) put(e *cache.Entry) {
	w.remove(e.Key)
	s := &slot{entry: e}
	w.slots[e.Key] = s
	w.bytes += int64(e.Size())
	w.front(s)
}

// surplus takes the oldest entry out while there is too much, or returns nil.
func (w *window) surplus() *cache.Entry {
	if w.bytes <= w.bound || w.order.last == &w.order {
		return nil
	}
	e := w.order.last.entry
	w.remove(e.Key)
	return e
}

// remove forgets the entry under a key, and says whether there was one.
func (w *window) remove(key cache.Key) bool {
	s := w.slots[key]
	if s == nil {
		return false
	}
	delete(w.slots, key)
	w.bytes -= int64(s.entry.Size())
	s.unlink()
	return true
}

// front links a slot in as the newest.
func (w *window) front(s *slot) {
	s.next, s.last = w.order.next, &w.order
	s.next.last, w.order.next = s, s
}

// unlink takes a slot out of the ring.
func (s *slot) unlink() { s.last.next, s.next.last = s.next, s.last }

// forget drops what a filter means and what is past its Stale instant at now, and
// counts it. The zero instant spares what is past.
func (w *window) forget(meant func(*cache.Entry) bool, now time.Time) int {
	n := 0
	for s := w.order.next; s != &w.order; {
		e := s.entry
		s = s.next
		if meant(e) || now.After(e.Stale) {
			w.remove(e.Key)
			n++
		}
	}
	return n
}
