package telemetry_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	wiretrace "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is an OTLP collector that keeps what it gets.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	paths []string
	spans []*wiretrace.Span
	names map[string]string // attributes of the resource
}

// newReceiver starts a collector; status other than 200 refuses everything.
func newReceiver(t testing.TB, status int) *receiver {
	t.Helper()
	r := &receiver{names: make(map[string]string)}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		if err := r.take(req); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// take decodes one export.
func (r *receiver) take(req *http.Request) error {
	body := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(req.Body)
		if err != nil {
			return err
		}
		body = z
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var export collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(data, &export); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paths = append(r.paths, req.URL.Path)
	for _, rs := range export.ResourceSpans {
		for _, kv := range rs.Resource.Attributes {
			r.names[kv.Key] = kv.Value.GetStringValue()
		}
		for _, ss := range rs.ScopeSpans {
			r.spans = append(r.spans, ss.Spans...)
		}
	}
	return nil
}

// count is the number of spans so far.
func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.spans)
}

// traces is the configuration for a collector.
func traces(url string) telemetry.Traces {
	cfg := telemetry.Default().Traces
	cfg.Endpoint = url
	return cfg
}

// newTracing runs a Tracing until stop is called.
func newTracing(t testing.TB, cfg telemetry.Traces) (tracing *telemetry.Tracing, reg *prometheus.Registry, stop func()) {
	t.Helper()
	reg = prometheus.NewRegistry()
	tracing, err := telemetry.NewTracing(cfg, "1.2.3", reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tracing.Run(ctx) }()
	if cfg.Endpoint != "" {
		eventually(t, "tracing is on", func() bool { return on(tracing) })
	}
	return tracing, reg, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// on says whether requests get a trace context. It leaves no span: one that does
// not end is not sent.
func on(tracing *telemetry.Tracing) bool {
	_, h := tracing.Start(context.Background(), http.Header{}, &inference.Request{})
	return h.Get("traceparent") != ""
}

// eventually polls with a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 5 s", what)
		}
	}
}

// received is when test requests come in.
var received = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

// newRecord is a stream that was answered by the second of two attempts.
func newRecord() *inference.Record {
	return &inference.Record{
		Request: &inference.Request{
			ID: "req_1", Surface: inference.Chat, Tenant: "acme", Class: inference.VIP, Received: received,
			Fields: inference.Fields{Model: "llama", Stream: true, MaxTokens: 256},
		},
		Status: 200,
		Attempts: []inference.Attempt{
			{Pool: "eu/gpu", Instance: "eu/gpu/a:1", Model: "meta", Verdict: inference.VerdictBusy, Status: 503, Reason: "status", Duration: 10 * time.Millisecond},
			{Pool: "eu/gpu", Instance: "eu/gpu/b:1", Model: "meta", Status: 200, TTFT: 80 * time.Millisecond, Connect: time.Millisecond, Start: 100 * time.Millisecond, Duration: 900 * time.Millisecond},
		},
		Usage: inference.Usage{PromptTokens: 100, CompletionTokens: 50, CachedTokens: 64, ReasoningTokens: 10},
		TTFT:  110 * time.Millisecond, Duration: time.Second, Upstream: 910 * time.Millisecond, Complete: true,
	}
}

// span is the readable part of a span.
type span struct {
	Name       string
	Kind       string
	Start, End time.Duration // since received
	Status     string
	Attributes map[string]string
}

// readable turns a span into what tests compare.
func readable(s *wiretrace.Span) span {
	r := span{
		Name: s.Name, Kind: strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"), Status: strings.TrimPrefix(s.Status.GetCode().String(), "STATUS_CODE_"),
		Start: time.Unix(0, int64(s.StartTimeUnixNano)).Sub(received), End: time.Unix(0, int64(s.EndTimeUnixNano)).Sub(received),
		Attributes: make(map[string]string),
	}
	for _, kv := range s.Attributes {
		r.Attributes[kv.Key] = text(kv.Value)
	}
	return r
}

// text renders an attribute.
func text(v *common.AnyValue) string {
	switch v := v.Value.(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	case *common.AnyValue_IntValue:
		return fmt.Sprint(v.IntValue)
	case *common.AnyValue_DoubleValue:
		return fmt.Sprint(v.DoubleValue)
	case *common.AnyValue_BoolValue:
		return fmt.Sprint(v.BoolValue)
	}
	return "?"
}

