package route

import (
	"errors"
	"fmt"
	"math"

	"github.com/cespare/xxhash/v2"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// HashConfig sets the policy `consistent_hash`.
type HashConfig struct {
	// What requests are kept together by: `header`, `cookie`, `user` (the body's field) or `prompt` (how it begins). Empty is `user`.
	By string `yaml:"by"`
	// Name of the header or cookie.
	Name string `yaml:"name"`
	// Bytes of the prompt that count, by `prompt`. 0 takes 1024, about 256 tokens.
	PromptBytes int `yaml:"prompt_bytes"`
	// Most load of a node as a multiple of the mean; beyond it, the next node in the key's order is taken. 0 takes 1.25.
	Bound float64 `yaml:"bound"`
}

// Defaults of HashConfig: SMG's prefix_hash counts the first 256 tokens and
// allows 1.25 times the mean load.
const (
	defaultPromptBytes = 1024
	defaultBound       = 1.25
)

// withDefaults fills what was left out.
func (c HashConfig) withDefaults() HashConfig {
	if c.By == "" {
		c.By = "user"
	}
	if c.PromptBytes == 0 {
		c.PromptBytes = defaultPromptBytes
	}
	if c.Bound == 0 {
		c.Bound = defaultBound
	}
	return c
}

// validate returns every mistake, keys relative to the policy's section.
func (c HashConfig) validate() error {
	var errs []error
	c = c.withDefaults()
	switch c.By {
	case "header", "cookie":
		if c.Name == "" {
			errs = append(errs, fmt.Errorf("name: needed with by: %s", c.By))
		}
	case "user", "prompt":
		if c.Name != "" {
			errs = append(errs, fmt.Errorf("name: has no meaning with by: %s", c.By))
		}
	default:
		errs = append(errs, fmt.Errorf("by: want header, cookie, user or prompt, got %q", c.By))
	}
	if c.PromptBytes < 0 {
		errs = append(errs, fmt.Errorf("prompt_bytes: must be > 0, got %d", c.PromptBytes))
	}
	if !(c.Bound > 1) {
		errs = append(errs, fmt.Errorf("bound: must be > 1, got %v", c.Bound))
	}
	return errors.Join(errs...)
}

// ConsistentHash keeps requests with the same key at one node, and lets go when
// that node has more than its share: no node gets more than bound times the mean
// load of the open ones (Mirrokni, Thorup and Zadimoghaddam 2016). Each key has
// its own order of the nodes (rendezvous hashing), so what one node cannot take
// spreads over all others instead of the next on a ring, shares follow the
// weights exactly, and there is no table to build. Requests without a key go by
// power of two. A pick is linear in the nodes, at a few nanoseconds each.
type ConsistentHash struct {
	key   keyOf
	bound float64
}

// NewConsistentHash returns the policy that c describes.
func NewConsistentHash(c HashConfig) ConsistentHash {
	c = c.withDefaults()
	return ConsistentHash{key: newKey(c.By, c.Name, c.PromptBytes), bound: c.Bound}
}

// Pick implements Policy.
func (c ConsistentHash) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	key, ok := c.key.hash(q.Request)
	if !ok {
		return cheaper(q, nodes, loadPerWeight)
	}
	home := rendezvous(key, nodes, q)
	if home < 0 || nodes[home].Live.Load(q.Now) == 0 {
		return home
	}
	load, weight := int64(1), 0.0 // with the request that comes
	for _, n := range nodes {
		if q.Open(n) {
			load += n.Live.Load(q.Now)
			weight += n.EffectiveWeight(q.Now)
		}
	}
	perWeight := c.bound * float64(load) / weight
	if below(q.Now, nodes[home], perWeight) {
		return home
	}
	best, top := -1, -1.0
	for i, n := range nodes {
		if s := lot(key, n); s > top && below(q.Now, n, perWeight) && q.Open(n) {
			best, top = i, s
		}
	}
	if best < 0 { // every node filled up meanwhile
		return home
	}
	return best
}

// below says whether n can take one more within its share.
func below(now int64, n *fleet.Node, perWeight float64) bool {
	return float64(n.Live.Load(now)) < math.Ceil(perWeight*n.EffectiveWeight(now))
}

// keyOf finds the key that requests are kept together by.
type keyOf struct {
	by, name string
	bytes    int
}

// newKey prepares a key; a header's name is brought to its canonical form.
func newKey(by, name string, promptBytes int) keyOf {
	if by == "header" {
		name = canonicalHeader(name)
	}
	return keyOf{by: by, name: name, bytes: promptBytes}
}

// hash returns the hash of the request's key; not ok when it has none.
func (k keyOf) hash(req *inference.Request) (uint64, bool) {
	var s string
	switch k.by {
	case "client_ip":
		return ipKey(req.ClientIP)
	case "header":
		if v := req.Header[k.name]; len(v) > 0 {
			s = v[0]
		}
	case "cookie":
		s = cookieValue(req.Header, k.name)
	case "user":
		s = req.User
	case "prompt":
		p := req.Prompt()
		if len(p) == 0 {
			return 0, false
		}
		return xxhash.Sum64(p[:min(len(p), k.bytes)]), true
	}
	return xxhash.Sum64String(s), s != ""
}
