package app

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/config"
)

// reloadState is what is known of reloads.
type reloadState struct {
	one     sync.Mutex    // held by a reload: what was read first is applied first
	applied chan struct{} // gets a value after each one that was applied; values are merged
	good    prometheus.Gauge
	at      prometheus.Gauge
	total   *prometheus.CounterVec

	mu struct {
		sync.Mutex
		hash    string
		version int64
		loaded  time.Time
		lastErr string
		errAt   time.Time
	}
}

// init makes the metrics and returns them for registration.
func (r *reloadState) init() prometheus.Collector {
	r.applied = make(chan struct{}, 1)
	r.good = prometheus.NewGauge(prometheus.GaugeOpts{Name: "spillway_config_last_reload_successful", Help: "1 when the last reload was applied, 0 when it was refused."})
	r.at = prometheus.NewGauge(prometheus.GaugeOpts{Name: "spillway_config_last_reload_success_timestamp_seconds", Help: "When the configuration in force was applied, Unix time."})
	r.total = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "spillway_config_reloads_total", Help: "Reloads by result: applied, refused."}, []string{"result"})
	return collectors{r.good, r.at, r.total}
}

// collectors is several collectors as one.
type collectors []prometheus.Collector

// Describe implements prometheus.Collector.
func (c collectors) Describe(ch chan<- *prometheus.Desc) {
	for _, one := range c {
		one.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (c collectors) Collect(ch chan<- prometheus.Metric) {
	for _, one := range c {
		one.Collect(ch)
	}
}

// succeeded notes the configuration now in force.
func (r *reloadState) succeeded(file *config.File, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.version++
	r.mu.hash, r.mu.loaded, r.mu.lastErr = file.Hash(), now, ""
	r.good.Set(1)
	r.at.Set(float64(now.UnixNano()) / 1e9)
	r.total.WithLabelValues("applied").Inc()
	select {
	case r.applied <- struct{}{}:
	default:
	}
}

// refused notes a configuration that was not applied.
func (r *reloadState) refused(err error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.lastErr, r.mu.errAt = err.Error(), now
	r.good.Set(0)
	r.total.WithLabelValues("refused").Inc()
}

// Reload implements admin.Control: it reads the configuration file again and
// applies it, all or nothing.
func (a *App) Reload(ctx context.Context) error {
	if a.opts.Path == "" {
		return fmt.Errorf("there is no configuration file to read again")
	}
	a.followKeys()
	a.reload.one.Lock()
	defer a.reload.one.Unlock()
	now, old := time.Now(), a.File()
	file, err := config.Load(a.opts.Path)
	if err == nil && a.opts.Override != nil {
		a.opts.Override(file)
		err = file.Validate()
	}
	if err == nil {
		err = a.apply(file, a.discover(ctx, old, file))
	}
	if err != nil {
		a.reload.refused(err, now)
		a.log.Error("reload refused; the old configuration stays in force", "component", "config", "err", err)
		return err
	}
	a.reload.succeeded(file, now)
	a.log.Info("reloaded", "component", "config", "hash", file.Hash())
	if changed := restartKeys(old, file); len(changed) > 0 {
		a.log.Warn("these keys have changed and take effect with a restart", "component", "config", "keys", changed)
	}
	return nil
}

// followKeys reads the files of keys again that the configuration in force names: a key
// is revoked at once, also while somebody writes a new configuration that is wrong, or
// one whose sources of discovery are slow.
func (a *App) followKeys() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.keys.Apply(a.mu.file.Identity); err != nil {
		a.log.Warn("the keys stay as they were", "component", "identity", "err", err)
	}
}

// restartKeys lists the keys that differ and that a running gateway cannot change.
func restartKeys(old, now *config.File) (changed []string) {
	for key, differs := range map[string]bool{
		"api.listen":           old.API.Listen != now.API.Listen,
		"api.front":            old.API.Front != now.API.Front,
		"api.probe_listen":     old.API.ProbeListen != now.API.ProbeListen,
		"api.proxy_protocol":   old.API.ProxyProtocol != now.API.ProxyProtocol,
		"api.tls_cert_file":    old.API.TLSCertFile != now.API.TLSCertFile || old.API.TLSKeyFile != now.API.TLSKeyFile,
		"api.send_buffer":      old.API.SendBuffer != now.API.SendBuffer,
		"api.max_header":       old.API.MaxHeader != now.API.MaxHeader,
		"admin.listen":         old.Admin.Listen != now.Admin.Listen,
		"store.directory":      old.Store.Directory != now.Store.Directory,
		"store.sql":            !reflect.DeepEqual(old.Store.SQL, now.Store.SQL),
		"store.redis":          !reflect.DeepEqual(old.Store.Redis, now.Store.Redis),
		"cache.memory":         old.Cache.Memory != now.Cache.Memory,
		"cache.redis":          old.Cache.Redis != now.Cache.Redis,
		"cache.sql":            old.Cache.SQL != now.Cache.SQL,
		"cache.fill":           old.Cache.Fill.Queue != now.Cache.Fill.Queue || old.Cache.Fill.Bytes != now.Cache.Fill.Bytes,
		"identity.sql":         old.Identity.SQL != now.Identity.SQL,
		"limit.store":          old.Limit.Store != now.Limit.Store,
		"usage.ledger.enabled": old.Usage.Ledger.Enabled != now.Usage.Ledger.Enabled,
		"telemetry.log.format": old.Telemetry.Log.Format != now.Telemetry.Log.Format,
	} {
		if differs {
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	return changed
}

// settle is how long a directory must be quiet before its files are read: editors
// write in several steps. maxSettle ends the wait in a directory that is never
// quiet, as one that holds the access log too.
const (
	settle    = 200 * time.Millisecond
	maxSettle = time.Second
)

// lookEvery is how often the files are looked at whatever the watcher says: it hears
// nothing of other machines' changes on network file systems.
const lookEvery = 10 * time.Second

// watch reloads on hangup and when the configuration or a file of keys changes, until
// ctx ends. It watches the files' directories, because editors and Kubernetes
// replace files rather than write to them.
func (a *App) watch(ctx context.Context, hangup <-chan os.Signal) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		a.log.Warn("files are not watched, but looked at now and then", "component", "config", "err", err)
		w = &fsnotify.Watcher{}
	} else {
		defer w.Close()
	}
	watched := make(map[string]bool)
	follow := func() { a.follow(w, watched) }
	follow()
	before := a.fingerprint()
	look := func() {
		if now := a.fingerprint(); now != before {
			before = now
			_ = a.Reload(ctx) // it says itself what became of it
			follow()
		}
	}
	always := time.NewTicker(lookEvery)
	defer always.Stop()
	quiet := time.NewTimer(time.Hour)
	quiet.Stop()
	var latest time.Time // when the files are read in any case; zero is nothing to read
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			if err := a.recorder.Reopen(); err != nil {
				a.log.Error("the access log was not opened again", "component", "usage", "err", err)
			}
			_ = a.Reload(ctx) // it says itself what became of it
			before = a.fingerprint()
			follow()
		case <-w.Events:
			if latest.IsZero() {
				latest = time.Now().Add(maxSettle)
			}
			quiet.Reset(min(settle, time.Until(latest)))
		case err := <-w.Errors:
			a.log.Warn("watching files", "component", "config", "err", err)
		case <-quiet.C:
			latest = time.Time{}
			look()
		case <-always.C:
			if latest.IsZero() { // else it is about to
				look()
			}
		}
	}
}

// follow watches the directories of the files, and of those that they link to: there
// `spillway key` puts a new file in the place of the old one.
func (a *App) follow(w *fsnotify.Watcher, watched map[string]bool) {
	if w.Events == nil {
		return
	}
	for _, f := range a.watched() {
		if f == "" {
			continue
		}
		dirs := []string{filepath.Dir(f)}
		if target, err := filepath.EvalSymlinks(f); err == nil {
			dirs = append(dirs, filepath.Dir(target))
		}
		for _, dir := range dirs {
			if watched[dir] {
				continue
			}
			if err := w.Add(dir); err != nil {
				a.log.Warn("a directory is not watched", "component", "config", "dir", dir, "err", err)
				continue
			}
			watched[dir] = true
		}
	}
}

// watched lists the files whose changes are a reload.
func (a *App) watched() []string {
	return append([]string{a.opts.Path}, a.File().Identity.Files()...)
}

// fingerprint changes with the bytes of the watched files.
func (a *App) fingerprint() string {
	sum := ""
	for _, f := range a.watched() {
		data, err := os.ReadFile(f)
		if f != "" && err == nil {
			sum += config.Hash(data)
		}
	}
	return sum
}
