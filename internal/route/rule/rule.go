// Package rule decides by the operator's rules where a request goes: each rule is an
// expression over the request, its client and the tenant's recent behaviour, with an
// action.
//
// Rules are compiled and type-checked once, by New. A Set asks them in order: the
// first whose expression is true decides, and those with `continue` let the ones
// after them add to it. A Set never changes and is safe for
// concurrent use. What costs something to find out, as the place of an address, is
// found out once a request, and only where some rule wants it.
//
// Expressions are written by operators. Their cost is bounded all the same: there are
// no loops, no ranges, no variables and no functions that repeat, the number of nodes is
// bounded, and so are memory and the texts that clients choose. One that fails at run time, which the type check leaves little
// room for, counts as not true.
package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/expr-lang/expr/vm"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// Rule is one rule of the configuration.
type Rule struct {
	// Name, unique among the rules, for logs, metrics and `spillway route explain`.
	Name string `yaml:"name"`
	// Expression that says for which requests the rule decides; empty is for all.
	When string `yaml:"when"`
	// What it does to them.
	Then route.Action `yaml:"then"`
	// Go on with the rules after this one, which may add to it. Where they contradict one another, the first counts.
	Continue bool `yaml:"continue"`
}

// maxRules bounds the rules of one gateway.
const maxRules = 1000

// Parts are what rules know beyond the request.
type Parts struct {
	Places    route.Locator // nil: no address has a place
	Behaviour *Behaviour    // nil: no tenant has a past
	// DefaultRegion is preferred for clients of whom neither country nor continent is
	// known, when no rule that is true of the request has a region or pools; "" is none.
	DefaultRegion string
	// Count is where the requests are counted that a rule has decided; nil counts
	// nowhere. It is asked once for each rule.
	Count func(rule string) *atomic.Int64
}

// Set is the compiled rules.
type Set struct {
	rules  []compiled
	parts  Parts
	lost   *route.Action // of clients without a place; nil: none
	needs  needs         // of all rules together
	scopes sync.Pool
	failed atomic.Int64
}

// compiled is one rule, ready to be asked.
type compiled struct {
	Rule
	*Condition               // nil: it is always true
	decided    *atomic.Int64 // requests
}

// Condition is one compiled expression. It is safe for concurrent use.
type Condition struct {
	source  string
	program *vm.Program
	needs   needs
}

