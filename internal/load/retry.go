package load

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// How the official SDKs retry (openai-python, and within the bounds below
// openai-node and openai-go): connection errors, 408, 409, 429 and 5xx, after
// retry-after-ms, else Retry-After, else 0.5 s doubled per retry up to 8 s
// less up to a quarter at random.
const (
	retryFirst = 500 * time.Millisecond
	retryCap   = 8 * time.Second
	// retryLongest is the longest wait a server can ask for: openai-python and
	// openai-go give up above it.
	retryLongest = 120 * time.Second
)

// retryHints are what a server says about retrying; empty fields were absent.
type retryHints struct{ afterMS, after, should string }

// retryable says whether an SDK tries again after this status; 0 means that no
// answer began.
func (h retryHints) retryable(status int) bool {
	switch h.should {
	case "true":
		return true
	case "false":
		return false
	}
	switch status {
	case 0, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	}
	return status >= http.StatusInternalServerError
}

// delay is the wait before retry n (from 0), false when the SDK gives up.
// random is in [0, 1).
func (h retryHints) delay(n int, now time.Time, random float64) (time.Duration, bool) {
	if d := h.asked(now); d > 0 {
		return d, d <= retryLongest
	}
	d := retryCap
	if n < 4 { // 0.5 s x 2^4 is the cap
		d = retryFirst << n
	}
	return d - time.Duration(random*float64(d)/4), true
}

// asked is the wait that the server asks for, 0 when it does not.
func (h retryHints) asked(now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(h.afterMS, 64); err == nil {
		return bounded(ms / 1000)
	}
	if s, err := strconv.ParseFloat(h.after, 64); err == nil {
		return bounded(s)
	}
	if at, err := http.ParseTime(h.after); err == nil {
		return at.Sub(now)
	}
	return 0
}

// bounded converts seconds; what no wait can be counts as too long or as none.
func bounded(s float64) time.Duration {
	if d, err := seconds(s); err == nil {
		return d
	}
	if s > 0 {
		return 2 * retryLongest
	}
	return 0
}

// jitter draws for the retry of a row: the same row in the same run draws the
// same.
func jitter(seed, row uint64, n int) float64 {
	return rand.New(rand.NewPCG(mix(seed, row), uint64(n))).Float64()
}
