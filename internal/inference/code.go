package inference

import (
	"fmt"
	"time"
)

// Code names a cause of failure. It is what the client reads in error.code,
// what metrics and the access log carry, and the only thing that decides the
// HTTP status (one table in api).
type Code string

// Every code that Spillway answers with.
const (
	CodeInvalidRequest   Code = "invalid_request"
	CodeUnauthorized     Code = "unauthorized"
	CodeModelNotFound    Code = "model_not_found"
	CodeNotFound         Code = "not_found"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeTooLarge         Code = "request_too_large"
	CodeHeadTooLarge     Code = "request_head_too_large"
	CodeUnsupportedMedia Code = "unsupported_media_type"
	CodeBodyTimeout      Code = "request_timeout"
	CodeRateLimited      Code = "rate_limit_exceeded"
	CodeQuotaSpent       Code = "insufficient_quota"
	CodeOverloaded       Code = "server_is_overloaded"
	CodeNoCapacity       Code = "no_capacity"
	CodeUpstreamError    Code = "upstream_error"
	CodeUpstreamCut      Code = "upstream_cut"
	CodeTimeout          Code = "timeout"
	CodeCanceled         Code = "canceled"
	CodeDraining         Code = "draining"
	CodeNotCached        Code = "not_cached"
	CodeInternal         Code = "internal_error"
)

// Codes lists every code, for tests and documentation.
func Codes() []Code {
	return []Code{
		CodeInvalidRequest, CodeUnauthorized, CodeModelNotFound, CodeNotFound, CodeMethodNotAllowed,
		CodeTooLarge, CodeHeadTooLarge, CodeUnsupportedMedia, CodeBodyTimeout, CodeRateLimited, CodeQuotaSpent,
		CodeOverloaded, CodeNoCapacity, CodeUpstreamError, CodeUpstreamCut, CodeTimeout, CodeCanceled, CodeDraining, CodeNotCached, CodeInternal,
	}
}

// Error is the one error type that reaches a client.
type Error struct {
	Code       Code
	Message    string        // a full sentence for the client; safe to show
	Param      string        // the offending field, if one
	Reason     string        // a machine-readable cause for logs and X-Spillway-Reason
	RetryAfter time.Duration // when trying again makes sense; 0 is unknown
	NoRetry    bool          // trying again cannot help: x-should-retry: false
	Fields     []HeaderField // what else the client is told: its limits
	Ticket     string        // reserves a slot for the return; "" is none
	Position   int           // in the queue, from 1; 0 is not known
	Predicted  time.Duration // the wait as it was predicted; 0 is not known
	Err        error         // the cause; never shown to the client
}

// Error implements error with the code, the message and the cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf builds an Error with a formatted message.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Verdict is the judgement on one attempt. Different causes have different
// reactions: busy slows an instance, spent parks an account, broken counts
// against the instance's health, yours goes back to the client unchanged, and
// canceled counts against nobody.
type Verdict uint8

// The verdicts.
const (
	VerdictOK Verdict = iota
	VerdictBusy
	VerdictSpent
	VerdictBroken
	VerdictYours
	VerdictCanceled
)

// verdictNames is indexed by Verdict.
var verdictNames = [...]string{"ok", "busy", "spent", "broken", "yours", "canceled"}

// String returns the name used in metrics and logs.
func (v Verdict) String() string {
	if int(v) >= len(verdictNames) {
		return "unknown"
	}
	return verdictNames[v]
}
