package experiment_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route/experiment"
)

// disk is a Keep in memory.
type disk struct {
	mu    sync.Mutex
	files map[string]string
	fault error
}

func newDisk() *disk { return &disk{files: make(map[string]string)} }

func (d *disk) Read(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if text, ok := d.files[name]; ok {
		return []byte(text), nil
	}
	return nil, fs.ErrNotExist
}

func (d *disk) Write(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault != nil {
		return d.fault
	}
	d.files[name] = string(data)
	return nil
}

// has is what is kept.
func (d *disk) has() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.files)
}

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) text() string { l.mu.Lock(); defer l.mu.Unlock(); return l.buf.String() }

// running starts a set and its Run, and returns what ends it.
func running(t *testing.T, d *disk, log *logged, cfg ...experiment.Config) (*experiment.Set, func()) {
	t.Helper()
	s, err := experiment.New(cfg, experiment.Parts{Log: slog.New(slog.NewTextHandler(log, nil)), Keep: d, Compile: compile})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	synctest.Wait()
	return s, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// break5 lets the canary fail until it is rolled back.
func break5(t *testing.T, s *experiment.Set) *world {
	t.Helper()
	w := newWorld(s, 1)
	w.now = time.Now().Add(time.Second)
	w.base, w.effects["canary"] = effect{0, 1}, effect{0.3, 1}
	for i := 0; w.step(100) != (inference.Arm{}); i++ {
		if i > 5000 {
			t.Fatal("a canary with 30% errors goes on")
		}
	}
	return w
}

func TestRollbackSaysWhyAndOutlivesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, log := newDisk(), new(logged)
		s, stop := running(t, d, log, canary(50, 50))
		w := break5(t, s)
		st := s.Status(w.now)[0]
		for _, part := range []string{`error rate: of arm "canary"`, "of control", "points more", "after"} {
			if !strings.Contains(st.Reason, part) {
				t.Errorf("no %q in the reason %q", part, st.Reason)
			}
		}
		if st.State.State != experiment.RolledBack || st.Share != 0 || st.Arms[1].Errors["upstream_error"] == 0 {
			t.Errorf("got %+v", st)
		}
		if !strings.Contains(log.text(), `level=WARN msg="an experiment is rolled back"`) {
			t.Errorf("no warning in %s", log.text())
		}
		synctest.Wait() // the disk is Run's
		if text := d.has()["experiment-canary.json"]; !strings.Contains(text, "rolled_back") {
			t.Errorf("kept %q", text)
		}

		harder := canary(60, 40)
		for what, change := range map[string]experiment.Config{"a reload": canary(50, 50), "other weights": harder} {
			if err := s.Apply([]experiment.Config{change}); err != nil {
				t.Fatal(err)
			}
			if got := s.Status(w.now)[0]; got.State.State != experiment.RolledBack || got.Reason != st.Reason {
				t.Errorf("after %s: got %+v", what, got.State)
			}
		}
		stop()

		again, stop := running(t, d, log, canary(50, 50))
		defer stop()
		if got := again.Status(w.now)[0]; got.State.State != experiment.RolledBack || got.Reason != st.Reason {
			t.Errorf("after a restart: got %+v", got.State)
		}
		if arm := where(again, w.now, of(1)); arm != "" {
			t.Errorf("after a restart a request is in %q", arm)
		}
		if err := again.Start(w.now, "canary", "alice"); err != nil {
			t.Fatal(err)
		}
		if got := again.Status(w.now)[0]; got.State.State != experiment.Running || got.State.By != "alice" || got.Arms[1].Requests != 0 || !got.Started.Equal(w.now) {
			t.Errorf("after an order: got %+v", got)
		}
		if text := d.has()["experiment-canary.json"]; !strings.Contains(text, `"running"`) {
			t.Errorf("kept %q", text)
		}
	})
}

