package health_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/health"
)

// port is a switchable listener for tcp checks.
type port struct {
	closed atomic.Bool
	dials  atomic.Int64
}

func (p *port) dial(context.Context, string, string) (net.Conn, error) {
	p.dials.Add(1)
	time.Sleep(20 * time.Millisecond)
	if p.closed.Load() {
		return nil, errors.New("refused")
	}
	c, _ := net.Pipe()
	return c, nil
}

func TestThresholds(t *testing.T) {
	p := new(port)
	bubble(t, func(pool *health.Pool) {
		pool.Dial = p.dial
		pool.Config.Active.InitialDelay, pool.Config.Active.SuccessThreshold = 7*time.Second, 2
	}, func(r *rig) {
		stop := r.run()
		defer stop()
		p.closed.Store(true)
		after(6900 * time.Millisecond)
		if n := p.dials.Load(); n != 0 {
			t.Fatalf("%d probes before the initial delay", n)
		}
		after(200*time.Millisecond + 5*time.Second) // two failed
		r.expect("a:1", fleet.Open)
		p.closed.Store(false)
		after(5 * time.Second) // one passed: the count begins anew
		p.closed.Store(true)
		after(10 * time.Second)
		r.expect("a:1", fleet.Open)
		after(5 * time.Second)
		r.expect("a:1", fleet.Down)
		p.closed.Store(false)
		after(5 * time.Second)
		r.expect("a:1", fleet.Down)
		after(5 * time.Second)
		r.expect("a:1", fleet.Open)
		after(time.Hour)
		i := r.instance("a:1")
		if w := i.Live.RoundTrip(); w != 20*time.Millisecond {
			t.Errorf("round trip %v, want 20ms", w)
		}
		if w := i.Pool.Live.RoundTrip(); w != 20*time.Millisecond {
			t.Errorf("pool's round trip %v, want 20ms", w)
		}
		if r.log.Count("is down") != 1 || r.log.Count("is up") != 1 {
			t.Errorf("log:\n%s", r.log.String())
		}
		r.expectMetric("probes_total pool=eu/gpu result=failure 5")
	}, "a:1")
}

func TestReloadAndInstancesThatLeave(t *testing.T) {
	p := new(port)
	bubble(t, func(pool *health.Pool) { pool.Dial = p.dial }, func(r *rig) {
		stop := r.run()
		defer stop()
		p.closed.Store(true)
		after(20 * time.Second)
		r.expect("a:1", fleet.Down)
		for range 10 { // ten reloads change nothing
			r.apply(nil)
			after(10 * time.Millisecond)
		}
		r.expect("a:1", fleet.Down)
		r.apply(func(pool *health.Pool) { pool.Config.Active.Type = health.CheckOff })
		after(time.Millisecond)
		r.expect("a:1", fleet.Open)
		n := p.dials.Load()
		after(time.Minute)
		if p.dials.Load() != n {
			t.Error("probed although checks are off")
		}
		r.apply(func(pool *health.Pool) {
			pool.Config.Active.Type, pool.Config.Active.Interval = health.CheckTCP, time.Second
		})
		after(3100 * time.Millisecond)
		r.expect("a:1", fleet.Down)
		r.layout("b:1")
		after(time.Second)
		n = p.dials.Load()
		after(10 * time.Second)
		if got := p.dials.Load() - n; got != 10 {
			t.Errorf("%d probes in 10 s, want 10 of b alone", got)
		}
		p.closed.Store(false)
		r.layout("b:1", "a:1")
		after(2 * time.Second)
		r.expect("a:1", fleet.Open)
		if err := r.Apply(map[string]health.Pool{"eu/gpu": {}}); err == nil {
			t.Error("a broken configuration was applied")
		}
	}, "a:1")
}