// New compiles the rules. The error lists every mistake with its place, such as
// `rules[2].when`.
func New(rules []Rule, parts Parts) (*Set, error) {
	s := &Set{parts: parts}
	s.scopes.New = func() any { return newScope() }
	var errs []error
	bad := func(i int, key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("rules[%d]%s: %w", i, key, err))
		}
	}
	if len(rules) > maxRules {
		return nil, fmt.Errorf("rules: at most %d, got %d", maxRules, len(rules))
	}
	seen := make(map[string]int)   // by name
	before := make(map[string]int) // by expression in one form, of rules that decide
	for i, r := range rules {
		if r.Name == "" {
			bad(i, ".name", errors.New("is missing"))
		} else if strings.Contains(r.Name, ",") {
			bad(i, ".name", fmt.Errorf("%q has a comma, which stands between names", r.Name))
		} else if first, ok := seen[r.Name]; ok {
			bad(i, ".name", fmt.Errorf("%q is the name of rules[%d] already", r.Name, first))
		}
		seen[r.Name] = i
		for _, err := range unjoin(r.Then.Validate()) {
			errs = append(errs, fmt.Errorf("rules[%d].then.%w", i, err))
		}
		if r.Then.Empty() {
			bad(i, ".then", errors.New("does nothing: want region, pools, model, class or headers"))
		}
		c, form, err := compile(r.When)
		if err != nil {
			bad(i, ".when", err)
			continue
		}
		for _, form := range []string{form, always} {
			if first, ok := before[form]; ok {
				bad(i, ".when", fmt.Errorf("never decides: rule %q (rules[%d]) is true for every request that this one is for", rules[first].Name, first))
				break
			}
		}
		if _, ok := before[form]; !ok && !r.Continue {
			before[form] = i
		}
		if c != nil {
			s.needs |= c.needs
		}
		one := compiled{r, c, new(atomic.Int64)}
		if parts.Count != nil {
			one.decided = parts.Count(r.Name)
		}
		s.rules = append(s.rules, one)
	}
	if parts.DefaultRegion != "" {
		s.lost = &route.Action{Region: parts.DefaultRegion}
		s.needs |= needsPlace
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// unjoin lists the errors that were joined.
func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// Len is the number of rules.
func (s *Set) Len() int { return len(s.rules) }

// Failed is how many expressions have failed at run time.
func (s *Set) Failed() int64 { return s.failed.Load() }

// Steer implements route.Steering.
func (s *Set) Steer(now time.Time, req *inference.Request) route.Decision {
	return s.decide(now, req, true)
}

// Preview implements route.Preview.
func (s *Set) Preview(now time.Time, req *inference.Request) route.Decision {
	return s.decide(now, req, false)
}

// decide asks the rules in order.
func (s *Set) decide(now time.Time, req *inference.Request, counted bool) (d route.Decision) {
	if len(s.rules) == 0 && s.lost == nil {
		return d
	}
	sc := s.scopes.Get().(*scope)
	defer s.scopes.Put(sc)
	sc.fill(now, req, s.parts, s.needs)
	defer sc.clear()
	placed := false // a rule says where
	for i := range s.rules {
		r := &s.rules[i]
		if r.Condition != nil && !s.holds(sc, r.Condition, counted) {
			continue
		}
		if counted {
			r.decided.Add(1)
		}
		add(&d, r.Name, &r.Then)
		placed = placed || r.Then.Region != "" || len(r.Then.Pools) > 0
		if !r.Continue {
			break
		}
	}
	if !placed && s.lost != nil && sc.env.Geo.Country == "" && sc.env.Geo.Continent == "" {
		add(&d, lostName, s.lost)
	}
	return d
}

// add is one rule's part in a decision, behind those that are there.
func add(d *route.Decision, name string, a *route.Action) {
	if d.Action == nil {
		d.Rule, d.Action = name, a
	} else {
		d.Rule, d.More = d.Rule+","+name, append(d.More, a)
	}
}

// lostName stands for a rule's name where the default region decides.
const lostName = "geo.default_region"

// Told is what one rule says to a request.
type Told struct {
	Name  string
	When  string // "" is always
	True  bool
	Error error // at run time; the rule then counts as not true
}

// Explain asks every rule about a request, also those behind the one that decides. It
// is for people.
func (s *Set) Explain(now time.Time, req *inference.Request) []Told {
	sc := s.scopes.Get().(*scope)
	defer s.scopes.Put(sc)
	sc.fill(now, req, s.parts, s.needs)
	defer sc.clear()
	list := make([]Told, len(s.rules))
	for i := range s.rules {
		r := &s.rules[i]
		list[i] = Told{Name: r.Name, When: r.When, True: true}
		if r.Condition != nil {
			list[i].True, list[i].Error = sc.run(r.Condition)
		}
	}
	return list
}

// Place is where the client of a request is, as the rules see it.
func (s *Set) Place(req *inference.Request) route.Place { return s.parts.place(req.ClientIP) }

// holds evaluates a condition.
func (s *Set) holds(sc *scope, c *Condition, counted bool) bool {
	ok, err := sc.run(c)
	if err != nil && counted {
		s.failed.Add(1)
	}
	return ok
}

// Match is for the conditions of experiments: whether the condition is true of a
// request, which has the set's parts at hand.
func (s *Set) Match(c *Condition, now time.Time, req *inference.Request) bool {
	if c == nil {
		return true
	}
	sc := s.scopes.Get().(*scope)
	defer s.scopes.Put(sc)
	sc.fill(now, req, s.parts, c.needs)
	defer sc.clear()
	return s.holds(sc, c, true)
}

// Compile compiles one expression; nil is one that is always true. The error says
// what is wrong, also that it can never be true.
func Compile(source string) (*Condition, error) {
	c, _, err := compile(source)
	return c, err
}

// place finds an address's place.
func (p Parts) place(ip netip.Addr) route.Place {
	if p.Places == nil || !ip.IsValid() {
		return route.Place{}
	}
	return p.Places.Locate(ip)
}
