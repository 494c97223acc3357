package bench_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/inference"
)

// plain is an engine whose steps are 10 ms whatever they do.
func plain(seqs int) bench.Server {
	return bench.Server{Speed: 1, Batching: engine.Batching{StepBase: 10 * time.Millisecond, Chunk: 1000, MaxSeqs: seqs, KVTokens: 100_000, Queue: -1}}
}

// arrivals are requests of a prompt of 100 and an answer of 10 tokens, unless they
// say otherwise.
func arrivals(all ...bench.Arrival) iter.Seq2[bench.Arrival, error] {
	return func(yield func(bench.Arrival, error) bool) {
		for _, a := range all {
			if a.Prompt == 0 {
				a.Prompt, a.Output = 100, max(10, a.Output)
			}
			if !yield(a, nil) {
				return
			}
		}
	}
}

// spillway is the configuration of a world's gateway without tickets, whose jitter
// is the governor's own.
func spillway() admission.Config {
	cfg := admission.Default()
	cfg.Tickets.Enabled = false
	return cfg
}

// run plays a world and returns its attempts by the order of their sending.
func run(t *testing.T, w *bench.World) []bench.Try {
	t.Helper()
	tries, err := w.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(tries, func(a, b bench.Try) int { return int(a.Sent - b.Sent) })
	return tries
}

// outcome is what a test looks at.
type outcome struct {
	Request          int
	Sent, First, End time.Duration
	Tokens           int
	Whole, Refused   bool
}

func outcomes(tries []bench.Try) []outcome {
	var out []outcome
	for _, x := range tries {
		out = append(out, outcome{x.Request, x.Sent, x.First, x.End, x.Tokens, x.Whole, x.Refused})
	}
	return out
}

