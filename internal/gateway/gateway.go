// Package gateway is the life of a request: Serve reads from top to bottom what
// happens between a parsed request and the last byte of its answer.
//
// What runs from the plan to the upstream's body is a flight, with its own
// context and deadline. A Reader is where its bytes go: the client's connection
// now, jobs and followers of the same flight later. A flight ends when its last
// reader leaves, so a client that hangs up while the flight connects, waits for
// its first token or streams cancels the upstream at once.
//
// Until the first parsed delta nothing reaches the reader but comments, and
// another instance may still answer: retry, fallback and hedging live on that
// side of the commit point only. Behind it an upstream's failure ends the answer
// with an error frame and an aborted connection, never a clean end.
//
// Every attempt asks admission for its slot, and waits there when there is none;
// a client that waits is kept by comments once the grace is over, and is told the
// true status before.
//
// A request whose answer may be kept is answered from the cache, or by a flight that
// it shares with its twins: every reader follows the flight's tape at its own pace,
// and the flight ends with its last reader, whoever began it. Such a flight runs on
// a goroutine of its own. Every other flight runs on the goroutine that calls Serve;
// hedging alone starts others, two at a time, and waits for them before it goes on.
// Answers that are used although they are no longer fresh are renewed on a bounded
// number of goroutines, which Run ends. Locks are held for a few instructions: the
// retry budget's, the list's of shared flights, and each tape's.
package gateway

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Router decides where a request may run.
type Router interface {
	// Plan orders the candidate pools. Its error is an *inference.Error.
	Plan(ctx context.Context, req *inference.Request) (*fleet.Plan, error)
	// Answered tells what an instance reported for a request that it answered, so
	// that a guess about its prefix cache can be corrected.
	Answered(req *inference.Request, lease *fleet.Lease, usage inference.Usage)
}

// Answer is one attempt's answer in progress, for one goroutine at a time. Waits
// end at the given instant with inference.ErrNotYet and may be resumed; other
// errors are io.EOF at the true end of a whole answer, or *inference.Failure.
type Answer interface {
	// Head waits until the answer begins.
	Head(until time.Time) (*inference.Head, error)
	// Event waits for the next event of a stream. Its bytes are valid until the
	// next call; an event without bytes is not for the reader.
	Event(until time.Time) (inference.Event, error)
	// Body appends the body of an answer that is not a stream to buf, until it
	// ends (io.EOF) or buf holds max bytes (nil).
	Body(until time.Time, buf []byte, max int) ([]byte, error)
	// Close ends the attempt, and the upstream's work where it is not done.
	Close()
}

// Admission decides when an attempt may run.
type Admission interface {
	// Enter asks for a slot for the plan's request: a lease, or a place to wait for
	// one, or an *inference.Error that says why there is none and when to come back.
	Enter(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, Place, error)
}

// Place is where an attempt waits for its slot.
type Place interface {
	// Wait waits until the given instant: a lease, an *inference.Error,
	// inference.ErrNotYet when the wait may be resumed, or the context's error, which
	// gives the place up.
	Wait(ctx context.Context, until time.Time) (*fleet.Lease, error)
	// Leave gives the place up.
	Leave(now time.Time)
}

// Upstream opens an attempt at the lease's instance. Its error is an
// *inference.Failure. The context ends the attempt.
type Upstream func(ctx context.Context, req *inference.Request, lease *fleet.Lease) (Answer, error)

// Health judges instances by what became of attempts.
type Health interface {
	// Observe is told at the end of every attempt, before its lease is given back.
	// failure is nil for a whole answer. It does not block.
	Observe(lease *fleet.Lease, failure *inference.Failure)
}

// Recorder keeps what is kept of a request. It does not block and keeps neither the
// record nor the request.
type Recorder interface {
	// Begin is told of an answer before its reader has any of it: whoever has read
	// it to its end may speak of it while Record is not called yet. Of the record
	// the request, its arm and the status are known. What readers share begins with
	// each of them.
	Begin(rec *inference.Record)
	// Record is told of a finished request, once.
	Record(rec *inference.Record)
}

// Cache knows answers that were given before.
type Cache interface {
	// Lookup returns what is known about a request's answer, or nil when the answer is
	// neither looked up nor kept. It does not wait.
	Lookup(now time.Time, req *inference.Request, plan *fleet.Plan) Known
}

