package route

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Step is one node on which a request could run, as Explain found it.
type Step struct {
	Node     string       // "eu", "eu/gpu" or "eu/gpu/10.0.0.1:8000"
	Policy   string       // that chooses among the node and its siblings
	Affinity string       // what that choice keeps clients together by; "" is nothing
	Fallback string       // the model that would stand in; "" is none
	Status   fleet.Status // why it is or is not chosen
	Backup   bool         // only when no sibling is open
	Load     int64        // requests
	Tokens   int64        // prompt tokens outstanding
	Chosen   bool         // the request would run here
}

// Explain plans a request as Plan does, and says where it would run now and what
// stands behind it, in order: each pool of the plan with its region in front, where
// that changes, and its instances after it. It asks the policies as a request does, so
// one that takes turns takes one; no slot is taken and no decision of a rule is counted.
// It is for people: it allocates. With an error comes a plan without candidates, which
// has what was decided until then.
func (r *Router) Explain(_ context.Context, req *inference.Request) (*fleet.Plan, []Step, error) {
	req, s := r.steer(req, preview)
	plan, err := r.steeredPlan(req, s)
	if err != nil {
		plan = &fleet.Plan{Request: req}
		if s != nil {
			plan.Rule, plan.Arm = s.rule, s.arm
		}
		return plan, nil, err
	}
	d := r.dir.Load()
	q := &fleet.Query{Request: req, Now: time.Now().UnixNano(), Rand: rand.Uint64()}
	var steps []Step
	var region *fleet.Region
	found := false
	for _, c := range plan.Candidates {
		primaries, backups := c.Pool.Nodes()
		var chosen *fleet.Node
		if !found {
			chosen = fleet.PickTier(c.Picker, q, primaries, backups)
		}
		here := chosen != nil
		found = found || here
		if c.Pool.Region != region {
			region = c.Pool.Region
			steps = append(steps, d.global.step(&region.Node, q, c.Fallback, here))
		}
		steps = append(steps, d.tiers[region.Name].step(&c.Pool.Node, q, c.Fallback, here))
		for _, n := range append(primaries[:len(primaries):len(primaries)], backups...) {
			steps = append(steps, d.tiers[c.Pool.Name].step(n, q, c.Fallback, n == chosen))
		}
	}
	return plan, steps, nil
}

// step describes a node among the members that the tier chooses from. The tier is
// nil when the fleet changed meanwhile.
func (t *tier) step(n *fleet.Node, q *fleet.Query, fallback string, chosen bool) Step {
	s := Step{
		Node: n.Name, Fallback: fallback, Status: n.Status(q.Now), Backup: n.Backup,
		Load: n.Live.Load(q.Now), Tokens: n.Live.PromptTokens(), Chosen: chosen,
	}
	if t != nil {
		s.Policy, s.Affinity = t.cfg.name(), t.cfg.Affinity.By
	}
	return s
}
