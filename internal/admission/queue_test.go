package admission_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// patient is the static configuration with budgets that no test reaches.
func patient(limit int64) admission.Config {
	cfg := static(limit)
	const long = 10_000 * time.Hour
	cfg.Classes.VIP.TTFT, cfg.Classes.Normal.TTFT, cfg.Classes.Batch.TTFT, cfg.Queue.UnstreamedWait = long, long, long, long
	return cfg
}

func TestASlotWithoutAWait(t *testing.T) {
	s := newStage(t, static(2), layout(pool("p", 2, "m")))
	seats := []*seat{s.enter(ask{}), s.enter(ask{}), s.enter(ask{}), s.enter(ask{})}
	for i, want := range []string{"p/0", "p/0", "p/1", "p/1"} {
		seats[i].want(want)
	}
	if l := seats[0].lease; l.Watch != s.g || l.Class != inference.Normal || l.Degraded != "" || l.MaxTokens != 0 {
		t.Errorf("got %+v", l)
	}
	for _, c := range seats {
		c.release()
	}
	if got := metric(t, s.g, `admitted_total{class="normal"}`); got != 4 {
		t.Errorf("%v admitted, want 4", got)
	}
	if got := metric(t, s.g, `wait_seconds{class="normal"}`); got != 0 {
		t.Errorf("%v waits, want none", got)
	}
	s.idle()
}

func TestASlotThatIsGivenBackGoesToWhoWaits(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	first := s.enter(ask{})
	second, third := s.enter(ask{}), s.enter(ask{})
	second.want("waits")
	third.want("waits")
	if n := s.g.Snapshot().Waiting; n != 2 {
		t.Errorf("%d wait, want 2", n)
	}
	s.pass(3 * time.Second)
	first.release()
	second.want("p/0")
	third.want("waits")
	if got := second.lease.Start(); !got.Equal(s.now) {
		t.Errorf("the lease begins %v, want %v", got, s.now)
	}
	second.end(inference.VerdictCanceled)
	third.want("p/0")
	third.release()
	if got := metric(t, s.g, `wait_seconds{class="normal"}`); got != 2 {
		t.Errorf("%v waits, want 2", got)
	}
	s.idle()
}

// TestAFirstTokenMakesRoom fills an instance's prompt window, which no limit of
// requests does.
func TestAFirstTokenMakesRoom(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 1, "m")))
	_, window, _ := s.instance("p", 0).Live.Limits()
	long := s.enter(ask{prompt: window})
	waits := s.enter(ask{prompt: 10})
	waits.want("waits")
	long.token()
	waits.want("p/0")
	long.release()
	waits.release()
	s.idle()
}

func TestAPromptLargerThanTheWindowRunsAlone(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 1, "m")))
	_, window, _ := s.instance("p", 0).Live.Limits()
	small := s.enter(ask{prompt: window})
	huge := s.enter(ask{prompt: 100 * window})
	huge.want("waits")
	small.token()
	huge.want("p/0")
	s.enter(ask{prompt: 1}).want("waits")
}

func TestALimitThatRisesMakesRoom(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	s.enter(ask{})
	waits := s.enter(ask{})
	s.instance("p", 0).Live.SetLimits(2, 0, 0) // as a limiter does in a tick; the next decision is 500 ms away
	waits.want("waits")
	s.pass(100 * time.Millisecond)
	waits.want("p/0")
}

func TestAnInstanceThatComesBackMakesRoom(t *testing.T) {
	for name, c := range map[string]struct{ away, back func(*fleet.Live, int64) }{
		"down": {func(l *fleet.Live, now int64) { l.SetDown(true, now) }, func(l *fleet.Live, now int64) { l.SetDown(false, now) }},
		"draining": {func(l *fleet.Live, _ int64) { l.SetDraining(true) }, func(l *fleet.Live, _ int64) {
			l.SetDraining(false)
		}},
		"cooling": {func(l *fleet.Live, now int64) { l.Cool(now + int64(time.Second)) }, func(*fleet.Live, int64) {}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, patient(1), layout(pool("p", 2, "m")))
			one, two := s.instance("p", 0).Live, s.instance("p", 1).Live
			s.enter(ask{}).want("p/0")
			c.away(two, s.now.UnixNano())
			waits := s.enter(ask{})
			waits.want("waits")
			s.pass(500 * time.Millisecond)
			waits.want("waits")
			c.back(two, s.now.UnixNano())
			s.pass(time.Second)
			waits.want("p/1")
			if one.InFlight() != 1 || two.InFlight() != 1 {
				t.Errorf("%d and %d in flight, want 1 each", one.InFlight(), two.InFlight())
			}
		})
	}
}

