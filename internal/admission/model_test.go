package admission_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// chaos does random things to a governor and checks after each that the books are in
// order.
type chaos struct {
	*stage
	r       *rand.Rand
	cfg     admission.Config
	seats   []*seat // that wait or run
	tickets []string
	sizes   [3]int // instances of the pools
	op      string
	on      bool // the emergency
}

// pools of the model test: two of one model, one that stands in and serves another.
func (c *chaos) pools() fleet.Layout {
	a, b, d := pool("a", c.sizes[0], "m"), pool("b", c.sizes[1], "m"), pool("d", c.sizes[2], "n", "small")
	b.MaxInFlight = 3
	d.Standby = true
	l := layout(a, b)
	l.Regions = append(l.Regions, fleet.RegionLayout{Name: "far", Pools: []fleet.PoolLayout{d}})
	return l
}

// pick is one of n.
func (c *chaos) pick(n int) int { return c.r.IntN(n) }

// one is one of the seats for which ok is true, or nil.
func (c *chaos) one(ok func(*seat) bool) *seat {
	for range 8 {
		if len(c.seats) == 0 {
			return nil
		}
		if x := c.seats[c.pick(len(c.seats))]; ok(x) {
			return x
		}
	}
	return nil
}

// drop forgets a seat whose story is over.
func (c *chaos) drop(x *seat) {
	for i, y := range c.seats {
		if x == y {
			c.seats = append(c.seats[:i], c.seats[i+1:]...)
			return
		}
	}
}

