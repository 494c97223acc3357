package bench

import (
	"context"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/admission"
)

// The search for what a baseline does best with: short runs at twice the capacity
// with seeds that no other run has.
const (
	searchLoad   = 2
	searchLength = 150 * time.Second
	searchWarmup = 30 * time.Second
	searchSeed   = 1 << 40
	searchSeeds  = 3
)

// tune searches for the settings of the systems that need them.
func (b *overloadBench) tune(ctx context.Context) (tuning, error) {
	static := slices.Contains(b.Systems, SystemSpillway+"-"+admission.LimitStatic) || b.Limiter == admission.LimitStatic
	nginx, haproxy := slices.Contains(b.Systems, SystemNginx), slices.Contains(b.Systems, SystemHAProxy)
	if !static && !nginx && !haproxy {
		return tuning{}, nil
	}
	var best tuning
	var err error
	if best.static, err = b.bestStatic(ctx, nil); err != nil {
		return best, err
	}
	b.say("best static limit at %dx: %d", searchLoad, best.static)
	if nginx {
		fleet, _ := b.Fleet() // the settings are valid
		grid := nginxGrid(NewOptimum(fleet, sloTPOT, b.mix.Lengths).Rate)
		if best.nginx, err = b.bestProxy(ctx, SystemNginx, grid); err != nil {
			return best, err
		}
	}
	if haproxy {
		if best.haproxy, err = b.bestProxy(ctx, SystemHAProxy, haproxyGrid(best.static)); err != nil {
			return best, err
		}
	}
	return best, nil
}

// search plays a system with each setting and returns the mean goodput ratios.
// change, where it is not nil, is what a scenario changes.
func (b *overloadBench) search(ctx context.Context, system string, settings []tuning, change func(*trial)) ([]float64, error) {
	o := *b.Overload
	o.Seeds, o.Seed, o.Retries, o.Trail = searchSeeds, searchSeed, 0, nil
	if change == nil {
		o.Duration, o.Warmup = searchLength, searchWarmup
	}
	if b.Short {
		o.Seeds = 1
	}
	var trials []trial
	for _, set := range settings {
		t := trial{Overload: &o, mix: b.mix, system: system, load: searchLoad, tuned: set}
		if change != nil {
			change(&t)
		}
		trials = append(trials, t.seeds()...)
	}
	runs, err := playAll(ctx, trials)
	if err != nil {
		return nil, err
	}
	out := make([]float64, len(settings))
	for i, r := range runs {
		out[i/o.Seeds] += r.GoodputRatio / float64(o.Seeds)
	}
	return out, nil
}

// bestStatic finds the best static limit: among steps of a half from 8 on, then
// between the neighbours of the best.
func (b *overloadBench) bestStatic(ctx context.Context, change func(*trial)) (int64, error) {
	best, most := int64(1), -1.0
	try := func(limits []int64) error {
		var settings []tuning
		for _, l := range limits {
			settings = append(settings, tuning{static: l})
		}
		found, err := b.search(ctx, SystemSpillway+"-"+admission.LimitStatic, settings, change)
		for i, ratio := range found {
			if ratio > most {
				best, most = limits[i], ratio
			}
		}
		return err
	}
	if b.Short {
		err := try([]int64{16, 48, 96})
		return best, err
	}
	var coarse []int64
	for l := int64(8); l <= 512; l += max(1, l/2) {
		coarse = append(coarse, l)
	}
	if err := try(coarse); err != nil {
		return 0, err
	}
	step := max(1, best/8)
	fine := []int64{best - 2*step, best - step, best + step, best + 2*step, best + 3*step}
	err := try(slices.DeleteFunc(fine, func(l int64) bool { return l < 1 }))
	return best, err
}

// bestProxy finds the best of a proxy's settings.
func (b *overloadBench) bestProxy(ctx context.Context, system string, grid []Proxy) (Proxy, error) {
	if b.Short {
		grid = grid[len(grid)/2:][:1]
	}
	var settings []tuning
	for _, p := range grid {
		settings = append(settings, tuning{nginx: p, haproxy: p})
	}
	found, err := b.search(ctx, system, settings, nil)
	if err != nil {
		return Proxy{}, err
	}
	best := 0
	for i, ratio := range found {
		if ratio > found[best] {
			best = i
		}
	}
	b.say("best of %d settings of %s at %dx: %v", len(grid), system, searchLoad, grid[best])
	return grid[best], nil
}
