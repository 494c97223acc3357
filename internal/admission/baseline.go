package admission

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// The limiters of others, to compare with. They are written after their sources
// with the constants that those have without configuration, and each works on one
// instance, as the governor's own law does. Their clock is the limiter's period: a
// limit that changes in between takes effect at the next decision.

// Constants of Envoy's gradient controller: the defaults of its
// adaptive_concurrency filter (gradient_controller.cc and
// adaptive_concurrency.proto), and the interval of the example in its manual where
// there is no default. The manual's example samples every 100 ms; here it is a
// period, which gives a window five times the samples.
const (
	envoyFloor    = 3    // min_concurrency: also the limit while the least round trip is measured
	envoyCeiling  = 1000 // max_concurrency_limit
	envoyBuffer   = 0.25 // buffer
	envoySamples  = 50   // request_count
	envoyInterval = 60 * time.Second
	envoyJitter   = 0.15 // jitter, of the interval
	envoyGiveUp   = 5    // windows at the floor after which the measurement is repeated
	envoyShrink   = 0.5  // least gradient
	envoyGrow     = 2.0  // greatest gradient
	// envoyWindow bounds the samples kept of a window; later ones do not count.
	envoyWindow = 4096
)

// Gradient is Envoy's adaptive concurrency. From time to time it lets only three
// requests at an instance and takes the median duration of fifty as what the
// instance needs without load; in each window
//
//	g = clip(1.25*unloaded/median, 0.5, 2), L = g*L + sqrt(g*L)
//
// A duration counts when the answer is complete, whatever its length.
type Gradient struct {
	limit    float64
	resume   float64 // limit after a measurement; 0 is none under way
	age      int     // periods since the last measurement began
	left     int     // periods until the next one
	floored  int     // windows at the floor in a row
	unloaded time.Duration
	samples  []time.Duration
}

// NewGradient returns a limiter that begins with a measurement.
func NewGradient() *Gradient { return &Gradient{limit: envoyFloor, resume: envoyFloor} }

// Next implements Limiter.
func (g *Gradient) Next(*Signals) Limits {
	g.age++
	if g.resume > 0 {
		return Limits{Requests: g.limit}
	}
	if len(g.samples) > 0 {
		gradient := envoyGrow
		if sample := g.median(); sample > 0 {
			gradient = min(max((1+envoyBuffer)*float64(g.unloaded)/float64(sample), envoyShrink), envoyGrow)
		}
		limit := g.limit * gradient
		g.set(min(max(math.Floor(limit+math.Sqrt(limit)), envoyFloor), envoyCeiling))
	}
	if g.left--; g.left <= 0 || g.floored >= envoyGiveUp {
		g.measure()
	}
	return Limits{Requests: g.limit}
}

// set moves the limit and counts the windows at the floor.
func (g *Gradient) set(limit float64) {
	g.floored++
	if g.limit != envoyFloor || limit != envoyFloor {
		g.floored = 0
	}
	g.limit = limit
}

// measure begins a measurement of the unloaded duration.
func (g *Gradient) measure() {
	g.resume, g.limit = g.limit, envoyFloor
	g.age, g.floored = 0, 0
	g.samples = g.samples[:0]
}

// median takes the median of the window and begins a new one.
func (g *Gradient) median() time.Duration {
	slices.Sort(g.samples)
	m := g.samples[(len(g.samples)-1)/2]
	g.samples = g.samples[:0]
	return m
}

// Ended implements Limiter. Answers that were cut do not count, refusals do, but
// nothing that was sent before the last measurement began.
func (g *Gradient) Ended(e Ended) {
	before := e.Took > time.Duration(g.age+1)*period
	if !e.Whole && !e.Busy || before || len(g.samples) == envoyWindow {
		return
	}
	g.samples = append(g.samples, e.Took)
	if g.resume > 0 && len(g.samples) >= envoySamples {
		g.unloaded = g.median()
		g.limit, g.resume = g.resume, 0
		// The jitter keeps instances from being measured together. It is drawn
		// from what was measured, so that a run in virtual time repeats.
		draw := rand.New(rand.NewPCG(uint64(g.unloaded), uint64(e.Took))).Float64()
		g.left = int(math.Ceil((1 + envoyJitter*draw) * envoyInterval.Seconds() / period.Seconds()))
	}
}

