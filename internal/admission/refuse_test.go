package admission_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// about fails the test unless got is within a tenth of want.
func about(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.1*want {
		t.Errorf("%s: got %v, want about %v", what, got, want)
	}
}

// TestThePredictedWait is those ahead by the rate at which the class is sent.
func TestThePredictedWait(t *testing.T) {
	f := newFlow(t, static(1)) // ten a second, 40 waiting
	if n := f.g.Snapshot().Models[normal].Waiting; n != 39 && n != 40 {
		t.Fatalf("%d wait", n)
	}
	hasty := func(a ask) ask {
		a.change = func(r *inference.Request) { r.Wait = time.Millisecond }
		return a
	}
	e := f.refuse(hasty(ask{tenant: "background"}))
	about(t, "behind all", e.Predicted.Seconds(), 4.1)
	if e.Position != 40 && e.Position != 41 {
		t.Errorf("position %d, want 41", e.Position)
	}
	e = f.refuse(hasty(ask{tenant: "new"}))
	about(t, "of a tenant that has nothing there", e.Predicted.Seconds(), 0.3) // its first by turns is one of the first two
	f.flow(30 * time.Second)                                                   // the tickets are gone
	for range 5 {
		f.enter(ask{tenant: "few"})
	}
	e = f.refuse(hasty(ask{tenant: "few"}))
	about(t, "of a tenant with five", e.Predicted.Seconds(), 1.3)
}

// TestThePredictedWaitCountsWeights of the tenants.
func TestThePredictedWaitCountsWeights(t *testing.T) {
	cfg := static(1)
	cfg.TenantWeights = map[string]float64{"heavy": 3}
	f := newFlow(t, cfg)
	for range 5 {
		f.enter(ask{tenant: "heavy"})
	}
	e := f.refuse(ask{tenant: "heavy", change: func(r *inference.Request) { r.Wait = time.Millisecond }})
	about(t, "of six with three quarters of the class", e.Predicted.Seconds(), 0.9)
}

// TestWhoIsRefused is judged by a share of what the budget leaves.
func TestWhoIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*inference.Request)
		most   int // of 40 that wait, the position up to which there is a place
	}{
		"of the class: 0.7 of 10 s":      {func(*inference.Request) {}, 70},
		"of the client: 0.7 of 8 s":      {func(r *inference.Request) { r.Wait = 8 * time.Second }, 56},
		"of its SDK: 0.7 of 6 s":         {func(r *inference.Request) { r.Patience = 6 * time.Second }, 42},
		"not streamed: 0.7 of 7 s":       {func(r *inference.Request) { r.Stream = false }, 49},
		"by its deadline: 0.7 of 9 s":    {func(r *inference.Request) { r.Deadline = r.Received.Add(9 * time.Second) }, 63},
		"a retry without a ticket: half": {func(r *inference.Request) { r.Retry, r.Wait = 1, 20*time.Second }, 70},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := static(1)
			cfg.Queue.UnstreamedWait = 7 * time.Second
			f := newFlow(t, cfg)
			n := f.g.Snapshot().Models[normal].Waiting
			for f.enter(ask{tenant: "background", change: c.change}).waits() {
				n++
			}
			about(t, "places", float64(n), float64(c.most))
		})
	}
}

func TestRetriesAreCounted(t *testing.T) {
	s := newStage(t, static(5), layout(pool("p", 1, "m")))
	for i := range 3 {
		s.enter(ask{change: func(r *inference.Request) { r.Retry = i }})
	}
	s.enter(ask{again: true, change: func(r *inference.Request) { r.Retry = 1 }}) // the gateway's own
	if got := metric(t, s.g, "client_retries_total"); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
}

// TestASlowFirstTokenLeavesLessTime to wait, but never less than a quarter.
func TestASlowFirstTokenLeavesLessTime(t *testing.T) {
	for first, want := range map[time.Duration]float64{0: 70, 2 * time.Second: 56, 5 * time.Second: 35, 30 * time.Second: 25} {
		t.Run(first.String(), func(t *testing.T) {
			f := newFlow(t, static(1))
			f.fill = 20
			for range 100 { // the pool's mean moves by a sixteenth
				f.run.lease.FirstToken(f.now, first, true)
				f.flow(100 * time.Millisecond)
			}
			n := f.g.Snapshot().Models[normal].Waiting
			for f.enter(ask{tenant: "background"}).waits() {
				n++
			}
			about(t, "places", float64(n), want)
		})
	}
}

