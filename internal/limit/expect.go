package limit

import (
	"math"
	"math/bits"
	"sync"
)

// How answers' lengths are remembered.
const (
	steps      = 8          // per doubling: a step is 9% wide, an estimate within it off by 5% at most
	lengths    = steps * 21 // up to two million tokens
	enough     = 8          // answers before the past is trusted
	halveAt    = 512        // answers: then all counts are halved, so the past fades
	renewEvery = 16         // answers between two looks at the quantile, once there are many
	pastShards = 16
	mostPasts  = 8192 // pairs of tenant and model, of about 400 bytes
)

// past is a histogram of the lengths of one tenant's answers of one model.
type past struct {
	counts   [lengths]uint16
	n        int
	since    int     // answers since the quantile was read
	quantile float64 // which one it was
	expected int64   // what it was
	used     uint64
}

// step is where a length counts.
func step(tokens int64) int {
	if tokens < 1 {
		return 0
	}
	whole := bits.Len64(uint64(tokens)) - 1
	part := int(float64(tokens) / math.Exp2(float64(whole)) * steps) // steps to 2*steps
	return min(whole*steps+part-steps, lengths-1)
}

// lower is the least length of a step.
func lower(i int) float64 {
	return math.Exp2(float64(i/steps)) * float64(steps+i%steps) / steps
}

// add remembers one answer.
func (p *past) add(tokens int64) {
	p.counts[step(tokens)]++
	p.n++
	p.since++
	if p.n < halveAt {
		return
	}
	p.n = 0
	for i := range p.counts {
		p.counts[i] /= 2
		p.n += int(p.counts[i])
	}
}

// at is the length that a share of the answers does not exceed, in a straight line
// within its step.
func (p *past) at(quantile float64) int64 {
	if p.quantile == quantile && p.since < min(renewEvery, p.n/4+1) {
		return p.expected
	}
	rank, sum := quantile*float64(p.n), 0.0
	p.quantile, p.since = quantile, 0
	for i, c := range p.counts {
		if next := sum + float64(c); c > 0 && next >= rank {
			low, high := lower(i), lower(i+1)
			p.expected = int64(math.Ceil(low + (high-low)*(rank-sum)/float64(c)))
			return p.expected
		}
		sum += float64(c)
	}
	p.expected = int64(lower(lengths))
	return p.expected
}

// expectations knows how long answers were, by tenant and model. It is bounded: the
// pair that was not used for long goes.
type expectations struct {
	shard [pastShards]struct {
		mu struct {
			sync.Mutex
			past  map[Key]*past
			clock uint64
		}
	}
}

// newExpectations returns one that knows nothing.
func newExpectations() *expectations {
	x := &expectations{}
	for i := range x.shard {
		x.shard[i].mu.past = make(map[Key]*past)
	}
	return x
}

// of is the length that an answer will hardly exceed, or false where too little is
// known.
func (x *expectations) of(k Key, quantile float64) (int64, bool) {
	s := &x.shard[k[1]%pastShards].mu
	s.Lock()
	defer s.Unlock()
	p := s.past[k]
	if p == nil || p.n < enough {
		return 0, false
	}
	s.clock++
	p.used = s.clock
	return p.at(quantile), true
}

// observe remembers an answer.
func (x *expectations) observe(k Key, tokens int64) {
	s := &x.shard[k[1]%pastShards].mu
	s.Lock()
	defer s.Unlock()
	p := s.past[k]
	if p == nil {
		if len(s.past) >= mostPasts/pastShards {
			var oldest Key
			seen, least := 0, uint64(math.MaxUint64)
			for other, q := range s.past { // begins anywhere
				if q.used < least {
					oldest, least = other, q.used
				}
				if seen++; seen == sample {
					break
				}
			}
			delete(s.past, oldest)
		}
		p = &past{}
		s.past[k] = p
	}
	s.clock++
	p.used = s.clock
	p.add(tokens)
}
