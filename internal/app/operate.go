package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// State implements admin.Control.
func (a *App) State() admin.State {
	a.reload.mu.Lock()
	defer a.reload.mu.Unlock()
	source := a.opts.Path
	if source == "" {
		source = "flags"
	}
	s := admin.State{Source: source, Hash: a.reload.mu.hash, Version: a.reload.mu.version, LoadedAt: a.reload.mu.loaded, LastError: a.reload.mu.lastErr}
	if a.reload.mu.lastErr != "" {
		s.LastErrorAt = a.reload.mu.errAt
	}
	return s
}

// Unready implements admin.Control.
func (a *App) Unready() (reasons []string) {
	if a.api.Stopping() {
		reasons = append(reasons, "the gateway is stopping")
	}
	if !a.keys.Ready() {
		reasons = append(reasons, "the keys are not read yet")
	}
	return reasons
}

// Metrics is what /metrics shows: every metric of the gateway, its runtime and
// its process.
func (a *App) Metrics() *prometheus.Registry { return a.registry }

// Begin implements gateway.Recorder: an answer can be scored as soon as its client has
// any of it.
func (a *App) Begin(rec *inference.Record) { a.steering.experiments.Begin(rec) }

// Record implements gateway.Recorder: everybody who learns from requests is told.
func (a *App) Record(rec *inference.Record) {
	a.recorder.Record(rec)
	a.steering.behaviour.Observe(rec)
	a.steering.experiments.Observe(rec)
	if a.ledger != nil {
		a.ledger.Observe(rec)
	}
}

// newGauges are the metrics that no mechanism owns alone.
func newGauges(a *App) prometheus.Collector {
	return collectors{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_api_buffered_bytes", Help: "Bytes of request bodies in memory.",
		}, func() float64 { return float64(a.api.Buffered()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_upstream_idle_connections", Help: "Idle connections to instances.",
		}, func() float64 { return float64(a.upstream.Idle()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "spillway_usage_ledger_waiting_rows", Help: "Rows of the ledger that are not written yet.",
		}, ofLedger(a, func(l *ledger.Ledger) float64 { return float64(l.Waiting()) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "spillway_usage_ledger_faults_total", Help: "Flushes of the ledger that have failed.",
		}, ofLedger(a, func(l *ledger.Ledger) float64 { return float64(l.Faults()) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "spillway_usage_ledger_folded_total", Help: "Requests that count under another model than their own, because too many rows waited.",
		}, ofLedger(a, func(l *ledger.Ledger) float64 { return float64(l.Folded()) })),
	}
}

// ofLedger reads a number of the ledger's; 0 without one.
func ofLedger(a *App, value func(*ledger.Ledger) float64) func() float64 {
	return func() float64 {
		if a.ledger == nil {
			return 0
		}
		return value(a.ledger)
	}
}

var _ admin.Control = (*App)(nil)
