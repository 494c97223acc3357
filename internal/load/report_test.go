package load_test

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/load"
)

// slowFS holds the test data behind reads that take a second.
type slowFS struct{}

func (slowFS) Open(name string) (fs.File, error) {
	f, err := os.DirFS("testdata").Open(name)
	return slowFile{f}, err
}

type slowFile struct{ fs.File }

func (f slowFile) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	return f.File.Read(p)
}

func pointer[T any](v T) *T { return &v }

func sampleReport() *load.Report {
	r := load.NewReport("demo", 7)
	r.Add(load.System{
		Name: "direct", Load: 0.8, Offered: 100, Answered: 80, Truncated: 2, Availability: pointer(0.8), GoodputRatio: pointer(0.75),
		Errors: map[string]int64{"connect": 15, "cut": 3}, TTFT: &load.Latency{Mean: 12, P50: 10, P90: 20, P99: 30, P999: 40},
		TokensPerS: pointer(1234.0), SLO: &load.Objectives{TTFT: 5000},
	})
	r.Add(load.System{
		Name: "spillway", Load: 0.8, InvalidReason: "schedule lag p99 7.0 ms", Offered: 100, Answered: 98, CutOpen: pointer[int64](4),
		Availability: pointer(0.98), Errors: map[string]int64{"upstream_cut": 2},
		Classes: map[string]load.Group{"vip": {Offered: 10, SLOAttainment: pointer(1.0), TTFT: &load.Latency{P50: 9, P99: 11}}},
	})
	return r
}

func TestTable(t *testing.T) {
	var got strings.Builder
	if err := sampleReport().WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	want := `demo (seed 7)
                     direct 0.8x  spillway 0.8x
offered                      100            100
answered                      80             98
truncated                      2              0
cut_open                       -              4
error connect                 15              0
error cut                      3              0
error upstream_cut             0              2
availability              80.00%         98.00%
goodput ratio             75.00%              -
TTFT mean ms                12.0              -
TTFT p50 ms                 10.0              -
TTFT p90 ms                 20.0              -
TTFT p99 ms                 30.0              -
TTFT p99.9 ms               40.0              -
tokens/s                    1234              -
vip offered                    -             10
vip within SLO                 -        100.00%
vip TTFT p50 ms                -            9.0
vip TTFT p99 ms                -           11.0
direct: goodput counts answers with TTFT <= 5000 ms and TPOT <= any
INVALID: spillway: schedule lag p99 7.0 ms
`
	// The label column is as wide as its longest label.
	if diff := cmp.Diff(squeeze(want), squeeze(got.String())); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	widths := map[int]bool{}
	for line := range strings.Lines(got.String()) {
		if !strings.Contains(line, "demo") && !strings.Contains(line, ":") {
			widths[len(line)] = true
		}
	}
	if len(widths) != 1 {
		t.Errorf("rows have different widths %v:\n%s", widths, got.String())
	}
}

