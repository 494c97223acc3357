package wire

import (
	"bytes"
	"errors"

	"github.com/go-json-experiment/json/jsontext"

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
		switch {
		case !jsontext.Value(t.Body).IsValid():
			return errNotJSON
		case IsErrorBody(t.Body):
			return errFailed
		case aborted(t.Body):
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
	from := uint32(0)
	for _, m := range t.Marks {
		data := EventData(t.Body[from:m.End])
		from = m.End
		if data == nil || string(data) == "[DONE]" {
			continue
		}
		if err := a.Add(data); err != nil {
			return nil, err
		}
	}
	return a.Answer()
}
