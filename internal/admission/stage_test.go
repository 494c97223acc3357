package admission_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// epoch is when tests in virtual time begin.
var epoch = time.Unix(1_800_000_000, 0)

// pool is a pool "r/<name>" of n instances i0, i1, ... that serve the models.
func pool(name string, n int, models ...string) fleet.PoolLayout {
	p := fleet.PoolLayout{Name: name, Weight: 1, Models: map[string]string{}, Surfaces: inference.Surfaces()}
	for _, m := range models {
		p.Models[m] = m
	}
	for i := range n {
		p.Static = append(p.Static, fleet.Target{URL: fmt.Sprintf("http://%s-%d:1", name, i), Weight: 1})
	}
	return p
}

// layout is a fleet of one region "r".
func layout(pools ...fleet.PoolLayout) fleet.Layout {
	return fleet.Layout{Regions: []fleet.RegionLayout{{Name: "r", Weight: 1, Pools: pools}}}
}

// static is the default configuration with a fixed limit for every instance.
func static(limit int64) admission.Config {
	cfg := admission.Default()
	cfg.Limit, cfg.StaticLimit = admission.LimitStatic, limit
	return cfg
}

// stage is a governor over a fleet in virtual time. Every seat that was asked for
// is remembered, so that the end can check that each has had exactly one outcome.
type stage struct {
	t         testing.TB
	g         *admission.Governor
	f         *fleet.Fleet
	emergency *admission.Emergency
	now       time.Time
	requests  int
	patient   bool    // requests have no deadline that a test reaches
	granted   []*seat // in the order of their grants, those without a wait included
}

// seat is a request that has asked the governor for a slot.
type seat struct {
	s        *stage
	req      *inference.Request
	plan     *fleet.Plan
	tried    []*fleet.Instance
	waiter   *admission.Waiter
	lease    *fleet.Lease
	err      error
	outcomes int
	first    bool // its first token has come
}

// newStage builds a fleet and its governor.
func newStage(t testing.TB, cfg admission.Config, l fleet.Layout) *stage {
	t.Helper()
	return newStageWith(t, cfg, l, nil)
}

// newStageWith is newStage with an emergency switch.
func newStageWith(t testing.TB, cfg admission.Config, l fleet.Layout, e *admission.Emergency) *stage {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, f: fleet.New(testkit.Discard()), now: epoch, emergency: e}
	s.patient = cfg.Classes.VIP.TTFT > time.Hour
	s.layout(l)
	s.g = admission.New(cfg, s.f, e, testkit.Discard())
	s.g.Tick(s.now)
	return s
}

// layout replaces the fleet's.
func (s *stage) layout(l fleet.Layout) {
	s.t.Helper()
	if err := s.f.Apply(l); err != nil {
		s.t.Fatal(err)
	}
}

// pool finds a pool of the current snapshot by its own name.
func (s *stage) pool(name string) *fleet.Pool {
	s.t.Helper()
	for _, r := range s.f.Snapshot().Regions {
		for _, p := range r.Pools {
			if p.Label == name {
				return p
			}
		}
	}
	s.t.Fatalf("no pool %q", name)
	return nil
}

// instance finds an instance of the current snapshot.
func (s *stage) instance(pool string, i int) *fleet.Instance { return s.pool(pool).Instances[i] }

// ask describes a request.
type ask struct {
	tenant   string
	class    inference.Class
	model    string // "" is m
	pools    []string
	fallback string // a pool whose model "small" stands in
	prompt   int64  // tokens; 0 is 100
	body     string // "" is one of its own
	tried    []*fleet.Instance
	again    bool
	change   func(*inference.Request)
}

