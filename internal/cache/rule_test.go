package cache_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/inference"
)

// of is a request of a tenant.
func of(tenant string) func(*inference.Request) {
	return func(req *inference.Request) { req.Tenant, req.Header = tenant, http.Header{"Authorization": {tenant}} }
}

func TestSharedAnswersStayBetweenARulesTenants(t *testing.T) {
	share := func(tenants ...string) cache.Rule {
		return cache.Rule{Tenants: tenants, Keep: cache.KeepAll, Shared: true}
	}
	rules := []cache.Rule{
		share("a1", "a2"), share("b1", "b2"), share("a2 b1"), share(`a1" "a2`),
		{Tenants: []string{"off"}, Keep: cache.KeepOff}, share(), // the last: whoever is left
	}
	for name, c := range map[string]struct {
		rules       []cache.Rule
		first, then string
		want        string
	}{
		"one rule":              {rules, "a1", "a2", "yes"},
		"two rules":             {rules, "a1", "b1", ""},
		"all and some":          {rules, "anybody", "a1", ""},
		"some and all":          {rules, "a1", "anybody", ""},
		"all":                   {rules, "anybody", "somebody", "yes"},
		"a tenant named as two": {rules, "a1", `a1" "a2`, ""},
		"another rule before":   {[]cache.Rule{share("a1"), share("a2", "a1")}, "a1", "a2", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(func(cfg *cache.Config) { cfg.Rules = c.rules })
			b.look(t, base, of(c.first)).Keep(ask{body: base}.request(t), "m", answer("yes"))
			if e := b.memory.only(); e.Scope != cache.SharedScope {
				t.Errorf("an operator purges %q", e.Scope)
			}
			says(t, b.look(t, base, of(c.then)).Stored(time.Now()), c.want, "memory")
		})
	}
	b := newBed(func(cfg *cache.Config) { cfg.Rules = []cache.Rule{share("a1", "a2")} })
	b.look(t, base, of("a1")).Keep(ask{body: base}.request(t), "m", answer("yes"))
	b.cfg.Rules = []cache.Rule{share("a2", "a1", "a2")} // which is the same
	b.Apply(b.cfg)
	says(t, b.look(t, base, of("a2")).Stored(time.Now()), "yes", "memory")
}

func TestARulesMaxTTLBoundsTheTTL(t *testing.T) {
	for name, c := range map[string]struct {
		rule cache.Rule
		want time.Duration // that an answer without hits is fresh; the cache's ttl is an hour
	}{
		"neither":         {cache.Rule{}, time.Hour},
		"shorter bound":   {cache.Rule{MaxTTL: time.Minute}, time.Minute},
		"longer bound":    {cache.Rule{MaxTTL: 2 * time.Hour}, time.Hour},
		"longer time":     {cache.Rule{TTL: 48 * time.Hour}, 48 * time.Hour},
		"both":            {cache.Rule{TTL: time.Minute, MaxTTL: time.Hour}, time.Minute},
		"both, and alike": {cache.Rule{TTL: 2 * time.Hour, MaxTTL: 2 * time.Hour}, 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			c.rule.Keep = cache.KeepAll
			b := newBed(func(cfg *cache.Config) { cfg.Rules = []cache.Rule{c.rule} })
			b.keep(t, base, "yes")
			if e := b.memory.only(); e.Expires.Sub(e.Stored) != c.want {
				t.Errorf("fresh for %v, want %v", e.Expires.Sub(e.Stored), c.want)
			}
		})
	}
}

func TestRulesKnowModelsAsClientsAskForThem(t *testing.T) {
	rules := []cache.Rule{{Models: []string{"asked*"}, Keep: cache.KeepAll}, {Models: []string{"routed"}, Keep: cache.KeepOff}}
	for name, c := range map[string]struct {
		model, asked string
		want         bool
	}{
		"as asked":              {"asked/m", "", true},
		"routed to another":     {"routed", "asked/m", true},
		"the other":             {"routed", "", false},
		"the other, routed":     {"asked/m", "routed", false},
		"routed, and not named": {"routed", "m", true}, // as without a rule: temperature 0
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(func(cfg *cache.Config) { cfg.Rules = rules })
			got := b.look(t, base, func(req *inference.Request) { req.Model, req.Asked = c.model, c.asked }) != nil
			if got != c.want {
				t.Errorf("has a handle: %v", got)
			}
		})
	}
}
