package engine_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/engine"
)

const hello = `"messages":[{"role":"user","content":"hello"}]`

// length is the header that fixes the answer's length.
const length = engine.OutputTokensHeader

func TestChatStream(t *testing.T) {
	s := start(t, quick(nil))
	got := s.post(t, "/v1/chat/completions",
		`{"model":"sim","stream":true,"stream_options":{"include_usage":true},`+hello+`}`, length, "3")
	if got.status != 200 || got.err != nil || !strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
		t.Fatalf("%+v", got)
	}
	events := sse(t, got.body)
	if len(events) != 7 || events[6] != "[DONE]" {
		t.Fatalf("want role, 3 tokens, finish, usage, [DONE], got %q", events)
	}
	var text string
	for i, e := range events[:6] {
		chunk := tree(t, e)
		if chunk["object"] != "chat.completion.chunk" || chunk["model"] != "sim" || chunk["id"] != tree(t, events[0])["id"] {
			t.Errorf("chunk %d: %s", i, e)
		}
		content, _ := at(chunk, "choices", 0, "delta", "content").(string)
		text += content
		if usage, ok := chunk["usage"]; !ok || (i < 5) != (usage == nil) {
			t.Errorf("chunk %d: usage %v (present %v), want null before the last chunk only", i, usage, ok)
		}
		finish := at(chunk, "choices", 0, "finish_reason")
		if want := map[bool]any{true: "stop"}[i == 4]; finish != want {
			t.Errorf("chunk %d: finish_reason %v, want %v", i, finish, want)
		}
	}
	if role := at(tree(t, events[0]), "choices", 0, "delta"); !cmp.Equal(role, any(map[string]any{"role": "assistant", "content": ""})) {
		t.Errorf("first delta %v, want the role alone", role)
	}
	if n := len(at(tree(t, events[5]), "choices").([]any)); n != 0 {
		t.Errorf("usage chunk has %d choices, want none", n)
	}
	want := map[string]any{
		"prompt_tokens": 3.0, "completion_tokens": 3.0, "total_tokens": 6.0,
		"prompt_tokens_details": map[string]any{"cached_tokens": 0.0},
	}
	if d := cmp.Diff(any(want), tree(t, events[5])["usage"]); d != "" {
		t.Errorf("usage (-want +got):\n%s", d)
	}
	if len(text) != 3*engine.TokenBytes {
		t.Errorf("text %q, want 3 tokens of %d bytes", text, engine.TokenBytes)
	}
	if n := len("data: " + events[1] + "\n\n"); n < 150 || n > 260 {
		t.Errorf("a token's event has %d bytes, want about 200", n)
	}
	whole := s.post(t, "/chat/completions", `{"model":"sim",`+hello+`}`, length, "3")
	if body := tree(t, whole.body); at(body, "choices", 0, "message", "content") != text {
		t.Errorf("not streamed: %s, want the text %q", whole.body, text)
	}
	if plain := sse(t, s.post(t, "/v1/chat/completions", `{"model":"sim","stream":true,`+hello+`}`, length, "3").body); len(plain) != 6 ||
		strings.Contains(plain[0], "usage") {
		t.Errorf("without include_usage: %q, want 6 events without usage", plain)
	}
}

func TestReasoning(t *testing.T) {
	s := start(t, quick(nil))
	body := `{"model":"sim-reason",` + hello + `,"max_completion_tokens":6`
	var thought, text string
	for _, e := range sse(t, s.post(t, "/v1/chat/completions", body+`,"stream":true}`).body) {
		if e == "[DONE]" {
			continue
		}
		delta := at(tree(t, e), "choices", 0, "delta")
		if r, ok := at(delta, "reasoning_content").(string); ok {
			if text != "" {
				t.Error("reasoning after the text began")
			}
			thought += r
		}
		content, _ := at(delta, "content").(string)
		text += content
	}
	whole := tree(t, s.post(t, "/v1/chat/completions", body+`}`).body)
	message := at(whole, "choices", 0, "message")
	if len(thought) != 12 || len(text) != 12 || at(message, "reasoning_content") != thought || at(message, "content") != text {
		t.Errorf("streamed %q + %q, whole %v; want 3 + 3 tokens, the same both ways", thought, text, message)
	}
	if n := at(whole, "usage", "completion_tokens_details", "reasoning_tokens"); n != 3.0 {
		t.Errorf("reasoning_tokens %v, want 3", n)
	}
	if f := at(whole, "choices", 0, "finish_reason"); f != "length" {
		t.Errorf("finish_reason %v, want length", f)
	}
}

