// Package kubernetes finds a pool's instances in Kubernetes: the endpoints of one
// service that are ready, at one of its ports.
//
// client-go's reflectors list and watch the service's EndpointSlices and, where
// the configuration selects pods or reads their settings, the metadata of the
// pods; they resume a watch, list again when the server has forgotten where it
// was, and back off. They are used without clientset and informers, which would
// be several times the size. A store keeps what matters of each object. Changes
// are gathered for a tenth of a second, because the endpoints of a service are
// moved between slices in more than one step, and become one set of targets.
//
// Run owns one goroutine for each kind of object and waits for them. Nothing is
// reported before every kind was listed once. An API server that is lost keeps
// the last set and is logged once for each outage; a service without endpoints is
// an empty set, which fleet.Fleet keeps from having an effect. Tokens are read
// before each request, certificates after each failure, and are in no message.
package kubernetes

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/spillway/spillway/internal/fleet"
)

// Times.
const (
	settle     = 100 * time.Millisecond // changes are gathered for so long
	firstRetry = 250 * time.Millisecond
	maxRetry   = 30 * time.Second
)

// maxWarnings bounds what one change may put into the log, in lines.
const maxWarnings = 20

// Source is the fleet.Source of one service.
type Source struct {
	cfg  Config
	log  *slog.Logger
	last struct {
		targets  []fleet.Target
		known    bool // targets were reported
		warnings []string
		problem  string // logged last; "" is none
	}
}

var _ fleet.Source = (*Source)(nil)

// New returns a source that has asked nothing yet.
func New(cfg Config, log *slog.Logger) *Source {
	return &Source{cfg: cfg, log: log.With("component", "fleet", "source", "kubernetes", "service", cfg.Service)}
}

// Run implements fleet.Source. It is called once and returns nil when ctx ends.
func (s *Source) Run(ctx context.Context, update func([]fleet.Target)) error {
	ctx = klog.NewContext(ctx, logr.Discard()) // what client-go has to say is logged by outage
	changed := make(chan struct{}, 1)
	endpoints := newStore(readSlice, changed)
	pods := newStore(readPod, changed)
	wanted := []*kind{s.slices(endpoints)}
	if s.cfg.pods() {
		wanted = append(wanted, s.pods(pods))
	} else {
		pods.mu.known = true
	}
	n, follow := s.begin(ctx, wanted)
	if n == nil {
		return nil
	}
	defer n.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, r := range follow {
		wg.Go(func() { r.RunWithContext(ctx) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if !sleep(ctx, settle) {
			return nil
		}
		s.look(endpoints, pods, update)
	}
}

// begin reads the configuration of the connection, and makes what follows the
// kinds, until that succeeds. It returns nil when ctx ends.
func (s *Source) begin(ctx context.Context, wanted []*kind) (*connection, []*cache.Reflector) {
	for failures := 1; ; failures++ {
		n, follow, err := s.reflectors(ctx, wanted)
		if err == nil {
			return n, follow
		}
		if failures == 1 {
			s.log.Warn("kubernetes cannot be asked", "err", err)
		}
		if !sleep(ctx, backOff(failures)) {
			return nil, nil
		}
	}
}

// reflectors makes what follows the kinds over one connection. None of them runs.
func (s *Source) reflectors(ctx context.Context, wanted []*kind) (*connection, []*cache.Reflector, error) {
	n, err := s.cfg.connect()
	if err != nil {
		return nil, nil, err
	}
	var follow []*cache.Reflector
	for _, k := range wanted {
		r, err := k.reflector(ctx, n)
		if err != nil {
			n.close()
			return nil, nil, err
		}
		follow = append(follow, r)
	}
	return n, follow, nil
}

// look makes targets of what is known, logs what changed and passes a changed set
// on.
func (s *Source) look(endpoints *store[slice], pods *store[pod], update func([]fleet.Target)) {
	all, known, err := endpoints.values()
	selected, alsoKnown, podErr := pods.values()
	if !known || !alsoKnown {
		return
	}
	var (
		targets  []fleet.Target
		warnings []string
	)
	if err = errors.Join(err, podErr); err == nil {
		targets, warnings, err = s.cfg.targets(all, selected)
	}
	if err != nil {
		if s.last.problem != err.Error() {
			s.last.problem = err.Error()
			s.log.Error("kubernetes: the endpoints cannot be used; keeping the last known set", "err", err, "instances", len(s.last.targets))
		}
		return
	}
	s.last.problem = ""
	if !slices.Equal(warnings, s.last.warnings) {
		s.last.warnings = warnings
		for i, w := range warnings {
			if i == maxWarnings {
				s.log.Warn("kubernetes: more of the kind", "warnings", len(warnings)-i)
				break
			}
			s.log.Warn("kubernetes: " + w)
		}
	}
	if s.last.known && slices.Equal(targets, s.last.targets) {
		return
	}
	s.last.known, s.last.targets = true, targets
	update(slices.Clone(targets))
}

// backOff is the wait after the nth failure in a row: doubled each time, and
// between a half and the whole of it.
func backOff(n int) time.Duration {
	d := min(firstRetry<<min(n-1, 10), maxRetry)
	return d/2 + rand.N(d/2)
}

// sleep waits. It returns false when ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
