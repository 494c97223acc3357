package route

import (
	"sync"

	"github.com/spillway/spillway/internal/fleet"
)

// RoundRobin takes the nodes in turn, as often as their weights say and spread
// as evenly as they can be: weights 5, 1, 1 give a a b a c a a (nginx's smooth
// weighted round robin). A node that is not open misses its turn and keeps its
// place. Turns survive reloads and are shared by all models on the same nodes.
// A pick is linear in the nodes and serialised by a lock.
type RoundRobin struct {
	turns *memory[float64]
	mu    sync.Mutex // guards the numbers in turns
}

// NewRoundRobin returns a policy that begins at the first of the heaviest nodes.
func NewRoundRobin() *RoundRobin {
	return &RoundRobin{turns: newMemory(func(*fleet.Node) *float64 { return new(float64) })}
}

// Pick implements Policy.
func (r *RoundRobin) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	turns := r.turns.of(nodes)
	best, total := -1, 0.0
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, n := range nodes {
		if !q.Open(n) {
			continue
		}
		w := n.EffectiveWeight(q.Now)
		total += w
		*turns[i] += w
		if best < 0 || *turns[i] > *turns[best] {
			best = i
		}
	}
	if best >= 0 {
		*turns[best] -= total
	}
	return best
}
