package bench

import (
	"context"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
)

// OverloadScenario is one question that is put to the governor in virtual time.
type OverloadScenario struct {
	Name, About string
	// Long ones are not part of all.
	Long bool

	play func(context.Context, *overloadBench) error
}

// AllScenarios names every scenario that is not long.
const AllScenarios = "all"

// OverloadScenarios lists the scenarios in the order of the evaluation plan.
func OverloadScenarios() []OverloadScenario {
	return []OverloadScenario{
		{Name: "E1", About: "below the capacity, 0.3 to 0.85x: no harm against direct", play: playBelow},
		{Name: "E2", About: "1.2 to 10x, steady: share of the optimum, vip unmoved", play: playSteady},
		{Name: "E3", About: "steps 0.7, 5, 0.7x, a sawtooth, bursts at random: share of the feasible, recovery", play: playSteps},
		{Name: "E4", About: "a burst of 5x for 60 s with clients that retry, 2 and 5 times, obedient and deaf: recovery", play: playStorm},
		{Name: "E5", About: "floods of a class or a tenant: floors, Jain's index, what the others lose", play: playFloods},
		{Name: "E6", About: "1 of 4 engines killed and restored; all killed, and cold when they come back", play: playKills},
		{Name: "E7", About: "uneven engines; one slower by ten in mid-run; one that stands still", play: playUneven},
		{Name: "E8", About: "answers 5x, prompts 10x longer from mid-run on, against the best static limit", play: playShifts},
		{Name: "E9", About: "1, 2 and 4 gateways with unequal shares of the traffic", play: playGateways},
		{Name: "E10", About: "limits that nobody tells: 48 sequences, 60k tokens of memory; other chunks, other speeds", play: playHidden},
		{Name: "E11", About: "slow readers, and clients of which a fifth hangs up in mid-stream", play: playReaders},
		{Name: "E12", About: "24 hours at 3x: drift, memory, counters", Long: true, play: playDay},
		{Name: "tickets", About: "return tickets: kept promises; forged, early and reused ones are worth nothing", play: playTickets},
	}
}

// The requirements of the scenarios.
const (
	goodTransfer = 0.90 // of the optimum, of engines and traces that are unlike
	goodSlower   = 0.83 // the same of engines at half the speed
	ofShifted    = 0.97 // of the best static limit, when prompts change
	goodJain     = 0.95
	floodCost    = 0.05 // of their service, to all others together
	recoverIn    = 30.0 // seconds
	sameLimits   = 0.10 // of one gateway's, for the sum of several's
	ofFloor      = 0.95 // of what a class's weight guarantees
	keptPromises = 0.95
)

// expect notes a requirement.
func (b *overloadBench) expect(name string, value float64, rel Relation, limit float64) {
	b.result.Verdicts = append(b.result.Verdicts, verdict(name, value, rel, limit, ""))
}

// with is the bench with other settings, for the same report.
func (b *overloadBench) with(change func(*Overload)) (*overloadBench, error) {
	o := *b.Overload
	change(&o)
	next := &overloadBench{Overload: &o, mix: b.mix, tuned: b.tuned, result: b.result}
	var err error
	if o.Trace != b.Trace {
		next.mix, err = o.Mix()
	}
	return next, err
}

// loads are those of a scenario, the most telling one first.
func (b *overloadBench) loads(all ...float64) []float64 {
	if b.Short {
		return all[:1]
	}
	return all
}

// labelled is a trial of spillway.
func (b *overloadBench) labelled(label string, x float64, change func(*trial)) trial {
	t := b.trial(SystemSpillway, x)
	t.label = label
	if change != nil {
		change(&t)
	}
	return t
}

