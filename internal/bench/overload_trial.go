package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// trial is one run of one system in virtual time.
type trial struct {
	*Overload
	mix    Mix
	system string
	load   float64
	seed   uint64
	tuned  tuning
	label  string  // distinguishes it from other trials of its system
	phases []Phase // the load as it changes; nil is load all the time
	keep   bool    // its attempts
	// What a scenario has of its own; nil is as it is.
	arrivals func(iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error]
	world    func(*World)
	terms    func(*Terms)
}

// tuning is what was found for the systems that cannot find it themselves.
type tuning struct {
	static         int64
	nginx, haproxy Proxy
}

// played is what became of a trial.
type played struct {
	Scored
	ttft, e2e map[inference.Class][]time.Duration
	missed    map[inference.Class]misses
	manners   [mannerKinds]mannerCount
	leaks     []string
	limits    float64 // mean over the window of the sum of all gateways' limits
	preempted uint64
	// Good work per second before a trigger, and in the minute from recoverIn after
	// its end on.
	before, after float64
	tries         []Try // kept where a scenario asks for them
}

// play runs the trial.
func (t *trial) play(ctx context.Context) (*played, error) {
	arrivals, err := t.requests()
	if err != nil {
		return nil, err
	}
	terms, err := t.Terms(t.mix)
	if err != nil {
		return nil, err
	}
	if t.terms != nil {
		t.terms(&terms)
	}
	w := &World{Servers: terms.Fleet, Seed: t.seed, Clients: Clients{Retries: t.Retries, Patience: patience()}}
	w.Arrivals = arrivals
	if t.arrivals != nil {
		w.Arrivals = t.arrivals(w.Arrivals)
	}
	t.place(w)
	if t.world != nil {
		t.world(w)
	}
	watch := &limitWatch{from: terms.From, to: terms.To}
	watch.follow(w)
	if t.Trail != nil {
		follow(w, t.Trail, fmt.Sprintf("%s %gx seed %d", t.system, t.load, t.seed))
	}
	tries, err := w.Run(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s at %gx, seed %d: %w", t.system, t.load, t.seed, err)
	}
	p := &played{Scored: Score(tries, terms), manners: w.manners, leaks: w.leaks(), limits: watch.mean()}
	if t.keep {
		p.tries = tries
	}
	judge := judging(tries, terms)
	if end := terms.Trigger.End + time.Duration(recoverIn)*time.Second; terms.Trigger.End > 0 && end < terms.To {
		p.before, p.after = judge.goodput(terms.From, terms.Trigger.Start), judge.goodput(end, min(terms.To, end+time.Minute))
	}
	p.ttft, p.e2e, p.missed = judge.ttft, judge.e2e, judge.missed()
	for _, e := range w.engines {
		p.preempted += e.batch.Load().Preemptions
	}
	return p, nil
}

// requests are the arrivals of the trial's load.
func (t *trial) requests() (iter.Seq2[Arrival, error], error) {
	if t.phases == nil {
		cfg, opts, err := t.Load(t.load, t.seed, t.mix)
		return planned(cfg, opts), err
	}
	cfgs, opts, err := t.Phases(t.phases, t.seed, t.mix)
	var all []iter.Seq2[Arrival, error]
	for _, cfg := range cfgs {
		all = append(all, planned(cfg, opts))
	}
	return merged(all), err
}

// place puts the system before the engines of a world.
func (t *trial) place(w *World) {
	switch t.system {
	case SystemDirect:
	case SystemNginx:
		w.Proxy = &t.tuned.nginx
	case SystemHAProxy:
		w.Proxy = &t.tuned.haproxy
	default:
		w.Gateways = 1
		w.Admission = t.Admission(t.limiter(t.system), max(1, t.tuned.static))
	}
}

