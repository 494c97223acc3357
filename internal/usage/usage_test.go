package usage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is a destination of the access log that tests can break and block.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	room int           // bytes that still fit; negative is no end
	hold chan struct{} // writes wait for it; nil does not wait
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	hold := o.hold
	o.mu.Unlock()
	if hold != nil {
		<-hold
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.room >= 0 && len(p) > o.room {
		n, _ := o.buf.Write(p[:o.room])
		o.room = 0
		return n, errors.New("no space left on device")
	}
	if o.room >= 0 {
		o.room -= len(p)
	}
	return o.buf.Write(p)
}

func (o *output) set(room int) { o.mu.Lock(); o.room = room; o.mu.Unlock() }

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// newFleet returns a fleet of two instances that serve "llama".
func newFleet(t testing.TB) *fleet.Fleet {
	t.Helper()
	f := fleet.New(slog.New(slog.DiscardHandler))
	err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"llama": "meta-llama"}, MaxInFlight: 8,
		Surfaces: inference.Surfaces(), Static: []fleet.Target{{URL: "http://10.0.0.1:8000"}, {URL: "http://10.0.0.2:8000"}},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// newRecorder returns a recorder that logs to out.
func newRecorder(t testing.TB, cfg usage.Config, out io.Writer) *usage.Recorder {
	t.Helper()
	r, err := usage.New(cfg, usage.Parts{Fleet: newFleet(t), Stdout: out, Stderr: io.Discard, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// start runs r until stop is called.
func start(t testing.TB, r *usage.Recorder) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

// newRecord is a stream that was answered by the second of two attempts.
func newRecord() *inference.Record {
	rec := &inference.Record{
		Request: &inference.Request{
			ID: "req_0123456789abcdef", Surface: inference.Chat, Tenant: "acme", Class: inference.VIP,
			Received: time.Date(2026, 11, 20, 10, 0, 0, 123456789, time.UTC), ClientIP: netip.MustParseAddr("192.0.2.7"),
			Fields: inference.Fields{Model: "llama", Stream: true}, Body: make([]byte, 400),
		},
		Status: 200,
		Attempts: []inference.Attempt{
			{Region: "eu", Pool: "eu/gpu", Instance: "eu/gpu/10.0.0.1:8000", Model: "meta-llama", Verdict: inference.VerdictBusy, Status: 503, Reason: "status", Connect: 250 * time.Microsecond, Duration: 4 * time.Millisecond},
			{Region: "eu", Pool: "eu/gpu", Instance: "eu/gpu/10.0.0.2:8000", Model: "meta-llama", Status: 200, Connect: time.Millisecond, TTFT: 80 * time.Millisecond, Duration: 2 * time.Second},
		},
		Usage:  inference.Usage{PromptTokens: 100, CompletionTokens: 50, CachedTokens: 64, ReasoningTokens: 10},
		Tokens: 49, Bytes: 12345, TTFT: 90 * time.Millisecond, Duration: 2010 * time.Millisecond, Upstream: 2004 * time.Millisecond, Complete: true,
	}
	rec.Gaps.Observe(9 * time.Millisecond)
	rec.Gaps.Observe(40 * time.Millisecond)
	return rec
}

// attempt is an element of attempts as encoding/json writes it.
type attempt struct {
	Instance  string  `json:"instance"`
	Model     string  `json:"model"`
	Verdict   string  `json:"verdict"`
	Status    int     `json:"status"`
	Reason    string  `json:"reason,omitempty"`
	Hedge     bool    `json:"hedge,omitempty"`
	ConnectMS float64 `json:"connect_ms"`
	TTFTMS    float64 `json:"ttft_ms"`
	MS        float64 `json:"ms"`
}

// ms is a duration in milliseconds to the microsecond.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// slogLine is the line that slog writes for a record whose usage is known.
func slogLine(rec *inference.Record) string {
	var buf bytes.Buffer
	req := rec.Request
	attempts := make([]attempt, len(rec.Attempts))
	for i, a := range rec.Attempts {
		attempts[i] = attempt{a.Instance, a.Model, a.Verdict.String(), a.Status, a.Reason, a.Hedge, ms(a.Connect), ms(a.TTFT), ms(a.Duration)}
	}
	code := string(rec.Code)
	if code == "" {
		code = "ok"
	}
	r := slog.NewRecord(req.Received.Add(rec.Duration), slog.LevelInfo, "request", 0)
	r.AddAttrs(slog.String("component", "usage"), slog.String("request_id", req.ID), slog.String("surface", req.Surface.String()),
		slog.String("model", req.Model))
	if req.Asked != "" {
		r.AddAttrs(slog.String("asked_model", req.Asked))
	}
	r.AddAttrs(slog.String("tenant", req.Tenant))
	if req.Key != "" {
		r.AddAttrs(slog.String("key", req.Key))
	}
	r.AddAttrs(slog.String("class", req.Class.String()), slog.String("code", code))
	if rec.Reason != "" {
		r.AddAttrs(slog.String("reason", rec.Reason))
	}
	u := rec.Usage
	r.AddAttrs(slog.Int("status", rec.Status), slog.Any("attempts", attempts), slog.Int64("prompt_tokens", u.PromptTokens),
		slog.Int64("completion_tokens", u.CompletionTokens), slog.Int64("cached_tokens", u.CachedTokens), slog.Int64("reasoning_tokens", u.ReasoningTokens),
		slog.Float64("ttft_ms", ms(rec.TTFT)), slog.Float64("duration_ms", ms(rec.Duration)), slog.Float64("upstream_ms", ms(rec.Upstream)),
		slog.Float64("overhead_ms", ms(max(0, rec.Duration-rec.Upstream))), slog.Int64("bytes", rec.Bytes),
		slog.Bool("stream", req.Stream), slog.Bool("complete", rec.Complete))
	if rec.Degraded != "" {
		r.AddAttrs(slog.String("degraded", rec.Degraded))
	}
	if rec.Rule != "" {
		r.AddAttrs(slog.String("rule", rec.Rule))
	}
	if rec.Arm.Experiment != "" {
		r.AddAttrs(slog.String("experiment", rec.Arm.Experiment), slog.String("arm", rec.Arm.Arm))
	}
	if rec.Shadow {
		r.AddAttrs(slog.Bool("shadow", true))
	}
	if rec.Cache != "" {
		r.AddAttrs(slog.String("cache", string(rec.Cache)))
	}
	if rec.CacheLevel != "" {
		r.AddAttrs(slog.String("cache_level", rec.CacheLevel), slog.Float64("cache_age_ms", ms(rec.CacheAge)))
	}
	if req.ClientIP.IsValid() {
		r.AddAttrs(slog.String("client_ip", req.ClientIP.String()))
	}
	if err := slog.NewJSONHandler(&buf, nil).Handle(context.Background(), r); err != nil {
		panic(err)
	}
	return buf.String()
}

// logged is what the access log holds after the given records.
func logged(t testing.TB, records ...*inference.Record) string {
	t.Helper()
	out := &output{room: -1}
	r := newRecorder(t, usage.Default(), out)
	stop := start(t, r)
	for _, rec := range records {
		r.Record(rec)
	}
	stop()
	return out.String()
}

func TestLineIsSlogs(t *testing.T) {
	tests := map[string]func(*inference.Record){
		"answered": func(*inference.Record) {},
		"refused": func(r *inference.Record) {
			r.Attempts, r.Code, r.Reason, r.Status = nil, inference.CodeOverloaded, "full", 503
		},
		"degraded": func(r *inference.Record) { r.Degraded = "model=small" },
		"steered": func(r *inference.Record) {
			r.Request.Asked, r.Request.Key, r.Rule = "large", "k1", "long prompts"
			r.Arm = inference.Arm{Experiment: "canary", Arm: "new"}
		},
		"shadow": func(r *inference.Record) { r.Shadow = true },
		"cached": func(r *inference.Record) {
			r.Cache, r.CacheLevel, r.CacheAge = inference.CacheStale, "redis", 1500*time.Millisecond
		},
		"no address":  func(r *inference.Record) { r.Request.ClientIP = netip.Addr{} },
		"IPv6":        func(r *inference.Record) { r.Request.ClientIP = netip.MustParseAddr("2001:db8::1") },
		"hedge":       func(r *inference.Record) { r.Attempts[1].Hedge = true },
		"odd strings": func(r *inference.Record) { r.Request.Model = "a\"b\\c\n\r\t\x01\x7f<&>é\u2028\u2029\xff\ufffd" },
		"odd numbers": func(r *inference.Record) {
			r.TTFT, r.Duration, r.Upstream = 1500*time.Nanosecond, 100*time.Millisecond, 123456789*time.Microsecond
		},
		"local time": func(r *inference.Record) {
			r.Request.Received = r.Request.Received.In(time.FixedZone("", 5*3600+1800))
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			rec := newRecord()
			change(rec)
			if diff := cmp.Diff(slogLine(rec), logged(t, rec)); diff != "" {
				t.Errorf("line (-slog +got):\n%s", diff)
			}
		})
	}
}

func FuzzLine(f *testing.F) {
	f.Add("llama", "status", int64(90_000_123), int64(5))
	f.Add("\xff\u2028\"", "\x00", int64(1), int64(-1))
	f.Fuzz(func(t *testing.T, model, reason string, nanos, tokens int64) {
		if len(model) > 256 || len(reason) > 256 || nanos < 0 || nanos > int64(24*time.Hour) || strings.ContainsAny(reason, "\b\f") {
			t.Skip() // encoding/json, which slog uses within attempts, has short forms of these two
		}
		rec := newRecord()
		rec.Request.Model, rec.Reason, rec.Attempts[0].Reason = model, reason, reason
		rec.TTFT, rec.Duration, rec.Usage.PromptTokens = time.Duration(nanos), time.Duration(nanos), tokens
		if diff := cmp.Diff(slogLine(rec), logged(t, rec)); diff != "" {
			t.Errorf("line (-slog +got):\n%s", diff)
		}
	})
}

// TestLineBounds sends texts of a size that only an attacker sends.
func TestLineBounds(t *testing.T) {
	rec := newRecord()
	rec.Request.Model = strings.Repeat("é", 1<<20)
	line := logged(t, rec)
	var got struct{ Model string }
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("é", 128); got.Model != want {
		t.Errorf("got a model of %d bytes, want %d", len(got.Model), len(want))
	}
}

// TestTokensAreEstimated logs an answer whose server reported no usage.
func TestTokensAreEstimated(t *testing.T) {
	rec := newRecord()
	rec.Usage = inference.Usage{}
	refused := newRecord()
	refused.Usage, refused.TTFT, refused.Complete, refused.Code = inference.Usage{}, 0, false, inference.CodeOverloaded
	type line struct {
		Prompt     int64 `json:"prompt_tokens"`
		Completion int64 `json:"completion_tokens"`
		Estimated  bool  `json:"tokens_estimated"`
	}
	var got []line
	for l := range strings.Lines(logged(t, rec, refused)) {
		var v line
		if err := json.Unmarshal([]byte(l), &v); err != nil {
			t.Fatal(err)
		}
		got = append(got, v)
	}
	if diff := cmp.Diff([]line{{100, 49, true}, {0, 0, false}}, got); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}

// TestFlush looks at the log while nothing else happens.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{room: -1}
		r := newRecorder(t, usage.Default(), out)
		stop := start(t, r)
		defer stop()
		for turn := range 3 {
			r.Record(newRecord())
			time.Sleep(200 * time.Millisecond)
			synctest.Wait()
			if got := strings.Count(out.String(), "\n"); got != turn+1 {
				t.Errorf("got %d lines after 200 ms, want %d", got, turn+1)
			}
		}
	})
}

