// Package cache knows answers that were given before, and keeps new ones.
//
// A request whose answer may be kept has a Key, into which everything is hashed
// that may change the answer. Lookup asks the memory at once; Fetch asks the slower
// levels, Redis and then SQL, within one short time-out for all of them, beyond
// which the request counts as a miss. Keep puts a new answer into memory and hands
// it to the levels below in the background, bounded by count and by bytes. What a
// lower level finds is promoted to those above it, also when it came too late for
// the request that asked.
//
// An entry is fresh until Expires, which moves away as the entry is asked for, and
// is kept until Stale for the three cases in which an old answer is better than
// none. Levels forget what is past Stale when they meet it, and Run sweeps them.
//
// A fault of a level is a miss and is counted; a level that fails rests behind a
// breaker. Nothing that a level returns is used unless it is whole and is the entry
// that was asked for, of the right scope.
//
// Twins of a request in flight are the gateway's: this package holds only answers
// that are complete. Run owns the goroutines that fill and sweep; look-ups of the
// slower levels run on goroutines of their own, a bounded number, which end with
// their time-outs. No lock is held across a call of a level.
package cache

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// Named is a slower level and the name that it has in metrics and headers.
type Named struct {
	Name  string
	Level Level
}

// Parts are what a cache is made of.
type Parts struct {
	Memory Level   // its Get neither waits nor fails
	Slower []Named // in the order in which they are asked
	// Asked is told of every look-up for a client whose answer can be asked for again
	// without the client's own credentials, on the request's goroutine; nil is nobody.
	Asked func(Asked)
	Log   *slog.Logger
}

// Asked is one look-up.
type Asked struct {
	Key     Key
	Request *inference.Request // valid during the call only
	At      time.Time
	Hit     bool
	Tokens  int64 // of the answer that is kept, prompt included; 0 is not known
	// Varies says whether a header field of the request, by its canonical name, is part of
	// the key, as its query is.
	Varies func(name string) bool
}

// Cache finds and keeps answers. It is safe for concurrent use.
type Cache struct {
	parts   Parts
	set     atomic.Pointer[Config]
	slower  []*guard
	lookups chan struct{} // slots for look-ups of the slower levels
	fills   fillQueue
	under   sync.WaitGroup // those look-ups
	count   counts
}

// maxLookups bounds the look-ups of the slower levels at one time. Beyond it a
// request counts as a miss at once.
const maxLookups = 256

// New returns a cache over its levels. It starts nothing; until Run nothing is
// written to the slower levels.
func New(cfg Config, parts Parts) *Cache {
	c := &Cache{parts: parts, lookups: make(chan struct{}, maxLookups)}
	for _, l := range parts.Slower {
		c.slower = append(c.slower, &guard{Level: l.Level, name: l.Name, log: parts.Log})
	}
	c.fills.init(cfg.Fill, len(parts.Slower))
	c.Apply(cfg)
	return c
}

// Apply replaces the configuration for requests that come from now on. The sizes
// of the levels and of the fill queue stay as they were made.
func (c *Cache) Apply(cfg Config) {
	cfg.Vary = canonicalNames(cfg.Vary)
	c.set.Store(&cfg)
}

// Handle is what the cache knows about one request's answer. It is for one
// goroutine at a time, and may outlive the request, of which it keeps nothing.
type Handle struct {
	c       *Cache
	set     *Config
	policy  policy
	control inference.CacheControl
	surface inference.Surface
	whole   bool // the client wants the answer in one piece, which may be kept as events
	key     Key
	scope   string
	model   string
	found   *Entry // fresh or stale; nil: nothing yet
	level   string
	asked   bool // the slower levels were
}

// Lookup returns what memory knows about a request's answer, or nil when the answer
// is neither looked up nor kept. It does not wait.
func (c *Cache) Lookup(now time.Time, req *inference.Request, plan *fleet.Plan) *Handle {
	set := c.set.Load()
	if !set.Enabled || req.Cache.NoStore || len(plan.Candidates) == 0 || plan.Candidates[0].Fallback != "" {
		return nil
	}
	p := set.policy(req)
	if !p.keeps(req) {
		return nil
	}
	h := &Handle{
		c: c, set: set, policy: p, control: req.Cache, surface: req.Surface, whole: req.Assemble && !req.Stream,
		scope: ScopeOf(req, p.shared), model: plan.Candidates[0].Model,
	}
	var err error
	if h.key, err = KeyOf(req, h.scope+p.group, plan.Arm, h.model, set.Vary); err != nil {
		c.count.keyless.Add(1)
		return nil
	}
	if !req.Cache.NoCache {
		h.peek(now)
	}
	hit := h.found != nil && now.Before(h.found.Expires)
	h.tell(now, req, hit)
	if hit {
		c.count.memoryHits.Add(1)
		h.hit(now)
	} else {
		c.count.memoryMisses.Add(1)
	}
	return h
}

