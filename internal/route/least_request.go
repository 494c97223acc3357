package route

import "github.com/spillway/spillway/internal/fleet"

// LeastRequest takes the node with the least load for its size: requests in
// flight after one more, divided by capacity times weight. A node that does not
// tell its capacity counts as 64, so where nobody tells, weights alone say the
// sizes. A pick is linear in the nodes.
type LeastRequest struct{}

// Pick implements Policy.
func (LeastRequest) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	return lowest(q, nodes, loadPerSize)
}

// loadPerSize is the share of a node's size in use after one more request.
func loadPerSize(now int64, n *fleet.Node) float64 {
	load := n.Live.Fullness(now)
	if load == 0 {
		load = loadPerCapacity(now, n)
	}
	if n.Weight == 1 && n.SlowStart <= 0 {
		return load
	}
	return load / n.EffectiveWeight(now)
}

// loadPerCapacity is the same where nothing was learned about the node.
func loadPerCapacity(now int64, n *fleet.Node) float64 {
	size := n.Capacity
	if size <= 0 {
		size = unknownCapacity
	}
	return float64(n.Live.Load(now)+1) / float64(size)
}
