package admission

import (
	"math"
	"time"
)

// period is the time between two decisions of a limiter.
const period = 500 * time.Millisecond

// Limits are what a limiter allows an instance. 0 is no limit.
type Limits struct {
	Requests     float64 // in flight
	PromptTokens float64 // outstanding, above which nothing more is sent
	Memory       float64 // tokens held, above which nothing more is sent
}

// Signals are what was seen of an instance since the last decision.
type Signals struct {
	Gap       time.Duration // mean time per output token of the streams
	Gaps      float64       // number of gaps behind Gap
	Firsts    int64         // first tokens
	First     time.Duration // mean time from dispatch to first token
	Ahead     float64       // mean of the prompt tokens outstanding at dispatch, the request's own included
	Prompt    float64       // prompt tokens whose first token came
	Prompts   int64         // of them
	Reading   time.Duration // time in which prompt tokens were outstanding
	Oldest    time.Duration // age of the oldest request without a first token
	Preempted int64         // sequences that the engine says it threw out for want of memory
	Busy      int64         // answers that said busy
	Ended     int64         // streams judged
	Slow      int64         // those that were slower than their objective
	InFlight  float64       // mean number of requests in flight
	Running   float64       // most streams past their first token
	Standing  float64       // mean number of prompt tokens outstanding
	Context   float64       // tokens held now
	Waiting   bool          // requests wait for this instance
	Recovered bool          // the instance has come back
	Provider  bool          // a hosted account: what it can take is not ours to measure
	TPOT      time.Duration // strictest objective of the classes at work; 0 is none given
	TTFT      time.Duration // strictest budget of the classes at work
}

// Limiter learns what one instance can take. It is used by one goroutine at a time.
type Limiter interface {
	// Next returns the limits until the next call, a period later.
	Next(s *Signals) Limits
	// Ended is told of each attempt that gave its lease back.
	Ended(e Ended)
}

// Ended is an attempt that gave its lease back.
type Ended struct {
	Took     time.Duration // from lease to release
	InFlight int64         // at the instance, this one included
	Busy     bool          // the instance said busy
	Whole    bool          // the answer was whole
}

// Constants of the law. They hold for every engine: what differs between engines
// is measured.
const (
	startLimit = 16   // before anything was seen
	floorLimit = 2    // one stream alone has no neighbour to be slowed by
	ceiling    = 4096 // what cannot be measured does not grow beyond this

	enoughGaps      = 30   // gaps behind a decision
	startShare      = 0.80 // of the objective that the mean gap is steered to
	lowestShare     = 0.40
	highestShare    = 0.97
	slowTarget      = 0.02 // streams over their objective
	judgeEvery      = 4    // periods
	judgeStreams    = 10
	firstShare      = 0.6   // of the budget, for the time to first token that prompts do not explain
	windowShare     = 0.125 // of the budget, for the prompts ahead
	smallestWin     = 1024  // prompt tokens
	enoughPrompts   = 16    // prompts behind a rate of prefill
	enoughReading   = 0.5   // seconds behind it
	peakRises       = 0.2   // share of the way to a higher rate
	peakFalls       = 0.02  // to a lower one
	enoughFirsts    = 16    // first tokens behind a judgement
	fullRatio       = 1.35  // of the time that prompts explain, above which they stand still
	clearRatio      = 2.0   // the same for a single period
	clearFirsts     = 3     // first tokens behind such a period
	holdForgets     = 120.0 // seconds without a sign after which the limit is dropped
	holdSettles     = 2.0   // seconds after which a lower limit has shown what it does
	slowestStep     = 3.0   // mean gaps that a step with a prompt in it takes at most
	smallestChunk   = 256   // prompt tokens that any engine reads in a step
	standingShare   = 0.5   // of the window, below which prompts do not stand
	fewSequences    = 16
	enoughFull      = 3    // times that an instance was full, behind what it is full of
	firstPatience   = 10.0 // seconds before one sequence more is tried
	longestPatience = 320.0
	memoryShare     = 0.90   // of the tokens held when memory was full
	heldFades       = 0.99   // a period, of the most that was held: by half in 35 s
	slowestGrowth   = 0.0005 // of the memory's limit, a period
	fastestGrowth   = 0.05
	growthDoubles   = 20.0 // seconds without a sign that memory is full
	efficiency      = 0.85 // of the most throughput, without an objective
	slowestTarget   = 100 * time.Millisecond
)

