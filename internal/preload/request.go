package preload

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// passing are fields of one connection or one exchange, which another one must not
// repeat.
var passing = []string{
	"Cache-Control", "Pragma", "If-None-Match", "If-Modified-Since", "Range", "Expect", "Connection", "Keep-Alive", "Upgrade",
	"Te", "Trailer", "Transfer-Encoding", "Content-Length", "Traceparent", "Tracestate", "Baggage", "X-Request-Id", "Forwarded",
}

// Strip returns a copy of a request that can be asked again by its tenant: of the
// class idle, without a name or a deadline of its own, and without anything that
// may be a credential: header fields and query parameters are left out when their
// name hints at one, or when a value begins as an HTTP credential does. The copy
// shares no memory with req.
func Strip(req *inference.Request) *inference.Request {
	c := *req
	c.ID, c.Ticket, c.Retry, c.Wait, c.Patience = "", "", 0, 0, 0
	c.Class, c.DegradeOK = inference.Idle, false
	c.Tenant, c.Key, c.User = strings.Clone(c.Tenant), strings.Clone(c.Key), strings.Clone(c.User)
	c.Model, c.Asked = strings.Clone(c.Model), strings.Clone(c.Asked)
	c.Body = bytes.Clone(req.Body)
	c.RawQuery = stripQuery(req.RawQuery)
	c.Header = make(http.Header, len(req.Header))
	for name, values := range req.Header {
		if keeps(name, values) {
			for _, v := range values {
				c.Header.Add(name, strings.Clone(v))
			}
		}
	}
	return &c
}

// keeps says whether a header field may be kept.
func keeps(name string, values []string) bool {
	if wire.Credential(name, values) {
		return false
	}
	for _, p := range passing {
		if strings.EqualFold(name, p) {
			return false
		}
	}
	return true
}

// repeatable says whether Strip leaves everything in place that is part of the answer's
// key: what is asked without it is another question, and its answer nobody's.
func repeatable(a *Asked) bool {
	if stripQuery(a.Request.RawQuery) != a.Request.RawQuery {
		return false
	}
	for name, values := range a.Request.Header {
		if a.Varies != nil && a.Varies(name) && !keeps(name, values) {
			return false
		}
	}
	return true
}

// stripQuery leaves out parameters that may be credentials. What cannot be read is
// left out as a whole.
func stripQuery(raw string) string {
	if raw == "" {
		return ""
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return ""
	}
	dropped := false
	for name := range values {
		if wire.Credential(name, nil) {
			delete(values, name)
			dropped = true
		}
	}
	if dropped {
		return values.Encode()
	}
	return strings.Clone(raw)
}

// requestCost is what a kept request takes beside its texts, in bytes.
const requestCost = 1024

// requestSize is an upper bound of the memory that a copy takes, in bytes.
func requestSize(req *inference.Request) int64 {
	if req == nil {
		return 0
	}
	n := requestCost + len(req.Body) + len(req.RawQuery)
	for name, values := range req.Header {
		n += len(name) + 64
		for _, v := range values {
			n += len(v) + 32
		}
	}
	return int64(n)
}
