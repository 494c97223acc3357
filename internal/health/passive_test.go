package health_test

import (
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/inference"
)

func TestEjection(t *testing.T) {
	cases := map[string]struct {
		do   func(r *rig)
		want fleet.Status
	}{
		"three failures": {func(r *rig) {
			for range 3 {
				r.attempt("a:1", broken)
			}
		}, fleet.Ejected},
		"two failures": {func(r *rig) { r.attempt("a:1", broken); r.attempt("a:1", broken) }, fleet.Open},
		"a success between": {func(r *rig) {
			for range 10 {
				r.attempt("a:1", broken)
				r.attempt("a:1", broken)
				r.attempt("a:1", nil)
			}
		}, fleet.Open},
		"too far apart": {func(r *rig) {
			for range 10 {
				r.attempt("a:1", broken)
				time.Sleep(5*time.Second + 1)
			}
		}, fleet.Open},
		"close enough": {func(r *rig) {
			r.attempt("a:1", broken)
			time.Sleep(30 * time.Second)
			for range 3 {
				r.attempt("a:1", broken)
				time.Sleep(time.Second)
			}
		}, fleet.Ejected},
		"no connection counts at once": {func(r *rig) { r.attempt("a:1", refused) }, fleet.Ejected},
		"others' faults count for nothing": {func(r *rig) {
			for range 20 {
				r.attempt("a:1", &inference.Failure{Verdict: inference.VerdictYours})
				r.attempt("a:1", &inference.Failure{Verdict: inference.VerdictCanceled})
			}
		}, fleet.Open},
		"busy does not break": {func(r *rig) {
			for range 20 {
				r.attempt("a:1", busy)
				time.Sleep(5 * time.Second)
			}
		}, fleet.Open},
		"switched off": {func(r *rig) {
			r.apply(func(p *health.Pool) { p.Config.Passive.MaxFails = 0 })
			for range 20 {
				r.attempt("a:1", refused)
			}
		}, fleet.Open},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, nil, func(r *rig) {
				c.do(r)
				r.expect("a:1", c.want)
				r.expect("b:1", fleet.Open)
			}, "a:1", "b:1")
		})
	}
}

func TestEjectionsGrowAndEnd(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		old := r.lease("a:1") // a stream that outlives the ejection
		r.attempt("a:1", refused)
		wait := 5 * time.Second
		for range 8 { // 5 s doubled each time, at most 5 min
			time.Sleep(wait - time.Nanosecond)
			r.expect("a:1", fleet.Ejected)
			time.Sleep(time.Nanosecond)
			probe := r.lease("a:1")
			if !probe.Probe() {
				t.Fatal("not the probe of a half-open instance")
			}
			r.expect("a:1", fleet.Ejected)
			r.end(probe, broken)
			wait = min(2*wait, 5*time.Minute)
		}
		time.Sleep(wait)
		r.attempt("a:1", &inference.Failure{Verdict: inference.VerdictCanceled}) // frees the place
		r.end(old, nil)                                                          // proves nothing
		if !r.instance("a:1").Live.Ejected() {
			t.Error("readmitted by a request from before the ejection")
		}
		r.attempt("a:1", nil)
		r.expect("a:1", fleet.Open)
		if r.instance("a:1").Live.Ejected() {
			t.Error("still half-open")
		}
		r.expectMetric("ejections_total pool=eu/gpu reason=connect 1", "ejections_total pool=eu/gpu reason=probe 8", "readmissions_total pool=eu/gpu 1")
		if r.log.Count("ejected") != 9 || r.log.Count("readmitted") != 1 {
			t.Errorf("log:\n%s", r.log.String())
		}
		// It fails again at once: the next ejection is as long as the last ones.
		r.attempt("a:1", refused)
		time.Sleep(wait - time.Second)
		r.expect("a:1", fleet.Ejected)
		time.Sleep(time.Second)
		r.attempt("a:1", nil)
		// It stays in for long enough: the next one is short.
		time.Sleep(wait + time.Second)
		r.attempt("a:1", refused)
		time.Sleep(5 * time.Second)
		r.expect("a:1", fleet.Open)
	}, "a:1", "b:1")
}

func TestFailuresFromBeforeDoNotLengthen(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		var streams []*fleet.Lease
		for range 50 {
			streams = append(streams, r.lease("a:1"))
		}
		for _, l := range streams { // one crash cuts them all
			r.end(l, broken)
		}
		r.expectMetric("ejections_total pool=eu/gpu reason=failures 1")
		time.Sleep(5 * time.Second)
		r.expect("a:1", fleet.Open)
	}, "a:1", "b:1")
}

