package gateway_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/wire"
)

// joined waits until so many readers share flights.
func (r *rig) joined(n int) {
	r.t.Helper()
	testkit.Eventually(r.t, fmt.Sprintf("%d readers", n), func() bool { return r.gateway.Sharing() == n })
}

// atRest asserts that no flight and no byte of one is left.
func (r *rig) atRest() {
	r.t.Helper()
	testkit.Eventually(r.t, "nothing is held", func() bool { return r.gateway.Sharing() == 0 && r.gateway.Held() == 0 })
}

// halting is a script that streams a token, waits for the gate and goes on.
func halting(begun, open chan struct{}) func(*testkit.Exchange) bool {
	return long(3, func(i int) {
		if i == 1 {
			close(begun)
			<-open
		}
	})
}

// lease takes a slot of the rig's fleet.
func (r *rig) lease() *fleet.Lease {
	r.t.Helper()
	lease, err := testkit.Plan(r.fleet, &inference.Request{Fields: inference.Fields{Model: "m", Stream: true}}).Acquire(time.Now(), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return lease
}

func TestTwinsLeaveTheFlightItsPlace(t *testing.T) {
	r := newRig(t, patient, testkit.NewInstance(t, good))
	newShelf(r)
	p := newPlace()
	p.in(r)
	var all []*answer
	for i := range 20 { // each has a later deadline than the one before
		all = append(all, r.begin(stream, nil))
		r.joined(i + 1)
	}
	testkit.Eventually(t, "the flight waits", func() bool { return p.waits.Load() > 0 })
	p.lease = r.lease()
	close(p.outcome)
	for _, a := range all {
		<-a.done
		a.code(t, "")
	}
	if n := p.left.Load(); n != 0 {
		t.Errorf("the place was given up %d times", n)
	}
	r.atRest()
}

func TestAMorePatientTwinWaitsOn(t *testing.T) {
	for name, c := range map[string]struct {
		wait  time.Duration // of the twin; the leader's is 100 ms
		twice bool
	}{
		"more patient": {time.Minute, true}, "the same": {100 * time.Millisecond, false}, "less": {time.Millisecond, false},
		"no wish": {0, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, patient, testkit.NewInstance(t, good))
			newShelf(r)
			first, entered := newPlace(), atomic.Int32{}
			r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
				if entered.Add(1) == 1 {
					return nil, first, nil
				}
				if plan.Request.Wait != c.wait {
					t.Errorf("waits %v, want %v", plan.Request.Wait, c.wait)
				}
				lease, err := plan.Acquire(now, tried)
				return lease, nil, err
			}
			leader := r.begin(stream, func(q *inference.Request) { q.Wait = 100 * time.Millisecond })
			testkit.Eventually(t, "the flight waits", func() bool { return first.waits.Load() > 0 })
			twin := r.begin(stream, func(q *inference.Request) { q.Wait = c.wait })
			r.joined(2)
			first.refuse()
			<-leader.done
			<-twin.done
			want := inference.CodeOverloaded
			if c.twice {
				want = ""
			}
			leader.code(t, want)
			twin.code(t, want)
			if !c.twice && (twin.fail.Ticket != "T" || twin.fail.RetryAfter == 0) {
				t.Errorf("the twin's refusal is %+v", twin.fail)
			}
			if (entered.Load() == 2) != c.twice {
				t.Errorf("entered %d times", entered.Load())
			}
		})
	}
}

