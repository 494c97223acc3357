// Package dns finds a pool's instances in the domain name system: every address
// of a name (A and AAAA records) with a port, or the targets of SRV records
// with their ports, weights and priorities.
//
// Go's own resolver asks, so resolv.conf, search domains, the hosts file and
// the fall-back to TCP are what the rest of the system knows. It does not tell
// for how long an answer holds; a wrapper around its connections reads that
// from the messages as they pass. The name is asked again when the shortest
// time to live of all answers is over, at least a second and at most five
// minutes later.
//
// Run works on its caller's goroutine and starts none. Answers are sorted, so
// that servers which rotate their records cause no change. An error keeps the
// last set; a name without records is an empty set, which fleet.Fleet keeps from
// having an effect.
package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// The types of records.
const (
	TypeA   = "a"   // A and AAAA records
	TypeSRV = "srv" // SRV records
)

// Bounds on when the name is asked again.
const (
	minTTL      = time.Second
	maxTTL      = 5 * time.Minute
	defaultTTL  = 30 * time.Second // for answers without one, as from the hosts file
	emptyTTL    = 5 * time.Second  // for a name without records: instances are likely on their way
	firstRetry  = time.Second
	maxRetry    = time.Minute
	lookupLimit = 15 * time.Second // for all questions of one look-up
	maxTargets  = 1000
)

// Config is the key `dns` in a pool's section of the configuration.
type Config struct {
	// The name to ask for. A dot at its end keeps search domains out.
	Name string `yaml:"name"`
	// Records to ask for: `a` (A and AAAA) or `srv`.
	Type string `yaml:"type"`
	// Port of the instances; type srv has its own.
	Port int `yaml:"port"`
	// How instances are reached: `http` or `https`. They are known by address: with https, set the name to expect in their certificates (tls_server_name).
	Scheme string `yaml:"scheme"`
	// Name server to ask, host:port or host, instead of those of the system.
	Server string `yaml:"server"`
}

// Default returns the configuration of a section that says nothing.
func Default() Config { return Config{Type: TypeA, Scheme: "http"} }

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Name != "" && len(c.Name) <= 254 && !strings.ContainsAny(c.Name, " \t\r\n/:"), "name: must be a domain name, got %q", c.Name)
	check(c.Type == TypeA || c.Type == TypeSRV, "type: want a or srv, got %q", c.Type)
	check(c.Type != TypeA || c.Port >= 1 && c.Port <= 65535, "port: must be 1 to 65535, got %d", c.Port)
	check(c.Type != TypeSRV || c.Port == 0, "port: has no effect on type srv, whose records name the port")
	check(c.Scheme == "http" || c.Scheme == "https", "scheme: want http or https, got %q", c.Scheme)
	if c.Server != "" {
		host, port, err := net.SplitHostPort(c.server())
		n, bad := strconv.Atoi(port)
		check(err == nil && bad == nil && host != "" && n >= 1 && n <= 65535, "server: want host:port, got %q", c.Server)
	}
	return errors.Join(errs...)
}

// server is the name server's address with a port; "" is the system's.
func (c *Config) server() string {
	if c.Server == "" {
		return ""
	}
	if _, err := netip.ParseAddr(c.Server); err == nil || !strings.Contains(c.Server, ":") {
		return net.JoinHostPort(c.Server, "53")
	}
	return c.Server
}

// Source is the fleet.Source of one name.
type Source struct {
	cfg Config
	log *slog.Logger
}

var _ fleet.Source = (*Source)(nil)

// New returns a source that has asked nothing yet.
func New(cfg Config, log *slog.Logger) *Source {
	return &Source{cfg: cfg, log: log.With("component", "fleet", "source", "dns", "name", cfg.Name)}
}