// playBelow is E1. Arrivals are Poisson: a trace that is below the capacity in the
// mean is above it for minutes.
func playBelow(ctx context.Context, b *overloadBench) error {
	for _, x := range b.loads(0.7, 0.3, 0.5, 0.85) {
		steady := func(t *trial) { t.phases = []Phase{{x, x, t.Duration}} }
		blind := b.trial(SystemDirect, x)
		steady(&blind)
		direct, _, err := b.runs(ctx, blind)
		if err != nil {
			return err
		}
		s, _, err := b.runs(ctx, b.labelled("", x, steady))
		if err != nil {
			return err
		}
		at := fmt.Sprintf("E1 spillway %gx: ", x)
		b.result.Verdicts = append(b.result.Verdicts, unharmed(at, s, &direct)...)
		b.expect(at+"mean TTFT / direct", s.TTFT.Mean/direct.TTFT.Mean, AtMost, 1+noHarm)
	}
	return nil
}

// playSteady is E2.
func playSteady(ctx context.Context, b *overloadBench) error {
	b, err := b.with(func(o *Overload) { o.Loads = []float64{0.8, 1.2, 2, 3, 5, 10} })
	if b.Short {
		b.Loads = []float64{0.8, 2, 10}
	}
	if err != nil {
		return err
	}
	return b.compare(ctx)
}

// The load around a burst, and the burst.
const (
	calmLoad  = 0.7
	burstLoad = 5
)

// burst is a load below the capacity with a burst in it, and the burst as a trigger.
func (b *overloadBench) burst() ([]Phase, Trigger) {
	begin, end := b.warmup()+time.Minute, b.warmup()+2*time.Minute
	if b.Duration < shortRun { // all of it shorter
		begin, end = b.warmup()+(b.Duration-b.warmup())/4, b.warmup()+(b.Duration-b.warmup())/2
	}
	return []Phase{
		{calmLoad, calmLoad, begin}, {burstLoad, burstLoad, end - begin}, {calmLoad, calmLoad, b.Duration - end},
	}, Trigger{begin, end}
}

// recovers requires that the goodput was back soon in every run.
func (b *overloadBench) recovers(name string, runs []*played) {
	back := 0
	var took []string
	for _, r := range runs {
		if r.Recovered && r.Recovery.Seconds() <= recoverIn {
			back++
		}
		took = append(took, map[bool]string{true: fmt.Sprintf("%gs", r.Recovery.Seconds()), false: "never"}[r.Recovered])
	}
	b.say("%s: back after %s", name, strings.Join(took, ", "))
	b.expect(fmt.Sprintf("%s: seeds back to 95%% within %gs", name, recoverIn), float64(back), Exactly, float64(len(runs)))
}

// playSteps is E3. What is feasible there nobody reaches, since it knows what comes;
// the bar is the best static limit.
func playSteps(ctx context.Context, b *overloadBench) error {
	step, trigger := b.burst()
	var saw []Phase
	for left := b.Duration; left > 0; left -= time.Minute {
		saw = append(saw, Phase{0.5, 3, min(left, time.Minute)})
	}
	best, err := b.bestStatic(ctx, nil)
	if err != nil {
		return err
	}
	for _, shape := range []struct {
		name    string
		most    float64
		phases  func(seed uint64) []Phase
		trigger Trigger
	}{
		{"step to 5x", burstLoad, func(uint64) []Phase { return step }, trigger},
		{"sawtooth 0.5-3x", 3, func(uint64) []Phase { return saw }, Trigger{}},
		{"bursts at random 0.5/3x", 3, func(seed uint64) []Phase { return b.modulated(seed, 0.5, 3) }, Trigger{}},
	} {
		ratios := map[string]float64{}
		static := SystemSpillway + "-" + admission.LimitStatic
		for _, system := range []string{static, SystemSpillway} {
			t := b.trial(system, shape.most)
			t.label, t.tuned.static = shape.name, best
			t.terms = func(terms *Terms) { terms.Trigger = shape.trigger }
			trials := t.seeds()
			for i := range trials {
				trials[i].phases = shape.phases(trials[i].seed)
			}
			_, runs, err := b.all(ctx, trials)
			if err != nil {
				return err
			}
			ratios[system] = pool(runs).FeasibleRatio
			if system == SystemSpillway && shape.trigger.End > 0 {
				b.recovers("E3 "+shape.name, runs)
			}
		}
		b.expect(fmt.Sprintf("E3 %s: goodput / best static limit (%d)", shape.name, best), ratios[SystemSpillway]/ratios[static], AtLeast, ofBestStatic)
	}
	return nil
}

