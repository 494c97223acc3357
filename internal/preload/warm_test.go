package preload_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
)

// run is one request that the runner was asked.
type run struct {
	at  time.Time
	req *inference.Request
}

// servers answer in fake time, and remember.
type servers struct {
	takes time.Duration // how long an answer takes
	err   error
	life  time.Duration // how long an answer stays fresh; 0 is not at all

	mu    sync.Mutex
	runs  []run
	fresh map[string]time.Time // by body
	now   int
	most  int // at the same time
}

func (s *servers) Run(ctx context.Context, req *inference.Request) error {
	s.mu.Lock()
	s.runs = append(s.runs, run{time.Now(), req})
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(s.takes):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fresh == nil {
		s.fresh = make(map[string]time.Time)
	}
	s.fresh[string(req.Body)] = time.Now().Add(s.life)
	return s.err
}

// count is the number of requests so far, once everything is at rest.
func (s *servers) count() int {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs)
}

// freshness knows the answers by the bodies of their requests.
type freshness struct {
	*servers
	bodies map[[32]byte]string
}

func (f freshness) Fresh(key [32]byte, until time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fresh[f.bodies[key]].After(until)
}

// items predicts what it is told.
type items []preload.Prediction

func (p items) Predict(time.Time, preload.Window, time.Duration) []preload.Prediction {
	return slices.Clone(p)
}

// questions are n predictions, the first the most worthwhile.
func questions(n int) items {
	var list items
	for i := range n {
		list = append(list, preload.Prediction{Key: key(i), Request: preload.Strip(request(i)), Asks: float64(n - i), Tokens: 100})
	}
	return list
}

// newPreloader is one whose predictions and servers are fakes.
func newPreloader(cfg preload.Config, s *servers, list items) *preload.Preloader {
	f := freshness{servers: s, bodies: make(map[[32]byte]string)}
	for _, p := range list {
		f.bodies[p.Key] = string(p.Request.Body)
	}
	return preload.New(cfg, preload.Parts{Runner: s, Freshness: f, Predictor: list})
}

// play runs a preloader for a while, in a bubble.
func play(t *testing.T, cfg preload.Config, s *servers, list items, d time.Duration) *preload.Preloader {
	t.Helper()
	p := newPreloader(cfg, s, list)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := p.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	return p
}

func TestRefreshesAreSpreadBeforeTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Second}
		begun := time.Now() // midnight: a window begins
		play(t, preload.Default(), s, questions(10), 5*time.Minute-time.Nanosecond)
		if len(s.runs) != 10 {
			t.Fatalf("got %d refreshes, want 10", len(s.runs))
		}
		for i, r := range s.runs {
			part := 24 * time.Second // 4 of 5 minutes
			if at := r.at.Sub(begun); at < time.Duration(i)*part || at >= time.Duration(i+1)*part {
				t.Errorf("refresh %d came after %v, want between %v and %v", i, at, time.Duration(i)*part, time.Duration(i+1)*part)
			}
		}
		if got := string(s.runs[0].req.Body); got != string(request(0).Body) {
			t.Errorf("the first was %s, want the most worthwhile", got)
		}
	})
}

func TestARefreshIsARequestOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Second}
		play(t, preload.Default(), s, questions(3), 10*time.Minute)
		ids := make(map[string]bool)
		for _, r := range s.runs {
			ids[r.req.ID] = true
			if r.req.Class != inference.Idle || !r.req.Received.Equal(r.at) || !r.req.Deadline.Equal(r.at.Add(2*time.Minute)) {
				t.Errorf("got class %v, received %v, deadline %v at %v", r.req.Class, r.req.Received, r.req.Deadline, r.at)
			}
		}
		if len(s.runs) != 6 || len(ids) != 6 {
			t.Errorf("got %d refreshes with %d names, want 6 in two windows", len(s.runs), len(ids))
		}
	})
}

func TestLeadIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := preload.Default()
		cfg.Lead = time.Minute
		s := &servers{takes: time.Millisecond}
		begun := time.Now()
		play(t, cfg, s, questions(4), 10*time.Minute)
		if len(s.runs) != 8 {
			t.Fatalf("got %d refreshes, want 8", len(s.runs))
		}
		for _, r := range s.runs {
			if at := r.at.Sub(begun) % (5 * time.Minute); at < 4*time.Minute {
				t.Errorf("a refresh %v into a window, want none before the last minute", at)
			}
		}
	})
}

func TestFreshAnswersAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Second, life: time.Hour}
		p := play(t, preload.Default(), s, questions(5), 2*time.Hour)
		// An answer lasts an hour, and is refreshed in the last two windows of it.
		if n := len(s.runs); n < 10 || n > 15 {
			t.Errorf("got %d refreshes in two hours of 5 answers that last one, want 10 to 15", n)
		}
		if m := metrics(t, p); m["refreshes_total result=done"] != float64(len(s.runs)) || m["predictions_total"] < 120 {
			t.Errorf("got metrics %v", m)
		}
	})
}

func TestTheRestIsGivenUpWhenTheWindowBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := preload.Default()
		cfg.Concurrency, cfg.Timeout = 2, time.Hour
		s := &servers{takes: 2 * time.Minute}
		p := play(t, cfg, s, questions(20), 5*time.Minute+time.Second)
		if s.most != 2 {
			t.Errorf("got %d at once, want 2", s.most)
		}
		m := metrics(t, p)
		if done := m["refreshes_total result=done"]; done != 4 {
			t.Errorf("got %v done in 5 minutes, want 4", done)
		}
		// 16 of the first window; of the next the ones that end with the run.
		if left := m["refreshes_total result=given_up"]; left < 16 {
			t.Errorf("got %v given up, want 16 and more", left)
		}
	})
}

func TestARefreshHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := preload.Default()
		cfg.Timeout = 10 * time.Second
		s := &servers{takes: time.Minute}
		p := play(t, cfg, s, questions(3), 5*time.Minute-time.Nanosecond)
		wantMetrics(t, p, map[string]float64{"refreshes_total result=failed": 3, "refreshes_total result=done": 0})
	})
}

func TestPlanKeepsTheBudget(t *testing.T) {
	tests := map[string]struct {
		change                func(*preload.Config)
		steps, demanded, over int
	}{
		"all":    {func(*preload.Config) {}, 10, 10, 0},
		"top":    {func(c *preload.Config) { c.Top = 4 }, 4, 10, 6},
		"tokens": {func(c *preload.Config) { c.MaxTokens = 650 }, 6, 10, 4},
		"demand": {func(c *preload.Config) { c.MinDemand = 8 }, 3, 3, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := preload.Default()
			tt.change(&cfg)
			plan := newPreloader(cfg, &servers{}, questions(10)).Plan(monday.Add(time.Minute))
			if len(plan.Steps) != tt.steps || plan.Demanded != tt.demanded || plan.Over != tt.over {
				t.Errorf("got %d steps, %d demanded, %d over, want %d, %d, %d", len(plan.Steps), plan.Demanded, plan.Over, tt.steps, tt.demanded, tt.over)
			}
			for i, step := range plan.Steps {
				if step.Key != key(i) {
					t.Errorf("step %d is not of the key of rank %d", i, i)
				}
			}
		})
	}
}

func TestPlanPrefersCostlyAnswers(t *testing.T) {
	cfg := preload.Default()
	cfg.Top = 1
	list := items{
		{Key: key("cheap"), Request: request("cheap"), Asks: 10, Tokens: 100},
		{Key: key("dear"), Request: request("dear"), Asks: 5, Tokens: 1000},
	}
	plan := newPreloader(cfg, &servers{}, list).Plan(monday)
	if len(plan.Steps) != 1 || plan.Steps[0].Key != key("dear") {
		t.Errorf("got %v", plan.Steps)
	}
}

