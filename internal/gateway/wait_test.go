package gateway_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/wire"
)

// place is a gateway.Place that a test holds in its hand.
type place struct {
	outcome chan struct{} // closed when lease or err is set
	lease   *fleet.Lease
	err     error
	wait    func(ctx context.Context, until time.Time) (*fleet.Lease, error) // instead of waiting; nil is to wait
	waits   atomic.Int32
	left    atomic.Int32
}

// newPlace is one that nobody has decided about.
func newPlace() *place { return &place{outcome: make(chan struct{})} }

// Wait implements gateway.Place.
func (p *place) Wait(ctx context.Context, until time.Time) (*fleet.Lease, error) {
	p.waits.Add(1)
	if p.wait != nil {
		return p.wait(ctx, until)
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-p.outcome:
		return p.lease, p.err
	case <-ctx.Done():
		p.left.Add(1)
		return nil, ctx.Err()
	case <-timer.C:
		return nil, inference.ErrNotYet
	}
}

// Leave implements gateway.Place.
func (p *place) Leave(now time.Time) {
	p.left.Add(1)
	select {
	case <-p.outcome:
		if p.lease != nil {
			p.lease.Release(now)
		}
	default:
	}
}

// refuse ends the wait.
func (p *place) refuse() {
	p.err = &inference.Error{Code: inference.CodeOverloaded, Message: "busy", Reason: "wait_expired", RetryAfter: 3 * time.Second, Ticket: "T"}
	close(p.outcome)
}

// in lets every attempt wait in the place.
func (p *place) in(r *rig) {
	r.enter = func(time.Time, *fleet.Plan, []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
		return nil, p, nil
	}
}

// answer is a request under way.
type answer struct {
	*reader
	cancel context.CancelFunc
	done   chan struct{}
}

// begin sends a request on its own goroutine, which ends with it.
func (r *rig) begin(body string, change func(*inference.Request)) *answer {
	r.t.Helper()
	return r.beginTo(new(reader), body, change)
}

