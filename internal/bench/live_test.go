package bench_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/load"
)

// TestLive plays a comparison of a few seconds with two small engines. It asserts
// what is reported and that nothing stays behind, not how fast the machine is.
func TestLive(t *testing.T) {
	binary, err := bench.Binary()
	if err != nil {
		t.Fatal(err)
	}
	o := bench.DefaultOverload()
	o.Loads, o.Engines, o.Seeds = []float64{3}, 2, 1
	o.Systems = []string{bench.SystemDirect, bench.SystemSpillway, "spillway-gradient2"}
	o.Duration, o.Warmup, o.Trace = 3*time.Second, time.Second, bench.ExcerptTrace
	o.Args = strings.Fields("--step-base 2ms --step-per-seq 20us --step-per-prompt-token 2us --max-seqs 4")
	o.Binary, o.Out, o.Err = binary, t.Output(), t.Output()
	result, err := o.Live(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range result.Systems {
		names = append(names, s.Name)
		wellReported(t, &s)
	}
	if diff := cmp.Diff(o.Systems, names); diff != "" {
		t.Errorf("systems (-want +got):\n%s", diff)
	}
	zero := 0
	for _, v := range result.Verdicts {
		if strings.HasSuffix(v.Name, "counters not at zero") {
			zero++
			if !v.OK {
				t.Error(v)
			}
		}
	}
	if zero != len(o.Systems) {
		t.Errorf("%d verdicts on counters, want one for each system", zero)
	}
}

// wellReported checks that a system's part of a report is complete.
func wellReported(t *testing.T, s *load.System) {
	t.Helper()
	if s.Offered == 0 || s.Load != 3 || s.GoodputRatio == nil || s.Optimum == nil || *s.Optimum <= 0 || s.FeasibleRatio == nil || s.StarvationS == nil {
		t.Errorf("%s: %+v", s.Name, s)
	}
	if got := s.Offered - s.Answered - s.Truncated; got != sum(s.Errors) {
		t.Errorf("%s: %d offered, %d answered, errors %v", s.Name, s.Offered, s.Answered, s.Errors)
	}
	for _, class := range []string{"vip", "normal", "batch"} {
		if g := s.Classes[class]; g.Offered == 0 || g.SLOAttainment == nil || g.SLO == nil {
			t.Errorf("%s: class %s: %+v", s.Name, class, g)
		}
	}
	said := strings.Join(s.Notes, "\n")
	for _, want := range []string{"2 engines, each `spillway engine --prefix-cache=false --step-base 2ms", "clients wait 10 s (vip)"} {
		if !strings.Contains(said, want) {
			t.Errorf("%s: no note says %q:\n%s", s.Name, want, said)
		}
	}
	if s.Name == bench.SystemDirect {
		return
	}
	limit := map[string]string{bench.SystemSpillway: "learned", "spillway-gradient2": "gradient2"}[s.Name]
	if !strings.Contains(said, "admission.limit "+limit+"; objectives: first token within 1s, 5s and 1m0s, 50ms per token") {
		t.Errorf("%s: its settings are not in the notes:\n%s", s.Name, said)
	}
	if r := s.Rejections; s.Name == bench.SystemSpillway && (r == nil || r.Count == 0 || r.P99MS == nil || r.ServerP99MS == nil) {
		t.Errorf("%s: rejections %+v, want some at three times the capacity", s.Name, r)
	}
}

// sum adds up counts.
func sum(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// TestLiveCannotBePlayed: what is wrong is said before anything runs.
func TestLiveCannotBePlayed(t *testing.T) {
	cases := map[string]struct {
		change func(*bench.Overload)
		want   string
	}{
		"settings": {func(o *bench.Overload) { o.Seeds = 0 }, "seeds: "},
		"scenario": {func(o *bench.Overload) { o.Scenario = "E3" }, "virtual time only"},
		"trace":    {func(o *bench.Overload) { o.Trace = "nowhere.csv" }, "nowhere.csv"},
		"program":  {func(o *bench.Overload) { o.Binary = "/nonexistent" }, "direct at 2x, seed 1: start engine 1: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o := bench.DefaultOverload()
			o.Trace, o.Out, o.Err = bench.ExcerptTrace, t.Output(), t.Output()
			c.change(&o)
			if _, err := o.Live(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestLiveOutage: a bound on what cold engines can do has them no slower than they
// are, and as before in the end.
func TestLiveOutage(t *testing.T) {
	const s = time.Second
	fleet := []bench.Server{{}, {}}
	speeds := func(changes []bench.Change) (out []float64) {
		for _, c := range changes {
			sum := 0.0
			for _, e := range c.Fleet {
				if e.Speed == 0 {
					e.Speed = 1
				}
				sum += e.Speed
			}
			out = append(out, sum)
		}
		return out
	}
	changes, trigger := bench.LiveOutage(fleet, 1, false, 10*s, 20*s)
	if diff := cmp.Diff([]float64{1, 2}, speeds(changes)); diff != "" || trigger != (bench.Trigger{Start: 10 * s, End: 20 * s}) {
		t.Errorf("one engine: trigger %v, speeds\n%s", trigger, diff)
	}
	changes, trigger = bench.LiveOutage(fleet, 2, true, 10*s, 20*s)
	// Five times slower falls to one in 20 s: four, three, two and one at the ends of the quarters.
	if diff := cmp.Diff([]float64{0, 0.5, 2.0 / 3, 1, 2, 2}, speeds(changes)); diff != "" || trigger != (bench.Trigger{Start: 10 * s, End: 40 * s}) {
		t.Errorf("all engines: trigger %v, speeds\n%s", trigger, diff)
	}
	if !slices.IsSortedFunc(changes, func(a, b bench.Change) int { return int(a.At - b.At) }) {
		t.Error("the changes are not in order of time")
	}
}
