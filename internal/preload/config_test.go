package preload_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/preload"
)

func TestDefaultIsValid(t *testing.T) {
	cfg := preload.Default()
	if err := cfg.Validate(); err != nil || !cfg.Enabled {
		t.Errorf("got %v", err)
	}
}

func TestValidate(t *testing.T) {
	tests := map[string]struct {
		change func(*preload.Config)
		want   string
	}{
		"window too short":    {func(c *preload.Config) { c.Window, c.Lead = time.Millisecond, time.Millisecond }, "window: want a part of a day"},
		"window too long":     {func(c *preload.Config) { c.Window = 2 * time.Hour }, "window: want a part of a day"},
		"window not of a day": {func(c *preload.Config) { c.Window = 7 * time.Minute }, "window: want a part of a day"},
		"keys":                {func(c *preload.Config) { c.Keys = 3 }, "keys: want 16 to"},
		"max_bytes":           {func(c *preload.Config) { c.MaxBytes = 0 }, "max_bytes: must be > 0"},
		"horizon":             {func(c *preload.Config) { c.Horizon = 0 }, "horizon: want above 0s"},
		"min_demand":          {func(c *preload.Config) { c.MinDemand = 0 }, "min_demand: must be > 0"},
		"top":                 {func(c *preload.Config) { c.Top = 0 }, "top: want 1 to"},
		"max_tokens":          {func(c *preload.Config) { c.MaxTokens = 0 }, "max_tokens: must be > 0"},
		"lead":                {func(c *preload.Config) { c.Lead = 6 * time.Minute }, "lead: want above 0s and at most the window (5m0s)"},
		"concurrency":         {func(c *preload.Config) { c.Concurrency = 0 }, "concurrency: want 1 to"},
		"timeout":             {func(c *preload.Config) { c.Timeout = -1 }, "timeout: must be > 0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := preload.Default()
			tt.change(&cfg)
			if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	none := preload.Config{}
	if err := none.Validate(); err == nil || strings.Count(err.Error(), "\n") < 8 {
		t.Errorf("not every mistake is told: %v", err)
	}
}
