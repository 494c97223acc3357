package consul

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/spillway/spillway/internal/fleet"
)

// maxWeight is the greatest weight of an instance, as for those from files.
const maxWeight = 1_000_000

// Tags are what an instance's tags say of it.
type Tags struct {
	Weight      int // 0: not said
	Backup      bool
	MaxInFlight int64  // 0: not said
	Scheme      string // "": not said
	Path        string // "": not said
}

// ParseTags reads the tags that are understood: weight=N, backup, max_in_flight=N,
// scheme=S and path=/P; others are for other readers. The last of several counts.
// What a tag says wrongly is not said; the errors tell which.
func ParseTags(tags []string) (t Tags, errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, tag := range tags {
		key, v, given := strings.Cut(tag, "=")
		switch {
		case tag == "backup":
			t.Backup = true
		case !given:
		case key == "backup":
			b, err := strconv.ParseBool(v)
			if err != nil {
				bad("tag backup: must be true or false, got %.50q", v)
				continue
			}
			t.Backup = b
		case key == "weight":
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > maxWeight {
				bad("tag weight: must be a whole number from 1 to %d, got %.50q", maxWeight, v)
				continue
			}
			t.Weight = n
		case key == "max_in_flight":
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				bad("tag max_in_flight: must be a whole number >= 0, got %.50q", v)
				continue
			}
			t.MaxInFlight = n
		case key == "scheme":
			if v != "http" && v != "https" {
				bad("tag scheme: must be http or https, got %.50q", v)
				continue
			}
			t.Scheme = v
		case key == "path":
			if _, err := fleet.ParseURL("http://host" + v); err != nil || !strings.HasPrefix(v, "/") {
				bad("tag path: must be a path, got %.50q", v)
				continue
			}
			t.Path = v
		}
	}
	return t, errs
}

// targets makes the targets of an answer, sorted by address, and says what is
// wrong with its entries.
func (c *Config) targets(entries []*api.ServiceEntry) (targets []fleet.Target, warnings []string) {
	for _, e := range entries {
		if e == nil || e.Service == nil {
			warnings = append(warnings, "an entry without a service")
			continue
		}
		t, errs, ok := c.target(e)
		for _, err := range errs {
			warnings = append(warnings, fmt.Sprintf("service %.100q: %v", e.Service.ID, err))
		}
		if ok {
			targets = append(targets, t)
		}
	}
	// Of entries with the same address the one with the greatest weight counts,
	// whatever their order in the answer.
	slices.SortFunc(targets, func(a, b fleet.Target) int {
		return cmp.Or(cmp.Compare(a.URL, b.URL), cmp.Compare(b.Weight, a.Weight), cmp.Compare(b.MaxInFlight, a.MaxInFlight))
	})
	targets = slices.CompactFunc(targets, func(a, b fleet.Target) bool { return a.URL == b.URL })
	slices.Sort(warnings)
	return targets, warnings
}

// target makes the target of one entry. It is not ok where the instance must not
// or cannot be used.
func (c *Config) target(e *api.ServiceEntry) (t fleet.Target, errs []error, ok bool) {
	weight := e.Service.Weights.Passing
	checks := slices.DeleteFunc(slices.Clone(e.Checks), func(c *api.HealthCheck) bool { return c == nil })
	switch checks.AggregatedStatus() {
	case api.HealthPassing:
	case api.HealthWarning:
		if weight = e.Service.Weights.Warning; c.PassingOnly || weight < 1 {
			return t, nil, false // Consul's own answers leave those of weight 0 out, too
		}
	default:
		return t, nil, false
	}
	tags, errs := ParseTags(e.Service.Tags)
	host := e.Service.Address
	if host == "" && e.Node != nil {
		host = e.Node.Address
	}
	port := e.Service.DefaultPort()
	if host == "" || port < 1 || port > 65535 {
		return t, append(errs, fmt.Errorf("has no usable address: host %.100q, port %d", host, port)), false
	}
	at := cmp.Or(tags.Scheme, c.Scheme) + "://" + net.JoinHostPort(host, strconv.Itoa(port)) + cmp.Or(tags.Path, c.Path)
	u, err := fleet.ParseURL(at)
	if err == nil && u.Hostname() != host {
		err = fmt.Errorf("%.100q is not a host", host)
	}
	if err != nil {
		return t, append(errs, err), false
	}
	return fleet.Target{
		URL: u.String(), Weight: min(max(cmp.Or(tags.Weight, weight), 1), maxWeight), Backup: tags.Backup, MaxInFlight: tags.MaxInFlight,
	}, errs, true
}
