package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shelf is a level in a test's hand.
type shelf struct {
	takes time.Duration // a Get or Put; it looks at its context

	mu      sync.Mutex
	entries map[cache.Key]*cache.Entry
	err     error
	putErr  error // of Put alone
	panics  bool
	gets    int
	puts    []int // sizes of batches
	sweeps  int
	late    int // sweeps that do something in all of their time, and leave something over
}

// newShelf is an empty level.
func newShelf() *shelf { return &shelf{entries: make(map[cache.Key]*cache.Entry)} }

// wait is the time that a call takes.
func (l *shelf) wait(ctx context.Context) error {
	if l.takes == 0 {
		return nil
	}
	select {
	case <-time.After(l.takes):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *shelf) Get(ctx context.Context, key cache.Key, now time.Time) (*cache.Entry, error) {
	l.mu.Lock()
	l.gets++
	l.mu.Unlock()
	if err := l.wait(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.panics {
		panic("a defect")
	}
	if l.err != nil {
		return nil, l.err
	}
	if e := l.entries[key]; e != nil && !now.After(e.Stale) {
		return e, nil
	}
	return nil, cache.ErrMiss
}

func (l *shelf) Put(ctx context.Context, entries []*cache.Entry) error {
	if err := l.wait(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.puts = append(l.puts, len(entries))
	if l.err != nil || l.putErr != nil {
		return errors.Join(l.err, l.putErr)
	}
	for _, e := range entries {
		l.entries[e.Key] = e
	}
	return nil
}

func (l *shelf) Purge(_ context.Context, f cache.Filter) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.entries)
	maps.DeleteFunc(l.entries, func(_ cache.Key, e *cache.Entry) bool { return f.Match(e) })
	return before - len(l.entries), l.err
}

func (l *shelf) Sweep(ctx context.Context, now time.Time) (int, error) {
	l.mu.Lock()
	l.sweeps++
	if l.late > 0 {
		l.late--
		l.mu.Unlock()
		<-ctx.Done()
		return 1, fmt.Errorf("sweep: %w", ctx.Err())
	}
	defer l.mu.Unlock()
	before := len(l.entries)
	maps.DeleteFunc(l.entries, func(_ cache.Key, e *cache.Entry) bool { return now.After(e.Stale) })
	return before - len(l.entries), l.err
}

// swept is how often it was called.
func (l *shelf) swept() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sweeps
}

// behind lets the next sweeps take all of their time.
func (l *shelf) behind(sweeps int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = sweeps
}

func (l *shelf) Census(context.Context) (cache.Census, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cache.Census{Entries: int64(len(l.entries)), Bytes: 7}, l.err
}

// only is the one entry of a level, or nil.
func (l *shelf) only() *cache.Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		return e
	}
	return nil
}

// bed is a cache over three of them.
type bed struct {
	*cache.Cache
	cfg               cache.Config
	memory, near, far *shelf
	asked             []cache.Asked
}

// newBed makes it; change edits its configuration.
func newBed(change func(*cache.Config)) *bed {
	b := &bed{cfg: cache.Default(), memory: newShelf(), near: newShelf(), far: newShelf()}
	b.cfg.Jitter = 0
	if change != nil {
		change(&b.cfg)
	}
	b.Cache = cache.New(b.cfg, cache.Parts{
		Memory: b.memory, Slower: []cache.Named{{Name: "near", Level: b.near}, {Name: "far", Level: b.far}},
		Asked: func(a cache.Asked) { b.asked = append(b.asked, a) }, Log: testkit.Discard(),
	})
	return b
}

// run runs the cache until the end of the test's bubble, or until stop.
func (b *bed) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// look looks a request up.
func (b *bed) look(t *testing.T, body string, change func(*inference.Request)) *cache.Handle {
	t.Helper()
	req := ask{body: body, tenant: "t"}.request(t)
	if change != nil {
		change(req)
	}
	plan := fleet.NewPlan(req)
	plan.Candidates = append(plan.Candidates, fleet.Candidate{Model: "m"})
	return b.Lookup(time.Now(), req, plan)
}

// answer is an answer in one piece.
func answer(says string) *inference.Transcript {
	return &inference.Transcript{Body: []byte(`{"choices":[{"message":{"content":"` + says + `"},"finish_reason":"stop"}]}`), Usage: inference.Usage{PromptTokens: 3, CompletionTokens: 4}}
}

