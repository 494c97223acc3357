package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// The header fields with which a client says how it is to be served, beside its
// key and class. They are listed in docs/operating.md.
const (
	deadlineField     = "X-Spillway-Deadline-Ms"
	timeoutField      = "X-Request-Timeout"
	degradeField      = "X-Spillway-Degrade"
	ticketField       = "X-Retry-Ticket"
	cacheControlField = "Cache-Control"
	retryCountField   = "X-Stainless-Retry-Count"
	nodeTimeoutField  = "X-Stainless-Timeout"
	readTimeoutField  = "X-Stainless-Read-Timeout"
	maxTicket         = 256 // bytes
	maxRetryCount     = 100
	maxTimeoutSeconds = 1e6
)

// readHints completes a request whose body was scanned from its header: how long
// it may take, how long its client waits, which retry it is.
//
// A time-out that the client asks Spillway for is the request's deadline and the
// wait it puts up with. What its SDK announces by itself is how long it waits for
// an answer to begin, so it shortens the deadline of an answer in one piece, and
// never that of a stream.
func readHints(req *inference.Request, timeout time.Duration) {
	h := req.Header
	if d, ok := clientTimeout(h); ok {
		timeout = min(timeout, d)
		req.Wait = timeout
	}
	for _, name := range [...]string{nodeTimeoutField, readTimeoutField} {
		if d, ok := seconds(h[name]); ok && (req.Patience == 0 || d < req.Patience) {
			req.Patience = d
		}
	}
	if req.Patience > 0 && !req.Stream {
		timeout = min(timeout, req.Patience)
	}
	req.Deadline = req.Received.Add(timeout)
	if v := h[retryCountField]; len(v) == 1 {
		if n, err := strconv.ParseUint(v[0], 10, 31); err == nil {
			req.Retry = int(min(n, maxRetryCount))
		}
	}
	if v := h[ticketField]; len(v) == 1 && len(v[0]) <= maxTicket && printable(v[0]) {
		req.Ticket = v[0]
	}
	if v := h[degradeField]; len(v) == 1 {
		req.DegradeOK = v[0] == "ok"
	}
	if v := h[cacheControlField]; len(v) > 0 {
		req.Cache = cacheControl(v)
	} else if v := h["Pragma"]; len(v) > 0 { // what old clients send in its place (RFC 9111 section 5.4)
		req.Cache.NoCache = v[0] == "no-cache"
	}
}

// cacheControl reads what a client says about kept answers (RFC 9111 section
// 5.2.1). What is not known, or not well-formed, says nothing.
func cacheControl(values []string) (c inference.CacheControl) {
	for _, line := range values {
		for part := range strings.SplitSeq(line, ",") {
			name, arg, _ := strings.Cut(strings.TrimSpace(part), "=")
			switch strings.ToLower(name) {
			case "no-store":
				c.NoStore = true
			case "no-cache":
				c.NoCache = true
			case "only-if-cached":
				c.OnlyIfCached = true
			case "max-age":
				if sec, err := strconv.ParseUint(strings.Trim(arg, `"`), 10, 31); err == nil {
					c.MaxAge, c.HasMaxAge = time.Duration(sec)*time.Second, true
				}
			}
		}
	}
	return c
}

// clientTimeout is the time-out that a client asks for, in seconds in
// X-Request-Timeout or in milliseconds in X-Spillway-Deadline-Ms.
func clientTimeout(h http.Header) (time.Duration, bool) {
	if v := h[deadlineField]; len(v) == 1 {
		if ms, err := strconv.ParseUint(v[0], 10, 31); err == nil && ms > 0 {
			return time.Duration(ms) * time.Millisecond, true
		}
	}
	return seconds(h[timeoutField])
}

// seconds reads a positive number of seconds that stands alone.
func seconds(values []string) (time.Duration, bool) {
	if len(values) != 1 {
		return 0, false
	}
	sec, err := strconv.ParseFloat(values[0], 64)
	if err != nil || !(sec > 0 && sec < maxTimeoutSeconds) {
		return 0, false
	}
	d := time.Duration(sec * float64(time.Second))
	return d, d > 0
}
