package load_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Events of a chat stream.
const (
	role   = `data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
	token  = `data: {"choices":[{"delta":{"content":"abc "},"finish_reason":null}]}` + "\n\n"
	finish = `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	usage  = `data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":7}}` + "\n\n"
	done   = "data: [DONE]\n\n"
	whole  = `{"choices":[{"message":{"content":"abc"},"finish_reason":"stop"}],"usage":{"completion_tokens":5}}`
)

// config is a run of rows requests within a fraction of a second.
func config(url string, rows int) load.Config {
	cfg := load.Default()
	cfg.Target.BaseURLs = []string{url}
	cfg.Target.Model = "m"
	cfg.Schedule.Profile = fmt.Sprintf("%d/s:100ms", rows*10)
	cfg.Schedule.Arrivals = load.Uniform
	cfg.Request.PromptTokens = 8
	cfg.Client.Timeout = 10 * time.Second
	return cfg
}

func run(t *testing.T, cfg load.Config, opts load.Options) load.System {
	t.Helper()
	r, err := load.Run(t.Context(), cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	s := r.Systems[0]
	sum := s.Answered + s.Truncated
	for _, n := range s.Errors {
		sum += n
	}
	if sum != s.Offered {
		t.Errorf("answered %d + truncated %d + errors %v is not offered %d", s.Answered, s.Truncated, s.Errors, s.Offered)
	}
	return s
}

func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func sse(events ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for _, e := range events {
			io.WriteString(w, e)
			w.(http.Flusher).Flush()
		}
	}
}

// aborted sends events and then breaks the connection.
func aborted(events ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sse(events...)(w, r)
		panic(http.ErrAbortHandler)
	}
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// TestOutcomes meets every way in which a request can end.
func TestOutcomes(t *testing.T) {
	const errorEvent = `data: {"error":{"message":"upstream closed","type":"server_error","param":null,"code":"upstream_cut"}}` + "\n\n"
	tests := map[string]struct {
		handler   http.HandlerFunc
		change    func(*load.Config)
		answered  int64
		truncated int64
		errors    map[string]int64
		tokens    int64
	}{
		"complete":           {handler: sse(role, token, token, ": keep-alive\n", finish, done), answered: 4, tokens: 8},
		"complete by usage":  {handler: sse(role, token, finish, usage, done), answered: 4, tokens: 28},
		"spaced JSON":        {handler: sse(`data: {"choices": [{"delta": {"content" : "a"}, "finish_reason" : "stop"}]}`+"\r\n\r\n", done), answered: 4, tokens: 4},
		"quotes in text":     {handler: sse(`data: {"choices":[{"delta":{"content":"\"error\": {\"finish_reason\": \"stop\"}"}}]}`+"\n\n", finish, done), answered: 4, tokens: 4},
		"no done":            {handler: sse(role, token, finish), truncated: 4},
		"no finish":          {handler: sse(role, token, done), truncated: 4},
		"nothing":            {handler: sse(), truncated: 4},
		"half an event":      {handler: sse(role, token, `data: {"cho`), truncated: 4},
		"error frame":        {handler: aborted(role, token, errorEvent), errors: map[string]int64{"upstream_cut": 4}},
		"error first":        {handler: sse(`data: {"error":{"message":"The request queue is full.","type":"abort","code":503}}`+"\n\n", done), errors: map[string]int64{"abort": 4}},
		"insufficient":       {handler: sse(token, strings.Replace(finish, "stop", "insufficient_system_resource", 1), done), errors: map[string]int64{"insufficient_system_resource": 4}},
		"cut":                {handler: aborted(role, token), errors: map[string]int64{"cut": 4}},
		"code":               {handler: status(503, `{"error":{"message":"x","type":"server_error","param":null,"code":"overloaded"}}`), errors: map[string]int64{"overloaded": 4}},
		"type":               {handler: status(429, `{"error":{"message":"x","type":"rate_limit_error","code":null}}`), errors: map[string]int64{"rate_limit_error": 4}},
		"vllm":               {handler: status(400, `{"object":"error","message":"x","type":"BadRequestError","param":null,"code":400}`), errors: map[string]int64{"BadRequestError": 4}},
		"no body":            {handler: status(503, `<html>`), errors: map[string]int64{"http_503": 4}},
		"words":              {handler: status(503, `{"error":"server busy"}`), errors: map[string]int64{"http_503": 4}},
		"reset":              {handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, errors: map[string]int64{"reset": 4}},
		"timeout":            {handler: func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() }, change: func(c *load.Config) { c.Client.Timeout = 300 * time.Millisecond }, errors: map[string]int64{"timeout": 4}},
		"whole":              {handler: status(200, whole), change: plain, answered: 4, tokens: 20},
		"whole for a stream": {handler: status(200, whole), answered: 4, tokens: 20},
		"whole cut short":    {handler: status(200, whole[:40]), change: plain, truncated: 4},
		"whole no choices":   {handler: status(200, `{"id":"x"}`), change: plain, errors: map[string]int64{"malformed": 4}},
		"whole not JSON":     {handler: status(200, `hello`), change: plain, errors: map[string]int64{"malformed": 4}},
		"whole with error":   {handler: status(200, `{"error":{"message":"x","type":"t","code":"late"}}`), change: plain, errors: map[string]int64{"late": 4}},
		"whole aborted": {handler: func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, whole)
		}, change: plain, errors: map[string]int64{"cut": 4}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := config(serve(t, tt.handler), 4)
			if tt.change != nil {
				tt.change(&cfg)
			}
			s := run(t, cfg, load.Options{})
			if s.Offered != 4 || s.Answered != tt.answered || s.Truncated != tt.truncated || s.OutputTokens != tt.tokens {
				t.Errorf("got offered %d answered %d truncated %d tokens %d, want 4 %d %d %d", s.Offered, s.Answered, s.Truncated, s.OutputTokens, tt.answered, tt.truncated, tt.tokens)
			}
			if !maps.Equal(s.Errors, tt.errors) {
				t.Errorf("errors: got %v, want %v", s.Errors, tt.errors)
			}
		})
	}
}

