package telemetry

import (
	"go.opentelemetry.io/otel/attribute"

	"github.com/spillway/spillway/internal/inference"
)

// Names of OpenTelemetry's GenAI conventions. They are written out because the
// Go module has none from semconv 1.42 on: they moved to the repository
// semantic-conventions-genai, where all of them are still in development.
const (
	genAIOperation       = attribute.Key("gen_ai.operation.name")
	genAIProvider        = attribute.Key("gen_ai.provider.name")
	genAIRequestModel    = attribute.Key("gen_ai.request.model")
	genAIRequestStream   = attribute.Key("gen_ai.request.stream")
	genAIRequestMax      = attribute.Key("gen_ai.request.max_tokens")
	genAIResponseModel   = attribute.Key("gen_ai.response.model")
	genAIFirstChunk      = attribute.Key("gen_ai.response.time_to_first_chunk") // seconds
	genAIInputTokens     = attribute.Key("gen_ai.usage.input_tokens")
	genAIOutputTokens    = attribute.Key("gen_ai.usage.output_tokens")
	genAICachedTokens    = attribute.Key("gen_ai.usage.cache_read.input_tokens")
	genAIReasoningTokens = attribute.Key("gen_ai.usage.reasoning.output_tokens")
)

// Names of OpenTelemetry's general conventions.
const (
	errorType      = attribute.Key("error.type")
	httpStatus     = attribute.Key("http.response.status_code")
	serviceName    = attribute.Key("service.name")
	serviceVersion = attribute.Key("service.version")
)

// Names of our own.
const (
	spillwayRequest  = attribute.Key("spillway.request_id")
	spillwaySurface  = attribute.Key("spillway.surface")
	spillwayTenant   = attribute.Key("spillway.tenant")
	spillwayClass    = attribute.Key("spillway.class")
	spillwayReason   = attribute.Key("spillway.reason")
	spillwayComplete = attribute.Key("spillway.complete")
	spillwayOverhead = attribute.Key("spillway.overhead_ms")
	spillwayPool     = attribute.Key("spillway.pool")
	spillwayInstance = attribute.Key("spillway.instance")
	spillwayVerdict  = attribute.Key("spillway.verdict")
	spillwayConnect  = attribute.Key("spillway.connect_ms")
	spillwayHedge    = attribute.Key("spillway.hedge")
)

// operation is the GenAI operation of a surface.
func operation(s inference.Surface) string {
	switch s {
	case inference.Completions:
		return "text_completion"
	case inference.Embeddings:
		return "embeddings"
	}
	return "chat"
}

// provider names the API that a surface speaks, which is what the conventions
// ask for where the server behind a compatible API is not known.
func provider(s inference.Surface) string {
	if s == inference.Messages {
		return "anthropic"
	}
	return "openai"
}
