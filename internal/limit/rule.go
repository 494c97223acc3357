package limit

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// unit is what a meter counts.
type unit uint8

// The units of meters.
const (
	requests unit = iota
	tokens
	concurrent
)

// unitWords is indexed by unit: in names and metrics, and as a reason of refusals.
var unitWords = [...]struct{ name, reason string }{
	{"requests", "rate_requests"}, {"tokens", "rate_tokens"}, {"concurrent", "concurrent"},
}

// String is the unit's name.
func (u unit) String() string { return unitWords[u].name }

// meter is one limit of a rule, as buckets are made of it. It does not change.
type meter struct {
	rule string
	name string // with the unit, for people
	unit unit
	rate Rate  // of requests and tokens
	most int64 // the burst, or how many at one time
	size int64 // the burst in nanoseconds, or most
	seed Key
}

// burst is how much may be used at once.
func (b Bucket) burst() int64 {
	if b.Burst > 0 {
		return b.Burst
	}
	return b.Rate.N
}

// newMeter returns the meter of a bucket.
func newMeter(rule string, u unit, b Bucket) meter {
	return meter{rule: rule, name: rule + "-" + u.String(), unit: u, rate: b.Rate, most: b.burst(), size: b.Rate.time(b.burst())}
}

// ask is what a request that takes n asks of a bucket of the meter.
func (m *meter) ask(k Key, n int64) Ask {
	a := Ask{Key: k, Name: m.name, Cost: 1, Room: 1, Size: m.size, State: -1, meter: m}
	if m.unit == concurrent {
		a.Kind = Held
		return a
	}
	a.Cost = m.rate.time(n)
	a.Room = min(a.Cost, a.Size)
	return a
}

// meters lists a rule's meters, without their seeds.
func (r *Rule) meters() (all []meter) {
	if !r.Requests.Rate.Zero() {
		all = append(all, newMeter(r.Name, requests, r.Requests))
	}
	if !r.Tokens.Rate.Zero() {
		all = append(all, newMeter(r.Name, tokens, r.Tokens))
	}
	if r.Concurrent > 0 {
		all = append(all, meter{rule: r.Name, name: r.Name + "-" + concurrent.String(), unit: concurrent, most: r.Concurrent, size: r.Concurrent})
	}
	return all
}

// rule is a Rule that is made ready.
type rule struct {
	name     string
	by       uint8 // bit i: subjects[i]
	classes  uint8 // bit i: inference.Class(i)
	surfaces uint8
	only     Only
	meters   []meter
	budgets  []budget
	count    *ruleCount
}

// ruleCount is what became of the requests that a rule matches.
type ruleCount struct {
	admitted atomic.Uint64
	refused  [len(unitWords)]atomic.Uint64
	spent    [2]atomic.Uint64 // by period
	hold     atomic.Int64     // mean time that requests are under way, nanoseconds
}

// held notes how long a request was under way. Of two at one instant one may be lost.
func (c *ruleCount) held(d time.Duration) {
	if old := c.hold.Load(); old > 0 {
		c.hold.Store(old + (int64(d)-old)/8)
	} else {
		c.hold.Store(int64(d))
	}
}

// compile makes a rule ready.
func compile(r *Rule, h *hasher, count *ruleCount) *rule {
	c := &rule{name: r.Name, only: r.Only, meters: r.meters(), count: count}
	name := h.secret.with(h.text(r.Name))
	for i := range c.meters {
		c.meters[i].seed = name.with(Key{uint64(c.meters[i].unit), 1})
	}
	for i, s := range subjects {
		if slices.Contains(r.By, s) {
			c.by |= 1 << i
		}
	}
	for _, w := range r.Only.Classes {
		class, _ := inference.ParseClass(w)
		c.classes |= 1 << class
	}
	for _, w := range r.Only.Surfaces {
		surface, _ := inference.ParseSurface(w)
		c.surfaces |= 1 << surface
	}
	for p, most := range [...]int64{day: r.Budget.Day, month: r.Budget.Month} {
		if most > 0 {
			c.budgets = append(c.budgets, budget{period: period(p), most: most, rule: c, seed: name.with(Key{uint64(p), 2})})
		}
	}
	return c
}

// mostQuotas bounds the quotas that are kept ready. They are the operator's, and few
// of many keys differ.
const mostQuotas = 4096

