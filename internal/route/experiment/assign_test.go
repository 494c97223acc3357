package experiment_test

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
)

// of is a request with an id.
func of(i int) *inference.Request {
	return &inference.Request{ID: fmt.Sprintf("req-%d", i), Tenant: fmt.Sprintf("tenant-%d", i)}
}

// where is the arm of a request, "" is none.
func where(s *experiment.Set, now time.Time, req *inference.Request) string {
	return s.Steer(now, req).Arm.Arm
}

// binomial fails when k of n are too far from p to be chance: 5 standard deviations.
func binomial(t *testing.T, what string, k, n int, p float64) {
	t.Helper()
	if sd := math.Sqrt(float64(n) * p * (1 - p)); math.Abs(float64(k)-float64(n)*p) > 5*sd {
		t.Errorf("%s: %d of %d, want %.0f", what, k, n, float64(n)*p)
	}
}

func TestArmsFollowTheirWeights(t *testing.T) {
	c := canary(70, 25)
	c.Arms = append(c.Arms, experiment.Arm{Name: "other", Weight: 5})
	s, twin := created(t, c), created(t, c)
	const n = 40000
	count := make(map[string]int)
	for i := range n {
		arm := where(s, began(), of(i))
		if again := where(twin, began().Add(time.Hour), of(i)); again != arm {
			t.Fatalf("request %d: %s here and %s at another gateway later", i, arm, again)
		}
		count[arm]++
	}
	binomial(t, "control", count["control"], n, 0.7)
	binomial(t, "canary", count["canary"], n, 0.25)
	binomial(t, "other", count["other"], n, 0.05)
}

func TestRampLetsMoreInAndNobodyOut(t *testing.T) {
	c := canary(1, 1)
	c.Ramp = []experiment.Step{{After: time.Minute, Share: 0.05}, {After: 10 * time.Minute, Share: 0.2}, {After: time.Hour, Share: 1}}
	const n = 20000
	synctest.Test(t, func(t *testing.T) {
		s := created(t, c)
		start := time.Now()
		before := make([]string, n)
		for _, step := range []struct {
			at    time.Duration
			share float64
		}{{0, 0}, {time.Minute, 0.05}, {9 * time.Minute, 0.05}, {10 * time.Minute, 0.2}, {2 * time.Hour, 1}} {
			in := 0
			for i := range n {
				arm := where(s, start.Add(step.at), of(i))
				if before[i] != "" && arm != before[i] {
					t.Fatalf("at %v request %d is in %q, before in %q", step.at, i, arm, before[i])
				}
				if before[i] = arm; arm != "" {
					in++
				}
			}
			binomial(t, step.at.String(), in, n, step.share)
		}
	})
}

// TestExperimentsAreIndependent of each other, and being in of the arm.
func TestExperimentsAreIndependent(t *testing.T) {
	a, b := canary(1, 1), canary(1, 1)
	a.Name, b.Name = "first", "second"
	half := canary(1, 1)
	half.Ramp = []experiment.Step{{Share: 0.5}}
	x, y, z := created(t, a), created(t, b), created(t, half)
	const n = 40000
	both, in, inCanary := 0, 0, 0
	for i := range n {
		if where(x, began(), of(i)) == where(y, began(), of(i)) {
			both++
		}
		switch where(z, began(), of(i)) {
		case "canary":
			inCanary++
			in++
		case "control":
			in++
		}
	}
	binomial(t, "in the same arm of both", both, n, 0.5)
	binomial(t, "in", in, n, 0.5)
	binomial(t, "in the canary of those that are in", inCanary, in, 0.5)
}