// Run implements fleet.Source. It returns nil when ctx ends.
func (s *Source) Run(ctx context.Context, update func([]fleet.Target)) error {
	var last []fleet.Target
	known, failures := false, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		targets, ttl, err := s.lookup(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if failures++; failures == 1 {
				s.log.Warn("name cannot be looked up; keeping the last known set", "err", err, "instances", len(last))
			}
			timer.Reset(backOff(failures))
			continue
		case failures > 0:
			failures = 0
			s.log.Info("name can be looked up again", "instances", len(targets))
		}
		if !known || !slices.Equal(targets, last) {
			known, last = true, targets
			update(slices.Clone(targets))
		}
		timer.Reset(ttl)
	}
}

// backOff is the wait after the nth failure in a row: doubled each time, and
// between a half and the whole of it.
func backOff(n int) time.Duration {
	d := min(firstRetry<<min(n-1, 10), maxRetry)
	return d/2 + rand.N(d/2)
}

// lookup asks once. It returns for how long the answer holds.
func (s *Source) lookup(ctx context.Context) ([]fleet.Target, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	seen := new(lifetime)
	r := seen.resolver(s.cfg.server())
	find := s.addresses
	if s.cfg.Type == TypeSRV {
		find = s.services
	}
	targets, err := find(ctx, r)
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(targets, func(a, b fleet.Target) int {
		return cmp.Or(cmp.Compare(a.URL, b.URL), cmp.Compare(b.Weight, a.Weight))
	})
	targets = slices.CompactFunc(targets, func(a, b fleet.Target) bool { return a.URL == b.URL })
	if len(targets) > maxTargets {
		return nil, 0, fmt.Errorf("%d instances; at most %d are taken", len(targets), maxTargets)
	}
	if len(targets) == 0 {
		return nil, emptyTTL, nil
	}
	return targets, seen.holds(), nil
}

// addresses finds the targets of type a.
func (s *Source) addresses(ctx context.Context, r *net.Resolver) ([]fleet.Target, error) {
	addrs, err := resolve(ctx, r, s.cfg.Name)
	if err != nil {
		return nil, err
	}
	targets := make([]fleet.Target, 0, len(addrs))
	for _, a := range addrs {
		targets = append(targets, fleet.Target{URL: s.url(a, uint16(s.cfg.Port))})
	}
	return targets, nil
}

// services finds the targets of type srv. Their names become addresses here,
// because only here it is known which server to ask. Records of the lowest
// priority number are used first; all others are backups.
func (s *Source) services(ctx context.Context, r *net.Resolver) ([]fleet.Target, error) {
	_, records, err := r.LookupSRV(ctx, "", "", s.cfg.Name)
	if isNotFound(err) {
		return nil, nil
	}
	if len(records) == 0 && err != nil { // with records, the error is about others that are malformed
		return nil, err
	}
	if len(records) > maxTargets {
		return nil, fmt.Errorf("%d records; at most %d are taken", len(records), maxTargets)
	}
	// A target of "." says that the service is decidedly not available (RFC 2782).
	records = slices.DeleteFunc(records, func(rec *net.SRV) bool { return rec.Target == "." })
	var targets []fleet.Target
	for _, rec := range records { // sorted by priority
		addrs, err := resolve(ctx, r, rec.Target)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			targets = append(targets, fleet.Target{
				URL: s.url(a, rec.Port), Weight: max(int(rec.Weight), 1), Backup: rec.Priority != records[0].Priority,
			})
		}
	}
	return targets, nil
}

// url is the address of an instance.
func (s *Source) url(a netip.Addr, port uint16) string {
	return s.cfg.Scheme + "://" + netip.AddrPortFrom(a.Unmap(), port).String()
}

// resolve asks for all addresses of a name; a name without any is no error.
func resolve(ctx context.Context, r *net.Resolver, name string) ([]netip.Addr, error) {
	addrs, err := r.LookupNetIP(ctx, "ip", name)
	if isNotFound(err) {
		return nil, nil
	}
	return addrs, err
}

// isNotFound says whether the answer was that there is no such name or record.
func isNotFound(err error) bool {
	e, ok := errors.AsType[*net.DNSError](err)
	return ok && e.IsNotFound && !e.IsTimeout && !e.IsTemporary
}
