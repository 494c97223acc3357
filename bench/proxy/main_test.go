package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	proxy "github.com/spillway/spillway/bench/proxy"

	"github.com/google/go-cmp/cmp"
)

func place() proxy.Place {
	return proxy.NewPlace("/d", "127.0.0.1:8080", "127.0.0.1:8081", []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}, 20000)
}

func TestRender(t *testing.T) {
	tests := map[string][]string{
		"nginx.conf.tmpl": {"server 127.0.0.1:3 max_fails=1 fail_timeout=10s;", "least_conn;", "proxy_buffering off;", "keepalive 512;",
			"listen 127.0.0.1:8080", "worker_connections 16384;", "access_log off;", `proxy_set_header Connection "";`},
		"haproxy.cfg.tmpl": {"option http-no-delay", "maxconn 9900", "server s2 127.0.0.1:3 check", "bind 127.0.0.1:8080",
			"option abortonclose", "http-reuse always", "balance leastconn", "nbthread 2"},
		"spillway.yaml.tmpl": {"127.0.0.1:8080", "127.0.0.1:8081", "http://127.0.0.1:1", "http://127.0.0.1:3", "/d/keys", "/d/access.log"},
		// printf sk-bench-0123456789abcdef | sha256sum
		"keys.tmpl": {"4544960adbf893386971435af98a39b6f3a29f78107fbe68a787ab2467ba27d9 bench"},
	}
	for name, want := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := proxy.Render(name, place())
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is missing in\n%s", w, got)
				}
			}
		})
	}
	if _, err := proxy.Render("none.tmpl", place()); err == nil {
		t.Error("an unknown template rendered")
	}
}

