package route

import (
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// LatencyConfig sets the policy `latency`.
type LatencyConfig struct {
	// Nodes whose round trip is at most this much longer than the shortest count as equally near, and share the work by load and weight. 0 takes 2ms.
	Slack time.Duration `yaml:"slack"`
}

// defaultSlack keeps the noise of connects between two racks from deciding.
const defaultSlack = 2 * time.Millisecond

// validate returns every mistake, keys relative to the policy's section.
func (c LatencyConfig) validate() error {
	if c.Slack < 0 {
		return fmt.Errorf("slack: must be >= 0, got %v", c.Slack)
	}
	return nil
}

// Latency takes the nearest node: the shortest network round trip as connects
// and probes see it, and not the time to first token, which says how busy a node
// is rather than how far. It is meant for regions. Nodes about equally near share
// the work by load and weight; a node of unknown distance is tried first, with a
// few requests at a time until its distance is known; nodes that are full are not
// open, so work spills to the next nearest. A pick is linear in the nodes.
type Latency struct{ slack time.Duration }

// NewLatency returns the policy that c describes.
func NewLatency(c LatencyConfig) Latency {
	if c.Slack == 0 {
		c.Slack = defaultSlack
	}
	return Latency{slack: c.Slack}
}

// maxUnknown bounds the load of a node whose distance is not known while others
// are: one that never answers is not to take all the work.
const maxUnknown = 4

// Pick implements Policy.
func (l Latency) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	nearest := time.Duration(-1)
	for _, n := range nodes {
		d := n.Live.RoundTrip()
		if d > 0 && (nearest < 0 || d < nearest) && q.Open(n) {
			nearest = d
		}
	}
	if nearest < 0 {
		return lowest(q, nodes, loadPerWeight)
	}
	return l.near(q, nodes, nearest+l.slack)
}

// near takes the least loaded of the open nodes within limit and of those whose
// distance is not known.
func (Latency) near(q *fleet.Query, nodes []*fleet.Node, limit time.Duration) int {
	best, least, bestKnown := -1, 0.0, true
	for i, n := range nodes {
		d := n.Live.RoundTrip()
		known := d > 0
		if d > limit || !known && n.Live.Load(q.Now) >= maxUnknown {
			continue
		}
		c := loadPerWeight(q.Now, n)
		better := best < 0 || bestKnown && !known || bestKnown == known && c < least
		if better && q.Open(n) {
			best, least, bestKnown = i, c, known
		}
	}
	return best
}
