package limit

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Config is the section `limit` of the configuration.
type Config struct {
	// Limit of each client address, checked on a request's head alone. Each gateway counts on its own.
	Address AddressConfig `yaml:"address"`
	// Most buckets in memory, half of them for addresses, of about 48 bytes each.
	MaxEntries int `yaml:"max_entries"`
	// Limits of requests. All that match a request must have room, and then all are charged.
	Rules []Rule `yaml:"rules"`
	// What an answer is expected to cost before it is known.
	Expected Expected `yaml:"expected"`
	// Where the buckets of rules are kept.
	Store StoreConfig `yaml:"store"`
}

// AddressConfig limits client addresses: an IPv4 address, or the /64 of an IPv6 one.
type AddressConfig struct {
	// Requests of one address, such as `10/s`; `0` is no limit.
	Rate Rate `yaml:"rate"`
	// Requests that may come at once; 0 is the number in `rate`.
	Burst int64 `yaml:"burst"`
	// Networks without a limit: inside a network one address may stand for many clients.
	Exempt []netip.Prefix `yaml:"exempt"`
	// The rate while the emergency switch is on; `0` is that of `rate`.
	EmergencyRate Rate `yaml:"emergency_rate"`
	// The burst while the emergency switch is on; 0 is that of `burst`, or the number in `emergency_rate` where that is set.
	EmergencyBurst int64 `yaml:"emergency_burst"`
}

// Rule limits the requests that it matches.
type Rule struct {
	// Name in metrics, refusals and header fields. Buckets survive a reload under it.
	Name string `yaml:"name"`
	// What has a bucket of its own: `ip`, `key`, `tenant`, `model`, `surface`, `class`, `route` (the rule of `route.rules` that decided), or several of them together. Empty is one bucket for all. Requests without a key, or without an address, are one.
	By []string `yaml:"by"`
	// Which requests the rule is for; those that match all that it names.
	Only Only `yaml:"only"`
	// How many requests may come.
	Requests Bucket `yaml:"requests"`
	// How many tokens, of prompts and answers, may be used.
	Tokens Bucket `yaml:"tokens"`
	// Most requests under way at one time; 0 is no limit.
	Concurrent int64 `yaml:"concurrent"`
	// Most tokens in a calendar day or month.
	Budget Budget `yaml:"budget"`
}

// Only are patterns with `*` (any characters) and `?` (one character). Empty is all.
type Only struct {
	// Tenants.
	Tenants []string `yaml:"tenants"`
	// Models that will run, by the names that clients use.
	Models []string `yaml:"models"`
	// Public names of keys.
	Keys []string `yaml:"keys"`
	// Classes: `vip`, `normal`, `batch`.
	Classes []string `yaml:"classes"`
	// Surfaces: `chat`, `completions`, `embeddings`, `messages`, `responses`.
	Surfaces []string `yaml:"surfaces"`
	// Rules of `route.rules` that have decided where the request goes, or had a part in it.
	Routes []string `yaml:"routes"`
}

// Bucket is a token bucket.
type Bucket struct {
	// How much comes back in how long, such as `600/m`; `0` is no limit.
	Rate Rate `yaml:"rate"`
	// How much may be used at once; 0 is the number in `rate`.
	Burst int64 `yaml:"burst"`
}

// Budget is a number of tokens for a calendar period, UTC. 0 is no limit.
type Budget struct {
	// Most tokens a day.
	Day int64 `yaml:"day"`
	// Most tokens a month.
	Month int64 `yaml:"month"`
}

// Expected says how many tokens of answer are reserved before it is known.
type Expected struct {
	// Share of a tenant's past answers of the model that were not longer.
	Quantile float64 `yaml:"quantile"`
	// Tokens of an answer of which there is no past yet.
	Default int64 `yaml:"default"`
	// Most tokens of answer to reserve. What a request allows at most is a bound too.
	Cap int64 `yaml:"cap"`
}

// StoreConfig says where the buckets of rules are kept.
type StoreConfig struct {
	// `local` counts in each gateway; `redis` shares the buckets through the server of `store.redis`.
	Kind string `yaml:"kind"`
	// `exact` asks Redis for every request; `lease` takes quota ahead and decides locally.
	Mode string `yaml:"mode"`
	// How much quota all gateways together may hold ahead, as the time in which it comes back.
	Lease time.Duration `yaml:"lease"`
	// Longest wait for Redis; then the gateway decides by its share of the limits.
	Timeout time.Duration `yaml:"timeout"`
}