func TestATwinGetsNoAnswerThatItDoesNotWant(t *testing.T) {
	for name, control := range map[string]inference.CacheControl{
		"no-cache": {NoCache: true}, "max-age": {HasMaxAge: true, MaxAge: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			one := testkit.NewInstance(t, good)
			r := newRig(t, nil, one)
			s := newShelf(r)
			s.put(keyOf(t, r.request(stream)), inference.Stored{Level: "deep", Fresh: true, Age: time.Hour}, testkit.Delta("old"), testkit.DoneEvent)
			s.deep, s.stored = s.stored, s.deep
			goOn := make(chan struct{})
			var once sync.Once
			s.fetch = func() { once.Do(func() { <-goOn }) }
			leader := r.begin(stream, nil)
			r.joined(1)
			twin := r.begin(stream, func(q *inference.Request) { q.Cache = control })
			r.joined(2)
			close(goOn)
			<-leader.done
			<-twin.done
			leader.code(t, "")
			twin.code(t, "")
			if !strings.Contains(leader.all(), "old") || !strings.Contains(twin.all(), "hello") {
				t.Errorf("the leader got %q, the twin %q", leader.all(), twin.all())
			}
		})
	}
}

// TestWhatIsKeptIsNotTheLeadersToChange: its body is used for another request once
// the leader has left.
func TestWhatIsKeptIsNotTheLeadersToChange(t *testing.T) {
	begun, open := make(chan struct{}), make(chan struct{})
	r := newRig(t, nil, testkit.NewInstance(t, halting(begun, open)))
	s := newShelf(r)
	var body []byte
	leader := r.begin(stream, func(q *inference.Request) { body = q.Body })
	<-begun
	twin := r.begin(stream, nil)
	r.joined(2)
	leader.cancel()
	<-leader.done
	copy(body, strings.ReplaceAll(stream, `"hi"`, `"NO"`))
	close(open)
	<-twin.done
	twin.code(t, "")
	testkit.Eventually(t, "the answer is kept", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.kept == 1
	})
	if diff := cmp.Diff([]string{"hi"}, s.asked); diff != "" {
		t.Error(diff)
	}
}

// bursting panics when it has got so many writes.
type bursting struct {
	reader
	after int
}

func (c *bursting) Write(p []byte, flush bool) error {
	if c.after--; c.after < 0 {
		panic("on purpose")
	}
	return c.reader.Write(p, flush)
}

func TestAReaderThatPanicsGivesItsSeatUp(t *testing.T) {
	begun, open := make(chan struct{}), make(chan struct{})
	r := newRig(t, nil, testkit.NewInstance(t, halting(begun, open)))
	newShelf(r)
	leader := r.begin(stream, nil)
	<-begun
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		r.gateway.Serve(t.Context(), r.request(stream), &bursting{})
	}()
	r.joined(1)
	close(open)
	<-leader.done
	leader.code(t, "")
	r.atRest()
}

func TestPanicsInAFlightReachItsReaders(t *testing.T) {
	always := func() { panic("a defect") }
	for name, plant := range map[string]func(r *rig, s *shelf){
		"health, always": func(r *rig, _ *shelf) { r.observe = func(*fleet.Lease, *inference.Failure) { always() } },
		"admission": func(r *rig, _ *shelf) {
			r.enter = func(time.Time, *fleet.Plan, []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
				panic("a defect")
			}
		},
		"a wait": func(r *rig, _ *shelf) {
			p := newPlace()
			p.wait = func(context.Context, time.Time) (*fleet.Lease, error) { panic("a defect") }
			p.in(r)
		},
		"the cache": func(_ *rig, s *shelf) { s.fetch = always },
	} {
		for body, text := range map[string]string{"stream": stream, "one piece": rebuilt} {
			t.Run(name+", "+body, func(t *testing.T) {
				r := newRig(t, nil, testkit.NewInstance(t, good))
				s := newShelf(r)
				plant(r, s)
				var wg sync.WaitGroup
				for range 5 {
					wg.Go(func() {
						defer func() { _ = recover() }() // of one that looks itself what the others' flight has kept
						c := r.serve(t.Context(), text, nil)
						if c.fail == nil || c.fail.Code != inference.CodeInternal || !strings.Contains(fmt.Sprint(c.fail.Err), "a defect") {
							t.Errorf("got %v", c.fail)
						}
					})
				}
				wg.Wait()
				if s.kept != 0 {
					t.Errorf("%d kept", s.kept)
				}
				r.atRest()
			})
		}
	}
}