// TestEverythingDown is told at once while nothing waits, and soon when something
// does; what waits is served when an instance comes back.
func TestEverythingDown(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	live := s.instance("p", 0).Live
	run := s.enter(ask{})
	waits := s.enter(ask{})
	live.SetDown(true, s.now.UnixNano())
	run.end(inference.VerdictBroken)
	s.pass(200 * time.Millisecond)
	waits.want("waits")
	s.enter(ask{}).refused("unavailable")
	if got := metric(t, s.g, `refused_total{class="normal",reason="unavailable"}`); got != 1 {
		t.Errorf("%v refused as unavailable, want 1", got)
	}
	s.enter(ask{tried: []*fleet.Instance{s.instance("p", 0)}, again: true}).want("no_capacity")
	live.SetDown(false, s.now.UnixNano())
	s.pass(200 * time.Millisecond)
	waits.want("p/0")
	waits.release()
	live.SetDown(true, s.now.UnixNano())
	s.enter(ask{}).refused("down")
	s.idle()
}

func TestTheQueueIsBounded(t *testing.T) {
	t.Run("requests", func(t *testing.T) {
		cfg := patient(1)
		cfg.Queue.Requests = 3
		s := newStage(t, cfg, layout(pool("p", 1, "m"), pool("q", 1, "n")))
		s.enter(ask{})
		for range 3 {
			s.enter(ask{}).want("waits")
		}
		e := s.enter(ask{}).refused("queue_full")
		if e.Code != inference.CodeOverloaded || e.Position != 4 || e.Predicted <= 0 {
			t.Errorf("got %+v", e)
		}
		s.enter(ask{model: "n"}).want("q/0") // there is room: no place in the queue is needed
		s.enter(ask{model: "n"}).refused("queue_full")
		s.enter(ask{model: "n", again: true}).want("waits") // its request has its place already
	})
	t.Run("bytes", func(t *testing.T) {
		cfg := patient(1)
		cfg.Queue.Bytes = 10
		s := newStage(t, cfg, layout(pool("p", 1, "m")))
		run := s.enter(ask{body: "0123456789abcdef"}) // does not wait
		s.enter(ask{body: "0123456"}).want("waits")
		s.enter(ask{body: "0123"}).refused("queue_full")
		last := s.enter(ask{body: "012"})
		last.want("waits")
		if n := s.g.Snapshot().Bytes; n != 10 {
			t.Errorf("%d bytes wait, want 10", n)
		}
		last.leave()
		run.release()
		s.enter(ask{body: "0123456789"}).want("waits")
	})
	t.Run("nothing waits", func(t *testing.T) {
		cfg := patient(1)
		cfg.Queue.Requests = 0
		s := newStage(t, cfg, layout(pool("p", 1, "m")))
		run := s.enter(ask{})
		s.enter(ask{}).refused("queue_full")
		run.release()
		s.idle()
	})
}