func TestSpans(t *testing.T) {
	r := newReceiver(t, http.StatusOK)
	tracing, reg, stop := newTracing(t, traces(r.URL))
	defer stop()
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	in := http.Header{"Traceparent": {"00-" + trace + "-" + parent + "-01"}, "Tracestate": {"vendor=1"}, "X-Other": {"kept"}}
	rec := newRecord()
	ctx, out := tracing.Start(context.Background(), in, rec.Request)
	if in.Get("Traceparent") != "00-"+trace+"-"+parent+"-01" {
		t.Errorf("Start changed the client's header: %v", in)
	}
	tracing.Finish(ctx, rec)
	stop()

	if r.count() != 3 {
		t.Fatalf("got %d spans, want 3", r.count())
	}
	byName := make(map[string]*wiretrace.Span)
	for _, s := range r.spans {
		byName[readable(s).Kind+" "+readable(s).Attributes["spillway.instance"]] = s
		if fmt.Sprintf("%x", s.TraceId) != trace {
			t.Errorf("got trace %x, want the client's", s.TraceId)
		}
	}
	server := byName["SERVER "]
	if got := fmt.Sprintf("%x", server.ParentSpanId); got != parent {
		t.Errorf("got parent %s, want the client's span", got)
	}
	want := http.Header{"Traceparent": {fmt.Sprintf("00-%s-%x-01", trace, server.SpanId)}, "Tracestate": {"vendor=1"}, "X-Other": {"kept"}}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("header to send upstream (-want +got):\n%s", diff)
	}
	compareSpans(t, byName)
	if diff := cmp.Diff(map[string]string{"service.name": "spillway", "service.version": "1.2.3"}, r.names); diff != "" {
		t.Errorf("resource (-want +got):\n%s", diff)
	}
	if r.paths[0] != "/v1/traces" {
		t.Errorf("got path %s, want /v1/traces", r.paths[0])
	}
	if diff := cmp.Diff(map[string]float64{"spans_total": 3, "spans_sent_total": 3, "spans_failed_total": 0}, counters(t, reg)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// compareSpans judges the spans of newRecord.
func compareSpans(t *testing.T, byName map[string]*wiretrace.Span) {
	t.Helper()
	wants := map[string]span{
		"SERVER ": {Name: "chat llama", Kind: "SERVER", End: time.Second, Status: "UNSET", Attributes: map[string]string{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "llama", "gen_ai.response.model": "meta",
			"gen_ai.request.stream": "true", "gen_ai.request.max_tokens": "256", "gen_ai.response.time_to_first_chunk": "0.11",
			"gen_ai.usage.input_tokens": "100", "gen_ai.usage.output_tokens": "50", "gen_ai.usage.cache_read.input_tokens": "64",
			"gen_ai.usage.reasoning.output_tokens": "10", "http.response.status_code": "200", "spillway.request_id": "req_1",
			"spillway.surface": "chat", "spillway.tenant": "acme", "spillway.class": "vip", "spillway.complete": "true", "spillway.overhead_ms": "90",
		}},
		"CLIENT eu/gpu/a:1": {Name: "chat meta", Kind: "CLIENT", End: 10 * time.Millisecond, Status: "ERROR", Attributes: map[string]string{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "meta", "http.response.status_code": "503",
			"spillway.pool": "eu/gpu", "spillway.instance": "eu/gpu/a:1", "spillway.verdict": "busy", "spillway.reason": "status", "spillway.connect_ms": "0", "error.type": "busy",
		}},
		"CLIENT eu/gpu/b:1": {Name: "chat meta", Kind: "CLIENT", Start: 100 * time.Millisecond, End: time.Second, Status: "UNSET", Attributes: map[string]string{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "meta", "http.response.status_code": "200",
			"gen_ai.response.time_to_first_chunk": "0.08", "spillway.pool": "eu/gpu", "spillway.instance": "eu/gpu/b:1", "spillway.verdict": "ok", "spillway.connect_ms": "1",
		}},
	}
	for name, want := range wants {
		s := byName[name]
		if s == nil {
			t.Errorf("no span %q", name)
			continue
		}
		if diff := cmp.Diff(want, readable(s)); diff != "" {
			t.Errorf("span %q (-want +got):\n%s", name, diff)
		}
		if name != "SERVER " && !bytes.Equal(s.ParentSpanId, byName["SERVER "].SpanId) {
			t.Errorf("span %q is no child of the request's", name)
		}
	}
}

// counters reads our metrics by their names without the prefix.
func counters(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		got[strings.TrimPrefix(f.GetName(), "spillway_telemetry_")] = f.Metric[0].GetCounter().GetValue()
	}
	return got
}

