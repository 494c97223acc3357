package bench

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// Ledger gathers the attempts of a run. The zero value is ready; it is safe for
// concurrent use. It grows with the run: some 200 bytes an attempt.
type Ledger struct {
	mu struct {
		sync.Mutex
		tries []Try
	}
}

// Add takes one attempt; it is what [load.Options] wants as Outcome.
func (l *Ledger) Add(o load.Outcome) {
	t := tryOf(o)
	l.mu.Lock()
	l.mu.tries = append(l.mu.tries, t)
	l.mu.Unlock()
}

// Tries are the attempts so far.
func (l *Ledger) Tries() []Try {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.mu.tries)
}

func tryOf(o load.Outcome) Try {
	class, _ := inference.ParseClass(o.Class) // without a class it is normal
	return Try{
		Request: int(o.Row), Class: class, Tenant: o.Tenant, Prompt: o.Prompt, Output: o.Output,
		At: o.At, Sent: o.Sent, First: o.First, End: o.End, Tokens: int(o.Tokens), Whole: o.Whole,
		Refused: o.Refused(), RetryAfter: o.RetryAfter, Ticket: o.Ticket, Returner: o.Returner, Server: o.Server,
	}
}

// Mix is what a trace asks for: the lengths of one pass, and its mean rate in
// requests per second at native speed.
type Mix struct {
	Lengths []Lengths
	Rate    float64
}

// TraceMix reads one pass of the trace of a configuration, cut to its bounds as a
// run would cut it.
func TraceMix(cfg load.Config, opts load.Options) (Mix, error) {
	cfg.Schedule.Rate, cfg.Schedule.Profile, cfg.Schedule.Duration, cfg.Schedule.Trace.Speed = 0, "", 0, 1
	cfg.Request.Repeat = 0
	var m Mix
	var first, last time.Duration
	for p, err := range load.Plan(cfg, opts) {
		if err != nil {
			return Mix{}, err
		}
		if len(m.Lengths) == 0 {
			first = p.At
		}
		last = p.At
		m.Lengths = append(m.Lengths, Lengths{p.Prompt, p.Output})
	}
	if n := len(m.Lengths); n > 1 && last > first {
		gap := (last - first) / time.Duration(n-1) // the next pass follows after a mean gap
		m.Rate = float64(n) / (last + gap).Seconds()
	}
	return m, nil
}

// unanswered is the code of requests of a virtual run that were not refused and
// not answered either; refused is that of those whose last attempt was.
const (
	codeRefused    = "refused"
	codeUnanswered = "unanswered"
)

// Fill writes the score into a system's report. Where the load generator has
// counted requests already, its totals and errors stay; classes are those of the
// score, that is of the measured window.
func (s Scored) Fill(to *load.System) {
	if to.Offered == 0 {
		to.Offered, to.Answered = int64(s.Offered), int64(s.Answered)
		to.Availability = shareOf(s.Answered, s.Offered)
		to.Errors = map[string]int64{}
		for code, n := range map[string]int{codeRefused: s.Refused, codeUnanswered: s.Offered - s.Answered - s.Refused} {
			if n > 0 {
				to.Errors[code] = int64(n)
			}
		}
	}
	to.GoodputRatio, to.Optimum, to.GoodPerS = number(s.GoodputRatio), number(s.Optimum.Rate), number(s.GoodRequests)
	to.FeasibleRatio, to.OfferedLoad = number(s.FeasibleRatio), number(s.Load)
	to.Wasted, to.Unservable = number(s.Wasted), int64(s.Unservable)
	to.Rejections = &load.Rejections{Count: int64(s.Rejections.Latency.N)}
	if q := s.Rejections.Latency; q.N > 0 {
		to.Rejections.P99MS = number(inMillis(q.P99))
	}
	if q := s.Rejections.Server; q.N > 0 {
		to.Rejections.ServerP99MS = number(inMillis(q.P99))
	}
	if s.Returns.Returned > 0 {
		to.RetryAfterHonesty = number(s.Returns.Honesty)
	}
	if s.JainWindows > 0 {
		to.Jain = number(s.Jain)
	}
	to.StarvationS = number(s.Starvation.Seconds())
	switch {
	case s.Recovered:
		to.RecoveryS = number(s.Recovery.Seconds())
	case s.Triggered:
		to.RecoveryS = number(-1)
	}
	to.Classes = make(map[string]load.Group, len(s.Classes))
	for class, c := range s.Classes {
		to.Classes[class.String()] = load.Group{
			Offered: int64(c.Offered), Answered: int64(c.Answered), Availability: shareOf(c.Answered, c.Offered),
			SLOAttainment: shareOf(c.Good, c.Offered), TTFT: c.TTFT.latency(), E2E: c.E2E.latency(), SLO: c.SLO,
		}
	}
}

// number keeps six decimals.
func number(v float64) *float64 {
	v = math.Round(v*1e6) / 1e6
	return &v
}

// shareOf is nil of nothing.
func shareOf(part, whole int) *float64 {
	if whole == 0 {
		return nil
	}
	return number(float64(part) / float64(whole))
}

// inMillis keeps microseconds, as histograms do.
func inMillis(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Microsecond)) / 1000
}

// latency is the quantiles as a report has them, nil of nothing.
func (q Quantiles) latency() *load.Latency {
	if q.N == 0 {
		return nil
	}
	return &load.Latency{
		Mean: inMillis(q.Mean), P50: inMillis(q.P50), P90: inMillis(q.P90), P99: inMillis(q.P99),
		P999: inMillis(q.P999), Max: inMillis(q.Max), Count: int64(q.N),
	}
}
