package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

const chat = `{"model":"llama","messages":[{"role":"user","content":"hi"}]}`

func TestScanRequestFindsFields(t *testing.T) {
	body := []byte(`{ "messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:x"}}]}],
	 "stream":true,"stream_options":{"x":1,"include_usage":false},"max_completion_tokens":7,"user":"u\u0031","tools":[{"a":{}}],"model":"m-1"}`)
	f, err := wire.ScanRequest(inference.Chat, body)
	if err != nil {
		t.Fatal(err)
	}
	if f.Model != "m-1" || !f.Stream || f.MaxTokens != 7 || f.User != "u1" || f.Messages != 2 || f.IncludeUsage {
		t.Errorf("got %+v", f)
	}
	for name, want := range map[string]struct {
		span inference.Span
		text string
	}{
		"model":   {f.ModelAt, `"m-1"`},
		"usage":   {f.UsageAt, `false`},
		"options": {f.StreamOptionsAt, `{"x":1,"include_usage":false}`},
	} {
		if got := string(want.span.Of(body)); got != want.text {
			t.Errorf("%s: got %q, want %q", name, got, want.text)
		}
	}
	if p := string(f.PromptAt.Of(body)); !strings.HasPrefix(p, `[{"role":"system"`) || !strings.HasSuffix(p, `]`) {
		t.Errorf("prompt: got %q", p)
	}
}

func TestScanRequestRefuses(t *testing.T) {
	deep := strings.Repeat("[", 1001) + strings.Repeat("]", 1001)
	for name, c := range map[string]struct {
		body    string
		surface inference.Surface
		param   string
		message string
	}{
		"empty":            {body: ``, message: "too early"},
		"truncated":        {body: `{"model":"x","messages":[`, message: "too early"},
		"not object":       {body: `[1]`, message: "must be a JSON object"},
		"trailing":         {body: chat + `x`, message: "not valid JSON"},
		"two documents":    {body: chat + chat, message: "after the top-level"},
		"duplicate":        {body: `{"model":"a","messages":[1],"model":"b"}`, message: "duplicate"},
		"nested duplicate": {body: `{"model":"a","messages":[{"a":1,"a":2}]}`, message: "duplicate"},
		"utf8":             {body: "{\"model\":\"\xff\",\"messages\":[1]}", message: "UTF-8"},
		"deep":             {body: `{"model":"a","messages":[],"x":` + deep + `}`, message: "1000"},
		"no model":         {body: `{"messages":[1]}`, param: "model", message: "model"},
		"empty model":      {body: `{"model":"","messages":[1]}`, param: "model", message: "model"},
		"model type":       {body: `{"model":1,"messages":[1]}`, param: "model", message: "string"},
		"stream type":      {body: `{"model":"a","stream":"yes","messages":[1]}`, param: "stream", message: "boolean"},
		"messages type":    {body: `{"model":"a","messages":"hi"}`, param: "messages", message: "array"},
		"no messages":      {body: `{"model":"a"}`, param: "messages", message: "'messages'"},
		"no input":         {body: `{"model":"a"}`, surface: inference.Embeddings, param: "input", message: "'input'"},
		"tokens negative":  {body: `{"model":"a","messages":[1],"max_tokens":-1}`, param: "max_tokens", message: "whole number"},
		"tokens fraction":  {body: `{"model":"a","messages":[1],"max_tokens":1.5}`, param: "max_tokens", message: "whole number"},
		"tokens string":    {body: `{"model":"a","messages":[1],"max_tokens":"9"}`, param: "max_tokens", message: "whole number"},
		"options type":     {body: `{"model":"a","messages":[1],"stream_options":3}`, param: "stream_options", message: "object"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := wire.ScanRequest(c.surface, []byte(c.body))
			var e *inference.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want *inference.Error", err)
			}
			if e.Code != inference.CodeInvalidRequest || e.Param != c.param || !strings.Contains(e.Message, c.message) {
				t.Errorf("got %q param %q, want param %q and %q", e.Message, e.Param, c.param, c.message)
			}
		})
	}
}

