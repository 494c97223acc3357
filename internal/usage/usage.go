// Package usage keeps what is kept of a request: one line in the access log and
// the metrics of requests, attempts, tokens and the fleet.
//
// Data moves in one direction. The gateway calls Record at the end of each
// request; Record adds to atomic counters, encodes the line into a pooled
// buffer and copies it into the log's buffer. It never waits: when that buffer
// is full, because the disk or the reader of a pipe is slow, the line is
// dropped and counted. Run owns the one goroutine that writes the buffer out, at
// most flushEvery after a line came. A write that fails, say because the disk is
// full, loses its lines, is counted and logged once, and service goes on.
//
// Recorder is also the Prometheus collector of all of this, and reads the fleet
// when it is scraped. Series are bounded: a model that nothing serves counts as
// "unknown", and beyond Config.MaxSeries everything new counts as "other".
//
// Locks: series.mu is held to make a series, never on the way of a known one;
// sink.mu is held to copy one line, sink.out while a write is under way. None is
// taken while another is held.
package usage

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Parts are what a Recorder works with. All but the writers are required.
type Parts struct {
	Fleet  *fleet.Fleet
	Stdout io.Writer // where access_log: stdout goes
	Stderr io.Writer // where access_log: stderr goes
	Log    *slog.Logger
}

// Recorder keeps records. It is safe for concurrent use.
type Recorder struct {
	fleet   *fleet.Fleet
	logging atomic.Bool
	lines   sync.Pool // of *[]byte
	sink    *sink
	series  *series
	descs   descs
}

// New returns a recorder whose access log is open. Nothing is written before
// Run.
func New(cfg Config, parts Parts) (*Recorder, error) {
	r := &Recorder{
		fleet:  parts.Fleet,
		lines:  sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }},
		sink:   newSink(parts),
		series: newSeries(parts.Fleet),
		descs:  newDescs(),
	}
	if err := r.Apply(cfg); err != nil {
		return nil, err
	}
	return r, nil
}

// Apply replaces the configuration. It opens the new access log before it
// leaves the old one; its error changes nothing. Series are kept.
func (r *Recorder) Apply(cfg Config) error {
	if err := r.sink.open(cfg.AccessLog); err != nil {
		return err
	}
	r.sink.limit.Store(int64(cfg.Buffer))
	r.series.limit.Store(int64(cfg.MaxSeries))
	r.logging.Store(cfg.AccessLog != Off)
	return nil
}

// Reopen opens the access log's file again, for rotation by another program.
// When it returns without an error the old file is closed. It waits for a write
// under way.
func (r *Recorder) Reopen() error { return r.sink.reopen() }

// Run writes the access log until ctx ends, then writes what is left. Lines that
// come later are dropped and counted. A destination that takes nothing is given
// up after stopGrace; its goroutine then ends with the write.
func (r *Recorder) Run(ctx context.Context) error { return r.sink.run(ctx) }

// Record keeps one record. It does not block and keeps nothing that belongs to
// the record or its request.
func (r *Recorder) Record(rec *inference.Record) {
	if !rec.Shadow { // it is no client's request
		r.series.record(rec)
	}
	if !r.logging.Load() {
		return
	}
	b := r.lines.Get().(*[]byte)
	*b = appendLine((*b)[:0], rec)
	r.sink.add(*b)
	r.lines.Put(b)
}

// Describe implements prometheus.Collector.
func (r *Recorder) Describe(ch chan<- *prometheus.Desc) { r.descs.describe(ch) }

// Collect implements prometheus.Collector.
func (r *Recorder) Collect(ch chan<- prometheus.Metric) {
	e := emitter{ch}
	r.descs.requests(e, r.series)
	r.descs.attempts(e, r.series)
	r.descs.sink(e, r.sink)
	r.descs.fleet(e, r.fleet.Snapshot(), time.Now().UnixNano())
}

// overhead is the part of a request's duration that was not spent waiting for
// upstreams.
func overhead(rec *inference.Record) time.Duration { return max(0, rec.Duration-rec.Upstream) }

// tokens is what a request used; of an answer that was not generated for it, what
// that answer says.
func tokens(rec *inference.Record) (u inference.Usage, estimated bool) {
	if len(rec.Attempts) == 0 || rec.Borrowed {
		return rec.Usage, false
	}
	return rec.Spent()
}
