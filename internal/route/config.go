package route

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// PolicyConfig chooses a balancing policy. The options of a policy stand in a
// section of the policy's own name next to it:
//
//	policy: prefix_affinity
//	prefix_affinity: {match: 0.7}
type PolicyConfig struct {
	// How one member of the tier is chosen: `round_robin`, `least_request`, `power_of_two`, `peak_ewma`, `ip_hash`, `consistent_hash`, `prefix_affinity`, `random` or `latency`. Empty is `least_request`.
	Policy string `yaml:"policy"`
	// Options of the policy `consistent_hash`.
	ConsistentHash HashConfig `yaml:"consistent_hash"`
	// Options of the policy `prefix_affinity`.
	PrefixAffinity PrefixConfig `yaml:"prefix_affinity"`
	// Options of the policy `latency`.
	Latency LatencyConfig `yaml:"latency"`
}

// defaultPolicy is taken where none is named: it needs no options, follows the
// load and the sizes, and is never far off.
const defaultPolicy = "least_request"

// name is the policy's name.
func (c PolicyConfig) name() string {
	if c.Policy == "" {
		return defaultPolicy
	}
	return c.Policy
}

// Validate returns every mistake. Options of a policy that was not chosen are
// one: they would have no effect.
func (c PolicyConfig) Validate() error {
	var errs []error
	name := c.name()
	if _, ok := Builtin()[name]; !ok {
		return errUnknown(name)
	}
	sections := []struct {
		name string
		set  bool
		err  error
	}{
		{"consistent_hash", c.ConsistentHash != HashConfig{}, c.ConsistentHash.validate()},
		{"prefix_affinity", c.PrefixAffinity != PrefixConfig{}, c.PrefixAffinity.validate()},
		{"latency", c.Latency != LatencyConfig{}, c.Latency.validate()},
	}
	for _, s := range sections {
		switch {
		case s.name == name:
			errs = append(errs, under(s.name, s.err))
		case s.set:
			errs = append(errs, fmt.Errorf("%s: has no effect with policy: %s", s.name, name))
		}
	}
	return errors.Join(errs...)
}

// TierConfig says how one member of a tier is chosen. It stands in a region's
// section for its pools and in a pool's section for its instances. Two that are
// equal (==) say the same.
type TierConfig struct {
	PolicyConfig `yaml:",inline"`
	// Keep a client's requests at one member while that is open.
	Affinity AffinityConfig `yaml:"affinity"`
}

// DefaultTier returns the configuration of a region or pool that says nothing.
func DefaultTier() TierConfig {
	return TierConfig{PolicyConfig: PolicyConfig{Policy: defaultPolicy}}
}

// Validate returns every mistake.
func (c TierConfig) Validate() error {
	return errors.Join(c.PolicyConfig.Validate(), under("affinity", c.Affinity.validate()))
}

// Config is the section `route` of the configuration: how a region is chosen, and
// what holds for all tiers.
type Config struct {
	// How a region is chosen.
	TierConfig `yaml:",inline"`
	// Models to serve instead when all servers of a model are taken or gone, in order.
	Fallbacks map[string][]string `yaml:"fallbacks"`
	// The cookie of session affinity, for all tiers with affinity by cookie.
	Cookie CookieConfig `yaml:"cookie"`
}

// Default returns the configuration of a gateway that says nothing: the nearest
// region first.
func Default() Config {
	return Config{
		TierConfig: TierConfig{PolicyConfig: PolicyConfig{Policy: "latency"}},
		Cookie:     CookieConfig{Name: cookiePrefix + "_session"},
	}
}

// Validate returns every mistake in the section.
func (c Config) Validate() error {
	errs := []error{c.TierConfig.Validate()}
	for _, model := range slices.Sorted(maps.Keys(c.Fallbacks)) {
		for i, other := range c.Fallbacks[model] {
			at := fmt.Sprintf("fallbacks.%s[%d]", model, i)
			switch {
			case other == "":
				errs = append(errs, fmt.Errorf("%s: must name a model", at))
			case other == model:
				errs = append(errs, fmt.Errorf("%s: %q cannot stand in for itself", at, model))
			case slices.Contains(c.Fallbacks[model][:i], other):
				errs = append(errs, fmt.Errorf("%s: %q is named twice", at, other))
			}
		}
	}
	errs = append(errs, under("cookie", c.Cookie.validate()))
	return errors.Join(errs...)
}

// under puts a section's key in front of each of its mistakes.
func under(key string, err error) error {
	if err == nil {
		return nil
	}
	var errs []error
	for line := range strings.SplitSeq(err.Error(), "\n") {
		errs = append(errs, errors.New(key+"."+line))
	}
	return errors.Join(errs...)
}