func TestScanRequestCaseMatters(t *testing.T) {
	f, err := wire.ScanRequest(inference.Chat, []byte(`{"MODEL":"evil","model":"good","messages":[1]}`))
	if err != nil || f.Model != "good" {
		t.Errorf("got %q, %v", f.Model, err)
	}
}

func TestScanRequestAcceptsDepthOfBracketsInStrings(t *testing.T) {
	body := `{"model":"a","messages":["` + strings.Repeat("[", 5000) + `"]}`
	if _, err := wire.ScanRequest(inference.Chat, []byte(body)); err != nil {
		t.Error(err)
	}
}

func TestRewriteTouchesOneField(t *testing.T) {
	for name, c := range map[string]struct {
		body, model string
		usage       bool
		want        string
	}{
		"nothing":           {body: `{"model":"a","messages":[1]}`, want: `{"model":"a","messages":[1]}`},
		"model":             {body: `{"n":12345678901234567890, "model" : "a","messages":[1]}`, model: `b"c`, want: `{"n":12345678901234567890, "model" : "b\"c","messages":[1]}`},
		"same model":        {body: `{"model":"a","messages":[1]}`, model: "a", want: `{"model":"a","messages":[1]}`},
		"usage absent":      {body: ` {"model":"a","stream":true,"messages":[1]}`, usage: true, want: ` {"stream_options":{"include_usage":true},"model":"a","stream":true,"messages":[1]}`},
		"usage not stream":  {body: `{"model":"a","messages":[1]}`, usage: true, want: `{"model":"a","messages":[1]}`},
		"usage asked":       {body: `{"model":"a","stream":true,"stream_options":{"include_usage":true},"messages":[1]}`, usage: true, want: `{"model":"a","stream":true,"stream_options":{"include_usage":true},"messages":[1]}`},
		"usage false":       {body: `{"stream":true,"stream_options":{"include_usage": false },"model":"a","messages":[1]}`, usage: true, model: "b", want: `{"stream":true,"stream_options":{"include_usage": true },"model":"b","messages":[1]}`},
		"options null":      {body: `{"model":"a","stream":true,"stream_options":null,"messages":[1]}`, usage: true, want: `{"model":"a","stream":true,"stream_options":{"include_usage":true},"messages":[1]}`},
		"options empty":     {body: `{"model":"a","stream":true,"stream_options":{ },"messages":[1]}`, usage: true, want: `{"model":"a","stream":true,"stream_options":{"include_usage":true},"messages":[1]}`},
		"options with more": {body: `{"model":"a","stream":true,"stream_options":{"x":1},"messages":[1]}`, usage: true, want: `{"model":"a","stream":true,"stream_options":{"include_usage":true,"x":1},"messages":[1]}`},
	} {
		t.Run(name, func(t *testing.T) {
			req := &inference.Request{Body: []byte(c.body)}
			var err error
			if req.Fields, err = wire.ScanRequest(inference.Chat, req.Body); err != nil {
				t.Fatal(err)
			}
			got := string(bytes.Join(wire.Rewrite(nil, req, wire.Edits{Model: c.model, IncludeUsage: c.usage}), nil))
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if _, err := wire.ScanRequest(inference.Chat, []byte(got)); err != nil {
				t.Errorf("the result does not scan: %v", err)
			}
		})
	}
}

