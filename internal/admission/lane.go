package admission

import (
	"container/heap"
	"hash/maphash"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// classes is the number of classes, Idle included.
const classes = int(inference.Idle) + 1

// shared are the classes that have a share, the most urgent first.
var shared = [...]inference.Class{inference.VIP, inference.Normal, inference.Batch}

// lane is one admission queue: a model and its ordered set of pools. But for the
// atomics the governor's mutex guards it.
type lane struct {
	key     uint64
	model   string
	pools   []*pool
	own     int       // pools[:own] serve the model itself, the others one that stands in for it
	again   []*Waiter // attempts after the first, in the order in which they came
	class   [classes]classQueue
	waiting int
	// capacity is how many requests a second it sent when it last had to wait, of all
	// classes; it is forgotten slowly.
	capacity float64
	dark     bool // no instance can be had in any of its pools, and none soon
	used     time.Time
	learned  learned
}

// add puts the pools of the candidates that serve the model itself, or of those that
// stand in for it, behind the lane's pools. The caller holds the governor's mutex.
func (l *lane) add(g *Governor, plan *fleet.Plan, standIn bool) {
	for i := range plan.Candidates {
		c := &plan.Candidates[i]
		if p := g.pool(c.Pool); (c.Fallback != "") == standIn && !slices.Contains(l.pools, p) {
			l.pools = append(l.pools, p)
			p.lanes = append(p.lanes, l)
		}
	}
}

// standIn says whether the pool only serves a model that stands in for the lane's.
func (l *lane) standIn(p *pool) bool {
	return l.own < len(l.pools) && slices.Contains(l.pools[l.own:], p)
}

// lost says whether the model itself cannot be had, nor soon.
func (l *lane) lost(now time.Time) bool {
	for _, p := range l.pools[:l.own] {
		if p.fleet.Status(now.UnixNano()) <= fleet.Cooling {
			return false
		}
	}
	return true
}

// level is the rank with which a tenant begins to wait in a class of the lane:
// that of who was served least among those that wait there or, when none does, of
// who was served last. What was served at other instances says nothing here.
func (l *lane) level(c inference.Class) float64 {
	if q := &l.class[c]; len(q.tenants) > 0 {
		return q.tenants[0].rank()
	}
	return l.pools[0].level[c]
}

// classQueue is a class of a lane.
type classQueue struct {
	back    []*Waiter // came back with a ticket: a place was promised to them
	tenants tenantHeap
	weights float64      // of tenants
	n       int          // waiters
	held    float64      // their prompts, tokens
	flow    rate         // dispatched, whether anything waited or not
	passed  atomic.Int64 // dispatched since the last tick
	backlog backlog
	pledges pledges
	buyers  buyers
}

// buyers are the tenants that share the ticket clock: those that were refused
// lately.
type buyers struct {
	epoch         int64
	before, after float64 // their weights in the epoch before and in this one
}

// buyerEpoch is the time in which a tenant counts once, and then half as long
// again on average.
const buyerEpoch = int64(5 * time.Second)

// weight adds a tenant and returns the weight of all.
func (b *buyers) weight(now time.Time, a *account, c inference.Class) float64 {
	epoch := now.UnixNano() / buyerEpoch
	if b.epoch != epoch {
		b.before, b.after = b.after, 0
		if b.epoch != epoch-1 {
			b.before = 0
		}
		b.epoch = epoch
	}
	if a.bought[c] != epoch {
		a.bought[c] = epoch
		b.after += a.weight
	}
	return max(b.before, b.after)
}

// learned is what a lane learns of its model's requests. Losing a race loses one
// observation.
type learned struct {
	bytesPerToken atomic.Uint64 // float64 bits
	output        atomic.Uint64 // float64 bits: mean length of an answer, tokens
	lengths       lengths
}

// Values that stand in until something was learned.
const (
	firstBytesPerToken = 4.0
	firstOutput        = 256.0
)

// value reads a mean kept as bits.
func value(v *atomic.Uint64, initial float64) float64 {
	if bits := v.Load(); bits != 0 {
		return math.Float64frombits(bits)
	}
	return initial
}

// towards moves a mean kept as bits by a share towards x.
func towards(v *atomic.Uint64, x, initial, share float64) {
	old := value(v, initial)
	v.Store(math.Float64bits(old + (x-old)*share))
}

// tokens estimates the length of a request's prompt in tokens, from its bytes and
// what the model's usage said about those before it.
func (l *learned) tokens(req *inference.Request) int64 {
	images := inference.ImageTokens * int64(req.Images)
	text := float64(req.PromptTokens()-images) * 4
	return max(1, images+int64(text/value(&l.bytesPerToken, firstBytesPerToken)))
}

// observe learns from an answer's usage.
func (l *learned) observe(estimate int64, u inference.Usage, images int) {
	if u.CompletionTokens > 0 {
		towards(&l.output, float64(u.CompletionTokens), firstOutput, 1.0/64)
		l.lengths.observe(u.CompletionTokens)
	}
	if u.PromptTokens > 0 && images == 0 {
		bytes := float64(estimate) * value(&l.bytesPerToken, firstBytesPerToken)
		if per := bytes / float64(u.PromptTokens); per >= 0.5 && per <= 64 {
			towards(&l.bytesPerToken, per, firstBytesPerToken, 1.0/64)
		}
	}
}

// account is what a tenant was served, in all classes: a virtual token counter
// (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). What a
// tenant gets as vip it has got as any.
type account struct {
	weight  float64
	counter float64 // weighted tokens by weight
	output  float64 // mean length of the tenant's answers in tokens; 0 is not known
	waiting int
	pace    [classes]pace
	queues  []*tenantQueue     // one in each class of each lane where the tenant waits
	sold    [classes]time.Time // until when its share of the ticket clock is sold
	bought  [classes]int64     // epoch in which it was last refused
}

// observe learns from the length of an answer, in tokens.
func (a *account) observe(tokens float64) {
	if a.output == 0 {
		a.output = tokens
	}
	a.output += (tokens - a.output) / 16
}

// expected is how long the tenant's next answer is expected to be, in tokens;
// whoever is not known is like others.
func (a *account) expected(others float64) float64 {
	if a.output > 0 {
		return a.output
	}
	return others
}

// queue is where the tenant waits in a class of a lane; nil when it does not. The
// account may be nil.
func (a *account) queue(q *classQueue) *tenantQueue {
	if a == nil {
		return nil
	}
	for _, t := range a.queues {
		if t.of == q {
			return t
		}
	}
	return nil
}

// charge adds service and restores the order of the queues.
func (a *account) charge(tokens float64) {
	a.counter += tokens / a.weight
	for _, q := range a.queues {
		heap.Fix(&q.of.tenants, q.at)
	}
}

// tenantQueue is a tenant's requests in one class of one lane, the earliest
// deadline first.
type tenantQueue struct {
	of      *classQueue
	account *account
	waiters waiterHeap
	lift    float64 // added to the counter here, so that an absence saves nothing up
	at      int     // in of.tenants
}

// rank orders tenants: what they were served and, since they wait here, could not
// have saved up before.
func (t *tenantQueue) rank() float64 { return t.account.counter + t.lift }

// tenantHeap orders the tenants of a class by their ranks.
type tenantHeap []*tenantQueue

func (h tenantHeap) Len() int           { return len(h) }
func (h tenantHeap) Less(i, j int) bool { return h[i].rank() < h[j].rank() }
func (h tenantHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *tenantHeap) Push(x any) {
	q := x.(*tenantQueue)
	q.at = len(*h)
	*h = append(*h, q)
}

// Pop implements heap.Interface.
func (h *tenantHeap) Pop() any {
	last := len(*h) - 1
	q := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return q
}

// waiterHeap orders a tenant's requests by deadline.
type waiterHeap []*Waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].before < h[j].before }
func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *waiterHeap) Push(x any) {
	w := x.(*Waiter)
	w.at = len(*h)
	*h = append(*h, w)
}