// Where buckets are kept, and how gateways share them.
const (
	KindLocal = "local"
	KindRedis = "redis"
	ModeExact = "exact"
	ModeLease = "lease"
)

// Default returns the configuration of a file that says nothing: addresses from
// outside are limited, and nothing else is.
func Default() Config {
	return Config{
		Address: AddressConfig{Rate: Rate{10, time.Second}, Burst: 5, Exempt: []netip.Prefix{
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
			netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"),
			netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
		}},
		MaxEntries: 1_000_000,
		Expected:   Expected{Quantile: 0.9, Default: 512, Cap: 8192},
		Store:      StoreConfig{Kind: KindLocal, Mode: ModeExact, Lease: time.Second, Timeout: 5 * time.Millisecond},
	}
}

// The words of `by`.
const (
	byIP      = "ip"
	byKey     = "key"
	byTenant  = "tenant"
	byModel   = "model"
	bySurface = "surface"
	byClass   = "class"
	byRoute   = "route"
)

// subjects are all words of `by`, in the order in which keys are made of them.
var subjects = [...]string{byIP, byKey, byTenant, byModel, bySurface, byClass, byRoute}

// Names of what is limited without a rule.
const (
	addressRule = "address"
	quotaRule   = "key"
)

// mostRules bounds the rules: one request may ask for the buckets of all of them.
const mostRules = 32

// mostTokens bounds numbers of tokens and requests in a configuration.
const mostTokens = 1_000_000_000_000_000

