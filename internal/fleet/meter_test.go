package fleet_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// discard is a logger that keeps nothing.
func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// epoch is when tests that give their own times begin: in the middle of a slot of
// the record of unanswered leases.
var epoch = time.Unix(1_800_000_000, int64(50*time.Millisecond))

// after is an instant.
func after(d time.Duration) time.Time { return epoch.Add(d) }

// take takes a slot for a request of n prompt tokens.
func take(t testing.TB, f *fleet.Fleet, at time.Time, n int64, change func(*inference.Request)) *fleet.Lease {
	t.Helper()
	p := plan(f)
	p.Request.PromptBytes, p.Request.Stream = 4*n, true
	if change != nil {
		change(p.Request)
	}
	l, err := p.Acquire(at, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// one is a fleet of one instance.
func one(t testing.TB) (*fleet.Fleet, *fleet.Instance) {
	t.Helper()
	f := newFleet(t, fleet.Target{URL: "http://a:1"})
	return f, f.Snapshot().Regions[0].Pools[0].Instances[0]
}

func TestMeterOfAStream(t *testing.T) {
	f, i := one(t)
	m := i.Live.Meter()
	a := take(t, f, epoch, 100, nil)
	b := take(t, f, after(100*time.Millisecond), 50, nil)
	if got := m.Read(after(time.Second).UnixNano()); got.Context != 150 || got.Reading != time.Second || got.Firsts != 0 {
		t.Errorf("two prompts: %+v", got)
	}
	if i.Live.PromptTokens() != 150 || i.Live.Streams() != 0 {
		t.Errorf("%d prompt tokens, %d streams", i.Live.PromptTokens(), i.Live.Streams())
	}
	a.Sent(epoch)
	a.FirstToken(after(400*time.Millisecond), 400*time.Millisecond, true)
	a.FirstToken(after(time.Hour), time.Hour, true) // only the first call counts
	if i.Live.PromptTokens() != 50 || i.Live.Streams() != 1 || !a.Answered() || b.Answered() {
		t.Errorf("%d prompt tokens, %d streams", i.Live.PromptTokens(), i.Live.Streams())
	}
	for n := range 20 { // folded after 16 events, and at the end
		a.Token(after(400*time.Millisecond + time.Duration(n+1)*5*time.Millisecond))
	}
	if got := m.Read(after(500 * time.Millisecond).UnixNano()); got.Gaps != 16 || got.GapTime != 80*time.Millisecond || got.Context != 166 {
		t.Errorf("sixteen events: %+v", got)
	}
	a.Token(after(700 * time.Millisecond)) // or after 100 ms
	if got := m.Read(after(700 * time.Millisecond).UnixNano()); got.Gaps != 21 || got.GapTime != 300*time.Millisecond {
		t.Errorf("a gap of 200 ms: %+v", got)
	}
	if n, sum := a.Pace(); n != 21 || sum != 300*time.Millisecond || !a.Start().Equal(epoch) {
		t.Errorf("pace %d, %v", n, sum)
	}
	b.FirstToken(after(600*time.Millisecond), 500*time.Millisecond, true)
	a.Verdict = inference.VerdictBusy
	a.Release(after(time.Second))
	a.Release(after(time.Second))
	b.Release(after(time.Second))
	want := fleet.Reading{
		Gaps: 21, GapTime: 300 * time.Millisecond, Firsts: 2, FirstAll: 900 * time.Millisecond, Ahead: 100 + 150, Prompt: 150, Prompts: 2,
		Reading: 600 * time.Millisecond, Busy: 1,
	}
	if diff := cmp.Diff(want, m.Read(after(2*time.Second).UnixNano())); diff != "" {
		t.Errorf("at the end (-want +got):\n%s", diff)
	}
	if i.Live.Streams() != 0 || i.Live.InFlight() != 0 || i.Live.PromptTokens() != 0 {
		t.Errorf("left: %d streams, %d in flight, %d prompt tokens", i.Live.Streams(), i.Live.InFlight(), i.Live.PromptTokens())
	}
}

// TestOldest is what waits for its first token; answers in one piece do not, for
// those have theirs when all is done, but for embeddings.
func TestOldest(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*inference.Request)
		do     func(*fleet.Lease)
		want   time.Duration
	}{
		"a stream":                 {nil, func(*fleet.Lease) {}, 3 * time.Second},
		"a stream that answers":    {nil, func(l *fleet.Lease) { l.FirstToken(after(time.Second), time.Second, true) }, 0},
		"a stream that ends":       {nil, func(l *fleet.Lease) { l.Release(after(time.Second)) }, 0},
		"in one piece":             {func(r *inference.Request) { r.Stream = false }, func(*fleet.Lease) {}, 0},
		"in one piece, as streams": {func(r *inference.Request) { r.Stream = false }, func(l *fleet.Lease) { l.AsStream() }, 3 * time.Second},
		"in one piece, as streams, that ends": {func(r *inference.Request) { r.Stream = false }, func(l *fleet.Lease) {
			l.AsStream()
			l.AsStream()
			l.Release(after(time.Second))
		}, 0},
		"embeddings": {func(r *inference.Request) { r.Stream, r.Surface = false, inference.Embeddings }, func(*fleet.Lease) {}, 3 * time.Second},
		"embeddings that answer": {func(r *inference.Request) { r.Stream, r.Surface = false, inference.Embeddings }, func(l *fleet.Lease) {
			l.FirstToken(after(time.Second), time.Second, false)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f, i := one(t)
			l := take(t, f, epoch, 10, c.change)
			c.do(l)
			if got := i.Live.Meter().Oldest(after(3 * time.Second).UnixNano()); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			l.Release(after(4 * time.Second))
			if got := i.Live.Meter().Oldest(after(4 * time.Second).UnixNano()); got != 0 {
				t.Errorf("at the end: got %v", got)
			}
		})
	}
}

