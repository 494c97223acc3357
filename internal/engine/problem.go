package engine

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// problem is a refusal in words; each surface has its own shape for it.
type problem struct {
	status  int
	kind    string // OpenAI's error.type
	code    string // OpenAI's error.code as JSON text; empty is null
	param   string // OpenAI's error.param; empty is null
	message string
	raw     string // a whole body that replaces the surface's shape
}

func invalid(param, message string) *problem {
	return &problem{status: 400, kind: "invalid_request_error", param: param, message: message}
}

// openAI renders {"error":{...}}.
func (p *problem) openAI() []byte {
	if p.raw != "" {
		return []byte(p.raw)
	}
	b := append([]byte(nil), `{"error":{"message":`...)
	b = appendQuoted(b, p.message)
	b = append(b, `,"type":`...)
	b = appendQuoted(b, p.kind)
	b = append(b, `,"param":`...)
	if p.param == "" {
		b = append(b, "null"...)
	} else {
		b = appendQuoted(b, p.param)
	}
	b = append(b, `,"code":`...)
	if p.code == "" {
		b = append(b, "null"...)
	}
	return append(append(b, p.code...), "}}"...)
}

// anthropic renders {"type":"error","error":{...}}; the type follows from the status.
func (p *problem) anthropic() []byte {
	kind := "api_error"
	switch p.status {
	case 400, 405, 415, 422:
		kind = "invalid_request_error"
	case 401:
		kind = "authentication_error"
	case 403:
		kind = "permission_error"
	case 404:
		kind = "not_found_error"
	case 413:
		kind = "request_too_large"
	case 429:
		kind = "rate_limit_error"
	case 503, 529:
		kind = "overloaded_error"
	}
	b := append([]byte(nil), `{"type":"error","error":{"type":`...)
	b = appendQuoted(b, kind)
	b = append(b, `,"message":`...)
	b = appendQuoted(b, p.message)
	return append(b, "}}"...)
}

// write sends a problem in the shape of its surface.
func (p *problem) write(w http.ResponseWriter, surface string) {
	body := p.openAI()
	if surface == SurfaceMessages {
		body = p.anthropic()
	}
	writeJSON(w, p.status, body)
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have left; nobody is there to be told
}

// overloaded is what a full queue answers, in the words of the server that style imitates. In the second result the
// problem belongs into a stream whose status was 200.
func overloaded(style string, stream bool) (p *problem, inStream bool) {
	switch style {
	case OverloadSGLang:
		return &problem{
			status: 503, kind: "SERVICE_UNAVAILABLE", code: "503",
			message: "The request queue is full.",
		}, stream
	case OverloadTGI:
		return &problem{
			status: 429, message: "Model is overloaded",
			raw: `{"error":"Model is overloaded","error_type":"overloaded"}`,
		}, false
	case OverloadOllama:
		return &problem{
			status: 503, kind: "api_error",
			message: "server busy, please try again.  maximum pending requests exceeded",
		}, false
	default:
		return &problem{
			status: 503, kind: "ServiceUnavailableError", code: "503",
			message: "The server is overloaded: the request queue is full.",
		}, false
	}
}

// appendQuoted adds s as a JSON string.
func appendQuoted(dst []byte, s string) []byte {
	out, err := jsontext.AppendQuote(dst, s)
	if err != nil { // invalid UTF-8
		out, _ = jsontext.AppendQuote(dst, strings.ToValidUTF8(s, "\uFFFD"))
	}
	return out
}
