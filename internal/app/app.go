// Package app builds the gateway from a configuration, runs it, swaps it on
// reload and drains it. It alone knows every mechanism; builtin.go lists the
// plug-ins.
//
// A reload applies a whole new configuration or changes nothing: each mechanism
// replaces its own settings atomically, counters, buckets and connections are
// kept by name, and when one of them refuses, those that had changed are given
// the old configuration again. Streams in flight keep what they began with.
//
// Run owns every goroutine of the gateway and ends with its context: the
// listener for clients drains first, everything else ends after it.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/cache"
	levelredis "github.com/spillway/spillway/internal/cache/redis"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/preload"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/store"
	"github.com/spillway/spillway/internal/store/redis"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/telemetry"
	"github.com/spillway/spillway/internal/upstream"
	"github.com/spillway/spillway/internal/usage"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// Options are what a configuration does not say.
type Options struct {
	Version string
	Path    string // the configuration file, watched and read again; "" is none
	// Override changes each configuration that is read again, as flags do; nil does not.
	Override func(*config.File)
	Stdout   io.Writer
	Stderr   io.Writer
}

// App is one gateway.
type App struct {
	opts      Options
	log       *telemetry.Logger
	registry  *prometheus.Registry
	fleet     *fleet.Fleet
	keys      *identity.Keys
	limiter   *limit.Limiter
	limitKind string // where its buckets are: limit.store.kind at the start
	steering  *steering
	router    *route.Router
	upstream  *upstream.Client
	health    *health.Monitor
	redis     *redis.Client     // nil: none is configured
	databases *sql.Store        // nil: nothing needs one
	shared    *levelredis.Level // the cache's level in Redis; nil: none is configured
	ledger    *ledger.Ledger    // nil: none is kept
	cache     *cache.Cache
	preload   *preload.Preloader
	gateway   *gateway.Gateway
	recorder  *usage.Recorder
	tracing   *telemetry.Tracing
	api       *api.Server
	emergency *admission.Emergency
	governor  *admission.Governor
	admin     *admin.Server
	reload    reloadState

	mu struct {
		sync.Mutex
		file   *config.File
		pools  map[string]health.Pool // of file, with their transports
		asides map[string]*http.Transport
	}
}

// New builds a gateway. It starts nothing and listens on nothing.
func New(file *config.File, opts Options) (*App, error) {
	a := &App{opts: opts, log: telemetry.NewLogger(file.Telemetry.Log, opts.Stderr)}
	log := a.log.Logger
	a.registry = telemetry.NewRegistry(opts.Version)
	a.fleet = fleet.New(log)
	keep, err := store.Open(file.Store.Config)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := a.buildStores(file, keep.Directory()); err != nil {
		return nil, err
	}
	if err := a.buildKeys(file); err != nil {
		return nil, err
	}
	if a.steering, err = newSteering(file, keep, log); err != nil {
		return nil, err
	}
	if a.router, err = route.New(file.Route.Config, tiers(file), a.fleet, log); err != nil {
		return nil, fmt.Errorf("route: %w", err)
	}
	a.upstream = upstream.New()
	a.health = health.New(a.fleet, log)
	if a.recorder, err = usage.New(file.Usage.Config, usage.Parts{Fleet: a.fleet, Stdout: opts.Stdout, Stderr: opts.Stderr, Log: log}); err != nil {
		return nil, fmt.Errorf("usage: %w", err)
	}
	if a.tracing, err = telemetry.NewTracing(file.Telemetry.Traces, opts.Version, a.registry, log); err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	if a.emergency, err = admission.NewEmergency(file.Admission.Emergency, keep, log); err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	a.governor = admission.New(file.Admission, a.fleet, a.emergency, log)
	a.buildCache(file)
	if err := a.buildLimits(file); err != nil {
		return nil, err
	}
	a.gateway = gateway.New(file.Gateway, gateway.Parts{
		Router: a.router, Admission: slots{a.governor}, Upstream: a.open, Health: a.health, Recorder: a, Cache: answers{a.cache}, Limits: limits{a.limiter},
	})
	if err := a.buildServers(file); err != nil {
		return nil, err
	}
	if a.databases != nil {
		a.registry.MustRegister(databaseStats{a.databases})
	}
	a.registry.MustRegister(a.keys, a.limiter, a.steering, a.steering.experiments, a.emergency, a.governor, a.cache, a.preload, a.recorder, a.health, a.reload.init(), newGauges(a))
	if err := a.apply(file, nil); err != nil {
		return nil, err
	}
	a.reload.succeeded(file, time.Now())
	return a, nil
}

