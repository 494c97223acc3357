package app

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	cachesql "github.com/spillway/spillway/internal/cache/sql"
	"github.com/spillway/spillway/internal/config"
	keysql "github.com/spillway/spillway/internal/identity/sql"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/store/redis"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// buildStores makes the connections to what keeps things, where something is kept
// there. dir is where SQLite keeps its file; "" is nowhere.
func (a *App) buildStores(file *config.File, dir string) (err error) {
	if file.Store.Redis.Enabled() && (file.Cache.Redis.Enabled || file.Limit.Store.Kind == limit.KindRedis) {
		if a.redis, err = redis.New(file.Store.Redis, a.log.Logger); err != nil {
			return fmt.Errorf("store: redis: %w", err)
		}
	}
	var tables []sql.Migrations
	for _, one := range []struct {
		wanted bool
		tables sql.Migrations
		key    string
	}{
		{file.Cache.SQL.Enabled, cachesql.Migrations(), "cache.sql.enabled"},
		{file.Identity.SQL, keysql.Migrations(), "identity.sql"},
		{file.Usage.Ledger.Enabled, ledger.Migrations(), "usage.ledger.enabled"},
	} {
		switch {
		case !one.wanted:
		case len(file.Store.SQL.Databases) == 0 && dir == "":
			a.log.Warn("there is no directory for the database: set store.directory, or this key to false", "component", "store", "key", one.key)
		default:
			tables = append(tables, one.tables)
		}
	}
	if len(tables) == 0 {
		return nil
	}
	if a.databases, err = sql.Open(file.Store.SQL, dir, a.log.Logger, tables...); err != nil {
		return fmt.Errorf("store: sql: %w", err)
	}
	if file.Usage.Ledger.Enabled {
		a.ledger = ledger.New(file.Usage.Ledger, a.databases, a.log.Logger)
	}
	return nil
}

// runStores opens the connections to what keeps things, until the function that it
// returns is called: they outlive those that write to them.
func (a *App) runStores(ctx context.Context, failed chan<- error) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	if a.databases != nil {
		run("store.sql", a.databases.Run)
	}
	if a.redis != nil {
		run("store.redis", a.redis.Run)
	}
	closeLedger := a.runLedger(context.WithoutCancel(ctx), failed)
	return func() {
		closeLedger()
		cancel()
		wg.Wait()
	}
}

// runLedger writes the ledger until the function that it returns is called: it outlives
// all that spend, and the databases outlive it.
func (a *App) runLedger(ctx context.Context, failed chan<- error) (end func()) {
	if a.ledger == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := a.ledger.Run(ctx); err != nil {
			failed <- fmt.Errorf("usage.ledger: %w", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// firstContact is how long the first requests wait for Redis: without it, a start
// begins with faults of a level that is well.
const firstContact = 300 * time.Millisecond

// awaitStores waits until Redis answers, or has had its time.
func (a *App) awaitStores(ctx context.Context) {
	if a.redis == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, firstContact)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for a.redis.Err() != nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// databaseStats shows how the connections to databases are.
type databaseStats struct{ *sql.Store }

// databaseDescs names the metrics of databases, by the address without secrets and
// the role: primary, replica, or reader and writer of SQLite.
type databaseDescs struct {
	connections, waits, waited, queue, faults, usable, lag *prometheus.Desc
}

// newDatabaseDescs builds the names.
func newDatabaseDescs() databaseDescs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_store_sql_"+name, help, append([]string{"database", "role"}, labels...), nil)
	}
	return databaseDescs{
		connections: d("connections", "Connections by state.", "state"),
		waits:       d("waits_total", "Work that waited for a connection."),
		waited:      d("waited_seconds_total", "Time that work waited for connections."),
		queue:       d("queue_writes", "Writes that wait or are under way; 0 of a replica."),
		faults:      d("faults_total", "Failures by kind.", "kind"),
		usable:      d("usable", "1 while the database can be used: its tables are there, and of a replica that it answers and does not lag."),
		lag:         d("lag_seconds", "How far a replica is behind; 0 of what is no replica."),
	}
}

// Describe implements prometheus.Collector.
func (databaseStats) Describe(ch chan<- *prometheus.Desc) {
	d := newDatabaseDescs()
	for _, desc := range []*prometheus.Desc{d.connections, d.waits, d.waited, d.queue, d.faults, d.usable, d.lag} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (s databaseStats) Collect(ch chan<- prometheus.Metric) {
	d := newDatabaseDescs()
	for _, st := range s.Stats() {
		value := func(desc *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(desc, kind, v, append([]string{st.Database, st.Role}, labels...)...)
		}
		value(d.connections, prometheus.GaugeValue, float64(st.InUse), "in_use")
		value(d.connections, prometheus.GaugeValue, float64(st.Idle), "idle")
		value(d.waits, prometheus.CounterValue, float64(st.Waits))
		value(d.waited, prometheus.CounterValue, st.Waited.Seconds())
		value(d.usable, prometheus.GaugeValue, truth(st.Usable))
		value(d.lag, prometheus.GaugeValue, st.Lag.Seconds())
		value(d.queue, prometheus.GaugeValue, float64(st.Queue))
		for kind, n := range st.Faults {
			value(d.faults, prometheus.CounterValue, float64(n), sql.Fault(kind).String())
		}
	}
}

// truth is 1 or 0.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
