package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// frontVariable names the environment variable that chooses the front for a run
// of the tests.
const frontVariable = "SPILLWAY_TEST_FRONT"

// TestTheOtherFront runs all other tests again with net/http for every request:
// clients cannot tell the fronts apart.
func TestTheOtherFront(t *testing.T) {
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.skip=^(TestTheOtherFront|Fuzz.*)$")
	c.Env = append(os.Environ(), frontVariable+"="+api.FrontNetHTTP)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// rig is a server on a loopback port over a scripted gateway.
type rig struct {
	t      *testing.T
	server *api.Server
	addr   string
	probes string             // address of the listener for probes
	stop   context.CancelFunc // begins the drain
	ended  chan error         // what Run returned
	idleAt int                // goroutines of an idle server

	serves   atomic.Int64 // requests that reached the gateway
	identity func(http.Header) (inference.Caller, error)
	admit    func(ip netip.Addr) error
	feedback func(tenant, request string, score float64) error
	models   []string
	timeout  time.Duration

	mu struct {
		sync.Mutex
		last    *inference.Request
		records []inference.Record
	}
}

// Identify implements api.Identity.
func (r *rig) Identify(h http.Header) (inference.Caller, error) {
	if r.identity != nil {
		return r.identity(h)
	}
	return inference.Caller{Tenant: inference.Anonymous}, nil
}

// Admit implements api.Addresses.
func (r *rig) Admit(_ time.Time, ip netip.Addr) error {
	if r.admit != nil {
		return r.admit(ip)
	}
	return nil
}

// ok is what the scripted gateway answers with.
const ok = `{"ok":true}`

// answerOK is a gateway that answers every request.
func answerOK(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
	head := inference.Head{Status: 200, Length: int64(len(ok)), Fields: []inference.HeaderField{{Name: "Content-Type", Value: "application/json"}}}
	if out.Head(&head) == nil {
		_ = out.Write([]byte(ok), true)
	}
	return &inference.Record{Request: req}
}

// begin is the head of a stream.
func begin(out api.Answer) error {
	return out.Head(&inference.Head{Status: 200, Length: -1, Stream: true, Fields: []inference.HeaderField{{Name: "Content-Type", Value: "text/event-stream; charset=utf-8"}}})
}

// failing is a gateway that answers every request with an error.
func failing(e *inference.Error) api.Serve {
	return func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		out.Fail(e)
		return &inference.Record{Request: req, Code: e.Code}
	}
}

// newRig starts a server; change edits its configuration, serve is the gateway.
// At the end of the test nothing of the server may be left.
func newRig(t *testing.T, change func(*api.Config), serve api.Serve) *rig {
	t.Helper()
	cfg := api.Default()
	cfg.Listen, cfg.DrainTimeout = "127.0.0.1:0", 5*time.Second
	if front := os.Getenv(frontVariable); front != "" {
		cfg.Front = front
	}
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, models: []string{"m", "org/model"}, timeout: time.Minute, ended: make(chan error, 1)}
	if serve == nil {
		serve = answerOK
	}
	r.server = api.New(cfg, api.Parts{
		Serve: func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
			r.serves.Add(1)
			kept := *req // a request is its connection's again when it was answered
			kept.Body, kept.Header = bytes.Clone(req.Body), req.Header.Clone()
			r.mu.Lock()
			r.mu.last = &kept
			r.mu.Unlock()
			return serve(ctx, req, out)
		},
		Record: func(rec *inference.Record) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.mu.records = append(r.mu.records, *rec)
		},
		Identity: r,
		Limits:   r,
		Feedback: func(tenant, request string, score float64) error { return r.feedback(tenant, request, score) },
		Timeout:  func() time.Duration { return r.timeout },
		Models:   func() []string { return r.models },
		Probes: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/readyz" && r.server.Stopping() {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = io.WriteString(w, "probe")
		}),
		Log: testkit.Discard(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	ln, err := api.Listen(ctx, cfg.Listen, int(cfg.SendBuffer))
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	var probes net.Listener
	if cfg.ProbeListen != "" {
		if probes, err = net.Listen("tcp", cfg.ProbeListen); err != nil {
			t.Fatal(err)
		}
		r.probes = probes.Addr().String()
	}
	go func() { r.ended <- r.server.Run(ctx, ln, probes) }()
	c := r.dial() // once a connection was served all of the server's own goroutines run
	c.send("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	_, _ = io.ReadAll(c)
	c.Close()
	time.Sleep(10 * time.Millisecond)
	r.idleAt = goroutines()
	t.Cleanup(func() {
		cancel()
		if err := r.wait(); err != nil {
			t.Errorf("Run: %v", err)
		}
		testkit.Eventually(t, "no body is left", func() bool { return r.server.Buffered() == 0 })
	})
	return r
}

// wait waits for the end of Run.
func (r *rig) wait() error {
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(20 * time.Second):
		return errors.New("did not end")
	}
}

// last is the newest request that reached the gateway.
func (r *rig) last() *inference.Request {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.last == nil {
		r.t.Fatal("no request reached the gateway")
	}
	return r.mu.last
}

// recorded is the newest record of a request that did not reach the gateway.
func (r *rig) recorded() inference.Record {
	r.t.Helper()
	testkit.Eventually(r.t, "the request was recorded", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.mu.records) > 0
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.records[len(r.mu.records)-1]
}

