package health_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a monitor over one pool "eu/gpu".
type rig struct {
	*health.Monitor
	t     testing.TB
	fleet *fleet.Fleet
	log   *testkit.Log
	pool  health.Pool
}

// newRig builds it. hosts are the static instances; without jitter all times are
// exact.
func newRig(t testing.TB, change func(*health.Pool), hosts ...string) *rig {
	t.Helper()
	r := &rig{t: t, log: new(testkit.Log), fleet: fleet.New(slog.New(slog.DiscardHandler))}
	r.layout(hosts...)
	r.Monitor = health.New(r.fleet, slog.New(slog.NewTextHandler(r.log, nil)))
	r.pool = health.Pool{Config: health.Default(), Metrics: health.DefaultMetrics()}
	r.pool.Config.Active.Jitter, r.pool.Config.Passive.Jitter = 0, 0
	r.pool.Dial = func(context.Context, string, string) (net.Conn, error) {
		c, _ := net.Pipe()
		return c, nil
	}
	r.apply(change)
	return r
}

func (r *rig) layout(hosts ...string) {
	r.t.Helper()
	var targets []fleet.Target
	for _, h := range hosts {
		targets = append(targets, fleet.Target{URL: "http://" + h})
	}
	pool := fleet.PoolLayout{Name: "gpu", Static: targets}
	if err := r.fleet.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{pool}}}}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) apply(change func(*health.Pool)) {
	r.t.Helper()
	if change != nil {
		change(&r.pool)
	}
	if err := r.Apply(map[string]health.Pool{"eu/gpu": r.pool}); err != nil {
		r.t.Fatal(err)
	}
}

// run starts the monitor and returns what ends it.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	}
}

func (r *rig) instance(host string) *fleet.Instance {
	r.t.Helper()
	i, ok := r.fleet.Snapshot().Instance("eu/gpu/" + host)
	if !ok {
		r.t.Fatalf("no instance %s", host)
	}
	return i
}

func (r *rig) status(host string) fleet.Status {
	return r.instance(host).Status(time.Now().UnixNano())
}

func (r *rig) expect(host string, want fleet.Status) {
	r.t.Helper()
	if got := r.status(host); got != want {
		r.t.Errorf("%s: got %v, want %v", host, got, want)
	}
}

// only picks one host, or nothing.
type only string

func (o only) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	for i, n := range nodes {
		if strings.HasSuffix(n.Name, "/"+string(o)) && q.Open(n) {
			return i
		}
	}
	return -1
}

// lease takes a slot at the host.
func (r *rig) lease(host string) *fleet.Lease {
	r.t.Helper()
	p := fleet.NewPlan(&inference.Request{})
	p.Candidates = append(p.Candidates, fleet.Candidate{Pool: r.instance(host).Pool, Picker: only(host)})
	l, err := p.Acquire(time.Now(), nil)
	if err != nil {
		r.t.Fatalf("no lease at %s: %v", host, err)
	}
	return l
}

// end ends an attempt with a verdict.
func (r *rig) end(l *fleet.Lease, failure *inference.Failure) {
	r.Observe(l, failure)
	l.Release(time.Now())
}

// attempt is one attempt at a host from start to end.
func (r *rig) attempt(host string, failure *inference.Failure) {
	r.t.Helper()
	r.end(r.lease(host), failure)
}

var (
	broken  = &inference.Failure{Verdict: inference.VerdictBroken, Reason: "reset"}
	refused = &inference.Failure{Verdict: inference.VerdictBroken, Reason: "connect"}
	busy    = &inference.Failure{Verdict: inference.VerdictBusy, Reason: "status_429"}
	spent   = &inference.Failure{Verdict: inference.VerdictSpent, Reason: "insufficient_quota"}
)

// metrics renders what the monitor collects, one series a line.
func (r *rig) metrics() string {
	r.t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r.Monitor)
	families, err := reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.Metric {
			b.WriteString(strings.TrimPrefix(f.GetName(), "spillway_health_"))
			for _, l := range m.Label {
				fmt.Fprintf(&b, " %s=%s", l.GetName(), l.GetValue())
			}
			fmt.Fprintf(&b, " %v\n", m.GetGauge().GetValue()+m.GetCounter().GetValue())
		}
	}
	return b.String()
}

func (r *rig) expectMetric(lines ...string) {
	r.t.Helper()
	all := r.metrics()
	for _, line := range lines {
		if !strings.Contains(all, line+"\n") {
			r.t.Errorf("no metric %q in\n%s", line, all)
		}
	}
}

// transport answers requests in place.
type transport func(*http.Request) (int, string, error)

func (f transport) RoundTrip(req *http.Request) (*http.Response, error) {
	status, body, err := f(req)
	if err != nil {
		return nil, err
	}
	if req.Context().Err() != nil {
		return nil, req.Context().Err()
	}
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// bubble runs f with a rig in fake time.
func bubble(t *testing.T, change func(*health.Pool), f func(*rig), hosts ...string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newRig(t, change, hosts...)) })
}

// after lets time pass, and everything that is due happen.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
