// Package consul finds a pool's instances in Consul: the entries of one service
// that pass their checks, with weights, backups, schemes and paths from their
// tags.
//
// Blocking queries ask the agent's /v1/health/service: each says which index it
// has seen and is held back until there is a newer one. The rules are those that
// Consul documents: an index that goes backwards begins again at 0, one of 0
// counts as 1, and a loop whose queries come back at once is slowed down, here to
// two queries a second after a burst of four. The agent's answers are bounded in
// size, in time and in number of instances.
//
// Run works on its caller's goroutine and starts none that outlives a query. An
// error keeps the last set, is logged once for each outage, and is tried again
// after 250 ms, doubled each time up to 30 s, with jitter; then the first query
// is one that the agent answers at once, and the certificates are read again. The
// token is read before each query and is in no message. An answer without any
// instance is an empty set, which fleet.Fleet keeps from having an effect.
package consul

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// Times between queries.
const (
	firstRetry = 250 * time.Millisecond
	maxRetry   = 30 * time.Second
	paceGap    = 500 * time.Millisecond // between queries that are not held back
	paceBurst  = 4                      // as many of them at once
)

// maxWarnings bounds what one answer may put into the log, in lines.
const maxWarnings = 20

// Source is the fleet.Source of one service.
type Source struct {
	cfg  Config
	log  *slog.Logger
	last struct {
		targets  []fleet.Target
		known    bool // targets were reported
		warnings []string
		failures int // in a row
	}
}

var _ fleet.Source = (*Source)(nil)

// New returns a source that has asked nothing yet.
func New(cfg Config, log *slog.Logger) *Source {
	return &Source{cfg: cfg, log: log.With("component", "fleet", "source", "consul", "service", cfg.Service)}
}

// Run implements fleet.Source. It is called once and returns nil when ctx ends.
func (s *Source) Run(ctx context.Context, update func([]fleet.Target)) error {
	var (
		c     *client
		p     pace
		index uint64
	)
	defer func() { s.drop(c) }()
	for {
		if !sleep(ctx, p.delay(time.Now())) {
			return nil
		}
		a, err := s.ask(ctx, &c, index)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.drop(c)
			c, index = nil, 0
			if s.last.failures++; s.last.failures == 1 {
				s.log.Warn("consul cannot be asked; keeping the last known set", "err", err, "instances", len(s.last.targets))
			}
			if !sleep(ctx, backOff(s.last.failures)) {
				return nil
			}
			continue
		}
		index = next(index, a.index)
		s.report(a, update)
	}
}

// ask sends a query, by a new client if there is none.
func (s *Source) ask(ctx context.Context, c **client, index uint64) (answer, error) {
	if *c == nil {
		var err error
		if *c, err = s.cfg.newClient(); err != nil {
			return answer{}, err
		}
	}
	return (*c).ask(ctx, index)
}

// drop closes what a client holds.
func (s *Source) drop(c *client) {
	if c != nil {
		c.close()
	}
}

// report logs what changed and passes a changed set on.
func (s *Source) report(a answer, update func([]fleet.Target)) {
	if s.last.failures > 0 {
		s.last.failures = 0
		s.log.Info("consul answers again", "instances", len(a.targets))
	}
	if !slices.Equal(a.warnings, s.last.warnings) {
		s.last.warnings = a.warnings
		for i, w := range a.warnings {
			if i == maxWarnings {
				s.log.Warn("consul: more of the kind", "warnings", len(a.warnings)-i)
				break
			}
			s.log.Warn("consul: " + w)
		}
	}
	if s.last.known && slices.Equal(a.targets, s.last.targets) {
		return
	}
	s.last.known, s.last.targets = true, a.targets
	update(slices.Clone(a.targets))
}

// next is the index to ask with, after one was asked with and another came back
// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
func next(asked, got uint64) uint64 {
	switch {
	case got == 0: // a mistake of the server's; 1 is always safe, and does not spin
		return 1
	case got < asked:
		return 0
	}
	return got
}

// pace bounds how often queries are sent: the generic cell rate algorithm, with
// the time at which the bucket is empty again.
type pace struct{ empty time.Time }

// delay takes one query out of the bucket and says how long it must wait.
func (p *pace) delay(now time.Time) time.Duration {
	if p.empty.Before(now) {
		p.empty = now
	}
	wait := p.empty.Sub(now) - (paceBurst-1)*paceGap
	p.empty = p.empty.Add(paceGap)
	return max(wait, 0)
}

// backOff is the wait after the nth failure in a row: doubled each time, and
// between a half and the whole of it.
func backOff(n int) time.Duration {
	d := min(firstRetry<<min(n-1, 10), maxRetry)
	return d/2 + rand.N(d/2)
}

// sleep waits. It returns false when ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