func TestTheClientsOwnMistakeIsToldToAllTwins(t *testing.T) {
	const says = `{"error":{"message":"no such tool","type":"invalid_request_error"}}`
	open := make(chan struct{})
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool { <-open; x.JSON(400, says); return true })
	r := newRig(t, patient, one)
	s := newShelf(r)
	all := []*answer{r.begin(stream, nil), r.begin(stream, nil), r.begin(rebuilt, nil)}
	r.joined(len(all))
	close(open)
	for _, a := range all {
		<-a.done
		if a.code(t, ""); a.head == nil || a.head.Status != 400 || a.all() != says {
			t.Errorf("got %+v %s", a.head, a.all())
		}
	}
	for _, rec := range r.records {
		if rec.Code != inference.CodeInvalidRequest || rec.Status != 400 {
			t.Errorf("record %+v", rec)
		}
	}
	if one.Requests() != 1 || s.kept != 0 {
		t.Errorf("%d generations, %d kept", one.Requests(), s.kept)
	}
}

// TestNoBodyInTheMiddleOfAStream: comments have begun the answer as a stream, so
// what follows cannot be a body of JSON.
func TestNoBodyInTheMiddleOfAStream(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		code   inference.Code
		says   string
	}{
		"a mistake":   {400, `{"error":{"message":"no such tool"}}`, inference.CodeInvalidRequest, "no such tool"},
		"an answer":   {200, testkit.Answer, inference.CodeUpstreamError, "no stream"},
		"a long body": {200, `{"choices":[{"message":{"content":"` + strings.Repeat("x", 2<<20) + `"}}]}`, inference.CodeUpstreamError, "no stream"},
	} {
		t.Run(name, func(t *testing.T) {
			open := make(chan struct{})
			r := newRig(t, quick, testkit.NewInstance(t, func(x *testkit.Exchange) bool { <-open; x.JSON(c.status, c.body); return true }))
			newShelf(r)
			a := r.begin(stream, nil)
			testkit.Eventually(t, "a comment", func() bool { return strings.Contains(a.all(), ": keep-alive") })
			close(open)
			<-a.done
			a.code(t, c.code)
			if !strings.Contains(fmt.Sprint(a.fail), c.says) || strings.Contains(a.all(), "{") {
				t.Errorf("got %v and %.200q", a.fail, a.all())
			}
			r.atRest()
		})
	}
}

func TestFollowersAreKeptByComments(t *testing.T) {
	open := make(chan struct{})
	r := newRig(t, quick, testkit.NewInstance(t, long(2, func(i int) {
		if i == 0 {
			<-open
		}
	})))
	newShelf(r)
	r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
		lease, err := plan.Acquire(now, tried)
		return lease, nil, err
	}
	a, b, whole := r.begin(stream, nil), r.begin(stream, nil), r.begin(rebuilt, nil)
	testkit.Eventually(t, "two comments each", func() bool {
		return strings.Count(a.all(), ": keep-alive\n") > 1 && strings.Count(b.all(), ": keep-alive\n") > 1
	})
	if _, begun := whole.text(); begun {
		t.Error("an answer in one piece has begun before it is there")
	}
	close(open)
	for _, c := range []*answer{a, b, whole} {
		<-c.done
		c.code(t, "")
	}
	for _, c := range []*answer{a, b} {
		if got := strings.ReplaceAll(c.all(), ": keep-alive\n", ""); got != script(2, false) {
			t.Errorf("got %q", got)
		}
	}
}

