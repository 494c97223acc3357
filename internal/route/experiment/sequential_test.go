package experiment_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/spillway/spillway/internal/route/experiment"
)

// near says whether two numbers agree to a relative error.
func near(got, want, by float64) bool { return math.Abs(got-want) <= by*math.Abs(want) }

func TestRadiusAgainstKnownValues(t *testing.T) {
	for name, c := range map[string]struct{ v, n, best, alpha, want float64 }{
		// sigma^2 = 1 and n = 100, tuned for 100, alpha 0.05: rho^2 = (l + ln(1+l))/100 with
		// l = 2 ln 20 = 5.99146, so rho^2 = 0.0793616 and n rho^2 = 7.93616; the radius is
		// sqrt(2 (7.93616+1)/(100^2*0.0793616) * ln(sqrt(8.93616)/0.05)) = 0.302...
		"at its best": {0.01, 100, 100, 0.05, math.Sqrt(2 * 8.93616 / (1e4 * 0.0793616) * math.Log(math.Sqrt(8.93616)/0.05))},
		"later":       {0.0001, 10000, 100, 0.05, math.Sqrt(2 * 794.616 / (1e8 * 0.0793616) * math.Log(math.Sqrt(794.616)/0.05))},
		"no variance": {0, 100, 100, 0.05, 0},
		"no samples":  {1, 0, 100, 0.05, math.Inf(1)},
	} {
		if got := experiment.Radius(c.v, c.n, c.best, c.alpha); got != c.want && !near(got, c.want, 1e-4) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	best := experiment.Radius(1.0/300, 300, 300, 0.05)
	for _, other := range []float64{30, 100, 1000, 5000} {
		if got := experiment.Radius(1.0/300, 300, other, 0.05); got <= best {
			t.Errorf("tuned for %v the radius at 300 is %v, for 300 it is %v", other, got, best)
		}
	}
}

func TestCoinAgainstKnownValues(t *testing.T) {
	// Over a uniform mixture 7 hits of 7 are 1/8 likely, against 2^-7 of a fair coin.
	if got, want := experiment.CoinEvidence(7, 0, 1, 1, 0.5), math.Log(128.0/8); !near(got, want, 1e-9) {
		t.Errorf("got %v, want %v", got, want)
	}
	// 3 hits and 2 misses: B(4, 3) = 3! 2! / 6! = 1/60.
	if got, want := experiment.CoinEvidence(3, 2, 1, 1, 0.25), math.Log(1.0/60/(math.Pow(0.25, 3)*math.Pow(0.75, 2))); !near(got, want, 1e-9) {
		t.Errorf("got %v, want %v", got, want)
	}
	i := experiment.CoinBounds(7, 0, 1, 1, 0.05)
	if want := math.Pow(0.05/8, 1.0/7); !near(i.Low, want, 1e-6) || i.High != 1 { // p^7 = alpha/8
		t.Errorf("got %v, want from %v to 1", i, want)
	}
	if i := experiment.CoinBounds(0, 0, 1, 1, 0.05); i != (experiment.Interval{Low: 0, High: 1}) {
		t.Errorf("without tosses: got %v", i)
	}
	// 8 failures of the arm and none of control, at equal shares: 2 * 2^8/9.
	if got, want := experiment.SplitWorse(8, 0, 0.5), math.Log(2*256.0/9); !near(got, want, 1e-9) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := experiment.SplitWorse(5, 5, 0.5); !math.IsInf(got, -1) {
		t.Errorf("alike arms: got %v", got)
	}
}

// TestDifferencesCoverTheTruth at every look at once, in all but alpha of the runs.
func TestDifferencesCoverTheTruth(t *testing.T) {
	const requests, alpha = 4000, 0.05
	share := thorough // a variable, so that both builds compile
	runs := int(400 * max(share, 0.2))
	for name, c := range map[string]struct{ arm, control, share float64 }{
		"alike":          {0.01, 0.01, 0.5},
		"worse":          {0.06, 0.01, 0.5},
		"a small canary": {0.05, 0.02, 0.1},
		"very bad":       {0.6, 0.3, 0.5},
	} {
		missed := 0
		for run := range runs {
			rng := rand.New(rand.NewPCG(uint64(run), 3))
			var n, k [2]float64
			truth := c.arm - c.control
			for i := range requests {
				a, p := 1, c.control
				if rng.Float64() < c.share {
					a, p = 0, c.arm
				}
				n[a]++
				if rng.Float64() < p {
					k[a]++
				}
				if i < 100 || i%10 != 0 || min(n[0], n[1]) < 100 {
					continue
				}
				all := n[0] + n[1]
				if got := experiment.SplitDifference(k[0], k[1], all, n[0]/all, alpha); truth < got.Low || truth > got.High {
					missed++
					break
				}
			}
		}
		if most := int(1.3 * alpha * float64(runs)); missed > most {
			t.Errorf("%s: %d of %d runs leave the interval, want at most %d", name, missed, runs, most)
		}
	}
}

func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	logs := make([]float64, 20000)
	for i := range logs {
		logs[i] = math.Log(0.4) + 0.7*rng.NormFloat64()
	}
	for _, q := range []float64{0, 0.5, 0.95, 1} {
		sorted := slices.Sorted(slices.Values(logs))
		want := math.Exp(sorted[int(q*float64(len(sorted)-1))])
		if got := experiment.Quantile(logs, q); !near(got, want, 0.026) {
			t.Errorf("%v: got %v, want %v", q, got, want)
		}
	}
	if got := experiment.Quantile([]float64{-100, 100}, 0); got <= 0 || experiment.Quantile([]float64{100}, 1) < 3000 {
		t.Errorf("out of bounds: got %v", got)
	}
	if got := experiment.Quantile(nil, 0.5); got != 0 {
		t.Errorf("without samples: got %v", got)
	}
}
