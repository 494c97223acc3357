package preload

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meter holds the counters of plans and refreshes, and the descriptions of what is
// read from the engine when it is collected.
type meter struct {
	predictions prometheus.Counter
	refreshes   *prometheus.CounterVec

	asks, dropped, expected, came, missed *prometheus.Desc
	keys, requests, bytes, lag            *prometheus.Desc
}

// newMeter makes the metrics.
func newMeter() *meter {
	gauge := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_preload_"+name, help, labels, nil)
	}
	m := &meter{
		predictions: prometheus.NewCounter(prometheus.CounterOpts{Name: "spillway_preload_predictions_total", Help: "Forecasts of a key for a window."}),
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "spillway_preload_refreshes_total", Help: "Refreshes ahead of demand, by result: done, fresh, twice, failed, given_up.",
		}, []string{"result"}),
		asks:     gauge("asks_total", "Look-ups that were counted, by result: hit, miss.", "result"),
		dropped:  gauge("events_dropped_total", "Events not counted under a key, by reason: late, unknown (not asked before, and no counter free).", "reason"),
		expected: gauge("expected_asks_total", "Asks forecast for windows that are closed, of keys asked twice."),
		came:     gauge("counted_asks_total", "Asks that came instead."),
		missed:   gauge("forecast_error_asks_total", "Sum of the distances between the two."),
		keys:     gauge("keys", "Keys that are counted."),
		requests: gauge("requests", "Requests kept to be asked again."),
		bytes:    gauge("request_bytes", "Bytes of these requests."),
		lag:      gauge("window_lag_seconds", "Age of the newest event or tick."),
	}
	for _, o := range outcomes {
		m.results(o)
	}
	return m
}

// results counts refreshes of an outcome.
func (m *meter) results(o Outcome) prometheus.Counter {
	return m.refreshes.WithLabelValues(string(o))
}

// Describe implements prometheus.Collector.
func (p *Preloader) Describe(ch chan<- *prometheus.Desc) {
	m := p.meter
	m.predictions.Describe(ch)
	m.refreshes.Describe(ch)
	for _, d := range []*prometheus.Desc{m.asks, m.dropped, m.expected, m.came, m.missed, m.keys, m.requests, m.bytes, m.lag} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Counts of the embedded engine begin anew
// when a reload replaces it.
func (p *Preloader) Collect(ch chan<- prometheus.Metric) {
	m, d := p.meter, p.demand.Load()
	m.predictions.Collect(ch)
	m.refreshes.Collect(ch)
	f := d.census()
	count := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, v, labels...)
	}
	gauge := func(desc *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v)
	}
	count(m.asks, float64(f.hits), "hit")
	count(m.asks, float64(f.asks-f.hits), "miss")
	count(m.dropped, float64(f.late), "late")
	count(m.dropped, float64(f.passed), "unknown")
	count(m.expected, f.expected)
	count(m.came, f.came)
	count(m.missed, f.missed)
	gauge(m.keys, float64(f.keys))
	gauge(m.requests, float64(f.kept))
	gauge(m.bytes, float64(f.bytes))
	if mark := d.mark.Load(); mark > 0 {
		gauge(m.lag, max(0, time.Since(time.Unix(0, mark)).Seconds()))
	}
}
