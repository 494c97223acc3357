package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// until streams events until it is told to end, or its context ends.
func until(end <-chan struct{}) api.Serve {
	return func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		_ = begin(out)
		_ = out.Write([]byte("data: 1\n\n"), true)
		select {
		case <-end:
			_ = out.Write([]byte("data: [DONE]\n\n"), true)
		case <-ctx.Done():
			e := inference.Errorf(inference.CodeCanceled, "the client left")
			if why, ok := errors.AsType[*inference.Error](context.Cause(ctx)); ok {
				e = why
			}
			out.Fail(e)
		}
		return &inference.Record{Request: req}
	}
}

func TestADrainLetsStreamsFinish(t *testing.T) {
	for name, request := range asks() {
		t.Run(name, func(t *testing.T) {
			end := make(chan struct{})
			r := newRig(t, func(c *api.Config) { c.ProbeListen = "127.0.0.1:0" }, until(end))
			c := r.dial()
			c.send(request)
			testkit.Eventually(t, "the stream runs", func() bool { return r.serves.Load() == 1 })
			fresh := r.dial() // has sent nothing yet
			if got := probe(t, r.probes, "/readyz"); got != 200 {
				t.Errorf("readyz before the drain: %d", got)
			}
			r.stop()
			testkit.Eventually(t, "the server stops", r.server.Stopping)
			testkit.Eventually(t, "no new connections are taken", func() bool {
				nc, err := net.Dial("tcp", r.addr)
				if err == nil {
					nc.Close()
				}
				return err != nil
			})
			if live, ready := probe(t, r.probes, "/livez"), probe(t, r.probes, "/readyz"); live != 200 || ready != 503 {
				t.Errorf("during the drain: livez %d, readyz %d", live, ready)
			}
			select {
			case err := <-r.ended:
				t.Fatalf("Run ended before the stream: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			close(end)
			if _, chunks, ended := c.raw(); !ended || strings.Join(chunks, "") != "data: 1\n\ndata: [DONE]\n\n" {
				t.Errorf("ended %v, got %q", ended, chunks)
			}
			c.closed()
			fresh.Close()
			if err := r.wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// probe asks a probe's status on its own connection.
func probe(t *testing.T, addr, path string) int {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	c := newConn(t, nc)
	defer c.Close()
	c.send("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	return c.receive("GET").StatusCode
}

func TestTheEndOfADrainCutsStreams(t *testing.T) {
	for name, request := range asks() {
		for _, timeout := range []time.Duration{0, 200 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " ", timeout), func(t *testing.T) {
				r := newRig(t, func(c *api.Config) { c.DrainTimeout = timeout }, until(nil))
				c := r.dial()
				c.send(request)
				testkit.Eventually(t, "the stream runs", func() bool { return r.serves.Load() == 1 })
				r.stop()
				_, chunks, ended := c.raw()
				if got := strings.Join(chunks, ""); ended || !strings.HasPrefix(got, "data: 1\n\ndata: {\"error\":{") || !strings.Contains(got, `"code":"draining"`) {
					t.Errorf("ended %v, got %q", ended, got)
				}
				if err := r.wait(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestARequestThatIgnoresItsEndDoesNotHoldUpTheStop(t *testing.T) {
	release := make(chan struct{})
	r := newRig(t, func(c *api.Config) { c.DrainTimeout = 0 }, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		<-ctx.Done()
		<-release // works on beyond the grace
		out.Fail(inference.Errorf(inference.CodeCanceled, "late"))
		return &inference.Record{Request: req}
	})
	c := r.dial()
	c.send(post("/v1/chat/completions", chat))
	testkit.Eventually(t, "the request runs", func() bool { return r.serves.Load() == 1 })
	r.stop()
	c.closed() // though its handler still runs
	close(release)
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

func TestRequestsDuringADrainAreRefused(t *testing.T) {
	for name, second := range map[string]string{"common form": post("/v1/chat/completions", chat), "chunked body": chunked(chat, 10)} {
		t.Run(name, func(t *testing.T) {
			end := make(chan struct{})
			r := newRig(t, nil, until(end))
			c := r.dial()
			c.send(post("/v1/chat/completions", stream) + second) // pipelined: it waits behind the stream
			testkit.Eventually(t, "the stream runs", func() bool { return r.serves.Load() == 1 })
			r.stop()
			testkit.Eventually(t, "the server stops", r.server.Stopping)
			close(end)
			if _, _, ended := c.raw(); !ended {
				t.Error("the stream did not finish")
			}
			if res, err := http.ReadResponse(c.br, nil); err == nil { // refused, or the connection is closed
				b, _ := io.ReadAll(res.Body)
				(&answer{res, string(b), nil}).refused(t, 503, inference.CodeDraining)
			}
			if err := r.wait(); err != nil {
				t.Error(err)
			}
			if n := r.serves.Load(); n != 1 {
				t.Errorf("%d requests reached the gateway", n)
			}
		})
	}
}

func TestADrainOverHTTP2(t *testing.T) {
	end := make(chan struct{})
	r := newRig(t, nil, until(end))
	c := h2(t, nil)
	res, err := c.Post("http://"+r.addr+"/v1/chat/completions", "application/json", strings.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	testkit.Eventually(t, "the server stops", r.server.Stopping)
	close(end)
	if b, err := io.ReadAll(res.Body); string(b) != "data: 1\n\ndata: [DONE]\n\n" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}

func TestAFailingListenerEndsRun(t *testing.T) {
	cfg := api.Default()
	s := api.New(cfg, api.Parts{Serve: answerOK, Log: testkit.Discard(), Models: func() []string { return nil }})
	ln, err := api.Listen(t.Context(), "127.0.0.1:0", int(cfg.SendBuffer))
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if err := s.Run(t.Context(), ln, nil); err == nil {
		t.Error("Run went on without a listener")
	}
	if _, err := api.Listen(t.Context(), "127.0.0.1:99999", int(cfg.SendBuffer)); err == nil {
		t.Error("listens on a port that does not exist")
	}
}