func TestAnInstanceThatAnswersProbesAgainIsTestedAtOnce(t *testing.T) {
	p := new(port)
	bubble(t, func(pool *health.Pool) {
		pool.Dial = p.dial
		pool.Config.Passive.EjectTime = 5 * time.Minute
	}, func(r *rig) {
		stop := r.run()
		defer stop()
		p.closed.Store(true)
		after(time.Second)
		r.attempt("a:1", refused)
		after(20 * time.Second)
		r.instance("b:1").Live.SetDown(false, 0)
		r.expect("a:1", fleet.Down)
		p.closed.Store(false)
		after(6 * time.Second)
		r.expect("a:1", fleet.Open)
		l := r.lease("a:1")
		if !l.Probe() {
			t.Error("not half-open")
		}
		r.end(l, nil)
	}, "a:1", "b:1")
}

func TestHTTPProbes(t *testing.T) {
	type probe struct {
		set    func(*health.Active)
		answer transport
		want   fleet.Status // after three probes
	}
	status := func(code int) transport { return func(*http.Request) (int, string, error) { return code, "", nil } }
	body := func(text string) transport { return func(*http.Request) (int, string, error) { return 200, text, nil } }
	rule := func(r health.Rule) func(*health.Active) { return func(a *health.Active) { a.Rule = &r } }
	queue := health.Rule{Metric: "vllm:num_requests_waiting", Compare: "<", Value: 50}
	depth := health.Rule{Path: "/stats?x=1", JSON: "queues.1.depth", Compare: "<=", Value: 3}
	cases := map[string]probe{
		"200":           {func(*health.Active) {}, status(200), fleet.Open},
		"503":           {func(*health.Active) {}, status(503), fleet.Down},
		"redirect":      {func(*health.Active) {}, status(302), fleet.Down},
		"status set":    {func(a *health.Active) { a.Status = []health.StatusRange{{204, 204}, {400, 499}} }, status(404), fleet.Open},
		"not in set":    {func(a *health.Active) { a.Status = []health.StatusRange{{204, 204}} }, status(200), fleet.Down},
		"error":         {func(*health.Active) {}, func(*http.Request) (int, string, error) { return 0, "", errors.New("reset") }, fleet.Down},
		"body":          {func(a *health.Active) { a.Body = `"ready":\s*true` }, body(`{"ready": true}`), fleet.Open},
		"other body":    {func(a *health.Active) { a.Body = `"ready":\s*true` }, body(`{"ready": false}`), fleet.Down},
		"body too late": {func(a *health.Active) { a.Body = `x` }, body(strings.Repeat(" ", 1<<20) + "x"), fleet.Down},
		"slow": {
			func(a *health.Active) { a.MaxLatency = time.Second },
			func(*http.Request) (int, string, error) { time.Sleep(1100 * time.Millisecond); return 200, "", nil }, fleet.Down,
		},
		"fast enough": {
			func(a *health.Active) { a.MaxLatency = time.Second },
			func(*http.Request) (int, string, error) { time.Sleep(900 * time.Millisecond); return 200, "", nil }, fleet.Open,
		},
		"hangs": {func(*health.Active) {}, func(req *http.Request) (int, string, error) {
			<-req.Context().Done()
			return 0, "", req.Context().Err()
		}, fleet.Down},
		"path and credentials": {func(a *health.Active) { a.Path = "/ping?deep=1" }, func(req *http.Request) (int, string, error) {
			if req.URL.String() != "http://a:1/base/ping?deep=1" || req.Header.Get("X-Api-Key") != "k" {
				return 500, "", nil
			}
			return 200, "", nil
		}, fleet.Open},
		"rule holds":         {rule(queue), body("vllm:num_requests_waiting{engine=\"0\"} 20\nvllm:num_requests_waiting{engine=\"1\"} 29\n"), fleet.Open},
		"rule does not hold": {rule(queue), body("vllm:num_requests_waiting{engine=\"0\"} 20\nvllm:num_requests_waiting{engine=\"1\"} 30\n"), fleet.Down},
		"rule with labels": {
			rule(health.Rule{Metric: "q", Labels: map[string]string{"m": "a"}, Compare: "==", Value: 1}),
			body("q{m=\"b\"} 7\nq{m=\"a\",x=\"y\"} 1\n"), fleet.Open,
		},
		"rule without its metric": {rule(queue), body("other 1\n"), fleet.Open},
		"rule on nonsense":        {rule(queue), body("vllm:num_requests_waiting{ 1\n"), fleet.Down},
		"rule on an error": {rule(queue), func(req *http.Request) (int, string, error) {
			if req.URL.Path == "/base/metrics" {
				return 500, "", nil
			}
			return 200, "", nil
		}, fleet.Down},
		"json holds":         {rule(depth), body(`{"queues":[{"depth":9},{"depth":3}]}`), fleet.Open},
		"json does not hold": {rule(depth), body(`{"queues":[{"depth":0},{"depth":3.5}]}`), fleet.Down},
		"json without field": {rule(depth), body(`{"queues":[]}`), fleet.Open},
		"json of text":       {rule(depth), body(`{"queues":[0,{"depth":"many"}]}`), fleet.Open},
		"json truth":         {rule(health.Rule{Path: "/x", JSON: "ready", Compare: "==", Value: 1}), body(`{"ready":false}`), fleet.Down},
		"json broken":        {rule(depth), body(`{`), fleet.Down},
		"generates": {func(a *health.Active) { a.Type, a.Model = health.CheckGenerate, "m" }, func(req *http.Request) (int, string, error) {
			if req.Method != "POST" || req.URL.Path != "/base/v1/chat/completions" {
				return 404, "", nil
			}
			return 200, `{"choices":[{}]}`, nil
		}, fleet.Open},
		"generates nothing": {func(a *health.Active) { a.Type, a.Model = health.CheckGenerate, "m" }, body(`{"choices":[]}`), fleet.Down},
		"generation busy":   {func(a *health.Active) { a.Type, a.Model = health.CheckGenerate, "m" }, status(429), fleet.Open},
		"generation broken": {func(a *health.Active) { a.Type, a.Model = health.CheckGenerate, "m" }, status(500), fleet.Down},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(p *health.Pool) {
				p.Config.Active.Type = health.CheckHTTP
				p.Transport, p.Header = c.answer, http.Header{"X-Api-Key": {"k"}}
				c.set(&p.Config.Active)
			}, func(r *rig) {
				stop := r.run()
				defer stop()
				after(20 * time.Second)
				if got := r.status("a:1/base"); got != c.want {
					t.Errorf("got %v, want %v; log:\n%s", got, c.want, r.log.String())
				}
			}, "a:1/base")
		})
	}
}

