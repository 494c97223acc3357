package preload

import (
	"errors"
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Config is the section `preload`.
type Config struct {
	// Count what is asked for, and refresh popular answers ahead of demand with capacity that nobody waits for. Without a cache, or without questions that come again, it does nothing.
	Enabled bool `yaml:"enabled"`
	// Length of the windows in which asks are counted and predicted, in the time of the events; it divides a day.
	Window time.Duration `yaml:"window"`
	// Most keys whose demand is counted; the hottest stay.
	Keys int `yaml:"keys"`
	// Most bytes of requests that are kept to ask them again.
	MaxBytes inference.Bytes `yaml:"max_bytes"`
	// How far ahead demand counts, from the start of the window: about as long as a refreshed answer stays fresh, the cache's TTL.
	Horizon time.Duration `yaml:"horizon"`
	// Fewest asks expected until the horizon for which an answer is refreshed. At 1 a refresh pays for itself; below it saves clients' time and costs idle capacity.
	MinDemand float64 `yaml:"min_demand"`
	// Most answers refreshed for one window: those of the largest expected demand times cost.
	Top int `yaml:"top"`
	// Most tokens that the refreshes for one window may take, prompts and answers together.
	MaxTokens int64 `yaml:"max_tokens"`
	// How long before a window its refreshes begin; they are spread over this time.
	Lead time.Duration `yaml:"lead"`
	// Most refreshes at the same time.
	Concurrency int `yaml:"concurrency"`
	// Longest time of one refresh, with its wait for idle capacity.
	Timeout time.Duration `yaml:"timeout"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Enabled: true, Window: 5 * time.Minute, Keys: 4096, MaxBytes: 16 << 20,
		Horizon: time.Hour, MinDemand: 0.5, Top: 128, MaxTokens: 200_000,
		Lead: 5 * time.Minute, Concurrency: 4, Timeout: 2 * time.Minute,
	}
}

// The bounds of the configuration.
const (
	minWindow  = time.Second
	maxWindow  = time.Hour
	maxHorizon = 7 * day
	maxKeys    = 1 << 20
	maxRuns    = 1024
)

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Window >= minWindow && c.Window <= maxWindow && day%c.Window == 0, "window: want a part of a day from %v to %v, got %v", minWindow, maxWindow, c.Window)
	check(c.Keys >= shards && c.Keys <= maxKeys, "keys: want %d to %d, got %d", shards, maxKeys, c.Keys)
	check(c.MaxBytes > 0, "max_bytes: must be > 0, got %v", c.MaxBytes)
	check(c.Horizon > 0 && c.Horizon <= maxHorizon, "horizon: want above 0s and at most %v, got %v", maxHorizon, c.Horizon)
	check(c.MinDemand > 0, "min_demand: must be > 0, got %v", c.MinDemand)
	check(c.Top > 0 && c.Top <= maxKeys, "top: want 1 to %d, got %d", maxKeys, c.Top)
	check(c.MaxTokens > 0, "max_tokens: must be > 0, got %d", c.MaxTokens)
	check(c.Lead > 0 && c.Lead <= c.Window, "lead: want above 0s and at most the window (%v), got %v", c.Window, c.Lead)
	check(c.Concurrency > 0 && c.Concurrency <= maxRuns, "concurrency: want 1 to %d, got %d", maxRuns, c.Concurrency)
	check(c.Timeout > 0, "timeout: must be > 0, got %v", c.Timeout)
	return errors.Join(errs...)
}

// target is the window whose refreshes are due, or come next, at now.
func (c *Config) target(now time.Time) Window {
	start := now.Add(c.Lead).Truncate(c.Window)
	if !start.After(now) {
		start = start.Add(c.Window)
	}
	return Window{Start: start, End: start.Add(c.Window)}
}