func TestAWaitEndsWithItsBudget(t *testing.T) {
	cfg := static(1)
	s := newStage(t, cfg, layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	vip := s.enter(ask{class: inference.VIP})
	normal := s.enter(ask{})
	s.pass(cfg.Classes.VIP.TTFT)
	vip.want("waits")
	s.pass(100 * time.Millisecond)
	e := vip.refused("wait_expired")
	if e.Code != inference.CodeOverloaded {
		t.Errorf("got %+v", e)
	}
	normal.want("waits")
	s.pass(cfg.Classes.Normal.TTFT)
	normal.refused("wait_expired")
	snap := s.g.Snapshot()
	if want := 2 * (100 + 256.0); snap.Pools[0].Unmet != want {
		t.Errorf("%v tokens are unmet, want %v", snap.Pools[0].Unmet, want)
	}
	run.release()
	s.idle()
}

// TestAWaitEndsEarlierWhereFirstTokensAreSlow: what is left must do for twice their
// time.
func TestAWaitEndsEarlierWhereFirstTokensAreSlow(t *testing.T) {
	for first, want := range map[time.Duration]time.Duration{
		time.Second: 8 * time.Second, 3 * time.Second: 4 * time.Second, time.Minute: 2500 * time.Millisecond,
	} {
		s := newStage(t, static(1), layout(pool("p", 1, "m")))
		s.enter(ask{}).lease.FirstToken(s.now, first, true)
		waits := s.enter(ask{})
		s.pass(want)
		waits.want("waits")
		s.pass(100 * time.Millisecond)
		waits.refused("wait_expired")
	}
}

// TestNothingIsSentBehindItsBudget holds between two ticks, too.
func TestNothingIsSentBehindItsBudget(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	vip, normal := s.enter(ask{class: inference.VIP}), s.enter(ask{})
	s.now = s.now.Add(1050 * time.Millisecond)
	run.release()
	vip.refused("wait_expired")
	normal.want("p/0")
}

func TestBudgets(t *testing.T) {
	for name, c := range map[string]struct {
		class  inference.Class
		change func(*stage, *inference.Request)
		want   time.Duration
	}{
		"class":          {inference.Normal, func(*stage, *inference.Request) {}, 10 * time.Second},
		"idle":           {inference.Idle, func(*stage, *inference.Request) {}, time.Minute},
		"asked":          {inference.Batch, func(_ *stage, r *inference.Request) { r.Wait = 2 * time.Second }, 2 * time.Second},
		"asked for more": {inference.VIP, func(_ *stage, r *inference.Request) { r.Wait = 30 * time.Second }, 30 * time.Second},
		"patience":       {inference.Normal, func(_ *stage, r *inference.Request) { r.Patience = 3 * time.Second }, 3 * time.Second},
		"patience only shortens": {inference.Normal, func(_ *stage, r *inference.Request) {
			r.Patience, r.Wait = time.Hour, 4*time.Second
		}, 4 * time.Second},
		"deadline":          {inference.Normal, func(s *stage, r *inference.Request) { r.Deadline = s.now.Add(1500 * time.Millisecond) }, 1500 * time.Millisecond},
		"no deadline":       {inference.Normal, func(_ *stage, r *inference.Request) { r.Deadline = time.Time{} }, 10 * time.Second},
		"not streamed":      {inference.Batch, func(_ *stage, r *inference.Request) { r.Stream = false }, 5 * time.Second},
		"past its deadline": {inference.Normal, func(s *stage, r *inference.Request) { r.Deadline = s.now.Add(-time.Second) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := static(1)
			cfg.Queue.UnstreamedWait = 5 * time.Second
			s := newStage(t, cfg, layout(pool("p", 1, "m")))
			s.enter(ask{})
			waits := s.enter(ask{class: c.class, change: func(r *inference.Request) { c.change(s, r) }})
			s.pass(c.want)
			waits.want("waits")
			s.pass(100 * time.Millisecond)
			waits.refused("wait_expired")
		})
	}
}

func TestAClientThatLeaves(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	one, two, three := s.enter(ask{class: inference.VIP}), s.enter(ask{}), s.enter(ask{again: true})
	one.leave()
	three.leave()
	if n := s.g.Snapshot().Waiting; n != 1 {
		t.Errorf("%d wait, want 1", n)
	}
	run.release()
	two.want("p/0")
	two.waiter.Leave(s.now) // it left while its slot was on its way
	for class, want := range map[string]float64{"vip": 1, "normal": 1} {
		if got := metric(t, s.g, fmt.Sprintf("left_total{class=%q}", class)); got != want {
			t.Errorf("%s: %v left, want %v", class, got, want)
		}
	}
	if one.outcomes != 0 || three.outcomes != 0 {
		t.Error("who has left was told something")
	}
	s.idle()
}

func TestTheInstanceIsPickedWhenASlotFrees(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 3, "m")))
	runs := []*seat{s.enter(ask{}), s.enter(ask{}), s.enter(ask{})}
	waits := s.enter(ask{})
	runs[2].release()
	waits.want("p/2")
	runs[0].release()
	runs[1].release()
	waits.release()
	s.idle()
}

func TestSpill(t *testing.T) {
	l := layout(pool("near", 1, "m"))
	l.Regions = append(l.Regions, fleet.RegionLayout{Name: "far", Pools: []fleet.PoolLayout{pool("other", 1, "m")}})
	s := newStage(t, patient(1), l)
	near := s.enter(ask{pools: []string{"near", "other"}})
	near.want("near/0")
	far := s.enter(ask{pools: []string{"near", "other"}})
	far.want("other/0")
	one, two := s.enter(ask{pools: []string{"near", "other"}}), s.enter(ask{pools: []string{"near", "other"}})
	far.release()
	one.want("other/0")
	near.release()
	two.want("near/0")
	one.release()
	two.release()
	s.idle()
}

