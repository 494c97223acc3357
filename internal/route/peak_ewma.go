package route

import (
	"math"

	"github.com/spillway/spillway/internal/fleet"
)

// PeakEWMA takes the node that promises the first token soonest: its peak
// average of the time to first token, times the requests in flight after one
// more, by weight (Finagle's PeakEwma, on TTFT instead of the whole answer). A
// node without an observation counts as the best known one, so that it is tried,
// and no more than its load allows. A pick is linear in the nodes.
type PeakEWMA struct{}

// exploreEvery is one in how many picks believes that an idle node has recovered.
// The average of a node that gets nothing does not move, so without it one slow
// answer could keep a node idle as long as the others have room.
const exploreEvery = 64

// Pick implements Policy.
func (PeakEWMA) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	if len(nodes) == 0 {
		return -1
	}
	d := dice(q.Rand)
	i, explore := d.below(len(nodes)), d.below(exploreEvery) == 0
	known, knownCost, best := -1, math.Inf(1), math.Inf(1)
	fresh, freshCost := -1, math.Inf(1)
	for range nodes {
		n := nodes[i]
		c, ttft := loadPerWeight(q.Now, n), n.Live.TTFT().Seconds()
		if ttft == 0 || explore && n.Live.InFlight() == 0 {
			if c < freshCost && q.Open(n) {
				fresh, freshCost = i, c
			}
		} else if (ttft*c < knownCost || ttft < best) && q.Open(n) {
			best = min(best, ttft)
			if ttft*c < knownCost {
				known, knownCost = i, ttft*c
			}
		}
		if i++; i == len(nodes) {
			i = 0
		}
	}
	if fresh >= 0 && (known < 0 || best*freshCost <= knownCost) {
		return fresh
	}
	return known
}