// planned is the requests of a configuration as arrivals.
func planned(cfg load.Config, opts load.Options) iter.Seq2[Arrival, error] {
	return func(yield func(Arrival, error) bool) {
		for p, err := range load.Plan(cfg, opts) {
			class, _ := inference.ParseClass(p.Class) // without a class it is normal
			if !yield(Arrival{At: p.At, Class: class, Tenant: p.Tenant, Prompt: p.Prompt, Output: p.Output}, err) {
				return
			}
		}
	}
}

// merged is several streams of arrivals as one, in order of time.
func merged(streams []iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
	return func(yield func(Arrival, error) bool) {
		type head struct {
			next Arrival
			err  error
			more func() (Arrival, error, bool)
		}
		var heads []*head
		for _, s := range streams {
			more, stop := iter.Pull2(s)
			defer stop()
			if a, err, ok := more(); ok {
				heads = append(heads, &head{a, err, more})
			}
		}
		for len(heads) > 0 {
			i := 0
			for n, h := range heads {
				if h.next.At < heads[i].next.At {
					i = n
				}
			}
			h := heads[i]
			if !yield(h.next, h.err) {
				return
			}
			var ok bool
			if h.next, h.err, ok = h.more(); !ok {
				heads = slices.Delete(heads, i, i+1)
			}
		}
	}
}

// judging is a scorer that has seen the attempts but has not finished.
func judging(tries []Try, terms Terms) *scorer {
	s := &scorer{
		Terms: terms, out: Scored{Classes: map[inference.Class]ClassScore{}, Tenants: map[string]TenantScore{}},
		ttft: map[inference.Class][]time.Duration{}, e2e: map[inference.Class][]time.Duration{},
	}
	s.group(tries)
	for _, r := range s.requests {
		s.request(r)
	}
	return s
}

// misses are why logical requests were not good.
type misses struct{ refused, cut, late, slow int }

// missed counts them by class.
func (s *scorer) missed() map[inference.Class]misses {
	out := make(map[inference.Class]misses)
	for _, r := range s.requests {
		last := r.tries[len(r.tries)-1]
		if !s.inside(r.tries[0].At) || slices.ContainsFunc(r.tries, s.good) {
			continue
		}
		m := out[last.Class]
		switch {
		case last.Refused:
			m.refused++
		case !last.Whole:
			m.cut++
		case last.First-last.At > s.TTFT[last.Class]:
			m.late++
		default:
			m.slow++
		}
		out[last.Class] = m
	}
	return out
}

// limitEvery is how often limits are looked at.
const limitEvery = time.Second

// limitWatch follows the sum of the gateways' limits.
type limitWatch struct {
	from, to time.Duration
	sum      float64
	n        int
}

func (l *limitWatch) follow(w *World) {
	for at := l.from; at < l.to; at += limitEvery {
		w.Faults = append(w.Faults, Fault{at, func(w *World) {
			l.n++
			for _, g := range w.gateways {
				for _, i := range g.fleet.Snapshot().Regions[0].Pools[0].Instances {
					limit, _, _ := i.Live.Limits()
					l.sum += float64(limit)
				}
			}
		}})
	}
}

func (l *limitWatch) mean() float64 { return l.sum / float64(max(1, l.n)) }

// trailEvery is how often a trail is written.
const trailEvery = 5 * time.Second

// follow writes what gateways and engines do.
func follow(w *World, out io.Writer, name string) {
	var look func(*World)
	look = func(w *World) {
		for n, g := range w.gateways {
			s := g.governor.Snapshot()
			fmt.Fprintf(out, "%s %6.1fs gateway %d: waiting %d pressure %.2f step %v tickets %d\n", name, w.now.Seconds(), n+1, s.Waiting, s.Pressure, s.Step, s.Tickets)
			for i, inst := range g.fleet.Snapshot().Regions[0].Pools[0].Instances {
				limit, window, memory := inst.Live.Limits()
				r, b := inst.Live.Meter().Read(w.clock().UnixNano()), w.engines[i].batch.Load()
				fmt.Fprintf(out, "  engine %d: %d of %d in flight, prompts %d of %d, held %d of %d, slow %d of %d; runs %d, queues %d, KV %d, preempted %d\n",
					i+1, inst.Live.InFlight(), limit, inst.Live.PromptTokens(), window, r.Context, memory, r.Slow, r.Ended, b.Running, b.Waiting, b.KVUsed, b.Preemptions)
			}
		}
		if w.arriving {
			w.at(w.now+trailEvery, func() { look(w) })
		}
	}
	w.Faults = append(w.Faults, Fault{trailEvery, look})
}

