package experiment

import (
	"fmt"
	"math"
	"time"
)

// Status is how an experiment stands and what it has found.
type Status struct {
	Name string `json:"name"`
	State
	Share    float64     `json:"share"`             // of the requests that its condition matches, now
	Assigned string      `json:"assigned_by"`       // what stays in one arm
	Control  string      `json:"control,omitempty"` // the arm that others are compared to
	Alpha    float64     `json:"alpha"`             // over all verdicts together
	Each     float64     `json:"alpha_each"`        // what each verdict may spend of it
	Idle     []string    `json:"idle,omitempty"`    // guards that have nothing to judge by, in words
	Arms     []ArmStatus `json:"arms"`
}

// ArmStatus is what an arm's requests have given since the experiment began, or since
// the gateway started.
type ArmStatus struct {
	Name     string            `json:"name"`
	Share    float64           `json:"share"`          // of the experiment's requests, as configured
	Requests uint64            `json:"requests"`       // that are samples
	Failures uint64            `json:"failures"`       // among them
	Faults   uint64            `json:"faults"`         // among them: failed, or saved from a server that broke
	Canceled uint64            `json:"canceled"`       // no samples: the client left
	Excluded uint64            `json:"excluded"`       // no samples: the client's own mistakes and limits
	Cached   uint64            `json:"cached"`         // no samples: nothing was generated
	Keys     int               `json:"keys,omitempty"` // groups of keys among them, at most 256; 0 where each request stands alone
	Errors   map[string]uint64 `json:"errors,omitempty"`
	TTFTP50  float64           `json:"ttft_p50_seconds"`
	TTFTP95  float64           `json:"ttft_p95_seconds"`
	Metrics  []MetricStatus    `json:"metrics"`
}

// MetricStatus is one metric of an arm. Times are in seconds. Typical is the share of
// successes, the mean of scores, and otherwise the geometric mean, which a few very
// long values do not move; Interval is its confidence sequence at the experiment's
// alpha, for this arm and metric alone.
type MetricStatus struct {
	Metric   string      `json:"metric"`
	N        uint64      `json:"n"`
	Mean     float64     `json:"mean"`
	Typical  float64     `json:"typical"`
	Interval *Interval   `json:"interval,omitempty"` // from 100 samples on
	Versus   *Difference `json:"versus_control,omitempty"`
	Tested   bool        `json:"tested"` // it has a verdict
}

// Status tells how every experiment stands, in the configured order. It computes for
// some microseconds an arm, during which the experiment's requests wait to be
// recorded.
func (s *Set) Status(now time.Time) []Status {
	trials := s.table.Load().trials
	all := make([]Status, 0, len(trials))
	for _, t := range trials {
		all = append(all, t.status(now))
	}
	return all
}

// status tells how a trial stands.
func (t *trial) status(now time.Time) Status {
	s := Status{Name: t.cfg.Name, State: *t.life.state.Load(), Assigned: t.cfg.By, Alpha: t.cfg.Alpha}
	if s.State.State == Running {
		s.Share = t.share(now.Sub(s.Started))
	}
	if t.control >= 0 {
		s.Control, s.Each = t.names[t.control], t.verdictAlpha()
	}
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	for i, arm := range t.ledger.mu.arms {
		s.Arms = append(s.Arms, t.armStatus(i, arm))
	}
	if s.State.State == Running {
		s.Idle = t.idle()
	}
	return s
}

// idle words which guards cannot see what they look for: answers in one piece have no
// first token, unless their servers stream them. The caller holds the ledger.
func (t *trial) idle() (words []string) {
	if t.control < 0 || t.cfg.Guard.TTFT <= 0 {
		return nil
	}
	for i, arm := range t.ledger.mu.arms {
		if n := arm.results[answered]; n >= uint64(t.cfg.Guard.MinRequests) && arm.series[ttft].n == 0 {
			words = append(words, fmt.Sprintf("ttft: no samples of arm %q in %d answers; its guard is idle", t.names[i], n))
		}
	}
	return words
}

// armStatus tells how an arm stands. The caller holds the ledger.
func (t *trial) armStatus(i int, arm *tally) ArmStatus {
	a := ArmStatus{
		Name: t.names[i], Share: t.armShare(i), Requests: arm.results[answered] + arm.results[failed], Failures: arm.results[failed], Faults: uint64(arm.faults),
		Canceled: arm.results[canceled], Excluded: arm.results[excluded], Cached: arm.results[cached],
		Keys: arm.series[success].keys(), TTFTP50: arm.waits.quantile(0.5), TTFTP95: arm.waits.quantile(0.95),
	}
	if len(arm.codes) > 0 {
		a.Errors = make(map[string]uint64, len(arm.codes))
		for code, n := range arm.codes {
			a.Errors[string(code)] = n
		}
	}
	for m := range metrics {
		ms := t.metricStatus(arm, m)
		if t.control >= 0 && i != t.control && t.tested[m] {
			ms.Tested = true
			ms.Versus = t.compare(arm, t.ledger.mu.arms[t.control], m)
		}
		a.Metrics = append(a.Metrics, ms)
	}
	return a
}

// metricStatus tells about one arm's metric by itself.
func (t *trial) metricStatus(arm *tally, m metric) MetricStatus {
	x := &arm.series[m]
	s := MetricStatus{Metric: metricNames[m], N: uint64(x.n)}
	if x.n == 0 {
		return s
	}
	v := x.keyed()
	enough := x.n >= burnIn && !math.IsInf(v, 1)
	effect := worth(x.spread(), v)
	switch m {
	case success:
		s.Mean = 1 - x.mean
		s.Typical = s.Mean
		if enough {
			fails := bounded(x.sum, x.n, effect, t.cfg.Alpha)
			s.Interval = &Interval{1 - fails.High, 1 - fails.Low}
		}
		return s
	case score:
		s.Mean, s.Typical = finite(x.mean), finite(x.mean)
		if enough {
			const reach = MaxScore - MinScore
			of := bounded((x.sum-MinScore*x.n)/reach, x.n, effect, t.cfg.Alpha)
			s.Interval = &Interval{MinScore + reach*of.Low, MinScore + reach*of.High}
		}
		return s
	}
	back := math.Exp
	if m == tokens {
		back = math.Expm1
	}
	s.Mean, s.Typical = finite(arm.raw[m]/x.n), finite(back(x.mean))
	if enough {
		r := radius(v, x.n/effect, verdictBest, t.cfg.Alpha)
		s.Interval = &Interval{finite(back(x.mean - r)), finite(back(x.mean + r))}
	}
	return s
}

// bounded is the interval of the mean of n values from 0 to 1 with a sum. effect is how
// many of them are worth one that is independent. A value between 0 and 1 counts as part
// of a hit and part of a miss, which is conservative: the likelihood ratio of a coin is
// convex in what it shows, so that of all values with a mean those of a coin have the
// largest expectation (Hoeffding, "Probability inequalities for sums of bounded random
// variables", 1963), and that is 1. It holds after any number of values and however rare
// some of them are, which what the variance of few values says does not.
func bounded(sum, n, effect, alpha float64) Interval {
	return coin{sum / effect, (n - sum) / effect, 0.5, 0.5}.bounds(alpha)
}
