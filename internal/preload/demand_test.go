package preload_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
)

func TestDemandForecastsASteadyQuestion(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	now := monday
	for range 60 {
		ask(d, "steady", now.Add(time.Minute), 20)
		now = now.Add(5 * time.Minute)
	}
	got := predicted(d, now, 5*time.Minute)[key("steady")]
	if !near(got, 20, 0.1) {
		t.Errorf("next window: got %v, want 20", got)
	}
	got = predicted(d, now, time.Hour)[key("steady")]
	if !near(got, 240, 0.1) {
		t.Errorf("next hour: got %v, want 240", got)
	}
}

func TestAnOpenWindowCountsForItsPart(t *testing.T) {
	for name, at := range map[string]time.Duration{"begun": time.Second, "half": 150 * time.Second, "over": 299 * time.Second} {
		t.Run(name, func(t *testing.T) {
			d := preload.NewDemand(preload.Default())
			now := monday
			for range 60 {
				ask(d, "steady", now, 40)
				now = now.Add(5 * time.Minute)
			}
			ask(d, "steady", now, int(40*at/(5*time.Minute)))
			if got := predicted(d, now.Add(at), 5*time.Minute)[key("steady")]; !near(got, 40, 0.15) {
				t.Errorf("got %v, want 40", got)
			}
		})
	}
}

func TestAQuestionAskedOnceIsNotPredicted(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	ask(d, "once", monday, 1)
	ask(d, "twice", monday, 2)
	got := predicted(d, monday.Add(5*time.Minute), time.Hour)
	if _, ok := got[key("once")]; ok {
		t.Error("a question asked once is predicted")
	}
	if n := got[key("twice")]; n <= 0 || n > 0.5 {
		t.Errorf("asked twice: got %v an hour, want a little", n)
	}
}

func TestADailyPeakIsAnticipatedOnTheSecondDay(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	rate := func(at time.Time) int {
		if at.Hour() == 9 {
			return 60
		}
		return 4
	}
	now := monday
	play := func(until time.Time) {
		for now.Before(until) {
			ask(d, "menu", now, rate(now))
			now = now.Add(5 * time.Minute)
		}
	}
	before := func(day int) float64 {
		play(monday.AddDate(0, 0, day).Add(8*time.Hour + 55*time.Minute))
		return predicted(d, now, 5*time.Minute)[key("menu")]
	}
	if got := before(0); got > 8 {
		t.Errorf("on the first day: got %v, want about 4", got)
	}
	if got := before(1); got < 30 || got > 90 {
		t.Errorf("on the second day: got %v, want about 60", got)
	}
	if got := before(3); !near(got, 60, 0.3) {
		t.Errorf("on the fourth day: got %v, want about 60", got)
	}
	play(monday.AddDate(0, 0, 4).Add(9*time.Hour + 55*time.Minute))
	if got := predicted(d, now, 5*time.Minute)[key("menu")]; got > 12 {
		t.Errorf("at its end: got %v, want about 4", got)
	}
}

// A key that is new today follows the rhythm that all keys have.
func TestTheRhythmOfAllTeachesNewKeys(t *testing.T) {
	cfg := preload.Default()
	d := preload.NewDemand(cfg)
	for i := range 2 * perDay {
		at := monday.Add(time.Duration(i) * cfg.Window)
		n := 1
		if at.Hour() == 9 {
			n = 12
		}
		for q := range 40 {
			ask(d, q, at, n)
		}
		if i >= perDay+6*12 { // from six o'clock of the second day
			ask(d, "new", at, 2*n)
		}
		if i == perDay+9*12-2 {
			if got := predicted(d, at.Add(299*time.Second).Add(5*time.Minute), 5*time.Minute)[key("new")]; got < 8 {
				t.Errorf("before nine: got %v, want some 20", got)
			}
			return
		}
	}
}

func TestLateEvents(t *testing.T) {
	cfg := preload.Default()
	w := cfg.Window
	tests := map[string]struct {
		late time.Duration // behind the watermark
		want bool          // counted
	}{
		"in the same window":      {w / 4, true},
		"in the window before":    {w, true},
		"in one that is closed":   {2 * w, false},
		"long ago":                {100 * w, false},
		"as the watermark stands": {0, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := preload.New(cfg, preload.Parts{})
			now := monday.Add(w / 2)
			p.Tick(now)
			ask(p, "late", now.Add(-tt.late), 3)
			wantMetrics(t, p, map[string]float64{
				"asks_total result=miss":           map[bool]float64{true: 3}[tt.want],
				"events_dropped_total reason=late": map[bool]float64{false: 3}[tt.want],
			})
		})
	}
}

// An event of the window before counts there, not in the newest.
func TestALateEventCountsInItsOwnWindow(t *testing.T) {
	w := preload.Default().Window
	forecast := func(late bool) float64 {
		d := preload.NewDemand(preload.Default())
		now := monday
		for range 40 {
			if !late {
				ask(d, "q", now, 20)
			}
			d.Tick(now.Add(w))
			if late {
				ask(d, "q", now, 20)
			}
			now = now.Add(w)
		}
		return predicted(d, now, w)[key("q")]
	}
	if in, late := forecast(false), forecast(true); !near(late, in, 0.05) {
		t.Errorf("late: got %v, want %v as in time", late, in)
	}
}

