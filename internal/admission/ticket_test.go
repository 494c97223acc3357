package admission_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
)

// secretEnv is a variable that no process has.
const secretEnv = "SPILLWAY_TEST_TICKET_SECRET"

// normal names the class of most tests.
var normal = admission.ModelClass{Model: "m", Class: inference.Normal}

// flow is a stage at which one instance with one slot serves requests of 100 ms, ten
// a second, out of queues that never run dry.
type flow struct {
	*stage
	run  *seat
	fill int // requests that wait
	ask  ask // what they are
}

// newFlow lets it flow until rates are known.
func newFlow(t testing.TB, cfg admission.Config) *flow {
	t.Helper()
	return newFlowAfter(t, cfg, func(*stage) {})
}

// newFlowAfter is newFlow behind something else.
func newFlowAfter(t testing.TB, cfg admission.Config, before func(*stage)) *flow {
	t.Helper()
	cfg.Tickets.SecretEnv = secretEnv
	f := &flow{stage: newStage(t, cfg, layout(pool("p", 1, "m"))), fill: 40, ask: ask{tenant: "background"}}
	before(f.stage)
	f.run = f.enter(ask{tenant: "background"})
	f.flow(100 * time.Second) // the tickets of the beginning, when nothing was known, are gone by then
	return f
}

// flow lets time pass, with four seconds of work waiting unless fill says otherwise.
func (f *flow) flow(d time.Duration) {
	f.t.Helper()
	for end := f.now.Add(d); f.now.Before(end); {
		for n := f.g.Snapshot().Models[normal].Waiting; n < f.fill; n++ {
			f.enter(f.ask)
		}
		f.pass(min(100*time.Millisecond, end.Sub(f.now)))
		f.serve()
	}
}

// serve ends what runs, so that the next one does.
func (f *flow) serve() {
	f.t.Helper()
	if f.run != nil && f.run.lease != nil {
		f.run.lease.Usage = inference.Usage{PromptTokens: 100, CompletionTokens: 256}
		f.run.release()
	}
	f.run = f.granted[len(f.granted)-1]
}

// refuse asks until it is refused.
func (f *flow) refuse(a ask) *inference.Error {
	f.t.Helper()
	for range 1000 {
		if c := f.enter(a); c.err != nil {
			return refusal(f.t, c.err)
		}
	}
	f.t.Fatal("never refused")
	return nil
}

// issued and claimed are counters of the class normal.
func (f *flow) issued() float64 { return metric(f.t, f.g, `tickets_issued_total{class="normal"}`) }

func (f *flow) claimed() float64 { return metric(f.t, f.g, `tickets_claimed_total{class="normal"}`) }

func (f *flow) invalid() float64 { return metric(f.t, f.g, `tickets_invalid_total`) }

// showing is a request that shows a ticket.
func showing(a ask, ticket string) ask {
	a.change = func(r *inference.Request) { r.Ticket = ticket }
	return a
}

