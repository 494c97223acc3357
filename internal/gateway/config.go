package gateway

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Framing is how a keep-alive comment is written to a waiting client.
type Framing string

// The framings. A comment with one line feed is read by every SDK that was
// tested; a blank line behind it breaks openai-go before 3.43, and its absence
// makes naive splitters lose the next event.
const (
	FramingOff  Framing = "off"
	FramingLF   Framing = "lf"
	FramingLFLF Framing = "lflf"
)

// comment is the bytes of one keep-alive.
func (f Framing) comment() []byte {
	if f == FramingLFLF {
		return []byte(": keep-alive\n\n")
	}
	return []byte(": keep-alive\n")
}

// Config is the section `gateway` of the configuration.
type Config struct {
	// Longest time for a whole request, from its head to the last byte.
	Timeout time.Duration `yaml:"timeout"`
	// What a client that waits for a stream's first token gets meanwhile.
	KeepAlive KeepAlive `yaml:"keep_alive"`
	// When another instance is tried.
	Retry Retry `yaml:"retry"`
	// When a second instance is asked in parallel. Switched on per pool.
	Hedge Hedge `yaml:"hedge"`
	// Name the instance that answered in the header X-Spillway-Instance. Off, because the addresses of servers are no client's business.
	NameInstance bool `yaml:"name_instance"`
	// Largest answer that is held back until it is whole, so that a cut can still be retried. Larger answers are passed on as they come.
	HoldAnswer inference.Bytes `yaml:"hold_answer"`
	// Most of a stream held back before its first token.
	HoldEvents inference.Bytes `yaml:"hold_events"`
	// How several clients share one generation, and kept answers are given again.
	Share Share `yaml:"share"`
}

// Share bounds the answers that several clients follow while they are generated.
type Share struct {
	// Largest answer that is held whole, so that a client that asks later can catch up. Beyond it nobody joins any more.
	MaxAnswer inference.Bytes `yaml:"max_answer"`
	// Most bytes of all answers that are held. Beyond it new ones are passed on without being held.
	Memory inference.Bytes `yaml:"memory"`
	// How a kept stream is given again: `none` sends all of it at once, `original` with the gaps with which it came.
	Pace Pace `yaml:"pace"`
}

// Pace is how a kept stream is given again.
type Pace string

// The paces.
const (
	PaceNone     Pace = "none"
	PaceOriginal Pace = "original"
)

// KeepAlive is how waiting clients are kept.
type KeepAlive struct {
	// True status codes are possible for this long; then the answer begins with status 200 and comments.
	Grace time.Duration `yaml:"grace"`
	// Time between two comments.
	Interval time.Duration `yaml:"interval"`
	// Framing of the comments: `off`, `lf` or `lflf`.
	Framing Framing `yaml:"framing"`
	// Framing by surface, where it differs.
	Surfaces map[string]Framing `yaml:"surfaces"`
}

// framing is what holds on a surface.
func (k *KeepAlive) framing(s inference.Surface) Framing {
	if f, ok := k.Surfaces[s.String()]; ok {
		return f
	}
	return k.Framing
}

// Retry bounds further attempts.
type Retry struct {
	// Most attempts for one request, the first and hedges included.
	Attempts int `yaml:"attempts"`
	// Share of the requests of the window that may be retried or hedged.
	Budget float64 `yaml:"budget"`
	// Length of the window.
	Window time.Duration `yaml:"window"`
	// Retries a second that are always allowed.
	Floor float64 `yaml:"floor"`
	// First back-off; it doubles with each attempt, and a random share of it is waited (full jitter).
	Backoff time.Duration `yaml:"backoff"`
	// Longest back-off.
	MaxBackoff time.Duration `yaml:"max_backoff"`
}

