package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/upstream"
	"github.com/spillway/spillway/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a gateway over scripted instances. It is its router, health and
// recorder.
type rig struct {
	t       *testing.T
	gateway *gateway.Gateway
	client  *upstream.Client
	fleet   *fleet.Fleet
	noPlan  *inference.Error
	enter   func(time.Time, *fleet.Plan, []*fleet.Instance) (*fleet.Lease, gateway.Place, error) // nil never waits
	observe func(*fleet.Lease, *inference.Failure)                                               // what health does; nil is nothing
	plan    func(*fleet.Plan)                                                                    // what the router does besides; nil is nothing
	cache   *shelf                                                                               // nil is no cache
	limits  *quota                                                                               // nil is no limits

	mu       sync.Mutex
	verdicts []string
	records  []inference.Record
	begun    int // answers
	answered []inference.Usage
}

// Plan implements gateway.Router.
func (r *rig) Plan(_ context.Context, req *inference.Request) (*fleet.Plan, error) {
	if r.noPlan != nil {
		return nil, r.noPlan
	}
	plan := testkit.Plan(r.fleet, req)
	if r.plan != nil {
		r.plan(plan)
	}
	return plan, nil
}

// Enter implements gateway.Admission: whoever finds no slot is refused.
func (r *rig) Enter(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
	if r.enter != nil {
		return r.enter(now, plan, tried)
	}
	lease, err := plan.Acquire(now, tried)
	return lease, nil, err
}

// Answered implements gateway.Router.
func (r *rig) Answered(_ *inference.Request, _ *fleet.Lease, u inference.Usage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answered = append(r.answered, u)
}

// Observe implements gateway.Health.
func (r *rig) Observe(lease *fleet.Lease, failure *inference.Failure) {
	if r.observe != nil {
		r.observe(lease, failure)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	verdict := inference.VerdictOK
	if failure != nil {
		verdict = failure.Verdict
	}
	r.verdicts = append(r.verdicts, verdict.String())
}

// Begin implements gateway.Recorder.
func (r *rig) Begin(rec *inference.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec.Request == nil || rec.Status == 0 {
		r.t.Errorf("an answer begins with %+v", rec)
	}
	r.begun++
}

// Record implements gateway.Recorder.
func (r *rig) Record(rec *inference.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records = append(r.records, *rec)
}

// last is the newest record.
func (r *rig) last() inference.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records[len(r.records)-1]
}

// newRig builds a gateway; change edits its configuration.
func newRig(t *testing.T, change func(*gateway.Config), instances ...*testkit.Instance) *rig {
	t.Helper()
	r := &rig{t: t, client: upstream.New()}
	var addrs []string
	for _, i := range instances {
		addrs = append(addrs, i.Addr)
	}
	r.fleet = testkit.Fleet(t, addrs...)
	if err := r.client.Apply(map[string]upstream.Config{"eu/gpu": upstream.Default()}); err != nil {
		t.Fatal(err)
	}
	cfg := gateway.Default()
	cfg.Retry.Backoff, cfg.Retry.MaxBackoff = time.Millisecond, time.Millisecond
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	r.gateway = gateway.New(cfg, gateway.Parts{Router: r, Admission: r, Upstream: func(ctx context.Context, req *inference.Request, l *fleet.Lease) (gateway.Answer, error) {
		a, err := r.client.Open(ctx, req, l)
		if err != nil {
			return nil, err
		}
		return a, nil
	}, Health: r, Recorder: r, Cache: r, Limits: r})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.client.Run(ctx) }()
	t.Cleanup(func() {
		testkit.Idle(t, r.fleet)
		cancel()
		<-done
	})
	return r
}

// reader is a gateway.Reader that keeps everything.
type reader struct {
	mu     sync.Mutex
	head   *inference.Head
	body   strings.Builder
	fail   *inference.Error
	broken error // what Write returns
	wrote  chan struct{}
}

func (c *reader) Head(h *inference.Head) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.head = h
	return nil
}

func (c *reader) Write(p []byte, _ bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	c.body.Write(p)
	if c.wrote != nil {
		close(c.wrote)
		c.wrote = nil
	}
	return nil
}

func (c *reader) Fail(e *inference.Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = e
}

// serve sends one request through the gateway.
func (r *rig) serve(ctx context.Context, body string, c *reader) *reader {
	r.t.Helper()
	if c == nil {
		c = new(reader)
	}
	r.gateway.Serve(ctx, r.request(body), c)
	return c
}

