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

// line is a stage at which one instance with one slot serves what waits, one request
// after the other.
type line struct {
	*stage
	run *seat
}

// newLine occupies the slot.
func newLine(t testing.TB, cfg admission.Config) *line {
	t.Helper()
	l := &line{stage: newStage(t, cfg, layout(pool("p", 1, "m")))}
	l.run = l.enter(ask{tenant: "the first"})
	return l
}

// serve ends what runs, with an answer of as many tokens as expected, and returns
// what runs next; nil when nothing waits.
func (l *line) serve() *seat { return l.serveTokens(256) }

// serveTokens is serve with an answer of n tokens.
func (l *line) serveTokens(n int64) *seat {
	l.t.Helper()
	before := len(l.granted)
	l.run.lease.Usage.CompletionTokens = n
	l.run.release()
	if l.run = nil; len(l.granted) > before {
		l.run = l.granted[before]
	}
	return l.run
}

// queue lets n requests wait.
func (l *line) queue(n int, a ask) (seats []*seat) {
	l.t.Helper()
	for range n {
		l.now = l.now.Add(time.Microsecond)
		c := l.enter(a)
		if c.want("waits"); l.t.Failed() {
			l.t.FailNow()
		}
		seats = append(seats, c)
	}
	return seats
}

// shares serves n requests and counts them by what key says.
func (l *line) shares(n int, key func(*seat) string) map[string]int {
	l.t.Helper()
	got := make(map[string]int)
	for range n {
		c := l.serve()
		if c == nil {
			l.t.Fatal("nothing waits")
		}
		got[key(c)]++
	}
	return got
}

func byClass(c *seat) string { return c.req.Class.String() }

func byTenant(c *seat) string { return c.req.Tenant }

// near fails the test unless the counts are within one of the wanted ones.
func near(t *testing.T, got, want map[string]int) {
	t.Helper()
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s was served %d times, want never", name, got[name])
		}
	}
	for name, n := range want {
		if math.Abs(float64(got[name]-n)) > 1 {
			t.Errorf("%s was served %d times, want %d: %v", name, got[name], n, got)
		}
	}
}

func TestClassesShare(t *testing.T) {
	for name, c := range map[string]struct {
		weights map[inference.Class]float64
		waiting map[inference.Class]int
		prompt  map[inference.Class]int64
		serve   int
		want    map[string]int
	}{
		"8:4:1": {
			waiting: map[inference.Class]int{inference.VIP: 200, inference.Normal: 200, inference.Batch: 200},
			serve:   130, want: map[string]int{"vip": 80, "normal": 40, "batch": 10},
		},
		"as configured": {
			weights: map[inference.Class]float64{inference.VIP: 2, inference.Normal: 1, inference.Batch: 1},
			waiting: map[inference.Class]int{inference.VIP: 200, inference.Normal: 200, inference.Batch: 200},
			serve:   120, want: map[string]int{"vip": 60, "normal": 30, "batch": 30},
		},
		"a share without work is lent": {
			waiting: map[inference.Class]int{inference.Normal: 200, inference.Batch: 200},
			serve:   100, want: map[string]int{"normal": 80, "batch": 20},
		},
		"all is lent to the only one": {
			waiting: map[inference.Class]int{inference.Batch: 50},
			serve:   50, want: map[string]int{"batch": 50},
		},
		"of work, not of requests": { // 1,512 tokens a request of vip, 612 of normal
			waiting: map[inference.Class]int{inference.VIP: 200, inference.Normal: 200},
			prompt:  map[inference.Class]int64{inference.VIP: 1000, inference.Normal: 100},
			serve:   181, want: map[string]int{"vip": 81, "normal": 100},
		},
		"idle only when nothing else waits": {
			waiting: map[inference.Class]int{inference.Idle: 100, inference.Batch: 20, inference.Normal: 20},
			serve:   45, want: map[string]int{"batch": 20, "normal": 20, "idle": 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := patient(1)
			for class, w := range c.weights {
				switch class {
				case inference.VIP:
					cfg.Classes.VIP.Weight = w
				case inference.Normal:
					cfg.Classes.Normal.Weight = w
				default:
					cfg.Classes.Batch.Weight = w
				}
			}
			l := newLine(t, cfg)
			for class, n := range c.waiting {
				l.queue(n, ask{class: class, prompt: c.prompt[class]})
			}
			near(t, l.shares(c.serve, byClass), c.want)
		})
	}
}

// TestAClassThatWasAwayHasNoCredit shares from when it is back, not from when it left.
func TestAClassThatWasAwayHasNoCredit(t *testing.T) {
	l := newLine(t, patient(1))
	l.queue(300, ask{class: inference.Batch})
	l.shares(100, byClass)
	l.queue(100, ask{class: inference.VIP})
	near(t, l.shares(90, byClass), map[string]int{"vip": 80, "batch": 10})
}

