package admission_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
)

const (
	ms   = time.Millisecond
	tpot = 50 * ms
)

// engine is a batching engine as a limiter sees it: its gap is a + b*n with n
// sequences, and prompts are read at a rate.
type engine struct {
	a, b    float64 // seconds
	prefill float64 // prompt tokens a second
	demand  float64 // requests that there are for it; 0 is without bound
	slots   float64 // sequences that run at once; 0 is without bound
}

// signals are those of a period in which n requests were in flight, each with a
// prompt of 200 tokens and 100 tokens to say.
func (e engine) signals(n float64) *admission.Signals {
	running := n
	if e.slots > 0 {
		running = min(n, e.slots)
	}
	gap := e.a + e.b*running
	gaps := running * 0.5 / gap
	firsts := max(1, gaps/100)
	s := &admission.Signals{
		TPOT: tpot, TTFT: time.Second, InFlight: n, Running: running, Waiting: true,
		Gap: seconds(gap), Gaps: gaps, Context: running * 250,
		Firsts: int64(firsts), Prompt: 200 * firsts, Ahead: 300,
	}
	s.Reading = seconds(min(0.5, s.Prompt/e.prefill))
	s.First = seconds(300/e.prefill + gap)
	s.Standing = 200 * (s.Reading.Seconds() / 0.5)
	if waits := n - running; waits > 0 { // whoever finds no place stands until another one ends
		s.Standing += 200 * waits
		s.Ahead += 200 * waits
		s.Reading = 500 * ms
		s.First = seconds(waits / (running / (100 * gap)))
	}
	return s
}

// seconds is a duration.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// run lets a limiter steer the engine for a number of periods and returns the
// limits that it set.
func (e engine) run(l admission.Limiter, n float64, periods int) (limits []float64) {
	for range periods {
		if e.demand > 0 {
			n = min(n, e.demand)
		}
		n = l.Next(e.signals(n)).Requests
		limits = append(limits, n)
	}
	return limits
}

// TestLearnedConverges on engines that it knows nothing of: to 0.8 of the objective,
// because no stream is judged here.
func TestLearnedConverges(t *testing.T) {
	for _, a := range []float64{0.001, 0.008, 0.020, 0.035} {
		for _, b := range []float64{0.00002, 0.0001, 0.0005, 0.001, 0.002} {
			target := 0.8 * tpot.Seconds()
			want := (target - a) / b
			if want < 3 || want > 4000 {
				continue
			}
			t.Run(fmt.Sprintf("%v+%vn", seconds(a), seconds(b)), func(t *testing.T) {
				limits := engine{a: a, b: b, prefill: 100_000}.run(admission.NewLearned(), 16, 200)
				// The mean gap is what counts: near a the limit moves it little, and
				// a limit is a whole number.
				off := func(n float64) float64 { return math.Abs(a+b*n-target) / target }
				settled := 0
				for i, n := range limits {
					if off(n) > 0.06 && math.Abs(n-want) > 0.6 {
						settled = i + 1
					}
				}
				// It grows by 0.15 a period at most; the error shrinks by a share that
				// is smaller where a is most of the gap.
				most := 9 + math.Log(max(want/16, 1))/math.Log(1.15) + 3/-math.Log(1-(1-a/target)/2)
				if settled > int(most) {
					t.Errorf("settled after %d periods, want %.0f to %.0f: %v", settled, want, most, limits)
				}
			})
		}
	}
}

// TestLearnedFollowsAnEngineThatSlowsDown to a third, and that recovers.
func TestLearnedFollowsAnEngineThatSlowsDown(t *testing.T) {
	l := admission.NewLearned()
	fast, slow := engine{a: 0.008, b: 0.0002, prefill: 50_000}, engine{a: 0.016, b: 0.0006, prefill: 20_000}
	n := fast.run(l, 16, 60)[59]
	about(t, "fast", n, 160)
	n = slow.run(l, n, 30)[29]
	about(t, "slow", n, 40)
	n = fast.run(l, n, 60)[59]
	about(t, "fast again", n, 160)
}

// TestLearnedDoesNotGrowUnused: without demand nothing is learned but that it is too
// much.
func TestLearnedDoesNotGrowUnused(t *testing.T) {
	l := admission.NewLearned()
	limits := engine{a: 0.008, b: 0.0001, prefill: 50_000, demand: 5}.run(l, 5, 100)
	if got := limits[99]; got != 16 {
		t.Errorf("with five requests of 16 the limit became %v", got)
	}
	limits = engine{a: 0.05, b: 0.002, prefill: 50_000, demand: 5}.run(l, 5, 100)
	if got := limits[99]; got > 5 {
		t.Errorf("five requests are too many, and the limit is %v", got)
	}
}