func TestEachReaderHasItsOwnDeadline(t *testing.T) {
	for name, stored := range map[string]*inference.Stored{"nothing is kept": nil, "an old answer is kept": {Level: "memory", IfError: true}} {
		t.Run(name, func(t *testing.T) {
			begun, open := make(chan struct{}), make(chan struct{})
			one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				close(begun)
				<-open
				return long(3, func(int) {})(x)
			})
			r := newRig(t, patient, one)
			s := newShelf(r)
			if stored != nil {
				s.put(keyOf(t, r.request(stream)), *stored, testkit.Delta("old"), testkit.DoneEvent)
			}
			short := func(q *inference.Request) { q.Deadline = time.Now().Add(100 * time.Millisecond) }
			leader := r.begin(stream, short) // the flight began with the shorter deadline
			<-begun
			twin, another := r.begin(stream, nil), r.begin(rebuilt, short)
			r.joined(3)
			<-leader.done
			<-another.done
			r.joined(1)
			close(open)
			<-twin.done
			twin.code(t, "")
			if twin.all() != script(3, false) || one.Requests() != 1 {
				t.Errorf("the twin got %q, %d generations", twin.all(), one.Requests())
			}
			if stored == nil {
				leader.code(t, inference.CodeTimeout)
				another.code(t, inference.CodeTimeout)
				return
			}
			leader.code(t, "")
			another.code(t, "")
			if !strings.Contains(leader.all(), "old") || !strings.Contains(another.all(), `"content":"old"`) || leader.field("X-Spillway-Degraded") != "stale" {
				t.Errorf("got %q and %q", leader.all(), another.all())
			}
		})
	}
}

func TestWhatIsNotShared(t *testing.T) {
	one := testkit.NewInstance(t, good)
	r := newRig(t, nil, one)
	s := newShelf(r)
	r.plan = func(p *fleet.Plan) { p.Cookie = func(*fleet.Instance) string { return "spillway=1" } }
	c := r.serve(t.Context(), stream, nil)
	if c.field("Set-Cookie") != "" {
		t.Error("a cookie was shared")
	}
	r.atRest()
	c = new(reader)
	req := r.request(stream)
	req.Cache.NoStore = true
	r.gateway.Serve(t.Context(), req, c)
	if c.field("Set-Cookie") == "" || c.field("X-Spillway-Cache") != "" || s.kept != 1 || one.Requests() != 2 {
		t.Errorf("got %+v, %d kept, %d generations", c.head, s.kept, one.Requests())
	}
	req = r.request(stream)
	req.Cache.NoCache = true
	r.gateway.Serve(t.Context(), req, new(reader))
	if r.atRest(); s.kept != 2 || one.Requests() != 3 {
		t.Errorf("no-cache: %d kept, %d generations", s.kept, one.Requests())
	}
}

func TestLesserAnswersAreNotKept(t *testing.T) {
	for name, change := range map[string]func(*rig){
		"another model": func(r *rig) { r.plan = func(p *fleet.Plan) { p.Candidates[0].Fallback = "small" } },
		"fewer tokens": func(r *rig) {
			r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
				lease, err := plan.Acquire(now, tried)
				lease.Degraded, lease.MaxTokens = "max_tokens=10", 10
				return lease, nil, err
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, testkit.NewInstance(t, good))
			s := newShelf(r)
			change(r)
			for _, text := range []string{stream, rebuilt} {
				c := r.serve(t.Context(), text, nil)
				r.atRest()
				if c.code(t, ""); c.field("X-Spillway-Degraded") == "" || s.kept != 0 || r.last().Degraded == "" {
					t.Errorf("got %+v, %d kept", c.head, s.kept)
				}
			}
			a := r.begin(stream, func(q *inference.Request) { q.DegradeOK = true })
			<-a.done
			if r.atRest(); s.kept != 0 {
				t.Errorf("%d kept", s.kept)
			}
		})
	}
}

// slow is a reader whose client takes nothing until it may.
type slow struct {
	reader
	may   chan struct{}
	stuck atomic.Bool
}