// keep keeps an answer to a body.
func (b *bed) keep(t *testing.T, body, says string) {
	t.Helper()
	b.look(t, body, nil).Keep(ask{body: body}.request(t), "m", answer(says))
}

// says asserts what is found; "" is nothing.
func says(t *testing.T, got *inference.Stored, want, level string) {
	t.Helper()
	switch {
	case got == nil && want != "":
		t.Errorf("found nothing, want %q", want)
	case got != nil && (want == "" || !strings.Contains(string(got.Body), `"`+want+`"`) || got.Level != level):
		t.Errorf("found %s in %s, want %q in %s", got.Body, got.Level, want, level)
	}
}

// ask returns base with another question.
func question(i int) string { return strings.Replace(base, "hi", fmt.Sprint("q", i), 1) }

func TestAnswersGoDownAndComeUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.run(t)
		b.keep(t, base, "yes")
		says(t, b.look(t, base, nil).Stored(time.Now()), "yes", "memory")
		synctest.Wait()
		if b.near.only() == nil || b.far.only() == nil {
			t.Fatal("the slower levels have nothing")
		}
		for _, level := range []struct {
			name  string
			clear []*shelf
		}{{"near", []*shelf{b.memory}}, {"far", []*shelf{b.memory, b.near}}} {
			for _, l := range level.clear {
				clear(l.entries)
			}
			h := b.look(t, base, nil)
			says(t, h.Stored(time.Now()), "", "")
			says(t, h.Fetch(t.Context()), "yes", level.name)
			says(t, b.look(t, base, nil).Stored(time.Now()), "yes", "memory") // promoted
			synctest.Wait()
			if b.near.only() == nil {
				t.Error("what the last level had is not in the one above")
			}
		}
	})
}

func TestSlowLevelsAreAMissInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.run(t)
		b.keep(t, base, "yes")
		synctest.Wait()
		clear(b.memory.entries)
		clear(b.near.entries)
		b.near.takes, b.far.takes = time.Minute, 50*time.Millisecond
		begin := time.Now()
		says(t, b.look(t, base, nil).Fetch(t.Context()), "", "")
		if took := time.Since(begin); took != 5*time.Millisecond {
			t.Errorf("took %v", took)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		says(t, b.look(t, base, nil).Stored(time.Now()), "yes", "memory") // what came late is for the next

		synctest.Wait()
		clear(b.memory.entries)
		b.far.takes = time.Millisecond
		begin = time.Now()
		says(t, b.look(t, base, nil).Fetch(t.Context()), "yes", "far") // the first one's slowness leaves the second its time
		if took := time.Since(begin); took > 4*time.Millisecond {
			t.Errorf("took %v", took)
		}
		synctest.Wait()
		b.far.takes = time.Minute
		clear(b.memory.entries)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		begin = time.Now()
		says(t, b.look(t, base, nil).Fetch(ctx), "", "")
		if took := time.Since(begin); took != time.Millisecond {
			t.Errorf("a client that left waited %v", took)
		}
	})
}

func TestWhatComesLateDisplacesNothingBetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.run(t)
		b.keep(t, base, "old")
		synctest.Wait()
		time.Sleep(2 * time.Hour)
		synctest.Wait() // stale
		clear(b.memory.entries)
		clear(b.near.entries)
		b.far.takes = 50 * time.Millisecond
		h := b.look(t, base, nil)
		says(t, h.Fetch(t.Context()), "", "")
		h.Keep(ask{body: base}.request(t), "m", answer("new"))
		time.Sleep(time.Second)
		synctest.Wait()
		says(t, b.look(t, base, nil).Stored(time.Now()), "new", "memory")
	})
}

func TestTooManyLookupsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.near.takes = time.Minute
		b.far.takes = time.Minute
		var wg sync.WaitGroup
		for i := range 300 {
			h := b.look(t, question(i), nil)
			wg.Go(func() { h.Fetch(t.Context()) })
		}
		wg.Wait()
		if b.near.gets != 256 {
			t.Errorf("%d look-ups at once", b.near.gets)
		}
		if got := metric(t, b, `spillway_cache_trouble_total{reason="crowded"}`); got != 44 {
			t.Errorf("%v were crowded out", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
	})
}