// watcher is a fleet.Watcher that takes notes.
type watcher struct {
	t    *testing.T
	note []string
}

func (w *watcher) Prefilled(l *fleet.Lease, _ time.Time, took time.Duration) {
	w.note = append(w.note, fmt.Sprintf("prefilled after %v, %d outstanding", took, l.Instance.Live.PromptTokens()))
}

func (w *watcher) Released(l *fleet.Lease, _ time.Time) {
	w.note = append(w.note, fmt.Sprintf("released, %d in flight", l.Instance.Live.InFlight()))
}

// TestWatchers are told once, after the counters have changed.
func TestWatchers(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*fleet.Lease)
		want []string
	}{
		"a stream": {func(l *fleet.Lease) {
			l.FirstToken(epoch, time.Second, true)
			l.FirstToken(epoch, time.Minute, true)
			l.Token(epoch)
		}, []string{"prefilled after 1s, 0 outstanding", "released, 0 in flight"}},
		"in one piece":         {func(l *fleet.Lease) { l.FirstToken(epoch, time.Second, false) }, []string{"prefilled after 1s, 0 outstanding", "released, 0 in flight"}},
		"without a first byte": {func(l *fleet.Lease) { l.Sent(epoch) }, []string{"released, 0 in flight"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := one(t)
			w := &watcher{t: t}
			l := take(t, f, epoch, 10, nil)
			l.Watch = w
			c.do(l)
			l.Release(epoch)
			l.Release(epoch)
			if diff := cmp.Diff(c.want, w.note); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeterLearnsTokensAnEvent(t *testing.T) {
	f, i := one(t)
	m := i.Live.Meter()
	if m.PerEvent() != 1 {
		t.Errorf("at first %v", m.PerEvent())
	}
	for range 100 {
		m.Calibrate(300, 100)
	}
	m.Calibrate(0, 100)
	m.Calibrate(100, 0)
	m.Calibrate(-1, 1)
	if math.Abs(m.PerEvent()-3) > 0.01 {
		t.Errorf("got %v, want 3", m.PerEvent())
	}
	l := take(t, f, epoch, 10, nil)
	l.FirstToken(epoch, 0, true)
	for n := range 32 {
		l.Token(after(time.Duration(n+1) * time.Millisecond))
	}
	if got := m.Read(epoch.UnixNano()).Context; got < 10+94 || got > 10+96 {
		t.Errorf("%d tokens are held after 32 events", got)
	}
	l.Release(epoch)
	if got := m.Read(epoch.UnixNano()).Context; got != 0 {
		t.Errorf("%d tokens are held at the end", got)
	}
}

func TestMeterCountsPreemptions(t *testing.T) {
	m := new(fleet.Live).Meter()
	for _, c := range []struct {
		total int64
		want  int64
	}{{-1, 0}, {7, 0}, {7, 0}, {10, 3}, {-1, 3}, {12, 5}, {2, 5}, {4, 7}} {
		m.Preempted(c.total)
		if got := m.Read(0).Preempt; got != c.want {
			t.Errorf("after %d: got %d, want %d", c.total, got, c.want)
		}
	}
	m.Judge(true)
	m.Judge(false)
	m.Busied()
	if got := m.Read(0); got.Ended != 2 || got.Slow != 1 || got.Busy != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestReadingIsTheTimeWithPrompts however many there are.
func TestReadingIsTheTimeWithPrompts(t *testing.T) {
	f, i := one(t)
	m := i.Live.Meter()
	read := func(at time.Duration) time.Duration { return m.Read(after(at).UnixNano()).Reading }
	a := take(t, f, after(0), 10, nil)
	b := take(t, f, after(time.Second), 10, nil)
	a.FirstToken(after(2*time.Second), 0, true)
	if got := read(3 * time.Second); got != 3*time.Second {
		t.Errorf("got %v, want 3s", got)
	}
	b.Release(after(4 * time.Second))
	if got := read(9 * time.Second); got != 4*time.Second {
		t.Errorf("got %v, want 4s", got)
	}
	c := take(t, f, after(10*time.Second), 10, nil)
	if got := read(11 * time.Second); got != 5*time.Second {
		t.Errorf("got %v, want 5s", got)
	}
	c.Release(after(12 * time.Second))
	a.Release(after(12 * time.Second))
	if got := read(time.Minute); got != 6*time.Second {
		t.Errorf("got %v, want 6s", got)
	}
}

func TestBudgetsOfAnInstance(t *testing.T) {
	f, i := one(t)
	status := func() fleet.Status { return i.Status(epoch.UnixNano()) }
	type limits struct{ requests, prompts, memory int64 }
	for name, c := range map[string]struct {
		limits limits
		run    []int64 // prompts in flight
		first  bool    // their first tokens have come
		want   fleet.Status
	}{
		"none":                          {limits{}, []int64{1000, 1000}, false, fleet.Open},
		"below the limit":               {limits{3, 0, 0}, []int64{1, 1}, false, fleet.Open},
		"at the limit":                  {limits{2, 0, 0}, []int64{1, 1}, false, fleet.Full},
		"over the limit":                {limits{1, 0, 0}, []int64{1, 1}, false, fleet.Full},
		"below the window":              {limits{0, 101, 0}, []int64{50, 50}, false, fleet.Open},
		"at the window":                 {limits{0, 100, 0}, []int64{50, 50}, false, fleet.Full},
		"over the window by the last":   {limits{0, 51, 0}, []int64{50, 5000}, false, fleet.Full},
		"read prompts leave the window": {limits{0, 100, 0}, []int64{50, 50}, true, fleet.Open},
		"below the memory":              {limits{0, 0, 101}, []int64{50, 50}, true, fleet.Open},
		"at the memory":                 {limits{0, 0, 100}, []int64{50, 50}, true, fleet.Full},
		"a memory of nothing":           {limits{0, 0, 1}, nil, true, fleet.Open},
	} {
		t.Run(name, func(t *testing.T) {
			var leases []*fleet.Lease
			for _, n := range c.run {
				l := take(t, f, epoch, n, nil)
				if c.first {
					l.FirstToken(epoch, 0, true)
				}
				leases = append(leases, l)
			}
			i.Live.SetLimits(c.limits.requests, c.limits.prompts, c.limits.memory)
			if a, b, m := i.Live.Limits(); a != c.limits.requests || b != c.limits.prompts || m != c.limits.memory {
				t.Errorf("limits %d, %d, %d", a, b, m)
			}
			if got := status(); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			i.Live.SetLimits(0, 0, 0)
			for _, l := range leases {
				l.Release(epoch)
			}
		})
	}
}

func TestFullness(t *testing.T) {
	f, i := one(t)
	now := epoch.UnixNano()
	if got := i.Live.Fullness(now); got != 0 {
		t.Errorf("without limits %v", got)
	}
	i.Live.SetLimits(10, 1000, 0)
	l := take(t, f, epoch, 500, nil)
	i.Live.Report(3, now+1) // two of others
	if got := i.Live.Fullness(now); math.Abs(got-(0.4+0.5)) > 1e-9 {
		t.Errorf("got %v, want 0.9", got)
	}
	l.Release(epoch)
}

// TestALimitIsExactUnderRaces as a capacity is.
func TestALimitIsExactUnderRaces(t *testing.T) {
	f, i := one(t)
	i.Live.SetLimits(5, 0, 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				if l, err := plan(f).Acquire(epoch, nil); err == nil {
					if n := i.Live.InFlight(); n > 5+8 { // those that are taken back at once count for an instant
						t.Errorf("%d in flight", n)
					}
					l.FirstToken(epoch, 0, true)
					l.Release(epoch)
				}
			}
		})
	}
	wg.Wait()
	if i.Live.InFlight() != 0 || i.Live.PromptTokens() != 0 || i.Live.Meter().Read(0).Context != 0 || i.Live.Streams() != 0 {
		t.Error("something is left")
	}
}

// TestReadingGoesOnUnderRaces: whatever order the counters change in, a prompt that
// stands is counted from the next one on.
func TestReadingGoesOnUnderRaces(t *testing.T) {
	f, i := one(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				take(t, f, epoch, 10, nil).Release(epoch)
			}
		})
	}
	wg.Wait()
	m := i.Live.Meter()
	before := m.Read(after(time.Second).UnixNano()).Reading
	if again := m.Read(after(2 * time.Second).UnixNano()).Reading; again != before {
		t.Errorf("nothing stands, and the time goes on: %v, %v", before, again)
	}
}

