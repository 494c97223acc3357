package experiment

import (
	"fmt"
	"math"
	"time"
)

// Constants of the tests.
const (
	minKeys     = 10  // of each arm: a variance between fewer says nothing
	burnIn      = 100 // samples of each arm before a verdict, for the central limit
	leastGuard  = 10  // the same for a guard, at least
	guardBest   = 100 // samples at which a guard is sharpest; see radius and pooled
	verdictBest = 500 // likewise for verdicts
	verdictSize = 10  // failures that the mixture for verdicts is worth; see split.difference
)

// alarm is why a guard ends an experiment.
type alarm struct {
	metric       metric
	arm          int
	value, than  float64 // rates, or geometric means in seconds
	n, of        float64 // samples of the arm and of control
	faults, base float64 // of the rates
	interval     Interval
	alpha        float64
}

// guardAlpha is the part of the guard's alpha that one comparison may spend: each arm
// and each of the guards that are on has its own, after Bonferroni.
func (t *trial) guardAlpha() float64 {
	on := 0
	for _, limit := range []float64{t.cfg.Guard.ErrorRate, t.cfg.Guard.TTFT} {
		if limit > 0 {
			on++
		}
	}
	return t.cfg.Guard.Alpha / float64(max(1, on*(len(t.names)-1)))
}

// guard compares the arm that has a new sample with control, or all of them when the
// sample is control's. nil is no alarm.
func (t *trial) guard(arms []*tally, arm int) *alarm {
	for i := range arms {
		if i == t.control || arm != t.control && arm != i {
			continue
		}
		if a := t.guardErrors(arms, i); a != nil {
			return a
		}
		if a := t.guardTTFT(arms, i); a != nil {
			return a
		}
	}
	return nil
}

// guardErrors compares the shares of requests that met a fault. They are counted as
// independent also where one key's requests stay together: what breaks is the arm's
// servers, and waiting for ten keys would be worse than to end an experiment for one
// key's misfortune.
func (t *trial) guardErrors(arms []*tally, i int) *alarm {
	a, c, g := arms[i], arms[t.control], &t.cfg.Guard
	n, of := a.series[success].n, c.series[success].n
	if g.ErrorRate <= 0 || min(n, of) < float64(g.MinRequests) {
		return nil
	}
	value, than := a.faults/n, c.faults/of
	if value-than < g.ErrorRate {
		return nil
	}
	s, alpha := split{a.faults, c.faults, n / (n + of)}, t.guardAlpha()
	if s.worse() < math.Log(1/alpha) {
		return nil
	}
	interval := s.difference(n+of, 2, 2*alpha)
	interval.Low = max(0, interval.Low) // which worse has shown
	return &alarm{metric: success, arm: i, value: value, than: than, n: n, of: of, faults: a.faults, base: c.faults, interval: interval, alpha: alpha}
}

// guardTTFT compares the logarithms of the times to the first token.
func (t *trial) guardTTFT(arms []*tally, i int) *alarm {
	a, c, g := &arms[i].series[ttft], &arms[t.control].series[ttft], &t.cfg.Guard
	if g.TTFT <= 0 || min(a.n, c.n) < float64(g.MinRequests) {
		return nil
	}
	more := a.mean - c.mean
	if more < math.Log1p(g.TTFT) {
		return nil // before the variance by key, which takes a while
	}
	alpha := t.guardAlpha()
	plain, v := between(a, c)
	r := radius(v, pooled(a.n, c.n)/worth(plain, v), guardBest, 2*alpha) // one side of it
	if !(more > r) {
		return nil
	}
	return &alarm{
		metric: ttft, arm: i, value: math.Exp(a.mean), than: math.Exp(c.mean), n: a.n, of: c.n,
		interval: Interval{math.Expm1(more - r), math.Expm1(more + r)}, alpha: alpha,
	}
}

