package wire_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// assemble puts an answer together from the data of its events.
func assemble(surface inference.Surface, chunks ...string) (string, error) {
	a := wire.NewAssembler(surface)
	for _, c := range chunks {
		data := []byte(c)
		if err := a.Add(data); err != nil {
			return "", err
		}
		clear(data) // the assembler keeps nothing of it
	}
	b, err := a.Answer()
	return string(b), err
}

// plain decodes an answer, and leaves out what servers write as null or as an
// empty list in one piece and not at all in chunks.
func plain(t *testing.T, answer string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(answer), &v); err != nil {
		t.Fatalf("%v in %s", err, answer)
	}
	var strip func(v any) any
	strip = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for name, member := range v {
				list, isList := member.([]any)
				if (member == nil && name != "content") || isList && len(list) == 0 {
					delete(v, name)
					continue
				}
				v[name] = strip(member)
			}
		case []any:
			for i := range v {
				v[i] = strip(v[i])
			}
		}
		return v
	}
	return strip(v)
}

// recorded are the chunks of servers and what the same server answers to the same
// request in one piece, in the shapes of vLLM 0.10, SGLang 0.4, llama.cpp b6000,
// Ollama 0.11 and DeepSeek's API.
var recorded = map[string]struct {
	surface inference.Surface
	chunks  []string
	whole   string
}{
	"vllm": {
		chunks: []string{
			`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null}`,
			`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"content":"Grüß \"dich\""},"logprobs":null,"finish_reason":null,"token_ids":null}]}`,
			`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"content":"\n\ud83d\ude00"},"logprobs":null,"finish_reason":null,"token_ids":null}]}`,
			`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","stop_reason":128001,"token_ids":null}]}`,
			`{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[],"usage":{"prompt_tokens":12,"total_tokens":20,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":8}}}`,
		},
		whole: `{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"llama","choices":[{"index":0,"message":{"role":"assistant","content":"Grüß \"dich\"\n😀","refusal":null,"annotations":null,"audio":null,"function_call":null,"tool_calls":[],"reasoning_content":null},"logprobs":null,"finish_reason":"stop","stop_reason":128001,"token_ids":null}],"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":12,"total_tokens":20,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":8}},"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}`,
	},
	"vllm tools": {
		chunks: []string{
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"tool_calls":[{"id":"chatcmpl-tool-a","type":"function","index":0,"function":{"name":"weather"}}]},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\": "}}]},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Kyiv\"}"}}]},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"tool_calls":[{"id":"chatcmpl-tool-b","type":"function","index":1,"function":{"name":"time"}}]},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls","stop_reason":128008}]}`,
			`{"id":"chatcmpl-2","object":"chat.completion.chunk","created":1700000000,"model":"llama","choices":[],"usage":{"prompt_tokens":100,"total_tokens":130,"completion_tokens":30}}`,
		},
		whole: `{"id":"chatcmpl-2","object":"chat.completion","created":1700000000,"model":"llama","choices":[{"index":0,"message":{"role":"assistant","content":null,"reasoning_content":null,"tool_calls":[{"id":"chatcmpl-tool-a","type":"function","function":{"name":"weather","arguments":"{\"city\": \"Kyiv\"}"}},{"id":"chatcmpl-tool-b","type":"function","function":{"name":"time","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls","stop_reason":128008}],"usage":{"prompt_tokens":100,"total_tokens":130,"completion_tokens":30,"prompt_tokens_details":null},"prompt_logprobs":null}`,
	},
	"vllm completions": {
		surface: inference.Completions,
		chunks: []string{
			`{"id":"cmpl-3","object":"text_completion","created":1700000000,"model":"llama","choices":[{"index":0,"text":" once","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}`,
			`{"id":"cmpl-3","object":"text_completion","created":1700000000,"model":"llama","choices":[{"index":0,"text":" upon","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":null}`,
			`{"id":"cmpl-3","object":"text_completion","created":1700000000,"model":"llama","choices":[],"usage":{"prompt_tokens":4,"total_tokens":6,"completion_tokens":2,"prompt_tokens_details":null}}`,
		},
		whole: `{"id":"cmpl-3","object":"text_completion","created":1700000000,"model":"llama","choices":[{"index":0,"text":" once upon","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_logprobs":null}],"usage":{"prompt_tokens":4,"total_tokens":6,"completion_tokens":2,"prompt_tokens_details":null}}`,
	},
	"sglang": {
		chunks: []string{
			`{"id":"8c0","object":"chat.completion.chunk","created":1700000001,"model":"qwen","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}`,
			`{"id":"8c0","object":"chat.completion.chunk","created":1700000001,"model":"qwen","choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning_content":"Let me ","tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}`,
			`{"id":"8c0","object":"chat.completion.chunk","created":1700000001,"model":"qwen","choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning_content":"think","tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}`,
			`{"id":"8c0","object":"chat.completion.chunk","created":1700000001,"model":"qwen","choices":[{"index":0,"delta":{"role":null,"content":"4","reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}`,
			`{"id":"8c0","object":"chat.completion.chunk","created":1700000001,"model":"qwen","choices":[{"index":0,"delta":{"role":null,"content":null,"reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":"stop","matched_stop":151645}],"usage":null}`,
			`{"id":"8c0","object":"chat.completion.chunk","created":1700000001,"model":"qwen","choices":[],"usage":{"prompt_tokens":9,"total_tokens":14,"completion_tokens":5,"prompt_tokens_details":null,"reasoning_tokens":3}}`,
		},
		whole: `{"id":"8c0","object":"chat.completion","created":1700000001,"model":"qwen","choices":[{"index":0,"message":{"role":"assistant","content":"4","reasoning_content":"Let me think","tool_calls":null},"logprobs":null,"finish_reason":"stop","matched_stop":151645}],"usage":{"prompt_tokens":9,"total_tokens":14,"completion_tokens":5,"prompt_tokens_details":null,"reasoning_tokens":3}}`,
	},
	"llama.cpp": {
		chunks: []string{
			`{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"created":1700000002,"id":"chatcmpl-L","model":"gpt-3.5-turbo","system_fingerprint":"b6000-abc","object":"chat.completion.chunk"}`,
			`{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hel"}}],"created":1700000002,"id":"chatcmpl-L","model":"gpt-3.5-turbo","system_fingerprint":"b6000-abc","object":"chat.completion.chunk"}`,
			`{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"lo"}}],"created":1700000002,"id":"chatcmpl-L","model":"gpt-3.5-turbo","system_fingerprint":"b6000-abc","object":"chat.completion.chunk"}`,
			`{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"created":1700000002,"id":"chatcmpl-L","model":"gpt-3.5-turbo","system_fingerprint":"b6000-abc","object":"chat.completion.chunk"}`,
			`{"choices":[],"created":1700000002,"id":"chatcmpl-L","model":"gpt-3.5-turbo","system_fingerprint":"b6000-abc","object":"chat.completion.chunk","usage":{"completion_tokens":2,"prompt_tokens":11,"total_tokens":13},"timings":{"prompt_n":11,"predicted_n":2}}`,
		},
		whole: `{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"Hello"}}],"created":1700000002,"model":"gpt-3.5-turbo","system_fingerprint":"b6000-abc","object":"chat.completion","usage":{"completion_tokens":2,"prompt_tokens":11,"total_tokens":13},"id":"chatcmpl-L","timings":{"prompt_n":11,"predicted_n":2}}`,
	},
	"ollama": {
		chunks: []string{
			`{"id":"chatcmpl-5","object":"chat.completion.chunk","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"Hm"},"finish_reason":null}]}`,
			`{"id":"chatcmpl-5","object":"chat.completion.chunk","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"m."},"finish_reason":null}]}`,
			`{"id":"chatcmpl-5","object":"chat.completion.chunk","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"call_a","index":0,"type":"function","function":{"name":"weather","arguments":"{\"city\":\"Kyiv\"}"}}]},"finish_reason":null}]}`,
			`{"id":"chatcmpl-5","object":"chat.completion.chunk","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":"","tool_calls":[{"id":"call_b","index":0,"type":"function","function":{"name":"weather","arguments":"{\"city\":\"Lviv\"}"}}]},"finish_reason":null}]}`,
			`{"id":"chatcmpl-5","object":"chat.completion.chunk","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":"tool_calls"}]}`,
			`{"id":"chatcmpl-5","object":"chat.completion.chunk","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[],"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29}}`,
		},
		whole: `{"id":"chatcmpl-5","object":"chat.completion","created":1700000003,"model":"llama3","system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":null,"reasoning":"Hmm.","tool_calls":[{"id":"call_a","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Kyiv\"}"}},{"id":"call_b","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Lviv\"}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29}}`,
	},
	"deepseek": {
		chunks: []string{
			`{"id":"d-6","object":"chat.completion.chunk","created":1700000004,"model":"deepseek-reasoner","system_fingerprint":"fp_d","choices":[{"index":0,"delta":{"role":"assistant","content":null,"reasoning_content":""},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"d-6","object":"chat.completion.chunk","created":1700000004,"model":"deepseek-reasoner","system_fingerprint":"fp_d","choices":[{"index":0,"delta":{"content":null,"reasoning_content":"2+2"},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"d-6","object":"chat.completion.chunk","created":1700000004,"model":"deepseek-reasoner","system_fingerprint":"fp_d","choices":[{"index":0,"delta":{"content":"4","reasoning_content":null},"logprobs":null,"finish_reason":null}]}`,
			`{"id":"d-6","object":"chat.completion.chunk","created":1700000004,"model":"deepseek-reasoner","system_fingerprint":"fp_d","choices":[{"index":0,"delta":{"content":"","reasoning_content":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":7,"total_tokens":17,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":4},"prompt_cache_hit_tokens":0,"prompt_cache_miss_tokens":10}}`,
		},
		whole: `{"id":"d-6","object":"chat.completion","created":1700000004,"model":"deepseek-reasoner","choices":[{"index":0,"message":{"role":"assistant","content":"4","reasoning_content":"2+2"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":7,"total_tokens":17,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":4},"prompt_cache_hit_tokens":0,"prompt_cache_miss_tokens":10},"system_fingerprint":"fp_d"}`,
	},
	"openai": {
		chunks: []string{
			`{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"gpt-x","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}],"usage":null,"obfuscation":"x8"}`,
			`{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"gpt-x","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{"refusal":"I can"},"finish_reason":null}],"usage":null,"obfuscation":"8"}`,
			`{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"gpt-x","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{"refusal":"not"},"finish_reason":null}],"usage":null,"obfuscation":"c"}`,
			`{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"gpt-x","service_tier":"default","system_fingerprint":"fp","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null,"obfuscation":"y"}`,
			`{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1,"model":"gpt-x","service_tier":"default","system_fingerprint":"fp","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"obfuscation":"z"}`,
		},
		whole: `{"id":"chatcmpl-7","object":"chat.completion","created":1,"model":"gpt-x","choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":"I cannot","annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"service_tier":"default","system_fingerprint":"fp"}`,
	},
	"tool calls without an index": {
		chunks: []string{
			`{"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":""}},{"id":"b","type":"function","function":{"name":"g","arguments":"{"}}]},"finish_reason":null}]}`,
			`{"choices":[{"index":0,"delta":{"tool_calls":[{"function":{"arguments":"}"}}]},"finish_reason":"tool_calls"}]}`,
		},
		whole: `{"choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":""}},{"id":"b","type":"function","function":{"name":"g","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}`,
	},
	"what is not known stays": {
		chunks: []string{
			`{"vendor":1,"choices":[{"index":0,"delta":{"role":"assistant","content":"a","notes":["x"],"pieces":"p","flag":true},"score":1,"finish_reason":null}]}`,
			`{"vendor":{"a":[2]},"choices":[{"index":0,"delta":{"content":"b","notes":[],"pieces":"q"},"score":2.5,"finish_reason":null}]}`,
			`{"vendor":null,"choices":[{"index":0,"delta":{"notes":["y","z"]},"score":null,"finish_reason":"stop"}]}`,
		},
		whole: `{"vendor":{"a":[2]},"choices":[{"index":0,"message":{"role":"assistant","content":"ab","notes":["x","y","z"],"pieces":"pq","flag":true},"score":2.5,"finish_reason":"stop"}]}`,
	},
	"nothing was said": {
		chunks: []string{`{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`},
		whole:  `{"choices":[{"index":0,"message":{"role":"assistant","content":""},"finish_reason":"stop"}]}`,
	},
	"a choice alone": {
		chunks: []string{`{"choices":[{"finish_reason":"stop"}]}`},
		whole:  `{"choices":[{"message":{"role":"assistant","content":""},"finish_reason":"stop"}]}`,
	},
	"no text": {
		surface: inference.Completions,
		chunks:  []string{`{"choices":[{"index":0,"finish_reason":"stop"}]}`},
		whole:   `{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}`,
	},
}

