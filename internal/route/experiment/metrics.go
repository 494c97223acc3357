package experiment

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counts is what became of an arm's requests since the process began, whatever is
// reset.
type counts struct{ results [results]atomic.Uint64 }

// add counts one request.
func (c *counts) add(r result) { c.results[r].Add(1) }

// newCounts makes an arm's counts, and keeps those of the trial that is replaced.
func newCounts(names []string, was *trial) []*counts {
	all := make([]*counts, len(names))
	for i, name := range names {
		all[i] = new(counts)
		if was == nil {
			continue
		}
		for j, old := range was.names {
			if old == name {
				all[i] = was.counts[j]
			}
		}
	}
	return all
}

// descs names every metric of the package.
type descs struct{ requests, state, share, answers *prometheus.Desc }

// newDescs builds the names.
func newDescs() descs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_route_experiment_"+name, help, labels, nil)
	}
	return descs{
		requests: d("requests_total", "Requests of an experiment's arms, by what they count as. Canceled, excluded and cached ones are no samples.", "experiment", "arm", "result"),
		state:    d("state", "1 for the state that an experiment is in: running, stopped or rolled_back.", "experiment", "state"),
		share:    d("share_ratio", "Share of the requests matched by its condition that an experiment takes at this step of its ramp.", "experiment"),
		answers:  d("feedback_answers", "Answers of experiments that can be scored."),
	}
}

// Describe implements prometheus.Collector.
func (s *Set) Describe(ch chan<- *prometheus.Desc) {
	ch <- s.descs.requests
	ch <- s.descs.state
	ch <- s.descs.share
	ch <- s.descs.answers
}

// Collect implements prometheus.Collector.
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	now := time.Now()
	for _, t := range s.table.Load().trials {
		for i, c := range t.counts {
			for r := range c.results {
				ch <- prometheus.MustNewConstMetric(s.descs.requests, prometheus.CounterValue, float64(c.results[r].Load()), t.cfg.Name, t.names[i], resultNames[r])
			}
		}
		state, share := t.life.state.Load(), 0.0
		for _, name := range []string{Running, Stopped, RolledBack} {
			v := 0.0
			if state.State == name {
				v = 1
			}
			gauge(s.descs.state, v, t.cfg.Name, name)
		}
		if state.State == Running {
			share = t.share(now.Sub(state.Started))
		}
		gauge(s.descs.share, share, t.cfg.Name)
	}
	gauge(s.descs.answers, float64(s.memory.len()))
}