func TestLearnedHasBounds(t *testing.T) {
	l := admission.NewLearned()
	if got := (engine{a: 0.2, b: 0.01, prefill: 50_000}).run(l, 16, 100)[99]; got < 1 || got > 2 {
		t.Errorf("an engine that is never good enough has %v", got)
	}
	l = admission.NewLearned()
	if got := (engine{a: 1e-6, b: 1e-9, prefill: 1e9}).run(l, 16, 400)[399]; got != 4096 {
		t.Errorf("an engine that never slows down has %v, want 4096", got)
	}
	if got := l.Next(&admission.Signals{}); got.Requests != 4096 {
		t.Errorf("without any signal it became %v", got.Requests)
	}
	for range 1000 { // nothing that is never seen may change anything
		if got := l.Next(&admission.Signals{TPOT: tpot, TTFT: time.Second}); math.IsNaN(got.Requests+got.PromptTokens+got.Memory) || got.Requests != 4096 {
			t.Fatalf("got %+v", got)
		}
	}
}

// TestLearnedStartsSlowly when an instance comes back.
func TestLearnedStartsSlowly(t *testing.T) {
	l := admission.NewLearned()
	e := engine{a: 0.008, b: 0.0001, prefill: 50_000}
	n := e.run(l, 16, 80)[79]
	about(t, "before", n, 320)
	s := e.signals(n)
	s.Recovered = true
	n = l.Next(s).Requests
	if n < 35 || n > 55 {
		t.Errorf("an eighth, and a period of growth: got %v", n)
	}
	limits := e.run(l, n, 30)
	if limits[4] > 130 {
		t.Errorf("after 2.5 s it is at %v already", limits[4])
	}
	about(t, "15 s later", limits[29], 320)
}

// TestLearnedWithoutAnObjective steers to 85% of the throughput, but a slow engine to
// no more than three times its own gap.
func TestLearnedWithoutAnObjective(t *testing.T) {
	for name, c := range map[string]struct {
		a, b, want float64
	}{
		"fast": {0.006, 0.0002, (0.006/0.15 - 0.006) / 0.0002}, // 40 ms
		"slow": {0.040, 0.002, (3*0.042 - 0.040) / 0.002},
	} {
		t.Run(name, func(t *testing.T) {
			l := admission.NewLearned()
			e := engine{a: c.a, b: c.b, prefill: 50_000}
			step := func(n float64) float64 {
				s := e.signals(n)
				s.TPOT, s.TTFT = 0, 5*time.Second
				return l.Next(s).Requests
			}
			for range 10 { // alone: what the instance does without load
				step(1)
			}
			n := 16.0
			for range 100 {
				n = step(n)
			}
			if math.Abs(n-c.want) > 0.15*c.want {
				t.Errorf("got %v, want %.0f", n, c.want)
			}
		})
	}
}

// TestLearnedFollowsTheStreamsThatMissed their objective with the share of it that it
// steers to.
func TestLearnedFollowsTheStreamsThatMissed(t *testing.T) {
	e := engine{a: 0.008, b: 0.0002, prefill: 50_000}
	for name, c := range map[string]struct {
		slow int64 // of 100
		want float64
	}{
		"none":  {0, 0.97},
		"a few": {2, 0.80},
		"many":  {30, 0.40},
	} {
		t.Run(name, func(t *testing.T) {
			l, n := admission.NewLearned(), 16.0
			for range 400 {
				s := e.signals(n)
				s.Ended, s.Slow = 100, c.slow
				n = l.Next(s).Requests
			}
			about(t, "the limit", n, (c.want*tpot.Seconds()-e.a)/e.b)
		})
	}
	t.Run("too few to tell", func(t *testing.T) {
		l, n := admission.NewLearned(), 16.0
		for i := range 400 {
			s := e.signals(n)
			if i%40 == 0 {
				s.Ended, s.Slow = 1, 1
			}
			n = l.Next(s).Requests
		}
		if want := (0.8*tpot.Seconds() - e.a) / e.b; n < 0.9*want {
			t.Errorf("one of ten, a minute apart, took it to %v of %v", n, want)
		}
	})
}