func TestEventReaderSplits(t *testing.T) {
	stream := "\n\n: ping\ndata: a\n\ndata: b\r\n\r\nevent: x\ndata: c\ndata: d\n\n: alone\n\ndata: [DONE]\n\n"
	want := []string{": ping\ndata: a\n\n", "data: b\r\n\r\n", "event: x\ndata: c\ndata: d\n\n", ": alone\n\n", "data: [DONE]\n\n"}
	for name, r := range map[string]io.Reader{
		"whole":    strings.NewReader(stream),
		"one byte": iotest.OneByteReader(strings.NewReader(stream)),
		"half":     iotest.HalfReader(strings.NewReader(stream)),
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			e := wire.NewEventReader(r, 0)
			for {
				raw, err := e.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, string(raw))
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestEventReaderEnds(t *testing.T) {
	e := wire.NewEventReader(strings.NewReader("data: a\n\ndata: b\n"), 0)
	if _, err := e.Next(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Next(); err != io.ErrUnexpectedEOF {
		t.Errorf("left-over bytes: got %v", err)
	}
	e = wire.NewEventReader(strings.NewReader("data: "+strings.Repeat("x", 9000)), 8192)
	if _, err := e.Next(); !errors.Is(err, wire.ErrEventTooLarge) {
		t.Errorf("too large: got %v", err)
	}
}

func TestEventReaderReadyAndResume(t *testing.T) {
	r := io.MultiReader(strings.NewReader("data: a\n\ndata: b\n\ndata: c"), iotest.ErrReader(iotest.ErrTimeout), strings.NewReader("\n\n"))
	once := &timeoutOnce{r: r}
	e := wire.NewEventReader(once, 0)
	if _, err := e.Next(); err != nil || !e.Ready() {
		t.Fatalf("first: %v ready %v", err, e.Ready())
	}
	if _, err := e.Next(); err != nil || e.Ready() {
		t.Fatalf("second: %v ready %v", err, e.Ready())
	}
	if _, err := e.Next(); err != iotest.ErrTimeout {
		t.Fatalf("timeout: %v", err)
	}
	if raw, err := e.Next(); err != nil || string(raw) != "data: c\n\n" {
		t.Fatalf("after the timeout: %q %v", raw, err)
	}
}

// timeoutOnce fails once between two parts, as a passed read deadline does.
type timeoutOnce struct {
	r     io.Reader
	reads int
}

func (o *timeoutOnce) Read(p []byte) (int, error) {
	o.reads++
	switch o.reads {
	case 1:
		return copy(p, "data: a\n\ndata: b\n\ndata: c"), nil
	case 2:
		return 0, iotest.ErrTimeout
	case 3:
		return copy(p, "\n\n"), nil
	}
	return 0, io.EOF
}

func TestEventData(t *testing.T) {
	for raw, want := range map[string]string{
		"data: a\n\n":                 "a",
		"data:a\r\n\r\n":              "a",
		"data: a\ndata:  b\n\n":       "a\n b",
		": c\nevent: e\ndata: {}\n\n": "{}",
		"data:\n\n":                   "",
	} {
		if got := wire.EventData([]byte(raw)); got == nil || string(got) != want {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
	if got := wire.EventData([]byte(": only\n\n")); got != nil {
		t.Errorf("comment: got %q", got)
	}
}

func TestCleanEvent(t *testing.T) {
	for raw, want := range map[string]string{
		"data: a\n\n":                      "data: a\n\n",
		": ping\ndata: a\n\n":              "data: a\n\n",
		"id: 7\nevent: e\ndata: a\n\n":     "event: e\ndata: a\n\n",
		"data: a\nid: 7\n\n":               "data: a\n\n",
		": ping\n\n":                       "",
		"event: identity\ndata: id: 1\n\n": "event: identity\ndata: id: 1\n\n",
	} {
		if got := string(wire.CleanEvent([]byte(raw))); got != want {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
}

// events pairs an event's data with what it means on a surface.
var events = map[string]struct {
	surface inference.Surface
	raw     string
	want    inference.EventKind
}{
	"role":            {raw: `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, want: inference.EventMeta},
	"content":         {raw: `data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}],"usage":null}`, want: inference.EventDelta},
	"reasoning":       {raw: `data: {"choices":[{"delta":{"reasoning_content":"x"}}]}`, want: inference.EventDelta},
	"tool":            {raw: `data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"usage\": 1, \"error\": 2}"}}]}}]}`, want: inference.EventDelta},
	"finish":          {raw: `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}`, want: inference.EventFinish},
	"finish spaced":   {raw: `data: {"choices": [{"delta": {}, "finish_reason" : "stop"}]}`, want: inference.EventFinish},
	"usage":           {raw: `data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}`, want: inference.EventUsage},
	"error":           {raw: `data: {"error":{"message":"queue is full","code":503}}`, want: inference.EventError},
	"error null":      {raw: `data: {"error":null,"choices":[{"delta":{"content":"x"}}]}`, want: inference.EventDelta},
	"done":            {raw: `data: [DONE]`, want: inference.EventDone},
	"completion":      {surface: inference.Completions, raw: `data: {"choices":[{"text":"x","finish_reason":null}]}`, want: inference.EventDelta},
	"comment":         {raw: `: ping`, want: inference.EventComment},
	"messages delta":  {surface: inference.Messages, raw: "event: content_block_delta\n" + `data: {"type":"content_block_delta","delta":{"text":"x"}}`, want: inference.EventDelta},
	"messages finish": {surface: inference.Messages, raw: "event: message_delta\n" + `data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":7}}`, want: inference.EventFinish},
	"messages stop":   {surface: inference.Messages, raw: "event: message_stop\n" + `data: {"type":"message_stop"}`, want: inference.EventDone},
	"messages error":  {surface: inference.Messages, raw: "event: error\n" + `data: {"type":"error","error":{"type":"overloaded_error"}}`, want: inference.EventError},
	"messages ping":   {surface: inference.Messages, raw: "event: ping\n" + `data: {"type":"ping"}`, want: inference.EventMeta},
	"response delta":  {surface: inference.Responses, raw: `data: {"type":"response.output_text.delta","delta":"x"}`, want: inference.EventDelta},
	"response done":   {surface: inference.Responses, raw: `data: {"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":7}}}`, want: inference.EventDone},
	"response failed": {surface: inference.Responses, raw: `data: {"type":"response.failed"}`, want: inference.EventError},
}