// request is one that has just come.
func (r *rig) request(body string) *inference.Request {
	r.t.Helper()
	now := time.Now()
	req := &inference.Request{ID: "t", Body: []byte(body), Header: http.Header{}, Received: now, Deadline: now.Add(r.gateway.Timeout())}
	var err error
	if req.Fields, err = wire.ScanRequest(inference.Chat, req.Body); err != nil {
		r.t.Fatal(err)
	}
	return req
}

// code asserts how an answer failed; "" is that it did not.
func (c *reader) code(t *testing.T, want inference.Code) {
	t.Helper()
	got := inference.Code("")
	if c.fail != nil {
		got = c.fail.Code
	}
	if got != want {
		t.Errorf("got code %q (%v), want %q", got, c.fail, want)
	}
}

// seen asserts the verdicts that health was told, in order.
func (r *rig) seen(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if fmt.Sprint(r.verdicts) != fmt.Sprint(want) {
		r.t.Errorf("verdicts: got %v, want %v", r.verdicts, want)
	}
}

const (
	plain   = `{"model":"m","vendor":1,"messages":[{"role":"user","content":"hi"}]}` // not known, so it stays in one piece
	rebuilt = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	stream  = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

// good answers as an instance in order does.
func good(x *testkit.Exchange) bool {
	if !strings.Contains(string(x.Body), `"stream":true`) {
		x.JSON(200, testkit.Answer)
		return true
	}
	x.Stream()
	x.Role()
	x.Delta("hello")
	x.Delta(" world")
	x.Finish()
	return true
}

func TestWholeAnswers(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	c := r.serve(context.Background(), plain, nil)
	c.code(t, "")
	if c.body.String() != testkit.Answer || c.head.Length != int64(len(testkit.Answer)) {
		t.Errorf("got %q, %+v", c.body.String(), c.head)
	}
	if rec := r.last(); !rec.Complete || rec.Usage.PromptTokens != 5 || rec.Code != "" || len(rec.Attempts) != 1 {
		t.Errorf("record: %+v", rec)
	}
	c = r.serve(context.Background(), stream, nil)
	c.code(t, "")
	if got := c.body.String(); !strings.HasSuffix(got, testkit.FinishEvent+testkit.DoneEvent) || strings.Count(got, "data: ") != 5 {
		t.Errorf("got %q", got)
	}
	if rec := r.last(); !rec.Complete || rec.Tokens != 2 || rec.TTFT <= 0 || rec.Bytes != int64(c.body.Len()) {
		t.Errorf("record: %+v", rec)
	}
	r.seen("ok", "ok")
	if len(r.answered) != 2 {
		t.Errorf("the router was told of %d answers", len(r.answered))
	}
}

// flushed keeps only what was flushed.
type flushed struct {
	reader
	pending strings.Builder
}

func (c *flushed) Write(p []byte, flush bool) error {
	c.pending.Write(p)
	if flush {
		_ = c.reader.Write([]byte(c.pending.String()), true)
		c.pending.Reset()
	}
	return nil
}

func TestNoEventWaitsForOneThatIsTakenOut(t *testing.T) {
	next := make(chan bool)
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Chunk(testkit.Delta("a") + testkit.FinishEvent + `data: {"choices":[],"usage":{"prompt_tokens":5}}` + "\n\n")
		<-next
		x.Chunk(testkit.DoneEvent)
		x.End()
		return true
	}))
	release := sync.OnceFunc(func() { close(next) })
	t.Cleanup(release) // before the instance's own, which waits for its script
	c := new(flushed)
	done := make(chan bool)
	go func() { // ends with the answer
		defer close(done)
		now := time.Now()
		req := &inference.Request{Body: []byte(stream), Header: http.Header{}, Received: now, Deadline: now.Add(time.Minute)}
		req.Fields, _ = wire.ScanRequest(inference.Chat, req.Body)
		r.gateway.Serve(context.Background(), req, c)
	}()
	testkit.Eventually(t, "the finish reason is with the client", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return strings.Contains(c.body.String(), `"stop"`)
	})
	release()
	<-done
}

