package load_test

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/load"
)

// planned collects a plan.
func planned(t *testing.T, cfg load.Config) []load.Planned {
	t.Helper()
	var out []load.Planned
	for p, err := range load.Plan(cfg, load.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// overload is a mix of classes and recorded clients at a multiple of the trace's
// speed.
func overload(speed float64, duration time.Duration) load.Config {
	cfg := config("http://server", 1)
	cfg.Schedule = load.Default().Schedule
	cfg.Schedule.Trace.Path, cfg.Schedule.Trace.Speed = "testdata/arena-27clients.csv", speed
	cfg.Schedule.Duration = duration
	cfg.Request.MaxTokens = 300
	cfg.Classes = []load.Class{{Name: "vip", Share: 0.2}, {Name: "batch", Share: 0.2}, {Name: "normal", Share: 9.6}}
	return cfg
}

// TestPlanIsWhatRunSends runs a configuration and compares what was sent.
func TestPlanIsWhatRunSends(t *testing.T) {
	tests := map[string]load.Config{
		"trace": overload(100, 2*time.Second),
		"rate": func() load.Config {
			cfg := overload(1, 2*time.Second)
			cfg.Schedule.Rate, cfg.Request.Streamed, cfg.Request.Repeat = 60, 0.5, 0.3
			cfg.Tenants = []load.Tenant{{Name: "a", APIKey: "x"}, {Name: "b", APIKey: "y"}}
			return cfg
		}(),
	}
	for name, cfg := range tests {
		t.Run(name, func(t *testing.T) {
			cfg.Target.BaseURLs = []string{serve(t, sse(token, finish, done))}
			var got outcomes
			run(t, cfg, load.Options{Outcome: got.add})
			var sent, want []load.Planned
			for _, o := range got.sorted() {
				sent = append(sent, load.Planned{Row: o.Row, At: o.Due, Prompt: o.Prompt, Output: o.Output, Class: o.Class, Tenant: o.Tenant})
			}
			cfg.Target = load.Target{Surface: cfg.Target.Surface} // a plan needs none
			for _, p := range planned(t, cfg) {
				want = append(want, load.Planned{Row: p.Row, At: p.At, Prompt: p.Prompt, Output: p.Output, Class: p.Class, Tenant: p.Tenant})
			}
			if diff := gocmp.Diff(want, sent); diff != "" || len(want) < 50 {
				t.Errorf("%d requests (-planned +sent):\n%s", len(want), diff)
			}
		})
	}
}

// TestPlanRepeats: a trace shorter than the run comes again with the same lengths
// and tenants, in passes of its own.
func TestPlanRepeats(t *testing.T) {
	one := planned(t, overload(100, 0))
	all := planned(t, overload(100, time.Duration(3.5*float64(one[len(one)-1].At))))
	if len(all) < 3*len(one) {
		t.Fatalf("%d requests of passes of %d, want three passes", len(all), len(one))
	}
	for i, p := range all {
		first := one[i%len(one)]
		if p.Tenant != first.Tenant || p.Prompt != first.Prompt || p.Output != first.Output || p.Pass != uint64(i/len(one)) {
			t.Fatalf("request %d: got %+v, want the like of %+v", i, p, first)
		}
		if p.Output > 300 {
			t.Errorf("request %d: %d output tokens, want at most max_tokens", i, p.Output)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b load.Planned) int { return int(a.At - b.At) }) {
		t.Error("instants run backwards")
	}
}

// TestClassMix: at 10 times the capacity a class of 0.2 times the capacity is 2%
// of the requests, within three standard deviations of a fair draw.
func TestClassMix(t *testing.T) {
	cfg := overload(1, 100*time.Second)
	cfg.Schedule.Rate = 1000
	counts := map[string]float64{}
	all := planned(t, cfg)
	for _, p := range all {
		counts[p.Class]++
	}
	n := float64(len(all))
	for class, share := range map[string]float64{"vip": 0.02, "batch": 0.02, "normal": 0.96} {
		if bound := 3 * math.Sqrt(share*(1-share)/n); math.Abs(counts[class]/n-share) > bound {
			t.Errorf("%s: %.4f of %.0f requests, want %.4f within %.4f", class, counts[class]/n, n, share, bound)
		}
	}
}

func TestPlanFails(t *testing.T) {
	tests := map[string]struct {
		change func(*load.Config)
		want   string
	}{
		"invalid":  {func(c *load.Config) { c.Schedule.Trace.Speed = 0 }, "schedule.trace.speed: must be > 0, got 0"},
		"sessions": {func(c *load.Config) { c.Schedule.Trace.Path = "testdata/agent-coding-sessions-odd.jsonl" }, "schedule.trace: closed sessions have no plan"},
		"no file":  {func(c *load.Config) { c.Schedule.Trace.Path = "testdata/no-azure-2023.csv" }, "schedule: open testdata/no-azure-2023.csv: no such file or directory"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := overload(1, 0)
			tt.change(&cfg)
			n := 0
			for _, err := range load.Plan(cfg, load.Options{}) {
				if n++; n > 1 || err == nil || err.Error() != tt.want {
					t.Errorf("%d: got %v, want only %q", n, err, tt.want)
				}
			}
			if n != 1 {
				t.Errorf("yielded %d times, want once", n)
			}
		})
	}
	for range load.Plan(overload(1, 0), load.Options{}) {
		break // a reader may stop early
	}
}

func ExamplePlan() {
	cfg := load.Default()
	cfg.Schedule.Rate, cfg.Schedule.Duration, cfg.Schedule.Arrivals = 1, 3*time.Second, load.Uniform
	cfg.Classes = []load.Class{{Name: "vip", Share: 1}}
	for p, err := range load.Plan(cfg, load.Options{}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(p.At, p.Class, p.Prompt, p.Output)
	}
	// Output:
	// 500ms vip 256 128
	// 1.5s vip 256 128
	// 2.5s vip 256 128
}
