package health

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The types of an active check.
const (
	CheckOff      = "off"      // no probe; passive health alone judges
	CheckTCP      = "tcp"      // a connection can be had
	CheckHTTP     = "http"     // a GET is answered as configured
	CheckGenerate = "generate" // one token is generated; costs what a request costs
)

// Config is the key `health` in a pool's section of the configuration.
type Config struct {
	// Probes that the gateway sends to each instance.
	Active Active `yaml:"active"`
	// What the outcome of requests says about an instance.
	Passive Passive `yaml:"passive"`
}

// Active are the probes of each instance, with the meaning of Kubernetes' probes.
// An instance counts as up until a probe has failed failure_threshold times, so
// that a start refuses nothing.
type Active struct {
	// What is probed: `tcp` (a connection can be had; the default, because every server has it), `http`, `generate` (one token; costs what a request costs) or `off`.
	Type string `yaml:"type"`
	// Path of the http probe, below the instance's base path.
	Path string `yaml:"path"`
	// Statuses that pass the http probe, as numbers and ranges such as 200-299.
	Status []StatusRange `yaml:"status"`
	// Regular expression (RE2) that the body of the http probe must match; empty takes any. The first 1 MiB counts.
	Body string `yaml:"body"`
	// Longest time for the answer of the http probe to pass; 0 is the timeout.
	MaxLatency time.Duration `yaml:"max_latency"`
	// Model that the generate probe asks for.
	Model string `yaml:"model"`
	// A number that the instance reports and that must compare as given, checked after the probe.
	Rule *Rule `yaml:"rule"`
	// Time before an instance's first probe.
	InitialDelay time.Duration `yaml:"initial_delay"`
	// Time from the start of a probe to the start of the next.
	Interval time.Duration `yaml:"interval"`
	// Longest time for a probe.
	Timeout time.Duration `yaml:"timeout"`
	// Probes in a row that must pass before an instance that was down is up.
	SuccessThreshold int `yaml:"success_threshold"`
	// Probes in a row that must fail before an instance is down.
	FailureThreshold int `yaml:"failure_threshold"`
	// Share of the interval, 0 to 1, by which each wait differs at random, so that probes spread.
	Jitter float64 `yaml:"jitter"`
}

// Rule is a business rule: a metric or a JSON field of an HTTP answer compared
// with a number. A value that is missing says nothing: it neither passes nor
// fails, and is logged and shown in spillway_health_metric_missing.
type Rule struct {
	// Path of the answer that holds the value, below the instance's base path. Default /metrics for a metric.
	Path string `yaml:"path"`
	// Name of a metric in Prometheus' text format; all series that match are added up.
	Metric string `yaml:"metric"`
	// Labels that a series of the metric must have.
	Labels map[string]string `yaml:"labels"`
	// Field of a JSON answer instead of a metric, as keys and indexes joined by dots: `queue.0.depth`. true counts as 1, false as 0.
	JSON string `yaml:"json"`
	// How the value must compare: `<`, `<=`, `>`, `>=`, `==` or `!=`.
	Compare string `yaml:"compare"`
	// The number to compare with.
	Value float64 `yaml:"value"`
}

// Passive is what the outcome of requests means. Only an instance's own faults
// count as failures: not busy answers, not a spent account, not the client's
// mistakes, not requests that were canceled.
type Passive struct {
	// Failures within fail_timeout, without a success between them, that eject an instance; 0 never ejects. A connection that cannot be had counts as all of them.
	MaxFails int `yaml:"max_fails"`
	// Time in which the failures must fall.
	FailTimeout time.Duration `yaml:"fail_timeout"`
	// Time of a first ejection. It doubles each time that the one request let through afterwards fails too.
	EjectTime time.Duration `yaml:"eject_time"`
	// Longest ejection.
	MaxEjectTime time.Duration `yaml:"max_eject_time"`
	// Cool-down after a busy answer that does not say when to come back. It doubles with each busy answer in a row.
	BusyTime time.Duration `yaml:"busy_time"`
	// Longest of these cool-downs.
	MaxBusyTime time.Duration `yaml:"max_busy_time"`
	// Cool-down when the account behind the instance is spent. It doubles likewise.
	SpentTime time.Duration `yaml:"spent_time"`
	// Longest of these cool-downs.
	MaxSpentTime time.Duration `yaml:"max_spent_time"`
	// Share, 0 to 1, by which these times vary at random.
	Jitter float64 `yaml:"jitter"`
	// Never eject the last usable instance of a pool. Switch it off where other pools can take over: requests without any other choice still go to an ejected instance.
	KeepLast bool `yaml:"keep_last"`
}