// TestSlotsAreSpacedByTheRate sells slots of a class that is sent ten times a second,
// half of which is kept for tickets: one every 200 ms, jittered inside its slot, the
// first of them behind what waits.
func TestSlotsAreSpacedByTheRate(t *testing.T) {
	f := newFlow(t, static(1))
	const n = 201
	before := f.issued()
	var due []time.Duration
	for i := range n {
		e := f.refuse(ask{tenant: "buyer"})
		if e.Ticket == "" || e.NoRetry || e.Reason != "predicted_wait" || e.Position < 40 {
			t.Fatalf("ticket %d: got %+v", i, e)
		}
		if i == 0 && (e.RetryAfter < e.Predicted || e.RetryAfter > e.Predicted+250*time.Millisecond) {
			t.Errorf("the first slot is in %v, want it behind the predicted %v", e.RetryAfter, e.Predicted)
		}
		due = append(due, e.RetryAfter)
	}
	var mx, my, xy, xx float64 // least squares: due = a + slot*i
	for i, d := range due {
		mx, my = mx+float64(i)/n, my+d.Seconds()/n
	}
	for i, d := range due {
		xy, xx = xy+(float64(i)-mx)*(d.Seconds()-my), xx+(float64(i)-mx)*(float64(i)-mx)
	}
	slot := time.Duration(xy / xx * float64(time.Second))
	if slot < 185*time.Millisecond || slot > 205*time.Millisecond {
		t.Errorf("a slot is %v, want 200 ms (the rate is measured)", slot)
	}
	var least, most time.Duration // of a ticket from the middle of its slot
	for i := range due {
		off := due[i] - due[0] - time.Duration(i)*slot
		least, most = min(least, off), max(most, off)
		if i > 0 && due[i] < due[i-1] {
			t.Errorf("ticket %d is due before the one that was sold before it", i)
		}
	}
	if spread := most - least; spread > slot+slot/4 || spread < slot/2 {
		t.Errorf("tickets are spread over %v of a slot of %v", spread, slot)
	}
	if got := f.issued() - before; got != n {
		t.Errorf("%v issued, want %v", got, n)
	}
}

// TestTheTicketClockStandsStill as long as no ticket is issued: what is refused
// without one moves nothing.
func TestTheTicketClockStandsStill(t *testing.T) {
	cfg := static(1)
	cfg.Tickets.PerTenant = 1
	f := newFlow(t, cfg)
	a := f.refuse(ask{tenant: "a"})
	for range 500 {
		if e := f.refuse(ask{tenant: "a"}); e.Ticket != "" {
			t.Fatalf("a second ticket: %+v", e)
		}
	}
	b := f.refuse(ask{tenant: "b"})
	if a.Ticket == "" || b.Ticket == "" || b.RetryAfter-a.RetryAfter > 2*205*time.Millisecond {
		t.Errorf("got %v, then %v, want them a slot apart", a.RetryAfter, b.RetryAfter)
	}
}

func TestNoTicketWithoutASlot(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*admission.Config)
		sell   int // tickets before
	}{
		"switched off":                   {change: func(c *admission.Config) { c.Tickets.Enabled = false }},
		"all slots of a minute are sold": {change: func(*admission.Config) {}, sell: 400},
		"none for the class":             {change: func(c *admission.Config) { c.Tickets.PerClass = 0 }},
		"none for the tenant":            {change: func(c *admission.Config) { c.Tickets.PerTenant = 0 }},
		"a slot is longer than a minute": {change: func(c *admission.Config) { c.Tickets.Share = 0.001 }},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := static(1)
			c.change(&cfg)
			f := newFlow(t, cfg)
			for range c.sell {
				f.refuse(ask{tenant: "buyer"})
			}
			before := f.issued()
			e := f.refuse(ask{tenant: "late"})
			if e.Ticket != "" || e.RetryAfter != time.Minute || !e.NoRetry {
				t.Errorf("got %+v", e)
			}
			if f.issued() != before {
				t.Error("one was issued")
			}
		})
	}
}

func TestTicketsAreBounded(t *testing.T) {
	cfg := static(1)
	cfg.Tickets.PerClass, cfg.Tickets.PerTenant = 30, 10
	f := newFlow(t, cfg)
	f.flow(30 * time.Second) // what was sold to fill the queues has expired
	with := map[string]int{}
	for i := range 90 {
		tenant := fmt.Sprintf("tenant %d", i%9)
		if e := f.refuse(ask{tenant: tenant}); e.Ticket != "" {
			with[tenant]++
		}
		if e := f.refuse(ask{tenant: "tenant 0"}); e.Ticket != "" {
			with["tenant 0"]++
		}
	}
	total := 0
	for _, n := range with {
		total += n
	}
	out := f.g.Snapshot().Models[normal].Tickets
	if with["tenant 0"] > 10 || out > 30 || total > 30 || total < 15 {
		t.Errorf("tickets by tenant %v, %d out", with, out)
	}
	if got := metric(t, f.g, `tickets{class="normal",model="m"}`); got != float64(out) {
		t.Errorf("the metric says %v, want %d", got, out)
	}
}

