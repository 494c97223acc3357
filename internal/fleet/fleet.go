// Package fleet is the live picture of what Spillway stands in front of:
// regions, their pools, their instances.
//
// There are two halves. What is configured or discovered is an immutable
// Snapshot, replaced as a whole by Fleet when a reload or a Source changes it.
// What happens is Live: counters and states that belong to a node's name, so
// they survive every snapshot, every reload and every health change, and an
// instance that leaves and comes back finds its own counters. A Lease is one
// slot of one instance held by one attempt; it counts on the instance, its pool
// and its region and is given back exactly once. A Plan is the ordered set of
// pools where one request may run.
//
// Snapshots and plans are read without locks from any goroutine. Fleet.mu
// guards only the making of the next snapshot. The package starts no goroutine.
package fleet

import (
	"net/url"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/spillway/spillway/internal/inference"
)

// Node is a member of a tier as a balancing policy sees it: a region, a pool or
// an instance. All but Live is immutable.
type Node struct {
	Name      string // unique path: "eu", "eu/gpu", "eu/gpu/10.0.0.1:8000"
	Hash      uint64 // xxhash of Name, for policies that hash
	Weight    int    // share of the work among its siblings, at least 1
	Backup    bool   // used only when no other sibling is open
	Capacity  int64  // most requests in flight; 0 is not known
	SlowStart time.Duration
	Live      *Live

	children []*Node   // a region's pools or a pool's instances; nil for an instance
	instance *Instance // the instance that this node is; nil for a pool or region
}

// newNode fills the parts that follow from the name.
func newNode(name string, weight int, backup bool, live *Live) Node {
	return Node{Name: name, Hash: xxhash.Sum64String(name), Weight: max(weight, 1), Backup: backup, Live: live}
}

// View returns a node that counts like n but is open only through the given
// children: a region seen by a model that only some of its pools serve.
func (n *Node) View(children []*Node) *Node {
	v := *n
	v.children = children
	return &v
}

// Status tells whether n can take a request at now (Unix nanoseconds) and if
// not, why. A region or pool is as good as its best child.
func (n *Node) Status(now int64) Status {
	if n.children == nil {
		return n.Live.status(now, n.Capacity)
	}
	best := Down
	for _, c := range n.children {
		if s := c.Status(now); s < best {
			if best = s; s == Open {
				break
			}
		}
	}
	return best
}

// EffectiveWeight is Weight, lowered while the node is in slow start: it grows
// from a tenth to the whole over SlowStart after a recovery (Envoy's linear
// slow start, aggression 1, min weight 10%).
func (n *Node) EffectiveWeight(now int64) float64 {
	w := float64(n.Weight)
	if n.SlowStart <= 0 {
		return w
	}
	since := n.Live.upSince.Load()
	if since == 0 {
		return w
	}
	age := float64(now-since) / float64(n.SlowStart)
	if age >= 1 {
		return w
	}
	return w * max(0.1, age)
}

// Region is a place with pools in it.
type Region struct {
	Node
	Pools []*Pool
}

// Pool is a set of instances of one kind.
type Pool struct {
	Node
	Region    *Region
	Label     string            // the pool's own name, without its region
	Models    map[string]string // name that clients use -> name asked for upstream
	Surfaces  []inference.Surface
	Provider  bool // a hosted account, not servers of our own
	Standby   bool // in reserve until it is switched on
	Instances []*Instance

	primaries, backups []*Node // Instances by role, in order
}

// Serves says whether the pool answers on a surface.
func (p *Pool) Serves(s inference.Surface) bool { return slices.Contains(p.Surfaces, s) }

// Nodes returns the pool's instances by role, in the order of the
// configuration. The slices are shared: do not change them.
func (p *Pool) Nodes() (primaries, backups []*Node) { return p.primaries, p.backups }

// Instance is one model server.
type Instance struct {
	Node
	Pool *Pool
	URL  *url.URL // scheme, host and an optional base path
}

// Snapshot is a whole picture of the fleet. It never changes.
type Snapshot struct {
	Version   int64
	Regions   []*Region
	instances map[string]*Instance
}

// Instance finds an instance by its full name, or by its last part (host:port)
// when that is unique.
func (s *Snapshot) Instance(name string) (*Instance, bool) {
	if i, ok := s.instances[name]; ok {
		return i, true
	}
	var found *Instance
	for _, i := range s.instances {
		if i.URL.Host == name {
			if found != nil {
				return nil, false
			}
			found = i
		}
	}
	return found, found != nil
}

// Instances calls f for every instance, in the order of the configuration.
func (s *Snapshot) Instances(f func(*Instance)) {
	for _, r := range s.Regions {
		for _, p := range r.Pools {
			for _, i := range p.Instances {
				f(i)
			}
		}
	}
}

// Models lists every model name that some pool serves, sorted.
func (s *Snapshot) Models() []string {
	var names []string
	for _, r := range s.Regions {
		for _, p := range r.Pools {
			for name := range p.Models {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
