package e2e_test

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// keptCases are questions with one answer, and how each is asked: in turns, those
// joined by + at the same time. A question's first word is the answer that it gets.
// The turns are a stream, one with its usage, an answer in one piece, an embedding,
// and only what is kept, in one piece or as a stream.
var keptCases = []string{
	"text-usage-streams usage usage stream stream",
	"text-streams stream stream usage",
	"text-stream-first stream one one",
	"text-one-first one stream usage one",
	"tools-streams stream stream usage",
	"tools-stream-first usage one",
	"tools-one-first one stream",
	"text-only one one only only-stream",
	"nothing only only-stream",
	"vector embed embed",
	"slow-streams stream+stream",
	"slow-mixed usage+stream+one stream",
}

// keptBy are the arguments for an SDK's driver. On Anthropic's surface a stream always
// has its usage, and there are no embeddings.
func keptBy(s sdk) (args []string) {
	for _, c := range keptCases {
		if !s.anthropic || !strings.Contains(c, "embed") {
			args = append(args, "kept "+c)
		}
	}
	return args
}

// turnsOf are the turns of a driver's argument.
func turnsOf(arg string) []string {
	return strings.Fields(strings.ReplaceAll(arg, "+", " "))[2:]
}

// turn is what a driver says of one time that a question was asked.
type turn struct {
	Cache     string     `json:"cache"`
	Chunks    []any      `json:"chunks"` // of a stream, as the SDK gave them
	Answer    any        `json:"answer"` // in one piece, as the SDK gave it
	Vector    []float64  `json:"vector"`
	Content   string     `json:"content"` // from here on as the SDK's own types say it
	Finish    string     `json:"finish"`
	Usage     int64      `json:"usage"`
	Reasoning string     `json:"reasoning"`
	Unknown   string     `json:"unknown"`
	Tools     []toolCall `json:"tools"`
	Status    int        `json:"status"`
	Code      string     `json:"code"`
}

// toolCall is a call of a tool with its arguments, parsed.
type toolCall struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Arguments map[string]any `json:"arguments"`
}

// checkKept judges one case: one generation answers all its turns, each with what the
// server says, and the header field tells which turn was answered how.
func (st *stack) checkKept(t *testing.T, s sdk, arg string, r *result) {
	t.Helper()
	if r == nil {
		t.Fatal("the driver said nothing of this case")
	}
	if r.Failure != "" {
		t.Fatalf("the driver failed: %s", r.Failure)
	}
	words := strings.Fields(arg)
	question, turns := words[1], r.Turns
	generations := 1
	if question == "nothing" {
		generations = 0
	}
	if n := len(st.askedKept(question)); n != generations {
		t.Errorf("the server was asked %d times, want %d: %q", n, generations, st.askedKept(question))
	}
	if n := st.sent.Count(`"` + question + `"`); n != len(turnsOf(arg))+r.Repeats {
		t.Errorf("the SDK sent %d requests in %d turns and %d again", n, len(turnsOf(arg)), r.Repeats)
	}
	if len(turns) != len(turnsOf(arg)) {
		t.Fatalf("the driver took %d turns, want %d", len(turns), len(turnsOf(arg)))
	}
	for i, group := range words[2:] {
		kinds := strings.Split(group, "+")
		misses, untold := 0, 0
		for j, kind := range kinds {
			got := turns[j]
			how, _, _ := strings.Cut(got.Cache, ";")
			got.Cache = how
			want := wantTurn(s, question, kind)
			switch {
			case want.Status != 0:
			case i == 0 && how == string(inference.CacheMiss):
				misses++
				want.Cache = how
			case i == 0 && how == string(inference.CacheCoalesced) && len(kinds) > 1:
				want.Cache = how
			case i == 0 && how == "" && want.Answer == nil && want.Vector == nil: // keep-alive comments have begun the stream
				untold++
			default: // also a twin that was held up for longer than the generation took
				want.Cache = string(inference.CacheHit)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("turn %d, %s (-want +got):\n%s", i+1, kind, diff)
			}
		}
		if i == 0 && (misses > generations || misses+untold < generations) {
			t.Errorf("%d of the first turns were misses, want %d", misses, generations)
		}
		turns = turns[len(kinds):]
	}
}

// wantTurn is what a driver has to say of a turn, but for the cache.
func wantTurn(s sdk, question, kind string) turn {
	switch question {
	case "nothing":
		code := string(inference.CodeNotCached)
		if s.anthropic {
			code = "invalid_request_error"
		}
		return turn{Status: 504, Code: code}
	case "vector":
		return turn{Vector: vector, Usage: 3}
	}
	answer := answerTo(question)
	say := answer.chat
	if s.anthropic {
		say = answer.messages
	}
	w := turn{Content: answer.content, Finish: say.finish, Usage: total, Reasoning: "thinking", Unknown: "kept", Tools: answer.tools}
	if kind == "one" || kind == "only" {
		w.Answer = value(say.whole)
		return w
	}
	for _, e := range say.events {
		w.Chunks = append(w.Chunks, value(e))
	}
	if !s.anthropic && kind != "usage" {
		w.Chunks, w.Usage = w.Chunks[:len(w.Chunks)-1], 0
	}
	return w
}