func TestTheLastInstanceStays(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.attempt("a:1", refused)
		r.instance("c:1").Live.SetDown(true, 0)
		r.instance("d:1").Live.SetDraining(true)
		for range 10 {
			r.attempt("b:1", refused)
		}
		r.expect("b:1", fleet.Open)
		r.expectMetric("panic pool=eu/gpu 1", "instance_up instance=eu/gpu/a:1 pool=eu/gpu 0", "instance_up instance=eu/gpu/b:1 pool=eu/gpu 1")
		if n := r.log.Count("last one of its pool"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		r.attempt("b:1", nil)
		r.expectMetric("panic pool=eu/gpu 0")
		r.attempt("b:1", refused)
		r.expectMetric("panic pool=eu/gpu 1")
		r.instance("c:1").Live.SetDown(false, 0)
		r.expectMetric("panic pool=eu/gpu 0")
		r.attempt("b:1", refused) // another is left now
		r.expect("b:1", fleet.Ejected)
		r.attempt("c:1", refused)
		r.expect("c:1", fleet.Open)
		r.apply(func(p *health.Pool) { p.Config.Passive.KeepLast = false })
		r.attempt("c:1", refused)
		r.expect("c:1", fleet.Ejected)
		l := r.lease("c:1") // nothing else: the fleet uses it all the same
		if !l.Panic {
			t.Error("want a lease in panic")
		}
		r.end(l, nil)
		r.expect("c:1", fleet.Open)
	}, "a:1", "b:1", "c:1", "d:1")
}

func TestCoolDowns(t *testing.T) {
	cools := func(r *rig, d time.Duration) {
		t.Helper()
		time.Sleep(d - time.Nanosecond)
		r.expect("a:1", fleet.Cooling)
		time.Sleep(time.Nanosecond)
		r.expect("a:1", fleet.Open)
	}
	bubble(t, nil, func(r *rig) {
		burst := []*fleet.Lease{r.lease("a:1"), r.lease("a:1"), r.lease("a:1")}
		for _, l := range burst { // one cool-down, not three
			r.end(l, busy)
		}
		for d := 250 * time.Millisecond; d < 20*time.Second; d *= 2 {
			cools(r, min(d, 5*time.Second))
			r.attempt("a:1", busy)
		}
		cools(r, 5*time.Second)
		r.attempt("a:1", nil)
		r.attempt("a:1", busy)
		cools(r, 250*time.Millisecond)
		r.attempt("a:1", &inference.Failure{Verdict: inference.VerdictBusy, RetryAfter: 7 * time.Second})
		cools(r, 7*time.Second)
		if n := r.log.Count("level"); n != 0 {
			t.Errorf("busy answers were logged:\n%s", r.log.String())
		}
	}, "a:1")
	bubble(t, nil, func(r *rig) {
		for d := time.Minute; d < 40*time.Minute; d *= 2 {
			r.attempt("a:1", spent)
			cools(r, min(d, 10*time.Minute))
		}
		l := r.lease("a:1")
		r.attempt("a:1", busy)
		r.end(l, spent) // an own cause, counted on its own
		cools(r, 10*time.Minute)
		r.expectMetric("cooldowns_total pool=eu/gpu reason=busy 1", "cooldowns_total pool=eu/gpu reason=spent 7")
		if n := r.log.Count("spent"); n != 1 {
			t.Errorf("logged %d times", n)
		}
	}, "a:1")
}

func TestJitterStaysWithinItsShare(t *testing.T) {
	bubble(t, func(p *health.Pool) { p.Config.Passive.Jitter = 0.2 }, func(r *rig) {
		for range 50 {
			r.attempt("a:1", refused)
			time.Sleep(4*time.Second - 1)
			r.expect("a:1", fleet.Ejected)
			time.Sleep(time.Second + 1)
			r.expect("a:1", fleet.Open)
			r.attempt("a:1", nil)
			time.Sleep(time.Minute)
			r.attempt("a:1", &inference.Failure{Verdict: inference.VerdictBusy, RetryAfter: time.Second})
			time.Sleep(time.Second) // never before the instance asked
			if r.status("a:1") != fleet.Cooling {
				t.Fatal("came back before it was asked to")
			}
			time.Sleep(200 * time.Millisecond)
			r.expect("a:1", fleet.Open)
			r.attempt("a:1", nil)
		}
	}, "a:1", "b:1")
}

func BenchmarkObserveSuccess(b *testing.B) {
	r := newRig(b, nil, "a:1")
	l := r.lease("a:1")
	b.ReportAllocs()
	for b.Loop() {
		r.Observe(l, nil)
	}
}
