package bench

import (
	linked "container/list"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/memory"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
)

// virtualClock is the time of a replay.
type virtualClock struct{ now atomic.Int64 }

// set moves it.
func (c *virtualClock) set(now time.Time) { c.now.Store(now.UnixNano()) }

// time reads it.
func (c *virtualClock) time() time.Time { return time.Unix(0, c.now.Load()) }

// shelf is where a replay keeps answers. One goroutine uses it.
type shelf interface {
	fresh(key cache.Key, now, until time.Time) bool
	put(key cache.Key, now time.Time)
	tick(now time.Time)
}

// endless keeps every answer.
type endless struct {
	until map[cache.Key]time.Time
	ttl   time.Duration
	slide bool // an answer lives from its last ask, not from its making
}

// newEndless is empty.
func newEndless(ttl time.Duration, slide bool) *endless {
	return &endless{until: make(map[cache.Key]time.Time), ttl: ttl, slide: slide}
}

// fresh implements shelf.
func (e *endless) fresh(key cache.Key, now, until time.Time) bool {
	end, ok := e.until[key]
	hit := ok && !until.After(end)
	if hit && e.slide {
		e.put(key, now)
	}
	return hit
}

// put implements shelf.
func (e *endless) put(key cache.Key, now time.Time) { e.until[key] = now.Add(lifetimeOf(e.ttl)) }

// tick implements shelf.
func (*endless) tick(time.Time) {}

// forever is the lifetime of answers without end.
const forever = 100 * 365 * 24 * time.Hour

// lifetimeOf is a TTL, where 0 is without end.
func lifetimeOf(ttl time.Duration) time.Duration {
	if ttl == 0 {
		return forever
	}
	return ttl
}

// recent keeps the answers that were used last: the plainest policy, to compare with.
type recent struct {
	at    map[cache.Key]*linked.Element // of recentEntry
	order *linked.List                  // the newest first
	room  int
	ttl   time.Duration
}

// recentEntry is an answer of recent.
type recentEntry struct {
	key cache.Key
	end time.Time
}

// newRecent has room for some entries.
func newRecent(room int, ttl time.Duration) *recent {
	return &recent{at: make(map[cache.Key]*linked.Element), order: linked.New(), room: room, ttl: ttl}
}

// fresh implements shelf.
func (r *recent) fresh(key cache.Key, _, until time.Time) bool {
	e, ok := r.at[key]
	if !ok || until.After(e.Value.(recentEntry).end) {
		return false
	}
	r.order.MoveToFront(e)
	return true
}

// put implements shelf.
func (r *recent) put(key cache.Key, now time.Time) {
	if e, ok := r.at[key]; ok {
		r.order.Remove(e)
	}
	r.at[key] = r.order.PushFront(recentEntry{key, now.Add(lifetimeOf(r.ttl))})
	if r.order.Len() > r.room {
		last := r.order.Back()
		delete(r.at, r.order.Remove(last).(recentEntry).key)
	}
}

// tick implements shelf.
func (*recent) tick(time.Time) {}

// memoryShelf is the level in memory.
type memoryShelf struct {
	level *memory.Level
	clock *virtualClock
	ttl   time.Duration
}

// newMemoryShelf has room for some entries: all answers have one size.
func newMemoryShelf(entries int, ttl time.Duration, clock *virtualClock) *memoryShelf {
	s := &memoryShelf{clock: clock, ttl: ttl}
	s.level = memory.New(int64(entries*s.entry(cache.Key{}, noon).Size()), clock.time)
	return s
}

// shelfAnswer is the size of every answer, in bytes.
const shelfAnswer = 1 << 10

// entry is an answer made now.
func (s *memoryShelf) entry(key cache.Key, now time.Time) *cache.Entry {
	end := now.Add(lifetimeOf(s.ttl))
	return cache.NewEntry(cache.Entry{
		Key: key, Stored: now, Expires: end, Stale: end, Answer: &inference.Transcript{Body: make([]byte, shelfAnswer)},
	})
}

// fresh implements shelf.
func (s *memoryShelf) fresh(key cache.Key, now, until time.Time) bool {
	s.clock.set(now)
	e, err := s.level.Get(context.Background(), key, now)
	return err == nil && !until.After(e.Expires)
}

