package gateway_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/wire"
)

// shelf is a cache of one level that a test holds in its hand.
type shelf struct {
	broken bool // Keep panics
	mu     sync.Mutex
	stored map[[32]byte]*inference.Stored
	deep   map[[32]byte]*inference.Stored // found by Fetch alone
	fetch  func()                         // called by Fetch before it looks; nil is nothing
	kept   int
	asked  []string // the questions of what was kept
}

// newShelf is an empty cache for the rig.
func newShelf(r *rig) *shelf {
	r.cache = &shelf{stored: make(map[[32]byte]*inference.Stored), deep: make(map[[32]byte]*inference.Stored)}
	return r.cache
}

// Lookup implements gateway.Cache: every request has a key, unless its client wants
// none.
func (r *rig) Lookup(_ time.Time, req *inference.Request, _ *fleet.Plan) gateway.Known {
	if r.cache == nil || req.Cache.NoStore {
		return nil
	}
	return &book{shelf: r.cache, req: req, key: keyOf(r.t, req)}
}

// keyOf is the key of a request.
func keyOf(t *testing.T, req *inference.Request) [32]byte {
	t.Helper()
	b, err := wire.AppendCanonical(nil, req)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(append(b, req.Surface.String()...))
}

// book is what the shelf knows of one answer.
type book struct {
	shelf *shelf
	req   *inference.Request
	key   [32]byte
}

// Key implements gateway.Known.
func (b *book) Key() [32]byte { return b.key }

// Stored implements gateway.Known.
func (b *book) Stored(time.Time) *inference.Stored { return b.find(b.shelf.stored) }

// Fetch implements gateway.Known.
func (b *book) Fetch(context.Context) *inference.Stored {
	if b.shelf.fetch != nil && !b.req.Cache.NoCache {
		b.shelf.fetch()
	}
	if s := b.find(b.shelf.stored); s != nil {
		return s
	}
	return b.find(b.shelf.deep)
}

// find looks into one of the maps.
func (b *book) find(m map[[32]byte]*inference.Stored) *inference.Stored {
	b.shelf.mu.Lock()
	defer b.shelf.mu.Unlock()
	if b.req.Cache.NoCache {
		return nil
	}
	s := m[b.key]
	if s != nil && b.req.Cache.HasMaxAge && s.Age > b.req.Cache.MaxAge {
		return nil
	}
	return s
}

// Keep implements gateway.Known.
func (b *book) Keep(req *inference.Request, model string, t *inference.Transcript) {
	b.shelf.mu.Lock()
	defer b.shelf.mu.Unlock()
	if b.shelf.broken {
		panic("a defect of the cache")
	}
	b.shelf.kept++
	b.shelf.asked = append(b.shelf.asked, wire.Question(req))
	b.shelf.stored[b.key] = &inference.Stored{Transcript: t, Level: "shelf:" + model, Fresh: true}
}

// put keeps a transcript of events for a body.
func (s *shelf) put(key [32]byte, stored inference.Stored, events ...string) {
	t := &inference.Transcript{Fields: []inference.HeaderField{{Name: "Content-Type", Value: "text/event-stream"}}}
	for _, e := range events {
		t.Body = append(t.Body, e...)
		kind := wire.InspectEvent(inference.Chat, []byte(e)).Kind
		t.Marks = append(t.Marks, inference.Mark{End: uint32(len(t.Body)), Usage: kind == inference.EventUsage})
	}
	stored.Transcript = t
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stored[key] = &stored
}