func TestTheInstanceIsNamedOnRequestOnly(t *testing.T) {
	for _, on := range []bool{false, true} {
		inst := testkit.NewInstance(t, good)
		r := newRig(t, func(c *gateway.Config) { c.NameInstance = on }, inst)
		c := r.serve(context.Background(), plain, nil)
		named := false
		for _, f := range c.head.Fields {
			named = named || f.Name == "X-Spillway-Instance" && f.Value == "eu/gpu/"+inst.Addr
		}
		if named != on {
			t.Errorf("name_instance: %v: got %+v", on, c.head.Fields)
		}
	}
}

func TestRetriesElsewhereBeforeTheCommitPoint(t *testing.T) {
	for name, c := range map[string]struct {
		bad     func(*testkit.Exchange) bool
		verdict string
	}{
		"reset": {func(*testkit.Exchange) bool { return false }, "broken"},
		"502":   {func(x *testkit.Exchange) bool { x.JSON(502, "{}"); return true }, "broken"},
		"503":   {func(x *testkit.Exchange) bool { x.JSON(503, "{}"); return true }, "busy"},
		"429":   {func(x *testkit.Exchange) bool { x.JSON(429, "{}"); return true }, "busy"},
		"402":   {func(x *testkit.Exchange) bool { x.JSON(402, "{}"); return true }, "spent"},
		"event error": {func(x *testkit.Exchange) bool {
			x.Stream()
			x.Role()
			x.Chunk("data: {\"error\":{\"code\":503}}\n\n")
			x.End()
			return true
		}, "busy"},
		"cut early": {func(x *testkit.Exchange) bool { x.Stream(); x.Role(); return false }, "broken"},
		"empty answer": {func(x *testkit.Exchange) bool {
			x.Stream()
			x.Chunk(testkit.DoneEvent[:0] + "data: {\"choices\":[]}\n\n")
			x.End()
			return true
		}, "broken"},
		"half a body": {func(x *testkit.Exchange) bool {
			io.WriteString(x, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf")
			return false
		}, "broken"},
	} {
		for _, body := range []string{plain, stream} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t, nil, testkit.NewInstance(t, c.bad), testkit.NewInstance(t, good))
				got := r.serve(context.Background(), body, nil)
				got.code(t, "")
				if strings.Contains(got.body.String(), "half") || !strings.Contains(got.body.String(), "hello") {
					t.Errorf("got %q", got.body.String())
				}
				r.seen(c.verdict, "ok")
			})
		}
	}
}

func TestNeverRetriesWhatIsNotTheInstancesFault(t *testing.T) {
	second := testkit.NewInstance(t, good)
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.JSON(422, `{"error":{"message":"top_p is wrong"}}`)
		return true
	}), second)
	c := r.serve(context.Background(), plain, nil)
	c.code(t, "")
	if c.head.Status != 422 || !strings.Contains(c.body.String(), "top_p is wrong") {
		t.Errorf("got %+v %q, want the upstream's own answer", c.head, c.body.String())
	}
	r.seen("yours")
	if second.Requests() != 0 {
		t.Error("another instance was asked")
	}
	if rec := r.last(); rec.Code != inference.CodeInvalidRequest || rec.Complete {
		t.Errorf("record: %+v", rec)
	}
}

func TestCutBehindTheCommitPoint(t *testing.T) {
	second := testkit.NewInstance(t, good)
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Role()
		x.Delta("once")
		return false
	}), second)
	c := r.serve(context.Background(), stream, nil)
	c.code(t, inference.CodeUpstreamCut)
	if !strings.Contains(c.body.String(), "once") || strings.Contains(c.body.String(), "[DONE]") {
		t.Errorf("got %q", c.body.String())
	}
	r.seen("broken")
	if second.Requests() != 0 {
		t.Error("another instance was asked behind the commit point")
	}
}

func TestFirstErrorIsReported(t *testing.T) {
	r := newRig(t, nil,
		testkit.NewInstance(t, func(x *testkit.Exchange) bool { x.JSON(503, "{}", "Retry-After: 3"); return true }),
		testkit.NewInstance(t, func(*testkit.Exchange) bool { return false }))
	c := r.serve(context.Background(), plain, nil)
	c.code(t, inference.CodeOverloaded)
	if c.fail.RetryAfter != 3*time.Second {
		t.Errorf("retry after %v, want 3s", c.fail.RetryAfter)
	}
	r.seen("busy", "broken", "busy")
}