func plain(c *load.Config) { c.Request.Streamed = 0 }

func TestConnectError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close()
	s := run(t, config(url, 4), load.Options{})
	if want := map[string]int64{"connect": 4}; !maps.Equal(s.Errors, want) {
		t.Errorf("errors: got %v, want %v", s.Errors, want)
	}
}

func TestSurfaces(t *testing.T) {
	tests := map[string]struct {
		path, prompt string
		stream       http.HandlerFunc
		whole        string
	}{
		"chat":        {"/v1/chat/completions", `"messages":[{"role":"user","content":"`, sse(token, finish, done), whole},
		"completions": {"/v1/completions", `"prompt":"`, sse(`data: {"choices":[{"text":"a","finish_reason":null}]}`+"\n\n", finish, done), whole},
		"embeddings":  {"/v1/embeddings", `"input":"`, nil, `{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":8}}`},
		"messages": {"/v1/messages", `"messages":[{"role":"user","content":"`, sse(
			"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n",
			"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1}}\n\n",
			"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"), `{"content":[{"type":"text","text":"a"}],"stop_reason":"end_turn"}`},
		"responses": {"/v1/responses", `"input":"`, sse(
			"data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
			"data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"error\":null}}\n\n"), `{"status":"completed","output":[]}`},
	}
	for name, tt := range tests {
		for _, streamed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s streamed %v", name, streamed), func(t *testing.T) {
				url := serve(t, func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					if r.URL.Path != tt.path || !bytes.Contains(body, []byte(tt.prompt)) || r.Header.Get("X-Engine-Output-Tokens") != "128" {
						t.Errorf("got %s %s", r.URL.Path, body)
					}
					r.Body = io.NopCloser(bytes.NewReader(nil))
					if tt.stream != nil && streamed {
						tt.stream(w, r)
						return
					}
					status(200, tt.whole)(w, r)
				})
				cfg := config(url, 3)
				cfg.Target.Surface = name
				if !streamed {
					cfg.Request.Streamed = 0
				}
				if s := run(t, cfg, load.Options{}); s.Answered != 3 {
					t.Errorf("got %d answered, errors %v, truncated %d, want 3", s.Answered, s.Errors, s.Truncated)
				}
			})
		}
	}
}