// TestHalfFull fills half of the buffer, which does not wait for the clock.
func TestHalfFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{room: -1}
		cfg := usage.Default()
		cfg.Buffer = 64 << 10
		r := newRecorder(t, cfg, out)
		stop := start(t, r)
		defer stop()
		synctest.Wait()
		size := len(slogLine(newRecord()))
		for range 32<<10/size + 1 {
			r.Record(newRecord())
		}
		synctest.Wait() // no time passes here
		if got := len(out.String()); got < 32<<10 {
			t.Errorf("got %d bytes written, want at least half of the buffer", got)
		}
	})
}

// TestFullBuffer blocks the destination: Record goes on, and every line is
// either written or counted as dropped.
func TestFullBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{room: -1, hold: make(chan struct{})}
		cfg := usage.Default()
		cfg.Buffer = 64 << 10
		r := newRecorder(t, cfg, out)
		stop := start(t, r)
		const n = 1000
		for range n {
			r.Record(newRecord())
		}
		close(out.hold)
		stop()
		r.Record(newRecord()) // after the end
		written := strings.Count(out.String(), "\n")
		m := gather(t, r)
		if written == 0 || written == n {
			t.Errorf("got %d of %d lines, want a part", written, n)
		}
		if got := int(m[`spillway_usage_log_lines_dropped_total{reason="full"}`]); got != n-written {
			t.Errorf("got %d lines counted as dropped, want %d", got, n-written)
		}
		if got := m[`spillway_usage_log_lines_dropped_total{reason="closed"}`]; got != 1 {
			t.Errorf("got %v lines dropped after the end, want 1", got)
		}
		if got := int(m["spillway_usage_log_lines_total"]); got != written {
			t.Errorf("got %d lines counted as written, want %d", got, written)
		}
	})
}

