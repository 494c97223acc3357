package fleet

import "time"

// Lease is an instance's slot held by one attempt. It belongs to one goroutine
// at a time and is given back exactly once.
type Lease struct {
	Instance  *Instance
	Candidate *Candidate

	tokens   int64 // prompt tokens still counted as outstanding
	probe    bool  // the one request of a half-open instance
	released bool
}

// outer lists the counters above the instance: its pool's and its region's.
func (l *Lease) outer() [2]*Live {
	return [2]*Live{l.Instance.Pool.Live, l.Instance.Pool.Region.Live}
}

// Probe says whether the attempt decides over a half-open instance.
func (l *Lease) Probe() bool { return l.probe }

// FirstToken records the time to first token and ends the count of the prompt
// as outstanding work: its prefill is over.
func (l *Lease) FirstToken(now time.Time, ttft time.Duration) {
	l.prefilled()
	l.Instance.Live.ObserveTTFT(now.UnixNano(), ttft)
	for _, live := range l.outer() {
		live.ObserveTTFT(now.UnixNano(), ttft)
	}
}

// prefilled takes the prompt's tokens off the counters, once.
func (l *Lease) prefilled() {
	if l.tokens == 0 {
		return
	}
	l.Instance.Live.promptTokens.Add(-l.tokens)
	for _, live := range l.outer() {
		live.promptTokens.Add(-l.tokens)
	}
	l.tokens = 0
}

// Release gives the slot back. Later calls do nothing, so that it can stand in
// a deferred call behind an early one.
func (l *Lease) Release() {
	if l == nil || l.released {
		return
	}
	l.released = true
	l.prefilled()
	if l.probe {
		l.Instance.Live.probing.Store(false)
	}
	l.Instance.Live.inFlight.Add(-1)
	for _, live := range l.outer() {
		live.inFlight.Add(-1)
	}
}
