package engine_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/engine"
)

// setFaults posts faults and fails the test unless they are taken.
func (s *server) setFaults(t testing.TB, faults string) {
	t.Helper()
	if got := s.post(t, "/faults", faults); got.status != 200 {
		t.Fatalf("set %s: %d %s", faults, got.status, got.body)
	}
}

const (
	streamed = `{"model":"sim","stream":true,"max_tokens":10,` + hello + `}`
	unary    = `{"model":"sim","max_tokens":10,` + hello + `}`
)

func TestErrorFaultStrikesExactly(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) {
		c.Faults.Error = engine.StatusFault{Chance: engine.Chance{Probability: 1, Count: 2}, Status: 502}
	}))
	for i, want := range []int{502, 502, 200} {
		if got := s.post(t, "/v1/chat/completions", unary); got.status != want {
			t.Errorf("request %d: status %d, want %d", i, got.status, want)
		}
	}
	state := tree(t, s.get(t, "/faults").body)
	if at(state, "fired", "error") != 2.0 || at(state, "faults", "error", "status") != 502.0 {
		t.Errorf("GET /faults: %v", state)
	}
	s.setFaults(t, `{"error":{"probability":1,"status":529}}`)
	got := s.post(t, "/v1/messages", `{"model":"sim","max_tokens":1,`+hello+`}`)
	if got.status != 529 || at(tree(t, got.body), "error", "type") != "overloaded_error" {
		t.Errorf("messages: %d %s", got.status, got.body)
	}
	s.setFaults(t, `{}`)
	if got := s.post(t, "/v1/chat/completions", unary); got.status != 200 {
		t.Errorf("cleared: status %d", got.status)
	}
}

func TestFaultProbabilityIsSeeded(t *testing.T) {
	run := func() (statuses []int) {
		s := start(t, quick(func(c *engine.Config) { c.Faults.Error.Probability, c.Seed = 0.5, 42 }))
		for range 40 {
			statuses = append(statuses, s.post(t, "/v1/chat/completions", `{"model":"sim","max_tokens":1,`+hello+`}`).status)
		}
		return statuses
	}
	first := run()
	if d := cmp.Diff(first, run()); d != "" {
		t.Errorf("same seed, other faults: %s", d)
	}
	hits := 0
	for _, s := range first {
		if s == 500 {
			hits++
		}
	}
	if hits < 8 || hits > 32 {
		t.Errorf("%d of 40 hit at probability 0.5", hits)
	}
}

func TestCutFault(t *testing.T) {
	s := start(t, quick(nil))
	for name, tt := range map[string]struct {
		faults, body string
		events       int
	}{
		"before any event":       {`{"cut":{"probability":1}}`, streamed, 0},
		"after the role":         {`{"cut":{"probability":1,"after_events":1}}`, streamed, 1},
		"in mid-answer":          {`{"cut":{"probability":1,"after_events":5}}`, streamed, 5},
		"in mid-answer by reset": {`{"cut":{"probability":1,"after_events":5,"reset":true}}`, streamed, 5},
		"between finish and end": {`{"cut":{"probability":1,"after_events":12}}`, streamed, 12},
	} {
		t.Run(name, func(t *testing.T) {
			s.setFaults(t, tt.faults)
			got := s.post(t, "/v1/chat/completions", tt.body)
			if got.status != 200 || got.err == nil {
				t.Fatalf("status %d, read error %v; want a head and a broken body", got.status, got.err)
			}
			if reset := errors.Is(got.err, syscall.ECONNRESET); reset != strings.HasSuffix(name, "reset") {
				t.Errorf("error %v", got.err)
			}
			if n := len(sse(t, got.body)); n != tt.events {
				t.Errorf("%d events, want %d", n, tt.events)
			}
		})
	}
	t.Run("not streamed", func(t *testing.T) {
		s.setFaults(t, `{"cut":{"probability":1,"after_events":5}}`)
		got := s.post(t, "/v1/chat/completions", unary)
		if got.status != 200 || !errors.Is(got.err, io.ErrUnexpectedEOF) || !strings.HasPrefix(got.body, `{"id":"chatcmpl-`) {
			t.Errorf("%+v, want half a body and an unexpected end", got)
		}
	})
	t.Run("embedding", func(t *testing.T) {
		s.setFaults(t, `{"cut":{"probability":1}}`)
		if got := s.post(t, "/v1/embeddings", `{"model":"sim","input":"x"}`); got.err == nil {
			t.Errorf("%+v, want no answer", got)
		}
	})
	eventually(t, "cut work leaves the batch", func() bool { return s.Stats().Running == 0 })
}

