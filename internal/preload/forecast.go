package preload

import (
	"math"
	"time"
)

// day is the period of the profile.
const day = 24 * time.Hour

// The constants of Holt.
const (
	// damping takes the trend back by a tenth a window, so that it ends: Gardner and
	// McKenzie, "Forecasting trends in time series", Management Science 31 (1985),
	// find 0.8 to 0.98 best for most series.
	damping = 0.9
	// trending is the share of a change of level that is taken for a trend; the same
	// paper's usual range is 0.05 to 0.2.
	trending = 0.1
	// volatility is the standard deviation of a level's change in a window, as a share
	// of the level: 0.1 a window of 5 minutes is a factor of 1.4 in an hour.
	volatility = 0.1
	// surprising is the number of standard deviations from which a count is taken for
	// a new level, not for noise (Trigg and Leach, "Exponential smoothing with an
	// adaptive response rate", Operational Research Quarterly 18, 1967), and
	// responding the share of it that is believed at once.
	surprising = 3
	responding = 0.5
	// leastFactor bounds by how much a quiet hour blows up what is learned in it.
	leastFactor = 0.2
)

// Holt is the level and the damped trend of counts in windows, without the time of
// day (Holt 1957; Gardner and McKenzie 1985, in the error-correction form of
// Gardner, "Exponential smoothing: the state of the art, part II", International
// Journal of Forecasting 22, 2006). The zero value has seen nothing.
type Holt struct{ Level, Trend float64 }

// Gain is the share of a forecast's error that goes into the level, when expected
// is the mean of a Poisson count and the level drifts by the volatility. It is the
// steady state of the Kalman filter of a random walk in noise: with s, the variance
// of the drift by that of the noise, (-s + sqrt(s*s + 4s)) / 2 (Muth, "Optimal
// properties of exponentially weighted forecasts", JASA 55, 1960). Few asks are
// averaged for long, many are followed at once. least is where it ends.
func Gain(expected, least float64) float64 {
	s := volatility * volatility * expected
	return max(least, (math.Sqrt(s*s+4*s)-s)/2)
}

// Step takes in the count of the next window. factor is that of its time of day,
// least the smallest gain: one by the windows of the longest memory.
func (h Holt) Step(count, factor, least float64) Holt {
	base := max(0, h.Level+damping*h.Trend)
	expected := base * factor
	miss := count - expected
	gain := Gain(expected, least)
	if math.Abs(miss) > surprising*math.Sqrt(expected+1) {
		gain = max(gain, responding)
	}
	change := gain * miss / max(factor, leastFactor)
	return Holt{Level: max(0, base+change), Trend: damping*h.Trend + trending*change}
}

// Ahead is the forecast k windows ahead, k >= 1, without the time of day:
// level + (damping + ... + damping^k) trend.
func (h Holt) Ahead(k int) float64 {
	return max(0, h.Level+h.Trend*damping*(1-math.Pow(damping, float64(k)))/(1-damping))
}

// hours is the number of parts of a Profile.
const hours = 24

// The constants of Profile.
const (
	// credit is the number of asks that the profile it shrinks to is worth.
	credit = 3
	// renewal is the share of the newest day in a profile.
	renewal = 0.5
)

// Profile says by how much each hour of the day is above or below its mean: the
// multiplicative season of Winters, "Forecasting sales by exponentially weighted
// moving averages", Management Science 6 (1960), renewed a day at a time. Hours with
// few asks shrink to what is known otherwise, as the posterior mean of a Gamma
// prior worth credit asks. The zero value has seen nothing: every factor is the
// prior's.
type Profile struct {
	factors [hours]float32
	version uint32 // days taken in
	counts  [hours]float32
	windows [hours]float32
	covered float32 // windows since the last day was taken in
}

// Add takes in the count of a window, or of a share of it. perDay is the number of
// windows in a day; prior is what the factors shrink to, nil for 1.
func (p *Profile) Add(hour int, count, share float64, perDay int, prior *Profile) {
	p.counts[hour] += float32(count)
	p.windows[hour] += float32(share)
	p.covered += float32(share)
	if p.covered < float32(perDay) {
		return
	}
	mean := 0.0
	for _, n := range p.counts {
		mean += float64(n)
	}
	mean /= float64(p.covered)
	for i := range p.factors {
		known := p.Factor(i, prior)
		f := (float64(p.counts[i]) + credit*known) / (mean*float64(p.windows[i]) + credit)
		if p.version > 0 {
			f = renewal*f + (1-renewal)*known
		}
		p.factors[i] = float32(f)
	}
	p.version++
	p.counts, p.windows, p.covered = [hours]float32{}, [hours]float32{}, 0
}

// Factor is how the hour stands to the day's mean; prior speaks while the profile
// knows no day.
func (p *Profile) Factor(hour int, prior *Profile) float64 {
	switch {
	case p.version > 0:
		return float64(p.factors[hour])
	case prior != nil:
		return prior.Factor(hour, nil)
	}
	return 1
}

// series is what is known of one key: its level, its trend and its day.
type series struct {
	Holt
	profile Profile
	version uint32 // of the profiles under which the level was learned
	hour    int8   // of the last window
	factor  float32
}

// step takes in a closed window's count.
func (s *series) step(count float64, hour, perDay int, prior *Profile) {
	s.rebase(prior)
	f := s.profile.Factor(hour, prior)
	s.Holt = s.Step(count, f, 1/float64(perDay))
	s.hour, s.factor = int8(hour), float32(f)
	s.profile.Add(hour, count, 1, perDay, prior)
}

// rebase restates the level when a profile has learned another day, so that what is
// forecast for the same hour stays the same.
func (s *series) rebase(prior *Profile) {
	v := s.profile.version + prior.version
	if v == s.version {
		return
	}
	s.version = v
	if s.factor > 0 {
		by := float64(s.factor) / max(s.profile.Factor(int(s.hour), prior), leastFactor)
		s.Level, s.Trend = s.Level*by, s.Trend*by
	}
}

// view is a series at an instant, for one forecast.
type view struct {
	Holt
	profile *Profile
	prior   *Profile
	perDay  int
}

// factor is that of a window, by its number since the epoch.
func (v *view) factor(index int64) float64 {
	return v.profile.Factor(hourOf(index, v.perDay), v.prior)
}

// take steps over a window that is not closed yet.
func (v *view) take(index int64, count float64) {
	v.Holt = v.Step(count, v.factor(index), 1/float64(v.perDay))
}

// next is the forecast for the window behind the last one taken.
func (v *view) next(index int64) float64 { return v.Ahead(1) * v.factor(index) }

// spots is the most instants at which a sum is evaluated.
const spots = 48

// sum is the forecast for n windows from index on, the last one taken being the
// given one. Of many windows only some are evaluated: profile and trend change slowly.
func (v *view) sum(last, index int64, n int) float64 {
	stride := max(1, (n+spots-1)/spots)
	total := 0.0
	for at := 0; at < n; at += stride {
		size := min(stride, n-at)
		middle := index + int64(at+size/2)
		total += float64(size) * v.Ahead(int(middle-last)) * v.factor(middle)
	}
	return total
}

// hourOf is the hour of the day, UTC, in which a window begins.
func hourOf(index int64, perDay int) int {
	n := int64(perDay)
	return int((index%n + n) % n * hours / n)
}