func TestEventsMeanTheSameInspectedAndSkimmed(t *testing.T) {
	for name, c := range events {
		t.Run(name, func(t *testing.T) {
			raw := []byte(c.raw + "\n\n")
			if got := wire.InspectEvent(c.surface, raw).Kind; got != c.want {
				t.Errorf("inspected: got %d, want %d", got, c.want)
			}
			skim := wire.SkimEvent(c.surface, raw).Kind
			if skim != c.want && !(c.want == inference.EventMeta && skim == inference.EventDelta) {
				t.Errorf("skimmed: got %d, want %d", skim, c.want)
			}
		})
	}
}

func TestMalformedEvents(t *testing.T) {
	for _, raw := range []string{"data: {\"choices\":[\n\n", "data: hello\n\n", "data: \n\n", "data: {\"a\":1,\"a\":2}\n\n"} {
		if got := wire.InspectEvent(inference.Chat, []byte(raw)).Kind; got != inference.EventMalformed {
			t.Errorf("%q: got %d", raw, got)
		}
	}
	for _, raw := range []string{"data: {\"choices\":[\n\n", "data: hello\n\n"} {
		if got := wire.SkimEvent(inference.Chat, []byte(raw)).Kind; got != inference.EventMalformed {
			t.Errorf("skimmed %q: got %d", raw, got)
		}
	}
}

// TestUsageBeyondReason is no number that sums can be made of.
func TestUsageBeyondReason(t *testing.T) {
	const most = 1 << 40
	for body, want := range map[string]inference.Usage{
		`{"usage":{"prompt_tokens":9223372036854775807,"completion_tokens":99999999999999999999}}`: {PromptTokens: most, CompletionTokens: most},
		`{"usage":{"prompt_tokens":-5,"completion_tokens":-99999999999999999999}}`:                 {},
		`{"usage":{"prompt_tokens":1e3,"completion_tokens":7}}`:                                    {CompletionTokens: 7},
	} {
		if got := wire.AnswerUsage([]byte(body)); got != want {
			t.Errorf("%s: got %+v, want %+v", body, got, want)
		}
	}
}

