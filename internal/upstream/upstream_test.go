package upstream_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/upstream"
	"github.com/spillway/spillway/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a client with one scripted instance.
type rig struct {
	t      *testing.T
	client *upstream.Client
	fleet  *fleet.Fleet
	inst   *testkit.Instance
}

// newRig builds a rig; change edits the pool's configuration.
func newRig(t *testing.T, change func(*upstream.Config), script func(*testkit.Exchange) bool) *rig {
	t.Helper()
	r := &rig{t: t, client: upstream.New(), inst: testkit.NewInstance(t, script)}
	r.fleet = testkit.Fleet(t, r.inst.Addr)
	cfg := upstream.Default()
	if change != nil {
		change(&cfg)
	}
	if err := r.client.Apply(map[string]upstream.Config{"eu/gpu": cfg}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		testkit.Idle(t, r.fleet)
	})
	return r
}

// request scans a body.
func request(t *testing.T, body string, h http.Header) *inference.Request {
	t.Helper()
	req := &inference.Request{Body: []byte(body), Header: h, Received: time.Now(), Deadline: time.Now().Add(time.Minute)}
	var err error
	if req.Fields, err = wire.ScanRequest(inference.Chat, req.Body); err != nil {
		t.Fatal(err)
	}
	return req
}

const (
	plainBody  = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

// open makes one attempt.
func (r *rig) open(ctx context.Context, req *inference.Request) (*upstream.Answer, func(), error) {
	r.t.Helper()
	lease, err := testkit.Plan(r.fleet, req).Acquire(time.Now(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := r.client.Open(ctx, req, lease)
	if err != nil {
		lease.Release(time.Now())
		return nil, func() {}, err
	}
	return a, func() { a.Close(); lease.Release(time.Now()) }, nil
}

// soon is an instant far enough for anything on loopback.
func soon() time.Time { return time.Now().Add(5 * time.Second) }

// body reads a whole answer.
func (r *rig) body(req *inference.Request) (*inference.Head, string, error) {
	r.t.Helper()
	a, done, err := r.open(context.Background(), req)
	defer done()
	if err != nil {
		return nil, "", err
	}
	h, err := a.Head(soon())
	if err != nil {
		return nil, "", err
	}
	b, err := a.Body(soon(), nil, 1<<20)
	return h, string(b), err
}

// stream reads a whole stream.
func (r *rig) stream(req *inference.Request) (string, inference.Usage, error) {
	r.t.Helper()
	var out strings.Builder
	var usage inference.Usage
	a, done, err := r.open(context.Background(), req)
	defer done()
	if err != nil {
		return "", usage, err
	}
	if _, err := a.Head(soon()); err != nil {
		return "", usage, err
	}
	for {
		ev, err := a.Event(soon())
		if !ev.Usage.Zero() {
			usage = ev.Usage
		}
		if err != nil {
			return out.String(), usage, err
		}
		out.Write(ev.Raw)
	}
}

// failure asserts a failure's verdict and reason.
func failure(t *testing.T, err error, verdict inference.Verdict, reason string) *inference.Failure {
	t.Helper()
	f, ok := errors.AsType[*inference.Failure](err)
	if !ok {
		t.Fatalf("got %v, want an *inference.Failure", err)
	}
	if f.Verdict != verdict || f.Reason != reason {
		t.Errorf("got %v/%s (%v), want %v/%s", f.Verdict, f.Reason, f.Err, verdict, reason)
	}
	return f
}

func TestConnectionIsReused(t *testing.T) {
	r := newRig(t, nil, func(x *testkit.Exchange) bool { x.JSON(200, testkit.Answer); return true })
	for range 5 {
		h, b, err := r.body(request(t, plainBody, nil))
		if err != io.EOF || h.Status != 200 || b != testkit.Answer {
			t.Fatalf("got %v %q %v", h, b, err)
		}
	}
	if r.inst.Accepted() != 1 || r.client.Idle() != 1 {
		t.Errorf("got %d connections, %d idle; want 1, 1", r.inst.Accepted(), r.client.Idle())
	}
}

func TestStaleConnectionIsReplacedSilently(t *testing.T) {
	r := newRig(t, nil, func(x *testkit.Exchange) bool { x.JSON(200, testkit.Answer); return false })
	for range 3 {
		if _, _, err := r.body(request(t, plainBody, nil)); err != io.EOF {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the instance closed the connection", func() bool { return r.inst.Open() == 0 })
	}
	if n := r.inst.Requests(); n != 3 {
		t.Errorf("got %d requests, want 3", n)
	}
}

func TestStaleConnectionToAnInstanceThatIsGone(t *testing.T) {
	r := newRig(t, nil, func(x *testkit.Exchange) bool { x.JSON(200, testkit.Answer); return true })
	if _, _, err := r.body(request(t, plainBody, nil)); err != io.EOF {
		t.Fatal(err)
	}
	r.inst.Close()
	_, _, err := r.body(request(t, plainBody, nil))
	failure(t, err, inference.VerdictBroken, "connect")
}

func TestResetOnNewConnectionIsAFailure(t *testing.T) {
	r := newRig(t, nil, func(*testkit.Exchange) bool { return false })
	_, _, err := r.body(request(t, plainBody, nil))
	failure(t, err, inference.VerdictBroken, "head")
	if n := r.inst.Requests(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
}

func TestConnectRefused(t *testing.T) {
	r := newRig(t, nil, func(*testkit.Exchange) bool { return false })
	r.inst.Close()
	_, _, err := r.open(context.Background(), request(t, plainBody, nil))
	failure(t, err, inference.VerdictBroken, "connect")
}

func TestFramings(t *testing.T) {
	big := strings.Repeat("x", 20000)
	for name, c := range map[string]struct{ raw, want string }{
		"length":      {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"lf only":     {"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", "hello"},
		"close":       {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", "hello"},
		"http/1.0":    {"HTTP/1.0 200 OK\r\n\r\nhello", "hello"},
		"chunked":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext=\"1\"\r\nllo\r\n0\r\n\r\n", "hello"},
		"trailers":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\nX-C: d\r\n\r\n", "hello"},
		"interim":     {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"empty":       {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		"same length": {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"large chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4e20\r\n" + big + "\r\n0\r\n\r\n", big},
	} {
		for _, piece := range []int{1 << 20, 1, 7} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t, nil, func(x *testkit.Exchange) bool {
					for rest := c.raw; rest != ""; {
						n := min(piece, len(rest))
						io.WriteString(x, rest[:n])
						rest = rest[n:]
					}
					return false
				})
				_, got, err := r.body(request(t, plainBody, nil))
				if err != io.EOF || got != c.want {
					t.Errorf("got %d bytes, %v; want %d", len(got), err, len(c.want))
				}
			})
		}
	}
}

func TestMalformedAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"no http":          "hello\r\n\r\n",
		"version":          "HTTP/2.0 200 OK\r\n\r\n",
		"status":           "HTTP/1.1 2x0 OK\r\n\r\n",
		"both framings":    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"two lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"length list":      "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
		"negative length":  "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
		"plus length":      "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
		"gzip coding":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"twice chunked":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked in 1.0":   "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"folded":           "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"space in name":    "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
		"no name":          "HTTP/1.1 200 OK\r\n: 0\r\n\r\n",
		"switch":           "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"chunk size":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"chunk negative":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
		"chunk huge":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
		"chunk bare lf":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"chunk no end":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloxx0\r\n\r\n",
		"head too large":   "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 70) + "\r\n",
		"many interim":     strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"trailer endless":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X-A: b\r\n", 3000) + "\r\n",
		"control in value": "HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(x *testkit.Exchange) bool { io.WriteString(x, raw); return x.Gone(5*time.Second) && false })
			_, _, err := r.body(request(t, plainBody, nil))
			failure(t, err, inference.VerdictBroken, "malformed_answer")
			if r.client.Idle() != 0 {
				t.Error("the connection was kept")
			}
		})
	}
}

