// Package route decides where a request may run: which regions, which of their
// pools, which instance.
//
// A Policy chooses one node of a tier. The same interface serves all three
// tiers; only the list of nodes differs: the regions that serve a model, the
// pools of a region that serve it, the instances of a pool. Policies read
// fleet.Live, which counts what the gateway itself has under way, and keep next
// to nothing themselves; what they keep belongs to a node's name and survives
// snapshots. Session affinity wraps any policy at any tier.
//
// Router puts the tiers together. For each snapshot of the fleet it compiles,
// once, every model's regions and pools into a directory behind an atomic
// pointer; Plan looks the model up there, asks the policies of the region and
// pool tiers, and returns the ordered candidates. The instance is chosen later,
// by Plan.Acquire, when the request is about to run.
//
// The package starts no goroutine. Router.mu guards only the making of the next
// directory; policies that need a lock hold it for the length of one pick and
// never while they call out.
package route

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Policy chooses among the nodes of a tier. Pick returns the index of a node
// for which q.Open is true, or -1 when there is none. It may be called from many
// goroutines at once, keeps neither argument, never blocks on I/O, and allocates
// nothing, except when it sees a list of nodes for the first time. It relies on
// lists that never change once they were passed to it, as those of a snapshot.
type Policy interface {
	fleet.Picker
}

// Observer is a Policy that learns from answers. Observe tells what node
// reported for a request that it answered. It may be called from many goroutines
// at once and does not keep the request.
type Observer interface {
	Observe(req *inference.Request, node *fleet.Node, usage inference.Usage)
}

// Builtin lists the policies by name. Each call returns a new map. The
// configuration passed to a constructor must be valid.
func Builtin() map[string]func(PolicyConfig) Policy {
	return map[string]func(PolicyConfig) Policy{
		"round_robin":     func(PolicyConfig) Policy { return NewRoundRobin() },
		"least_request":   func(PolicyConfig) Policy { return LeastRequest{} },
		"power_of_two":    func(PolicyConfig) Policy { return PowerOfTwo{} },
		"peak_ewma":       func(PolicyConfig) Policy { return PeakEWMA{} },
		"ip_hash":         func(PolicyConfig) Policy { return IPHash{} },
		"consistent_hash": func(c PolicyConfig) Policy { return NewConsistentHash(c.ConsistentHash) },
		"prefix_affinity": func(c PolicyConfig) Policy { return NewPrefixAffinity(c.PrefixAffinity) },
		"random":          func(PolicyConfig) Policy { return Random{} },
		"latency":         func(c PolicyConfig) Policy { return NewLatency(c.Latency) },
	}
}

// NewPolicy builds the policy that c names. An unknown name is an error that
// lists the known ones.
func NewPolicy(c PolicyConfig) (Policy, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return Builtin()[c.name()](c), nil
}

// errUnknown reports a policy that does not exist.
func errUnknown(name string) error {
	known := slices.Sorted(maps.Keys(Builtin()))
	return fmt.Errorf("policy: unknown policy %q; known are %s", name, strings.Join(known, ", "))
}