func TestEntriesThatAreNotTheOnesAskedFor(t *testing.T) {
	for name, change := range map[string]func(*cache.Entry){
		"scope": func(e *cache.Entry) { e.Scope = "tenant:other" }, "model": func(e *cache.Entry) { e.Model = "n" },
		"surface": func(e *cache.Entry) { e.Surface = inference.Responses }, "key": func(e *cache.Entry) { e.Key[0]++ },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(nil)
				b.keep(t, base, "yes")
				e := *b.memory.only()
				key := e.Key
				change(&e)
				b.memory.entries[key] = &e
				h := b.look(t, base, nil)
				says(t, h.Stored(time.Now()), "", "")
				clear(b.memory.entries)
				b.near.entries[key] = &e
				says(t, b.look(t, base, nil).Fetch(t.Context()), "", "")
				if got := metric(t, b, `spillway_cache_trouble_total{reason="mismatched"}`); got != 2 {
					t.Errorf("%v mismatches", got)
				}
				time.Sleep(time.Second)
				synctest.Wait()
			})
		})
	}
}

func TestWhatClientsSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.keep(t, base, "yes")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		say := func(c inference.CacheControl) *cache.Handle {
			return b.look(t, base, func(r *inference.Request) { r.Cache = c })
		}
		if say(inference.CacheControl{NoStore: true}) != nil {
			t.Error("no-store has a handle")
		}
		h := say(inference.CacheControl{NoCache: true})
		says(t, h.Stored(time.Now()), "", "")
		says(t, h.Fetch(t.Context()), "", "")
		says(t, say(inference.CacheControl{HasMaxAge: true, MaxAge: 9 * time.Minute}).Fetch(t.Context()), "", "")
		says(t, say(inference.CacheControl{HasMaxAge: true, MaxAge: 10 * time.Minute}).Stored(time.Now()), "yes", "memory")
		h.Keep(ask{body: base}.request(t), "m", answer("new"))
		says(t, say(inference.CacheControl{HasMaxAge: true}).Stored(time.Now()), "new", "memory")
	})
}

func TestWhatIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		body  string
		rules []cache.Rule
		off   bool
		want  bool
	}{
		"temperature 0":     {base, nil, false, true},
		"a seed":            {with(`"seed":1`), nil, false, true},
		"neither":           {strings.Replace(base, ":0", ":1", 1), nil, false, false},
		"a rule":            {strings.Replace(base, ":0", ":1", 1), []cache.Rule{{Keep: cache.KeepAll}}, false, true},
		"a rule against it": {base, []cache.Rule{{Keep: cache.KeepOff}}, false, false},
		"the first rule":    {base, []cache.Rule{{Models: []string{"x*"}, Keep: cache.KeepOff}, {Models: []string{"?"}, Keep: cache.KeepAll}, {Keep: cache.KeepOff}}, false, true},
		"another tenant":    {base, []cache.Rule{{Tenants: []string{"u"}, Keep: cache.KeepOff}}, false, true},
		"another surface":   {base, []cache.Rule{{Surfaces: []string{"messages"}, Keep: cache.KeepOff}}, false, true},
		"slashes":           {strings.Replace(base, `"m"`, `"org/m"`, 1), []cache.Rule{{Models: []string{"*"}, Keep: cache.KeepOff}}, false, false},
		"switched off":      {base, nil, true, false},
		"a search":          {with(`"web_search_options":{}`), nil, false, false},
		"a hidden search":   {with(`"web_search_option\u0073":{}`), nil, false, false},
		"a server's tool":   {with(`"tools":[{"type":"web_search_20250305"}]`), nil, false, false},
		"a hidden one":      {with(`"tools":[{"t\u0079pe":"web_search_20250305"}]`), nil, false, false},
		"a function":        {with(`"tools":[{"type":"function","function":{"name":"f"}}]`), nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(func(cfg *cache.Config) { cfg.Enabled, cfg.Rules = !c.off, c.rules })
			if got := b.look(t, c.body, nil) != nil; got != c.want {
				t.Errorf("has a handle: %v", got)
			}
		})
	}
	b := newBed(nil)
	req := ask{body: base}.request(t)
	plan := fleet.NewPlan(req)
	if b.Lookup(time.Now(), req, plan) != nil {
		t.Error("a plan without candidates has a handle")
	}
	plan.Candidates = append(plan.Candidates, fleet.Candidate{Model: "m", Fallback: "small"})
	if b.Lookup(time.Now(), req, plan) != nil {
		t.Error("a stand-in has a handle")
	}
}

