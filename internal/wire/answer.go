package wire

import (
	"bytes"
	"strconv"

	"github.com/spillway/spillway/internal/inference"
)

// AnswerUsage finds usage in the body of an answer that is not streamed. It
// looks for the last member of that name, which is where servers write it, and
// parses that object alone; a body without one gives the zero Usage.
func AnswerUsage(body []byte) inference.Usage {
	var u inference.Usage
	i := bytes.LastIndex(body, []byte(`"usage"`))
	if i < 0 {
		return u
	}
	v := bytes.TrimLeft(body[i+len(`"usage"`):], " \t\r\n")
	if len(v) == 0 || v[0] != ':' {
		return u
	}
	d := newDecoder(v[1:])
	defer d.done()
	if d.PeekKind() != '{' || readUsage(d, &u) != nil {
		return inference.Usage{}
	}
	return u
}

// ErrorBody is what a server's error answer says, in whatever shape it came.
type ErrorBody struct {
	Message string
	Type    string
	Code    string
	Status  int // a numeric code or status inside the body; 0 when none
}

// ParseErrorBody reads the error shapes of the known servers: OpenAI's and
// Anthropic's object, a plain string (Ollama), a flat object (vLLM, SGLang) and
// FastAPI's detail. ok is false when body is none of them.
func ParseErrorBody(body []byte) (e ErrorBody, ok bool) {
	d := newDecoder(body)
	defer d.done()
	if d.PeekKind() != '{' {
		return e, false
	}
	flat := ErrorBody{}
	isError := false
	_, err := d.members(func(name []byte) error {
		switch key := string(name); key {
		case `"error"`, `"detail"`:
			switch d.PeekKind() {
			case '{':
				ok = true
				_, err := d.members(func(name []byte) error { return e.member(d, name) })
				return err
			case '"':
				v, err := d.ReadValue()
				ok = err == nil
				e.Message = text(v)
				return err
			}
			return d.SkipValue()
		case `"object"`:
			v, err := d.ReadValue()
			isError = err == nil && string(v) == `"error"`
			return err
		default:
			return flat.member(d, name)
		}
	})
	if err != nil && !ok {
		return ErrorBody{}, false
	}
	if !ok && isError {
		return flat, true
	}
	return e, ok
}

// member reads one member of an error object.
func (e *ErrorBody) member(d *decoder, name []byte) error {
	v, err := d.ReadValue()
	if err != nil {
		return err
	}
	var s string
	switch v.Kind() {
	case '"':
		s = text(v)
	case '0':
		s = string(v)
	default:
		return nil
	}
	switch string(name) {
	case `"message"`:
		e.Message = s
	case `"type"`:
		e.Type = s
	case `"code"`, `"status"`:
		if n, err := strconv.Atoi(s); err == nil {
			e.Status = n
			return nil
		}
		e.Code = s
	}
	return nil
}

// IsErrorBody says whether an answer that claims success begins as an error
// object, which some servers send with status 200.
func IsErrorBody(body []byte) bool {
	rest, ok := bytes.CutPrefix(bytes.TrimLeft(body[:min(len(body), 64)], " \t\r\n"), []byte{'{'})
	return ok && bytes.HasPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte(`"error"`))
}
