package route

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// PrefixConfig sets the policy `prefix_affinity`.
type PrefixConfig struct {
	// Share of a prompt's blocks that a node must hold to be preferred, above 0 and at most 1. 0 takes 0.8.
	Match float64 `yaml:"match"`
	// A preferred node is let go when it has this many more prompt tokens outstanding than the least loaded one. 0 takes 65536.
	ReleaseTokens int64 `yaml:"release_tokens"`
	// A preferred node is let go when it has more than this many requests more in flight than the least loaded one, and release_ratio times as many. 0 takes 64.
	ReleaseRequests int64 `yaml:"release_requests"`
	// See release_requests. 0 takes 1.5.
	ReleaseRatio float64 `yaml:"release_ratio"`
	// Blocks of 256 bytes (64 tokens) remembered for each node, 8 bytes of memory each; rounded up to a power of two. Best is what the server's KV cache holds. 0 takes 32768, 2 million tokens.
	Blocks int `yaml:"blocks"`
}

// Defaults of PrefixConfig. Match is llm-d's filter, requests and ratio are SMG's
// cache_aware, blocks are llm-d's 31,250 rounded up. The tokens are 4 s of prefill
// at llm-d's reference rate of 15,928 tokens a second (llm-d itself waits 18 s).
const (
	defaultMatch           = 0.8
	defaultReleaseTokens   = 65536
	defaultReleaseRequests = 64
	defaultReleaseRatio    = 1.5
	defaultBlocks          = 32768
	mostBlocks             = 1 << 24
)

// withDefaults fills what was left out.
func (c PrefixConfig) withDefaults() PrefixConfig {
	if c.Match == 0 {
		c.Match = defaultMatch
	}
	if c.ReleaseTokens == 0 {
		c.ReleaseTokens = defaultReleaseTokens
	}
	if c.ReleaseRequests == 0 {
		c.ReleaseRequests = defaultReleaseRequests
	}
	if c.ReleaseRatio == 0 {
		c.ReleaseRatio = defaultReleaseRatio
	}
	if c.Blocks == 0 {
		c.Blocks = defaultBlocks
	}
	return c
}

// validate returns every mistake, keys relative to the policy's section.
func (c PrefixConfig) validate() error {
	var errs []error
	c = c.withDefaults()
	if !(c.Match > 0 && c.Match <= 1) {
		errs = append(errs, fmt.Errorf("match: must be above 0 and at most 1, got %v", c.Match))
	}
	if c.ReleaseTokens < 0 {
		errs = append(errs, fmt.Errorf("release_tokens: must be > 0, got %d", c.ReleaseTokens))
	}
	if c.ReleaseRequests < 0 {
		errs = append(errs, fmt.Errorf("release_requests: must be > 0, got %d", c.ReleaseRequests))
	}
	if !(c.ReleaseRatio >= 1) {
		errs = append(errs, fmt.Errorf("release_ratio: must be >= 1, got %v", c.ReleaseRatio))
	}
	if c.Blocks < 0 || c.Blocks > mostBlocks {
		errs = append(errs, fmt.Errorf("blocks: must be between 1 and %d, got %d", mostBlocks, c.Blocks))
	}
	return errors.Join(errs...)
}

// PrefixAffinity sends a prompt to a node that has seen how it begins, so that the
// node's prefix cache saves the prefill. It filters before it weighs (llm-d's
// prefix-cache-affinity filter): nodes believed to hold enough of the prompt's
// blocks, and among them the one with the least outstanding work. It lets go when
// that node is too far ahead of the least loaded one; then, and when nobody holds
// enough, two open nodes are drawn and the one with less outstanding work is taken.
//
// What a node holds is believed, not known: the blocks of every prompt sent to it,
// in a set of fixed size that forgets what was used longest ago. Observe corrects
// it when a node that reports cached tokens reports far fewer than believed.
type PrefixAffinity struct {
	cfg      PrefixConfig
	blocks   *memory[blockSet]
	chains   sync.Pool // of *chain
	believed [4096]atomic.Uint64
}

// NewPrefixAffinity returns the policy that c describes, with an empty index.
func NewPrefixAffinity(c PrefixConfig) *PrefixAffinity {
	c = c.withDefaults()
	p := &PrefixAffinity{cfg: c}
	p.blocks = newMemory(func(*fleet.Node) *blockSet { return newBlockSet(c.Blocks) })
	p.chains.New = func() any { return new(chain) }
	return p
}