func TestWhatIsNotKept(t *testing.T) {
	stream := func(events ...string) *inference.Transcript {
		a := &inference.Transcript{Marks: []inference.Mark{}}
		for _, e := range events {
			a.Body = append(a.Body, "data: "+e+"\n\n"...)
			a.Marks = append(a.Marks, inference.Mark{End: uint32(len(a.Body))})
		}
		return a
	}
	body := func(s string) *inference.Transcript { return &inference.Transcript{Body: []byte(s)} }
	delta, finish := `{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[{"delta":{},"finish_reason":"stop"}]}`
	for name, c := range map[string]struct {
		model string
		t     *inference.Transcript
		want  bool
	}{
		"whole":              {"m", answer("yes"), true},
		"a stream":           {"m", stream(delta, finish, "[DONE]"), true},
		"another model":      {"n", answer("yes"), false},
		"too large":          {"m", answer(strings.Repeat("x", 2<<20)), false},
		"no end":             {"m", stream(delta), false},
		"nothing":            {"m", stream(), false},
		"an error":           {"m", stream(delta, `{"error":{"message":"x"}}`, "[DONE]"), false},
		"given up":           {"m", stream(delta, strings.Replace(finish, "stop", "abort", 1), "[DONE]"), false},
		"a broken event":     {"m", stream(delta, `{`, "[DONE]"), false},
		"not JSON":           {"m", body("<html>"), false},
		"half":               {"m", body(`{"choices":[{}]`), false},
		"two":                {"m", body(`{"choices":[{}]}{}`), false},
		"empty":              {"m", body(``), false},
		"no object":          {"m", body(`"yes"`), false},
		"no choices":         {"m", body(`{"choices":[]}`), false},
		"something else":     {"m", body(`{"status":"ok"}`), false},
		"an error, first":    {"m", body(`{"error":{"message":"x"}}`), false},
		"an error, last":     {"m", body(`{"choices":[{}],"error":{"message":"x"}}`), false},
		"no error":           {"m", body(`{"choices":[{}],"error":null}`), true},
		"an error of vLLM's": {"m", body(`{"object":"error","message":"x","choices":[{}]}`), false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(nil)
			b.look(t, base, nil).Keep(ask{body: base}.request(t), c.model, c.t)
			if got := b.memory.only() != nil; got != c.want {
				t.Errorf("kept: %v", got)
			}
			refused, kept := metric(t, b, `spillway_cache_answers_total{result="refused"}`), metric(t, b, `spillway_cache_answers_total{result="kept"}`)
			if refused+kept != 1 || (kept == 1) != c.want {
				t.Errorf("counted %v kept, %v refused", kept, refused)
			}
		})
	}
}

func TestDemandProlongs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(func(c *cache.Config) { c.TTL, c.MaxTTL = time.Hour, 3*time.Hour })
		b.run(t)
		b.keep(t, base, "yes")
		begin := time.Now()
		var lives []time.Duration
		for range 20 {
			says(t, b.look(t, base, nil).Stored(time.Now()), "yes", "memory")
			synctest.Wait()
			for _, l := range []*shelf{b.near, b.far} {
				if e := l.only(); !e.Expires.Equal(b.memory.only().Expires) {
					t.Fatalf("a slower level has %v, memory %v", e.Expires, b.memory.only().Expires)
				}
			}
			if life := b.memory.only().Expires.Sub(begin); len(lives) == 0 || life != lives[len(lives)-1] {
				lives = append(lives, life)
			}
		}
		if diff := cmp.Diff([]time.Duration{2 * time.Hour, 3 * time.Hour}, lives); diff != "" {
			t.Error(diff)
		}
		time.Sleep(3*time.Hour - time.Nanosecond)
		synctest.Wait()
		if s := b.look(t, base, nil).Stored(time.Now()); s == nil || !s.Fresh {
			t.Errorf("before its time: %+v", s)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		s := b.look(t, base, nil).Stored(time.Now())
		if s == nil || s.Fresh || !s.WhileRevalidate || !s.IfOverloaded || !s.IfError || s.Age != 3*time.Hour {
			t.Errorf("behind its time: %+v", s)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := b.look(t, base, nil).Stored(time.Now()); s == nil || s.WhileRevalidate || !s.IfOverloaded {
			t.Errorf("a minute later: %+v", s)
		}
	})
}

func TestJitterStaysWithinItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(func(c *cache.Config) { c.Jitter = 0.1 })
		least, most := time.Duration(1<<62), time.Duration(0)
		for i := range 500 {
			clear(b.memory.entries)
			b.keep(t, question(i), "x")
			life := time.Until(b.memory.only().Expires)
			least, most = min(least, life), max(most, life)
		}
		if least < 54*time.Minute || most > 66*time.Minute || most-least < 11*time.Minute {
			t.Errorf("from %v to %v", least, most)
		}
	})
}

func TestOnePieceFromEventsIsMadeOnce(t *testing.T) {
	b := newBed(nil)
	events := &inference.Transcript{}
	for _, e := range []string{`{"choices":[{"delta":{"content":"yes"}}]}`, `{"choices":[{"delta":{},"finish_reason":"stop"}]}`, "[DONE]"} {
		events.Body = append(events.Body, "data: "+e+"\n\n"...)
		events.Marks = append(events.Marks, inference.Mark{End: uint32(len(events.Body))})
	}
	b.look(t, base, nil).Keep(ask{body: base}.request(t), "m", events)
	s := b.look(t, base, nil).Stored(time.Now())
	if s == nil || !strings.Contains(string(s.Whole), `"content":"yes"`) {
		t.Fatalf("got %+v", s)
	}
	if again := b.look(t, base, nil).Stored(time.Now()); &again.Whole[0] != &s.Whole[0] {
		t.Error("it was made twice")
	}
	if s := b.look(t, with(`"stream":true`), nil).Stored(time.Now()); s == nil || !s.Stream() {
		t.Errorf("the stream: %+v", s)
	}
	clear(b.memory.entries)
	b.keep(t, base, "a body") // of a server that does not stream
	says(t, b.look(t, base, nil).Stored(time.Now()), "a body", "memory")
}

func TestFillsAreBoundedAndBatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(func(c *cache.Config) { c.Fill.Queue = 100 })
		for i := range 150 {
			b.keep(t, question(i), "yes")
		}
		if s := b.State(t.Context()); s.Waiting != 200 || s.Dropped != 100 {
			t.Errorf("%d wait, %d dropped", s.Waiting, s.Dropped)
		}
		stop := b.run(t)
		synctest.Wait()
		if len(b.near.entries) != 100 || slices.Max(b.near.puts) > 64 || len(b.near.puts) > 3 {
			t.Errorf("%d written in batches of %v", len(b.near.entries), b.near.puts)
		}
		if n := metric(t, b, "spillway_cache_fill_queue_bytes"); n != 0 {
			t.Errorf("%v bytes are counted as waiting", n)
		}
		b.near.takes = time.Second
		b.keep(t, question(1000), "yes")
		synctest.Wait() // it is being written
		for i := range 90 {
			b.keep(t, question(2000+i), "yes")
		}
		begin := time.Now()
		stop()
		if n := len(b.near.entries); n != 191 {
			t.Errorf("%d of 191 are written at the end", n)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("the end took %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBed(func(c *cache.Config) { c.Fill.Bytes = 1 << 20 })
		for i := range 20 {
			b.keep(t, question(i), strings.Repeat("x", 100<<10))
		}
		if n := metric(t, b, "spillway_cache_fill_queue_bytes"); n > 1<<20 || n < 900<<10 {
			t.Errorf("%v bytes wait", n)
		}
	})
}

func TestASlowLevelDoesNotHoldTheOthersUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.near.takes = 4 * time.Second
		b.run(t)
		for i := range 10 {
			b.keep(t, question(i), "yes")
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if n := len(b.far.entries); n != 10 {
			t.Errorf("%d", n)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := len(b.near.entries); n != 10 {
			t.Errorf("near: %d", n)
		}
	})
}

func TestABreakerSparesALevelThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.run(t)
		b.near.err = errors.New("broken")
		for i := range 20 {
			b.look(t, question(i), nil).Fetch(t.Context())
		}
		if b.near.gets != 5 || b.far.gets != 20 {
			t.Errorf("asked %d and %d times", b.near.gets, b.far.gets)
		}
		if s := b.State(t.Context()).Levels[1]; !s.Resting || s.Faults != 5 || s.Skipped != 15 || s.Error != "broken" || s.Census != nil {
			t.Errorf("got %+v", s)
		}
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		for i := range 10 { // one probe
			b.look(t, question(100+i), nil).Fetch(t.Context())
		}
		if b.near.gets != 6 {
			t.Errorf("asked %d times", b.near.gets)
		}
		b.near.err = nil
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		for i := range 10 {
			b.look(t, question(200+i), nil).Fetch(t.Context())
		}
		if s := b.State(t.Context()).Levels[1]; b.near.gets != 16 || s.Resting {
			t.Errorf("asked %d times, %+v", b.near.gets, s)
		}
	})
}

func TestALevelThatTakesNothingNewIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := newBed(nil)
		b.Cache = cache.New(b.cfg, cache.Parts{
			Memory: b.memory, Slower: []cache.Named{{Name: "near", Level: b.near}}, Log: slog.New(slog.NewTextHandler(&log, nil)),
		})
		b.run(t)
		keep := func(from, n int) cache.LevelState {
			for i := range n {
				b.look(t, question(from+i), nil).Fetch(t.Context()) // reads go well
				b.keep(t, question(from+i), "yes")
				synctest.Wait()
			}
			return b.State(t.Context()).Levels[1]
		}
		b.near.putErr = errors.New("read-only")
		if s := keep(0, 4); s.Refuses || s.Lost != 4 {
			t.Errorf("behind a few faults: %+v", s)
		}
		if s := keep(10, 6); !s.Refuses || s.Lost != 10 || s.Written != 0 || s.Faults != 0 || s.Resting {
			t.Errorf("behind many: %+v", s)
		}
		if n := strings.Count(log.String(), "takes no new entries"); n != 1 || !strings.Contains(log.String(), "read-only") {
			t.Errorf("said %d times: %s", n, log.String())
		}
		b.near.putErr = nil
		if s := keep(20, 1); s.Refuses || s.Written != 1 || !strings.Contains(log.String(), "takes new entries again") {
			t.Errorf("well again: %+v, %s", s, log.String())
		}
	})
}

func TestAPanicOfALevelIsAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.near.panics = true
		for i := range 6 {
			says(t, b.look(t, question(i), nil).Fetch(t.Context()), "", "")
		}
		if s := b.State(t.Context()).Levels[1]; s.Faults != 5 || !s.Resting || b.far.gets != 6 {
			t.Errorf("got %+v, the other level was asked %d times", s, b.far.gets)
		}
	})
}

func TestOperatorsSeeAndForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		stop := b.run(t)
		for i := range 3 {
			b.keep(t, question(i), "yes")
		}
		synctest.Wait()
		key := b.look(t, question(1), nil).Key()
		synctest.Wait()
		found, err := b.Inspect(t.Context(), key)
		if err != nil || len(found) != 3 || found[0].Level != "memory" || found[2].Level != "far" || found[1].Entry.Question != "q1 é" {
			t.Errorf("found %+v, %v", found, err)
		}
		k := cache.Key(key)
		removed, err := b.Purge(t.Context(), cache.Filter{Key: &k})
		if diff := cmp.Diff(map[string]int{"memory": 1, "near": 1, "far": 1}, removed); diff != "" || err != nil {
			t.Error(diff, err)
		}
		synctest.Wait()
		b.near.err = errors.New("broken")
		removed, err = b.Purge(t.Context(), cache.Filter{Scope: cache.TenantScope("t")})
		if diff := cmp.Diff(map[string]int{"memory": 2, "near": 2, "far": 2}, removed); diff != "" || err == nil {
			t.Error(diff, err)
		}
		if found, err := b.Inspect(t.Context(), key); err == nil || len(found) != 0 {
			t.Errorf("found %v, %v", found, err)
		}
		b.near.err = nil
		stop()
		b.keep(t, question(1), "yes") // it waits to be written
		b.keep(t, question(2), "yes")
		if _, err := b.Purge(t.Context(), cache.Filter{Key: &k}); err != nil {
			t.Error(err)
		}
		b.run(t)
		synctest.Wait()
		if b.near.entries[k] != nil || len(b.near.entries) != 1 {
			t.Errorf("what was purged is written: %d entries", len(b.near.entries))
		}
	})
}