func TestWorld(t *testing.T) {
	vip := map[inference.Class]time.Duration{inference.VIP: 25 * ms}
	cases := map[string]struct {
		world bench.World
		want  []outcome
	}{
		"two engines in turn": {
			bench.World{Servers: []bench.Server{plain(1), plain(1)}, Arrivals: arrivals(bench.Arrival{}, bench.Arrival{}, bench.Arrival{})},
			[]outcome{{0, 0, 10 * ms, 100 * ms, 10, true, false}, {1, 0, 10 * ms, 100 * ms, 10, true, false}, {2, 0, 110 * ms, 200 * ms, 10, true, false}},
		},
		"a client without patience": {
			bench.World{Servers: []bench.Server{plain(1)}, Arrivals: arrivals(bench.Arrival{}, bench.Arrival{Class: inference.VIP}), Clients: bench.Clients{Patience: vip}},
			[]outcome{{0, 0, 10 * ms, 100 * ms, 10, true, false}, {1, 0, 0, 25 * ms, 0, false, false}},
		},
		"a client that hangs up": {
			bench.World{Servers: []bench.Server{plain(1)}, Arrivals: arrivals(bench.Arrival{Leaves: 35 * ms}, bench.Arrival{})},
			[]outcome{{0, 0, 10 * ms, 45 * ms, 4, false, false}, {1, 0, 60 * ms, 150 * ms, 10, true, false}},
		},
		"a client that reads slowly holds on behind the buffers": {
			bench.World{Servers: []bench.Server{plain(1)}, Arrivals: arrivals(bench.Arrival{Output: 300, Reads: 10})},
			[]outcome{{0, 0, 10 * ms, 4410 * ms, 300, true, false}}, // 44 tokens behind 256, ten a second
		},
		"an engine that dies": {
			bench.World{Servers: []bench.Server{plain(2), plain(2)}, Arrivals: arrivals(bench.Arrival{}, bench.Arrival{At: 45 * ms}),
				Faults: []bench.Fault{{At: 35 * ms, Do: func(w *bench.World) { w.Kill(0) }}}},
			[]outcome{{0, 0, 10 * ms, 35 * ms, 3, false, false}, {1, 45 * ms, 55 * ms, 145 * ms, 10, true, false}},
		},
		"an engine that dies and comes back, slower": {
			bench.World{Servers: []bench.Server{plain(2)}, Arrivals: arrivals(bench.Arrival{At: 20 * ms}, bench.Arrival{At: 40 * ms}),
				Faults: []bench.Fault{{At: 10 * ms, Do: func(w *bench.World) { w.Kill(0) }}, {At: 30 * ms, Do: func(w *bench.World) { w.Restore(0, 2) }}}},
			[]outcome{{0, 20 * ms, 0, 20 * ms, 0, false, false}, {1, 40 * ms, 60 * ms, 240 * ms, 10, true, false}},
		},
		"an engine that stands still": {
			bench.World{Servers: []bench.Server{plain(2)}, Arrivals: arrivals(bench.Arrival{}, bench.Arrival{At: 1200 * ms}),
				Faults: []bench.Fault{{At: 35 * ms, Do: func(w *bench.World) { w.Hold(0, time.Second) }}, {At: 1100 * ms, Do: func(w *bench.World) { w.Slow(0, 3) }}}},
			[]outcome{{0, 0, 10 * ms, 1095 * ms, 10, true, false}, {1, 1200 * ms, 1230 * ms, 1500 * ms, 10, true, false}},
		},
		"nginx: a bucket of one and a burst of one": {
			bench.World{Servers: []bench.Server{plain(9)}, Proxy: &bench.Proxy{Rate: 10, Burst: 1},
				Arrivals: arrivals(bench.Arrival{}, bench.Arrival{}, bench.Arrival{}, bench.Arrival{At: 100 * ms}, bench.Arrival{At: 150 * ms})},
			[]outcome{
				{0, 0, 10 * ms, 100 * ms, 10, true, false}, {1, 0, 20 * ms, 110 * ms, 10, true, false}, {2, 0, 0, 0, 0, false, true},
				{3, 100 * ms, 110 * ms, 200 * ms, 10, true, false}, {4, 150 * ms, 0, 150 * ms, 0, false, true},
			},
		},
		"HAProxy: two at once, the next waits, the last too long": {
			bench.World{Servers: []bench.Server{plain(9)}, Proxy: &bench.Proxy{MaxConn: 2, Queue: 150 * ms},
				Arrivals: arrivals(bench.Arrival{}, bench.Arrival{}, bench.Arrival{}, bench.Arrival{}, bench.Arrival{})},
			[]outcome{
				{0, 0, 10 * ms, 100 * ms, 10, true, false}, {1, 0, 20 * ms, 110 * ms, 10, true, false}, // it came when a step had begun
				{2, 0, 110 * ms, 200 * ms, 10, true, false}, {3, 0, 120 * ms, 210 * ms, 10, true, false}, {4, 0, 0, 150 * ms, 0, false, true},
			},
		},
		"HAProxy: least connections, and a client that leaves the queue": {
			bench.World{Servers: []bench.Server{plain(1), plain(1)}, Proxy: &bench.Proxy{MaxConn: 1, Queue: time.Second},
				Arrivals: arrivals(bench.Arrival{}, bench.Arrival{}, bench.Arrival{Class: inference.VIP}, bench.Arrival{}), Clients: bench.Clients{Patience: vip}},
			[]outcome{
				{0, 0, 10 * ms, 100 * ms, 10, true, false}, {1, 0, 10 * ms, 100 * ms, 10, true, false}, {2, 0, 0, 25 * ms, 0, false, false},
				{3, 0, 110 * ms, 200 * ms, 10, true, false},
			},
		},
		"the gateway takes what comes": {
			bench.World{Servers: []bench.Server{plain(9)}, Gateways: 1, Admission: spillway(), Arrivals: arrivals(bench.Arrival{}, bench.Arrival{At: 50 * ms})},
			[]outcome{{0, 0, 10 * ms, 100 * ms, 10, true, false}, {1, 50 * ms, 60 * ms, 150 * ms, 10, true, false}},
		},
		"the gateway tries another engine before the first token": {
			bench.World{Servers: []bench.Server{{Speed: 0.01, Batching: plain(9).Batching}, {Speed: 0.01, Batching: plain(9).Batching}}, Gateways: 1, Admission: spillway(),
				Arrivals: arrivals(bench.Arrival{}, bench.Arrival{}),
				Faults: []bench.Fault{{At: 500 * ms, Do: func(w *bench.World) {
					w.Kill(0)
					w.Slow(1, 0.01)
				}}}},
			nil, // asserted below: both end whole
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := outcomes(run(t, &c.world))
			if c.want == nil {
				for _, o := range got {
					if !o.Whole {
						t.Errorf("request %d: %+v", o.Request, o)
					}
				}
				return
			}
			slices.SortStableFunc(got, func(a, b outcome) int { return a.Request - b.Request })
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("attempts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestWorldRetries sends clients away and sees when they come back.
func TestWorldRetries(t *testing.T) {
	w := &bench.World{
		Servers: []bench.Server{plain(9)}, Proxy: &bench.Proxy{Rate: 0.1, Burst: 0}, Clients: bench.Clients{Retries: 2},
		Arrivals: arrivals(bench.Arrival{}, bench.Arrival{At: 10 * ms}),
	}
	var sent []time.Duration
	for _, x := range run(t, w) {
		if x.Request == 1 {
			sent = append(sent, x.Sent)
		}
	}
	if len(sent) != 3 {
		t.Fatalf("attempts at %v, want three", sent)
	}
	for i, least := range []time.Duration{375 * ms, 750 * ms} { // half a second and a second, less up to a quarter
		if gap := sent[i+1] - sent[i]; gap < least || gap > least*4/3 {
			t.Errorf("retry %d after %v, want %v to %v", i+1, gap, least, least*4/3)
		}
	}
}

// overloaded is a world with more work than its engine can do.
func overloaded(seed uint64, manner bench.Manner, cfg admission.Config) *bench.World {
	law := engine.Default().Batching
	law.PrefixCache = false
	var all []bench.Arrival
	for i := range 3000 {
		all = append(all, bench.Arrival{
			At: time.Duration(i) * 20 * ms, Class: []inference.Class{inference.VIP, inference.Normal, inference.Normal, inference.Batch}[i%4],
			Tenant: fmt.Sprintf("t%d", i%5), Prompt: 800 + i%7*100, Output: 100 + i%11*20, Manner: manner,
		})
	}
	return &bench.World{Servers: []bench.Server{{Batching: law, Speed: 1}, {Batching: law, Speed: 1}}, Gateways: 1, Admission: cfg, Arrivals: arrivals(all...), Seed: seed}
}

// TestWorldRepeats plays the same run twice.
func TestWorldRepeats(t *testing.T) {
	a, b := run(t, overloaded(1, bench.Plain, spillway())), run(t, overloaded(1, bench.Plain, spillway()))
	if diff := cmp.Diff(a, b); diff != "" {
		t.Errorf("two runs of one seed differ:\n%s", diff)
	}
}

// TestWorldTickets sees what clients do with tickets.
func TestWorldTickets(t *testing.T) {
	for manner, want := range map[bench.Manner]float64{bench.Plain: 0.95, bench.Echoes: 0.95} {
		w := overloaded(1, manner, admission.Default())
		w.Clients.Retries = 1
		returned, admitted := 0, 0
		for _, x := range run(t, w) {
			if x.Returner {
				returned++
				if !x.Refused {
					admitted++
				}
			}
		}
		if returned < 50 || float64(admitted) < want*float64(returned) {
			t.Errorf("manner %d: %d of %d holders admitted", manner, admitted, returned)
		}
	}
}

// TestWorldStops ends with the context, and with an arrival that cannot be read.
func TestWorldStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := overloaded(1, bench.Plain, spillway()).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	broken := errors.New("broken trace")
	w := &bench.World{Servers: []bench.Server{plain(1)}, Arrivals: func(yield func(bench.Arrival, error) bool) { yield(bench.Arrival{}, broken) }}
	if _, err := w.Run(t.Context()); !errors.Is(err, broken) {
		t.Errorf("broken trace: %v", err)
	}
}

// TestWorldTell gives each attempt away instead of gathering it.
func TestWorldTell(t *testing.T) {
	told := 0
	w := &bench.World{Servers: []bench.Server{plain(1)}, Arrivals: arrivals(bench.Arrival{}, bench.Arrival{}), Tell: func(bench.Try) { told++ }}
	if got := run(t, w); len(got) != 0 || told != 2 {
		t.Errorf("%d gathered and %d told, want 0 and 2", len(got), told)
	}
}