// TestReturners are recognised, or not.
func TestReturners(t *testing.T) {
	const body = "the body"
	for name, c := range map[string]struct {
		after   time.Duration // from the due time
		ask     func(ticket string) ask
		claimed bool
		invalid bool
	}{
		"on time, by the body":         {0, func(string) ask { return ask{tenant: "buyer", body: body} }, true, false},
		"on time, by the ticket":       {0, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket) }, true, false},
		"late, by the body":            {9 * time.Second, func(string) ask { return ask{tenant: "buyer", body: body} }, true, false},
		"late, by the ticket":          {9 * time.Second, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket) }, true, false},
		"too late, by the body":        {11 * time.Second, func(string) ask { return ask{tenant: "buyer", body: body} }, false, false},
		"too late, by the ticket":      {11 * time.Second, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket) }, false, true},
		"early, by the body":           {-300 * time.Millisecond, func(string) ask { return ask{tenant: "buyer", body: body} }, false, false},
		"early, by the ticket":         {-300 * time.Millisecond, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket) }, false, true},
		"another tenant's body":        {0, func(string) ask { return ask{tenant: "thief", body: body} }, false, false},
		"another tenant's ticket":      {0, func(ticket string) ask { return showing(ask{tenant: "thief", body: body}, ticket) }, false, true},
		"another body":                 {0, func(string) ask { return ask{tenant: "buyer", body: "x"} }, false, false},
		"another body with the ticket": {0, func(ticket string) ask { return showing(ask{tenant: "buyer", body: "x"}, ticket) }, false, true},
		"another class":                {0, func(string) ask { return ask{tenant: "buyer", body: body, class: inference.Batch} }, false, false},
		"another class with the ticket": {0, func(ticket string) ask {
			return showing(ask{tenant: "buyer", body: body, class: inference.VIP}, ticket)
		}, false, true},
		"another model with the ticket": {0, func(ticket string) ask {
			return showing(ask{tenant: "buyer", body: body, model: "n", pools: []string{"p"}}, ticket)
		}, false, true},
		"forged":      {0, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, flip(ticket)) }, false, true},
		"not one":     {0, func(string) ask { return showing(ask{tenant: "buyer", body: body}, "hello") }, false, true},
		"cut":         {0, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket[:len(ticket)-4]) }, false, true},
		"with a tail": {0, func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket+"AAAA") }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t, static(1))
			e := f.refuse(ask{tenant: "buyer", body: body})
			if e.Ticket == "" {
				t.Fatalf("no ticket: %+v", e)
			}
			f.flow(e.RetryAfter + c.after)
			claims := func() (sum float64) {
				for _, class := range []string{"vip", "normal", "batch"} {
					sum += metric(t, f.g, fmt.Sprintf("tickets_claimed_total{class=%q}", class))
				}
				return sum
			}
			claimed, invalid := claims(), f.invalid()
			back := f.enter(c.ask(e.Ticket))
			if got := claims()-claimed == 1; got != c.claimed {
				t.Errorf("claimed: %v, want %v", got, c.claimed)
			}
			if got := f.invalid()-invalid == 1; got != c.invalid {
				t.Errorf("invalid: %v, want %v", got, c.invalid)
			}
			if c.claimed {
				f.serve()
				back.want("p/0") // before all of its class that waited
			}
			if err := f.g.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// flip changes one bit of a ticket.
func flip(ticket string) string {
	b := []byte(ticket)
	if b[20]++; !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", rune(b[20])) {
		b[20] = 'A'
	}
	return string(b)
}