func TestOutputLength(t *testing.T) {
	s := start(t, quick(nil))
	tests := map[string]struct {
		path, body string
		headers    []string
		want       float64
		finish     string
	}{
		"header over max_tokens": {"/v1/chat/completions", `"max_tokens":9,` + hello, []string{length, "4"}, 4, "stop"},
		"max_tokens":             {"/v1/chat/completions", `"max_tokens":9,` + hello, nil, 9, "length"},
		"max_completion_tokens":  {"/v1/chat/completions", `"max_tokens":9,"max_completion_tokens":5,` + hello, nil, 5, "length"},
		"completions default":    {"/v1/completions", `"prompt":"x"`, nil, 16, "length"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := tree(t, s.post(t, tt.path, `{"model":"sim",`+tt.body+`}`, tt.headers...).body)
			if n := at(got, "usage", "completion_tokens"); n != tt.want || at(got, "choices", 0, "finish_reason") != tt.finish {
				t.Errorf("%v tokens, %v; want %v, %s", n, at(got, "choices", 0, "finish_reason"), tt.want, tt.finish)
			}
		})
	}
	a := s.post(t, "/v1/chat/completions", `{"model":"sim",`+hello+`}`)
	b := s.post(t, "/v1/chat/completions", `{"model":"sim",`+hello+`}`)
	if x, y := at(tree(t, a.body), "choices"), at(tree(t, b.body), "choices"); !cmp.Equal(x, y) {
		t.Errorf("same prompt, different answers: %v, %v", x, y)
	}
	if n := at(tree(t, a.body), "usage", "completion_tokens").(float64); n < 16 || n > 271 {
		t.Errorf("natural length %v, want 16 to 271", n)
	}
}

func TestCompletions(t *testing.T) {
	s := start(t, quick(nil))
	for name, prompt := range map[string]string{
		"string": `"hello"`, "array": `["hello"]`, "token ids": `[1,2,3]`, "array of token ids": `[[1,2,3]]`,
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"model":"sim","max_tokens":4,"prompt":` + prompt
			whole := tree(t, s.post(t, "/v1/completions", body+`}`).body)
			events := sse(t, s.post(t, "/v1/completions", body+`,"stream":true,"stream_options":{"include_usage":true}}`).body)
			if len(events) != 7 || events[6] != "[DONE]" {
				t.Fatalf("want 4 tokens, finish, usage, [DONE], got %q", events)
			}
			text := ""
			for _, e := range events[:5] {
				text += at(tree(t, e), "choices", 0, "text").(string)
			}
			if whole["object"] != "text_completion" || at(whole, "choices", 0, "text") != text || len(text) != 16 {
				t.Errorf("streamed %q, whole %v", text, whole)
			}
		})
	}
}

func TestMessages(t *testing.T) {
	s := start(t, quick(nil))
	body := `{"model":"sim","max_tokens":2,"system":[{"type":"text","text":"be brief"}],"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]`
	events := sse(t, s.post(t, "/v1/messages", body+`,"stream":true}`).body)
	var names []string
	text := ""
	for _, e := range events {
		name, data, _ := strings.Cut(e, " ")
		names = append(names, name)
		chunk := tree(t, data)
		if chunk["type"] != name {
			t.Errorf("event %s has type %v", name, chunk["type"])
		}
		word, _ := at(chunk, "delta", "text").(string)
		text += word
	}
	want := []string{
		"message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta",
		"content_block_stop", "message_delta", "message_stop",
	}
	if d := cmp.Diff(want, names); d != "" {
		t.Fatalf("events (-want +got):\n%s", d)
	}
	whole := tree(t, s.post(t, "/v1/messages", body+`}`).body)
	if at(whole, "content", 0, "text") != text || whole["stop_reason"] != "max_tokens" || at(whole, "usage", "output_tokens") != 2.0 {
		t.Errorf("whole %v, want text %q", whole, text)
	}
	bad := s.post(t, "/v1/messages", `{"model":"sim","messages":[]}`)
	if got := tree(t, bad.body); bad.status != 400 || got["type"] != "error" || at(got, "error", "type") != "invalid_request_error" {
		t.Errorf("no messages: %d %s, want Anthropic's error shape", bad.status, bad.body)
	}
}

