package admission_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// calmAfter is how long a rung is kept when the pressure is gone, and a tick.
const calmAfter = 3*time.Second + 100*time.Millisecond

// pressed is a stage at whose only slot a request runs, with pressure on all rungs:
// one waits at a rate that nobody knows.
func pressed(t *testing.T, change func(*admission.Config)) (*stage, *seat, *seat) {
	t.Helper()
	cfg := static(1)
	if change != nil {
		change(&cfg)
	}
	s := newStage(t, cfg, layout(pool("p", 1, "m"), pool("q", 1, "small")))
	run := s.enter(ask{class: inference.Batch})
	waits := s.enter(ask{class: inference.VIP, tenant: "waits"})
	waits.want("waits")
	return s, run, waits
}

func TestTheLadderIsClimbedAtOnceAndLeftARungAtATime(t *testing.T) {
	s, _, waits := pressed(t, nil)
	s.pass(100 * time.Millisecond)
	if got := s.g.Step(); got != admission.StepCheaperModel {
		t.Fatalf("the step is %v", got)
	}
	if p := s.g.Snapshot().Pressure; p < 0.85 || metric(t, s.g, "pressure") != p || metric(t, s.g, "brownout_step") != 3 {
		t.Errorf("the pressure is %v", p)
	}
	waits.leave()
	for _, want := range []admission.Step{admission.StepCheaperModel, admission.StepCapTokens, admission.StepYield, admission.StepNone} {
		if got := s.g.Step(); got != want {
			t.Errorf("the step is %v, want %v", got, want)
		}
		s.pass(calmAfter - 200*time.Millisecond)
		if got := s.g.Step(); got != want {
			t.Errorf("the step is %v already, want %v", got, want)
		}
		s.pass(200 * time.Millisecond)
	}
	if p := s.g.Snapshot().Pressure; p != 0 || s.g.Snapshot().Step != admission.StepNone {
		t.Errorf("pressure %v, step %v", p, s.g.Snapshot().Step)
	}
}

// TestARungIsKeptWhilePressureComesAndGoes so that it does not flap.
func TestARungIsKeptWhilePressureComesAndGoes(t *testing.T) {
	s, _, waits := pressed(t, nil)
	s.pass(100 * time.Millisecond)
	for range 10 {
		waits.leave()
		s.pass(2 * time.Second)
		if got := s.g.Step(); got != admission.StepCheaperModel {
			t.Fatalf("the step is %v", got)
		}
		waits = s.enter(ask{class: inference.VIP, tenant: "waits"})
		s.pass(100 * time.Millisecond)
	}
}

// TestBatchIsNoPressure because it is what yields.
func TestBatchIsNoPressure(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m")))
	s.enter(ask{})
	s.enter(ask{class: inference.Batch}).want("waits")
	s.enter(ask{class: inference.Idle}).want("waits")
	s.pass(100 * time.Millisecond)
	if p := s.g.Snapshot().Pressure; p != 0 || s.g.Step() != admission.StepNone {
		t.Errorf("pressure %v, step %v", p, s.g.Step())
	}
}

// learnLengths lets n answers of the model end, of 1 to n tokens.
func learnLengths(s *stage, n int) {
	s.t.Helper()
	for i := range n {
		c := s.enter(ask{})
		c.lease.Usage = inference.Usage{PromptTokens: 100, CompletionTokens: int64(i + 1)}
		c.release()
	}
	s.pass(time.Minute) // the rate at which they went is forgotten
}

