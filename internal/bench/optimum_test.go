package bench_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/inference"
)

// near compares within a relative error.
func near(t *testing.T, what string, got, want, relative float64) {
	t.Helper()
	if math.Abs(got-want) > relative*math.Abs(want) || math.IsNaN(got) {
		t.Errorf("%s = %g, want %g", what, got, want)
	}
}

// law is that of the default engine: 8 ms + 0.1 ms a sequence + 0.04 ms a prompt
// token.
func law(change func(*engine.Batching)) engine.Batching {
	b := engine.Default().Batching
	if change != nil {
		change(&b)
	}
	return b
}

func TestOptimum(t *testing.T) {
	// Every request has 1,000 prompt and 200 output tokens: 40 + 20 = 60 ms of
	// work, 0.3 ms a token of the batch, 200 * 1,100 tokens squared of KV.
	one := []bench.Lengths{{Prompt: 1000, Output: 200}}
	const tau = 50 * time.Millisecond
	tests := map[string]struct {
		fleet []bench.Server
		work  float64
	}{
		"itl":            {[]bench.Server{{Batching: law(nil)}}, 1 - 8.0/50},
		"fast":           {[]bench.Server{{Batching: law(func(b *engine.Batching) { b.MaxSeqs = 1000 }), Speed: 2}}, 2 * (1 - 8.0/100)},
		"too fast":       {[]bench.Server{{Batching: law(nil), Speed: 2}}, 2 * (1 - 8.0/84.8)}, // 256 sequences bind first
		"too slow":       {[]bench.Server{{Batching: law(nil), Speed: 0.1}}, 0},
		"sequences":      {[]bench.Server{{Batching: law(func(b *engine.Batching) { b.MaxSeqs = 40 })}}, 1 - 8.0/20},
		"sequences fast": {[]bench.Server{{Batching: law(func(b *engine.Batching) { b.MaxSeqs = 40 }), Speed: 3}}, 3 * (1 - 8.0/20)},
		"kv":             {[]bench.Server{{Batching: law(func(b *engine.Batching) { b.KVTokens = 44_000 })}}, 1 - 8.0/20},
		"uneven": {[]bench.Server{
			{Batching: law(nil)}, {Batching: law(nil)}, {Batching: law(nil), Speed: 0.5}, {Batching: law(nil), Speed: 0.25},
		}, 2*(1-8.0/50) + 0.5*(1-8.0/25) + 0.25*(1-8.0/12.5)},
		"another law": {[]bench.Server{
			{Batching: law(nil)},
			{Batching: law(func(b *engine.Batching) {
				b.StepBase, b.StepPerSeq, b.StepPerPromptToken = 2*b.StepBase, 2*b.StepPerSeq, 2*b.StepPerPromptToken
			})},
		}, 1 - 8.0/50 + 0.5*(1-8.0/25)},
		"nobody": {nil, 0},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			o := bench.NewOptimum(c.fleet, tau, one)
			near(t, "work", o.Work, c.work, 1e-9)
			if c.fleet != nil {
				near(t, "rate", o.Rate, c.work/0.060, 1e-9)
				near(t, "mean work", o.MeanWork, 0.060, 1e-9)
			}
		})
	}
	if got := (bench.NewOptimum([]bench.Server{{Batching: law(nil)}}, tau, nil)); got.Work != 0 {
		t.Errorf("without lengths %+v, want zero", got)
	}
	got := bench.NewOptimum([]bench.Server{{Batching: law(func(b *engine.Batching) { b.Chunk = 200 })}}, tau, one)
	near(t, "prefill", got.Prefill, 1-8.0/20, 1e-9) // 200 prompt tokens a step feed 40 sequences
	near(t, "work beside it", got.Work, 1-8.0/50, 1e-9)
}