func TestSilenceIsForgotten(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	now := monday
	for range 100 {
		ask(d, "q", now, 50)
		now = now.Add(5 * time.Minute)
	}
	now = now.Add(30 * 24 * time.Hour)
	if got := predicted(d, now, time.Hour)[key("q")]; got > 1 {
		t.Errorf("after a month of silence: got %v, want nothing", got)
	}
}

// Space-Saving keeps every key with more than 1/m of the asks; the doorkeeper keeps
// questions that never come again from pushing them out.
func TestHotKeysAreKeptInAStreamOfOthers(t *testing.T) {
	cfg := preload.Default()
	cfg.Keys = 256
	d := preload.NewDemand(cfg)
	r := rand.New(rand.NewPCG(5, 6))
	zipf := rand.NewZipf(r, 1.1, 1, 1999)
	now := monday
	for i := range 200_000 {
		if i%500 == 0 {
			now = now.Add(time.Minute)
		}
		if r.IntN(10) < 6 {
			ask(d, zipf.Uint64(), now, 1)
		} else {
			ask(d, 1_000_000+i, now, 1)
		}
	}
	got := predicted(d, now, time.Hour)
	if len(got) > cfg.Keys {
		t.Errorf("got %d keys, want at most %d", len(got), cfg.Keys)
	}
	for rank := range 50 {
		if got[key(rank)] == 0 {
			t.Errorf("the question of rank %d is not kept", rank)
		}
	}
}

func TestRequestsAreBoundedInBytes(t *testing.T) {
	cfg := preload.Default()
	cfg.MaxBytes = 256 << 10
	p := preload.New(cfg, preload.Parts{})
	big := request("big")
	big.Body = bytes.Repeat([]byte("x"), 4<<10)
	for q := range 500 {
		for range 2 + q/50 {
			p.Observe(preload.Asked{Key: key(q), Request: big, At: monday})
		}
	}
	m := metrics(t, p)
	if got := m["request_bytes"]; got > float64(cfg.MaxBytes) || got < 0.6*float64(cfg.MaxBytes) {
		t.Errorf("got %v bytes, want at most %v and not much less", got, int64(cfg.MaxBytes))
	}
	if m["keys"] != 500 {
		t.Errorf("got %v keys, want 500", m["keys"])
	}
	// The hottest have theirs.
	d := preload.NewDemand(cfg)
	for q := range 500 {
		for range 2 + q/50 {
			d.Observe(preload.Asked{Key: key(q), Request: big, At: monday})
		}
	}
	hottest, kept := 0, predicted(d, monday, time.Hour)
	for q := 450; q < 500; q++ {
		if _, ok := kept[key(q)]; ok {
			hottest++
		}
	}
	if hottest < 3*len(kept)/5 {
		t.Errorf("of %d requests kept %d are of the hottest tenth", len(kept), hottest)
	}
}

func TestAHugeRequestIsNotKept(t *testing.T) {
	p := preload.New(preload.Default(), preload.Parts{})
	huge := request("huge")
	huge.Body = make([]byte, 2<<20)
	for range 3 {
		p.Observe(preload.Asked{Key: key("huge"), Request: huge, At: monday})
	}
	wantMetrics(t, p, map[string]float64{"keys": 1, "requests": 0, "request_bytes": 0})
}

func TestWhatIsKeptIsACopy(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	req := request("q")
	want := bytes.Clone(req.Body)
	for range 2 {
		d.Observe(preload.Asked{Key: key("q"), Request: req, At: monday})
	}
	clear(req.Body)
	req.Header.Set("Accept-Language", "fr")
	list := d.Predict(monday, preload.Window{Start: monday.Add(5 * time.Minute)}, time.Hour)
	if len(list) != 1 {
		t.Fatalf("got %d predictions, want 1", len(list))
	}
	got := list[0].Request
	if !bytes.Equal(got.Body, want) || got.Header.Get("Accept-Language") != "de" {
		t.Errorf("got %s with language %q", got.Body, got.Header.Get("Accept-Language"))
	}
	if got.Class != inference.Idle || got.Tenant != "acme" {
		t.Errorf("got class %v of %q, want idle of acme", got.Class, got.Tenant)
	}
}

