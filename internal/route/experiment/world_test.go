package experiment_test

import (
	"log/slog"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
)

// began is the instant at which every world begins. Records are stamped later, so that
// they are of experiments that began in New.
func began() time.Time { return time.Now().Add(time.Hour) }

// quiet is a logger that says nothing.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// canary is an experiment with two arms.
func canary(control, arm int) experiment.Config {
	c := experiment.Default()
	c.Name = "canary"
	c.Arms = []experiment.Arm{
		{Name: "control", Weight: control},
		{Name: "canary", Weight: arm, Then: route.Action{Pools: map[string]int{"eu/canary": 1}}},
	}
	return c
}

// created returns a set, or fails.
func created(tb testing.TB, cfg ...experiment.Config) *experiment.Set {
	tb.Helper()
	s, err := experiment.New(cfg, experiment.Parts{Log: quiet()})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// effect is what an arm's servers are like.
type effect struct {
	errors float64 // share of requests
	slower float64 // factor of TTFT and ITL
}

// world sends requests in virtual time to the arms of the first experiment.
type world struct {
	set     *experiment.Set
	rng     *rand.Rand
	now     time.Time
	start   time.Time
	n       int
	effects map[string]effect // by arm; one that is missing is at its best
	base    effect
	tenants func(w *world) (string, float64) // name, and logarithm of how slow it is
	rec     inference.Record
	req     inference.Request
}

// newWorld returns one with 1% errors.
func newWorld(set *experiment.Set, seed uint64) *world {
	now := began()
	return &world{set: set, rng: rand.New(rand.NewPCG(seed, 7)), now: now, start: now, effects: make(map[string]effect), base: effect{0.01, 1}}
}

// step lets time pass and one request be answered, and returns its arm.
func (w *world) step(rate float64) inference.Arm {
	w.n++
	w.now = w.now.Add(time.Duration(w.rng.ExpFloat64() / rate * float64(time.Second)))
	tenant, slow := "acme", 0.0
	if w.tenants != nil {
		tenant, slow = w.tenants(w)
	}
	w.req = inference.Request{ID: strconv.FormatUint(w.rng.Uint64(), 36), Tenant: tenant, Received: w.now}
	arm := w.set.Steer(w.now, &w.req).Arm
	if arm.Arm == "" {
		return arm
	}
	e := w.base
	if own, ok := w.effects[arm.Arm]; ok {
		e = own
	}
	w.answer(arm, e, slow)
	return arm
}

// answer observes one request. Times are lognormal, as those of servers with queues and
// prompts of all lengths are.
func (w *world) answer(arm inference.Arm, e effect, slow float64) {
	w.rec = inference.Record{Request: &w.req, Arm: arm, Attempts: make([]inference.Attempt, 1)}
	r := &w.rec
	lognormal := func(median time.Duration, sigma float64) time.Duration {
		return time.Duration(float64(median) * math.Exp(slow+sigma*w.rng.NormFloat64()))
	}
	if w.rng.Float64() < e.errors {
		r.Code, r.Attempts[0].Verdict = inference.CodeUpstreamError, inference.VerdictBroken
		r.Duration = time.Millisecond
		w.set.Observe(r)
		return
	}
	r.Complete = true
	r.TTFT = time.Duration(e.slower * float64(lognormal(400*time.Millisecond, 0.7)))
	n := int64(math.Exp(5 + 0.8*w.rng.NormFloat64()))
	r.Tokens = n + 1
	r.Gaps.Counts[4] = uint32(n)
	r.Gaps.Sum = time.Duration(e.slower * float64(n) * float64(lognormal(25*time.Millisecond, 0.3)))
	r.Usage = inference.Usage{PromptTokens: 100, CompletionTokens: n + 1}
	r.Duration = 0 // a record is made at once: the order of records is that of requests
	w.set.Observe(r)
}

// state is that of the first experiment.
func (w *world) state() string { return w.set.Status(w.now)[0].State.State }

// newStream is a standard normal number that belongs to two numbers.
func newStream(a int64, b int) float64 {
	return rand.New(rand.NewPCG(uint64(a), uint64(b))).NormFloat64()
}