// come is a new request, or another attempt.
func (c *chaos) come() {
	a := ask{
		tenant: fmt.Sprint("tenant ", c.pick(5)), class: inference.Class(c.pick(4)),
		model: []string{"m", "n"}[c.pick(5)/4], prompt: int64(1 + c.pick(2000)), body: fmt.Sprint("body ", c.pick(40)),
		again: c.pick(6) == 0,
	}
	if a.model == "m" {
		a.pools = [][]string{{"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"a", "b", "d"}}[c.pick(5)]
		if c.pick(4) == 0 {
			a.fallback = "d"
		}
	}
	if a.again {
		c.f.Snapshot().Instances(func(i *fleet.Instance) {
			if c.pick(3) == 0 {
				a.tried = append(a.tried, i)
			}
		})
	}
	a.change = func(r *inference.Request) {
		switch c.pick(8) {
		case 0:
			r.Wait = time.Duration(c.pick(5000)) * time.Millisecond
		case 1:
			r.Patience = time.Duration(c.pick(5000)) * time.Millisecond
		case 2:
			r.Deadline = c.now.Add(time.Duration(c.pick(3000)-500) * time.Millisecond)
		case 3:
			r.Retry, r.DegradeOK = 1, true
		case 4:
			r.Stream = false
		case 5:
			if len(c.tickets) > 0 {
				r.Ticket = c.tickets[c.pick(len(c.tickets))]
			}
		case 6:
			r.Deadline, r.Images = time.Time{}, c.pick(3)
		}
	}
	x := c.enter(a)
	if x.err != nil {
		if e := refusal(c.t, x.err); e.Ticket != "" && len(c.tickets) < 100 {
			c.tickets = append(c.tickets, e.Ticket)
		}
		return
	}
	c.seats = append(c.seats, x)
}

// instance is some instance, or nil.
func (c *chaos) some() *fleet.Instance {
	var all []*fleet.Instance
	c.f.Snapshot().Instances(func(i *fleet.Instance) { all = append(all, i) })
	if len(all) == 0 {
		return nil
	}
	return all[c.pick(len(all))]
}

// step does one thing.
func (c *chaos) step() {
	now := c.now.UnixNano()
	runs := func(x *seat) bool { return x.lease != nil }
	switch n := c.pick(100); {
	case n < 40:
		c.op = "come"
		c.come()
	case n < 50:
		c.op = "leave"
		if x := c.one(func(x *seat) bool { return x.waiter != nil }); x != nil {
			x.leave() // a slot that was granted meanwhile goes back
			c.drop(x)
		}
	case n < 60:
		c.op = "first token"
		if x := c.one(runs); x != nil {
			if c.pick(2) == 0 {
				x.lease.Sent(c.now)
			}
			x.lease.FirstToken(c.now, c.now.Sub(x.lease.Start()), x.req.Stream)
			x.first = x.req.Stream
		}
	case n < 65:
		c.op = "tokens"
		if x := c.one(func(x *seat) bool { return x.first && x.lease != nil }); x != nil {
			for range c.pick(40) {
				c.now = c.now.Add(time.Millisecond / 4)
				x.lease.Token(c.now)
			}
		}
	case n < 82:
		c.op = "release"
		if x := c.one(runs); x != nil {
			v := inference.Verdict(c.pick(6))
			if v == inference.VerdictOK {
				x.lease.Usage = inference.Usage{PromptTokens: int64(c.pick(500)), CompletionTokens: int64(c.pick(500))}
			}
			x.end(v)
			c.drop(x)
		}
	case n < 92:
		c.op = "time"
		c.pass(time.Duration(100+c.pick(400)) * time.Millisecond)
		c.busy()
	case n < 97:
		c.op = "health"
		if i := c.some(); i != nil {
			switch c.pick(6) {
			case 0:
				i.Live.SetDown(true, now)
			case 1:
				i.Live.SetDraining(c.pick(2) == 0)
			case 2:
				i.Live.Cool(now + int64(c.pick(1000))*1e6)
			case 3:
				i.Live.Eject(now + int64(c.pick(1000))*1e6)
			case 4:
				i.Live.Readmit(now)
			default:
				i.Live.SetDown(false, now)
			}
		}
	case n < 98:
		c.op = "fleet"
		c.sizes[c.pick(3)] = c.pick(4)
		c.layout(c.pools())
	default:
		c.op = "reload"
		c.reload()
	}
}

// reload changes the configuration, or the emergency.
func (c *chaos) reload() {
	switch c.pick(8) {
	case 0:
		c.cfg.Limit = []string{admission.LimitLearned, admission.LimitStatic, admission.LimitOff}[c.pick(3)]
	case 1:
		c.cfg.StaticLimit = int64(1 + c.pick(5))
	case 2:
		c.cfg.TenantWeights = map[string]float64{fmt.Sprint("tenant ", c.pick(5)): float64(1 + c.pick(5))}
	case 3:
		c.cfg.Queue.Requests = 1 + c.pick(40)
	case 4:
		c.cfg.Classes.Batch.Weight = float64(1 + c.pick(10))
	case 5:
		c.cfg.Tickets.Enabled = c.pick(4) != 0
	default:
		who := admission.Operator{Name: "op"}
		var err error
		if c.on = !c.on; c.on {
			_, err = c.emergency.On(c.now, who, "", time.Duration(1+c.pick(5))*time.Second)
		} else {
			_, err = c.emergency.Off(c.now, who)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	c.g.Apply(c.cfg)
}

// check fails the test when something is out of order.
func (c *chaos) check() {
	c.t.Helper()
	if err := c.g.Check(); err != nil {
		c.t.Fatalf("after %s: %v", c.op, err)
	}
	waiting, running := int64(0), int64(0)
	for _, x := range c.seats {
		switch {
		case x.lease != nil:
			running++
		case x.waits():
			waiting++
		}
	}
	if got := c.g.Snapshot().Waiting; got != waiting {
		c.t.Fatalf("after %s: %d wait, want %d", c.op, got, waiting)
	}
	inFlight := int64(0)
	for _, r := range c.f.Snapshot().Regions {
		inFlight += r.Live.InFlight()
	}
	if inFlight != running {
		c.t.Fatalf("after %s: %d in flight, want %d", c.op, inFlight, running)
	}
}

// busy checks behind a tick that no slot is free for somebody who waits.
func (c *chaos) busy() {
	c.t.Helper()
	for _, x := range c.seats {
		if !x.waits() {
			continue
		}
		for i := range x.plan.Candidates {
			cand := &x.plan.Candidates[i]
			if cand.Fallback != "" && c.g.Step() < admission.StepCheaperModel {
				continue
			}
			c.f.Snapshot().Instances(func(one *fleet.Instance) {
				tried := slices.ContainsFunc(x.tried, func(t *fleet.Instance) bool { return t.Live == one.Live })
				if one.Pool.Name == cand.Pool.Name && !tried && one.Status(c.now.UnixNano()) == fleet.Open {
					c.t.Fatalf("%s has room, and a request of class %v that has tried %d waits", one.Name, x.req.Class, len(x.tried))
				}
			})
		}
	}
}

// tidy forgets the seats that were refused while they waited.
func (c *chaos) tidy() {
	kept := c.seats[:0]
	for _, x := range c.seats {
		if x.err == nil {
			kept = append(kept, x)
		}
	}
	c.seats = kept
}

// within checks that no slot was given beyond the limits in force.
func (c *chaos) within(before map[*fleet.Live]int64) {
	c.t.Helper()
	if c.op == "time" && c.cfg.Limit == admission.LimitLearned {
		return // it may have risen and fallen meanwhile
	}
	c.f.Snapshot().Instances(func(i *fleet.Instance) {
		if _, ok := before[i.Live]; !ok {
			return // it has just come back, with what it had
		}
		n := i.Live.InFlight()
		limit, _, _ := i.Live.Limits()
		for _, most := range []int64{limit, i.Capacity} {
			if most > 0 && n > most && n > before[i.Live] {
				c.t.Fatalf("after %s: %s has %d in flight of %d", c.op, i.Name, n, most)
			}
		}
	})
}

// inFlight is what runs at each instance.
func (c *chaos) inFlight() map[*fleet.Live]int64 {
	m := make(map[*fleet.Live]int64)
	c.f.Snapshot().Instances(func(i *fleet.Instance) { m[i.Live] = i.Live.InFlight() })
	return m
}

// end lets everybody go home.
func (c *chaos) end() {
	c.t.Helper()
	if _, err := c.emergency.Off(c.now, admission.Operator{Name: "op"}); err != nil {
		c.t.Fatal(err)
	}
	for len(c.seats) > 0 {
		c.op = "the end"
		x := c.seats[0]
		if x.lease != nil {
			x.end(inference.VerdictOK)
		} else if x.waits() {
			x.leave()
		}
		c.drop(x)
		c.check()
	}
	c.pass(2 * time.Minute) // tickets expire
	c.idle()
	if n := c.g.Snapshot().Tickets; n != 0 {
		c.t.Errorf("%d tickets are out", n)
	}
}

// TestModel does thousands of random things for each of a few seeds. A seed that has
// failed is named, and tried alone with SPILLWAY_TEST_SEED.
func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	if s, err := strconv.ParseUint(os.Getenv("SPILLWAY_TEST_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	steps := 4000
	if testing.Short() {
		steps = 500
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			c := &chaos{r: rand.New(rand.NewPCG(seed, 0)), cfg: static(2), sizes: [3]int{2, 1, 1}}
			c.cfg.Queue.Requests = 40
			e, _ := newSwitch(t, nil)
			c.stage = newStageWith(t, c.cfg, c.pools(), e)
			for range steps {
				before := c.inFlight()
				c.step()
				c.tidy()
				c.check()
				c.within(before)
				if t.Failed() {
					t.FailNow()
				}
			}
			if len(c.granted) < steps/20 {
				t.Errorf("only %d of %d requests were ever admitted", len(c.granted), c.requests)
			}
			c.end()
		})
	}
}

// TestConcurrently lets clients come, wait, run and go from many goroutines while the
// governor ticks, instances come and go, and the configuration changes.
func TestConcurrently(t *testing.T) { synctest.Test(t, concurrently) }

// concurrently runs in a bubble, so that all of it happens at few instants.
func concurrently(t *testing.T) {
	const workers, each = 16, 150
	cfg := static(2)
	cfg.Classes.VIP.TTFT, cfg.Classes.Normal.TTFT, cfg.Classes.Batch.TTFT = 50*time.Millisecond, 100*time.Millisecond, 200*time.Millisecond
	f := fleet.New(testkit.Discard())
	big, small := layout(pool("a", 3, "m"), pool("b", 2, "m", "n")), layout(pool("a", 2, "m"), pool("b", 1, "m", "n"))
	if err := f.Apply(big); err != nil {
		t.Fatal(err)
	}
	g := admission.New(cfg, f, nil, testkit.Discard())
	ctx, stop := context.WithCancel(context.Background())
	var clients, others sync.WaitGroup
	others.Go(func() { _ = g.Run(ctx) })
	others.Go(func() { // what operators and health do
		for i := 0; ctx.Err() == nil; i++ {
			time.Sleep(3 * time.Millisecond)
			switch i % 4 {
			case 0:
				_ = f.Apply([]fleet.Layout{big, small}[i/4%2])
			case 1:
				next := cfg
				next.StaticLimit = int64(1 + i%3)
				g.Apply(next)
			case 2:
				f.Snapshot().Instances(func(one *fleet.Instance) { one.Live.SetDown(i%5 == 0, time.Now().UnixNano()) })
			default:
				g.Snapshot()
				_ = g.Idle()
			}
		}
	})
	var admitted, refused, left, late atomic.Int64
	for w := range workers {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range each {
				req := &inference.Request{
					Surface: inference.Chat, Tenant: fmt.Sprint("tenant ", w%4), Class: inference.Class(r.IntN(4)), Received: time.Now(),
					Deadline: time.Now().Add(time.Second), Body: []byte(fmt.Sprint("body ", i%7)),
					Fields: inference.Fields{Model: "m", Stream: true, PromptBytes: int64(1 + r.IntN(4000))},
				}
				plan := fleet.NewPlan(req)
				for _, p := range f.Snapshot().Regions[0].Pools {
					plan.Candidates = append(plan.Candidates, fleet.Candidate{Pool: p, Model: "m", Picker: testkit.First{}})
				}
				plan.Again = r.IntN(8) == 0
				lease, waiter, err := g.Enter(time.Now(), plan, nil, nil)
				if waiter != nil {
					wait, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(40))*time.Millisecond)
					lease, err = waiter.Wait(wait, time.Now().Add(time.Duration(r.IntN(40))*time.Millisecond))
					switch {
					case errors.Is(err, inference.ErrNotYet):
						late.Add(1)
						waiter.Leave(time.Now())
					case wait.Err() != nil && lease == nil:
						left.Add(1)
					}
					cancel()
				}
				if lease == nil {
					if err == nil {
						t.Error("neither a lease nor an error")
					}
					refused.Add(1)
					continue
				}
				admitted.Add(1)
				now := time.Now()
				lease.Sent(now)
				if r.IntN(4) != 0 {
					lease.FirstToken(now, time.Millisecond, true)
					for range r.IntN(30) {
						lease.Token(time.Now())
					}
				}
				time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				lease.Verdict = inference.Verdict(r.IntN(6))
				lease.Release(time.Now())
			}
		})
	}
	clients.Wait()
	stop()
	others.Wait()
	if err := g.Check(); err != nil {
		t.Error(err)
	}
	if !g.Idle() || g.Snapshot().Waiting != 0 {
		t.Errorf("not idle: %+v", g.Snapshot())
	}
	drained(t, f, time.Now())
	t.Logf("%d admitted, %d without a slot, %d of them left and %d gave up", admitted.Load(), refused.Load(), left.Load(), late.Load())
	if admitted.Load() < workers*each/10 || admitted.Load()+refused.Load() != workers*each {
		t.Errorf("%d admitted, %d not, of %d", admitted.Load(), refused.Load(), workers*each)
	}
}