func TestTheCapIsForThoseWhoTakeIt(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*inference.Request)
		answers int
		want    int64 // 0 is none
		note    string
	}{
		"took it":                 {func(r *inference.Request) { r.DegradeOK = true }, 200, 153, "max_tokens=153"},
		"asked for more":          {func(r *inference.Request) { r.DegradeOK, r.MaxTokens = true, 1000 }, 200, 153, "max_tokens=153"},
		"asked for less":          {func(r *inference.Request) { r.DegradeOK, r.MaxTokens = true, 10 }, 200, 0, ""},
		"did not take it":         {func(*inference.Request) {}, 200, 0, ""},
		"embeddings":              {func(r *inference.Request) { r.DegradeOK, r.Surface = true, inference.Embeddings }, 200, 0, ""},
		"too few answers to tell": {func(r *inference.Request) { r.DegradeOK = true }, 49, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, static(1), layout(pool("p", 1, "m")))
			learnLengths(s, c.answers)
			run := s.enter(ask{})
			s.enter(ask{class: inference.VIP})
			s.pass(100 * time.Millisecond)
			if s.g.Step() < admission.StepCapTokens {
				t.Fatalf("the step is %v", s.g.Step())
			}
			again := s.enter(ask{again: true, change: c.change})
			run.release()
			if again.want("p/0"); t.Failed() {
				return
			}
			if again.lease.MaxTokens != c.want || again.lease.Degraded != c.note {
				t.Errorf("got %d tokens, %q; want %d, %q", again.lease.MaxTokens, again.lease.Degraded, c.want, c.note)
			}
			if got, want := metric(t, s.g, "capped_total"), float64(min(c.want, 1)); got != want {
				t.Errorf("%v capped, want %v", got, want)
			}
		})
	}
}

// TestEachRungIsAnnounced in the words of X-Spillway-Degraded.
func TestEachRungIsAnnounced(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m")))
	learnLengths(s, 200)
	run := s.enter(ask{})
	s.enter(ask{class: inference.VIP})
	s.pass(100 * time.Millisecond)
	again := s.enter(ask{again: true, class: inference.Batch, change: func(r *inference.Request) { r.DegradeOK = true }})
	run.release()
	for _, want := range []string{"yield", "max_tokens=153"} {
		if !strings.Contains(again.lease.Degraded, want) {
			t.Errorf("batch with a cap was told %q, want %q in it", again.lease.Degraded, want)
		}
	}
}

// TestARungThatIsNeverTaken does nothing on those above it either.
func TestARungThatIsNeverTaken(t *testing.T) {
	t.Run("yield", func(t *testing.T) {
		s, run, waits := pressed(t, func(c *admission.Config) { c.Brownout.Yield = 0 })
		s.pass(100 * time.Millisecond)
		if s.g.Step() != admission.StepCheaperModel {
			t.Fatalf("the step is %v", s.g.Step())
		}
		batch := s.enter(ask{again: true, class: inference.Batch})
		run.release()
		if batch.lease.Degraded != "" {
			t.Errorf("batch was told %q", batch.lease.Degraded)
		}
		waits.leave()
	})
	t.Run("cap_tokens", func(t *testing.T) {
		cfg := static(1)
		cfg.Brownout.CapTokens = 0
		s := newStage(t, cfg, layout(pool("p", 1, "m")))
		learnLengths(s, 200)
		run := s.enter(ask{})
		s.enter(ask{class: inference.VIP})
		s.pass(100 * time.Millisecond)
		again := s.enter(ask{again: true, change: func(r *inference.Request) { r.DegradeOK = true }})
		run.release()
		if again.lease.MaxTokens != 0 {
			t.Errorf("capped to %d", again.lease.MaxTokens)
		}
	})
	t.Run("cheaper_model", func(t *testing.T) {
		s, _, waits := pressed(t, func(c *admission.Config) { c.Brownout.CheaperModel = 0 })
		s.pass(100 * time.Millisecond)
		if s.g.Step() != admission.StepCapTokens {
			t.Errorf("the step is %v", s.g.Step())
		}
		waits.leave()
	})
}

