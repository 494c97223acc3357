package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// KindAuto finds out which engine's metrics an instance has.
const KindAuto = "auto"

// staleAfter is how many intervals a report of the load is used.
const staleAfter = 3

// alias is where an engine says how many requests it runs and has waiting. All
// series of a metric are added up: one for each engine of a data-parallel
// server. Names drift between versions, so an engine may have several.
type alias struct {
	kind             string
	running, waiting string
	preempted        string   // sequences thrown out for want of memory so far; "" is not exported
	ranks            []string // labels of ranks that would count a request again
}

// aliases are the names as the engines' sources and documentation have them.
var aliases = []alias{
	{kind: "vllm", running: "vllm:num_requests_running", waiting: "vllm:num_requests_waiting", preempted: "vllm:num_preemptions_total"},
	// With --enable-metrics-for-all-schedulers each rank of a tensor-parallel group reports.
	{kind: "sglang", running: "sglang:num_running_reqs", waiting: "sglang:num_queue_reqs", ranks: []string{"tp_rank", "pp_rank"}},
	{kind: "llamacpp", running: "llamacpp:requests_processing", waiting: "llamacpp:requests_deferred"},
	{kind: "tgi", running: "tgi_batch_current_size", waiting: "tgi_queue_size"},
	{kind: "trtllm", running: "trtllm_num_requests_running", waiting: "trtllm_num_requests_waiting"},
	{kind: "trtllm", running: "trtllm_num_active_requests", waiting: "trtllm_num_queued_requests"},
}

// Kinds lists the values of the key `kind`.
func Kinds() []string {
	kinds := []string{KindAuto}
	for _, a := range aliases {
		if !slices.Contains(kinds, a.kind) {
			kinds = append(kinds, a.kind)
		}
	}
	return kinds
}

// errNoMetric says that an exposition holds no load under a known name.
var errNoMetric = errors.New("no metric for running and waiting requests")

// report is what an exposition says of its engine.
type report struct {
	requests  int64 // running and waiting
	preempted int64 // sequences thrown out for want of memory since the engine's start; -1 is not known
}

// load reads a report from an exposition.
func load(body io.Reader, kind string) (report, error) {
	var known []alias
	var want []selector
	for _, a := range aliases {
		if kind == "" || kind == KindAuto || kind == a.kind {
			known = append(known, a)
			want = append(want, selector{name: a.running, first: a.ranks}, selector{name: a.waiting, first: a.ranks}, selector{name: a.preempted})
		}
	}
	totals, err := scan(io.LimitReader(body, maxListing+1), want)
	if err != nil {
		return report{}, err
	}
	err = errNoMetric
	for i, a := range known {
		running, waiting, preempted := totals[3*i], totals[3*i+1], totals[3*i+2]
		n := running.sum + waiting.sum
		switch {
		case running.series == 0 && waiting.series == 0:
		case running.series == 0:
			err = fmt.Errorf("metric %s is missing", a.running)
		case waiting.series == 0:
			err = fmt.Errorf("metric %s is missing", a.waiting)
		case !(n >= 0 && n < 1e9):
			err = fmt.Errorf("metrics %s and %s add up to %v", a.running, a.waiting, n)
		default:
			r := report{requests: int64(n), preempted: -1}
			if preempted.series > 0 && preempted.sum >= 0 && preempted.sum < 1e15 {
				r.preempted = int64(preempted.sum)
			}
			return r, nil
		}
	}
	return report{}, err
}

// path is where the metrics are.
func (s *Metrics) path() string {
	switch {
	case s.Path != "":
		return s.Path
	case s.Kind == "trtllm":
		return "/prometheus/metrics"
	}
	return "/metrics"
}

// scraper reads one instance's metrics. It belongs to one goroutine.
type scraper struct {
	m   *Monitor
	job job
}

// step scrapes once. What cannot be read is not reported, so that an older
// report runs out and the gateway's own count stands alone.
func (s *scraper) step(ctx context.Context) time.Duration {
	p := s.m.pool(s.job.pool)
	if p == nil || !p.Metrics.Enabled() {
		return time.Hour // this worker is about to be ended
	}
	begun := time.Now()
	r, err := s.scrape(ctx, p)
	if ctx.Err() != nil {
		return 0
	}
	missing := err != nil
	if s.m.record(s.job.live).loadMissing.Swap(missing) != missing {
		if missing {
			s.m.log.Warn("instance's own load is not known", "pool", p.name, "instance", s.job.name, "err", err)
		} else {
			s.m.log.Info("instance's own load is known again", "pool", p.name, "instance", s.job.name)
		}
	}
	if !missing {
		s.job.live.Meter().Preempted(r.preempted)
		s.job.live.Report(r.requests, time.Now().Add(staleAfter*p.Metrics.Interval).UnixNano())
	}
	spread := 0.95 + 0.1*rand.Float64() // instances that started together drift apart
	return max(0, time.Duration(spread*float64(p.Metrics.Interval))-time.Since(begun))
}

// scrape reads the engine's report.
func (s *scraper) scrape(ctx context.Context, p *pool) (report, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Metrics.Timeout)
	defer cancel()
	res, err := p.send(ctx, &s.job, http.MethodGet, p.Metrics.path(), nil)
	if err != nil {
		return report{}, err
	}
	defer discard(res.Body)
	if res.StatusCode != http.StatusOK {
		return report{}, fmt.Errorf("%s: status %d", p.Metrics.path(), res.StatusCode)
	}
	return load(res.Body, p.Metrics.Kind)
}
