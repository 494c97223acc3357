package wire_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// assembled adds events and returns the answer as a value.
func assembled(t *testing.T, surface inference.Surface, events ...string) (any, error) {
	t.Helper()
	a := wire.NewAssembler(surface)
	for _, e := range events {
		if err := a.Add([]byte(e)); err != nil {
			return nil, err
		}
	}
	b, err := a.Answer()
	if err != nil {
		return nil, err
	}
	return decoded(t, string(b)), nil
}

// decoded is a JSON text as a value.
func decoded(t *testing.T, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// messageStart is the first event of a message.
const messageStart = `{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":"c","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":9,"output_tokens":1,"cache_read_input_tokens":4}}}`

func TestAssembleMessages(t *testing.T) {
	got, err := assembled(t, inference.Messages, messageStart,
		`{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"let \"me\" "}}`,
		`{"type":"ping"}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"see\n"}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"EqQB"}}`,
		`{"type":"content_block_stop","index":0}`,
		`{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hel"}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"lo"}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{"type":"char_location","start_char_index":3}}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"citations_delta","citation":{"type":"char_location","start_char_index":7}}}`,
		`{"type":"content_block_stop","index":1}`,
		`{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_1","name":"weather","input":{}}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"city\": \"S\u00e3o"}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":" Paulo\"}"}}`,
		`{"type":"content_block_stop","index":2}`,
		`{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"toolu_2","name":"now","input":{}}}`,
		`{"type":"content_block_stop","index":3}`,
		`{"type":"message_news","index":9}`,
		`{"type":"content_block_start","index":4,"content_block":{"type":"sound","sound":""}}`,
		`{"type":"content_block_delta","index":4,"delta":{"type":"sound_delta","sound":"la"}}`,
		`{"type":"content_block_delta","index":4,"delta":{"type":"sound_delta","sound":"la"}}`,
		`{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":33}}`,
		`{"type":"message_stop"}`)
	if err != nil {
		t.Fatal(err)
	}
	want := decoded(t, `{"id":"msg_1","type":"message","role":"assistant","model":"c","stop_reason":"tool_use","stop_sequence":null,
		"usage":{"input_tokens":9,"output_tokens":33,"cache_read_input_tokens":4},
		"content":[{"type":"thinking","thinking":"let \"me\" see\n","signature":"EqQB"},
			{"type":"text","text":"Hello","citations":[{"type":"char_location","start_char_index":3},{"type":"char_location","start_char_index":7}]},
			{"type":"tool_use","id":"toolu_1","name":"weather","input":{"city":"São Paulo"}},
			{"type":"tool_use","id":"toolu_2","name":"now","input":{}},{"type":"sound","sound":"lala"}]}`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAssembleMessagesThatCannotBe(t *testing.T) {
	for name, events := range map[string][]string{
		"nothing":              {},
		"no start":             {`{"type":"message_stop"}`},
		"a block out of order": {messageStart, `{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}`},
		"a delta of no block":  {messageStart, `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}`},
		"no index":             {messageStart, `{"type":"content_block_start","content_block":{"type":"text","text":""}}`},
		"broken input":         {messageStart, `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use"}}`, `{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{"}}`},
		"not an object":        {`[]`},
		"not JSON":             {`{`},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := assembled(t, inference.Messages, events...); err == nil {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestAssembleResponses(t *testing.T) {
	got, err := assembled(t, inference.Responses,
		`{"type":"response.created","response":{"id":"resp_1","status":"in_progress"}}`,
		`{"type":"response.output_text.delta","delta":"Hel"}`,
		`{"type":"response.completed","response":{"id":"resp_1","status":"completed","output":[{"type":"message"}]}}`)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(decoded(t, `{"id":"resp_1","status":"completed","output":[{"type":"message"}]}`), got); diff != "" {
		t.Error(diff)
	}
	for name, events := range map[string][]string{
		"not ended": {`{"type":"response.created","response":{"id":"resp_1"}}`},
		"no answer": {`{"type":"response.completed"}`},
		"not JSON":  {`{"type":"response.completed"`},
	} {
		if got, err := assembled(t, inference.Responses, events...); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func FuzzTranscript(f *testing.F) {
	f.Add(uint8(inference.Messages), messageStart+"\n"+`{"type":"content_block_start","index":0,"content_block":{"type":"tool_use"}}`+"\n"+`{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{}"}}`)
	f.Add(uint8(inference.Responses), `{"type":"response.completed","response":{"a":1}}`)
	f.Add(uint8(inference.Chat), `{"choices":[{"index":0,"delta":{"content":"x"}}]}`)
	f.Fuzz(func(t *testing.T, surface uint8, text string) {
		tr := &inference.Transcript{}
		for line := range strings.SplitSeq(text, "\n") {
			tr.Body = append(append(append(tr.Body, "data: "...), line...), "\n\n"...)
			tr.Marks = append(tr.Marks, inference.Mark{End: uint32(len(tr.Body))})
		}
		s := inference.Surfaces()[int(surface)%len(inference.Surfaces())]
		_ = wire.CheckAnswer(s, tr)
		if b, err := wire.Assemble(s, tr); err == nil && !json.Valid(b) {
			t.Errorf("%s", b)
		}
	})
}
