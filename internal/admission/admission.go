// Package admission is the governor: it decides whether and when a request runs,
// so that instances are as full as their clients' objectives allow and everything
// that waits, waits here.
//
// Enter asks for a slot. While nothing waits anywhere that is one look at the
// lane and the plan's own pick. Otherwise the request joins its lane: one for each
// model and ordered set of pools. A slot that is given back, a prompt that is read
// or a limit that rises sends the best heads of the lanes that the pool serves:
// classes share by start-time fair queueing, tenants inside a class by virtual
// token counters, a tenant's requests by deadline. The instance is picked only
// then. What would wait beyond its budget is refused at once, with the time at
// which a place is kept for it.
//
// How much an instance takes is learned by a Limiter for each (see Learned), from
// what the leases count on their way (fleet.Meter), and written where every pick
// reads it (fleet.Live).
//
// All decisions take their time as a parameter and none waits, so the same code
// runs in virtual time. Run owns the one goroutine of the package, which calls
// Tick. Governor.mu guards lanes, queues, counters and tickets; under it the
// package calls fleet's picks and no one else. What streams and releases do
// without waiters takes no lock.
package admission

import (
	"context"
	"hash/maphash"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Bounds of what is kept by name.
const (
	maxLanes    = 1024
	maxAccounts = 16384
	maxSpent    = 65536
)

// Governor admits requests. It is safe for concurrent use.
type Governor struct {
	fleet     *fleet.Fleet
	emergency *Emergency
	log       *slog.Logger
	seed      maphash.Seed // of lane keys

	set     atomic.Pointer[settings]
	lanes   atomic.Pointer[map[uint64]*lane]        // replaced under mu
	servers atomic.Pointer[map[*fleet.Live]*server] // replaced under mu
	waiting atomic.Int64                            // waiters of all lanes
	step    atomic.Int32                            // rung of the brownout ladder
	rungs   atomic.Uint32                           // bits of the rungs in force: those up to step but for those that are never taken
	known   atomic.Pointer[fleet.Snapshot]          // that servers and pools follow
	seen    [classes]atomic.Int64                   // when a class last asked, Unix nanoseconds
	count   counters
	descs   *descs
	waits   *prometheus.HistogramVec

	mu struct {
		sync.Mutex
		pools    map[uint64]*pool    // by the hash of the name: a pool may go and come back
		accounts map[string]*account // by tenant
		bytes    int64               // of waiting requests
		spent    map[uint64]time.Time
		tickets  int // out
		ticked   time.Time
		periods  time.Time // when limiters last decided
		calm     time.Time // since when the pressure is below the step's
		reserve  bool
	}
}

// settings are what a reload replaces.
type settings struct {
	Config
	signer *signer
	weight [classes]float64
}

// New returns a governor over the fleet's instances. emergency may be nil.
func New(cfg Config, f *fleet.Fleet, emergency *Emergency, log *slog.Logger) *Governor {
	g := &Governor{fleet: f, emergency: emergency, log: log.With("component", "admission"), seed: maphash.MakeSeed(), descs: newDescs(), waits: newWaits()}
	g.lanes.Store(&map[uint64]*lane{})
	g.servers.Store(&map[*fleet.Live]*server{})
	g.mu.pools = make(map[uint64]*pool)
	g.mu.accounts = make(map[string]*account)
	g.mu.spent = make(map[uint64]time.Time)
	g.Apply(cfg)
	return g
}

// Apply replaces the configuration. Queues, counters and tickets are kept; what
// was learned about instances is kept unless the way to learn has changed.
func (g *Governor) Apply(cfg Config) {
	if g.emergency != nil {
		g.emergency.Apply(cfg.Emergency) // it may wait for the disk: requests must not
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.set.Load()
	s := &settings{Config: cfg, signer: newSigner(os.Getenv(cfg.Tickets.SecretEnv))}
	if old != nil && os.Getenv(cfg.Tickets.SecretEnv) == "" && os.Getenv(old.Tickets.SecretEnv) == "" {
		s.signer = old.signer
	}
	for c := range s.weight {
		s.weight[c] = cfg.Classes.class(inference.Class(c)).Weight
	}
	g.set.Store(s)
	if old != nil && (old.Limit != cfg.Limit || old.StaticLimit != cfg.StaticLimit) {
		g.servers.Store(&map[*fleet.Live]*server{})
	}
	for tenant, a := range g.mu.accounts {
		weight := s.tenantWeight(tenant)
		for _, t := range a.queues {
			t.of.weights += weight - a.weight
		}
		a.weight = weight
	}
	g.sync(time.Now(), g.fleet.Snapshot())
}

// tenantWeight is a tenant's weight.
func (s *settings) tenantWeight(tenant string) float64 {
	if w, ok := s.TenantWeights[tenant]; ok {
		return w
	}
	return 1
}

// Run calls Tick until ctx ends.
func (g *Governor) Run(ctx context.Context) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			g.Tick(now)
		}
	}
}

// Step is the rung of the brownout ladder in force.
func (g *Governor) Step() Step { return Step(g.step.Load()) }

