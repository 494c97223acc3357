package fleet

import (
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Layout is the configured part of the fleet: the tiers without the instances
// that sources find.
type Layout struct {
	Regions []RegionLayout
}

// RegionLayout is one configured region.
type RegionLayout struct {
	Name   string
	Weight int
	Backup bool
	Pools  []PoolLayout
}

// PoolLayout is one configured pool.
type PoolLayout struct {
	Name        string
	Weight      int
	Backup      bool
	Models      map[string]string // nil: learned from the instances
	Surfaces    []inference.Surface
	MaxInFlight int64 // default for targets that do not say
	SlowStart   time.Duration
	Provider    bool     // a hosted account, not servers of our own
	Standby     bool     // takes nothing until SetReserve(true)
	Static      []Target // instances written in the configuration
	Discovered  bool     // a source finds instances too; what it found is kept while this stays so
	Found       []Target // what a new source has found already; nil keeps what is known
}

// Fleet holds the current Snapshot and makes the next one. Its methods are safe
// for concurrent use.
type Fleet struct {
	log  *slog.Logger
	snap atomic.Pointer[Snapshot]

	mu struct {
		sync.Mutex
		layout  Layout
		found   map[string][]Target          // pool with a source -> what it said last
		learned map[string]map[string]string // pool without models -> those that its instances list
		lives   map[string]*Live
		watch   map[chan struct{}]struct{}
		reserve bool // standby pools take work
	}
}

// New returns a fleet without regions.
func New(log *slog.Logger) *Fleet {
	f := &Fleet{log: log.With("component", "fleet")}
	f.mu.found = make(map[string][]Target)
	f.mu.learned = make(map[string]map[string]string)
	f.mu.lives = make(map[string]*Live)
	f.mu.watch = make(map[chan struct{}]struct{})
	f.snap.Store(&Snapshot{})
	return f
}

// Snapshot returns the current picture. It never blocks.
func (f *Fleet) Snapshot() *Snapshot { return f.snap.Load() }

// Apply replaces the configured layout. What sources found for pools that stay
// is kept; counters and states are kept by name.
func (f *Fleet) Apply(l Layout) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	layout, found, learned := f.mu.layout, f.mu.found, f.mu.learned
	f.mu.layout = l
	f.mu.found, f.mu.learned = f.knownOf(l)
	if err := f.rebuild(); err != nil {
		f.mu.layout, f.mu.found, f.mu.learned = layout, found, learned
		return err
	}
	return nil
}

// knownOf is what is known of the pools of a layout: the instances of those that have
// sources, and the models of those that learn them. The caller holds f.mu.
func (f *Fleet) knownOf(l Layout) (found map[string][]Target, learned map[string]map[string]string) {
	found, learned = make(map[string][]Target), make(map[string]map[string]string)
	for _, r := range l.Regions {
		for _, p := range r.Pools {
			name := r.Name + "/" + p.Name
			if p.Models == nil {
				learned[name] = f.mu.learned[name]
			}
			if !p.Discovered {
				continue
			}
			found[name] = f.mu.found[name]
			if good := f.usable(name, p.Found); len(good) > 0 {
				found[name] = good
			}
		}
	}
	return found, learned
}

// usable is targets without those that cannot be used, which are logged.
func (f *Fleet) usable(pool string, targets []Target) []Target {
	good := make([]Target, 0, len(targets))
	for _, t := range targets {
		if _, err := ParseURL(t.URL); err != nil {
			f.log.Error("discovery found an instance that cannot be used", "pool", pool, "err", err)
			continue
		}
		good = append(good, t)
	}
	return good
}

// Update replaces the targets that a source found for a pool ("region/pool") of
// the layout. An empty set keeps the last known one and says so in the log; a
// target that cannot be used is left out and logged. The last word of a source
// whose pool is gone, or has none any more, is ignored.
func (f *Fleet) Update(pool string, targets []Target) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, ok := f.mu.found[pool]
	if !ok {
		return
	}
	if len(targets) == 0 {
		f.log.Warn("discovery found no instance; keeping the last known set", "pool", pool, "instances", len(known))
		return
	}
	good := f.usable(pool, targets)
	if len(good) == 0 || slices.Equal(good, known) {
		return
	}
	f.mu.found[pool] = good
	if err := f.rebuild(); err != nil {
		f.log.Error("discovery was not applied", "pool", pool, "err", err)
	}
}

// Learn sets the models of a pool that has none configured, as its instances
// list them. Other pools stay as they are.
func (f *Fleet) Learn(pool string, models []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := make(map[string]string, len(models))
	for _, name := range models {
		m[name] = name
	}
	if known, ok := f.mu.learned[pool]; !ok || maps.Equal(m, known) {
		return
	}
	f.mu.learned[pool] = m
	if err := f.rebuild(); err != nil {
		f.log.Error("learned models were not applied", "pool", pool, "err", err)
	}
}