func TestBatchYields(t *testing.T) {
	cfg := patient(1)
	cfg.Brownout.Yield, cfg.Brownout.CapTokens, cfg.Brownout.CheaperModel = 1e-9, 0, 0
	l := newLine(t, cfg)
	l.queue(300, ask{class: inference.Normal})
	batch := l.queue(100, ask{class: inference.Batch})
	l.pass(100 * time.Millisecond)
	if l.g.Step() != admission.StepYield {
		t.Fatalf("the step is %v", l.g.Step())
	}
	near(t, l.shares(170, byClass), map[string]int{"normal": 160, "batch": 10}) // 4 to a quarter
	for _, c := range batch {
		if c.lease != nil && c.lease.Degraded != "yield" {
			t.Errorf("batch was told %q", c.lease.Degraded)
		}
	}
}

func TestTenantsShare(t *testing.T) {
	for name, c := range map[string]struct {
		weights map[string]float64
		waiting map[string]int
		prompt  map[string]int64
		serve   int
		want    map[string]int
	}{
		"evenly":    {nil, map[string]int{"a": 100, "b": 100, "c": 10}, nil, 60, map[string]int{"a": 25, "b": 25, "c": 10}},
		"by weight": {map[string]float64{"a": 3}, map[string]int{"a": 100, "b": 100}, nil, 80, map[string]int{"a": 60, "b": 20}},
		"by work": { // 512 tokens of an answer and the prompt
			nil, map[string]int{"a": 100, "b": 100}, map[string]int64{"a": 1536, "b": 512}, 60, map[string]int{"a": 20, "b": 40},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := patient(1)
			cfg.TenantWeights = c.weights
			l := newLine(t, cfg)
			for tenant, n := range c.waiting {
				l.queue(n, ask{tenant: tenant, prompt: c.prompt[tenant]})
			}
			near(t, l.shares(c.serve, byTenant), c.want)
		})
	}
}

// TestATenantIsChargedWhatItUsed gives one tenant answers three times as long as were
// expected, the other one none.
func TestATenantIsChargedWhatItUsed(t *testing.T) {
	l := newLine(t, patient(1))
	l.queue(200, ask{tenant: "long"})
	l.queue(200, ask{tenant: "short"})
	got := map[string]int{}
	next := l.serve()
	for range 100 {
		tokens := int64(0)
		if next.req.Tenant == "long" {
			tokens = 700
		}
		got[next.req.Tenant]++
		next = l.serveTokens(tokens)
	}
	// 100 + 2*700 tokens against 100; the mean length that is expected moves, too.
	if got["short"] < 12*got["long"] {
		t.Errorf("served %v, want about 15 short ones for a long one", got)
	}
}

// TestStreamedTokensAreCharged where the engine reports no usage.
func TestStreamedTokensAreCharged(t *testing.T) {
	l := newLine(t, patient(1))
	l.queue(200, ask{tenant: "long"})
	l.queue(200, ask{tenant: "short"})
	got := map[string]int{}
	next := l.serve()
	for range 60 {
		got[next.req.Tenant]++
		next.token()
		for range map[string]int{"long": 1000, "short": 10}[next.req.Tenant] {
			next.lease.Token(l.now)
		}
		next = l.serveTokens(0)
	}
	if got["short"] < 8*got["long"] {
		t.Errorf("served %v, want more than eight short ones for a long one", got)
	}
}

// TestATenantThatWasAwayHasNoCredit neither one that never came before.
func TestATenantThatWasAwayHasNoCredit(t *testing.T) {
	for name, before := range map[string]int{"new": 0, "was away": 3} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t, patient(1))
			l.queue(before, ask{tenant: "a"})
			l.queue(300, ask{tenant: "b"})
			l.shares(150, byTenant)
			l.queue(50, ask{tenant: "a"})
			near(t, l.shares(60, byTenant), map[string]int{"a": 30, "b": 30})
		})
	}
}

// TestWhatWasServedElsewhereIsNoLevel lets a tenant of another model's instances be
// served for long; who comes new to these here is not behind those who are here.
func TestWhatWasServedElsewhereIsNoLevel(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("p", 1, "m"), pool("q", 1, "n")))
	elsewhere, here := s.enter(ask{model: "n"}), s.enter(ask{})
	var flood []*seat
	for range 100 {
		flood = append(flood, s.enter(ask{tenant: "flooder"}))
	}
	for range 100 {
		next := s.enter(ask{model: "n", tenant: "elsewhere"})
		elsewhere.lease.Usage.CompletionTokens = 1000
		elsewhere.release()
		elsewhere = next
	}
	late := s.enter(ask{tenant: "late"})
	for range 2 {
		here.release()
		here = s.granted[len(s.granted)-1]
	}
	late.want("p/0")
	if n := count(flood, (*seat).waits); n != 99 {
		t.Errorf("%d of the flooder's requests wait, want 99", n)
	}
}

