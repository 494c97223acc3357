package usage

import (
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Bounds of the histograms. The gaps have inference.GapBounds.
var (
	// From a warm cache on a small model to a full queue.
	ttftBounds = []time.Duration{
		5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
		250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
		10 * time.Second, 30 * time.Second, time.Minute,
	}
	// From an embedding to a long generation.
	totalBounds = []time.Duration{
		10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
		2 * time.Minute, 5 * time.Minute, 10 * time.Minute,
	}
	// From the gateway's own work to retries and back-off.
	overheadBounds = []time.Duration{
		50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond, time.Millisecond,
		2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond,
		500 * time.Millisecond, time.Second, 5 * time.Second,
	}
)

// Labels of what has no label of its own.
const (
	unknownModel = "unknown" // a model that nothing serves
	noPool       = "none"    // refused before any attempt
	cachePool    = "cache"   // an answer that was not generated for this request
	other        = "other"   // beyond the bound on series
)

// maxModel is the longest model name, in bytes, that becomes a label.
const maxModel = 128

// histogram counts durations in buckets. It is fed without locks.
type histogram struct {
	bounds []time.Duration
	counts []atomic.Uint64 // one more than bounds
	sum    atomic.Uint64   // float64 bits, seconds: nanoseconds in 64 bits would last days at 10,000 streams
}

// newHistogram returns an empty histogram.
func newHistogram(bounds []time.Duration) histogram {
	return histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// observe counts one duration.
func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(h.bounds) && d > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.add(d)
}

// add adds to the sum.
func (h *histogram) add(d time.Duration) {
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+d.Seconds())) {
			return
		}
	}
}

// merge adds the gaps of one stream.
func (h *histogram) merge(g *inference.Gaps) {
	if g.Sum == 0 {
		return
	}
	for i, n := range g.Counts {
		if n > 0 {
			h.counts[i].Add(uint64(n))
		}
	}
	h.add(g.Sum)
}

// rowKey names a row.
type rowKey struct {
	surface     inference.Surface
	model, pool string
}

// row holds the counters of one surface, model and pool.
type row struct {
	requests []atomic.Uint64 // by index of the code; see series.code
	known    [len(cacheResults)]atomic.Uint64
	prompt   atomic.Uint64
	output   atomic.Uint64
	cached   atomic.Uint64
	thought  atomic.Uint64
	ttft     histogram
	gaps     histogram
	total    histogram
	overhead histogram
}

// What became of a hedge: it won, it lost, it failed by itself, or the client
// left before either was decided.
const (
	hedgeWon = iota
	hedgeLost
	hedgeFailed
	hedgeCanceled
	hedgeResults
)

// hedgeNames is indexed by what became of a hedge.
var hedgeNames = [hedgeResults]string{"won", "lost", "failed", "canceled"}

// cacheResults are what the cache can have done for a request.
var cacheResults = [...]inference.CacheResult{inference.CacheHit, inference.CacheMiss, inference.CacheStale, inference.CacheCoalesced}

// verdicts is the number of verdicts.
const verdicts = int(inference.VerdictCanceled) + 1

// poolRow holds the counters of one pool's attempts.
type poolRow struct {
	verdicts [verdicts]atomic.Uint64
	retries  atomic.Uint64
	panics   atomic.Uint64
	hedges   [hedgeResults]atomic.Uint64
}

// series are all counters of requests. Known ones are found in immutable maps
// without a lock; new ones are made under mu.
type series struct {
	fleet *fleet.Fleet
	limit atomic.Int64
	codes []inference.Code // "" first; one index behind them is any other code
	rows  atomic.Pointer[map[rowKey]*row]
	pools atomic.Pointer[map[string]*poolRow]

	mu struct {
		sync.Mutex
		seen   map[string]bool // models that had an attempt; at most limit
		snap   *fleet.Snapshot
		served map[string]bool // models of snap
	}
}

// newSeries returns series without rows.
func newSeries(f *fleet.Fleet) *series {
	s := &series{fleet: f, codes: append([]inference.Code{""}, inference.Codes()...)}
	s.rows.Store(&map[rowKey]*row{})
	s.pools.Store(&map[string]*poolRow{})
	s.mu.seen = make(map[string]bool)
	return s
}

