package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/testkit"
)

// surface is one API as clients and model servers speak it: an answer says which
// question it is of, and which of its generations.
type surface struct {
	path   string
	body   func(q, more string) string
	events func(q string, n int) []string // of a stream, the one with usage alone next to last on chat and completions
	whole  func(q string, n int) string   // the same in one piece
}

// words are the pieces of an answer.
func words(q string, n int) []string {
	list := []string{"about ", q, fmt.Sprintf(": #%d#", n)}
	for i := range 10 {
		list = append(list, fmt.Sprintf(" w%d", i))
	}
	return list
}

// data is an event of a stream.
func data(format string, args ...any) string { return "data: " + fmt.Sprintf(format, args...) + "\n\n" }

// event is one of Messages and Responses.
func event(kind, format string, args ...any) string {
	return "event: " + kind + "\ndata: {\"type\":\"" + kind + "\"" + fmt.Sprintf(format, args...) + "}\n\n"
}

const usage = `"usage":{"prompt_tokens":5,"completion_tokens":13,"total_tokens":18}`

// surfaces by name.
var surfaces = map[string]surface{
	"chat": {
		path: "/v1/chat/completions",
		body: func(q, more string) string {
			return fmt.Sprintf(`{"model":"m","temperature":0,"messages":[{"role":"user","content":%q}]%s}`, q, more)
		},
		events: func(q string, n int) []string {
			chunk := func(rest string) string {
				return data(`{"id":"c-%d","object":"chat.completion.chunk","created":1,"model":"m",%s}`, n, rest)
			}
			list := []string{chunk(`"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]`)}
			for _, w := range words(q, n) {
				list = append(list, chunk(fmt.Sprintf(`"choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}]`, w)))
			}
			return append(list, chunk(`"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]`), chunk(`"choices":[],`+usage), testkit.DoneEvent)
		},
		whole: func(q string, n int) string {
			return fmt.Sprintf(`{"id":"c-%d","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":%q},"finish_reason":"stop"}],%s}`,
				n, strings.Join(words(q, n), ""), usage)
		},
	},
	"completions": {
		path: "/v1/completions",
		body: func(q, more string) string {
			return fmt.Sprintf(`{"model":"m","temperature":0,"prompt":%q%s}`, q, more)
		},
		events: func(q string, n int) []string {
			chunk := func(rest string) string {
				return data(`{"id":"t-%d","object":"text_completion","created":1,"model":"m",%s}`, n, rest)
			}
			var list []string
			for _, w := range words(q, n) {
				list = append(list, chunk(fmt.Sprintf(`"choices":[{"index":0,"text":%q,"finish_reason":null}]`, w)))
			}
			return append(list, chunk(`"choices":[{"index":0,"text":"","finish_reason":"stop"}]`), chunk(`"choices":[],`+usage), testkit.DoneEvent)
		},
		whole: func(q string, n int) string {
			return fmt.Sprintf(`{"id":"t-%d","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":%q,"finish_reason":"stop"}],%s}`,
				n, strings.Join(words(q, n), ""), usage)
		},
	},
	"messages": {
		path: "/v1/messages",
		body: func(q, more string) string {
			return fmt.Sprintf(`{"model":"m","temperature":0,"max_tokens":50,"messages":[{"role":"user","content":%q}]%s}`, q, more)
		},
		events: func(q string, n int) []string {
			list := []string{
				event("message_start", `,"message":{"id":"m-%d","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":1}}`, n),
				event("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`),
			}
			for _, w := range words(q, n) {
				list = append(list, event("content_block_delta", `,"index":0,"delta":{"type":"text_delta","text":%q}`, w))
			}
			return append(list, event("content_block_stop", `,"index":0`),
				event("message_delta", `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":13}`), event("message_stop", ""))
		},
		whole: func(q string, n int) string {
			return fmt.Sprintf(`{"id":"m-%d","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":%q}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":5,"output_tokens":13}}`,
				n, strings.Join(words(q, n), ""))
		},
	},
	"responses": {
		path: "/v1/responses",
		body: func(q, more string) string {
			return fmt.Sprintf(`{"model":"m","temperature":0,"input":%q%s}`, q, more)
		},
		events: func(q string, n int) []string {
			list := []string{event("response.created", `,"sequence_number":0,"response":{"id":"r-%d","object":"response","status":"in_progress","model":"m","output":[]}`, n)}
			for i, w := range words(q, n) {
				list = append(list, event("response.output_text.delta", `,"sequence_number":%d,"item_id":"i","output_index":0,"content_index":0,"delta":%q`, i+1, w))
			}
			return append(list, event("response.completed", `,"sequence_number":99,"response":%s`, responsesAnswer(q, n)))
		},
		whole: responsesAnswer,
	},
	"embeddings": {
		path: "/v1/embeddings",
		body: func(q, more string) string { return fmt.Sprintf(`{"model":"m","input":%q%s}`, q, more) },
		whole: func(q string, n int) string {
			return fmt.Sprintf(`{"object":"list","model":"m","about":%q,"data":[{"object":"embedding","index":0,"embedding":[%d,0.25]}],"usage":{"prompt_tokens":5,"total_tokens":5}}`,
				strings.Join(words(q, n), ""), n)
		},
	},
}

// responsesAnswer is an answer of the Responses surface in one piece.
func responsesAnswer(q string, n int) string {
	return fmt.Sprintf(`{"id":"r-%d","object":"response","status":"completed","model":"m","output":[{"type":"message","id":"i","status":"completed","role":"assistant","content":[{"type":"output_text","text":%q,"annotations":[]}]}],"usage":{"input_tokens":5,"output_tokens":13,"total_tokens":18}}`,
		n, strings.Join(words(q, n), ""))
}

// More members of a request's body.
const (
	streamed  = `,"stream":true`
	withUsage = `,"stream":true,"stream_options":{"include_usage":true}`
)

// oracle is a model server whose answers can be judged: each names its question and
// its number among the generations of that question.
type oracle struct {
	*testkit.Instance
	broken atomic.Bool           // it answers with errors
	middle func(q string, n int) // called in the middle of each stream; nil is nothing

	mu struct {
		sync.Mutex
		generations map[string]int
	}
}

// newOracle starts one. middle may be nil.
func newOracle(t *testing.T, middle func(q string, n int)) *oracle {
	o := &oracle{middle: middle}
	o.mu.generations = make(map[string]int)
	o.Instance = testkit.NewInstance(t, o.answer)
	return o
}

// answer is the oracle's script.
func (o *oracle) answer(x *testkit.Exchange) bool {
	if o.broken.Load() {
		x.JSON(500, `{"error":{"message":"broken"}}`)
		return true
	}
	var body struct {
		Stream  bool
		Options struct {
			Usage bool `json:"include_usage"`
		} `json:"stream_options"`
		Messages []struct{ Content string }
		Prompt   string
		Input    string
	}
	if err := json.Unmarshal(x.Body, &body); err != nil {
		x.JSON(400, `{"error":{"message":"no JSON"}}`)
		return true
	}
	q := body.Prompt + body.Input
	if len(body.Messages) > 0 {
		q = body.Messages[0].Content
	}
	o.mu.Lock()
	o.mu.generations[q]++
	n := o.mu.generations[q]
	o.mu.Unlock()
	for name, s := range surfaces {
		if s.path != x.Request.URL.Path {
			continue
		}
		if !body.Stream {
			if o.middle != nil {
				o.middle(q, n)
			}
			x.JSON(200, s.whole(q, n))
			return true
		}
		x.Stream()
		list := s.events(q, n)
		for i, e := range list {
			if o.middle != nil && i == len(list)/2 {
				o.middle(q, n)
			}
			if i != usageAt(name, list) || body.Options.Usage {
				x.Chunk(e)
			}
		}
		x.End()
	}
	return true
}

// usageAt is the place of the event that carries usage alone; -1 is nowhere.
func usageAt(surface string, events []string) int {
	if surface == "chat" || surface == "completions" {
		return len(events) - 2
	}
	return -1
}

// generations is how often a question was answered.
func (o *oracle) generations(q string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mu.generations[q]
}

// reply is an answer as a client got it.
type reply struct {
	status int
	header http.Header
	text   string
	n      int // which generation it is; 0: it does not say
}

// cache is what the cache did, and level which one had it.
func (r reply) cache() string {
	what, _, _ := strings.Cut(r.header.Get("X-Spillway-Cache"), ";")
	return what
}

// level is the cache's level that had the answer.
func (r reply) level() string {
	_, rest, _ := strings.Cut(r.header.Get("X-Spillway-Cache"), "level=")
	level, _, _ := strings.Cut(rest, ";")
	return level
}

// serial finds the number of a generation.
var serial = regexp.MustCompile(`#(\d+)#`)

// send posts a body and reads the whole answer. It may be called from any goroutine.
func (r *rig) send(path, body string, fields ...string) (reply, error) {
	req, err := http.NewRequest("POST", r.api+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	res, err := r.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	got := reply{status: res.StatusCode, header: res.Header, text: string(b)}
	if m := serial.FindStringSubmatch(got.text); m != nil {
		got.n, _ = strconv.Atoi(m[1])
	}
	return got, err
}

// judge says what is wrong with an answer, "" when it is the whole and right answer
// to a question, in the form that was asked for.
func judge(name, q, more string, got reply) string {
	s := surfaces[name]
	switch {
	case got.status != 200:
		return fmt.Sprintf("status %d: %s", got.status, got.text)
	case got.n == 0:
		return fmt.Sprintf("no answer of the oracle: %q", got.text)
	case !strings.Contains(more, `"stream":true`):
		var have, want any
		if err := json.Unmarshal([]byte(got.text), &have); err != nil {
			return fmt.Sprintf("%v: %q", err, got.text)
		}
		if err := json.Unmarshal([]byte(s.whole(q, got.n)), &want); err != nil {
			panic(err)
		}
		return cmp.Diff(have, want)
	}
	var want strings.Builder
	list := s.events(q, got.n)
	for i, e := range list {
		if i != usageAt(name, list) || strings.Contains(more, "include_usage") {
			want.WriteString(e)
		}
	}
	return cmp.Diff(got.text, want.String())
}

// wants asks a question on the chat surface and demands a right answer. It may be
// called from any goroutine.
func (r *rig) wants(q, more string, fields ...string) reply {
	got, err := r.send(surfaces["chat"].path, surfaces["chat"].body(q, more), fields...)
	if err != nil {
		r.t.Errorf("%s: %v", q, err)
	} else if wrong := judge("chat", q, more, got); wrong != "" {
		r.t.Errorf("%s %v: %s", q, got.header, wrong)
	}
	return got
}

// number is the value of a series, 0 when there is none.
func (r *rig) number(series string) float64 {
	n, _ := strconv.ParseFloat(r.metric(series), 64)
	return n
}

// reload replaces the configuration.
func (r *rig) reload(text string) {
	r.t.Helper()
	write(r.t, r.path, text)
	if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
		r.t.Fatalf("got %d %s", status, body)
	}
}