// TestATenantInTwoClasses has its share in each, whatever those that it waits with in
// the other one were served.
func TestATenantInTwoClasses(t *testing.T) {
	l := newLine(t, patient(1))
	l.queue(1500, ask{class: inference.VIP, tenant: "v"})
	l.queue(1000, ask{tenant: "a"})
	l.queue(1000, ask{tenant: "b"})
	l.shares(600, byTenant)
	l.queue(1, ask{tenant: "a", class: inference.VIP})
	both := func(c *seat) string { return byTenant(c) + " " + byClass(c) }
	near(t, l.shares(300, both), map[string]int{"v vip": 200, "a vip": 1, "a normal": 49, "b normal": 50})
}

// TestReturnersAreNoLevel lets a tenant return with tickets again and again. It is
// charged for that, and who comes new is not.
func TestReturnersAreNoLevel(t *testing.T) {
	f := newFlow(t, static(1))
	for i := range 60 {
		body := fmt.Sprint("body ", i)
		f.refuse(ask{tenant: "returner", body: body})
	}
	f.flow(12 * time.Second)
	for i := range 60 {
		f.enter(ask{tenant: "returner", body: fmt.Sprint("body ", i), prompt: 100_000})
		f.flow(200 * time.Millisecond)
	}
	if f.claimed() < 10 {
		t.Fatalf("only %v returned", f.claimed())
	}
	late := f.enter(ask{tenant: "late"})
	late.want("waits")
	for n := 0; late.waits(); n++ {
		if f.serve(); n > 3 {
			t.Fatalf("it waits behind %d others", n)
		}
	}
}

// TestAFlooderRefusesItself while others are admitted at once.
func TestAFlooderRefusesItself(t *testing.T) {
	cfg := static(1)
	l := newLine(t, cfg)
	for range 100 { // ten a second
		l.queue(1, ask{tenant: "flooder"})
		l.pass(100 * time.Millisecond)
		l.serve()
	}
	waits := 0
	for c := l.enter(ask{tenant: "flooder"}); c.waits(); c = l.enter(ask{tenant: "flooder"}) {
		waits++
	}
	if waits < 40 || waits > 90 { // 0.8 of ten seconds' work
		t.Errorf("%d of its requests wait, want about 80", waits)
	}
	for i := range 10 {
		l.enter(ask{tenant: fmt.Sprintf("tenant %d", i)}).want("waits")
	}
	l.enter(ask{tenant: "flooder"}).refused("predicted_wait")
	got := l.shares(11, byTenant)
	if got["flooder"] != 1 {
		t.Errorf("served %v, want each tenant once", got)
	}
}

// TestTheEarliestDeadlineGoesFirst inside a tenant.
func TestTheEarliestDeadlineGoesFirst(t *testing.T) {
	l := newLine(t, patient(1))
	var want []*seat
	for _, wait := range []time.Duration{5, 2, 4, 1, 3} {
		want = append(want, l.queue(1, ask{change: func(r *inference.Request) { r.Wait = wait * 1000 * time.Hour }})...)
	}
	for _, i := range []int{3, 1, 4, 2, 0} {
		if got := l.serve(); got != want[i] {
			t.Errorf("got the one with %v, want %v", got.req.Wait, want[i].req.Wait)
		}
	}
	// Of one deadline the first goes first, because time passes between them.
	first := l.queue(3, ask{})
	for _, c := range first {
		if got := l.serve(); got != c {
			t.Error("not in the order of their arrival")
		}
	}
}

// TestClassesAreFairInEachPool charges the pool that serves, not the one that comes
// first.
func TestClassesAreFairInEachPool(t *testing.T) {
	s := newStage(t, patient(1), layout(pool("a", 1, "m"), pool("b", 1, "m")))
	both := []string{"a", "b"}
	a, b := s.enter(ask{pools: both}), s.enter(ask{pools: both})
	for range 100 {
		s.enter(ask{pools: both})
		s.enter(ask{pools: both, class: inference.VIP})
	}
	got := map[string]int{}
	for range 30 {
		for _, run := range []**seat{&a, &b} {
			before := len(s.granted)
			(*run).lease.Usage.CompletionTokens = 256
			(*run).release()
			*run = s.granted[before]
			got[(*run).lease.Instance.Pool.Label+" "+byClass(*run)]++
		}
	}
	near(t, got, map[string]int{"a vip": 20, "a normal": 10, "b vip": 20, "b normal": 10})
}

var _ = fleet.Open