// Learned is the governor's law. It steers the mean time per output token, of
// which every token that passes is a sample, to a share of the objective:
//
//	L <- L + (clip(n*target/gap, 0.7L, 1.3L+2) - L)/2
//
// with n requests in flight. A batching engine's gap grows linearly with n, gap =
// a + b*n, so the map has the slope a/target < 1 at its fixed point, and half the
// step converges in about nine periods whatever a and b are. The share of the
// objective follows the streams that missed it. Prompts have a budget of their
// own, because they govern the time to first token: an eighth of the strictest
// budget at the rate at which the instance has been seen to prefill.
type Learned struct {
	limit  float64
	share  float64
	peak   float64 // prompt tokens a second
	first  float64 // lowest mean time to first token that prompts do not explain, seconds
	began  bool    // first is known
	floor  float64 // lowest gap, seconds: the instance without load
	memory float64 // tokens; 0 is not known
	slots  float64 // sequences; 0 is not known
	held   float64 // tokens, the most of late; it fades
	ran    float64 // sequences, likewise

	tokens, sequences spread // logarithms of what the instance held when it was full

	patience float64 // seconds before one sequence more is tried

	suspect         int     // judgements in a row that memory is full
	calm            float64 // seconds since memory was full
	read, reading   float64 // prompt tokens, and the seconds in which there were any to read
	prompts         float64 // prompts that were read in them
	firsts          float64 // first tokens
	took, explained float64 // their times, and what the prompts ahead explain, seconds

	gaps, gapTime float64 // carried over while there are too few
	ended, slow   int64
	periods       int
}

// NewLearned returns a limiter that knows nothing.
func NewLearned() *Learned { return &Learned{limit: startLimit, share: startShare} }

// Ended implements Limiter. The law needs no durations: they vary with the length
// of answers and not with load.
func (*Learned) Ended(Ended) {}

// Next implements Limiter.
func (l *Learned) Next(s *Signals) Limits {
	if s.Recovered { // what it could do it may not do yet
		l.limit = max(floorLimit, l.limit/8)
		l.peak, l.first, l.began, l.slots, l.held, l.ran = 0, 0, false, 0, 0, 0
	}
	l.prefill(s)
	if s.Provider {
		return l.account(s)
	}
	l.judge(s)
	l.hold(s)
	l.steer(s)
	l.limit = min(max(l.limit, floorLimit), ceiling)
	requests := math.Round(l.limit)
	if l.slots > 0 {
		requests = min(requests, math.Round(l.slots))
	}
	return Limits{Requests: requests, PromptTokens: l.window(s), Memory: l.memory}
}

// account is the law for a hosted account: nothing is known of its machines, so
// only its refusals count.
func (l *Learned) account(s *Signals) Limits {
	switch {
	case s.Busy > 0:
		l.limit = 0.9 * min(l.limit, s.InFlight+1)
	case s.InFlight >= 0.8*l.limit:
		l.limit += max(1, 0.02*l.limit)
	}
	l.limit = min(max(l.limit, floorLimit), ceiling)
	return Limits{Requests: math.Round(l.limit)}
}