// leaks lists the counters that are not back at zero when everything has ended.
func (w *World) leaks() []string {
	var found []string
	note := func(n int64, format string, args ...any) {
		if n != 0 {
			found = append(found, fmt.Sprintf("%d %s", n, fmt.Sprintf(format, args...)))
		}
	}
	note(int64(len(w.open)), "attempts open")
	for i, e := range w.engines {
		l := e.batch.Load()
		note(int64(l.Running+l.Waiting), "sequences at engine %d", i+1)
		note(int64(l.KVUsed), "KV tokens at engine %d", i+1)
		note(int64(len(e.running)), "attempts at engine %d", i+1)
	}
	for n, g := range w.gateways {
		if !g.governor.Idle() {
			note(1, "governor %d not idle", n+1)
		}
		s, r := g.governor.Snapshot(), g.fleet.Snapshot().Regions[0]
		note(s.Waiting, "requests waiting at gateway %d", n+1)
		note(s.Bytes, "bytes waiting at gateway %d", n+1)
		note(int64(s.Tickets), "tickets out at gateway %d", n+1)
		note(r.Live.InFlight()+r.Pools[0].Live.InFlight(), "leases of region and pool at gateway %d", n+1)
		note(r.Live.PromptTokens()+r.Pools[0].Live.PromptTokens(), "prompt tokens of region and pool at gateway %d", n+1)
		for i, inst := range r.Pools[0].Instances {
			note(inst.Live.InFlight(), "leases of engine %d at gateway %d", i+1, n+1)
			note(inst.Live.PromptTokens(), "prompt tokens of engine %d at gateway %d", i+1, n+1)
			note(inst.Live.Meter().Read(w.clock().UnixNano()).Context, "context tokens of engine %d at gateway %d", i+1, n+1)
		}
	}
	return found
}

// playAll runs trials on all processors; the results are in the order of the trials.
func playAll(ctx context.Context, trials []trial) ([]*played, error) {
	out, errs := make([]*played, len(trials)), make([]error, len(trials))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(trials)) {
		wg.Go(func() {
			for i := range next {
				out[i], errs[i] = trials[i].play(ctx)
			}
		})
	}
	for i := range trials {
		next <- i
	}
	close(next)
	wg.Wait()
	return out, errors.Join(errs...)
}

// seeds repeats a trial with each seed.
func (t trial) seeds() []trial {
	var out []trial
	for i := range t.Seeds {
		one := t
		one.seed = t.Seed + uint64(i)
		out = append(out, one)
	}
	return out
}

