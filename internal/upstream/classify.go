package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// classify turns an error answer into a verdict and a reason. Busy is a matter
// of capacity, spent of a provider account, broken of the server, yours of the
// request itself (DeepSeek's and OpenAI's error tables).
func classify(status int, body []byte, forwardAuth bool) (inference.Verdict, string) {
	e, _ := wire.ParseErrorBody(body)
	if status == http.StatusOK { // an error inside an answer that claimed success
		status = impliedStatus(e)
	}
	switch {
	case status == http.StatusPaymentRequired || isQuota(e):
		return inference.VerdictSpent, "insufficient_quota"
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable, status == 529,
		status == http.StatusRequestTimeout:
		return inference.VerdictBusy, "status_" + strconv.Itoa(status)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		if forwardAuth {
			return inference.VerdictYours, "status_" + strconv.Itoa(status)
		}
		return inference.VerdictSpent, "credentials"
	case status >= 400 && status < 500:
		return inference.VerdictYours, "status_" + strconv.Itoa(status)
	}
	return inference.VerdictBroken, "status_" + strconv.Itoa(status)
}

// impliedStatus reads the status that an error object inside a 200 stands for.
func impliedStatus(e wire.ErrorBody) int {
	if e.Status >= 400 && e.Status <= 599 {
		return e.Status
	}
	words := strings.ToLower(e.Code + " " + e.Type + " " + e.Message)
	for _, w := range []string{"queue is full", "overloaded", "busy", "rate_limit", "rate limit", "too many requests", "capacity"} {
		if strings.Contains(words, w) {
			return http.StatusServiceUnavailable
		}
	}
	if strings.Contains(words, "invalid_request") || strings.Contains(words, "badrequest") {
		return http.StatusBadRequest
	}
	return http.StatusBadGateway
}

// isQuota says whether an error means that the account's money or quota is
// spent, which no retry on the same account mends.
func isQuota(e wire.ErrorBody) bool {
	return e.Code == "insufficient_quota" || e.Type == "insufficient_quota" || e.Code == "billing_hard_limit_reached"
}

// retryable says whether another instance may answer what this one did not. A
// plain 500 is not: the request itself may have caused it, and it would take
// the next instance down as well.
func retryable(v inference.Verdict, status int) bool {
	switch v {
	case inference.VerdictBusy, inference.VerdictSpent:
		return true
	case inference.VerdictBroken:
		return status == 0 || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
	}
	return false
}

// retryHints collects what an answer's head says about when to come back.
type retryHints struct {
	after   time.Duration // retry-after-ms, or Retry-After
	exact   bool          // after came from retry-after-ms
	soonest time.Duration // the smallest x-ratelimit-reset-*
}

// read notes one header field.
func (r *retryHints) read(name string, value []byte) {
	switch {
	case name == "Retry-After-Ms":
		if ms, err := strconv.ParseFloat(string(value), 64); err == nil && ms >= 0 && ms < 1e9 {
			r.after, r.exact = time.Duration(ms*float64(time.Millisecond)), true
		}
	case name == "Retry-After" && !r.exact:
		if s, err := strconv.ParseFloat(string(value), 64); err == nil && s >= 0 && s < 1e6 {
			r.after = time.Duration(s * float64(time.Second))
		} else if at, err := http.ParseTime(string(value)); err == nil {
			r.after = max(0, time.Until(at))
		}
	case strings.HasPrefix(name, "X-Ratelimit-Reset"):
		if d, ok := parseReset(string(value), time.Now()); ok && d > 0 && (r.soonest == 0 || d < r.soonest) {
			r.soonest = d
		}
	}
}

// wait is the wait that the upstream asks for; 0 when it does not.
func (r *retryHints) wait() time.Duration {
	if r.after > 0 {
		return r.after
	}
	return r.soonest
}
