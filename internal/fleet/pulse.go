package fleet

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Constants of the stall rule: an instance is stalled when no token came on any
// of at least two streams for max(1 s, 20 times their mean gap), or when nothing
// came at all for 3 times the p99 of its time to first byte while a request
// waits for one. A stalled instance gets nothing new until it shows life. What it
// already has shows that by itself, so a new request tests it only every
// stallHeld then, the default stream idle time-out; when it has nothing left, one
// request tests it every stallRetry.
const (
	stallFloor  = time.Second
	stallGaps   = 20
	stallFirsts = 3
	stallNoise  = 50 * time.Millisecond // silence that a scheduler alone can cause
	stallRetry  = 5 * time.Second
	stallHeld   = time.Minute
)

// p99Every is how many answers share one estimate of the p99, which is read at
// every pick and costs a walk over the buckets.
const p99Every = 16

// Pulse is the sign of life of an instance: what waits, what streams, and when
// something last came back. All methods are safe for concurrent use; those on
// the path of an event cost a few nanoseconds.
type Pulse struct {
	beat    atomic.Int64 // when the last byte of any answer came, Unix nanoseconds
	streams atomic.Int64 // streams past their first token
	gap     atomic.Int64 // mean gap between two events of a stream, nanoseconds
	perTok  atomic.Int64 // mean time to first token for a prompt token, picoseconds
	sizes   [32]atomic.Int64
	kinds   [2]waits // of streams, and of answers that come in one piece
}

// waits are the requests of one kind that have no first byte yet. An answer in one
// piece has its first byte when it is complete, so the two kinds have little to
// say about each other.
type waits struct {
	count   atomic.Int64
	since   atomic.Int64 // when the first of them was sent, Unix nanoseconds
	first   Quantiles
	p99     atomic.Int64 // of first, as of the last multiple of p99Every answers
	answers atomic.Int64
}

// of finds the waits of a kind.
func (p *Pulse) of(stream bool) *waits {
	if stream {
		return &p.kinds[0]
	}
	return &p.kinds[1]
}

// waiting is the number of requests without a first byte.
func (p *Pulse) waiting() int64 { return p.kinds[0].count.Load() + p.kinds[1].count.Load() }

// sent counts a request that now waits for its first byte.
func (p *Pulse) sent(now int64, tokens int64, stream bool) {
	w := p.of(stream)
	if w.count.Add(1) == 1 {
		w.since.Store(now)
	}
	p.sizes[sizeClass(tokens)].Add(1)
}

// answered ends that wait; took is negative when it ended without a first byte.
func (p *Pulse) answered(now int64, tokens int64, stream bool, took time.Duration) {
	w := p.of(stream)
	w.count.Add(-1)
	p.sizes[sizeClass(tokens)].Add(-1)
	if took < 0 {
		return
	}
	p.beat.Store(now)
	w.first.Observe(took)
	if w.answers.Add(1)%p99Every == 0 {
		w.p99.Store(int64(w.first.Quantile(0.99)))
	}
	if stream {
		average(&p.perTok, took.Nanoseconds()*1000/max(tokens, 1))
	}
}

// average moves v by an eighth towards x. Losing a race loses one observation.
func average(v *atomic.Int64, x int64) {
	old := v.Load()
	if old == 0 {
		v.Store(x)
		return
	}
	v.CompareAndSwap(old, old+(x-old)/8)
}

// silent judges whether the instance is stalled at now.
func (p *Pulse) silent(now int64) bool {
	beat := p.beat.Load()
	quiet := now - beat
	if beat != 0 && p.streams.Load() >= 2 && quiet > max(int64(stallFloor), stallGaps*p.gap.Load()) {
		return true
	}
	prefill := p.largest() * p.perTok.Load() / 1000
	for i := range p.kinds {
		w := &p.kinds[i]
		p99 := w.p99.Load()
		if p99 == 0 || w.count.Load() == 0 {
			continue
		}
		if min(quiet, now-w.since.Load()) > max(stallFirsts*max(p99, prefill), int64(stallNoise)) {
			return true
		}
	}
	return false
}

// largest is the size of the longest prompt that waits, in tokens, rounded down
// to a power of two: a long prefill is not a stall.
func (p *Pulse) largest() int64 {
	for i := len(p.sizes) - 1; i >= 0; i-- {
		if p.sizes[i].Load() > 0 {
			return 1 << i >> 1
		}
	}
	return 0
}

// sizeClass is the index of a prompt's size among powers of two.
func sizeClass(tokens int64) int { return min(bits.Len64(uint64(max(tokens, 0))), 31) }

// Quantiles estimates quantiles of recent durations from 1 ms to about 18 min
// in buckets that grow by 2^(1/4), so an estimate is at most 19% too high. Old
// observations lose half their weight each time 1,024 have come. The zero value
// is ready; methods are safe for concurrent use.
type Quantiles struct {
	buckets [80]atomic.Int64
	total   atomic.Int64
}

// Observe adds one duration.
func (q *Quantiles) Observe(d time.Duration) {
	i := 0
	if ms := d.Seconds() * 1000; ms > 1 {
		i = min(int(math.Ceil(4*math.Log2(ms))), len(q.buckets)-1)
	}
	q.buckets[i].Add(1)
	if q.total.Add(1) >= 1024 {
		q.halve()
	}
}

// halve ages the observations; only one caller does so at a time, because total
// falls below the mark at once.
func (q *Quantiles) halve() {
	n := q.total.Load()
	if n < 1024 || !q.total.CompareAndSwap(n, 0) {
		return
	}
	var left int64
	for i := range q.buckets {
		v := q.buckets[i].Load()
		q.buckets[i].Add(-(v - v/2))
		left += v / 2
	}
	q.total.Add(left)
}

// minObservations is the number of observations below which a quantile says
// nothing.
const minObservations = 20

// Quantile returns the upper bound of the bucket in which the given share
// (0..1) of the observations lies; 0 when there are too few to tell.
func (q *Quantiles) Quantile(share float64) time.Duration {
	var counts [len(q.buckets)]int64
	var total int64
	for i := range q.buckets {
		counts[i] = max(q.buckets[i].Load(), 0)
		total += counts[i]
	}
	if total < minObservations {
		return 0
	}
	rank := int64(math.Ceil(share * float64(total)))
	for i, n := range counts {
		if rank -= n; rank <= 0 {
			return time.Duration(math.Exp2(float64(i)/4) * float64(time.Millisecond))
		}
	}
	return 0
}