func TestAssembledAnswersAreThoseOfTheServer(t *testing.T) {
	for name, c := range recorded {
		t.Run(name, func(t *testing.T) {
			got, err := assemble(c.surface, c.chunks...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(plain(t, c.whole), plain(t, got)); d != "" {
				t.Errorf("-want +got\n%s\n%s", d, got)
			}
			if want, got := wire.AnswerUsage([]byte(c.whole)), wire.AnswerUsage([]byte(got)); got != want {
				t.Errorf("usage: got %+v, want %+v", got, want)
			}
		})
	}
}

func TestAssemblerRefuses(t *testing.T) {
	many := make([]string, 200)
	for i := range many {
		many[i] = fmt.Sprintf(`{"m%d":1}`, i)
	}
	calls := make([]string, 1100)
	for i := range calls {
		calls[i] = fmt.Sprintf(`{"choices":[{"delta":{"tool_calls":[{"index":%d}]}}]}`, i)
	}
	for name, c := range map[string]struct {
		chunks []string
		want   error // nil is any
	}{
		"no chunk":        {want: wire.ErrNoChoice},
		"no choice":       {chunks: []string{`{"choices":[]}`, `{"choices":null,"usage":{}}`}, want: wire.ErrNoChoice},
		"not an object":   {chunks: []string{`[1]`}, want: wire.ErrChunk},
		"text":            {chunks: []string{`hello`}, want: wire.ErrChunk},
		"broken off":      {chunks: []string{`{"choices":[`}},
		"second choice":   {chunks: []string{`{"choices":[{"index":1,"delta":{"content":"x"}}]}`}, want: wire.ErrChunk},
		"a message":       {chunks: []string{`{"choices":[{"message":{"content":"x"}}]}`}, want: wire.ErrChunk},
		"escaped name":    {chunks: []string{`{"choi\u0063es":[]}`}, want: wire.ErrChunk},
		"choices of text": {chunks: []string{`{"choices":["x"]}`}, want: wire.ErrChunk},
		"twice":           {chunks: []string{`{"choices":[{"delta":{"content":"a","content":"b"}}]}`}},
		"many members":    {chunks: many, want: wire.ErrChunk},
		"many calls":      {chunks: calls, want: wire.ErrChunk},
		"too large":       {chunks: big(1<<20, 40), want: wire.ErrAnswerTooLarge},
		"many small":      {chunks: small(1 << 17), want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := assemble(inference.Chat, c.chunks...)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// big is n chunks of content of that size.
func big(size, n int) []string {
	chunks := make([]string, n)
	for i := range chunks {
		chunks[i] = `{"choices":[{"delta":{"content":"` + strings.Repeat("x", size) + `"}}]}`
	}
	return chunks
}

// small is one chunk with many members.
func small(n int) []string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"%d":1,`, i)
	}
	return []string{`{"choices":[{"delta":{` + b.String() + `"content":"x"}}]}`}
}

// FuzzAssembler checks that whatever comes is either refused or makes valid JSON.
func FuzzAssembler(f *testing.F) {
	for _, c := range recorded {
		f.Add(strings.Join(c.chunks, "\n"), c.surface == inference.Completions)
	}
	f.Fuzz(func(t *testing.T, stream string, completions bool) {
		surface := inference.Chat
		if completions {
			surface = inference.Completions
		}
		got, err := assemble(surface, strings.Split(stream, "\n")...)
		if err != nil {
			return
		}
		if !jsontext.Value(got).IsValid() { // as strict as the scan of a request
			t.Fatalf("not valid: %s", got)
		}
	})
}

func BenchmarkAssembler(b *testing.B) {
	data := []byte(`{"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1700000000,"model":"llama-3.1-8b","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}`)
	a := wire.NewAssembler(inference.Chat)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n++; n%1000 == 0 {
			a = wire.NewAssembler(inference.Chat)
		}
		if err := a.Add(data); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleAssembler() {
	a := wire.NewAssembler(inference.Chat)
	for _, data := range []string{
		`{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}`,
		`{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}`,
	} {
		if err := a.Add([]byte(data)); err != nil {
			panic(err)
		}
	}
	answer, _ := a.Answer()
	fmt.Printf("%s\n", answer)
	// Output: {"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}
}