// requestTokens is what a request in flight counts for among prompt tokens: one
// block, so that prefill ranks nodes and requests rank those without any.
const requestTokens = blockBytes / 4

// outstanding rates a node by the work it has before it, in prompt tokens.
func outstanding(now int64, n *fleet.Node) float64 {
	return float64(n.Live.PromptTokens()+requestTokens*(n.Live.Load(now)+1)) / n.EffectiveWeight(now)
}

// Pick implements Policy. It assumes that the request will run where it says.
func (p *PrefixAffinity) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	prompt := q.Request.Prompt()
	if len(nodes) < 2 || len(prompt) < blockBytes {
		return cheaper(q, nodes, outstanding)
	}
	sets := p.blocks.of(nodes)
	c := p.chains.Get().(*chain)
	defer p.chains.Put(c)
	c.fill(q.Request.Model, prompt)

	i := p.warm(q, nodes, sets, c)
	if i >= 0 && !p.overloaded(q, nodes, i) {
		k := predictionKey(q.Request, nodes[i])
		p.believed[k%uint64(len(p.believed))].Store(k)
	} else if i = cheaper(q, nodes, outstanding); i < 0 {
		return -1
	}
	sets[i].add(c.all())
	return i
}

// warm returns the open node with the least work among those that hold enough of
// the prompt. Hashes are chained, so the block at the threshold stands for all
// before it.
func (p *PrefixAffinity) warm(q *fleet.Query, nodes []*fleet.Node, sets []*blockSet, c *chain) int {
	mark := c.hashes[int(math.Ceil(p.cfg.Match*float64(c.n)))-1]
	best, least := -1, math.Inf(1)
	for i, s := range sets {
		if !s.has(mark) {
			continue
		}
		if w := outstanding(q.Now, nodes[i]); w < least && q.Open(nodes[i]) {
			best, least = i, w
		}
	}
	return best
}

// overloaded says whether node i is too far ahead of the least loaded open node
// to wait for. Most nodes are not, and then the others are not looked at.
func (p *PrefixAffinity) overloaded(q *fleet.Query, nodes []*fleet.Node, i int) bool {
	tokens, load := nodes[i].Live.PromptTokens(), nodes[i].Live.Load(q.Now)
	if tokens <= p.cfg.ReleaseTokens && load <= p.cfg.ReleaseRequests {
		return false
	}
	fewest, lightest := tokens, load
	for _, n := range nodes {
		t, l := n.Live.PromptTokens(), n.Live.Load(q.Now)
		if (t < fewest || l < lightest) && q.Open(n) {
			fewest, lightest = min(fewest, t), min(lightest, l)
		}
	}
	return tokens-fewest > p.cfg.ReleaseTokens ||
		load-lightest > p.cfg.ReleaseRequests && float64(load) > p.cfg.ReleaseRatio*float64(lightest)
}

// predictionKey names the belief that node holds the request's prefix. The
// believed keys lie in a table of fixed size; one that is overwritten is one
// correction less.
func predictionKey(req *inference.Request, node *fleet.Node) uint64 {
	return mix(xxhash.Sum64String(req.ID)^node.Hash) | 1
}

// Observe implements Observer. When node was taken for its prefix and found less
// than half of what was believed in its cache, the blocks behind that are
// forgotten. A server that never reported a cached token does not report them, so
// its zero is no news.
func (p *PrefixAffinity) Observe(req *inference.Request, node *fleet.Node, usage inference.Usage) {
	k := predictionKey(req, node)
	believed := p.believed[k%uint64(len(p.believed))].CompareAndSwap(k, 0)
	if !believed && usage.CachedTokens == 0 || usage.PromptTokens <= 0 {
		return
	}
	set := p.blocks.find(node)
	if set == nil {
		return
	}
	if usage.CachedTokens > 0 {
		set.reports.Store(true)
	}
	share := float64(usage.CachedTokens) / float64(usage.PromptTokens)
	if !believed || !set.reports.Load() || share >= p.cfg.Match/2 {
		return
	}
	c := p.chains.Get().(*chain)
	defer p.chains.Put(c)
	c.fill(req.Model, req.Prompt())
	set.drop(c.all()[int(share*float64(c.n)):])
}
