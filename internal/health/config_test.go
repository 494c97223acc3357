package health_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/health"
)

func TestDefaultsAreValid(t *testing.T) {
	cfg, metrics := health.Default(), health.DefaultMetrics()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if err := metrics.Validate(); err != nil {
		t.Error(err)
	}
	if metrics.Enabled() {
		t.Error("metrics are scraped by default")
	}
}

func TestYAML(t *testing.T) {
	cfg := health.Default()
	err := yaml.Unmarshal([]byte(`
active:
  type: http
  status: [200, 204, 300-399]
  interval: 1s
  rule: {metric: "vllm:num_requests_waiting", compare: "<", value: 50}
passive: {max_fails: 5}
`), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := health.Default()
	want.Active.Type, want.Active.Interval = health.CheckHTTP, time.Second
	want.Active.Status = []health.StatusRange{{200, 200}, {204, 204}, {300, 399}}
	want.Active.Rule = &health.Rule{Metric: "vllm:num_requests_waiting", Compare: "<", Value: 50}
	want.Passive.MaxFails = 5
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	out, err := yaml.Marshal(cfg.Active.Status)
	if err != nil || string(out) != "- \"200\"\n- \"204\"\n- 300-399\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if err := yaml.Unmarshal([]byte("active: {status: [2xx]}"), &cfg); err == nil || !strings.Contains(err.Error(), "2xx") {
		t.Errorf("2xx: got %v", err)
	}
}

func TestValidate(t *testing.T) {
	cases := map[string]struct {
		change func(*health.Config)
		want   string // the beginning of each message, a line each
	}{
		"type":          {func(c *health.Config) { c.Active.Type = "icmp" }, "active.type: "},
		"path":          {func(c *health.Config) { c.Active.Path = "health" }, "active.path: "},
		"no status":     {func(c *health.Config) { c.Active.Status = nil }, "active.status: "},
		"status":        {func(c *health.Config) { c.Active.Status = []health.StatusRange{{200, 200}, {300, 200}, {0, 700}} }, "active.status[1]: \nactive.status[2]: "},
		"body":          {func(c *health.Config) { c.Active.Type, c.Active.Body = "http", "(" }, "active.body: "},
		"inert body":    {func(c *health.Config) { c.Active.Body = "x" }, "active.body: has no effect"},
		"inert latency": {func(c *health.Config) { c.Active.MaxLatency = 1 }, "active.max_latency: has no effect"},
		"model":         {func(c *health.Config) { c.Active.Type = "generate" }, "active.model: "},
		"inert model":   {func(c *health.Config) { c.Active.Model = "m" }, "active.model: has no effect"},
		"times": {func(c *health.Config) {
			c.Active.InitialDelay, c.Active.Interval, c.Active.Timeout = -1, 0, 0
			c.Active.SuccessThreshold, c.Active.FailureThreshold, c.Active.Jitter = 0, 0, 2
		}, "active.initial_delay: \nactive.interval: \nactive.timeout: \nactive.success_threshold: \nactive.failure_threshold: \nactive.jitter: "},
		"empty rule": {func(c *health.Config) { c.Active.Rule = &health.Rule{} }, "active.rule: \nactive.rule.compare: "},
		"both in a rule": {func(c *health.Config) {
			c.Active.Rule = &health.Rule{Path: "/x", Metric: "m", JSON: "j", Compare: "<"}
		}, "active.rule: "},
		"json without path": {func(c *health.Config) { c.Active.Rule = &health.Rule{JSON: "j", Compare: "<"} }, "active.rule.path: "},
		"inert labels": {func(c *health.Config) {
			c.Active.Rule = &health.Rule{Path: "/x", JSON: "j", Compare: "<", Labels: map[string]string{"a": "b"}}
		}, "active.rule.labels: "},
		"inert rule": {func(c *health.Config) {
			c.Active.Type, c.Active.Rule = "off", &health.Rule{Metric: "m", Compare: "<"}
		}, "active.rule: has no effect"},
		"passive": {func(c *health.Config) {
			c.Passive = health.Passive{MaxFails: -1, EjectTime: 2, MaxEjectTime: 1, BusyTime: 1, MaxBusyTime: 1, Jitter: -1}
		}, "passive.max_fails: \npassive.fail_timeout: \npassive.max_eject_time: \npassive.spent_time: \npassive.jitter: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := health.Default()
			c.change(&cfg)
			compare(t, cfg.Validate(), c.want)
		})
	}
	for name, c := range map[string]struct {
		change func(*health.Metrics)
		want   string
	}{
		"all":   {func(m *health.Metrics) { *m = health.Metrics{Path: "x", Kind: "ollama"} }, "kind: \npath: \ninterval: \ntimeout: "},
		"inert": {func(m *health.Metrics) { m.Interval = time.Second }, "kind: interval and timeout have no effect"},
		"kind":  {func(m *health.Metrics) { m.Kind = "auto" }, ""},
	} {
		t.Run("metrics "+name, func(t *testing.T) {
			m := health.DefaultMetrics()
			c.change(&m)
			compare(t, m.Validate(), c.want)
		})
	}
}

// compare checks that err has the lines that begin as in want.
func compare(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("got %v", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("valid, want %q", want)
	}
	got := strings.Split(err.Error(), "\n")
	lines := strings.Split(want, "\n")
	if len(got) != len(lines) {
		t.Fatalf("got %q, want %q", got, lines)
	}
	for i := range lines {
		if !strings.HasPrefix(got[i], lines[i]) {
			t.Errorf("got %q, want %q", got[i], lines[i])
		}
	}
}
