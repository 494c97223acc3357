// Package e2e_test drives the official SDKs through a whole gateway: streams,
// answers in one piece, errors, cuts and clients that leave, as applications see
// them. deps.sh installs the SDKs; a test whose SDK is missing is skipped and
// says so, and fails where CI=true.
package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/testkit"
)

// cases are what every SDK goes through, by the names that the drivers know.
var cases = []string{"models", "chat", "stream", "extra", "rebuilt", "embeddings", "unknown", "bad", "busy", "limited", "spent", "cut", "wait", "leave"}

// result is what a driver says of one case; fields that do not apply are absent.
type result struct {
	Case      string   `json:"case"`
	Failure   string   `json:"failure"` // of the driver itself
	IDs       []string `json:"ids"`
	Length    int      `json:"length"`
	Chunks    int      `json:"chunks"`
	Content   string   `json:"content"`
	Finish    string   `json:"finish"`
	Usage     int64    `json:"usage"`
	Tool      string   `json:"tool"`
	Arguments string   `json:"arguments"`
	Reasoning string   `json:"reasoning"`
	Unknown   string   `json:"unknown"`
	Status    int      `json:"status"`
	Code      string   `json:"code"`
	Message   string   `json:"message"`
	Raised    *struct {
		Name    string `json:"name"`
		Message string `json:"message"`
	} `json:"raised"`
	Turns   []turn `json:"turns"`
	Repeats int    `json:"repeats"` // turns that had to be taken again
}

// sdk is one SDK and how its driver is run.
type sdk struct {
	// command is the driver's beginning; a reason says why it cannot be run.
	command   func(t *testing.T) (argv []string, reason string)
	anthropic bool
	base      string   // behind the gateway's URL
	without   []string // cases that the SDK does not have
}

// sdks are the SDKs under test.
var sdks = map[string]sdk{
	"openai-node":    {command: node("openai.mjs", "openai"), base: "/v1"},
	"openai-python":  {command: python, base: "/v1"},
	"openai-go-v1":   {command: goDriver("v1"), base: "/v1/"},
	"openai-go-v3":   {command: goDriver("v3"), base: ""}, // DeepSeek's base URL has no /v1
	"anthropic-node": {command: node("anthropic.mjs", "@anthropic-ai/sdk"), anthropic: true, without: []string{"models", "rebuilt", "embeddings"}},
}

func TestSDK(t *testing.T) {
	for name, s := range sdks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			argv, reason := s.command(t)
			if reason != "" {
				missing(t, name+" did not run: "+reason)
			}
			st := startStack(t)
			var names []string
			for _, c := range cases {
				if !slices.Contains(s.without, c) {
					names = append(names, c)
				}
			}
			got := drive(t, slices.Concat(argv, []string{st.url + s.base}, names, keptBy(s)))
			for _, c := range names {
				t.Run(c, func(t *testing.T) { st.check(t, s, got[c]) })
			}
			for _, c := range keptBy(s) {
				t.Run(strings.Fields(c)[1], func(t *testing.T) { st.checkKept(t, s, c, got[c]) })
			}
			testkit.Eventually(t, "every request is in the access log", func() bool {
				return len(st.log(t)) == st.logged(t, s, got)
			})
		})
	}
}