// field is a field of an answer's head.
func (c *reader) field(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head == nil {
		return ""
	}
	for _, f := range c.head.Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// all is what the reader got.
func (c *reader) all() string {
	text, _ := c.text()
	return text
}

// usageEvent carries usage and nothing else.
const usageEvent = `data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}` + "\n\n"

// long answers with a stream of n tokens and its usage, each token when tick says so.
func long(n int, tick func(i int)) func(*testkit.Exchange) bool {
	return func(x *testkit.Exchange) bool {
		x.Stream()
		x.Role()
		for i := range n {
			tick(i)
			x.Delta(fmt.Sprintf("t%d ", i))
		}
		x.Chunk(testkit.FinishEvent)
		x.Chunk(usageEvent)
		x.Chunk(testkit.DoneEvent)
		x.End()
		return true
	}
}

// script is the whole text of long's stream, for clients that ask for usage or not.
func script(n int, usage bool) string {
	var b strings.Builder
	b.WriteString(`data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n")
	for i := range n {
		b.WriteString(testkit.Delta(fmt.Sprintf("t%d ", i)))
	}
	b.WriteString(testkit.FinishEvent)
	if usage {
		b.WriteString(usageEvent)
	}
	return b.String() + testkit.DoneEvent
}

func TestTwinsCostOneGeneration(t *testing.T) {
	const tokens, clients = 200, 1000
	begun := make(chan struct{})
	one := testkit.NewInstance(t, long(tokens, func(i int) {
		if i == 0 {
			<-begun
		}
	}))
	r := newRig(t, nil, one)
	s := newShelf(r)
	withUsage := strings.Replace(stream, `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`, 1)
	var wg sync.WaitGroup
	readers := make([]*reader, clients)
	for i := range readers {
		readers[i] = new(reader)
		wg.Go(func() {
			body := stream
			switch i % 3 {
			case 1:
				body = withUsage
			case 2:
				body = rebuilt
			}
			r.serve(t.Context(), body, readers[i])
		})
	}
	testkit.Eventually(t, "all have joined", func() bool { return r.gateway.Sharing() == clients })
	close(begun)
	wg.Wait()
	if n := one.Requests(); n != 1 {
		t.Fatalf("%d generations", n)
	}
	coalesced := 0
	for i, c := range readers {
		c.code(t, "")
		switch got := c.all(); i % 3 {
		case 0, 1:
			if want := script(tokens, i%3 == 1); got != want {
				t.Fatalf("client %d: got %d bytes, want %d\n%s", i, len(got), len(want), got)
			}
		default:
			if !strings.Contains(got, `t198 t199 "`) || !strings.Contains(got, `"completion_tokens":3`) || c.head.Length != int64(len(got)) || c.field("Content-Type") != "application/json" {
				t.Fatalf("client %d: got %+v %s", i, c.head, got)
			}
		}
		if c.field("X-Spillway-Cache") == "coalesced" {
			coalesced++
		}
	}
	r.atRest()
	if coalesced != clients-1 || s.kept != 1 {
		t.Errorf("%d coalesced, %d kept", coalesced, s.kept)
	}
	attempts, whole := 0, 0
	for _, rec := range r.records {
		attempts += len(rec.Attempts)
		if rec.Complete && rec.Code == "" && rec.Usage.CompletionTokens == 3 {
			whole++
		}
	}
	if attempts != 1 || whole != clients {
		t.Errorf("%d attempts in %d whole records", attempts, whole)
	}
}

func TestTheLeaderLeaves(t *testing.T) {
	half, goOn := make(chan struct{}), make(chan struct{})
	one := testkit.NewInstance(t, long(20, func(i int) {
		if i == 10 {
			close(half)
			<-goOn
		}
	}))
	r := newRig(t, nil, one)
	newShelf(r)
	ctx, leave := context.WithCancel(t.Context())
	leader := make(chan *reader)
	go func() { leader <- r.serve(ctx, stream, nil) }()
	<-half
	follower := make(chan *reader)
	go func() { follower <- r.serve(t.Context(), stream, nil) }()
	testkit.Eventually(t, "the twin joins", func() bool { return r.gateway.Sharing() == 2 })
	leave()
	(<-leader).code(t, inference.CodeCanceled)
	close(goOn)
	c := <-follower
	c.code(t, "")
	if got := c.all(); got != script(20, false) || one.Requests() != 1 {
		t.Errorf("%d generations; got %s", one.Requests(), got)
	}
}

func TestTheLastReaderEndsTheFlight(t *testing.T) {
	gone := make(chan bool, 1)
	begun := make(chan struct{})
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Role()
		x.Delta("a")
		close(begun)
		gone <- x.Gone(10 * time.Second)
		return false
	})
	r := newRig(t, nil, one)
	s := newShelf(r)
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan *reader)
	go func() { done <- r.serve(ctx, rebuilt, nil) }()
	<-begun
	leave()
	(<-done).code(t, inference.CodeCanceled)
	if !<-gone {
		t.Error("the generation went on")
	}
	if rec := r.last(); len(rec.Attempts) != 1 || rec.Attempts[0].Verdict != inference.VerdictCanceled || s.kept != 0 {
		t.Errorf("record %+v, %d kept", rec, s.kept)
	}
}