func TestPlanOfWindows(t *testing.T) {
	tests := map[string]struct{ at, lead, start time.Duration }{
		"at a window's begin":        {0, 5 * time.Minute, 5 * time.Minute},
		"in it":                      {4 * time.Minute, 5 * time.Minute, 5 * time.Minute},
		"before a short lead begins": {time.Minute, time.Minute, 5 * time.Minute},
		"within a short lead":        {4*time.Minute + time.Second, time.Minute, 5 * time.Minute},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := preload.Default()
			cfg.Lead = tt.lead
			got := newPreloader(cfg, &servers{}, nil).Plan(monday.Add(tt.at)).Window
			if start := got.Start.Sub(monday); start != tt.start || got.End.Sub(got.Start) != cfg.Window {
				t.Errorf("got %v for %v, want %v", start, got.End.Sub(got.Start), tt.start)
			}
		})
	}
}

func TestApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := preload.Default()
		s := &servers{takes: time.Second}
		p := newPreloader(cfg, s, questions(10))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()

		time.Sleep(2 * time.Minute)
		off := cfg
		off.Enabled = false
		p.Apply(off)
		n := s.count()
		time.Sleep(time.Hour)
		if got := s.count(); got != n || n == 0 {
			t.Errorf("got %d refreshes, and %d more while it is off", n, got-n)
		}
		ask(p, "q", time.Now(), 5)
		wantMetrics(t, p, map[string]float64{"asks_total result=miss": 0})

		p.Apply(cfg)
		time.Sleep(10 * time.Minute)
		if got := s.count(); got < n+10 {
			t.Errorf("got %d refreshes after it is on again, want %d and more", got, n+10)
		}
		ask(p, "q", time.Now(), 5)
		p.Apply(cfg)
		wantMetrics(t, p, map[string]float64{"asks_total result=miss": 5})
		cfg.Keys = 100
		p.Apply(cfg)
		wantMetrics(t, p, map[string]float64{"asks_total result=miss": 0})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestForgetGivesUpThePlan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Second}
		p := preload.New(preload.Default(), preload.Parts{Runner: s, Freshness: freshness{servers: s}})
		for i := range 10 {
			ask(p, i, time.Now(), 50)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(2 * time.Minute)
		n := s.count()
		p.Forget()
		time.Sleep(time.Hour)
		if got := s.count(); got != n || n == 0 {
			t.Errorf("got %d refreshes, and %d more of what is forgotten", n, got-n)
		}
		for i := range 10 {
			ask(p, i, time.Now(), 50)
		}
		time.Sleep(10 * time.Minute)
		if got := s.count(); got < n+10 {
			t.Errorf("got %d refreshes after all are asked again, want %d and more", got, n+10)
		}
		wantMetrics(t, p, map[string]float64{"asks_total result=miss": 1000, "requests": 10})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestEmbeddedEngineEndToEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Second, life: time.Hour}
		req := request("hot")
		f := freshness{servers: s, bodies: map[[32]byte]string{key("hot"): string(req.Body)}}
		p := preload.New(preload.Default(), preload.Parts{Runner: s, Freshness: f})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		for i := range 180 {
			if i%50 == 10 {
				fmt.Println(p.Plan(time.Now()))
			}
			ask(p, "hot", time.Now(), 3)
			ask(p, time.Now(), time.Now(), 1) // never again
			time.Sleep(time.Minute)
		}
		cancel()
		<-done
		if n := len(s.runs); n < 3 || n > 5 {
			t.Errorf("got %d refreshes in 3 hours of an answer that lasts one, want 3 to 5", n)
		}
		for _, r := range s.runs {
			if string(r.req.Body) != string(req.Body) || r.req.Header.Get("Authorization") != "" {
				t.Errorf("got %s with %q", r.req.Body, r.req.Header.Get("Authorization"))
			}
		}
		if m := metrics(t, p); m["forecast_error_asks_total"] > 0.3*m["counted_asks_total"] {
			t.Errorf("got an error of %v in %v asks", m["forecast_error_asks_total"], m["counted_asks_total"])
		}
	})
}

func TestWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := preload.Default()
		s := &servers{takes: time.Second, life: time.Hour}
		list := questions(12)
		p := newPreloader(cfg, s, list)
		var load []preload.Item
		for i, q := range list {
			load = append(load, preload.Item{Key: q.Key, Request: request(i)})
		}
		load = append(load, load[11]) // the same again, while it is asked
		count := func() map[preload.Outcome]int {
			got := make(map[preload.Outcome]int)
			if err := p.Warm(t.Context(), slices.Values(load), func(r preload.Result) { got[r.Outcome]++ }); err != nil {
				t.Errorf("Warm: %v", err)
			}
			return got
		}
		begun := time.Now()
		if got := count(); got[preload.Done] != 12 || got[preload.Fresh]+got[preload.Twice] != 1 {
			t.Errorf("got %v, want 12 done and one not asked twice", got)
		}
		if took := time.Since(begun); took != 3*time.Second || s.most != cfg.Concurrency {
			t.Errorf("12 requests of 1s took %v, %d at once, want 3s, %d at once", took, s.most, cfg.Concurrency)
		}
		if got := count(); got[preload.Fresh] < 12 || got[preload.Fresh]+got[preload.Twice] != 13 {
			t.Errorf("again: got %v, want none of 13 asked", got)
		}
		for _, r := range s.runs {
			if r.req.Header.Get("Authorization") != "" {
				t.Error("a credential was sent")
			}
		}
	})
}

func TestWarmTellsWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		p := newPreloader(preload.Default(), &servers{err: broken}, nil)
		var got []preload.Result
		item := preload.Item{Key: key(1), Request: request(1)}
		if err := p.Warm(t.Context(), slices.Values([]preload.Item{item}), func(r preload.Result) { got = append(got, r) }); err != nil {
			t.Errorf("Warm: %v", err)
		}
		if len(got) != 1 || got[0].Outcome != preload.Failed || !errors.Is(got[0].Err, broken) {
			t.Errorf("got %v", got)
		}
	})
}

func TestWarmEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Minute}
		p := newPreloader(preload.Default(), s, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		endless := func(yield func(preload.Item) bool) {
			for i := 0; yield(preload.Item{Key: key(i), Request: request(i)}); i++ {
			}
		}
		got := make(map[preload.Outcome]int)
		err := p.Warm(ctx, endless, func(r preload.Result) { got[r.Outcome]++ })
		if !errors.Is(err, context.DeadlineExceeded) || got[preload.Done] != 4 || got[preload.GivenUp] != 4 {
			t.Errorf("got %v, %v, want 4 done and 4 given up", got, err)
		}
	})
}

func TestTheSameKeyIsNeverAskedTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &servers{takes: time.Minute}
		p := newPreloader(preload.Default(), s, nil)
		item := preload.Item{Key: key(1), Request: request(1)}
		got := make(map[preload.Outcome]int)
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				r := p.Refresh(t.Context(), time.Now(), item, time.Now())
				mu.Lock()
				defer mu.Unlock()
				got[r.Outcome]++
			})
		}
		all.Wait()
		if got[preload.Done] != 1 || got[preload.Twice] != 19 || len(s.runs) != 1 {
			t.Errorf("got %v and %d runs, want one", got, len(s.runs))
		}
		if r := p.Refresh(t.Context(), time.Now(), item, time.Now()); r.Outcome != preload.Done {
			t.Errorf("afterwards: got %v, want done", r.Outcome)
		}
	})
}

// Example shows what an engine of one's own needs: a Predictor.
func Example() {
	cfg := preload.Default()
	menu := preload.Prediction{Key: key("menu"), Request: request("menu"), Asks: 40, Tokens: 300}
	p := preload.New(cfg, preload.Parts{
		Freshness: freshness{servers: &servers{}},
		Predictor: items{menu},
	})
	now := time.Date(2026, 3, 2, 11, 55, 0, 0, time.UTC)
	plan := p.Plan(now)
	fmt.Println("for", plan.Window.Start.Format(time.TimeOnly), "refresh", len(plan.Steps))
	// Output: for 12:00:00 refresh 1
}
