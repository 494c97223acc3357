package bench

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
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
}

// Fault changes the engines of a virtual run at an instant.
type Fault struct {
	At time.Duration
	Do func(*World)
}

// World is a run in virtual time: engines that follow the batching model, and
// gateways that are the admission code itself, without network, processes and
// noise. Everything that happens, happens on the caller's goroutine in the order
// of its virtual instant, so a run is a pure function of its seed.
type World struct {
	// Servers are the engines.
	Servers []Server
	// Gateways is the number of gateways in front of them; 0 sends blindly in turn
	// to the engines.
	Gateways int
	// Shares are the gateways' shares of the traffic; nil is equal ones.
	Shares []float64
	// Admission is the gateways' configuration.
	Admission admission.Config
	// Arrivals are the requests, in order of time.
	Arrivals []Arrival
	// Faults are what happens to the engines.
	Faults []Fault
	// Retries is how often a client tries again, as the SDKs do.
	Retries int
	// Patience is how long a client of a class waits for its first token; one
	// without an entry waits for ever.
	Patience map[inference.Class]time.Duration
	// Until ends the run.
	Until time.Duration
	// Seed fixes every draw.
	Seed uint64

	now      time.Duration
	events   eventHeap
	serial   uint64
	random   *rand.Rand
	engines  []*virtualEngine
	gateways []*virtualGateway
	turn     int
	tries    []*call
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

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].serial < h[j].serial
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *eventHeap) Push(x any) { *h = append(*h, x.(event)) }

// Pop implements heap.Interface.
func (h *eventHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = event{}
	*h = (*h)[:last]
	return e
}

// at makes something happen.
func (w *World) at(t time.Duration, do func()) {
	w.serial++
	heap.Push(&w.events, event{max(t, w.now), w.serial, do})
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
	running  map[*call]struct{}
}

// virtualGateway is one gateway with its own view of the engines.
type virtualGateway struct {
	fleet    *fleet.Fleet
	governor *admission.Governor
	picker   fleet.Picker
}

// call is one attempt of a client.
type call struct {
	try      Try
	arrival  *Arrival
	gateway  *virtualGateway
	request  *inference.Request
	plan     *fleet.Plan
	tried    []*fleet.Instance
	waiter   *admission.Waiter
	lease    *fleet.Lease
	engine   *virtualEngine
	sequence *engine.Sequence
	attempt  int
	ended    bool
}

// Run plays the run and returns every attempt.
func (w *World) Run() ([]Try, error) {
	w.random = rand.New(rand.NewPCG(w.Seed, 0x5b111a47))
	if err := w.build(); err != nil {
		return nil, err
	}
	for i := range w.Arrivals {
		w.at(w.Arrivals[i].At, func() { w.arrive(i) })
	}
	for _, f := range w.Faults {
		w.at(f.At, func() { f.Do(w) })
	}
	for len(w.events) > 0 {
		e := heap.Pop(&w.events).(event)
		if e.at > w.Until {
			break
		}
		w.now = e.at
		e.do()
	}
	tries := make([]Try, len(w.tries))
	for i, c := range w.tries {
		tries[i] = c.try
	}
	return tries, nil
}