// sojourn is the mean time in a state of a modulated load.
const sojourn = 10 * time.Second

// modulated is a Poisson load that switches between two rates at random.
func (b *overloadBench) modulated(seed uint64, low, high float64) []Phase {
	random := rand.New(rand.NewPCG(seed, 0x33))
	var out []Phase
	for left := b.Duration; left > 0; {
		d := min(left, max(100*time.Millisecond, time.Duration(random.ExpFloat64()*float64(sojourn)).Round(time.Millisecond)))
		x := low
		if len(out)%2 == 1 {
			x = high
		}
		out = append(out, Phase{x, x, d})
		left -= d
	}
	return out
}

// stormSeeds are the runs of a storm: metastable states are rare.
const stormSeeds = 2

// storm is how clients come back.
type storm struct {
	retries int
	deaf    bool
}

// playStorm is E4.
func playStorm(ctx context.Context, b *overloadBench) error {
	phases, trigger := b.burst()
	seeds := stormSeeds * b.Seeds
	storms := []storm{{2, false}, {5, true}, {5, false}, {2, true}}
	if b.Short {
		seeds, storms = b.Seeds, storms[:2]
	}
	for _, c := range storms {
		v, err := b.with(func(o *Overload) { o.Retries, o.Seeds = c.retries, seeds })
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%d retries", c.retries)
		if c.deaf {
			name += ", deaf"
		}
		_, runs, err := v.runs(ctx, v.labelled(name, burstLoad, func(t *trial) {
			t.phases, t.terms = phases, func(terms *Terms) { terms.Trigger = trigger }
			t.world = func(w *World) { w.Clients.Deaf = c.deaf }
		}))
		if err != nil {
			return err
		}
		v.recovers("E4 burst of 5x, "+name, runs)
	}
	return nil
}

// playUneven is E7.
func playUneven(ctx context.Context, b *overloadBench) error {
	v, err := b.with(func(o *Overload) { o.Engines, o.Speeds = 4, []float64{1, 1, 0.5, 0.25} })
	if err != nil {
		return err
	}
	for _, x := range b.loads(2, 5) {
		s, _, err := v.runs(ctx, v.labelled("speeds 1/1/0.5/0.25", x, nil))
		if err != nil {
			return err
		}
		b.expect(fmt.Sprintf("E7 speeds 1/1/0.5/0.25, %gx: goodput / optimum", x), *s.GoodputRatio, AtLeast, goodTransfer)
	}
	middle := b.warmup() + (b.Duration-b.warmup())/2
	for _, slow := range []struct {
		name   string
		do     func(*World)
		factor float64
		until  time.Duration
	}{
		{"one 10x slower from mid-run", func(w *World) { w.Slow(0, 10) }, 10, b.Duration},
		{"one stands still for 20 s", func(w *World) { w.Hold(0, stands) }, math.Inf(1), middle + stands},
	} {
		s, _, err := b.runs(ctx, b.labelled(slow.name, 2, func(t *trial) {
			t.world = func(w *World) { w.Faults = append(w.Faults, Fault{middle, slow.do}) }
			t.terms = func(terms *Terms) {
				broken := append([]Server{}, terms.Fleet[1:]...)
				if rest := terms.Fleet[0].speed() / slow.factor; rest > 0 {
					broken = append(broken, Server{terms.Fleet[0].Batching, rest})
				}
				terms.Changes = []Change{{middle, broken}, {slow.until, terms.Fleet}}
			}
		}))
		if err != nil {
			return err
		}
		b.expect("E7 "+slow.name+": goodput / feasible", *s.FeasibleRatio, AtLeast, goodTransfer)
		b.expect("E7 "+slow.name+": vip attainment", *s.Classes[inference.VIP.String()].SLOAttainment, AtLeast, vipAttained)
	}
	return nil
}

// stands is how long an engine stands still in E7.
const stands = 20 * time.Second