func TestOnlyWhatCanBeAskedAgainIsKept(t *testing.T) {
	varies := func(name string) bool { return name == "X-Persona-Key" || name == "X-Plan" || name == "Baggage" }
	for name, c := range map[string]struct {
		change func(*inference.Request)
		want   int
	}{
		"as it is":                       {func(*inference.Request) {}, 1},
		"a harmless query":               {func(r *inference.Request) { r.RawQuery = "api-version=1&b=%20" }, 1},
		"a key in the query":             {func(r *inference.Request) { r.RawQuery = "api-version=1&key=abc" }, 0},
		"a query that cannot be read":    {func(r *inference.Request) { r.RawQuery = "a=%zz" }, 0},
		"a field that varies":            {func(r *inference.Request) { r.Header.Set("X-Plan", "gold") }, 1},
		"one that may be a credential":   {func(r *inference.Request) { r.Header.Set("X-Persona-Key", "pirate") }, 0},
		"one whose value is one":         {func(r *inference.Request) { r.Header.Set("X-Plan", "Bearer x") }, 0},
		"one of a single exchange":       {func(r *inference.Request) { r.Header.Set("Baggage", "a=1") }, 0},
		"a credential that is no part":   {func(r *inference.Request) { r.Header.Set("X-Other-Key", "x") }, 1},
		"no field is known to be a part": {func(r *inference.Request) { r.Header = nil }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := preload.NewDemand(preload.Default())
			req := request("q")
			c.change(req)
			for range 3 {
				d.Observe(preload.Asked{Key: key("q"), Request: req, At: monday, Varies: varies})
			}
			if got := len(predicted(d, monday, time.Hour)); got != c.want {
				t.Errorf("got %d predictions, want %d", got, c.want)
			}
		})
	}
}

func TestForgottenRequestsAreCopiedAgain(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	now := monday
	for range 60 {
		req := request("q")
		req.Steered = "old"
		d.Observe(preload.Asked{Key: key("q"), Request: req, At: now})
		now = now.Add(5 * time.Minute)
	}
	before := predicted(d, now, time.Hour)[key("q")]
	d.Forget()
	if got := predicted(d, now, time.Hour); len(got) != 0 {
		t.Errorf("predicted what is forgotten: %v", got)
	}
	req := request("q")
	req.Steered = "new"
	d.Observe(preload.Asked{Key: key("q"), Request: req, At: now})
	list := d.Predict(now, preload.Window{Start: now.Add(5 * time.Minute)}, time.Hour)
	if len(list) != 1 || list[0].Request.Steered != "new" || !near(list[0].Asks, before, 0.2) {
		t.Errorf("got %+v, want a request steered anew, and about %v asks", list, before)
	}
}

func TestTokens(t *testing.T) {
	d := preload.NewDemand(preload.Default())
	bounded := request("b")
	bounded.MaxTokens = 10
	for range 2 {
		d.Observe(preload.Asked{Key: key("known"), Request: request("k"), At: monday, Tokens: 777})
		d.Observe(preload.Asked{Key: key("bounded"), Request: bounded, At: monday})
		d.Observe(preload.Asked{Key: key("usual"), Request: request("u"), At: monday})
	}
	prompt := request("k").PromptTokens()
	want := map[[32]byte]int64{key("known"): prompt + 777, key("bounded"): prompt + 10, key("usual"): prompt + 256}
	for _, p := range d.Predict(monday, preload.Window{Start: monday.Add(5 * time.Minute)}, time.Hour) {
		if p.Tokens != want[p.Key] {
			t.Errorf("got %d tokens, want %d", p.Tokens, want[p.Key])
		}
	}
}

func TestEventsFromManyGoroutines(t *testing.T) {
	p := preload.New(preload.Default(), preload.Parts{})
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 2000 {
				ask(p, int(math.Sqrt(float64(r.IntN(100)))), monday.Add(time.Duration(i)*time.Second), 1)
			}
		})
	}
	for i := range 20 {
		now := monday.Add(time.Duration(i) * 100 * time.Second)
		p.Tick(now)
		metrics(t, p)
	}
	all.Wait()
	m := metrics(t, p)
	if got := m["asks_total result=miss"] + m["events_dropped_total reason=late"]; got != 16_000 {
		t.Errorf("got %v events, want 16000", got)
	}
}

func BenchmarkObserveKnown(b *testing.B) {
	d := preload.NewDemand(preload.Default())
	asks := make([]preload.Asked, 1024)
	for i := range asks {
		asks[i] = preload.Asked{Key: key(i), Request: request(i), At: monday}
		d.Observe(asks[i])
		d.Observe(asks[i])
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		d.Observe(asks[i%len(asks)])
		i++
	}
}

func BenchmarkObserveNew(b *testing.B) {
	d := preload.NewDemand(preload.Default())
	req := request("q")
	r := rand.NewChaCha8(key("new"))
	var k [32]byte
	b.ReportAllocs()
	for b.Loop() {
		r.Read(k[:])
		d.Observe(preload.Asked{Key: k, Request: req, At: monday})
	}
}

func BenchmarkObserveParallel(b *testing.B) {
	d := preload.NewDemand(preload.Default())
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		asks := make([]preload.Asked, 256)
		for i := range asks {
			asks[i] = preload.Asked{Key: key(i), Request: request(i), At: monday}
		}
		for i := 0; pb.Next(); i++ {
			d.Observe(asks[i%len(asks)])
		}
	})
}

func BenchmarkWindow(b *testing.B) {
	d := preload.NewDemand(preload.Default())
	for i := range 4096 {
		ask(d, i, monday, 2)
	}
	now := monday
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(5 * time.Minute)
		d.Predict(now, preload.Window{Start: now.Add(5 * time.Minute)}, time.Hour)
	}
}