// plan makes a request and its plan.
func (s *stage) plan(a ask) (*inference.Request, *fleet.Plan) {
	s.t.Helper()
	s.requests++
	if a.model == "" {
		a.model = "m"
	}
	if a.tenant == "" {
		a.tenant = "t"
	}
	if a.prompt == 0 {
		a.prompt = 100
	}
	if a.body == "" {
		a.body = fmt.Sprintf("body %d", s.requests)
	}
	req := &inference.Request{
		Surface: inference.Chat, Tenant: a.tenant, Class: a.class, Received: s.now, Deadline: s.now.Add(time.Hour), Body: []byte(a.body),
		Fields: inference.Fields{Model: a.model, Stream: true, PromptBytes: 4 * a.prompt},
	}
	if s.patient {
		req.Deadline = s.now.Add(10_000 * time.Hour)
	}
	if a.change != nil {
		a.change(req)
	}
	p := fleet.NewPlan(req)
	p.Again = a.again
	add := func(pool *fleet.Pool, fallback string) {
		model := a.model
		if fallback != "" {
			model = fallback
		}
		p.Candidates = append(p.Candidates, fleet.Candidate{Pool: pool, Model: model, Fallback: fallback, Picker: testkit.First{}})
	}
	for _, name := range a.pools {
		add(s.pool(name), "")
	}
	if a.pools == nil {
		for _, r := range s.f.Snapshot().Regions {
			for _, pool := range r.Pools {
				if _, ok := pool.Models[a.model]; ok {
					add(pool, "")
				}
			}
		}
	}
	if a.fallback != "" {
		add(s.pool(a.fallback), "small")
	}
	return req, p
}

// enter asks for a slot.
func (s *stage) enter(a ask) *seat {
	s.t.Helper()
	c := &seat{s: s, tried: a.tried}
	c.req, c.plan = s.plan(a)
	told := false
	lease, waiter, err := s.g.Enter(s.now, c.plan, a.tried, func(w *admission.Waiter) {
		told = true
		c.ended(w.Outcome())
	})
	switch {
	case told:
	case waiter != nil:
		c.waiter = waiter
	default:
		c.ended(lease, err)
	}
	return c
}

// ended notes an outcome.
func (c *seat) ended(lease *fleet.Lease, err error) {
	if (lease == nil) == (err == nil) {
		c.s.t.Errorf("an outcome with lease %v and error %v", lease, err)
	}
	c.lease, c.err = lease, err
	if c.outcomes++; c.outcomes > 1 {
		c.s.t.Errorf("a request has had %d outcomes", c.outcomes)
	}
	if lease != nil {
		c.s.granted = append(c.s.granted, c)
	}
}

// waits says whether the seat has no outcome yet.
func (c *seat) waits() bool { return c.outcomes == 0 }

// token is the first token of the answer.
func (c *seat) token() {
	c.first = true
	c.lease.FirstToken(c.s.now, c.s.now.Sub(c.lease.Start()), true)
}

// release gives the slot back after an answer that was whole.
func (c *seat) release() { c.end(inference.VerdictOK) }

// end gives the slot back.
func (c *seat) end(v inference.Verdict) {
	c.s.t.Helper()
	if c.lease == nil {
		c.s.t.Fatalf("no lease to give back: %v", c.err)
	}
	c.lease.Verdict = v
	c.lease.Release(c.s.now)
}

// at names the instance that the seat got, "pool/i", or what there is instead.
func (c *seat) at() string {
	switch {
	case c.err != nil:
		return string(refusal(c.s.t, c.err).Code)
	case c.lease == nil:
		return "waits"
	}
	pool := c.lease.Instance.Pool
	for i, one := range pool.Instances {
		if one == c.lease.Instance {
			return fmt.Sprintf("%s/%d", pool.Label, i)
		}
	}
	return "an instance that is gone"
}

// want fails the test unless the seat is where it should be.
func (c *seat) want(want string) {
	c.s.t.Helper()
	if got := c.at(); got != want {
		c.s.t.Errorf("got %s (%v), want %s", got, c.err, want)
	}
}

// refused fails the test unless the seat was refused for the reason.
func (c *seat) refused(reason string) *inference.Error {
	c.s.t.Helper()
	if c.err == nil {
		c.s.t.Fatalf("got %s, want a refusal: %s", c.at(), reason)
	}
	e := refusal(c.s.t, c.err)
	if e.Reason != reason {
		c.s.t.Errorf("refused for %q (%v), want %q", e.Reason, e, reason)
	}
	return e
}

