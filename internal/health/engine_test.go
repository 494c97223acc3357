package health_test

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/health"
)

// listen starts a real engine on addr ("127.0.0.1:0" for any) and returns its
// address and what ends it.
func listen(t *testing.T, addr string, cfg engine.Config) (string, func()) {
	t.Helper()
	e, err := engine.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- e.Serve(ctx, ln) }()
	return ln.Addr().String(), func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("engine: %v", err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func TestARealEngine(t *testing.T) {
	cfg := engine.Default()
	cfg.Models = []string{"sim"}
	cfg.DrainTimeout = 10 * time.Millisecond
	addr, stopEngine := listen(t, "127.0.0.1:0", cfg)
	r := newRig(t, func(p *health.Pool) {
		p.Dial, p.LearnModels = nil, true
		p.Config.Active.Type = health.CheckHTTP
		p.Config.Active.Interval, p.Config.Active.Timeout = 20*time.Millisecond, 5*time.Second
		p.Config.Active.Rule = &health.Rule{Metric: "vllm:num_requests_waiting", Labels: map[string]string{"engine": "0"}, Compare: "<", Value: 50}
		p.Metrics.Kind, p.Metrics.Interval = health.KindAuto, 100*time.Millisecond
	}, addr)
	defer r.run()()
	eventually(t, "models are not learned", func() bool { return len(r.fleet.Snapshot().Models()) == 1 })
	eventually(t, "no probe passed", func() bool { return strings.Contains(r.metrics(), "result=success") })
	eventually(t, "no round trip", func() bool { return r.instance(addr).Live.RoundTrip() > 0 })

	// A stream of somebody else shows in the engine's metrics.
	ctx, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/chat/completions",
		strings.NewReader(`{"model":"sim","stream":true,"max_tokens":100000,"messages":[{"role":"user","content":"hi"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the load of others is not seen", func() bool { return r.instance(addr).Live.Load(time.Now().UnixNano()) == 1 })
	hangUp()
	res.Body.Close()
	eventually(t, "the load of others does not end", func() bool { return r.instance(addr).Live.Load(time.Now().UnixNano()) == 0 })

	stopEngine()
	eventually(t, "a dead engine is not down", func() bool { return r.status(addr) == fleet.Down })
	cfg.Faults.Unhealthy = engine.StatusFault{Chance: engine.Chance{Probability: 1, Count: 3}}
	_, stopEngine = listen(t, addr, cfg)
	eventually(t, "it does not come back", func() bool { return r.status(addr) == fleet.Open })
	if n := r.log.Count("is up"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	stopEngine()
}

func TestGenerateAtARealEngine(t *testing.T) {
	addr, stopEngine := listen(t, "127.0.0.1:0", engine.Default())
	defer stopEngine()
	r := newRig(t, func(p *health.Pool) {
		p.Config.Active.Type, p.Config.Active.Model = health.CheckGenerate, "sim"
		p.Config.Active.Interval = 20 * time.Millisecond
	}, addr)
	defer r.run()()
	eventually(t, "no probe passed", func() bool { return strings.Contains(r.metrics(), "result=success") })
	r.apply(func(p *health.Pool) { p.Config.Active.Model = "unknown" })
	eventually(t, "an unknown model passes", func() bool { return r.status(addr) == fleet.Down })
}