// pool is several runs of one system at one load as one: rates are means, counts are
// sums, quantiles are those of all runs' requests, the longest starvation and the
// longest recovery count.
func pool(runs []*played) *played {
	out := &played{Scored: Scored{Classes: map[inference.Class]ClassScore{}, Tenants: map[string]TenantScore{}}}
	out.ttft, out.e2e = map[inference.Class][]time.Duration{}, map[inference.Class][]time.Duration{}
	out.missed = map[inference.Class]misses{}
	n := float64(len(runs))
	out.Triggered, out.Recovered = runs[0].Triggered, true
	for _, r := range runs {
		out.Window, out.Optimum = r.Window, r.Optimum
		for to, from := range map[*int]int{
			&out.Offered: r.Offered, &out.Answered: r.Answered, &out.Good: r.Good, &out.Refused: r.Refused, &out.Unservable: r.Unservable,
			&out.Returns.Returned: r.Returns.Returned, &out.Returns.Admitted: r.Returns.Admitted, &out.Returns.Kept: r.Returns.Kept,
			&out.Rejections.Latency.N: r.Rejections.Latency.N, &out.JainWindows: r.JainWindows,
		} {
			*to += from
		}
		for to, from := range map[*float64]float64{
			&out.OfferedWork: r.OfferedWork, &out.Load: r.Load, &out.GoodWork: r.GoodWork, &out.GoodRequests: r.GoodRequests, &out.GoodTokens: r.GoodTokens,
			&out.GoodputRatio: r.GoodputRatio, &out.Feasible: r.Feasible, &out.FeasibleRatio: r.FeasibleRatio, &out.ServedWork: r.ServedWork,
			&out.Wasted: r.Wasted, &out.limits: r.limits, &out.before: r.before, &out.after: r.after,
		} {
			*to += from / n
		}
		out.Jain += r.Jain * float64(r.JainWindows)
		out.Starvation = max(out.Starvation, r.Starvation)
		out.Recovery = max(out.Recovery, r.Recovery)
		out.Recovered = out.Recovered && r.Recovered
		out.leaks = append(out.leaks, r.leaks...)
		out.preempted += r.preempted
		for i, m := range r.manners {
			x := &out.manners[i]
			*x = mannerCount{x.fresh + m.fresh, x.freshAdmitted + m.freshAdmitted, x.shown + m.shown, x.shownAdmitted + m.shownAdmitted}
		}
		for class, f := range r.missed {
			x := out.missed[class]
			out.missed[class] = misses{x.refused + f.refused, x.cut + f.cut, x.late + f.late, x.slow + f.slow}
		}
		for class, c := range r.Classes {
			sum := out.Classes[class]
			sum.Offered, sum.Answered, sum.Good, sum.SLO = sum.Offered+c.Offered, sum.Answered+c.Answered, sum.Good+c.Good, c.SLO
			sum.GoodWork += c.GoodWork / n
			out.Classes[class] = sum
			out.ttft[class], out.e2e[class] = append(out.ttft[class], r.ttft[class]...), append(out.e2e[class], r.e2e[class]...)
		}
	}
	if out.JainWindows > 0 {
		out.Jain /= float64(out.JainWindows)
	}
	if out.Returns.Returned > 0 {
		out.Returns.Honesty = float64(out.Returns.Kept) / float64(out.Returns.Returned)
	}
	for class, c := range out.Classes {
		c.Attainment = float64(c.Good) / float64(max(1, c.Offered))
		c.TTFT, c.E2E = quantiles(out.ttft[class]), quantiles(out.e2e[class])
		out.Classes[class] = c
	}
	return out
}

// spread is mean and half of the 95% confidence interval of a figure over runs, by
// Student's t.
func spread(runs []*played, figure func(*played) float64) (mean, half float64) {
	values := make([]float64, len(runs))
	for i, r := range runs {
		values[i] = figure(r)
		mean += values[i] / float64(len(runs))
	}
	n := len(values)
	if n < 2 {
		return mean, 0
	}
	sum := 0.0
	for _, v := range values {
		sum += (v - mean) * (v - mean)
	}
	return mean, student(n-1) * math.Sqrt(sum/float64(n-1)/float64(n))
}

// student is the 0.975 quantile of Student's t, for the next smaller number of
// degrees of freedom that the table has.
func student(freedom int) float64 {
	table := []struct {
		freedom int
		t       float64
	}{{1, 12.71}, {2, 4.303}, {3, 3.182}, {4, 2.776}, {5, 2.571}, {7, 2.365}, {9, 2.262}, {14, 2.145}, {19, 2.093}, {29, 2.045}, {59, 2.001}}
	i := slices.IndexFunc(table, func(x struct {
		freedom int
		t       float64
	},
	) bool {
		return x.freedom > freedom
	})
	if i < 0 {
		i = len(table)
	}
	return table[max(0, i-1)].t
}
