package route

import (
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// steered is what was decided for one request before the tiers are asked. It never
// changes once the request has it.
type steered struct {
	rule    string
	arm     inference.Arm
	actions []*Action // each counts more than those before
	mirror  *Action
	shadow  inference.Arm // of the copy
}

// Steer sets what decides before the tiers, in order: each stage sees the request as
// the ones before have left it. nil stages decide nothing.
func (r *Router) Steer(rules, experiments Steering) {
	r.stages.Store(&[]Steering{rules, experiments})
}

// preview asks a stage without a trace, where it leaves one.
func preview(stage Steering, now time.Time, req *inference.Request) Decision {
	if p, ok := stage.(Preview); ok {
		return p.Preview(now, req)
	}
	return stage.Steer(now, req)
}

// steer asks the stages and returns the request as they want it, which is req itself
// when they change nothing. Experiments are for clients' requests alone.
func (r *Router) steer(req *inference.Request, ask func(Steering, time.Time, *inference.Request) Decision) (*inference.Request, *steered) {
	if s, ok := req.Steered.(*steered); ok {
		return req, s
	}
	stages := r.stages.Load()
	if stages == nil {
		return req, nil
	}
	var s *steered
	now := time.Now()
	for i, stage := range *stages {
		if stage == nil || i > 0 && req.Class == inference.Idle {
			continue
		}
		d := ask(stage, now, req)
		if d.Action == nil && d.Mirror == nil && d.Arm == (inference.Arm{}) {
			continue
		}
		if s == nil {
			s = new(steered)
			c := *req
			c.Steered, req = s, &c
		}
		s.take(d, req)
	}
	return req, s
}

// ended says whether an arm takes no requests any more.
func (r *Router) ended(arm inference.Arm) bool {
	stages := r.stages.Load()
	if arm == (inference.Arm{}) || stages == nil {
		return false
	}
	for _, stage := range *stages {
		if arms, ok := stage.(Arms); ok {
			return !arms.Runs(arm)
		}
	}
	return false
}

// take adds a decision, and changes the request, which nobody else has yet.
func (s *steered) take(d Decision, req *inference.Request) {
	if d.Rule != "" {
		s.rule, req.Rule = d.Rule, d.Rule
	}
	if d.Mirror != nil {
		s.mirror, s.shadow = d.Mirror, d.Arm
	} else if d.Arm != (inference.Arm{}) {
		s.arm = d.Arm
	}
	from := len(s.actions)
	s.actions = append(s.actions, d.More...)
	slices.Reverse(s.actions[from:])
	if d.Action != nil {
		s.actions = append(s.actions, d.Action)
	}
	for _, a := range s.actions[from:] {
		a.change(req)
	}
}

// change gives a request the model, the class and the header fields of an action.
func (a *Action) change(req *inference.Request) {
	if a.Model != "" {
		if req.Asked == "" {
			req.Asked = req.Model
		}
		if req.Model = a.Model; req.Model == req.Asked {
			req.Asked = ""
		}
	}
	if class, ok := inference.ParseClass(a.Class); ok && class.Urgency() < req.Class.Urgency() {
		req.Class = class
	}
	if len(a.Headers) == 0 {
		return
	}
	req.Header = maps.Clone(req.Header) // values are read only
	if req.Header == nil {
		req.Header = make(http.Header)
	}
	for name, value := range a.Headers {
		if name = textproto.CanonicalMIMEHeaderKey(name); value == "" {
			delete(req.Header, name)
		} else {
			req.Header[name] = []string{value}
		}
	}
}

// apply orders a plan's candidates as the actions want them, and marks it. The last
// action counts most. Its error says that a strict one leaves nothing.
func (s *steered) apply(plan *fleet.Plan) error {
	plan.Rule, plan.Arm = s.rule, s.arm
	for _, a := range s.actions {
		if err := a.order(plan); err != nil {
			return err
		}
	}
	return nil
}

// ranked is a candidate with what an action makes of it.
type ranked struct {
	fleet.Candidate
	rank int     // the lower, the earlier
	lot  float64 // its turn among the action's pools; infinite is no pool of the action
}

// The ranks. Models that stand in come behind the model itself in the same order.
const (
	preferred = iota // what the action says
	beside           // in its region, but none of its pools
	elsewhere
	standsIn
)

// order puts the candidates first that the action prefers: its pools, in an order that
// is drawn by their weights, then its region. What is alike keeps its order.
func (a *Action) order(plan *fleet.Plan) error {
	if a.Region == "" && len(a.Pools) == 0 {
		return nil
	}
	var few [8]ranked // keeps plans of a usual size off the heap
	list := few[:0]
	for _, c := range plan.Candidates {
		list = append(list, ranked{Candidate: c, lot: math.Inf(1)})
	}
	a.draw(list)
	for i := range list {
		a.judge(&list[i])
	}
	slices.SortStableFunc(list, func(x, y ranked) int {
		return cmp.Or(cmp.Compare(x.rank, y.rank), cmp.Compare(x.lot, y.lot))
	})
	all := plan.Candidates[:0]
	for i := range list {
		if !a.Strict || list[i].rank%standsIn != elsewhere {
			all = append(all, list[i].Candidate)
		}
	}
	if plan.Candidates = all; len(all) == 0 {
		e := inference.Errorf(inference.CodeNoCapacity, "no server of model %q is where this request may run", shorten(plan.Request.Model))
		e.Reason, e.NoRetry = "rule", true
		return e
	}
	return nil
}

// judge ranks a candidate that has drawn its lot.
func (a *Action) judge(c *ranked) {
	named := len(a.Pools) == 0 || !math.IsInf(c.lot, 1)
	switch {
	case a.Region != "" && c.Pool.Region.Name != a.Region:
		c.rank = elsewhere
	case named:
		c.rank = preferred
	case a.Region == "" || a.Strict:
		c.rank = elsewhere
	default:
		c.rank = beside
	}
	if c.rank != preferred {
		c.lot = 0
	}
	if c.Fallback != "" {
		c.rank += standsIn
	}
}

// draw gives the candidates in the action's pools their lots: exponential numbers, each
// at the rate of its pool's weight. The lowest of any of them is w's with the
// probability of w in the sum of their weights, so that their order is one of draws
// without replacement (Efraimidis and Spirakis 2006), and what a pool that is down or
// full leaves is shared by the weights of the others.
func (a *Action) draw(list []ranked) {
	for name, weight := range a.Pools {
		lot := rand.ExpFloat64() / float64(weight)
		for i := range list {
			if c := &list[i]; names(name, c.Pool) {
				c.lot = min(c.lot, lot)
			}
		}
	}
}

// names says whether a name, `pool` or `region/pool`, is that of a pool.
func names(name string, p *fleet.Pool) bool { return name == p.Name || name == p.Label }

// shadow plans the copy of a request; nil when there is nowhere to run it.
func (r *Router) shadow(req *inference.Request, s *steered) *fleet.Plan {
	c := *req
	only := &steered{rule: s.rule, arm: s.shadow, actions: []*Action{s.mirror}}
	c.Steered = only
	s.mirror.change(&c)
	plan, err := r.plan(&c)
	if err != nil || only.apply(plan) != nil {
		return nil
	}
	return plan
}
