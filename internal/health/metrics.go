package health

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/fleet"
)

// meter holds the counters and the descriptions of the gauges, which are read
// from the fleet when they are collected.
type meter struct {
	ejections, readmissions, coolDowns, probes *prometheus.CounterVec
	panic, up, missing                         *prometheus.Desc
}

// newMeter makes the metrics.
func newMeter() *meter {
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_health_" + name, Help: help}, labels)
	}
	gauge := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_health_"+name, help, labels, nil)
	}
	return &meter{
		ejections:    count("ejections_total", "Instances taken out by passive health, by reason: connect, failures, probe.", "pool", "reason"),
		readmissions: count("readmissions_total", "Ejected instances that came back.", "pool"),
		coolDowns:    count("cooldowns_total", "Cool-downs begun, by reason: busy, spent.", "pool", "reason"),
		probes:       count("probes_total", "Active checks by result: success, failure, unknown.", "pool", "result"),
		panic:        gauge("panic", "1 while every instance of the pool that could get requests is failing.", "pool"),
		up:           gauge("instance_up", "1 while the instance is neither down nor ejected.", "pool", "instance"),
		missing:      gauge("metric_missing", "1 while a configured metric of the instance cannot be read.", "pool", "instance"),
	}
}

// probe counts the result of an active check.
func (m *meter) probe(pool, result string) { m.probes.WithLabelValues(pool, result).Inc() }

// vectors lists the counters.
func (m *meter) vectors() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{m.ejections, m.readmissions, m.coolDowns, m.probes}
}

// forget drops the series of a pool that is gone.
func (m *meter) forget(pool string) {
	for _, v := range m.vectors() {
		v.DeletePartialMatch(prometheus.Labels{"pool": pool})
	}
}

// Describe implements prometheus.Collector.
func (m *Monitor) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range m.meter.vectors() {
		v.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{m.meter.panic, m.meter.up, m.meter.missing} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	for _, v := range m.meter.vectors() {
		v.Collect(ch)
	}
	now := time.Now().UnixNano()
	for _, r := range m.fleet.Snapshot().Regions {
		for _, fp := range r.Pools {
			if p := m.pool(fp.Name); p != nil {
				m.collectPool(ch, p, fp, now)
			}
		}
	}
}

// collectPool emits the gauges of one pool.
func (m *Monitor) collectPool(ch chan<- prometheus.Metric, p *pool, fp *fleet.Pool, now int64) {
	emit := func(d *prometheus.Desc, on bool, labels ...string) {
		value := 0.0
		if on {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	serving, well := 0, 0
	for _, i := range fp.Instances {
		r := m.record(i.Live)
		r.mu.Lock()
		spared := r.mu.spared
		r.mu.Unlock()
		ejected := i.Live.Ejected()
		if usable(i, now) {
			serving++
			if !ejected && !spared {
				well++
			}
		}
		emit(m.meter.up, i.Status(now) != fleet.Down && !ejected, fp.Name, i.Name)
		if p.Metrics.Enabled() || p.Config.Active.Rule != nil {
			emit(m.meter.missing, r.ruleMissing.Load() || r.loadMissing.Load(), fp.Name, i.Name)
		}
	}
	emit(m.meter.panic, serving > 0 && well == 0, fp.Name)
}