// TestHedgeTimes lays the two sides of a race beside each other.
func TestHedgeTimes(t *testing.T) {
	r := newReceiver(t, http.StatusOK)
	tracing, _, stop := newTracing(t, traces(r.URL))
	defer stop()
	rec := newRecord()
	rec.Attempts = []inference.Attempt{
		{Instance: "first", Verdict: inference.VerdictCanceled, Reason: "hedge_lost", Duration: 400 * time.Millisecond},
		{Instance: "hedge", Hedge: true, Start: 300 * time.Millisecond, TTFT: 100 * time.Millisecond, Duration: 700 * time.Millisecond},
	}
	ctx, _ := tracing.Start(context.Background(), nil, rec.Request)
	tracing.Finish(ctx, rec)
	stop()
	want := map[string][2]time.Duration{"first": {0, 400 * time.Millisecond}, "hedge": {300 * time.Millisecond, time.Second}}
	for _, s := range r.spans {
		got := readable(s)
		if at, ok := want[got.Attributes["spillway.instance"]]; ok && at != [2]time.Duration{got.Start, got.End} {
			t.Errorf("%s: got %v to %v, want %v", got.Attributes["spillway.instance"], got.Start, got.End, at)
		}
	}
	if r.count() != 3 {
		t.Errorf("got %d spans, want 3", r.count())
	}
}

// TestOutcomes ends requests without an answer.
func TestOutcomes(t *testing.T) {
	tests := map[string]struct {
		code   inference.Code
		status string
	}{
		"overloaded":      {inference.CodeOverloaded, "ERROR"},
		"cut":             {inference.CodeUpstreamCut, "ERROR"},
		"client left":     {inference.CodeCanceled, "UNSET"},
		"client's fault":  {inference.CodeInvalidRequest, "UNSET"},
		"model not found": {inference.CodeModelNotFound, "UNSET"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t, http.StatusOK)
			tracing, _, stop := newTracing(t, traces(r.URL))
			defer stop()
			rec := newRecord()
			rec.Code, rec.Attempts = tt.code, nil
			rec.Request.Model = "made-up"
			ctx, _ := tracing.Start(context.Background(), nil, rec.Request)
			tracing.Finish(ctx, rec)
			stop()
			if r.count() != 1 {
				t.Fatalf("got %d spans, want 1", r.count())
			}
			got := readable(r.spans[0])
			if got.Name != "chat" || got.Status != tt.status || got.Attributes["error.type"] != string(tt.code) || got.Attributes["gen_ai.request.model"] != "made-up" {
				t.Errorf("got %+v, want status %s and error.type %s", got, tt.status, tt.code)
			}
		})
	}
}

// TestLongModel bounds what a client may put into a span.
func TestLongModel(t *testing.T) {
	r := newReceiver(t, http.StatusOK)
	tracing, _, stop := newTracing(t, traces(r.URL))
	defer stop()
	rec := newRecord()
	rec.Request.Model, rec.Attempts = strings.Repeat("m", 1000), rec.Attempts[1:]
	ctx, _ := tracing.Start(context.Background(), nil, rec.Request)
	tracing.Finish(ctx, rec)
	stop()
	for _, s := range r.spans {
		got := readable(s)
		if n := len(got.Attributes["gen_ai.request.model"]); got.Kind == "SERVER" && (n != 256 || got.Name != "chat") {
			t.Errorf("got the name %q and a model of %d bytes, want chat and 256", got.Name, n)
		}
	}
}