func TestLearnedYieldsToBusyAnswers(t *testing.T) {
	for _, provider := range []bool{false, true} {
		l := admission.NewLearned()
		next := func(s admission.Signals) float64 {
			s.Provider, s.TPOT, s.TTFT = provider, tpot, time.Second
			return l.Next(&s).Requests
		}
		if got := next(admission.Signals{InFlight: 16}); got < 16 {
			t.Fatalf("provider %v: it begins with %v", provider, got)
		}
		if got := next(admission.Signals{InFlight: 11, Busy: 1}); got != 11 { // 0.9 of what was in flight, and one
			t.Errorf("provider %v: got %v, want 11", provider, got)
		}
		if got := next(admission.Signals{InFlight: 100, Busy: 5}); got != 10 {
			t.Errorf("provider %v: got %v, want 10", provider, got)
		}
		for range 100 {
			next(admission.Signals{InFlight: 5, Busy: 1})
		}
		if got := next(admission.Signals{Busy: 1}); got > 2 || got < 1 {
			t.Errorf("provider %v: at last %v", provider, got)
		}
	}
}

// TestLearnedOfAProvider grows by what is used and has neither a window nor memory,
// whatever the gaps.
func TestLearnedOfAProvider(t *testing.T) {
	l, n := admission.NewLearned(), 16.0
	s := engine{a: 1, b: 0.1, prefill: 100}.signals(50)
	for range 40 {
		s.Provider, s.InFlight = true, n
		got := l.Next(s)
		if got.PromptTokens != 0 || got.Memory != 0 || got.Requests <= n {
			t.Fatalf("got %+v after %v", got, n)
		}
		n = got.Requests
	}
	if n < 50 || n > 70 {
		t.Errorf("after 20 s of use the limit is %v, want about one more each period", n)
	}
	s.InFlight = 0.7 * n
	if got := l.Next(s).Requests; got != n {
		t.Errorf("unused it became %v, want %v", got, n)
	}
}

// TestLearnedFindsAQueueInTheEngine by first tokens that the prompts ahead do not
// explain, also when none comes at all.
func TestLearnedFindsAQueueInTheEngine(t *testing.T) {
	e := engine{a: 0.008, b: 0.0002, prefill: 10_000}
	for name, c := range map[string]struct {
		change func(*admission.Signals)
		falls  bool
	}{
		"in order":                    {func(*admission.Signals) {}, false},
		"late":                        {func(s *admission.Signals) { s.First, s.Gaps = 800*ms, 0 }, true},
		"late, but not for the class": {func(s *admission.Signals) { s.First, s.TTFT, s.Gaps = 800*ms, 5*time.Second, 0 }, false},
		"explained by a long prompt":  {func(s *admission.Signals) { s.First, s.Ahead, s.Gaps = 1500*ms, 15_000, 0 }, false},
		"no first token at all":       {func(s *admission.Signals) { s.Firsts, s.First, s.Gaps, s.Oldest = 0, 0, 0, 2*time.Second }, true},
		"a long prompt is being read": {func(s *admission.Signals) {
			s.Firsts, s.First, s.Gaps, s.Oldest, s.Standing = 0, 0, 0, 2*time.Second, 20_000
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := admission.NewLearned()
			n := e.run(l, 16, 60)[59]
			s := e.signals(n)
			c.change(s)
			got := l.Next(s).Requests
			if falls := got < 0.95*n; falls != c.falls {
				t.Errorf("from %v to %v", n, got)
			}
		})
	}
}

