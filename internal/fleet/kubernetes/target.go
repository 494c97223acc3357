package kubernetes

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spillway/spillway/internal/fleet"
)

// Annotations or labels of pods.
const (
	weightKey      = "spillway.dev/weight"
	backupKey      = "spillway.dev/backup"
	maxInFlightKey = "spillway.dev/max-in-flight"
)

const (
	maxWeight  = 1_000_000 // of an instance, as for those from files
	maxTargets = 10_000
)

// slice is what matters of an EndpointSlice.
type slice struct {
	name      string
	family    string // familyIPv4, familyIPv6, or "fqdn"
	ports     []port
	endpoints []endpoint
}

// port is one port of a slice.
type port struct {
	name   string
	number int
}

// endpoint is one endpoint of a slice.
type endpoint struct {
	address string
	zone    string
	pod     string // "": not known
	state   state
}

// state says what may be sent to an endpoint, the greatest is best.
type state int

const (
	out    state = iota // nothing
	ending              // what nobody else can take
	ready               // everything
)

// readSlice takes what matters out of an EndpointSlice.
func readSlice(object any) (string, slice, bool) {
	in, ok := object.(*endpointSlice)
	if !ok {
		return "", slice{}, false
	}
	s := slice{name: in.Name, family: strings.ToLower(in.AddressType)}
	for _, p := range in.Ports {
		if p.Port != nil {
			s.ports = append(s.ports, port{deref(p.Name, ""), int(*p.Port)})
		}
	}
	for _, e := range in.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		at := endpoint{address: e.Addresses[0], zone: deref(e.Zone, ""), state: stateOf(e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating)} // the others have no meaning
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
			at.pod = e.TargetRef.Name
		}
		s.endpoints = append(s.endpoints, at)
	}
	return in.Name, s, true
}

// stateOf reads an endpoint's conditions: one that is not said to be unready is
// ready, and serves if it is.
func stateOf(saysReady, serving, terminating *bool) state {
	isReady := deref(saysReady, true)
	switch {
	case isReady:
		return ready
	case deref(serving, isReady) && deref(terminating, false):
		return ending
	}
	return out
}

// deref is the value pointed to, or the other one.
func deref[T any](p *T, without T) T {
	if p == nil {
		return without
	}
	return *p
}

// pod is what matters of a pod.
type pod struct {
	Settings
	name     string
	mistakes []error
}

// readPod takes what matters out of a pod's metadata.
func readPod(object any) (string, pod, bool) {
	in, ok := object.(*meta.PartialObjectMetadata)
	if !ok {
		return "", pod{}, false
	}
	p := pod{name: in.Name}
	p.Settings, p.mistakes = ParseSettings(func(key string) string { return cmp.Or(in.Annotations[key], in.Labels[key]) })
	return in.Name, p, true
}

// Settings are what a pod says of itself.
type Settings struct {
	Weight      int // 0: not said
	Backup      bool
	MaxInFlight int64 // 0: not said
}

// ParseSettings reads a pod's settings, the values of the keys
// spillway.dev/weight, spillway.dev/backup and spillway.dev/max-in-flight; "" is
// not said. What is said wrongly is not said; the errors tell which.
func ParseSettings(value func(key string) string) (s Settings, errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if v := value(weightKey); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxWeight {
			n = 0
			bad("%s: must be a whole number from 1 to %d, got %.50q", weightKey, maxWeight, v)
		}
		s.Weight = n
	}
	if v := value(backupKey); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			bad("%s: must be true or false, got %.50q", backupKey, v)
		}
		s.Backup = b
	}
	if v := value(maxInFlightKey); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			n = 0
			bad("%s: must be a whole number >= 0, got %.50q", maxInFlightKey, v)
		}
		s.MaxInFlight = n
	}
	return s, errs
}

