package upstream_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/upstream"
)

// handler answers as a model server does, and waits for its client to leave when
// the prompt says so.
func handler(left *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Protocol", r.Proto)
		if !strings.Contains(string(body), `"stream":true`) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, testkit.Answer)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, testkit.Delta("a"))
		w.(http.Flusher).Flush()
		if strings.Contains(string(body), "wait") {
			<-r.Context().Done()
			left.Add(1)
			return
		}
		io.WriteString(w, testkit.Delta("b")+testkit.FinishEvent+testkit.DoneEvent)
	})
}

// newTLSRig is a rig whose instance speaks TLS.
func newTLSRig(t *testing.T, http2 bool, change func(*upstream.Config)) (*rig, *atomic.Int64) {
	t.Helper()
	left := new(atomic.Int64)
	s := httptest.NewUnstartedServer(handler(left))
	s.EnableHTTP2 = http2
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, client: upstream.New(), fleet: fleet.New(testkit.Discard())}
	if err := r.fleet.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"m": "m"}, Surfaces: inference.Surfaces(), Static: []fleet.Target{{URL: s.URL}},
	}}}}}); err != nil {
		t.Fatal(err)
	}
	cfg := upstream.Default()
	cfg.TLSCAFile = ca
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
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
	return r, left
}

// protocol is what the instance says that it was asked over.
func protocol(h *inference.Head) string {
	for _, f := range h.Fields {
		if f.Name == "X-Protocol" {
			return f.Value
		}
	}
	return ""
}

func TestTLSAndHTTP2(t *testing.T) {
	for name, c := range map[string]struct {
		http2 bool
		want  string
	}{"own connections": {false, "HTTP/1.1"}, "http.Transport": {true, "HTTP/2.0"}} {
		t.Run(name, func(t *testing.T) {
			r, left := newTLSRig(t, c.http2, func(cfg *upstream.Config) { cfg.HTTP2 = c.http2 })
			const whole = `{"choices":[{"index":0,"message":{"role":"assistant","content":"ab"},"finish_reason":"stop"}]}`
			for range 3 {
				for body, want := range map[string]string{plainBody: whole, unknownBody: testkit.Answer} {
					h, b, err := r.body(request(t, body, nil))
					if err != io.EOF || b != want || protocol(h) != c.want {
						t.Fatalf("got %q over %s, %v; want it over %s", b, protocol(h), err, c.want)
					}
				}
			}
			got, _, err := r.stream(request(t, streamBody, nil))
			if want := testkit.Delta("a") + testkit.Delta("b") + testkit.FinishEvent + testkit.DoneEvent; err != io.EOF || got != want {
				t.Errorf("got %q, %v", got, err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			a, done, err := r.open(ctx, request(t, strings.Replace(streamBody, "hi", "wait", 1), nil))
			if err != nil {
				t.Fatal(err)
			}
			for ev := (inference.Event{}); err == nil && ev.Kind != inference.EventDelta; {
				if _, err = a.Head(soon()); err == nil {
					ev, err = a.Event(soon())
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Event(time.Now().Add(20 * time.Millisecond)); err != inference.ErrNotYet {
				t.Errorf("a wait that ends: got %v", err)
			}
			cancel()
			_, err = a.Event(soon())
			failure(t, err, inference.VerdictCanceled, "canceled")
			done()
			testkit.Eventually(t, "the instance sees its client leave", func() bool { return left.Load() == 1 })
		})
	}
}

func TestUnknownAuthorityIsAFailureToConnect(t *testing.T) {
	r, _ := newTLSRig(t, false, func(cfg *upstream.Config) { cfg.TLSCAFile = "" })
	_, _, err := r.open(context.Background(), request(t, plainBody, nil))
	failure(t, err, inference.VerdictBroken, "connect")
}

func TestOutboundProxy(t *testing.T) {
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool { x.JSON(429, "{}", "Retry-After: 2"); return true })
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		u := &url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path}
		req, _ := http.NewRequestWithContext(r.Context(), r.Method, u.String(), r.Body)
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer res.Body.Close()
		w.Header().Set("Retry-After", res.Header.Get("Retry-After"))
		w.WriteHeader(res.StatusCode)
		fmt.Fprint(w, "{}")
	}))
	t.Cleanup(func() {
		proxy.Close()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	r := newRig(t, func(c *upstream.Config) { c.Proxy = proxy.URL }, func(*testkit.Exchange) bool { return false })
	r.fleet = testkit.Fleet(t, inst.Addr)
	_, _, err := r.body(request(t, plainBody, nil))
	f := failure(t, err, inference.VerdictBusy, "status_429")
	if f.RetryAfter != 2*time.Second || asked.Load() != 1 || inst.Requests() != 1 {
		t.Errorf("got %+v, proxy asked %d times, instance %d times", f, asked.Load(), inst.Requests())
	}
}
