package wire

import (
	"bytes"
	"errors"

	"github.com/spillway/spillway/internal/inference"
)

// MaxAnswer is the largest answer that an Assembler puts together, in bytes.
const MaxAnswer = 32 << 20

// Errors of an Assembler.
var (
	ErrAnswerTooLarge = errors.New("the answer is larger than 32 MiB")
	ErrChunk          = errors.New("not a chunk of one answer")
	ErrNoChoice       = errors.New("no chunk had a choice")
)

// maxCalls bounds the tool calls of one answer, which are found one by one.
const maxCalls = 1024

// Assembler puts the answer together that a server would have given in one piece,
// from the events of the stream that it gave instead. On the chat and completions
// surfaces that is an answer with one choice: texts, lists and tool calls are joined; of every other member,
// known or not, the last value that is not null stays. JSON strings are joined as
// they were escaped, so nothing is decoded and encoded again. What a server
// leaves out of its chunks because it is null or empty is not invented. It is for
// one goroutine.
type Assembler struct {
	surface inference.Surface
	d       *decoder // of the chunk that is being added
	top     members  // of the chunks
	choice  members
	message members // of the deltas
	calls   []toolCall
	blocks  []block // of an answer on the Messages surface
	whole   []byte  // of one on the Responses surface
	size    int
	chosen  bool // a choice came, or what the surface has in its place
}

// NewAssembler returns an Assembler for an answer on any surface but embeddings.
func NewAssembler(surface inference.Surface) *Assembler {
	return &Assembler{surface: surface}
}

// Add takes the data of one event, which is not kept. Events without JSON, such
// as the terminal one, are the caller's. The errors are ErrAnswerTooLarge,
// ErrChunk and those of the tokenizer; no Add may follow one.
func (a *Assembler) Add(data []byte) error {
	var err error
	switch a.surface {
	case inference.Messages:
		err = a.addMessages(data)
	case inference.Responses:
		err = a.addResponses(data)
	default:
		err = a.addChunk(data)
	}
	if err == nil && a.size > MaxAnswer {
		err = ErrAnswerTooLarge
	}
	return err
}

// addChunk takes one chunk of the chat or completions surface.
func (a *Assembler) addChunk(data []byte) error {
	a.d = newDecoder(data)
	defer func() {
		a.d.done()
		a.d = nil
	}()
	if a.d.next() != '{' {
		return ErrChunk
	}
	_, err := a.d.members(a.addTop)
	return err
}

// addTop reads one member of a chunk.
func (a *Assembler) addTop(name []byte) error {
	if string(name) != `"choices"` {
		v, err := a.d.ReadValue()
		if err != nil || string(name) == `"obfuscation"` { // OpenAI's random padding of a stream
			return err
		}
		return a.top.set(name, v, &a.size)
	}
	if err := a.top.set(name, null, &a.size); err != nil {
		return err
	}
	return a.elements(func() error {
		a.chosen = true
		_, err := a.d.members(a.addChoice)
		return err
	})
}

// addChoice reads one member of the choice.
func (a *Assembler) addChoice(name []byte) error {
	if string(name) == `"delta"` && a.d.next() == '{' {
		if err := a.choice.set(name, null, &a.size); err != nil {
			return err
		}
		_, err := a.d.members(a.addDelta)
		return err
	}
	v, err := a.d.ReadValue()
	switch {
	case err != nil:
		return err
	case string(name) == `"index"` && string(v) != "0", string(name) == `"message"`:
		return ErrChunk
	case string(name) == `"text"`:
		return a.choice.join(name, v, &a.size)
	}
	return a.choice.set(name, v, &a.size)
}

// addDelta reads one member of a delta.
func (a *Assembler) addDelta(name []byte) error {
	if string(name) == `"tool_calls"` && a.d.next() == '[' {
		if err := a.message.set(name, null, &a.size); err != nil {
			return err
		}
		return a.elements(a.addCall)
	}
	v, err := a.d.ReadValue()
	switch {
	case err != nil:
		return err
	case string(name) == `"role"`:
		return a.message.set(name, v, &a.size)
	}
	return a.message.join(name, v, &a.size)
}

// elements calls f in front of each object of the array that is next.
func (a *Assembler) elements(f func() error) error {
	if a.d.next() != '[' {
		return a.d.SkipValue() // null
	}
	if _, err := a.d.ReadToken(); err != nil {
		return err
	}
	for a.d.next() == '{' {
		if err := f(); err != nil {
			return err
		}
	}
	t, err := a.d.ReadToken()
	if err == nil && t.Kind() != ']' {
		err = ErrChunk
	}
	return err
}

// toolCall is one call of a tool.
type toolCall struct {
	index []byte  // the value of index; nil when the server gives none
	own   members // id, type, and what the call is in
	kind  []byte  // the member that the call is in: "function", or "custom"
	call  members // name, arguments
}

// callPiece is what one chunk says of a tool call.
type callPiece struct{ index, id, call []byte }