func TestCutAnswers(t *testing.T) {
	for name, raw := range map[string]string{
		"in length": "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
		"in chunk":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello",
		"at chunk":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"at last":   "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(x *testkit.Exchange) bool { io.WriteString(x, raw); return false })
			_, _, err := r.body(request(t, plainBody, nil))
			failure(t, err, inference.VerdictBroken, "cut")
		})
	}
}

func TestBytesBehindAnAnswerEndTheConnection(t *testing.T) {
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		io.WriteString(x, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n")
		return true
	})
	if _, b, err := r.body(request(t, plainBody, nil)); err != io.EOF || b != "{}" {
		t.Fatalf("got %q %v", b, err)
	}
	if r.client.Idle() != 0 {
		t.Error("a connection out of step was kept")
	}
}

func TestStreamIsPassedByteExact(t *testing.T) {
	want := testkit.Delta("a") + "data: {\"choices\": [ {\"delta\":{\"content\":\"\\u00e9\"},\"x\":12345678901234567890}]}\r\n\r\n" + testkit.FinishEvent + testkit.DoneEvent
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Chunk(": ping\n\n")
		x.Chunk("id: 3\n" + testkit.Delta("a"))
		x.Chunk("data: {\"choices\": [ {\"delta\":{\"content\":\"\\u00e9\"},")
		x.Chunk("\"x\":12345678901234567890}]}\r\n\r\n: c\n" + testkit.FinishEvent)
		x.Chunk(`data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}` + "\n\n" + testkit.DoneEvent)
		x.End()
		return true
	})
	got, usage, err := r.stream(request(t, streamBody, nil))
	if err != io.EOF || got != want {
		t.Errorf("got %v\n%q\nwant\n%q", err, got, want)
	}
	if usage.PromptTokens != 5 || usage.CompletionTokens != 2 {
		t.Errorf("usage: got %+v", usage)
	}
	if r.client.Idle() != 1 {
		t.Error("the connection of a whole stream was not kept")
	}
}

