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
