package engine_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/engine"
)

// FuzzRequest sends any body to any surface: the answer is a whole 200, or an error in the surface's shape.
func FuzzRequest(f *testing.F) {
	paths := []string{"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses", "/faults"}
	for i, body := range []string{
		`{"model":"sim","max_tokens":3,` + hello + `}`, `{"model":"sim","prompt":[[1,2]]}`, `{"model":"sim","input":["a","b"]}`,
		`{"model":"sim","max_tokens":3,"stream":true,"system":"x",` + hello + `}`,
		`{"model":"sim","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]}]}`,
		`{"latency":{"probability":0,"delay":"1s"}}`, `{"model":"sim","messages":[{"role":"u","content":[{"content":[[]]}]}]}`,
	} {
		f.Add(i%len(paths), body)
	}
	cfg := quick(func(c *engine.Config) { c.Batching.StepBase, c.MaxOutput = time.Microsecond, 300 })
	e, err := engine.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, path int, body string) {
		if path < 0 || path >= len(paths) || (paths[path] == "/faults" && strings.Contains(body, "probability")) {
			t.Skip() // a fault that strikes would be this test's failure
		}
		w := httptest.NewRecorder()
		e.ServeHTTP(w, httptest.NewRequest(http.MethodPost, paths[path], strings.NewReader(body)))
		switch {
		case w.Code >= 400 && w.Code < 500:
			if at(tree(t, w.Body.String()), "error", "message") == nil {
				t.Errorf("%d without an error object: %s", w.Code, w.Body)
			}
		case w.Code != 200:
			t.Errorf("status %d: %s", w.Code, w.Body)
		case strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream"):
			sse(t, w.Body.String())
		default:
			tree(t, w.Body.String())
		}
	})
}

func ExampleEngine() {
	cfg := engine.Default()
	cfg.Models = []string{"demo"}
	e, err := engine.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Serve(ctx, ln) }()

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+ln.Addr().String()+"/v1/completions", "application/json",
		strings.NewReader(`{"model":"demo","prompt":"Once upon a time","max_tokens":4}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	_, choice, _ := strings.Cut(string(body), `"choices":`)
	fmt.Println(choice, err)
	cancel()
	fmt.Println(<-ended)
	// Output:
	// [{"index":0,"text":" tum vil mil wim","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":4,"total_tokens":8,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":0}}} <nil>
	// <nil>
}
