package usage

import (
	"math"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// descs names every metric of the package.
type descs struct {
	requestsTotal, cacheTotal, ttft, itl, e2e, overhead, tokensTotal *prometheus.Desc
	attemptsTotal, retriesTotal, hedgesTotal, panicTotal             *prometheus.Desc
	linesTotal, linesDropped, lineBytes                              *prometheus.Desc
	version, status, instanceInFlight, instancePrompt                *prometheus.Desc
	instanceTTFT, instanceWeight, instanceCapacity                   *prometheus.Desc
	poolInFlight, poolPrompt, poolStatus                             *prometheus.Desc
}

// newDescs builds the names. Metrics carry the package whose work they show.
func newDescs() descs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_"+name, help, labels, nil)
	}
	request := []string{"surface", "model", "pool"}
	instance := []string{"region", "pool", "instance"}
	pool := []string{"region", "pool"}
	return descs{
		requestsTotal: d("gateway_requests_total", "Requests, by the pool of their last attempt and by code; ok is an answer. The pool cache stands for answers that were not generated for the request.", append(request, "code")...),
		cacheTotal:    d("gateway_cache_total", "Requests whose answers may be kept, by what the cache did for them.", append(request, "result")...),
		ttft:          d("gateway_ttft_seconds", "Time from a request's head to the first token sent to the client; streams only.", request...),
		itl:           d("gateway_itl_seconds", "Gaps between the events of streams.", request...),
		e2e:           d("gateway_e2e_seconds", "Time from a request's head to the last byte of its answer; answered requests only.", request...),
		overhead:      d("gateway_overhead_seconds", "Time that was not spent waiting for upstreams; answered requests only.", request...),
		tokensTotal:   d("gateway_tokens_total", "Tokens by type; cached is a part of prompt, reasoning a part of completion. The pool cache counts those that were not generated again.", append(request, "type")...),
		attemptsTotal: d("gateway_attempts_total", "Attempts by pool and verdict.", "pool", "verdict"),
		retriesTotal:  d("gateway_retries_total", "Attempts that followed a failed one, by the pool that got them.", "pool"),
		hedgesTotal:   d("gateway_hedges_total", "Second attempts in parallel, by what became of them.", "pool", "result"),
		panicTotal:    d("gateway_panic_picks_total", "Attempts at instances that passive health had taken out, because nothing else was open.", "pool"),
		linesTotal:    d("usage_log_lines_total", "Lines of the access log written."),
		linesDropped:  d("usage_log_lines_dropped_total", "Lines of the access log lost: the buffer was full, a write failed, or the log was closed.", "reason"),
		lineBytes:     d("usage_log_buffer_bytes", "Bytes of the access log that wait to be written."),

		version:          d("fleet_snapshot_version", "Version of the fleet's snapshot; it grows with each change."),
		status:           d("fleet_instance_status", "1 for the status that the instance has.", append(instance, "status")...),
		instanceInFlight: d("fleet_instance_in_flight", "Attempts that hold a lease of the instance.", instance...),
		instancePrompt:   d("fleet_instance_prompt_tokens", "Estimated prompt tokens that wait for their first token.", instance...),
		instanceTTFT:     d("fleet_instance_ttft_seconds", "Peak-sensitive moving average of the time to first token.", instance...),
		instanceWeight:   d("fleet_instance_weight", "Weight in effect, lowered in slow start.", instance...),
		instanceCapacity: d("fleet_instance_capacity", "Most requests in flight; 0 is not known.", instance...),
		poolInFlight:     d("fleet_pool_in_flight", "Attempts that hold a lease in the pool.", pool...),
		poolPrompt:       d("fleet_pool_prompt_tokens", "Estimated prompt tokens in the pool that wait for their first token.", pool...),
		poolStatus:       d("fleet_pool_instances", "Instances of the pool by status.", append(pool, "status")...),
	}
}

// describe sends every name.
func (d *descs) describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		d.requestsTotal, d.cacheTotal, d.ttft, d.itl, d.e2e, d.overhead, d.tokensTotal, d.attemptsTotal, d.retriesTotal, d.hedgesTotal, d.panicTotal,
		d.linesTotal, d.linesDropped, d.lineBytes, d.version, d.status, d.instanceInFlight, d.instancePrompt, d.instanceTTFT,
		d.instanceWeight, d.instanceCapacity, d.poolInFlight, d.poolPrompt, d.poolStatus,
	} {
		ch <- desc
	}
}

// emitter sends metrics to a scrape.
type emitter struct{ ch chan<- prometheus.Metric }

// value sends one number. Labels that are not UTF-8 would spoil the whole
// scrape, so they are mended.
func (e emitter) value(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) {
	mend(labels)
	e.send(prometheus.NewConstMetric(d, t, v, labels...))
}

// count sends a counter.
func (e emitter) count(d *prometheus.Desc, c *atomic.Uint64, labels ...string) {
	e.value(d, prometheus.CounterValue, float64(c.Load()), labels...)
}

