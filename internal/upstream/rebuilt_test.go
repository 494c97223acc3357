package upstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/upstream"
	"github.com/spillway/spillway/internal/wire"
)

// unknownBody has a member that is not known, so its answer is not rebuilt.
const unknownBody = `{"model":"m","vendor":1,"messages":[{"role":"user","content":"hi"}]}`

// usageEvent carries usage alone.
const usageEvent = `data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}` + "\n\n"

func TestAnswerIsRebuiltFromAStream(t *testing.T) {
	seen := make(chan string, 1)
	r := newRig(t, func(c *upstream.Config) { c.IncludeUsage = false }, func(x *testkit.Exchange) bool {
		seen <- string(x.Body)
		io.WriteString(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\nX-Kept: yes\r\nTransfer-Encoding: chunked\r\n\r\n")
		x.Role()
		x.Chunk(": ping\n\n")
		x.Delta("hel")
		x.Delta("lo")
		x.Chunk(testkit.FinishEvent + usageEvent + testkit.DoneEvent)
		x.End()
		return true
	})
	req := request(t, plainBody, nil)
	lease, err := testkit.Plan(r.fleet, req).Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { lease.Release(time.Now()) }()
	a, err := r.client.Open(context.Background(), req, lease)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	h, err := a.Head(soon())
	if err != nil {
		t.Fatal(err)
	}
	if h.Stream || h.Length != -1 {
		t.Errorf("head: stream %v, length %d", h.Stream, h.Length)
	}
	if d := cmp.Diff([]inference.HeaderField{{Name: "Content-Type", Value: "application/json"}, {Name: "X-Kept", Value: "yes"}}, h.Fields); d != "" {
		t.Error(d)
	}
	const want = `{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}`
	var got []byte
	for err == nil { // in pieces, as a gateway with little room reads
		var piece []byte
		piece, err = a.Body(soon(), make([]byte, 0, 8), 50)
		got = append(got, piece...)
	}
	if err != io.EOF || string(got) != want || h.Length != int64(len(want)) {
		t.Errorf("got %s of length %d, %v", got, h.Length, err)
	}
	if b := <-seen; b != strings.Replace(plainBody, "{", `{"stream":true,"stream_options":{"include_usage":true},`, 1) {
		t.Errorf("asked %s", b)
	}
	if !lease.Stream() || !lease.Answered() {
		t.Errorf("stream %v, answered %v; want both", lease.Stream(), lease.Answered())
	}
	if gaps, _ := lease.Pace(); gaps != 2 || lease.Instance.Live.TTFT() <= 0 {
		t.Errorf("%d gaps were seen, first token after %v; want 2 and some time", gaps, lease.Instance.Live.TTFT())
	}
	a.Close()
	if n := r.client.Idle(); n != 1 {
		t.Errorf("%d idle connections, want that of the answer", n)
	}
}

func TestAnswersThatAreNotRebuilt(t *testing.T) {
	off := func(c *upstream.Config) { c.Reassemble = upstream.ReassembleOff }
	for name, c := range map[string]struct {
		change   func(*upstream.Config)
		body     string
		provider bool
		asked    bool // for a stream, all the same
	}{
		"turned off":     {change: off, body: plainBody},
		"unknown member": {body: unknownBody},
		"provider":       {body: plainBody, provider: true},
		"plain answer":   {body: plainBody, asked: true},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan string, 1)
			r := newRig(t, c.change, func(x *testkit.Exchange) bool { seen <- string(x.Body); x.JSON(200, testkit.Answer); return true })
			if c.provider {
				r.provide()
			}
			h, b, err := r.body(request(t, c.body, nil))
			if err != io.EOF || b != testkit.Answer || h.Length != int64(len(b)) {
				t.Errorf("got %q of length %d, %v", b, h.Length, err)
			}
			if asked := <-seen; (asked != c.body) != c.asked {
				t.Errorf("asked %s", asked)
			}
		})
	}
}

// provide makes the rig's pool a hosted account.
func (r *rig) provide() {
	r.t.Helper()
	if err := r.fleet.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"m": "m"}, Surfaces: inference.Surfaces(), Static: []fleet.Target{{URL: r.inst.URL()}}, Provider: true,
	}}}}}); err != nil {
		r.t.Fatal(err)
	}
}