func TestAttemptsAreBounded(t *testing.T) {
	var asked atomic.Int64
	var instances []*testkit.Instance
	for range 6 {
		instances = append(instances, testkit.NewInstance(t, func(x *testkit.Exchange) bool { asked.Add(1); x.JSON(503, "{}"); return true }))
	}
	r := newRig(t, nil, instances...)
	r.serve(context.Background(), plain, nil).code(t, inference.CodeOverloaded)
	if asked.Load() != 3 {
		t.Errorf("asked %d instances, want 3", asked.Load())
	}
}

func TestRetryBudget(t *testing.T) {
	down := func(*testkit.Exchange) bool { return false }
	r := newRig(t, func(c *gateway.Config) { c.Retry.Budget, c.Retry.Floor, c.Retry.Window = 0.5, 0, 10*time.Second },
		testkit.NewInstance(t, down), testkit.NewInstance(t, down))
	for range 10 {
		r.serve(context.Background(), plain, nil).code(t, inference.CodeUpstreamError)
	}
	if n := len(r.verdicts); n != 15 {
		t.Errorf("10 requests made %d attempts, want 15", n)
	}
}

func TestNoPlan(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	r.noPlan = inference.Errorf(inference.CodeModelNotFound, "no such model")
	r.serve(context.Background(), plain, nil).code(t, inference.CodeModelNotFound)
}

func TestDeadline(t *testing.T) {
	gone := make(chan bool, 1)
	for name, begin := range map[string]func(*testkit.Exchange){
		"before the first token": func(*testkit.Exchange) {},
		"in the stream":          func(x *testkit.Exchange) { x.Stream(); x.Delta("a") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *gateway.Config) { c.Timeout = 100 * time.Millisecond }, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				begin(x)
				gone <- x.Gone(5 * time.Second)
				return false
			}), testkit.NewInstance(t, good))
			r.serve(context.Background(), stream, nil).code(t, inference.CodeTimeout)
			r.seen("canceled")
			if !<-gone {
				t.Error("the upstream was not closed")
			}
		})
	}
}

// TestClientLeaves is the promise that a client which hangs up cancels the
// upstream at once and frees its slot, phase by phase. The rig checks every
// counter and the package every goroutine.
func TestClientLeaves(t *testing.T) {
	for name, begin := range map[string]func(*testkit.Exchange){
		"waiting for the head":        func(*testkit.Exchange) {},
		"waiting for the first token": func(x *testkit.Exchange) { x.Stream(); x.Role() },
		"streaming":                   func(x *testkit.Exchange) { x.Stream(); x.Role(); x.Delta("a") },
	} {
		for _, body := range []string{stream, plain} {
			t.Run(name, func(t *testing.T) {
				got, gone := make(chan bool, 1), make(chan bool, 1)
				inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
					begin(x)
					got <- true
					gone <- x.Gone(5 * time.Second)
					return false
				})
				r := newRig(t, nil, inst)
				ctx, cancel := context.WithCancel(context.Background())
				go func() { <-got; time.Sleep(20 * time.Millisecond); cancel() }()
				r.serve(ctx, body, nil).code(t, inference.CodeCanceled)
				if !<-gone {
					t.Error("the upstream's connection stayed open")
				}
				r.seen("canceled")
				testkit.Eventually(t, "no connection is left", func() bool { return inst.Open() == 0 && r.client.Idle() == 0 })
			})
		}
	}
}

func TestClientLeavesWhileConnecting(t *testing.T) {
	r := newRig(t, nil)
	// A listener with a full backlog never answers a connect.
	f := testkit.Fleet(t, testkit.Blackhole(t))
	r.fleet = f
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	begun := time.Now()
	r.serve(ctx, plain, nil).code(t, inference.CodeCanceled)
	if time.Since(begun) > 1500*time.Millisecond {
		t.Error("the connect went on after the client had left")
	}
	r.seen("canceled")
}

func TestClientThatCannotBeWrittenTo(t *testing.T) {
	gone := make(chan bool, 1)
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		gone <- x.Gone(5 * time.Second)
		return false
	}))
	r.serve(context.Background(), stream, &reader{broken: errors.New("broken pipe")}).code(t, inference.CodeCanceled)
	if !<-gone {
		t.Error("the upstream's connection stayed open")
	}
	r.seen("canceled")
}

