package identity

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of reading the database.
const (
	loadTime  = 30 * time.Second
	wholeTime = time.Minute // after which everything is read, whatever the version: people change tables by hand
)

// Run keeps the keys of the database and what tokens are judged by up to date until
// ctx ends.
func (k *Keys) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if k.parts.Tokens != nil {
		wg.Go(func() {
			if failed = k.parts.Tokens.Run(ctx); failed != nil {
				cancel()
			}
		})
	}
	k.follow(ctx)
	wg.Wait()
	return failed
}

// follow reads the database again and again until ctx ends.
func (k *Keys) follow(ctx context.Context) {
	version, whole, broken := int64(-1), time.Time{}, false
	for {
		cfg := k.config()
		var next <-chan time.Time
		if cfg.SQL {
			if now := time.Now(); now.Sub(whole) >= wholeTime {
				version, whole = -1, now
			}
			var err error
			version, err = k.refresh(ctx, version)
			switch {
			case ctx.Err() != nil:
			case err != nil && !broken:
				k.log.Warn("the keys in the database cannot be read; the last known ones stay", "error", err)
			case err == nil && broken:
				k.log.Info("the keys in the database are read again")
			}
			broken = err != nil
			next = time.After(cfg.Refresh)
		} else {
			version, whole = -1, time.Time{}
		}
		select {
		case <-ctx.Done():
			return
		case <-k.changed:
		case <-next:
		}
	}
}

// config is the configuration in force.
func (k *Keys) config() Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.cfg
}

// refresh reads the keys of the database, if their version is not known.
func (k *Keys) refresh(ctx context.Context, known int64) (version int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	k.mu.Lock()
	if !k.mu.loaded {
		known = -1
	}
	k.mu.Unlock()
	keys, version, err := k.parts.Database.Load(ctx, known)
	k.mu.Lock()
	defer k.mu.Unlock()
	if errors.Is(err, ErrSomeKeys) {
		k.log.Warn("keys in the database let nobody in", "error", err)
		err = nil
	}
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			k.mu.source.Faults++
		}
		return -1, err
	}
	k.mu.source.Read = k.parts.Now()
	switch {
	case !k.mu.cfg.SQL: // it was switched off meanwhile
		return -1, nil
	case version == known:
		return version, nil
	}
	k.mu.database, k.mu.loaded, k.mu.source.Keys = keys, true, len(keys)
	k.rebuild()
	return version, nil
}

// descs are the names of the metrics.
type descs struct{ keys, requests, read, faults *prometheus.Desc }

// newDescs builds the names.
func newDescs() descs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_identity_"+name, help, labels, nil)
	}
	return descs{
		keys:     d("keys", "API keys in force."),
		requests: d("requests_total", "Requests by what their credential was: known, anonymous, refused.", "result"),
		read:     d("source_read_timestamp_seconds", "When what is read again and again was last read, Unix time: sql, the keys in the database, and jwks, the keys of the tokens' issuer. 0 is never.", "source"),
		faults:   d("source_faults_total", "Failures to read a source.", "source"),
	}
}

// Describe implements prometheus.Collector.
func (k *Keys) Describe(ch chan<- *prometheus.Desc) {
	d := newDescs()
	for _, desc := range []*prometheus.Desc{d.keys, d.requests, d.read, d.faults} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (k *Keys) Collect(ch chan<- prometheus.Metric) {
	d := newDescs()
	ch <- prometheus.MustNewConstMetric(d.keys, prometheus.GaugeValue, float64(k.Len()))
	for result, n := range map[string]int64{"known": k.known.Load(), "anonymous": k.anonymous.Load(), "refused": k.refused.Load()} {
		ch <- prometheus.MustNewConstMetric(d.requests, prometheus.CounterValue, float64(n), result)
	}
	k.mu.Lock()
	sources := map[string]SourceState{"sql": k.mu.source, "jwks": {}}
	k.mu.Unlock()
	if k.parts.Tokens != nil {
		sources["jwks"] = k.parts.Tokens.State()
	}
	for name, s := range sources {
		at := 0.0
		if !s.Read.IsZero() {
			at = float64(s.Read.UnixMilli()) / 1e3
		}
		ch <- prometheus.MustNewConstMetric(d.read, prometheus.GaugeValue, at, name)
		ch <- prometheus.MustNewConstMetric(d.faults, prometheus.CounterValue, float64(s.Faults), name)
	}
}
