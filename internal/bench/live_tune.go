package bench

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/admission"
)

// A search with processes: the best of some points of half a minute at twice the
// capacity, all with the same requests, which no other run has.
const (
	liveSearchLength = 30 * time.Second
	liveSearchWarmup = 10 * time.Second
	liveSearchDrain  = time.Second
)

// The grids of a search, beside the proxies' own: static limits are shares of the
// batch that the optimum has, then the middles between the best and its neighbours.
var staticShares = []float64{0.35, 0.5, 0.65, 0.8, 1}

// nginxGrid lists what nginx is tried with: shares of the capacity, in requests per
// second, and bursts.
func nginxGrid(capacity float64) (grid []Proxy) {
	for _, share := range []float64{0.7, 0.85, 1} {
		for _, burst := range []int{0, 20, 100} {
			grid = append(grid, Proxy{Rate: share * capacity, Burst: burst})
		}
	}
	return grid
}

// haproxyGrid lists what HAProxy is tried with: multiples of the best static limit,
// and lengths of the queue.
func haproxyGrid(limit int64) (grid []Proxy) {
	for _, share := range []float64{0.5, 0.75, 1, 2} {
		for _, queue := range []time.Duration{800 * time.Millisecond, 5 * time.Second, 30 * time.Second} {
			grid = append(grid, Proxy{MaxConn: max(1, int(share*float64(limit))), Queue: queue})
		}
	}
	return grid
}

// batchAtOptimum is the mean number of sequences of a server that does as much as
// the optimum says.
func batchAtOptimum(s Server, lengths []Lengths) float64 {
	m := meansOf(lengths)
	itl, seqs, kv, _ := s.steps(sloTPOT, m)
	return (min(itl, seqs, kv) - s.Batching.StepBase.Seconds()) / (m.work(s.Batching) / m.output)
}

// tried lists limits with what became of them.
func tried(found map[int64]float64) string {
	var parts []string
	for _, limit := range slices.Sorted(maps.Keys(found)) {
		parts = append(parts, fmt.Sprintf("%d: %.3f", limit, found[limit]))
	}
	return strings.Join(parts, ", ")
}

// tune searches for the settings of the systems that cannot find them themselves.
func (l *liveBench) tune(ctx context.Context) (best tuning, err error) {
	nginx, haproxy := slices.Contains(l.Systems, SystemNginx), slices.Contains(l.Systems, SystemHAProxy)
	static := slices.Contains(l.Systems, SystemSpillway+"-"+admission.LimitStatic) || l.Limiter == admission.LimitStatic
	if static || haproxy {
		if best.static, err = l.tuneStatic(ctx); err != nil {
			return best, err
		}
	}
	fleet, err := l.Fleet()
	if err != nil {
		return best, err
	}
	if nginx {
		grid := nginxGrid(NewOptimum(fleet, sloTPOT, l.mix.Lengths).Rate)
		best.nginx, err = l.tuneProxy(ctx, SystemNginx, grid)
	}
	if haproxy && err == nil {
		best.haproxy, err = l.tuneProxy(ctx, SystemHAProxy, haproxyGrid(best.static))
	}
	return best, err
}

// point plays one point of a search and returns its goodput by the optimum.
func (l *liveBench) point(ctx context.Context, system string, set tuning) (float64, error) {
	o := *l.Overload
	o.Duration, o.Warmup, o.Trail = liveSearchLength, liveSearchWarmup, nil
	one := *l
	one.Overload, one.drain = &o, liveSearchDrain
	t := liveTrial{trial: one.trial(system, searchLoad)}
	t.seed, t.tuned = searchSeed, set
	r, err := one.valid(ctx, &t)
	if err != nil {
		return 0, err
	}
	return r.GoodputRatio, nil
}

// tuneStatic finds the best static limit of an engine.
func (l *liveBench) tuneStatic(ctx context.Context) (int64, error) {
	fleet, err := l.Fleet()
	if err != nil {
		return 0, err
	}
	most := batchAtOptimum(fleet[0], l.mix.Lengths)
	var limits []int64
	for _, share := range staticShares {
		limits = append(limits, max(1, int64(math.Round(share*most))))
	}
	found := map[int64]float64{}
	try := func() error {
		for _, limit := range limits {
			if _, known := found[limit]; known {
				continue
			}
			if found[limit], err = l.point(ctx, SystemSpillway+"-"+admission.LimitStatic, tuning{static: limit}); err != nil {
				return err
			}
			l.say("search: static_limit %d: %.3f", limit, found[limit])
		}
		return nil
	}
	best := func() int {
		at := 0
		for i := range limits {
			if found[limits[i]] > found[limits[at]] {
				at = i
			}
		}
		return at
	}
	if err := try(); err != nil {
		return 0, err
	}
	at := best()
	for _, near := range []int{at - 1, at + 1} {
		if near >= 0 && near < len(staticShares) {
			limits = append(limits, (limits[at]+limits[near])/2)
		}
	}
	if err := try(); err != nil {
		return 0, err
	}
	l.note("static limits tried at %dx, %v a point: %s", searchLoad, liveSearchLength, tried(found))
	return limits[best()], nil
}

// tuneProxy finds the best of a proxy's settings.
func (l *liveBench) tuneProxy(ctx context.Context, system string, grid []Proxy) (best Proxy, err error) {
	most := math.Inf(-1)
	for _, p := range grid {
		ratio, err := l.point(ctx, system, tuning{nginx: p, haproxy: p})
		if err != nil {
			return best, err
		}
		l.say("search: %s %v: %.3f", system, p, ratio)
		if ratio > most {
			best, most = p, ratio
		}
	}
	l.note("best of %d settings of %s at %dx, %v a point: %v (%.3f)", len(grid), system, searchLoad, liveSearchLength, best, most)
	return best, nil
}
