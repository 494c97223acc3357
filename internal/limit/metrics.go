package limit

import "github.com/prometheus/client_golang/prometheus"

// descs names every metric of the package but those of a shared store.
type descs struct {
	checks, entries, bytes, held, evictions *prometheus.Desc
	faults, fallbacks, fallback, gateways   *prometheus.Desc
}

// newDescs builds the names.
func newDescs() *descs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_limit_"+name, help, labels, nil)
	}
	return &descs{
		checks:    d("checks_total", "Requests that a rule was for, by what it said: admitted, or refused for the reason that is named. The rule address is that of client addresses, key that of the quotas of credentials.", "rule", "outcome"),
		entries:   d("entries", "Buckets in memory: of addresses, and of rules.", "table"),
		bytes:     d("memory_bytes", "Bytes that the buckets take, with their index.", "table"),
		held:      d("held_entries", "Buckets of which something is under way here."),
		evictions: d("evictions_total", "Buckets that were forgotten for others: idle ones were full, which loses nothing; live ones were not.", "table", "state"),
		faults:    d("store_faults_total", "Calls of the shared store that failed or came too late."),
		fallbacks: d("store_fallbacks_total", "Requests that were decided by this gateway's share of the limits."),
		fallback:  d("store_resting", "1 while the shared store is not asked because it failed."),
		gateways:  d("store_gateways", "Gateways that share the store, as last known."),
	}
}

// Describe implements prometheus.Collector.
func (l *Limiter) Describe(ch chan<- *prometheus.Desc) {
	d := newDescs()
	for _, desc := range []*prometheus.Desc{d.checks, d.entries, d.bytes, d.held, d.evictions, d.faults, d.fallbacks, d.fallback, d.gateways} {
		ch <- desc
	}
	if c, ok := l.parts.Store.(prometheus.Collector); ok {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (l *Limiter) Collect(ch chan<- prometheus.Metric) {
	d := newDescs()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	count := func(desc *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
	}
	checks := func(rule string, c *ruleCount) {
		count(d.checks, c.admitted.Load(), rule, "admitted")
		for u := range c.refused {
			count(d.checks, c.refused[u].Load(), rule, unitWords[u].reason)
		}
		for p := range c.spent {
			count(d.checks, c.spent[p].Load(), rule, period(p).String())
		}
	}
	count(d.checks, l.count.address.admitted.Load(), addressRule, "admitted")
	count(d.checks, l.count.address.refused[requests].Load(), addressRule, addressRule)
	checks(quotaRule, &l.count.quota)
	for _, r := range l.set.Load().rules {
		checks(r.name, r.count)
	}
	for name, m := range map[string]*Memory{"address": l.addresses, "rule": l.local} {
		c := m.census()
		gauge(d.entries, float64(c.entries), name)
		gauge(d.bytes, float64(c.bytes), name)
		count(d.evictions, c.idle, name, "idle")
		count(d.evictions, c.live, name, "live")
		if m == l.local {
			gauge(d.held, float64(c.held))
		}
	}
	s := l.shared
	if s == nil {
		s = &shared{} // nobody shares anything
		s.gateways.Store(1)
	}
	count(d.faults, s.faults.Load())
	count(d.fallbacks, s.fallbacks.Load())
	resting := 0.0
	if s.resting.Load() {
		resting = 1
	}
	gauge(d.fallback, resting)
	gauge(d.gateways, float64(s.gateways.Load()))
	if c, ok := l.parts.Store.(prometheus.Collector); ok {
		c.Collect(ch)
	}
}
