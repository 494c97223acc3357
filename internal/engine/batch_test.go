package engine_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/engine"
)

// law is a small engine whose durations are easy to add up in the head.
func law(change func(*engine.Batching)) engine.Batching {
	l := engine.Batching{
		StepBase: 10 * time.Millisecond, StepPerSeq: time.Millisecond, StepPerPromptToken: 100 * time.Microsecond,
		Chunk: 128, MaxSeqs: 4, KVTokens: 1024, PrefixCache: true, Queue: -1,
	}
	if change != nil {
		change(&l)
	}
	return l
}

func seq(name string, prompt, output int) *engine.Sequence {
	return &engine.Sequence{Prompt: prompt, Output: output, Owner: name}
}

// chained gives a sequence the block chain of a prompt that repeats one letter.
func chained(s *engine.Sequence, letter string) *engine.Sequence {
	s.Blocks = engine.Chain(nil, "m", []byte(strings.Repeat(letter, s.Prompt*engine.TokenBytes)))
	return s
}

// show writes a step as "ms prefill=n emitted!finished-preempted".
func show(s engine.Step) string {
	names := func(list []*engine.Sequence) string {
		var b strings.Builder
		for _, x := range list {
			b.WriteString(x.Owner.(string))
		}
		return b.String()
	}
	return fmt.Sprintf("%gms prefill=%d emit=%s done=%s out=%s", float64(s.Duration)/float64(time.Millisecond),
		s.Prefilled, names(s.Emitted), names(s.Finished), names(s.Preempted))
}

