package experiment_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
)

func TestConfigIsReadOverTheDefaults(t *testing.T) {
	const text = `
- name: new-model
  when: tenant != "legal"
  by: tenant
  arms:
    - name: control
      weight: 90
    - {name: canary, weight: 10, then: {pools: {eu/canary: 1}, headers: {X-Try: "1"}}}
    - name: plain
  ramp:
    - {after: 0s, share: 0.05}
    - {after: 10m, share: 0.2}
  guard: {error_rate: 0.03, min_requests: 50}
- name: shadow
  mirror: {to: {pools: {next: 1}, strict: true}, share: 0.1}
`
	var got []experiment.Config
	if err := yaml.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	first, second := experiment.Default(), experiment.Default()
	first.Name, first.When, first.By = "new-model", `tenant != "legal"`, "tenant"
	first.Arms = []experiment.Arm{
		{Name: "control", Weight: 90},
		{Name: "canary", Weight: 10, Then: route.Action{Pools: map[string]int{"eu/canary": 1}, Headers: map[string]string{"X-Try": "1"}}},
		{Name: "plain", Weight: 1},
	}
	first.Ramp = []experiment.Step{{Share: 0.05}, {After: 10 * time.Minute, Share: 0.2}}
	first.Guard.ErrorRate, first.Guard.MinRequests = 0.03, 50
	second.Name = "shadow"
	second.Mirror = experiment.Mirror{To: route.Action{Pools: map[string]int{"next": 1}, Strict: true}, Share: 0.1}
	if diff := cmp.Diff([]experiment.Config{first, second}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := experiment.Validate(got); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	with := func(change func(*experiment.Config)) []experiment.Config {
		c := canary(1, 1)
		change(&c)
		return []experiment.Config{c}
	}
	mirror := func(change func(*experiment.Config)) []experiment.Config {
		c := experiment.Default()
		c.Name, c.Mirror = "m", experiment.Mirror{To: route.Action{Region: "eu"}, Share: 0.1}
		change(&c)
		return []experiment.Config{c}
	}
	two := func(change func(a, b *experiment.Config)) []experiment.Config {
		a, b := canary(1, 1), canary(1, 1)
		b.Name = "second"
		change(&a, &b)
		return []experiment.Config{a, b}
	}
	for name, c := range map[string]struct {
		cfg  []experiment.Config
		want []string // the beginnings of all mistakes; none: it is good
	}{
		"good":          {with(func(*experiment.Config) {}), nil},
		"no name":       {with(func(c *experiment.Config) { c.Name = "" }), []string{"experiments[0].name: want 1 to 40"}},
		"a path":        {with(func(c *experiment.Config) { c.Name = "../x" }), []string{"experiments[0].name: want"}},
		"by what":       {with(func(c *experiment.Config) { c.By = "moon" }), []string{"experiments[0].by: want tenant"}},
		"a header":      {with(func(c *experiment.Config) { c.Header = "X" }), []string{"experiments[0].header: has no effect with by: request"}},
		"no header":     {with(func(c *experiment.Config) { c.By = "session" }), []string{"experiments[0].header: must name"}},
		"one arm":       {with(func(c *experiment.Config) { c.Arms = c.Arms[:1] }), []string{"experiments[0].arms: want 2 to 16, or a mirror, got 1"}},
		"a weight":      {with(func(c *experiment.Config) { c.Arms[1].Weight = 0 }), []string{"experiments[0].arms[1].weight: must be 1 to"}},
		"an arm twice":  {with(func(c *experiment.Config) { c.Arms[1].Name = "control" }), []string{`experiments[0].arms[1].name: "control" is listed twice`}},
		"an arm's name": {with(func(c *experiment.Config) { c.Arms[1].Name = "mirror" }), []string{"experiments[0].arms[1].name:"}},
		"an action":     {with(func(c *experiment.Config) { c.Arms[1].Then = route.Action{Strict: true, Class: "vip"} }), []string{"experiments[0].arms[1].then.strict: needs", "experiments[0].arms[1].then.class: want"}},
		"control":       {with(func(c *experiment.Config) { c.Control = "x" }), []string{`experiments[0].control: "x" is none of the arms control, canary`}},
		"ramp": {with(func(c *experiment.Config) {
			c.Ramp = []experiment.Step{{Share: 0.2}, {After: time.Minute, Share: 0.1}, {After: time.Second, Share: 2}}
		}), []string{"experiments[0].ramp[1].share: must be more than 0.2", "experiments[0].ramp[2].share: must be above 0", "experiments[0].ramp[2].after: must be later"}},
		"ramp, before":     {with(func(c *experiment.Config) { c.Ramp = []experiment.Step{{After: -1, Share: 0.2}} }), []string{"experiments[0].ramp[0].after: must not"}},
		"guard":            {with(func(c *experiment.Config) { c.Guard = experiment.Guard{ErrorRate: 1, TTFT: -1} }), []string{"experiments[0].guard.error_rate:", "experiments[0].guard.ttft:", "experiments[0].guard.min_requests:", "experiments[0].guard.alpha:"}},
		"alpha":            {with(func(c *experiment.Config) { c.Alpha = 0.9 }), []string{"experiments[0].alpha:"}},
		"metrics":          {with(func(c *experiment.Config) { c.Metrics = []string{"ttft", "joy", "ttft"} }), []string{"experiments[0].metrics[1]: unknown metric", "experiments[0].metrics[2]: ttft is listed twice"}},
		"mirror":           {mirror(func(*experiment.Config) {}), nil},
		"mirror and arms":  {mirror(func(c *experiment.Config) { c.Arms = canary(1, 1).Arms }), []string{"experiments[0].mirror: an experiment has arms or a mirror"}},
		"mirror, nowhere":  {mirror(func(c *experiment.Config) { c.Mirror.To = route.Action{} }), []string{"experiments[0].mirror.to: is missing"}},
		"mirror, anywhere": {mirror(func(c *experiment.Config) { c.Mirror.To = route.Action{Headers: map[string]string{"X-A": "b"}} }), []string{"experiments[0].mirror.to: needs region or pools"}},
		"mirror, nothing":  {mirror(func(c *experiment.Config) { c.Mirror.Share = 0 }), []string{"experiments[0].mirror.share:"}},
		"mirror, action":   {mirror(func(c *experiment.Config) { c.Mirror.To.Class = "x" }), []string{"experiments[0].mirror.to.class: want"}},
		"mirror, no use":   {mirror(func(c *experiment.Config) { c.Ramp, c.Control = []experiment.Step{{Share: 1}}, "x" }), []string{"experiments[0].control: has no effect", "experiments[0].ramp: has no effect"}},
		"two of a name":    {two(func(a, b *experiment.Config) { a.When, b.Name = "x", a.Name }), []string{`experiments[1].name: "canary" is the name of experiments[0] too`}},
		"unreachable":      {two(func(a, b *experiment.Config) { b.When = "x" }), []string{`experiments[1]: takes no request, because "canary" (experiments[0]) takes all`}},
		"the same again":   {two(func(a, b *experiment.Config) { a.When, b.When = "x ==  1", " x == 1" }), []string{"experiments[1]: takes no request"}},
		"a full ramp":      {two(func(a, b *experiment.Config) { a.Ramp = []experiment.Step{{Share: 1}} }), []string{"experiments[1]: takes no request"}},
		"reached":          {two(func(a, b *experiment.Config) { a.Ramp = []experiment.Step{{Share: 0.5}, {After: time.Hour, Share: 1}} }), nil},
		"reached, no key":  {two(func(a, b *experiment.Config) { a.By = "key" }), nil},
		"reached by share": {append(mirror(func(*experiment.Config) {}), canary(1, 1)), nil},
		"a full mirror":    {append(mirror(func(c *experiment.Config) { c.Mirror.Share = 1 }), canary(1, 1)), []string{"experiments[1]: takes no request"}},
		"too many":         {make([]experiment.Config, 65), []string{"experiments: at most 64"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := experiment.Validate(c.cfg)
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if name == "too many" {
				got = got[:1]
			}
			if len(got) != len(c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			for _, want := range c.want {
				if !strings.Contains("\n"+err.Error(), "\n"+want) {
					t.Errorf("no %q in %q", want, got)
				}
			}
		})
	}
}

// FuzzConfig finds configurations that pass and cannot be used.
func FuzzConfig(f *testing.F) {
	f.Add("- {name: a, arms: [{name: x}, {name: y, weight: 3}], by: ip, ramp: [{after: 1s, share: 0.5}]}")
	f.Add("- {name: a, mirror: {to: {region: eu}, share: 1}, alpha: .nan}")
	f.Fuzz(func(t *testing.T, text string) {
		var cfg []experiment.Config
		if yaml.Unmarshal([]byte(text), &cfg) != nil {
			return
		}
		s, err := experiment.New(cfg, experiment.Parts{Log: quiet(), Compile: func(string) (experiment.Condition, error) { return models(""), nil }})
		if (err == nil) != (experiment.Validate(cfg) == nil) {
			t.Fatalf("New says %v, Validate %v", err, experiment.Validate(cfg))
		}
		if err == nil {
			s.Steer(began(), of(1))
			s.Status(began())
		}
	})
}