func TestParseSystem(t *testing.T) {
	s, err := proxy.ParseSystem("x=/bin/x {listen} -u={up1},{up3} {key} {keys} {admin} {config} {log} {dir}")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/bin/x", "127.0.0.1:8080", "-u=127.0.0.1:1,127.0.0.1:3", "sk-bench-0123456789abcdef", "/d/keys", "127.0.0.1:8081",
		"/d/config", "/d/access.log", "/d"}
	if d := cmp.Diff(want, s.Argv(place())); d != "" {
		t.Error(d)
	}
	for _, bad := range []string{"", "x", "=cmd", "x= ", "nginx=other", "direct=other"} {
		if _, err := proxy.ParseSystem(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestPickLoads(t *testing.T) {
	all, err := proxy.PickLoads("", 4, 1)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, l := range all {
		known[l.Name] = true
		if l.Seconds <= 0 || l.Warm <= 0 {
			t.Errorf("%s has no window", l.Name)
		}
	}
	for _, g := range append(proxy.Goals(), proxy.RigGoals()...) {
		for _, l := range g.Loads {
			if !known[l] {
				t.Errorf("goal %q names the unknown load %q", g.Name, l)
			}
		}
	}
	some, err := proxy.PickLoads("sseA, json", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(some) != 2 || some[0].Name != "json" || some[1].Name != "sseA" || some[0].Seconds != 2 {
		t.Errorf("got %+v", some)
	}
	if _, err := proxy.PickLoads("json,sseX", 2, 1); err == nil || !strings.Contains(err.Error(), "sseX") {
		t.Errorf("got %v", err)
	}
}

func TestRangeOf(t *testing.T) {
	tests := map[string]struct {
		in   []float64
		want proxy.Range
	}{
		"none": {nil, proxy.Range{}},
		"one":  {[]float64{3}, proxy.Range{Median: 3, Min: 3, Max: 3, Rounds: 1}},
		"odd":  {[]float64{9, 1, 2}, proxy.Range{Median: 2, Min: 1, Max: 9, Rounds: 3}},
		"even": {[]float64{4, 1, 2, 9}, proxy.Range{Median: 3, Min: 1, Max: 9, Rounds: 4}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, proxy.RangeOf(tt.in)); d != "" {
				t.Error(d)
			}
		})
	}
}

// A machine that is twice as slow in one round disturbs both systems: the paired ratio does not move.
func TestRatioIsPairedByRound(t *testing.T) {
	r := proxy.Results{}
	for round, speed := range []float64{10, 20, 30} {
		r.Add("nginx", "json", round, proxy.Sample{"cpu_us": speed})
		r.Add("x", "json", round, proxy.Sample{"cpu_us": speed * 1.5})
	}
	r.Add("x", "json", 4, proxy.Sample{"cpu_us": 1000}) // nginx has no such round
	want := proxy.Range{Median: 1.5, Min: 1.5, Max: 1.5, Rounds: 3}
	if d := cmp.Diff(want, r.Ratio("x", "nginx", "json", "cpu_us")); d != "" {
		t.Error(d)
	}
}

func results(json, sut map[string]float64) proxy.Results {
	r := proxy.Results{}
	r.Add("nginx", "json", 0, json)
	r.Add("x", "json", 0, sut)
	return r
}

func verdict(t *testing.T, r proxy.Results, name string) string {
	t.Helper()
	v := proxy.Judge(r, "x", proxy.Goals())
	i := slices.IndexFunc(v, func(v proxy.Verdict) bool { return v.Name == name })
	if i < 0 {
		t.Fatalf("no goal %q", name)
	}
	return v[i].Result
}

func TestJudgeRatio(t *testing.T) {
	const name = "CPU per JSON request, 64 connections"
	for x, want := range map[float64]string{11: "aim", 12: "aim", 12.1: "must", 22: "must", 22.1: "MISSED"} {
		if got := verdict(t, results(proxy.Sample{"cpu_us": 10}, proxy.Sample{"cpu_us": x}), name); got != want {
			t.Errorf("%v us over 10 us: got %s, want %s", x, got, want)
		}
	}
	if got := verdict(t, proxy.Results{}, name); got != "not run" {
		t.Errorf("without samples: got %s", got)
	}
}

func TestJudgeCounts(t *testing.T) {
	tests := map[string]struct {
		goal, load, metric string
		values             []float64
		want               string
	}{
		"no errors":          {"failed requests and dropped connections", "json", "errors", []float64{0, 0}, "aim"},
		"one error":          {"failed requests and dropped connections", "json", "errors", []float64{0, 1}, "MISSED"},
		"all leaves seen":    {"client leaves, mid: upstream closed", "leave", "mid_seen", []float64{1}, "aim"},
		"one leave unseen":   {"client leaves, mid: upstream closed", "leave", "mid_seen", []float64{0.96, 1, 1}, "MISSED"},
		"enough streams":     {"streams of the soak", "soak", "answers", []float64{100000}, "aim"},
		"too few streams":    {"streams of the soak", "soak", "answers", []float64{99999}, "MISSED"},
		"never seen, so p99": {"client leaves, mid: p99", "leave", "mid_seen", []float64{0}, "MISSED"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := proxy.Results{}
			for i, x := range tt.values {
				r.Add("x", tt.load, i, proxy.Sample{tt.metric: x})
			}
			if got := verdict(t, r, tt.goal); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDerive(t *testing.T) {
	all, err := proxy.PickLoads("json,sseB", 4, 1)
	if err != nil {
		t.Fatal(err)
	}
	s, err := all[0].Derive(proxy.Report{Seconds: 2, Answers: 1000, SUT: 20e6, Mock: 5e6, Client: 6e6, Refused: 1, Failed: 2, Broken: 3})
	if err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]float64{"cpu_us": 20, "mock_us": 5, "client_us": 6, "per_second": 500, "errors": 3, "broken": 3} {
		if s[m] != want {
			t.Errorf("json %s: got %v, want %v", m, s[m], want)
		}
	}
	s, err = all[1].Derive(proxy.Report{Seconds: 2, Events: 40000, SUT: 400e6, RSSBefore: 10e6, RSSEnd: 28e6, RSSMax: 30e6, Stalled: 1})
	if err != nil {
		t.Fatal(err)
	}
	for m, want := range map[string]float64{"cpu_us": 10, "kb_per_client": 20, "broken": 1} {
		if s[m] != want {
			t.Errorf("sseB %s: got %v, want %v", m, s[m], want)
		}
	}
	if _, err := all[0].Derive(proxy.Report{Refused: 5}); err == nil {
		t.Error("a run without answers was taken for a measurement")
	}
}

// TestClientSeesBrokenAnswers runs the real client against servers that misbehave in known ways.
func TestClientSeesBrokenAnswers(t *testing.T) {
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("no C compiler")
	}
	dir := t.TempDir()
	if err := proxy.BuildRig(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	stream := func(first, last int, done string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := first; i < last; i++ {
				fmt.Fprintf(w, ": keep-alive\n\ndata: {\"system_fingerprint\":\"fp_%02d_%019d\"}\n\n", i, 1)
				w.(http.Flusher).Flush()
			}
			fmt.Fprint(w, done)
		}
	}
	pieces := func(size int) http.HandlerFunc {
		var b bytes.Buffer
		w := httptest.NewRecorder()
		w.Body = &b
		stream(0, 64, "data: [DONE]\n\n")(w, nil)
		return func(w http.ResponseWriter, _ *http.Request) {
			for p := range slices.Chunk(b.Bytes(), size) {
				_, _ = w.Write(p)
				w.(http.Flusher).Flush()
			}
		}
	}
	answers := func(r proxy.Report) float64 { return r.Total - r.Broken - r.Refused }
	const done = "data: [DONE]\n\n"
	tests := map[string]struct {
		mode    string
		handler http.HandlerFunc
		field   func(proxy.Report) float64 // what must be counted; nothing else may
	}{
		"whole stream":   {"stream", stream(0, 64, done), answers},
		"bytes":          {"stream", pieces(1), answers},
		"seams move":     {"stream", pieces(61), answers},
		"joined":         {"stream", pieces(1500), answers},
		"one piece":      {"stream", pieces(1 << 20), answers},
		"event missing":  {"stream", stream(1, 64, done), func(r proxy.Report) float64 { return r.Broken }},
		"clean but cut":  {"stream", stream(0, 30, done), func(r proxy.Report) float64 { return r.Broken }},
		"no DONE":        {"stream", stream(0, 64, ""), func(r proxy.Report) float64 { return r.Broken }},
		"half an event":  {"stream", stream(0, 64, done+"data: {"), func(r proxy.Report) float64 { return r.Broken }},
		"aborted":        {"stream", func(w http.ResponseWriter, r *http.Request) { stream(0, 9, "")(w, r); panic(http.ErrAbortHandler) }, func(r proxy.Report) float64 { return r.Broken }},
		"busy":           {"json", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, func(r proxy.Report) float64 { return r.Refused }},
		"other JSON":     {"json", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }, func(r proxy.Report) float64 { return r.Broken }},
		"aborted answer": {"json", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, func(r proxy.Report) float64 { return r.Broken }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			r := client(t, filepath.Join(dir, "client"), server, tt.mode)
			if tt.field(r) < 6 || r.Total+r.Failed != tt.field(r) {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func client(t *testing.T, path string, server *httptest.Server, mode string) proxy.Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	out, err := exec.CommandContext(ctx, path, "-a", port, "-m", mode, "-c", "2", "-n", "6", "-d", "10", "-w", "0.001").Output()
	if err != nil {
		t.Fatal(err)
	}
	var r proxy.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return r
}
