package experiment_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
)

// TestPreviewDrawsNothing of what depends on the request's id, and says so.
func TestPreviewDrawsNothing(t *testing.T) {
	each := canary(90, 10) // some of the requests, by request
	each.Name, each.Ramp = "each", []experiment.Step{{Share: 0.25}, {After: 24 * time.Hour, Share: 1}}
	full := canary(50, 50)
	full.Name = "full"
	tenants := canary(1, 1)
	tenants.Name, tenants.By = "tenants", "tenant"
	some := experiment.Default()
	some.Name, some.Mirror = "some", experiment.Mirror{To: route.Action{Region: "eu"}, Share: 0.5}
	copies := some
	copies.Name, copies.Mirror.Share = "copies", 1
	half := func(name string) experiment.Draw {
		return experiment.Draw{Name: name, Share: 1, Arms: []experiment.ArmDraw{{Name: "control", Share: 0.5}, {Name: "canary", Share: 0.5}}}
	}
	quarter := experiment.Draw{Name: "each", Share: 0.25, Arms: []experiment.ArmDraw{{Name: "control", Share: 0.9}, {Name: "canary", Share: 0.1}}}
	mirror := experiment.Draw{Name: "some", Share: 0.5, Arms: []experiment.ArmDraw{{Name: "mirror", Share: 1}}}
	when := func(model string, c experiment.Config) experiment.Config {
		c.When = model
		return c
	}
	now := time.Now().Add(time.Minute)
	for name, c := range map[string]struct {
		cfg   []experiment.Config
		stop  string
		drawn []experiment.Draw
		in    string // the experiment that takes the request for certain
	}{
		"by tenant":             {[]experiment.Config{when("m", tenants), full}, "", nil, "tenants"},
		"each, then by tenant":  {[]experiment.Config{each, tenants}, "", []experiment.Draw{quarter}, "tenants"},
		"all":                   {[]experiment.Config{some, each, full}, "", []experiment.Draw{mirror, quarter, half("full")}, ""},
		"stopped":               {[]experiment.Config{each, tenants}, "each", nil, "tenants"},
		"all are copied":        {[]experiment.Config{copies}, "", nil, "copies"},
		"nothing behind a full": {[]experiment.Config{when("m", full), tenants}, "", []experiment.Draw{half("full")}, ""},
		"another's":             {[]experiment.Config{when("x", full), tenants}, "", nil, "tenants"},
	} {
		s, err := experiment.New(c.cfg, experiment.Parts{Log: quiet(), Compile: func(text string) (experiment.Condition, error) { return models(text), nil }})
		if err != nil {
			t.Fatal(err)
		}
		if c.stop != "" {
			if err := s.Stop(now, c.stop, ""); err != nil {
				t.Fatal(err)
			}
		}
		req := &inference.Request{ID: "explain", Tenant: "acme"}
		req.Model = "m"
		near := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 })
		if d := cmp.Diff(s.Drawn(now, req), c.drawn, near); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if got := s.Preview(now, req).Arm.Experiment; got != c.in {
			t.Errorf("%s: in %q, want %q", name, got, c.in)
		}
	}
}
