package fleet

import (
	"math/rand/v2"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Query is what a Picker is asked: for which request, at which instant, with
// which randomness. It makes a pick a pure function of its arguments and the
// picker's own state.
type Query struct {
	Request *inference.Request
	Now     int64  // Unix nanoseconds
	Rand    uint64 // fresh for each pick
	Tried   []*Instance
	Panic   bool // nothing is open: instances that passive health took out count as open
	tokens  int64
}

// Open says whether n can take the request now and was not tried before.
func (q *Query) Open(n *Node) bool {
	if q.tried(n.Live) {
		return false
	}
	s := n.Status(q.Now)
	return s == Open || q.Panic && (s == Ejected || s == Stalled)
}

// tried says whether the node was tried before, in whichever snapshot.
func (q *Query) tried(l *Live) bool {
	for _, t := range q.Tried {
		if t.Live == l {
			return true
		}
	}
	return false
}

// Picker chooses among the members of a tier. Pick returns the index of a node
// for which q.Open is true, or -1 when there is none. It allocates nothing, may
// be called from many goroutines at once, and keeps neither argument.
type Picker interface {
	Pick(q *Query, nodes []*Node) int
}

// PickTier asks picker among the nodes that are not backups, and only when
// none of them is open among the backups.
func PickTier(picker Picker, q *Query, primaries, backups []*Node) *Node {
	if i := picker.Pick(q, primaries); i >= 0 {
		return primaries[i]
	}
	if i := picker.Pick(q, backups); i >= 0 {
		return backups[i]
	}
	return nil
}

// Candidate is one pool where a request may run.
type Candidate struct {
	Pool     *Pool
	Model    string // the name to ask for upstream
	Fallback string // the model served instead of the one asked for; "" is none
	Picker   Picker // chooses among the pool's instances
}

// Plan is where one request may run: candidate pools in order of preference.
// It belongs to one request and one goroutine at a time.
type Plan struct {
	Request    *inference.Request
	Candidates []Candidate

	// Random gives the picks their randomness; nil is the process's own. A run in
	// virtual time has its own, so that it can be repeated.
	Random func() uint64

	// Tokens is the length of the prompt in tokens as budgets count it; 0 takes the
	// request's own estimate.
	Tokens int64

	// Again says that the attempt is not the request's first: its client has waited
	// already.
	Again bool

	// Faithful keeps to the model that was asked for: candidates that stand in for
	// it are passed over.
	Faithful bool

	// Rule and Arm say by which rule and in which arm of which experiment the request
	// runs; they are for the record, and the arm keeps cached answers apart.
	Rule string
	Arm  inference.Arm

	// Mirror, when set, is where a copy of the request goes whose answer is dropped.
	Mirror *Plan

	// Cookie, when set, names the session cookie to send with an answer of the
	// instance, as a whole Set-Cookie value; "" sends none.
	Cookie func(*Instance) string

	first [4]Candidate // Candidates begins here: a plan is one allocation
	query Query        // of the Acquire under way: kept here to stay off the heap
}

// NewPlan returns an empty plan.
func NewPlan(req *inference.Request) *Plan {
	p := &Plan{Request: req}
	p.Candidates = p.first[:0]
	return p
}

// maxPicks bounds the picks in one pool when others win the race for a slot.
const maxPicks = 4

// Acquire takes a slot at the best instance that is open and not among tried.
// When there is none it returns an *inference.Error: overloaded when capacity
// will come back by itself (with the wait until the first cool-down ends),
// no_capacity otherwise. It never waits.
func (p *Plan) Acquire(now time.Time, tried []*Instance) (*Lease, error) {
	lease, _ := p.Take(now, tried)
	if lease == nil {
		return nil, p.Refusal(now, tried)
	}
	return lease, nil
}

// Take is Acquire without words: a lease, or nil and the best status found among
// the instances not tried. What passive health took out is used when nothing else
// is left, in any candidate: a guess about an instance never refuses a request by
// itself. But what is only full or cooling is left, and worth waiting for.
func (p *Plan) Take(now time.Time, tried []*Instance) (*Lease, Status) {
	q := &p.query
	*q = Query{Request: p.Request, Now: now.UnixNano(), Tried: tried, tokens: p.Tokens}
	for {
		for i := range p.Candidates {
			if c := &p.Candidates[i]; c.Fallback == "" || !p.Faithful {
				if lease := c.acquire(q, p.Random); lease != nil {
					return lease, Open
				}
			}
		}
		best, _ := p.best(q)
		if q.Panic || best <= Cooling {
			return nil, best
		}
		q.Panic = true
	}
}

// acquire takes a slot in the candidate's pool, or returns nil.
func (c *Candidate) acquire(q *Query, random func() uint64) *Lease {
	if random == nil {
		random = rand.Uint64
	}
	for range maxPicks {
		q.Rand = random()
		n := PickTier(c.Picker, q, c.Pool.primaries, c.Pool.backups)
		if n == nil {
			return nil
		}
		if lease := c.take(n, q); lease != nil {
			return lease
		}
	}
	return nil
}

// take reserves the slot on the instance behind n.
func (c *Candidate) take(n *Node, q *Query) *Lease {
	tokens := q.tokens
	if tokens == 0 {
		tokens = max(1, q.Request.PromptTokens())
	}
	ok, probe := n.Live.take(q.Now, n.Capacity, tokens, q.Panic)
	if !ok {
		return nil
	}
	l := &Lease{
		Instance: n.instance, Candidate: c, Request: q.Request, Prompt: tokens, Panic: q.Panic, Class: q.Request.Class, start: q.Now,
		tokens: tokens, context: tokens, ahead: n.Live.PromptTokens(), probe: probe, stream: q.Request.Stream,
	}
	if l.awaited() {
		n.Live.meter.await(q.Now, 1)
	}
	for _, live := range l.outer() {
		live.inFlight.Add(1)
		live.promptTokens.Add(tokens)
	}
	return l
}

// best is the best status among the instances not tried, and the end of the first
// cool-down among them in Unix nanoseconds, 0 without one.
func (p *Plan) best(q *Query) (best Status, soonest int64) {
	best = Down
	for i := range p.Candidates {
		c := &p.Candidates[i]
		if c.Fallback != "" && p.Faithful {
			continue
		}
		for _, i := range c.Pool.Instances {
			if q.tried(i.Live) {
				continue
			}
			s := i.Status(q.Now)
			best = min(best, s)
			if until := i.Live.CoolUntil(); s == Cooling && (soonest == 0 || until < soonest) {
				soonest = until
			}
		}
	}
	return best, soonest
}

// Refusal says why no instance could be had: an *inference.Error.
func (p *Plan) Refusal(now time.Time, tried []*Instance) error {
	q := &p.query
	*q = Query{Request: p.Request, Now: now.UnixNano(), Tried: tried}
	best, soonest := p.best(q)
	if best <= Cooling {
		e := inference.Errorf(inference.CodeOverloaded, "the servers of model %q are busy", p.Request.Model)
		e.Reason = best.String()
		e.RetryAfter = time.Second
		if soonest > 0 {
			e.RetryAfter = max(e.RetryAfter, time.Duration(soonest-q.Now))
		}
		return e
	}
	e := inference.Errorf(inference.CodeNoCapacity, "no server of model %q is available", p.Request.Model)
	e.Reason = best.String()
	e.RetryAfter = 5 * time.Second
	return e
}