// record counts one request.
func (s *series) record(rec *inference.Record) {
	row := s.row(rec)
	row.requests[s.code(rec.Code)].Add(1)
	if i := slices.Index(cacheResults[:], rec.Cache); i >= 0 {
		row.known[i].Add(1)
	}
	if rec.TTFT > 0 {
		row.ttft.observe(rec.TTFT)
	}
	row.gaps.merge(&rec.Gaps)
	if rec.Code == "" {
		row.total.observe(rec.Duration)
		row.overhead.observe(overhead(rec))
	}
	u, _ := tokens(rec)
	add(&row.prompt, u.PromptTokens)
	add(&row.output, u.CompletionTokens)
	add(&row.cached, u.CachedTokens)
	add(&row.thought, u.ReasoningTokens)
	first := true
	for i := range rec.Attempts {
		a := &rec.Attempts[i]
		s.attempt(a, !first && !a.Hedge)
		first = first && a.Hedge
	}
}

// add adds what a server reported; a counter never falls.
func add(c *atomic.Uint64, n int64) {
	if n > 0 {
		c.Add(uint64(n))
	}
}

// attempt counts one attempt. Of those that are not hedges, all but a request's
// first are retries; attempts stand in the order in which they ended.
func (s *series) attempt(a *inference.Attempt, retry bool) {
	p := s.pool(a.Pool)
	p.verdicts[min(int(a.Verdict), verdicts-1)].Add(1)
	if a.Panic {
		p.panics.Add(1)
	}
	switch {
	case a.Hedge:
		p.hedges[hedgeResult(a)].Add(1)
	case retry:
		p.retries.Add(1)
	}
}

// hedgeResult says what became of a hedge.
func hedgeResult(a *inference.Attempt) int {
	switch {
	case a.Reason == "hedge_lost":
		return hedgeLost
	case a.TTFT > 0:
		return hedgeWon
	case a.Verdict == inference.VerdictCanceled:
		return hedgeCanceled
	}
	return hedgeFailed
}

// code is the index of a code in a row's requests.
func (s *series) code(c inference.Code) int {
	for i, known := range s.codes {
		if c == known {
			return i
		}
	}
	return len(s.codes)
}

// row finds the counters of a request, or makes them.
func (s *series) row(rec *inference.Record) *row {
	k := rowKey{rec.Request.Surface, rec.Request.Model, noPool}
	last := rec.Last()
	switch {
	case last != nil:
		k.pool = last.Pool
	case rec.Cache != "" && rec.Cache != inference.CacheMiss:
		k.pool = cachePool
	}
	if r, ok := (*s.rows.Load())[k]; ok {
		return r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k.model = s.model(k.model, last != nil)
	if r, ok := (*s.rows.Load())[k]; ok {
		return r
	}
	if int64(len(*s.rows.Load())) >= s.limit.Load() {
		k.model, k.pool = other, other
		if r, ok := (*s.rows.Load())[k]; ok {
			return r
		}
	}
	r := &row{
		requests: make([]atomic.Uint64, len(s.codes)+1),
		ttft:     newHistogram(ttftBounds), gaps: newHistogram(inference.GapBounds[:]),
		total: newHistogram(totalBounds), overhead: newHistogram(overheadBounds),
	}
	next := maps.Clone(*s.rows.Load())
	next[k] = r
	s.rows.Store(&next)
	return r
}

// model is the label of a model's name. A client can send any name: only one
// that some pool serves, or that once led to an attempt, has a label of its own.
// The caller holds mu.
func (s *series) model(name string, tried bool) string {
	if len(name) > maxModel || !utf8.ValidString(name) {
		if tried {
			return other
		}
		return unknownModel
	}
	if snap := s.fleet.Snapshot(); snap != s.mu.snap {
		s.mu.snap, s.mu.served = snap, make(map[string]bool)
		for _, m := range snap.Models() {
			s.mu.served[m] = true
		}
	}
	switch {
	case s.mu.served[name] || s.mu.seen[name]:
		return name
	case !tried || name == "":
		return unknownModel
	case int64(len(s.mu.seen)) < s.limit.Load():
		s.mu.seen[name] = true
	}
	return name
}

// pool finds the counters of a pool, or makes them.
func (s *series) pool(name string) *poolRow {
	if p, ok := (*s.pools.Load())[name]; ok {
		return p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if int64(len(*s.pools.Load())) >= s.limit.Load() {
		name = other
	}
	if p, ok := (*s.pools.Load())[name]; ok {
		return p
	}
	p := new(poolRow)
	next := maps.Clone(*s.pools.Load())
	next[name] = p
	s.pools.Store(&next)
	return p
}
