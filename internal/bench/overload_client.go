package bench

import (
	"time"

	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"

	"github.com/spillway/spillway/internal/admission"
)

// Clients are how the clients of a world behave.
type Clients struct {
	// Retries is how often a client tries again, as the official SDKs do: after a
	// refusal and after an answer that broke before its first token.
	Retries int
	// Deaf clients choose the wait themselves, whatever the server asks for.
	Deaf bool
	// Patience is how long a client of a class waits for its first token; one
	// without an entry waits for ever.
	Patience map[inference.Class]time.Duration
}

// Manner is what a client does with a ticket.
type Manner uint8

// The manners.
const (
	Plain       Manner = iota // as the SDKs: it is known again by its body
	Echoes                    // sends it back
	Forges                    // sends one that it has made up, from its first attempt on
	Early                     // sends it back after a third of the wait
	Reuses                    // sends it back twice
	mannerKinds = int(Reuses) + 1
)

// mannerCount is what became of the attempts of a manner in the class normal: of its first ones, and of
// those that came with a ticket (of Reuses, of the second use).
type mannerCount struct{ fresh, freshAdmitted, shown, shownAdmitted int }

// call is one attempt of a client.
type call struct {
	try      Try
	arrival  *Arrival
	serial   uint64
	attempt  int
	ticket   string // shown
	copied   bool   // the second use of a ticket: it is not judged
	pressed  bool   // it was sent while there was load
	over     bool
	engine   *virtualEngine
	sequence *engine.Sequence

	// What stands before the engines keeps these.
	gateway *virtualGateway
	request *inference.Request
	tried   []*fleet.Instance
	waiter  *admission.Waiter
	lease   *fleet.Lease
	waiting bool          // in a proxy's queue
	seen    time.Duration // when the gateway saw the last token of a slow reader
}

// arrive sends the first attempt of a request.
func (w *World) arrive(a Arrival) {
	c := &call{arrival: &a, try: Try{Request: w.requests, Class: a.Class, Tenant: a.Tenant, Prompt: a.Prompt, Output: a.Output, At: w.now}}
	w.requests++
	if a.Manner == Forges {
		c.ticket = forge()
	}
	w.open[c] = struct{}{}
	w.send(c)
}

// send begins an attempt.
func (w *World) send(c *call) {
	w.last = w.now
	w.serial++
	c.serial = w.serial
	c.try.Sent, c.pressed = w.now, w.arriving
	if p := w.Clients.Patience[c.try.Class]; p > 0 {
		w.at(w.now+p, func() {
			if c.try.First == 0 {
				w.leave(c)
			}
		})
	}
	w.front.enter(c)
}

// start submits the attempt to an engine.
func (w *World) start(c *call, e *virtualEngine) {
	c.engine = e
	c.sequence = &engine.Sequence{Prompt: max(1, c.try.Prompt), Output: max(1, c.try.Output), Owner: c}
	switch {
	case e.down:
		w.broken(c)
	case !e.submit(c):
		w.busy(c)
	}
}

// busyAgain is the wait that a gateway asks for when all engines that it tried were
// full.
const busyAgain = time.Second

// busy ends an attempt whose engine is full.
func (w *World) busy(c *call) {
	if f, ok := w.front.(*gatewayFront); ok && f.retry(c, inference.VerdictBusy) {
		return
	}
	c.try.Refused = true
	w.end(c, inference.VerdictBusy)
	w.again(c, busyAgain, "")
}

// refuse ends an attempt that nothing was done for, and lets its client come back
// after the wait that it was asked for; below zero it is asked not to.
func (w *World) refuse(c *call, wait time.Duration, ticket string) {
	c.try.Refused, c.try.RetryAfter, c.try.Ticket = true, max(0, wait), ticket != ""
	w.finish(c)
	if wait >= 0 {
		w.again(c, wait, ticket)
	}
}

// again sends the client's next attempt, if it makes one.
func (w *World) again(c *call, wait time.Duration, ticket string) {
	if c.attempt >= w.Clients.Retries || c.copied {
		return
	}
	if wait == 0 || w.Clients.Deaf {
		wait = w.backoff(c.attempt)
	}
	back := &call{arrival: c.arrival, attempt: c.attempt + 1}
	switch m := c.arrival.Manner; m {
	case Early:
		wait, back.ticket = wait/3, ticket
	case Echoes, Reuses:
		back.ticket = ticket
	case Forges:
		back.ticket = forge()
	}
	back.try = Try{
		Request: c.try.Request, Class: c.try.Class, Tenant: c.try.Tenant, Prompt: c.try.Prompt, Output: c.try.Output,
		At: w.now + wait, Returner: c.try.Ticket && c.arrival.Manner != Early,
	}
	w.open[back] = struct{}{}
	w.at(back.try.At, func() {
		w.send(back)
		if c.arrival.Manner == Reuses && ticket != "" {
			w.copy(back)
		}
	})
}

