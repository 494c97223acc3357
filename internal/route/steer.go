package route

import (
	"errors"
	"fmt"
	"maps"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Steering decides before the tiers do: rules, and experiments. Steer is called from
// many goroutines at once, does not block and does not keep the request. The zero
// Decision changes nothing.
type Steering interface {
	Steer(now time.Time, req *inference.Request) Decision
}

// Preview decides as Steer does, for people who ask where a request would go: nothing of
// it is counted. Rules and experiments implement it beside Steering.
type Preview interface {
	Preview(now time.Time, req *inference.Request) Decision
}

// Arms says whether the arm of an experiment still takes requests. Experiments
// implement it beside Steering.
type Arms interface {
	Runs(arm inference.Arm) bool
}

// Decision is what Steering wants for one request.
type Decision struct {
	Rule   string        // which rule decided; "" is none
	Arm    inference.Arm // of the experiment that the request is part of
	Action *Action       // nil changes nothing; read-only
	More   []*Action     // further actions, each of which counts less than those before; read-only
	Mirror *Action       // where a copy of the request goes whose answer is dropped; nil is nowhere
}

// Action is what a rule or an arm of an experiment does to a request.
type Action struct {
	// The region to prefer.
	Region string `yaml:"region"`
	// The pools to prefer, as `pool` or `region/pool`, with their weights: the order is drawn by weight, and what a pool that is down or full leaves is shared by the weights of the others.
	Pools map[string]int `yaml:"pools"`
	// Only that region and those pools, and no other when they are down or full.
	Strict bool `yaml:"strict"`
	// The model to ask for instead, by the name that clients use.
	Model string `yaml:"model"`
	// The class to lower the request to: `normal` or `batch`. A request that is lower already stays where it is.
	Class string `yaml:"class"`
	// Header fields to set on the way to the servers. An empty value takes the field out.
	Headers map[string]string `yaml:"headers"`
}

// Empty says whether the action does nothing.
func (a *Action) Empty() bool {
	return a.Region == "" && len(a.Pools) == 0 && !a.Strict && a.Model == "" && a.Class == "" && len(a.Headers) == 0
}

// maxWeight bounds the weight of a pool, so that a sum of weights stays far from the
// largest number. Arms and instances have the same bound.
const maxWeight = 1_000_000

// forbidden are header fields that belong to the connection or to identity, which no
// rule may change.
var forbidden = []string{"Authorization", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Host", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Api-Key"}

// Validate returns every mistake, each with its key in front. What the names stand for
// is not known here.
func (a *Action) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, weight := range a.Pools {
		if name == "" || weight < 1 || weight > maxWeight {
			bad("pools.%s: a pool needs a name and a weight of 1 to %d, got %d", name, maxWeight, weight)
		}
	}
	if a.Strict && a.Region == "" && len(a.Pools) == 0 {
		bad("strict: needs region or pools")
	}
	switch a.Class {
	case "", inference.Normal.String(), inference.Batch.String():
	default:
		bad("class: want normal or batch, got %q", a.Class)
	}
	fields := make(map[string]string) // by the name that counts
	for _, name := range slices.Sorted(maps.Keys(a.Headers)) {
		canonical, value := textproto.CanonicalMIMEHeaderKey(name), a.Headers[name]
		if other, ok := fields[canonical]; ok {
			bad("headers.%s: this is the field %s again", name, other)
		}
		fields[canonical] = name
		switch {
		case slices.Contains(forbidden, canonical):
			bad("headers.%s: this field cannot be changed", name)
		case !token(name):
			bad("headers.%s: not a name of a header field", name)
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
			bad("headers.%s: the value has control characters", name)
		}
	}
	return errors.Join(errs...)
}

// token says whether s is a token of RFC 9110, section 5.6.2.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c > '~' || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
