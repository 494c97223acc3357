package admission_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/spillway/spillway/internal/admission"
)

// end tells a limiter of n attempts that took equally long.
func end(l admission.Limiter, n int, e admission.Ended) {
	for range n {
		l.Ended(e)
	}
}

// whole is a complete answer.
func whole(took time.Duration, inFlight int64) admission.Ended {
	return admission.Ended{Took: took, InFlight: inFlight, Whole: true}
}

// next is the limit of the next period.
func next(l admission.Limiter) float64 { return l.Next(&admission.Signals{}).Requests }

// measured is a Gradient that has found out what an instance needs without load.
func measured(t *testing.T, unloaded time.Duration) *admission.Gradient {
	t.Helper()
	g := admission.NewGradient()
	for i := range 10 {
		if got := next(g); got != 3 {
			t.Fatalf("limit %v in period %d, want 3 while it measures", got, i)
		}
		end(g, 5, whole(unloaded, 3))
	}
	return g
}

func TestGradient(t *testing.T) {
	const slow = 4 * time.Second // no more: what began before the measurement, 5 s ago, does not count
	cases := map[string]struct {
		windows []time.Duration // median of each; 0 is one without an answer
		want    []float64
	}{
		// g = 1.25, floor(3.75 + sqrt 3.75) = 5; floor(6.25 + 2.5) = 8; floor(10 + 3.16) = 13; floor(16.25 + 4.03) = 20
		"grows without load": {[]time.Duration{time.Second, time.Second, time.Second, time.Second}, []float64{5, 8, 13, 20}},
		// g is clipped to 2: floor(6 + 2.45) = 8
		"at most doubles": {[]time.Duration{10 * time.Millisecond}, []float64{8}},
		// 3 -> 5 -> 8, then g = 0.5: floor(4 + 2) = 6, floor(3 + 1.73) = 4, floor(2 + 1.41) = 3
		"at most halves":     {[]time.Duration{time.Second, time.Second, slow, slow, slow}, []float64{5, 8, 6, 4, 3}},
		"holds without word": {[]time.Duration{time.Second, 0, 0, time.Second}, []float64{5, 5, 5, 8}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			g := measured(t, time.Second)
			var got []float64
			for _, w := range c.windows {
				if w > 0 {
					end(g, 3, whole(w, 3))
				}
				got = append(got, next(g))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGradientTakesTheMedian(t *testing.T) {
	g := measured(t, time.Second)
	end(g, 1, whole(time.Millisecond, 3))
	end(g, 1, whole(time.Second, 3))
	end(g, 1, whole(4*time.Second, 3))
	if got := next(g); got != 5 {
		t.Errorf("limit %v, want 5 as for the median of 1 s", got)
	}
}

func TestGradientLeavesOut(t *testing.T) {
	cases := map[string]admission.Ended{
		"what was cut":                    {Took: 10 * time.Millisecond},
		"what began before a measurement": {Took: time.Hour, Whole: true},
	}
	for name, e := range cases {
		t.Run(name, func(t *testing.T) {
			g := measured(t, time.Second)
			end(g, 10, e)
			if got := next(g); got != 3 {
				t.Errorf("limit %v, want 3 as without any answer", got)
			}
		})
	}
}

// TestGradientMeasuresAgain: after 60 s, and at most 15% more, the limit is 3
// until fifty answers have come, and then what it was.
func TestGradientMeasuresAgain(t *testing.T) {
	g := measured(t, time.Second)
	var limit float64
	periods := 0
	for ; periods < 200; periods++ {
		end(g, 1, whole(1250*time.Millisecond, 50)) // g = 1
		now := next(g)
		if now == 3 && limit > 3 {
			break
		}
		limit = now
	}
	if from, to := 120, 139; periods < from || periods > to {
		t.Errorf("measured again after %d periods, want %d to %d", periods, from, to)
	}
	end(g, 50, whole(2*time.Second, 3)) // sent before it began
	if got := next(g); got != 3 {
		t.Errorf("limit %v, want 3: these answers are of no use", got)
	}
	end(g, 50, whole(500*time.Millisecond, 3))
	if got := next(g); got != limit {
		t.Errorf("limit %v after the measurement, want %v as before", got, limit)
	}
}

// TestGradientAtTheFloor: five windows at the floor are a reason to doubt what an
// instance needs without load.
func TestGradientAtTheFloor(t *testing.T) {
	g := measured(t, 100*time.Millisecond)
	for range 6 { // the first one comes from outside a measurement
		end(g, 3, whole(4*time.Second, 3))
		if got := next(g); got != 3 {
			t.Fatalf("limit %v, want 3", got)
		}
	}
	end(g, 50, whole(400*time.Millisecond, 3))
	next(g)
	end(g, 3, whole(400*time.Millisecond, 3)) // as fast as without load now
	if got := next(g); got != 5 {
		t.Errorf("limit %v, want 5 after a new measurement", got)
	}
}

func TestGradient2(t *testing.T) {
	type window struct {
		took     time.Duration
		n        int
		inFlight int64
	}
	steady := window{time.Second, 10, 20}
	cases := map[string]struct {
		windows []window
		want    []float64
	}{
		// g = 1: L = 0.8*20 + 0.2*24 = 20.8, then 0.8 more each second; whole
		// requests only.
		"grows":                 {[]window{steady, steady, steady, steady}, []float64{20, 21, 22, 23}},
		"needs ten answers":     {[]window{{time.Second, 9, 20}, {time.Second, 9, 20}}, []float64{20, 20}},
		"needs half the limit":  {[]window{{time.Second, 10, 9}, {time.Second, 10, 9}}, []float64{20, 20}},
		"stays above its floor": {[]window{steady, {time.Minute, 10, 20}}, []float64{20, 20}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := admission.NewGradient2()
			var got []float64
			for _, w := range c.windows {
				end(l, w.n, whole(w.took, w.inFlight))
				next(l)
				got = append(got, next(l))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestGradient2Shrinks takes the limit to 100 at 1 s, and then 3 s: the average of
// the 101 windows is 1 + 2*2/601, g = 1.5*1.00666/3 = 0.50333, and
// L = 0.8*100 + 0.2*(50.333 + 4) = 90.87.
func TestGradient2Shrinks(t *testing.T) {
	l := admission.NewGradient2()
	second := func(took time.Duration) float64 {
		end(l, 10, whole(took, 200))
		next(l)
		return next(l)
	}
	for range 100 {
		second(time.Second)
	}
	if got := next(l); got != 100 {
		t.Fatalf("limit %v after 100 s, want 20 + 100*0.8", got)
	}
	next(l)
	if got := second(3 * time.Second); got != 90 {
		t.Errorf("limit %v, want 90", got)
	}
	for range 1000 {
		second(time.Second)
	}
	if got := next(l); got != 200 {
		t.Errorf("limit %v, want no more than 200", got)
	}
}

func TestAIMD(t *testing.T) {
	type step struct {
		n int
		e admission.Ended
	}
	cases := map[string]struct {
		steps []step
		want  float64
	}{
		"grows by one with each answer": {[]step{{15, whole(time.Second, 20)}}, 35},
		"needs half the limit":          {[]step{{10, whole(time.Second, 20)}, {5, whole(time.Second, 10)}}, 30},
		"a slow answer":                 {[]step{{30, whole(time.Second, 50)}, {1, whole(5*time.Second+1, 50)}}, 45},
		"just in time":                  {[]step{{30, whole(time.Second, 50)}, {1, whole(5*time.Second, 50)}}, 51},
		"a refusal":                     {[]step{{30, whole(time.Second, 50)}, {1, admission.Ended{Busy: true}}}, 45},
		"an answer that was cut":        {[]step{{30, whole(time.Second, 50)}, {1, admission.Ended{Took: time.Minute, InFlight: 50}}}, 50},
		"floor":                         {[]step{{1, admission.Ended{Busy: true}}}, 20},
		"ceiling":                       {[]step{{1000, whole(time.Second, 500)}}, 200},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			l := admission.NewAIMD()
			for _, s := range c.steps {
				end(l, s.n, s.e)
			}
			got := next(l)
			if diff := cmp.Diff(c.want, got, cmpopts.EquateApprox(0, 1e-9)); diff != "" || math.IsNaN(got) {
				t.Error(diff)
			}
		})
	}
}
