package bench

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// playFloods is E5.
func playFloods(ctx context.Context, b *overloadBench) error {
	for _, play := range []func(context.Context, *overloadBench) error{playClassFlood, playCrowd, playArena} {
		if err := play(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// playClassFlood floods with vip, and with normal.
func playClassFlood(ctx context.Context, b *overloadBench) error {
	// Of 4.5x two thirds are vip, two ninths normal, a ninth batch.
	s, runs, err := b.runs(ctx, b.labelled("vip flood", 4.5, func(t *trial) {
		t.arrivals = redrawn(b.Seed, []classPart{{inference.VIP, 3 / 4.5}, {inference.Normal, 1 / 4.5}, {inference.Batch, 0.5 / 4.5}})
	}))
	if err != nil {
		return err
	}
	b.expect("E5 vip flood 3x: goodput / optimum", *s.GoodputRatio, AtLeast, goodTransfer)
	all := pool(runs)
	// Under this pressure batch yields to a quarter of its weight (brownout.yield).
	weights := map[inference.Class]float64{inference.VIP: 8, inference.Normal: 4, inference.Batch: 0.25}
	for _, c := range []inference.Class{inference.VIP, inference.Normal, inference.Batch} {
		floor := weights[c] / 12.25 * all.GoodWork
		b.expect(fmt.Sprintf("E5 vip flood 3x: goodput of %s / its floor", c), all.Classes[c].GoodWork/floor, AtLeast, ofFloor)
	}
	s, _, err = b.runs(ctx, b.labelled("normal flood", 10, nil))
	if err != nil {
		return err
	}
	b.expect("E5 normal flood 10x: vip attainment", *s.Classes[inference.VIP.String()].SLOAttainment, AtLeast, vipAttained)
	return nil
}

// classPart is a class's part of the requests.
type classPart struct {
	class inference.Class
	share float64
}

// redrawn draws the classes again.
func redrawn(seed uint64, parts []classPart) func(iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
	return func(in iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
		random := rand.New(rand.NewPCG(seed, 0x55))
		return changed(func(a *Arrival) {
			x := random.Float64()
			for _, p := range parts {
				if a.Class = p.class; x < p.share {
					return
				}
				x -= p.share
			}
		})(in)
	}
}

// playCrowd has one tenant of fifty with half of the load, in three classes and in
// one. Tenants share inside a class, so with three of them who asks for much of a
// class that has room gets much.
func playCrowd(ctx context.Context, b *overloadBench) error {
	const tenants = 50
	for _, one := range []bool{true, false} {
		name := "one of 50 tenants with half of 4x"
		if one {
			name += ", all of them normal"
		}
		s, _, err := b.runs(ctx, b.labelled(name, 4, func(t *trial) {
			t.arrivals = func(in iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
				random := rand.New(rand.NewPCG(t.Seed, 0x66))
				return changed(func(a *Arrival) {
					a.Tenant = "tenant-1"
					if random.Float64() < 0.5 {
						a.Tenant = fmt.Sprintf("tenant-%d", 2+random.IntN(tenants-1))
					}
					if one {
						a.Class = inference.Normal
					}
				})(in)
			}
		}))
		if err != nil {
			return err
		}
		b.expect("E5 "+name+": Jain", *s.Jain, AtLeast, goodJain)
	}
	return nil
}

// playArena is the trace with unequal tenants, without and with a flood of one.
func playArena(ctx context.Context, b *overloadBench) error {
	v, err := b.with(func(o *Overload) { o.Trace = arenaTrace })
	if err != nil {
		return err
	}
	s, before, err := v.runs(ctx, v.labelled("arena", 4, nil))
	if err != nil {
		return err
	}
	b.expect("E5 arena-27clients 4x: Jain", *s.Jain, AtLeast, goodJain)
	b.expect("E5 arena-27clients 4x: goodput / optimum", *s.GoodputRatio, AtLeast, goodTransfer)
	one, _, err := v.runs(ctx, v.labelled("arena, one class", 4, func(t *trial) {
		t.arrivals = changed(func(a *Arrival) { a.Class = inference.Normal })
	}))
	if err != nil {
		return err
	}
	b.expect("E5 arena-27clients 4x, all of them normal: Jain", *one.Jain, AtLeast, goodJain)
	flooder, times := flooder(before)
	_, after, err := v.runs(ctx, v.labelled("arena, "+flooder+" floods", 4, func(t *trial) { t.arrivals = flooded(flooder, times) }))
	if err != nil {
		return err
	}
	total, worst := 0.0, 0.0
	for i := range before {
		all, most := Loss(before[i].Tenants, after[i].Tenants, flooder)
		total += all / float64(len(before))
		worst += most / float64(len(before))
	}
	b.say("%s sends %d times what it did; the others lose %.3f of their service, the one that loses most %.3f", flooder, times, total, worst)
	b.expect("E5 arena-27clients, flood of 10x: service that the others lose", total, AtMost, floodCost)
	return nil
}

// flooder finds who shall flood: the tenant that wants least of those which want
// more than their share already, so that the others lose nothing that was theirs
// when it takes its own; and how many times its requests make it ask for ten times
// its share.
func flooder(runs []*played) (name string, times int) {
	claims := map[string]claim{}
	for _, r := range runs {
		for n, t := range r.Tenants {
			c := claims[n]
			claims[n] = claim{c.demand + t.Offered, c.served + t.Served, 1}
		}
	}
	level := maxMin(claims)
	for n, c := range claims {
		if c.demand > level && (name == "" || c.demand < claims[name].demand || c.demand == claims[name].demand && n < name) {
			name = n
		}
	}
	return name, max(2, int(10*level/max(1e-9, claims[name].demand)+0.5))
}

// flooded repeats every request of a tenant.
func flooded(name string, times int) func(iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
	return func(in iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
		return func(yield func(Arrival, error) bool) {
			for a, err := range in {
				n := 1
				if a.Tenant == name {
					n = times
				}
				for range n {
					if !yield(a, err) {
						return
					}
				}
			}
		}
	}
}

// Times of the kills.
const (
	deadFor    = 30 * time.Second
	coldFactor = 5
	coldFor    = 20 * time.Second
)

// playKills is E6.
func playKills(ctx context.Context, b *overloadBench) error {
	at := b.warmup() + (b.Duration-b.warmup())/4
	back := at + deadFor
	for _, x := range b.loads(2, 0.7) {
		for _, n := range []int{1, b.Engines} {
			name := fmt.Sprintf("%d of %d killed", n, b.Engines)
			t := b.labelled(name, x, func(t *trial) {
				// A trace's own ups and downs would be taken for the outage's.
				t.phases = []Phase{{x, x, t.Duration}}
				t.world = func(w *World) { w.Faults = kills(n, n == b.Engines, at, back) }
				t.terms = func(terms *Terms) { terms.Changes, terms.Trigger = outage(terms.Fleet, n, n == b.Engines, at, back) }
			})
			_, runs, err := b.runs(ctx, t)
			if err != nil {
				return err
			}
			all := pool(runs)
			// A window of 10 s, which recovery looks at, differs from the next by more
			// than 5% at this load; a minute, over all seeds, does not.
			b.expect(fmt.Sprintf("E6 %s at %gx: goodput in the minute from %gs after it on / before", name, x, recoverIn), all.after/all.before, AtLeast, recoveredShare)
			if n < b.Engines { // what could be kept for after an outage of all, nobody need keep
				b.expect(fmt.Sprintf("E6 %s at %gx: goodput / feasible", name, x), all.FeasibleRatio, AtLeast, goodTransfer)
			}
		}
	}
	return nil
}

// kills ends the first n engines and restores them, cold if need be.
func kills(n int, cold bool, at, back time.Duration) []Fault {
	var out []Fault
	for i := range n {
		factor := 1.0
		if cold {
			factor = coldFactor
			out = append(out, Fault{back + coldFor, func(w *World) { w.Slow(i, 1) }})
		}
		out = append(out, Fault{at, func(w *World) { w.Kill(i) }}, Fault{back, func(w *World) { w.Restore(i, factor) }})
	}
	return out
}

// outage is the same for the optimum. The trigger ends when the engines are back,
// cold or not.
func outage(fleet []Server, n int, cold bool, at, back time.Duration) ([]Change, Trigger) {
	changes := []Change{{at, fleet[n:]}}
	if cold {
		var slow []Server
		for _, s := range fleet {
			slow = append(slow, Server{s.Batching, s.speed() / coldFactor})
		}
		changes = append(changes, Change{back, slow})
		back += coldFor
	}
	return append(changes, Change{back, fleet}), Trigger{at, back}
}

// playReaders is E11.
func playReaders(ctx context.Context, b *overloadBench) error {
	for _, c := range []struct {
		name   string
		change func(*rand.Rand, *Arrival)
	}{
		{"a fifth hangs up in mid-stream", func(r *rand.Rand, a *Arrival) {
			if r.Float64() < 0.2 {
				a.Leaves = time.Duration(r.Float64() * float64(5*time.Second))
			}
		}},
		{"a tenth reads 5 tokens a second", func(r *rand.Rand, a *Arrival) {
			if r.Float64() < 0.1 {
				a.Reads = 5
			}
		}},
	} {
		t := b.labelled(c.name, 2, func(t *trial) {
			// A trial's seeds share nothing but what is made for each.
			t.arrivals = func(in iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
				random := rand.New(rand.NewPCG(t.Seed, 0x77))
				return changed(func(a *Arrival) { c.change(random, a) })(in)
			}
		})
		_, runs, err := b.runs(ctx, t)
		if err != nil {
			return err
		}
		all := pool(runs)
		b.expect("E11 "+c.name+": work done / optimum", all.ServedWork/all.Optimum.Work, AtLeast, goodTransfer)
	}
	return nil
}

// playTickets is about the promises.
func playTickets(ctx context.Context, b *overloadBench) error {
	v, err := b.with(func(o *Overload) { o.Retries = 2 })
	if err != nil {
		return err
	}
	for _, x := range b.loads(2, 1.2, 5) {
		s, runs, err := v.runs(ctx, v.labelled("tickets", x, nil))
		if err != nil {
			return err
		}
		at := fmt.Sprintf("tickets %gx: ", x)
		all := pool(runs)
		b.expect(at+"holders admitted on return", float64(all.Returns.Admitted)/float64(max(1, all.Returns.Returned)), AtLeast, keptPromises)
		b.expect(at+"holders admitted within max(1 s, 20%) of the promise", all.Returns.Honesty, AtLeast, keptPromises)
		b.expect(at+"goodput / optimum", *s.GoodputRatio, AtLeast, goodRetries)
	}
	_, runs, err := v.runs(ctx, v.labelled("tricks", 5, func(t *trial) {
		t.arrivals = func(in iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
			random := rand.New(rand.NewPCG(t.Seed, 0x88))
			return changed(func(a *Arrival) { a.Manner = Manner(random.IntN(mannerKinds)) })(in)
		}
	}))
	if err != nil {
		return err
	}
	all := pool(runs)
	share := func(part, whole int) float64 { return float64(part) / float64(max(1, whole)) }
	ordinary := all.manners[Plain]
	b.expect("tickets 5x: echoed ones admitted", share(all.manners[Echoes].shownAdmitted, all.manners[Echoes].shown), AtLeast, keptPromises)
	for _, trick := range []struct {
		name   string
		manner Manner
	}{{"forged", Forges}, {"early", Early}, {"reused", Reuses}} {
		shown := all.manners[trick.manner]
		b.say("%s tickets of normal: %d of %d admitted; without a ticket %d of %d", trick.name, shown.shownAdmitted, shown.shown, ordinary.freshAdmitted, ordinary.fresh)
		b.expect("tickets 5x: "+trick.name+" ones admitted more often than requests without", share(shown.shownAdmitted, shown.shown)-share(ordinary.freshAdmitted, ordinary.fresh), AtMost, trickGain)
	}
	return nil
}

// trickGain is what a worthless ticket may seem to gain by chance.
const trickGain = 0.02

// day is a run that is judged by the hour.
type day struct {
	b      *overloadBench
	terms  Terms
	hour   time.Duration
	tries  []Try
	ratios []float64 // goodput / optimum
	heap   []float64 // MiB
}

// playDay is E12: a day in one run.
func playDay(ctx context.Context, b *overloadBench) error {
	hours, hour := 24, time.Hour
	if b.Short {
		hours, hour = 8, b.Duration
	}
	v, err := b.with(func(o *Overload) { o.Duration = time.Duration(hours) * hour })
	if err != nil {
		return err
	}
	t := v.labelled("24 h", 3, nil)
	t.seed = v.Seed
	d := &day{b: b, hour: hour}
	if d.terms, err = v.Terms(v.mix); err != nil {
		return err
	}
	w := &World{Servers: d.terms.Fleet, Seed: t.seed, Clients: Clients{Patience: patience()}}
	if w.Arrivals, err = t.requests(); err != nil {
		return err
	}
	t.place(w)
	w.Tell = func(try Try) { d.tries = append(d.tries, try) }
	for i := 1; i <= hours; i++ {
		w.Faults = append(w.Faults, Fault{time.Duration(i) * hour, d.strike})
	}
	if _, err := w.Run(ctx); err != nil {
		return err
	}
	first, last, n := min(4, hours/2), max(hours-4, hours/2), hours
	b.expect("E12 24 h at 3x: goodput / optimum", mean(d.ratios), AtLeast, goodVirtual)
	b.expect("E12 24 h at 3x: last four hours / first four", mean(d.ratios[last:n])/mean(d.ratios[:first]), AtLeast, noDrift)
	if !b.Short { // of which several run at once in a test
		b.expect("E12 24 h at 3x: heap after the last four hours / after the first four", mean(d.heap[last:n])/mean(d.heap[:first]), AtMost, noGrowth)
	}
	b.zero("E12 24 h at 3x", w.leaks())
	return nil
}

// What a day may change.
const (
	noDrift  = 0.99
	noGrowth = 1.2
)

// strike judges what has ended within the hour; what is still open belongs to the
// next one.
func (d *day) strike(w *World) {
	judged := d.terms
	judged.From, judged.To = w.now-d.hour+d.b.warmup(), w.now
	s := Score(d.tries, judged)
	d.tries = d.tries[:0]
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	d.ratios, d.heap = append(d.ratios, s.GoodputRatio), append(d.heap, float64(m.HeapAlloc)/(1<<20))
	d.b.say("hour %2d: goodput/optimum %.3f, vip %.4f, heap %.1f MiB", len(d.ratios), s.GoodputRatio, s.Classes[inference.VIP].Attainment, d.heap[len(d.heap)-1])
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(max(1, len(v)))
}