func TestRebuiltAnswersFailAsAttempts(t *testing.T) {
	for name, c := range map[string]struct {
		events  string
		open    bool // the instance goes silent instead of closing
		verdict inference.Verdict
		reason  string
	}{
		"overloaded":      {events: `data: {"error":{"message":"The request queue is full.","type":"ServiceUnavailable","code":503}}` + "\n\n" + testkit.DoneEvent, verdict: inference.VerdictBusy, reason: "status_503"},
		"error later":     {events: testkit.Delta("a") + `data: {"error":{"message":"x","code":500}}` + "\n\n", verdict: inference.VerdictBroken, reason: "status_500"},
		"no resource":     {events: testkit.Delta("a") + `data: {"choices":[{"index":0,"delta":{},"finish_reason":"insufficient_system_resource"}]}` + "\n\n", verdict: inference.VerdictBusy, reason: "insufficient_system_resource"},
		"cut":             {events: testkit.Delta("a"), verdict: inference.VerdictBroken, reason: "cut"},
		"malformed first": {events: "data: {\n\n", verdict: inference.VerdictBroken, reason: "malformed_event"},
		"malformed later": {events: testkit.Delta("a") + `data: {"choices":[{"delta":{"content":"a"}}}` + "\n\n", verdict: inference.VerdictBroken, reason: "malformed_event"},
		"second choice":   {events: `data: {"choices":[{"index":1,"delta":{"content":"a"}}]}` + "\n\n", verdict: inference.VerdictBroken, reason: "malformed_event"},
		"empty":           {events: testkit.DoneEvent, verdict: inference.VerdictBroken, reason: "empty_answer"},
		"silent":          {events: ": ping\n\n", open: true, verdict: inference.VerdictBroken, reason: "first_token_timeout"},
		"stalled":         {events: testkit.Delta("a"), open: true, verdict: inference.VerdictBroken, reason: "stream_idle"},
		"too large":       {events: strings.Repeat(testkit.Delta(strings.Repeat("x", 1000<<10)), 34), verdict: inference.VerdictBroken, reason: "answer_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limits := func(cfg *upstream.Config) {
				if c.open {
					cfg.FirstTokenTimeout, cfg.StreamIdleTimeout = 300*time.Millisecond, 300*time.Millisecond
				}
			}
			r := newRig(t, limits, func(x *testkit.Exchange) bool {
				x.Stream()
				x.Chunk(c.events)
				return c.open && x.Gone(5*time.Second) && false
			})
			_, b, err := r.body(request(t, plainBody, nil))
			f := failure(t, err, c.verdict, c.reason)
			if b != "" || f.Final != (c.reason == "answer_too_large" || c.reason == "status_500") {
				t.Errorf("got %q, final %v", b, f.Final)
			}
			if r.client.Idle() != 0 {
				t.Error("the connection was kept")
			}
		})
	}
}

func TestAMistakeInARebuiltAnswerIsTheClients(t *testing.T) {
	const mistake = `{"object":"error","message":"max_tokens is too large","type":"BadRequestError","param":null,"code":400}`
	for name, answer := range map[string]func(*testkit.Exchange){
		"in the stream": func(x *testkit.Exchange) {
			x.Stream()
			x.Chunk(`data: {"error":` + mistake + "}\n\n" + testkit.DoneEvent)
			x.End()
		},
		"instead of it": func(x *testkit.Exchange) { x.JSON(400, `{"error":`+mistake+`}`) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(x *testkit.Exchange) bool { answer(x); return true })
			_, _, err := r.body(request(t, plainBody, nil))
			f := failure(t, err, inference.VerdictYours, "status_400")
			if f.Head == nil || f.Head.Status != 400 || f.Head.Stream || string(f.Body) != `{"error":`+mistake+`}` ||
				len(f.Head.Fields) == 0 || f.Head.Fields[0] != (inference.HeaderField{Name: "Content-Type", Value: "application/json"}) {
				t.Errorf("got %+v %s", f.Head, f.Body)
			}
		})
	}
}

func TestRebuiltWaitsCanBeResumed(t *testing.T) {
	steps := make(chan bool)
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		<-steps
		x.Delta("b")
		x.Finish()
		return true
	})
	a, done, err := r.open(context.Background(), request(t, plainBody, nil))
	defer done()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Head(soon()); err != nil {
		t.Fatal(err)
	}
	b, err := a.Body(time.Now().Add(20*time.Millisecond), nil, 1<<20)
	if err != inference.ErrNotYet || len(b) != 0 {
		t.Fatalf("got %q, %v; want ErrNotYet", b, err)
	}
	close(steps)
	if b, err = a.Body(soon(), b, 1<<20); err != io.EOF || !strings.Contains(string(b), `"content":"ab"`) {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestRebuiltAnswersAreTheEngines(t *testing.T) {
	cfg := engine.Default()
	cfg.Models = []string{"m", "m-reason"}
	cfg.Batching.StepBase = 100 * time.Microsecond
	e, err := engine.New(cfg, testkit.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- e.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-served })
	r := &rig{t: t, client: upstream.New(), fleet: testkit.Fleet(t, ln.Addr().String())}

	for name, c := range map[string]struct {
		surface inference.Surface
		body    string
	}{
		"chat":        {inference.Chat, `{"model":"m","messages":[{"role":"user","content":"say \"hello\"\n\u00e9"}]}`},
		"limit":       {inference.Chat, `{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":7,"stream":false}`},
		"one token":   {inference.Chat, `{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":1,"n":1}`},
		"reasoning":   {inference.Chat, `{"model":"m-reason","messages":[{"role":"user","content":"hello"}],"stream":null}`},
		"completions": {inference.Completions, `{"model":"m","prompt":"once upon a time","max_tokens":20}`},
	} {
		t.Run(name, func(t *testing.T) {
			req := &inference.Request{Surface: c.surface, Body: []byte(c.body), Received: time.Now(), Deadline: time.Now().Add(time.Minute)}
			if req.Fields, err = wire.ScanRequest(c.surface, req.Body); err != nil || !req.Rebuild {
				t.Fatalf("not to be rebuilt: %v", err)
			}
			got := make(map[string]any)
			for _, reassemble := range []string{upstream.ReassembleAuto, upstream.ReassembleOff} {
				cfg := upstream.Default()
				cfg.Reassemble = reassemble
				if err := r.client.Apply(map[string]upstream.Config{"eu/gpu": cfg}); err != nil {
					t.Fatal(err)
				}
				h, b, err := r.body(req)
				if err != io.EOF || h.Fields[0].Value != "application/json" && reassemble == upstream.ReassembleAuto {
					t.Fatalf("%v %v", h, err)
				}
				var v map[string]any
				if err := json.Unmarshal([]byte(b), &v); err != nil {
					t.Fatal(err)
				}
				for _, own := range []string{"id", "created"} { // of each answer
					if v[own] == nil {
						t.Errorf("%s: no %s", reassemble, own)
					}
					delete(v, own)
				}
				usage, _ := v["usage"].(map[string]any)
				delete(usage, "prompt_tokens_details") // the second one finds the first one's prefix
				got[reassemble] = v
			}
			if d := cmp.Diff(got[upstream.ReassembleOff], got[upstream.ReassembleAuto]); d != "" {
				t.Errorf("-in one piece +rebuilt\n%s", d)
			}
		})
	}
	if err := r.client.Apply(map[string]upstream.Config{}); err != nil { // closes the connections
		t.Fatal(err)
	}
}

