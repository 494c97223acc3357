// Package limit decides who may use how much.
//
// Two questions are asked of it. Admit is asked with a client's address alone, before
// a request's body is read. Reserve is asked with the request, before a server is
// chosen: it collects the buckets of every rule that matches, and of the credential's
// own quota, checks all of them, and charges all or none; what it returns is a Receipt,
// which follows the answer and settles the account when it has ended.
//
// A bucket is a GCRA: one instant (Store says which). Of tokens a request reserves its
// prompt and the answer that it will probably get, which is the p90 of what the tenant
// got of that model (expectations); what streams beyond that is charged as it comes, and
// what was not used goes back. A stream is never cut: a bucket may be in debt, and those
// that come later wait. A request larger than a whole bucket is taken when the bucket
// is full.
//
// Buckets of addresses are in this process always, so that a flood meets no network.
// Buckets of rules are in this process (Memory), or in a Store that gateways share. While
// that one fails or is late, each gateway decides in its own memory by its share: the
// limits divided by the last known number of gateways, from the states that it saw last.
//
// Budgets are sums of a calendar day or month; a Ledger knows what was spent, and each
// gateway adds what it spends itself.
//
// Requests of the class idle are the gateway's own and are not limited.
//
// Everything that is kept by what clients send is bounded: buckets, accounts of budgets,
// histograms of answers. Run owns the goroutines, which beat, ask the ledger and run the
// shared store. Locks are those of Memory's shards, of the accounts, and of the histograms'
// shards; none is held while another kind is taken, and none across a call of a shared
// store. The ledger's Spent is called under the accounts' lock.
package limit

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Parts are what a limiter is made of.
type Parts struct {
	// Store is shared by gateways and used where `store.kind` is `redis`; nil is none.
	Store Store
	// Emergency says whether the emergency switch is on; nil is never.
	Emergency func() bool
	// Ledger knows what was spent of budgets; nil counts in this process alone.
	Ledger Ledger
	Log    *slog.Logger
}

// Limiter limits. It is safe for concurrent use.
type Limiter struct {
	parts     Parts
	local     *Memory
	addresses *Memory
	secret    hasher // of addresses
	shared    *shared
	accounts  *accounts
	expect    *expectations
	nothing   *Receipt // of requests that no limit is for

	set   atomic.Pointer[settings]
	apply sync.Mutex // one Apply at a time
	count struct {
		address, quota ruleCount
	}
}

// settings are one configuration made ready.
type settings struct {
	Config
	hash      *hasher
	rules     []*rule
	byName    map[string]*rule
	quotas    *quotas
	address   [2]meter // without and with the emergency switch
	useShared bool
}

// New returns a limiter. It starts nothing; without Run a shared store is not used
// again once it has failed.
func New(cfg Config, parts Parts) (*Limiter, error) {
	l := &Limiter{
		parts: parts, local: NewMemory(cfg.MaxEntries / 2), addresses: NewMemory(cfg.MaxEntries / 2),
		secret: newHasher(false), accounts: newAccounts(parts.Ledger), expect: newExpectations(),
	}
	l.nothing = &Receipt{l: l}
	if parts.Store != nil {
		l.shared = &shared{store: parts.Store, log: parts.Log}
		l.shared.gateways.Store(1)
	}
	return l, l.Apply(cfg)
}

// Apply replaces the configuration, or changes nothing when it is wrong. Buckets stay,
// by the names of their rules, and so do counters.
func (l *Limiter) Apply(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s := &settings{Config: cfg, byName: make(map[string]*rule), useShared: cfg.Store.Kind == KindRedis}
	if s.useShared && l.shared == nil {
		return errors.New("store.kind: redis needs store.redis.addresses, and a restart where it is new")
	}
	l.apply.Lock()
	defer l.apply.Unlock()
	old := l.set.Load()
	if old != nil && old.useShared == s.useShared {
		s.hash = old.hash
	} else {
		h := newHasher(s.useShared)
		s.hash = &h
	}
	for i := range cfg.Rules {
		r := &cfg.Rules[i]
		count := new(ruleCount)
		if old != nil && old.byName[r.Name] != nil {
			count = old.byName[r.Name].count
		}
		c := compile(r, s.hash, count)
		s.rules, s.byName[r.Name] = append(s.rules, c), c
	}
	s.quotas = &quotas{hash: s.hash, count: &l.count.quota}
	s.address = cfg.Address.meters()
	l.local.resize(cfg.MaxEntries / 2)
	l.addresses.resize(cfg.MaxEntries / 2)
	if l.shared != nil {
		l.shared.timeout.Store(int64(cfg.Store.Timeout))
	}
	l.set.Store(s)
	return nil
}