// found is an endpoint that may be a target.
type found struct {
	fleet.Target
	who   string // the pod, or the URL where it is not known
	state state
	last  bool // its address is of the family that is not preferred
}

// targets makes the targets of the slices, sorted by address. Endpoints may stand
// in several slices while they are moved (then the best state counts), and pods
// with an address of each family stand in slices of each.
func (c *Config) targets(all []slice, pods []pod) (targets []fleet.Target, warnings []string, err error) {
	byName := make(map[string]pod, len(pods))
	for _, p := range pods {
		byName[p.name] = p
		for _, m := range p.mistakes {
			warnings = append(warnings, fmt.Sprintf("pod %s: %v", p.name, m))
		}
	}
	var founds []found
	for _, s := range all {
		at, ok := c.portOf(s)
		if !ok {
			if len(s.endpoints) > 0 {
				warnings = append(warnings, fmt.Sprintf("slice %s has no port %q", s.name, c.Port))
			}
			continue
		}
		for _, e := range s.endpoints {
			p, known := byName[e.pod]
			if e.state == out || e.state == ending && !c.Terminating || c.PodLabels != "" && !known ||
				len(c.Zones) > 0 && !slices.Contains(c.Zones, e.zone) {
				continue
			}
			f, err := c.found(s, e, at, p)
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("slice %s: %v", s.name, err))
				continue
			}
			founds = append(founds, f)
		}
	}
	targets = single(founds)
	if len(targets) > maxTargets {
		return nil, nil, fmt.Errorf("%d instances; at most %d are taken", len(targets), maxTargets)
	}
	slices.Sort(warnings)
	return targets, slices.Compact(warnings), nil
}

// found makes a target of an endpoint.
func (c *Config) found(s slice, e endpoint, number int, p pod) (found, error) {
	u, err := fleet.ParseURL(c.Scheme + "://" + net.JoinHostPort(e.address, strconv.Itoa(number)) + c.Path)
	if err == nil && u.Hostname() != e.address {
		err = fmt.Errorf("%.100q is not an address", e.address)
	}
	if err != nil {
		return found{}, err
	}
	t := fleet.Target{URL: u.String(), Backup: e.state == ending}
	if c.PodSettings {
		t.Weight, t.Backup, t.MaxInFlight = p.Weight, t.Backup || p.Backup, p.MaxInFlight
	}
	t.Weight = max(t.Weight, 1)
	return found{Target: t, who: cmp.Or(e.pod, t.URL), state: e.state, last: s.family != c.Prefer}, nil
}

// single leaves one target of each pod and of each address, the best one, and
// sorts them.
func single(founds []found) []fleet.Target {
	slices.SortFunc(founds, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.who, b.who), cmp.Compare(b.state, a.state), order(a.last, b.last), cmp.Compare(a.URL, b.URL))
	})
	founds = slices.CompactFunc(founds, func(a, b found) bool { return a.who == b.who })
	slices.SortStableFunc(founds, func(a, b found) int { return cmp.Or(cmp.Compare(a.URL, b.URL), cmp.Compare(b.state, a.state)) })
	founds = slices.CompactFunc(founds, func(a, b found) bool { return a.URL == b.URL })
	targets := make([]fleet.Target, len(founds))
	for i, f := range founds {
		targets[i] = f.Target
	}
	return targets
}

// order sorts false before true.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// portOf is the number of the port that instances of a slice are reached at. A
// slice without any stands for all ports, where a number is configured.
func (c *Config) portOf(s slice) (int, bool) {
	number, _ := strconv.Atoi(c.Port)
	if len(s.ports) == 0 && number > 0 {
		return number, true
	}
	i := slices.IndexFunc(s.ports, func(p port) bool {
		switch {
		case number > 0:
			return p.number == number
		case c.Port != "":
			return p.name == c.Port
		}
		return len(s.ports) == 1 || p.name == "http"
	})
	if i < 0 {
		return 0, false
	}
	return s.ports[i].number, true
}