// value is a JSON text as a value.
func value(text string) (v any) {
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(err) // of a text in this file
	}
	return v
}

// said is an answer as a server says it on one surface: in one piece, and as the
// data of a stream's events.
type said struct {
	finish string
	whole  string
	events []string
}

// keptAnswer is an answer on both surfaces.
type keptAnswer struct {
	content        string
	tools          []toolCall
	chat, messages said
}

// total is the number of tokens that the answers of both surfaces say.
const total = 14

// vector is an embedding, of numbers that are the same in 32 bits.
var vector = []float64{0.5, -1.25, 3}

// keptAnswers are the answers, by what questions are about. In texts are escapes and
// signs of several bytes; the tools are two, called in one answer.
var keptAnswers = map[string]keptAnswer{
	"text": {
		content: "Hello, w\u00f6rld \"q\"\n\U0001F600",
		chat: said{
			finish: "stop",
			whole:  chatWhole(`"content":"Hello, w\u00f6rld \"q\"\n\ud83d\ude00","refusal":null,"reasoning_content":"thinking"`, "stop"),
			events: chatEvents("stop", `{"role":"assistant","content":"","refusal":null}`, `{"reasoning_content":"think"}`, `{"reasoning_content":"ing"}`,
				`{"content":"Hel"}`, `{"content":"lo, w\u00f6r"}`, `{"content":"ld \"q\"\n"}`, `{"content":"\ud83d\ude00"}`),
		},
		messages: said{
			finish: "end_turn",
			whole:  messageWhole(`{"type":"text","text":"Hello, w\u00f6rld \"q\"\n\ud83d\ude00"}`, "end_turn"),
			events: messageEvents("end_turn",
				block{`{"type":"text","text":""}`, []string{
					`{"type":"text_delta","text":"Hel"}`, `{"type":"text_delta","text":"lo, w\u00f6r"}`,
					`{"type":"text_delta","text":"ld \"q\"\n"}`, `{"type":"text_delta","text":"\ud83d\ude00"}`,
				}}),
		},
	},
	"tools": {
		tools: []toolCall{
			{"c1", "weather", map[string]any{"city": "Ky\u00efv", "days": []any{1.0, 2.0}}},
			{"c2", "weather", map[string]any{}},
		},
		chat: said{
			finish: "tool_calls",
			whole: chatWhole(`"content":null,"reasoning_content":"thinking","tool_calls":[`+
				`{"id":"c1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Ky\u00efv\",\"days\":[1,2]}"}},`+
				`{"id":"c2","type":"function","function":{"name":"weather","arguments":"{}"}}]`, "tool_calls"),
			events: chatEvents("tool_calls", `{"role":"assistant","content":null}`, `{"reasoning_content":"think"}`, `{"reasoning_content":"ing"}`,
				`{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"weather","arguments":""}}]}`,
				`{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":\"Ky"}}]}`,
				`{"tool_calls":[{"index":0,"function":{"arguments":"\u00efv\",\"days\":[1,2]}"}}]}`,
				`{"tool_calls":[{"index":1,"id":"c2","type":"function","function":{"name":"weather","arguments":""}}]}`,
				`{"tool_calls":[{"index":1,"function":{"arguments":"{}"}}]}`),
		},
		messages: said{
			finish: "tool_use",
			whole: messageWhole(`{"type":"tool_use","id":"c1","name":"weather","input":{"city":"Ky\u00efv","days":[1,2]}},`+
				`{"type":"tool_use","id":"c2","name":"weather","input":{}}`, "tool_use"),
			events: messageEvents("tool_use",
				block{`{"type":"tool_use","id":"c1","name":"weather","input":{}}`, []string{
					`{"type":"input_json_delta","partial_json":""}`, `{"type":"input_json_delta","partial_json":"{\"city\":\"Ky"}`,
					`{"type":"input_json_delta","partial_json":"\u00efv\",\"days\":[1,2]}"}`,
				}},
				block{`{"type":"tool_use","id":"c2","name":"weather","input":{}}`, nil}),
		},
	},
}

// answerTo is the answer to a question.
func answerTo(question string) keptAnswer {
	if strings.HasPrefix(question, "tools-") {
		return keptAnswers["tools"]
	}
	return keptAnswers["text"]
}

// Parts of chat answers: what all chunks have, and the tokens.
const (
	chatHead  = `{"id":"kept-1","object":"chat.completion%s","created":1,"model":"kept","system_fingerprint":"fp_1","vendor_answer":"kept",`
	chatUsage = `"usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14,"prompt_tokens_details":{"cached_tokens":0}}}`
)

// chatWhole is a chat answer in one piece.
func chatWhole(message, finish string) string {
	return fmt.Sprintf(chatHead+`"choices":[{"index":0,"message":{"role":"assistant",%s},"logprobs":null,"finish_reason":%q}],`, "", message, finish) + chatUsage
}