// TestTheWindow is what is read in an eighth of the budget, measured while there is
// something to read.
func TestTheWindow(t *testing.T) {
	const least = 1024
	signals := func(rate, first float64) admission.Signals {
		return admission.Signals{
			TPOT: tpot, TTFT: 5 * time.Second, InFlight: 8, Gap: 20 * ms, Gaps: 100,
			Firsts: 10, Prompt: 0.25 * rate, Reading: 250 * ms, Ahead: 500, First: seconds(500/rate + first),
		}
	}
	run := func(l *admission.Learned, s admission.Signals, periods int) (w float64) {
		for range periods {
			w = l.Next(&s).PromptTokens
		}
		return w
	}
	t.Run("before anything was read", func(t *testing.T) {
		if got := run(admission.NewLearned(), admission.Signals{TTFT: time.Minute}, 10); got != least {
			t.Errorf("got %v, want %v", got, least)
		}
	})
	t.Run("of a quick engine", func(t *testing.T) {
		about(t, "5 s / 8 at 20,000 a second", run(admission.NewLearned(), signals(20_000, 0.02), 30), 12_500)
	})
	t.Run("of a slow engine", func(t *testing.T) {
		if got := run(admission.NewLearned(), signals(500, 0.02), 30); got != least {
			t.Errorf("got %v, want %v", got, least)
		}
	})
	t.Run("of an engine far away", func(t *testing.T) { // 1.25 times what is on its way
		about(t, "2 s at 20,000 a second", run(admission.NewLearned(), signals(20_000, 2), 30), 50_000)
	})
	t.Run("of strict clients", func(t *testing.T) {
		s := signals(20_000, 0.02)
		s.TTFT = time.Second
		about(t, "1 s / 8", run(admission.NewLearned(), s, 30), 2_500)
	})
	t.Run("rises quicker than it falls", func(t *testing.T) {
		l := admission.NewLearned()
		run(l, signals(10_000, 0.02), 60)
		up := run(l, signals(40_000, 0.02), 40)
		if up < 20_000 {
			t.Errorf("20 s at four times the rate: got %v, want about 25,000", up)
		}
		if down := run(l, signals(10_000, 0.02), 10); down < 0.8*up {
			t.Errorf("5 s at a quarter: from %v to %v", up, down)
		}
		about(t, "long after", run(l, signals(10_000, 0.02), 1000), 6250)
	})
	t.Run("long prompts in lumps", func(t *testing.T) { // 8,000 tokens that count every third period
		l := admission.NewLearned()
		w := 0.0
		for i := range 300 {
			s := signals(16_000, 0.02)
			s.Firsts, s.Prompt, s.Reading, s.Ahead, s.First = 0, 0, 500*ms, 8000, 500*ms
			if i%3 == 0 {
				s.Firsts, s.Prompt = 3, 24_000
			}
			w = l.Next(&s).PromptTokens
		}
		about(t, "at 16,000 a second", w, 10_000)
	})
}