// addCall reads a piece of a tool call.
func (a *Assembler) addCall() error {
	raw, err := a.d.value()
	if err != nil {
		return err
	}
	var p callPiece
	if err := each(raw, func(name, v []byte) error {
		switch {
		case string(name) == `"index"`:
			p.index = v
		case string(name) == `"id"` && v[0] == '"':
			p.id = v
		case v[0] == '{':
			p.call = v
		}
		return nil
	}); err != nil {
		return err
	}
	c := a.callOf(&p)
	if c == nil {
		return ErrChunk
	}
	if err := each(raw, func(name, v []byte) error {
		if string(name) == `"index"` || string(v) == `""` && c.own.find(name) != nil {
			return nil
		}
		if v[0] == '{' {
			c.kind, v = append(c.kind[:0], name...), null
		}
		return c.own.set(name, v, &a.size)
	}); err != nil || p.call == nil {
		return err
	}
	return each(p.call, func(name, v []byte) error {
		if string(name) != `"name"` {
			return c.call.join(name, v, &a.size)
		}
		if string(v) == `""` {
			return nil
		}
		return c.call.set(name, v, &a.size)
	})
}

// callOf finds the call that a piece belongs to, or begins one: calls are told
// apart by their index, or by their id where a server gives no index, or the same
// one to all (Ollama, whose calls come whole). nil is one too many.
func (a *Assembler) callOf(p *callPiece) *toolCall {
	begins := len(p.id) > 2 && named(p.call, `"name"`)
	for i := len(a.calls) - 1; i >= 0; i-- {
		c := &a.calls[i]
		if p.index != nil && !bytes.Equal(c.index, p.index) {
			continue
		}
		id := c.own.find([]byte(`"id"`))
		if begins && id != nil && len(id.value) > 2 && !bytes.Equal(id.value, p.id) {
			if p.index != nil {
				break // it is not one of those before, either
			}
			continue
		}
		return c
	}
	if len(a.calls) == maxCalls {
		return nil
	}
	a.calls = append(a.calls, toolCall{index: bytes.Clone(p.index)})
	a.size += len(p.index) + memberCost
	return &a.calls[len(a.calls)-1]
}

// Answer returns the whole answer as JSON. ErrNoChoice says that there is none.
func (a *Assembler) Answer() ([]byte, error) {
	if !a.chosen {
		return nil, ErrNoChoice
	}
	switch a.surface {
	case inference.Messages:
		return a.answerMessages()
	case inference.Responses:
		return a.whole, nil
	}
	b := append(make([]byte, 0, a.size+512), '{')
	for i := range a.top {
		m := &a.top[i]
		switch {
		case string(m.name) == `"choices"`:
			b = append(a.appendChoice(append(appendName(b, m.name), '[')), ']')
		case string(m.name) == `"object"` && string(m.value) == `"chat.completion.chunk"`:
			b = append(appendName(b, m.name), `"chat.completion"`...)
		case string(m.name) == `"usage"` && m.isNull(): // the chunks before the last one have none yet
		default:
			b = m.appendValue(appendName(b, m.name))
		}
	}
	return append(b, '}'), nil
}

// appendChoice adds the choice.
func (a *Assembler) appendChoice(b []byte) []byte {
	delta, text := []byte(`"delta"`), []byte(`"text"`)
	b = append(b, '{')
	chat := a.surface == inference.Chat
	for i := range a.choice {
		switch m := &a.choice[i]; {
		case !bytes.Equal(m.name, delta):
			b = m.appendValue(appendName(b, m.name))
		case chat:
			b = a.appendMessage(b)
		}
	}
	switch {
	case chat && a.choice.find(delta) == nil:
		b = a.appendMessage(b)
	case !chat && a.choice.find(text) == nil:
		b = append(appendName(b, text), `""`...)
	}
	return append(b, '}')
}

// appendMessage adds the message. Chunks begin with empty content, whatever
// follows: a message that has tool calls or a refusal alone has null.
func (a *Assembler) appendMessage(b []byte) []byte {
	role, content := []byte(`"role"`), []byte(`"content"`)
	b = append(appendName(b, []byte(`"message"`)), '{')
	if a.message.find(role) == nil {
		b = append(b, `"role":"assistant"`...)
	}
	refusal := a.message.find([]byte(`"refusal"`))
	nothing := `""`
	if len(a.calls) > 0 || !refusal.isEmpty() {
		nothing = "null"
	}
	if a.message.find(content) == nil {
		b = append(appendName(b, content), nothing...)
	}
	for i := range a.message {
		m := &a.message[i]
		b = appendName(b, m.name)
		switch {
		case bytes.Equal(m.name, content) && m.isEmpty():
			b = append(b, nothing...)
		case string(m.name) == `"tool_calls"` && len(a.calls) > 0:
			b = a.appendCalls(b)
		default:
			b = m.appendValue(b)
		}
	}
	return append(b, '}')
}

// appendCalls adds the tool calls.
func (a *Assembler) appendCalls(b []byte) []byte {
	b = append(b, '[')
	for i := range a.calls {
		c := &a.calls[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		for j := range c.own {
			m := &c.own[j]
			b = appendName(b, m.name)
			if !bytes.Equal(m.name, c.kind) {
				b = m.appendValue(b)
				continue
			}
			b = append(b, '{')
			for k := range c.call {
				b = c.call[k].appendValue(appendName(b, c.call[k].name))
			}
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	return append(b, ']')
}
