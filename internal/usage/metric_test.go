package usage_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/usage"
)

// quiet is a configuration without an access log.
func quiet() usage.Config {
	cfg := usage.Default()
	cfg.AccessLog = usage.Off
	return cfg
}

// check compares some of the scraped values.
func check(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok || math.Abs(g-w) > 1e-9 {
			t.Errorf("%s: got %v (present: %v), want %v", name, g, ok, w)
		}
	}
}

func TestMetrics(t *testing.T) {
	r := newRecorder(t, quiet(), io.Discard)
	r.Record(newRecord())
	failed := newRecord()
	failed.Code, failed.Complete, failed.Gaps = inference.CodeUpstreamCut, false, inference.Gaps{}
	failed.Attempts = failed.Attempts[1:]
	failed.Attempts[0].Verdict = inference.VerdictBroken
	r.Record(failed)
	refused := newRecord()
	refused.Attempts, refused.Code, refused.TTFT, refused.Complete, refused.Usage, refused.Gaps = nil, inference.CodeNoCapacity, 0, false, inference.Usage{}, inference.Gaps{}
	r.Record(refused)
	strange := newRecord()
	strange.Code = "no_such_code"
	r.Record(strange)

	const row = `{model="llama",pool="eu/gpu",surface="chat"}`
	check(t, gather(t, r), map[string]float64{
		`spillway_gateway_requests_total{code="ok",model="llama",pool="eu/gpu",surface="chat"}`:           1,
		`spillway_gateway_requests_total{code="upstream_cut",model="llama",pool="eu/gpu",surface="chat"}`: 1,
		`spillway_gateway_requests_total{code="no_capacity",model="llama",pool="none",surface="chat"}`:    1,
		`spillway_gateway_requests_total{code="other",model="llama",pool="eu/gpu",surface="chat"}`:        1,
		"spillway_gateway_ttft_seconds_count" + row:                                                       3,
		"spillway_gateway_ttft_seconds_sum" + row:                                                         0.27,
		"spillway_gateway_ttft_seconds_bucket" + row + " le=0.05":                                         0,
		"spillway_gateway_ttft_seconds_bucket" + row + " le=0.1":                                          3,
		"spillway_gateway_itl_seconds_count" + row:                                                        4,
		"spillway_gateway_itl_seconds_sum" + row:                                                          0.098,
		"spillway_gateway_itl_seconds_bucket" + row + " le=0.01":                                          2,
		"spillway_gateway_itl_seconds_bucket" + row + " le=0.05":                                          4,
		"spillway_gateway_e2e_seconds_count" + row:                                                        1,
		"spillway_gateway_e2e_seconds_sum" + row:                                                          2.01,
		"spillway_gateway_overhead_seconds_sum" + row:                                                     0.006,
		`spillway_gateway_tokens_total{model="llama",pool="eu/gpu",surface="chat",type="prompt"}`:         300,
		`spillway_gateway_tokens_total{model="llama",pool="eu/gpu",surface="chat",type="completion"}`:     150,
		`spillway_gateway_tokens_total{model="llama",pool="eu/gpu",surface="chat",type="cached"}`:         192,
		`spillway_gateway_tokens_total{model="llama",pool="eu/gpu",surface="chat",type="reasoning"}`:      30,
		`spillway_gateway_tokens_total{model="llama",pool="none",surface="chat",type="prompt"}`:           0,
		`spillway_gateway_attempts_total{pool="eu/gpu",verdict="ok"}`:                                     2,
		`spillway_gateway_attempts_total{pool="eu/gpu",verdict="busy"}`:                                   2,
		`spillway_gateway_attempts_total{pool="eu/gpu",verdict="broken"}`:                                 1,
		`spillway_gateway_attempts_total{pool="eu/gpu",verdict="canceled"}`:                               0,
		`spillway_gateway_retries_total{pool="eu/gpu"}`:                                                   2,
	})
}

// TestOverheadIsNeverNegative records a race, whose attempts wait in parallel.
func TestOverheadIsNeverNegative(t *testing.T) {
	r := newRecorder(t, quiet(), io.Discard)
	rec := newRecord()
	rec.Upstream = 2 * rec.Duration
	r.Record(rec)
	const row = `{model="llama",pool="eu/gpu",surface="chat"}`
	check(t, gather(t, r), map[string]float64{
		"spillway_gateway_overhead_seconds_count" + row: 1,
		"spillway_gateway_overhead_seconds_sum" + row:   0,
	})
}