// TestSampling asks for none, and follows the client's decision.
func TestSampling(t *testing.T) {
	r := newReceiver(t, http.StatusOK)
	cfg := traces(r.URL)
	cfg.SampleRatio = 0
	tracing, _, stop := newTracing(t, cfg)
	defer stop()
	const trace = "0af7651916cd43dd8448eb211c80319c"
	for _, in := range []http.Header{{}, {"Traceparent": {"garbage"}, "Tracestate": {"vendor=1"}}, {"Traceparent": {"00-" + trace + "-b7ad6b7169203331-00"}}} {
		ctx, out := tracing.Start(context.Background(), in, newRecord().Request)
		if !strings.HasSuffix(out.Get("traceparent"), "-00") || out.Get("tracestate") != "" {
			t.Errorf("got %v, want a trace context that is not sampled", out)
		}
		tracing.Finish(ctx, newRecord())
	}
	ctx, _ := tracing.Start(context.Background(), http.Header{"Traceparent": {"00-" + trace + "-b7ad6b7169203331-01"}}, newRecord().Request)
	tracing.Finish(ctx, newRecord())
	stop()
	if r.count() != 3 {
		t.Errorf("got %d spans, want the 3 of the request that its client samples", r.count())
	}
}

// TestOff uses a Tracing that is nil, without an endpoint, or not running.
func TestOff(t *testing.T) {
	r := newReceiver(t, http.StatusOK)
	running, _, stopRunning := newTracing(t, telemetry.Default().Traces)
	defer stopRunning()
	stopped, _, stop := newTracing(t, traces(r.URL))
	pending, _ := stopped.Start(context.Background(), nil, newRecord().Request)
	stop()
	stopped.Finish(pending, newRecord())
	for name, tracing := range map[string]*telemetry.Tracing{"nil": nil, "no endpoint": running, "stopped": stopped} {
		t.Run(name, func(t *testing.T) {
			in := http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
			rec := newRecord()
			n := testing.AllocsPerRun(100, func() {
				ctx, out := tracing.Start(context.Background(), in, rec.Request)
				if len(out) != 1 || out.Get("Traceparent") != in.Get("Traceparent") {
					t.Errorf("got %v, want the client's header", out)
				}
				tracing.Finish(ctx, rec)
			})
			if n != 0 {
				t.Errorf("got %v allocations, want 0", n)
			}
		})
	}
	if r.count() != 0 {
		t.Errorf("got %d spans, want none", r.count())
	}
}

// TestReload moves from one collector to another and loses nothing.
func TestReload(t *testing.T) {
	a, b := newReceiver(t, http.StatusOK), newReceiver(t, http.StatusOK)
	tracing, _, stop := newTracing(t, traces(a.URL))
	defer stop()
	request := func() {
		ctx, _ := tracing.Start(context.Background(), nil, newRecord().Request)
		tracing.Finish(ctx, newRecord())
	}
	request()
	tracing.Apply(traces(b.URL + "/custom/path"))
	eventually(t, "spans at the first collector", func() bool { return a.count() == 3 })
	request()
	tracing.Apply(telemetry.Default().Traces)
	eventually(t, "spans at the second collector", func() bool { return b.count() == 3 })
	if on(tracing) {
		t.Error("tracing is on without an endpoint")
	}
	if b.paths[0] != "/custom/path" {
		t.Errorf("got path %q, want that of the configuration", b.paths[0])
	}
}

// TestCollectorFails counts what a collector does not take.
func TestCollectorFails(t *testing.T) {
	r := newReceiver(t, http.StatusForbidden)
	tracing, reg, stop := newTracing(t, traces(r.URL))
	defer stop()
	ctx, _ := tracing.Start(context.Background(), nil, newRecord().Request)
	tracing.Finish(ctx, newRecord())
	stop()
	if diff := cmp.Diff(map[string]float64{"spans_total": 3, "spans_sent_total": 0, "spans_failed_total": 3}, counters(t, reg)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// TestCollectorHangs stops while a collector takes nothing, with many batches in
// the queue: those behind the time-out are given up unsent, and no goroutine is
// left.
func TestCollectorHangs(t *testing.T) {
	release := make(chan struct{})
	var batches atomic.Int64
	hang := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { batches.Add(1); <-release }))
	defer hang.Close()
	defer close(release)
	cfg := traces(hang.URL)
	cfg.Timeout = 500 * time.Millisecond
	cfg.Queue = 16 << 10
	tracing, reg, stop := newTracing(t, cfg)
	defer stop()
	for range 4000 {
		ctx, _ := tracing.Start(context.Background(), nil, newRecord().Request)
		tracing.Finish(ctx, newRecord())
	}
	stop()
	got := counters(t, reg)
	if got["spans_total"] != 12000 || got["spans_failed_total"] != 12000 {
		t.Errorf("got %v, want 12000 spans, all of them failed", got)
	}
	if n := batches.Load(); n < 1 || n > 12 {
		t.Errorf("got %d of 24 batches at the collector, want those until the time-out only", n)
	}
}

