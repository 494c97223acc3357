package bench_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/inference"
)

const (
	us  = time.Microsecond
	ms  = time.Millisecond
	sec = time.Second
)

// unit has work of 1 ms a token, prompt or output, and no idle time in a step,
// so that one server does one second of work a second.
var unit = engine.Batching{
	StepPerSeq: ms, StepPerPromptToken: ms, Chunk: 1 << 20, MaxSeqs: 1 << 20, KVTokens: 1 << 30,
}

// terms are those of a run of 100 s, without a warm-up.
func terms(change func(*bench.Terms)) bench.Terms {
	t := bench.Terms{
		To: 100 * sec, TPOT: 50 * ms, Fleet: []bench.Server{{Batching: unit}},
		TTFT: map[inference.Class]time.Duration{inference.VIP: sec, inference.Normal: 5 * sec, inference.Batch: 60 * sec},
	}
	if change != nil {
		change(&t)
	}
	return t
}

// served is a request of 100 + 100 tokens, 0.2 s of work, sent at its instant,
// whose first token comes after a wait and whose answer lasts 2 s.
func served(at, wait time.Duration) bench.Try {
	return bench.Try{
		Prompt: 100, Output: 100, At: at, Sent: at, First: at + wait, End: at + wait + 2*sec, Tokens: 100, Whole: true,
	}
}

// refused is the same request turned away within 2 ms.
func refused(at time.Duration) bench.Try {
	return bench.Try{Prompt: 100, Output: 100, At: at, Sent: at, End: at + 2*ms, Refused: true}
}

// with changes an attempt.
func with(t bench.Try, change func(*bench.Try)) bench.Try {
	change(&t)
	return t
}

// apart numbers attempts as requests of their own.
func apart(tries ...bench.Try) []bench.Try {
	for i := range tries {
		tries[i].Request = i
	}
	return tries
}

func TestAttempts(t *testing.T) {
	tests := map[string]struct {
		try      bench.Try
		answered int
		good     int
	}{
		"good":            {served(sec, sec), 1, 1},
		"at the bound":    {served(sec, 5*sec), 1, 1},
		"late":            {served(sec, 5*sec+1), 1, 0},
		"late for a VIP":  {with(served(sec, 2*sec), func(t *bench.Try) { t.Class = inference.VIP }), 1, 0},
		"batch may wait":  {with(served(sec, 50*sec), func(t *bench.Try) { t.Class = inference.Batch }), 1, 1},
		"idle has none":   {with(served(sec, 90*sec), func(t *bench.Try) { t.Class = inference.Idle }), 1, 1},
		"judged from At":  {with(served(10*sec, sec), func(t *bench.Try) { t.At = sec }), 1, 0},
		"slow tokens":     {with(served(sec, sec), func(t *bench.Try) { t.End = t.First + 99*50*ms + 99 }), 1, 0},
		"just fast":       {with(served(sec, sec), func(t *bench.Try) { t.End = t.First + 99*50*ms }), 1, 1},
		"few tokens":      {with(served(sec, sec), func(t *bench.Try) { t.Tokens, t.End = 3, t.First+750*ms }), 1, 1},
		"few slow tokens": {with(served(sec, sec), func(t *bench.Try) { t.Tokens, t.End = 3, t.First+751*ms }), 1, 0},
		"cut":             {with(served(sec, sec), func(t *bench.Try) { t.Whole = false }), 0, 0},
		"refused":         {refused(sec), 0, 0},
		"in one piece":    {with(served(sec, sec), func(t *bench.Try) { t.First, t.End = 0, 11*sec }), 1, 1}, // 5 s + 100 * 50 ms
		"in a late piece": {with(served(sec, sec), func(t *bench.Try) { t.First, t.End = 0, 11*sec+1 }), 1, 0},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			got := bench.Score([]bench.Try{c.try}, terms(nil))
			if got.Offered != 1 || got.Answered != c.answered || got.Good != c.good {
				t.Errorf("offered %d, answered %d, good %d, want 1, %d, %d", got.Offered, got.Answered, got.Good, c.answered, c.good)
			}
			class := got.Classes[c.try.Class]
			if class.Offered != 1 || class.Good != c.good || class.Attainment != float64(c.good) {
				t.Errorf("class %+v, want 1 offered, %d good", class, c.good)
			}
		})
	}
}