// Enter asks for a slot for an attempt at now: the first one of its request when
// nothing was tried. It returns a lease, or a Waiter when one may come in time,
// or an *inference.Error that says why not and when to come back. The waiter's
// outcome goes to notify, which is called once under the governor's lock and must
// not block; nil leaves it to Waiter.Wait.
func (g *Governor) Enter(now time.Time, plan *fleet.Plan, tried []*fleet.Instance, notify func(*Waiter)) (*fleet.Lease, *Waiter, error) {
	if g.fleet.Snapshot() != g.snapshot() {
		g.resync(now)
	}
	if len(plan.Candidates) == 0 {
		return nil, nil, plan.Refusal(now, tried)
	}
	req := plan.Request
	l := g.lane(plan)
	g.seen[req.Class].Store(now.UnixNano())
	plan.Tokens = l.learned.tokens(req)
	plan.Faithful = g.Step() < StepCheaperModel
	if req.Retry > 0 && !plan.Again {
		g.count.retries.Add(1)
	}
	if g.waiting.Load() == 0 && !g.sheds(now, req.Class) {
		lease, err := g.take(now, l, plan, tried)
		if lease != nil || err != nil {
			return lease, nil, err
		}
	}
	w := &Waiter{
		g: g, lane: l, plan: plan, tried: tried, class: req.Class, again: plan.Again || len(tried) > 0,
		arrived: now, bytes: int64(len(req.Body)), notify: notify,
	}
	if notify == nil {
		w.ready = make(chan struct{}, 1)
	}
	return g.join(now, w)
}

// take picks at once. Without a lease and without an error there is nothing now
// but something worth waiting for.
func (g *Governor) take(now time.Time, l *lane, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, error) {
	lease, status := pick(now, plan, tried)
	switch {
	case lease != nil:
		g.admit(l, lease)
		return lease, nil
	case status > fleet.Cooling:
		return nil, plan.Refusal(now, tried)
	}
	return nil, nil
}

// pick takes a slot of the model itself or, when that cannot be had at all, of one
// that stands in for it. Without one the status says what could be waited for.
func pick(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, fleet.Status) {
	lease, status := plan.Take(now, tried)
	if lease == nil && plan.Faithful && status > fleet.Cooling {
		plan.Faithful = false
		lease, status = plan.Take(now, tried)
	}
	return lease, status
}

// admit marks a lease as the governor's.
func (g *Governor) admit(l *lane, lease *fleet.Lease) {
	lease.Watch, lease.Tag = g, l
	l.class[lease.Class].passed.Add(1)
	g.count.admitted[lease.Class].Add(1)
	if g.Step() != StepNone {
		g.lower(l, lease)
	}
}

// sheds says whether the emergency switch refuses the class.
func (g *Governor) sheds(now time.Time, c inference.Class) bool {
	if g.emergency == nil {
		return false
	}
	p := g.emergency.Profile(now)
	return p != nil && p.Sheds(c)
}

