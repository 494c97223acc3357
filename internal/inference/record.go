package inference

import "time"

// Attempt is what became of one try of one request at one instance.
type Attempt struct {
	Region   string
	Pool     string
	Instance string
	Model    string // the name asked for upstream
	Verdict  Verdict
	Status   int           // upstream's HTTP status; 0 when none came
	Reason   string        // short cause when the verdict is not ok
	Start    time.Duration // from the request's Received to the attempt's start
	Connect  time.Duration // until a connection was ready and the request written
	TTFT     time.Duration // from the attempt's start to the first delta, or to an answer that was not streamed; 0 when none came
	Duration time.Duration // from the attempt's start to its end
	Hedge    bool          // asked in parallel, because another attempt was late
	Panic    bool          // nothing was open: passive health had taken the instance out
}

// Record is everything that is kept of a finished request. The gateway hands
// it over once, after the last byte; the receiver must not keep Request.
type Record struct {
	Request  *Request
	Code     Code // "" when the client got its answer
	Reason   string
	Status   int // HTTP status sent; 0 when none was
	Attempts []Attempt
	Usage    Usage
	Tokens   int64 // deltas counted in passing; 0 for answers in one piece that no stream was asked for
	Bytes    int64 // sent to the client

	TTFT     time.Duration // from Received to the first delta sent; 0 when none was: of answers in one piece, see FirstToken
	Duration time.Duration // from Received to the last byte
	Queued   time.Duration // part of Duration spent waiting for a slot
	Upstream time.Duration // part of Duration spent waiting for upstreams
	Borrowed bool          // the answer was generated for somebody else, whatever was tried for this request
	Complete bool          // the answer ended as its surface demands
	Gaps     Gaps          // between the events of a stream
	Degraded string        // what was lowered, e.g. a fallback model

	Cache      CacheResult   // "": the cache had no part in it
	CacheLevel string        // which level had the answer
	CacheAge   time.Duration // of that answer

	Shadow bool // a copy of a client's request, whose answer nobody got

	Rule string // the first rule that decided where it goes; "" is none
	Arm  Arm    // of the experiment that it is part of
}

// Arm names one arm of an experiment. The zero value is none.
type Arm struct{ Experiment, Arm string }

// CacheResult is what the cache did for a request.
type CacheResult string

// The results. A request that coalesced got the answer of another's generation.
const (
	CacheHit       CacheResult = "hit"
	CacheMiss      CacheResult = "miss"
	CacheStale     CacheResult = "stale"
	CacheCoalesced CacheResult = "coalesced"
)

// Spent is what a request cost: what its model servers reported, or, where they
// reported nothing, its prompt as estimated and the tokens that were counted in
// passing, or a token for 4 bytes of an answer in one piece. An answer that was not generated for this request cost nothing, and
// neither does one of which no server was asked or gave anything. It is the one
// definition of the token ledger and of limits on tokens.
func (r *Record) Spent() (u Usage, estimated bool) {
	switch {
	case len(r.Attempts) == 0 || r.Borrowed:
		return Usage{}, false
	case !r.Usage.Zero():
		return r.Usage, false
	case r.TTFT == 0 && !r.Complete && !r.leftLate():
		return Usage{}, false
	}
	u = Usage{PromptTokens: r.Request.PromptTokens(), CompletionTokens: r.Tokens}
	if r.Tokens == 0 && !r.Request.Stream && r.Request.Surface != Embeddings {
		u.CompletionTokens = (r.Bytes + 3) / 4 // its JSON included: rather too much than nothing
	}
	return u, true
}

// leftLate says whether the client of an answer in one piece left after some of it was
// there: of what was generated, or of what was passed on.
func (r *Record) leftLate() bool {
	return r.Code == CodeCanceled && (r.Tokens > 0 || !r.Request.Stream && r.Bytes > 0)
}

// FirstToken is how long the first token took, from Received: until it was sent to the
// client, or, where the client wants one piece of what its server streams, until the
// server gave it. It is 0 where nobody saw it: of an answer that came in one piece.
func (r *Record) FirstToken() time.Duration {
	if r.TTFT > 0 || r.Tokens == 0 || !r.Complete || r.Request.Stream {
		return r.TTFT
	}
	last := r.Last()
	if last == nil || last.TTFT == 0 {
		return 0
	}
	return last.Start + last.TTFT
}

// Last returns the attempt that gave the answer, or the last one that did not.
func (r *Record) Last() *Attempt {
	if len(r.Attempts) == 0 {
		return nil
	}
	return &r.Attempts[len(r.Attempts)-1]
}

// GapBounds are the upper bounds of the buckets of Gaps: the token gaps that
// people notice, and those of stalls.
var GapBounds = [...]time.Duration{
	time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond,
	30 * time.Millisecond, 50 * time.Millisecond, 75 * time.Millisecond, 100 * time.Millisecond,
	200 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second,
}

// Gaps is a histogram of the gaps between a stream's events. It is kept by the
// stream itself, so that an event costs no shared counter.
type Gaps struct {
	Counts [len(GapBounds) + 1]uint32 // the last is above every bound
	Sum    time.Duration
}

// Observe adds one gap.
func (g *Gaps) Observe(d time.Duration) {
	i := 0
	for i < len(GapBounds) && d > GapBounds[i] {
		i++
	}
	g.Counts[i]++
	g.Sum += d
}