// Pop implements heap.Interface.
func (h *waiterHeap) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return w
}

// head is the request that a class of a lane would send next, or nil.
func (q *classQueue) head() *Waiter {
	if len(q.back) > 0 {
		return q.back[0]
	}
	if len(q.tenants) == 0 {
		return nil
	}
	return q.tenants[0].waiters[0]
}

// rate is an exponential moving average of events a second.
type rate struct{ perSecond float64 }

// rateTau is the time constant of a rate: 3 s (overload study, section 8).
const rateTau = 3.0

// observe adds n events in dt seconds.
func (r *rate) observe(n, dt float64) {
	r.perSecond += (1 - math.Exp(-dt/rateTau)) * (n/dt - r.perSecond)
}

// backlog measures the rate at which a class is sent while it waits: what was sent
// by the time in which something waited, both forgotten alike. Short waits count as
// well as long ones, so a class that hardly ever waits is known by what it gets
// when it does.
type backlog struct {
	sent  float64
	time  float64   // seconds
	since time.Time // of the present wait, or of its last accounting
}

// account adds the present wait up to now.
func (b *backlog) account(now time.Time) {
	b.time += now.Sub(b.since).Seconds()
	b.since = now
}

// forget lets dt seconds pass.
func (b *backlog) forget(dt float64) {
	keep := math.Exp(-dt / rateTau)
	b.sent *= keep
	b.time *= keep
}

