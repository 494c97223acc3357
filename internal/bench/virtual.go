package bench

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// Arrival is one logical request of a virtual run.
type Arrival struct {
	At             time.Duration
	Class          inference.Class
	Tenant         string
	Prompt, Output int
	Leaves         time.Duration // the client hangs up this long after its first token; 0 is never
	Reads          float64       // tokens a second that the client reads; 0 is as they come
	Manner         Manner        // what it does with a ticket
}

// Fault changes the engines of a virtual run at an instant.
type Fault struct {
	At time.Duration
	Do func(*World)
}

// World is a run in virtual time: engines that follow the batching model, and
// in front of them gateways that are the admission code itself, or a model of a
// proxy, or nothing; without network, processes and noise. Everything that happens,
// happens on the caller's goroutine in the order of its virtual instant, so a run
// is a pure function of its seed. (Refusals with a ticket are not quite: governors
// draw the jitter of the promise themselves.)
type World struct {
	// Servers are the engines.
	Servers []Server
	// Gateways is the number of gateways in front of them.
	Gateways int
	// Shares are the gateways' shares of the traffic; nil is equal ones.
	Shares []float64
	// Admission is the gateways' configuration.
	Admission admission.Config
	// Proxy stands there instead where there are no gateways; nil is nothing: requests
	// go blindly in turn to the engines.
	Proxy *Proxy
	// Arrivals are the requests, in order of time.
	Arrivals iter.Seq2[Arrival, error]
	// Faults are what happens to the engines.
	Faults []Fault
	// Clients are how clients behave.
	Clients Clients
	// Tell is told each attempt when it has ended; nil gathers them for Run.
	Tell func(Try)
	// Limit ends the run, should it not end by itself; 0 is a quarter of an hour
	// behind the last arrival.
	Limit time.Duration
	// Seed fixes every draw.
	Seed uint64

	now      time.Duration
	last     time.Duration // of an arrival, or of what followed from one
	events   eventHeap
	serial   uint64
	random   *rand.Rand
	engines  []*virtualEngine
	gateways []*virtualGateway
	front    front
	open     map[*call]struct{} // attempts under way, and those to come
	arriving bool
	requests int
	tries    []Try
	manners  [mannerKinds]mannerCount
	problem  error
}

// front is what stands before the engines.
type front interface {
	// enter takes an attempt in: it starts it, lets it wait or refuses it.
	enter(c *call)
	// left says that the client of an attempt that waits is gone.
	left(c *call)
	// ended says that an engine is done with an attempt.
	ended(c *call, v inference.Verdict)
}

// epoch is the instant that a virtual run begins at.
var epoch = time.Unix(1_000_000_000, 0)

// clock is the present instant.
func (w *World) clock() time.Time { return epoch.Add(w.now) }

// event is something that happens at an instant; events of one instant happen in
// the order in which they were made.
type event struct {
	at     time.Duration
	serial uint64
	do     func()
}

// eventHeap orders events.
type eventHeap []event

func (h eventHeap) less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].serial < h[j].serial
}