// TestAPurgeWaitsForWhatIsBeingWritten, so that it does not come back behind it.
func TestAPurgeWaitsForWhatIsBeingWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.far.takes = b.cfg.Fill.Timeout / 2
		b.run(t)
		b.keep(t, question(1), "yes")
		synctest.Wait() // it is half-way into the level
		removed, err := b.Purge(t.Context(), cache.Filter{Scope: cache.TenantScope("t")})
		if diff := cmp.Diff(map[string]int{"memory": 1, "near": 1, "far": 1}, removed); diff != "" || err != nil {
			t.Error(diff, err)
		}
		time.Sleep(time.Minute)
		if e := b.far.only(); e != nil {
			t.Error("what was purged has been written afterwards")
		}
	})
}

func TestFreshAsksEveryLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		b.run(t)
		b.keep(t, base, "yes")
		synctest.Wait()
		key := b.memory.only().Key
		clear(b.memory.entries)
		now := time.Now()
		if !b.Fresh(t.Context(), key, now, now.Add(59*time.Minute)) || b.memory.only() == nil {
			t.Error("an answer in a slower level is not known")
		}
		if b.Fresh(t.Context(), key, now, now.Add(61*time.Minute)) || b.Fresh(t.Context(), [32]byte{1}, now, now) {
			t.Error("fresh for too long")
		}
	})
}

func TestLevelsAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(func(c *cache.Config) { c.Stale = cache.Stale{} })
		b.run(t)
		b.keep(t, base, "yes")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		for name, l := range map[string]*shelf{"memory": b.memory, "near": b.near, "far": b.far} {
			if l.only() != nil || l.sweeps < 119 {
				t.Errorf("%s: %v after %d sweeps", name, l.only(), l.sweeps)
			}
		}
		if n := metric(t, b, `spillway_cache_swept_total{level="far"}`); n != 1 {
			t.Errorf("%v swept", n)
		}
	})
}

func TestALevelThatIsBehindIsSweptAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(nil)
		stop := b.run(t)
		b.near.behind(3)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if memory, near, far := b.memory.swept(), b.near.swept(), b.far.swept(); near != 1 || memory != 1 || far != 1 {
			t.Errorf("swept %d, %d and %d times: one that is busy holds the others up", memory, near, far)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if memory, near, far := b.memory.swept(), b.near.swept(), b.far.swept(); near != 4 || memory != 1 || far != 1 {
			t.Errorf("swept %d, %d and %d times", memory, near, far)
		}
		b.near.behind(1)
		time.Sleep(31 * time.Second)
		stop() // within a sweep
	})
}

func TestWhoIsToldOfLookups(t *testing.T) {
	b := newBed(func(c *cache.Config) { c.Vary = []string{"x-persona"} })
	b.keep(t, base, "yes")
	b.asked = nil
	b.look(t, base, nil)
	b.look(t, question(1), nil)
	b.look(t, base, func(r *inference.Request) { r.Class = inference.Idle })
	b.look(t, base, func(r *inference.Request) {
		r.Tenant, r.Header = inference.Anonymous, map[string][]string{"Authorization": {"Bearer x"}}
	})
	if len(b.asked) != 2 || !b.asked[0].Hit || b.asked[0].Tokens != 7 || b.asked[1].Hit || b.asked[1].Tokens != 0 {
		t.Fatalf("told of %+v", b.asked)
	}
	for name, want := range map[string]bool{"Anthropic-Beta": true, "Openai-Project": true, "X-Persona": true, "X-Other": false} {
		if got := b.asked[0].Varies(name); got != want {
			t.Errorf("%s is part of the key: %v", name, got)
		}
	}
}

// metric is the value of one series.
func metric(t *testing.T, c prometheus.Collector, series string) float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+`="`+l.GetValue()+`"`)
			}
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			if name == series {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no series %s", series)
	return 0
}

func TestEveryMetricMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(func(c *cache.Config) { c.Fill.Queue = 1 })
		stop := b.run(t)
		b.keep(t, base, "yes")
		synctest.Wait()
		for range 3 {
			b.look(t, base, nil)
			synctest.Wait()
		}
		b.look(t, question(1), nil).Fetch(t.Context())
		for _, series := range []string{
			`lookups_total{level="memory",result="hit"}`, `lookups_total{level="memory",result="miss"}`, `lookups_total{level="far",result="miss"}`,
			`fills_total{level="far",result="written"}`, `memory_entries`, `memory_bytes`, `answers_total{result="kept"}`, `answers_total{result="prolonged"}`,
		} {
			if metric(t, b, "spillway_cache_"+series) == 0 {
				t.Errorf("%s is 0", series)
			}
		}
		clear(b.memory.entries)
		b.look(t, base, nil).Fetch(t.Context())
		b.look(t, with(`"stream":true,"stream_options":{"include\u005fusage":true}`), nil)
		b.far.err = errors.New("broken")
		for i := range 10 {
			b.look(t, question(10+i), nil).Fetch(t.Context())
		}
		b.keep(t, question(30), "yes")
		synctest.Wait()
		b.look(t, question(50), nil).Keep(ask{body: base}.request(t), "other", answer("x"))
		b.near.takes = time.Minute
		b.look(t, question(40), nil).Fetch(t.Context())
		stop()
		b.keep(t, question(31), "yes")
		b.keep(t, question(32), "yes")
		for _, series := range []string{
			`lookups_total{level="near",result="hit"}`, `lookups_total{level="far",result="fault"}`, `lookups_total{level="far",result="skipped"}`,
			`fills_total{level="far",result="skipped"}`, `level_resting{level="far"}`, `answers_total{result="refused"}`,
			`trouble_total{reason="no_key"}`, `fill_queue_entries`, `fill_queue_bytes`, `fill_dropped_total`,
		} {
			if metric(t, b, "spillway_cache_"+series) == 0 {
				t.Errorf("%s is 0", series)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
	})
}

func TestConfigMistakes(t *testing.T) {
	if cfg := cache.Default(); cfg.Validate() != nil {
		t.Errorf("the default: %v", cfg.Validate())
	}
	for key, change := range map[string]func(*cache.Config){
		"ttl: ":                    func(c *cache.Config) { c.TTL = 0 },
		"max_ttl: ":                func(c *cache.Config) { c.MaxTTL = c.TTL - 1 },
		"jitter: ":                 func(c *cache.Config) { c.Jitter = 0.6 },
		"stale.while_revalidate: ": func(c *cache.Config) { c.Stale.WhileRevalidate = -1 },
		"stale.if_overloaded: ":    func(c *cache.Config) { c.Stale.IfOverloaded = -1 },
		"stale.if_error: ":         func(c *cache.Config) { c.Stale.IfError = 400 * 24 * time.Hour },
		"max_answer: ":             func(c *cache.Config) { c.MaxAnswer = 1 },
		"lookup_timeout: ":         func(c *cache.Config) { c.LookupTimeout = 0 },
		"vary[0]: ":                func(c *cache.Config) { c.Vary = []string{""} },
		"memory.size: ":            func(c *cache.Config) { c.Memory.Size = 0 },
		"redis.compress_from: ":    func(c *cache.Config) { c.Redis.CompressFrom = 0 },
		"redis.questions: ":        func(c *cache.Config) { c.Redis.Questions = -1 },
		"sql.compress_from: ":      func(c *cache.Config) { c.SQL.CompressFrom = 0 },
		"sql.size: ":               func(c *cache.Config) { c.SQL.Size = 0 },
		"fill.queue: ":             func(c *cache.Config) { c.Fill.Queue = 0 },
		"fill.bytes: ":             func(c *cache.Config) { c.Fill.Bytes = 0 },
		"fill.timeout: ":           func(c *cache.Config) { c.Fill.Timeout = 0 },
		"rules[0].keep: ":          func(c *cache.Config) { c.Rules = []cache.Rule{{}} },
		"rules[0].models[0]: ":     func(c *cache.Config) { c.Rules = []cache.Rule{{Models: []string{"[a"}, Keep: "all"}} },
		"rules[1].surfaces[0]: ": func(c *cache.Config) {
			c.Rules = []cache.Rule{{Keep: "all"}, {Surfaces: []string{"nope"}, Keep: "all"}}
		},
		"rules[0].ttl: ":     func(c *cache.Config) { c.Rules = []cache.Rule{{TTL: -1, Keep: "all"}} },
		"rules[0].max_ttl: ": func(c *cache.Config) { c.Rules = []cache.Rule{{TTL: time.Hour, MaxTTL: time.Minute, Keep: "all"}} },
		"rules[0].shared: ":  func(c *cache.Config) { c.Rules = []cache.Rule{{Shared: true, Keep: "off"}} },
	} {
		cfg := cache.Default()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("want %q, got %v", key, err)
		}
	}
}
