package wire

import (
	"bytes"
	"errors"
	"io"

	"github.com/spillway/spillway/internal/inference"
)

// Errors of CheckAnswer.
var (
	errNotWhole = errors.New("the answer does not end as its surface demands")
	errFailed   = errors.New("the answer holds an error")
	errAborted  = errors.New("the server gave the answer up")
	errNotJSON  = errors.New("the answer is not JSON")
)

// CheckAnswer says what keeps a transcript from being a whole answer without an
// error, or nil.
func CheckAnswer(surface inference.Surface, t *inference.Transcript) error {
	if !t.Stream() {
		if err := checkBody(surface, t.Body); err != nil {
			return err
		}
		if aborted(t.Body) {
			return errAborted
		}
		return nil
	}
	ends := false
	from := uint32(0)
	for _, m := range t.Marks {
		raw := t.Body[from:m.End]
		from = m.End
		switch InspectEvent(surface, raw).Kind {
		case inference.EventError, inference.EventMalformed:
			return errFailed
		case inference.EventFinish:
			if aborted(raw) {
				return errAborted
			}
			ends = true
		case inference.EventDone:
			ends = true
		}
	}
	if !ends || int(from) != len(t.Body) {
		return errNotWhole
	}
	return nil
}

// answerMember is the member that an answer in one piece consists of, in quotes.
func answerMember(surface inference.Surface) string {
	switch surface {
	case inference.Embeddings:
		return `"data"`
	case inference.Messages:
		return `"content"`
	case inference.Responses:
		return `"output"`
	}
	return `"choices"`
}

// checkBody is CheckAnswer for an answer in one piece: one object with what the
// surface's answers consist of, and none of the shapes of errors.
func checkBody(surface inference.Surface, body []byte) error {
	d := newDecoder(body)
	defer d.done()
	if d.PeekKind() != '{' {
		return errNotJSON
	}
	whole, failed := false, false
	_, err := d.members(func(name []byte) error {
		v, err := d.ReadValue()
		if err != nil {
			return err
		}
		switch string(name) {
		case `"error"`:
			failed = failed || v.Kind() != 'n'
		case `"object"`, `"type"`:
			failed = failed || string(v) == `"error"`
		case `"status"`: // of the Responses surface: an answer may also be in progress, or have failed
			failed = failed || surface == inference.Responses && string(v) != `"completed"` && string(v) != `"incomplete"`
		case answerMember(surface):
			whole = v.Kind() == '[' && (surface != inference.Chat && surface != inference.Completions || carries(v))
		}
		return nil
	})
	switch {
	case err != nil:
		return errNotJSON
	case failed:
		return errFailed
	case !whole:
		return errNotWhole
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return errNotJSON
	}
	return nil
}

// aborted says whether a choice ends because the server stopped working on it
// (vLLM and SGLang: abort; DeepSeek: insufficient_system_resource).
func aborted(raw []byte) bool {
	for rest := raw; ; {
		i := bytes.Index(rest, []byte(`"finish_reason"`))
		if i < 0 {
			return false
		}
		rest = rest[i+len(`"finish_reason"`):]
		v := bytes.TrimLeft(rest, " \t\r\n:")
		if bytes.HasPrefix(v, []byte(`"abort"`)) || bytes.HasPrefix(v, []byte(`"error"`)) || bytes.HasPrefix(v, []byte(`"insufficient_system_resource"`)) {
			return true
		}
	}
}

// Assemble puts the answer in one piece together from a transcript's events: what
// the server would have given to a client that wants no stream.
func Assemble(surface inference.Surface, t *inference.Transcript) ([]byte, error) {
	a := NewAssembler(surface)
	if err := a.AddEvents(t.Body); err != nil {
		return nil, err
	}
	return a.Answer()
}

// AddEvents adds a run of whole events, as they came.
func (a *Assembler) AddEvents(p []byte) error {
	for len(p) > 0 {
		n := EventEnd(p)
		data := EventData(p[:n])
		p = p[n:]
		if data == nil || string(data) == "[DONE]" {
			continue
		}
		if err := a.Add(data); err != nil {
			return err
		}
	}
	return nil
}

// OnePieceFields are the header fields of an answer in one piece that is made from a
// stream with the given ones.
func OnePieceFields(fields []inference.HeaderField) []inference.HeaderField {
	out := append(make([]inference.HeaderField, 0, len(fields)+1), inference.HeaderField{Name: "Content-Type", Value: "application/json"})
	for _, h := range fields {
		switch h.Name {
		case "Content-Type", "Cache-Control", "X-Accel-Buffering": // of the stream
		default:
			out = append(out, h)
		}
	}
	return out
}
