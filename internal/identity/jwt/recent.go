package jwt

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// maxRecent bounds the tokens that are remembered.
const maxRecent = 10_000

// recent remembers tokens that were found good, until they end. The one that was not
// seen for the longest time goes first.
type recent struct {
	mu    sync.Mutex
	order *list.List // of *seen; the latest first
	by    map[[sha256.Size]byte]*list.Element
}

// seen is a token that was found good.
type seen struct {
	digest [sha256.Size]byte
	under  *settings // what it was judged by
	caller inference.Caller
	ends   time.Time
}

// newRecent remembers nothing.
func newRecent() *recent {
	return &recent{order: list.New(), by: make(map[[sha256.Size]byte]*list.Element)}
}

// find returns whose token it is, if it was found good under the same settings and
// has not ended.
func (r *recent) find(digest [sha256.Size]byte, under *settings, now time.Time) (inference.Caller, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.by[digest]
	if e == nil {
		return inference.Caller{}, false
	}
	s := e.Value.(*seen)
	if s.under != under || !now.Before(s.ends) {
		r.order.Remove(e)
		delete(r.by, digest)
		return inference.Caller{}, false
	}
	r.order.MoveToFront(e)
	return s.caller, true
}

// keep remembers a token.
func (r *recent) keep(s *seen) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.by[s.digest]; old != nil {
		old.Value = s
		r.order.MoveToFront(old)
		return
	}
	r.by[s.digest] = r.order.PushFront(s)
	if r.order.Len() > maxRecent {
		last := r.order.Back()
		delete(r.by, last.Value.(*seen).digest)
		r.order.Remove(last)
	}
}
