// Package health says which instances may be used.
//
// There are four sources of that knowledge. Active checks probe each instance
// (tcp, http, a business rule, or a generation on request) and mark it down or
// up. Passive health is told how every attempt ended and ejects an instance
// that keeps failing, cools one that says busy, and leaves alone what was not
// its fault. An engine's own metrics correct the load that the gateway counts.
// And instances list the models that their pool serves, where the configuration
// does not.
//
// All results go into fleet.Live, where policies read them; Monitor keeps only
// what it needs to judge, by Live, and drops it with the instance.
//
// Run owns every goroutine: one loop that follows the fleet, one for each
// instance and kind of work (check, scrape) and one for each pool that learns
// its models, which asks up to eight instances at a time. All end with their
// instance or pool, or with Run's context. Observe runs on the caller's
// goroutine and takes no lock while an instance is well.
//
// Lock order: record.mu, then Monitor.mu. Invariants: passive health never takes
// the last usable instance out of a pool (unless told to), and neither a busy
// answer nor a client's mistake ever counts as a failure.
package health

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// Pool is what the caller says about one pool.
type Pool struct {
	Config      Config
	Metrics     Metrics
	LearnModels bool // the pool has no configured models: ask its instances

	// Transport reaches the instances with the pool's TLS and proxy settings. It
	// belongs to the caller. Nil is a transport without either. Probes send a few
	// small requests an interval; one idle connection for each instance is enough.
	Transport http.RoundTripper
	// Header is added to each request: the pool's credentials.
	Header http.Header
	// Dial makes the connection of a tcp check. Nil connects to the instance
	// itself; behind an outbound proxy, connect to the proxy instead.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Monitor watches the instances of a fleet. It is safe for concurrent use and a
// prometheus.Collector.
type Monitor struct {
	fleet   *fleet.Fleet
	log     *slog.Logger
	plain   *http.Transport // for pools without one
	dialer  net.Dialer
	meter   *meter
	pools   atomic.Pointer[map[string]*pool] // by "region/pool"
	records sync.Map                         // *fleet.Live -> *record
	applied chan struct{}                    // of capacity 1: pools changed

	mu struct {
		sync.Mutex                    // of ejections: "is another one left" and the ejection are one step
		kicks      map[string]*worker // the workers that learn models, by pool
	}
}

// New returns a monitor that knows no pool and starts nothing.
func New(f *fleet.Fleet, log *slog.Logger) *Monitor {
	m := &Monitor{
		fleet: f, log: log.With("component", "health"), meter: newMeter(),
		plain: &http.Transport{
			MaxIdleConnsPerHost: 1, IdleConnTimeout: 90 * time.Second, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		applied: make(chan struct{}, 1),
	}
	m.pools.Store(&map[string]*pool{})
	m.mu.kicks = make(map[string]*worker)
	return m
}

// Apply replaces the configuration of all pools ("region/pool" -> Pool), or
// changes nothing and returns the mistake. What is known of instances is kept.
func (m *Monitor) Apply(pools map[string]Pool) error {
	next := make(map[string]*pool, len(pools))
	for name, p := range pools {
		prepared, err := m.prepare(name, p)
		if err != nil {
			return fmt.Errorf("pool %s: %w", name, err)
		}
		next[name] = prepared
	}
	old := *m.pools.Swap(&next)
	for name := range old {
		if next[name] == nil {
			m.meter.forget(name)
		}
	}
	select {
	case m.applied <- struct{}{}:
	default:
	}
	return nil
}

// pool finds a pool's configuration; nil when there is none.
func (m *Monitor) pool(name string) *pool { return (*m.pools.Load())[name] }

// Run probes, scrapes and learns until ctx ends, and returns nil when all its
// goroutines have ended. It is called once.
func (m *Monitor) Run(ctx context.Context) error {
	changed, stop := m.fleet.Watch()
	defer stop()
	defer m.plain.CloseIdleConnections()
	workers := make(map[workKey]*worker)
	defer func() {
		for _, w := range workers {
			w.end()
		}
	}()
	for {
		m.follow(ctx, workers)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-m.applied:
		}
	}
}

// follow makes the workers those that the snapshot and the pools ask for.
func (m *Monitor) follow(ctx context.Context, workers map[workKey]*worker) {
	snap := m.fleet.Snapshot()
	wanted := m.wanted(snap)
	for key, w := range workers {
		if j, ok := wanted[key]; !ok || j != w.job {
			w.end()
			delete(workers, key)
			if key.kind == workCheck && m.checksOff(key) {
				m.absolve(w.job)
			}
		}
	}
	m.prune(snap)
	for key, j := range wanted {
		if w, ok := workers[key]; ok {
			if key.kind == workLearn {
				w.kick() // instances may be new
			}
			continue
		}
		workers[key] = m.start(ctx, key, j)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.mu.kicks)
	for key, w := range workers {
		if key.kind == workLearn {
			m.mu.kicks[key.name] = w
		}
	}
}

// wanted lists the work that the snapshot and the pools ask for.
func (m *Monitor) wanted(snap *fleet.Snapshot) map[workKey]job {
	wanted := make(map[workKey]job)
	for _, r := range snap.Regions {
		for _, fp := range r.Pools {
			p := m.pool(fp.Name)
			if p == nil {
				continue
			}
			if p.LearnModels {
				wanted[workKey{workLearn, fp.Name}] = job{pool: fp.Name}
			}
			for _, i := range fp.Instances {
				j := job{
					pool: fp.Name, name: i.Name, url: *i.URL, live: i.Live,
					poolLive: fp.Live, regionLive: r.Live,
				}
				if p.Config.Active.on() {
					j.interval = p.Config.Active.Interval
					wanted[workKey{workCheck, i.Name}] = j
				}
				if p.Metrics.Enabled() {
					j.interval = p.Metrics.Interval
					wanted[workKey{workScrape, i.Name}] = j
				}
			}
		}
	}
	return wanted
}

// checksOff says whether an instance that stays is no longer checked.
func (m *Monitor) checksOff(key workKey) bool {
	i, ok := m.fleet.Snapshot().Instance(key.name)
	if !ok {
		return false
	}
	p := m.pool(i.Pool.Name)
	return p == nil || !p.Config.Active.on()
}

// prune forgets instances that left, and readmits those of pools whose passive
// health was switched off.
func (m *Monitor) prune(snap *fleet.Snapshot) {
	here := make(map[*fleet.Live]bool)
	snap.Instances(func(i *fleet.Instance) {
		here[i.Live] = true
		if p := m.pool(i.Pool.Name); (p == nil || p.Config.Passive.MaxFails == 0) && i.Live.Ejected() {
			m.readmit(i, "passive health is off")
		}
	})
	m.records.Range(func(live, _ any) bool {
		if !here[live.(*fleet.Live)] {
			m.records.Delete(live)
		}
		return true
	})
}