// TestAnAnswerInOnePieceIsNoFirstToken: it comes when all is done.
func TestAnAnswerInOnePieceIsNoFirstToken(t *testing.T) {
	f := newFlow(t, static(1))
	f.ask.change = func(r *inference.Request) { r.Stream = false }
	f.flow(5 * time.Second)
	for range 100 {
		f.run.lease.FirstToken(f.now, 30*time.Second, false)
		f.flow(100 * time.Millisecond)
	}
	n := f.g.Snapshot().Models[normal].Waiting
	for f.enter(ask{tenant: "background"}).waits() {
		n++
	}
	about(t, "places", float64(n), 70)
}

// TestKeptSlots count for newcomers from when they are sold until a second after they
// were due, or claimed.
func TestKeptSlots(t *testing.T) {
	f := newFlow(t, static(1))
	probe := func() float64 {
		return f.refuse(ask{tenant: "background"}).Predicted.Seconds()
	}
	n0 := func() float64 { return float64(f.g.Snapshot().Models[normal].Waiting) }
	p := probe()
	about(t, "without tickets", p, (n0()+1)/10)
	var due []time.Duration
	for range 10 { // sold behind eight seconds of work: within the next ten
		due = append(due, refusal(t, f.enter(ask{tenant: "background"}).err).RetryAfter)
	}
	sold := 0.0
	for _, d := range due {
		if d < 10*time.Second {
			sold++
		}
	}
	if sold < 5 {
		t.Fatalf("due %v", due)
	}
	p = probe()
	about(t, "with tickets", p, (n0()+1+sold)/10)
}

// TestTheFirstOfItsClassWaits whatever is predicted: nobody knows a rate yet. The
// next one is judged as if what runs ended within the class's budget.
func TestTheFirstOfItsClassWaits(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m")))
	s.enter(ask{})
	for _, class := range []inference.Class{inference.VIP, inference.Normal, inference.Batch, inference.Idle} {
		s.enter(ask{class: class}).want("waits")
	}
	e := s.enter(ask{class: inference.VIP}).refused("predicted_wait")
	if e.Ticket == "" || e.NoRetry || e.RetryAfter < e.Predicted || e.Predicted < time.Second {
		t.Errorf("got %+v", e)
	}
	if e.Code != inference.CodeOverloaded || e.Position != 2 {
		t.Errorf("got %+v", e)
	}
}

// TestAClassWithoutARateHasItsShare of what all are sent.
func TestAClassWithoutARateHasItsShare(t *testing.T) {
	f := newFlow(t, static(1)) // normal only: ten a second
	vip := 0
	for f.enter(ask{class: inference.VIP, change: func(r *inference.Request) { r.Wait = 10 * time.Second }}).waits() {
		vip++
	}
	about(t, "places of vip", float64(vip), 7*10*8.0/12)
}

// TestTheRateIsMeasuredWhileSomethingWaits: a class that asks for little is known by
// what it gets when it does.
func TestTheRateIsMeasuredWhileSomethingWaits(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m")))
	run := s.enter(ask{})
	for range 20 { // one waits for 100 ms each second
		s.pass(900 * time.Millisecond)
		next := s.enter(ask{})
		s.pass(100 * time.Millisecond)
		run.release()
		run = next
	}
	n := 0
	for s.enter(ask{}).waits() {
		n++
	}
	about(t, "places at ten a second", float64(n), 70)
}

func TestIdleIsRefusedLikeOthers(t *testing.T) {
	cfg := static(1)
	cfg.Queue.Requests = 2
	s := newStage(t, cfg, layout(pool("p", 1, "m")))
	s.enter(ask{class: inference.Idle})
	s.enter(ask{class: inference.Idle}).want("waits")
	second := s.enter(ask{class: inference.Idle})
	e := second.refused("predicted_wait")
	if e.Ticket != "" || e.RetryAfter != time.Minute || e.Predicted < time.Second {
		t.Errorf("got %+v", e)
	}
}