// record keeps the requests that a server sees.
type record struct {
	sync.Mutex
	bodies  []string
	headers []http.Header
}

func (rec *record) handler(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	rec.Lock()
	rec.bodies = append(rec.bodies, string(body))
	rec.headers = append(rec.headers, r.Header.Clone())
	rec.Unlock()
	sse(token, finish, done)(w, r)
}

func TestRequests(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 40)
	cfg.Schedule.Trace.Path = "testdata/arena-27clients.csv"
	cfg.Request.IncludeUsage = true
	cfg.Classes = []load.Class{{Name: "vip", Share: 1}, {Name: "batch", Share: 1, APIKey: "sk-batch"}}
	cfg.Target.APIKey = "sk-all"
	s := run(t, cfg, load.Options{})
	if s.Answered != 40 || len(s.Tenants) < 2 || s.Classes["vip"].Offered+s.Classes["batch"].Offered != 40 {
		t.Fatalf("got %d answered, %d tenants, classes %+v", s.Answered, len(s.Tenants), s.Classes)
	}
	seen := map[string]bool{}
	for i, body := range rec.bodies {
		if seen[body] {
			t.Errorf("body stands twice: %s", body)
		}
		seen[body] = true
		for _, part := range []string{`{"model":"m","messages":[`, `"max_tokens":4096,"stream":true,"stream_options":{"include_usage":true},"user":"dummy-lora`} {
			if !strings.Contains(body, part) {
				t.Errorf("body lacks %s: %s", part, body)
			}
		}
		vip := rec.headers[i].Get("X-Spillway-Class") == "vip" && rec.headers[i].Get("Authorization") == "Bearer sk-all"
		batch := rec.headers[i].Get("X-Spillway-Class") == "" && rec.headers[i].Get("Authorization") == "Bearer sk-batch"
		if !vip && !batch {
			t.Errorf("headers: got %v", rec.headers[i])
		}
	}
}

func TestTenantKeys(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 20)
	cfg.Tenants = []load.Tenant{{Name: "a", APIKey: "sk-a"}, {Name: "b", APIKey: "sk-b"}}
	s := run(t, cfg, load.Options{})
	got := map[string]int64{}
	for _, h := range rec.headers {
		got[h.Get("Authorization")]++
	}
	want := map[string]int64{"Bearer sk-a": s.Tenants["a"].Offered, "Bearer sk-b": s.Tenants["b"].Offered}
	if diff := cmp.Diff(want, got); diff != "" || want["Bearer sk-a"] == 0 || want["Bearer sk-b"] == 0 {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
}

// prompts are the texts of the recorded chat requests.
func (rec *record) prompts() []string {
	var out []string
	for _, b := range rec.bodies {
		_, rest, _ := strings.Cut(b, `"content":"`)
		text, _, _ := strings.Cut(rest, `"`)
		out = append(out, text)
	}
	return out
}

func TestSharedPrefixes(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 40)
	cfg.Schedule = load.Default().Schedule
	cfg.Schedule.Trace.Path = "testdata/mooncake-conversation.jsonl"
	cfg.Schedule.Trace.Speed = 100
	cfg.Schedule.Trace.Spread = true
	run(t, cfg, load.Options{})
	prompts := rec.prompts()
	if len(prompts) != 40 {
		t.Fatalf("got %d prompts, want 40", len(prompts))
	}
	const block = 512 * 4
	lengths, seconds := map[int]bool{}, map[string]int{}
	for _, p := range prompts {
		if p[:block] != prompts[0][:block] {
			t.Error("the first block, which all requests share, differs")
		}
		lengths[len(p)] = true
		if len(p) >= 2*block {
			seconds[p[block:2*block]]++
		}
	}
	if !lengths[6758*4] {
		t.Errorf("no prompt has the first row's 6758 tokens")
	}
	if len(seconds) < 10 {
		t.Errorf("got %d distinct second blocks, want most of 40", len(seconds))
	}
}

