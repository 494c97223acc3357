package route

import (
	"errors"
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// AffinityConfig keeps a client's requests at one node of a tier while that is
// open. When it is down, draining, full or cooling the tier's policy decides.
type AffinityConfig struct {
	// What a client is known by: `cookie`, `client_ip`, `header` or `user` (the body's field). Empty switches affinity off.
	By string `yaml:"by"`
	// Name of the header, with by: header.
	Header string `yaml:"header"`
	// How long after its last answer a client keeps its cookie, in whole seconds, with by: cookie. 0 is until its session ends.
	TTL time.Duration `yaml:"ttl"`
}

// validate returns every mistake, keys relative to the section `affinity`.
func (c AffinityConfig) validate() error {
	var errs []error
	switch c.By {
	case "", "cookie", "client_ip", "header", "user":
	default:
		errs = append(errs, fmt.Errorf("by: want cookie, client_ip, header or user, got %q", c.By))
	}
	if c.By == "header" && c.Header == "" {
		errs = append(errs, errors.New("header: needed with by: header"))
	}
	if c.By != "header" && c.Header != "" {
		errs = append(errs, errors.New("header: has a meaning only with by: header"))
	}
	if c.TTL != 0 && c.By != "cookie" {
		errs = append(errs, errors.New("ttl: has a meaning only with by: cookie"))
	}
	if c.TTL < 0 || c.TTL%time.Second != 0 {
		errs = append(errs, fmt.Errorf("ttl: must be whole seconds and not below 0, got %v", c.TTL))
	}
	return errors.Join(errs...)
}

// hashed is affinity without any state: a key's node is the first in the key's own
// order of all nodes, open or not, so a node that comes back finds its clients.
type hashed struct {
	Policy
	key keyOf
}

// Pick implements Policy.
func (h hashed) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	if key, ok := h.key.hash(q.Request); ok {
		if i := rendezvous(key, nodes, nil); i >= 0 && q.Open(nodes[i]) {
			return i
		}
	}
	return h.Policy.Pick(q, nodes)
}

// Observe implements Observer.
func (h hashed) Observe(req *inference.Request, node *fleet.Node, usage inference.Usage) {
	observe(h.Policy, req, node, usage)
}

// tagged is affinity by cookie: the client itself remembers its node.
type tagged struct {
	Policy
	tier   int
	signer *signer
	tags   *memory[string]
}

// newTagged wraps a policy of a tier.
func newTagged(p Policy, tier int, s *signer) tagged {
	return tagged{Policy: p, tier: tier, signer: s, tags: newMemory(func(n *fleet.Node) *string {
		tag := s.tag(n.Name)
		return &tag
	})}
}

// Pick implements Policy.
func (t tagged) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	if tag := t.signer.read(q.Request.Header, t.tier); tag != "" {
		for i, known := range t.tags.of(nodes) {
			if *known == tag {
				if q.Open(nodes[i]) {
					return i
				}
				break
			}
		}
	}
	return t.Policy.Pick(q, nodes)
}

// Observe implements Observer.
func (t tagged) Observe(req *inference.Request, node *fleet.Node, usage inference.Usage) {
	observe(t.Policy, req, node, usage)
}

// observe passes an observation to a policy that learns.
func observe(p Policy, req *inference.Request, node *fleet.Node, usage inference.Usage) {
	if o, ok := p.(Observer); ok {
		o.Observe(req, node, usage)
	}
}

// withAffinity wraps the policy of a tier as c says. s may be nil when c does not
// go by cookie.
func withAffinity(p Policy, c AffinityConfig, tier int, s *signer) Policy {
	switch c.By {
	case "":
		return p
	case "cookie":
		return newTagged(p, tier, s)
	default:
		return hashed{Policy: p, key: newKey(c.By, c.Header, 0)}
	}
}
