package route

import (
	"math"
	"math/bits"

	"github.com/spillway/spillway/internal/fleet"
)

// unknownCapacity stands in for the capacity of a node that does not tell it:
// 64 requests, the cap for unknown engines that llm-d's guides start from.
const unknownCapacity = 64

// mix scatters the bits of x (the finalizer of SplitMix64, Steele et al. 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// dice turns the one random number of a query into as many as a pick needs
// (SplitMix64).
type dice uint64

// next returns the next random number.
func (d *dice) next() uint64 {
	*d += 0x9e3779b97f4a7c15
	return mix(uint64(*d))
}

// below returns a number in [0, n).
func (d *dice) below(n int) int {
	hi, _ := bits.Mul64(d.next(), uint64(n))
	return int(hi)
}

// float returns a number in [0, 1).
func (d *dice) float() float64 { return float64(d.next()>>11) / (1 << 53) }

// cost rates a node for one more request; lower is better.
type cost func(now int64, n *fleet.Node) float64

// loadPerWeight is how full the node is with one more request, by weight: its
// share of the learned limit and of the window of prompt tokens where they are
// known, else the number of requests.
func loadPerWeight(now int64, n *fleet.Node) float64 {
	load := n.Live.Fullness(now)
	if load == 0 {
		load = float64(n.Live.Load(now) + 1)
	}
	return load / n.EffectiveWeight(now)
}

// lowest returns the open node of the lowest cost. Equals are told apart by
// chance, because the scan starts anywhere. A node's status, which is dearer
// than its cost, is read only when its cost beats all before it: about ln(n)
// times on a list in random order.
func lowest(q *fleet.Query, nodes []*fleet.Node, of cost) int {
	best, least := -1, math.Inf(1)
	if len(nodes) == 0 {
		return best
	}
	d := dice(q.Rand)
	i := d.below(len(nodes))
	for range nodes {
		if c := of(q.Now, nodes[i]); c < least && q.Open(nodes[i]) {
			best, least = i, c
		}
		if i++; i == len(nodes) {
			i = 0
		}
	}
	return best
}

// maxDraws bounds the nodes that a pair is drawn from before all are scanned
// (SMG's sample of 8).
const maxDraws = 8

// pair draws two open nodes at random; the second is -1 when only one was
// found, both are when none is open.
func pair(q *fleet.Query, nodes []*fleet.Node) (a, b int) {
	if len(nodes) == 0 {
		return -1, -1
	}
	d := dice(q.Rand)
	a = -1
	for range min(maxDraws, 4*len(nodes)) {
		i := d.below(len(nodes))
		switch {
		case i == a || !q.Open(nodes[i]):
		case a < 0:
			a = i
		default:
			return a, i
		}
	}
	if a >= 0 {
		return a, -1
	}
	return pairOfAll(q, &d, nodes)
}

// pairOfAll draws two of all open nodes (reservoir sampling).
func pairOfAll(q *fleet.Query, d *dice, nodes []*fleet.Node) (a, b int) {
	a, b = -1, -1
	open := 0
	for i, n := range nodes {
		if !q.Open(n) {
			continue
		}
		open++
		switch j := d.below(open); {
		case open == 1:
			a = i
		case open == 2:
			b = i
		case j == 0:
			a = i
		case j == 1:
			b = i
		}
	}
	if b >= 0 && d.next()&1 == 0 { // the first tends to stand earlier in the list
		a, b = b, a
	}
	return a, b
}

// cheaper draws two open nodes and returns the one of the lower cost, the first
// when they are equal.
func cheaper(q *fleet.Query, nodes []*fleet.Node, of cost) int {
	a, b := pair(q, nodes)
	if b >= 0 && of(q.Now, nodes[b]) < of(q.Now, nodes[a]) {
		return b
	}
	return a
}

// rendezvous returns the node whose hash with key is highest: every key has its
// own order of the nodes, a node that leaves moves only its own keys, and shares
// follow the weights (Thaler and Ravishankar 1998; weights by u^(1/w), Schindelhauer
// and Schomaker 2005). With a query only open nodes count; their status is read
// for the few that lead on the way. Slow start does not count: it would move keys
// for good.
func rendezvous(key uint64, nodes []*fleet.Node, q *fleet.Query) int {
	best, top := -1, -1.0
	for i, n := range nodes {
		if s := lot(key, n); s > top && (q == nil || q.Open(n)) {
			best, top = i, s
		}
	}
	return best
}

// lot rates a node for a key: u^(1/weight) for a number u in [0, 1) drawn
// from both.
func lot(key uint64, n *fleet.Node) float64 {
	u := float64(mix(key^n.Hash)>>11) / (1 << 53)
	if n.Weight == 1 {
		return u
	}
	return math.Pow(u, 1/float64(n.Weight))
}
