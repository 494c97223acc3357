package route

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Router plans where requests may run. Its methods are safe for concurrent use.
type Router struct {
	fleet   *fleet.Fleet
	log     *slog.Logger
	dir     atomic.Pointer[directory]
	stages  atomic.Pointer[[]Steering]
	scratch sync.Pool // of *scratch

	mu struct {
		sync.Mutex
		random []byte // the secret made up for want of a configured one
	}
}

// New returns a router over f. The keys of tiers are names of regions ("eu"), for
// the choice among their pools, and of pools ("eu/gpu"), for the choice among their
// instances; what is not there gets DefaultTier. It reports every mistake in the
// configuration, those of tiers with the tier's name in front.
func New(cfg Config, tiers map[string]TierConfig, f *fleet.Fleet, log *slog.Logger) (*Router, error) {
	r := &Router{fleet: f, log: log.With("component", "route")}
	r.scratch.New = func() any { return new(scratch) }
	if err := r.Apply(cfg, tiers); err != nil {
		return nil, err
	}
	return r, nil
}

// Apply replaces the configuration for requests that come from now on, or changes
// nothing and returns every mistake. What policies keep goes on where a tier's
// configuration is the same.
func (r *Router) Apply(cfg Config, tiers map[string]TierConfig) error {
	errs := []error{cfg.Validate()}
	byCookie := cfg.Affinity.By == "cookie"
	for _, name := range slices.Sorted(maps.Keys(tiers)) {
		t := tiers[name]
		errs = append(errs, under(name, t.Validate()))
		byCookie = byCookie || t.Affinity.By == "cookie"
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	set := &settings{cfg: cfg, tiers: maps.Clone(tiers)}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.dir.Load()
	if byCookie {
		s, err := r.signer(cfg.Cookie, old)
		if err != nil {
			return under("cookie", err)
		}
		set.signer = s
	}
	r.dir.Store(compile(r.fleet.Snapshot(), set, old))
	return nil
}

// signer makes the signer of the cookie, or keeps the old one when it would be
// the same. The caller holds mu.
func (r *Router) signer(cfg CookieConfig, old *directory) (*signer, error) {
	secret, err := cfg.secret()
	if err != nil {
		return nil, err
	}
	if secret == nil {
		if r.mu.random == nil {
			r.mu.random = randomSecret()
			r.log.Warn("no secret for the session cookie is configured: a random one serves until the next start, and other gateways do not know it")
		}
		secret = r.mu.random
	}
	s := newSigner(cfg, secret)
	if old != nil && old.set.signer != nil && old.set.signer.equal(s) {
		return old.set.signer, nil
	}
	return s, nil
}

// current returns the directory of the fleet's snapshot. When the snapshot has
// changed, one caller compiles the next directory; those who come meanwhile take
// the last one.
func (r *Router) current() *directory {
	d := r.dir.Load()
	if d.snap == r.fleet.Snapshot() || !r.mu.TryLock() {
		return d
	}
	defer r.mu.Unlock()
	return r.compileLatest()
}

// latest returns the directory of the fleet's snapshot and waits for it.
func (r *Router) latest() *directory {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.compileLatest()
}

// compileLatest makes the directory of the fleet's snapshot unless it is there.
// The caller holds mu.
func (r *Router) compileLatest() *directory {
	d := r.dir.Load()
	if snap := r.fleet.Snapshot(); d.snap != snap {
		d = compile(snap, d.set, d)
		r.dir.Store(d)
	}
	return d
}

// Plan orders the pools where the request may run: the region and the pool that
// the policies choose, then the others of the region, the other regions, and the
// models that stand in. Its error is an *inference.Error that says which model is
// not served, or not on this surface.
func (r *Router) Plan(_ context.Context, req *inference.Request) (*fleet.Plan, error) {
	req, steered := r.steer(req, Steering.Steer)
	return r.steeredPlan(req, steered)
}

// steeredPlan plans a request that rules and experiments have been asked about.
func (r *Router) steeredPlan(req *inference.Request, steered *steered) (*fleet.Plan, error) {
	if steered != nil && req.Class == inference.Idle && r.ended(steered.arm) {
		e := inference.Errorf(inference.CodeNotCached, "the experiment has ended: nobody asks for answers of its arm")
		e.NoRetry = true
		return nil, e
	}
	plan, err := r.plan(req)
	if err == nil && steered != nil {
		err = steered.apply(plan)
	}
	if err != nil {
		return nil, err
	}
	if steered != nil && steered.mirror != nil && req.Class != inference.Idle {
		plan.Mirror = r.shadow(req, steered)
	}
	return plan, nil
}

// plan orders the pools where a request may run as the tiers want it.
func (r *Router) plan(req *inference.Request) (*fleet.Plan, error) {
	d := r.current()
	o, err := d.find(req)
	if err != nil && d.snap != r.fleet.Snapshot() {
		// The model may be in the picture that somebody compiles at this moment: at
		// the start that is the first one with any model at all.
		d = r.latest()
		o, err = d.find(req)
	}
	if err != nil {
		return nil, err
	}
	plan := fleet.NewPlan(req)
	if o.size == 1 && o.fallbacks == nil {
		plan.Candidates = append(plan.Candidates, o.pools[0][0])
	} else {
		if o.size > cap(plan.Candidates) {
			plan.Candidates = make([]fleet.Candidate, 0, o.size)
		}
		s := r.scratch.Get().(*scratch)
		s.query = fleet.Query{Request: req, Now: time.Now().UnixNano()}
		plan.Candidates = s.arrange(plan.Candidates, o)
		s.query = fleet.Query{}
		r.scratch.Put(s)
	}
	if o.cookies {
		plan.Cookie = func(i *fleet.Instance) string { return d.cookie(req, i) }
	}
	return plan, nil
}

// find looks up where the request's model is served.
func (d *directory) find(req *inference.Request) (*offer, error) {
	m, ok := d.models[req.Model]
	if !ok {
		return nil, notServed(req, "the model %q is not served here", shorten(req.Model))
	}
	if int(req.Surface) < len(m.surfaces) {
		if o := m.surfaces[req.Surface]; o != nil {
			return o, nil
		}
	}
	var on []string
	for s, o := range m.surfaces {
		if o != nil {
			on = append(on, inference.Surface(s).String())
		}
	}
	if len(on) == 0 {
		return nil, notServed(req, "the model %q is not served on any surface", shorten(req.Model))
	}
	return nil, notServed(req, "the model %q is not served on %s, but on %s", shorten(req.Model), req.Surface, strings.Join(on, ", "))
}

// notServed is the error for a model that is not there.
func notServed(req *inference.Request, format string, args ...any) error {
	e := inference.Errorf(inference.CodeModelNotFound, format, args...)
	e.Param, e.NoRetry = "model", true
	return e
}

// longestName bounds how much of a name that a client sent comes back in a message.
const longestName = 128

// shorten bounds a client's name in a message.
func shorten(name string) string {
	if len(name) > longestName {
		return strings.ToValidUTF8(name[:longestName], "") + "..."
	}
	return name
}

// scratch is what one Plan works with, kept off the heap.
type scratch struct {
	query   fleet.Query
	regions []uint64
	pools   []uint64
}

// arrange appends the candidates of an offer and its fallbacks in order. Policies
// are asked about a fallback only when the model itself has no room.
func (s *scratch) arrange(dst []fleet.Candidate, o *offer) []fleet.Candidate {
	dst, open := s.append(dst, o, true)
	for _, f := range o.fallbacks {
		var now bool
		dst, now = s.append(dst, f, !open)
		open = open || now
	}
	return dst
}

// append adds an offer's candidates. The policies choose the first region, and the
// first pool in it; what stands behind them is for retries and lost races, and
// follows a fixed order so that no policy counts work that it does not get.
func (s *scratch) append(dst []fleet.Candidate, o *offer, ask bool) (all []fleet.Candidate, open bool) {
	first := -1
	if ask {
		s.query.Rand = rand.Uint64()
		first = o.regions.pick(&s.query)
	}
	s.regions = o.regions.order(&s.query, first, s.regions[:0])
	for _, key := range s.regions {
		region := key & indexMask
		pool := -1
		if int(region) == first {
			s.query.Rand = rand.Uint64()
			pool = o.inside[region].pick(&s.query)
		}
		s.pools = o.inside[region].order(&s.query, pool, s.pools[:0])
		for _, key := range s.pools {
			dst = append(dst, o.pools[region][key&indexMask])
		}
	}
	return dst, first >= 0
}

// Layout of a rank, from its highest bits: not the first, backup, not open, weight
// (inverted), load, index.
const (
	indexMask   = 1<<16 - 1
	loadMax     = 1<<24 - 1
	loadShift   = 16
	weightMax   = 1<<21 - 1
	weightShift = 40
	closedBit   = 1 << 61
	backupBit   = 1 << 62
	laterBit    = 1 << 63
)

// order ranks the members: the first, then those that are not backups before
// backups, open before not open, heavy before light, idle before busy, and as
// configured.
func (m *members) order(q *fleet.Query, first int, ranks []uint64) []uint64 {
	switch {
	case len(m.nodes) == 1:
		return append(ranks, 0)
	case len(m.nodes) == 2 && first >= 0:
		return append(ranks, uint64(first), uint64(1-first))
	}
	for i := range m.nodes {
		if i == first {
			ranks = append(ranks, uint64(i))
		} else {
			ranks = append(ranks, m.rank(q, i))
		}
	}
	slices.Sort(ranks)
	return ranks
}

// rank is the rank of a member that is not the first.
func (m *members) rank(q *fleet.Query, i int) uint64 {
	n := m.nodes[i]
	rank := laterBit | uint64(i)
	rank |= uint64(weightMax-min(n.Weight, weightMax)) << weightShift
	rank |= uint64(max(0, min(n.Live.Load(q.Now), loadMax))) << loadShift
	if i >= m.primaries {
		rank |= backupBit
	}
	if !q.Open(n) {
		rank |= closedBit
	}
	return rank
}

// Answered tells the policies what an instance reported for a request, so that
// those who guess about its prefix cache can correct themselves.
func (r *Router) Answered(req *inference.Request, lease *fleet.Lease, usage inference.Usage) {
	d := r.dir.Load()
	if !d.learns || usage.Zero() {
		return
	}
	i := lease.Instance
	d.global.observe(req, &i.Pool.Region.Node, usage)
	d.tiers[i.Pool.Region.Name].observe(req, &i.Pool.Node, usage)
	d.tiers[i.Pool.Name].observe(req, &i.Node, usage)
}

// observe passes an observation to a tier's policy. The tier is nil when its node
// has left the fleet meanwhile.
func (t *tier) observe(req *inference.Request, n *fleet.Node, usage inference.Usage) {
	if t != nil && t.learns {
		observe(t.policy, req, n, usage)
	}
}

// cookie returns the Set-Cookie value for an answer of an instance; "" for none.
func (d *directory) cookie(req *inference.Request, i *fleet.Instance) string {
	var names [tierCount]string
	var ttl time.Duration
	add := func(level int, t *tier, name string) {
		if t != nil && t.signer != nil {
			names[level] = name
			ttl = max(ttl, t.cfg.Affinity.TTL)
		}
	}
	add(regionTier, d.global, i.Pool.Region.Name)
	add(poolTier, d.tiers[i.Pool.Region.Name], i.Pool.Name)
	add(instanceTier, d.tiers[i.Pool.Name], i.Name)
	if names == [tierCount]string{} {
		return ""
	}
	return d.set.signer.write(req.Header, names, ttl)
}