// beginTo is begin for a client of its own kind.
func (r *rig) beginTo(c *reader, body string, change func(*inference.Request)) *answer {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &answer{reader: c, cancel: cancel, done: make(chan struct{})}
	now := time.Now()
	req := &inference.Request{ID: "t", Tenant: "t", Body: []byte(body), Header: http.Header{}, Received: now, Deadline: now.Add(r.gateway.Timeout())}
	var err error
	if req.Fields, err = wire.ScanRequest(inference.Chat, req.Body); err != nil {
		r.t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	go func() {
		defer close(a.done)
		r.gateway.Serve(ctx, req, a.reader)
	}()
	r.t.Cleanup(func() { cancel(); <-a.done })
	return a
}

// text is what the client has, and whether a head has come.
func (c *reader) text() (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.body.String(), c.head != nil
}

// quick is a grace and an interval that a test can wait for.
func quick(c *gateway.Config) {
	c.KeepAlive.Grace, c.KeepAlive.Interval = 30*time.Millisecond, 20*time.Millisecond
}

// patient is a grace that no test reaches.
func patient(c *gateway.Config) { c.KeepAlive.Grace = time.Hour }

func TestAWaitingStreamIsKeptByComments(t *testing.T) {
	r := newRig(t, quick, testkit.NewInstance(t, good))
	p := newPlace()
	p.in(r)
	a := r.begin(stream, nil)
	testkit.Eventually(t, "two comments", func() bool {
		text, head := a.text()
		return head && strings.Count(text, ": keep-alive\n") >= 2
	})
	if a.head.Status != 200 || !a.head.Stream {
		t.Errorf("got head %+v", a.head)
	}
	lease, err := testkit.Plan(r.fleet, &inference.Request{Fields: inference.Fields{Model: "m", Stream: true}}).Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p.lease = lease
	close(p.outcome)
	<-a.done
	a.code(t, "")
	text := a.body.String()
	if !strings.HasSuffix(text, testkit.FinishEvent+testkit.DoneEvent) || strings.LastIndex(text, ": keep-alive") > strings.Index(text, "hello") {
		t.Errorf("got %q", text)
	}
	rec := r.last()
	if rec.Queued < 40*time.Millisecond || rec.Queued > rec.Duration || rec.Status != 200 || !rec.Complete || p.left.Load() != 0 {
		t.Errorf("record: %+v", rec)
	}
}

// TestTheTrueStatusWithinTheGrace and none before.
func TestTheTrueStatusWithinTheGrace(t *testing.T) {
	r := newRig(t, patient, testkit.NewInstance(t, good))
	p := newPlace()
	p.in(r)
	a := r.begin(stream, nil)
	testkit.Eventually(t, "it waits", func() bool { return p.waits.Load() == 1 })
	time.AfterFunc(20*time.Millisecond, p.refuse)
	<-a.done
	a.code(t, inference.CodeOverloaded)
	if text, head := a.text(); text != "" || head {
		t.Errorf("got %q, head %v before the error", text, head)
	}
	if e := a.fail; e.Ticket != "T" || e.RetryAfter != 3*time.Second || e.Reason != "wait_expired" {
		t.Errorf("got %+v", e)
	}
	if rec := r.last(); rec.Status != 0 || rec.Code != inference.CodeOverloaded || rec.Reason != "wait_expired" || rec.Queued < 10*time.Millisecond || len(rec.Attempts) != 0 {
		t.Errorf("record: %+v", rec)
	}
}

// TestAnErrorInTheStreamBehindTheGrace is what is left once 200 was said.
func TestAnErrorInTheStreamBehindTheGrace(t *testing.T) {
	r := newRig(t, quick, testkit.NewInstance(t, good))
	p := newPlace()
	p.in(r)
	a := r.begin(stream, nil)
	testkit.Eventually(t, "a comment", func() bool { text, _ := a.text(); return text != "" })
	p.refuse()
	<-a.done
	a.code(t, inference.CodeOverloaded)
	if a.head == nil || a.head.Status != 200 || strings.ReplaceAll(a.body.String(), ": keep-alive\n", "") != "" {
		t.Errorf("got head %+v, %q", a.head, a.body.String())
	}
	if rec := r.last(); rec.Status != 200 || rec.Code != inference.CodeOverloaded {
		t.Errorf("record: %+v", rec)
	}
}

// TestAnAnswerInOnePieceWaitsWithoutAByte because a client could not read it.
func TestAnAnswerInOnePieceWaitsWithoutAByte(t *testing.T) {
	for name, body := range map[string]string{"in one piece": plain, "rebuilt": rebuilt} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quick, testkit.NewInstance(t, good))
			p := newPlace()
			p.in(r)
			var until time.Time
			p.wait = func(_ context.Context, at time.Time) (*fleet.Lease, error) {
				until = at
				return nil, inference.Errorf(inference.CodeOverloaded, "busy")
			}
			var deadline time.Time
			a := r.begin(body, func(q *inference.Request) {
				q.Received = q.Received.Add(-time.Minute) // long beyond a stream's grace
				deadline = q.Deadline
			})
			<-a.done
			a.code(t, inference.CodeOverloaded)
			if text, head := a.text(); text != "" || head {
				t.Errorf("got %q, head %v", text, head)
			}
			if !until.Equal(deadline) || p.waits.Load() != 1 {
				t.Errorf("it was interrupted at %v of %v, %d times", until, deadline, p.waits.Load())
			}
		})
	}
}

// TestAClientLeavesWhileItWaits: its place is given up, whatever was under way.
func TestAClientLeavesWhileItWaits(t *testing.T) {
	t.Run("in the wait", func(t *testing.T) {
		r := newRig(t, patient, testkit.NewInstance(t, good))
		p := newPlace()
		p.in(r)
		a := r.begin(stream, nil)
		testkit.Eventually(t, "it waits", func() bool { return p.waits.Load() == 1 })
		a.cancel()
		<-a.done
		a.code(t, inference.CodeCanceled)
		if p.left.Load() != 1 {
			t.Errorf("the place was given up %d times", p.left.Load())
		}
	})
	t.Run("between two waits", func(t *testing.T) {
		r := newRig(t, patient, testkit.NewInstance(t, good))
		p := newPlace()
		p.in(r)
		var a *answer
		p.wait = func(ctx context.Context, _ time.Time) (*fleet.Lease, error) {
			a.cancel()
			<-ctx.Done()
			return nil, inference.ErrNotYet // the timer and the client's end at the same instant
		}
		ready := make(chan struct{})
		r.enter = func(time.Time, *fleet.Plan, []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
			<-ready
			return nil, p, nil
		}
		a = r.begin(stream, nil)
		close(ready)
		<-a.done
		a.code(t, inference.CodeCanceled)
		if p.left.Load() != 1 {
			t.Errorf("the place was given up %d times: its slot would never come back", p.left.Load())
		}
	})
	t.Run("it cannot be written to", func(t *testing.T) {
		r := newRig(t, quick, testkit.NewInstance(t, good))
		p := newPlace()
		p.in(r)
		c := &reader{broken: errors.New("broken pipe")}
		r.serve(context.Background(), stream, c).code(t, inference.CodeCanceled)
		if p.left.Load() != 1 {
			t.Errorf("the place was given up %d times", p.left.Load())
		}
	})
	t.Run("with the slot already granted", func(t *testing.T) {
		inst := testkit.NewInstance(t, good)
		r := newRig(t, quick, inst)
		p := newPlace()
		p.in(r)
		p.wait = func(context.Context, time.Time) (*fleet.Lease, error) {
			lease, err := testkit.Plan(r.fleet, &inference.Request{Fields: inference.Fields{Model: "m"}}).Acquire(time.Now(), nil)
			if err != nil {
				t.Error(err)
			}
			p.lease = lease
			close(p.outcome)
			return nil, inference.ErrNotYet
		}
		a := r.beginTo(&reader{broken: errors.New("broken pipe")}, stream, func(q *inference.Request) {
			q.Received = q.Received.Add(-time.Second) // a comment is due
		})
		<-a.done
		a.code(t, inference.CodeCanceled)
		if inst.Requests() != 0 || p.left.Load() != 1 {
			t.Error("it was sent")
		}
	})
}