// TestPassesDiffer: a repeated trace shares prefixes inside a pass only, so
// that its reuse stays that of the recording.
func TestPassesDiffer(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 1)
	cfg.Schedule = load.Default().Schedule
	cfg.Schedule.Trace.Path = "testdata/mooncake-conversation.jsonl"
	cfg.Schedule.Trace.MaxRows = 4
	cfg.Schedule.Trace.Speed = 10
	cfg.Schedule.Duration = 150 * time.Millisecond
	run(t, cfg, load.Options{})
	first := map[string]int{}
	for _, p := range rec.prompts() {
		first[p[:512*4]]++
	}
	if len(first) != 2 {
		t.Errorf("got %d distinct first blocks in two passes, want 2", len(first))
	}
}

func TestRepeat(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 100)
	cfg.Request.Repeat = 0.5
	run(t, cfg, load.Options{})
	distinct := map[string]bool{}
	for _, p := range rec.prompts() {
		distinct[p] = true
	}
	if n := len(distinct); n < 30 || n > 70 {
		t.Errorf("got %d distinct prompts of 100 at repeat 0.5", n)
	}
}

func TestRoundRobin(t *testing.T) {
	var urls []string
	counts := make([]int, 3)
	var mu sync.Mutex
	for i := range counts {
		urls = append(urls, serve(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			counts[i]++
			mu.Unlock()
			sse(token, finish, done)(w, r)
		}))
	}
	cfg := config(urls[0], 30)
	cfg.Target.BaseURLs = urls
	run(t, cfg, load.Options{})
	if diff := cmp.Diff([]int{10, 10, 10}, counts); diff != "" {
		t.Errorf("requests per server (-want +got):\n%s", diff)
	}
}

func TestClosedSessions(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 1)
	cfg.Schedule = load.Default().Schedule
	cfg.Schedule.Trace.Path = "testdata/agent-coding-sessions-odd.jsonl"
	cfg.Schedule.Trace.Speed = 1000
	cfg.Schedule.Trace.Sessions = 3
	cfg.Request.MaxPromptTokens = 1000
	s := run(t, cfg, load.Options{})
	if s.Answered != s.Offered || s.Answered < 30 {
		t.Errorf("got %d of %d answered", s.Answered, s.Offered)
	}
	if len(s.Notes) == 0 || !strings.Contains(strings.Join(s.Notes, "\n"), "closed loop: 3 concurrent sessions") {
		t.Errorf("notes: got %q", s.Notes)
	}
}

func TestServeGenRun(t *testing.T) {
	cfg := config(serve(t, sse(token, finish, done)), 1)
	cfg.Schedule = load.Default().Schedule
	cfg.Schedule.Trace.Path = "testdata/servegen-deepseek-r1-rates.csv"
	cfg.Schedule.Trace.Companion = "testdata/servegen-deepseek-r1-lengths.jsonl.gz"
	cfg.Schedule.Trace.Start = 57000 * time.Second
	cfg.Schedule.Trace.RateScale = 0.5
	cfg.Schedule.Trace.Speed = 20
	cfg.Schedule.Duration = 500 * time.Millisecond
	if s := run(t, cfg, load.Options{}); s.Answered == 0 || s.Answered != s.Offered {
		t.Errorf("got %d of %d answered, errors %v", s.Answered, s.Offered, s.Errors)
	}
}

func TestBoundOnFlight(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	cfg := config(serve(t, func(w http.ResponseWriter, r *http.Request) {
		<-release
		sse(token, finish, done)(w, r)
	}), 20)
	cfg.Client.MaxInFlight = 5
	hooks := []load.Hook{{At: 200 * time.Millisecond, Name: "release", Do: func(context.Context, *load.Live) error {
		once.Do(func() { close(release) })
		return nil
	}}}
	s := run(t, cfg, load.Options{Hooks: hooks})
	if s.Errors["not_sent"] != 15 || !strings.Contains(s.InvalidReason, "max_in_flight") {
		t.Errorf("got errors %v, reason %q", s.Errors, s.InvalidReason)
	}
}

func TestCutOpen(t *testing.T) {
	kill := make(chan struct{})
	cfg := config(serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Spillway-Instance", "engine-2")
		sse(token, token)(w, r)
		<-kill
		panic(http.ErrAbortHandler)
	}), 6)
	var seen int64
	s := run(t, cfg, load.Options{Hooks: []load.Hook{{At: 300 * time.Millisecond, Name: "kill", Do: func(_ context.Context, live *load.Live) error {
		seen = live.Open("engine-2")
		_, err := live.Cut("engine-2", 50*time.Millisecond, func() error { close(kill); return nil })
		return err
	}}}})
	if seen != 6 || s.CutOpen == nil || *s.CutOpen != 6 || s.Errors["cut"] != 6 {
		t.Errorf("got open %d, cut_open %v, errors %v, want 6 each", seen, s.CutOpen, s.Errors)
	}
}

