package admission

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// The ways to find an instance's limit.
const (
	LimitLearned   = "learned"   // from the gaps between tokens: the governor's own law
	LimitStatic    = "static"    // static_limit for every instance
	LimitGradient  = "gradient"  // Envoy's adaptive concurrency, for comparison
	LimitGradient2 = "gradient2" // Netflix's Gradient2, for comparison
	LimitAIMD      = "aimd"      // Netflix's AIMD, for comparison
	LimitOff       = "off"       // none but max_in_flight of the pool
)

// limits lists them.
var limits = []string{LimitLearned, LimitStatic, LimitGradient, LimitGradient2, LimitAIMD, LimitOff}

// Config is the section `admission` of the configuration.
type Config struct {
	// How an instance's limit is found: `learned` from the tokens that pass; `static`, `gradient`, `gradient2` and `aimd` are there to compare with; `off` has none but the pool's max_in_flight.
	Limit string `yaml:"limit"`
	// Most requests in flight at one instance with limit `static`.
	StaticLimit int64 `yaml:"static_limit"`
	// What each class is promised, and its share when there is not enough for all.
	Classes Classes `yaml:"classes"`
	// Weights of tenants inside their class, where they are not 1.
	TenantWeights map[string]float64 `yaml:"tenant_weights"`
	// Bounds of what waits.
	Queue Queue `yaml:"queue"`
	// Return tickets: a place kept for a client that was told when to come back.
	Tickets Tickets `yaml:"tickets"`
	// What is given up before requests are refused.
	Brownout Brownout `yaml:"brownout"`
	// What the emergency switch does.
	Emergency EmergencyConfig `yaml:"emergency"`
}

// Classes are the settings of the classes that clients can have.
type Classes struct {
	// People who wait.
	VIP Class `yaml:"vip"`
	// Everybody else.
	Normal Class `yaml:"normal"`
	// Work that can wait.
	Batch Class `yaml:"batch"`
}

// Class is what a class is promised.
type Class struct {
	// Share of the capacity when every class has work waiting, relative to the other classes. What a class does not use is lent.
	Weight float64 `yaml:"weight"`
	// Budget for the time to first token. A request that would wait longer is refused at once.
	TTFT time.Duration `yaml:"ttft"`
	// Objective for the time per output token; 0s finds one for each instance: where 85% of the throughput is reached that it could ever have.
	TPOT time.Duration `yaml:"tpot"`
}

// Queue bounds what waits.
type Queue struct {
	// Most requests waiting, all lanes together.
	Requests int `yaml:"requests"`
	// Most bytes of requests waiting.
	Bytes inference.Bytes `yaml:"bytes"`
	// Longest wait of a request whose answer is not streamed: its client gets no byte meanwhile, and many give up after a minute.
	UnstreamedWait time.Duration `yaml:"unstreamed_wait"`
}

// Tickets are the settings of return tickets.
type Tickets struct {
	// Issue tickets with refusals.
	Enabled bool `yaml:"enabled"`
	// Share of a class's rate that is kept for those who come back.
	Share float64 `yaml:"share"`
	// Most tickets out for a class of a model.
	PerClass int `yaml:"per_class"`
	// Most tickets out for a tenant of a class of a model.
	PerTenant int `yaml:"per_tenant"`
	// Environment variable that holds the key with which tickets are signed, at least 16 bytes, the same on all gateways. Without it a random one serves until the next start.
	SecretEnv string `yaml:"secret_env"`
}