// SetReserve lets the pools that stand by take work, or stops that. What they have
// in flight ends in its own time.
func (f *Fleet) SetReserve(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.reserve = on
	f.snap.Load().Instances(func(i *Instance) { i.Live.standby.Store(i.Pool.Standby && !on) })
}

// Watch returns a channel that gets a value after the snapshot changed; values
// are merged. stop ends it.
func (f *Fleet) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.watch[ch] = struct{}{}
	return ch, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.mu.watch, ch)
	}
}

// rebuild makes the next snapshot from the layout and what was found. The
// caller holds mu.
func (f *Fleet) rebuild() error {
	b := builder{lives: f.mu.lives, used: make(map[string]bool), reserve: f.mu.reserve}
	next := &Snapshot{Version: f.snap.Load().Version + 1, instances: make(map[string]*Instance)}
	for _, rl := range f.mu.layout.Regions {
		r, err := b.region(rl, f.mu.found, f.mu.learned)
		if err != nil {
			return err
		}
		next.Regions = append(next.Regions, r)
	}
	next.Instances(func(i *Instance) { next.instances[i.Name] = i })
	// A live that no node uses goes only when its last lease is back, so that an
	// instance that returns meanwhile finds the same counters.
	for name, l := range f.mu.lives {
		if !b.used[name] && l.InFlight() == 0 {
			delete(f.mu.lives, name)
		}
	}
	f.snap.Store(next)
	for ch := range f.mu.watch {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	return nil
}

// builder makes the nodes of one snapshot.
type builder struct {
	lives   map[string]*Live
	used    map[string]bool
	reserve bool
}

// live finds or makes the counters of a node.
func (b *builder) live(name string) *Live {
	b.used[name] = true
	l, ok := b.lives[name]
	if !ok {
		l = new(Live)
		b.lives[name] = l
	}
	return l
}

// region builds a region and its pools.
func (b *builder) region(rl RegionLayout, found map[string][]Target, learned map[string]map[string]string) (*Region, error) {
	r := &Region{Node: newNode(rl.Name, rl.Weight, rl.Backup, b.live(rl.Name))}
	r.children = []*Node{}
	for _, pl := range rl.Pools {
		name := rl.Name + "/" + pl.Name
		targets := append(slices.Clip(pl.Static), found[name]...)
		models := pl.Models
		if models == nil {
			models = learned[name]
		}
		p, err := b.pool(r, pl, models, targets)
		if err != nil {
			return nil, err
		}
		r.Pools = append(r.Pools, p)
		r.children = append(r.children, &p.Node)
	}
	return r, nil
}

// pool builds a pool and its instances.
func (b *builder) pool(r *Region, pl PoolLayout, models map[string]string, targets []Target) (*Pool, error) {
	name := r.Name + "/" + pl.Name
	p := &Pool{
		Node:   newNode(name, pl.Weight, pl.Backup, b.live(name)),
		Region: r, Label: pl.Name, Models: models, Surfaces: pl.Surfaces, Provider: pl.Provider, Standby: pl.Standby,
	}
	p.children = []*Node{}
	for _, t := range targets {
		u, err := ParseURL(t.URL)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", name, err)
		}
		id := name + "/" + u.Host + u.Path
		if slices.ContainsFunc(p.Instances, func(i *Instance) bool { return i.Name == id }) {
			continue
		}
		i := &Instance{Node: newNode(id, t.Weight, t.Backup, b.live(id)), Pool: p, URL: u}
		i.instance = i
		i.Live.standby.Store(pl.Standby && !b.reserve)
		i.SlowStart = pl.SlowStart
		if i.Capacity = t.MaxInFlight; i.Capacity == 0 {
			i.Capacity = pl.MaxInFlight
		}
		p.Instances = append(p.Instances, i)
		p.children = append(p.children, &i.Node)
		if i.Backup {
			p.backups = append(p.backups, &i.Node)
		} else {
			p.primaries = append(p.primaries, &i.Node)
		}
	}
	return p, nil
}

// ParseURL reads an instance's address. A trailing slash and a trailing /v1 are
// taken off, because the gateway adds the surface's own path.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("instance address %q: %w", s, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Hostname() == "" {
		return nil, fmt.Errorf("instance address %q: want http://host:port or https://host", s)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("instance address %q: credentials, queries and fragments have no place in it", u.Redacted())
	}
	if u.Port() == "" {
		u.Host += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	}
	path := u.Path
	for len(path) > 0 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	if len(path) >= 3 && path[len(path)-3:] == "/v1" {
		path = path[:len(path)-3]
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: path}, nil
}