func TestLogger(t *testing.T) {
	var buf bytes.Buffer
	l := telemetry.NewLogger(telemetry.Default().Log, &buf)
	sub := l.With("component", "fleet")
	sub.Debug("hidden")
	sub.Info("shown")
	l.Apply(telemetry.Log{Level: "debug", Format: "json"})
	sub.Debug("shown too")
	var got []string
	for line := range strings.Lines(buf.String()) {
		var v struct{ Level, Msg, Component string }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		got = append(got, v.Level+" "+v.Component+" "+v.Msg)
	}
	if diff := cmp.Diff([]string{"INFO fleet shown", "DEBUG fleet shown too"}, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	buf.Reset()
	telemetry.NewLogger(telemetry.Log{Level: "warn", Format: "text"}, &buf).Warn("x", "k", "v")
	if !strings.HasSuffix(buf.String(), "level=WARN msg=x k=v\n") {
		t.Errorf("got %q, want a text line", buf.String())
	}
}

func TestRegistry(t *testing.T) {
	families, err := telemetry.NewRegistry("1.2.3").Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	for _, f := range families {
		found[f.GetName()] = f.Metric[0].String()
	}
	if !strings.Contains(found["spillway_build_info"], "1.2.3") || found["go_goroutines"] == "" || found["process_cpu_seconds_total"] == "" {
		t.Errorf("got %d families without the build, the runtime or the process", len(found))
	}
}

func TestValidate(t *testing.T) {
	good := telemetry.Default()
	good.Traces.Endpoint = "https://collector.example:4318"
	if err := good.Validate(); err != nil {
		t.Errorf("default with an endpoint: %v", err)
	}
	bad := telemetry.Config{Log: telemetry.Log{Level: "loud", Format: "xml"}, Traces: telemetry.Traces{Endpoint: "http://u:secret@c:1", SampleRatio: 2}}
	err := bad.Validate()
	if err == nil {
		t.Fatal("got no error")
	}
	keys := []string{"log.level: ", "log.format: ", "traces.endpoint: ", "traces.sample_ratio: ", "traces.queue: ", "traces.timeout: "}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(keys) {
		t.Fatalf("got %d mistakes, want %d: %v", len(lines), len(keys), err)
	}
	for i, key := range keys {
		if !strings.HasPrefix(lines[i], key) {
			t.Errorf("got %q, want it to begin with %q", lines[i], key)
		}
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the error repeats a password: %v", err)
	}
	for _, url := range []string{"collector:4318", "grpc://c:4317", "http://", "http://[::1", "http://c/?q=1"} {
		cfg := telemetry.Default()
		cfg.Traces.Endpoint = url
		if err := cfg.Validate(); err == nil {
			t.Errorf("%s: got no error", url)
		}
	}
}

func BenchmarkTracing(b *testing.B) {
	r := newReceiver(b, http.StatusOK)
	sampled := traces(r.URL)
	never := sampled
	never.SampleRatio = 0
	for name, cfg := range map[string]telemetry.Traces{"off": telemetry.Default().Traces, "sampled": sampled, "not sampled": never} {
		b.Run(name, func(b *testing.B) {
			tracing, _, stop := newTracing(b, cfg)
			defer stop()
			h := http.Header{"Content-Type": {"application/json"}, "User-Agent": {"bench"}, "Accept": {"*/*"}}
			rec := newRecord()
			b.ReportAllocs()
			for b.Loop() {
				ctx, _ := tracing.Start(context.Background(), h, rec.Request)
				tracing.Finish(ctx, rec)
			}
		})
	}
}

func ExampleTracing() {
	var off *telemetry.Tracing // or one without an endpoint: the client's trace context goes through unchanged
	in := http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	ctx, out := off.Start(context.Background(), in, &inference.Request{})
	off.Finish(ctx, &inference.Record{})
	fmt.Println(out.Get("traceparent"))
	// Output: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01
}