// buildServers makes what operators and clients talk to.
func (a *App) buildServers(file *config.File) error {
	log := a.log.Logger
	parts := admin.Parts{
		Fleet: a.fleet, Metrics: a.registry, Control: a, Emergency: emergencySwitch{a.emergency}, Cache: operatedCache{a},
		Experiments: a.steering.experiments, Routes: a, Log: log,
	}
	if a.ledger != nil {
		parts.Ledger = a.ledger
	}
	var err error
	if a.admin, err = admin.New(file.Admin, parts); err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	a.api = api.New(file.API, api.Parts{
		Serve: func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
			return a.gateway.Serve(ctx, req, out)
		},
		Record:   a.Record,
		Identity: a.keys,
		Limits:   a.limiter,
		Feedback: a.steering.experiments.Feedback,
		Timeout:  a.gateway.Timeout,
		Models:   func() []string { return a.fleet.Snapshot().Models() },
		Probes:   a.admin.Probes(),
		Tracing:  a.tracing,
		Log:      log,
	})
	return nil
}

// open adapts the upstream client to what the gateway calls.
func (a *App) open(ctx context.Context, req *inference.Request, lease *fleet.Lease) (gateway.Answer, error) {
	answer, err := a.upstream.Open(ctx, req, lease)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// slots adapts the governor to what the gateway calls.
type slots struct{ *admission.Governor }

// Enter implements gateway.Admission.
func (s slots) Enter(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
	lease, waiter, err := s.Governor.Enter(now, plan, tried, nil)
	if waiter == nil {
		return lease, nil, err
	}
	return nil, waiter, nil
}

// apply gives every mechanism the configuration, or the old one back to those
// that had changed when one refuses. found is what the sources of its new pools
// have found.
func (a *App) apply(file *config.File, found map[string][]fleet.Target) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	pools, asides, err := healthPools(file)
	if err != nil {
		return err
	}
	old := a.mu.file
	steps := []struct {
		name string
		do   func(f *config.File, pools map[string]health.Pool) error
	}{
		{"identity", func(f *config.File, _ map[string]health.Pool) error { return a.keys.Apply(f.Identity) }},
		{"admin", func(f *config.File, _ map[string]health.Pool) error { return a.admin.Apply(f.Admin) }},
		{"usage", func(f *config.File, _ map[string]health.Pool) error { return a.recorder.Apply(f.Usage.Config) }},
		{"upstream", func(f *config.File, _ map[string]health.Pool) error { return a.upstream.Apply(upstreams(f)) }},
		{"route", func(f *config.File, _ map[string]health.Pool) error { return a.router.Apply(f.Route.Config, tiers(f)) }},
		{"limit", func(f *config.File, _ map[string]health.Pool) error { return a.applyLimits(f) }},
		{"health", func(_ *config.File, p map[string]health.Pool) error { return a.health.Apply(p) }},
		{"fleet", func(f *config.File, _ map[string]health.Pool) error { return a.fleet.Apply(layout(f, found)) }},
		// Behind the fleet: a rule may send requests to a pool that comes with it. Neither of
		// these refuses what Validate has passed, so nothing that was found is lost.
		{"route", func(f *config.File, _ map[string]health.Pool) error { return a.steering.applyRules(f) }},
		// The last: arms that are taken back would begin again, without what they have found.
		{"route", func(f *config.File, _ map[string]health.Pool) error {
			return a.steering.experiments.Apply(f.Route.Experiments)
		}},
	}
	for i, step := range steps {
		err := step.do(file, pools)
		if err == nil {
			continue
		}
		for _, done := range steps[:i] {
			if old == nil {
				break
			}
			if back := done.do(old, a.mu.pools); back != nil {
				a.log.Error("the old configuration could not be restored", "section", done.name, "err", back)
			}
		}
		return fmt.Errorf("%s: %w", step.name, err)
	}
	a.router.Steer(a.steering, a.steering.experiments)
	a.steering.places.Apply(file.Route.Geo)
	if a.ledger != nil {
		a.ledger.Apply(file.Usage.Ledger)
	}
	a.cache.Apply(file.Cache)
	a.preload.Apply(file.Preload)
	if old != nil && !reflect.DeepEqual(old.Route, file.Route) {
		a.preload.Forget() // what it keeps goes where the old rules sent it
	}
	a.governor.Apply(file.Admission)
	a.gateway.Apply(gatewayConfig(file))
	a.api.Apply(file.API)
	a.log.Apply(file.Telemetry.Log)
	a.tracing.Apply(file.Telemetry.Traces)
	for _, t := range a.mu.asides {
		t.CloseIdleConnections()
	}
	a.mu.asides, a.mu.pools, a.mu.file = asides, pools, file
	return nil
}

