package experiment

import (
	"math"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// result is what a request counts as.
type result uint8

// The results. Only answered and failed requests are samples.
const (
	answered result = iota
	failed
	canceled // the client left: counts for nobody
	excluded // the client's own mistake, its limits, or a gateway that stops
	cached   // nothing was generated in the arm
	results
)

// resultNames is indexed by result.
var resultNames = [results]string{"success", "failure", "canceled", "excluded", "cached"}

// sample is what is kept of one record.
type sample struct {
	result   result
	fault    bool // it failed, or a server broke under one of its attempts
	bucket   uint8
	received time.Time
	code     inference.Code
	values   [metrics]float64 // NaN: has none; times as logarithms of seconds, tokens of 1 + n
	raw      [metrics]float64 // as it was measured
}

// incomplete is the code that answers count under that broke off without one.
const incomplete inference.Code = "incomplete"

// Bounds of times, which keep a clock that was set from outweighing all others.
const (
	shortest = time.Microsecond
	longest  = time.Hour
)

// sampleOf reads a record.
func sampleOf(rec *inference.Record) sample {
	s := sample{result: resultOf(rec), received: rec.Request.Received, code: rec.Code}
	for m := range s.values {
		s.values[m] = math.NaN()
	}
	switch s.result {
	case answered:
		s.values[success] = 0
		s.fault = broken(rec)
	case failed:
		if s.code == "" {
			s.code = incomplete
		}
		s.values[success], s.fault = 1, true
	default:
		return s
	}
	if first := rec.FirstToken(); first > 0 {
		s.time(ttft, first)
	}
	if s.result == failed {
		return s // a stream that broke off is not one of few tokens
	}
	gaps := time.Duration(0)
	for _, n := range rec.Gaps.Counts {
		gaps += time.Duration(n)
	}
	if gaps > 0 && rec.Gaps.Sum > 0 {
		s.time(itl, rec.Gaps.Sum/gaps)
	}
	if u, _ := rec.Spent(); u.CompletionTokens > 0 {
		s.raw[tokens] = float64(u.CompletionTokens)
		s.values[tokens] = math.Log1p(s.raw[tokens])
	}
	return s
}

// time sets a value that is a time.
func (s *sample) time(m metric, d time.Duration) {
	s.raw[m] = min(max(d, shortest), longest).Seconds()
	s.values[m] = math.Log(s.raw[m])
}

// broken says whether a server broke under one of the request's attempts.
func broken(rec *inference.Record) bool {
	for i := range rec.Attempts {
		if rec.Attempts[i].Verdict == inference.VerdictBroken {
			return true
		}
	}
	return false
}

// resultOf says what a record counts as. A kept answer says nothing about an arm,
// unless it stands in for servers that broke.
func resultOf(rec *inference.Record) result {
	switch rec.Code {
	case "":
		switch {
		case rec.Cache == inference.CacheStale && broken(rec):
			return failed
		case len(rec.Attempts) == 0:
			return cached
		case !rec.Complete:
			return failed
		}
		return answered
	case inference.CodeOverloaded:
		if rec.Shadow && len(rec.Attempts) == 0 { // a copy waits for nobody: that it found no room says nothing
			return excluded
		}
	case inference.CodeCanceled:
		return canceled
	case inference.CodeInvalidRequest, inference.CodeUnauthorized, inference.CodeModelNotFound, inference.CodeNotFound,
		inference.CodeMethodNotAllowed, inference.CodeTooLarge, inference.CodeHeadTooLarge, inference.CodeUnsupportedMedia,
		inference.CodeBodyTimeout, inference.CodeRateLimited, inference.CodeQuotaSpent, inference.CodeNotCached, inference.CodeDraining:
		return excluded
	}
	return failed
}

// tally is what an arm's requests have given.
type tally struct {
	results [results]uint64
	faults  float64
	codes   map[inference.Code]uint64 // of failures; as many as there are codes
	series  [metrics]moments
	raw     [metrics]float64 // sums of values as they were measured
	waits   sketch           // of ttft
}

// newTally returns one without samples.
func newTally(keyed bool) *tally {
	t := &tally{codes: make(map[inference.Code]uint64)}
	if keyed {
		for m := range t.series {
			t.series[m].groups = new([buckets]group)
		}
	}
	return t
}

// put adds one value of a metric.
func (t *tally) put(m metric, value, raw float64, bucket uint8) {
	t.series[m].add(value, bucket)
	t.raw[m] += raw
}

// ledger is the samples of one experiment since it began.
type ledger struct {
	keyed bool
	mu    struct {
		sync.Mutex
		epoch uint64    // changes with each beginning; never 0
		since time.Time // requests received before are not of this experiment
		arms  []*tally
	}
}

// newLedger returns one without samples.
func newLedger(arms int, keyed bool, epoch uint64, now time.Time) *ledger {
	l := &ledger{keyed: keyed}
	l.mu.arms = make([]*tally, arms)
	l.reset(epoch, now)
	return l
}

// reset forgets all samples.
func (l *ledger) reset(epoch uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.epoch, l.mu.since = epoch, now
	for i := range l.mu.arms {
		l.mu.arms[i] = newTally(l.keyed)
	}
}

// epoch is that of a request by the instant at which it was received; 0 when that is
// of an earlier experiment, whose arm of the same name may have been another.
func (l *ledger) epoch(received time.Time) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if received.Before(l.mu.since) {
		return 0
	}
	return l.mu.epoch
}

// add takes a sample, unless it is of an earlier experiment, and asks the guard.
func (l *ledger) add(t *trial, arm int, s sample) *alarm {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.received.Before(l.mu.since) {
		return nil
	}
	to := l.mu.arms[arm]
	to.results[s.result]++
	if s.result == failed {
		to.codes[s.code]++
	}
	if s.fault {
		to.faults++
	}
	for m, v := range s.values {
		if !math.IsNaN(v) {
			to.put(metric(m), v, s.raw[m], s.bucket)
		}
	}
	if v := s.values[ttft]; !math.IsNaN(v) {
		to.waits.add(v)
	}
	if s.result > failed || t.control < 0 {
		return nil
	}
	return t.guard(l.mu.arms, arm)
}

// score adds a user's score of an answer, unless the samples that it belongs to are
// forgotten.
func (l *ledger) score(of subject, value float64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if of.epoch != l.mu.epoch {
		return false
	}
	l.mu.arms[of.arm].put(score, value, value, of.bucket)
	return true
}