func TestUsage(t *testing.T) {
	want := inference.Usage{PromptTokens: 5, CompletionTokens: 7, CachedTokens: 3, ReasoningTokens: 2}
	for name, body := range map[string]string{
		"openai":    `{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":2}}}`,
		"deepseek":  `{"usage" : {"prompt_tokens":5,"completion_tokens":7,"prompt_cache_hit_tokens":3,"completion_tokens_details":{"reasoning_tokens":2}}}`,
		"responses": `{"usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"cached_tokens":3},"output_tokens_details":{"reasoning_tokens":2}}}`,
	} {
		if got := wire.AnswerUsage([]byte(body)); got != want {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	// Anthropic's input_tokens are those that no cache has to do with.
	want = inference.Usage{PromptTokens: 15, CompletionTokens: 7, CachedTokens: 8}
	for _, usage := range []string{
		`{"input_tokens":5,"cache_creation_input_tokens":2,"cache_read_input_tokens":8,"cache_creation":{"ephemeral_5m_input_tokens":2},"output_tokens":7}`,
		`{"cache_read_input_tokens":8,"cache_creation_input_tokens":2,"output_tokens":7,"input_tokens":5}`,
	} {
		if got := wire.AnswerUsage([]byte(`{"usage":` + usage + `}`)); got != want {
			t.Errorf("%s: got %+v", usage, got)
		}
	}
	for _, body := range []string{`{}`, `{"usage":null}`, `{"a":"usage"}`, `{"usage":{"prompt_tokens":1`} {
		if got := wire.AnswerUsage([]byte(body)); !got.Zero() {
			t.Errorf("%s: got %+v", body, got)
		}
	}
}

func TestParseErrorBody(t *testing.T) {
	for body, want := range map[string]wire.ErrorBody{
		`{"error":{"message":"m","type":"t","param":null,"code":"c"}}`:                {Message: "m", Type: "t", Code: "c"},
		`{"error":{"message":"m","type":"t","code":503}}`:                             {Message: "m", Type: "t", Status: 503},
		`{"error":"server busy, please try again"}`:                                   {Message: "server busy, please try again"},
		`{"object":"error","message":"m","type":"BadRequestError","code":400}`:        {Message: "m", Type: "BadRequestError", Status: 400},
		`{"type":"error","error":{"type":"overloaded_error","message":"m"}}`:          {Message: "m", Type: "overloaded_error"},
		`{"detail":"Not Found"}`:                                                      {Message: "Not Found"},
		`{"error":{"message":"Model is overloaded","type":"overloaded","code":null}}`: {Message: "Model is overloaded", Type: "overloaded"},
	} {
		got, ok := wire.ParseErrorBody([]byte(body))
		if !ok || got != want {
			t.Errorf("%s: got %+v %v", body, got, ok)
		}
	}
	for _, body := range []string{``, `<html>`, `{"choices":[]}`, `{"error":null}`, `[]`} {
		if _, ok := wire.ParseErrorBody([]byte(body)); ok {
			t.Errorf("%s: taken for an error", body)
		}
	}
}

func TestIsErrorBody(t *testing.T) {
	if !wire.IsErrorBody([]byte(" {\n \"error\": 1}")) || wire.IsErrorBody([]byte(`{"choices":[{"error":1}]}`)) {
		t.Error("wrong")
	}
}

func FuzzScanRequest(f *testing.F) {
	f.Add([]byte(chat))
	f.Add([]byte(`{"model":"m","messages":[1],"stream":true,"stream_options":{"include_usage":false}}`))
	f.Add([]byte(`{"model":"m","messages":[1],"stream":true,"stream_options":{}}`))
	f.Add([]byte(`{"model":"m","messages":[{"content":[{"type":"image_url","image_url":{"url":"data:x"}},{"type":"text"}]}],"stream":null,"max_tokens":null,"max_completion_tokens":9e3}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req := &inference.Request{Body: body}
		var err error
		if req.Fields, err = wire.ScanRequest(inference.Chat, body); err != nil {
			return
		}
		again, err := wire.ScanRequest(inference.Chat, bytes.Join(wire.Rewrite(nil, req, wire.Edits{Model: "other", IncludeUsage: true}), nil))
		if err != nil {
			t.Fatalf("a rewritten body does not scan: %v", err)
		}
		if again.Model != "other" || req.Stream && !again.IncludeUsage || again.Messages != req.Messages {
			t.Fatalf("got %+v from %+v", again, req.Fields)
		}
		all := wire.Edits{Model: "other", Stream: true, IncludeUsage: true, MaxTokens: 50}
		if again, err = wire.ScanRequest(inference.Chat, bytes.Join(wire.Rewrite(nil, req, all), nil)); err != nil {
			t.Fatalf("a body with all edits does not scan: %v", err)
		}
		bounded := again.MaxTokens > 0 && again.MaxTokens <= 50 || req.MaxTokens == 0
		if again.Model != "other" || !again.Stream || !again.IncludeUsage || !bounded || again.Images != req.Images || again.PromptBytes != req.PromptBytes {
			t.Fatalf("got %+v from %+v", again, req.Fields)
		}
	})
}

func FuzzEventReader(f *testing.F) {
	f.Add([]byte("data: a\n\n: c\ndata: b\r\n\r\n"), uint8(3))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		var whole, parts []string
		read := func(r io.Reader, into *[]string) {
			e := wire.NewEventReader(r, 1<<16)
			for {
				raw, err := e.Next()
				if err != nil {
					return
				}
				*into = append(*into, string(raw))
				wire.InspectEvent(inference.Chat, raw)
				wire.SkimEvent(inference.Messages, raw)
				wire.CleanEvent(raw)
			}
		}
		read(bytes.NewReader(stream), &whole)
		read(&stepReader{stream, int(step)%7 + 1}, &parts)
		if d := cmp.Diff(whole, parts); d != "" {
			t.Fatalf("the split depends on how bytes arrive: %s", d)
		}
	})
}

// stepReader gives n bytes a read.
type stepReader struct {
	rest []byte
	n    int
}

func (s *stepReader) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(s.n, len(p))], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// scanned are bodies by name: a long text, a conversation of many turns, an
// agent's with tools and parts.
func scanned() map[string][]byte {
	turns := strings.Repeat(`{"role":"user","content":"`+strings.Repeat("hello world ", 16)+`"},{"role":"assistant","content":"yes"},`, 30)
	parts := strings.Repeat(`{"role":"user","content":[{"type":"text","text":"`+strings.Repeat("hello world ", 16)+`"},{"type":"text","text":"x"}]},`+
		`{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Kyiv\"}"}}]},`+
		`{"role":"tool","tool_call_id":"call_1","content":"sunny"},`, 20)
	bodies := map[string][]byte{
		"turns": []byte(`{"messages":[` + turns + `{"role":"user","content":"bye"}],"temperature":0.2,"stream":true,"model":"llama"}`),
		"agent": []byte(`{"messages":[` + parts + `{"role":"user","content":"bye"}],"temperature":0.2,"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}],"tool_choice":"auto","model":"llama"}`),
	}
	for _, size := range []int{1 << 10, 16 << 10, 128 << 10} {
		bodies[fmt.Sprint(size)] = []byte(`{"messages":[{"role":"user","content":"` + strings.Repeat("hello world ", size/12) + `"}],"temperature":0.2,"stream":true,"model":"llama"}`)
	}
	return bodies
}

func BenchmarkScanRequest(b *testing.B) {
	for name, body := range scanned() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := wire.ScanRequest(inference.Chat, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSkimEvent(b *testing.B) {
	raw := []byte(`data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"llama-3.1-8b","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	b.ReportAllocs()
	for b.Loop() {
		if wire.SkimEvent(inference.Chat, raw).Kind != inference.EventDelta {
			b.Fatal("not a delta")
		}
	}
}

func BenchmarkInspectEvent(b *testing.B) {
	raw := []byte(`data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"llama-3.1-8b","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}` + "\n\n")
	b.ReportAllocs()
	for b.Loop() {
		if wire.InspectEvent(inference.Chat, raw).Kind != inference.EventDelta {
			b.Fatal("not a delta")
		}
	}
}

func ExampleRewrite() {
	req := &inference.Request{Body: []byte(`{"model":"fast","messages":[{"role":"user","content":"hi"}],"seed":7}`)}
	req.Fields, _ = wire.ScanRequest(inference.Chat, req.Body)
	fmt.Printf("%s\n", bytes.Join(wire.Rewrite(nil, req, wire.Edits{Model: "deepseek-chat", IncludeUsage: true}), nil))
	// Output: {"model":"deepseek-chat","messages":[{"role":"user","content":"hi"}],"seed":7}
}
