package cache

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Config is the section `cache` of the configuration.
type Config struct {
	// Keep answers and use them again. Off, nothing is looked up, kept or shared.
	Enabled bool `yaml:"enabled"`
	// How long an answer is fresh that nobody asks for again.
	TTL time.Duration `yaml:"ttl"`
	// How long an answer can be fresh at most: each doubling of its hits adds one `ttl`, up to this.
	MaxTTL time.Duration `yaml:"max_ttl"`
	// Share of its time by which an answer expires earlier or later, so that answers that came together do not expire together.
	Jitter float64 `yaml:"jitter"`
	// What answers that are no longer fresh may be used for.
	Stale Stale `yaml:"stale"`
	// Largest answer that is kept.
	MaxAnswer inference.Bytes `yaml:"max_answer"`
	// Time for all slower levels together, beyond which a request counts as a miss.
	LookupTimeout time.Duration `yaml:"lookup_timeout"`
	// Request header fields that change the answer beside `Anthropic-*` and `Openai-*`: part of the key.
	Vary []string `yaml:"vary"`
	// Exceptions, the first that matches a request holds. Without any, requests with temperature 0 or a seed, and embeddings, are kept for their own tenant.
	Rules []Rule `yaml:"rules"`
	// The first level: this process' memory.
	Memory MemoryConfig `yaml:"memory"`
	// The second level: the Redis or Valkey of `store.redis`. It is used when one is configured.
	Redis RedisConfig `yaml:"redis"`
	// The third level: the databases of `store.sql`, which is a file in the data directory when nothing else is configured.
	SQL SQLConfig `yaml:"sql"`
	// How new answers get to the slower levels.
	Fill FillConfig `yaml:"fill"`
}

// Stale says for how long beyond its time an answer may be used, and when.
type Stale struct {
	// At once, while a new one is generated in the background with what capacity is idle.
	WhileRevalidate time.Duration `yaml:"while_revalidate"`
	// When the servers are overloaded; the client is told in X-Spillway-Degraded.
	IfOverloaded time.Duration `yaml:"if_overloaded"`
	// When the servers fail; the client is told in X-Spillway-Degraded.
	IfError time.Duration `yaml:"if_error"`
}

// longest is how long an entry is kept beyond its time.
func (s Stale) longest() time.Duration { return max(s.WhileRevalidate, s.IfOverloaded, s.IfError) }

// MemoryConfig is the level in memory.
type MemoryConfig struct {
	// Most bytes of answers in memory.
	Size inference.Bytes `yaml:"size"`
}

// RedisConfig is the level in Redis.
type RedisConfig struct {
	// Use the level when `store.redis` names a server.
	Enabled bool `yaml:"enabled"`
	// Answers from this size on are compressed.
	CompressFrom inference.Bytes `yaml:"compress_from"`
	// Most recent questions to list for people; 0 lists none.
	Questions int `yaml:"questions"`
}

// SQLConfig is the level in databases.
type SQLConfig struct {
	// Use the level.
	Enabled bool `yaml:"enabled"`
	// Answers from this size on are compressed.
	CompressFrom inference.Bytes `yaml:"compress_from"`
	// Most bytes of answers in all databases together.
	Size inference.Bytes `yaml:"size"`
}

// FillConfig bounds what is on its way to the slower levels.
type FillConfig struct {
	// Most answers that wait; more are dropped and counted.
	Queue int `yaml:"queue"`
	// Most bytes of answers that wait.
	Bytes inference.Bytes `yaml:"bytes"`
	// Longest time for writing a batch.
	Timeout time.Duration `yaml:"timeout"`
}

// What a Rule says of the requests that it matches.
const (
	KeepDeterministic = "deterministic" // keep where temperature is 0, a seed is given, or for embeddings
	KeepAll           = "all"           // keep every answer
	KeepOff           = "off"           // neither look up nor keep
)