func TestRebuiltAnswers(t *testing.T) {
	cut := true
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if !cut {
			return good(x)
		}
		cut = false
		x.Stream()
		x.Delta("lost")
		return false
	}), testkit.NewInstance(t, good))
	const want = `{"choices":[{"index":0,"message":{"role":"assistant","content":"hello world"},"finish_reason":"stop"}]}`
	c := r.serve(context.Background(), rebuilt, nil)
	if c.code(t, ""); c.body.String() != want || c.head.Stream || c.head.Length != int64(len(want)) {
		t.Errorf("got %q, %+v", c.body.String(), c.head)
	}
	if rec := r.last(); !rec.Complete || len(rec.Attempts) != 2 { // the cut was repeated: nothing had been sent
		t.Errorf("record: %+v", rec)
	}
	r.seen("broken", "ok")
}

func TestKeepAlive(t *testing.T) {
	slow := func(x *testkit.Exchange) bool {
		time.Sleep(200 * time.Millisecond)
		return good(x)
	}
	for framing, want := range map[gateway.Framing]string{gateway.FramingLF: ": keep-alive\n", gateway.FramingLFLF: ": keep-alive\n\n", gateway.FramingOff: ""} {
		t.Run(string(framing), func(t *testing.T) {
			r := newRig(t, func(c *gateway.Config) {
				c.KeepAlive = gateway.KeepAlive{Grace: 50 * time.Millisecond, Interval: 50 * time.Millisecond, Framing: framing}
			}, testkit.NewInstance(t, slow))
			c := r.serve(context.Background(), stream, nil)
			c.code(t, "")
			comments, events, _ := strings.Cut(c.body.String(), "data: ")
			if n := len(want); n == 0 && comments != "" || n > 0 && (len(comments) < n || strings.ReplaceAll(comments, want, "") != "") {
				t.Errorf("got %q before the events, want copies of %q", comments, want)
			}
			if strings.Contains(events, "keep-alive") {
				t.Errorf("a comment between the events: %q", events)
			}
			c = r.serve(context.Background(), plain, nil)
			if c.code(t, ""); c.body.String() != testkit.Answer {
				t.Errorf("an answer that is no stream got %q", c.body.String())
			}
		})
	}
}

func TestRetryIsStillPossibleBehindAKeepAlive(t *testing.T) {
	r := newRig(t, func(c *gateway.Config) { c.KeepAlive.Grace, c.KeepAlive.Interval = 20*time.Millisecond, time.Second },
		testkit.NewInstance(t, func(x *testkit.Exchange) bool { time.Sleep(100 * time.Millisecond); x.JSON(503, "{}"); return true }),
		testkit.NewInstance(t, good))
	c := r.serve(context.Background(), stream, nil)
	c.code(t, "")
	if !strings.HasPrefix(c.body.String(), ": keep-alive\n") || !strings.HasSuffix(c.body.String(), testkit.DoneEvent) {
		t.Errorf("got %q", c.body.String())
	}
}

func TestStoppedServerSaysSo(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		return x.Gone(5*time.Second) && false
	}))
	ctx, cut := context.WithCancelCause(context.Background())
	c := &reader{wrote: make(chan struct{})}
	wrote := c.wrote
	go func() { <-wrote; cut(inference.Errorf(inference.CodeDraining, "stopping")) }()
	r.serve(ctx, stream, c).code(t, inference.CodeDraining)
}

// panicking panics when the answer begins.
type panicking struct{ reader }

func (*panicking) Head(*inference.Head) error { panic("on purpose") }

func TestPanicGivesEverythingBack(t *testing.T) {
	gone := make(chan bool, 1)
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		gone <- x.Gone(5 * time.Second)
		return false
	}))
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		now := time.Now()
		req := &inference.Request{Body: []byte(stream), Header: http.Header{}, Received: now, Deadline: now.Add(time.Minute)}
		req.Fields, _ = wire.ScanRequest(inference.Chat, req.Body)
		r.gateway.Serve(context.Background(), req, new(panicking))
	}()
	if !<-gone {
		t.Error("the upstream was not closed")
	}
	r.seen("canceled")
	if rec := r.last(); rec.Code != inference.CodeInternal {
		t.Errorf("record: %+v", rec)
	}
}

// warm observes enough first tokens for the pool's quantile to be known.
func warm(t *testing.T, r *rig, n int) {
	t.Helper()
	for range n {
		r.serve(context.Background(), stream, nil).code(t, "")
	}
}