func TestAFailedLeaderDoesNotFailItsFollowers(t *testing.T) {
	const clients = 50
	joined := make(chan struct{})
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if x.N == 1 {
			x.Stream()
			x.Role()
			x.Delta("a")
			<-joined
			return false // cut
		}
		return long(5, func(int) {})(x)
	})
	r := newRig(t, nil, one)
	newShelf(r)
	var wg sync.WaitGroup
	readers := make([]*reader, clients)
	for i := range readers {
		wg.Go(func() { readers[i] = r.serve(t.Context(), rebuilt, nil) })
	}
	testkit.Eventually(t, "all have joined", func() bool { return r.gateway.Sharing() == clients && r.gateway.Held() > 0 })
	close(joined)
	wg.Wait()
	for _, c := range readers {
		c.code(t, "")
		if !strings.Contains(c.all(), "t3 t4 ") {
			t.Fatalf("got %s", c.all())
		}
	}
	if n := one.Requests(); n != 2 {
		t.Errorf("%d generations", n)
	}
}

func TestStreamsThatWereCutAreCutForAll(t *testing.T) {
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Role()
		x.Delta("a")
		return false
	})
	r := newRig(t, nil, one)
	s := newShelf(r)
	c := r.serve(t.Context(), stream, nil)
	c.code(t, inference.CodeUpstreamCut)
	if !strings.Contains(c.all(), `"a"`) || s.kept != 0 {
		t.Errorf("got %s, %d kept", c.all(), s.kept)
	}
}

func TestHits(t *testing.T) {
	one := testkit.NewInstance(t, good)
	r := newRig(t, nil, one)
	s := newShelf(r)
	events := []string{testkit.Delta("kept"), testkit.FinishEvent, usageEvent, testkit.DoneEvent}
	s.put(keyOf(t, r.request(stream)), inference.Stored{Level: "memory", Age: 90 * time.Second, Fresh: true}, events...)
	c := r.serve(t.Context(), stream, nil)
	c.code(t, "")
	if got, want := c.all(), events[0]+events[1]+events[3]; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if c.field("X-Spillway-Cache") != "hit; level=memory; age=90" || c.field("Age") != "90" {
		t.Errorf("head %+v", c.head)
	}
	if rec := r.last(); rec.Cache != inference.CacheHit || !rec.Complete || len(rec.Attempts) != 0 || rec.Tokens != 3 {
		t.Errorf("record %+v", rec)
	}
	c = r.serve(t.Context(), rebuilt, nil)
	if !strings.Contains(c.all(), `"content":"kept"`) || !strings.Contains(c.all(), `"prompt_tokens":7`) || c.head.Length != int64(c.body.Len()) {
		t.Errorf("got %+v %s", c.head, c.all())
	}
	if one.Requests() != 0 {
		t.Errorf("%d generations", one.Requests())
	}
}