func TestBatchStep(t *testing.T) {
	tests := map[string]struct {
		law  func(*engine.Batching)
		seqs []*engine.Sequence
		want []string
	}{
		"nothing to do": {want: []string{"0ms prefill=0 emit= done= out="}},
		"one token answers leave at once": {
			seqs: []*engine.Sequence{seq("a", 10, 1)},
			want: []string{"12ms prefill=10 emit=a done=a out=", "0ms prefill=0 emit= done= out="},
		},
		"prefill yields the first token, decoding the rest": {
			seqs: []*engine.Sequence{seq("a", 10, 3), seq("b", 20, 2)},
			want: []string{
				"15ms prefill=30 emit=ab done= out=", "12ms prefill=0 emit=ab done=b out=",
				"11ms prefill=0 emit=a done=a out=", "0ms prefill=0 emit= done= out=",
			},
		},
		"long prompts are prefilled in chunks, oldest first": {
			seqs: []*engine.Sequence{seq("a", 200, 2), seq("b", 60, 1)},
			want: []string{
				"23.8ms prefill=128 emit= done= out=",   // a: 128
				"24.8ms prefill=128 emit=a done= out=",  // a: 72, b: 56
				"12.4ms prefill=4 emit=ab done=ab out=", // a decodes, b: 4
				"0ms prefill=0 emit= done= out=",
			},
		},
		"decoding goes on beside a prefill": {
			law:  func(l *engine.Batching) { l.Chunk = 8 },
			seqs: []*engine.Sequence{seq("a", 4, 3), seq("b", 12, 1)},
			want: []string{
				"12.8ms prefill=8 emit=a done= out=", "12.8ms prefill=8 emit=ab done=b out=",
				"11ms prefill=0 emit=a done=a out=",
			},
		},
		"the batch is bounded": {
			law:  func(l *engine.Batching) { l.MaxSeqs = 1 },
			seqs: []*engine.Sequence{seq("a", 10, 2), seq("b", 10, 1)},
			want: []string{
				"12ms prefill=10 emit=a done= out=", "11ms prefill=0 emit=a done=a out=",
				"12ms prefill=10 emit=b done=b out=",
			},
		},
		"a prefill alone emits nothing": {
			seqs: []*engine.Sequence{seq("a", 10, 0)},
			want: []string{"12ms prefill=10 emit= done=a out=", "0ms prefill=0 emit= done= out="},
		},
		"no room for the prompt: wait, in order": {
			law:  func(l *engine.Batching) { l.KVTokens = 100 },
			seqs: []*engine.Sequence{seq("a", 60, 2), seq("b", 60, 1), seq("c", 10, 1)},
			want: []string{
				"17ms prefill=60 emit=a done= out=", "11ms prefill=0 emit=a done=a out=",
				"19ms prefill=70 emit=bc done=bc out=",
			},
		},
		"the newest is preempted, and recomputes what it had": {
			law:  func(l *engine.Batching) { l.KVTokens = 64 },
			seqs: []*engine.Sequence{seq("a", 30, 5), seq("b", 31, 5)},
			want: []string{
				"18.1ms prefill=61 emit=ab done= out=", // 61 tokens held
				"12ms prefill=0 emit=ab done= out=",    // 63
				"11ms prefill=0 emit=a done= out=b",    // a: 64; b has 2 tokens and goes
				"11ms prefill=0 emit=a done= out=",     // b needs 33, a holds 33
				"11ms prefill=0 emit=a done=a out=",
				"14.3ms prefill=33 emit=b done= out=", // 31 + 2 again, third token
				"11ms prefill=0 emit=b done= out=",
				"11ms prefill=0 emit=b done=b out=",
				"0ms prefill=0 emit= done= out=",
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := engine.NewBatch(law(tt.law))
			for _, s := range tt.seqs {
				if err := b.Submit(s, 0); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			now := time.Duration(0)
			for range tt.want {
				step := b.Step(now)
				now += step.Duration
				got = append(got, show(step))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("steps (-want +got):\n%s", d)
			}
		})
	}
}

func TestBatchRefusesWhatCannotRun(t *testing.T) {
	b := engine.NewBatch(law(func(l *engine.Batching) { l.KVTokens, l.MaxSeqs, l.Queue = 100, 1, 1 }))
	if err := b.Submit(seq("long", 90, 11), 0); !errors.Is(err, engine.ErrTooLong) {
		t.Errorf("101 tokens for 100 places: %v, want ErrTooLong", err)
	}
	if err := b.Submit(seq("empty", 0, 1), 0); err == nil {
		t.Error("an empty prompt was taken")
	}
	twice := seq("a", 10, 5)
	for i, s := range []*engine.Sequence{twice, seq("b", 10, 5)} { // one place in the batch, one in the queue
		if err := b.Submit(s, 0); err != nil {
			t.Fatalf("sequence %d: %v", i, err)
		}
	}
	if err := b.Submit(twice, 0); err == nil {
		t.Error("a sequence was taken twice")
	}
	if err := b.Submit(seq("c", 10, 5), 0); !errors.Is(err, engine.ErrFull) {
		t.Errorf("third sequence: %v, want ErrFull", err)
	}
	b.Step(0)
	if err := b.Submit(seq("d", 10, 5), 0); !errors.Is(err, engine.ErrFull) {
		t.Errorf("batch and queue full: %v, want ErrFull", err)
	}
}

func TestBatchPrefixCache(t *testing.T) {
	b := engine.NewBatch(law(func(l *engine.Batching) { l.KVTokens = 512 }))
	run := func(s *engine.Sequence) {
		t.Helper()
		if err := b.Submit(s, 0); err != nil {
			t.Fatal(err)
		}
		for b.Step(0).Duration > 0 {
		}
	}
	first := chained(seq("a", 192, 1), "x") // three full blocks
	run(first)
	if got := b.Load(); first.Cached() != 0 || got.KVUsed != 0 || got.KVIdle != 192 {
		t.Fatalf("cold: cached %d, load %+v; want 0 cached, 0 used, 192 idle", first.Cached(), got)
	}
	again := chained(seq("b", 192, 1), "x")
	run(again)
	if again.Cached() != 128 {
		t.Errorf("same prompt: cached %d, want 128: the last token is always computed", again.Cached())
	}
	longer := chained(seq("c", 200, 1), "x")
	run(longer)
	if longer.Cached() != 192 {
		t.Errorf("longer prompt: cached %d, want 192", longer.Cached())
	}
	other := chained(seq("d", 200, 1), "y")
	run(other)
	if other.Cached() != 0 {
		t.Errorf("other prompt: cached %d, want 0", other.Cached())
	}
	want := engine.Load{
		KVIdle: 384, PrefixQueries: 784, PrefixHits: 320, PromptTokens: 784, OutputTokens: 4,
	}
	if d := cmp.Diff(want, b.Load()); d != "" {
		t.Errorf("load (-want +got):\n%s", d)
	}
	// 512 tokens of room, 384 idle: a prompt of 400 evicts the oldest, which is the tail of x.
	run(chained(seq("e", 400, 1), "z"))
	tail := chained(seq("f", 65, 1), "x")
	run(tail)
	if got := b.Load(); tail.Cached() != 0 || got.KVIdle+got.KVUsed > 512 {
		t.Errorf("after eviction: cached %d, load %+v; want 0 and at most 512 tokens", tail.Cached(), got)
	}
}

func TestBatchSharesBlocksOfTwins(t *testing.T) {
	b := engine.NewBatch(law(func(l *engine.Batching) { l.Chunk = 512 }))
	for _, name := range []string{"a", "b"} {
		if err := b.Submit(chained(seq(name, 130, 4), "x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	b.Step(0)
	if got := b.Load().KVUsed; got != 128+2+2 {
		t.Errorf("two twins of 130 tokens use %d tokens, want 132", got)
	}
}

func TestBatchCancel(t *testing.T) {
	b := engine.NewBatch(law(func(l *engine.Batching) { l.MaxSeqs = 2 }))
	a, c, d := chained(seq("a", 100, 9), "x"), seq("c", 20, 1), seq("d", 20, 9)
	for _, s := range []*engine.Sequence{a, c, d} {
		if err := b.Submit(s, 0); err != nil {
			t.Fatal(err)
		}
	}
	b.Step(0)
	if got := b.Load(); got.Running != 2 || got.Waiting != 1 || got.KVUsed != 120 {
		t.Fatalf("load %+v, want 2 running, 1 waiting, 120 used", got)
	}
	for name, s := range map[string]*engine.Sequence{"running": a, "finished this step": c, "queued": d} {
		if !b.Cancel(s) {
			t.Errorf("%s: not found", name)
		}
		if b.Cancel(s) {
			t.Errorf("%s: cancelled twice", name)
		}
	}
	if got := b.Load(); got.Running != 0 || got.Waiting != 0 || got.KVUsed != 0 {
		t.Errorf("load %+v, want nothing left", got)
	}
	if got := b.Step(0); got.Duration != 0 {
		t.Errorf("step %s, want idle", show(got))
	}
}

func TestBatchPace(t *testing.T) {
	b := engine.NewBatch(law(nil))
	b.SetPace(3)
	if err := b.Submit(seq("a", 10, 1), 0); err != nil {
		t.Fatal(err)
	}
	if got := b.Step(0).Duration; got != 36*time.Millisecond {
		t.Errorf("duration %v, want 3 x 12ms", got)
	}
}

// TestBatchKeepsItsPromises drives random work through a tight engine and checks what must hold after every step.
func TestBatchKeepsItsPromises(t *testing.T) {
	for trial := range uint64(50) {
		random := rand.New(rand.NewPCG(trial, 7))
		l := law(func(l *engine.Batching) {
			l.KVTokens, l.Chunk, l.MaxSeqs = 256+random.IntN(512), 1+random.IntN(200), 1+random.IntN(12)
		})
		b := engine.NewBatch(l)
		var order []*engine.Sequence
		emitted, live := map[*engine.Sequence]int{}, map[*engine.Sequence]bool{}
		for round := 0; round < 400 || len(live) > 0; round++ {
			if round > 20_000 {
				t.Fatalf("trial %d: %d sequences never finish", trial, len(live))
			}
			if round < 400 && random.IntN(2) == 0 {
				s := chained(seq("s", 1+random.IntN(200), 1+random.IntN(50)), string(rune('a'+random.IntN(3))))
				if err := b.Submit(s, 0); err != nil {
					t.Fatal(err)
				}
				live[s] = true
				order = append(order, s)
			}
			if len(order) > 0 && random.IntN(50) == 0 {
				if s := order[random.IntN(len(order))]; live[s] {
					b.Cancel(s)
					delete(live, s)
				}
			}
			step := b.Step(0)
			for _, s := range step.Emitted {
				emitted[s]++
				if emitted[s] != s.Generated() || !live[s] {
					t.Fatalf("trial %d: token %d of %d emitted as number %d (live %v)",
						trial, s.Generated(), s.Output, emitted[s], live[s])
				}
			}
			for _, s := range step.Finished {
				if emitted[s] != s.Output {
					t.Fatalf("trial %d: finished with %d of %d tokens", trial, emitted[s], s.Output)
				}
				delete(live, s)
			}
			got := b.Load()
			if got.KVUsed+got.KVIdle > l.KVTokens || got.Running > l.MaxSeqs || step.Prefilled > l.Chunk {
				t.Fatalf("trial %d: %+v after %s exceeds %+v", trial, got, show(step), l)
			}
			if step.Duration == 0 && got.Waiting > 0 {
				t.Fatalf("trial %d: idle with %d waiting", trial, got.Waiting)
			}
		}
		b.Step(0)
		if got := b.Load(); got.KVUsed != 0 || got.Running+got.Waiting != 0 {
			t.Fatalf("trial %d: %+v at the end, want nothing in use", trial, got)
		}
	}
}

func TestChain(t *testing.T) {
	base := []byte(strings.Repeat("a", 600))
	changed := append([]byte(nil), base...)
	changed[0] = 'b'
	chain := engine.Chain(nil, "m", base)
	if len(chain) != 2 || chain[0] == chain[1] {
		t.Errorf("chain of 600 bytes: %v, want 2 different blocks", chain)
	}
	if d := cmp.Diff(chain, engine.Chain(nil, "m", base[:512])); d != "" {
		t.Errorf("the partial block changed the chain: %s", d)
	}
	for name, other := range map[string][]uint64{
		"first byte": engine.Chain(nil, "m", changed), "salt": engine.Chain(nil, "n", base),
	} {
		if other[0] == chain[0] || other[1] == chain[1] {
			t.Errorf("%s does not change every block: %v, %v", name, chain, other)
		}
	}
}

func ExampleBatch() {
	b := engine.NewBatch(engine.Default().Batching)
	_ = b.Submit(&engine.Sequence{Prompt: 1500, Output: 2}, 0)
	now := time.Duration(0)
	for {
		step := b.Step(now)
		if step.Duration == 0 {
			break
		}
		now += step.Duration
		fmt.Println(now, "prefilled", step.Prefilled, "tokens", len(step.Emitted))
	}
	// Output:
	// 49.06ms prefilled 1024 tokens 0
	// 76.2ms prefilled 476 tokens 1
	// 84.3ms prefilled 0 tokens 1
}

func BenchmarkBatchStep(b *testing.B) {
	cfg := engine.Default().Batching
	batch := engine.NewBatch(cfg)
	for range cfg.MaxSeqs {
		if err := batch.Submit(&engine.Sequence{Prompt: 4, Output: 1 << 10}, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		step := batch.Step(0)
		n += len(step.Emitted)
		for range step.Finished {
			if err := batch.Submit(&engine.Sequence{Prompt: 4, Output: 1 << 10}, 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/token")
}
