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

// newMeter registers vLLM's metrics under vLLM's names and labels (vLLM v1, schedulers that scrape it know these), and
// our own under engine_. Buckets are vLLM's.
func newMeter(e *Engine) (*prometheus.Registry, *meter, error) {
	labels := prometheus.Labels{"model_name": e.cfg.Models[0], "engine": "0"}
	registry := prometheus.NewRegistry()
	var errs []error
	add := func(c prometheus.Collector) { errs = append(errs, registry.Register(c)) }
	gauge := func(name, help string, l prometheus.Labels, read func(Stats) float64) {
		add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: l},
			func() float64 { return read(e.Stats()) }))
	}
	counter := func(name, help string, l prometheus.Labels, read func(Stats) uint64) {
		add(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: l},
			func() float64 { return float64(read(e.Stats())) }))
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: name, Help: help, ConstLabels: labels, Buckets: buckets,
		})
		add(h)
		return h
	}
	seconds := []float64{
		.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
	}
	m := &meter{
		firstToken: histogram("vllm:time_to_first_token_seconds", "Time from arrival to the first token.", seconds),
		interToken: histogram("vllm:inter_token_latency_seconds", "Time between two tokens of a request.", []float64{
			.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
		}),
		queueTime: histogram("vllm:request_queue_time_seconds", "Time from arrival to the first prefill.", seconds),
		success: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "vllm:request_success_total", Help: "Ended requests by reason.", ConstLabels: labels,
		}, []string{"finished_reason"}),
	}
	add(m.success)
	for _, reason := range []string{"stop", "length", "abort"} {
		m.success.WithLabelValues(reason)
	}
	gauge("vllm:num_requests_running", "Requests in the batch.", labels,
		func(s Stats) float64 { return float64(s.Running) })
	gauge("vllm:num_requests_waiting", "Requests in the queue.", labels,
		func(s Stats) float64 { return float64(s.Waiting) })
	gauge("vllm:kv_cache_usage_perc", "Share of the KV memory in use, 0 to 1.", labels,
		func(s Stats) float64 { return s.KVUsage })
	counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", labels,
		func(s Stats) uint64 { return s.PrefixQueries })
	counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", labels,
		func(s Stats) uint64 { return s.PrefixHits })
	counter("vllm:num_preemptions_total", "Requests thrown out of the batch to make room.", labels,
		func(s Stats) uint64 { return s.Preemptions })
	counter("vllm:prompt_tokens_total", "Prompt tokens of admitted requests.", labels,
		func(s Stats) uint64 { return s.PromptTokens })
	counter("vllm:generation_tokens_total", "Tokens generated.", labels,
		func(s Stats) uint64 { return s.OutputTokens })
	gauge("vllm:cache_config_info", "The KV cache's configuration; always 1.", prometheus.Labels{
		"engine":                "0",
		"block_size":            strconv.Itoa(BlockTokens),
		"num_gpu_blocks":        strconv.Itoa(e.cfg.Batching.KVTokens / BlockTokens),
		"enable_prefix_caching": strconv.FormatBool(e.cfg.Batching.PrefixCache),
	}, func(Stats) float64 { return 1 })
	counter("engine_steps_total", "Steps done.", nil, func(s Stats) uint64 { return s.Steps })
	counter("engine_late_steps_total", "Steps that ended late by more than 2 ms and a quarter of their length.", nil,
		func(s Stats) uint64 { return s.LateSteps })
	gauge("engine_late_steps_ratio", "Share of late steps, 0 to 1.", nil, func(s Stats) float64 { return s.LateShare })
	counter("engine_events_total", "Data events written.", nil, func(s Stats) uint64 { return s.Events })
	counter("engine_cancelled_total", "Requests that ended before their answer was complete.", nil,
		func(s Stats) uint64 { return s.Cancelled })
	counter("engine_refused_total", "Requests turned away because the queue was full.", nil,
		func(s Stats) uint64 { return s.Refused })
	return registry, m, errors.Join(errs...)
}