// TestGoodput scores a window of 10 s that 2 s of work are asked for in.
func TestGoodput(t *testing.T) {
	window := terms(func(t *bench.Terms) { t.From, t.To = 10*sec, 20*sec })
	tries := apart(
		served(9*sec, sec),                 // begun before, ended inside: goodput, not offered
		served(9*sec, -2*sec),              // ended before
		served(12*sec, sec),                // good
		served(13*sec, 6*sec),              // late
		served(19*sec, sec),                // good, but ends behind the window
		refused(14*sec),                    //
		served(20*sec, sec),                // offered behind
		with(served(12*sec, sec), cut(50)), // half of it was work for nothing
		with(served(12*sec, sec), func(t *bench.Try) { t.Prompt, t.Output, t.Tokens = 800, 100, 100 }),
	)
	got := bench.Score(tries, window)
	if got.Offered != 6 || got.Answered != 4 || got.Good != 3 || got.Refused != 1 || got.Unservable != 0 {
		t.Errorf("offered %d answered %d good %d refused %d unservable %d, want 6 4 3 1 0", got.Offered, got.Answered, got.Good, got.Refused, got.Unservable)
	}
	near(t, "offered work", got.OfferedWork, (5*0.2+0.9)/10, 1e-9)
	near(t, "good work", got.GoodWork, (2*0.2+0.9)/10, 1e-9)
	near(t, "good requests", got.GoodRequests, 0.3, 1e-9)
	near(t, "good tokens", got.GoodTokens, 30, 1e-9)
	near(t, "optimum", got.Optimum.Work, 1, 1e-9)
	near(t, "ratio below capacity", got.GoodputRatio, 1.3/1.9, 1e-9)
	near(t, "served work", got.ServedWork, (0.2+0.2+0.2+0.15+0.9)/10, 1e-9) // of what was sent inside
	near(t, "wasted", got.Wasted, (0.2+0.15)/(0.2+0.2+0.2+0.15+0.9), 1e-9)
	near(t, "class work", got.Classes[inference.Normal].GoodWork, 0.13, 1e-9)
	near(t, "tenant", got.Tenants[""].Good, 0.13, 1e-9)
	near(t, "tenant offered", got.Tenants[""].Offered, 0.19, 1e-9)

	window.Fleet = []bench.Server{{Batching: unit, Speed: 0.17}}
	near(t, "ratio above capacity", bench.Score(tries, window).GoodputRatio, 1.3/1.7, 1e-9)
	window.Changes = []bench.Change{{At: 0, Fleet: window.Fleet}, {At: 15 * sec}, {At: 18 * sec, Fleet: []bench.Server{{Batching: unit}}}}
	near(t, "mean capacity", bench.Score(tries, window).Optimum.Work, (0.17*5+0*3+1*2)/10, 1e-9)
}

// cut ends an attempt after some tokens.
func cut(tokens int) func(*bench.Try) {
	return func(t *bench.Try) { t.Tokens, t.Whole = tokens, false }
}

func TestFeasible(t *testing.T) {
	// Ten seconds of work are asked for at once at 20 s, as 50 requests which may
	// end 10 s later, and nothing else.
	burst := make([]bench.Try, 50)
	for i := range burst {
		burst[i] = refused(20 * sec)
	}
	burst[0] = served(20*sec, sec)
	back := func(at time.Duration) []bench.Try {
		out := apart(slices.Clone(burst)...)
		for i := range out[1:] {
			out = append(out, with(refused(at), func(t *bench.Try) { t.Request = i + 1 }))
		}
		return out
	}
	tests := map[string]struct {
		tries    []bench.Try
		change   func(*bench.Terms)
		feasible float64 // seconds of work
	}{
		"all":        {apart(burst...), nil, 10},
		"by half":    {apart(burst...), func(t *bench.Terms) { t.Fleet[0].Speed = 0.5 }, 5},
		"by the end": {apart(burst...), func(t *bench.Terms) { t.To = 24 * sec }, 4},
		"from the warm-up": {apart(burst...), func(t *bench.Terms) {
			t.From, t.Lengths = 23*sec+500*ms, []bench.Lengths{{Prompt: 100, Output: 100}}
		}, 6}, // seconds begin at 19.5 s: four of them before
		"while one is down": {apart(burst...), func(t *bench.Terms) {
			t.Changes = []bench.Change{{At: 22 * sec}, {At: 29 * sec, Fleet: t.Fleet}}
		}, 3},
		"with retries": {back(24 * sec), func(t *bench.Terms) { t.Fleet[0].Speed = 0.5 }, 7}, // 4 s longer
		"steady":       {apart(stream("", 100, 600)...), nil, 100},
		"less":         {apart(stream("", 100, 100)...), nil, 40},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			run := terms(c.change)
			got := bench.Score(c.tries, run)
			near(t, "feasible", got.Feasible*(run.To-run.From).Seconds(), c.feasible, 0.02)
			near(t, "ratio", got.FeasibleRatio, got.GoodWork/got.Feasible, 1e-9)
		})
	}
}

