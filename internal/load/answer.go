package load

import (
	"bytes"
	"encoding/json"
	"strconv"

	"github.com/spillway/spillway/internal/inference"
)

// A load generator judges gateways, so it does not share their reading of
// events: what follows looks for the few marks of a surface by itself. Marks
// are JSON names in quotes; inside a string value quotes are escaped, so that
// generated text cannot be mistaken for a mark.

// sign is what one event or body says.
type sign struct {
	delta  bool   // output text, reasoning or a tool call
	finish bool   // a reason why the answer ended
	done   bool   // the surface's terminal event
	code   string // of an error
	tokens int64  // output tokens according to usage, 0 when absent
}

// maxCode bounds an error code that a server names, in bytes.
const maxCode = 64

// insufficient is DeepSeek's finish reason of an answer that overload broke
// off: not a success.
const insufficient = "insufficient_system_resource"

// readEvent reads the data of one streamed event.
func readEvent(s inference.Surface, data []byte) sign {
	switch s {
	case inference.Messages:
		return messagesEvent(data)
	case inference.Responses:
		return responsesEvent(data)
	}
	if string(data) == "[DONE]" {
		return sign{done: true}
	}
	var e sign
	if s == inference.Completions {
		e.delta = text(data, `"text"`)
	} else {
		e.delta = text(data, `"content"`) || text(data, `"reasoning_content"`) || text(data, `"reasoning"`) || list(data, `"tool_calls"`)
	}
	e.finishReason(data, `"finish_reason"`)
	e.tokens = number(data, `"completion_tokens"`)
	if e.code == "" && member(data, `"error"`) != nil {
		e.code = errorCode(data, "")
	}
	return e
}

// finishReason reads the reason under key.
func (e *sign) finishReason(data []byte, key string) {
	v := member(data, key)
	if e.finish = filled(v); e.finish && bytes.HasPrefix(v[1:], []byte(insufficient+`"`)) {
		e.code = insufficient
	}
}

func messagesEvent(data []byte) sign {
	var e sign
	if bytes.Contains(data, []byte(`"content_block_delta"`)) {
		e.delta = text(data, `"text"`) || text(data, `"thinking"`) || text(data, `"partial_json"`)
		return e
	}
	e.finishReason(data, `"stop_reason"`)
	e.tokens = number(data, `"output_tokens"`)
	e.done = bytes.Contains(data, []byte(`"message_stop"`))
	if member(data, `"error"`) != nil {
		e.code = errorCode(data, "")
	}
	return e
}

func responsesEvent(data []byte) sign {
	var e sign
	typ := member(data, `"type"`)
	switch {
	case bytes.HasPrefix(typ, []byte(`"response.`)) && bytes.Contains(typ[:min(len(typ), maxCode)], []byte(`.delta"`)):
		e.delta = text(data, `"delta"`)
	case bytes.HasPrefix(typ, []byte(`"response.completed"`)), bytes.HasPrefix(typ, []byte(`"response.incomplete"`)):
		e.finish, e.done = true, true
		e.tokens = number(data, `"output_tokens"`)
	case bytes.HasPrefix(typ, []byte(`"response.failed"`)), bytes.HasPrefix(typ, []byte(`"error"`)), typ == nil:
		e.code = errorCode(data, "")
	}
	return e
}

// readAnswer reads a body in one piece with status 200: what a complete answer
// needs is its choices (or the surface's like) and their finish.
func readAnswer(s inference.Surface, data []byte) sign {
	if !json.Valid(data) {
		return sign{} // neither finished nor an error: it broke off
	}
	if code := errorCode(data, ""); code != "" {
		return sign{code: code}
	}
	var e sign
	switch s {
	case inference.Embeddings:
		e.finish = list(data, `"data"`)
	case inference.Messages:
		e.finishReason(data, `"stop_reason"`)
		e.tokens = number(data, `"output_tokens"`)
	case inference.Responses:
		e.finish = bytes.HasPrefix(member(data, `"status"`), []byte(`"completed"`)) ||
			bytes.HasPrefix(member(data, `"status"`), []byte(`"incomplete"`))
		e.tokens = number(data, `"output_tokens"`)
	default:
		e.finishReason(data, `"finish_reason"`)
		e.tokens = number(data, `"completion_tokens"`)
	}
	if !e.finish {
		e.code = codeBadAnswer
	}
	e.done = e.finish
	return e
}

// errorCode is the code that an error body names: error.code when it is a
// string, else error.type, else fallback. Bodies of vLLM carry both at the
// top. It returns fallback for a body that is no error.
func errorCode(data []byte, fallback string) string {
	type named struct {
		Code any    `json:"code"`
		Type string `json:"type"`
	}
	var v struct {
		Error    json.RawMessage `json:"error"`
		Response struct {
			Error json.RawMessage `json:"error"`
		} `json:"response"`
		Object string `json:"object"`
		named
	}
	if json.Unmarshal(data, &v) != nil {
		return fallback
	}
	raw := v.Error
	if isNull(raw) {
		raw = v.Response.Error
	}
	var n named
	switch {
	case !isNull(raw):
		if json.Unmarshal(raw, &n) != nil {
			n.Type = codeUnnamed // {"error": "some words"}
		}
	case v.Object == "error" || v.Type == "error":
		n = v.named
	default:
		return fallback
	}
	for _, c := range []any{n.Code, n.Type} {
		if s, _ := c.(string); s != "" && s != "error" {
			return label(s[:min(len(s), maxCode)])
		}
	}
	if fallback != "" {
		return fallback
	}
	return codeUnnamed
}

// codeUnnamed is the code of an error inside a 200 that names none.
const codeUnnamed = "error"

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// member returns the bytes from the value of the first member with this quoted
// name on, nil when there is none.
func member(data []byte, key string) []byte {
	for {
		i := bytes.Index(data, []byte(key))
		if i < 0 {
			return nil
		}
		data = bytes.TrimLeft(data[i+len(key):], " \t\r\n")
		if len(data) > 0 && data[0] == ':' {
			return bytes.TrimLeft(data[1:], " \t\r\n")
		}
	}
}

// filled says whether a value is a string that is not empty.
func filled(v []byte) bool { return len(v) > 2 && v[0] == '"' && v[1] != '"' }

// text says whether the member is a string that is not empty.
func text(data []byte, key string) bool { return filled(member(data, key)) }

// list says whether the member is an array that is not empty.
func list(data []byte, key string) bool {
	v := member(data, key)
	return len(v) > 1 && v[0] == '[' && len(bytes.TrimLeft(v[1:], " \t\r\n")) > 0 && bytes.TrimLeft(v[1:], " \t\r\n")[0] != ']'
}

// number reads a member that is a count, 0 when it is none.
func number(data []byte, key string) int64 {
	v := member(data, key)
	n := 0
	for n < len(v) && n < 18 && v[n] >= '0' && v[n] <= '9' {
		n++
	}
	if n == 0 {
		return 0
	}
	count, err := strconv.ParseInt(string(v[:n]), 10, 64)
	if err != nil {
		return 0
	}
	return count
}

// jsonString quotes a string.
func jsonString(s string) []byte {
	out, err := json.Marshal(s)
	if err != nil { // no string can make it fail
		return []byte(`""`)
	}
	return out
}