// quotas makes rules of the quotas of credentials.
type quotas struct {
	hash  *hasher
	count *ruleCount
	mu    struct {
		sync.RWMutex
		ready map[inference.Quota]*rule
	}
}

// of is the rule of a quota.
func (q *quotas) of(quota inference.Quota) *rule {
	q.mu.RLock()
	r := q.mu.ready[quota]
	q.mu.RUnlock()
	if r != nil {
		return r
	}
	r = q.compile(quota)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.ready == nil || len(q.mu.ready) >= mostQuotas {
		q.mu.ready = make(map[inference.Quota]*rule)
	}
	q.mu.ready[quota] = r
	return r
}

// compile makes a quota ready. Its buckets keep their keys when its numbers change.
func (q *quotas) compile(quota inference.Quota) *rule {
	limited := func(n int64, per time.Duration) Bucket {
		return Bucket{Rate: Rate{min(max(n, 0), mostRate), per}}
	}
	config := Rule{
		Name: quotaRule, By: []string{byTenant, byKey}, Requests: limited(quota.RequestsPerMinute, time.Minute),
		Tokens: limited(quota.TokensPerMinute, time.Minute), Concurrent: quota.Concurrent,
		Budget: Budget{Day: quota.TokensPerDay, Month: quota.TokensPerMonth},
	}
	r := compile(&config, q.hash, q.count)
	if second := limited(quota.RequestsPerSecond, time.Second); !second.Rate.Zero() {
		m := newMeter(quotaRule, requests, second)
		m.seed = q.hash.secret.with(q.hash.text(quotaRule)).with(Key{uint64(requests), 5})
		r.meters = append(r.meters, m)
	}
	return r
}

// matches says whether the rule is for a request.
func (r *rule) matches(req *inference.Request) bool {
	return (r.classes == 0 || r.classes&(1<<req.Class) != 0) && (r.surfaces == 0 || r.surfaces&(1<<req.Surface) != 0) &&
		anyMatches(r.only.Tenants, req.Tenant) && anyMatches(r.only.Keys, req.Key) && anyMatches(r.only.Models, req.Model) && r.routed(req.Rule)
}

// routed says whether one of the rules that have routed a request is among those that
// the rule is for.
func (r *rule) routed(names string) bool {
	if len(r.only.Routes) == 0 {
		return true
	}
	for name := range strings.SplitSeq(names, ",") {
		if anyMatches(r.only.Routes, name) {
			return true
		}
	}
	return false
}

// anyMatches says whether a name matches one of the patterns, or there are none.
func anyMatches(patterns []string, name string) bool {
	for _, p := range patterns {
		if matches(p, name) {
			return true
		}
	}
	return len(patterns) == 0
}

// matches says whether a name matches a pattern with `*` and `?`.
func matches(pattern, name string) bool {
	star, from := -1, 0
	for i, j := 0, 0; j < len(name) || i < len(pattern); {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, from = i, j
			i++
		case i < len(pattern) && j < len(name) && (pattern[i] == '?' || pattern[i] == name[j]):
			i, j = i+1, j+1
		case star >= 0 && from < len(name):
			from++
			i, j = star+1, from
		default:
			return false
		}
	}
	return true
}

// parts are a request's parts of keys, each made when it is first needed.
type parts struct {
	req  *inference.Request
	hash *hasher
	have uint8
	made [len(subjects)]Key
}

// of is the i-th part.
func (p *parts) of(i int) Key {
	if p.have&(1<<i) != 0 {
		return p.made[i]
	}
	p.have |= 1 << i
	k := &p.made[i]
	switch subjects[i] {
	case byIP:
		*k = network(p.req.ClientIP)
	case byKey:
		*k = p.hash.text(p.req.Key)
	case byTenant:
		*k = p.hash.text(p.req.Tenant)
	case byModel:
		*k = p.hash.text(p.req.Model)
	case bySurface:
		*k = Key{uint64(p.req.Surface), 3}
	case byClass:
		*k = Key{uint64(p.req.Class), 4}
	case byRoute:
		*k = p.hash.text(p.req.Rule)
	}
	return *k
}

// key is the key of a bucket that is kept by a set of parts.
func (p *parts) key(seed Key, by uint8) Key {
	for i := range subjects {
		if by&(1<<i) != 0 {
			seed = seed.with(p.of(i))
		}
	}
	return seed
}