// idle fails the test unless no goroutine and no body is left soon. The clients'
// connections are closed as they become idle, which may be later than their calls.
func (r *rig) idle(clients ...*http.Client) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
		if goroutines() <= r.idleAt && r.server.Buffered() == 0 {
			return
		}
	}
	stacks := make([]byte, 1<<16)
	stacks = stacks[:runtime.Stack(stacks, true)]
	r.t.Errorf("%d bytes of bodies, %d goroutines instead of %d are left:\n%s", r.server.Buffered(), goroutines(), r.idleAt, stacks)
}

// goroutines is the number of goroutines beside those of the tests themselves.
func goroutines() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for one := range bytes.SplitSeq(stacks, []byte("\n\n")) {
		if !bytes.Contains(one, []byte("testing.tRunner(")) {
			n++
		}
	}
	return n
}

// untouched fails the test if a request reached the gateway.
func (r *rig) untouched() {
	r.t.Helper()
	if n := r.serves.Load(); n != 0 {
		r.t.Errorf("%d requests reached the gateway", n)
	}
}

// conn is a client's raw connection.
type conn struct {
	net.Conn
	t  *testing.T
	br *bufio.Reader
}

// dial connects to the server.
func (r *rig) dial() *conn {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	return newConn(r.t, nc)
}

// newConn makes a raw client; nothing it does takes longer than 15 s.
func newConn(t *testing.T, nc net.Conn) *conn {
	_ = nc.SetDeadline(time.Now().Add(15 * time.Second))
	t.Cleanup(func() { nc.Close() })
	return &conn{nc, t, bufio.NewReader(nc)}
}

// send writes bytes; a server that has closed already is no mistake.
func (c *conn) send(s string) { _, _ = io.WriteString(c.Conn, s) }

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	body string
	err  error // of the body
}

// receive reads one answer to a request of the given method.
func (c *conn) receive(method string) *answer {
	c.t.Helper()
	res, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	return &answer{res, string(body), err}
}

// closed fails the test unless the server closes the connection with nothing
// more to read.
func (c *conn) closed() {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	rest, err := io.ReadAll(c.br)
	if len(rest) > 0 {
		c.t.Errorf("behind the answer came %q", rest)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Error("the connection was not closed")
	}
}

// post is a POST request as bytes.
func post(path, body string, fields ...string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", path, len(body), lines(fields), body)
}

// lines are header fields, a line each.
func lines(fields []string) string {
	var b strings.Builder
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	return b.String()
}

// ask sends bytes on a new connection and reads one answer.
func (r *rig) ask(request string) *answer {
	r.t.Helper()
	c := r.dial()
	defer c.Close()
	c.send(request)
	method, _, _ := strings.Cut(request, " ")
	return c.receive(method)
}

const (
	chat   = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	stream = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

// bodyFor is a good body of a surface.
func bodyFor(s inference.Surface) string {
	switch s {
	case inference.Chat, inference.Messages:
		return chat
	case inference.Completions:
		return `{"model":"m","prompt":"hi"}`
	}
	return `{"model":"m","input":"hi"}`
}

// refused asserts that an answer is an error as OpenAI's clients know it.
func (a *answer) refused(t *testing.T, status int, code inference.Code) {
	t.Helper()
	a.common(t, status)
	var v struct {
		Error map[string]any `json:"error"`
	}
	strict(t, a.body, &v)
	if got, want := slices.Sorted(maps.Keys(v.Error)), []string{"code", "message", "param", "type"}; !slices.Equal(got, want) {
		t.Errorf("error has members %v, want %v", got, want)
	}
	if v.Error["code"] != string(code) {
		t.Errorf("got code %v, want %s; body %s", v.Error["code"], code, a.body)
	}
	for _, name := range []string{"message", "type"} {
		if s, _ := v.Error[name].(string); s == "" {
			t.Errorf("error.%s is %v", name, v.Error[name])
		}
	}
}

// refusedMessages asserts that an answer is an error as Anthropic's clients know it.
func (a *answer) refusedMessages(t *testing.T, status int, kind string) {
	t.Helper()
	a.common(t, status)
	var v struct {
		Type      string            `json:"type"`
		Error     map[string]string `json:"error"`
		RequestID string            `json:"request_id"`
	}
	strict(t, a.body, &v)
	if v.Type != "error" || v.Error["type"] != kind || v.Error["message"] == "" || len(v.Error) != 2 || v.RequestID != a.Header.Get("X-Request-Id") {
		t.Errorf("got %s, want an error of type %s with the request's id %s", a.body, kind, a.Header.Get("X-Request-Id"))
	}
}

// common asserts what every error has.
func (a *answer) common(t *testing.T, status int) {
	t.Helper()
	if a.err != nil {
		t.Errorf("body: %v", a.err)
	}
	if a.StatusCode != status {
		t.Errorf("got status %d, want %d; body %s", a.StatusCode, status, a.body)
	}
	if ct := a.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	if a.Header.Get("X-Request-Id") == "" {
		t.Error("no X-Request-Id")
	}
	if v, ok := a.Header["Retry-After"]; ok && (len(v) != 1 || v[0] == "0" || v[0] == "") {
		t.Errorf("Retry-After: %q", v)
	}
}

// strict decodes JSON without unknown members.
func strict(t *testing.T, body string, v any) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader([]byte(body)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Errorf("%v in %q", err, body)
	}
}
