package experiment

import "time"

// Radius, Coin and Split are the arithmetic of the tests.
func Radius(v, n, best, alpha float64) float64 { return radius(v, n, best, alpha) }

// CoinEvidence is the logarithm of the martingale against p.
func CoinEvidence(hits, misses, a, b, p float64) float64 { return coin{hits, misses, a, b}.evidence(p) }

// CoinBounds is its confidence sequence.
func CoinBounds(hits, misses, a, b, alpha float64) Interval {
	return coin{hits, misses, a, b}.bounds(alpha)
}

// SplitWorse is the guard's evidence.
func SplitWorse(arm, control, share float64) float64 { return split{arm, control, share}.worse() }

// SplitDifference is the interval of a difference of rates.
func SplitDifference(arm, control, n, share, alpha float64) Interval {
	return split{arm, control, share}.difference(n, verdictSize, alpha)
}

// Verdicts appends the verdicts of an experiment's arms on its tested metrics, as
// Status has them, without what Status adds.
func (s *Set) Verdicts(name string, to []string) []string {
	t := s.table.Load().byName[name]
	t.ledger.mu.Lock()
	defer t.ledger.mu.Unlock()
	for i, arm := range t.ledger.mu.arms {
		for m := range metrics {
			if i != t.control && t.tested[m] {
				if d := t.compare(arm, t.ledger.mu.arms[t.control], m); d != nil {
					to = append(to, d.Verdict)
				}
			}
		}
	}
	return to
}

// Remembered is how many answers can be scored.
func (s *Set) Remembered() int { return s.memory.len() }

// Forgetful makes the memory of answers smaller.
func (s *Set) Forgetful(most int, keep time.Duration) { s.memory = newMemory(most, keep) }

// Quantile feeds a sketch with logarithms of seconds.
func Quantile(logs []float64, q float64) float64 {
	var s sketch
	for _, l := range logs {
		s.add(l)
	}
	return s.quantile(q)
}