// check judges one case.
func (st *stack) check(t *testing.T, s sdk, r *result) {
	t.Helper()
	if r == nil {
		t.Fatal("the driver said nothing of this case")
	}
	if r.Failure != "" {
		t.Fatalf("the driver failed: %s", r.Failure)
	}
	finish := "length"
	if s.anthropic {
		finish = "max_tokens"
	}
	switch r.Case {
	case "models":
		for _, want := range []string{"sim", "tools", "busy"} {
			if !slices.Contains(r.IDs, want) {
				t.Errorf("models = %v, without %q", r.IDs, want)
			}
		}
	case "chat", "stream":
		if r.Raised != nil || r.Content == "" || r.Finish != finish || r.Usage != 12 {
			t.Errorf("got %+v (raised %+v), want content, finish %q and 12 tokens", r, r.Raised, finish)
		}
		if r.Case == "stream" && r.Chunks < 12 {
			t.Errorf("%d chunks for 12 tokens", r.Chunks)
		}
	case "extra":
		st.checkExtra(t, s, r)
	case "rebuilt":
		st.checkRebuilt(t, r)
	case "embeddings":
		if r.Length == 0 {
			t.Error("no embedding")
		}
	case "unknown":
		code := string(inference.CodeModelNotFound)
		if s.anthropic {
			code = "not_found_error"
		}
		if r.Status != 404 || r.Code != code {
			t.Errorf("status %d, code %q (%s), want 404 %s", r.Status, r.Code, r.Message, code)
		}
	case "bad":
		if r.Status != 400 || !strings.Contains(r.Message, "temperature is hot") {
			t.Errorf("status %d, message %q, want the upstream's own 400", r.Status, r.Message)
		}
	case "busy":
		st.checkBusy(t, r)
	case "limited":
		st.checkLimited(t, r)
	case "spent":
		st.checkSpent(t, s, r)
	case "cut":
		if r.Raised == nil {
			t.Errorf("the cut was not raised: %+v", r)
		}
		if r.Chunks == 0 {
			t.Error("nothing came before the cut")
		}
	case "wait":
		if r.Raised != nil || r.Content != "late" {
			t.Errorf("got %+v (raised %+v), want the content behind the keep-alive comments", r, r.Raised)
		}
		if n := st.comments.Load(); n == 0 {
			t.Error("no keep-alive comment was sent, so the case proves nothing")
		}
	case "leave":
		defer func() {
			if t.Failed() {
				t.Logf("the driver saw %+v; engine %+v; access log %+v", r, st.engine.Stats(), st.log(t))
			}
		}()
		testkit.Eventually(t, "the engine's request is cancelled", func() bool { return st.engine.Stats().Cancelled == 1 })
		testkit.Eventually(t, "the request is logged as canceled", func() bool { return st.count(t, "sim", string(inference.CodeCanceled)) == 1 })
	}
}

