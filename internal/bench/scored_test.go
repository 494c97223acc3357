package bench_test

import (
	"math"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

func TestLedger(t *testing.T) {
	var l bench.Ledger
	l.Add(load.Outcome{
		Row: 7, Attempt: 1, Class: "vip", Tenant: "a", Prompt: 10, Output: 20, Due: sec, At: 3 * sec, Sent: 3*sec + ms,
		First: 4 * sec, End: 5 * sec, Tokens: 20, Whole: true, Status: 200, Returner: true,
	})
	l.Add(load.Outcome{Row: 8, End: sec, Code: "server_is_overloaded", Status: 503, RetryAfter: 2 * sec, Ticket: true, Server: 300 * us})
	l.Add(load.Outcome{Row: 9, End: sec, Code: "http_500", Status: 500})
	want := []bench.Try{
		{Request: 7, Class: inference.VIP, Tenant: "a", Prompt: 10, Output: 20, At: 3 * sec, Sent: 3*sec + ms, First: 4 * sec, End: 5 * sec, Tokens: 20, Whole: true, Returner: true},
		{Request: 8, End: sec, Refused: true, RetryAfter: 2 * sec, Ticket: true, Server: 300 * us},
		{Request: 9, End: sec},
	}
	if diff := gocmp.Diff(want, l.Tries()); diff != "" {
		t.Errorf("tries (-want +got):\n%s", diff)
	}
}

func TestFill(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	vip := with(served(2*sec, 500*ms), func(t *bench.Try) { t.Class = inference.VIP })
	tries := []bench.Try{vip, served(sec, sec), refused(3 * sec), with(served(13*sec+2*ms, sec), func(t *bench.Try) { t.Returner = true }), refused(4 * sec), {Prompt: 100, Output: 100, At: 5 * sec, Sent: 5 * sec, End: 6 * sec}}
	for i, r := range []int{0, 1, 2, 2, 3, 4} {
		tries[i].Request = r
	}
	tries[2].Server = 250 * us
	score := bench.Score(tries, terms(func(t *bench.Terms) { t.Trigger = bench.Trigger{Start: 20 * sec, End: 30 * sec} }))

	var got load.System
	score.Fill(&got)
	seconds := func(v float64) *load.Latency {
		return &load.Latency{Mean: v * 1000, P50: v * 1000, P90: v * 1000, P99: v * 1000, P999: v * 1000, Max: v * 1000, Count: 1}
	}
	two := func(mean, low, high float64) *load.Latency {
		return &load.Latency{Mean: math.Round(mean * 1000), P50: low * 1000, P90: high * 1000, P99: high * 1000, P999: high * 1000, Max: high * 1000, Count: 2}
	}
	want := load.System{
		Offered: 5, Answered: 3, Availability: f(0.6), Errors: map[string]int64{"refused": 1, "unanswered": 1},
		GoodputRatio: f(0.6), Optimum: f(5), GoodPerS: f(0.03), FeasibleRatio: f(0.6), OfferedLoad: f(0.01), Wasted: f(0),
		Rejections:        &load.Rejections{Count: 2, P99MS: f(2), ServerP99MS: f(0.25)},
		RetryAfterHonesty: f(1), StarvationS: f(11.002), RecoveryS: f(-1),
		Classes: map[string]load.Group{
			"vip": {
				Offered: 1, Answered: 1, Availability: f(1), SLOAttainment: f(1), TTFT: seconds(0.5), E2E: seconds(2.5),
				SLO: &load.Objectives{TTFT: 1000, TPOT: 50},
			},
			"normal": {
				Offered: 4, Answered: 2, Availability: f(0.5), SLOAttainment: f(0.5), TTFT: two(1, 1, 1), E2E: two(8.0010, 3, 13.002),
				SLO: &load.Objectives{TTFT: 5000, TPOT: 50},
			},
		},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}

	// What the generator has counted stays.
	got = load.System{Offered: 9, Answered: 8, Errors: map[string]int64{"http_503": 1}}
	score.Fill(&got)
	if got.Offered != 9 || got.Answered != 8 || len(got.Errors) != 1 || *got.GoodputRatio != 0.6 {
		t.Errorf("got %d offered, %d answered, errors %v", got.Offered, got.Answered, got.Errors)
	}
}

func TestTraceMix(t *testing.T) {
	cfg := load.Default()
	cfg.Schedule.Trace.Path, cfg.Schedule.Trace.MaxRows = "../load/testdata/azure-2023-conv.csv", 5
	cfg.Schedule.Rate, cfg.Schedule.Duration = 100, time.Minute // do not matter
	cfg.Request.MaxTokens = 100
	mix, err := bench.TraceMix(cfg, load.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []bench.Lengths{{374, 44}, {396, 100}, {879, 55}, {91, 16}, {91, 16}}
	if diff := gocmp.Diff(want, mix.Lengths); diff != "" {
		t.Errorf("lengths (-want +got):\n%s", diff)
	}
	near(t, "rate", mix.Rate, 5/(mixSpan(t, cfg).Seconds()*5/4), 1e-6)
	cfg.Schedule.Trace.Path = "nowhere-azure-2023.csv"
	if _, err := bench.TraceMix(cfg, load.Options{}); err == nil {
		t.Error("no error for a trace that is not there")
	}
}

// mixSpan is the time from a trace's first to its last request.
func mixSpan(t *testing.T, cfg load.Config) time.Duration {
	t.Helper()
	cfg.Schedule.Rate, cfg.Schedule.Duration = 0, 0
	var last time.Duration
	for p, err := range load.Plan(cfg, load.Options{}) {
		if err != nil {
			t.Fatal(err)
		}
		last = p.At
	}
	return last
}
