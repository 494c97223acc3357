package cache

import (
	"context"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// memoryName is the first level in metrics and headers.
const memoryName = "memory"

// counts is what became of requests and answers.
type counts struct {
	memoryHits, memoryMisses           atomic.Uint64
	keyless, mismatched, crowded, late atomic.Uint64
	kept, refused, prolonged           atomic.Uint64
}

// descs names every metric of the package.
type descs struct {
	lookups, fills, swept, resting, entries, bytes *prometheus.Desc
	answers, trouble, waiting, waitingBytes, drops *prometheus.Desc
}

// newDescs builds the names.
func newDescs() *descs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_cache_"+name, help, labels, nil)
	}
	return &descs{
		lookups:      d("lookups_total", "Look-ups by level and result; skipped ones met a level that rests after faults.", "level", "result"),
		fills:        d("fills_total", "Entries handed to a slower level, by result.", "level", "result"),
		swept:        d("swept_total", "Entries that a sweep removed.", "level"),
		resting:      d("level_resting", "1 while a level rests after faults.", "level"),
		entries:      d("memory_entries", "Entries in memory."),
		bytes:        d("memory_bytes", "Bytes of the entries in memory."),
		answers:      d("answers_total", "New answers: kept, refused (too large, not whole, or of another model), and kept ones whose time was prolonged by demand.", "result"),
		trouble:      d("trouble_total", "Look-ups that came to nothing: no key for the body, an entry that was not the one asked for, too many look-ups at once, or no answer in time.", "reason"),
		waiting:      d("fill_queue_entries", "Entries that wait to be written to slower levels."),
		waitingBytes: d("fill_queue_bytes", "Bytes of the entries that wait."),
		drops:        d("fill_dropped_total", "Entries that were not written because the queue was full."),
	}
}

// Describe implements prometheus.Collector.
func (c *Cache) Describe(ch chan<- *prometheus.Desc) {
	d := newDescs()
	for _, desc := range []*prometheus.Desc{
		d.lookups, d.fills, d.swept, d.resting, d.entries, d.bytes, d.answers, d.trouble, d.waiting, d.waitingBytes, d.drops,
	} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *Cache) Collect(ch chan<- prometheus.Metric) {
	d := newDescs()
	value := func(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, v, labels...)
	}
	count := func(desc *prometheus.Desc, n *atomic.Uint64, labels ...string) {
		value(desc, prometheus.CounterValue, float64(n.Load()), labels...)
	}
	count(d.lookups, &c.count.memoryHits, memoryName, "hit")
	count(d.lookups, &c.count.memoryMisses, memoryName, "miss")
	for _, g := range c.slower {
		count(d.lookups, &g.count.hits, g.name, "hit")
		count(d.lookups, &g.count.misses, g.name, "miss")
		count(d.lookups, &g.count.faults, g.name, "fault")
		count(d.lookups, &g.count.skipped, g.name, "skipped")
		count(d.fills, &g.count.written, g.name, "written")
		count(d.fills, &g.count.writeFaults, g.name, "fault")
		count(d.fills, &g.count.writeSkipped, g.name, "skipped")
		count(d.swept, &g.count.swept, g.name)
		resting := 0.0
		if g.open.Load() != 0 {
			resting = 1
		}
		value(d.resting, prometheus.GaugeValue, resting, g.name)
	}
	count(d.answers, &c.count.kept, "kept")
	count(d.answers, &c.count.refused, "refused")
	count(d.answers, &c.count.prolonged, "prolonged")
	count(d.trouble, &c.count.keyless, "no_key")
	count(d.trouble, &c.count.mismatched, "mismatched")
	count(d.trouble, &c.count.crowded, "crowded")
	count(d.trouble, &c.count.late, "late")
	count(d.drops, &c.fills.dropped)
	value(d.waiting, prometheus.GaugeValue, float64(c.fills.waiting()))
	value(d.waitingBytes, prometheus.GaugeValue, float64(c.fills.bytes.Load()))
	if counter, ok := c.parts.Memory.(Counter); ok {
		if census, err := counter.Census(context.Background()); err == nil {
			value(d.entries, prometheus.GaugeValue, float64(census.Entries))
			value(d.bytes, prometheus.GaugeValue, float64(census.Bytes))
		}
	}
}