func TestUsageStaysForAClientThatAsked(t *testing.T) {
	usage := `data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}` + "\n\n"
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		x.Chunk(testkit.FinishEvent + usage + testkit.DoneEvent)
		x.End()
		return true
	})
	got, _, err := r.stream(request(t, `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[1]}`, nil))
	if err != io.EOF || !strings.Contains(got, usage) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNothingIsSaidToFollowThatDoesNot(t *testing.T) {
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Chunk(testkit.Delta("a") + testkit.Delta("b") + ": ping\n\n" + testkit.Delta("c") + "id: 7\n\n" + testkit.FinishEvent + testkit.DoneEvent)
		x.End()
		return true
	})
	a, done, err := r.open(context.Background(), request(t, streamBody, nil))
	defer done()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Head(soon()); err != nil {
		t.Fatal(err)
	}
	var got []bool
	for {
		ev, err := a.Event(soon())
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ev.More)
	}
	if d := cmp.Diff([]bool{true, false, false, true, false}, got); d != "" {
		t.Errorf("an event before a comment must be flushed: %s", d)
	}
}

func TestStreamEnds(t *testing.T) {
	for name, c := range map[string]struct {
		script func(*testkit.Exchange)
		reason string // "" is whole
	}{
		"done":                 {func(x *testkit.Exchange) { x.Delta("a"); x.Finish() }, ""},
		"finish without done":  {func(x *testkit.Exchange) { x.Delta("a"); x.Chunk(testkit.FinishEvent); x.End() }, ""},
		"done, body cut":       {func(x *testkit.Exchange) { x.Delta("a"); x.Chunk(testkit.FinishEvent + testkit.DoneEvent) }, ""},
		"clean end, no finish": {func(x *testkit.Exchange) { x.Delta("a"); x.End() }, "cut"},
		"cut":                  {func(x *testkit.Exchange) { x.Delta("a") }, "cut"},
		"cut behind finish":    {func(x *testkit.Exchange) { x.Delta("a"); x.Chunk(testkit.FinishEvent) }, "cut"},
		"cut in an event":      {func(x *testkit.Exchange) { x.Delta("a"); x.Chunk("data: {\"cho") }, "cut"},
		"malformed first":      {func(x *testkit.Exchange) { x.Chunk("data: {\"choices\":[}\n\n") }, "malformed_event"},
		"malformed later":      {func(x *testkit.Exchange) { x.Delta("a"); x.Chunk("data: {\"choices\":[\n\n") }, "malformed_event"},
		"too large":            {func(x *testkit.Exchange) { x.Delta("a"); x.Chunk("data: " + strings.Repeat("x", 2<<20)) }, "event_too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(x *testkit.Exchange) bool { x.Stream(); c.script(x); return false })
			_, _, err := r.stream(request(t, streamBody, nil))
			if c.reason == "" {
				if err != io.EOF {
					t.Errorf("got %v, want a whole answer", err)
				}
				return
			}
			failure(t, err, inference.VerdictBroken, c.reason)
		})
	}
}

