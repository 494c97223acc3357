package api

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// answers is the one table from a code to what the client sees.
var answers = map[inference.Code]struct {
	status    int
	kind      string // error.type on OpenAI's surfaces
	anthropic string // error.type on Anthropic's
}{
	inference.CodeInvalidRequest:   {400, "invalid_request_error", "invalid_request_error"},
	inference.CodeUnauthorized:     {401, "authentication_error", "authentication_error"},
	inference.CodeModelNotFound:    {404, "invalid_request_error", "not_found_error"},
	inference.CodeNotFound:         {404, "invalid_request_error", "not_found_error"},
	inference.CodeMethodNotAllowed: {405, "invalid_request_error", "invalid_request_error"},
	inference.CodeTooLarge:         {413, "invalid_request_error", "request_too_large"},
	inference.CodeHeadTooLarge:     {431, "invalid_request_error", "request_too_large"},
	inference.CodeUnsupportedMedia: {415, "invalid_request_error", "invalid_request_error"},
	inference.CodeBodyTimeout:      {408, "invalid_request_error", "invalid_request_error"},
	inference.CodeRateLimited:      {429, "rate_limit_error", "rate_limit_error"},
	inference.CodeQuotaSpent:       {429, "insufficient_quota", "rate_limit_error"},
	inference.CodeOverloaded:       {503, "server_error", "overloaded_error"},
	inference.CodeNoCapacity:       {503, "server_error", "overloaded_error"},
	inference.CodeDraining:         {503, "server_error", "overloaded_error"},
	inference.CodeNotCached:        {504, "invalid_request_error", "invalid_request_error"},
	inference.CodeUpstreamError:    {502, "server_error", "api_error"},
	inference.CodeUpstreamCut:      {502, "server_error", "api_error"},
	inference.CodeTimeout:          {504, "server_error", "timeout_error"},
	inference.CodeCanceled:         {499, "invalid_request_error", "api_error"},
	inference.CodeInternal:         {500, "server_error", "api_error"},
}

// Status is the HTTP status of a code.
func Status(code inference.Code) int {
	if a, ok := answers[code]; ok {
		return a.status
	}
	return http.StatusInternalServerError
}

// openAIError is the error object of OpenAI's surfaces.
type openAIError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
}

// anthropicError is the error object of Anthropic's surface.
type anthropicError struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// errorBody renders an error for a surface, in one line of JSON.
func errorBody(surface inference.Surface, e *inference.Error, requestID string) []byte {
	a := answers[e.Code]
	var v any
	if surface == inference.Messages {
		v = struct {
			Type      string         `json:"type"`
			Error     anthropicError `json:"error"`
			RequestID string         `json:"request_id"`
		}{"error", anthropicError{a.anthropic, e.Message}, requestID}
	} else {
		o := openAIError{Message: e.Message, Type: a.kind, Code: string(e.Code)}
		if e.Param != "" {
			o.Param = &e.Param
		}
		v = struct {
			Error openAIError `json:"error"`
		}{o}
	}
	b, err := json.Marshal(v)
	if err != nil { // strings always marshal; an answer is owed in any case
		return []byte(`{"error":{"message":"internal error","type":"server_error","param":null,"code":"internal_error"}}`)
	}
	return b
}

// maxPatience is the wait beyond which a client is told not to come back by
// itself: SDKs give up on longer ones or ignore them.
const maxPatience = 60 * time.Second

// setErrorHeader writes what tells a client whether and when to try again, and
// how long the server took to say so, but to those who may be guessing keys. Retry-After
// is never 0: some SDKs take that as "at once".
func setErrorHeader(h http.Header, e *inference.Error, took time.Duration) {
	set := func(name, value string) { h[name] = []string{value} }
	if e.Code == inference.CodeUnauthorized {
		set("Www-Authenticate", "Bearer") // RFC 9110 section 15.5.2
	} else {
		set("X-Spillway-Server-Ms", strconv.FormatFloat(float64(took)/float64(time.Millisecond), 'f', 3, 64))
	}
	for _, f := range e.Fields {
		set(f.Name, f.Value)
	}
	if e.Reason != "" {
		set("X-Spillway-Reason", e.Reason)
	}
	if e.RetryAfter > 0 {
		set("Retry-After", strconv.FormatInt(ceil(e.RetryAfter, time.Second), 10))
		set("Retry-After-Ms", strconv.FormatInt(ceil(e.RetryAfter, time.Millisecond), 10))
	}
	if e.NoRetry || e.RetryAfter > maxPatience {
		set("X-Should-Retry", "false")
	}
	if e.Ticket != "" {
		set(ticketField, e.Ticket)
	}
	if e.Position > 0 {
		set("X-Spillway-Queue-Position", strconv.Itoa(e.Position))
	}
	if e.Predicted > 0 {
		set("X-Spillway-Predicted-Wait-Ms", strconv.FormatInt(ceil(e.Predicted, time.Millisecond), 10))
	}
}

// ceil is how many units a positive duration takes, begun ones included.
func ceil(d, unit time.Duration) int64 {
	n := int64(d / unit)
	if d%unit > 0 {
		n++
	}
	return n
}