// words says why.
func (a *alarm) words(t *trial, after time.Duration) string {
	arm, control := t.names[a.arm], t.names[t.control]
	if a.metric == success {
		return fmt.Sprintf("error rate: of arm %q %.0f of %.0f requests failed or met a server that broke (%.2f%%), of control %q %.0f of %.0f (%.2f%%): "+
			"%.2f points more, between %.2f and %.2f at an error of %.3g, after %v",
			arm, a.faults, a.n, 100*a.value, control, a.base, a.of, 100*a.than,
			100*(a.value-a.than), 100*a.interval.Low, 100*a.interval.High, a.alpha, after.Round(time.Second))
	}
	return fmt.Sprintf("ttft: typically %v in arm %q (%.0f requests), %v in control %q (%.0f requests): %.0f%% more, between %.0f%% and %.0f%% at an error of %.3g, after %v",
		seconds(a.value), arm, a.n, seconds(a.than), control, a.of, 100*(a.value/a.than-1), 100*a.interval.Low, 100*a.interval.High, a.alpha, after.Round(time.Second))
}

// seconds rounds a time for a reader.
func seconds(s float64) time.Duration {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// Verdicts on an arm's metric, compared to control's.
const (
	Better    = "better"
	Worse     = "worse"
	More      = "more" // of tokens more is not better
	Fewer     = "fewer"
	Undecided = "undecided" // no difference that would be certain
	TooFew    = "too_few"   // samples, or keys
)

// Difference is an arm's metric compared to control's: of success the arm's share of
// successes minus control's, of scores the difference of the means, else relative to
// control: 0.1 is a tenth more.
type Difference struct {
	Value    float64   `json:"value"`
	Interval *Interval `json:"interval,omitempty"` // with verdicts but TooFew
	Verdict  string    `json:"verdict"`
}

// verdictAlpha is the part of alpha that one verdict may spend, after Bonferroni.
func (t *trial) verdictAlpha() float64 {
	n := 0
	for _, on := range t.tested {
		if on {
			n++
		}
	}
	return t.cfg.Alpha / float64(max(1, n*(len(t.names)-1)))
}

// compare judges one metric of an arm. nil where there is nothing to say yet.
func (t *trial) compare(arm, control *tally, m metric) *Difference {
	a, c := &arm.series[m], &control.series[m]
	if a.n == 0 || c.n == 0 {
		return nil
	}
	if m == success {
		return t.compareSuccess(a, c)
	}
	d := &Difference{Value: a.mean - c.mean, Verdict: TooFew}
	plain, v := between(a, c)
	if m == score {
		v += unseen(a.n) + unseen(c.n)
	}
	enough := min(a.n, c.n) >= burnIn && !math.IsInf(v, 1)
	if enough {
		n := pooled(a.n, c.n) / worth(plain, v)
		r := radius(v, n, verdictBest, t.verdictAlpha())
		d.Interval = &Interval{d.Value - r, d.Value + r}
		d.Verdict = verdictOf(m, d.Interval)
	}
	if m != score {
		d.Value = math.Expm1(d.Value)
		if enough {
			d.Interval.Low, d.Interval.High = math.Expm1(d.Interval.Low), math.Expm1(d.Interval.High)
		}
	}
	return d
}

// unseen is the variance of the mean of n scores when one more of them, at the other end
// of what scores can be, has not come yet: scores that are all alike leave that possible.
func unseen(n float64) float64 {
	const reach = MaxScore - MinScore
	return reach * reach / (n * n)
}

// compareSuccess judges the shares of successes. Where one key's requests may fail
// together, failures count for as many as they are worth when they are independent
// (Rao and Scott, "A simple method for the analysis of clustered binary data", 1992).
func (t *trial) compareSuccess(a, c *moments) *Difference {
	d := &Difference{Value: c.mean - a.mean, Verdict: TooFew} // means are of failures
	v := a.keyed() + c.keyed()
	if min(a.n, c.n) < burnIn || math.IsInf(v, 1) {
		return d
	}
	effect := worth(a.spread()+c.spread(), v)
	s := split{a.sum / effect, c.sum / effect, a.n / (a.n + c.n)}
	fails := s.difference((a.n+c.n)/effect, verdictSize, t.verdictAlpha())
	d.Interval = &Interval{-fails.High, -fails.Low}
	d.Verdict = verdictOf(success, d.Interval)
	return d
}

// verdictOf words an interval.
func verdictOf(m metric, i *Interval) string {
	switch up, down := i.Low > 0, i.High < 0; {
	case !up && !down:
		return Undecided
	case m == tokens && up:
		return More
	case m == tokens:
		return Fewer
	case up == (m == success || m == score):
		return Better
	}
	return Worse
}
