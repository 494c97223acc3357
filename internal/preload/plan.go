package preload

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"
)

// Step is one refresh of a plan.
type Step struct {
	At time.Time // when to begin
	Prediction
}

// Plan is what is refreshed for one window.
type Plan struct {
	Window   Window // that the answers are for; what is not done when it begins is given up
	Steps    []Step // in order of time
	Demanded int    // predictions above the least demand
	Fresh    int    // of these, answers that stay fresh through the window
	Over     int    // of these, answers beyond the budget
}

// Plan says what to refresh, as of now, for the window to come. It asks nobody but
// the predictor and the freshness, and changes nothing but counters.
func (p *Preloader) Plan(now time.Time) Plan {
	s := p.settings.Load()
	w := s.target(now)
	plan := Plan{Window: w}
	list := p.predictor().Predict(now, w, s.Horizon)
	p.meter.predictions.Add(float64(len(list)))
	list = slices.DeleteFunc(list, func(x Prediction) bool { return x.Asks < s.MinDemand || x.Request == nil })
	plan.Demanded = len(list)
	list = slices.DeleteFunc(list, func(x Prediction) bool { return p.parts.Freshness.Fresh(x.Key, w.End) })
	plan.Fresh = plan.Demanded - len(list)
	chosen := choose(list, s.Top, s.MaxTokens)
	plan.Over = len(list) - len(chosen)
	plan.Steps = spread(chosen, now, w.Start)
	return plan
}

// choose takes the predictions of the largest demand times cost, as many as the
// budget allows. What is too large for the rest of the budget is passed over.
func choose(list []Prediction, top int, tokens int64) []Prediction {
	worth := func(x Prediction) float64 { return x.Asks * float64(x.Tokens) }
	slices.SortFunc(list, func(a, b Prediction) int {
		return cmp.Or(cmp.Compare(worth(b), worth(a)), slices.Compare(a.Key[:], b.Key[:]))
	})
	var chosen []Prediction
	for _, x := range list {
		if len(chosen) == top {
			break
		}
		if x.Tokens <= tokens {
			tokens -= x.Tokens
			chosen = append(chosen, x)
		}
	}
	return chosen
}

// spreading is the share of the time before a window over which refreshes begin; the
// rest is for the last of them to end.
const spreading = 0.8

// spread gives each refresh its own part of the time, the most worthwhile first, and
// an instant in it by chance, so that gateways that plan alike do not ask at once.
func spread(list []Prediction, now, until time.Time) []Step {
	steps := make([]Step, len(list))
	part := spreading * float64(until.Sub(now)) / float64(max(1, len(list)))
	for i, x := range list {
		steps[i] = Step{At: now.Add(time.Duration((float64(i) + chance(x.Key, until)) * part)), Prediction: x}
	}
	return steps
}

// chance is a number from 0 to 1 that depends on the key and the window alone: keys
// are hashes. The multiplier is that of Fibonacci hashing (Knuth, volume 3, 6.4).
func chance(key [32]byte, at time.Time) float64 {
	n := (binary.LittleEndian.Uint64(key[16:]) ^ uint64(at.UnixNano())) * 0x9E3779B97F4A7C15
	return float64(n>>11) / (1 << 53)
}
