package load

import (
	"maps"
	"strings"
	"sync"
	"time"
)

// Codes that the generator gives to outcomes that the server did not name.
const (
	codeConnect   = "connect"      // no connection
	codeReset     = "reset"        // connection lost before the answer began
	codeCut       = "cut"          // connection lost inside the answer, without an error frame
	codeTimeout   = "timeout"      // the client's time is over
	codeNotSent   = "not_sent"     // the bound on requests in flight was reached
	codeWrong     = "wrong_answer" // whole, and not the one that it should be
	codeBadAnswer = "malformed"    // not the answer of an OpenAI-compatible server
	codeCanceled  = "canceled"     // the run was ended from outside
	codeUndrained = "undrained"    // still open when the time to drain was over
	codeOther     = "other"        // codes beyond the bound on distinct ones
)

// maxCodes bounds the distinct error codes of a run: servers name them.
const maxCodes = 64

// outcome is how one row ended.
type outcome struct {
	class, tenant string
	code          string // of the error; empty when answered or truncated
	truncated     bool
	attempts      int
	streamed      bool
	hasDelta      bool
	due           time.Duration // since the start of the run, like the instants below
	first, last   time.Duration // first delta, last delta
	end           time.Duration
	tokens        int64
}

// answered says whether the answer is complete.
func (o *outcome) answered() bool { return o.code == "" && !o.truncated }

// ttft counts from the scheduled instant.
func (o *outcome) ttft() time.Duration { return o.first - o.due }

// tpot is the mean time per output token after the first, 0 when there is none.
func (o *outcome) tpot() time.Duration {
	if o.tokens < 2 || !o.hasDelta {
		return 0
	}
	return (o.last - o.first) / time.Duration(o.tokens-1)
}

// good says whether a complete answer kept the SLO. An answer in one piece has
// to arrive by the instant at which a stream within the SLO would have ended.
func (o *outcome) good(slo SLO) bool {
	if !o.answered() {
		return false
	}
	if !o.streamed {
		return slo.TTFT == 0 || slo.TPOT == 0 || o.end-o.due <= slo.TTFT+time.Duration(o.tokens)*slo.TPOT
	}
	return (slo.TTFT == 0 || o.ttft() <= slo.TTFT) && (slo.TPOT == 0 || o.tpot() <= slo.TPOT)
}

// tally counts outcomes of a system, class or tenant.
type tally struct {
	offered, answered, good int64
	errors                  map[string]int64
	ttft, e2e               histogram
}

func newTally(digits int) *tally {
	return &tally{errors: map[string]int64{}, ttft: newHistogram(digits), e2e: newHistogram(digits)}
}

func (t *tally) add(o *outcome, slo SLO) {
	t.offered++
	if o.code != "" {
		code := o.code
		if _, known := t.errors[code]; !known && len(t.errors) >= maxCodes {
			code = codeOther
		}
		t.errors[code]++
	}
	if !o.answered() {
		return
	}
	t.answered++
	if o.good(slo) {
		t.good++
	}
	if o.hasDelta {
		t.ttft.record(int64(o.ttft()))
	}
	t.e2e.record(int64(o.end - o.due))
}

// recorder gathers the outcomes of a run. It is safe for concurrent use.
type recorder struct {
	slo  SLO
	ttft map[string]time.Duration // by class, where it differs
	mu   struct {
		sync.Mutex
		total             *tally
		classes, tenants  map[string]*tally
		itl, tpot, lag    histogram
		truncated, tokens int64
		attempts, retries int64
		end               time.Duration
		invalid           []string
	}
}

func newRecorder(slo SLO, classes []Class) *recorder {
	r := &recorder{slo: slo, ttft: map[string]time.Duration{}}
	for _, c := range classes {
		if c.TTFT > 0 {
			r.ttft[c.Name] = c.TTFT
		}
	}
	r.mu.total = newTally(systemDigits)
	r.mu.classes, r.mu.tenants = map[string]*tally{}, map[string]*tally{}
	r.mu.itl, r.mu.tpot, r.mu.lag = newHistogram(systemDigits), newHistogram(systemDigits), newHistogram(systemDigits)
	return r
}

// gaps are inter-token latencies of one stream, in nanoseconds, gathered
// before they are recorded so that a stream takes the lock rarely.
type gaps struct {
	n      int
	values [64]int64
}

