package experiment

import "math"

// This file is the arithmetic of tests that may be looked at after every request.
// Each of its intervals is a confidence sequence: with probability 1 - alpha it holds
// the truth at all times at once, so that stopping at the first moment that looks
// good, which is what a guard and an operator do, costs nothing.

// Interval is a range that holds the truth with the confidence of what it is part of.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// radius is half the width of the asymptotic confidence sequence of Waudby-Smith,
// Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
// asymptotic confidence sequences" (2024), theorem 2.2: a normal mixture over the
// central limit. v is the variance of the estimate, n the samples that it stands on,
// and best the n at which the sequence is to be narrowest.
func radius(v, n, best, alpha float64) float64 {
	if n <= 0 || v < 0 {
		return math.Inf(1)
	}
	l := 2 * math.Log(1/alpha)
	x := n / best * (l + math.Log(1+l))
	return math.Sqrt(v * (1 + 1/x) * (math.Log1p(x) + l))
}

// logBeta is the logarithm of Euler's beta function.
func logBeta(a, b float64) float64 {
	x, _ := math.Lgamma(a)
	y, _ := math.Lgamma(b)
	z, _ := math.Lgamma(a + b)
	return x + y - z
}

// coin is Robbins' mixture of likelihoods for hits and misses of one coin ("Statistical
// methods related to the law of the iterated logarithm", 1970; Howard, Ramdas,
// McAuliffe and Sekhon 2021, proposition 7): for each probability p the mixture over
// Beta(a, b) divided by the likelihood of p is a martingale that begins at 1, so that
// it exceeds 1/alpha with a chance of at most alpha, ever.
type coin struct{ hits, misses, a, b float64 }

// evidence is the logarithm of that martingale against p.
func (c coin) evidence(p float64) float64 {
	return c.constant() - c.hits*safeLog(p) - c.misses*safeLog(1-p)
}

// constant is the part of evidence that does not depend on p.
func (c coin) constant() float64 {
	return logBeta(c.hits+c.a, c.misses+c.b) - logBeta(c.a, c.b)
}

// safeLog keeps 0 times the logarithm of 0 at 0.
func safeLog(p float64) float64 { return math.Log(max(p, math.SmallestNonzeroFloat64)) }

// bisections bounds the error of an end of an interval: 2^-30 of its distance from
// the estimate.
const bisections = 30

// bounds are all p against which there is no evidence of 1/alpha. The evidence is
// convex in p and least at the share of hits, so that they are an interval.
func (c coin) bounds(alpha float64) Interval {
	n := c.hits + c.misses
	if n <= 0 {
		return Interval{0, 1}
	}
	limit, k := math.Log(1/alpha), c.constant()
	inside := func(p float64) bool { return k-c.hits*safeLog(p)-c.misses*safeLog(1-p) < limit }
	end := func(in, out float64) float64 {
		if inside(out) {
			return out
		}
		for range bisections {
			if mid := (in + out) / 2; inside(mid) {
				in = mid
			} else {
				out = mid
			}
		}
		return out
	}
	at := c.hits / n
	return Interval{end(at, 0), end(at, 1)}
}

// split is what a comparison of two rates of failure looks at: of the failures of
// both arms together, how many are the arm's and how many control's, and which share
// of both arms' requests is the arm's. Without a difference each failure is the arm's
// with just that probability, so that the failures are tosses of a coin (Lindon and
// Malek, "Anytime-valid inference for multinomial count data", 2022). Rates need not
// be known, and a request that succeeds costs nothing. That the requests are counted
// rather than known beforehand makes the test conservative: the coin's variance is
// larger than that of the failures by the share of the requests that succeed.
type split struct {
	arm, control float64 // failures
	share        float64 // of the requests, in (0, 1)
}

// worse is the logarithm of the evidence that the arm fails more often than control:
// the coin's mixture over everything above share. What the mixture would add below it
// is left in, which matters only where there is no evidence; it is cut where the arm's
// part is not above its share.
func (s split) worse() float64 {
	n := s.arm + s.control
	if n == 0 || s.arm <= s.share*n {
		return math.Inf(-1)
	}
	return coin{s.arm, s.control, 1, 1}.evidence(s.share) - math.Log1p(-s.share)
}

// signPart is the part of alpha that the coin of a difference may spend. It alone
// decides the sign; the rest is for how often both arms together fail.
const signPart = 0.75

// difference is the interval of the difference of the two rates, arm minus control,
// after n requests of both. size is how narrow the mixture is around no difference, in
// failures; what is looked for are small differences after many failures when it is
// large.
func (s split) difference(n, size, alpha float64) Interval {
	fails := s.arm + s.control
	of := coin{s.arm, s.control, size * s.share, size * (1 - s.share)}.bounds(signPart * alpha)
	rate := coin{fails, n - fails, 0.5, 0.5}.bounds((1 - signPart) * alpha)
	return Interval{
		min(s.points(of.Low, rate.Low), s.points(of.Low, rate.High)),
		max(s.points(of.High, rate.Low), s.points(of.High, rate.High)),
	}
}

// points turns the probability that a failure is the arm's into a difference of rates,
// where both arms together fail at a rate.
func (s split) points(p, rate float64) float64 {
	// Of the failures, p are in share of the requests: the arm's rate is rate*p/share.
	return min(1, rate*p/s.share) - min(1, rate*(1-p)/(1-s.share))
}
