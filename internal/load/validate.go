package load

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/spillway/spillway/internal/inference"
)

// mistakes collects what is wrong with a configuration.
type mistakes []error

// check records a mistake at the key path unless ok.
func (m *mistakes) check(ok bool, key, format string, args ...any) {
	if !ok {
		*m = append(*m, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
}

// share checks a share of the requests.
func (m *mistakes) share(v float64, key string) {
	m.check(v >= 0 && v <= 1, key, "must be between 0 and 1, got %g", v)
}

// header checks that a value can stand in a header line.
func (m *mistakes) header(v, key string) {
	m.check(!strings.ContainsAny(v, "\r\n\x00"), key, "must not contain line breaks")
}

// Validate returns all mistakes joined, each beginning with its key path.
func (c Config) Validate() error {
	var m mistakes
	m.check(c.Load >= 0, "load", "must be >= 0, got %g", c.Load)
	c.Target.validate(&m)
	c.Schedule.validate(&m)
	c.Request.validate(&m)
	c.validateMix(&m)
	m.check(c.Client.Timeout > 0, "client.timeout", "must be > 0, got %s", c.Client.Timeout)
	m.check(c.Client.ConnectTimeout > 0, "client.connect_timeout", "must be > 0, got %s", c.Client.ConnectTimeout)
	m.check(c.Client.MaxInFlight > 0, "client.max_in_flight", "must be > 0, got %d", c.Client.MaxInFlight)
	m.check(c.Client.MaxWaiting > 0, "client.max_waiting", "must be > 0, got %d", c.Client.MaxWaiting)
	m.check(c.Client.Drain >= 0, "client.drain", "must be >= 0, got %s", c.Client.Drain)
	m.check(c.Client.Retries >= 0 && c.Client.Retries <= 10, "client.retries", "must be between 0 and 10, got %d", c.Client.Retries)
	m.check(c.SLO.TTFT >= 0, "slo.ttft", "must be >= 0, got %s", c.SLO.TTFT)
	m.check(c.SLO.TPOT >= 0, "slo.tpot", "must be >= 0, got %s", c.SLO.TPOT)
	for i, u := range c.EngineMetrics {
		_, err := parseURL(u)
		m.check(err == nil, fmt.Sprintf("engine_metrics[%d]", i), "%v", err)
	}
	return errors.Join(m...)
}

// parseURL accepts absolute http and https URLs.
func parseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%q is not an http or https URL", raw)
	}
	return u, nil
}

func (t Target) validate(m *mistakes) {
	m.check(t.Name != "", "target.name", "must not be empty")
	m.check(len(t.BaseURLs) > 0, "target.base_urls", "must name at least one URL")
	for i, raw := range t.BaseURLs {
		_, err := parseURL(raw)
		m.check(err == nil, fmt.Sprintf("target.base_urls[%d]", i), "%v", err)
	}
	_, ok := inference.ParseSurface(t.Surface)
	m.check(ok, "target.surface", "unknown surface %q, known: %s", t.Surface, surfaceNames())
	m.check(t.Model != "", "target.model", "must not be empty")
	m.header(t.APIKey, "target.api_key")
	for _, name := range slices.Sorted(maps.Keys(t.Headers)) {
		key := "target.headers." + name
		m.check(name != "" && headerName(name), key, "is not a header name")
		m.header(t.Headers[name], key)
	}
	m.check(headerName(t.TenantHeader), "target.tenant_header", "is not a header name")
}

// headerName says whether a name can stand before a header's colon, or is empty.
func headerName(s string) bool { return !strings.ContainsAny(s, " :\r\n\x00") }

// surfaceNames lists the known surfaces.
func surfaceNames() string {
	var names []string
	for _, s := range inference.Surfaces() {
		names = append(names, s.String())
	}
	return strings.Join(names, ", ")
}

func (s Schedule) validate(m *mistakes) {
	m.check(s.Rate >= 0, "schedule.rate", "must be >= 0, got %g", s.Rate)
	m.check(s.Rate == 0 || s.Profile == "", "schedule.profile", "excludes schedule.rate")
	m.check(s.Rate > 0 || s.Profile != "" || s.Trace.Path != "", "schedule", "needs a trace, a rate or a profile")
	m.check(s.Rate == 0 || s.Duration > 0, "schedule.duration", "must be > 0 with a rate, got %s", s.Duration)
	m.check(s.Duration >= 0, "schedule.duration", "must be >= 0, got %s", s.Duration)
	if s.Profile != "" {
		_, err := ParseProfile(s.Profile)
		m.check(err == nil, "schedule.profile", "%v", err)
	}
	m.check(s.Arrivals == Poisson || s.Arrivals == Uniform, "schedule.arrivals", "must be %s or %s, got %q", Poisson, Uniform, s.Arrivals)
	if s.Trace.Path != "" {
		s.Trace.validate(m)
	}
	f, _ := s.Trace.format()
	m.check(f != AgentSessions || (s.Rate == 0 && s.Profile == ""), "schedule.trace", "sessions have no rate: drop schedule.rate and schedule.profile")
}