// Metrics is the key `metrics` in a pool's section: the engine metrics that
// correct the load the gateway counts. Nothing is scraped unless kind or path is
// set.
type Metrics struct {
	// Path of the metrics, below the instance's base path. Default /metrics, for trtllm /prometheus/metrics.
	Path string `yaml:"path"`
	// Time between two scrapes.
	Interval time.Duration `yaml:"interval"`
	// Longest time for a scrape.
	Timeout time.Duration `yaml:"timeout"`
	// Whose metrics they are: `auto`, `vllm`, `sglang`, `llamacpp`, `tgi` or `trtllm`. Empty is auto when path is set.
	Kind string `yaml:"kind"`
}

// Default returns the configuration of a pool that says nothing.
func Default() Config {
	return Config{
		Active: Active{
			Type: CheckTCP, Path: "/health", Status: []StatusRange{{200, 299}},
			Interval: 5 * time.Second, Timeout: 3 * time.Second,
			SuccessThreshold: 1, FailureThreshold: 3, Jitter: 0.1,
		},
		Passive: Passive{
			MaxFails: 3, FailTimeout: 10 * time.Second,
			EjectTime: 5 * time.Second, MaxEjectTime: 5 * time.Minute,
			BusyTime: 250 * time.Millisecond, MaxBusyTime: 5 * time.Second,
			SpentTime: time.Minute, MaxSpentTime: 10 * time.Minute,
			Jitter: 0.2, KeepLast: true,
		},
	}
}

// DefaultMetrics returns the configuration of a pool that says nothing: off.
func DefaultMetrics() Metrics {
	return Metrics{Interval: 2 * time.Second, Timeout: time.Second}
}

// mistakes collects what is wrong, each with its key path.
type mistakes []error

func (m *mistakes) check(ok bool, format string, args ...any) {
	if !ok {
		*m = append(*m, fmt.Errorf(format, args...))
	}
}

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs mistakes
	c.Active.validate(&errs)
	c.Passive.validate(&errs)
	return errors.Join(errs...)
}

// validate adds the mistakes of the probes.
func (a *Active) validate(errs *mistakes) {
	types := []string{CheckTCP, CheckHTTP, CheckGenerate, CheckOff}
	errs.check(slices.Contains(types, a.Type), "active.type: want one of %v, got %q", types, a.Type)
	errs.check(rooted(a.Path), "active.path: must begin with /, got %q", a.Path)
	errs.check(len(a.Status) > 0, "active.status: must name at least one status")
	for i, s := range a.Status {
		errs.check(s.Low >= 100 && s.Low <= s.High && s.High <= 599, "active.status[%d]: want statuses from 100 to 599, got %v", i, s)
	}
	_, err := regexp.Compile(a.Body)
	errs.check(err == nil, "active.body: %w", err)
	errs.check(a.Body == "" || a.Type == CheckHTTP, "active.body: has no effect on type %s", a.Type)
	errs.check(a.MaxLatency == 0 || a.Type == CheckHTTP, "active.max_latency: has no effect on type %s", a.Type)
	errs.check(a.MaxLatency >= 0, "active.max_latency: must be >= 0, got %v", a.MaxLatency)
	errs.check(a.Model != "" || a.Type != CheckGenerate, "active.model: the generate probe needs a model")
	errs.check(a.Model == "" || a.Type == CheckGenerate, "active.model: has no effect on type %s", a.Type)
	errs.check(a.InitialDelay >= 0, "active.initial_delay: must be >= 0, got %v", a.InitialDelay)
	errs.check(a.Interval >= 10*time.Millisecond, "active.interval: must be >= 10ms, got %v", a.Interval)
	errs.check(a.Timeout > 0, "active.timeout: must be > 0, got %v", a.Timeout)
	errs.check(a.SuccessThreshold >= 1, "active.success_threshold: must be >= 1, got %d", a.SuccessThreshold)
	errs.check(a.FailureThreshold >= 1, "active.failure_threshold: must be >= 1, got %d", a.FailureThreshold)
	errs.check(a.Jitter >= 0 && a.Jitter <= 1, "active.jitter: must be 0 to 1, got %v", a.Jitter)
	if a.Rule != nil {
		errs.check(a.Type != CheckOff, "active.rule: has no effect on type off")
		a.Rule.validate(errs)
	}
}

