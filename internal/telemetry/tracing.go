package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/spillway/spillway/internal/inference"
)

// maxAttribute bounds an attribute's length in bytes: a model's name is the
// client's to choose.
const maxAttribute = 256

// Tracing follows requests across services. It is safe for concurrent use. A nil
// Tracing traces nothing.
type Tracing struct {
	version string
	log     *slog.Logger
	tracer  atomic.Pointer[tracer] // nil: off
	changed chan struct{}

	mu struct {
		sync.Mutex
		cfg Traces
	}

	ended, sent, failed prometheus.Counter
}

// tracer is what makes spans at present.
type tracer struct{ trace.Tracer }

// NewTracing returns a Tracing that is off until Run, and registers its metrics.
func NewTracing(cfg Traces, version string, reg prometheus.Registerer, log *slog.Logger) (*Tracing, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "spillway_telemetry_" + name, Help: help})
	}
	t := &Tracing{
		version: version, log: log.With("component", "telemetry"), changed: make(chan struct{}, 1),
		ended:  counter("spans_total", "Spans that ended. Those neither sent nor failed wait or did not fit into the queue."),
		sent:   counter("spans_sent_total", "Spans that the collector took."),
		failed: counter("spans_failed_total", "Spans that the collector did not take."),
	}
	t.mu.cfg = cfg
	for _, c := range []prometheus.Collector{t.ended, t.sent, t.failed} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of traces: %w", err)
		}
	}
	return t, nil
}

// Apply replaces the configuration. Run does so without losing a span that has
// ended.
func (t *Tracing) Apply(cfg Traces) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if cfg == t.mu.cfg {
		return
	}
	t.mu.cfg = cfg
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// Run sends spans until ctx ends, then sends what is left within the configured
// timeout. It should end after the last request.
func (t *Tracing) Run(ctx context.Context) error {
	var old *pipeline
	for {
		t.mu.Lock()
		cfg := t.mu.cfg
		t.mu.Unlock()
		next, err := t.open(cfg)
		if err != nil {
			old.close(t)
			return err
		}
		t.tracer.Store(next.tracer())
		old.close(t)
		old = next
		select {
		case <-t.changed:
		case <-ctx.Done():
			t.tracer.Store(nil)
			old.close(t)
			return nil
		}
	}
}

// pipeline is the way of spans from their end to a collector. A nil pipeline is
// none.
type pipeline struct {
	cfg      Traces
	provider *sdk.TracerProvider
	exporter *exporter
}

// open builds a pipeline, or none without an endpoint.
func (t *Tracing) open(cfg Traces) (*pipeline, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}
	url, err := endpoint(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("traces.endpoint: %w", err)
	}
	client, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(url), // connects to nothing yet
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression), otlptracehttp.WithTimeout(cfg.Timeout))
	if err != nil {
		return nil, fmt.Errorf("traces: %w", err)
	}
	e := &exporter{SpanExporter: client, t: t, done: make(chan struct{})}
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxAttribute
	batches := sdk.NewBatchSpanProcessor(e, sdk.WithMaxQueueSize(cfg.Queue), sdk.WithMaxExportBatchSize(min(cfg.Queue, 512)), sdk.WithExportTimeout(cfg.Timeout))
	provider := sdk.NewTracerProvider(
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(cfg.SampleRatio))),
		sdk.WithSpanProcessor(counting{batches, t.ended}),
		sdk.WithRawSpanLimits(limits),
		sdk.WithResource(resource.NewSchemaless(serviceName.String("spillway"), serviceVersion.String(t.version))),
	)
	return &pipeline{cfg, provider, e}, nil
}

// tracer returns what makes spans for the pipeline.
func (p *pipeline) tracer() *tracer {
	if p == nil {
		return nil
	}
	return &tracer{p.provider.Tracer("github.com/spillway/spillway")}
}

// close sends what is left and waits for the end of the pipeline's goroutine.
// When the collector does not take it in time, the rest is given up.
func (p *pipeline) close(t *Tracing) {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.cfg.Timeout)
	defer cancel()
	if err := p.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last traces were not sent", "endpoint", p.cfg.Endpoint, "err", err)
	}
	p.exporter.giveUp()
	<-p.exporter.done
}

// counting counts the spans that end.
type counting struct {
	sdk.SpanProcessor
	ended prometheus.Counter
}

// OnEnd implements sdk.SpanProcessor.
func (c counting) OnEnd(s sdk.ReadOnlySpan) {
	c.ended.Inc()
	c.SpanProcessor.OnEnd(s)
}

// exporter counts what becomes of batches and logs when sending begins to fail
// and works again. Only the batch processor's one goroutine calls it.
type exporter struct {
	sdk.SpanExporter
	t       *Tracing
	done    chan struct{} // closed when the batch processor is through
	failing bool

	mu struct {
		sync.Mutex
		over   bool               // nothing is sent any more
		cancel context.CancelFunc // of the batch under way
	}
}

// begin returns a context for a batch that giveUp ends.
func (e *exporter) begin(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.cancel = cancel
	if e.mu.over {
		cancel()
	}
	return ctx
}

// finish ends the batch under way.
func (e *exporter) finish() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.cancel()
}

// giveUp makes the batch under way and all that follow fail at once.
func (e *exporter) giveUp() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.over = true
	if e.mu.cancel != nil {
		e.mu.cancel()
	}
}

// Shutdown implements sdk.SpanExporter. It is the last call.
func (e *exporter) Shutdown(ctx context.Context) error {
	defer close(e.done)
	return e.SpanExporter.Shutdown(ctx)
}

// ExportSpans implements sdk.SpanExporter. It handles errors itself, because the
// SDK would write them to the process-wide standard logger.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(e.begin(ctx), spans)
	e.finish()
	if err != nil {
		e.t.failed.Add(float64(len(spans)))
	} else {
		e.t.sent.Add(float64(len(spans)))
	}
	if failing := err != nil; failing != e.failing {
		e.failing = failing
		if failing {
			e.t.log.Warn("traces cannot be sent; they are lost", "err", err)
		} else {
			e.t.log.Info("traces are sent again")
		}
	}
	return nil
}

// Start begins the span of a request, as a child of the trace context in h when
// there is one. It returns a context for Finish and the header to send upstream:
// h itself when tracing is off, otherwise a copy with the span's own context. h
// is not changed.
func (t *Tracing) Start(ctx context.Context, h http.Header, req *inference.Request) (context.Context, http.Header) {
	if t == nil {
		return ctx, h
	}
	tr := t.tracer.Load()
	if tr == nil {
		return ctx, h
	}
	var w3c propagation.TraceContext // traceparent and tracestate
	ctx = w3c.Extract(ctx, propagation.HeaderCarrier(h))
	ctx, _ = tr.Start(ctx, operation(req.Surface), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(req.Received))
	sent := maps.Clone(h)
	if sent == nil {
		sent = make(http.Header, 2)
	}
	delete(sent, "Traceparent")
	delete(sent, "Tracestate")
	w3c.Inject(ctx, propagation.HeaderCarrier(sent))
	return ctx, sent
}
