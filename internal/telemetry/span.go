package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/spillway/spillway/internal/inference"
)

// Finish ends the span that Start put into ctx: its attributes come from the
// record, and so does one child span for each attempt. It keeps nothing of rec.
func (t *Tracing) Finish(ctx context.Context, rec *inference.Record) {
	if t == nil || rec == nil {
		return
	}
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	end := rec.Request.Received.Add(rec.Duration)
	if tr := t.tracer.Load(); tr != nil {
		for i := range rec.Attempts {
			attemptSpan(ctx, tr, rec, &rec.Attempts[i])
		}
	}
	if rec.Last() != nil { // otherwise the model's name may be anything, and names of spans should be few
		span.SetName(spanName(rec.Request.Surface, rec.Request.Model))
	}
	span.SetAttributes(requestAttributes(rec)...)
	if rec.Code != "" {
		span.SetAttributes(errorType.String(string(rec.Code)))
		if ours(rec.Code) {
			span.SetStatus(codes.Error, rec.Reason)
		}
	}
	span.End(trace.WithTimestamp(end))
}

// spanName is an operation and its object, as the GenAI conventions want it.
func spanName(s inference.Surface, model string) string {
	if len(model) > maxAttribute {
		return operation(s)
	}
	return operation(s) + " " + model
}

// ours says whether a code is a fault on the server's side: for a client's own
// mistake, and for one that left, a server span's status stays unset.
func ours(c inference.Code) bool {
	switch c {
	case inference.CodeOverloaded, inference.CodeNoCapacity, inference.CodeUpstreamError, inference.CodeUpstreamCut,
		inference.CodeTimeout, inference.CodeDraining, inference.CodeInternal:
		return true
	}
	return false
}

// requestAttributes describes a request and its answer.
func requestAttributes(rec *inference.Record) []attribute.KeyValue {
	req := rec.Request
	all := append(make([]attribute.KeyValue, 0, 20),
		genAIOperation.String(operation(req.Surface)),
		genAIProvider.String(provider(req.Surface)),
		genAIRequestModel.String(req.Model),
		genAIRequestStream.Bool(req.Stream),
		httpStatus.Int(rec.Status),
		spillwayRequest.String(req.ID),
		spillwaySurface.String(req.Surface.String()),
		spillwayTenant.String(req.Tenant),
		spillwayClass.String(req.Class.String()),
		spillwayComplete.Bool(rec.Complete),
		spillwayOverhead.Float64(millis(max(0, rec.Duration-rec.Upstream))),
	)
	if req.MaxTokens > 0 {
		all = append(all, genAIRequestMax.Int64(req.MaxTokens))
	}
	if last := rec.Last(); last != nil && rec.Code == "" {
		all = append(all, genAIResponseModel.String(last.Model))
	}
	if rec.TTFT > 0 {
		all = append(all, genAIFirstChunk.Float64(rec.TTFT.Seconds()))
	}
	if u := rec.Usage; !u.Zero() {
		all = append(all, genAIInputTokens.Int64(u.PromptTokens), genAIOutputTokens.Int64(u.CompletionTokens),
			genAICachedTokens.Int64(u.CachedTokens), genAIReasoningTokens.Int64(u.ReasoningTokens))
	}
	if rec.Reason != "" {
		all = append(all, spillwayReason.String(rec.Reason))
	}
	return all
}

// millis is d in milliseconds.
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// attemptSpan makes the span of one attempt.
func attemptSpan(ctx context.Context, tr trace.Tracer, rec *inference.Record, a *inference.Attempt) {
	surface := rec.Request.Surface
	begun := rec.Request.Received.Add(a.Start)
	attributes := append(make([]attribute.KeyValue, 0, 12),
		genAIOperation.String(operation(surface)),
		genAIProvider.String(provider(surface)),
		genAIRequestModel.String(a.Model),
		spillwayPool.String(a.Pool),
		spillwayInstance.String(a.Instance),
		spillwayVerdict.String(a.Verdict.String()),
		spillwayConnect.Float64(millis(a.Connect)),
	)
	if a.Status != 0 {
		attributes = append(attributes, httpStatus.Int(a.Status))
	}
	if a.TTFT > 0 {
		attributes = append(attributes, genAIFirstChunk.Float64(a.TTFT.Seconds()))
	}
	if a.Hedge {
		attributes = append(attributes, spillwayHedge.Bool(true))
	}
	if a.Reason != "" {
		attributes = append(attributes, spillwayReason.String(a.Reason))
	}
	if a.Verdict != inference.VerdictOK {
		attributes = append(attributes, errorType.String(a.Verdict.String()))
	}
	_, span := tr.Start(ctx, spanName(surface, a.Model), trace.WithSpanKind(trace.SpanKindClient),
		trace.WithTimestamp(begun), trace.WithAttributes(attributes...))
	switch a.Verdict {
	case inference.VerdictOK, inference.VerdictCanceled:
	default:
		span.SetStatus(codes.Error, a.Reason)
	}
	span.End(trace.WithTimestamp(begun.Add(a.Duration)))
}