// Hedge bounds second attempts in parallel.
type Hedge struct {
	// Quantile of the pool's recent times to first token after which the second instance is asked.
	Quantile float64 `yaml:"quantile"`
	// Shortest wait before that.
	MinDelay time.Duration `yaml:"min_delay"`
	// Pools, as `region/pool`, whose requests are hedged.
	Pools []string `yaml:"pools"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Timeout:    10 * time.Minute,
		KeepAlive:  KeepAlive{Grace: 5 * time.Second, Interval: 10 * time.Second, Framing: FramingLF},
		Retry:      Retry{Attempts: 3, Budget: 0.2, Window: 10 * time.Second, Floor: 10, Backoff: 25 * time.Millisecond, MaxBackoff: time.Second},
		Hedge:      Hedge{Quantile: 0.95, MinDelay: 50 * time.Millisecond},
		HoldAnswer: 1 << 20,
		HoldEvents: 256 << 10,
		Share:      Share{MaxAnswer: 1 << 20, Memory: 128 << 20, Pace: PaceNone},
	}
}

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	framings := []Framing{FramingOff, FramingLF, FramingLFLF}
	check(c.Timeout > 0, "timeout: must be > 0, got %v", c.Timeout)
	check(c.KeepAlive.Grace >= 0, "keep_alive.grace: must be >= 0, got %v", c.KeepAlive.Grace)
	check(c.KeepAlive.Interval > 0, "keep_alive.interval: must be > 0, got %v", c.KeepAlive.Interval)
	check(slices.Contains(framings, c.KeepAlive.Framing), "keep_alive.framing: want one of %v, got %q", framings, c.KeepAlive.Framing)
	for name, f := range c.KeepAlive.Surfaces {
		_, ok := inference.ParseSurface(name)
		check(ok, "keep_alive.surfaces: unknown surface %q; known are %v", name, inference.Surfaces())
		check(slices.Contains(framings, f), "keep_alive.surfaces.%s: want one of %v, got %q", name, framings, f)
	}
	check(c.Retry.Attempts >= 1 && c.Retry.Attempts <= 16, "retry.attempts: must be 1 to 16, got %d", c.Retry.Attempts)
	check(c.Retry.Budget >= 0 && c.Retry.Budget <= 1, "retry.budget: must be 0 to 1, got %v", c.Retry.Budget)
	check(c.Retry.Window >= time.Second && c.Retry.Window <= time.Minute, "retry.window: must be 1s to 1m, got %v", c.Retry.Window)
	check(c.Retry.Floor >= 0, "retry.floor: must be >= 0, got %v", c.Retry.Floor)
	check(c.Retry.Backoff >= 0, "retry.backoff: must be >= 0, got %v", c.Retry.Backoff)
	check(c.Retry.MaxBackoff >= c.Retry.Backoff, "retry.max_backoff: must be at least retry.backoff, got %v", c.Retry.MaxBackoff)
	check(c.Hedge.Quantile > 0 && c.Hedge.Quantile < 1, "hedge.quantile: must be above 0 and below 1, got %v", c.Hedge.Quantile)
	check(c.Hedge.MinDelay >= 0, "hedge.min_delay: must be >= 0, got %v", c.Hedge.MinDelay)
	check(c.HoldAnswer >= 0, "hold_answer: must be >= 0, got %v", c.HoldAnswer)
	check(c.HoldEvents >= 4096, "hold_events: must be at least 4KiB, got %v", c.HoldEvents)
	check(c.Share.MaxAnswer >= 64<<10 && c.Share.MaxAnswer <= 64<<20, "share.max_answer: must be 64KiB to 64MiB, got %v", c.Share.MaxAnswer)
	check(c.Share.Memory >= c.Share.MaxAnswer, "share.memory: must be at least share.max_answer, got %v", c.Share.Memory)
	check(c.Share.Pace == PaceNone || c.Share.Pace == PaceOriginal, "share.pace: want %s or %s, got %q", PaceNone, PaceOriginal, c.Share.Pace)
	return errors.Join(errs...)
}