// Brownout is the ladder of what is given up by pressure: the longest predicted
// wait of the classes vip and normal as a share of what they may wait.
type Brownout struct {
	// Pressure from which batch has only a quarter of its share; 0 is never.
	Yield float64 `yaml:"yield"`
	// Pressure from which max_tokens is capped for clients that allow it with `X-Spillway-Degrade: ok`; 0 is never.
	CapTokens float64 `yaml:"cap_tokens"`
	// Quantile of the model's recent answers' lengths that they are capped at.
	CapQuantile float64 `yaml:"cap_quantile"`
	// Pressure from which a fallback model answers where the route lists one; 0 is never.
	CheaperModel float64 `yaml:"cheaper_model"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Limit:       LimitLearned,
		StaticLimit: 64,
		Classes: Classes{
			VIP:    Class{Weight: 8, TTFT: time.Second},
			Normal: Class{Weight: 4, TTFT: 10 * time.Second},
			Batch:  Class{Weight: 1, TTFT: time.Minute},
		},
		Queue:     Queue{Requests: 10_000, Bytes: 128 << 20, UnstreamedWait: 55 * time.Second},
		Tickets:   Tickets{Enabled: true, Share: 0.5, PerClass: 4096, PerTenant: 1024, SecretEnv: "SPILLWAY_TICKET_SECRET"},
		Brownout:  Brownout{Yield: 0.5, CapTokens: 0.7, CapQuantile: 0.75, CheaperModel: 0.85},
		Emergency: DefaultEmergency(),
	}
}

// minSecret is the length of the shortest key for tickets, in bytes.
const minSecret = 16

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(slices.Contains(limits, c.Limit), "limit: want one of %s, got %q", strings.Join(limits, ", "), c.Limit)
	check(c.StaticLimit > 0, "static_limit: must be > 0, got %d", c.StaticLimit)
	for _, one := range []struct {
		name  string
		class Class
	}{{"vip", c.Classes.VIP}, {"normal", c.Classes.Normal}, {"batch", c.Classes.Batch}} {
		check(one.class.Weight > 0 && one.class.Weight <= 1e6, "classes.%s.weight: must be above 0 and at most 1e6, got %v", one.name, one.class.Weight)
		check(one.class.TTFT > 0, "classes.%s.ttft: must be > 0, got %v", one.name, one.class.TTFT)
		check(one.class.TPOT >= 0, "classes.%s.tpot: must be >= 0, got %v", one.name, one.class.TPOT)
	}
	for name, w := range c.TenantWeights {
		check(w > 0 && w <= 1e6, "tenant_weights.%s: must be above 0 and at most 1e6, got %v", name, w)
	}
	check(c.Queue.Requests >= 0, "queue.requests: must be >= 0, got %d", c.Queue.Requests)
	check(c.Queue.Bytes >= 0, "queue.bytes: must be >= 0, got %v", c.Queue.Bytes)
	check(c.Queue.UnstreamedWait > 0, "queue.unstreamed_wait: must be > 0, got %v", c.Queue.UnstreamedWait)
	check(c.Tickets.Share > 0 && c.Tickets.Share <= 1, "tickets.share: must be above 0 and at most 1, got %v", c.Tickets.Share)
	check(c.Tickets.PerClass >= 0, "tickets.per_class: must be >= 0, got %d", c.Tickets.PerClass)
	check(c.Tickets.PerTenant >= 0, "tickets.per_tenant: must be >= 0, got %d", c.Tickets.PerTenant)
	if s := os.Getenv(c.Tickets.SecretEnv); c.Tickets.SecretEnv != "" && s != "" {
		check(len(s) >= minSecret, "tickets.secret_env: %s must hold at least %d bytes", c.Tickets.SecretEnv, minSecret)
	}
	b := c.Brownout
	for _, one := range []struct {
		name string
		at   float64
	}{{"yield", b.Yield}, {"cap_tokens", b.CapTokens}, {"cheaper_model", b.CheaperModel}} {
		check(one.at >= 0 && one.at <= 10, "brownout.%s: must be 0 to 10, got %v", one.name, one.at)
	}
	check(b.CapQuantile > 0 && b.CapQuantile < 1, "brownout.cap_quantile: must be above 0 and below 1, got %v", b.CapQuantile)
	return errors.Join(append(errs, c.Emergency.Validate())...)
}

// class returns the settings of a class. Idle has those of batch.
func (c *Classes) class(of inference.Class) *Class {
	switch of {
	case inference.VIP:
		return &c.VIP
	case inference.Normal:
		return &c.Normal
	}
	return &c.Batch
}