// enoughBacklog is the time of waiting behind a rate, in seconds.
const enoughBacklog = 0.02

// perSecond is the rate, 0 when too little was seen to tell.
func (b *backlog) perSecond() float64 {
	if b.time < enoughBacklog {
		return 0
	}
	return b.sent / b.time
}

// pace measures the rate at which a tenant's requests of a class are sent while any
// of them waits, as backlog does for a class; it needs no tick.
type pace struct {
	sent, time float64 // what was sent, and the seconds in which something waited
	waiting    int
	at         time.Time // of the last change
}

// pass lets time pass, which counts only while something waits.
func (p *pace) pass(now time.Time) {
	keep := math.Exp(-now.Sub(p.at).Seconds() / rateTau)
	p.sent *= keep
	p.time *= keep
	if p.waiting > 0 {
		p.time += rateTau * (1 - keep)
	}
	p.at = now
}

// change notes that a request came, or left when n is negative.
func (p *pace) change(now time.Time, n int) {
	p.pass(now)
	p.waiting += n
}

// perSecond is the rate, 0 when the tenant has not waited for long enough to tell.
func (p *pace) perSecond(now time.Time) float64 {
	if p.pass(now); p.time < steadyBacklog || p.sent < enoughSent {
		return 0
	}
	return p.sent / p.time
}

// enoughSent is the number of requests behind a tenant's rate.
const enoughSent = 4

// pool is what the governor keeps of a pool: the virtual time of start-time fair
// queueing among its classes (Goyal et al. 1996).
type pool struct {
	hash    uint64      // of the name
	fleet   *fleet.Pool // of the last snapshot that has it
	lanes   []*lane
	start   [classes]float64 // start tag of the class's next request
	virtual float64          // start tag of the request that was sent last
	level   [classes]float64 // rank of the tenant that was served last
	first   atomic.Uint64    // float64 bits: mean time from the attempt's start to the first token, seconds
	refused float64
	unmet   float64
}

// charge moves the class's start tag by what it was given.
func (p *pool) charge(c inference.Class, tokens, weight float64) {
	start := max(p.start[c], p.virtual)
	p.virtual = start
	p.start[c] = start + tokens/weight
}

// laneKey identifies a lane of the governor with the seed.
func laneKey(seed maphash.Seed, plan *fleet.Plan) uint64 {
	key := maphash.String(seed, plan.Request.Model)
	for i := range plan.Candidates {
		c := &plan.Candidates[i]
		key = key*0x9e3779b97f4a7c15 ^ c.Pool.Hash
		if c.Fallback != "" {
			key++
		}
	}
	return key
}

// lengths is a histogram of answers' lengths in buckets that grow by 2^(1/4). Old
// observations lose half their weight each time 1,024 have come.
type lengths struct {
	buckets [80]atomic.Int64
	total   atomic.Int64
}

// observe adds one length.
func (h *lengths) observe(tokens int64) {
	i := 0
	if tokens > 1 {
		i = min(int(math.Ceil(4*math.Log2(float64(tokens)))), len(h.buckets)-1)
	}
	h.buckets[i].Add(1)
	if n := h.total.Add(1); n >= 1024 && h.total.CompareAndSwap(n, n/2) {
		for i := range h.buckets {
			h.buckets[i].Add(-(h.buckets[i].Load() / 2))
		}
	}
}

// enoughLengths is the number of answers below which a quantile says nothing.
const enoughLengths = 50

// quantile returns the upper bound of the bucket in which the share lies, 0 when
// too few were observed to tell.
func (h *lengths) quantile(share float64) int64 {
	var counts [len(h.buckets)]int64
	var total int64
	for i := range h.buckets {
		counts[i] = max(h.buckets[i].Load(), 0)
		total += counts[i]
	}
	if total < enoughLengths {
		return 0
	}
	rank := int64(math.Ceil(share * float64(total)))
	for i, n := range counts {
		if rank -= n; rank <= 0 {
			return int64(math.Ceil(math.Exp2(float64(i) / 4)))
		}
	}
	return 0
}