func TestHedge(t *testing.T) {
	var late atomic.Bool
	gone := make(chan bool, 1)
	first := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if late.Load() {
			gone <- x.Gone(5 * time.Second)
			return false
		}
		return good(x)
	})
	second := testkit.NewInstance(t, good)
	r := newRig(t, func(c *gateway.Config) {
		c.Hedge.Pools, c.Hedge.MinDelay = []string{"eu/gpu"}, 30*time.Millisecond
	}, first, second)
	warm(t, r, 30)
	late.Store(true)
	c := r.serve(context.Background(), stream, nil)
	c.code(t, "")
	if !strings.HasSuffix(c.body.String(), testkit.DoneEvent) || strings.Count(c.body.String(), "hello") != 1 {
		t.Errorf("got %q", c.body.String())
	}
	if !<-gone {
		t.Error("the loser was not cancelled")
	}
	rec := r.last()
	if len(rec.Attempts) != 2 || rec.Attempts[0].Verdict != inference.VerdictCanceled || !rec.Attempts[1].Hedge {
		t.Errorf("attempts: %+v", rec.Attempts)
	}
}

func TestHedgeIsNotWonByAnErrorFrame(t *testing.T) {
	var late atomic.Bool
	first := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if late.Load() {
			time.Sleep(200 * time.Millisecond)
		}
		return good(x)
	})
	second := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Chunk("data: {\"error\":{\"message\":\"queue is full\"}}\n\n")
		x.End()
		return true
	})
	r := newRig(t, func(c *gateway.Config) {
		c.Hedge.Pools, c.Hedge.MinDelay = []string{"eu/gpu"}, 20*time.Millisecond
	}, first, second)
	warm(t, r, 30)
	late.Store(true)
	c := r.serve(context.Background(), stream, nil)
	c.code(t, "")
	if !strings.Contains(c.body.String(), "hello") {
		t.Errorf("got %q", c.body.String())
	}
}

func TestARebuiltAnswerIsNotHedgedBehindItsFirstToken(t *testing.T) {
	var long atomic.Bool
	script := func(x *testkit.Exchange) bool {
		if !long.Load() {
			return good(x)
		}
		x.Stream()
		x.Delta("hello")
		x.Gone(150 * time.Millisecond) // it takes longer than any hedge waits
		x.Finish()
		return true
	}
	r := newRig(t, func(c *gateway.Config) {
		c.Hedge.Pools, c.Hedge.MinDelay = []string{"eu/gpu"}, 20*time.Millisecond
	}, testkit.NewInstance(t, script), testkit.NewInstance(t, script))
	warm(t, r, 30)
	long.Store(true)
	c := r.serve(context.Background(), rebuilt, nil)
	if c.code(t, ""); !strings.Contains(c.body.String(), `"content":"hello"`) {
		t.Errorf("got %q", c.body.String())
	}
	if rec := r.last(); len(rec.Attempts) != 1 {
		t.Errorf("attempts: %+v", rec.Attempts)
	}
}

func TestHedgeClientLeavesDuringTheRace(t *testing.T) {
	var late atomic.Bool
	racing := make(chan bool, 2)
	script := func(x *testkit.Exchange) bool {
		if late.Load() {
			racing <- true
			return x.Gone(5*time.Second) && false
		}
		return good(x)
	}
	r := newRig(t, func(c *gateway.Config) {
		c.Hedge.Pools, c.Hedge.MinDelay = []string{"eu/gpu"}, 20*time.Millisecond
	}, testkit.NewInstance(t, script), testkit.NewInstance(t, script))
	warm(t, r, 30)
	late.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-racing; <-racing; cancel() }()
	r.serve(ctx, stream, nil).code(t, inference.CodeCanceled)
}

func TestConfigMistakes(t *testing.T) {
	cfg := gateway.Config{KeepAlive: gateway.KeepAlive{Framing: "x", Surfaces: map[string]gateway.Framing{"nope": "y"}}, Retry: gateway.Retry{Budget: 2, Floor: -1, Backoff: -1, MaxBackoff: -2}, HoldAnswer: -1}
	err := cfg.Validate()
	for _, want := range []string{"timeout: ", "keep_alive.interval: ", "keep_alive.framing: ", `"nope"`, "keep_alive.surfaces.nope: ", "retry.attempts: ",
		"retry.budget: ", "retry.window: ", "retry.floor: ", "retry.backoff: ", "retry.max_backoff: ", "hedge.quantile: ", "hold_answer: ", "hold_events: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no mention of %q in %v", want, err)
		}
	}
}
