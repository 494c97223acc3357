package admission

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// desc describes a metric of the governor.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_admission_"+name, help, labels, nil)
}

// descs are the governor's metrics but for the histogram of waits.
type descs struct {
	admitted, refused, left, retries, forged, capped *prometheus.Desc
	issued, claimed, tickets                         *prometheus.Desc
	waiting, waitingBytes, pressure, step, accounts  *prometheus.Desc
	limit, window, memory, share, prefill            *prometheus.Desc
	held, refusedWork, unmet                         *prometheus.Desc
}

// newDescs makes them.
func newDescs() *descs {
	return &descs{
		admitted:     desc("admitted_total", "Attempts that got a slot, by class.", "class"),
		refused:      desc("refused_total", "Requests refused, by class and reason.", "class", "reason"),
		left:         desc("left_total", "Requests whose client left the queue, by class.", "class"),
		retries:      desc("client_retries_total", "Requests that a client's SDK says are retries."),
		forged:       desc("tickets_invalid_total", "Return tickets shown that were forged, early, late or another request's."),
		capped:       desc("capped_total", "Attempts whose max_tokens was capped by the brownout."),
		issued:       desc("tickets_issued_total", "Return tickets issued, by class.", "class"),
		claimed:      desc("tickets_claimed_total", "Return tickets honoured, by class.", "class"),
		tickets:      desc("tickets", "Return tickets out, by model and class.", "model", "class"),
		waiting:      desc("waiting", "Requests waiting, by model and class.", "model", "class"),
		waitingBytes: desc("waiting_bytes", "Bytes of the requests waiting."),
		pressure:     desc("pressure", "Longest predicted wait of vip and normal by what they may wait."),
		step:         desc("brownout_step", "Rung of the brownout ladder: 0 none, 1 yield, 2 cap_tokens, 3 cheaper_model."),
		accounts:     desc("accounts", "Tenants whose service is counted."),
		limit:        desc("instance_limit", "Learned limit of requests in flight; 0 is none.", "instance"),
		window:       desc("instance_window_tokens", "Learned limit of outstanding prompt tokens; 0 is none.", "instance"),
		memory:       desc("instance_memory_tokens", "Learned limit of tokens held; 0 is none.", "instance"),
		share:        desc("instance_objective_share", "Share of the time per token's objective that the instance is steered to.", "instance"),
		prefill:      desc("instance_prefill_tokens_per_second", "Learned rate of prefill.", "instance"),
		held:         desc("held_tokens", "Work waiting, in tokens of prompts and expected answers, by pool.", "pool"),
		refusedWork:  desc("refused_tokens_total", "Work refused, by pool.", "pool"),
		unmet:        desc("unmet_tokens_total", "Work that waited in vain, by pool.", "pool"),
	}
}

// waitBounds are the bounds of the histogram of waits, seconds.
var waitBounds = []float64{0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}

// newWaits makes the histogram of the time that requests waited for their slot.
func newWaits() *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "spillway_admission_wait_seconds", Help: "Time in the queue of requests that got a slot after waiting, by class.", Buckets: waitBounds,
	}, []string{"class"})
	for c := range classes {
		v.WithLabelValues(inference.Class(c).String())
	}
	return v
}

// Describe implements prometheus.Collector.
func (g *Governor) Describe(ch chan<- *prometheus.Desc) {
	d := g.descs
	for _, one := range []*prometheus.Desc{
		d.admitted, d.refused, d.left, d.retries, d.forged, d.capped, d.issued, d.claimed, d.tickets, d.waiting, d.waitingBytes,
		d.pressure, d.step, d.accounts, d.limit, d.window, d.memory, d.share, d.prefill, d.held, d.refusedWork, d.unmet,
	} {
		ch <- one
	}
	g.waits.Describe(ch)
}

// Collect implements prometheus.Collector.
func (g *Governor) Collect(ch chan<- prometheus.Metric) {
	d := g.descs
	gauge := func(of *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(of, prometheus.GaugeValue, v, labels...)
	}
	count := func(of *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(of, prometheus.CounterValue, v, labels...)
	}
	for c := range classes {
		class := inference.Class(c).String()
		count(d.admitted, float64(g.count.admitted[c].Load()), class)
		count(d.left, float64(g.count.left[c].Load()), class)
		count(d.issued, float64(g.count.issued[c].Load()), class)
		count(d.claimed, float64(g.count.claimed[c].Load()), class)
		for i, reason := range reasons {
			count(d.refused, float64(g.count.refused[c][i].Load()), class, reason)
		}
	}
	count(d.retries, float64(g.count.retries.Load()))
	count(d.forged, float64(g.count.forged.Load()))
	count(d.capped, float64(g.count.capped.Load()))
	s := g.Snapshot()
	gauge(d.waitingBytes, float64(s.Bytes))
	gauge(d.pressure, s.Pressure)
	gauge(d.step, float64(s.Step))
	gauge(d.accounts, float64(s.Accounts))
	for key, n := range s.Models {
		gauge(d.waiting, float64(n.Waiting), key.Model, key.Class.String())
		gauge(d.tickets, float64(n.Tickets), key.Model, key.Class.String())
	}
	for _, p := range s.Pools {
		gauge(d.held, p.Held, p.Name)
		count(d.refusedWork, p.Refused, p.Name)
		count(d.unmet, p.Unmet, p.Name)
	}
	g.fleet.Snapshot().Instances(func(i *fleet.Instance) {
		limit, window, memory := i.Live.Limits()
		gauge(d.limit, float64(limit), i.Name)
		gauge(d.window, float64(window), i.Name)
		gauge(d.memory, float64(memory), i.Name)
		if s := (*g.servers.Load())[i.Live]; s != nil {
			gauge(d.share, math.Float64frombits(s.share.Load()), i.Name)
			gauge(d.prefill, math.Float64frombits(s.prefill.Load()), i.Name)
		}
	})
	g.waits.Collect(ch)
}