func TestTokensAreCapped(t *testing.T) {
	seen := make(chan []byte, 1)
	r := newRig(t, nil, func(x *testkit.Exchange) bool { seen <- bytes.Clone(x.Body); x.JSON(200, testkit.Answer); return true })
	req := request(t, strings.Replace(unknownBody, "{", `{"max_tokens":500,`, 1), nil)
	lease, err := testkit.Plan(r.fleet, req).Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { lease.Release(time.Now()) }()
	lease.MaxTokens = 64
	a, err := r.client.Open(context.Background(), req, lease)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got := <-seen; !bytes.Contains(got, []byte(`"max_tokens":64,`)) {
		t.Errorf("asked %s", got)
	}
}

func TestSpentLimitsCoolAHostedAccount(t *testing.T) {
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	for name, c := range map[string]struct {
		fields []string
		own    bool // not a hosted account
		want   time.Duration
	}{
		"something left":   {fields: []string{"x-ratelimit-remaining-requests: 1", "x-ratelimit-reset-requests: 6m0s"}},
		"openai":           {fields: []string{"x-ratelimit-remaining-requests: 0", "x-ratelimit-reset-requests: 2m0s", "x-ratelimit-remaining-tokens: 5", "x-ratelimit-reset-tokens: 4m0s"}, want: 2 * time.Minute},
		"both":             {fields: []string{"x-ratelimit-reset-tokens: 180", "x-ratelimit-remaining-requests: 0", "x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-requests: 60.0"}, want: 3 * time.Minute},
		"anthropic":        {fields: []string{"anthropic-ratelimit-input-tokens-remaining: 0", "anthropic-ratelimit-input-tokens-reset: " + in(4*time.Minute)}, want: 4 * time.Minute},
		"bounded":          {fields: []string{"x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-tokens: 5h"}, want: 10 * time.Minute},
		"over":             {fields: []string{"anthropic-ratelimit-tokens-remaining: 0", "anthropic-ratelimit-tokens-reset: " + in(-time.Minute)}},
		"unreadable":       {fields: []string{"x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-tokens: soon"}},
		"another's reset":  {fields: []string{"x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-requests: 60"}},
		"without a limit":  {fields: []string{"x-ratelimit-remaining: 0", "x-ratelimit-reset: 60"}},
		"a server of ours": {fields: []string{"x-ratelimit-remaining-tokens: 0", "x-ratelimit-reset-tokens: 60"}, own: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, status := range []int{200, 429} {
				r := newRig(t, nil, func(x *testkit.Exchange) bool { x.JSON(status, `{}`, c.fields...); return true })
				if !c.own {
					r.provide()
				}
				before := time.Now()
				h, _, err := r.body(request(t, plainBody, nil))
				if status == http.StatusOK {
					if err != io.EOF {
						t.Fatal(err)
					}
					for _, f := range h.Fields {
						if strings.Contains(f.Name, "Ratelimit") {
							t.Errorf("%s was passed on", f.Name)
						}
					}
				}
				var got time.Duration
				r.fleet.Snapshot().Instances(func(i *fleet.Instance) {
					if until := i.Live.CoolUntil(); until != 0 {
						got = time.Unix(0, until).Sub(before)
					}
				})
				if diff := got - c.want; c.want == 0 && got != 0 || diff < -2*time.Second || diff > 5*time.Second {
					t.Errorf("status %d: cooled for %v, want %v", status, got, c.want)
				}
			}
		})
	}
}
