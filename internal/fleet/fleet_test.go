package fleet_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// firstOpen picks the first open node.
type firstOpen struct{}

func (firstOpen) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	for i, n := range nodes {
		if q.Open(n) {
			return i
		}
	}
	return -1
}

// newFleet builds one region with one pool of the given targets.
func newFleet(t testing.TB, targets ...fleet.Target) *fleet.Fleet {
	t.Helper()
	f := fleet.New(slog.New(slog.DiscardHandler))
	err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"m": "m"}, Static: targets, Discovered: true, SlowStart: 10 * time.Second,
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// plan offers every pool of the fleet.
func plan(f *fleet.Fleet) *fleet.Plan {
	p := fleet.NewPlan(&inference.Request{Body: make([]byte, 400), Fields: inference.Fields{Model: "m"}})
	for _, r := range f.Snapshot().Regions {
		for _, pool := range r.Pools {
			p.Candidates = append(p.Candidates, fleet.Candidate{Pool: pool, Model: "m", Picker: firstOpen{}})
		}
	}
	return p
}

func TestLeaseCountsOnAllTiersAndOnce(t *testing.T) {
	f := newFleet(t, fleet.Target{URL: "http://a:1"})
	l, err := plan(f).Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := f.Snapshot().Regions[0]
	lives := map[string]*fleet.Live{"region": r.Live, "pool": r.Pools[0].Live, "instance": l.Instance.Live}
	check := func(when string, requests, tokens int64) {
		t.Helper()
		for name, live := range lives {
			if live.InFlight() != requests || live.PromptTokens() != tokens {
				t.Errorf("%s: %s has %d requests, %d tokens; want %d, %d", when, name, live.InFlight(), live.PromptTokens(), requests, tokens)
			}
		}
	}
	check("held", 1, 100)
	l.FirstToken(time.Now(), 200*time.Millisecond, true)
	check("first token", 1, 0)
	if got := l.Instance.Live.TTFT(); got != 200*time.Millisecond {
		t.Errorf("ttft: got %v", got)
	}
	l.Release(time.Now())
	l.Release(time.Now())
	check("released", 0, 0)
}

func TestCapacityIsExactUnderRaces(t *testing.T) {
	f := newFleet(t, fleet.Target{URL: "http://a:1", MaxInFlight: 3}, fleet.Target{URL: "http://b:1", MaxInFlight: 4})
	var mu sync.Mutex
	var got []*fleet.Lease
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if l, err := plan(f).Acquire(time.Now(), nil); err == nil {
				mu.Lock()
				got = append(got, l)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(got) != 7 {
		t.Errorf("got %d leases, want 7", len(got))
	}
	_, err := plan(f).Acquire(time.Now(), nil)
	var e *inference.Error
	if !errors.As(err, &e) || e.Code != inference.CodeOverloaded || e.RetryAfter <= 0 {
		t.Errorf("full: got %v", err)
	}
	for _, l := range got {
		l.Release(time.Now())
	}
	if n := f.Snapshot().Regions[0].Live.InFlight(); n != 0 {
		t.Errorf("left over: %d", n)
	}
}

func TestTriedAndBackups(t *testing.T) {
	f := newFleet(t, fleet.Target{URL: "http://a:1", Backup: true}, fleet.Target{URL: "http://b:1"})
	l, err := plan(f).Acquire(time.Now(), nil)
	if err != nil || l.Instance.URL.Host != "b:1" {
		t.Fatalf("got %v, %v; want the primary", l, err)
	}
	l2, err := plan(f).Acquire(time.Now(), []*fleet.Instance{l.Instance})
	if err != nil || l2.Instance.URL.Host != "a:1" {
		t.Fatalf("got %v, %v; want the backup", l2, err)
	}
	_, err = plan(f).Acquire(time.Now(), []*fleet.Instance{l.Instance, l2.Instance})
	var e *inference.Error
	if !errors.As(err, &e) || e.Code != inference.CodeNoCapacity {
		t.Errorf("all tried: got %v", err)
	}
}

func TestStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Target{URL: "http://a:1", Weight: 10})
		i := f.Snapshot().Regions[0].Pools[0].Instances[0]
		now := func() int64 { return time.Now().UnixNano() }
		expect := func(want fleet.Status) {
			t.Helper()
			if got := i.Status(now()); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		expect(fleet.Open)
		i.Live.Cool(now() + int64(2*time.Second))
		i.Live.Cool(now() + int64(time.Second))
		expect(fleet.Cooling)
		time.Sleep(1500 * time.Millisecond)
		expect(fleet.Cooling)
		time.Sleep(time.Second)
		expect(fleet.Open)
		i.Live.SetDraining(true)
		expect(fleet.Draining)
		i.Live.SetDraining(false)
		i.Live.SetDown(true, now())
		expect(fleet.Down)
		i.Live.SetDown(false, now())
		if w := i.EffectiveWeight(now()); w != 1 {
			t.Errorf("slow start: weight %v, want a tenth", w)
		}
		time.Sleep(5 * time.Second)
		if w := i.EffectiveWeight(now()); w != 5 {
			t.Errorf("half way: weight %v", w)
		}
		time.Sleep(5 * time.Second)
		if w := i.EffectiveWeight(now()); w != 10 {
			t.Errorf("after: weight %v", w)
		}
	})
}

func TestHalfOpenLetsOneThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Target{URL: "http://a:1"})
		i := f.Snapshot().Regions[0].Pools[0].Instances[0]
		i.Live.Eject(time.Now().Add(time.Second).UnixNano())
		if i.Status(time.Now().UnixNano()) != fleet.Ejected {
			t.Fatal("not ejected")
		}
		if l, err := plan(f).Acquire(time.Now(), nil); err != nil || !l.Panic {
			t.Fatalf("with nothing else the ejected instance is used: got %v, %v", l, err)
		} else {
			l.Release(time.Now())
		}
		time.Sleep(2 * time.Second)
		l, err := plan(f).Acquire(time.Now(), nil)
		if err != nil || !l.Probe() {
			t.Fatalf("half-open: got %v, %v", l, err)
		}
		if i.Status(time.Now().UnixNano()) != fleet.Ejected {
			t.Fatal("half-open: a second request would pass")
		}
		l.Release(time.Now())
		if l, err = plan(f).Acquire(time.Now(), nil); err != nil || !l.Probe() {
			t.Fatalf("a probe without verdict frees its place: got %v", err)
		}
		if !i.Live.Readmit(time.Now().UnixNano()) || i.Live.Ejected() {
			t.Error("not readmitted")
		}
		l.Release(time.Now())
	})
}

func TestCountersSurviveFlappingAndReload(t *testing.T) {
	f := newFleet(t)
	f.Update("eu/gpu", []fleet.Target{{URL: "http://a:1"}, {URL: "http://b:1/v1/"}})
	l, err := plan(f).Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Update("eu/gpu", []fleet.Target{{URL: "http://b:1"}})
	if _, ok := f.Snapshot().Instance("a:1"); ok {
		t.Fatal("a is still there")
	}
	f.Update("eu/gpu", nil)
	if _, ok := f.Snapshot().Instance("b:1"); !ok {
		t.Fatal("an empty answer removed the last known set")
	}
	f.Update("eu/gpu", []fleet.Target{{URL: "http://b:1"}, {URL: "http://a:1"}, {URL: "ftp://x"}})
	a, ok := f.Snapshot().Instance("eu/gpu/a:1")
	if !ok || a.Live.InFlight() != 1 {
		t.Fatalf("a came back with %v in flight, want 1", a.Live.InFlight())
	}
	l.Release(time.Now())
	if a.Live.InFlight() != 0 {
		t.Error("released on another counter")
	}
}

func TestFoundFollowsTheLayout(t *testing.T) {
	f := fleet.New(slog.New(slog.DiscardHandler))
	apply := func(p fleet.PoolLayout) {
		t.Helper()
		p.Name = "gpu"
		if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{p}}}}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, want ...string) {
		t.Helper()
		got := []string{}
		f.Snapshot().Instances(func(i *fleet.Instance) { got = append(got, i.URL.Host) })
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	a, b, c := fleet.Target{URL: "http://a:1"}, fleet.Target{URL: "http://b:1"}, fleet.Target{URL: "http://c:1"}
	apply(fleet.PoolLayout{Discovered: true, Found: []fleet.Target{a, {URL: "ftp://x"}}})
	want("found ahead", "a:1")
	f.Update("eu/gpu", []fleet.Target{b})
	want("found later", "b:1")
	apply(fleet.PoolLayout{Discovered: true})
	want("the source stays", "b:1")
	apply(fleet.PoolLayout{Discovered: true, Found: []fleet.Target{{URL: "ftp://x"}}})
	want("nothing usable ahead", "b:1")
	apply(fleet.PoolLayout{Static: []fleet.Target{c}})
	want("no source any more", "c:1")
	f.Update("eu/gpu", []fleet.Target{b})
	want("the last word of a source that ended", "c:1")
	apply(fleet.PoolLayout{Discovered: true, Static: []fleet.Target{c}})
	want("a source again", "c:1")
	f.Update("eu/cpu", []fleet.Target{b})
	want("another pool", "c:1")
}