// validate adds the mistakes of the rule.
func (r *Rule) validate(errs *mistakes) {
	errs.check((r.Metric == "") != (r.JSON == ""), "active.rule: give either metric or json")
	errs.check(r.Path == "" || rooted(r.Path), "active.rule.path: must begin with /, got %q", r.Path)
	errs.check(r.Path != "" || r.JSON == "", "active.rule.path: a rule on a JSON field needs a path")
	errs.check(r.Labels == nil || r.Metric != "", "active.rule.labels: has no effect without metric")
	errs.check(comparisons[r.Compare] != nil, "active.rule.compare: want <, <=, >, >=, == or !=, got %q", r.Compare)
	errs.check(!math.IsNaN(r.Value), "active.rule.value: must be a number")
}

// validate adds the mistakes of passive health.
func (p *Passive) validate(errs *mistakes) {
	errs.check(p.MaxFails >= 0 && p.MaxFails <= 1000, "passive.max_fails: must be 0 to 1000, got %d", p.MaxFails)
	errs.check(p.FailTimeout > 0, "passive.fail_timeout: must be > 0, got %v", p.FailTimeout)
	for _, t := range []struct {
		key        string
		first, max time.Duration
	}{
		{"eject_time", p.EjectTime, p.MaxEjectTime},
		{"busy_time", p.BusyTime, p.MaxBusyTime},
		{"spent_time", p.SpentTime, p.MaxSpentTime},
	} {
		errs.check(t.first > 0, "passive.%s: must be > 0, got %v", t.key, t.first)
		errs.check(t.max >= t.first, "passive.max_%s: must be at least %s, got %v", t.key, t.key, t.max)
	}
	errs.check(p.Jitter >= 0 && p.Jitter <= 1, "passive.jitter: must be 0 to 1, got %v", p.Jitter)
}

// Enabled says whether the pool's instances are scraped.
func (s *Metrics) Enabled() bool { return s.Kind != "" || s.Path != "" }

// Validate returns every mistake in the section.
func (s *Metrics) Validate() error {
	var errs mistakes
	kinds := Kinds()
	errs.check(s.Kind == "" || slices.Contains(kinds, s.Kind), "kind: want one of %v, got %q", kinds, s.Kind)
	errs.check(s.Path == "" || rooted(s.Path), "path: must begin with /, got %q", s.Path)
	errs.check(s.Interval >= 100*time.Millisecond, "interval: must be >= 100ms, got %v", s.Interval)
	errs.check(s.Timeout > 0, "timeout: must be > 0, got %v", s.Timeout)
	errs.check(s.Enabled() || *s == DefaultMetrics(), "kind: interval and timeout have no effect unless kind or path is set")
	return errors.Join(errs...)
}

// on says whether instances are probed.
func (a *Active) on() bool { return a.Type != CheckOff }

// rooted says whether path is an absolute one on the instance.
func rooted(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' })
}

// StatusRange is a range of HTTP statuses, written 200 or 200-299.
type StatusRange struct{ Low, High int }

// UnmarshalText reads the written form.
func (s *StatusRange) UnmarshalText(text []byte) error {
	low, high, ranged := strings.Cut(string(text), "-")
	var err error
	if s.Low, err = strconv.Atoi(strings.TrimSpace(low)); err != nil {
		return fmt.Errorf("want a status such as 200 or a range such as 200-299, got %q", text)
	}
	s.High = s.Low
	if ranged {
		if s.High, err = strconv.Atoi(strings.TrimSpace(high)); err != nil {
			return fmt.Errorf("want a status such as 200 or a range such as 200-299, got %q", text)
		}
	}
	return nil
}

// MarshalText writes the form that UnmarshalText reads.
func (s StatusRange) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is the written form.
func (s StatusRange) String() string {
	if s.Low == s.High {
		return strconv.Itoa(s.Low)
	}
	return strconv.Itoa(s.Low) + "-" + strconv.Itoa(s.High)
}

// comparisons are the operators of a rule.
var comparisons = map[string]func(a, b float64) bool{
	"<":  func(a, b float64) bool { return a < b },
	"<=": func(a, b float64) bool { return a <= b },
	">":  func(a, b float64) bool { return a > b },
	">=": func(a, b float64) bool { return a >= b },
	"==": func(a, b float64) bool { return a == b },
	"!=": func(a, b float64) bool { return a != b },
}
