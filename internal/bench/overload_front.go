package bench

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/inference"
)

// forge makes a ticket that nobody has issued.
func forge() string { return base64.RawURLEncoding.EncodeToString(make([]byte, 57)) }

// blind sends requests to the engines in turn.
type blind struct {
	w    *World
	turn int
}

func (b *blind) enter(c *call) {
	e := b.w.engines[b.turn%len(b.w.engines)]
	b.turn++
	b.w.start(c, e)
}

func (*blind) left(*call) {}

func (*blind) ended(*call, inference.Verdict) {}

// virtualGateway is one gateway with its own view of the engines.
type virtualGateway struct {
	w        *World
	fleet    *fleet.Fleet
	governor *admission.Governor
	picker   fleet.Picker
	busy     map[*fleet.Live]*busyRun
}

// busyRun is an engine's busy answers in a row, and the cool-down after the last.
type busyRun struct {
	count int
	until time.Duration
}

// cool keeps requests away from an engine that said busy, as the health package does
// in a gateway that is not one of virtual time: answers that come while it cools do
// not count again.
func (g *virtualGateway) cool(live *fleet.Live) {
	r := g.busy[live]
	if r == nil {
		r = new(busyRun)
		g.busy[live] = r
	}
	if g.w.now < r.until {
		return
	}
	set := health.Default().Passive
	d := min(set.BusyTime<<min(r.count, 10), set.MaxBusyTime)
	r.count++
	r.until = g.w.now + d
	live.Cool(g.w.clock().Add(d).UnixNano())
}

// gatewayFront is one gateway or several.
type gatewayFront struct{ w *World }

// door is the gateway that an attempt comes to.
func (f *gatewayFront) door() *virtualGateway {
	w := f.w
	if w.Shares == nil {
		return w.gateways[w.random.IntN(len(w.gateways))]
	}
	x := w.random.Float64()
	for i, s := range w.Shares {
		if x -= s; x < 0 {
			return w.gateways[i]
		}
	}
	return w.gateways[len(w.gateways)-1]
}

// requestDeadline is how long an SDK waits for an answer.
const requestDeadline = 10 * time.Minute

func (f *gatewayFront) enter(c *call) {
	w := f.w
	c.gateway = f.door()
	body := binary.BigEndian.AppendUint64(nil, uint64(c.try.Request))
	c.request = &inference.Request{
		Surface: inference.Chat, Received: w.clock(), Deadline: w.clock().Add(requestDeadline), Tenant: c.try.Tenant, Class: c.try.Class,
		Retry: c.attempt, Ticket: c.ticket, Body: body,
		Fields: inference.Fields{Model: model, Stream: true, PromptBytes: 4 * int64(c.try.Prompt)},
	}
	c.gateway.enter(c)
}

// enter asks the gateway for a slot.
func (g *virtualGateway) enter(c *call) {
	w := g.w
	plan := fleet.NewPlan(c.request)
	plan.Candidates = append(plan.Candidates, fleet.Candidate{Pool: g.fleet.Snapshot().Regions[0].Pools[0], Model: model, Picker: g.picker})
	plan.Random = w.random.Uint64
	told := false // by notify, before Enter has returned
	lease, waiter, err := g.governor.Enter(w.clock(), plan, c.tried, func(x *admission.Waiter) {
		told = true
		c.waiter = nil
		lease, err := x.Outcome()
		// What follows calls the governor, and this is called under its lock.
		w.at(w.now, func() { g.decided(c, lease, err) })
	})
	switch {
	case told:
	case waiter != nil:
		c.waiter = waiter
	default:
		g.decided(c, lease, err)
	}
}

// decided goes on when the governor has decided.
func (g *virtualGateway) decided(c *call, lease *fleet.Lease, err error) {
	w := g.w
	if c.over { // its client has left in the meantime
		if lease != nil {
			lease.Verdict = inference.VerdictCanceled
			lease.Release(w.clock())
		}
		return
	}
	if err != nil {
		g.refused(c, err)
		return
	}
	c.lease, c.try.Admitted = lease, w.now
	lease.Sent(w.clock())
	for i, inst := range lease.Instance.Pool.Instances {
		if inst.Live == lease.Instance.Live {
			w.start(c, w.engines[i])
			return
		}
	}
}

// refused answers with what the governor said.
func (g *virtualGateway) refused(c *call, err error) {
	wait, ticket := time.Duration(0), ""
	if e, ok := errors.AsType[*inference.Error](err); ok {
		if wait, ticket = e.RetryAfter, e.Ticket; e.NoRetry {
			wait = -1
		}
	}
	g.w.refuse(c, wait, ticket)
}

func (*gatewayFront) left(c *call) {
	if c.waiter != nil {
		c.waiter.Leave(c.gateway.w.clock())
		c.waiter = nil
	}
}

func (f *gatewayFront) ended(c *call, v inference.Verdict) {
	if c.lease == nil {
		return
	}
	c.lease.Verdict = v
	switch v {
	case inference.VerdictBusy:
		c.gateway.cool(c.lease.Instance.Live)
	case inference.VerdictOK:
		delete(c.gateway.busy, c.lease.Instance.Live)
		c.lease.Usage = inference.Usage{PromptTokens: int64(c.try.Prompt), CompletionTokens: int64(c.try.Tokens)}
	}
	c.lease.Release(f.w.clock())
}

// moreEngines is how many engines a gateway tries after the first.
const moreEngines = 2

// retry sends an attempt whose engine broke or was full to another one, and says
// whether it did.
func (f *gatewayFront) retry(c *call, v inference.Verdict) bool {
	if len(c.tried) >= moreEngines {
		return false
	}
	lease := c.lease
	c.tried = append(c.tried, lease.Instance)
	delete(c.engine.running, c)
	c.lease, c.engine = nil, nil
	if v == inference.VerdictBusy {
		c.gateway.cool(lease.Instance.Live)
	}
	lease.Verdict = v
	lease.Release(f.w.clock())
	c.gateway.enter(c)
	return true
}