// Listeners are where a gateway is reached.
type Listeners struct {
	API    net.Listener
	Probes net.Listener // nil without api.probe_listen
	Admin  net.Listener
}

// Close closes them.
func (l *Listeners) Close() {
	for _, ln := range []net.Listener{l.API, l.Probes, l.Admin} {
		if ln != nil {
			ln.Close()
		}
	}
}

// Listen opens the listeners that the configuration names.
func (a *App) Listen(ctx context.Context) (*Listeners, error) {
	a.mu.Lock()
	file := a.mu.file
	a.mu.Unlock()
	l := new(Listeners)
	var lc net.ListenConfig
	var err error
	if l.API, err = api.Listen(ctx, file.API.Listen, int(file.API.SendBuffer)); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if file.API.ProbeListen != "" {
		if l.Probes, err = lc.Listen(ctx, "tcp", file.API.ProbeListen); err != nil {
			l.Close()
			return nil, fmt.Errorf("api: %w", err)
		}
	}
	if l.Admin, err = lc.Listen(ctx, "tcp", file.Admin.Listen); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin: %w", err)
	}
	return l, nil
}

// Run serves until ctx ends, then drains. hangup is the signal to read the
// configuration again and to open the access log's file anew; nil never comes.
func (a *App) Run(ctx context.Context, l *Listeners, hangup <-chan os.Signal) error {
	// Everything but the listener for clients outlives the drain.
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	failed := make(chan error, 16)
	var wg sync.WaitGroup
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(back); err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	closeStores := a.runStores(context.WithoutCancel(ctx), failed)
	run("identity", a.keys.Run)
	run("limit", a.limiter.Run)
	run("route", a.steering.places.Run)
	run("experiments", a.steering.experiments.Run)
	run("upstream", a.upstream.Run)
	run("health", a.health.Run)
	run("usage", a.recorder.Run)
	run("emergency", a.emergency.Run)
	run("admission", a.governor.Run)
	run("cache", a.cache.Run)
	run("preload", a.preload.Run)
	run("gateway", a.gateway.Run)
	run("telemetry", a.tracing.Run)
	run("admin", func(ctx context.Context) error { return a.admin.Run(ctx, l.Admin) })
	run("fleet", a.runSources)
	run("config", func(ctx context.Context) error { return a.watch(ctx, hangup) })

	front, end := context.WithCancel(ctx)
	defer end()
	a.awaitStores(ctx)
	served := make(chan error, 1)
	wg.Go(func() { served <- a.api.Run(front, l.API, l.Probes) })
	var err error
	select {
	case err = <-served:
	case err = <-failed:
		end()
		err = errors.Join(err, <-served)
	case <-ctx.Done():
		a.log.Info("stopping", "component", "app", "drain_timeout", a.File().API.DrainTimeout.String())
		err = <-served
	}
	stop()
	wg.Wait()
	closeStores()
	return err
}

// File is the configuration in force.
func (a *App) File() *config.File {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.file
}

// Log is the gateway's own logger.
func (a *App) Log() *slog.Logger { return a.log.Logger }