func TestKeys(t *testing.T) {
	base := func() *inference.Request {
		return &inference.Request{
			ID: "r", Tenant: "acme", Key: "k1", ClientIP: netip.MustParseAddr("2001:db8:1:2::5"),
			Header: http.Header{"X-Session": {"s"}}, Fields: inference.Fields{User: "u"},
		}
	}
	for by, c := range map[string]struct {
		same  func(*inference.Request, int) // keeps the key
		other func(*inference.Request, int) // changes it
		none  func(*inference.Request)      // takes it away; nil: that cannot be
	}{
		"tenant":  {func(r *inference.Request, i int) { r.ID = fmt.Sprint(i) }, func(r *inference.Request, i int) { r.Tenant = fmt.Sprint(i) }, func(r *inference.Request) { r.Tenant = "" }},
		"key":     {func(r *inference.Request, i int) { r.ID = fmt.Sprint(i) }, func(r *inference.Request, i int) { r.Key = fmt.Sprint(i) }, func(r *inference.Request) { r.Key = "" }},
		"user":    {func(r *inference.Request, i int) { r.Key = fmt.Sprint(i) }, func(r *inference.Request, i int) { r.Tenant = fmt.Sprint(i) }, func(r *inference.Request) { r.User = "" }},
		"session": {func(r *inference.Request, i int) { r.Tenant = fmt.Sprint(i) }, func(r *inference.Request, i int) { r.Header.Set("X-Session", fmt.Sprint(i)) }, func(r *inference.Request) { r.Header = nil }},
		"request": {func(r *inference.Request, i int) { r.Tenant = fmt.Sprint(i) }, func(r *inference.Request, i int) { r.ID = fmt.Sprint(i) }, func(r *inference.Request) { r.ID = "" }},
		"ip": {func(r *inference.Request, i int) { r.ClientIP = netip.AddrFrom16([16]byte{0: 0x20, 7: 1, 15: byte(i)}) },
			func(r *inference.Request, i int) { r.ClientIP = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }, func(r *inference.Request) { r.ClientIP = netip.Addr{} }},
	} {
		t.Run(by, func(t *testing.T) {
			cfg := canary(1, 1)
			cfg.By = by
			if by == "session" {
				cfg.Header = "x-session"
			}
			s := created(t, cfg)
			arms, same := make(map[string]bool), make(map[string]bool)
			for i := range 64 {
				r := base()
				c.same(r, i)
				same[where(s, began(), r)] = true
				r = base()
				c.other(r, i)
				arms[where(s, began(), r)] = true
			}
			if len(same) != 1 || same[""] {
				t.Errorf("one key is in the arms %v", same)
			}
			if !arms["control"] || !arms["canary"] || len(arms) != 2 {
				t.Errorf("other keys are in the arms %v", arms)
			}
			r := base()
			c.none(r)
			if got := where(s, began(), r); got != "" {
				t.Errorf("without a key: got arm %q", got)
			}
		})
	}
}

// models matches requests for a model.
type models string

func (m models) Match(_ time.Time, req *inference.Request) bool { return req.Model == string(m) }

// compile knows the text model=NAME.
func compile(text string) (experiment.Condition, error) {
	model, ok := strings.CutPrefix(text, "model=")
	if !ok {
		return nil, errors.New("no condition")
	}
	return models(model), nil
}

func TestTheFirstExperimentThatTakesARequestHasIt(t *testing.T) {
	first, copies, last := canary(1, 1), experiment.Default(), canary(1, 1)
	first.Name, first.When = "first", "model=a"
	copies.Name = "copies"
	copies.Mirror = experiment.Mirror{To: route.Action{Pools: map[string]int{"shadow": 1}}, Share: 0.25}
	last.Name = "last"
	s, err := experiment.New([]experiment.Config{first, copies, last}, experiment.Parts{Log: quiet(), Compile: compile})
	if err != nil {
		t.Fatal(err)
	}
	const n = 20000
	mirrored := 0
	for i := range n {
		r := of(i)
		if r.Model = "a"; s.Steer(began(), r).Arm.Experiment != "first" {
			t.Fatalf("request %d of model a: got %+v", i, s.Steer(began(), r))
		}
		r.Model = "b"
		switch d := s.Steer(began(), r); d.Arm.Experiment {
		case "copies":
			mirrored++
			if d.Arm.Arm != "mirror" || d.Mirror == nil || d.Mirror.Pools["shadow"] != 1 || !d.Mirror.Strict || d.Action != nil {
				t.Fatalf("got %+v", d)
			}
		case "last":
			if (d.Arm.Arm == "canary") != (d.Action != nil) || d.Mirror != nil {
				t.Fatalf("got %+v", d)
			}
		default:
			t.Fatalf("request %d of model b: got %+v", i, d)
		}
	}
	binomial(t, "copies", mirrored, n, 0.25)
}

func BenchmarkSteer(b *testing.B) {
	keyed := canary(9, 1)
	keyed.By = "tenant"
	for name, cfg := range map[string]experiment.Config{"request": canary(9, 1), "tenant": keyed} {
		b.Run(name, func(b *testing.B) {
			s, req, now := created(b, cfg), of(1), began()
			b.ReportAllocs()
			for b.Loop() {
				s.Steer(now, req)
			}
		})
	}
}