// add takes one gap.
func (g *gaps) add(nanos int64, r *recorder) {
	g.values[g.n] = nanos
	if g.n++; g.n == len(g.values) {
		r.flush(g)
	}
}

// flush records the gathered gaps.
func (r *recorder) flush(g *gaps) {
	if g.n == 0 {
		return
	}
	r.mu.Lock()
	for _, v := range g.values[:g.n] {
		r.mu.itl.record(v)
	}
	r.mu.Unlock()
	g.n = 0
}

// sent records how late a row was sent.
func (r *recorder) sent(lag time.Duration) {
	r.mu.Lock()
	r.mu.lag.record(int64(lag))
	r.mu.Unlock()
}

// invalidate notes a reason why the run proves nothing.
func (r *recorder) invalidate(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, known := range r.mu.invalid {
		if known == reason {
			return
		}
	}
	r.mu.invalid = append(r.mu.invalid, reason)
}

// reasons joins the reasons why the run proves nothing.
func (r *recorder) reasons() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.mu.invalid, "; ")
}

// finish records how a row ended.
func (r *recorder) finish(o *outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, slo := &r.mu, r.objectives(o.class)
	m.total.add(o, slo)
	addTo(m.classes, o.class, o, slo)
	addTo(m.tenants, o.tenant, o, slo)
	m.attempts += int64(o.attempts)
	m.retries += int64(max(0, o.attempts-1))
	m.end = max(m.end, o.end)
	if o.truncated {
		m.truncated++
	}
	if o.answered() {
		m.tokens += o.tokens
		if t := o.tpot(); o.streamed && t > 0 {
			m.tpot.record(int64(t))
		}
	}
}

// objectives is what a good answer of the class keeps to.
func (r *recorder) objectives(class string) SLO {
	slo := r.slo
	if ttft, ok := r.ttft[class]; ok {
		slo.TTFT = ttft
	}
	return slo
}

// addTo counts the outcome in its group, when it has one.
func addTo(groups map[string]*tally, name string, o *outcome, slo SLO) {
	if name == "" {
		return
	}
	t := groups[name]
	if t == nil {
		if len(groups) >= maxNames {
			name = codeOther
		}
		if t = groups[name]; t == nil {
			t = newTally(groupDigits)
			groups[name] = t
		}
	}
	t.add(o, slo)
}

// system summarises the run.
func (r *recorder) system() System {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.mu
	t := m.total
	s := System{
		DurationS: round(m.end.Seconds()), Offered: t.offered, Answered: t.answered, Truncated: m.truncated,
		Availability: ratio(t.answered, t.offered), Attempts: m.attempts, Retries: m.retries, OutputTokens: m.tokens,
		TTFT: t.ttft.latency(), ITL: m.itl.latency(), TPOT: m.tpot.latency(), E2E: t.e2e.latency(),
		ScheduleLag: m.lag.latency(), Errors: maps.Clone(t.errors),
	}
	if r.judged() {
		s.GoodputRatio = ratio(t.good, t.offered)
		s.SLO = r.slo.report()
	}
	if sec := m.end.Seconds(); sec > 0 {
		v := round(float64(m.tokens) / sec)
		s.TokensPerS = &v
	}
	s.Classes, s.Tenants = r.groups(m.classes), r.groups(m.tenants)
	for name := range r.ttft {
		if g, ok := s.Classes[name]; ok {
			g.SLO = r.objectives(name).report()
			s.Classes[name] = g
		}
	}
	return s
}

// judged says whether there is anything that a good answer keeps to.
func (r *recorder) judged() bool { return r.slo != (SLO{}) || len(r.ttft) > 0 }

// report is the bounds as a report names them.
func (s SLO) report() *Objectives {
	return &Objectives{TTFT: millis(s.TTFT), TPOT: millis(s.TPOT)}
}

func (r *recorder) groups(from map[string]*tally) map[string]Group {
	if len(from) == 0 {
		return nil
	}
	out := make(map[string]Group, len(from))
	for name, t := range from {
		g := Group{
			Offered: t.offered, Answered: t.answered, Availability: ratio(t.answered, t.offered),
			Errors: maps.Clone(t.errors), TTFT: t.ttft.latency(), E2E: t.e2e.latency(),
		}
		if r.judged() {
			g.SLOAttainment = ratio(t.good, t.offered)
		}
		out[name] = g
	}
	return out
}