// TestRefusedWorkIsKept for who makes more servers.
func TestRefusedWorkIsKept(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m"), pool("q", 1, "n")))
	s.enter(ask{})
	s.enter(ask{prompt: 1000}).want("waits")
	s.enter(ask{prompt: 500}).refused("predicted_wait")
	snap := s.g.Snapshot()
	if len(snap.Pools) != 2 {
		t.Fatalf("got %+v", snap.Pools)
	}
	want := admission.PoolState{Name: "r/p", InFlight: 1, Limit: 1, Waiting: 1, Held: 1256, Refused: 756}
	if snap.Pools[0] != want {
		t.Errorf("got %+v, want %+v", snap.Pools[0], want)
	}
	if want := (admission.PoolState{Name: "r/q", Limit: 1}); snap.Pools[1] != want {
		t.Errorf("got %+v, want %+v", snap.Pools[1], want)
	}
	for series, want := range map[string]float64{
		`held_tokens{pool="r/p"}`: 1256, `refused_tokens_total{pool="r/p"}`: 756, `unmet_tokens_total{pool="r/p"}`: 0,
		`waiting{class="normal",model="m"}`: 1, "waiting_bytes": float64(snap.Bytes), "accounts": 1,
	} {
		if got := metric(t, s.g, series); got != want {
			t.Errorf("%s: got %v, want %v", series, got, want)
		}
	}
}

// TestPromptsAreMeasured by what engines report of the model's requests.
func TestPromptsAreMeasured(t *testing.T) {
	s := newStage(t, static(8), layout(pool("p", 1, "m", "n")))
	for range 400 { // two bytes a token
		c := s.enter(ask{prompt: 100})
		c.lease.Usage = inference.Usage{PromptTokens: 200, CompletionTokens: 1}
		c.release()
	}
	about(t, "a prompt of 400 bytes", float64(s.enter(ask{prompt: 100}).lease.Prompt), 200)
	about(t, "one of another model", float64(s.enter(ask{prompt: 100, model: "n"}).lease.Prompt), 100)
	images := s.enter(ask{prompt: 100, change: func(r *inference.Request) { r.Images = 2 }})
	about(t, "with two images", float64(images.lease.Prompt), 2200)
	for range 100 { // reports that cannot be true, and those with images, teach nothing
		for _, c := range []*seat{s.enter(ask{prompt: 100}), s.enter(ask{prompt: 100, change: func(r *inference.Request) { r.Images = 1 }})} {
			c.lease.Usage = inference.Usage{PromptTokens: 100_000}
			if c.req.Images > 0 {
				c.lease.Usage.PromptTokens = 400
			}
			c.release()
		}
	}
	about(t, "a prompt of 400 bytes", float64(s.enter(ask{prompt: 100}).lease.Prompt), 200)
}

// TestAnOddPlan is no reason to panic.
func TestAnOddPlan(t *testing.T) {
	s := newStage(t, static(1), layout(pool("p", 1, "m")))
	none := ask{pools: []string{}}
	s.enter(none).want("no_capacity")
	s.enter(ask{})
	s.enter(ask{}).want("waits")
	s.enter(none).want("no_capacity")
	s.enter(ask{pools: []string{"p", "p"}}).want("waits")
	s.enter(ask{pools: []string{}, fallback: "p"}).want("waits")
	s.layout(fleet.Layout{})
	s.pass(100 * time.Millisecond)
	if err := s.g.Check(); err != nil {
		t.Error(err)
	}
}

// TestAReturnerIsAhead of all newcomers of its class.
func TestAReturnerIsAhead(t *testing.T) {
	f := newFlow(t, static(1))
	const n = 30
	for i := range n {
		f.refuse(ask{tenant: "returner", body: fmt.Sprint("body ", i)})
	}
	f.flow(16 * time.Second)
	for i := range n {
		f.enter(ask{tenant: "returner", body: fmt.Sprint("body ", i)})
	}
	if f.claimed() < 20 {
		t.Fatalf("%v returned", f.claimed())
	}
	e := f.refuse(ask{tenant: "new", change: func(r *inference.Request) { r.Wait = time.Millisecond }})
	if e.Predicted.Seconds() < f.claimed()/10 {
		t.Errorf("predicted %v behind %v who have returned, at ten a second", e.Predicted, f.claimed())
	}
}

// TestABurstOnAQuietGateway waits as far as what runs is taken to end within the
// budget, and is promised places beyond that: nothing was measured yet.
func TestABurstOnAQuietGateway(t *testing.T) {
	s := newStage(t, static(16), layout(pool("p", 2, "m")))
	ran, waited, promised := 0, 0, 0
	for range 100 {
		c := s.enter(ask{})
		switch {
		case c.err != nil:
			if e := refusal(t, c.err); e.Ticket != "" && !e.NoRetry {
				promised++
			}
		case c.lease != nil:
			ran++
		default:
			waited++
		}
	}
	if ran != 32 || waited < 20 || ran+waited+promised != 100 {
		t.Errorf("%d ran, %d wait, %d have tickets; want 32, 20 or more and the rest", ran, waited, promised)
	}
}