// playShifts is E8.
func playShifts(ctx context.Context, b *overloadBench) error {
	middle := b.warmup() + (b.Duration-b.warmup())/2
	for _, shift := range []struct {
		name            string
		prompts, answer int
	}{{"answers 5x longer", 1, 5}, {"prompts 10x longer", 10, 1}} {
		change := func(t *trial) {
			t.arrivals = changed(func(a *Arrival) {
				if a.At >= middle {
					a.Prompt, a.Output = shift.prompts*a.Prompt, shift.answer*a.Output
				}
			})
			t.terms = func(terms *Terms) {
				var longer []Lengths
				for _, l := range t.mix.Lengths {
					longer = append(longer, Lengths{shift.prompts * l.Prompt, shift.answer * l.Output})
				}
				terms.Lengths = append(append([]Lengths{}, t.mix.Lengths...), longer...)
			}
		}
		best, err := b.bestStatic(ctx, change)
		if err != nil {
			return err
		}
		static := b.trial(SystemSpillway+"-"+admission.LimitStatic, searchLoad)
		static.label, static.tuned.static = shift.name, best
		change(&static)
		bar, _, err := b.runs(ctx, static)
		if err != nil {
			return err
		}
		s, _, err := b.runs(ctx, b.labelled(shift.name, searchLoad, change))
		if err != nil {
			return err
		}
		b.expect(fmt.Sprintf("E8 %s: goodput / best static limit (%d)", shift.name, best), *s.GoodputRatio / *bar.GoodputRatio, AtLeast, ofShifted)
	}
	return nil
}

// changed applies a change to every arrival.
func changed(change func(*Arrival)) func(iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
	return func(in iter.Seq2[Arrival, error]) iter.Seq2[Arrival, error] {
		return func(yield func(Arrival, error) bool) {
			for a, err := range in {
				change(&a)
				if !yield(a, err) {
					return
				}
			}
		}
	}
}

// playGateways is E9.
func playGateways(ctx context.Context, b *overloadBench) error {
	for _, x := range b.loads(2, 5) {
		alone := 0.0
		for _, shares := range [][]float64{{1}, {0.7, 0.3}, {0.55, 0.25, 0.15, 0.05}} {
			name := fmt.Sprintf("%d gateways", len(shares))
			s, runs, err := b.runs(ctx, b.labelled(name, x, func(t *trial) {
				t.world = func(w *World) { w.Gateways, w.Shares = len(shares), shares }
			}))
			if err != nil {
				return err
			}
			if len(shares) == 1 {
				alone = pool(runs).limits
				continue
			}
			at := fmt.Sprintf("E9 %s %v, %gx: ", name, shares, x)
			b.expect(at+"goodput / optimum", *s.GoodputRatio, AtLeast, goodTransfer)
			off := pool(runs).limits/alone - 1
			b.expect(at+"sum of limits off one gateway's", max(off, -off), AtMost, sameLimits)
		}
	}
	return nil
}

// playHidden is E10.
func playHidden(ctx context.Context, b *overloadBench) error {
	for _, engine := range []struct {
		name  string
		args  []string
		speed float64
		good  float64
	}{
		{"48 sequences", []string{"--max-seqs", "48"}, 1, goodTransfer},
		{"KV 60k", []string{"--kv-tokens", "60000"}, 1, goodTransfer},
		{"chunk 2048", []string{"--chunk", "2048"}, 1, goodTransfer},
		{"chunk 512", []string{"--chunk", "512"}, 1, goodTransfer},
		{"2x faster", nil, 2, goodTransfer},
		{"2x slower", nil, 0.5, goodSlower},
	} {
		v, err := b.with(func(o *Overload) {
			o.Args, o.Speeds = append(append([]string{}, b.Args...), engine.args...), make([]float64, o.Engines)
			for i := range o.Speeds {
				o.Speeds[i] = engine.speed
			}
		})
		if err != nil {
			return err
		}
		for _, x := range b.loads(3, 1.2, 10) {
			s, _, err := v.runs(ctx, v.labelled(engine.name, x, nil))
			if err != nil {
				return err
			}
			b.expect(fmt.Sprintf("E10 %s, %gx: goodput / optimum", engine.name, x), *s.GoodputRatio, AtLeast, engine.good)
		}
	}
	return nil
}
