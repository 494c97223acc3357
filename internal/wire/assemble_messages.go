package wire

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"
)

// maxBlocks bounds the content blocks of one answer, which are found by number.
const maxBlocks = 1024

// block is one content block of an answer on the Messages surface.
type block struct {
	members
	input []byte // of a tool, the pieces of its JSON; what content_block_start says stands where there are none
}

// messagesEvent are the members of an event that matter, each nil where it is absent.
type messagesEvent struct {
	kind                                string
	index, message, block, delta, usage []byte
}

// addMessages takes one event of Anthropic's Messages API: the message begins in
// message_start, its blocks come by number with their deltas, and message_delta has
// the rest. As clients are told to, events of a kind that is not known are passed
// over; what a delta says under a name that is not known is joined as text and lists
// are elsewhere.
func (a *Assembler) addMessages(data []byte) error {
	var e messagesEvent
	if err := each(data, func(name, v []byte) error {
		switch string(name) {
		case `"type"`:
			e.kind = word(v)
		case `"index"`:
			e.index = v
		case `"message"`:
			e.message = v
		case `"content_block"`:
			e.block = v
		case `"delta"`:
			e.delta = v
		case `"usage"`:
			e.usage = v
		}
		return nil
	}); err != nil {
		return err
	}
	switch e.kind {
	case "message_start":
		a.chosen = e.message != nil
		return a.setAll(&a.top, e.message)
	case "content_block_start":
		return a.beginBlock(&e)
	case "content_block_delta":
		return a.addBlock(&e)
	case "message_delta":
		if err := a.setAll(&a.top, e.delta); err != nil {
			return err
		}
		return a.mergeUsage(e.usage)
	}
	return nil
}

// word is the value of a string, and "" of anything else.
func word(v []byte) string {
	if v[0] != '"' {
		return ""
	}
	return text(v)
}

// setAll sets the members of an object.
func (a *Assembler) setAll(m *members, object []byte) error {
	if len(object) == 0 || object[0] != '{' {
		return ErrChunk
	}
	return each(object, func(name, v []byte) error { return m.set(name, v, &a.size) })
}

// mergeUsage adds what the last event says to what the first one said: it may leave
// out what has not changed.
func (a *Assembler) mergeUsage(usage []byte) error {
	if usage == nil {
		return nil
	}
	var merged members
	name := []byte(`"usage"`)
	if m := a.top.find(name); m != nil && !m.isNull() {
		if err := a.setAll(&merged, m.value); err != nil {
			return err
		}
	}
	if err := a.setAll(&merged, usage); err != nil {
		return err
	}
	return a.top.set(name, merged.appendObject(nil), &a.size)
}

// beginBlock adds a block. They come in order.
func (a *Assembler) beginBlock(e *messagesEvent) error {
	if n, err := count("index", e.index); len(e.index) == 0 || err != nil || int(n) != len(a.blocks) || len(a.blocks) == maxBlocks {
		return ErrChunk
	}
	a.blocks = append(a.blocks, block{})
	a.size += memberCost
	return a.setAll(&a.blocks[len(a.blocks)-1].members, e.block)
}

// addBlock adds a delta to its block.
func (a *Assembler) addBlock(e *messagesEvent) error {
	n, err := count("index", e.index)
	if len(e.index) == 0 || err != nil || int(n) >= len(a.blocks) || len(e.delta) == 0 || e.delta[0] != '{' {
		return ErrChunk
	}
	b := &a.blocks[n]
	return each(e.delta, func(name, v []byte) error {
		switch string(name) {
		case `"type"`:
			return nil
		case `"signature"`:
			return b.set(name, v, &a.size)
		case `"partial_json"`:
			if v[0] != '"' {
				return ErrChunk
			}
			from := len(b.input)
			b.input, err = jsontext.AppendUnquote(b.input, v)
			a.size += len(b.input) - from
			return err
		case `"citation"`:
			return b.join([]byte(`"citations"`), append(append([]byte{'['}, v...), ']'), &a.size)
		}
		return b.join(name, v, &a.size)
	})
}

// answerMessages is the whole message.
func (a *Assembler) answerMessages() ([]byte, error) {
	content := []byte{'['}
	for i := range a.blocks {
		b := &a.blocks[i]
		if len(bytes.TrimSpace(b.input)) > 0 {
			if !jsontext.Value(b.input).IsValid() {
				return nil, ErrChunk
			}
			if err := b.set([]byte(`"input"`), b.input, &a.size); err != nil {
				return nil, err
			}
		}
		if i > 0 {
			content = append(content, ',')
		}
		content = b.appendObject(content)
	}
	if err := a.top.set([]byte(`"content"`), append(content, ']'), &a.size); err != nil {
		return nil, err
	}
	return a.top.appendObject(make([]byte, 0, a.size)), nil
}

// appendObject adds the members as an object.
func (m members) appendObject(b []byte) []byte {
	b = append(b, '{')
	for i := range m {
		b = m[i].appendValue(appendName(b, m[i].name))
	}
	return append(b, '}')
}

// addResponses takes one event of OpenAI's Responses API, whose last one repeats the
// whole answer.
func (a *Assembler) addResponses(data []byte) error {
	kind, whole := "", []byte(nil)
	if err := each(data, func(name, v []byte) error {
		switch string(name) {
		case `"type"`:
			kind = word(v)
		case `"response"`:
			whole = v
		}
		return nil
	}); err != nil {
		return err
	}
	if kind != "response.completed" && kind != "response.incomplete" {
		return nil
	}
	if len(whole) == 0 || whole[0] != '{' {
		return ErrChunk
	}
	a.chosen, a.whole, a.size = true, bytes.Clone(whole), len(whole)
	return nil
}