// TestATicketIsWorthOnePlace however it is shown.
func TestATicketIsWorthOnePlace(t *testing.T) {
	const body = "the body"
	by := map[string]func(string) ask{
		"body":   func(string) ask { return ask{tenant: "buyer", body: body} },
		"ticket": func(ticket string) ask { return showing(ask{tenant: "buyer", body: body}, ticket) },
	}
	for first, one := range by {
		for second, two := range by {
			t.Run(first+" then "+second, func(t *testing.T) {
				f := newFlow(t, static(1))
				e := f.refuse(ask{tenant: "buyer", body: body})
				f.flow(e.RetryAfter)
				before := f.claimed()
				f.enter(one(e.Ticket))
				f.enter(two(e.Ticket))
				if got := f.claimed() - before; got != 1 {
					t.Errorf("%v places for one ticket", got)
				}
				f.flow(12 * time.Second)
				f.enter(two(e.Ticket))
				if got := f.claimed() - before; got != 1 {
					t.Errorf("%v places for one ticket after it has expired", got)
				}
			})
		}
	}
}

// TestTwoTicketsForOneBody are worth two places.
func TestTwoTicketsForOneBody(t *testing.T) {
	f := newFlow(t, static(1))
	a := ask{tenant: "buyer", body: "the body"}
	f.refuse(a)
	e := f.refuse(a)
	f.flow(e.RetryAfter)
	before := f.claimed()
	for range 3 {
		f.enter(a)
	}
	if got := f.claimed() - before; got != 2 {
		t.Errorf("%v places, want 2", got)
	}
}

// TestReturnersGoFirstInTheirClass, in the order in which they came, and whatever
// their tenants were served.
func TestReturnersGoFirstInTheirClass(t *testing.T) {
	f := newFlow(t, static(1))
	a, b := f.refuse(ask{tenant: "background", body: "a"}), f.refuse(ask{tenant: "background", body: "b"})
	f.flow(max(a.RetryAfter, b.RetryAfter))
	two, one := f.enter(ask{tenant: "background", body: "b"}), f.enter(ask{tenant: "background", body: "a"})
	two.want("waits")
	one.want("waits")
	f.serve()
	two.want("p/0")
	one.want("waits")
	f.serve()
	one.want("p/0")
}

// TestReturnersGoFirstInTheirPool before other models' requests of their class, whose
// tenants were served less.
func TestReturnersGoFirstInTheirPool(t *testing.T) {
	f := newFlowAfter(t, static(1), func(s *stage) { // the other model's lane is looked at first
		s.enter(ask{tenant: "new", model: "n", pools: []string{"p"}}).release()
	})
	e := f.refuse(ask{tenant: "background", body: "a"})
	f.flow(e.RetryAfter)
	other := f.enter(ask{tenant: "new", model: "n", pools: []string{"p"}})
	other.want("waits")
	back := f.enter(ask{tenant: "background", body: "a"})
	f.serve()
	back.want("p/0")
	other.want("waits")
}

// TestUnclaimedSlotsAreLent a second after they were due; until then they are kept.
func TestUnclaimedSlotsAreLent(t *testing.T) {
	f := newFlow(t, static(1))
	sold := f.now
	var due []time.Duration
	for range 20 {
		due = append(due, f.refuse(ask{tenant: "buyer"}).RetryAfter)
	}
	f.fill = 5
	f.flow(due[len(due)-1])
	kept, passed := 0.0, f.now.Sub(sold)
	for _, d := range due {
		if d > passed-time.Second && d <= passed+time.Millisecond {
			kept++
		}
	}
	n := float64(f.g.Snapshot().Models[normal].Waiting)
	if kept < 4 || kept > 6 || n > 6 {
		t.Fatalf("%v slots are kept, %v wait", kept, n)
	}
	e := f.refuse(ask{tenant: "background", change: func(r *inference.Request) { r.Wait = 2 * time.Millisecond }})
	about(t, "predicted", e.Predicted.Seconds(), (n+1+kept)/10)
}

