package experiment

import "math"

// metric is one thing that arms are compared by.
type metric uint8

// The metrics. success is kept as failures: 1 for a request that failed.
const (
	success metric = iota
	ttft
	itl
	tokens
	score
	metrics
)

// metricNames is indexed by metric.
var metricNames = [metrics]string{"success", "ttft", "itl", "tokens", "score"}

// Metrics names what arms can be compared by.
func Metrics() []string { return metricNames[:] }

// buckets is the number of groups that the keys of an arm are put into by a hash. Keys
// that share one count as one key, which makes intervals wider, never narrower.
const buckets = 256

// group is what one bucket's keys have given.
type group struct{ n, sum float64 }

// moments sums up a series of samples, in all and by key. The zero value is empty and
// takes samples as independent; with groups samples of one key may be alike.
type moments struct {
	n, sum  float64
	mean    float64
	squares float64 // of the differences to the mean
	groups  *[buckets]group
}

// add takes one sample of a bucket. The mean moves by differences (Welford, "Note on a
// method for calculating corrected sums of squares and products", 1962), so that the
// mean of equal samples is that sample, and their variance 0, to the last bit: what
// rounding adds would be a difference between arms that is certain.
func (m *moments) add(x float64, bucket uint8) {
	m.n++
	m.sum += x
	d := x - m.mean
	m.mean += d / m.n
	m.squares += d * (x - m.mean)
	if m.groups != nil {
		g := &m.groups[bucket]
		g.n++
		g.sum += x
	}
}

// spread is the variance of the mean, were all samples independent.
func (m *moments) spread() float64 {
	if m.n < 2 {
		return math.Inf(1)
	}
	return m.squares / (m.n - 1) / m.n
}

// keyed is the variance of the mean when samples of one key may be alike: that of a
// ratio of totals over the keys (Cochran, "Sampling techniques", 1977, section 6.4).
func (m *moments) keyed() float64 {
	if m.groups == nil {
		return m.spread()
	}
	return max(m.spread(), m.clustered()/(m.n*m.n))
}

// clustered is the sum of the squared differences of the keys' totals to what the mean
// gives them. A variance that few keys have is itself uncertain; it grows by
// keys/(keys-3), the expectation of Student's square, and is infinite below minKeys.
// Without keys each sample is its own.
func (m *moments) clustered() float64 {
	if m.groups == nil {
		return m.squares
	}
	keys, total := 0.0, 0.0
	for i := range m.groups {
		if g := &m.groups[i]; g.n > 0 {
			keys++
			d := g.sum - g.n*m.mean
			total += d * d
		}
	}
	if keys < minKeys {
		return math.Inf(1)
	}
	return max(m.squares, total*keys/(keys-3))
}

// between returns the variance of the difference of two means: plain as if all samples
// were independent, and keyed. It is Welch's, of each arm's own variance, or Student's,
// of the variance of both together, whichever is larger. Welch's alone takes an arm of
// few samples that has not met yet what is rare for one that never will. Where arms
// are alike Student's is right; where they are not, Welch's holds, and the larger of
// the two makes the interval wider, never narrower.
func between(a, c *moments) (plain, keyed float64) {
	plain, keyed = a.spread()+c.spread(), a.keyed()+c.keyed()
	if math.IsInf(keyed, 1) {
		return plain, keyed
	}
	pool := (1/a.n + 1/c.n) / (a.n + c.n - 2)
	plain = max(plain, (a.squares+c.squares)*pool)
	return plain, max(keyed, plain, (a.clustered()+c.clustered())*pool)
}

// keys counts the buckets in use; 0 where nobody counts them.
func (m *moments) keys() int {
	n := 0
	if m.groups == nil {
		return n
	}
	for i := range m.groups {
		if m.groups[i].n > 0 {
			n++
		}
	}
	return n
}

// worth is how many samples that may be alike are worth one that is independent, by
// the variances of the mean under both assumptions (the design effect).
func worth(plain, keyed float64) float64 {
	if plain <= 0 || math.IsInf(keyed, 1) {
		return 1
	}
	return max(1, keyed/plain)
}

// pooled is the n of the boundary of a difference of two means: their harmonic sum,
// in whose units the difference is a Brownian motion.
func pooled(a, b float64) float64 { return a * b / (a + b) }

// sketch counts durations in buckets that grow by 5%, so that a quantile is off by
// 2.5% at most, between a microsecond and an hour.
type sketch struct {
	n      uint64
	counts [sketchSize]uint32
}

// What a sketch holds: ln(3600 s / 1 us) / ln(1.05) buckets.
const (
	sketchSize  = 452
	sketchFirst = 1e-6 // seconds
)

// sketchStep is the logarithm of the growth from bucket to bucket.
const sketchStep = 0.04879016416943205

// add takes a duration by the logarithm of its seconds.
func (s *sketch) add(log float64) {
	i := int((log - math.Log(sketchFirst)) / sketchStep)
	s.counts[min(max(i, 0), sketchSize-1)]++
	s.n++
}

// quantile is in seconds; 0 without samples.
func (s *sketch) quantile(q float64) float64 {
	if s.n == 0 {
		return 0
	}
	rank, seen := uint64(q*float64(s.n-1)), uint64(0)
	for i, c := range s.counts {
		if seen += uint64(c); seen > rank {
			return sketchFirst * math.Exp((float64(i)+0.5)*sketchStep)
		}
	}
	return 0
}