// steer moves the limit.
func (l *Learned) steer(s *Signals) {
	l.gaps += s.Gaps
	l.gapTime += s.Gaps * s.Gap.Seconds()
	budget := s.TTFT.Seconds()
	excess := s.First.Seconds() - l.prefillTime(s.Ahead)
	stuck := s.Oldest.Seconds() - l.prefillTime(2*s.Standing)
	switch {
	case s.Busy > 0:
		l.limit = 0.9 * min(l.limit, s.InFlight+1)
	case s.Firsts > 0 && excess > firstShare*budget, stuck/2 > firstShare*budget:
		// A queue inside the engine, which the prompts ahead do not explain.
		l.limit = 0.9 * min(l.limit, s.InFlight+1)
	case l.gaps < enoughGaps:
		if s.Waiting && s.Gaps == 0 && s.Running == 0 && s.InFlight >= 0.8*l.limit {
			l.limit += max(1, 0.05*l.limit) // no token ever comes, as of embeddings
		}
		return
	default:
		gap := l.gapTime / l.gaps
		l.quietest(gap)
		target := l.target(s)
		if s.InFlight >= 0.8*l.limit || gap > target {
			want := min(max(s.InFlight*target/gap, 0.7*l.limit), 1.3*l.limit+2)
			l.limit += (want - l.limit) / 2
		}
	}
	l.gaps, l.gapTime = 0, 0
}

// quietest keeps the lowest gap, forgetting it slowly.
func (l *Learned) quietest(gap float64) {
	if l.floor *= 1.0005; l.floor == 0 || gap < l.floor {
		l.floor = gap
	}
}

// target is the mean time per token to steer to, in seconds. Without an objective
// it is where the instance does 85% of what it could ever do: throughput is
// 1 - floor/gap of the most, because the gap's constant part is shared by all.
// A slow instance is not driven to where nobody would read along.
func (l *Learned) target(s *Signals) float64 {
	if s.TPOT > 0 {
		return l.share * s.TPOT.Seconds()
	}
	return min(l.floor/(1-efficiency), max(3*l.floor, slowestTarget.Seconds()))
}

// objective is what a stream is judged by, in seconds.
func (l *Learned) objective(tpot time.Duration) float64 {
	if tpot > 0 {
		return tpot.Seconds()
	}
	return l.target(&Signals{}) / startShare
}

// judge moves the share of the objective after the streams that missed it.
func (l *Learned) judge(s *Signals) {
	l.ended += s.Ended
	l.slow += s.Slow
	if l.periods++; l.periods%judgeEvery != 0 || l.ended < judgeStreams {
		return
	}
	missed := float64(l.slow) / float64(l.ended)
	l.share += max(-0.03, 0.01*(slowTarget-missed)/slowTarget)
	l.share = min(max(l.share, lowestShare), highestShare)
	l.ended, l.slow = 0, 0
}

// hold learns how much runs in the instance at once: how many tokens fit into its
// memory, or how many sequences into its batch. An engine that is full leaves
// prompts standing: their first tokens come later than the prompts ahead of them
// explain. One such period may be a hiccup of the machine; two in a row are
// believed, and the engine's own count of preemptions, where it is scraped, at once.
func (l *Learned) hold(s *Signals) {
	l.held = max(l.held*heldFades, s.Context-s.Standing)
	l.ran = max(l.ran*heldFades, s.Running)
	full := l.full(s)
	if full {
		l.suspect++
	}
	if s.Preempted > 1 {
		full, l.suspect = true, 2
	}
	l.calm += period.Seconds()
	known := l.memory > 0 || l.slots > 0
	if full && (l.suspect >= 2 || known) && (!known || l.calm > holdSettles) {
		l.fill(s)
		return
	}
	grow := 1 + min(slowestGrowth*math.Exp2(l.calm/growthDoubles), fastestGrowth)
	switch {
	case l.memory > 0 && l.calm > holdForgets:
		l.memory = 0
	case l.memory > 0 && s.Context > 0.97*l.memory:
		l.memory *= grow
	case l.slots >= fewSequences && s.InFlight > 0.97*l.slots:
		l.slots *= grow
	case l.slots > 0 && l.slots < fewSequences && s.Waiting && s.InFlight > l.slots-0.5 && l.calm > l.patience:
		l.slots++ // perhaps there is one more
		l.calm = 0
	}
}