// TestAReturnerLeaves gives its place up like any other.
func TestAReturnerLeaves(t *testing.T) {
	f := newFlow(t, static(1))
	e := f.refuse(ask{tenant: "buyer", body: "a"})
	f.flow(e.RetryAfter)
	back := f.enter(ask{tenant: "buyer", body: "a"})
	back.want("waits")
	back.leave()
	if err := f.g.Check(); err != nil {
		t.Error(err)
	}
	f.serve()
	if back.outcomes != 0 {
		t.Error("it was served")
	}
}

// TestAReturnerWaitsNoLongerThanItsBudget, also behind one that has more time.
func TestAReturnerWaitsNoLongerThanItsBudget(t *testing.T) {
	f := newFlow(t, static(1))
	a, b := f.refuse(ask{tenant: "buyer", body: "a"}), f.refuse(ask{tenant: "buyer", body: "b"})
	f.flow(max(a.RetryAfter, b.RetryAfter))
	patient := f.enter(ask{tenant: "buyer", body: "a"})
	hasty := f.enter(ask{tenant: "buyer", body: "b", change: func(r *inference.Request) { r.Wait = time.Second }})
	f.pass(1100 * time.Millisecond) // nothing is sent
	patient.want("waits")
	hasty.refused("wait_expired")
	f.pass(10 * time.Second)
	patient.refused("wait_expired")
}

func TestTicketsAreForgottenWhenTheyExpire(t *testing.T) {
	f := newFlow(t, static(1))
	f.refuse(ask{tenant: "buyer"})
	if n := f.g.Snapshot().Models[normal].Tickets; n == 0 || f.g.Snapshot().Tickets != n {
		t.Errorf("%d tickets out of %d", n, f.g.Snapshot().Tickets)
	}
	f.pass(2 * time.Minute) // what waits expires, too, and is given tickets
	if n := f.g.Snapshot().Tickets; n != 0 {
		t.Errorf("%d tickets out, want none", n)
	}
	if err := f.g.Check(); err != nil {
		t.Error(err)
	}
}

// TestTicketsOfAnotherGateway are honoured when both sign with the same secret.
func TestTicketsOfAnotherGateway(t *testing.T) {
	for name, c := range map[string]struct {
		secrets [2]string
		claimed float64
	}{
		"the same secret": {[2]string{"0123456789abcdef", "0123456789abcdef"}, 1},
		"another secret":  {[2]string{"0123456789abcdef", "fedcba9876543210"}, 0},
		"no secret":       {[2]string{"", ""}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(secretEnv, c.secrets[0])
			one := newFlow(t, static(1))
			t.Setenv(secretEnv, c.secrets[1])
			two := newFlow(t, static(1))
			e := one.refuse(ask{tenant: "buyer", body: "b"})
			two.now = one.now
			two.flow(e.RetryAfter)
			a := showing(ask{tenant: "buyer", body: "b"}, e.Ticket)
			before := two.claimed()
			two.enter(a)
			two.enter(a) // spent
			two.enter(ask{tenant: "buyer", body: "b"})
			if got := two.claimed() - before; got != c.claimed {
				t.Errorf("%v places, want %v", got, c.claimed)
			}
		})
	}
}

// TestATicketOfAnotherLane is honoured in whichever lane of its model the request
// comes back to: the order of the pools may have changed since.
func TestATicketOfAnotherLane(t *testing.T) {
	f := newFlow(t, static(1))
	f.layout(layout(pool("p", 1, "m"), pool("q", 1, "m")))
	e := f.refuse(ask{tenant: "buyer", body: "b", pools: []string{"p"}})
	f.enter(ask{pools: []string{"q"}})
	f.flow(e.RetryAfter)
	before := f.claimed()
	f.enter(ask{tenant: "buyer", body: "b", pools: []string{"q", "p"}})
	if got := f.claimed() - before; got != 1 {
		t.Errorf("%v claimed, want 1", got)
	}
	if err := f.g.Check(); err != nil {
		t.Error(err)
	}
}