func TestResetFault(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) { c.Faults.Reset = engine.Chance{Probability: 1, Count: 1} }))
	_, r := s.dial(t, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 28\r\n\r\n"+`{"model":"sim","prompt":"x"}`)
	if _, err := r.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
	if got := s.post(t, "/v1/chat/completions", unary); got.status != 200 {
		t.Errorf("after the count: %+v", got)
	}
}

func TestStallFault(t *testing.T) {
	s := start(t, quick(nil))
	for name, body := range map[string]string{"streamed": streamed, "not streamed": unary} {
		t.Run(name, func(t *testing.T) {
			s.setFaults(t, `{"stall":{"probability":1,"after_events":3,"duration":"30ms"}}`)
			begin := time.Now()
			got := s.post(t, "/v1/chat/completions", body)
			if got.err != nil || time.Since(begin) < 30*time.Millisecond {
				t.Errorf("after %v: %v; want all of it, but not before 30ms", time.Since(begin), got.err)
			}
			if name == "streamed" && len(sse(t, got.body)) != 13 {
				t.Errorf("events lost: %q", got.body)
			}
		})
	}
	s.setFaults(t, `{"stall":{"probability":1,"after_events":3}}`)
	resp, err := s.client.Post(s.url+"/v1/chat/completions", "application/json", strings.NewReader(streamed))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, events := "", make([]byte, 4096)
	for strings.Count(got, "\n\n") < 3 {
		n, err := resp.Body.Read(events)
		if err != nil {
			t.Fatal(err)
		}
		got += string(events[:n])
	}
	before := s.Stats().Steps
	eventually(t, "the model went on", func() bool { return s.Stats().Running == 0 && s.Stats().Steps >= before })
	if n := strings.Count(got, "\n\n"); n != 3 {
		t.Errorf("%d events before the stall, want 3", n)
	}
	resp.Body.Close()
	eventually(t, "the stalled client is gone", func() bool { return s.Stats().Cancelled == 1 })
}

