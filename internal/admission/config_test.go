package admission_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
)

func TestConfigMistakes(t *testing.T) {
	if cfg := admission.Default(); cfg.Validate() != nil {
		t.Errorf("the default is wrong: %v", cfg.Validate())
	}
	t.Setenv(secretEnv, "fifteen bytes..")
	for want, change := range map[string]func(*admission.Config){
		"limit: ":                          func(c *admission.Config) { c.Limit = "vegas" },
		"static_limit: ":                   func(c *admission.Config) { c.StaticLimit = 0 },
		"classes.vip.weight: ":             func(c *admission.Config) { c.Classes.VIP.Weight = 0 },
		"classes.normal.weight: ":          func(c *admission.Config) { c.Classes.Normal.Weight = 2e6 },
		"classes.batch.ttft: ":             func(c *admission.Config) { c.Classes.Batch.TTFT = 0 },
		"classes.vip.tpot: ":               func(c *admission.Config) { c.Classes.VIP.TPOT = -1 },
		"tenant_weights.a: ":               func(c *admission.Config) { c.TenantWeights = map[string]float64{"a": -1, "b": 1} },
		"queue.requests: ":                 func(c *admission.Config) { c.Queue.Requests = -1 },
		"queue.bytes: ":                    func(c *admission.Config) { c.Queue.Bytes = -1 },
		"queue.unstreamed_wait: ":          func(c *admission.Config) { c.Queue.UnstreamedWait = 0 },
		"tickets.share: must be above 0":   func(c *admission.Config) { c.Tickets.Share = 0 },
		"tickets.share: must be above 0 a": func(c *admission.Config) { c.Tickets.Share = 1.01 },
		"tickets.per_class: ":              func(c *admission.Config) { c.Tickets.PerClass = -1 },
		"tickets.per_tenant: ":             func(c *admission.Config) { c.Tickets.PerTenant = -1 },
		"tickets.secret_env: ":             func(c *admission.Config) { c.Tickets.SecretEnv = secretEnv },
		"brownout.yield: ":                 func(c *admission.Config) { c.Brownout.Yield = -1 },
		"brownout.cap_tokens: ":            func(c *admission.Config) { c.Brownout.CapTokens = 11 },
		"brownout.cheaper_model: ":         func(c *admission.Config) { c.Brownout.CheaperModel = -0.1 },
		"brownout.cap_quantile: ":          func(c *admission.Config) { c.Brownout.CapQuantile = 1 },
		"emergency.expiry: ":               func(c *admission.Config) { c.Emergency.Expiry = 0 },
	} {
		cfg := admission.Default()
		change(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want one mistake that begins %q, got %v", want, err)
		}
	}
	var cfg admission.Config // all of them at once
	err := cfg.Validate()
	for _, want := range []string{"limit: ", "static_limit: ", "classes.vip.ttft: ", "queue.unstreamed_wait: ", "tickets.share: ", "brownout.cap_quantile: ", "emergency."} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no mention of %q in %v", want, err)
		}
	}
}

// TestTheCapFollowsTheAnswers: old lengths are forgotten as new ones come.
func TestTheCapFollowsTheAnswers(t *testing.T) {
	cfg := static(1)
	e, _ := newSwitch(t, nil)
	e.Apply(admission.EmergencyConfig{Brownout: "cap_tokens", Expiry: time.Hour})
	cfg.Emergency = admission.EmergencyConfig{Brownout: "cap_tokens", Expiry: time.Hour}
	s := newStageWith(t, cfg, layout(pool("p", 1, "m")), e)
	if _, err := e.On(s.now, admission.Operator{Name: "op"}, "", time.Minute); err != nil {
		t.Fatal(err)
	}
	s.pass(100 * time.Millisecond)
	capped := func() int64 {
		c := s.enter(ask{change: func(r *inference.Request) { r.DegradeOK = true }})
		defer c.end(inference.VerdictCanceled)
		return c.lease.MaxTokens
	}
	answer := func(tokens int64, n int) {
		for range n {
			c := s.enter(ask{})
			c.lease.Usage.CompletionTokens = tokens
			c.release()
		}
	}
	answer(1, 100)
	if got := capped(); got != 1 {
		t.Errorf("after answers of one token: %d", got)
	}
	answer(1000, 3000)
	if got := capped(); got < 1000 || got > 1190 {
		t.Errorf("after answers of 1,000 tokens: %d", got)
	}
	answer(50, 10_000)
	if got := capped(); got < 50 || got > 60 {
		t.Errorf("after many of 50: %d", got)
	}
	answer(1<<40, 10_000)
	if got := capped(); got < 500_000 {
		t.Errorf("after answers without end: %d", got)
	}
}

// TestEveryMetricIsDescribed and collected without a contradiction; the pedantic
// registry of metric checks that.
func TestEveryMetricIsDescribed(t *testing.T) {
	s := newStage(t, admission.Default(), layout(pool("p", 2, "m", "n"), pool("q", 1, "m")))
	s.enter(ask{})
	s.enter(ask{model: "n", class: inference.VIP})
	s.pass(time.Second)
	if got := metric(t, s.g, `admitted_total{class="vip"}`); got != 1 {
		t.Errorf("got %v", got)
	}
}