func TestTheStepOfAnEmergencyHoldsWithoutPressure(t *testing.T) {
	cfg := static(1)
	cfg.Brownout.CapTokens = 0 // never by pressure
	e, _ := newSwitch(t, nil)
	e.Apply(admission.EmergencyConfig{Brownout: "cap_tokens", Expiry: time.Hour})
	s := newStageWith(t, cfg, layout(pool("p", 1, "m")), e)
	learnLengths(s, 200)
	if _, err := e.On(s.now, admission.Operator{Name: "op"}, "", time.Minute); err != nil {
		t.Fatal(err)
	}
	s.pass(100 * time.Millisecond)
	if s.g.Step() != admission.StepCapTokens {
		t.Fatalf("the step is %v", s.g.Step())
	}
	c := s.enter(ask{change: func(r *inference.Request) { r.DegradeOK = true }})
	if c.lease.MaxTokens != 153 {
		t.Errorf("capped to %d, want 153", c.lease.MaxTokens)
	}
	c.release()
	s.pass(time.Minute + 2*calmAfter + 200*time.Millisecond)
	if s.g.Step() != admission.StepNone {
		t.Errorf("the step is %v behind the end", s.g.Step())
	}
	s.idle()
}

func TestAnEmergencySheds(t *testing.T) {
	e, _ := newSwitch(t, nil)
	e.Apply(admission.EmergencyConfig{Shed: []string{"batch"}, Brownout: "none", Expiry: time.Hour})
	s := newStageWith(t, patient(1), layout(pool("p", 1, "m")), e)
	run := s.enter(ask{class: inference.Batch})
	waiting := map[string]*seat{
		"batch": s.enter(ask{class: inference.Batch}), "idle": s.enter(ask{class: inference.Idle}),
		"again": s.enter(ask{class: inference.Batch, again: true}),
	}
	normal := s.enter(ask{})
	if _, err := e.On(s.now, admission.Operator{Name: "op"}, "", time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, c := range waiting {
		c.want("waits")
	}
	s.pass(100 * time.Millisecond)
	for name, c := range waiting {
		t.Run(name, func(t *testing.T) {
			e := c.refused("emergency")
			if e.RetryAfter != time.Minute || !e.NoRetry || e.Ticket != "" {
				t.Errorf("got %+v", e)
			}
		})
	}
	normal.want("waits")
	s.enter(ask{class: inference.Batch}).refused("emergency")
	run.release() // what runs is not touched
	normal.want("p/0")
	normal.release()
	s.enter(ask{class: inference.Batch}).refused("emergency") // nothing waits, and there is room
	s.pass(time.Minute)
	c := s.enter(ask{class: inference.Batch})
	c.want("p/0")
	c.release()
	s.idle()
	if got := metric(t, s.g, `refused_total{class="batch",reason="emergency"}`); got != 4 {
		t.Errorf("%v refused, want 4", got)
	}
}

func TestAnEmergencyCallsTheReserve(t *testing.T) {
	l := layout(pool("p", 1, "m"), pool("q", 1, "m"))
	l.Regions[0].Pools[1].Standby = true
	e, _ := newSwitch(t, nil)
	s := newStageWith(t, patient(1), l, e)
	run := s.enter(ask{})
	waits := s.enter(ask{})
	s.pass(time.Second)
	waits.want("waits")
	if _, err := e.On(s.now, admission.Operator{Name: "op"}, "", time.Minute); err != nil {
		t.Fatal(err)
	}
	s.pass(100 * time.Millisecond)
	waits.want("q/0")
	s.layout(l) // a reload changes nothing about it
	s.pass(100 * time.Millisecond)
	if got := s.instance("q", 0).Status(s.now.UnixNano()); got != fleet.Full {
		t.Errorf("the reserve is %v", got)
	}
	if _, err := e.Off(s.now, admission.Operator{Name: "op"}); err != nil {
		t.Fatal(err)
	}
	s.pass(100 * time.Millisecond)
	waits.release() // it ended in its own time
	if got := s.instance("q", 0).Status(s.now.UnixNano()); got != fleet.Standby {
		t.Errorf("the reserve is %v, want it to stand by", got)
	}
	run.release()
	s.idle()
}