// TestRollbackOutlivesItsConfiguration, also when the disk had not been asked yet.
func TestRollbackOutlivesItsConfiguration(t *testing.T) {
	d := newDisk()
	s, err := experiment.New([]experiment.Config{canary(50, 50)}, experiment.Parts{Log: quiet(), Keep: d})
	if err != nil {
		t.Fatal(err)
	}
	w := break5(t, s)
	for _, cfg := range [][]experiment.Config{nil, {canary(50, 50)}} {
		if err := s.Apply(cfg); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.state(); got != experiment.RolledBack {
		t.Errorf("the experiment is %s after it was taken out of the configuration and put back", got)
	}
}

func TestGuardOnTTFTSaysWhy(t *testing.T) {
	w := newWorld(created(t, canary(50, 50)), 1)
	w.effects["canary"] = effect{0, 2}
	for range 3000 {
		w.step(100)
	}
	if st := w.set.Status(w.now)[0]; !strings.Contains(st.Reason, `ttft: typically`) || !strings.Contains(st.Reason, "% more, between") {
		t.Errorf("got %+v", st.State)
	}
}

// TestTheGuardSharesItsAlpha among the arms and the guards that are on.
func TestTheGuardSharesItsAlpha(t *testing.T) {
	three, one := canary(1, 1), canary(1, 1)
	three.Arms = append(three.Arms, experiment.Arm{Name: "third", Weight: 1})
	one.Guard.TTFT = 0
	for want, cfg := range map[string]experiment.Config{"at an error of 0.025,": canary(1, 1), "at an error of 0.0125,": three, "at an error of 0.05,": one} {
		s := created(t, cfg)
		break5(t, s)
		if got := s.Status(time.Now())[0].Reason; !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

func TestGuardsAndSmallDifferences(t *testing.T) {
	off := canary(50, 50)
	off.Guard.ErrorRate, off.Guard.TTFT = 0, 0
	lenient := canary(50, 50)
	lenient.Guard.ErrorRate, lenient.Guard.TTFT = 0.5, 3
	patient := canary(50, 50)
	patient.Guard.MinRequests = 4000
	better := canary(50, 50)
	for name, c := range map[string]struct {
		cfg  experiment.Config
		base effect
		bad  effect
	}{
		"no guard":              {off, effect{0, 1}, effect{0.2, 2}},
		"worse, but not enough": {lenient, effect{0, 1}, effect{0.2, 2}},
		"too few":               {patient, effect{0, 1}, effect{0.2, 2}},
		"better":                {better, effect{0.3, 2}, effect{0, 1}},
	} {
		w := newWorld(created(t, c.cfg), 5)
		w.base, w.effects["canary"] = c.base, c.bad
		for range 5000 {
			w.step(100)
		}
		if got := w.state(); got != experiment.Running {
			t.Errorf("%s: %s, %s", name, got, w.set.Status(w.now)[0].Reason)
		}
	}
}

func TestOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, log := newDisk(), new(logged)
		s, stop := running(t, d, log, canary(50, 50))
		defer stop()
		now := time.Now().Add(time.Minute)
		if err := s.Start(now, "canary", "alice"); err != nil || s.Status(now)[0].State.By != "" {
			t.Errorf("an order to start what runs: %v, %+v", err, s.Status(now)[0].State)
		}
		if err := s.Stop(now, "canary", "alice"); err != nil || where(s, now, of(1)) != "" {
			t.Errorf("stopped: %v, arm %q", err, where(s, now, of(1)))
		}
		if got := s.Status(now)[0].State; got.State != experiment.Stopped || got.By != "alice" || !got.Since.Equal(now) {
			t.Errorf("got %+v", got)
		}
		if err := s.Stop(now, "none", ""); !errors.Is(err, experiment.ErrUnknown) {
			t.Errorf("unknown: got %v", err)
		}
		if err := s.Stop(now, "canary", "a\nb"); err == nil || !strings.HasPrefix(err.Error(), "by: ") {
			t.Errorf("two lines: got %v", err)
		}
		d.mu.Lock()
		d.fault = errors.New("the disk is full")
		d.mu.Unlock()
		if err := s.Start(now, "canary", ""); !errors.Is(err, experiment.ErrNotKept) || s.Status(now)[0].State.State != experiment.Running {
			t.Errorf("got %v, %+v", err, s.Status(now)[0].State)
		}
		d.mu.Lock()
		d.fault = nil
		d.mu.Unlock()
		time.Sleep(time.Minute) // Run tries again
		synctest.Wait()
		if text := d.has()["experiment-canary.json"]; !strings.Contains(text, `"running"`) {
			t.Errorf("kept %q", text)
		}
	})
}

func TestWhatIsKept(t *testing.T) {
	const good = `{"version":1,"mark":"00000000000000ff","state":"stopped","started":"2026-01-01T00:00:00Z","since":"2026-01-02T00:00:00Z","by":"alice"}`
	for name, c := range map[string]struct {
		text   string
		state  string
		reason string
	}{
		"nothing":          {"", experiment.Running, ""},
		"stopped":          {good, experiment.Stopped, ""},
		"other arms":       {strings.Replace(good, "stopped", "running", 1), experiment.Running, ""},
		"no JSON":          {"{", experiment.Stopped, "cannot be read"},
		"more":             {good + "{}", experiment.Stopped, "follows"},
		"a later release":  {strings.Replace(good, `"version":1`, `"version":2`, 1), experiment.Stopped, "version 2"},
		"an unknown state": {strings.Replace(good, "stopped", "odd", 1), experiment.Stopped, "unknown state"},
		"an unknown key":   {strings.Replace(good, "by", "from", 1), experiment.Stopped, "from"},
		"no beginning":     {strings.Replace(good, "started", "Xtarted", 1), experiment.Stopped, "cannot be read"},
		"a strange mark":   {strings.Replace(good, "00000000000000ff", "zz", 1), experiment.Stopped, "mark"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk()
			if c.text != "" {
				d.files["experiment-canary.json"] = c.text
			}
			s, err := experiment.New([]experiment.Config{canary(1, 1)}, experiment.Parts{Log: quiet(), Keep: d})
			if err != nil {
				t.Fatal(err)
			}
			got := s.Status(time.Now())[0].State
			if got.State != c.state || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %+v", got)
			}
			if len(d.has()) != min(1, len(c.text)) || c.text != d.files["experiment-canary.json"] {
				t.Errorf("New has written %v", d.has())
			}
		})
	}
}

func TestTheRampGoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := canary(1, 1)
		c.Ramp = []experiment.Step{{Share: 0.1}, {After: time.Hour, Share: 0.5}}
		d, log := newDisk(), new(logged)
		_, stop := running(t, d, log, c)
		stop()
		time.Sleep(2 * time.Hour)
		s, stop := running(t, d, log, c)
		if got := s.Status(time.Now())[0].Share; got != 0.5 {
			t.Errorf("two hours and a restart later the share is %v, want 0.5", got)
		}
		c.Ramp[1].Share = 0.6
		if err := s.Apply([]experiment.Config{c}); err != nil || s.Status(time.Now())[0].Share != 0.6 {
			t.Errorf("another ramp: %v, %+v", err, s.Status(time.Now())[0])
		}
		w := newWorld(s, 1)
		w.now = time.Now().Add(time.Second)
		for range 100 {
			w.step(1000)
		}
		if err := s.Apply([]experiment.Config{c}); err != nil || s.Status(w.now)[0].Arms[0].Requests == 0 {
			t.Errorf("the same again has no samples: %v", err)
		}
		c.Arms[1].Weight = 2
		if err := s.Apply([]experiment.Config{c}); err != nil {
			t.Fatal(err)
		}
		if got := s.Status(time.Now())[0]; got.Share != 0.1 || got.Arms[0].Requests != 0 {
			t.Errorf("other weights: got %+v", got)
		}
		if !strings.Contains(log.text(), "begins again") {
			t.Errorf("the log says nothing of it: %s", log.text())
		}
		c.When = "nonsense"
		if err := s.Apply([]experiment.Config{c}); err == nil || !strings.HasPrefix(err.Error(), "experiments[0].when: ") || s.Status(time.Now())[0].Share != 0.1 {
			t.Errorf("a mistake: got %v", err)
		}
		stop()
	})
}

// TestOldRequestsAreNotOfANewBeginning: their arm was another one.
func TestOldRequestsAreNotOfANewBeginning(t *testing.T) {
	s := created(t, canary(1, 1))
	begin := began()
	if err := errors.Join(s.Stop(begin, "canary", ""), s.Start(begin, "canary", "")); err != nil {
		t.Fatal(err)
	}
	arm := inference.Arm{Experiment: "canary", Arm: "canary"}
	for i, age := range []time.Duration{time.Second, 0} {
		s.Observe(&inference.Record{Request: &inference.Request{ID: "r", Received: begin.Add(-age)}, Arm: arm, Complete: true, Attempts: make([]inference.Attempt, 1), Duration: time.Minute})
		if got := s.Status(begin)[0].Arms[1].Requests; got != uint64(i) {
			t.Errorf("got %d requests, want %d", got, i)
		}
	}
}

func TestMetricsSurviveABeginning(t *testing.T) {
	s := created(t, canary(1, 1))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s)
	w := newWorld(s, 1)
	for range 200 {
		w.step(100)
	}
	read := func() (requests float64, states map[string]float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		states = make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				switch f.GetName() {
				case "spillway_route_experiment_requests_total":
					requests += m.GetCounter().GetValue()
				case "spillway_route_experiment_state":
					states[label(m, "state")] = m.GetGauge().GetValue()
				}
			}
		}
		return requests, states
	}
	if n, states := read(); n != 200 || states["running"] != 1 || states["stopped"] != 0 || len(states) != 3 {
		t.Errorf("got %v requests, states %v", n, states)
	}
	if err := s.Stop(w.now, "canary", ""); err != nil {
		t.Fatal(err)
	}
	if n, states := read(); n != 200 || states["running"] != 0 || states["stopped"] != 1 {
		t.Errorf("got %v requests, states %v", n, states)
	}
	if err := errors.Join(s.Start(w.now, "canary", ""), s.Apply([]experiment.Config{canary(1, 2)})); err != nil {
		t.Fatal(err)
	}
	if n, _ := read(); n != 200 {
		t.Errorf("got %v requests, want 200", n)
	}
}

// label is the value of a label.
func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func TestRuns(t *testing.T) {
	cfg := experiment.Default()
	cfg.Name, cfg.Arms = "e", []experiment.Arm{{Name: "a", Weight: 1}, {Name: "b", Weight: 1}}
	s, err := experiment.New([]experiment.Config{cfg}, experiment.Parts{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	arm := inference.Arm{Experiment: "e", Arm: "a"}
	if !s.Runs(arm) || s.Runs(inference.Arm{Experiment: "e", Arm: "c"}) || s.Runs(inference.Arm{Experiment: "f", Arm: "a"}) {
		t.Error("an arm that is there does not run, or one that is not does")
	}
	if err := s.Stop(time.Now(), "e", "t"); err != nil && !errors.Is(err, experiment.ErrNotKept) {
		t.Fatal(err)
	}
	if s.Runs(arm) {
		t.Error("it runs although it is stopped")
	}
}