func TestADeadlineWhileWaiting(t *testing.T) {
	r := newRig(t, func(c *gateway.Config) { c.Timeout = 60 * time.Millisecond }, testkit.NewInstance(t, good))
	for _, body := range []string{stream, plain} {
		p := newPlace()
		p.in(r)
		a := r.begin(body, nil)
		<-a.done
		a.code(t, inference.CodeTimeout)
		if a.fail.Reason != "deadline" || p.left.Load() != 1 {
			t.Errorf("got %+v, the place was given up %d times", a.fail, p.left.Load())
		}
	}
}

// governed lets a governor with one slot for each instance decide, and keeps it
// running.
func governed(t *testing.T, r *rig, change func(*admission.Config)) *admission.Governor {
	t.Helper()
	cfg := admission.Default()
	cfg.Limit, cfg.StaticLimit = admission.LimitStatic, 1
	if change != nil {
		change(&cfg)
	}
	g := admission.New(cfg, r.fleet, nil, testkit.Discard())
	r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
		lease, w, err := g.Enter(now, plan, tried, nil)
		if w == nil {
			return lease, nil, err
		}
		return nil, w, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		testkit.Eventually(t, "the governor is idle", g.Idle)
	})
	return g
}

// waiting polls until n requests wait.
func waiting(t *testing.T, g *admission.Governor, n int64) {
	t.Helper()
	testkit.Eventually(t, "requests wait", func() bool { return g.Snapshot().Waiting == n })
}

// gate is an instance that answers when it is let.
func gate(t *testing.T) (inst *testkit.Instance, let func()) {
	open := make(chan struct{}, 64)
	inst = testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		select {
		case <-open:
			return good(x)
		case <-time.After(10 * time.Second):
			return false
		}
	})
	return inst, func() { open <- struct{}{} }
}