// tell reports the look-up.
func (h *Handle) tell(now time.Time, req *inference.Request, hit bool) {
	if h.c.parts.Asked == nil || req.Class == inference.Idle || len(credentials(req, h.scope)) > 0 {
		return
	}
	a := Asked{Key: h.key, Request: req, At: now, Hit: hit, Varies: func(name string) bool { return varies(name, h.set.Vary) }}
	if h.found != nil {
		a.Tokens = h.found.Answer.Usage.PromptTokens + h.found.Answer.Usage.CompletionTokens
	}
	h.c.parts.Asked(a)
}

// peek asks the memory.
func (h *Handle) peek(now time.Time) {
	if e, err := h.c.parts.Memory.Get(context.Background(), h.key, now); err == nil {
		h.use(e, memoryName, now)
	}
}

// Key is the answer's key.
func (h *Handle) Key() [32]byte { return h.key }

// use takes an entry that a level returned, if it is what was asked for and not
// older than the client allows.
func (h *Handle) use(e *Entry, level string, now time.Time) {
	if e == nil {
		return
	}
	if e.Key != h.key || e.Scope != h.scope || e.Model != h.model || e.Surface != h.surface {
		h.c.count.mismatched.Add(1)
		return
	}
	if h.control.HasMaxAge && now.Sub(e.Stored) > h.control.MaxAge {
		return
	}
	if h.found == nil || e.Expires.After(h.found.Expires) {
		h.found, h.level = e, level
	}
}

// hit counts a hit and prolongs the entry when the demand for it has doubled.
func (h *Handle) hit(now time.Time) {
	e := h.found
	if e.asked == nil {
		return
	}
	n := e.asked.Add(1)
	if !step(n) {
		return
	}
	if expires := e.Stored.Add(jittered(h.policy.lifetime(n), h.set.Jitter, e.Key)); expires.After(e.Expires) {
		longer := *e
		longer.Hits, longer.Expires, longer.Stale = n, expires, expires.Add(h.set.Stale.longest())
		h.c.count.prolonged.Add(1)
		h.found = &longer
		h.c.keep(&longer, allLevels, now)
	}
}

// Stored is the answer that was found, or nil. For a request that wants an answer
// in one piece it has one.
func (h *Handle) Stored(now time.Time) *inference.Stored {
	e := h.found
	if e == nil {
		return nil
	}
	if h.whole && e.Answer.Stream() && e.Answer.Whole == nil && !h.assemble(now) {
		return nil
	}
	e = h.found
	past := now.Sub(e.Expires)
	return &inference.Stored{
		Transcript: e.Answer, Level: h.level, Age: max(0, now.Sub(e.Stored)), Fresh: past < 0,
		WhileRevalidate: past < h.set.Stale.WhileRevalidate, IfOverloaded: past < h.set.Stale.IfOverloaded, IfError: past < h.set.Stale.IfError,
	}
}

// assemble puts the answer in one piece together and keeps it with the entry in
// memory. It says whether that could be done.
func (h *Handle) assemble(now time.Time) bool {
	whole, err := wire.Assemble(h.surface, h.found.Answer)
	if err != nil {
		h.c.count.mismatched.Add(1)
		h.found = nil
		return false
	}
	answer := *h.found.Answer
	answer.Whole = whole
	e := *h.found
	e.Answer = &answer
	h.found = &e
	h.c.promote(&e, 0, now)
	return true
}

// Fetch looks into memory again, where a twin may have left the answer meanwhile,
// then asks the slower levels, for no longer than the time-out for all of them
// together. It returns what is known then.
func (h *Handle) Fetch(ctx context.Context) *inference.Stored {
	c, now := h.c, time.Now()
	if h.control.NoCache {
		return nil
	}
	h.peek(now)
	if h.asked || len(c.slower) == 0 || h.found != nil && now.Before(h.found.Expires) {
		return h.Stored(now)
	}
	h.asked = true
	select {
	case c.lookups <- struct{}{}:
	default:
		c.count.crowded.Add(1)
		return h.Stored(time.Now())
	}
	found := make(chan located, 1)
	c.under.Go(func() {
		defer func() { <-c.lookups }()
		found <- c.search(context.WithoutCancel(ctx), h.key, h.set.LookupTimeout)
	})
	timer := time.NewTimer(h.set.LookupTimeout)
	defer timer.Stop()
	select {
	case f := <-found:
		now := time.Now()
		h.use(f.entry, f.level, now)
		if h.found != nil && h.found == f.entry && now.Before(f.entry.Expires) {
			h.hit(now)
		}
	case <-timer.C:
		c.count.late.Add(1)
	case <-ctx.Done():
	}
	return h.Stored(time.Now())
}