// chatEvents are the chunks of a chat answer; the last one is for those who ask for
// the usage.
func chatEvents(finish string, deltas ...string) (events []string) {
	head := fmt.Sprintf(chatHead, ".chunk")
	for _, d := range deltas {
		events = append(events, head+`"choices":[{"index":0,"delta":`+d+`,"logprobs":null,"finish_reason":null}],"usage":null}`)
	}
	return append(events, head+`"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"`+finish+`"}],"usage":null}`, head+`"choices":[],`+chatUsage)
}

// messageHead is the beginning of a message.
const messageHead = `{"id":"kept-1","type":"message","role":"assistant","model":"kept","vendor_answer":"kept",`

// messageWhole is a message in one piece.
func messageWhole(content, stop string) string {
	return messageHead + `"content":[{"type":"thinking","thinking":"thinking","signature":"c2ln"},` + content +
		`],"stop_reason":"` + stop + `","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":9}}`
}

// block is how a content block begins, and what is added to it.
type block struct {
	start  string
	deltas []string
}

// messageEvents are the events of a message.
func messageEvents(stop string, blocks ...block) []string {
	events := []string{`{"type":"message_start","message":` + messageHead + `"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":1}}}`}
	thinking := block{`{"type":"thinking","thinking":"","signature":""}`, []string{
		`{"type":"thinking_delta","thinking":"think"}`, `{"type":"thinking_delta","thinking":"ing"}`, `{"type":"signature_delta","signature":"c2ln"}`,
	}}
	for i, b := range append([]block{thinking}, blocks...) {
		events = append(events, fmt.Sprintf(`{"type":"content_block_start","index":%d,"content_block":%s}`, i, b.start))
		for _, d := range b.deltas {
			events = append(events, fmt.Sprintf(`{"type":"content_block_delta","index":%d,"delta":%s}`, i, d))
		}
		events = append(events, fmt.Sprintf(`{"type":"content_block_stop","index":%d}`, i))
	}
	return append(events, `{"type":"message_delta","delta":{"stop_reason":"`+stop+`","stop_sequence":null},"usage":{"output_tokens":9}}`, `{"type":"message_stop"}`)
}

// sayKept is the script of the model whose answers are kept: it says the same on
// every surface, in one piece or as a stream, as it is asked.
func (st *stack) sayKept(x *testkit.Exchange) bool {
	var body struct {
		Stream   bool   `json:"stream"`
		Input    string `json:"input"`
		Format   string `json:"encoding_format"`
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
		Options struct {
			Usage bool `json:"include_usage"`
		} `json:"stream_options"`
	}
	if err := json.Unmarshal(x.Body, &body); err != nil {
		return false
	}
	if strings.HasSuffix(x.Request.URL.Path, "/embeddings") {
		st.keepAsked(body.Input, x.Body)
		x.JSON(200, embedding(body.Format))
		return true
	}
	question := body.Messages[0].Content
	st.keepAsked(question, x.Body)
	messages := strings.HasSuffix(x.Request.URL.Path, "/messages")
	say := answerTo(question).chat
	if messages {
		say = answerTo(question).messages
	}
	if !body.Stream {
		x.JSON(200, say.whole)
		return true
	}
	events := say.events
	if !messages && !body.Options.Usage {
		events = events[:len(events)-1]
	}
	x.Stream()
	for i, e := range events {
		if i == len(events)/2 && strings.HasPrefix(question, "slow-") {
			st.awaitTwins(question)
		}
		if messages {
			kind, _, _ := strings.Cut(strings.TrimPrefix(e, `{"type":"`), `"`)
			x.Chunk("event: " + kind + "\ndata: " + e + "\n\n")
		} else {
			x.Chunk("data: " + e + "\n\n")
		}
	}
	if !messages {
		x.Chunk(testkit.DoneEvent)
	}
	x.End()
	return true
}

// awaitTwins waits until the gateway has been sent all that a question's first turns
// ask at the same time, and some polls longer, in which they join.
func (st *stack) awaitTwins(question string) {
	first := ""
	for _, c := range keptCases {
		if words := strings.Fields(c); words[0] == question {
			first = words[1]
		}
	}
	until := time.Now().Add(10 * time.Second)
	for polls := 0; polls < 20 && time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if st.sent.Count(`"`+question+`"`) > strings.Count(first, "+") {
			polls++ // the relay has passed all of them on; the gateway has yet to read them
		}
	}
}

// embedding is the answer with the vector in the form that is asked for.
func embedding(format string) string {
	v, _ := json.Marshal(vector) // numbers always marshal
	if format == "base64" {
		var raw []byte
		for _, f := range vector {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(float32(f)))
		}
		v = []byte(`"` + base64.StdEncoding.EncodeToString(raw) + `"`)
	}
	return `{"object":"list","model":"kept","data":[{"object":"embedding","index":0,"embedding":` + string(v) + `}],"usage":{"prompt_tokens":3,"total_tokens":3}}`
}
