package engine

import (
	"errors"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// meter has the metrics that are fed one observation at a time. Everything else is read from Stats when scraped.
type meter struct {
	firstToken, interToken, queueTime prometheus.Observer
	success                           *prometheus.CounterVec
}

// registrar registers metrics and remembers what went wrong.
type registrar struct {
	*prometheus.Registry
	engine *Engine
	labels prometheus.Labels // of vLLM's metrics
	errs   []error
}

func (r *registrar) add(c prometheus.Collector) { r.errs = append(r.errs, r.Register(c)) }

func (r *registrar) gauge(name, help string, l prometheus.Labels, read func(Stats) float64) {
	r.add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: l},
		func() float64 { return read(r.engine.Stats()) }))
}

func (r *registrar) counter(name, help string, l prometheus.Labels, read func(Stats) uint64) {
	r.add(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: l},
		func() float64 { return float64(read(r.engine.Stats())) }))
}

func (r *registrar) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: help, ConstLabels: r.labels, Buckets: buckets,
	})
	r.add(h)
	return h
}

// newMeter registers vLLM's metrics under vLLM's names and labels (v1; routers that scrape it know these), and our own
// under engine_. Buckets are vLLM's.
func newMeter(e *Engine) (*prometheus.Registry, *meter, error) {
	r := &registrar{
		Registry: prometheus.NewRegistry(), engine: e,
		labels: prometheus.Labels{"model_name": e.cfg.Models[0], "engine": "0"},
	}
	seconds := []float64{
		.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
	}
	m := &meter{
		firstToken: r.histogram("vllm:time_to_first_token_seconds", "Time from arrival to the first token.", seconds),
		interToken: r.histogram("vllm:inter_token_latency_seconds", "Time between two tokens of a request.", []float64{
			.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
		}),
		queueTime: r.histogram("vllm:request_queue_time_seconds", "Time from arrival to the first prefill.", seconds),
		success: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vllm:request_success_total", Help: "Ended requests by reason.", ConstLabels: r.labels,
		}, []string{"finished_reason"}),
	}
	r.add(m.success)
	for _, reason := range []string{"stop", "length", "abort"} {
		m.success.WithLabelValues(reason)
	}
	r.vllm()
	r.own()
	return r.Registry, m, errors.Join(r.errs...)
}

// vllm registers what vLLM exports of its scheduler.
func (r *registrar) vllm() {
	r.gauge("vllm:num_requests_running", "Requests in the batch.", r.labels,
		func(s Stats) float64 { return float64(s.Running) })
	r.gauge("vllm:num_requests_waiting", "Requests in the queue.", r.labels,
		func(s Stats) float64 { return float64(s.Waiting) })
	r.gauge("vllm:kv_cache_usage_perc", "Share of the KV memory in use, 0 to 1.", r.labels,
		func(s Stats) float64 { return s.KVUsage })
	r.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", r.labels,
		func(s Stats) uint64 { return s.PrefixQueries })
	r.counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", r.labels,
		func(s Stats) uint64 { return s.PrefixHits })
	r.counter("vllm:num_preemptions_total", "Requests thrown out of the batch to make room.", r.labels,
		func(s Stats) uint64 { return s.Preemptions })
	r.counter("vllm:prompt_tokens_total", "Prompt tokens of admitted requests.", r.labels,
		func(s Stats) uint64 { return s.PromptTokens })
	r.counter("vllm:generation_tokens_total", "Tokens generated.", r.labels,
		func(s Stats) uint64 { return s.OutputTokens })
	law := r.engine.cfg.Batching
	r.gauge("vllm:cache_config_info", "The KV cache's configuration; always 1.", prometheus.Labels{
		"engine":                "0",
		"block_size":            strconv.Itoa(BlockTokens),
		"num_gpu_blocks":        strconv.Itoa(law.KVTokens / BlockTokens),
		"enable_prefix_caching": strconv.FormatBool(law.PrefixCache),
	}, func(Stats) float64 { return 1 })
}

// own registers what tells a measured run's worth.
func (r *registrar) own() {
	r.counter("engine_steps_total", "Steps done.", nil, func(s Stats) uint64 { return s.Steps })
	r.counter("engine_late_steps_total", "Steps that ended late by more than 2 ms and a quarter of their length.", nil,
		func(s Stats) uint64 { return s.LateSteps })
	r.gauge("engine_late_steps_ratio", "Share of late steps, 0 to 1.", nil, func(s Stats) float64 { return s.LateShare })
	r.counter("engine_events_total", "Data events written.", nil, func(s Stats) uint64 { return s.Events })
	r.counter("engine_cancelled_total", "Requests that ended before their answer was complete.", nil,
		func(s Stats) uint64 { return s.Cancelled })
	r.counter("engine_refused_total", "Requests turned away because the queue was full.", nil,
		func(s Stats) uint64 { return s.Refused })
}