func TestServes(t *testing.T) {
	server := bench.Server{Batching: law(nil)}
	tests := map[string]struct {
		server     bench.Server
		lengths    bench.Lengths
		ttft, tpot time.Duration
		want       bool
	}{
		// 20,000 tokens are 20 chunks: 20 * 8.1 + 800 = 962 ms.
		"in time":     {server, bench.Lengths{Prompt: 20_000, Output: 10}, 963 * time.Millisecond, 50 * time.Millisecond, true},
		"too late":    {server, bench.Lengths{Prompt: 20_000, Output: 10}, 961 * time.Millisecond, 50 * time.Millisecond, false},
		"half speed":  {bench.Server{Batching: law(nil), Speed: 0.5}, bench.Lengths{Prompt: 20_000, Output: 10}, 963 * time.Millisecond, 0, false},
		"no bounds":   {server, bench.Lengths{Prompt: 20_000, Output: 10}, 0, 0, true},
		"slow tokens": {server, bench.Lengths{Prompt: 10, Output: 100}, 0, 8 * time.Millisecond, false},
		"few tokens":  {server, bench.Lengths{Prompt: 10, Output: 8}, 0, 4 * time.Millisecond, true}, // 7 * 8.1 over 15
		"no room":     {server, bench.Lengths{Prompt: 399_999, Output: 2}, 0, 0, false},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			if got := c.server.Serves(c.lengths, c.ttft, c.tpot); got != c.want {
				t.Errorf("Serves = %v, want %v", got, c.want)
			}
		})
	}
}

// mix draws lengths like those of a chat service: log-normal, most answers far
// below their mean.
func mix(r *rand.Rand) bench.Lengths {
	draw := func(median, sigma float64, most int) int {
		return min(most, 1+int(median*math.Exp(sigma*r.NormFloat64())))
	}
	return bench.Lengths{Prompt: draw(800, 0.85, 14_000), Output: draw(150, 0.8, 1000)}
}

// hold keeps a server at a fixed number of requests for a while in fake time:
// each one that ends makes room for the next.
func hold(server bench.Server, concurrency int, until time.Duration, lengths []bench.Lengths) []bench.Try {
	b := engine.NewBatch(server.Batching)
	b.SetPace(1 / server.Speed)
	tries := make([]bench.Try, 0, 1<<14)
	running := 0
	for now := time.Duration(0); now < until; {
		for ; running < concurrency; running++ {
			l := lengths[len(tries)%len(lengths)]
			tries = append(tries, bench.Try{Request: len(tries), Prompt: l.Prompt, Output: l.Output, At: now, Sent: now})
			if err := b.Submit(&engine.Sequence{Prompt: l.Prompt, Output: l.Output, Owner: len(tries) - 1}, now); err != nil {
				panic(err)
			}
		}
		step := b.Step(now)
		now += step.Duration
		for _, s := range step.Emitted {
			try := &tries[s.Owner.(int)]
			if try.Tokens++; try.Tokens == 1 {
				try.First = now
			}
			try.End = now
		}
		for _, s := range step.Finished {
			tries[s.Owner.(int)].Whole = true
			running--
		}
	}
	return tries
}

// TestOptimumHolds drives the engine's own batching with fixed concurrencies: no
// one may beat the bound, and the best comes near it.
func TestOptimumHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	lengths := make([]bench.Lengths, 4000)
	for i := range lengths {
		lengths[i] = mix(r)
	}
	tests := map[string]struct {
		server bench.Server
		least  float64
	}{
		"default":      {bench.Server{Batching: law(nil), Speed: 1}, 0.85},
		"fast":         {bench.Server{Batching: law(nil), Speed: 2}, 0.85},
		"slow":         {bench.Server{Batching: law(nil), Speed: 0.5}, 0.8}, // a full chunk alone is a step of 98 ms
		"48 sequences": {bench.Server{Batching: law(func(b *engine.Batching) { b.MaxSeqs = 48 }), Speed: 1}, 0.85},
		"60k KV":       {bench.Server{Batching: law(func(b *engine.Batching) { b.KVTokens = 60_000 }), Speed: 1}, 0.8},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			terms := bench.Terms{
				From: 30 * time.Second, To: 150 * time.Second, TPOT: 50 * time.Millisecond, Fleet: []bench.Server{c.server},
				TTFT: map[inference.Class]time.Duration{inference.Normal: 5 * time.Second},
			}
			best, all := 0.0, ""
			for _, n := range []int{20, 35, 45, 60, 80, 100, 120, 150, 200} {
				s := bench.Score(hold(c.server, n, terms.To, lengths), terms)
				got := s.GoodWork / s.Optimum.Work
				if got > 1 {
					t.Errorf("%d at once give %.3f of the optimum", n, got)
				}
				best = max(best, got)
				all += fmt.Sprintf(" %d: %.3f", n, got)
			}
			t.Logf("optimum %.3f, of it%s", bench.NewOptimum(terms.Fleet, terms.TPOT, lengths).Work, all)
			if best < c.least {
				t.Errorf("the best is %.3f of the optimum, want at least %.2f", best, c.least)
			}
		})
	}
}
