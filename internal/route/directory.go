package route

import (
	"strings"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// tier is a policy at its place.
type tier struct {
	cfg    TierConfig
	signer *signer // nil without affinity by cookie
	policy Policy
	learns bool // policy wants answers
}

// newTier builds what a valid configuration describes.
func newTier(cfg TierConfig, level int, s *signer) *tier {
	if cfg.Affinity.By != "cookie" {
		s = nil
	}
	policy := Builtin()[cfg.name()](cfg.PolicyConfig)
	_, learns := policy.(Observer)
	return &tier{cfg: cfg, signer: s, policy: withAffinity(policy, cfg.Affinity, level, s), learns: learns}
}

// directory is what Plan reads: a snapshot of the fleet compiled for every model
// in it. It never changes, but for what the policies keep.
type directory struct {
	snap   *fleet.Snapshot
	set    *settings
	global *tier
	tiers  map[string]*tier // by the name of a region or pool
	models map[string]*model
	learns bool // some policy wants answers
}

// settings are what Apply was given.
type settings struct {
	cfg    Config
	tiers  map[string]TierConfig
	signer *signer // nil when no tier has affinity by cookie
}

// model is where one model is served, by surface.
type model struct {
	surfaces []*offer // by inference.Surface; nil where it is not served
}

// offer is where one model is served on one surface.
type offer struct {
	*shape
	pools     [][]fleet.Candidate // by region and pool of the shape
	size      int                 // candidates, those of the fallbacks included
	fallbacks []*offer
	cookies   bool // some tier of it has affinity by cookie
}

// shape is a set of pools with the node lists in which the policies see them. It
// is shared by all models that the same pools serve, and policies meet few lists.
type shape struct {
	regions members
	inside  []members // by region
}

// members are the nodes of one tier: first those that are not backups.
type members struct {
	nodes     []*fleet.Node
	primaries int
	policy    Policy
}

// pick asks the policy, about backups only when no other member is open.
func (m *members) pick(q *fleet.Query) int {
	switch len(m.nodes) {
	case 0:
		return -1
	case 1:
		if q.Open(m.nodes[0]) {
			return 0
		}
		return -1
	}
	if i := m.policy.Pick(q, m.nodes[:m.primaries]); i >= 0 {
		return i
	}
	if i := m.policy.Pick(q, m.nodes[m.primaries:]); i >= 0 {
		return i + m.primaries
	}
	return -1
}

// compiler makes one directory.
type compiler struct {
	*directory
	old    *directory // whose policies are taken over where nothing changed; may be nil
	shapes map[string]*shape
}

// compile makes the directory of a snapshot. Policies of old whose configuration
// is the same go on with what they keep.
func compile(snap *fleet.Snapshot, set *settings, old *directory) *directory {
	c := compiler{
		directory: &directory{snap: snap, set: set, tiers: make(map[string]*tier), models: make(map[string]*model)},
		old:       old, shapes: make(map[string]*shape),
	}
	var kept *tier
	if old != nil {
		kept = old.global
	}
	c.global = c.tier(kept, set.cfg.TierConfig, regionTier)
	for _, r := range snap.Regions {
		c.named(r.Name, poolTier)
		for _, p := range r.Pools {
			c.named(p.Name, instanceTier)
		}
	}
	for _, name := range snap.Models() {
		c.models[name] = &model{surfaces: c.offers(name)}
	}
	c.addFallbacks()
	return c.directory
}

// tier takes the old tier over, or makes a new one.
func (c *compiler) tier(old *tier, cfg TierConfig, level int) *tier {
	t := old
	if t == nil || t.cfg != cfg || cfg.Affinity.By == "cookie" && t.signer != c.set.signer {
		t = newTier(cfg, level, c.set.signer)
	}
	c.learns = c.learns || t.learns
	return t
}

// named adds the tier of a region's pools or of a pool's instances.
func (c *compiler) named(name string, level int) {
	cfg, ok := c.set.tiers[name]
	if !ok {
		cfg = DefaultTier()
	}
	var kept *tier
	if c.old != nil {
		kept = c.old.tiers[name]
	}
	c.tiers[name] = c.tier(kept, cfg, level)
}

// offers compiles a model for each surface.
func (c *compiler) offers(name string) []*offer {
	all := inference.Surfaces()
	out := make([]*offer, len(all))
	for _, s := range all {
		out[s] = c.offer(name, s)
	}
	return out
}

// offer compiles a model on a surface; nil when no pool serves it.
func (c *compiler) offer(name string, s inference.Surface) *offer {
	var serving []*fleet.Pool
	var key strings.Builder
	for _, r := range c.snap.Regions {
		for _, p := range r.Pools {
			if _, ok := p.Models[name]; ok && p.Serves(s) {
				serving = append(serving, p)
				key.WriteString(p.Name + "\n")
			}
		}
	}
	if len(serving) == 0 {
		return nil
	}
	sh, ok := c.shapes[key.String()]
	if !ok {
		sh = c.shape(serving)
		c.shapes[key.String()] = sh
	}
	o := &offer{shape: sh, size: len(serving), cookies: c.global.signer != nil}
	byNode := make(map[*fleet.Node]*fleet.Pool, len(serving))
	for _, p := range serving {
		byNode[&p.Node] = p
	}
	for _, in := range sh.inside {
		pools := make([]fleet.Candidate, len(in.nodes))
		for i, n := range in.nodes {
			p := byNode[n]
			pools[i] = fleet.Candidate{Pool: p, Model: p.Models[name], Picker: c.tiers[p.Name].policy}
			o.cookies = o.cookies || c.tiers[p.Name].signer != nil || c.tiers[p.Region.Name].signer != nil
		}
		o.pools = append(o.pools, pools)
	}
	return o
}

// shape arranges pools by region and role. A region is open to a model only
// through the pools that serve it, so the policies see a view of it.
func (c *compiler) shape(serving []*fleet.Pool) *shape {
	type place struct {
		region *fleet.Node
		inside members
	}
	var first, last []place
	for len(serving) > 0 {
		r := serving[0].Region
		var primaries, backups []*fleet.Node
		for len(serving) > 0 && serving[0].Region == r {
			if n := &serving[0].Node; n.Backup {
				backups = append(backups, n)
			} else {
				primaries = append(primaries, n)
			}
			serving = serving[1:]
		}
		in := members{nodes: append(primaries, backups...), primaries: len(primaries), policy: c.tiers[r.Name].policy}
		p := place{region: r.View(in.nodes), inside: in}
		if r.Backup {
			last = append(last, p)
		} else {
			first = append(first, p)
		}
	}
	s := &shape{regions: members{primaries: len(first), policy: c.global.policy}}
	for _, p := range append(first, last...) {
		s.regions.nodes = append(s.regions.nodes, p.region)
		s.inside = append(s.inside, p.inside)
	}
	return s
}

// addFallbacks links every model to the models that stand in for it. A model that
// only has fallbacks is served by them alone.
func (c *compiler) addFallbacks() {
	own := make(map[string][]*offer, len(c.models))
	for name, m := range c.models {
		own[name] = m.surfaces
	}
	for name, others := range c.set.cfg.Fallbacks {
		surfaces := make([]*offer, len(inference.Surfaces()))
		copy(surfaces, own[name])
		served := own[name] != nil
		for s := range surfaces {
			for _, other := range others {
				if own[other] == nil || own[other][s] == nil {
					continue
				}
				served = true
				if surfaces[s] == nil {
					surfaces[s] = &offer{shape: &shape{}}
				}
				surfaces[s].add(own[other][s], other)
			}
		}
		if served {
			c.models[name] = &model{surfaces: surfaces}
		}
	}
}

// add makes another model's offer a fallback of o.
func (o *offer) add(other *offer, name string) {
	f := &offer{shape: other.shape, cookies: other.cookies}
	for _, pools := range other.pools {
		marked := append([]fleet.Candidate(nil), pools...)
		for i := range marked {
			marked[i].Fallback = name
		}
		f.pools = append(f.pools, marked)
		f.size += len(marked)
	}
	o.fallbacks = append(o.fallbacks, f)
	o.size += f.size
	o.cookies = o.cookies || f.cookies
}
