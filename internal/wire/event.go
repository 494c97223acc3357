package wire

import (
	"bytes"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spillway/spillway/internal/inference"
)

// InspectEvent parses one event strictly and says what it is. It is what
// decides before the commit point: an event that is not what the surface
// allows is EventMalformed and never mistaken for a token.
func InspectEvent(surface inference.Surface, raw []byte) inference.Event {
	ev := inference.Event{Raw: raw}
	data := EventData(raw)
	switch {
	case data == nil:
		ev.Kind = inference.EventComment
		if hasLine(raw, 'e') {
			ev.Kind = inference.EventMeta
		}
		return ev
	case string(data) == "[DONE]":
		ev.Kind = inference.EventDone
		return ev
	}
	in := inspector{d: newDecoder(data)}
	defer in.d.done()
	if in.d.PeekKind() != '{' {
		ev.Kind = inference.EventMalformed
		return ev
	}
	if _, err := in.d.members(in.member); err != nil {
		ev.Kind = inference.EventMalformed
		return ev
	}
	ev.Usage = in.usage
	ev.Kind = in.kind(surface)
	return ev
}

// SkimEvent classifies an event behind the commit point, where all that counts
// is whether it ends, fails or bills the answer. It looks for the few names that
// say so, which cannot stand unescaped inside a JSON string, and inspects only
// the events that have one.
func SkimEvent(surface inference.Surface, raw []byte) inference.Event {
	ev := inference.Event{Raw: raw, Kind: inference.EventDelta}
	switch surface {
	case inference.Messages, inference.Responses:
		head := raw[:min(len(raw), 160)]
		if !bytes.Contains(head, []byte(`_delta"`)) && !bytes.Contains(head, []byte(`.delta"`)) ||
			bytes.Contains(head, []byte(`"message_delta"`)) {
			return InspectEvent(surface, raw)
		}
		return ev
	}
	body, ok := bytes.CutPrefix(raw, []byte("data:"))
	if !ok {
		return InspectEvent(surface, raw)
	}
	body = bytes.TrimSpace(body)
	if len(body) < 2 || body[0] != '{' || body[len(body)-1] != '}' ||
		named(body, `"finish_reason"`) || named(body, `"usage"`) || named(body, `"error"`) {
		return InspectEvent(surface, raw)
	}
	return ev
}

// named says whether body has a member of that quoted name that is not null.
func named(body []byte, quoted string) bool {
	i := bytes.Index(body, []byte(quoted))
	if i < 0 {
		return false
	}
	v := bytes.TrimLeft(body[i+len(quoted):], " \t\r\n")
	if len(v) == 0 || v[0] != ':' {
		return true // a string value of that name: let the parser decide
	}
	return !bytes.HasPrefix(bytes.TrimLeft(v[1:], " \t\r\n"), []byte("null"))
}

// inspector collects what an event's JSON says.
type inspector struct {
	d        *decoder
	typ      string // "type": Messages and Responses
	choices  int    // -1 when the array is there and empty
	delta    bool
	finish   bool
	failed   bool
	hasUsage bool
	usage    inference.Usage
}

// kind is the most significant thing that the event says.
func (in *inspector) kind(surface inference.Surface) inference.EventKind {
	switch surface {
	case inference.Messages:
		return in.messagesKind()
	case inference.Responses:
		return in.responsesKind()
	}
	switch {
	case in.failed:
		return inference.EventError
	case in.finish:
		return inference.EventFinish
	case in.delta:
		return inference.EventDelta
	case in.hasUsage && in.choices <= 0:
		return inference.EventUsage
	}
	return inference.EventMeta
}

// messagesKind reads Anthropic's event types.
func (in *inspector) messagesKind() inference.EventKind {
	switch in.typ {
	case "error":
		return inference.EventError
	case "content_block_delta":
		return inference.EventDelta
	case "message_delta":
		return inference.EventFinish
	case "message_stop":
		return inference.EventDone
	}
	if in.failed {
		return inference.EventError
	}
	return inference.EventMeta
}

// responsesKind reads OpenAI's response event types.
func (in *inspector) responsesKind() inference.EventKind {
	switch in.typ {
	case "error", "response.failed":
		return inference.EventError
	case "response.completed", "response.incomplete":
		return inference.EventDone
	}
	if len(in.typ) > 6 && in.typ[len(in.typ)-6:] == ".delta" {
		return inference.EventDelta
	}
	if in.failed {
		return inference.EventError
	}
	return inference.EventMeta
}