// Constants of Netflix's limits: the defaults of Gradient2Limit, WindowedLimit
// around it and AIMDLimit (github.com/Netflix/concurrency-limits).
const (
	netflixStart   = 20
	netflixFloor   = 20
	netflixCeiling = 200

	gradient2Window    = 2   // periods: a second
	gradient2Samples   = 10  // behind a window
	gradient2Long      = 600 // windows of the long average
	gradient2Warm      = 10  // windows that are averaged evenly at first
	gradient2Tolerance = 1.5
	gradient2Shrink    = 0.5 // least gradient
	gradient2Queue     = 4   // added to the limit
	gradient2Smooth    = 0.2 // share of the new limit
	gradient2Drift     = 2.0 // long by short average, above which the long one is lowered
	gradient2Lower     = 0.95

	aimdTimeout = 5 * time.Second
	aimdBackoff = 0.9
)

// Gradient2 is Netflix's Gradient2Limit: the mean duration of a second stands
// against its own average over ten minutes,
//
//	g = clip(1.5*long/short, 0.5, 1), L = 0.8*L + 0.2*(g*L + 4)
//
// unless less than half of the limit is used.
type Gradient2 struct {
	limit    float64
	long     float64 // seconds
	windows  int     // that the long average has seen
	periods  int
	inFlight int64 // most in the window
	ended    int
	took     time.Duration // sum
}

// NewGradient2 returns a limiter that has seen nothing.
func NewGradient2() *Gradient2 { return &Gradient2{limit: netflixStart} }

// Next implements Limiter.
func (g *Gradient2) Next(*Signals) Limits {
	if g.periods++; g.periods%gradient2Window == 0 {
		if g.ended >= gradient2Samples {
			g.update(g.took.Seconds() / float64(g.ended))
		}
		g.inFlight, g.ended, g.took = 0, 0, 0
	}
	return Limits{Requests: math.Floor(g.limit)}
}

// update takes the mean duration of a window, in seconds.
func (g *Gradient2) update(short float64) {
	if g.windows < gradient2Warm {
		g.windows++
		g.long += (short - g.long) / float64(g.windows)
	} else {
		g.long += (short - g.long) * 2 / (gradient2Long + 1)
	}
	ratio := g.long / short
	if ratio > gradient2Drift {
		g.long *= gradient2Lower
	}
	if float64(g.inFlight) < g.limit/2 {
		return
	}
	gradient := min(max(gradient2Tolerance*ratio, gradient2Shrink), 1)
	limit := (1-gradient2Smooth)*g.limit + gradient2Smooth*(gradient*g.limit+gradient2Queue)
	g.limit = min(max(limit, netflixFloor), netflixCeiling)
}

// Ended implements Limiter.
func (g *Gradient2) Ended(e Ended) {
	if !e.Whole && !e.Busy || e.Took <= 0 {
		return
	}
	g.ended++
	g.took += e.Took
	g.inFlight = max(g.inFlight, e.InFlight)
}

// AIMD is Netflix's AIMDLimit: one more with every answer while at least half of
// the limit is used, and 0.9 of it after a refusal or an answer that took longer
// than 5 s.
type AIMD struct{ limit int64 }

// NewAIMD returns a limiter that has seen nothing.
func NewAIMD() *AIMD { return &AIMD{limit: netflixStart} }

// Next implements Limiter.
func (a *AIMD) Next(*Signals) Limits { return Limits{Requests: float64(a.limit)} }

// Ended implements Limiter.
func (a *AIMD) Ended(e Ended) {
	switch {
	case e.Busy || e.Whole && e.Took > aimdTimeout:
		a.limit = int64(float64(a.limit) * aimdBackoff)
	case e.Whole && 2*e.InFlight >= a.limit:
		a.limit++
	}
	a.limit = min(max(a.limit, netflixFloor), netflixCeiling)
}
