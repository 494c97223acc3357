package wire_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// canonical is what a chat body asks for.
func canonical(t *testing.T, surface inference.Surface, body string) (string, error) {
	t.Helper()
	f, err := wire.ScanRequest(surface, []byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	b, err := wire.AppendCanonical([]byte("in front:"), &inference.Request{Surface: surface, Body: []byte(body), Fields: f})
	rest, ok := strings.CutPrefix(string(b), "in front:")
	if !ok {
		t.Fatalf("what stood in front is gone: %q", b)
	}
	return rest, err
}

func TestCanonicalBodies(t *testing.T) {
	for body, want := range map[string]string{
		`{"model":"m","messages":[]}`: `"messages":[],`,
		`{ "seed" : 9007199254740993, "messages" : [ ], "a" : 1.0, "model" : "m" }`:         `"a":1.0,"messages":[],"seed":9007199254740993,`,
		`{"model":"m","messages":[{"b":"\u00e9\/","a":null}],"stream":true,"user":"u"}`:     `"messages":[{"a":null,"b":"é/"}],`,
		`{"model":"m","messages":[],"stream_options":{"include_usage":true},"stream":true}`: `"messages":[],`,
		`{"model":"m","messages":[],"stream_options":{"z":1,"include_usage":true,"a":[]}}`:  `"messages":[],"stream_options":"a":[],"z":1,,`,
		`{"model":"m","messages":[],"stream_options":null,"\u0061":-0}`:                     `"a":-0,"messages":[],`,
	} {
		if got, err := canonical(t, inference.Chat, body); err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", body, got, err, want)
		}
	}
	for _, body := range []string{
		`{"model":"m","messages":[],"str\u0065am":true}`, `{"model":"m","messages":[],"stream\u005foptions":{}}`,
		`{"model":"m","messages":[],"stream_options":{"include\u005fusage":true}}`,
	} {
		if got, err := canonical(t, inference.Chat, body); err == nil {
			t.Errorf("%s: got %s", body, got)
		}
	}
}

func TestQuestions(t *testing.T) {
	for body, want := range map[string]string{
		`{"model":"m","messages":[{"role":"user","content":"one"},{"role":"user","content":" two \n  words"}]}`:                                  "two words",
		`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:x"}}]}]}`: "look",
		`{"model":"m","messages":[]}`: "",
		`{"model":"m","messages":[{"content":"` + strings.Repeat("é", 150) + `"}]}`: strings.Repeat("é", 100),
	} {
		f, err := wire.ScanRequest(inference.Chat, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if got := wire.Question(&inference.Request{Body: []byte(body), Fields: f}); got != want {
			t.Errorf("%s: got %q", body, got)
		}
	}
}

// FuzzCanonical: what is canonical stays as it is, and a body is not changed.
func FuzzCanonical(f *testing.F) {
	f.Add(byte(0), []byte(`{"model":"m","messages":[],"b":1.50,"a":"\u0041","stream_options":{"x":{}}}`))
	f.Add(byte(1), []byte(`{"model":"m","prompt":["a",{"z":0,"\n":-0}],"stream":false}`))
	f.Add(byte(4), []byte(`{"model":"m","input":"\ud83d\ude00","user":"u","é":"é"}`))
	f.Fuzz(func(t *testing.T, s byte, body []byte) {
		surface := inference.Surfaces()[int(s)%len(inference.Surfaces())]
		fields, err := wire.ScanRequest(surface, body)
		if err != nil {
			return
		}
		before := bytes.Clone(body)
		req := &inference.Request{Surface: surface, Body: body, Fields: fields}
		wire.Question(req)
		one, err := wire.AppendCanonical(nil, req)
		if !bytes.Equal(before, body) {
			t.Fatalf("the body was changed to %q", body)
		}
		if err != nil {
			return
		}
		if bytes.Contains(one, []byte(`"stream_options":"`)) { // it stands without its braces
			return
		}
		again := append(append([]byte(`{`), one...), `"model":"m"}`...)
		fields, err = wire.ScanRequest(surface, again)
		if err != nil {
			t.Fatalf("what is canonical is no request: %v in %q", err, again)
		}
		two, err := wire.AppendCanonical(nil, &inference.Request{Surface: surface, Body: again, Fields: fields})
		if err != nil || !bytes.Equal(one, two) {
			t.Fatalf("got %q, then %q, %v", one, two, err)
		}
	})
}

// FuzzCheckAnswer: no answer makes it panic, and what passes in one piece is JSON.
func FuzzCheckAnswer(f *testing.F) {
	f.Add(byte(0), []byte(`{"choices":[{"message":{},"finish_reason":"stop"}]}`), uint16(3))
	f.Add(byte(0), []byte("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n"), uint16(46))
	f.Add(byte(3), []byte("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"), uint16(0))
	f.Fuzz(func(t *testing.T, s byte, body []byte, cut uint16) {
		surface := inference.Surfaces()[int(s)%len(inference.Surfaces())]
		if err := wire.CheckAnswer(surface, &inference.Transcript{Body: body}); err == nil && (len(body) == 0 || !bytes.Contains(body, []byte(`[`))) {
			t.Fatalf("%q is an answer", body)
		}
		stream := &inference.Transcript{Body: body, Marks: []inference.Mark{}}
		for end := 0; end < len(body); {
			end += wire.EventEnd(body[end:])
			stream.Marks = append(stream.Marks, inference.Mark{End: uint32(end)})
		}
		_ = wire.CheckAnswer(surface, stream)
		_, _ = wire.Assemble(surface, stream)
		if at := min(int(cut), len(body)); at < len(body) { // marks that know nothing of events
			stream.Marks = []inference.Mark{{End: uint32(at)}, {End: uint32(len(body))}}
			_ = wire.CheckAnswer(surface, stream)
			_, _ = wire.Assemble(surface, stream)
		}
	})
}