// copy uses a ticket a second time.
func (w *World) copy(c *call) {
	twin := &call{arrival: c.arrival, attempt: c.attempt, ticket: c.ticket, copied: true, try: c.try}
	twin.try = Try{Request: c.try.Request, Class: c.try.Class, Tenant: c.try.Tenant, Prompt: c.try.Prompt, Output: c.try.Output, At: w.now}
	w.open[twin] = struct{}{}
	w.send(twin)
}

// The official SDKs' own wait before a retry: half a second, doubled up to eight,
// less up to a quarter.
const (
	firstBackoff   = 500 * time.Millisecond
	longestBackoff = 8 * time.Second
)

func (w *World) backoff(attempt int) time.Duration {
	d := min(firstBackoff<<attempt, longestBackoff)
	return d - time.Duration(w.random.Float64()*float64(d)/4)
}

// leave ends an attempt whose client is gone.
func (w *World) leave(c *call) {
	if c.over {
		return
	}
	if c.engine == nil {
		w.front.left(c)
		w.finish(c)
		return
	}
	c.engine.batch.Cancel(c.sequence)
	w.end(c, inference.VerdictCanceled)
}

// broken ends an attempt whose engine is gone; before the first token a gateway
// tries another engine.
func (w *World) broken(c *call) {
	if c.try.First == 0 {
		if f, ok := w.front.(*gatewayFront); ok && f.retry(c, inference.VerdictBroken) {
			return
		}
	}
	w.end(c, inference.VerdictBroken)
	if c.try.First == 0 {
		w.again(c, 0, "")
	}
}

// end closes the books on an attempt that an engine has had.
func (w *World) end(c *call, v inference.Verdict) {
	delete(c.engine.running, c)
	c.try.Whole = v == inference.VerdictOK
	w.finish(c)
	w.front.ended(c, v)
}

// finish ends an attempt.
func (w *World) finish(c *call) {
	c.over = true
	c.try.End, w.last = w.now, w.now
	delete(w.open, c)
	w.tell(c)
	w.manner(c)
}

// tell reports an attempt.
func (w *World) tell(c *call) {
	switch {
	case c.copied:
	case w.Tell != nil:
		w.Tell(c.try)
	default:
		w.tries = append(w.tries, c.try)
	}
}

// manner counts what became of an attempt. It is admitted when it was not refused.
// Classes differ in how easily they are admitted, so one alone is counted.
func (w *World) manner(c *call) {
	if c.try.Class != inference.Normal || !c.pressed {
		return
	}
	m := &w.manners[c.arrival.Manner]
	admitted := !c.try.Refused
	if c.attempt == 0 {
		m.fresh++
		if admitted {
			m.freshAdmitted++
		}
	}
	if c.ticket == "" || c.arrival.Manner == Reuses && !c.copied {
		return
	}
	m.shown++
	if admitted {
		m.shownAdmitted++
	}
}

// readBuffer is the number of tokens that stand in buffers between the gateway and
// a client that does not read: some 64 KiB of events.
const readBuffer = 256

// token is one token that an engine has made.
func (w *World) token(c *call) {
	last := c.sequence.Generated() >= c.try.Output
	if slow := c.arrival.Reads; slow > 0 {
		// Behind a full buffer the gateway sees a token when the client has read one.
		behind := time.Duration(float64(c.sequence.Generated()-readBuffer) / slow * float64(time.Second))
		if at := max(c.seen, c.try.First+behind); c.try.First > 0 && at > w.now {
			held := at - max(c.seen, w.now) // by its reader, as the gateway notes
			c.seen = at
			w.at(at, func() {
				if c.lease != nil && !c.over {
					c.lease.Held(held)
				}
				w.see(c, last)
			})
			return
		}
	}
	w.see(c, last)
}

// see is one token that the gateway passes on.
func (w *World) see(c *call, last bool) {
	if c.over {
		return
	}
	c.try.Tokens++
	if c.try.First == 0 {
		c.try.First = w.now
		if leaves := c.arrival.Leaves; leaves > 0 {
			w.at(w.now+leaves, func() { w.leave(c) })
		}
		if c.lease != nil {
			c.lease.FirstToken(w.clock(), w.clock().Sub(c.lease.Start()), true)
		}
	} else if c.lease != nil {
		c.lease.Token(w.clock())
	}
	if last {
		w.end(c, inference.VerdictOK)
	}
}