func TestResponses(t *testing.T) {
	s := start(t, quick(nil))
	for name, input := range map[string]string{
		"string": `"hello"`, "items": `[{"role":"user","content":[{"type":"input_text","text":"hello"}]}]`,
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"model":"sim","input":` + input
			events := sse(t, s.post(t, "/v1/responses", body+`,"stream":true}`, length, "2").body)
			var kinds []string
			text := ""
			for i, e := range events {
				name, data, _ := strings.Cut(e, " ")
				kinds = append(kinds, strings.TrimPrefix(name, "response."))
				chunk := tree(t, data)
				if chunk["type"] != name || chunk["sequence_number"] != float64(i) {
					t.Errorf("event %d: %s", i, e)
				}
				word, _ := chunk["delta"].(string)
				text += word
			}
			want := []string{
				"created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
				"output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed",
			}
			if d := cmp.Diff(want, kinds); d != "" {
				t.Fatalf("events (-want +got):\n%s", d)
			}
			whole := tree(t, s.post(t, "/v1/responses", body+`}`, length, "2").body)
			if at(whole, "output", 0, "content", 0, "text") != text || whole["status"] != "completed" {
				t.Errorf("whole %v, want text %q", whole, text)
			}
		})
	}
}

func TestEmbeddings(t *testing.T) {
	s := start(t, quick(nil))
	got := tree(t, s.post(t, "/v1/embeddings", `{"model":"sim","input":["a","b","a"],"dimensions":8}`).body)
	a, b, c := at(got, "data", 0, "embedding"), at(got, "data", 1, "embedding"), at(got, "data", 2, "embedding")
	if !cmp.Equal(a, c) || cmp.Equal(a, b) {
		t.Errorf("same text must give the same vector, another text another: %v %v %v", a, b, c)
	}
	norm := 0.0
	for _, x := range a.([]any) {
		norm += x.(float64) * x.(float64)
	}
	if math.Abs(norm-1) > 1e-5 || len(a.([]any)) != 8 {
		t.Errorf("%d dimensions of norm %v, want 8 of 1", len(a.([]any)), norm)
	}
	raw := tree(t, s.post(t, "/v1/embeddings", `{"model":"sim","input":"a","dimensions":8,"encoding_format":"base64"}`).body)
	if bytes, err := base64.StdEncoding.DecodeString(at(raw, "data", 0, "embedding").(string)); err != nil || len(bytes) != 32 {
		t.Errorf("base64: %d bytes, %v; want 32", len(bytes), err)
	}
}

func TestModelsHealthAndMetrics(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) { c.Models = []string{"org/one", "two"} }))
	for _, path := range []string{"/v1/models", "/models"} {
		list := tree(t, s.get(t, path).body)
		if at(list, "data", 0, "id") != "org/one" || at(list, "data", 1, "id") != "two" {
			t.Errorf("%s: %v", path, list)
		}
	}
	if one := tree(t, s.get(t, "/v1/models/org/one").body); one["object"] != "model" {
		t.Errorf("one model: %v", one)
	}
	if got := s.get(t, "/health"); got.status != 200 || got.body != "" {
		t.Errorf("health: %+v", got)
	}
	prompt := strings.Repeat("word ", 200)
	for range 2 {
		s.post(t, "/v1/completions", `{"model":"two","max_tokens":3,"prompt":"`+prompt+`"}`)
	}
	metrics := s.get(t, "/metrics").body
	for _, want := range []string{
		`vllm:num_requests_running{engine="0",model_name="org/one"} `, `vllm:num_requests_waiting{engine="0",model_name="org/one"} 0`,
		`vllm:kv_cache_usage_perc{`, `vllm:prefix_cache_queries_total{engine="0",model_name="org/one"} 500`,
		`vllm:prefix_cache_hits_total{engine="0",model_name="org/one"} 192`, `vllm:num_preemptions_total{`,
		`vllm:request_success_total{engine="0",finished_reason="length",model_name="org/one"} 2`,
		`vllm:time_to_first_token_seconds_count{engine="0",model_name="org/one"} 2`,
		`vllm:inter_token_latency_seconds_count{engine="0",model_name="org/one"} 4`,
		`vllm:cache_config_info{block_size="64",`, "engine_steps_total 6", "engine_late_steps_total ",
		"engine_late_steps_ratio ", "engine_cancelled_total 0",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

func TestCachedTokensAreReported(t *testing.T) {
	s := start(t, quick(nil))
	body := `{"model":"sim","max_tokens":2,"messages":[{"role":"user","content":"` + strings.Repeat("x", 1200) + `"}]}`
	for i, want := range []float64{0, 256} {
		got := tree(t, s.post(t, "/v1/chat/completions", body).body)
		if n := at(got, "usage", "prompt_tokens_details", "cached_tokens"); n != want {
			t.Errorf("request %d: cached_tokens %v, want %v", i, n, want)
		}
	}
}

func TestBadInput(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) {
		c.MaxBody, c.Batching.KVTokens = 4096, 1000
		c.Surfaces = []string{engine.SurfaceChat, engine.SurfaceCompletions, engine.SurfaceEmbeddings}
	}))
	chat := func(fields string) string { return `{"model":"sim",` + fields + `}` }
	tests := map[string]struct {
		path, body string
		headers    []string
		status     int
		param      any
	}{
		"malformed JSON":      {body: `{"model":`, status: 400},
		"duplicate key":       {body: `{"model":"sim","model":"sim"}`, status: 400},
		"wrong type":          {body: chat(`"stream":"yes",` + hello), status: 400},
		"invalid UTF-8":       {body: chat(`"messages":[{"role":"user","content":"` + "\xff" + `"}]`), status: 400},
		"empty body":          {body: "", status: 400},
		"no model":            {body: `{` + hello + `}`, status: 400, param: "model"},
		"unknown model":       {body: `{"model":"other",` + hello + `}`, status: 404, param: "model"},
		"no messages":         {body: chat(`"messages":[]`), status: 400, param: "messages"},
		"content of a number": {body: chat(`"messages":[{"role":"user","content":5}]`), status: 400, param: "messages[0].content"},
		"parts in parts": {
			body:   chat(`"messages":[{"role":"user","content":` + strings.Repeat(`[{"content":`, 9) + `"x"` + strings.Repeat(`}]`, 9) + `}]`),
			status: 400, param: "messages[0].content",
		},
		"no role":           {body: chat(`"messages":[{"content":"x"}]`), status: 400, param: "messages[0].role"},
		"n above 1":         {body: chat(`"n":2,` + hello), status: 400, param: "n"},
		"max_tokens of 0":   {body: chat(`"max_tokens":0,` + hello), status: 400, param: "max_tokens"},
		"longer than KV":    {body: chat(`"max_tokens":1000,` + hello), status: 400, param: "messages"},
		"bad length header": {body: chat(hello), headers: []string{length, "many"}, status: 400, param: length},
		"oversized":         {body: chat(`"x":"` + strings.Repeat("x", 5000) + `",` + hello), status: 413},
		"content type":      {body: chat(hello), headers: []string{"Content-Type", "text/plain"}, status: 415},
		"two prompts":       {path: "/v1/completions", body: chat(`"prompt":["a","b"]`), status: 400, param: "prompt"},
		"no prompt":         {path: "/v1/completions", body: chat(`"prompt":null`), status: 400, param: "prompt"},
		"empty input":       {path: "/v1/embeddings", body: chat(`"input":[]`), status: 400, param: "input"},
		"huge dimensions":   {path: "/v1/embeddings", body: chat(`"input":"x","dimensions":100000`), status: 400, param: "dimensions"},
		"disabled surface":  {path: "/v1/messages", body: chat(hello), status: 404},
		"unknown path":      {path: "/v2/x", body: `{}`, status: 404},
		"wrong method":      {path: "/v1/models", body: `{}`, status: 405},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := tt.path
			if path == "" {
				path = "/v1/chat/completions"
			}
			got := s.post(t, path, tt.body, tt.headers...)
			if got.status != tt.status {
				t.Fatalf("status %d, want %d: %s", got.status, tt.status, got.body)
			}
			fields, _ := tree(t, got.body)["error"].(map[string]any)
			for _, key := range []string{"message", "type", "param", "code"} {
				if _, ok := fields[key]; !ok {
					t.Errorf("error lacks %q: %s", key, got.body)
				}
			}
			if fields["param"] != tt.param {
				t.Errorf("param %v, want %v", fields["param"], tt.param)
			}
		})
	}
	if got := s.Stats(); got.Running+got.Waiting != 0 || got.PromptTokens != 0 {
		t.Errorf("bad input reached the batch: %+v", got)
	}
}

func TestTruncatedBody(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) { c.BodyTimeout = 50 * time.Millisecond }))
	_, r := s.dial(t, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusRequestTimeout {
		t.Fatalf("%v, %v; want 408", resp, err)
	}
	resp.Body.Close()
}

func TestOverload(t *testing.T) {
	tests := map[string]struct {
		status int
		body   string
		stream string // of a streamed request that is answered with 200
	}{
		engine.OverloadVLLM: {503, `"code":503`, ""},
		engine.OverloadSGLang: {
			503, `"message":"The request queue is full."`,
			`data: {"error":{"message":"The request queue is full.","type":"SERVICE_UNAVAILABLE","param":null,"code":503}}` + "\n\ndata: [DONE]\n\n",
		},
		engine.OverloadTGI:    {429, `{"error":"Model is overloaded","error_type":"overloaded"}`, ""},
		engine.OverloadOllama: {503, "server busy, please try again.", ""},
	}
	for style, tt := range tests {
		t.Run(style, func(t *testing.T) {
			s := start(t, quick(func(c *engine.Config) {
				frozen(c)
				c.Overload, c.Batching.MaxSeqs, c.Batching.Queue = style, 1, 1
			}))
			body := `{"model":"sim",` + hello
			for range 2 {
				s.leaveOpen(t, body+`}`)
			}
			eventually(t, "one runs and one waits", func() bool { return s.Stats().Running == 1 && s.Stats().Waiting == 1 })
			if got := s.post(t, "/v1/chat/completions", body+`}`); got.status != tt.status || !strings.Contains(got.body, tt.body) {
				t.Errorf("%d %s, want %d with %s", got.status, got.body, tt.status, tt.body)
			}
			got := s.post(t, "/v1/chat/completions", body+`,"stream":true}`)
			if tt.stream == "" && (got.status != tt.status || !strings.Contains(got.body, tt.body)) {
				t.Errorf("stream: %d %s, want %d with %s", got.status, got.body, tt.status, tt.body)
			} else if tt.stream != "" && (got.status != 200 || got.body != tt.stream) {
				t.Errorf("stream: %d %q, want 200 %q", got.status, got.body, tt.stream)
			}
			if n := s.Stats().Refused; n != 2 {
				t.Errorf("%d refused, want 2", n)
			}
		})
	}
	t.Run(engine.OverloadVLLMUnbounded, func(t *testing.T) {
		s := start(t, quick(func(c *engine.Config) {
			frozen(c)
			c.Overload, c.Batching.MaxSeqs = engine.OverloadVLLMUnbounded, 1
		}))
		for range 20 {
			s.leaveOpen(t, `{"model":"sim",`+hello+`}`)
		}
		eventually(t, "19 wait", func() bool { return s.Stats().Waiting == 19 })
	})
}

// leaveOpen sends a chat request that nobody reads; the connection closes with the test.
func (s *server) leaveOpen(t testing.TB, body string) net.Conn {
	t.Helper()
	c, _ := s.dial(t, fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	return c
}

func TestClientLeaves(t *testing.T) {
	body := `{"model":"sim","max_tokens":100000,` + hello
	for name, tt := range map[string]struct {
		law  func(*engine.Config)
		body string
		here func(engine.Stats) bool
	}{
		"before the first token": {frozen, body + `,"stream":true}`, func(s engine.Stats) bool { return s.Running == 1 }},
		"queued": {
			func(c *engine.Config) { frozen(c); c.Batching.MaxSeqs = 1 }, body + `,"stream":true}`,
			func(s engine.Stats) bool { return s.Waiting == 1 },
		},
		"streaming":    {nil, body + `,"stream":true}`, func(s engine.Stats) bool { return s.Events > 5 }},
		"JSON pending": {frozen, body + `}`, func(s engine.Stats) bool { return s.Running == 1 }},
		"delayed by a fault": {
			func(c *engine.Config) {
				c.Faults.Latency = engine.LatencyFault{engine.Chance{Probability: 1}, time.Hour}
			},
			body + `}`, func(engine.Stats) bool { return true },
		},
		"stalled": {
			func(c *engine.Config) { c.Faults.Stall.Probability = 1 }, body + `,"stream":true}`,
			func(s engine.Stats) bool { return s.Running == 1 },
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, quick(tt.law))
			conns := []net.Conn{s.leaveOpen(t, tt.body)}
			if name == "queued" {
				conns = append(conns, s.leaveOpen(t, tt.body))
			}
			eventually(t, "the work has begun", func() bool { return tt.here(s.Stats()) })
			for _, c := range conns {
				c.Close()
			}
			eventually(t, "the work is gone", func() bool {
				got := s.Stats()
				return got.Running+got.Waiting+got.KVUsed == 0 && got.Cancelled == uint64(len(conns))
			})
		})
	}
}

func TestSlowReaderIsServedAndCut(t *testing.T) {
	cfg := quick(func(c *engine.Config) {
		c.Batching.StepBase = time.Microsecond
		c.WriteTimeout = 200 * time.Millisecond
	})
	s := start(t, cfg)
	body := `{"model":"sim","stream":true,"max_tokens":60000,` + hello + `}`
	request := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	c, r := s.dial(t, request)
	if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the socket is full", func() bool { return s.Stats().Events > 20_000 })
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	events := strings.Count(string(data), "\n\n")
	cut := s.Stats().Cancelled == 1
	if complete := events == 60_003 && strings.HasSuffix(string(data), "[DONE]\n\n"); complete == cut || (err == nil) != complete {
		t.Errorf("%d events, read error %v, cut %v: want all of them or a visible break", events, err, cut)
	}
	s.dial(t, request) // reads nothing at all
	eventually(t, "the deaf client is cut", func() bool {
		got := s.Stats()
		return got.Cancelled+got.Finished == 2 && got.Cancelled > 0 && got.Running == 0
	})
}

func TestKeepAliveAfterStreams(t *testing.T) {
	s := start(t, quick(nil))
	c, r := s.dial(t, "")
	for i := range 20 {
		body := fmt.Sprintf(`{"model":"sim","stream":%v,"max_tokens":5,%s}`, i%3 != 2, hello)
		fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || resp.Close {
			t.Fatalf("request %d: %d, close %v, %v: %s", i, resp.StatusCode, resp.Close, err, data)
		}
		if streamed := len(resp.TransferEncoding) > 0; streamed != (i%3 != 2) || (streamed && len(sse(t, string(data))) != 8) {
			t.Fatalf("request %d: %s", i, data)
		}
	}
}

func TestOtherProtocols(t *testing.T) {
	s := start(t, quick(nil))
	body := `{"model":"sim","stream":true,"max_tokens":30,` + hello + `}`
	t.Run("h2c", func(t *testing.T) {
		var protocols http.Protocols
		protocols.SetUnencryptedHTTP2(true)
		transport := &http.Transport{Protocols: &protocols}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Post(s.url+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.ProtoMajor != 2 || len(sse(t, string(data))) != 33 {
			t.Errorf("%s, %v: %s", resp.Proto, err, data)
		}
	})
	t.Run("HTTP/1.0", func(t *testing.T) {
		_, r := s.dial(t, fmt.Sprintf("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || len(resp.TransferEncoding) > 0 || len(sse(t, string(data))) != 33 {
			t.Errorf("%v, %v: %s", resp.TransferEncoding, err, data)
		}
	})
	t.Run("any http.Server", func(t *testing.T) {
		e, err := engine.New(quick(nil), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		ts := httptest.NewServer(e)
		resp, err := ts.Client().Post(ts.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || len(sse(t, string(data))) != 33 {
			t.Errorf("%v: %s", err, data)
		}
		ts.Close()
		cancel()
		running.Wait()
		if err := e.Run(context.Background()); err == nil {
			t.Error("Run ran twice")
		}
	})
}

func TestManyStreamsAreWhole(t *testing.T) {
	s := start(t, quick(nil))
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			n := 1 + i%40
			got := s.post(t, "/v1/chat/completions", `{"model":"sim","stream":true,"messages":[{"role":"user","content":"`+strconv.Itoa(i)+`"}]}`,
				length, strconv.Itoa(n))
			if events := sse(t, got.body); len(events) != n+3 || events[n+2] != "[DONE]" || got.err != nil {
				t.Errorf("stream %d: %d events of %d, %v", i, len(events), n+3, got.err)
			}
		})
	}
	wg.Wait()
	if got := s.Stats(); got.Finished != 100 || got.Running+got.KVUsed != 0 && got.Waiting != 0 {
		t.Errorf("%+v", got)
	}
}

func TestServeDrains(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) { c.DrainTimeout = 10 * time.Second }))
	resp, err := s.client.Post(s.url+"/v1/chat/completions",
		"application/json", strings.NewReader(`{"model":"sim","stream":true,"max_tokens":300,`+hello+`}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var stopped sync.WaitGroup
	stopped.Go(s.stop) // in mid-answer
	data, err := io.ReadAll(resp.Body)
	if err != nil || len(sse(t, string(data))) != 303 {
		t.Errorf("the open answer did not finish: %v, %d bytes", err, len(data))
	}
	stopped.Wait()
	if c, err := net.Dial("tcp", s.addr); err == nil {
		c.Close()
		t.Error("still listening")
	}
}

func TestServeBreaksOffAfterTheDrain(t *testing.T) {
	s := start(t, quick(frozen))
	resp, err := s.client.Post(s.url+"/v1/chat/completions", "application/json",
		strings.NewReader(`{"model":"sim","stream":true,`+hello+`}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.stop()
	if data, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the answer ended cleanly with %q, want a visible break", data)
	}
}
