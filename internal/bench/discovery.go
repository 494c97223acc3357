package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// Constants of discovery: a load of short answers and streams over instances that
// come and go in a real registry.
const (
	discoveryJSONRate   = 60.0
	discoveryStreamRate = 20.0
	// flapGap is the time between two rounds of changes, and flapGrace that for which
	// an instance still answers after it was taken out of the registry, as servers do
	// that are asked to end.
	flapGap   = time.Second
	flapGrace = 2 * time.Second
	flapTick  = 100 * time.Millisecond
	// flapLeast is the share of the rounds that must have been played: a machine that
	// is too slow for them shows nothing.
	flapLeast = 0.5
)

// listing is a registry that a gateway finds its instances in.
type listing interface {
	// source is the pool's source of discovery, a line of YAML.
	source() string
	// write makes the registry say which instances there are. It returns when the
	// registry has taken it, and is called by one goroutine.
	write(ctx context.Context, in []bool) error
	// close ends the registry.
	close()
}

// playDiscovery lets the registry's instances come and go under load.
func playDiscovery(ctx context.Context, r *rig) error {
	f := &flapper{rng: rand.New(rand.NewPCG(r.Seed, 7)), in: make([]bool, r.Count), leaves: make([]time.Time, r.Count)}
	defer f.close()
	if err := r.startListing(ctx, f); err != nil {
		return err
	}
	if err := f.listing.write(ctx, f.in); err != nil {
		return err
	}
	var err error
	if r.gateway, err = startGatewayProcess(ctx, r, f.listing.source()); err != nil {
		return err
	}
	if err := r.expectKnown(ctx, "instances known at the start", f.in); err != nil {
		return err
	}
	r.say("%d instances in %s, half of them taken out or brought back each second for %v; those taken out answer for %v more", r.Count, r.Source, r.Duration, flapGrace)
	systems, err := r.playFlaps(ctx, f)
	if err != nil {
		return err
	}
	for i, what := range []string{"answers in one piece that failed", "streams that failed"} {
		r.expect(what, float64(failures(systems[i])), Exactly, 0, "")
	}
	r.expect("changes of instances in the registry", float64(f.changes), AtLeast, flapLeast*float64(r.Count/2)*(r.Duration-flapGap).Seconds(), "")
	r.expect("instances that got work", float64(f.busy()), AtLeast, 0.75*float64(r.Count), "")
	if err := r.expectKnown(ctx, "instances known at the end", f.in); err != nil {
		return err
	}
	m, err := r.gateway.metrics(ctx, r.gateway.admin)
	if err != nil {
		return err
	}
	r.say("%d rounds, the longest change of the registry took %v; %.0f attempts were made again elsewhere", f.rounds, f.longest.Round(time.Millisecond), m.sum("spillway_gateway_retries_total"))
	return r.expectZero(ctx)
}

// startListing starts the instances and the registry that the options name.
func (r *rig) startListing(ctx context.Context, f *flapper) (err error) {
	host := "127.0.0.1"
	switch r.Source = cmp.Or(r.Source, sourceConsul); r.Source {
	case sourceConsul:
	case sourceKubernetes:
		if host, err = listenApart(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown source %q; known are %v", r.Source, DiscoverySources())
	}
	for i := range r.Count {
		e, err := startScripted(host)
		if err != nil {
			return err
		}
		f.engines, f.in[i] = append(f.engines, e), true
	}
	if r.Source == sourceConsul {
		l, err := startConsulListing(ctx, r.dir, f.engines)
		if err == nil {
			f.listing = l
		}
		return err
	}
	l, err := startKubernetesListing(ctx, r.dir, f.engines)
	if err == nil {
		f.listing = l
	}
	return err
}

// DiscoverySources are the registries that the scenario discovery knows.
func DiscoverySources() []string { return []string{sourceConsul, sourceKubernetes} }

// playFlaps plays the loads while the instances come and go.
func (r *rig) playFlaps(ctx context.Context, f *flapper) ([]load.System, error) {
	whole := job{cfg: r.config("json", discoveryJSONRate, r.Duration)}
	whole.cfg.Request.Streamed, whole.cfg.Request.PromptTokens, whole.cfg.Request.OutputTokens = 0, 32, scriptedTokens
	streams := job{cfg: r.config("streams", discoveryStreamRate, r.Duration)}
	streams.cfg.Request.PromptTokens, streams.cfg.Request.OutputTokens = 32, scriptedTokens
	flapping, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- f.run(flapping) }() // ends with flapping, which is waited for
	systems, err := r.play(ctx, whole, streams)
	stop()
	return systems, errors.Join(err, <-ended)
}

// expectKnown notes that the gateway must know the instances of the registry, and
// no others.
func (r *rig) expectKnown(ctx context.Context, name string, in []bool) error {
	want, got := 0, 0
	for _, is := range in {
		if is {
			want++
		}
	}
	err := settled(ctx, func() (bool, error) {
		picture, err := r.gateway.fleet(ctx)
		if err != nil {
			return false, err
		}
		got = len(picture.Regions[0].Pools[0].Instances)
		return got == want, nil
	})
	r.expect(name, float64(got), Exactly, float64(want), "")
	return err
}

// flapper takes instances out of a registry and brings them back. One goroutine
// uses it at a time.
type flapper struct {
	engines []*scripted
	listing listing
	rng     *rand.Rand
	in      []bool      // in the registry
	leaves  []time.Time // when an instance that was taken out ends; zero: it does not

	rounds, changes int
	longest         time.Duration // that the registry took for a round
}

// run plays rounds until ctx ends. What ctx interrupts is made good, so that in
// says what the registry does.
func (f *flapper) run(ctx context.Context) error {
	tick := time.NewTicker(flapTick)
	defer tick.Stop()
	next := time.Now().Add(flapGap)
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			f.end(now)
			if now.Before(next) {
				continue
			}
			next = now.Add(flapGap)
			if err := f.round(context.WithoutCancel(ctx)); err != nil {
				return err
			}
		}
	}
}

// round lets a random half of the instances change sides. At least one stays.
func (f *flapper) round(ctx context.Context) error {
	var out []int
	for _, i := range f.rng.Perm(len(f.in))[:len(f.in)/2] {
		f.changes++
		if f.in[i] = !f.in[i]; !f.in[i] {
			out = append(out, i)
			continue
		}
		f.leaves[i] = time.Time{}
		if err := f.engines[i].start(); err != nil { // it answers before it is listed
			return err
		}
	}
	begun := time.Now()
	if err := f.listing.write(ctx, f.in); err != nil {
		return err
	}
	f.rounds, f.longest = f.rounds+1, max(f.longest, time.Since(begun))
	for _, i := range out {
		f.leaves[i] = time.Now().Add(flapGrace)
	}
	return nil
}

// end ends the instances whose grace is over. They finish what they have.
func (f *flapper) end(now time.Time) {
	for i, at := range f.leaves {
		if !at.IsZero() && now.After(at) {
			f.leaves[i] = time.Time{}
			f.engines[i].stop()
		}
	}
}

// busy is the number of instances that got work.
func (f *flapper) busy() int {
	n := 0
	for _, e := range f.engines {
		if e.served.Load() > 0 {
			n++
		}
	}
	return n
}

// close ends instances and registry.
func (f *flapper) close() {
	for _, e := range f.engines {
		e.stop()
	}
	for _, e := range f.engines {
		<-e.stop()
	}
	if f.listing != nil {
		f.listing.close()
	}
}