// Rule says what is kept of the requests that match all that it names.
type Rule struct {
	// Names of models as clients ask for them, whatever rules and experiments make of them, with `*` and `?`; empty is all.
	Models []string `yaml:"models"`
	// Surfaces; empty is all.
	Surfaces []string `yaml:"surfaces"`
	// Tenants; empty is all.
	Tenants []string `yaml:"tenants"`
	// `deterministic` (temperature 0, a seed, or embeddings), `all` or `off`.
	Keep string `yaml:"keep"`
	// Share answers between all tenants that this rule matches, and with nobody else. Only for answers that hold nothing of anybody.
	Shared bool `yaml:"shared"`
	// In place of `ttl` of the cache; 0 keeps that, or `max_ttl` of the rule where that is shorter.
	TTL time.Duration `yaml:"ttl"`
	// In place of `max_ttl` of the cache; 0 keeps that, or `ttl` where that is longer.
	MaxTTL time.Duration `yaml:"max_ttl"`
}

// Default returns the configuration of a gateway that says nothing.
func Default() Config {
	return Config{
		Enabled: true, TTL: time.Hour, MaxTTL: 6 * time.Hour, Jitter: 0.1,
		Stale:     Stale{WhileRevalidate: time.Minute, IfOverloaded: 24 * time.Hour, IfError: 24 * time.Hour},
		MaxAnswer: 1 << 20, LookupTimeout: 5 * time.Millisecond,
		Memory: MemoryConfig{Size: 128 << 20},
		Redis:  RedisConfig{Enabled: true, CompressFrom: 4 << 10, Questions: 100},
		SQL:    SQLConfig{Enabled: true, CompressFrom: 4 << 10, Size: 1 << 30},
		Fill:   FillConfig{Queue: 4096, Bytes: 64 << 20, Timeout: 5 * time.Second},
	}
}

// maxTTL bounds what a configuration may ask for: a year.
const maxTTL = 365 * 24 * time.Hour

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(key+": "+format, args...))
	}
	span := func(key string, d, least, most time.Duration) {
		if d < least || d > most {
			fail(key, "must be %v to %v, got %v", least, most, d)
		}
	}
	size := func(key string, b, least, most inference.Bytes) {
		if b < least || b > most {
			fail(key, "must be %v to %v, got %v", least, most, b)
		}
	}
	span("ttl", c.TTL, time.Second, maxTTL)
	span("max_ttl", c.MaxTTL, min(max(c.TTL, time.Second), maxTTL), maxTTL)
	if !(c.Jitter >= 0 && c.Jitter <= 0.5) {
		fail("jitter", "must be 0 to 0.5, got %v", c.Jitter)
	}
	span("stale.while_revalidate", c.Stale.WhileRevalidate, 0, maxTTL)
	span("stale.if_overloaded", c.Stale.IfOverloaded, 0, maxTTL)
	span("stale.if_error", c.Stale.IfError, 0, maxTTL)
	size("max_answer", c.MaxAnswer, 1<<10, 64<<20)
	span("lookup_timeout", c.LookupTimeout, 100*time.Microsecond, time.Second)
	size("memory.size", c.Memory.Size, 1<<20, 1<<40)
	size("redis.compress_from", c.Redis.CompressFrom, 256, 1<<30)
	if c.Redis.Questions < 0 || c.Redis.Questions > 10_000 {
		fail("redis.questions", "must be 0 to 10000, got %d", c.Redis.Questions)
	}
	size("sql.compress_from", c.SQL.CompressFrom, 256, 1<<30)
	size("sql.size", c.SQL.Size, 16<<20, 1<<44)
	if c.Fill.Queue < 1 || c.Fill.Queue > 1_000_000 {
		fail("fill.queue", "must be 1 to 1000000, got %d", c.Fill.Queue)
	}
	size("fill.bytes", c.Fill.Bytes, 1<<20, 1<<36)
	span("fill.timeout", c.Fill.Timeout, 10*time.Millisecond, time.Minute)
	for i := range c.Vary {
		if c.Vary[i] == "" {
			fail(fmt.Sprintf("vary[%d]", i), "must name a header field")
		}
	}
	for i := range c.Rules {
		errs = append(errs, c.Rules[i].validate(fmt.Sprintf("rules[%d].", i))...)
	}
	return errors.Join(errs...)
}

