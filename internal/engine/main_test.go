package engine_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/engine"
)

func TestMain(m *testing.M) {
	if target := os.Getenv(benchTarget); target != "" {
		os.Exit(readStreams(target))
	}
	goleak.VerifyTestMain(m)
}

// quick is an engine whose steps are short, so that tests wait for little.
func quick(change func(*engine.Config)) engine.Config {
	cfg := engine.Default()
	cfg.Batching.StepBase, cfg.Batching.StepPerSeq, cfg.Batching.StepPerPromptToken = 200*time.Microsecond, 0, 0
	cfg.DrainTimeout = 50 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	return cfg
}

// frozen is an engine whose first step outlasts any test: what is in it stays queued or running.
func frozen(c *engine.Config) { c.Batching.StepBase = time.Hour }

// server is an engine that listens, with a client of its own.
type server struct {
	*engine.Engine
	url    string
	addr   string
	client *http.Client
	stop   func() // ends Serve and waits for it
}

func start(t testing.TB, cfg engine.Config) *server {
	t.Helper()
	e, err := engine.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Serve(ctx, ln) }()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	stop := sync.OnceFunc(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return &server{
		Engine: e, stop: stop, addr: ln.Addr().String(), url: "http://" + ln.Addr().String(),
		client: &http.Client{Transport: transport, Timeout: 20 * time.Second},
	}
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

// post sends JSON and reads the whole answer; headers come in pairs.
func (s *server) post(t testing.TB, path, body string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return s.do(t, req, headers...)
}

func (s *server) get(t testing.TB, path string) reply {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.do(t, req)
}

func (s *server) do(t testing.TB, req *http.Request, headers ...string) reply {
	t.Helper()
	if req.Method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(body), err}
}

// sse splits a stream into its events' data, each after its event name where it has one, and fails on anything else.
func sse(t testing.TB, stream string) []string {
	t.Helper()
	var events []string
	for _, block := range strings.SplitAfter(stream, "\n\n") {
		if block == "" {
			continue
		}
		body, ok := strings.CutSuffix(block, "\n\n")
		name := ""
		if strings.HasPrefix(body, "event: ") {
			name, body, _ = strings.Cut(strings.TrimPrefix(body, "event: "), "\n")
			name += " "
		}
		data, isData := strings.CutPrefix(body, "data: ")
		if !ok || !isData || strings.Contains(data, "\n") {
			t.Fatalf("not one SSE event: %q", block)
		}
		events = append(events, name+data)
	}
	return events
}

// tree decodes JSON for comparison.
func tree(t testing.TB, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return v
}

// at walks objects by key and arrays by number.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

// eventually polls until the condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

// dial sends a raw request and returns the connection and its reader.
func (s *server) dial(t testing.TB, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}