func TestPlanKeepsToItsModel(t *testing.T) {
	f := fleet.New(discard())
	layout := fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{
		{Name: "big", Static: []fleet.Target{{URL: "http://a:1"}}}, {Name: "small", Static: []fleet.Target{{URL: "http://b:1"}}},
	}}}}
	if err := f.Apply(layout); err != nil {
		t.Fatal(err)
	}
	pools := f.Snapshot().Regions[0].Pools
	p := plan(f)
	p.Candidates[1].Fallback = "small"
	p.Faithful = true
	pools[0].Instances[0].Live.Cool(after(3 * time.Second).UnixNano())
	if l, s := p.Take(epoch, nil); l != nil || s != fleet.Cooling {
		t.Errorf("faithful: got %v, %v", l, s)
	}
	e := new(inference.Error)
	if err := p.Refusal(epoch, nil); !errors.As(err, &e) || e.RetryAfter != 3*time.Second || e.Code != inference.CodeOverloaded || e.Reason != "cooling" {
		t.Errorf("got %v", err)
	}
	tried := []*fleet.Instance{pools[0].Instances[0]}
	if _, s := p.Take(epoch, tried); s != fleet.Down {
		t.Errorf("nothing left: got %v", s)
	}
	if err := p.Refusal(epoch, tried); !errors.As(err, &e) || e.RetryAfter != 5*time.Second || e.Code != inference.CodeNoCapacity {
		t.Errorf("got %v", err)
	}
	p.Faithful = false
	l, s := p.Take(epoch, tried)
	if l == nil || s != fleet.Open || l.Candidate.Fallback != "small" || l.Instance.Pool.Label != "small" {
		t.Fatalf("got %+v, %v", l, s)
	}
	l.Release(epoch)
	p.Tokens = 77
	if l, _ = p.Take(epoch, tried); l.Prompt != 77 {
		t.Errorf("the prompt has %d tokens, want the plan's 77", l.Prompt)
	}
	l.Release(epoch)
}

func TestTheReserve(t *testing.T) {
	f := fleet.New(discard())
	layout := fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{
		{Name: "gpu", Standby: true, Static: []fleet.Target{{URL: "http://a:1"}}},
	}}}}
	apply := func() {
		if err := f.Apply(layout); err != nil {
			t.Fatal(err)
		}
	}
	apply()
	status := func() fleet.Status { return f.Snapshot().Regions[0].Pools[0].Instances[0].Status(epoch.UnixNano()) }
	check := func(want fleet.Status) {
		t.Helper()
		if got := status(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	check(fleet.Standby)
	f.SetReserve(true)
	check(fleet.Open)
	layout.Regions[0].Pools[0].Static = []fleet.Target{{URL: "http://b:1"}}
	apply() // one that comes while the reserve is called
	check(fleet.Open)
	f.SetReserve(false)
	check(fleet.Standby)
	layout.Regions[0].Pools[0].Standby = false
	apply()
	check(fleet.Open)
}