// lane finds or makes the plan's lane.
func (g *Governor) lane(plan *fleet.Plan) *lane {
	key := laneKey(g.seed, plan)
	if l, ok := (*g.lanes.Load())[key]; ok {
		return l
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.addLane(key, plan)
}

// addLane makes the plan's lane unless it is there. The caller holds mu.
func (g *Governor) addLane(key uint64, plan *fleet.Plan) *lane {
	old := *g.lanes.Load()
	if l, ok := old[key]; ok {
		return l
	}
	l := &lane{key: key, model: plan.Request.Model, used: g.mu.ticked}
	l.add(g, plan, false)
	l.own = len(l.pools)
	l.add(g, plan, true)
	next := make(map[uint64]*lane, len(old)+1)
	maps.Copy(next, old)
	if len(next) >= maxLanes {
		g.dropLane(next)
	}
	next[key] = l
	g.lanes.Store(&next)
	return l
}

// dropLane forgets the lane without waiters that was used least recently. The
// caller holds mu.
func (g *Governor) dropLane(lanes map[uint64]*lane) {
	var oldest *lane
	for _, l := range lanes {
		if l.waiting == 0 && (oldest == nil || l.used.Before(oldest.used)) {
			oldest = l
		}
	}
	if oldest == nil {
		return
	}
	delete(lanes, oldest.key)
	for c := range oldest.class {
		g.mu.tickets -= len(oldest.class[c].pledges.out)
	}
	for _, p := range oldest.pools {
		p.lanes = slices.DeleteFunc(p.lanes, func(l *lane) bool { return l == oldest })
	}
}

// pool finds or makes what is kept of a pool. The caller holds mu.
func (g *Governor) pool(fp *fleet.Pool) *pool {
	p, ok := g.mu.pools[fp.Hash]
	if !ok {
		p = &pool{hash: fp.Hash, fleet: fp}
		g.mu.pools[fp.Hash] = p
	}
	return p
}

// account finds or makes a tenant's account. The caller holds mu.
func (g *Governor) account(req *inference.Request) *account {
	a, ok := g.mu.accounts[req.Tenant]
	if !ok {
		if len(g.mu.accounts) >= maxAccounts {
			g.dropAccount()
		}
		a = &account{weight: g.set.Load().tenantWeight(req.Tenant)}
		g.mu.accounts[req.Tenant] = a
	}
	return a
}

// dropAccount forgets an account without waiters. The caller holds mu.
func (g *Governor) dropAccount() {
	for tenant, a := range g.mu.accounts { // any order is as good: a map's is nobody's favour
		if a.waiting == 0 {
			delete(g.mu.accounts, tenant)
			return
		}
	}
}

// join puts a waiter into its lane, or refuses it.
func (g *Governor) join(now time.Time, w *Waiter) (*fleet.Lease, *Waiter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	set := g.set.Load()
	w.lane = g.addLane(w.lane.key, w.plan) // it may have been forgotten since it was found
	g.deadline(w, set)
	first := w.lane.waiting == 0
	if first && g.full(w, set) && !g.sheds(now, w.class) { // of others: it may need no place in the queue
		if lease, err := g.take(now, w.lane, w.plan, w.tried); lease != nil || err != nil {
			return lease, nil, err
		}
	}
	if err := g.judge(now, w, set); err != nil {
		return nil, nil, err
	}
	g.enqueue(now, w)
	for _, p := range w.lane.pools {
		g.dispatch(now, p, set)
		if w.done {
			lease, err := w.lease, w.err
			return lease, nil, err
		}
	}
	if first || w.again {
		// Alone in its lane, or not willing to take what was tried: what cannot be
		// had at all need not be waited for.
		if lease, err := g.take(now, w.lane, w.plan, w.tried); lease != nil || err != nil {
			g.dequeue(now, w)
			w.done = true
			return lease, nil, err
		}
	}
	return nil, w, nil
}

// Prefilled implements fleet.Watcher.
func (g *Governor) Prefilled(l *fleet.Lease, now time.Time, took time.Duration) {
	for _, p := range l.Tag.(*lane).pools {
		if p.hash == l.Instance.Pool.Hash && l.Stream() { // an answer in one piece comes when all is done
			towards(&p.first, took.Seconds(), took.Seconds(), 1.0/16)
		}
	}
	g.room(now, l.Instance.Pool)
}

// Released implements fleet.Watcher.
func (g *Governor) Released(l *fleet.Lease, now time.Time) {
	gaps, sum := l.Pace()
	s := (*g.servers.Load())[l.Instance.Live]
	if s != nil {
		s.observe(l, now, gaps, sum)
	}
	if l.Verdict == inference.VerdictOK {
		l.Tag.(*lane).learned.observe(l.Prompt, l.Usage, l.Request.Images)
	}
	if a, ok := l.Payer.(*account); ok {
		actual := outputCost * float64(max(gaps, l.Usage.CompletionTokens))
		g.mu.Lock()
		a.charge(actual - l.Charge)
		if l.Verdict == inference.VerdictOK {
			a.observe(actual / outputCost)
		}
		g.mu.Unlock()
	}
	g.room(now, l.Instance.Pool)
}

// room sends what waits for a pool that may have room now.
func (g *Governor) room(now time.Time, fp *fleet.Pool) {
	if g.waiting.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, ok := g.mu.pools[fp.Hash]; ok {
		g.dispatch(now, p, g.set.Load())
	}
}

// deadline finds out how long a waiter may wait. The caller holds mu.
func (g *Governor) deadline(w *Waiter, set *settings) {
	req := w.plan.Request
	budget := set.Classes.class(w.class).TTFT
	if req.Wait > 0 { // the client knows best, within what anybody waits
		budget = min(req.Wait, max(budget, longestWait))
	}
	if req.Patience > 0 {
		budget = min(budget, req.Patience)
	}
	if !req.Stream {
		budget = min(budget, set.Queue.UnstreamedWait)
	}
	if !req.Deadline.IsZero() {
		budget = min(budget, req.Deadline.Sub(w.arrived))
	}
	w.budget = max(0, budget)
	w.latest = w.arrived.Add(allowance(w.budget, 2*w.lane.firstToken(), 1))
	if w.again { // its client has been waiting since the first attempt
		w.latest = req.Deadline
	}
	w.before = w.latest.UnixNano()
}

// allowance is how long a request with a budget may wait when its first token
// takes as long as predicted: a share of what the budget leaves, but never less
// than a quarter of it, so that a slow prefill alone refuses nobody.
func allowance(budget time.Duration, first float64, share float64) time.Duration {
	left := share * (budget.Seconds() - first)
	return time.Duration(max(left, budget.Seconds()/4) * float64(time.Second))
}

// firstToken is the predicted time from dispatch to first token, in seconds: that
// of the lane's quickest pool.
func (l *lane) firstToken() float64 {
	least := 0.0
	for _, p := range l.pools {
		if v := value(&p.first, 0); v > 0 && (least == 0 || v < least) {
			least = v
		}
	}
	return least
}