func TestTwoLanesShareAPool(t *testing.T) {
	cfg := patient(1)
	s := newStage(t, cfg, layout(pool("a", 1, "m"), pool("b", 1, "m", "n")))
	wide := func(tenant string) *seat { return s.enter(ask{tenant: tenant, pools: []string{"a", "b"}}) }
	narrow := func(tenant string) *seat { return s.enter(ask{tenant: tenant, model: "n", pools: []string{"b"}}) }
	runs := []*seat{wide("t"), wide("t")}
	w1, n1 := wide("w"), narrow("n")
	w2, n2 := wide("w"), narrow("n")
	runs[1].release() // b frees: nobody was served more than the other
	if w1.waits() == n1.waits() {
		t.Errorf("got %s and %s, want one of them to run", w1.at(), n1.at())
	}
	first, other := w1, n1
	if w1.waits() {
		first, other = n1, w1
	}
	first.want("b/0")
	first.release() // b frees again: now it is the other tenant's turn
	other.want("b/0")
	runs[0].release() // a frees: only one of the lanes may use it
	w2.want("a/0")
	n2.want("waits")
	other.release()
	n2.want("b/0")
	w2.release()
	n2.release()
	s.idle()
}

func TestAFallbackModelStandsIn(t *testing.T) {
	l := layout(pool("p", 1, "m"), pool("q", 1, "small"))
	t.Run("not while the model is only full", func(t *testing.T) {
		s := newStage(t, patient(1), l)
		run := s.enter(ask{fallback: "q"})
		waits := s.enter(ask{fallback: "q"})
		s.pass(time.Second)
		waits.want("waits")
		run.release()
		waits.want("p/0")
	})
	t.Run("at once when the model cannot be had", func(t *testing.T) {
		s := newStage(t, patient(1), l)
		s.instance("p", 0).Live.SetDown(true, s.now.UnixNano())
		c := s.enter(ask{fallback: "q"})
		c.want("q/0")
		if c.lease.Candidate.Fallback != "small" {
			t.Errorf("got %+v", c.lease.Candidate)
		}
		s.enter(ask{fallback: "q"}).want("waits") // for the one that stands in
	})
	t.Run("when the model is lost while requests wait", func(t *testing.T) {
		s := newStage(t, patient(1), l)
		run := s.enter(ask{fallback: "q"})
		one, two := s.enter(ask{fallback: "q"}), s.enter(ask{fallback: "q"})
		s.instance("p", 0).Live.SetDown(true, s.now.UnixNano())
		run.end(inference.VerdictBroken)
		s.pass(100 * time.Millisecond)
		one.want("q/0")
		one.release()
		two.want("q/0")
		two.release()
		s.idle()
	})
	t.Run("for an attempt that has tried the model", func(t *testing.T) {
		s := newStage(t, patient(1), l)
		run := s.enter(ask{fallback: "q"})
		s.enter(ask{fallback: "q"}).want("waits")
		s.enter(ask{fallback: "q", again: true, tried: []*fleet.Instance{run.lease.Instance}}).want("q/0")
	})
	t.Run("on the rung cheaper_model", func(t *testing.T) {
		cfg := static(1)
		cfg.Brownout.CheaperModel = 0.01
		s := newStage(t, cfg, l)
		s.enter(ask{fallback: "q"})
		waits := s.enter(ask{fallback: "q"})
		waits.want("waits")
		s.pass(100 * time.Millisecond)
		if s.g.Step() != admission.StepCheaperModel {
			t.Fatalf("the step is %v", s.g.Step())
		}
		waits.want("q/0")
	})
}

// TestWhatStandsInHoldsNobodyUp has more heads that may not use a pool than one round
// passes over, all of them of tenants that were served less.
func TestWhatStandsInHoldsNobodyUp(t *testing.T) {
	pools := []fleet.PoolLayout{pool("q", 1, "small")}
	for i := range 6 {
		pools = append(pools, pool(fmt.Sprintf("p%d", i), 1, fmt.Sprintf("m%d", i)))
	}
	s := newStage(t, patient(1), layout(pools...))
	run := s.enter(ask{model: "small", tenant: "own"})
	served, waits := s.enter(ask{model: "small", tenant: "own", prompt: 10_000}), s.enter(ask{model: "small", tenant: "own"})
	run.release()
	served.want("q/0")
	for i := range 6 {
		for _, class := range []inference.Class{inference.Normal, inference.VIP, inference.Normal, inference.Batch} {
			s.enter(ask{model: fmt.Sprintf("m%d", i), class: class, tenant: fmt.Sprint("other ", i), fallback: "q"})
		}
	}
	if n := s.g.Snapshot().Waiting; n != 1+6*3 {
		t.Fatalf("%d wait", n)
	}
	served.release()
	waits.want("q/0")
}