func (c *slow) Write(p []byte, flush bool) error {
	c.stuck.Store(true)
	<-c.may
	return c.reader.Write(p, flush)
}

func TestASlowReaderHoldsNobodyUp(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, long(200, func(int) {})))
	newShelf(r)
	lazy := &slow{may: make(chan struct{})}
	done := make(chan struct{})
	go func() { defer close(done); r.gateway.Serve(context.Background(), r.request(stream), lazy) }()
	testkit.Eventually(t, "the slow one has begun", lazy.stuck.Load)
	c := r.serve(t.Context(), stream, nil)
	if c.code(t, ""); c.all() != script(200, false) {
		t.Errorf("got %d bytes", len(c.all()))
	}
	close(lazy.may)
	<-done
	if lazy.code(t, ""); lazy.all() != script(200, false) {
		t.Errorf("the slow one got %d bytes", len(lazy.all()))
	}
	r.atRest()
}

func TestAWindowWaitsForItsSlowestReader(t *testing.T) {
	const tokens = 100
	text := strings.Repeat("y", 8<<10)
	for name, stays := range map[string]bool{"it goes on": true, "it leaves": false} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int32
			both := make(chan struct{})
			r := newRig(t, func(c *gateway.Config) { c.Share.MaxAnswer = 64 << 10 }, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				x.Stream()
				x.Role()
				x.Delta("a")
				<-both
				for range tokens {
					x.Delta(text)
					sent.Add(1)
				}
				x.Finish()
				return true
			}))
			s := newShelf(r)
			lazy := &slow{may: make(chan struct{})}
			ctx, leave := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); r.gateway.Serve(ctx, r.request(stream), lazy) }()
			quick := r.begin(stream, nil)
			r.joined(2)
			close(both)
			testkit.Eventually(t, "the window is full", func() bool { return r.gateway.Held() > 64<<10 })
			if held := r.gateway.Held(); held > 256<<10 {
				t.Errorf("%d bytes are held", held)
			}
			if late := r.begin(stream, func(q *inference.Request) { q.Deadline = time.Now().Add(20 * time.Millisecond) }); true {
				<-late.done // nobody joins a window: another flight is begun for it
			}
			select {
			case <-quick.done:
				t.Error("the flight did not wait")
			default:
			}
			if !stays {
				leave()
				time.AfterFunc(10*time.Millisecond, func() { close(lazy.may) }) // a write to a client that is gone fails
			} else {
				close(lazy.may)
			}
			<-quick.done
			<-done
			leave()
			quick.code(t, "")
			if n := strings.Count(quick.all(), "y"); n != tokens*len(text) {
				t.Errorf("got %d", n)
			}
			if n := strings.Count(lazy.all(), "y"); stays && n != tokens*len(text) {
				t.Errorf("the slow one got %d", n)
			}
			if s.kept != 0 {
				t.Errorf("%d kept", s.kept)
			}
			r.atRest()
		})
	}
}

func TestAJSONAnswerToAStreamServesAll(t *testing.T) {
	open := make(chan struct{})
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool { <-open; x.JSON(200, testkit.Answer); return true })
	r := newRig(t, patient, one)
	s := newShelf(r)
	all := []*answer{r.begin(rebuilt, nil), r.begin(rebuilt, nil), r.begin(stream, nil)}
	r.joined(len(all))
	close(open)
	for _, a := range all {
		<-a.done
		if a.code(t, ""); a.all() != testkit.Answer || a.head.Stream || a.field("Content-Type") != "application/json" {
			t.Errorf("got %+v %s", a.head, a.all())
		}
	}
	r.atRest()
	if one.Requests() != 1 || s.kept != 1 {
		t.Errorf("%d generations, %d kept", one.Requests(), s.kept)
	}
	c := r.serve(t.Context(), rebuilt, nil)
	if c.code(t, ""); c.all() != testkit.Answer {
		t.Errorf("the hit is %s", c.all())
	}
}