// TestLearnedFindsTheEndOfMemory. Where prompts stand although they could be read, the
// limit of tokens is below what was held, within seconds; one hiccup is none.
func TestLearnedFindsTheEndOfMemory(t *testing.T) {
	calm := engine{a: 0.008, b: 0.0002, prefill: 20_000}
	full := func(n float64) *admission.Signals { // 30 of n run, and hold 60,000 tokens
		s := calm.signals(n)
		s.Running, s.Standing, s.Context = 30, 4000, 64_000
		s.Firsts, s.First, s.Ahead, s.Reading = 4, 2*time.Second, 4200, 500*ms
		return s
	}
	bounded := func(l admission.Limits) bool { return l.Memory > 0 || l.Requests > 0 && l.Requests <= 40 }
	t.Run("in order", func(t *testing.T) {
		l, n := admission.NewLearned(), 16.0
		for range 400 {
			got := l.Next(calm.signals(n))
			if n = got.Requests; got.Memory != 0 {
				t.Fatalf("a limit of %v tokens", got.Memory)
			}
		}
		about(t, "the limit", n, 160)
	})
	t.Run("one hiccup", func(t *testing.T) {
		l := admission.NewLearned()
		n := calm.run(l, 16, 60)[59]
		l.Next(full(n))
		for i := range 20 {
			if got := l.Next(calm.signals(n)); bounded(got) {
				t.Fatalf("%d periods later: %+v", i, got)
			}
		}
	})
	t.Run("found", func(t *testing.T) {
		l := admission.NewLearned()
		n := calm.run(l, 16, 60)[59]
		var got admission.Limits
		periods := 0
		for ; !bounded(got) && periods < 20; periods++ {
			got = l.Next(full(n))
		}
		if periods > 6 || got.Memory < 0.8*60_000 || got.Memory > 60_000 {
			t.Errorf("after %d periods: %+v, want a limit below 60,000 tokens within 3 s", periods, got)
		}
	})
	t.Run("said by the engine", func(t *testing.T) {
		l := admission.NewLearned()
		n := calm.run(l, 16, 60)[59]
		s := calm.signals(n)
		s.Preempted, s.Context = 3, 50_000
		if got := l.Next(s); got.Memory < 40_000 || got.Memory > 50_000 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("never less than nothing", func(t *testing.T) {
		for _, context := range []float64{0, 10, 1000} {
			l := admission.NewLearned()
			n := calm.run(l, 16, 60)[59]
			var got admission.Limits
			for range 20 {
				s := full(n)
				s.Context, s.Standing = context, 5000 // all have just ended
				if got = l.Next(s); got.Memory < 0 || got.Requests < 1 {
					t.Fatalf("got %+v", got)
				}
			}
			for range 600 { // five minutes in order
				got = l.Next(calm.signals(n))
			}
			if got.Memory != 0 && got.Memory < 10_000 || got.Requests < 30 {
				t.Errorf("five minutes after a false alarm with %v tokens held: %+v", context, got)
			}
		}
	})
	t.Run("not what is left when answers that began together have ended", func(t *testing.T) {
		l := admission.NewLearned()
		n := calm.run(l, 16, 60)[59]
		s := calm.signals(n)
		s.Running, s.Context, s.Standing = 250, 70_000, 0
		l.Next(s)
		var got admission.Limits
		for range 20 {
			s := full(n)
			s.Running, s.Context, s.Standing = 20, 9000, 4000
			got = l.Next(s)
		}
		if got.Memory != 0 && got.Memory < 0.5*70_000 {
			t.Errorf("10 s after 70,000 tokens were held: %+v", got)
		}
	})
	t.Run("grows again and is forgotten", func(t *testing.T) {
		l := admission.NewLearned()
		n := calm.run(l, 16, 60)[59]
		var got admission.Limits
		for range 10 {
			got = l.Next(full(n))
		}
		before, forgotten := got.Memory, -1
		for i := range 400 {
			s := calm.signals(n)
			s.Context = got.Memory // used up to its end
			if got = l.Next(s); got.Memory == 0 && forgotten < 0 {
				forgotten = i
			}
			if i == 20 && (got.Memory < before || got.Memory > 1.1*before) {
				t.Errorf("10 s later: from %v to %v tokens", before, got.Memory)
			}
		}
		if forgotten < 120 || forgotten > 300 {
			t.Errorf("forgotten after %d periods, want about 240", forgotten)
		}
	})
}

// TestLearnedFindsTheEndOfASmallBatch: an engine that runs eight sequences and queues
// what is more.
func TestLearnedFindsTheEndOfASmallBatch(t *testing.T) {
	e := engine{a: 0.020, b: 0.0005, prefill: 5_000, slots: 8}
	l, n := admission.NewLearned(), 16.0
	var sum, last float64
	for i := range 240 {
		n = l.Next(e.signals(n)).Requests
		if i >= 40 {
			sum += n / 200
		}
		last = n
	}
	if sum < 7 || sum > 10 || last > 10 {
		t.Errorf("the limit is %v on average and %v at last, want about 8", sum, last)
	}
}

func TestStatic(t *testing.T) {
	l := admission.Static(7)
	l.Ended(admission.Ended{Busy: true})
	if got := l.Next(engine{a: 1, b: 1, prefill: 1}.signals(100)); got != (admission.Limits{Requests: 7}) {
		t.Errorf("got %+v", got)
	}
}

// serving is a stage at whose only instance streams run as an engine would let them.
type serving struct {
	*stage
	e       engine
	running []*stream
	slow    bool // streams take three times their time
}

// stream is one that runs.
type stream struct {
	c    *seat
	left int
	next time.Duration // since epoch
}

// step lets 10 ms pass with as many requests waiting as come.
func (s *serving) step() {
	for range 4 {
		s.enter(ask{prompt: 20, change: func(r *inference.Request) { r.Wait = time.Millisecond }})
	}
	for _, c := range s.granted {
		if !c.first {
			c.lease.Sent(s.now)
			c.token()
			s.running = append(s.running, &stream{c, 30, s.now.Sub(epoch)})
		}
	}
	s.granted = s.granted[:0]
	s.now = s.now.Add(10 * ms)
	gap := seconds(s.e.a + s.e.b*float64(len(s.running)))
	if s.slow {
		gap *= 3
	}
	kept := s.running[:0]
	for _, x := range s.running {
		for x.next+gap <= s.now.Sub(epoch) && x.left > 0 {
			x.next += gap
			x.left--
			x.c.lease.Token(epoch.Add(x.next))
		}
		if x.left > 0 {
			kept = append(kept, x)
			continue
		}
		x.c.lease.Usage = inference.Usage{PromptTokens: 20, CompletionTokens: 31}
		x.c.release()
	}
	s.running = kept
	if s.now.Sub(epoch)%(100*ms) == 0 {
		s.g.Tick(s.now)
	}
}

// TestTheLimitIsLearnedFromStreams that pass, end to end: leases, meter, law.
func TestTheLimitIsLearnedFromStreams(t *testing.T) {
	cfg := admission.Default()
	cfg.Classes.Normal.TPOT = tpot
	s := &serving{stage: newStage(t, cfg, layout(pool("p", 1, "m"))), e: engine{a: 0.010, b: 0.0010}}
	for range 3000 {
		s.step()
	}
	limit, window, memory := s.instance("p", 0).Live.Limits()
	if limit < 28 || limit > 42 { // 0.8 to 0.97 of the objective: 30 to 38.5
		t.Errorf("the limit is %d, want 30 to 38", limit)
	}
	if window < 1024 || memory != 0 {
		t.Errorf("window %d, memory %d", window, memory)
	}
	const of = `{instance="r/p/p-0:1"}`
	for series, want := range map[string]float64{"instance_limit": float64(limit), "instance_window_tokens": float64(window), "instance_memory_tokens": 0} {
		if got := metric(t, s.g, series+of); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	share := metric(t, s.g, "instance_objective_share"+of)
	if share <= 0.80 {
		t.Errorf("no stream has missed its objective, and the share is %v", share)
	}
	s.slow = true
	for range 1000 {
		s.step()
	}
	if got := metric(t, s.g, "instance_objective_share"+of); got >= share {
		t.Errorf("streams miss their objective, and the share went from %v to %v", share, got)
	}
	if got, _, _ := s.instance("p", 0).Live.Limits(); got > limit/2 {
		t.Errorf("the engine is three times slower, and the limit went from %d to %d", limit, got)
	}
	if got := metric(t, s.g, "instance_prefill_tokens_per_second"+of); math.IsNaN(got) {
		t.Error("no rate of prefill")
	}
}

// TestAnswersInOnePieceDoNotLowerTheLimit however long they take.
func TestAnswersInOnePieceDoNotLowerTheLimit(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 1, "m")))
	var runs []*seat
	for i := range 600 {
		for len(runs) < 8 {
			runs = append(runs, s.enter(ask{prompt: 50, change: func(r *inference.Request) { r.Stream = false }}))
			runs[len(runs)-1].lease.Sent(s.now)
		}
		s.pass(100 * ms)
		if i%25 == 24 { // each takes 20 s
			runs[0].lease.FirstToken(s.now, 20*time.Second, false)
			runs[0].release()
			runs = runs[1:]
		}
	}
	if limit, _, _ := s.instance("p", 0).Live.Limits(); limit < 16 {
		t.Errorf("the limit is %d", limit)
	}
}