func TestLogicalRequests(t *testing.T) {
	back := served(8*sec, sec)
	back.Sent, back.Returner = 8*sec+ms, true
	tries := []bench.Try{back, with(refused(sec), func(t *bench.Try) { t.RetryAfter, t.Ticket = 7*sec, true })} // in any order
	got := bench.Score(tries, terms(nil))
	if got.Offered != 1 || got.Good != 1 || got.Answered != 1 {
		t.Errorf("offered %d answered %d good %d, want one of each", got.Offered, got.Answered, got.Good)
	}
	class := got.Classes[inference.Normal]
	if want := (bench.Quantiles{N: 1, Mean: sec, P50: sec, P90: sec, P99: sec, P999: sec, Max: sec}); class.TTFT != want {
		t.Errorf("TTFT %+v, want %+v from the promised instant", class.TTFT, want)
	}
	if class.E2E.P50 != 10*sec {
		t.Errorf("E2E %v, want 10s from the first attempt", class.E2E.P50)
	}
	near(t, "offered work", got.OfferedWork, 0.2/100, 1e-9)
	if got.Rejections.Latency.N != 1 || got.Rejections.Latency.P99 != 2*ms {
		t.Errorf("rejections %+v, want one of 2ms", got.Rejections)
	}
	// Two good answers of one request are one.
	got = bench.Score([]bench.Try{served(sec, sec), served(sec, sec)}, terms(nil))
	near(t, "good work of twins", got.GoodWork, 0.2/100, 1e-9)
}

func TestUnservable(t *testing.T) {
	long := with(served(sec, sec), func(t *bench.Try) { t.Prompt = 6000 }) // 6 s of prefill
	got := bench.Score(apart(long, with(long, func(t *bench.Try) { t.Class = inference.Batch }), served(sec, sec)), terms(nil))
	if got.Unservable != 1 || got.Offered != 2 {
		t.Errorf("unservable %d, offered %d, want 1 and 2", got.Unservable, got.Offered)
	}
	got = bench.Score(apart(long), terms(func(t *bench.Terms) { t.Fleet = append(t.Fleet, bench.Server{Batching: unit, Speed: 2}) }))
	if got.Unservable != 0 {
		t.Errorf("unservable %d although the second server is fast enough", got.Unservable)
	}
}

func TestNothing(t *testing.T) {
	for name, c := range map[string]bench.Terms{"no attempts": terms(nil), "no fleet": terms(func(t *bench.Terms) { t.Fleet = nil }), "no window": terms(func(t *bench.Terms) { t.To = 0 })} {
		got := bench.Score(nil, c)
		if got.GoodputRatio != 0 || got.Jain != 0 || got.Starvation != 0 || got.Recovered || got.Returns.Honesty != 0 || got.Offered != 0 {
			t.Errorf("%s: %+v, want nothing", name, got)
		}
	}
}

func TestRejections(t *testing.T) {
	var tries []bench.Try
	for i := range 200 {
		try := refused(time.Duration(i) * 100 * ms)
		try.End = try.At + time.Duration(i+1)*ms
		if i < 100 {
			try.Server = time.Duration(i+1) * time.Microsecond
		}
		tries = append(tries, try)
	}
	got := bench.Score(apart(tries...), terms(nil)).Rejections
	want := bench.RejectionScore{
		Latency: bench.Quantiles{N: 200, Mean: 100_500 * us, P50: 100 * ms, P90: 180 * ms, P99: 198 * ms, P999: 200 * ms, Max: 200 * ms},
		Server:  bench.Quantiles{N: 100, Mean: 50_500 * time.Nanosecond, P50: 50 * us, P90: 90 * us, P99: 99 * us, P999: 100 * us, Max: 100 * us},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("rejections (-want +got):\n%s", diff)
	}
}