func TestAnEmptyBodyIsAnAnswer(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool { x.JSON(200, ""); return true }))
	newShelf(r)
	c := r.serve(t.Context(), plain, nil)
	if c.code(t, ""); c.head == nil || c.head.Status != 200 || c.all() != "" || !r.last().Complete {
		t.Errorf("got %+v %q, record %+v", c.head, c.all(), r.last())
	}
	r.atRest()
}

func TestReelectionIsPaidOnce(t *testing.T) {
	const clients = 200
	for name, c := range map[string]struct {
		floor float64
		code  inference.Code
		tries int64
	}{"a small budget": {0.1, "", 2}, "no budget": {0, inference.CodeUpstreamCut, 1}} {
		t.Run(name, func(t *testing.T) {
			joined := make(chan struct{})
			one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				if x.N == 1 {
					x.Stream()
					x.Role()
					x.Delta("a")
					<-joined
					return false
				}
				return long(5, func(int) {})(x)
			})
			r := newRig(t, func(g *gateway.Config) { g.Retry.Floor, g.Retry.Budget = c.floor, 0 }, one)
			newShelf(r)
			var all []*answer
			for range clients {
				all = append(all, r.begin(rebuilt, nil))
			}
			r.joined(clients)
			testkit.Eventually(t, "the answer has begun", func() bool { return r.gateway.Held() > 0 })
			close(joined)
			for _, a := range all {
				<-a.done
				a.code(t, c.code)
			}
			if one.Requests() != c.tries {
				t.Errorf("%d generations", one.Requests())
			}
			r.atRest()
		})
	}
}

func TestARejectedFlightIsTriedTwiceAtMost(t *testing.T) {
	open := make(chan struct{})
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool { <-open; return false })
	r := newRig(t, func(c *gateway.Config) { c.Retry.Attempts, c.KeepAlive.Grace = 1, time.Hour }, one)
	newShelf(r)
	var all []*answer
	for range 30 {
		all = append(all, r.begin(stream, nil))
	}
	r.joined(len(all))
	close(open)
	for _, a := range all {
		<-a.done
		a.code(t, inference.CodeUpstreamError)
	}
	if n := one.Requests(); n != 2 {
		t.Errorf("%d generations", n)
	}
	r.atRest()
}

func TestHedgingWithTwins(t *testing.T) {
	var late atomic.Bool
	script := func(x *testkit.Exchange) bool {
		if late.Load() && x.N%2 == 0 {
			x.Gone(300 * time.Millisecond)
		}
		return good(x)
	}
	r := newRig(t, func(c *gateway.Config) {
		c.Hedge.Pools, c.Hedge.MinDelay = []string{"eu/gpu"}, 20*time.Millisecond
	}, testkit.NewInstance(t, script), testkit.NewInstance(t, script))
	warm(t, r, 30)
	late.Store(true)
	newShelf(r)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			c := r.serve(t.Context(), stream, nil)
			if c.code(t, ""); strings.Count(c.all(), "hello") != 1 {
				t.Errorf("got %q", c.all())
			}
		})
	}
	wg.Wait()
	r.atRest()
}

func TestRenewalsAreBoundedAndEnd(t *testing.T) {
	open := make(chan struct{})
	defer close(open)
	one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		select {
		case <-open:
		case <-time.After(10 * time.Second):
		}
		return false
	})
	r := newRig(t, nil, one)
	s := newShelf(r)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.gateway.Run(ctx) }()
	const questions = 200
	for i := range questions {
		body := strings.Replace(stream, `"hi"`, fmt.Sprintf(`"%d"`, i), 1)
		s.put(keyOf(t, r.request(body)), inference.Stored{Level: "memory", WhileRevalidate: true}, testkit.Delta("old"), testkit.DoneEvent)
		for range 2 { // twice, and one renewal
			r.serve(t.Context(), body, nil).code(t, "")
		}
	}
	testkit.Eventually(t, "renewals run", func() bool { return r.gateway.Sharing() >= 64 })
	if n := r.gateway.Sharing(); n != 64 {
		t.Errorf("%d renewals at once", n)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.atRest()
	r.serve(t.Context(), strings.Replace(stream, `"hi"`, `"199"`, 1), nil).code(t, "")
	if n := r.gateway.Sharing(); n != 0 {
		t.Errorf("%d renewals behind Run", n)
	}
}

func TestTheOriginalPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *gateway.Config) { c.Share.Pace = gateway.PaceOriginal })
		s := newShelf(r)
		key := keyOf(t, r.request(stream))
		s.put(key, inference.Stored{Level: "memory", Fresh: true}, testkit.Delta("a"), testkit.Delta("b"), usageEvent, testkit.DoneEvent)
		for i, wait := range []time.Duration{9 * time.Second, time.Second, 2 * time.Second, time.Second} {
			s.stored[key].Marks[i].Wait = uint32(wait / time.Microsecond)
		}
		begin := time.Now()
		c := r.serve(t.Context(), stream, nil)
		if c.code(t, ""); c.all() != testkit.Delta("a")+testkit.Delta("b")+testkit.DoneEvent || time.Since(begin) != 4*time.Second {
			t.Errorf("got %q after %v", c.all(), time.Since(begin))
		}
		begin = time.Now()
		req := r.request(stream)
		req.Deadline = begin.Add(1500 * time.Millisecond)
		c = new(reader)
		r.gateway.Serve(t.Context(), req, c)
		if c.code(t, ""); c.all() != testkit.Delta("a")+testkit.Delta("b")+testkit.DoneEvent || time.Since(begin) != 1500*time.Millisecond {
			t.Errorf("with a deadline: got %q after %v", c.all(), time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		r.serve(ctx, stream, nil).code(t, inference.CodeCanceled)
	})
}

// surfaces are a stream's events, or one body, of each surface.
var surfaces = map[inference.Surface]struct {
	request string
	events  []string
	body    string
}{
	inference.Chat: {stream, []string{testkit.Delta("a"), testkit.FinishEvent, testkit.DoneEvent}, ""},
	inference.Completions: {`{"model":"m","stream":true,"prompt":"hi"}`, []string{
		"data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\r\n\r\n",
		`data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}` + "\n\n", testkit.DoneEvent}, ""},
	inference.Messages: {`{"model":"m","stream":true,"max_tokens":5,"messages":[]}`, []string{
		"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"x\",\"content\":[],\"usage\":{\"input_tokens\":3,\"output_tokens\":0}}}\n\n",
		"event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
		"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n",
		"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
		"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":1}}\n\n",
		"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"}, ""},
	inference.Responses: {`{"model":"m","stream":true,"input":"hi"}`, []string{
		"event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\"}}\n\n",
		"event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
		"event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"output\":[],\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n"}, ""},
	inference.Embeddings: {`{"model":"m","input":"hi"}`, nil, `{"object":"list","data":[{"index":0,"embedding":[0.1]}],"usage":{"prompt_tokens":1}}`},
}

