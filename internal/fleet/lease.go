package fleet

import (
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Watcher is told when a lease makes room. It is called on the goroutine that
// holds the lease, after the counters have changed, and must not block.
type Watcher interface {
	// Prefilled says that the first token has come: the prompt counts no longer.
	Prefilled(l *Lease, now time.Time, took time.Duration)
	// Released says that the slot is back.
	Released(l *Lease, now time.Time)
}

// Lease is an instance's slot held by one attempt. It belongs to one goroutine
// at a time and is given back exactly once.
type Lease struct {
	Instance  *Instance
	Candidate *Candidate
	Request   *inference.Request
	Prompt    int64 // the prompt's length in tokens, as budgets count it
	Panic     bool  // nothing was open: passive health had taken out the instance

	// What whoever admitted the attempt wants of it and of its end.
	Watch     Watcher         // nil is nobody
	Tag       any             // the watcher's own
	Payer     any             // the watcher's own
	Charge    float64         // the watcher's own
	Class     inference.Class // the request's
	MaxTokens int64           // most output tokens to ask for; 0 is as the client asked
	Degraded  string          // what was lowered by admission; "" is nothing

	Verdict inference.Verdict // what became of the attempt; set before Release
	Usage   inference.Usage   // what the instance reported; set before Release

	start    int64 // when it was taken, Unix nanoseconds
	tokens   int64 // prompt tokens still counted as outstanding
	ahead    int64 // prompt tokens outstanding when it was taken, its own included
	context  int64 // tokens counted as held in the instance's memory
	probe    bool  // the one request of a half-open instance
	released bool

	stream    bool  // the request asks for a stream
	sent      bool  // waits for its first byte
	answered  bool  // its first token has come
	streaming bool  // past its first token
	events    int64 // since folded
	total     int64 // events of the whole stream
	first     int64 // when the first token came, Unix nanoseconds
	last      int64 // when the last event came
	folded    int64 // when events were last added to the instance's counters
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

// AsStream says that the instance is asked for a stream although the client wants
// an answer in one piece, so that its times count among those of streams. It is
// called before Sent.
func (l *Lease) AsStream() {
	if !l.awaited() {
		l.Instance.Live.meter.await(l.start, 1)
	}
	l.stream = true
}

// awaited says whether a first token comes before the answer is done: else how long
// it takes says nothing about the instance. Embeddings have nothing but prompts.
func (l *Lease) awaited() bool { return l.stream || l.Request.Surface == inference.Embeddings }

// Stream says whether the instance is asked for a stream.
func (l *Lease) Stream() bool { return l.stream }

// Answered says whether the first token, or a whole answer, has come.
func (l *Lease) Answered() bool { return l.answered }

// First is when the first token of a stream came, also of one that the client gets in
// one piece; the zero time before, and where nothing is streamed.
func (l *Lease) First() time.Time {
	if !l.streaming {
		return time.Time{}
	}
	return time.Unix(0, l.first)
}

// Sent says that the request was sent and waits for its first byte.
func (l *Lease) Sent(now time.Time) {
	l.sent = true
	l.Instance.Live.pulse.sent(now.UnixNano(), l.Prompt, l.stream)
	if !l.stream && l.Request.Surface != inference.Embeddings && l.prefilled(now.UnixNano()) && l.Watch != nil {
		// When its prompt is read nobody sees before its whole answer: it counts for
		// the limit on requests alone.
		l.Watch.Prefilled(l, now, 0)
	}
}

// FirstToken records the time to the first token, or to the answer where there
// are no tokens. It ends the count of the prompt as outstanding work, because
// its prefill is over. stream says that tokens follow; then Token is called for
// each. Only the first call counts.
func (l *Lease) FirstToken(now time.Time, ttft time.Duration, stream bool) {
	if l.answered {
		return
	}
	l.answered = true
	at := now.UnixNano()
	live := l.Instance.Live
	live.alive(at)
	if l.sent {
		l.sent = false
		live.pulse.answered(at, l.Prompt, l.stream, ttft)
	}
	live.ObserveTTFT(at, ttft)
	for _, o := range l.outer() {
		o.ObserveTTFT(at, ttft)
		o.pulse.of(l.stream).first.Observe(ttft)
	}
	if l.tokens > 0 {
		live.meter.prompts.Add(1)
		live.meter.prefilled.Add(l.tokens)
	}
	if stream {
		m := &live.meter
		m.firsts.Add(1)
		m.firstNanos.Add(at - l.start)
		m.ahead.Add(l.ahead)
		l.streaming, l.first, l.last, l.folded = true, at, at, at
		live.pulse.streams.Add(1)
	}
	if l.prefilled(at) && l.Watch != nil {
		l.Watch.Prefilled(l, now, ttft)
	}
}

// A stream's gaps are added to its instance's counters after this many events or
// after this long, whichever comes first.
const (
	foldEvents = 16
	foldAfter  = int64(100 * time.Millisecond)
)

// Token records one event of the stream: the sign of life that the stall rule
// watches and the gap that admission learns from.
func (l *Lease) Token(now time.Time) {
	at := now.UnixNano()
	l.Instance.Live.alive(at)
	l.last = at
	l.total++
	if l.events++; l.events >= foldEvents || at-l.folded >= foldAfter {
		l.fold()
	}
}

// Events is how many events of tokens have come; 0 of an answer that came in one
// piece.
func (l *Lease) Events() int64 {
	if !l.streaming {
		return 0
	}
	return l.total + 1
}

// Held says that the stream was kept waiting for its reader, for d, since the last
// event: that is no gap of the instance's.
func (l *Lease) Held(d time.Duration) {
	l.first += int64(d)
	l.last += int64(d)
	l.folded += int64(d)
}

// fold adds the gaps since the last time to the instance's counters.
func (l *Lease) fold() {
	if l.events == 0 {
		return
	}
	live := l.Instance.Live
	span := l.last - l.folded
	average(&live.pulse.gap, span/l.events)
	live.meter.gaps.Add(l.events)
	live.meter.gapNanos.Add(span)
	tokens := int64(float64(l.events) * live.meter.PerEvent())
	live.meter.context.Add(tokens)
	l.context += tokens
	l.events, l.folded = 0, l.last
}

// Start is when the lease was taken.
func (l *Lease) Start() time.Time { return time.Unix(0, l.start) }

// Pace is the stream's number of gaps between events and their sum.
func (l *Lease) Pace() (gaps int64, sum time.Duration) {
	return l.total, time.Duration(l.last - l.first)
}

// prefilled takes the prompt's tokens off the counters, once, and says whether
// it did.
func (l *Lease) prefilled(now int64) bool {
	if l.tokens == 0 {
		return false
	}
	live := l.Instance.Live
	if live.promptTokens.Add(-l.tokens) == 0 {
		live.meter.reads(now, false)
	}
	if l.awaited() {
		live.meter.await(l.start, -1)
	}
	for _, o := range l.outer() {
		o.promptTokens.Add(-l.tokens)
	}
	l.tokens = 0
	return true
}

// Release gives the slot back. Later calls do nothing, so that it can stand in
// a deferred call behind an early one.
func (l *Lease) Release(now time.Time) {
	if l == nil || l.released {
		return
	}
	l.released = true
	live := l.Instance.Live
	if l.sent {
		live.pulse.answered(0, l.Prompt, l.stream, -1)
	}
	if l.streaming {
		l.fold()
		live.pulse.streams.Add(-1)
	}
	l.prefilled(now.UnixNano())
	live.meter.context.Add(-l.context)
	if l.Verdict == inference.VerdictBusy {
		live.meter.Busied()
	}
	if l.probe {
		live.probing.Store(false)
	}
	live.inFlight.Add(-1)
	for _, o := range l.outer() {
		o.inFlight.Add(-1)
	}
	if l.Watch != nil {
		l.Watch.Released(l, now)
	}
}
