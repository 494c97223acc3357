package route

import "github.com/spillway/spillway/internal/fleet"

// PowerOfTwo draws two open nodes at random and takes the one with less load for
// its weight (Mitzenmacher 2001). It costs the same for any number of nodes as
// long as most are open, and several gateways that use it do not all run to the
// same node.
type PowerOfTwo struct{}

// Pick implements Policy.
func (PowerOfTwo) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	return cheaper(q, nodes, loadPerWeight)
}
