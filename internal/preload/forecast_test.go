package preload_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/spillway/spillway/internal/preload"
)

// perDay is the number of windows of 5 minutes in a day.
const perDay = 288

// least is the smallest gain then.
const least = 1.0 / perDay

// near says whether got is within a share of want.
func near(got, want, share float64) bool { return math.Abs(got-want) <= share*math.Abs(want) }

func TestGain(t *testing.T) {
	tests := map[string]struct{ expected, want float64 }{
		"nothing expected": {0, least},
		"a few a day":      {0.01, 0.00995},
		"one a window":     {1, 0.09512},
		"hundred":          {100, 0.61803}, // s = 1: the golden ratio
		"a flood":          {1e9, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := preload.Gain(tt.expected, least); !near(got, tt.want, 1e-3) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestHoltStep(t *testing.T) {
	tests := map[string]struct {
		from          preload.Holt
		count, factor float64
		want          preload.Holt
	}{
		"as expected":          {preload.Holt{Level: 10}, 10, 1, preload.Holt{Level: 10}},
		"as expected, at peak": {preload.Holt{Level: 10}, 30, 3, preload.Holt{Level: 10}},
		"trend goes on":        {preload.Holt{Level: 10, Trend: 1}, 10.9, 1, preload.Holt{Level: 10.9, Trend: 0.9}},
		"one more":             {preload.Holt{Level: 1}, 2, 1, preload.Holt{Level: 1.09512, Trend: 0.009512}},
		"surprise":             {preload.Holt{}, 100, 1, preload.Holt{Level: 50, Trend: 5}},
		"silence":              {preload.Holt{Level: 100}, 0, 1, preload.Holt{Level: 38.1966, Trend: -6.18034}},
		"never below nothing":  {preload.Holt{Level: 1, Trend: -5}, 0, 1, preload.Holt{Level: 0, Trend: -4.5}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := tt.from.Step(tt.count, tt.factor, least)
			if math.Abs(got.Level-tt.want.Level) > 1e-3 || math.Abs(got.Trend-tt.want.Trend) > 1e-3 {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestHoltAhead(t *testing.T) {
	h := preload.Holt{Level: 10, Trend: 2}
	for k, want := range map[int]float64{1: 11.8, 2: 13.42, 3: 14.878, 1000: 28} {
		if got := h.Ahead(k); !near(got, want, 1e-9) {
			t.Errorf("%d ahead: got %v, want %v", k, got, want)
		}
	}
	if got := (preload.Holt{Level: 1, Trend: -3}).Ahead(5); got != 0 {
		t.Errorf("a falling one: got %v, want 0", got)
	}
}

func TestAConstantSeriesForecastsItself(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		want := math.Exp(r.Float64()*10 - 2) // 0.14 to 3,000
		var h preload.Holt
		for range 10 * perDay {
			h = h.Step(want, 1, least)
		}
		if got := h.Ahead(1); !near(got, want, 0.02) {
			t.Errorf("constant %v: got %v", want, got)
		}
		if got := h.Ahead(12); !near(got, want, 0.05) {
			t.Errorf("constant %v, an hour ahead: got %v", want, got)
		}
	}
}

func TestARampIsFollowed(t *testing.T) {
	for _, slope := range []float64{0.5, 2, 20} {
		var h preload.Holt
		y := 100.0
		for range 60 {
			h = h.Step(y, 1, least)
			y += slope
		}
		if got := h.Ahead(1); !near(got, y, 0.05) {
			t.Errorf("slope %v: got %v, want %v", slope, got, y)
		}
		if h.Trend < 0.3*slope {
			t.Errorf("slope %v: got a trend of %v", slope, h.Trend)
		}
	}
}

func TestAJumpIsFollowedAtOnce(t *testing.T) {
	var h preload.Holt
	for i, want := range []float64{0.4, 0.7, 0.85} {
		h = h.Step(200, 1, least)
		if got := h.Ahead(1); got < want*200 || got > 1.4*200 {
			t.Errorf("%d windows after the jump: got %v, want about 200", i+1, got)
		}
	}
}

// The forecast of a Poisson stream is right on average. Where asks are rare it errs
// low: what rises with an ask falls faster than what stands low rises.
func TestForecastOfAPoissonStreamIsRightOnAverage(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for rate, low := range map[float64]float64{0.03: 0.35, 0.3: 0.15, 3: 0.1, 30: 0.05} {
		var h preload.Holt
		sum, n := 0.0, 0
		for i := range 30 * perDay {
			if i > 5*perDay {
				sum += h.Ahead(1)
				n++
			}
			h = h.Step(poisson(r, rate), 1, least)
		}
		if got := sum / float64(n); got < (1-low)*rate || got > 1.05*rate {
			t.Errorf("rate %v: got a mean forecast of %v", rate, got)
		}
	}
}

// poisson draws a count (Knuth's product of uniforms).
func poisson(r *rand.Rand, mean float64) float64 {
	n, p, limit := 0.0, r.Float64(), math.Exp(-mean)
	for p > limit {
		n++
		p *= r.Float64()
	}
	return n
}

// add feeds a profile a day, n asks in each window of an hour.
func add(p *preload.Profile, prior *preload.Profile, perWindow func(hour int) float64) {
	for i := range perDay {
		hour := i * 24 / perDay
		p.Add(hour, perWindow(hour), 1, perDay, prior)
	}
}

func TestProfile(t *testing.T) {
	flat := func(int) float64 { return 1 }
	peak := func(hour int) float64 {
		if hour == 9 {
			return 25
		}
		return 1
	}
	t.Run("knows nothing", func(t *testing.T) {
		var p, prior preload.Profile
		if got := p.Factor(9, nil); got != 1 {
			t.Errorf("got %v, want 1", got)
		}
		add(&prior, nil, peak)
		if got := p.Factor(9, &prior); got != prior.Factor(9, nil) || got < 5 {
			t.Errorf("got %v, want the prior's %v", got, prior.Factor(9, nil))
		}
	})
	t.Run("not before a whole day", func(t *testing.T) {
		var p preload.Profile
		for i := range perDay - 1 {
			p.Add(i*24/perDay, 100*float64(i%2), 1, perDay, nil)
		}
		if got := p.Factor(3, nil); got != 1 {
			t.Errorf("got %v, want 1", got)
		}
	})
	t.Run("flat", func(t *testing.T) {
		var p preload.Profile
		add(&p, nil, flat)
		for hour := range 24 {
			if got := p.Factor(hour, nil); !near(got, 1, 1e-6) {
				t.Errorf("hour %d: got %v, want 1", hour, got)
			}
		}
	})
	t.Run("peak", func(t *testing.T) {
		var p preload.Profile
		add(&p, nil, peak) // the mean is 2: an hour has 24 asks expected
		if got, want := p.Factor(9, nil), (300.0+3)/(24+3); !near(got, want, 1e-5) {
			t.Errorf("at the peak: got %v, want %v", got, want)
		}
		if got, want := p.Factor(10, nil), (12.0+3)/(24+3); !near(got, want, 1e-5) {
			t.Errorf("behind it: got %v, want %v", got, want)
		}
	})
	t.Run("few asks say little", func(t *testing.T) {
		var p preload.Profile
		add(&p, nil, func(hour int) float64 {
			if hour == 9 {
				return 1.0 / 12
			}
			return 0
		})
		if got := p.Factor(9, nil); got > 1.5 {
			t.Errorf("after one ask: got %v, want about 1", got)
		}
	})
	t.Run("renewed", func(t *testing.T) {
		var p preload.Profile
		add(&p, nil, peak)
		high := p.Factor(9, nil)
		add(&p, nil, flat)
		add(&p, nil, flat)
		if got := p.Factor(9, nil); got > 0.5*high || got < 1 {
			t.Errorf("two days later: got %v, was %v", got, high)
		}
	})
}