func TestARequestWaitsForItsSlot(t *testing.T) {
	inst, let := gate(t)
	r := newRig(t, patient, inst)
	g := governed(t, r, nil)
	first := r.begin(stream, nil)
	testkit.Eventually(t, "the first is sent", func() bool { return inst.Requests() == 1 })
	second := r.begin(stream, nil)
	waiting(t, g, 1)
	let()
	<-first.done
	let()
	<-second.done
	first.code(t, "")
	second.code(t, "")
	if rec := r.last(); rec.Queued <= 0 || rec.Attempts[0].Start < rec.Queued {
		t.Errorf("record: %+v", rec)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.records[0].Queued != 0 {
		t.Errorf("the first has waited %v", r.records[0].Queued)
	}
}

// TestThePlaceOfAClientThatLeaves is free at once, and its slot goes to the next.
func TestThePlaceOfAClientThatLeaves(t *testing.T) {
	inst, let := gate(t)
	r := newRig(t, patient, inst)
	g := governed(t, r, func(c *admission.Config) { c.Classes.Normal.TTFT = time.Hour })
	first := r.begin(stream, nil)
	testkit.Eventually(t, "the first is sent", func() bool { return inst.Requests() == 1 })
	second := r.begin(stream, nil)
	waiting(t, g, 1)
	third := r.begin(stream, func(q *inference.Request) { q.Tenant = "another" })
	waiting(t, g, 2)
	second.cancel()
	<-second.done
	second.code(t, inference.CodeCanceled)
	waiting(t, g, 1)
	first.cancel() // its slot is free before its answer
	<-first.done
	testkit.Eventually(t, "the third is sent", func() bool { return inst.Requests() == 2 })
	let()
	let() // one for the request that was cancelled
	<-third.done
	third.code(t, "")
}

// TestWhoWouldWaitTooLong is refused at once.
func TestWhoWouldWaitTooLong(t *testing.T) {
	inst, let := gate(t)
	r := newRig(t, patient, inst)
	g := governed(t, r, func(c *admission.Config) { c.Tickets.Enabled = false })
	first := r.begin(stream, nil)
	testkit.Eventually(t, "the first is sent", func() bool { return inst.Requests() == 1 })
	second := r.begin(stream, nil)
	waiting(t, g, 1)
	third := r.begin(stream, func(q *inference.Request) { q.Wait = time.Second }) // one admission tells no rate that is good for this
	<-third.done
	third.code(t, inference.CodeOverloaded)
	if e := third.fail; e.Reason != "predicted_wait" || e.Position != 2 || e.RetryAfter <= 0 || !e.NoRetry {
		t.Errorf("got %+v", e)
	}
	if third.head != nil {
		t.Error("it got a head")
	}
	let()
	let()
	<-first.done
	<-second.done
}

// TestABusyAnswerWaitsAtTheHead for the instance to cool down, and goes there again.
func TestABusyAnswerWaitsAtTheHead(t *testing.T) {
	var order []string
	var mu sync.Mutex
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		mu.Lock()
		defer mu.Unlock()
		who := "other"
		if strings.Contains(string(x.Body), `"first"`) {
			who = "first"
		}
		if order = append(order, who); len(order) == 1 {
			x.JSON(503, "{}")
			return true
		}
		return good(x)
	})
	r := newRig(t, patient, inst)
	r.observe = func(lease *fleet.Lease, failure *inference.Failure) {
		if failure != nil && failure.Verdict == inference.VerdictBusy {
			lease.Instance.Live.Cool(time.Now().Add(300 * time.Millisecond).UnixNano())
		}
	}
	g := governed(t, r, nil)
	first := r.begin(strings.Replace(stream, `"hi"`, `"first"`, 1), nil)
	waiting(t, g, 1)
	other := r.begin(stream, func(q *inference.Request) { q.Class = inference.VIP })
	waiting(t, g, 2)
	<-first.done
	<-other.done
	first.code(t, "")
	other.code(t, "")
	mu.Lock()
	defer mu.Unlock()
	if strings.Join(order, " ") != "first first other" {
		t.Errorf("the order was %v", order)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.records {
		if len(rec.Attempts) == 2 && rec.Queued < 100*time.Millisecond {
			t.Errorf("it has waited %v for an instance that cools for 300 ms", rec.Queued)
		}
	}
}

// TestAnAttemptThatHasTriedEverything does not wait, however many others do: nothing
// could come for it.
func TestAnAttemptThatHasTriedEverything(t *testing.T) {
	open := make(chan struct{})
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		<-open
		return false // it resets the connection
	})
	r := newRig(t, patient, inst)
	g := governed(t, r, func(c *admission.Config) { c.Classes.Normal.TTFT = time.Hour })
	first := r.begin(stream, nil)
	testkit.Eventually(t, "the first is sent", func() bool { return inst.Requests() == 1 })
	var others []*answer
	for i := range 5 {
		others = append(others, r.begin(stream, nil))
		waiting(t, g, int64(i+1))
	}
	close(open)
	<-first.done
	first.code(t, inference.CodeUpstreamError)
	for _, a := range others {
		<-a.done
		a.code(t, inference.CodeUpstreamError)
	}
}

// TestTheFirstErrorCountsWhenTheNextAttemptIsRefused while it waits.
func TestTheFirstErrorCountsWhenTheNextAttemptIsRefused(t *testing.T) {
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool { x.JSON(502, "{}"); return true })
	r := newRig(t, patient, inst, testkit.NewInstance(t, good))
	p := newPlace()
	r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
		if plan.Again {
			if len(tried) != 1 {
				t.Errorf("%d were tried", len(tried))
			}
			return nil, p, nil
		}
		lease, err := plan.Acquire(now, tried)
		return lease, nil, err
	}
	a := r.begin(stream, nil)
	testkit.Eventually(t, "it waits", func() bool { return p.waits.Load() == 1 })
	p.refuse()
	<-a.done
	a.code(t, inference.CodeUpstreamError)
}