// TestUsageForWhoeverAsksLater: the first client of a stream does not ask for usage, the
// second does and is answered with what the first left behind, and so with the third,
// who asks for none again.
func TestUsageForWhoeverAsksLater(t *testing.T) {
	chat, prompt := `"messages":[{"role":"user","content":"hi"}]`, `"prompt":"hi"`
	for name, c := range map[string]struct {
		surface inference.Surface
		members string
	}{
		"plain":                 {inference.Chat, chat},
		"log probabilities":     {inference.Chat, chat + `,"logprobs":true`},
		"two choices":           {inference.Chat, chat + `,"n":2`},
		"unknown":               {inference.Chat, chat + `,"vendor":1`},
		"further options":       {inference.Chat, chat + `,"vendor":1,"stream_options":{"include_obfuscation":false}`},
		"refused options":       {inference.Chat, chat + `,"vendor":1,"stream_options":{"include_usage":false}`},
		"completions":           {inference.Completions, prompt},
		"completions, best of":  {inference.Completions, prompt + `,"best_of":2`},
		"completions, logprobs": {inference.Completions, prompt + `,"logprobs":1`},
	} {
		t.Run(name, func(t *testing.T) {
			one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				x.Stream()
				x.Chunk(`data: {"choices":[{"index":0,"delta":{"content":"a"},"text":"a"}]}` + "\n\n")
				x.Chunk(testkit.FinishEvent)
				if strings.Contains(string(x.Body), `"include_usage":true`) {
					x.Chunk(usageEvent)
				}
				x.Chunk(testkit.DoneEvent)
				x.End()
				return true
			})
			r := newRig(t, nil, one)
			newShelf(r)
			without := `{"model":"m","stream":true,` + c.members + `}`
			with := strings.Replace(without, `"include_usage":false`, `"include_usage":true`, 1)
			if with == without {
				with = strings.Replace(without, `"stream_options":{`, `"stream_options":{"include_usage":true,`, 1)
			}
			if with == without {
				with = `{"stream_options":{"include_usage":true},` + without[1:]
			}
			for i, body := range []string{without, with, without} {
				req := r.request(`{"model":"m","messages":[]}`)
				fields, err := wire.ScanRequest(c.surface, []byte(body))
				if err != nil {
					t.Fatal(err)
				}
				req.Surface, req.Body, req.Fields = c.surface, []byte(body), fields
				got := new(reader)
				r.gateway.Serve(t.Context(), req, got)
				got.code(t, "")
				if has := strings.Contains(got.all(), usageEvent); has != (i == 1) || !strings.HasSuffix(got.all(), testkit.DoneEvent) {
					t.Errorf("client %d: %s", i, got.all())
				}
			}
			if n := one.Requests(); n != 1 {
				t.Errorf("%d generations", n)
			}
		})
	}
}

func TestOnlyIfCached(t *testing.T) {
	one := testkit.NewInstance(t, good)
	r := newRig(t, nil, one)
	s := newShelf(r)
	req := r.request(stream)
	req.Cache.OnlyIfCached = true
	c := new(reader)
	r.gateway.Serve(t.Context(), req, c)
	c.code(t, inference.CodeNotCached)
	s.put(keyOf(t, req), inference.Stored{Level: "memory", Fresh: true}, testkit.Delta("kept"), testkit.DoneEvent)
	s.deep, s.stored = s.stored, s.deep
	c = new(reader)
	r.gateway.Serve(t.Context(), req, c)
	c.code(t, "")
	if one.Requests() != 0 {
		t.Errorf("%d generations", one.Requests())
	}
}

func TestStaleAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		stored inference.Stored
		script func(*testkit.Exchange) bool
		code   inference.Code
		field  string
		body   string
	}{
		"overloaded":       {inference.Stored{IfOverloaded: true}, func(x *testkit.Exchange) bool { x.JSON(503, `{}`); return true }, "", "stale", "old"},
		"overloaded, fine": {inference.Stored{IfError: true}, func(x *testkit.Exchange) bool { x.JSON(503, `{}`); return true }, inference.CodeOverloaded, "", ""},
		"broken":           {inference.Stored{IfError: true}, func(x *testkit.Exchange) bool { return false }, "", "stale", "old"},
		"broken, no":       {inference.Stored{IfOverloaded: true}, func(x *testkit.Exchange) bool { return false }, inference.CodeUpstreamError, "", ""},
		"well":             {inference.Stored{IfOverloaded: true, IfError: true}, good, "", "", "hello"},
		"the client's own": {inference.Stored{IfOverloaded: true, IfError: true}, func(x *testkit.Exchange) bool { x.JSON(400, `{"error":{"message":"no"}}`); return true }, "", "", "no"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, testkit.NewInstance(t, c.script))
			s := newShelf(r)
			c.stored.Level = "memory"
			s.put(keyOf(t, r.request(stream)), c.stored, testkit.Delta("old"), testkit.DoneEvent)
			got := r.serve(t.Context(), stream, nil)
			got.code(t, c.code)
			if got.field("X-Spillway-Degraded") != c.field || !strings.Contains(got.all(), c.body) {
				t.Errorf("got %+v %s", got.head, got.all())
			}
			if c.field != "" && (!strings.HasPrefix(got.field("X-Spillway-Cache"), "stale; ") || r.last().Degraded != "stale") {
				t.Errorf("got %+v, record %+v", got.head, r.last())
			}
		})
	}
}