// build makes engines and gateways.
func (w *World) build() error {
	layout := fleet.Layout{Regions: []fleet.RegionLayout{{Name: "r", Weight: 1, Pools: []fleet.PoolLayout{{
		Name: "p", Weight: 1, Models: map[string]string{model: model}, Surfaces: []inference.Surface{inference.Chat},
	}}}}}
	pool := &layout.Regions[0].Pools[0]
	for i, s := range w.Servers {
		e := &virtualEngine{w: w, index: i, law: s, pace: 1, running: make(map[*call]struct{})}
		e.reset()
		w.engines = append(w.engines, e)
		pool.Static = append(pool.Static, fleet.Target{URL: fmt.Sprintf("http://engine:%d", i+1), Weight: 1})
	}
	log := slog.New(slog.DiscardHandler)
	for range w.Gateways {
		g := &virtualGateway{fleet: fleet.New(log)}
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
	return nil
}

// tick calls the governor every 100 ms.
func (w *World) tick(g *virtualGateway) {
	g.governor.Tick(w.clock())
	w.at(w.now+100*time.Millisecond, func() { w.tick(g) })
}

// arrive sends the first attempt of a request.
func (w *World) arrive(i int) {
	a := &w.Arrivals[i]
	c := &call{arrival: a, try: Try{Request: i, Class: a.Class, Tenant: a.Tenant, Prompt: a.Prompt, Output: a.Output, At: w.now}}
	if len(w.gateways) > 0 {
		c.gateway = w.gateways[w.door()]
	}
	w.send(c)
}

// door is the gateway that a request comes to.
func (w *World) door() int {
	if w.Shares == nil {
		return w.random.IntN(len(w.gateways))
	}
	x := w.random.Float64()
	for i, s := range w.Shares {
		if x -= s; x < 0 {
			return i
		}
	}
	return len(w.gateways) - 1
}

// send begins an attempt.
func (w *World) send(c *call) {
	c.try.Sent = w.now
	w.tries = append(w.tries, c)
	if p := w.Patience[c.try.Class]; p > 0 {
		w.at(w.now+p, func() {
			if c.try.First == 0 {
				w.leave(c)
			}
		})
	}
	if c.gateway == nil {
		e := w.engines[w.turn%len(w.engines)]
		w.turn++
		w.start(c, e)
		return
	}
	body := binary.BigEndian.AppendUint64(nil, uint64(c.try.Request))
	c.request = &inference.Request{
		Surface: inference.Chat, Received: w.clock(), Deadline: w.clock().Add(10 * time.Minute), Tenant: c.try.Tenant, Class: c.try.Class,
		Retry: c.attempt, Body: body,
		Fields: inference.Fields{Model: model, Stream: true, PromptBytes: 4 * int64(c.try.Prompt)},
	}
	w.enter(c)
}

// enter asks the gateway for a slot.
func (w *World) enter(c *call) {
	p := c.gateway.fleet.Snapshot().Regions[0].Pools[0]
	c.plan = fleet.NewPlan(c.request)
	c.plan.Candidates = append(c.plan.Candidates, fleet.Candidate{Pool: p, Model: model, Picker: c.gateway.picker})
	c.plan.Random = w.random.Uint64
	lease, waiter, err := c.gateway.governor.Enter(w.clock(), c.plan, c.tried, func(x *admission.Waiter) {
		lease, err := x.Outcome()
		c.waiter = nil
		w.admitted(c, lease, err)
	})
	if c.waiter = waiter; waiter == nil && c.lease == nil && !c.ended {
		w.admitted(c, lease, err)
	}
}

// admitted goes on when the gateway has decided.
func (w *World) admitted(c *call, lease *fleet.Lease, err error) {
	if err != nil {
		w.refused(c, err)
		return
	}
	if c.ended { // it left in the meantime
		lease.Release(w.clock())
		return
	}
	c.lease = lease
	c.try.Admitted = w.now
	// What follows runs behind the governor's lock.
	w.at(w.now, func() {
		if c.ended {
			return
		}
		lease.Sent(w.clock())
		for i, inst := range lease.Instance.Pool.Instances {
			if inst.Live == lease.Instance.Live {
				w.start(c, w.engines[i])
			}
		}
	})
}

// start submits the attempt to an engine.
func (w *World) start(c *call, e *virtualEngine) {
	c.engine = e
	c.sequence = &engine.Sequence{Prompt: max(1, c.try.Prompt), Output: max(1, c.try.Output), Owner: c}
	if e.down {
		w.broken(c)
		return
	}
	if err := e.batch.Submit(c.sequence, w.now); err != nil {
		w.end(c, inference.VerdictBusy)
		return
	}
	e.running[c] = struct{}{}
	e.kick()
}

// refused ends an attempt and sends the next one when the client comes back.
func (w *World) refused(c *call, err error) {
	c.ended = true
	c.try.Refused, c.try.End = true, w.now
	e, ok := err.(*inference.Error)
	if !ok {
		return
	}
	c.try.RetryAfter, c.try.Ticket = e.RetryAfter, e.Ticket != ""
	if c.attempt >= w.Retries || e.NoRetry {
		return
	}
	back := &call{arrival: c.arrival, gateway: c.gateway, attempt: c.attempt + 1, try: c.try}
	back.try = Try{
		Request: c.try.Request, Class: c.try.Class, Tenant: c.try.Tenant, Prompt: c.try.Prompt, Output: c.try.Output,
		At: w.now + e.RetryAfter, Returner: c.try.Ticket,
	}
	w.at(back.try.At, func() { w.send(back) })
}

// leave ends an attempt whose client is gone.
func (w *World) leave(c *call) {
	if c.ended {
		return
	}
	if c.waiter != nil {
		c.waiter.Leave(w.clock())
		c.waiter = nil
	}
	if c.engine != nil {
		c.engine.batch.Cancel(c.sequence)
	}
	w.end(c, inference.VerdictCanceled)
}

// broken ends an attempt whose engine is gone; before the first token the gateway
// tries another one.
func (w *World) broken(c *call) {
	lease := c.lease
	if lease == nil || c.try.First != 0 || len(c.tried) >= 2 {
		w.end(c, inference.VerdictBroken)
		return
	}
	c.tried = append(c.tried, lease.Instance)
	c.lease, c.engine = nil, nil
	lease.Verdict = inference.VerdictBroken
	lease.Release(w.clock())
	w.enter(c)
}

// end closes the books on an attempt.
func (w *World) end(c *call, v inference.Verdict) {
	c.ended = true
	c.try.End = w.now
	c.try.Whole = v == inference.VerdictOK
	if c.engine != nil {
		delete(c.engine.running, c)
	}
	if c.lease != nil {
		c.lease.Verdict = v
		if c.try.Whole {
			c.lease.Usage = inference.Usage{PromptTokens: int64(c.try.Prompt), CompletionTokens: int64(c.try.Tokens)}
		}
		c.lease.Release(w.clock())
	}
}

// token is one token of the attempt's answer.
func (c *call) token(w *World) {
	c.try.Tokens++
	if c.try.First != 0 {
		if c.lease != nil {
			c.lease.Token(w.clock())
		}
		return
	}
	c.try.First = w.now
	if c.lease != nil {
		c.lease.FirstToken(w.clock(), w.clock().Sub(c.lease.Start()), true)
	}
	if c.arrival.Leaves > 0 {
		w.at(w.now+c.arrival.Leaves, func() { w.leave(c) })
	}
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
	speed := e.law.Speed
	if speed == 0 {
		speed = 1
	}
	e.batch.SetPace(factor / speed)
}

// kick begins a step unless one is under way.
func (e *virtualEngine) kick() {
	if e.stepping || e.down {
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

// finish hands out what a step has made.
func (e *virtualEngine) finish(step engine.Step) {
	e.stepping = false
	for _, s := range step.Emitted {
		if c := s.Owner.(*call); !c.ended {
			c.token(e.w)
		}
	}
	for _, s := range step.Finished {
		if c := s.Owner.(*call); !c.ended {
			e.w.end(c, inference.VerdictOK)
		}
	}
	e.kick()
}

// Kill ends an engine with all that it runs. The gateways see it at once, as
// their health checks would a moment later.
func (w *World) Kill(i int) {
	e := w.engines[i]
	e.down = true
	e.life++
	w.mark(i, true)
	victims := make([]*call, 0, len(e.running))
	for _, c := range w.tries { // in order of time: a map's would not repeat
		if _, ok := e.running[c]; ok {
			victims = append(victims, c)
		}
	}
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
	for _, g := range w.gateways {
		g.governor.Tick(w.clock())
	}
}

// Slow changes an engine's pace.
func (w *World) Slow(i int, factor float64) { w.engines[i].setPace(factor) }

// mark tells the gateways whether an engine is up.
func (w *World) mark(i int, down bool) {
	for _, g := range w.gateways {
		g.fleet.Snapshot().Regions[0].Pools[0].Instances[i].Live.SetDown(down, w.clock().UnixNano())
	}
}