func TestAttemptsAfterTheFirst(t *testing.T) {
	t.Run("go first", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		run := s.enter(ask{})
		vip := s.enter(ask{class: inference.VIP})
		again := s.enter(ask{class: inference.Batch, again: true})
		later := s.enter(ask{class: inference.VIP, again: true})
		run.release()
		again.want("p/0")
		again.release()
		later.want("p/0")
		later.release()
		vip.want("p/0")
		vip.release()
		s.idle()
	})
	t.Run("do not go where they were", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 2, "m")))
		runs := []*seat{s.enter(ask{}), s.enter(ask{})}
		again := s.enter(ask{tried: []*fleet.Instance{s.instance("p", 0)}})
		normal := s.enter(ask{})
		runs[0].release()
		again.want("waits")
		normal.want("p/0")
		runs[1].release()
		again.want("p/1")
	})
	t.Run("are not refused by a prediction", func(t *testing.T) {
		s := newStage(t, static(1), layout(pool("p", 1, "m")))
		run := s.enter(ask{})
		for range 20 {
			s.enter(ask{})
		}
		s.enter(ask{}).refused("predicted_wait")
		again := s.enter(ask{again: true})
		s.pass(59 * time.Minute)
		again.want("waits")
		s.pass(2 * time.Minute)
		again.refused("wait_expired") // its deadline
		run.release()
		s.idle()
	})
	t.Run("without a deadline wait on", func(t *testing.T) {
		s := newStage(t, static(1), layout(pool("p", 1, "m")))
		s.enter(ask{})
		again := s.enter(ask{again: true, change: func(r *inference.Request) { r.Deadline = time.Time{} }})
		s.pass(2 * time.Hour)
		again.want("waits")
	})
	t.Run("that have tried everything do not wait", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 2, "m")))
		runs := []*seat{s.enter(ask{}), s.enter(ask{})}
		s.enter(ask{})
		all := []*fleet.Instance{s.instance("p", 0), s.instance("p", 1)}
		s.enter(ask{tried: all, again: true}).want("no_capacity")
		one := s.enter(ask{tried: all[:1], again: true})
		one.want("waits")
		s.instance("p", 1).Live.SetDown(true, s.now.UnixNano()) // the only one that it has not tried
		runs[0].release()
		one.want("no_capacity")
		runs[1].release()
	})
	t.Run("hold up nobody whom they cannot follow", func(t *testing.T) {
		s := newStage(t, patient(20), layout(pool("p", 2, "m")))
		var runs []*seat
		for range 40 {
			runs = append(runs, s.enter(ask{}))
		}
		waits := s.enter(ask{})
		for range 30 {
			s.enter(ask{tried: []*fleet.Instance{s.instance("p", 0)}, again: true}).want("waits")
		}
		runs[0].release()
		waits.want("p/0")
	})
	t.Run("of other lanes go by their time", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m", "n")))
		run := s.enter(ask{})
		n1 := s.enter(ask{model: "n", again: true})
		s.pass(100 * time.Millisecond)
		m1 := s.enter(ask{again: true})
		s.pass(100 * time.Millisecond)
		n2 := s.enter(ask{model: "n", again: true})
		for _, want := range []*seat{n1, m1, n2} {
			run.release()
			want.want("p/0")
			run = want
		}
	})
}