func TestHonesty(t *testing.T) {
	// Each is refused at 1 s and told to come back after 10 s, so that 2 s are
	// within the promise.
	tests := map[string]struct {
		back bench.Try
		want bench.ReturnScore
	}{
		"kept":            {served(11*sec, 2*sec), bench.ReturnScore{Returned: 1, Admitted: 1, Kept: 1, Honesty: 1}},
		"late":            {served(11*sec, 2*sec+10*ms), bench.ReturnScore{Returned: 1, Admitted: 1}},
		"early":           {served(11*sec, -3*sec), bench.ReturnScore{Returned: 1, Admitted: 1}},
		"refused again":   {refused(11 * sec), bench.ReturnScore{Returned: 1}},
		"lost":            {bench.Try{At: 11 * sec, Sent: 11 * sec, End: 12 * sec, Prompt: 100, Output: 100}, bench.ReturnScore{Returned: 1, Admitted: 1}},
		"slot in time":    {with(served(11*sec, 4*sec), func(t *bench.Try) { t.Admitted = 12 * sec }), bench.ReturnScore{Returned: 1, Admitted: 1, Kept: 1, Honesty: 1}},
		"short, a second": {with(served(2*sec, sec), func(*bench.Try) {}), bench.ReturnScore{Returned: 1, Admitted: 1, Kept: 1, Honesty: 1}},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			c.back.Returner = true
			got := bench.Score([]bench.Try{refused(sec - 2*ms), c.back}, terms(nil)).Returns
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	got := bench.Score([]bench.Try{refused(sec), served(11*sec, sec)}, terms(nil)).Returns
	if got != (bench.ReturnScore{}) {
		t.Errorf("without a ticket %+v, want nothing", got)
	}
}

// stream serves a tenant n requests, evenly over the run, and refuses it others.
func stream(tenant string, good, bad int) []bench.Try {
	var out []bench.Try
	for i := range good + bad {
		at := 100 * sec * time.Duration(i) / time.Duration(good+bad)
		try := refused(at)
		if i*good/(good+bad) != (i+1)*good/(good+bad) {
			try = served(at, 0)
			try.First, try.End = at+1, at+2
		}
		try.Tenant = tenant
		out = append(out, try)
	}
	return out
}

func TestJain(t *testing.T) {
	tests := map[string]struct {
		tries   [][]bench.Try
		weights map[string]float64
		jain    float64
		windows int
	}{
		"no tenants":        {nil, nil, 0, 0},
		"one":               {[][]bench.Try{stream("a", 100, 100)}, nil, 0, 0},
		"nobody wants more": {[][]bench.Try{stream("a", 100, 0), stream("b", 50, 0)}, nil, 0, 0},
		"nobody is served":  {[][]bench.Try{stream("a", 0, 100), stream("b", 0, 100)}, nil, 0, 0},
		"equal":             {[][]bench.Try{stream("a", 100, 100), stream("b", 100, 900)}, nil, 1, 10},
		// (1 + 3)^2 / (2 * (1 + 9))
		"unequal": {[][]bench.Try{stream("a", 100, 300), stream("b", 300, 100)}, nil, 0.8, 10},
		// c wants less than its share and gets all: only a and b are compared.
		"a small one": {[][]bench.Try{stream("a", 100, 300), stream("b", 300, 100), stream("c", 10, 0)}, nil, 0.8, 10},
		"starved":     {[][]bench.Try{stream("a", 100, 300), stream("b", 0, 300)}, nil, 0.5, 10},
		"weighted":    {[][]bench.Try{stream("a", 100, 300), stream("b", 300, 300)}, map[string]float64{"b": 3}, 1, 10},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			var all []bench.Try
			for _, tries := range c.tries {
				all = append(all, tries...)
			}
			got := bench.Score(apart(all...), terms(func(t *bench.Terms) { t.Weights = c.weights }))
			if got.JainWindows != c.windows {
				t.Errorf("%d windows, want %d", got.JainWindows, c.windows)
			}
			near(t, "Jain", got.Jain, c.jain, 1e-9)
		})
	}
}