// meters are those of the normal and the emergency profile. Each has buckets of its own.
func (a *AddressConfig) meters() [2]meter {
	normal := Bucket{a.Rate, a.Burst}
	strict := Bucket{a.EmergencyRate, a.EmergencyBurst}
	if strict.Rate.Zero() {
		strict.Rate = normal.Rate
		if strict.Burst == 0 {
			strict.Burst = normal.Burst
		}
	}
	return [2]meter{newMeter(addressRule, requests, normal), newMeter(addressRule, requests, strict)}
}

// Run beats, asks the ledger and runs the shared store until ctx ends.
func (l *Limiter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	var problem error
	if l.shared != nil {
		wg.Go(func() { problem = l.shared.store.Run(ctx) })
		wg.Go(func() { l.shared.watch(ctx) })
	}
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				l.accounts.refresh(now)
			}
		}
	})
	wg.Wait()
	return problem
}

// Admit says whether a request of an address may come, on its head alone. The error is
// an *inference.Error. An address that is not known, or in an exempt network, may. It
// takes one lock for a few instructions and does not allocate for one that may come.
func (l *Limiter) Admit(now time.Time, ip netip.Addr) error {
	set := l.set.Load()
	m, profile := &set.address[0], Key{0, 6}
	if l.parts.Emergency != nil && l.parts.Emergency() {
		// Buckets of its own: what is owed at a slow rate would take long to pay back.
		m, profile = &set.address[1], Key{1, 6}
	}
	ip = ip.Unmap().WithZone("")
	if m.rate.Zero() || !ip.IsValid() {
		return nil
	}
	for _, p := range set.Address.Exempt {
		if p.Contains(ip) {
			return nil
		}
	}
	a := m.ask(l.secret.secret.with(profile).with(network(ip)), 1)
	if l.addresses.one(l.addresses.clock.Nano(now), &a) {
		l.count.address.admitted.Add(1)
		return nil
	}
	l.count.address.refused[requests].Add(1)
	return refuseAddress(a)
}

// refuseAddress words the refusal of an address.
func refuseAddress(a Ask) error {
	e, _ := refusal([]Ask{a}, 1, func(*Ask) int64 { return 0 })
	e.Reason = addressRule
	return e
}

// Reserve checks every limit of a request and charges all or none. The error is an
// *inference.Error. It waits for a shared store, for the configured time at most. The
// receipt must be settled.
func (l *Limiter) Reserve(ctx context.Context, now time.Time, req *inference.Request) (*Receipt, error) {
	set := l.set.Load()
	if req.Class == inference.Idle || len(set.rules) == 0 && req.Quota == nil {
		return l.nothing, nil
	}
	r := &Receipt{l: l, factor: 1, begun: now}
	r.asks, r.drafts, r.rules = r.firstAsks[:0], r.firstDrafts[:0], r.firstRules[:0]
	r.gather(set, req)
	if len(r.rules) == 0 {
		return l.nothing, nil
	}
	if d, spent := l.accounts.reserve(now, req, r.drafts); d != nil {
		d.budget.rule.count.spent[d.budget.period].Add(1)
		return nil, spentRefusal(now, d, spent, d.budget.rule.count.hold.Load())
	}
	if !l.take(ctx, now, set, r) {
		l.accounts.settle(now, r.drafts, 0)
		e, worst := refusal(r.asks, r.factor, func(a *Ask) int64 { return r.countOf(a).hold.Load() })
		r.countOf(worst).refused[worst.meter.unit].Add(1)
		return nil, e
	}
	for _, rule := range r.rules {
		rule.count.admitted.Add(1)
	}
	return r, nil
}

// take charges the receipt's buckets in the shared store, or by this gateway's share.
func (l *Limiter) take(ctx context.Context, now time.Time, set *settings, r *Receipt) bool {
	if len(r.asks) == 0 {
		return true
	}
	if set.useShared {
		ok, asked := l.shared.take(ctx, now, r.asks)
		if asked {
			if r.shared = ok; ok {
				l.local.mirror(now, r.asks)
			}
			return ok
		}
		r.factor = l.shared.gateways.Load()
		scale(r.asks, r.factor)
	}
	ok, _ := l.local.Take(ctx, now, r.asks) // memory does not fail
	return ok
}

// give changes buckets where they were charged. What a shared store was told is told
// to memory too, which stands in for it.
func (l *Limiter) give(now time.Time, asks []Ask, shared bool) {
	if len(asks) == 0 {
		return
	}
	l.local.Give(now, asks)
	if shared {
		l.shared.store.Give(now, asks)
	}
}