// member reads one top-level member of the event.
func (in *inspector) member(name []byte) error {
	switch string(name) {
	case `"choices"`:
		return in.readChoices()
	case `"usage"`:
		return in.readUsage()
	case `"message"`, `"response"`: // message_start and response.completed carry usage inside
		return in.nested()
	}
	v, err := in.d.ReadValue()
	if err != nil {
		return err
	}
	switch string(name) {
	case `"type"`:
		if v.Kind() == '"' {
			in.typ = text(v)
		}
	case `"error"`:
		in.failed = v.Kind() != 'n'
	}
	return nil
}

// nested looks for usage one level down.
func (in *inspector) nested() error {
	if in.d.PeekKind() != '{' {
		return in.d.SkipValue()
	}
	_, err := in.d.members(func(name []byte) error {
		if string(name) == `"usage"` {
			return in.readUsage()
		}
		return in.d.SkipValue()
	})
	return err
}

// readUsage reads a usage object; null is none.
func (in *inspector) readUsage() error {
	if in.d.PeekKind() != '{' {
		return in.d.SkipValue()
	}
	in.hasUsage = true
	return readUsage(in.d, &in.usage)
}

// readChoices looks into each choice for a delta and a finish reason.
func (in *inspector) readChoices() error {
	if in.d.PeekKind() != '[' {
		return in.d.SkipValue()
	}
	if _, err := in.d.ReadToken(); err != nil {
		return err
	}
	in.choices = -1
	for k := in.d.PeekKind(); k != ']'; k = in.d.PeekKind() {
		in.choices = max(in.choices, 0) + 1
		if k != '{' {
			if err := in.d.SkipValue(); err != nil {
				return err
			}
			continue
		}
		if _, err := in.d.members(in.choice); err != nil {
			return err
		}
	}
	_, err := in.d.ReadToken()
	return err
}

// choice reads one member of a choice.
func (in *inspector) choice(name []byte) error {
	if string(name) == `"delta"` && in.d.PeekKind() == '{' {
		_, err := in.d.members(func(name []byte) error {
			v, err := in.d.ReadValue()
			if err == nil && string(name) != `"role"` && carries(v) {
				in.delta = true
			}
			return err
		})
		return err
	}
	v, err := in.d.ReadValue()
	if err != nil {
		return err
	}
	switch string(name) {
	case `"text"`:
		in.delta = in.delta || carries(v)
	case `"finish_reason"`:
		in.finish = in.finish || v.Kind() != 'n'
	}
	return nil
}

// carries says whether a delta's value has content: not null, false, "", [] or {}.
func carries(v jsontext.Value) bool {
	switch v.Kind() {
	case '"', '[', '{':
		return len(bytes.TrimSpace(v[1:len(v)-1])) > 0 || v.Kind() == '"' && len(v) > 2
	case 'n', 'f':
		return false
	}
	return true
}

// mostTokens bounds what a server may say that a request has cost: beyond it, it is
// wrong, and sums of such numbers would not fit an int64 or a database's column.
const mostTokens = 1 << 40

// readUsage reads the usage object that is next in d, in any surface's names.
func readUsage(d *decoder, u *inference.Usage) error {
	anthropic := false
	apart := int64(0) // of the prompt, beside Anthropic's input_tokens
	_, err := d.members(func(name []byte) error {
		switch string(name) {
		case `"prompt_tokens_details"`, `"completion_tokens_details"`,
			`"input_tokens_details"`, `"output_tokens_details"`:
			if d.PeekKind() == '{' {
				return readUsage(d, u)
			}
		}
		v, err := d.ReadValue()
		if err != nil || v.Kind() != '0' {
			return err
		}
		n, _ := strconv.ParseInt(string(v), 10, 64) // of what is too large the nearest that there is
		n = min(max(n, 0), mostTokens)
		switch string(name) {
		case `"prompt_tokens"`:
			u.PromptTokens = n
		case `"input_tokens"`:
			u.PromptTokens, anthropic = n, true
		case `"completion_tokens"`, `"output_tokens"`:
			u.CompletionTokens = n
		case `"cached_tokens"`, `"prompt_cache_hit_tokens"`:
			u.CachedTokens = n
		case `"cache_read_input_tokens"`:
			u.CachedTokens = n
			apart += n
		case `"cache_creation_input_tokens"`:
			apart += n
		case `"reasoning_tokens"`:
			u.ReasoningTokens = n
		}
		return nil
	})
	if anthropic {
		u.PromptTokens += apart
	}
	return err
}