// put implements shelf.
func (s *memoryShelf) put(key cache.Key, now time.Time) {
	s.clock.set(now)
	_ = s.level.Put(context.Background(), []*cache.Entry{s.entry(key, now)}) // it has no errors
}

// tick implements shelf.
func (s *memoryShelf) tick(now time.Time) {
	s.clock.set(now)
	_, _ = s.level.Sweep(context.Background(), now) // it has no errors
}

// warmed is the preloader of a replay: the real statistics, forecasts and plans in
// front of a Runner that makes an answer in no time.
type warmed struct {
	*preload.Preloader
	shelf     *memoryShelf
	now       time.Time
	next      time.Time // when to plan
	every     time.Duration
	steps     []preload.Step
	until     time.Time // end of the window that the steps are for
	planned   int
	refreshed int
}

// newWarmed is a preloader whose horizon is the lifetime of answers, as the
// configuration asks for; a day where they have no end. All else is as by default.
func newWarmed(s *memoryShelf, ttl time.Duration, begin time.Time) *warmed {
	cfg := preload.Default()
	cfg.Horizon = ttl
	if ttl == 0 {
		cfg.Horizon = 24 * time.Hour
	}
	w := &warmed{shelf: s, every: cfg.Window, next: begin.Truncate(cfg.Window).Add(cfg.Window)}
	w.Preloader = preload.New(cfg, preload.Parts{Runner: w, Freshness: w})
	return w
}

// Run implements preload.Runner.
func (w *warmed) Run(_ context.Context, req *inference.Request) error {
	w.refreshed++
	w.shelf.put(sha256.Sum256(req.Body), w.now)
	return nil
}

// Fresh implements preload.Freshness.
func (w *warmed) Fresh(key [32]byte, until time.Time) bool { return w.shelf.fresh(key, w.now, until) }

// advance does what is due until an instant.
func (w *warmed) advance(ctx context.Context, now time.Time) {
	for {
		switch {
		case len(w.steps) > 0 && !w.steps[0].At.After(now) && w.steps[0].At.Before(w.next):
			step := w.steps[0]
			w.steps, w.now = w.steps[1:], step.At
			w.Refresh(ctx, step.At, preload.Item{Key: step.Key, Request: step.Request}, w.until)
		case !w.next.After(now):
			w.now = w.next
			w.Tick(w.next)
			plan := w.Plan(w.next)
			w.steps, w.until = plan.Steps, plan.Window.End
			w.planned += len(plan.Steps)
			w.next = w.next.Add(w.every)
		default:
			w.now = now
			return
		}
	}
}

// replayed is what a replay has counted.
type replayed struct{ hits, refreshes, planned int }

// sweepSteps is how often a shelf is swept, as the cache does with its levels.
const sweepSteps = time.Minute

// replay asks the questions in trace time; what is not there is made in no time.
func replay(ctx context.Context, asked []question, ttl time.Duration, s shelf, ahead *warmed) replayed {
	var sum replayed
	swept := asked[0].at
	for _, q := range asked {
		if ahead != nil {
			ahead.advance(ctx, q.at)
		}
		if q.at.Sub(swept) >= sweepSteps {
			s.tick(q.at)
			swept = q.at
		}
		req := requestOf(q)
		key := cache.Key(sha256.Sum256(req.Body))
		hit := s.fresh(key, q.at, q.at)
		if hit {
			sum.hits++
		} else {
			s.put(key, q.at)
		}
		if ahead != nil {
			ahead.Observe(preload.Asked{Key: key, Request: req, At: q.at, Hit: hit, Tokens: q.tokens})
		}
	}
	if ahead != nil {
		sum.refreshes, sum.planned = ahead.refreshed, ahead.planned
	}
	return sum
}

// requestOf asks a question: the body is the user's question alone.
func requestOf(q question) *inference.Request {
	body := fmt.Appendf(nil, `{"model":"m","temperature":0,"messages":[{"role":"user","content":%q}]}`, q.text)
	return &inference.Request{Surface: inference.Chat, Tenant: "trace", Body: body, Fields: inference.Fields{Model: "m", PromptBytes: int64(len(body))}}
}

// portion is a/b, and 0 for b = 0.
func portion(a, b int) float64 {
	if b == 0 {
		return 0
	}
	return math.Round(1e6*float64(a)/float64(b)) / 1e6
}