// histogram sends a histogram. Its count is the sum of the buckets that were
// read, so that the two agree while others observe.
func (e emitter) histogram(d *prometheus.Desc, h *histogram, labels ...string) {
	mend(labels)
	buckets := make(map[float64]uint64, len(h.bounds))
	var n uint64
	for i, bound := range h.bounds {
		n += h.counts[i].Load()
		buckets[bound.Seconds()] = n
	}
	n += h.counts[len(h.bounds)].Load()
	e.send(prometheus.NewConstHistogram(d, n, math.Float64frombits(h.sum.Load()), buckets, labels...))
}

// mend makes labels valid.
func mend(labels []string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l, "\ufffd")
	}
}

// send sends a metric; one that could not be made is sent as its error.
func (e emitter) send(m prometheus.Metric, err error) {
	if err != nil {
		m = prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
	}
	e.ch <- m
}

// requests sends the counters of requests. A code that never occurred has no
// series, except ok.
func (d *descs) requests(e emitter, s *series) {
	for k, r := range *s.rows.Load() {
		surface, model, pool := k.surface.String(), k.model, k.pool
		for i := range r.requests {
			code := other
			if i < len(s.codes) {
				code = codeName(s.codes[i])
			}
			if i == 0 || r.requests[i].Load() > 0 {
				e.count(d.requestsTotal, &r.requests[i], surface, model, pool, code)
			}
		}
		for i := range r.known {
			if r.known[i].Load() > 0 {
				e.count(d.cacheTotal, &r.known[i], surface, model, pool, string(cacheResults[i]))
			}
		}
		e.histogram(d.ttft, &r.ttft, surface, model, pool)
		e.histogram(d.itl, &r.gaps, surface, model, pool)
		e.histogram(d.e2e, &r.total, surface, model, pool)
		e.histogram(d.overhead, &r.overhead, surface, model, pool)
		e.count(d.tokensTotal, &r.prompt, surface, model, pool, "prompt")
		e.count(d.tokensTotal, &r.output, surface, model, pool, "completion")
		e.count(d.tokensTotal, &r.cached, surface, model, pool, "cached")
		e.count(d.tokensTotal, &r.thought, surface, model, pool, "reasoning")
	}
}

// attempts sends the counters of attempts.
func (d *descs) attempts(e emitter, s *series) {
	for pool, p := range *s.pools.Load() {
		for v := range p.verdicts {
			e.count(d.attemptsTotal, &p.verdicts[v], pool, inference.Verdict(v).String())
		}
		e.count(d.retriesTotal, &p.retries, pool)
		e.count(d.panicTotal, &p.panics, pool)
		for i := range p.hedges {
			e.count(d.hedgesTotal, &p.hedges[i], pool, hedgeNames[i])
		}
	}
}

// sink sends the state of the access log.
func (d *descs) sink(e emitter, s *sink) {
	e.count(d.linesTotal, &s.written)
	e.count(d.linesDropped, &s.full, "full")
	e.count(d.linesDropped, &s.failed, "write")
	e.count(d.linesDropped, &s.late, "closed")
	e.value(d.lineBytes, prometheus.GaugeValue, float64(s.waiting()))
}

// fleet sends what the fleet does now (Unix nanoseconds).
func (d *descs) fleet(e emitter, snap *fleet.Snapshot, now int64) {
	const gauge = prometheus.GaugeValue
	e.value(d.version, gauge, float64(snap.Version))
	for _, r := range snap.Regions {
		for _, p := range r.Pools {
			var byStatus [fleet.Down + 1]int
			for _, i := range p.Instances {
				has := i.Status(now)
				byStatus[has]++
				for s := range fleet.Down + 1 {
					e.value(d.status, gauge, truth(s == has), r.Name, p.Name, i.Name, s.String())
				}
				e.value(d.instanceInFlight, gauge, float64(i.Live.InFlight()), r.Name, p.Name, i.Name)
				e.value(d.instancePrompt, gauge, float64(i.Live.PromptTokens()), r.Name, p.Name, i.Name)
				e.value(d.instanceTTFT, gauge, i.Live.TTFT().Seconds(), r.Name, p.Name, i.Name)
				e.value(d.instanceWeight, gauge, i.EffectiveWeight(now), r.Name, p.Name, i.Name)
				e.value(d.instanceCapacity, gauge, float64(i.Capacity), r.Name, p.Name, i.Name)
			}
			e.value(d.poolInFlight, gauge, float64(p.Live.InFlight()), r.Name, p.Name)
			e.value(d.poolPrompt, gauge, float64(p.Live.PromptTokens()), r.Name, p.Name)
			for s, n := range byStatus {
				e.value(d.poolStatus, gauge, float64(n), r.Name, p.Name, fleet.Status(s).String())
			}
		}
	}
}

// truth is 1 or 0.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