// validate returns every mistake in a rule.
func (r *Rule) validate(at string) (errs []error) {
	fail := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf(at+key+": "+format, args...))
	}
	for i, m := range r.Models {
		if _, err := path.Match(flat(m), ""); err != nil || m == "" {
			fail(fmt.Sprintf("models[%d]", i), "%q is no pattern", m)
		}
	}
	for i, s := range r.Surfaces {
		if _, ok := inference.ParseSurface(s); !ok {
			fail(fmt.Sprintf("surfaces[%d]", i), "unknown surface %q", s)
		}
	}
	switch r.Keep {
	case KeepDeterministic, KeepAll, KeepOff:
	default:
		fail("keep", "must be %s, %s or %s, got %q", KeepDeterministic, KeepAll, KeepOff, r.Keep)
	}
	if r.TTL < 0 || r.TTL > maxTTL {
		fail("ttl", "must be 0 to %v, got %v", maxTTL, r.TTL)
	}
	if r.MaxTTL != 0 && r.MaxTTL < r.TTL || r.MaxTTL > maxTTL {
		fail("max_ttl", "must be 0, or `ttl` to %v, got %v", maxTTL, r.MaxTTL)
	}
	if r.Shared && r.Keep == KeepOff {
		fail("shared", "has no effect with keep: off")
	}
	return errs
}

// flat makes a * match the slashes in the names of models too.
func flat(name string) string { return strings.ReplaceAll(name, "/", "\x00") }

// match says whether the rule is about a request.
func (r *Rule) match(req *inference.Request) bool {
	model := req.Model
	if req.Asked != "" { // a route rule or an experiment has put another in its place
		model = req.Asked
	}
	return (len(r.Surfaces) == 0 || slices.Contains(r.Surfaces, req.Surface.String())) &&
		(len(r.Tenants) == 0 || slices.Contains(r.Tenants, req.Tenant)) &&
		(len(r.Models) == 0 || slices.ContainsFunc(r.Models, func(p string) bool {
			ok, _ := path.Match(flat(p), flat(model))
			return ok
		}))
}

// policy is what holds for one request.
type policy struct {
	keep     string
	shared   bool
	group    string // of a shared one: who shares
	ttl, max time.Duration
}

// policy finds what holds for a request.
func (c *Config) policy(req *inference.Request) policy {
	p := policy{keep: KeepDeterministic, ttl: c.TTL, max: c.MaxTTL}
	for i := range c.Rules {
		if r := &c.Rules[i]; r.match(req) {
			p.keep, p.shared = r.Keep, r.Shared
			if r.Shared {
				p.group = group(r.Tenants)
			}
			if r.TTL > 0 {
				p.ttl = r.TTL
			}
			if r.MaxTTL > 0 {
				p.max = r.MaxTTL
				if r.TTL == 0 {
					p.ttl = min(p.ttl, p.max)
				}
			}
			break
		}
	}
	p.max = max(p.max, p.ttl)
	return p
}

// group names the tenants that share answers, whatever their order; "" is all. Two
// rules that name the same tenants have one group.
func group(tenants []string) string {
	if len(tenants) == 0 {
		return ""
	}
	return fmt.Sprintf(":%q", slices.Compact(slices.Sorted(slices.Values(tenants))))
}

// keeps says whether a request's answer is kept.
func (p policy) keeps(req *inference.Request) bool {
	return p.keep == KeepAll || p.keep == KeepDeterministic && req.Deterministic
}