// TestJainCountsWorkWhereItIsDone has answers that last over several windows.
func TestJainCountsWorkWhereItIsDone(t *testing.T) {
	long := func(tenant string, end time.Duration) bench.Try {
		return bench.Try{Tenant: tenant, Prompt: 1, Output: 20_000, Sent: 0, First: 1, End: end, Tokens: 20_000, Whole: true}
	}
	// a gets its 20 s of work within 20 s, b in 40 s: 10 and 5 in each of the
	// first two windows. New demand exists in the first alone.
	got := bench.Score(apart(long("a", 20*sec), long("b", 40*sec)), terms(func(t *bench.Terms) { t.TPOT, t.TTFT = 0, nil }))
	if got.JainWindows != 1 {
		t.Errorf("%d windows, want 1", got.JainWindows)
	}
	near(t, "Jain", got.Jain, 15.0*15/(2*(100+25)), 1e-3)
	near(t, "service of b", got.Tenants["b"].Served, 0.2, 1e-3)
}

func TestStarvation(t *testing.T) {
	vip := func(at time.Duration) bench.Try {
		return with(served(at, 0), func(t *bench.Try) { t.Class = inference.VIP })
	}
	tests := map[string]struct {
		tries []bench.Try
		want  time.Duration
	}{
		"nobody":            {nil, 0},
		"other classes":     {[]bench.Try{vip(10 * sec)}, 0},
		"one":               {[]bench.Try{served(10*sec, 3*sec)}, 3 * sec},
		"in turn":           {[]bench.Try{served(10*sec, 3*sec), served(11*sec, 4*sec), served(12*sec, 7*sec)}, 4 * sec},
		"nothing pending":   {[]bench.Try{served(10*sec, sec), served(90*sec, sec)}, sec},
		"never":             {[]bench.Try{{Prompt: 1, Output: 1, At: 10 * sec, Sent: 10 * sec, End: 40 * sec}}, 30 * sec},
		"open at the end":   {[]bench.Try{{Prompt: 1, Output: 1, At: 90 * sec, Sent: 90 * sec, End: 140 * sec}}, 10 * sec},
		"refused, steadily": {[]bench.Try{refused(10 * sec), refused(10*sec + 500*ms), refused(11 * sec), refused(11*sec + 900*ms)}, 2*sec + 902*ms},
		"refused, rarely":   {[]bench.Try{refused(10 * sec), refused(20 * sec)}, sec + 2*ms},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			if got := bench.Score(apart(c.tries...), terms(nil)).Starvation; got != c.want {
				t.Errorf("starved for %v, want %v", got, c.want)
			}
		})
	}
	// A request that is refused and comes back waits all the time.
	if got := bench.Score([]bench.Try{refused(10 * sec), served(18*sec, sec)}, terms(nil)).Starvation; got != 9*sec {
		t.Errorf("starved for %v, want 9s", got)
	}
}

func TestRecovery(t *testing.T) {
	// One request a second, but none that ends between the two instants.
	without := func(from, to int) []bench.Try {
		var out []bench.Try
		for i := range 100 {
			try := refused(time.Duration(i) * sec)
			if i < from || i >= to {
				try = served(time.Duration(i)*sec, 0)
				try.First, try.End = try.At+1, try.At+2
			}
			out = append(out, try)
		}
		return out
	}
	tests := map[string]struct {
		tries     []bench.Try
		trigger   bench.Trigger
		recovery  time.Duration
		recovered bool
	}{
		"no trigger":     {without(30, 60), bench.Trigger{}, 0, false},
		"at once":        {without(30, 50), bench.Trigger{30 * sec, 50 * sec}, 0, true},
		"later":          {without(30, 65), bench.Trigger{30 * sec, 50 * sec}, 15 * sec, true},
		"never":          {without(30, 100), bench.Trigger{30 * sec, 50 * sec}, 0, false},
		"too late":       {without(30, 95), bench.Trigger{30 * sec, 50 * sec}, 0, false},
		"nothing before": {without(0, 60), bench.Trigger{0, 50 * sec}, 0, false},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			got := bench.Score(apart(c.tries...), terms(func(t *bench.Terms) { t.Trigger = c.trigger }))
			if got.Recovery != c.recovery || got.Recovered != c.recovered {
				t.Errorf("recovered %v after %v, want %v after %v", got.Recovered, got.Recovery, c.recovered, c.recovery)
			}
		})
	}
}