func TestStaleWhileRevalidate(t *testing.T) {
	one := testkit.NewInstance(t, good)
	r := newRig(t, nil, one)
	s := newShelf(r)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.gateway.Run(ctx) }()
	s.put(keyOf(t, r.request(stream)), inference.Stored{Level: "memory", WhileRevalidate: true}, testkit.Delta("old"), testkit.DoneEvent)
	c := r.serve(t.Context(), stream, nil)
	c.code(t, "")
	if !strings.Contains(c.all(), "old") || c.field("X-Spillway-Degraded") != "" {
		t.Errorf("got %+v %s", c.head, c.all())
	}
	testkit.Eventually(t, "the answer is renewed", func() bool {
		return strings.Contains(r.serve(t.Context(), stream, nil).all(), "hello")
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	idle := 0
	for _, rec := range r.records {
		if rec.Request.Class == inference.Idle {
			idle++
		}
	}
	if idle == 0 || one.Requests() != int64(idle) {
		t.Errorf("%d idle requests, %d generations", idle, one.Requests())
	}
}

func TestAnUrgentReaderHurriesTheFlight(t *testing.T) {
	one := testkit.NewInstance(t, good)
	r := newRig(t, nil, one)
	newShelf(r)
	var mu sync.Mutex
	var classes []inference.Class
	waits := newPlace()
	r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
		mu.Lock()
		defer mu.Unlock()
		classes = append(classes, plan.Request.Class)
		if plan.Request.Class == inference.Idle {
			return nil, waits, nil
		}
		lease, err := plan.Acquire(now, tried)
		return lease, nil, err
	}
	idle := make(chan *inference.Record)
	go func() {
		req := gateway.Background(r.request(stream), time.Now(), time.Minute)
		idle <- r.gateway.Serve(t.Context(), req, gateway.Discard{})
	}()
	testkit.Eventually(t, "the idle flight waits", func() bool { return waits.waits.Load() > 0 })
	c := r.serve(t.Context(), stream, nil)
	c.code(t, "")
	if rec := <-idle; rec.Code != "" {
		t.Errorf("the idle request: %+v", rec)
	}
	if fmt.Sprint(classes) != "[idle normal]" || waits.left.Load() != 1 || one.Requests() != 1 {
		t.Errorf("entered as %v, left %d times, %d generations", classes, waits.left.Load(), one.Requests())
	}
}

func TestAnswersTooLargeToHold(t *testing.T) {
	text := strings.Repeat("x", 32<<10)
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Role()
		for range 40 {
			x.Delta(text)
		}
		x.Finish()
		return true
	})
	r := newRig(t, func(c *gateway.Config) { c.Share.MaxAnswer = 64 << 10 }, one)
	s := newShelf(r)
	for _, body := range []string{stream, rebuilt} {
		c := r.serve(t.Context(), body, nil)
		c.code(t, "")
		if n := strings.Count(c.all(), "x"); n < 40*32<<10 {
			t.Errorf("got %d bytes of text", n)
		}
	}
	if s.kept != 0 || one.Requests() != 2 {
		t.Errorf("%d kept, %d generations", s.kept, one.Requests())
	}
	if n := r.gateway.Held(); n != 0 {
		t.Errorf("%d bytes are held", n)
	}
}

func TestAPanicIsNotTheProcess(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	newShelf(r)
	r.observe = func(*fleet.Lease, *inference.Failure) {
		r.observe = nil
		panic("a defect")
	}
	c := r.serve(t.Context(), rebuilt, nil)
	c.code(t, inference.CodeInternal)
	if c.fail.Err == nil || !strings.Contains(c.fail.Err.Error(), "a defect") {
		t.Errorf("got %v", c.fail.Err)
	}
	r.serve(t.Context(), rebuilt, nil).code(t, "")
}

func TestAPanicOfTheCacheIsNotTheProcess(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	newShelf(r).broken = true
	r.serve(t.Context(), rebuilt, nil).code(t, inference.CodeInternal)
	if n := r.gateway.Held(); n != 0 || r.gateway.Sharing() != 0 {
		t.Errorf("%d bytes and %d readers are left", n, r.gateway.Sharing())
	}
}