// ruleName is how rules are named: it goes into header fields and names of keys.
var ruleName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,39}$`)

// mistakes collects what is wrong.
type mistakes []error

// add notes a mistake under a key.
func (m *mistakes) add(key, format string, args ...any) {
	*m = append(*m, fmt.Errorf(key+": "+format, args...))
}

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var m mistakes
	c.Address.validate(&m)
	if c.MaxEntries < 2*leastEntries || c.MaxEntries > 1<<28 {
		m.add("max_entries", "must be %d to %d, got %d", 2*leastEntries, 1<<28, c.MaxEntries)
	}
	if len(c.Rules) > mostRules {
		m.add("rules", "must be at most %d, got %d", mostRules, len(c.Rules))
	}
	metered := 0
	seen := make(map[string]int)
	for i := range c.Rules {
		r, at := &c.Rules[i], fmt.Sprintf("rules[%d].", i)
		if first, ok := seen[r.Name]; ok {
			m.add(at+"name", "%q is the name of rules[%d] too", r.Name, first)
		}
		seen[r.Name] = i
		r.validate(&m, at)
		metered += len(r.meters())
	}
	if most := mostAsks - 4; metered > most { // a key has up to 4 of its own
		m.add("rules", "must have at most %d limits of requests, tokens and concurrency together, got %d", most, metered)
	}
	if !(c.Expected.Quantile > 0 && c.Expected.Quantile < 1) {
		m.add("expected.quantile", "must be above 0 and below 1, got %v", c.Expected.Quantile)
	}
	if c.Expected.Cap < 1 || c.Expected.Cap > mostTokens {
		m.add("expected.cap", "must be 1 to %d, got %d", int64(mostTokens), c.Expected.Cap)
	}
	if c.Expected.Default < 0 || c.Expected.Default > c.Expected.Cap {
		m.add("expected.default", "must be 0 to expected.cap (%d), got %d", c.Expected.Cap, c.Expected.Default)
	}
	c.Store.validate(&m)
	return errors.Join(m...)
}

// validate notes every mistake.
func (a *AddressConfig) validate(m *mistakes) {
	checkBucket(m, "address.burst", Bucket{a.Rate, a.Burst})
	if a.EmergencyRate.Zero() {
		checkBucket(m, "address.emergency_burst", Bucket{a.Rate, a.EmergencyBurst})
	} else {
		checkBucket(m, "address.emergency_burst", Bucket{a.EmergencyRate, a.EmergencyBurst})
	}
	for i, p := range a.Exempt {
		switch {
		case !p.IsValid():
			m.add(fmt.Sprintf("address.exempt[%d]", i), "want a network such as 10.0.0.0/8")
		case p.Addr().Is4In6():
			m.add(fmt.Sprintf("address.exempt[%d]", i), "can never match: write %v as an IPv4 network", p)
		}
	}
}

// checkBucket notes a burst that cannot be.
func checkBucket(m *mistakes, key string, b Bucket) {
	switch {
	case b.Burst < 0 || b.Burst > mostTokens:
		m.add(key, "must be 0 to %d, got %d", int64(mostTokens), b.Burst)
	case b.Burst > 0 && b.Rate.Zero():
		m.add(key, "needs a rate")
	case b.burst() > 0 && b.Rate.time(b.burst()) > int64(366*24*time.Hour):
		m.add(key, "must come back within a year, got %d at %v", b.burst(), b.Rate)
	}
}

// validate notes every mistake.
func (s *StoreConfig) validate(m *mistakes) {
	if s.Kind != KindLocal && s.Kind != KindRedis {
		m.add("store.kind", "want local or redis, got %q", s.Kind)
	}
	if s.Mode != ModeExact && s.Mode != ModeLease {
		m.add("store.mode", "want exact or lease, got %q", s.Mode)
	}
	if s.Lease < 100*time.Millisecond || s.Lease > 10*time.Second {
		m.add("store.lease", "must be 100ms to 10s, got %v", s.Lease)
	}
	if s.Timeout < time.Millisecond || s.Timeout > time.Second {
		m.add("store.timeout", "must be 1ms to 1s, got %v", s.Timeout)
	}
}

// validate notes every mistake in a rule.
func (r *Rule) validate(m *mistakes, at string) {
	if !ruleName.MatchString(r.Name) {
		m.add(at+"name", "want 1 to 40 of a-z, 0-9, - and _, got %q", r.Name)
	}
	if r.Name == addressRule || r.Name == quotaRule {
		m.add(at+"name", "%q is the name of built-in limits", r.Name)
	}
	for i, by := range r.By {
		if !slices.Contains(subjects[:], by) {
			m.add(fmt.Sprintf("%sby[%d]", at, i), "want one of %s, got %q", strings.Join(subjects[:], ", "), by)
		} else if slices.Contains(r.By[:i], by) {
			m.add(fmt.Sprintf("%sby[%d]", at, i), "%s stands there twice", by)
		}
	}
	r.Only.validate(m, at+"only.")
	checkBucket(m, at+"requests.burst", r.Requests)
	checkBucket(m, at+"tokens.burst", r.Tokens)
	for key, n := range map[string]int64{"concurrent": r.Concurrent, "budget.day": r.Budget.Day, "budget.month": r.Budget.Month} {
		if n < 0 || n > mostTokens {
			m.add(at+key, "must be 0 to %d, got %d", int64(mostTokens), n)
		}
	}
	if r.Requests.Rate.Zero() && r.Tokens.Rate.Zero() && r.Concurrent == 0 && r.Budget == (Budget{}) {
		m.add(strings.TrimSuffix(at, "."), "has no limit: set requests, tokens, concurrent or budget")
	}
	if r.Budget.Day > r.Budget.Month && r.Budget.Month > 0 {
		m.add(at+"budget.day", "can never be reached: it is above budget.month (%d)", r.Budget.Month)
	}
	if r.Budget != (Budget{}) {
		r.countable(m, at)
	}
}

// countable notes where a budget counts other tokens than the ledger does, which
// knows them by tenant, key and model.
func (r *Rule) countable(m *mistakes, at string) {
	for _, by := range r.By {
		if by != byTenant && by != byKey && by != byModel {
			m.add(at+"budget", "the ledger knows tokens by tenant, key and model, not by %s", by)
		}
	}
	for _, only := range []struct {
		by   string
		list []string
	}{{byTenant, r.Only.Tenants}, {byKey, r.Only.Keys}, {byModel, r.Only.Models}, {byClass, r.Only.Classes}, {bySurface, r.Only.Surfaces}, {byRoute, r.Only.Routes}} {
		if len(only.list) > 0 && !slices.Contains(r.By, only.by) {
			m.add(at+"budget", "a budget of some of the %ss needs %s in by", only.by, only.by)
		}
	}
}

// validate notes every mistake.
func (o *Only) validate(m *mistakes, at string) {
	for key, list := range map[string][]string{"tenants": o.Tenants, "models": o.Models, "keys": o.Keys, "routes": o.Routes} {
		for i, p := range list {
			if p == "" || strings.ContainsAny(p, `[]\`) {
				m.add(fmt.Sprintf("%s%s[%d]", at, key, i), "can never match: want a name, or a pattern with * and ?, got %q", p)
			}
		}
	}
	for i, c := range o.Classes {
		if _, ok := inference.ParseClass(c); !ok {
			m.add(fmt.Sprintf("%sclasses[%d]", at, i), "can never match: want vip, normal or batch, got %q", c)
		}
	}
	for i, s := range o.Surfaces {
		if _, ok := inference.ParseSurface(s); !ok {
			m.add(fmt.Sprintf("%ssurfaces[%d]", at, i), "can never match: unknown surface %q", s)
		}
	}
}