// fill notes what a full instance holds. What it is full of is what varies less
// from one time to the next: tokens or sequences. Tokens of a few sequences say
// nothing. It holds at least what it held a moment ago: answers that began together
// end together, and what is there just then is not what there is room for.
func (l *Learned) fill(s *Signals) {
	used := max(l.held, 1)
	running := max(l.ran, 1)
	l.tokens.observe(math.Log(used))
	l.sequences.observe(math.Log(running))
	if running < fewSequences || l.sequences.n >= enoughFull && l.sequences.variance < l.tokens.variance/2 {
		switch {
		case l.slots == 0:
			l.patience = firstPatience
		case running < l.slots:
			l.patience = min(2*l.patience, longestPatience)
		}
		l.slots, l.memory, l.calm = running, 0, 0
		return
	}
	if l.memory > 0 {
		used = min(used, l.memory)
	}
	l.memory, l.slots, l.calm = memoryShare*used, 0, 0
}

// spread is a moving mean and variance.
type spread struct {
	n, mean, variance float64
}

// observe adds a value with a weight of a quarter, the first ones equally.
func (v *spread) observe(x float64) {
	v.n++
	w := max(1/v.n, 0.25)
	d := x - v.mean
	v.mean += w * d
	v.variance = (1 - w) * (v.variance + w*d*d)
}

// full judges whether prompts stand although they could be read: by the rate of
// prefill that was seen, and by the least that any engine reads in a step, which
// holds when that rate was never seen.
func (l *Learned) full(s *Signals) bool {
	if s.Standing < standingShare*l.window(s) {
		l.firsts, l.took, l.explained, l.suspect = 0, 0, 0, 0
		return false
	}
	steps := slowestStep * s.Gap.Seconds() * (2 + s.Ahead/smallestChunk)
	if s.Firsts > 0 && s.Gap > 0 && s.First.Seconds() > max(steps, 2*l.prefillTime(s.Ahead)*clearRatio) {
		return true
	}
	explained := l.prefillTime(s.Ahead) + s.Gap.Seconds()
	l.firsts += float64(s.Firsts)
	l.took += float64(s.Firsts) * s.First.Seconds()
	l.explained += float64(s.Firsts) * explained
	full := s.Firsts >= clearFirsts && l.peak > 0 && s.First.Seconds() > clearRatio*explained
	if l.firsts >= enoughFirsts {
		if full = full || l.peak > 0 && l.took > fullRatio*l.explained; !full {
			l.suspect = 0
		}
		l.firsts, l.took, l.explained = 0, 0, 0
	}
	return full
}

// prefill learns the rate of prefill, while there is something to read, and the
// least delay beside it. A rate is taken over several prompts, because a prompt
// counts when its last token is read. It rises quicker than it falls: an instance
// whose memory is full reads slowly, and is to be found out by that.
func (l *Learned) prefill(s *Signals) {
	l.read += s.Prompt
	l.reading += s.Reading.Seconds()
	l.prompts += float64(max(s.Prompts, s.Firsts))
	if l.prompts >= enoughPrompts && l.reading >= enoughReading {
		share := peakFalls
		rate := l.read / l.reading
		if rate > l.peak {
			share = peakRises
		}
		if l.peak == 0 {
			share = 1
		}
		l.peak += share * (rate - l.peak)
		l.read, l.reading, l.prompts = 0, 0, 0
	}
	if s.Firsts > 0 && l.peak > 0 {
		first := max(0, s.First.Seconds()-l.prefillTime(s.Ahead))
		if l.first *= 1.0005; !l.began || first < l.first {
			l.began, l.first = true, first
		}
	}
}

// prefillTime is how long that many prompt tokens take, in seconds.
func (l *Learned) prefillTime(tokens float64) float64 {
	if l.peak == 0 {
		return 0
	}
	return tokens / l.peak
}

// window is the budget of outstanding prompt tokens: what the instance reads in an
// eighth of the budget, but no less than what is on its way at that rate (the
// product of bandwidth and delay), a quarter more so that a rate which the window
// holds down shows itself.
func (l *Learned) window(s *Signals) float64 {
	return max(smallestWin, windowShare*s.TTFT.Seconds()*l.peak, 1.25*l.first*l.peak)
}

// Static is a limit that an operator sets.
type Static float64

// Next implements Limiter.
func (l Static) Next(*Signals) Limits { return Limits{Requests: float64(l)} }

// Ended implements Limiter.
func (Static) Ended(Ended) {}