func TestHedges(t *testing.T) {
	lost := inference.Attempt{Pool: "p", Verdict: inference.VerdictCanceled, Reason: "hedge_lost", TTFT: time.Millisecond}
	won := inference.Attempt{Pool: "p", TTFT: time.Millisecond}
	failed := inference.Attempt{Pool: "p", Verdict: inference.VerdictBroken, Reason: "connect"}
	left := inference.Attempt{Pool: "p", Verdict: inference.VerdictCanceled, Reason: "canceled"}
	hedge := func(a inference.Attempt) inference.Attempt { a.Hedge = true; return a }
	tests := map[string]struct {
		attempts []inference.Attempt
		result   string // "" is none
		retries  float64
	}{
		"none":                    {[]inference.Attempt{won}, "", 0},
		"hedge won":               {[]inference.Attempt{lost, hedge(won)}, "won", 0},
		"hedge lost":              {[]inference.Attempt{hedge(lost), won}, "lost", 0},
		"hedge failed":            {[]inference.Attempt{hedge(failed), won}, "failed", 0},
		"client left":             {[]inference.Attempt{left, hedge(left)}, "canceled", 0},
		"won, then cut":           {[]inference.Attempt{lost, hedge(inference.Attempt{Pool: "p", Verdict: inference.VerdictBroken, TTFT: 1})}, "won", 0},
		"both failed, then retry": {[]inference.Attempt{hedge(failed), failed, won}, "failed", 1},
		"two retries":             {[]inference.Attempt{failed, failed, won}, "", 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRecorder(t, quiet(), io.Discard)
			rec := newRecord()
			rec.Attempts = tt.attempts
			r.Record(rec)
			want := map[string]float64{`spillway_gateway_retries_total{pool="p"}`: tt.retries}
			for _, result := range []string{"won", "lost", "failed", "canceled"} {
				want[fmt.Sprintf("spillway_gateway_hedges_total{pool=\"p\",result=%q}", result)] = 0
			}
			if tt.result != "" {
				want[fmt.Sprintf("spillway_gateway_hedges_total{pool=\"p\",result=%q}", tt.result)] = 1
			}
			check(t, gather(t, r), want)
		})
	}
}

// TestModelLabels sends names that clients make up.
func TestModelLabels(t *testing.T) {
	tests := map[string]struct {
		model string
		tried bool
		want  string
	}{
		"served":               {"llama", false, "llama"},
		"made up":              {"gpt-9000", false, "unknown"},
		"empty":                {"", false, "unknown"},
		"an alias that ran":    {"alias", true, "alias"},
		"not UTF-8":            {"\xff", false, "unknown"},
		"too long":             {strings.Repeat("m", 129), false, "unknown"},
		"too long but it ran":  {strings.Repeat("m", 129), true, "other"},
		"not UTF-8 but it ran": {"\xff", true, "other"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRecorder(t, quiet(), io.Discard)
			rec := newRecord()
			rec.Request.Model = tt.model
			pool := "eu/gpu"
			if !tt.tried {
				rec.Attempts, pool = nil, "none"
			}
			for range 2 {
				r.Record(rec)
			}
			check(t, gather(t, r), map[string]float64{fmt.Sprintf("spillway_gateway_requests_total{code=\"ok\",model=%q,pool=%q,surface=\"chat\"}", tt.want, pool): 2})
		})
	}
}

// TestAliasStaysKnown refuses a request for an alias after it ran once.
func TestAliasStaysKnown(t *testing.T) {
	r := newRecorder(t, quiet(), io.Discard)
	rec := newRecord()
	rec.Request.Model = "alias"
	r.Record(rec)
	rec.Attempts, rec.Code = nil, inference.CodeOverloaded
	r.Record(rec)
	check(t, gather(t, r), map[string]float64{`spillway_gateway_requests_total{code="server_is_overloaded",model="alias",pool="none",surface="chat"}`: 1})
}

// TestSeriesAreBounded sends more models and pools than are allowed.
func TestSeriesAreBounded(t *testing.T) {
	cfg := quiet()
	cfg.MaxSeries = 10
	r := newRecorder(t, cfg, io.Discard)
	for i := range 100 {
		rec := newRecord()
		rec.Request.Model = fmt.Sprintf("model-%d", i)
		rec.Attempts[1].Pool = fmt.Sprintf("pool-%d", i)
		r.Record(rec)
	}
	got := gather(t, r)
	var rows, pools int
	var requests float64
	for name, v := range got {
		if strings.HasPrefix(name, `spillway_gateway_requests_total{code="ok"`) {
			rows++
			requests += v
		}
		if strings.HasPrefix(name, "spillway_gateway_retries_total") {
			pools++
		}
	}
	if rows != 11 || pools != 11 || requests != 100 {
		t.Errorf("got %d rows, %d pools, %v requests; want 11, 11, 100", rows, pools, requests)
	}
	check(t, got, map[string]float64{`spillway_gateway_requests_total{code="ok",model="other",pool="other",surface="chat"}`: 90})
}

