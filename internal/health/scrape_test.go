package health_test

import (
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/health"
)

func TestScrapesCorrectTheLoadWhileTheyAreFresh(t *testing.T) {
	const good = "vllm:num_requests_running 7\nvllm:num_requests_waiting 2\n"
	var text atomic.Value
	text.Store(good)
	var asked atomic.Int64
	bubble(t, func(p *health.Pool) {
		p.Config.Active.Type = health.CheckOff
		p.Metrics.Kind = "vllm"
		p.Transport = transport(func(req *http.Request) (int, string, error) {
			asked.Add(1)
			body := text.Load().(string)
			switch {
			case req.URL.String() != "http://a:1/metrics":
				return 404, "", nil
			case body == "":
				return 0, "", errors.New("reset")
			case body == "hang":
				<-req.Context().Done()
				return 0, "", req.Context().Err()
			}
			return 200, body, nil
		})
	}, func(r *rig) {
		stop := r.run()
		defer stop()
		load := func() int64 { return r.instance("a:1").Live.Load(time.Now().UnixNano()) }
		after(time.Millisecond)
		if got := load(); got != 9 {
			t.Errorf("load %d, want 9", got)
		}
		leases := r.lease("a:1")
		after(10 * time.Second)
		if got := load(); got != 9 {
			t.Errorf("load %d with one of the nine our own, want 9", got)
		}
		if n := asked.Load(); n < 5 || n > 7 {
			t.Errorf("scraped %d times in 10 s, want about 6", n)
		}
		for _, problem := range []string{"vllm:num_requests_running 7\n", "", "hang", "vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\n"} {
			text.Store(problem)
			after(3 * time.Second)
			if got := load(); got != 9 {
				t.Errorf("%q: load %d while the last report is fresh, want 9", problem, got)
			}
			after(20 * time.Second)
			if got := load(); got != 1 {
				t.Errorf("%q: load %d once it is stale, want our own 1", problem, got)
			}
			r.expectMetric("metric_missing instance=eu/gpu/a:1 pool=eu/gpu 1")
			text.Store(good)
			after(4 * time.Second)
			r.expectMetric("metric_missing instance=eu/gpu/a:1 pool=eu/gpu 0")
		}
		if lost, found := r.log.Count("is not known"), r.log.Count("is known again"); lost != 4 || found != 4 {
			t.Errorf("logged %d and %d times, want 4 and 4", lost, found)
		}
		r.apply(func(p *health.Pool) { p.Metrics = health.DefaultMetrics() })
		after(time.Second)
		n := asked.Load()
		after(time.Minute)
		if asked.Load() != n {
			t.Error("scraped although switched off")
		}
		r.end(leases, nil)
	}, "a:1")
}