func TestTheFleetChangesWhileRequestsWait(t *testing.T) {
	t.Run("an instance more", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		s.enter(ask{})
		one := s.enter(ask{})
		s.pass(time.Millisecond)
		two := s.enter(ask{})
		s.pass(time.Millisecond)
		three := s.enter(ask{})
		s.layout(layout(pool("p", 3, "m")))
		s.pass(100 * time.Millisecond)
		one.want("p/1")
		two.want("p/2")
		three.want("waits")
	})
	t.Run("an instance more, seen by a newcomer", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		s.enter(ask{})
		s.layout(layout(pool("p", 2, "m")))
		s.enter(ask{}).want("p/1")
		s.enter(ask{}).want("waits") // the new one has its limit at once
	})
	t.Run("an instance less", func(t *testing.T) {
		two := layout(pool("p", 2, "m"))
		s := newStage(t, patient(1), two)
		runs := []*seat{s.enter(ask{}), s.enter(ask{})}
		one, two2 := s.enter(ask{}), s.enter(ask{})
		s.layout(layout(pool("p", 1, "m")))
		s.pass(100 * time.Millisecond)
		runs[1].release() // of the one that is gone
		one.want("waits")
		runs[0].release()
		one.want("p/0")
		one.release()
		two2.want("p/0")
		two2.release()
		s.idle()
	})
	t.Run("all instances replaced", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		run := s.enter(ask{})
		waits := s.enter(ask{})
		other := pool("p", 0, "m")
		other.Static = []fleet.Target{{URL: "http://new:1"}}
		s.layout(layout(other))
		s.pass(100 * time.Millisecond)
		waits.want("p/0")
		if got := waits.lease.Instance.URL.Host; got != "new:1" {
			t.Errorf("it runs at %s", got)
		}
		run.release()
		waits.release()
		s.idle()
	})
	t.Run("a pool that is taken out and comes back", func(t *testing.T) {
		l := layout(pool("p", 1, "m"))
		s := newStage(t, patient(1), l)
		s.enter(ask{}).release()
		s.instance("p", 0).Live.SetDown(true, s.now.UnixNano())
		s.layout(layout())
		s.pass(time.Second)
		s.layout(l)
		s.pass(time.Second)
		run := s.enter(ask{})
		waits := s.enter(ask{})
		waits.want("waits")
		run.release()
		waits.want("p/0")
		waits.release()
		if n := len(s.g.Snapshot().Pools); n != 1 {
			t.Errorf("%d pools, want 1", n)
		}
		s.idle()
	})
	t.Run("a pool that comes back while requests wait", func(t *testing.T) {
		l := layout(pool("p", 1, "m"))
		s := newStage(t, patient(1), l)
		run := s.enter(ask{})
		waits := s.enter(ask{})
		s.layout(layout())
		s.pass(100 * time.Millisecond)
		run.release()
		s.layout(l)
		s.pass(100 * time.Millisecond)
		if waits.waits() {
			t.Fatalf("it still waits")
		}
		waits.release()
		s.idle()
	})
}

// reentrant is a picker that calls back once.
type reentrant struct{ do func() }

// Pick implements fleet.Picker.
func (r *reentrant) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	if do := r.do; do != nil {
		r.do = nil
		do()
	}
	return testkit.First{}.Pick(q, nodes)
}

// TestALaneIsForgottenBetweenTwoSteps drops a request's lane after it was looked up
// and before the request joins it.
func TestALaneIsForgottenBetweenTwoSteps(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	run.want("p/0")
	req, plan := s.plan(ask{model: "x", pools: []string{"p"}})
	picker := &reentrant{do: func() {
		s.pass(100 * time.Millisecond)
		for i := range 1100 {
			s.enter(ask{model: fmt.Sprintf("m%d", i), pools: []string{"p"}}).leave()
		}
	}}
	plan.Candidates[0].Picker = picker
	c := &seat{s: s, req: req, plan: plan}
	_, w, err := s.g.Enter(s.now, plan, nil, func(w *admission.Waiter) { c.ended(w.Outcome()) })
	if w == nil || err != nil {
		t.Fatalf("got %v, %v; want a place", w, err)
	}
	if err := s.g.Check(); err != nil {
		t.Fatal(err)
	}
	run.release()
	c.want("p/0")
	c.release()
	s.idle()
}

// TestLanesAreBounded comes with more models than there are lanes.
func TestLanesAreBounded(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	first := s.enter(ask{model: "keeps its lane", pools: []string{"p"}})
	for i := range 1500 {
		s.enter(ask{model: fmt.Sprintf("m%d", i), pools: []string{"p"}}).leave()
	}
	if n := s.g.Lanes(); n > 1024 {
		t.Errorf("%d lanes, want at most 1024", n)
	}
	run.release()
	first.want("p/0")
	first.release()
	s.idle()
}

// TestAccountsAreBounded comes with more tenants than there are accounts.
func TestAccountsAreBounded(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	first := s.enter(ask{tenant: "keeps its account"})
	for i := range 17_000 {
		s.enter(ask{tenant: fmt.Sprintf("t%d", i)}).leave()
	}
	if n := s.g.Snapshot().Accounts; n > 16_384 {
		t.Errorf("%d accounts, want at most 16384", n)
	}
	run.release()
	first.want("p/0")
	first.release()
	s.idle()
}
