package admission_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// seatless asks for a slot with a place to wait at, on the bubble's clock.
func seatless(t *testing.T, s *stage, a ask) *admission.Waiter {
	t.Helper()
	s.now = time.Now()
	_, plan := s.plan(a)
	lease, w, err := s.g.Enter(s.now, plan, a.tried, nil)
	if w == nil {
		t.Fatalf("got %v, %v; want a place", lease, err)
	}
	return w
}

// waitStage is a stage on the bubble's clock whose only slot is taken.
func waitStage(t *testing.T, cfg admission.Config) (*stage, *seat) {
	t.Helper()
	s := newStage(t, cfg, layout(pool("p", 1, "m")))
	s.now = time.Now()
	s.g.Tick(s.now)
	return s, s.enter(ask{})
}

func TestWait(t *testing.T) {
	long := func() time.Time { return time.Now().Add(time.Hour) }
	for name, do := range map[string]func(*testing.T, *stage, *seat, *admission.Waiter){
		"a slot": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			time.AfterFunc(2*time.Second, func() { run.lease.Release(time.Now()) })
			begun := time.Now()
			lease, err := w.Wait(context.Background(), long())
			if err != nil || lease == nil || time.Since(begun) != 2*time.Second {
				t.Fatalf("got %v, %v after %v", lease, err, time.Since(begun))
			}
			lease.Release(time.Now())
		},
		"a slot that came before": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			run.lease.Release(time.Now())
			lease, err := w.Wait(context.Background(), long())
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := w.Outcome(); got != lease {
				t.Errorf("the outcome is %v", got)
			}
			lease.Release(time.Now())
		},
		"interrupted and resumed": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			for range 3 {
				if lease, err := w.Wait(context.Background(), time.Now().Add(time.Second)); lease != nil || !errors.Is(err, inference.ErrNotYet) {
					t.Fatalf("got %v, %v", lease, err)
				}
			}
			if n := s.g.Snapshot().Waiting; n != 1 {
				t.Errorf("%d wait, want 1", n)
			}
			run.lease.Release(time.Now())
			lease, err := w.Wait(context.Background(), long())
			if err != nil {
				t.Fatal(err)
			}
			lease.Release(time.Now())
		},
		"its client goes": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if lease, err := w.Wait(ctx, long()); lease != nil || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, %v", lease, err)
			}
			if n := s.g.Snapshot().Waiting; n != 0 {
				t.Errorf("%d wait, want none", n)
			}
			run.lease.Release(time.Now())
		},
		"its client goes as the slot comes": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			ctx, cancel := context.WithCancel(context.Background())
			run.lease.Release(time.Now())
			cancel()
			// Either may be seen first; the slot is with the caller or given back.
			if lease, err := w.Wait(ctx, long()); err == nil {
				lease.Release(time.Now())
			}
		},
		"left between waits, with a slot granted": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			_, _ = w.Wait(context.Background(), time.Now())
			run.lease.Release(time.Now())
			w.Leave(time.Now())
			w.Leave(time.Now())
		},
		"refused by a tick": func(t *testing.T, s *stage, run *seat, w *admission.Waiter) {
			time.AfterFunc(11*time.Second, func() { s.g.Tick(time.Now()) })
			_, err := w.Wait(context.Background(), long())
			if e := refusal(t, err); e.Reason != "wait_expired" {
				t.Errorf("got %v", e)
			}
			w.Leave(time.Now())
			run.lease.Release(time.Now())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, run := waitStage(t, static(1))
				do(t, s, run, seatless(t, s, ask{}))
				s.now = time.Now()
				s.idle()
			})
		})
	}
}

// TestRun ticks every 100 ms and ends with its context.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, run := waitStage(t, static(1))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.g.Run(ctx) }()
		w := seatless(t, s, ask{class: inference.VIP})
		begun := time.Now()
		_, err := w.Wait(ctx, begun.Add(time.Hour))
		if e := refusal(t, err); e.Reason != "wait_expired" || time.Since(begun) > 1100*time.Millisecond {
			t.Errorf("got %v after %v", e, time.Since(begun))
		}
		second := s.instance("p", 0).Live
		second.Cool(time.Now().Add(time.Second).UnixNano())
		run.lease.Release(time.Now())
		w = seatless(t, s, ask{})
		begun = time.Now()
		lease, err := w.Wait(ctx, begun.Add(time.Hour))
		if err != nil || time.Since(begun) < time.Second || time.Since(begun) > 1100*time.Millisecond {
			t.Fatalf("got %v after %v, want a slot when the instance has cooled", err, time.Since(begun))
		}
		lease.Release(time.Now())
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.now = time.Now()
		s.idle()
	})
}

// ExampleGovernor_Enter asks for slots at an instance that has one.
func ExampleGovernor_Enter() {
	f := fleet.New(testkit.Discard())
	_ = f.Apply(layout(pool("gpu", 1, "m")))
	cfg := admission.Default()
	cfg.Limit, cfg.StaticLimit = admission.LimitStatic, 1
	g := admission.New(cfg, f, nil, testkit.Discard())
	now := time.Now()
	plan := func(tenant string) *fleet.Plan {
		return testkit.Plan(f, &inference.Request{Tenant: tenant, Fields: inference.Fields{Model: "m", Stream: true}, Deadline: now.Add(time.Minute)})
	}
	lease, _, _ := g.Enter(now, plan("a"), nil, nil)
	_, waiter, _ := g.Enter(now, plan("b"), nil, nil)
	lease.Release(now)
	next, _ := waiter.Wait(context.Background(), now.Add(time.Second))
	next.Release(now)
	fmt.Println(next != nil, g.Idle())
	// Output: true true
}