// TestStallKeepsNothingEarlier stalls after the first event, on a connection where each event waits for the handler:
// the role and the first token come in one step, so the stall begins before the handler can have the role.
func TestStallKeepsNothingEarlier(t *testing.T) {
	s := start(t, quick(func(c *engine.Config) {
		c.Faults.Stall = engine.StallFault{EventFault: engine.EventFault{Chance: engine.Chance{Probability: 1}, AfterEvents: 1}}
	}))
	conn, r := s.dial(t, fmt.Sprintf("POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(streamed), streamed))
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	role, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || !strings.Contains(role, `"role":"assistant"`) {
		t.Fatalf("before the stall: %q, %v; want the role", role, err)
	}
	eventually(t, "the model went on", func() bool { return s.Stats().Running == 0 })
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(resp.Body)
	if text := strings.TrimSpace(string(rest)); text != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("in the stall: %q, %v; want nothing", rest, err)
	}
}

func TestMalformedAndMissingDone(t *testing.T) {
	s := start(t, quick(nil))
	s.setFaults(t, `{"malformed":{"probability":1,"after_events":4}}`)
	got := s.post(t, "/v1/chat/completions", streamed)
	events := sse(t, got.body)
	if len(events) != 13 || events[4] != `{"id":"chatcmpl-` || got.err != nil {
		t.Errorf("malformed: %q, %v", events, got.err)
	}
	got = s.post(t, "/v1/chat/completions", unary)
	if got.err != nil || got.status != 200 || strings.HasSuffix(got.body, "}}") {
		t.Errorf("malformed JSON: %+v", got)
	}
	for path, end := range map[string]string{
		"/v1/chat/completions": "[DONE]", "/v1/messages": "message_stop", "/v1/responses": "response.incomplete ",
	} {
		body := strings.Replace(streamed, `"messages"`, `"input":"x","messages"`, 1)
		s.setFaults(t, `{}`)
		if events = sse(t, s.post(t, path, strings.Replace(body, "max_tokens", "max_output_tokens\":10,\"max_tokens", 1)).body); !strings.HasPrefix(events[len(events)-1], end) {
			t.Errorf("%s ends with %q, want %s", path, events[len(events)-1], end)
		}
		s.setFaults(t, `{"missing_done":{"probability":1}}`)
		got = s.post(t, path, body)
		events = sse(t, got.body)
		if got.err != nil || strings.HasPrefix(events[len(events)-1], end) {
			t.Errorf("%s: missing done: %q, %v; want a clean end without %s", path, events[len(events)-1], got.err, end)
		}
	}
}

func TestLatencyAndHealthFaults(t *testing.T) {
	s := start(t, quick(nil))
	s.setFaults(t, `{"latency":{"probability":1,"count":1,"delay":"30ms"},"unhealthy":{"probability":1,"count":2}}`)
	begin := time.Now()
	if got := s.post(t, "/v1/chat/completions", unary); got.status != 200 || time.Since(begin) < 30*time.Millisecond {
		t.Errorf("status %d after %v, want 200 not before 30ms", got.status, time.Since(begin))
	}
	for i, want := range []int{503, 503, 200} {
		if got := s.get(t, "/health").status; got != want {
			t.Errorf("health %d: %d, want %d", i, got, want)
		}
	}
}

func TestSlowStart(t *testing.T) {
	s := start(t, quick(nil))
	s.setFaults(t, `{"slow_start":{"factor":200,"period":"1h"}}`) // steps of 40 ms
	begin := time.Now()
	s.post(t, "/v1/completions", `{"model":"sim","prompt":"x","max_tokens":3}`)
	if d := time.Since(begin); d < 110*time.Millisecond {
		t.Errorf("3 steps took %v, want about 120ms", d)
	}
	s.setFaults(t, `{"slow_start":{"factor":2,"period":"1ns"}}`)
	if got := s.post(t, "/v1/completions", `{"model":"sim","prompt":"x","max_tokens":3}`); got.status != 200 {
		t.Errorf("after the period: %+v", got)
	}
}

func TestBadFaultsChangeNothing(t *testing.T) {
	s := start(t, quick(nil))
	s.setFaults(t, `{"error":{"probability":1,"status":418}}`)
	for name, body := range map[string]string{
		"not JSON":        `error: {probability: 1}`,
		"unknown key":     `{"eror":{"probability":1}}`,
		"probability":     `{"error":{"probability":2}}`,
		"status":          `{"error":{"probability":1,"status":200}}`,
		"negative count":  `{"cut":{"count":-1}}`,
		"negative delay":  `{"latency":{"delay":"-1s"}}`,
		"duration number": `{"latency":{"delay":"soon"}}`,
		"slow start":      `{"slow_start":{"factor":0.5,"period":"1s"}}`,
		"no period":       `{"slow_start":{"factor":2}}`,
		"events":          `{"stall":{"after_events":-1}}`,
		"too long":        `{"error":{"probability":1},"x":"` + strings.Repeat("x", 70<<10) + `"}`,
	} {
		if got := s.post(t, "/faults", body); got.status != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", name, got.status)
		}
	}
	if got := s.post(t, "/v1/chat/completions", unary); got.status != 418 {
		t.Errorf("status %d: the refused faults replaced the old ones", got.status)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := engine.Default().Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	c := engine.Default()
	c.Models, c.Surfaces, c.Overload = nil, []string{"chta"}, "nginx"
	c.MaxBody, c.EmbeddingDimensions, c.DrainTimeout = 0, 1<<20, -1
	c.Batching = engine.Batching{StepBase: -1, Queue: -2}
	c.Faults.Cut.Probability = math.NaN()
	c.Faults.Stall.AfterEvents = -1
	err := c.Validate()
	if err == nil {
		t.Fatal("no mistakes found")
	}
	var keys []string
	for _, line := range strings.Split(err.Error(), "\n") {
		key, _, _ := strings.Cut(line, ":")
		keys = append(keys, key)
	}
	want := []string{
		"models", "surfaces[0]", "batching.step_base", "batching.step_base", "batching.chunk", "batching.max_seqs",
		"batching.kv_tokens", "batching.queue", "overload", "max_body", "embedding_dimensions", "drain_timeout",
		"faults.cut.probability", "faults.stall.after_events",
	}
	if d := cmp.Diff(want, keys); d != "" {
		t.Errorf("keys (-want +got):\n%s", d)
	}
	c = engine.Default()
	c.Overload, c.Batching.Queue = engine.OverloadVLLMUnbounded, 10
	if err := c.Validate(); err == nil {
		t.Error("a bound that can never act was taken")
	}
}