func TestModelsAreLearnedForAPoolAsLongAsItStays(t *testing.T) {
	f := fleet.New(slog.New(slog.DiscardHandler))
	apply := func(pools ...fleet.PoolLayout) {
		t.Helper()
		if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: pools}}}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, want ...string) {
		t.Helper()
		if got := f.Snapshot().Models(); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	gpu := fleet.PoolLayout{Name: "gpu", Static: []fleet.Target{{URL: "http://a:1"}}}
	apply(gpu)
	f.Learn("eu/gpu", []string{"m"})
	want("learned", "m")
	apply(gpu)
	want("the pool stays", "m")
	apply()
	f.Learn("eu/gpu", []string{"m"})
	apply(gpu)
	want("the pool is another one")
}

// streams opens n leases that have had a first token after 100 ms.
func streams(t *testing.T, f *fleet.Fleet, n int) []*fleet.Lease {
	t.Helper()
	var out []*fleet.Lease
	for range n {
		l, err := plan(f).Acquire(time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		l.Sent(time.Now())
		time.Sleep(100 * time.Millisecond)
		l.FirstToken(time.Now(), 100*time.Millisecond, true)
		out = append(out, l)
	}
	return out
}

func TestStallOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Target{URL: "http://a:1"})
		i := f.Snapshot().Regions[0].Pools[0].Instances[0]
		ls := streams(t, f, 2)
		for range 160 { // a mean gap of 100 ms: stalled after 2 s
			time.Sleep(100 * time.Millisecond)
			ls[0].Token(time.Now())
			ls[1].Token(time.Now())
		}
		status := func() fleet.Status { return i.Status(time.Now().UnixNano()) }
		time.Sleep(1900 * time.Millisecond)
		if status() != fleet.Open {
			t.Fatalf("after 19 gaps: %v", status())
		}
		time.Sleep(200 * time.Millisecond)
		if status() != fleet.Stalled {
			t.Fatalf("after 21 gaps: %v", status())
		}
		time.Sleep(50 * time.Second)
		if status() != fleet.Stalled {
			t.Fatalf("what it has will show life by itself: %v", status())
		}
		time.Sleep(10 * time.Second)
		if status() != fleet.Open {
			t.Fatalf("one request may test it now: %v", status())
		}
		l, err := plan(f).Acquire(time.Now(), nil)
		if err != nil || status() != fleet.Stalled {
			t.Fatalf("only one: %v, %v", status(), err)
		}
		ls[0].Token(time.Now())
		if status() != fleet.Open {
			t.Fatalf("a token is a sign of life: %v", status())
		}
		l.Release(time.Now())
		ls[0].Release(time.Now())
		ls[1].Release(time.Now())
		time.Sleep(time.Hour)
		if status() != fleet.Open {
			t.Fatalf("silence without work is no stall: %v", status())
		}
	})
}

func TestStallOfFirstBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Target{URL: "http://a:1"})
		i := f.Snapshot().Regions[0].Pools[0].Instances[0]
		for range 50 { // p99 of 2 s or a little above
			l, _ := plan(f).Acquire(time.Now(), nil)
			l.Sent(time.Now())
			time.Sleep(2 * time.Second)
			l.FirstToken(time.Now(), 2*time.Second, false)
			l.Release(time.Now())
		}
		after := func(tokens int, d time.Duration) fleet.Status {
			p := plan(f)
			p.Request = &inference.Request{Body: make([]byte, 4*tokens), Fields: inference.Fields{Model: "m"}}
			l, err := p.Acquire(time.Now(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Release(time.Now())
			l.Sent(time.Now())
			time.Sleep(d)
			return i.Status(time.Now().UnixNano())
		}
		if got := after(100, 5900*time.Millisecond); got != fleet.Open {
			t.Errorf("within 3 x p99: %v", got)
		}
		if got := after(100, 7500*time.Millisecond); got != fleet.Stalled {
			t.Errorf("beyond 3 x p99: %v", got)
		}
	})
}

func TestLongPrefillIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, fleet.Target{URL: "http://a:1"})
		i := f.Snapshot().Regions[0].Pools[0].Instances[0]
		send := func(tokens int, took time.Duration, stream bool) *fleet.Lease {
			p := plan(f)
			p.Request = &inference.Request{Body: make([]byte, 4*tokens), Fields: inference.Fields{Model: "m", Stream: stream}}
			l, err := p.Acquire(time.Now(), nil)
			if err != nil {
				t.Fatal(err)
			}
			l.Sent(time.Now())
			time.Sleep(took)
			return l
		}
		for range 50 { // 1 ms a prompt token
			l := send(100, 100*time.Millisecond, true)
			l.FirstToken(time.Now(), 100*time.Millisecond, true)
			l.Release(time.Now())
		}
		status := func() fleet.Status { return i.Status(time.Now().UnixNano()) }
		long := send(10_000, 9*time.Second, true)
		if status() != fleet.Open {
			t.Errorf("a prompt of 10,000 tokens has waited for 9 s: %v", status())
		}
		long.Release(time.Now())
		whole := send(100, 10*time.Second, false)
		if status() != fleet.Open {
			t.Errorf("an answer in one piece is judged by the first tokens of streams: %v", status())
		}
		whole.Release(time.Now())
		short := send(100, 400*time.Millisecond, true)
		if status() != fleet.Stalled {
			t.Errorf("a first token is 4 times its p99 late: %v", status())
		}
		short.Release(time.Now())
	})
}

func TestQuantiles(t *testing.T) {
	var q fleet.Quantiles
	if q.Quantile(0.5) != 0 {
		t.Error("empty: not 0")
	}
	for i := range 5000 {
		q.Observe(time.Duration(i%100+1) * 10 * time.Millisecond)
	}
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond} {
		got := q.Quantile(share)
		if got < want || got > want*125/100 {
			t.Errorf("%v: got %v, want %v to 25%% above", share, got, want)
		}
	}
}

func TestReportCorrectsOnlyWhileFresh(t *testing.T) {
	var l fleet.Live
	l.Report(7, 100)
	if l.Load(99) != 7 || l.Load(100) != 0 {
		t.Errorf("got %d fresh, %d stale; want 7, 0", l.Load(99), l.Load(100))
	}
}

func TestPeakEWMA(t *testing.T) {
	var l fleet.Live
	l.ObserveTTFT(0, time.Second)
	l.ObserveTTFT(1, 3*time.Second)
	if l.TTFT() != 3*time.Second {
		t.Errorf("a peak counts at once: got %v", l.TTFT())
	}
	l.ObserveTTFT(1+int64(10*time.Second), time.Second)
	if got := l.TTFT(); got < 1700*time.Millisecond || got > 1800*time.Millisecond {
		t.Errorf("after one time constant: got %v, want 1+2/e s", got)
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"http://h:1":             "http://h:1",
		"http://h/":              "http://h:80",
		"https://api.example/v1": "https://api.example:443",
		"https://h/base/v1/":     "https://h:443/base",
		"http://[::1]:8000":      "http://[::1]:8000",
	} {
		u, err := fleet.ParseURL(in)
		if err != nil || u.String() != want {
			t.Errorf("%s: got %v, %v; want %s", in, u, err, want)
		}
	}
	for _, in := range []string{"", "h:1", "ftp://h", "http://", "http://:80", "http://u:p@h", "http://h?x=1"} {
		if u, err := fleet.ParseURL(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, u)
		} else if strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: the error shows a password: %v", in, err)
		}
	}
}

func BenchmarkAcquire(b *testing.B) {
	for _, n := range []int{3, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var targets []fleet.Target
			for i := range n {
				targets = append(targets, fleet.Target{URL: fmt.Sprintf("http://h%d:1", i)})
			}
			p := plan(newFleet(b, targets...))
			b.ReportAllocs()
			for b.Loop() {
				l, err := p.Acquire(time.Now(), nil)
				if err != nil {
					b.Fatal(err)
				}
				l.Release(time.Now())
			}
		})
	}
}