func TestFleetMetrics(t *testing.T) {
	f := newFleet(t)
	r, err := usage.New(quiet(), usage.Parts{Fleet: f, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	drained, _ := f.Snapshot().Instance("10.0.0.2:8000")
	drained.Live.SetDraining(true)
	drained.Live.ObserveTTFT(time.Now().UnixNano(), 250*time.Millisecond)
	plan := fleet.NewPlan(newRecord().Request)
	plan.Candidates = append(plan.Candidates, fleet.Candidate{Pool: f.Snapshot().Regions[0].Pools[0], Model: "meta-llama", Picker: first{}})
	lease, err := plan.Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	const one, two = `{instance="eu/gpu/10.0.0.1:8000",pool="eu/gpu",region="eu"}`, `{instance="eu/gpu/10.0.0.2:8000",pool="eu/gpu",region="eu"}`
	check(t, gather(t, r), map[string]float64{
		"spillway_fleet_snapshot_version":             1,
		"spillway_fleet_instance_in_flight" + one:     1,
		"spillway_fleet_instance_in_flight" + two:     0,
		"spillway_fleet_instance_prompt_tokens" + one: 100,
		"spillway_fleet_instance_ttft_seconds" + two:  0.25,
		"spillway_fleet_instance_weight" + one:        1,
		"spillway_fleet_instance_capacity" + one:      8,
		`spillway_fleet_instance_status{instance="eu/gpu/10.0.0.1:8000",pool="eu/gpu",region="eu",status="open"}`:     1,
		`spillway_fleet_instance_status{instance="eu/gpu/10.0.0.1:8000",pool="eu/gpu",region="eu",status="draining"}`: 0,
		`spillway_fleet_instance_status{instance="eu/gpu/10.0.0.2:8000",pool="eu/gpu",region="eu",status="draining"}`: 1,
		`spillway_fleet_pool_in_flight{pool="eu/gpu",region="eu"}`:                                                    1,
		`spillway_fleet_pool_prompt_tokens{pool="eu/gpu",region="eu"}`:                                                100,
		`spillway_fleet_pool_instances{pool="eu/gpu",region="eu",status="draining"}`:                                  1,
		`spillway_fleet_pool_instances{pool="eu/gpu",region="eu",status="open"}`:                                      1,
		`spillway_fleet_pool_instances{pool="eu/gpu",region="eu",status="down"}`:                                      0,
	})
	lease.Release(time.Now())
	check(t, gather(t, r), map[string]float64{"spillway_fleet_instance_in_flight" + one: 0})
}

// first picks the first node that is open.
type first struct{}

func (first) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	for i, n := range nodes {
		if q.Open(n) {
			return i
		}
	}
	return -1
}

// TestConcurrentRecords records from many goroutines while others scrape.
func TestConcurrentRecords(t *testing.T) {
	out := &output{room: -1}
	r := newRecorder(t, usage.Default(), out)
	stop := start(t, r)
	const workers, each = 8, 200
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				rec := newRecord()
				rec.Request.Model = fmt.Sprintf("model-%d", i%7)
				r.Record(rec)
				if i%50 == w {
					gather(t, r)
				}
			}
		})
	}
	wg.Wait()
	stop()
	if got := strings.Count(out.String(), "\n"); got != workers*each {
		t.Errorf("got %d lines, want %d", got, workers*each)
	}
	var sum float64
	for name, v := range gather(t, r) {
		if strings.HasPrefix(name, "spillway_gateway_e2e_seconds_count") {
			sum += v
		}
	}
	if sum != workers*each {
		t.Errorf("got %v requests, want %d", sum, workers*each)
	}
}

func BenchmarkRecord(b *testing.B) {
	for name, log := range map[string]string{"log": usage.Stdout, "off": usage.Off} {
		b.Run(name, func(b *testing.B) {
			cfg := usage.Default()
			cfg.AccessLog = log
			r := newRecorder(b, cfg, io.Discard)
			stop := start(b, r)
			defer stop()
			rec := newRecord()
			b.ReportAllocs()
			for b.Loop() {
				r.Record(rec)
			}
			b.ReportMetric(gather(b, r)[`spillway_usage_log_lines_dropped_total{reason="full"}`]/float64(b.N), "dropped/op")
		})
	}
}

func ExampleRecorder() {
	log := slog.New(slog.DiscardHandler)
	recorder, err := usage.New(usage.Default(), usage.Parts{Fleet: fleet.New(log), Stdout: os.Stdout, Log: log})
	if err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	recorder.Record(&inference.Record{
		Request:  &inference.Request{ID: "req_1", Tenant: "acme", Received: time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)},
		Code:     inference.CodeNoCapacity,
		Status:   503,
		Duration: 1500 * time.Microsecond,
	})
	stop()
	fmt.Println(recorder.Run(ctx))
	// Output:
	// {"time":"2026-11-20T10:00:00.0015Z","level":"INFO","msg":"request","component":"usage","request_id":"req_1","surface":"chat","model":"","tenant":"acme","class":"normal","code":"no_capacity","status":503,"attempts":[],"prompt_tokens":0,"completion_tokens":0,"cached_tokens":0,"reasoning_tokens":0,"ttft_ms":0,"duration_ms":1.5,"upstream_ms":0,"overhead_ms":1.5,"bytes":0,"stream":false,"complete":false}
	// <nil>
}