func TestARuleWithoutAValueSaysSo(t *testing.T) {
	var text atomic.Value
	text.Store("q 100\n")
	bubble(t, func(p *health.Pool) {
		p.Config.Active.Rule = &health.Rule{Metric: "q", Compare: "<", Value: 50}
		p.Transport = transport(func(*http.Request) (int, string, error) { return 200, text.Load().(string), nil })
	}, func(r *rig) {
		stop := r.run()
		defer stop()
		after(20 * time.Second)
		r.expect("a:1", fleet.Down)
		text.Store("renamed 0\n")
		after(time.Minute)
		r.expect("a:1", fleet.Down) // stays as it is
		r.expectMetric("metric_missing instance=eu/gpu/a:1 pool=eu/gpu 1", "probes_total pool=eu/gpu result=unknown 12")
		if n := r.log.Count("says nothing"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		text.Store("q NaN\n")
		after(time.Minute)
		text.Store("q 1\n")
		after(time.Minute)
		r.expect("a:1", fleet.Open)
		r.expectMetric("metric_missing instance=eu/gpu/a:1 pool=eu/gpu 0")
	}, "a:1")
}

func TestInstancesThatLeaveAreForgotten(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		stop := r.run()
		defer stop()
		after(10 * time.Second)
		if n := r.Records(); n != 3 {
			t.Errorf("%d remembered, want 3", n)
		}
		r.layout("b:1")
		after(10 * time.Second)
		if n := r.Records(); n != 1 {
			t.Errorf("%d remembered, want 1", n)
		}
	}, "a:1", "b:1", "c:1")
}