// located is an entry and where it was found.
type located struct {
	entry *Entry
	level string
}

// lastPatience is how long the last level may take to answer for the next request,
// when the one that asked has gone on without it. A database's connection that is
// given up has to be made again.
const lastPatience = 100 * time.Millisecond

// search asks the slower levels in order, and promotes what it finds to those above.
// Each but the last has half of the time that is left.
func (c *Cache) search(ctx context.Context, key Key, timeout time.Duration) located {
	end := time.Now().Add(timeout)
	for i, g := range c.slower {
		now := time.Now()
		limit := max(end.Sub(now), 0) / 2
		if i == len(c.slower)-1 {
			limit = lastPatience
		}
		lctx, cancel := context.WithTimeout(ctx, limit)
		e, err := g.Get(lctx, key, now)
		cancel()
		if err != nil || e == nil {
			continue
		}
		c.promote(e, 1<<i-1, now)
		return located{e, g.name}
	}
	return located{}
}

// allLevels is the set of all slower levels.
const allLevels = ^uint(0)

// keep puts an entry into memory and hands it to a set of slower levels: bit i is
// the i-th.
func (c *Cache) keep(e *Entry, levels uint, now time.Time) {
	if !now.Before(e.Stale) {
		return
	}
	_ = c.parts.Memory.Put(context.Background(), []*Entry{e}) // memory does not fail
	c.fills.add(e, levels)
}

// promote keeps an entry that is known already in the levels above the one that has
// it, unless memory has got a better one meanwhile: a look-up may come back late.
func (c *Cache) promote(e *Entry, levels uint, now time.Time) {
	if there, err := c.parts.Memory.Get(context.Background(), e.Key, now); err == nil {
		newer := there.Stored.Sub(e.Stored) >= time.Millisecond && now.Before(there.Expires)
		if newer || there.Expires.After(e.Expires) {
			return
		}
	}
	c.keep(e, levels, now)
}

// Keep keeps a new answer to a request that asks for what the one of Lookup did.
// model is the one that gave it; an answer of another model than the key's is not
// kept, and neither is one that is not complete.
func (h *Handle) Keep(req *inference.Request, model string, t *inference.Transcript) {
	now := time.Now()
	if model != h.model || len(t.Body) > int(h.set.MaxAnswer) {
		h.c.count.refused.Add(1)
		return
	}
	if err := wire.CheckAnswer(h.surface, t); err != nil {
		h.c.count.refused.Add(1)
		h.c.parts.Log.Debug("an answer is not kept", "component", "cache", "err", err)
		return
	}
	expires := now.Add(jittered(h.policy.lifetime(0), h.set.Jitter, h.key))
	e := NewEntry(Entry{
		Key: h.key, Scope: h.scope, Model: h.model, Surface: h.surface, Question: wire.Question(req),
		Stored: now, Expires: expires, Stale: expires.Add(h.set.Stale.longest()), Answer: t,
	})
	h.c.count.kept.Add(1)
	h.c.keep(e, allLevels, now)
}

// Fresh says whether the answer under a key is kept and stays fresh until the given
// instant. It asks the slower levels when memory does not have it, and then waits: it
// is for work in the background.
func (c *Cache) Fresh(ctx context.Context, key [32]byte, now, until time.Time) bool {
	if e, err := c.parts.Memory.Get(ctx, key, now); err == nil && e.Expires.After(until) {
		return true
	}
	f := c.search(ctx, key, lastPatience)
	return f.entry != nil && f.entry.Key == key && f.entry.Expires.After(until)
}

// Run fills and sweeps the slower levels until ctx ends. By then no goroutine of
// the cache is left.
func (c *Cache) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		sweep(ctx, func(ctx context.Context, now time.Time) bool {
			_, _ = c.parts.Memory.Sweep(ctx, now) // memory does not fail, and its sweep is short
			return false
		})
	})
	for i, g := range c.slower {
		wg.Go(func() { c.fill(ctx, i) })
		wg.Go(func() { sweep(ctx, g.clear) })
	}
	wg.Wait()
	c.under.Wait()
	return nil
}

// sweepEvery is how often the levels forget what nobody met.
const sweepEvery = time.Minute

// sweep clears a level from time to time, and again at once where that had more to do
// than its time allows.
func sweep(ctx context.Context, clear func(ctx context.Context, now time.Time) (more bool)) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			for clear(ctx, time.Now()) && ctx.Err() == nil {
			}
		}
	}
}