// TestStuckAtEnd stops while the destination takes nothing.
func TestStuckAtEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{room: -1, hold: make(chan struct{})}
		r := newRecorder(t, usage.Default(), out)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		r.Record(newRecord())
		cancel()
		if err := <-done; err == nil {
			t.Error("got no error")
		}
		close(out.hold)
	})
}

// TestDiskFull fills the destination in the middle of a line and empties it
// again: what comes later begins on a line of its own.
func TestDiskFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size := len(slogLine(newRecord()))
		out := &output{room: size + size/2}
		r := newRecorder(t, usage.Default(), out)
		stop := start(t, r)
		record := func(n int) {
			for range n {
				r.Record(newRecord())
			}
			time.Sleep(200 * time.Millisecond)
			synctest.Wait()
		}
		record(3) // one and a half fit
		record(2) // nothing fits
		out.set(-1)
		record(2)
		stop()
		var whole, torn int
		for line := range strings.Lines(out.String()) {
			if json.Valid([]byte(line)) {
				whole++
			} else {
				torn++
			}
		}
		m := gather(t, r)
		lost := m[`spillway_usage_log_lines_dropped_total{reason="write"}`]
		if whole != 3 || torn != 1 || lost != 4 || m["spillway_usage_log_lines_total"] != 3 {
			t.Errorf("got %d whole lines, %d torn, %v lost, %v written; want 3, 1, 4, 3", whole, torn, lost, m["spillway_usage_log_lines_total"])
		}
	})
}

