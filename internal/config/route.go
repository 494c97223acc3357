package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
	"github.com/spillway/spillway/internal/route/geo"
	"github.com/spillway/spillway/internal/route/rule"
	"github.com/spillway/spillway/internal/usage"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// Route is the section `route`: where requests go.
type Route struct {
	route.Config `yaml:",inline"`
	// Rules in order: the first whose expression is true of a request decides where it goes.
	Rules []rule.Rule `yaml:"rules"`
	// Where clients are, by their addresses.
	Geo geo.Config `yaml:"geo"`
	// Experiments: traffic that is split between arms that are compared, or copied to a shadow.
	Experiments []experiment.Config `yaml:"experiments"`
}

// defaultRoute is the section of a file that says nothing.
func defaultRoute() Route { return Route{Config: route.Default(), Geo: geo.Default()} }

// Validate returns every mistake in the section, but for names of what other sections
// have.
func (r *Route) Validate() error {
	errs := []error{r.Config.Validate(), under("geo", r.Geo.Validate()), experiment.Validate(r.Experiments)}
	if _, err := rule.New(r.Rules, rule.Parts{}); err != nil {
		errs = append(errs, err)
	}
	for i, e := range r.Experiments {
		if _, err := rule.Compile(e.When); err != nil {
			errs = append(errs, fmt.Errorf("experiments[%d].when: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// actions calls do with every action and its place in the section.
func (r *Route) actions(do func(path string, a *route.Action)) {
	for i := range r.Rules {
		do(fmt.Sprintf("rules[%d].then", i), &r.Rules[i].Then)
	}
	for i := range r.Experiments {
		e := &r.Experiments[i]
		for j := range e.Arms {
			do(fmt.Sprintf("experiments[%d].arms[%d].then", i, j), &e.Arms[j].Then)
		}
		do(fmt.Sprintf("experiments[%d].mirror.to", i), &e.Mirror.To)
	}
}

// unknown lists the names in the section that no region, pool or model has. models is
// nil where they are learned from the servers.
func (r *Route) unknown(regions []Region, models map[string]bool) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	known := func(name string) bool {
		return slices.ContainsFunc(regions, func(g Region) bool { return g.Name == name })
	}
	if name := r.Geo.DefaultRegion; name != "" && !known(name) {
		bad("geo.default_region: unknown region %q", name)
	}
	r.actions(func(path string, a *route.Action) {
		if a.Region != "" && !known(a.Region) {
			bad("%s.region: unknown region %q", path, a.Region)
		}
		for name := range a.Pools {
			if !hasPool(regions, a.Region, name) {
				bad("%s.pools: unknown pool %q", path, name)
			}
		}
		if a.Model != "" && models != nil && !models[a.Model] && len(r.Fallbacks[a.Model]) == 0 {
			bad("%s.model: no pool serves model %q", path, a.Model)
		} else if a.Model != "" && a.Strict && !r.runs(regions, a) {
			bad("%s.model: no pool serves model %q where this strict action lets it run", path, a.Model)
		}
	})
	return errors.Join(errs...)
}

// runs says whether some pool of a strict action serves its model, or one that stands in
// for it; a pool that learns its models may. Pools that there are not are another mistake.
func (r *Route) runs(regions []Region, a *route.Action) bool {
	models := append([]string{a.Model}, r.Fallbacks[a.Model]...)
	serves := func(p Pool) bool {
		return p.Models == nil || slices.ContainsFunc(models, func(m string) bool {
			_, ok := p.Models[m]
			return ok
		})
	}
	if len(a.Pools) == 0 {
		return anyPool(regions, a.Region, "", serves)
	}
	for name := range a.Pools {
		if !hasPool(regions, a.Region, name) || anyPool(regions, a.Region, name, serves) {
			return true
		}
	}
	return false
}

// unknownRoutes lists the rules that limits name and that there are not.
func (f *File) unknownRoutes() error {
	var errs []error
	for i, l := range f.Limit.Rules {
		for j, name := range l.Only.Routes {
			if !strings.ContainsAny(name, "*?") && !slices.ContainsFunc(f.Route.Rules, func(r rule.Rule) bool { return r.Name == name }) {
				errs = append(errs, fmt.Errorf("rules[%d].only.routes[%d]: can never match: there is no rule %q in route.rules", i, j, name))
			}
		}
	}
	return errors.Join(errs...)
}

// hasPool says whether a name is that of a pool, in a region where one is given.
func hasPool(regions []Region, in, name string) bool {
	return anyPool(regions, in, name, func(Pool) bool { return true })
}

// anyPool says whether a pool with a name, `pool` or `region/pool`, is what is wanted, in
// a region where one is given. An empty name is that of every pool.
func anyPool(regions []Region, in, name string, wanted func(Pool) bool) bool {
	region, pool, whole := strings.Cut(name, "/")
	if !whole {
		region, pool = "", name
	}
	return slices.ContainsFunc(regions, func(r Region) bool {
		return (region == "" || r.Name == region) && (in == "" || r.Name == in) &&
			slices.ContainsFunc(r.Pools, func(p Pool) bool { return (pool == "" || p.Name == pool) && wanted(p) })
	})
}

// Usage is the section `usage`: what is kept of requests.
type Usage struct {
	usage.Config `yaml:",inline"`
	// The tokens that were spent, by day, tenant, key and model.
	Ledger ledger.Config `yaml:"ledger"`
}

// defaultUsage is the section of a file that says nothing.
func defaultUsage() Usage { return Usage{Config: usage.Default(), Ledger: ledger.Default()} }

// Validate returns every mistake in the section.
func (u *Usage) Validate() error {
	return errors.Join(u.Config.Validate(), under("ledger", u.Ledger.Validate()))
}