// TestAHedgeNeverWaits and never takes what a request could need.
func TestAHedgeNeverWaits(t *testing.T) {
	for name, full := range map[string]bool{"others wait": false, "an instance is full": true} {
		t.Run(name, func(t *testing.T) {
			var late atomic.Bool
			release := make(chan struct{})
			script := func(x *testkit.Exchange) bool {
				switch {
				case late.Load() && full:
					x.Gone(150 * time.Millisecond) // it takes longer than any hedge waits
				case late.Load():
					<-release
				}
				return good(x)
			}
			r := newRig(t, func(c *gateway.Config) {
				c.Hedge.Pools, c.Hedge.MinDelay = []string{"eu/gpu"}, 20*time.Millisecond
			}, testkit.NewInstance(t, script), testkit.NewInstance(t, good))
			warm(t, r, 30)
			late.Store(true)
			p := newPlace()
			var asked atomic.Int32
			r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
				if plan.Again {
					asked.Add(1)
					return nil, p, nil
				}
				lease, err := plan.Acquire(now, tried)
				return lease, nil, err
			}
			if full {
				r.fleet.Snapshot().Instances(func(i *fleet.Instance) { i.Live.SetLimits(1, 0, 0) })
			}
			a := r.begin(stream, nil)
			if !full {
				testkit.Eventually(t, "the hedge leaves", func() bool { return p.left.Load() == 1 })
			}
			close(release)
			<-a.done
			a.code(t, "")
			if want := map[bool]int32{false: 1, true: 0}[full]; asked.Load() != want || p.waits.Load() != 0 || p.left.Load() != want {
				t.Errorf("it asked %d times, waited %d and left %d times", asked.Load(), p.waits.Load(), p.left.Load())
			}
			if rec := r.last(); len(rec.Attempts) != 1 || rec.Attempts[0].Hedge {
				t.Errorf("attempts: %+v", rec.Attempts)
			}
		})
	}
}

// TestWhatWasLoweredIsAnnounced with the model that stands in.
func TestWhatWasLoweredIsAnnounced(t *testing.T) {
	for name, c := range map[string]struct{ degraded, fallback, want string }{
		"nothing": {"", "", ""},
		"a cap":   {"max_tokens=10", "", "max_tokens=10"},
		"a model": {"", "small", "model=small"},
		"both":    {"yield, max_tokens=10", "small", "yield, max_tokens=10, model=small"},
	} {
		for body, text := range map[string]string{"stream": stream, "plain": plain} {
			t.Run(name+" "+body, func(t *testing.T) {
				r := newRig(t, nil, testkit.NewInstance(t, good))
				r.plan = func(p *fleet.Plan) { p.Candidates[0].Fallback = c.fallback }
				r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
					lease, err := plan.Acquire(now, tried)
					lease.Degraded = c.degraded
					return lease, nil, err
				}
				a := r.serve(context.Background(), text, nil)
				a.code(t, "")
				got := ""
				for _, f := range a.head.Fields {
					if f.Name == "X-Spillway-Degraded" {
						got += f.Value
					}
				}
				if rec := r.last(); got != c.want || rec.Degraded != c.want {
					t.Errorf("announced %q, recorded %q, want %q", got, rec.Degraded, c.want)
				}
			})
		}
	}
}

// TestManyClientsComeAndGo with a governor between them and few slots: nothing is
// left at the end. The rig checks every counter.
func TestManyClientsComeAndGo(t *testing.T) {
	r := newRig(t, quick, testkit.NewInstance(t, good), testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		switch x.N % 4 {
		case 0:
			return false
		case 1:
			x.JSON(503, "{}")
			return true
		}
		return good(x)
	}))
	g := governed(t, r, nil)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Add(1)
		time.AfterFunc(time.Duration(i)*2*time.Millisecond, func() {
			defer wg.Done()
			a := r.begin([]string{stream, plain, rebuilt}[i%3], func(q *inference.Request) {
				q.Class = []inference.Class{inference.Normal, inference.VIP, inference.Batch}[i/3%3]
				q.Wait = time.Duration(1+i%5) * 200 * time.Millisecond
			})
			if i%5 == 0 {
				time.AfterFunc(time.Duration(i%11)*time.Millisecond, a.cancel)
			}
			<-a.done
		})
	}
	wg.Wait()
	if n := g.Snapshot().Waiting; n != 0 {
		t.Errorf("%d wait", n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ok := 0
	for _, rec := range r.records {
		if rec.Code == "" {
			ok++
		}
	}
	if len(r.records) != 200 || ok < 20 {
		t.Errorf("%d records, %d answers", len(r.records), ok)
	}
}