// TestReopen rotates the file, changes the destination and refuses a wrong one.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	cfg := usage.Default()
	cfg.AccessLog = path
	out := &output{room: -1}
	r := newRecorder(t, cfg, out)
	stop := start(t, r)
	lines := func(path string) int {
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return bytes.Count(data, []byte("\n"))
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: not within 5 s", what)
			}
		}
	}
	r.Record(newRecord())
	eventually("first line", func() bool { return lines(path) == 1 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := r.Reopen(); err != nil {
		t.Fatal(err)
	}
	r.Record(newRecord())
	eventually("line after the rotation", func() bool { return lines(path) == 1 && lines(path+".1") == 1 })

	bad := cfg
	bad.AccessLog = filepath.Join(dir, "gone", "access.log")
	if err := r.Apply(bad); err == nil || !strings.HasPrefix(err.Error(), "access_log: ") {
		t.Errorf("apply of a folder that is not there: got %v", err)
	}
	r.Record(newRecord())
	eventually("line after the refused change", func() bool { return lines(path) == 2 })

	if err := r.Apply(usage.Default()); err != nil {
		t.Fatal(err)
	}
	r.Record(newRecord())
	eventually("line on stdout", func() bool { return strings.Count(out.String(), "\n") == 1 })
	cfg.AccessLog = usage.Off
	if err := r.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	r.Record(newRecord())
	stop()
	if got := strings.Count(out.String(), "\n"); got != 1 || lines(path) != 2 {
		t.Errorf("got %d and %d lines after the log was switched off, want 1 and 2", got, lines(path))
	}
}

func TestValidate(t *testing.T) {
	good := usage.Default()
	if err := good.Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
	bad := usage.Config{AccessLog: filepath.Join(t.TempDir(), "gone", "log"), Buffer: 1, MaxSeries: 0}
	err := bad.Validate()
	if err == nil {
		t.Fatal("got no error")
	}
	for i, key := range []string{"access_log: ", "buffer: ", "max_series: "} {
		if lines := strings.Split(err.Error(), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[i], key) {
			t.Errorf("got %q, want 3 lines, that of %q at %d", lines, key, i)
		}
	}
}

// gather scrapes r into a map from "name{label="value",...}" to a number;
// histograms give name_count, name_sum and name_bucket.
func gather(t testing.TB, r *usage.Recorder) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(r); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			labels := labelText(m)
			switch {
			case m.GetCounter() != nil:
				got[f.GetName()+labels] = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				got[f.GetName()+labels] = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				h := m.GetHistogram()
				got[f.GetName()+"_count"+labels] = float64(h.GetSampleCount())
				got[f.GetName()+"_sum"+labels] = h.GetSampleSum()
				for _, b := range h.GetBucket() {
					got[fmt.Sprintf("%s_bucket%s le=%v", f.GetName(), labels, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			}
		}
	}
	return got
}

// labelText renders the labels of a metric.
func labelText(m *dto.Metric) string {
	var parts []string
	for _, l := range m.GetLabel() {
		parts = append(parts, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(parts) == 0 {
		return ""
	}
	return "{" + strings.Join(parts, ",") + "}"
}