// TestOverloadTable: what only overload scenarios know stands in the table.
func TestOverloadTable(t *testing.T) {
	r := load.NewReport("overload", 1)
	r.Add(load.System{
		Name: "spillway", Load: 10, Optimum: pointer(49.926), GoodPerS: pointer(47.5), GoodputRatio: pointer(0.951), FeasibleRatio: pointer(0.96), OfferedLoad: pointer(10.04), Wasted: pointer(0.0123),
		Rejections:        &load.Rejections{Count: 1234567, P99MS: pointer(2.345), ServerP99MS: pointer(0.1234)},
		RetryAfterHonesty: pointer(0.97), Jain: pointer(0.9876), StarvationS: pointer(0.25), RecoveryS: pointer(7.0),
		SLO:     &load.Objectives{TTFT: 5000, TPOT: 50},
		Classes: map[string]load.Group{"vip": {Offered: 10, SLO: &load.Objectives{TTFT: 1000, TPOT: 50}}},
	})
	r.Add(load.System{Name: "direct", Load: 10, Rejections: &load.Rejections{}, RecoveryS: pointer(-1.0)})
	var got strings.Builder
	if err := r.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	const want = `overload (seed 1)
spillway 10x direct 10x
offered 0 0
answered 0 0
truncated 0 0
goodput ratio 95.10% -
offered load 10.04 -
of the feasible 96.00% -
optimum/s 49.93 -
good/s 47.50 -
work wasted 1.23% -
rejections 1234567 0
rejection p99 ms 2.35 -
in the server p99 ms 0.123 -
promises kept 97.00% -
Jain index 0.988 -
starvation s 0.25 -
recovery s 7 never
vip offered 10 -
spillway: the SLO of vip is TTFT <= 1000 ms and TPOT <= 50 ms
`
	if diff := cmp.Diff(squeeze(want), squeeze(got.String())); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// squeeze makes one space of many.
func squeeze(s string) []string {
	var out []string
	for line := range strings.Lines(s) {
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return out
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := sampleReport().WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"scenario": "demo", "seed": 7.0, "valid": false, "invalid_reason": "spillway: schedule lag p99 7.0 ms",
		"systems": []any{
			map[string]any{
				"name": "direct", "load": 0.8, "offered": 100.0, "answered": 80.0, "truncated": 2.0, "availability": 0.8, "goodput_ratio": 0.75,
				"errors": map[string]any{"connect": 15.0, "cut": 3.0}, "tokens_per_s": 1234.0, "slo_ms": map[string]any{"ttft": 5000.0},
				"ttft_ms": map[string]any{"mean": 12.0, "p50": 10.0, "p90": 20.0, "p99": 30.0, "p999": 40.0},
			},
			map[string]any{
				"name": "spillway", "load": 0.8, "invalid_reason": "schedule lag p99 7.0 ms", "offered": 100.0, "answered": 98.0, "truncated": 0.0,
				"cut_open": 4.0, "availability": 0.98, "errors": map[string]any{"upstream_cut": 2.0},
				"classes": map[string]any{"vip": map[string]any{
					"offered": 10.0, "answered": 0.0, "slo_attainment": 1.0,
					"ttft_ms": map[string]any{"mean": 0.0, "p50": 9.0, "p90": 0.0, "p99": 11.0, "p999": 0.0},
				}},
			},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// TestReportDocument: every field of the schema stands in its document.
func TestReportDocument(t *testing.T) {
	doc, err := os.ReadFile("../../docs/report.md")
	if err != nil {
		t.Fatal(err)
	}
	full := load.NewReport("s", 1)
	full.Add(load.System{
		Name: "x", Load: 1, InvalidReason: "r", DurationS: 1, Availability: pointer(1.0), GoodputRatio: pointer(1.0), CutOpen: pointer[int64](1),
		Attempts: 1, Retries: 1, Errors: map[string]int64{"code": 1}, OutputTokens: 1, TokensPerS: pointer(1.0), LateSteps: pointer(0.1),
		TTFT: &load.Latency{Max: 1, Count: 1}, ITL: &load.Latency{}, TPOT: &load.Latency{}, E2E: &load.Latency{}, ScheduleLag: &load.Latency{},
		SLO: &load.Objectives{TTFT: 1, TPOT: 1}, Notes: []string{"n"},
		Classes: map[string]load.Group{"vip": {Availability: pointer(1.0), SLOAttainment: pointer(1.0), E2E: &load.Latency{}, SLO: &load.Objectives{}}},
		Optimum: pointer(1.0), GoodPerS: pointer(1.0), FeasibleRatio: pointer(1.0), OfferedLoad: pointer(1.0), Wasted: pointer(0.1), Unservable: 1, Jain: pointer(1.0), StarvationS: pointer(1.0),
		Rejections:        &load.Rejections{P99MS: pointer(1.0), ServerP99MS: pointer(1.0)},
		RetryAfterHonesty: pointer(1.0), RecoveryS: pointer(1.0),
		Tenants: map[string]load.Group{"a": {}},
	})
	var b bytes.Buffer
	if err := full.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		name = strings.Trim(name, `"`)
		if ok && name != "vip" && name != "a" && name != "code" && !bytes.Contains(doc, []byte("`"+name+"`")) {
			t.Errorf("docs/report.md lacks `%s`", name)
		}
	}
}

func TestProgress(t *testing.T) {
	show := func(t *testing.T, newProgress func(io.Writer) load.Progress) string {
		var out bytes.Buffer
		synctest.Test(t, func(t *testing.T) {
			p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) { complete(w) }}
			cfg := config("http://server", 1)
			cfg.Schedule.Profile = "10/s:12s"
			run(t, cfg, load.Options{Dial: p.dial, Progress: newProgress(&out)})
		})
		return out.String()
	}
	t.Run("lines", func(t *testing.T) {
		got := show(t, load.NewLines)
		want := "target 5s/12s offered 50 answered 50 failed 0 in flight 0 tokens/s 20\n" +
			"target 10s/12s offered 100 answered 100 failed 0 in flight 0 tokens/s 20\n"
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("bar", func(t *testing.T) {
		got := show(t, load.NewBar)
		if n := strings.Count(got, "\r"); n < 45 || n > 48 {
			t.Errorf("got %d redraws, want 47 of 12 s", n)
		}
		if strings.Count(got, "\n") != 1 || !strings.Contains(got, "\r[##########..........] target 6s/12s") {
			t.Errorf("got %q", got[:min(len(got), 300)])
		}
	})
}