func TestErrorsInsideA200(t *testing.T) {
	for name, c := range map[string]struct {
		event   string
		verdict inference.Verdict
		reason  string
	}{
		"sglang": {`data: {"error":{"message":"The request queue is full.","type":"ServiceUnavailable","code":503}}`, inference.VerdictBusy, "status_503"},
		"busy":   {`data: {"error":{"message":"server busy"}}`, inference.VerdictBusy, "status_503"},
		"quota":  {`data: {"error":{"message":"m","code":"insufficient_quota"}}`, inference.VerdictSpent, "insufficient_quota"},
		"yours":  {`data: {"error":{"message":"m","type":"invalid_request_error"}}`, inference.VerdictYours, "status_400"},
		"other":  {`data: {"error":{"message":"CUDA error"}}`, inference.VerdictBroken, "status_502"},
		"finish": {`data: {"choices":[{"delta":{},"finish_reason":"insufficient_system_resource"}]}`, inference.VerdictBusy, "insufficient_system_resource"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(x *testkit.Exchange) bool {
				x.Stream()
				x.Role()
				x.Chunk(c.event + "\n\n")
				x.End()
				return true
			})
			_, _, err := r.stream(request(t, streamBody, nil))
			failure(t, err, c.verdict, c.reason)
		})
	}
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		x.JSON(200, `{"error":{"message":"server busy","code":503}}`)
		return true
	})
	_, _, err := r.body(request(t, plainBody, nil))
	failure(t, err, inference.VerdictBusy, "status_503")
}

func TestStatusVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		body       string
		field      string
		verdict    inference.Verdict
		reason     string
		final      bool
		retryAfter time.Duration
	}{
		"429":             {429, `{}`, "Retry-After: 7", inference.VerdictBusy, "status_429", false, 7 * time.Second},
		"429 ms":          {429, `{}`, "retry-after-ms: 250", inference.VerdictBusy, "status_429", false, 250 * time.Millisecond},
		"429 reset":       {429, `{}`, "x-ratelimit-reset-tokens: 6.5s", inference.VerdictBusy, "status_429", false, 6500 * time.Millisecond},
		"clamped":         {503, `{}`, "Retry-After: 7200", inference.VerdictBusy, "status_503", false, 30 * time.Second},
		"503":             {503, `busy`, "X-A: b", inference.VerdictBusy, "status_503", false, 0},
		"529":             {529, `{}`, "X-A: b", inference.VerdictBusy, "status_529", false, 0},
		"402":             {402, `{}`, "X-A: b", inference.VerdictSpent, "insufficient_quota", false, 0},
		"429 quota":       {429, `{"error":{"code":"insufficient_quota"}}`, "X-A: b", inference.VerdictSpent, "insufficient_quota", false, 0},
		"401":             {401, `{}`, "X-A: b", inference.VerdictSpent, "credentials", false, 0},
		"400":             {400, `{"error":{"message":"bad"}}`, "X-A: b", inference.VerdictYours, "status_400", true, 0},
		"422":             {422, `{}`, "X-A: b", inference.VerdictYours, "status_422", true, 0},
		"404":             {404, `{}`, "X-A: b", inference.VerdictYours, "status_404", true, 0},
		"502":             {502, `<html>`, "X-A: b", inference.VerdictBroken, "status_502", false, 0},
		"504":             {504, ``, "X-A: b", inference.VerdictBroken, "status_504", false, 0},
		"500 stays final": {500, `{}`, "X-A: b", inference.VerdictBroken, "status_500", true, 0},
		"redirect":        {302, ``, "Location: /x", inference.VerdictBroken, "status_302", true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(x *testkit.Exchange) bool { x.JSON(c.status, c.body, c.field); return true })
			_, _, err := r.body(request(t, plainBody, nil))
			f := failure(t, err, c.verdict, c.reason)
			if f.Final != c.final || f.RetryAfter != c.retryAfter || f.Status != c.status {
				t.Errorf("got %+v", f)
			}
			if c.verdict == inference.VerdictYours && (f.Head == nil || string(f.Body) != c.body) {
				t.Errorf("the answer to pass on: got %+v %q", f.Head, f.Body)
			}
			if r.client.Idle() != 1 {
				t.Error("the connection of a whole error answer was not kept")
			}
		})
	}
}

func TestWhatIsForwarded(t *testing.T) {
	seen := make(chan *http.Request, 1)
	script := func(x *testkit.Exchange) bool { seen <- x.Request; x.JSON(200, `{}`); return true }
	h := http.Header{
		"Authorization": {"Bearer client"}, "X-Api-Key": {"client"}, "Cookie": {"a=1; spillway_session=x; b=2"},
		"Connection": {"close, X-Hop"}, "X-Hop": {"1"}, "Te": {"trailers"}, "X-Forwarded-For": {"1.2.3.4"},
		"Accept-Encoding": {"gzip"}, "X-Custom": {"v1", "v2"}, "X-Engine-Output-Tokens": {"7"}, "X-Spillway-Class": {"vip"},
		"Content-Type": {"application/json"}, "User-Agent": {"sdk"}, "X-Pool": {"client"},
	}
	t.Setenv("UPSTREAM_TEST_KEY", "sk-pool")
	for name, c := range map[string]struct {
		change func(*upstream.Config)
		want   map[string]string
		absent []string
	}{
		"default": {nil, map[string]string{"Cookie": "a=1; b=2", "X-Custom": "v1", "X-Engine-Output-Tokens": "7", "User-Agent": "sdk"},
			[]string{"Authorization", "X-Api-Key", "X-Hop", "Te", "X-Forwarded-For", "Accept-Encoding", "X-Spillway-Class", "Connection"}},
		"own key": {func(c *upstream.Config) {
			c.APIKeyEnv = "UPSTREAM_TEST_KEY"
			c.Headers = map[string]string{"x-pool": "gpu"}
		}, map[string]string{"Authorization": "Bearer sk-pool", "X-Pool": "gpu"}, []string{"X-Api-Key"}},
		"x-api-key": {func(c *upstream.Config) { c.APIKeyEnv, c.APIKeyHeader = "UPSTREAM_TEST_KEY", "x-api-key" },
			map[string]string{"X-Api-Key": "sk-pool"}, []string{"Authorization"}},
		"forward": {func(c *upstream.Config) { c.ForwardAuth = true },
			map[string]string{"Authorization": "Bearer client", "X-Api-Key": "client"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, c.change, script)
			req := request(t, plainBody, h)
			req.RawQuery = "api-version=1"
			if _, _, err := r.body(req); err != io.EOF {
				t.Fatal(err)
			}
			got := <-seen
			if got.URL.String() != "/v1/chat/completions?api-version=1" || got.Host != r.inst.Addr {
				t.Errorf("asked for %s at %s", got.URL, got.Host)
			}
			for k, v := range c.want {
				if got.Header.Get(k) != v {
					t.Errorf("%s: got %q, want %q", k, got.Header.Get(k), v)
				}
			}
			for _, k := range c.absent {
				if got.Header.Get(k) != "" {
					t.Errorf("%s: got %q, want none", k, got.Header.Get(k))
				}
			}
		})
	}
}

