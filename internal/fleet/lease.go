package fleet

import "time"

// Lease is an instance's slot held by one attempt. It belongs to one goroutine
// at a time and is given back exactly once.
type Lease struct {
	Instance  *Instance
	Candidate *Candidate
	Panic     bool // nothing was open: passive health had taken out the instance

	tokens   int64 // prompt tokens still counted as outstanding
	probe    bool  // the one request of a half-open instance
	released bool

	stream    bool  // the request asks for a stream
	sent      bool  // waits for its first byte
	streaming bool  // past its first token
	events    int   // since lastToken
	lastToken int64 // Unix nanoseconds
}

// outer lists the counters above the instance: its pool's and its region's.
func (l *Lease) outer() [2]*Live {
	return [2]*Live{l.Instance.Pool.Live, l.Instance.Pool.Region.Live}
}

// Probe says whether the attempt decides over a half-open instance.
func (l *Lease) Probe() bool { return l.probe }

// Connected records how long a new connection took.
func (l *Lease) Connected(d time.Duration) {
	l.Instance.Live.ObserveRoundTrip(d)
	for _, live := range l.outer() {
		live.ObserveRoundTrip(d)
	}
}

// Sent says that the request was sent and waits for its first byte.
func (l *Lease) Sent(now time.Time) {
	l.sent = true
	l.Instance.Live.pulse.sent(now.UnixNano(), l.tokens, l.stream)
}

// FirstToken records the time to the first token, or to the answer where there
// are no tokens. It ends the count of the prompt as outstanding work, because
// its prefill is over. stream says that tokens follow; then Token is called for
// each.
func (l *Lease) FirstToken(now time.Time, ttft time.Duration, stream bool) {
	at := now.UnixNano()
	live := l.Instance.Live
	live.alive(at)
	if l.sent {
		l.sent = false
		live.pulse.answered(at, l.tokens, l.stream, ttft)
	}
	live.ObserveTTFT(at, ttft)
	for _, o := range l.outer() {
		o.ObserveTTFT(at, ttft)
		o.pulse.of(l.stream).first.Observe(ttft)
	}
	l.prefilled()
	if stream {
		l.streaming, l.lastToken = true, at
		live.pulse.streams.Add(1)
	}
}

// gapEvery is the number of events after which a stream's mean gap is folded
// into its instance's.
const gapEvery = 16

// Token records one event of the stream: the sign of life that the stall rule
// watches.
func (l *Lease) Token(now time.Time) {
	at := now.UnixNano()
	l.Instance.Live.alive(at)
	if l.events++; l.events == gapEvery {
		average(&l.Instance.Live.pulse.gap, (at-l.lastToken)/gapEvery)
		l.events, l.lastToken = 0, at
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
	live := l.Instance.Live
	if l.sent {
		live.pulse.answered(0, l.tokens, l.stream, -1)
	}
	if l.streaming {
		live.pulse.streams.Add(-1)
	}
	l.prefilled()
	if l.probe {
		live.probing.Store(false)
	}
	live.inFlight.Add(-1)
	for _, o := range l.outer() {
		o.inFlight.Add(-1)
	}
}