// checkExtra judges fields that the gateway does not know, both ways.
func (st *stack) checkExtra(t *testing.T, s sdk, r *result) {
	t.Helper()
	if r.Tool != "weather" || r.Arguments != `{"city":"Kyiv"}` || r.Unknown != "kept" {
		t.Errorf("got tool %q, arguments %q, unknown %q", r.Tool, r.Arguments, r.Unknown)
	}
	if !s.anthropic && r.Reasoning != "thinking" {
		t.Errorf("reasoning_content = %q", r.Reasoning)
	}
	var body struct {
		Tools  []json.RawMessage `json:"tools"`
		Vendor json.RawMessage   `json:"vendor_field"`
	}
	if err := json.Unmarshal(st.asked("tools"), &body); err != nil {
		t.Fatal(err)
	}
	var got, want any = nil, map[string]any{"deep": []any{1.0, 2.5, "x"}}
	if err := json.Unmarshal(body.Vendor, &got); err != nil {
		t.Fatalf("vendor_field %q: %v", body.Vendor, err)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(body.Tools) != 1 {
		t.Errorf("%d tools reached the upstream; vendor_field (-want +got):\n%s", len(body.Tools), diff)
	}
}

// checkRebuilt judges an answer in one piece that the gateway put together from a
// stream: the server gives nothing else.
func (st *stack) checkRebuilt(t *testing.T, r *result) {
	t.Helper()
	want := result{Case: r.Case, Tool: "weather", Arguments: `{"city":"Kyiv"}`, Reasoning: "thinking", Unknown: "kept", Finish: "tool_calls", Usage: 9}
	if diff := cmp.Diff(want, *r); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var body struct {
		Stream  bool              `json:"stream"`
		Tools   []json.RawMessage `json:"tools"`
		Options struct {
			Usage bool `json:"include_usage"`
		} `json:"stream_options"`
	}
	if err := json.Unmarshal(st.asked("chunks"), &body); err != nil {
		t.Fatal(err)
	}
	if !body.Stream || !body.Options.Usage || len(body.Tools) != 1 {
		t.Errorf("the upstream was asked %+v, want a stream with its usage", body)
	}
}

// checkBusy judges a refusal that is worth another try: the SDKs try three times
// in all, and obey Retry-After.
func (st *stack) checkBusy(t *testing.T, r *result) {
	t.Helper()
	if r.Status != 503 {
		t.Errorf("status %d (%s), want 503", r.Status, r.Message)
	}
	overloaded := string(inference.CodeOverloaded)
	testkit.Eventually(t, "three attempts are logged as overloaded", func() bool { return st.count(t, "busy", overloaded) == 3 })
	var at []time.Time
	for _, l := range st.log(t) {
		if l.Model == "busy" {
			at = append(at, l.Time)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	for i, a := range at[1:] { // Retry-After is 1 s; some SDKs take off a quarter as jitter
		if gap := a.Sub(at[i]); gap < 700*time.Millisecond {
			t.Errorf("try %d came %v after the one before it, in spite of Retry-After", i+2, gap)
		}
	}
}

// checkLimited judges two requests of which the second is one too many for a second:
// the SDKs come back when Retry-After says so, and get their answer.
func (st *stack) checkLimited(t *testing.T, r *result) {
	t.Helper()
	if r.Status != 200 {
		t.Errorf("status %d, code %q (%s), want an answer behind the limit", r.Status, r.Code, r.Message)
	}
	testkit.Eventually(t, "both answers are logged", func() bool { return st.count(t, "limited", "ok") == 2 })
	if n := st.count(t, "limited", string(inference.CodeRateLimited)); n < 1 || n > 2 { // some SDKs take off a quarter of the wait as jitter
		t.Errorf("%d refusals, so the case proves nothing", n)
	}
}

// checkSpent judges a budget that is spent: the SDKs do not come back.
func (st *stack) checkSpent(t *testing.T, s sdk, r *result) {
	t.Helper()
	code := string(inference.CodeQuotaSpent)
	if s.anthropic {
		code = "rate_limit_error"
	}
	if r.Status != 429 || r.Code != code {
		t.Errorf("status %d, code %q (%s), want 429 %s", r.Status, r.Code, r.Message, code)
	}
	testkit.Eventually(t, "one refusal is logged", func() bool { return st.count(t, "spent", string(inference.CodeQuotaSpent)) == 1 })
}

// logged is the number of requests that reach the gateway's access log.
func (st *stack) logged(t *testing.T, s sdk, got map[string]*result) int {
	n := len(cases) - len(s.without) + 2                               // busy is tried three times
	n += 2 + st.count(t, "limited", string(inference.CodeRateLimited)) // limited and spent are asked twice
	if !slices.Contains(s.without, "models") {
		n-- // the list of models is no request of a model
	}
	for _, c := range keptBy(s) {
		n += len(turnsOf(c))
		if r := got[c]; r != nil {
			n += r.Repeats
		}
	}
	return n
}

// drive runs a driver and returns its results by case.
func drive(t *testing.T, argv []string) map[string]*result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// Proxies of the environment are not for a gateway on loopback.
	cmd.Env = append(os.Environ(), "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv[:2], err, stderr.String())
	}
	results := make(map[string]*result)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var r result
		if err := dec.Decode(&r); err == io.EOF {
			return results
		} else if err != nil {
			t.Fatalf("%v: %v\n%s", argv[:2], err, out)
		}
		results[r.Case] = &r
	}
}

// missing skips a test whose SDK is not there, and fails it in CI.
func missing(t *testing.T, why string) {
	t.Helper()
	why += "; install it with e2e/deps.sh"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// node is a driver in JavaScript.
func node(script, pkg string) func(*testing.T) ([]string, string) {
	return func(*testing.T) ([]string, string) {
		bin, err := exec.LookPath("node")
		if err != nil {
			return nil, "there is no node"
		}
		if _, err := os.Stat(filepath.Join("node_modules", filepath.FromSlash(pkg), "package.json")); err != nil {
			return nil, "the npm package " + pkg + " is not installed"
		}
		return []string{bin, script}, ""
	}
}

// python is the driver in Python.
func python(*testing.T) ([]string, string) {
	bin := filepath.Join(".venv", "bin", "python")
	if err := exec.Command(bin, "-c", "import openai").Run(); err != nil {
		return nil, "the Python package openai is not installed in e2e/.venv"
	}
	return []string{bin, "openai_driver.py"}, ""
}

// goDriver is a driver in Go, from a module of its own.
func goDriver(version string) func(*testing.T) ([]string, string) {
	return func(t *testing.T) ([]string, string) {
		goTool := func(args ...string) ([]byte, error) {
			cmd := exec.Command("go", args...)
			cmd.Dir = "go"
			cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=-mod=readonly", "GOWORK=off")
			return cmd.CombinedOutput()
		}
		if out, err := goTool("list", "-deps", "./"+version); err != nil {
			if bytes.Contains(out, []byte("GOPROXY=off")) {
				return nil, "the Go module openai-go is not in the module cache"
			}
			t.Fatalf("%v\n%s", err, out)
		}
		bin := filepath.Join(t.TempDir(), version)
		if out, err := goTool("build", "-o", bin, "./"+version); err != nil {
			t.Fatalf("build the driver: %v\n%s", err, out)
		}
		return []string{bin}, ""
	}
}

// line is what the tests read of the access log.
type line struct {
	Time  time.Time `json:"time"`
	Model string    `json:"model"`
	Code  string    `json:"code"`
}

// log reads the gateway's access log.
func (st *stack) log(t *testing.T) []line {
	t.Helper()
	f, err := os.Open(st.accessLog)
	if err != nil {
		return nil
	}
	defer f.Close()
	var lines []line
	for s := bufio.NewScanner(f); s.Scan(); {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatalf("access log: %v in %q", err, s.Text())
		}
		lines = append(lines, l)
	}
	return lines
}

// count is the number of logged requests of a model that ended with a code.
func (st *stack) count(t *testing.T, model, code string) int {
	n := 0
	for _, l := range st.log(t) {
		if l.Model == model && l.Code == code {
			n++
		}
	}
	return n
}

// startStack starts simulated and scripted model servers and a gateway for them,
// for one test.
func startStack(t *testing.T) *stack {
	t.Helper()
	st := &stack{accessLog: filepath.Join(t.TempDir(), "access.log")}
	st.bodies.of = make(map[string][]byte)
	var healthy, cutting engine.Config
	healthy, cutting = engine.Default(), engine.Default()
	healthy.Models, cutting.Models = []string{"sim"}, []string{"cut"}
	cutting.Faults.Cut.Probability, cutting.Faults.Cut.AfterEvents = 1, 5
	engineURL, e := startEngine(t, healthy)
	st.engine = e
	cutURL, _ := startEngine(t, cutting)

	file := config.Default()
	file.API.Listen, file.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0"
	file.Store.Directory = t.TempDir() // no answers of another gateway, or of the last run
	file.Usage.AccessLog = st.accessLog
	file.Telemetry.Log.Level = "error"
	file.Gateway.KeepAlive.Grace, file.Gateway.KeepAlive.Interval = 50*time.Millisecond, 50*time.Millisecond
	region := config.DefaultRegion()
	region.Name = "here"
	add := func(model, url string) {
		pool := config.DefaultPool()
		pool.Name, pool.Models = model, config.Models{model: model}
		pool.Surfaces = []string{"chat", "completions", "embeddings", "messages"}
		pool.Instances = []config.Instance{{Target: fleet.Target{URL: url}}}
		pool.Health.Passive.BusyTime, pool.Health.Passive.MaxBusyTime = 10*time.Millisecond, 50*time.Millisecond
		region.Pools = append(region.Pools, pool)
	}
	add("sim", engineURL)
	add("cut", cutURL)
	for model, script := range st.scripts() {
		add(model, testkit.NewInstance(t, script).URL())
	}
	file.Limit.Rules = []limit.Rule{
		{Name: "limited", Only: limit.Only{Models: []string{"limited"}}, Requests: limit.Bucket{Rate: limit.Rate{N: 1, Per: time.Second}}},
		{Name: "spent", By: []string{"model"}, Only: limit.Only{Models: []string{"spent"}}, Budget: limit.Budget{Day: 1}},
	}
	file.Fleet.Regions = []config.Region{region}
	st.url = startGateway(t, file)
	st.url = st.watch(t, strings.TrimPrefix(st.url, "http://"))
	return st
}

// startEngine runs an engine until the test ends.
func startEngine(t *testing.T, cfg engine.Config) (string, *engine.Engine) {
	t.Helper()
	e, err := engine.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	background(t, "engine", func(ctx context.Context) error { return e.Serve(ctx, ln) })
	return "http://" + ln.Addr().String(), e
}

// startGateway runs a gateway until the test ends.
func startGateway(t *testing.T, file *config.File) string {
	t.Helper()
	if err := file.Validate(); err != nil {
		t.Fatal(err)
	}
	a, err := app.New(file, app.Options{Version: "e2e", Stdout: io.Discard, Stderr: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := a.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	background(t, "gateway", func(ctx context.Context) error { return a.Run(ctx, l, nil) })
	return "http://" + l.API.Addr().String()
}

// background runs f until the test ends, and waits for its end.
func background(t *testing.T, name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
}

// chatAnswer and messagesAnswer have fields that the gateway does not know.
const (
	chatAnswer = `{"id":"x","object":"chat.completion","created":1,"model":"tools","vendor_answer":"kept","choices":[{"index":0,"finish_reason":"tool_calls",` +
		`"message":{"role":"assistant","content":null,"reasoning_content":"thinking","tool_calls":[{"id":"c1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Kyiv\"}"}}]}}],` +
		`"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}`
	messagesAnswer = `{"id":"x","type":"message","role":"assistant","model":"tools","vendor_answer":"kept","stop_reason":"tool_use","stop_sequence":null,` +
		`"content":[{"type":"tool_use","id":"c1","name":"weather","input":{"city":"Kyiv"}}],"usage":{"input_tokens":5,"output_tokens":1}}`
)

// chunks are a stream with a call of a tool and fields that the gateway does not
// know.
var chunks = []string{
	`{"id":"x","object":"chat.completion.chunk","created":1,"model":"chunks","vendor_answer":"kept","choices":[{"index":0,"delta":{"reasoning_content":"think"},"finish_reason":null}]}`,
	`{"id":"x","object":"chat.completion.chunk","created":1,"model":"chunks","vendor_answer":"kept","choices":[{"index":0,"delta":{"reasoning_content":"ing"},"finish_reason":null}]}`,
	`{"id":"x","object":"chat.completion.chunk","created":1,"model":"chunks","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c1","type":"function","function":{"name":"weather","arguments":""}}]},"finish_reason":null}]}`,
	`{"id":"x","object":"chat.completion.chunk","created":1,"model":"chunks","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":"}}]},"finish_reason":null}]}`,
	`{"id":"x","object":"chat.completion.chunk","created":1,"model":"chunks","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Kyiv\"}"}}]},"finish_reason":"tool_calls"}]}`,
	`{"id":"x","object":"chat.completion.chunk","created":1,"model":"chunks","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14}}`,
}

// scripts are the model servers whose answers are fixed, by model.
func (st *stack) scripts() map[string]func(*testkit.Exchange) bool {
	messages := func(x *testkit.Exchange) bool { return strings.HasSuffix(x.Request.URL.Path, "/messages") }
	say := func(x *testkit.Exchange) bool {
		if messages(x) {
			x.JSON(200, messagesAnswer)
		} else {
			x.JSON(200, chatAnswer)
		}
		return true
	}
	return map[string]func(*testkit.Exchange) bool{
		"limited": say,
		"spent":   say,
		"tools": func(x *testkit.Exchange) bool {
			st.keep("tools", x.Body)
			return say(x)
		},
		"chunks": func(x *testkit.Exchange) bool {
			st.keep("chunks", x.Body)
			x.Stream()
			x.Role()
			for _, c := range chunks {
				x.Chunk("data: " + c + "\n\n")
			}
			x.Chunk(testkit.DoneEvent)
			x.End()
			return true
		},
		"kept": st.sayKept,
		"bad": func(x *testkit.Exchange) bool {
			if messages(x) {
				x.JSON(400, `{"type":"error","error":{"type":"invalid_request_error","message":"temperature is hot"}}`)
			} else {
				x.JSON(400, `{"error":{"message":"temperature is hot","type":"invalid_request_error","param":"temperature","code":null}}`)
			}
			return true
		},
		"busy": func(x *testkit.Exchange) bool {
			x.JSON(503, `{"error":{"message":"server busy","type":"server_error","param":null,"code":null}}`)
			return true
		},
		"wait": func(x *testkit.Exchange) bool {
			time.Sleep(400 * time.Millisecond) // eight intervals of keep-alives
			x.Stream()
			if !messages(x) {
				x.Role()
				x.Delta("late")
				x.Finish()
				return true
			}
			for _, event := range []string{
				`{"type":"message_start","message":{"id":"x","type":"message","role":"assistant","model":"wait","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}`,
				`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
				`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"late"}}`,
				`{"type":"content_block_stop","index":0}`,
				`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":1}}`,
				`{"type":"message_stop"}`,
			} {
				kind, _, _ := strings.Cut(strings.TrimPrefix(event, `{"type":"`), `"`)
				x.Chunk(fmt.Sprintf("event: %s\ndata: %s\n\n", kind, event))
			}
			x.End()
			return true
		},
	}
}