func TestBodyIsForwardedByteExact(t *testing.T) {
	image := strings.Repeat("A", 100<<10)
	for name, body := range map[string]string{
		"small": "{ \"model\" : \"m\",\n\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}], \"seed\":12345678901234567890,\"x\":1.0e5}",
		"image": `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:` + image + `"}}]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(chan string, 1)
			off := func(c *upstream.Config) { c.Reassemble = upstream.ReassembleOff }
			r := newRig(t, off, func(x *testkit.Exchange) bool { seen <- string(x.Body); x.JSON(200, `{}`); return true })
			if _, _, err := r.body(request(t, body, nil)); err != io.EOF {
				t.Fatal(err)
			}
			if got := <-seen; got != body {
				t.Errorf("the body changed: %d bytes, want %d", len(got), len(body))
			}
		})
	}
}

func TestIdleWatchdogCountsDataOnly(t *testing.T) {
	r := newRig(t, func(c *upstream.Config) { c.StreamIdleTimeout = 150 * time.Millisecond }, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		for !x.Gone(20 * time.Millisecond) {
			x.Chunk(": still here\n\n")
		}
		return false
	})
	_, _, err := r.stream(request(t, streamBody, nil))
	failure(t, err, inference.VerdictBroken, "stream_idle")
}

func TestFirstTokenTimeout(t *testing.T) {
	for name, script := range map[string]func(*testkit.Exchange){
		"no head":  func(*testkit.Exchange) {},
		"no delta": func(x *testkit.Exchange) { x.Stream(); x.Role() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *upstream.Config) { c.FirstTokenTimeout = 100 * time.Millisecond }, func(x *testkit.Exchange) bool {
				script(x)
				return x.Gone(5*time.Second) && false
			})
			_, _, err := r.stream(request(t, streamBody, nil))
			failure(t, err, inference.VerdictBroken, "first_token_timeout")
		})
	}
}

func TestWaitsCanBeResumed(t *testing.T) {
	go1, go2 := make(chan bool), make(chan bool)
	r := newRig(t, nil, func(x *testkit.Exchange) bool {
		<-go1
		x.Stream()
		<-go2
		x.Delta("a")
		x.Finish()
		return true
	})
	a, done, err := r.open(context.Background(), request(t, streamBody, nil))
	defer done()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Head(time.Now().Add(20 * time.Millisecond)); err != inference.ErrNotYet {
		t.Fatalf("head: got %v, want ErrNotYet", err)
	}
	close(go1)
	if _, err := a.Head(soon()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Event(time.Now().Add(20 * time.Millisecond)); err != inference.ErrNotYet {
		t.Fatalf("event: got %v, want ErrNotYet", err)
	}
	close(go2)
	if ev, err := a.Event(soon()); err != nil || ev.Kind != inference.EventDelta {
		t.Fatalf("got %v, %v", ev, err)
	}
}

func TestContextClosesTheConnection(t *testing.T) {
	for name, begin := range map[string]func(*testkit.Exchange){
		"before the head": func(*testkit.Exchange) {},
		"in the stream":   func(x *testkit.Exchange) { x.Stream(); x.Delta("a") },
	} {
		t.Run(name, func(t *testing.T) {
			got, gone := make(chan bool, 1), make(chan bool, 1)
			r := newRig(t, nil, func(x *testkit.Exchange) bool {
				begin(x)
				got <- true
				gone <- x.Gone(5 * time.Second)
				return false
			})
			ctx, cancel := context.WithCancel(context.Background())
			a, done, err := r.open(ctx, request(t, streamBody, nil))
			defer done()
			if err != nil {
				t.Fatal(err)
			}
			<-got
			time.AfterFunc(20*time.Millisecond, cancel)
			for err == nil {
				if _, err = a.Head(soon()); err == nil {
					_, err = a.Event(soon())
				}
			}
			failure(t, err, inference.VerdictCanceled, "canceled")
			if !<-gone {
				t.Error("the instance's connection stayed open")
			}
		})
	}
}

func TestEarlyRefusalOfALargeBodyIsRead(t *testing.T) {
	// The instance answers after the head and closes; the body is still on its way.
	ln := testkit.NewRawListener(t, func(c io.ReadWriteCloser) {
		_, _ = c.Read(make([]byte, 512))
		io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
		_, _ = io.CopyN(io.Discard, c, 1<<20)
		c.Close()
	})
	client := upstream.New()
	if err := client.Apply(map[string]upstream.Config{"eu/gpu": upstream.Default()}); err != nil {
		t.Fatal(err)
	}
	f := testkit.Fleet(t, ln)
	req := request(t, `{"model":"m","messages":["`+strings.Repeat("x", 8<<20)+`"]}`, nil)
	lease, err := testkit.Plan(f, req).Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release(time.Now())
	a, err := client.Open(context.Background(), req, lease)
	if err == nil {
		_, err = a.Head(soon())
		a.Close()
	}
	failure(t, err, inference.VerdictYours, "status_413")
}

func TestApplyKeepsConnectionsOfUnchangedPools(t *testing.T) {
	r := newRig(t, nil, func(x *testkit.Exchange) bool { x.JSON(200, testkit.Answer); return true })
	if _, _, err := r.body(request(t, plainBody, nil)); err != io.EOF {
		t.Fatal(err)
	}
	cfg := upstream.Default()
	for _, want := range []int{1, 0} {
		if err := r.client.Apply(map[string]upstream.Config{"eu/gpu": cfg}); err != nil {
			t.Fatal(err)
		}
		if r.client.Idle() != want {
			t.Errorf("got %d idle connections, want %d", r.client.Idle(), want)
		}
		cfg.StreamIdleTimeout++
	}
	cfg.APIKeyFile = "/does/not/exist"
	if err := r.client.Apply(map[string]upstream.Config{"eu/gpu": cfg}); err == nil {
		t.Error("an unreadable key file was accepted")
	}
}

func TestConfigMistakes(t *testing.T) {
	cfg := upstream.Config{APIKeyEnv: "SURELY_NOT_SET", APIKeyFile: "x", APIKeyHeader: "cookie", Headers: map[string]string{"Host": "x", "a b": "c"},
		Proxy: "x", MaxIdleConns: -1, FirstTokenTimeout: -1, MaxRetryAfter: -1, TLSCAFile: "/does/not/exist"}
	err := cfg.Validate()
	for _, want := range []string{"api_key_env: ", "api_key_file: ", "api_key_header: ", `"Host"`, `"a b"`, "proxy: ", "max_idle_conns: ",
		"reassemble: ", "first_token_timeout: ", "max_retry_after: ", "tls_ca_file: ", "connect_timeout: ", "stream_idle_timeout: ", "idle_conn_timeout: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no mention of %q in %v", want, err)
		}
	}
	good := upstream.Default()
	if err := good.Validate(); err != nil {
		t.Errorf("the default is refused: %v", err)
	}
}