// push adds an event.
func (h *eventHeap) push(e event) {
	*h = append(*h, e)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s.less(i, up) {
			return
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

// pop takes the first event out.
func (h *eventHeap) pop() event {
	s := *h
	first, last := s[0], len(s)-1
	s[0], s[last] = s[last], event{}
	s = s[:last]
	*h = s
	for i := 0; ; {
		least := i
		for _, child := range [...]int{2*i + 1, 2*i + 2} {
			if child < last && s.less(child, least) {
				least = child
			}
		}
		if least == i {
			return first
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
}

// at makes something happen.
func (w *World) at(t time.Duration, do func()) {
	w.serial++
	w.events.push(event{max(t, w.now), w.serial, do})
}

const (
	// settles is how long a run goes on behind its last attempt, so that the last
	// ticket has expired.
	settles = 75 * time.Second
	// patienceOfRun bounds it should an attempt never end.
	patienceOfRun = 15 * time.Minute
	// eventsBetweenLooks are the events between two looks at the context.
	eventsBetweenLooks = 1 << 14
)

// Run plays the run until all that it began has ended, and returns every attempt
// in the order in which they ended.
func (w *World) Run(ctx context.Context) ([]Try, error) {
	w.random = rand.New(rand.NewPCG(w.Seed, 0x5b111a47))
	w.open = make(map[*call]struct{})
	if err := w.build(); err != nil {
		return nil, err
	}
	next, stop := iter.Pull2(w.Arrivals)
	defer stop()
	w.arriving = true
	w.expect(next)
	for _, f := range w.Faults {
		w.at(f.At, func() { f.Do(w) })
	}
	for n := 0; len(w.events) > 0 && !w.over(); n++ {
		if n%eventsBetweenLooks == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		e := w.events.pop()
		w.now = e.at
		e.do()
	}
	for _, c := range w.inOrder(w.open) {
		w.tell(c)
	}
	return w.tries, w.problem
}

// over says whether nothing is left to happen.
func (w *World) over() bool {
	if w.problem != nil {
		return true
	}
	if w.arriving {
		return false
	}
	limit := w.Limit
	if limit == 0 {
		limit = w.last + patienceOfRun
	}
	return len(w.open) == 0 && w.now > w.last+settles || w.now > limit
}

// expect waits for the next arrival.
func (w *World) expect(next func() (Arrival, error, bool)) {
	a, err, ok := next()
	if err != nil || !ok {
		w.problem, w.arriving = err, false
		return
	}
	w.at(a.At, func() {
		w.arrive(a)
		w.expect(next)
	})
}

// build makes engines and what stands before them.
func (w *World) build() error {
	for i, s := range w.Servers {
		e := &virtualEngine{w: w, index: i, law: s, pace: 1, running: make(map[*call]struct{})}
		e.reset()
		w.engines = append(w.engines, e)
	}
	switch {
	case w.Gateways > 0:
		return w.buildGateways()
	case w.Proxy != nil:
		w.front = newProxy(w)
	default:
		w.front = &blind{w: w}
	}
	return nil
}

// buildGateways makes the gateways, each with a view of the engines of its own.
func (w *World) buildGateways() error {
	layout := fleet.Layout{Regions: []fleet.RegionLayout{{Name: "r", Weight: 1, Pools: []fleet.PoolLayout{{
		Name: "p", Weight: 1, Models: map[string]string{model: model}, Surfaces: []inference.Surface{inference.Chat},
	}}}}}
	pool := &layout.Regions[0].Pools[0]
	for i := range w.Servers {
		pool.Static = append(pool.Static, fleet.Target{URL: fmt.Sprintf("http://engine:%d", i+1), Weight: 1})
	}
	log := slog.New(slog.DiscardHandler)
	for range w.Gateways {
		g := &virtualGateway{w: w, fleet: fleet.New(log), busy: make(map[*fleet.Live]*busyRun)}
		if err := g.fleet.Apply(layout); err != nil {
			return err
		}
		g.governor = admission.New(w.Admission, g.fleet, nil, log)
		var err error
		if g.picker, err = route.NewPolicy(route.DefaultTier().PolicyConfig); err != nil {
			return err
		}
		w.gateways = append(w.gateways, g)
		w.tick(g)
	}
	w.front = &gatewayFront{w: w}
	return nil
}

// tickEvery is how often a governor is called (admission.Governor.Tick).
const tickEvery = 100 * time.Millisecond

// tick calls the governor again and again.
func (w *World) tick(g *virtualGateway) {
	g.governor.Tick(w.clock())
	w.at(w.now+tickEvery, func() { w.tick(g) })
}

// inOrder lists attempts in the order in which they were made: a map's would not
// repeat.
func (w *World) inOrder(set map[*call]struct{}) []*call {
	calls := make([]*call, 0, len(set))
	for c := range set {
		calls = append(calls, c)
	}
	slices.SortFunc(calls, func(a, b *call) int { return int(a.serial) - int(b.serial) })
	return calls
}

// virtualEngine is one engine.
type virtualEngine struct {
	w        *World
	index    int
	law      Server
	batch    *engine.Batch
	stepping bool
	down     bool
	life     int // kills so far
	pace     float64
	held     time.Duration // it stands still until then
	running  map[*call]struct{}
}

// reset begins a new life of the engine.
func (e *virtualEngine) reset() {
	e.batch = engine.NewBatch(e.law.Batching)
	e.setPace(e.pace)
	e.stepping = false
	e.life++
}

// setPace makes the engine this much slower than its law.
func (e *virtualEngine) setPace(factor float64) {
	e.pace = factor
	e.batch.SetPace(factor / e.law.speed())
}

// submit gives an attempt to the engine, and says whether it took it.
func (e *virtualEngine) submit(c *call) bool {
	if err := e.batch.Submit(c.sequence, e.w.now); err != nil {
		return false
	}
	e.running[c] = struct{}{}
	e.kick()
	return true
}

// kick begins a step unless one is under way.
func (e *virtualEngine) kick() {
	if e.stepping || e.down {
		return
	}
	if e.w.now < e.held {
		e.later(e.kick)
		return
	}
	step := e.batch.Step(e.w.now)
	if step.Duration == 0 {
		return
	}
	e.stepping = true
	life := e.life
	e.w.at(e.w.now+step.Duration, func() {
		if e.life == life {
			e.finish(step)
		}
	})
}

// later goes on when the engine does.
func (e *virtualEngine) later(do func()) {
	e.stepping = true
	life := e.life
	e.w.at(e.held, func() {
		if e.life == life {
			e.stepping = false
			do()
		}
	})
}

// finish hands out what a step has made.
func (e *virtualEngine) finish(step engine.Step) {
	if e.w.now < e.held {
		e.later(func() { e.finish(step) })
		return
	}
	e.stepping = true // what comes in meanwhile is part of the next step
	for _, s := range step.Emitted {
		if c := s.Owner.(*call); !c.over {
			e.w.token(c)
		}
	}
	e.stepping = false
	e.kick()
}

// Kill ends an engine with all that it runs. The gateways see it at once, as
// their health checks would a moment later.
func (w *World) Kill(i int) {
	e := w.engines[i]
	e.down = true
	e.life++
	w.mark(i, true)
	victims := w.inOrder(e.running)
	clear(e.running)
	for _, c := range victims {
		w.broken(c)
	}
}

// Restore brings an engine back that is factor times slower than its law.
func (w *World) Restore(i int, factor float64) {
	e := w.engines[i]
	e.down, e.pace = false, factor
	e.reset()
	w.mark(i, false)
}

// Slow changes an engine's pace.
func (w *World) Slow(i int, factor float64) { w.engines[i].setPace(factor) }

// Hold lets an engine stand still for some time, without a word.
func (w *World) Hold(i int, d time.Duration) { w.engines[i].held = w.now + d }

// mark tells the gateways whether an engine is up.
func (w *World) mark(i int, down bool) {
	for _, g := range w.gateways {
		g.fleet.Snapshot().Regions[0].Pools[0].Instances[i].Live.SetDown(down, w.clock().UnixNano())
	}
}