func TestEverySurfaceIsReplayedByteByByte(t *testing.T) {
	for surface, c := range surfaces {
		t.Run(surface.String(), func(t *testing.T) {
			one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				if c.events == nil {
					x.JSON(200, c.body)
					return true
				}
				x.Stream()
				for _, e := range c.events {
					x.Chunk(e)
				}
				x.End()
				return true
			})
			r := newRig(t, nil, one)
			s := newShelf(r)
			ask := func(change func(*inference.Request)) *answer {
				a := r.begin(stream, func(q *inference.Request) {
					var err error
					q.Surface, q.Body = surface, []byte(c.request)
					if q.Fields, err = wire.ScanRequest(surface, q.Body); err != nil {
						t.Fatal(err)
					}
					if change != nil {
						change(q)
					}
				})
				<-a.done
				r.atRest()
				return a
			}
			want := strings.Join(c.events, "") + c.body
			for _, say := range []string{"miss", "hit; level=shelf:m; age=0"} {
				a := ask(nil)
				if a.code(t, ""); a.all() != want || a.field("X-Spillway-Cache") != say {
					t.Errorf("%s: got %+v\n%q, want\n%q", say, a.head, a.all(), want)
				}
			}
			if one.Requests() != 1 || s.kept != 1 {
				t.Errorf("%d generations, %d kept", one.Requests(), s.kept)
			}
			if c.events == nil {
				return
			}
			a := ask(func(q *inference.Request) { // its twin that wants one piece
				q.Body = []byte(strings.Replace(c.request, `"stream":true,`, "", 1))
				q.Fields, _ = wire.ScanRequest(surface, q.Body)
			})
			if a.code(t, ""); !strings.HasPrefix(a.all(), "{") || a.head.Stream || one.Requests() != 1 || a.head.Length != int64(len(a.all())) {
				t.Errorf("one piece: got %+v %s, %d generations", a.head, a.all(), one.Requests())
			}
		})
	}
}

// TestEachAttemptIsRecordedOnce, whoever leaves and when.
func TestEachAttemptIsRecordedOnce(t *testing.T) {
	for round := range 60 {
		random := rand.New(rand.NewPCG(uint64(round), 4))
		one := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
			if x.N%3 == 0 {
				x.JSON(503, "{}")
				return true
			}
			return long(6, func(i int) {
				<-time.After(300 * time.Microsecond)
			})(x)
		})
		r := newRig(t, nil, one)
		s := newShelf(r)
		var entered atomic.Int64
		r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
			lease, err := plan.Acquire(now, tried)
			if lease != nil {
				entered.Add(1)
			}
			return lease, nil, err
		}
		all := make([]*answer, 12)
		for i := range all {
			all[i] = r.begin([]string{stream, rebuilt}[random.IntN(2)], func(q *inference.Request) {
				q.Cache.NoCache = random.IntN(4) == 0
				if random.IntN(4) == 0 {
					q.Deadline = time.Now().Add(time.Duration(random.IntN(3000)) * time.Microsecond)
				}
			})
			if random.IntN(2) == 0 {
				time.AfterFunc(time.Duration(random.IntN(4000))*time.Microsecond, all[i].cancel)
			}
			<-time.After(time.Duration(random.IntN(400)) * time.Microsecond)
		}
		for _, a := range all {
			<-a.done
			if got := a.all(); a.fail == nil && !strings.HasSuffix(got, testkit.DoneEvent) && !strings.Contains(got, `t5 `) {
				t.Fatalf("round %d: a part of an answer without an error: %q", round, got)
			}
		}
		r.atRest()
		attempts := int64(0)
		r.mu.Lock()
		for _, rec := range r.records {
			attempts += int64(len(rec.Attempts))
			if rec.Complete && rec.Code != "" {
				t.Errorf("round %d: record %+v", round, rec)
			}
		}
		r.mu.Unlock()
		if attempts != entered.Load() {
			t.Fatalf("round %d: %d attempts in the records, %d were made, %d kept", round, attempts, entered.Load(), s.kept)
		}
	}
}

// TestADefectInARenewalIsNotTheProcess: its client has its answer already.
func TestADefectInARenewalIsNotTheProcess(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	s := newShelf(r)
	s.put(keyOf(t, r.request(stream)), inference.Stored{Level: "memory", WhileRevalidate: true}, testkit.Delta("old"), testkit.DoneEvent)
	r.plan = func(p *fleet.Plan) {
		if p.Request.Class == inference.Idle {
			panic("on purpose")
		}
	}
	r.serve(t.Context(), stream, nil).code(t, "")
	testkit.Eventually(t, "both are recorded", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.records) == 2 })
}
