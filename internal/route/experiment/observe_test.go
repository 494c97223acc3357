package experiment_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
)

// record is an answered request of the canary.
func record(id string) *inference.Record {
	return &inference.Record{
		Request: &inference.Request{ID: id, Tenant: "acme", Received: began()}, Arm: inference.Arm{Experiment: "canary", Arm: "canary"},
		Complete: true, TTFT: time.Second, Duration: 2 * time.Second, Attempts: make([]inference.Attempt, 1),
		Usage: inference.Usage{PromptTokens: 10, CompletionTokens: 20},
	}
}

// give has an answer begin and end.
func give(s *experiment.Set, rec *inference.Record) {
	s.Begin(rec)
	s.Observe(rec)
}

func TestWhatCounts(t *testing.T) {
	type counts struct{ requests, failures, faults, canceled, excluded, cached, ttft, itl, tokens uint64 }
	broken := []inference.Attempt{{Verdict: inference.VerdictBroken}, {}}
	for name, c := range map[string]struct {
		change func(*inference.Record)
		want   counts
	}{
		"an answer":                 {func(*inference.Record) {}, counts{requests: 1, ttft: 1, tokens: 1}},
		"a stream":                  {func(r *inference.Record) { r.Gaps.Observe(time.Millisecond) }, counts{requests: 1, ttft: 1, tokens: 1, itl: 1}},
		"in one piece":              {func(r *inference.Record) { r.TTFT, r.Attempts[0].TTFT = 0, time.Second }, counts{requests: 1, tokens: 1}},
		"in one piece, of a stream": {func(r *inference.Record) { r.TTFT, r.Tokens, r.Attempts[0].TTFT = 0, 20, time.Second }, counts{requests: 1, ttft: 1, tokens: 1}},
		"no first token":            {func(r *inference.Record) { r.TTFT = 0 }, counts{requests: 1, tokens: 1}},
		"a broken off one":          {func(r *inference.Record) { r.Complete = false }, counts{requests: 1, failures: 1, faults: 1, ttft: 1}},
		"an error":                  {func(r *inference.Record) { r.Code, r.TTFT, r.Complete = inference.CodeUpstreamError, 0, false }, counts{requests: 1, failures: 1, faults: 1}},
		"overloaded":                {func(r *inference.Record) { r.Code, r.TTFT, r.Attempts = inference.CodeOverloaded, 0, nil }, counts{requests: 1, failures: 1, faults: 1}},
		"saved by a retry":          {func(r *inference.Record) { r.Attempts = broken }, counts{requests: 1, faults: 1, ttft: 1, tokens: 1}},
		"canceled":                  {func(r *inference.Record) { r.Code = inference.CodeCanceled }, counts{canceled: 1}},
		"a copy without room": {func(r *inference.Record) {
			r.Code, r.TTFT, r.Attempts, r.Shadow = inference.CodeOverloaded, 0, nil, true
		}, counts{excluded: 1}},
		"an answer that is renewed": {func(r *inference.Record) {
			r.Request.Class, r.Code, r.TTFT, r.Attempts = inference.Idle, inference.CodeOverloaded, 0, nil
		}, counts{}},
		"the client's mistake":   {func(r *inference.Record) { r.Code = inference.CodeInvalidRequest }, counts{excluded: 1}},
		"rate limited":           {func(r *inference.Record) { r.Code = inference.CodeRateLimited }, counts{excluded: 1}},
		"a hit":                  {func(r *inference.Record) { r.Cache, r.Attempts = inference.CacheHit, nil }, counts{cached: 1}},
		"coalesced":              {func(r *inference.Record) { r.Cache, r.Attempts = inference.CacheCoalesced, nil }, counts{cached: 1}},
		"stale, servers broken":  {func(r *inference.Record) { r.Cache, r.Attempts = inference.CacheStale, broken[:1] }, counts{requests: 1, failures: 1, faults: 1, ttft: 1}},
		"no arm":                 {func(r *inference.Record) { r.Arm.Arm = "" }, counts{}},
		"another experiment":     {func(r *inference.Record) { r.Arm.Experiment = "x" }, counts{}},
		"an arm that was":        {func(r *inference.Record) { r.Arm.Arm = "x" }, counts{}},
		"an attempt's own words": {func(r *inference.Record) { r.Attempts = []inference.Attempt{{Verdict: inference.VerdictBusy}, {}} }, counts{requests: 1, ttft: 1, tokens: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s, r := created(t, canary(1, 1)), record("r")
			c.change(r)
			s.Observe(r)
			a := s.Status(began())[0].Arms[1]
			got := counts{a.Requests, a.Failures, a.Faults, a.Canceled, a.Excluded, a.Cached, a.Metrics[1].N, a.Metrics[2].N, a.Metrics[3].N}
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// TestEveryCodeIsJudged: a new code is looked at here.
func TestEveryCodeIsJudged(t *testing.T) {
	failures := 0
	for _, code := range inference.Codes() {
		s, r := created(t, canary(1, 1)), record("r")
		r.Code = code
		s.Observe(r)
		failures += int(s.Status(began())[0].Arms[1].Failures)
	}
	if failures != 6 { // overloaded, no capacity, upstream error, upstream cut, time-out, internal
		t.Errorf("%d codes are failures, want 6", failures)
	}
}

func TestStatusKnowsTheNumbers(t *testing.T) {
	cfg := canary(50, 50)
	cfg.Guard = experiment.Guard{MinRequests: 10, Alpha: 0.05}
	cfg.Metrics = []string{"success", "ttft", "tokens", "score"}
	s := created(t, cfg)
	for i := range 2000 {
		r := record(fmt.Sprint(i))
		r.TTFT = time.Duration(float64(time.Second) * math.Exp(0.1*math.Sin(float64(i))))
		r.Usage.CompletionTokens = 99 + int64(i%3)
		if i%2 == 0 {
			r.Arm.Arm = "control"
			r.TTFT *= 2
		} else if i%10 == 1 {
			r.Code, r.TTFT = inference.CodeTimeout, 0
		}
		give(s, r)
		if r.Code == "" {
			if err := s.Feedback("acme", fmt.Sprint(i), float64(i%2)); err != nil && i > 10 {
				t.Fatal(err)
			}
		}
	}
	st := s.Status(began())[0]
	if _, err := json.Marshal(st); err != nil {
		t.Fatal(err)
	}
	control, arm := st.Arms[0], st.Arms[1]
	if control.Requests != 1000 || arm.Failures != 200 || arm.Errors["timeout"] != 200 || st.Each != 0.05/4 {
		t.Errorf("got %+v", st)
	}
	if p50 := control.TTFTP50; !near(p50, 2, 0.1) || !near(arm.TTFTP95, 1.1, 0.1) {
		t.Errorf("control's median is %v, want 2; the arm's p95 is %v, want 1.1", p50, arm.TTFTP95)
	}
	for name, c := range map[string]struct {
		got     experiment.MetricStatus
		typical float64
		value   float64 // versus control
		verdict string
	}{
		"success": {arm.Metrics[0], 0.8, -0.2, experiment.Worse},
		"ttft":    {arm.Metrics[1], 1, -0.5, experiment.Better},
		"tokens":  {arm.Metrics[3], 100, 0, experiment.Undecided},
		"score":   {arm.Metrics[4], 1, 1, experiment.Better},
	} {
		v := c.got.Versus
		if v == nil || v.Interval == nil || c.got.Interval == nil {
			t.Errorf("%s: got %+v", name, c.got)
			continue
		}
		if !near(c.got.Typical, c.typical, 0.02) || math.Abs(v.Value-c.value) > 0.02 || v.Verdict != c.verdict {
			t.Errorf("%s: got %+v versus %+v", name, c.got, v)
		}
		if v.Interval.Low > v.Value || v.Value > v.Interval.High || c.got.Interval.Low > c.typical || c.typical > c.got.Interval.High {
			t.Errorf("%s: the intervals %+v and %+v", name, c.got.Interval, v.Interval)
		}
	}
	if arm.Metrics[2].Tested || arm.Metrics[2].Versus != nil {
		t.Errorf("itl is not tested: got %+v", arm.Metrics[2])
	}
}

// TestStatusSaysWhichGuardIsIdle, because nobody saw a first token.
func TestStatusSaysWhichGuardIsIdle(t *testing.T) {
	for name, c := range map[string]struct {
		guard float64
		n     int // answers of each arm
		ttft  time.Duration
		want  int
	}{
		"no first tokens": {0.2, 20, 0, 2},
		"too few":         {0.2, 19, 0, 0},
		"first tokens":    {0.2, 20, time.Second, 0},
		"no guard":        {0, 20, 0, 0},
	} {
		cfg := canary(50, 50)
		cfg.Guard.TTFT = c.guard
		s := created(t, cfg)
		for i := range 2 * c.n {
			r := record(fmt.Sprint(i))
			r.TTFT, r.Arm.Arm = c.ttft, cfg.Arms[i%2].Name
			s.Observe(r)
		}
		got := s.Status(began())[0].Idle
		if len(got) != c.want || c.want > 0 && got[1] != `ttft: no samples of arm "canary" in 20 answers; its guard is idle` {
			t.Errorf("%s: got %q", name, got)
		}
		if err := s.Stop(began(), "canary", ""); err != nil || s.Status(began())[0].Idle != nil {
			t.Errorf("%s: stopped, but %q, %v", name, s.Status(began())[0].Idle, err)
		}
	}
}

// TestFewKeysGetNoVerdict: what ten tenants of each arm say is theirs.
func TestFewKeysGetNoVerdict(t *testing.T) {
	cfg := canary(50, 50)
	cfg.By = "tenant"
	cfg.Guard.TTFT = 0
	for n, want := range map[int]string{6: experiment.TooFew, 100: experiment.Better} {
		w := newWorld(created(t, cfg), 3)
		w.tenants = tenants(n)
		w.effects["canary"] = effect{0.01, 0.3}
		for range 6000 {
			w.step(100)
		}
		arm := w.set.Status(w.now)[0].Arms[1]
		if got := arm.Metrics[1].Versus; got == nil || got.Verdict != want {
			t.Errorf("%d tenants, %d of them here: got %+v, want %s", n, arm.Keys, got, want)
		}
	}
}

func TestMirror(t *testing.T) {
	c := experiment.Default()
	c.Name, c.Mirror = "copies", experiment.Mirror{To: route.Action{Region: "eu"}, Share: 1}
	s := created(t, c)
	r := record("r")
	r.Arm = inference.Arm{Experiment: "copies", Arm: "mirror"}
	give(s, r)
	st := s.Status(began())[0]
	if len(st.Arms) != 1 || st.Arms[0].Name != "mirror" || st.Arms[0].Requests != 1 || st.Control != "" || st.Share != 1 {
		t.Errorf("got %+v", st)
	}
	if err := s.Feedback("acme", "r", 1); !errors.Is(err, experiment.ErrNoRequest) {
		t.Errorf("nobody saw the copy's answer; got %v", err)
	}
}

func TestFeedback(t *testing.T) {
	s := created(t, canary(1, 1))
	s.Forgetful(100, time.Hour)
	long := strings.Repeat("x", 200)
	for _, id := range []string{"a", "b", long} {
		r := record(id)
		r.Request.Received = time.Now().Add(time.Millisecond) // Feedback reads the clock
		give(s, r)
	}
	for i, c := range []struct {
		tenant, id string
		score      float64
		want       error
		code       inference.Code
	}{
		{"acme", "a", 2, experiment.ErrScore, inference.CodeInvalidRequest},
		{"acme", "a", math.NaN(), experiment.ErrScore, inference.CodeInvalidRequest},
		{"acme", "a", math.Inf(1), experiment.ErrScore, inference.CodeInvalidRequest},
		{"evil", "a", 1, experiment.ErrNoRequest, inference.CodeNotFound},
		{"", "a", 1, experiment.ErrNoRequest, inference.CodeNotFound},
		{"acme", "a", -1, nil, ""},
		{"acme", "a", 1, experiment.ErrScored, inference.CodeInvalidRequest},
		{"acme", "none", 1, experiment.ErrNoRequest, inference.CodeNotFound},
		{"acme", "", 1, experiment.ErrNoRequest, inference.CodeNotFound},
		{"acme", long, 1, experiment.ErrNoRequest, inference.CodeNotFound},
	} {
		err := s.Feedback(c.tenant, c.id, c.score)
		e, ok := errors.AsType[*inference.Error](err)
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || c.want != nil && (!ok || e.Code != c.code) {
			t.Errorf("%d: got %v, want %v", i, err, c.want)
		}
	}
	if got := s.Status(time.Now())[0].Arms[1].Metrics[4]; got.N != 1 || got.Mean != -1 {
		t.Errorf("got %+v", got)
	}
	for id, c := range map[string]struct { // that have begun
		change func(*inference.Record)
		want   error
	}{
		"under way":       {func(*inference.Record) {}, nil},
		"an error":        {func(r *inference.Record) { r.Status = 400 }, experiment.ErrNoRequest},
		"nobody's":        {func(r *inference.Record) { r.Request.Class = inference.Idle }, experiment.ErrNoRequest},
		"before":          {func(r *inference.Record) { r.Request.Received = time.Now().Add(-time.Hour) }, experiment.ErrNoRequest},
		"an arm that was": {func(r *inference.Record) { r.Arm.Arm = "x" }, experiment.ErrNoRequest},
	} {
		r := record(id)
		c.change(r)
		s.Begin(r)
		if err := s.Feedback("acme", id, 1); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", id, err, c.want)
		}
	}
	// a new beginning forgets what the scores were about
	now := time.Now()
	if err := errors.Join(s.Stop(now, "canary", ""), s.Start(now, "canary", "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Feedback("acme", "b", 1); !errors.Is(err, experiment.ErrNoRequest) {
		t.Errorf("got %v", err)
	}
	// bounded, and the newest stay
	for i := range 1000 {
		r := record(fmt.Sprint("id-", i))
		r.Request.Received = time.Now().Add(time.Millisecond)
		give(s, r)
	}
	if n := s.Remembered(); n != 100 {
		t.Errorf("%d answers are remembered, want 100", n)
	}
	if err := errors.Join(s.Feedback("acme", "id-999", 1), s.Feedback("acme", "id-900", 1)); err != nil {
		t.Error(err)
	}
	if err := s.Feedback("acme", "id-899", 1); !errors.Is(err, experiment.ErrNoRequest) {
		t.Errorf("got %v", err)
	}
}

// TestScoresComeWithinADay, or not at all.
func TestScoresComeWithinADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := created(t, canary(1, 1))
		for _, id := range []string{"a", "b"} {
			r := record(id)
			r.Request.Received, r.Duration = time.Now(), 0
			give(s, r)
		}
		time.Sleep(24*time.Hour - time.Second)
		if err := s.Feedback("acme", "a", 1); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		if err := s.Feedback("acme", "b", 1); !errors.Is(err, experiment.ErrNoRequest) {
			t.Errorf("got %v", err)
		}
		again := record("b") // an id that was used before, and is forgotten
		again.Request.Received = time.Now()
		give(s, again)
		if err := s.Feedback("acme", "b", 1); err != nil || s.Remembered() != 2 {
			t.Errorf("got %v, %d are remembered", err, s.Remembered())
		}
	})
}

// TestAllAtOnce is for the race detector.
func TestAllAtOnce(t *testing.T) {
	cfg := canary(50, 50)
	cfg.By = "tenant"
	s := created(t, cfg)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 500 {
				now := time.Now()
				req := &inference.Request{ID: fmt.Sprint(g, "-", i), Tenant: fmt.Sprint(i % 40), Received: now}
				if arm := s.Steer(now, req).Arm; arm.Arm != "" {
					r := record(req.ID)
					r.Request, r.Arm = req, arm
					give(s, r)
					_ = s.Feedback(req.Tenant, req.ID, 1)
				}
				switch i % 100 {
				case 1:
					s.Status(now)
				case 2:
					_ = s.Stop(now, "canary", "")
				case 3:
					_ = s.Start(now, "canary", "")
				case 4:
					_ = s.Apply([]experiment.Config{cfg})
				case 5:
					other := cfg
					other.Metrics = []string{"ttft"}
					other.When = ""
					_ = s.Apply([]experiment.Config{other})
				}
			}
		})
	}
	wg.Wait()
	if got := s.Names(); len(got) != 1 || got[0] != "canary" {
		t.Errorf("got %v", got)
	}
}

func BenchmarkObserve(b *testing.B) {
	keyed := canary(50, 50)
	keyed.By = "tenant"
	for name, cfg := range map[string]experiment.Config{"request": canary(50, 50), "tenant": keyed} {
		b.Run(name, func(b *testing.B) {
			s := created(b, cfg)
			control, arm := record(""), record("")
			control.Arm.Arm = "control"
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%2 == 0 {
					s.Observe(control)
				} else {
					s.Observe(arm)
				}
			}
		})
	}
}

func BenchmarkStatus(b *testing.B) {
	w := newWorld(created(b, canary(50, 50)), 1)
	for range 3000 {
		w.step(100)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.set.Status(w.now)
	}
}