func TestLoss(t *testing.T) {
	before := map[string]bench.TenantScore{"flood": {Served: 1}, "a": {Served: 1}, "b": {Served: 3}, "c": {}}
	total, worst := bench.Loss(before, map[string]bench.TenantScore{"flood": {Served: 10}, "a": {Served: 0.5}, "b": {Served: 3.3}}, "flood")
	near(t, "total", total, 0.05, 1e-9)
	near(t, "worst", worst, 0.5, 1e-9)
	if total, worst = bench.Loss(nil, before, "flood"); total != 0 || worst != 0 {
		t.Errorf("of nobody %g and %g, want 0", total, worst)
	}
}

// TestScoreIgnoresOrder scores the same attempts twice.
func TestScoreIgnoresOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var tries []bench.Try
	for i := range 500 {
		at := time.Duration(i) * 200 * ms
		a := with(refused(at), func(t *bench.Try) { t.Request, t.Tenant, t.RetryAfter, t.Ticket = i, fmt.Sprint(i%7), 3*sec, true })
		b := with(served(at+3*sec, time.Duration(r.IntN(8000))*ms), func(t *bench.Try) { t.Request, t.Tenant, t.Returner = i, a.Tenant, true })
		tries = append(tries, a, b)
	}
	run := terms(func(t *bench.Terms) { t.Trigger = bench.Trigger{40 * sec, 50 * sec} })
	want := bench.Score(tries, run)
	r.Shuffle(len(tries), func(i, j int) { tries[i], tries[j] = tries[j], tries[i] })
	close := gocmp.Comparer(func(a, b float64) bool { return cmp.Compare(a, b) == 0 || (a-b < 1e-9 && b-a < 1e-9) })
	if diff := gocmp.Diff(want, bench.Score(tries, run), close); diff != "" {
		t.Errorf("another order scores otherwise (-want +got):\n%s", diff)
	}
}

// ExampleScore scores one request in time and one that was refused.
func ExampleScore() {
	law := engine.Default().Batching
	s := bench.Score([]bench.Try{
		{Request: 0, Prompt: 1000, Output: 200, At: 10 * time.Second, Sent: 10 * time.Second, First: 11 * time.Second, End: 16 * time.Second, Tokens: 200, Whole: true},
		{Request: 1, Prompt: 1000, Output: 200, At: 12 * time.Second, Sent: 12 * time.Second, End: 12*time.Second + time.Millisecond, Refused: true},
	}, bench.Terms{
		To: 60 * time.Second, TPOT: 50 * time.Millisecond, Fleet: []bench.Server{{Batching: law}},
		TTFT: map[inference.Class]time.Duration{inference.Normal: 5 * time.Second},
	})
	fmt.Printf("%d of %d within the SLO, %.2f of what was asked for, capacity %.2f s of work a second\n",
		s.Good, s.Offered, s.GoodputRatio, s.Optimum.Work)
	// Output: 1 of 2 within the SLO, 0.50 of what was asked for, capacity 0.84 s of work a second
}

// BenchmarkScore scores five minutes of ten times the load of four engines.
func BenchmarkScore(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 6))
	law := engine.Default().Batching
	var tries []bench.Try
	for i := range 150_000 {
		at := time.Duration(i) * 2 * ms
		l := mix(r)
		try := bench.Try{Request: i, Tenant: fmt.Sprint(i % 27), Prompt: l.Prompt, Output: l.Output, At: at, Sent: at, End: at + ms, Refused: true}
		if i%10 == 0 {
			try.First, try.Tokens, try.Whole, try.Refused = at+sec, l.Output, true, false
			try.End = try.First + time.Duration(l.Output)*45*ms
		}
		tries = append(tries, try)
	}
	run := terms(func(t *bench.Terms) {
		t.Fleet, t.To = []bench.Server{{Batching: law}, {Batching: law}, {Batching: law}, {Batching: law}}, 300*sec
		t.Trigger = bench.Trigger{Start: 60 * sec, End: 120 * sec}
	})
	b.ReportAllocs()
	for b.Loop() {
		bench.Score(tries, run)
	}
}