// refusal is the error that a client would see.
func refusal(t testing.TB, err error) *inference.Error {
	t.Helper()
	e, ok := errors.AsType[*inference.Error](err)
	if !ok {
		t.Fatalf("not an error for clients: %v", err)
	}
	if e.RetryAfter <= 0 {
		t.Errorf("Retry-After is %v: %v", e.RetryAfter, e)
	}
	return e
}

// leave gives the place up, as a client that hangs up does.
func (c *seat) leave() {
	c.s.t.Helper()
	if c.waiter == nil {
		c.s.t.Fatal("not waiting")
	}
	c.waiter.Leave(c.s.now)
}

// pass lets time pass in steps of a tick.
func (s *stage) pass(d time.Duration) {
	const step = 100 * time.Millisecond
	for d > 0 {
		one := min(d, step)
		s.now = s.now.Add(one)
		d -= one
		s.g.Tick(s.now)
	}
}

// idle fails the test unless nothing is left of all that happened.
func (s *stage) idle() {
	s.t.Helper()
	if err := s.g.Check(); err != nil {
		s.t.Error(err)
	}
	if !s.g.Idle() {
		s.t.Error("the governor is not idle")
	}
	snap := s.g.Snapshot()
	if snap.Waiting != 0 || snap.Bytes != 0 {
		s.t.Errorf("%d requests with %d bytes wait", snap.Waiting, snap.Bytes)
	}
	for _, p := range snap.Pools {
		if p.Waiting != 0 || p.Held != 0 || p.InFlight != 0 {
			s.t.Errorf("pool %s: %+v", p.Name, p)
		}
	}
	for key, m := range snap.Models {
		if m.Waiting != 0 {
			s.t.Errorf("%+v: %d wait", key, m.Waiting)
		}
	}
	drained(s.t, s.f, s.now)
}

// drained fails the test unless every counter of the fleet is zero.
func drained(t testing.TB, f *fleet.Fleet, now time.Time) {
	t.Helper()
	node := func(name string, l *fleet.Live) {
		if l.InFlight() != 0 || l.PromptTokens() != 0 {
			t.Errorf("%s: %d in flight, %d prompt tokens", name, l.InFlight(), l.PromptTokens())
		}
		if r := l.Meter().Read(now.UnixNano()); r.Context != 0 {
			t.Errorf("%s: %d tokens are held", name, r.Context)
		}
		if old := l.Meter().Oldest(now.UnixNano()); old != 0 {
			t.Errorf("%s: a lease without an answer is %v old", name, old)
		}
	}
	for _, r := range f.Snapshot().Regions {
		node(r.Name, r.Live)
		for _, p := range r.Pools {
			node(p.Name, p.Live)
		}
	}
	f.Snapshot().Instances(func(i *fleet.Instance) { node(i.Name, i.Live) })
}

// count is the number of seats that wait.
func count(seats []*seat, f func(*seat) bool) (n int) {
	for _, c := range seats {
		if f(c) {
			n++
		}
	}
	return n
}

// metric is the value of a series of the governor, e.g. `left_total{class="vip"}`;
// NaN when there is none.
func metric(t testing.TB, g *admission.Governor, series string) float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(g)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if "spillway_admission_"+series == f.GetName()+labels(m) {
				switch f.GetType() {
				case dto.MetricType_COUNTER:
					return m.Counter.GetValue()
				case dto.MetricType_HISTOGRAM:
					return float64(m.Histogram.GetSampleCount())
				}
				return m.Gauge.GetValue()
			}
		}
	}
	return math.NaN()
}

// labels writes a series' labels.
func labels(m *dto.Metric) string {
	var parts []string
	for _, l := range m.Label {
		parts = append(parts, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(parts) == 0 {
		return ""
	}
	return "{" + strings.Join(parts, ",") + "}"
}