func (t Trace) validate(m *mistakes) {
	f, err := t.format()
	m.check(err == nil, "schedule.trace.format", "%v", err)
	m.check(t.Speed > 0, "schedule.trace.speed", "must be > 0, got %g", t.Speed)
	m.check(t.RateScale > 0, "schedule.trace.rate_scale", "must be > 0, got %g", t.RateScale)
	m.check(t.RateScale == 1 || f == ServeGen, "schedule.trace.rate_scale", "applies to %s traces only", ServeGen)
	m.check(t.Start >= 0, "schedule.trace.start", "must be >= 0, got %s", t.Start)
	m.check(t.Window >= 0, "schedule.trace.window", "must be >= 0, got %s", t.Window)
	m.check(t.Offset >= 0, "schedule.trace.offset", "must be >= 0, got %s", t.Offset)
	m.check(t.MaxRows >= 0, "schedule.trace.max_rows", "must be >= 0, got %d", t.MaxRows)
	m.check(t.ThinkCap >= 0, "schedule.trace.think_cap", "must be >= 0, got %s", t.ThinkCap)
	m.check(f != AgentSessions || t.Sessions > 0, "schedule.trace.sessions", "must be > 0, got %d", t.Sessions)
}

func (r Request) validate(m *mistakes) {
	m.check(r.PromptTokens > 0 && r.PromptTokens <= maxTokens, "request.prompt_tokens", "must be between 1 and %d, got %d", maxTokens, r.PromptTokens)
	m.check(r.OutputTokens > 0, "request.output_tokens", "must be > 0, got %d", r.OutputTokens)
	m.check(r.MaxTokens > 0, "request.max_tokens", "must be > 0, got %d", r.MaxTokens)
	m.check(r.MaxPromptTokens >= 0, "request.max_prompt_tokens", "must be >= 0, got %d", r.MaxPromptTokens)
	m.check(r.Lengths == Fixed || r.Lengths == Exponential, "request.lengths", "must be %s or %s, got %q", Fixed, Exponential, r.Lengths)
	m.share(r.Streamed, "request.streamed")
	m.share(r.Repeat, "request.repeat")
	m.share(r.Popular.Share, "request.popular.share")
	m.check(r.Popular.Share == 0 || r.Popular.Questions > 0 && r.Popular.Questions <= maxQuestions, "request.popular.questions", "must be between 1 and %d, got %d", maxQuestions, r.Popular.Questions)
	m.check(r.Popular.Skew >= 0 && r.Popular.Skew <= 10, "request.popular.skew", "must be 0 to 10, got %g", r.Popular.Skew)
	m.check(r.Temperature <= 2, "request.temperature", "must be at most 2, got %g", r.Temperature)
}

// maxNames bounds the classes and tenants of a run: each has its own
// histograms.
const maxNames = 256

// maxQuestions bounds the popular questions, whose law is a table.
const maxQuestions = 10_000_000

// validateMix checks classes and tenants.
func (c Config) validateMix(m *mistakes) {
	m.check(len(c.Classes) <= maxNames, "classes", "must be at most %d", maxNames)
	seen := map[string]bool{}
	for i, k := range c.Classes {
		key := fmt.Sprintf("classes[%d]", i)
		_, ok := inference.ParseClass(k.Name)
		m.check(ok, key+".name", "unknown class %q, known: vip, normal, batch", k.Name)
		m.check(!seen[k.Name], key+".name", "%q stands twice", k.Name)
		seen[k.Name] = true
		m.check(k.Share > 0, key+".share", "must be > 0, got %g", k.Share)
		m.header(k.APIKey, key+".api_key")
		m.check(k.TTFT >= 0, key+".ttft", "must be >= 0, got %s", k.TTFT)
		m.check(k.Patience >= 0, key+".patience", "must be >= 0, got %s", k.Patience)
	}
	m.check(len(c.Tenants) <= maxNames, "tenants", "must be at most %d", maxNames)
	clear(seen)
	for i, t := range c.Tenants {
		key := fmt.Sprintf("tenants[%d]", i)
		m.check(t.Name != "", key+".name", "must not be empty")
		m.check(!seen[t.Name], key+".name", "%q stands twice", t.Name)
		seen[t.Name] = true
		m.check(t.Share >= 0, key+".share", "must be >= 0, got %g", t.Share)
		m.check(t.APIKey != "" || c.Target.TenantHeader != "", key+".api_key", "must not be empty without target.tenant_header")
		m.header(t.Name, key+".name")
		m.header(t.APIKey, key+".api_key")
	}
}
