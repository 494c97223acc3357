package admission_test

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

func TestApplyWhileRequestsWait(t *testing.T) {
	t.Run("a higher limit", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		s.enter(ask{})
		one, two := s.enter(ask{}), s.enter(ask{tenant: "two"})
		s.g.Apply(patient(2))
		s.pass(100 * time.Millisecond)
		one.want("p/0")
		two.want("waits")
		if limit, _, _ := s.instance("p", 0).Live.Limits(); limit != 2 {
			t.Errorf("the limit is %d, want 2", limit)
		}
	})
	t.Run("a lower limit", func(t *testing.T) {
		s := newStage(t, patient(3), layout(pool("p", 1, "m")))
		runs := []*seat{s.enter(ask{}), s.enter(ask{}), s.enter(ask{})}
		waits := s.enter(ask{})
		s.g.Apply(patient(1))
		for i, run := range runs {
			waits.want("waits")
			run.release()
			if i < 2 {
				s.pass(100 * time.Millisecond)
			}
		}
		waits.want("p/0")
		waits.release()
		s.idle()
	})
	t.Run("no limit", func(t *testing.T) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		s.enter(ask{})
		waits := s.enter(ask{})
		cfg := patient(1)
		cfg.Limit = admission.LimitOff
		s.g.Apply(cfg)
		s.pass(100 * time.Millisecond)
		waits.want("p/0")
		for range 1000 {
			s.enter(ask{}).want("p/0")
		}
	})
	t.Run("weights of classes", func(t *testing.T) {
		l := newLine(t, patient(1))
		l.queue(200, ask{class: inference.Batch})
		l.queue(200, ask{})
		near(t, l.shares(50, byClass), map[string]int{"normal": 40, "batch": 10})
		cfg := patient(1)
		cfg.Classes.Batch.Weight = 4
		l.g.Apply(cfg)
		l.shares(5, byClass) // the tags of those that are next were set before
		near(t, l.shares(40, byClass), map[string]int{"normal": 20, "batch": 20})
	})
	t.Run("weights of tenants", func(t *testing.T) {
		l := newLine(t, patient(1))
		l.queue(200, ask{tenant: "a"})
		l.queue(200, ask{tenant: "b"})
		near(t, l.shares(20, byTenant), map[string]int{"a": 10, "b": 10})
		cfg := patient(1)
		cfg.TenantWeights = map[string]float64{"a": 3}
		l.g.Apply(cfg)
		if err := l.g.Check(); err != nil {
			t.Fatal(err)
		}
		l.shares(1, byTenant)
		near(t, l.shares(40, byTenant), map[string]int{"a": 30, "b": 10})
	})
	t.Run("the secret of tickets", func(t *testing.T) {
		const first, second = "0123456789abcdef", "fedcba9876543210"
		for name, c := range map[string]struct {
			before, after string
			claimed       float64
		}{
			"is kept": {first, first, 1}, "changes": {first, second, 0}, "none is configured": {"", "", 1}, "is new": {"", first, 0},
		} {
			t.Run(name, func(t *testing.T) {
				t.Setenv(secretEnv, c.before)
				f := newFlow(t, static(1))
				e := f.refuse(ask{tenant: "buyer", body: "b"})
				t.Setenv(secretEnv, c.after)
				cfg := static(1)
				cfg.Tickets.SecretEnv = secretEnv
				f.g.Apply(cfg)
				f.flow(e.RetryAfter)
				before := f.claimed()
				f.enter(showing(ask{tenant: "buyer", body: "b"}, e.Ticket))
				if got := f.claimed() - before; got != c.claimed {
					t.Errorf("%v claimed, want %v", got, c.claimed)
				}
			})
		}
	})
	t.Run("a shorter queue", func(t *testing.T) {
		l := newLine(t, patient(1))
		waiting := l.queue(5, ask{})
		cfg := patient(1)
		cfg.Queue.Requests = 2
		l.g.Apply(cfg)
		l.pass(time.Second)
		if n := count(waiting, (*seat).waits); n != 5 {
			t.Errorf("%d wait, want those that did", n)
		}
		l.enter(ask{}).refused("queue_full")
	})
	t.Run("another limiter", func(t *testing.T) {
		for limit, want := range map[string]int64{
			admission.LimitLearned: 16, admission.LimitGradient: 3, admission.LimitGradient2: 20, admission.LimitAIMD: 20, admission.LimitOff: 0,
		} {
			s := newStage(t, patient(7), layout(pool("p", 1, "m")))
			cfg := patient(7)
			cfg.Limit = limit
			s.g.Apply(cfg)
			if got, _, _ := s.instance("p", 0).Live.Limits(); got != want {
				t.Errorf("%s: the limit is %d, want %d", limit, got, want)
			}
		}
	})
}

// TestWhatWasLearnedSurvivesAReload that changes something else.
func TestWhatWasLearnedSurvivesAReload(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 1, "m")))
	live := s.instance("p", 0).Live
	for range 8 {
		live.Meter().Busied() // which lowers the limit
		s.pass(500 * time.Millisecond)
	}
	before, _, _ := live.Limits()
	if before >= 16 {
		t.Fatalf("the limit is %d", before)
	}
	cfg := admission.Default()
	cfg.Classes.VIP.Weight = 9
	s.g.Apply(cfg)
	s.pass(500 * time.Millisecond)
	if got, _, _ := live.Limits(); got != before {
		t.Errorf("the limit is %d, want %d", got, before)
	}
}

// TestApplyDoesNotHoldUpRequests while an order to the emergency switch waits for the
// disk.
func TestApplyDoesNotHoldUpRequests(t *testing.T) {
	keep := &stuckKeeper{entered: make(chan struct{}), leave: make(chan struct{})}
	e, _ := newSwitch(t, keep)
	s := newStageWith(t, patient(1), layout(pool("p", 1, "m")), e)
	run := s.enter(ask{})
	ordered, applied := make(chan error, 1), make(chan struct{})
	go func() { // ends with the write
		_, err := e.On(s.now, admission.Operator{Name: "op"}, "", time.Minute)
		ordered <- err
	}()
	<-keep.entered
	go func() { // ends with the write, too
		s.g.Apply(patient(1))
		close(applied)
	}()
	testkit.Eventually(t, "the reload waits for the order", func() bool {
		stacks := make([]byte, 1<<20)
		return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "admission.(*Emergency).Apply(")
	})
	done := make(chan struct{})
	var waits *seat
	go func() {
		defer close(done)
		waits = s.enter(ask{})
		run.release()
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("a request waits for the disk")
	}
	close(keep.leave)
	<-applied
	<-done
	if err := <-ordered; err != nil {
		t.Error(err)
	}
	waits.want("p/0")
}

// stuckKeeper is a Keeper whose first write waits.
type stuckKeeper struct {
	memoryKeeper
	entered, leave chan struct{}
}

// Write implements admission.Keeper.
func (k *stuckKeeper) Write(string, []byte) error {
	close(k.entered)
	<-k.leave
	return nil
}
