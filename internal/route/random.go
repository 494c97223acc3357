package route

import "github.com/spillway/spillway/internal/fleet"

// Random takes an open node by chance, in proportion to the weights.
type Random struct{}

// randomDraws is how often Random draws among all nodes before it looks which
// are open. A draw that hits a closed node is drawn again, which leaves the
// shares of the open ones as they are.
const randomDraws = 3

// Pick implements Policy.
func (Random) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	d := dice(q.Rand)
	total := 0.0
	for _, n := range nodes {
		total += n.EffectiveWeight(q.Now)
	}
	for range randomDraws {
		left := d.float() * total
		for i, n := range nodes {
			if left -= n.EffectiveWeight(q.Now); left < 0 {
				if q.Open(n) {
					return i
				}
				break
			}
		}
	}
	return randomOpen(q, &d, nodes)
}

// randomOpen draws among the open nodes in one pass: each takes the lead with
// the share it has in the weights so far.
func randomOpen(q *fleet.Query, d *dice, nodes []*fleet.Node) int {
	best, total := -1, 0.0
	for i, n := range nodes {
		if !q.Open(n) {
			continue
		}
		w := n.EffectiveWeight(q.Now)
		total += w
		if d.float()*total < w {
			best = i
		}
	}
	return best
}