func TestHookFailure(t *testing.T) {
	cfg := config(serve(t, sse(token, finish, done)), 3)
	s := run(t, cfg, load.Options{Hooks: []load.Hook{
		{Name: "kill", Do: func(context.Context, *load.Live) error { return errors.New("no such engine") }},
		{At: time.Hour, Name: "late", Do: func(context.Context, *load.Live) error { return nil }},
	}})
	for _, want := range []string{"hook kill: no such engine", "hook late: the run ended before 1h0m0s"} {
		if !strings.Contains(s.InvalidReason, want) {
			t.Errorf("reason %q lacks %q", s.InvalidReason, want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cfg := config(serve(t, func(w http.ResponseWriter, r *http.Request) {
		sse(token)(w, r)
		<-r.Context().Done()
	}), 5)
	cfg.Schedule.Profile = "50/s:1h"
	hook := load.Hook{At: 200 * time.Millisecond, Name: "end", Do: func(context.Context, *load.Live) error { cancel(); return nil }}
	r, err := load.Run(ctx, cfg, load.Options{Hooks: []load.Hook{hook}})
	if !errors.Is(err, context.Canceled) || r == nil {
		t.Fatalf("got %v, %v, want the report so far and the cause", r, err)
	}
	if s := r.Systems[0]; r.Valid || s.Errors["canceled"] != s.Offered || s.Offered == 0 {
		t.Errorf("got valid %v, errors %v of %d", r.Valid, s.Errors, s.Offered)
	}
}

func TestLateEngines(t *testing.T) {
	tests := map[string]struct {
		late    int
		invalid string
	}{
		"late":    {30, "3.0% of the engines' steps were late"},
		"on time": {20, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			scrapes := 0
			metrics := serve(t, func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "# TYPE engine_steps_total counter\nengine_steps_total{model=\"m\"} %d\nengine_late_steps_total{model=\"m\"} %d\n", 500+1000*scrapes, 7+tt.late*scrapes)
				scrapes++
			})
			cfg := config(serve(t, sse(token, finish, done)), 3)
			cfg.EngineMetrics = []string{metrics}
			s := run(t, cfg, load.Options{})
			if got := s.InvalidReason; (tt.invalid == "") != (got == "") && !strings.Contains(got, "schedule lag") || !strings.Contains(got, tt.invalid) {
				t.Errorf("reason: got %q, want %q", got, tt.invalid)
			}
			if s.LateSteps == nil || *s.LateSteps != float64(tt.late)/1000 {
				t.Errorf("late steps: got %v", s.LateSteps)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	if err := config("http://x", 1).Validate(); err != nil {
		t.Fatalf("got %v, want none", err)
	}
	cfg := load.Default()
	cfg.Target = load.Target{Surface: "telepathy", BaseURLs: []string{"ftp://x"}, Headers: map[string]string{"a": "b\r\nc"}}
	cfg.Schedule.Rate, cfg.Schedule.Arrivals = -1, "never"
	cfg.Request.Streamed = 2
	cfg.Client.Retries = 99
	cfg.Classes = []load.Class{{Name: "idle"}}
	cfg.Tenants = []load.Tenant{{}}
	err := cfg.Validate()
	for _, key := range []string{
		"target.name: ", "target.base_urls[0]: ", "target.surface: ", "target.model: ", "target.headers.a: ", "schedule.rate: must be >= 0, got -1", "schedule: needs",
		"schedule.arrivals: ", "request.streamed: ", "client.retries: ", "classes[0].name: ", "classes[0].share: ", "tenants[0].name: ", "tenants[0].api_key: ",
	} {
		if err == nil || !strings.Contains("\n"+err.Error(), "\n"+key) {
			t.Errorf("mistakes lack %q:\n%v", key, err)
		}
	}
}