// Known is what the cache knows about one request's answer. It is for one goroutine
// at a time.
type Known interface {
	// Key is the same for requests that have the same answer.
	Key() [32]byte
	// Stored is the answer that was found, fresh or not, or nil. It does not wait.
	Stored(now time.Time) *inference.Stored
	// Fetch asks further, for a few milliseconds at most, and returns what is known then.
	Fetch(ctx context.Context) *inference.Stored
	// Keep is told of a whole answer and the model that gave it. It does not wait. req
	// is a request that asks for the same: the one of Lookup may be gone.
	Keep(req *inference.Request, model string, t *inference.Transcript)
}

// Limits keeps clients within what is theirs.
type Limits interface {
	// Reserve checks every limit of a request and charges all of them, or none. The
	// error is an *inference.Error. It waits a few milliseconds at most.
	Reserve(ctx context.Context, now time.Time, req *inference.Request) (Receipt, error)
}

// Receipt is what one request holds of its limits, for one goroutine at a time.
type Receipt interface {
	// Fields tell the client what is left.
	Fields(now time.Time) []inference.HeaderField
	// Spend is told how many output tokens were passed on so far. It does not block.
	Spend(now time.Time, tokens int64)
	// Settle charges what was used and gives the rest back, once. It does not block.
	Settle(now time.Time, rec *inference.Record)
}

// Reader is where an answer goes. It is called from one goroutine at a time, and
// its context is the one given to Serve.
type Reader interface {
	// Head begins the answer.
	Head(head *inference.Head) error
	// Write adds whole events, or a piece of a body. It may hold them until flush.
	Write(p []byte, flush bool) error
	// Fail ends the answer with an error: as a status while nothing was sent, and
	// as an error frame and an aborted connection afterwards.
	Fail(err *inference.Error)
}

// Gateway serves requests. It is safe for concurrent use.
type Gateway struct {
	parts    Parts
	settings atomic.Pointer[settings]
	sharing  sharing
	renewal  renewal
}

// Parts are what a gateway is made of.
type Parts struct {
	Router    Router
	Admission Admission
	Upstream  Upstream
	Health    Health
	Recorder  Recorder
	Cache     Cache  // nil: there is none
	Limits    Limits // nil: there are none
}

// settings are what a reload replaces.
type settings struct {
	Config
	budget   *budget
	comments [8][]byte // by surface; nil is none
}

// New returns a gateway over its parts.
func New(cfg Config, parts Parts) *Gateway {
	g := &Gateway{parts: parts}
	g.renewal.init()
	g.Apply(cfg)
	return g
}

// Apply replaces the configuration for requests that come from now on. The retry
// budget is kept when its bounds are the same.
func (g *Gateway) Apply(cfg Config) {
	s := &settings{Config: cfg}
	if old := g.settings.Load(); old != nil && old.Retry == cfg.Retry {
		s.budget = old.budget
	} else {
		s.budget = newBudget(cfg.Retry)
	}
	for _, surface := range inference.Surfaces() {
		if f := cfg.KeepAlive.framing(surface); f != FramingOff {
			s.comments[surface] = f.comment()
		}
	}
	g.settings.Store(s)
}

// Timeout is the longest time for a whole request.
func (g *Gateway) Timeout() time.Duration { return g.settings.Load().Timeout }

// Serve answers one request and returns its record. By then the last byte is
// with the reader, the lease is back and the record was handed over.
func (g *Gateway) Serve(ctx context.Context, req *inference.Request, out Reader) *inference.Record {
	f := g.launch(ctx, req, out)
	defer f.land()

	plan, err := g.parts.Router.Plan(f.ctx, req)
	if err != nil {
		return f.refuse(err)
	}
	f.follows(plan)
	if err := f.reserve(); err != nil {
		return f.refuse(err)
	}
	if plan.Mirror != nil {
		g.mirror(plan.Mirror)
	}
	if g.parts.Cache != nil {
		if known := g.parts.Cache.Lookup(time.Now(), f.req, plan); known != nil {
			return f.share(known)
		}
	}
	if f.req.Cache.OnlyIfCached {
		return f.refuseUnkept()
	}
	winner, err := f.win()
	if err != nil {
		return f.refuse(err)
	}
	return f.relay(winner)
}

// hedges says whether requests that run in the pool are hedged.
func (s *settings) hedges(p *fleet.Pool) bool {
	return len(s.Hedge.Pools) > 0 && slices.Contains(s.Hedge.Pools, p.Name)
}