// TestAnInstanceThatComesBackStartsSlowly by way of its state.
func TestAnInstanceThatComesBackStartsSlowly(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 1, "m")))
	live := s.instance("p", 0).Live
	s.pass(2 * time.Second)
	live.SetDown(true, s.now.UnixNano())
	s.pass(2 * time.Second)
	if limit, _, _ := live.Limits(); limit != 16 {
		t.Errorf("while it is down the limit became %d", limit)
	}
	live.SetDown(false, s.now.UnixNano())
	s.pass(500 * ms)
	if limit, _, _ := live.Limits(); limit != 2 {
		t.Errorf("when it is back the limit is %d, want 2", limit)
	}
}

// TestWhoHasNotAskedForLongDemandsNothing of the instances.
func TestWhoHasNotAskedForLongDemandsNothing(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 1, "m")))
	live := s.instance("p", 0).Live
	read := func() { // a second at 20,000 prompt tokens a second
		for range 20 {
			c := s.enter(ask{class: inference.Batch, prompt: 1000})
			s.now = s.now.Add(50 * ms)
			c.token()
			c.release()
			if s.now.Sub(epoch)%(100*ms) == 0 {
				s.g.Tick(s.now)
			}
		}
	}
	for range 5 {
		read()
	}
	_, relaxed, _ := live.Limits()
	s.enter(ask{class: inference.VIP}).release()
	read()
	_, strict, _ := live.Limits()
	for range 31 {
		read()
	}
	_, again, _ := live.Limits()
	about(t, "batch alone: 5 s / 8", float64(relaxed), 12_500)
	about(t, "with vip: 1 s / 8", float64(strict), 2_500)
	about(t, "31 s later", float64(again), 12_500)
}
