// Package telemetry constructs what the other packages report with: the logger,
// the registry of metrics, and traces.
//
// Traces leave over OTLP/HTTP when an endpoint is configured. A request has one
// server span, which continues the client's W3C trace context and whose own
// context is sent upstream, and one client span per attempt, made from the
// request's record when it ends, so that the request's path pays for nothing but
// the head of the span. Names follow OpenTelemetry's GenAI conventions.
//
// Tracing.Run owns the exporter and its goroutines. Spans wait in a bounded
// queue; what does not fit or cannot be sent is dropped and counted. A reload
// builds the new exporter before it flushes the old one. Without an endpoint, and
// before and after Run, Start and Finish cost one atomic load.
package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Config is the section `telemetry` of the configuration.
type Config struct {
	// The gateway's own log, which goes to stderr.
	Log Log `yaml:"log"`
	// Traces over OTLP.
	Traces Traces `yaml:"traces"`
}

// Log is how the gateway's own log is written.
type Log struct {
	// Least severity that is written: `debug`, `info`, `warn` or `error`.
	Level string `yaml:"level"`
	// Form of a line: `json` or `text`.
	Format string `yaml:"format"`
}

// Traces is where traces go.
type Traces struct {
	// URL of an OTLP/HTTP collector, e.g. `http://localhost:4318`; empty is off. Without a path it is completed by /v1/traces. Credentials are read from the environment variable OTEL_EXPORTER_OTLP_HEADERS.
	Endpoint string `yaml:"endpoint"`
	// Share (0 to 1) of the requests that are traced. A request that comes with a trace context follows the client's decision.
	SampleRatio float64 `yaml:"sample_ratio"`
	// Most spans that wait to be sent; more are dropped.
	Queue int `yaml:"queue"`
	// Longest time for a batch to be sent, and for the last ones when the gateway stops.
	Timeout time.Duration `yaml:"timeout"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Log:    Log{Level: "info", Format: "json"},
		Traces: Traces{SampleRatio: 1, Queue: 2048, Timeout: 5 * time.Second},
	}
}

// levels are the severities by name.
var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	_, known := levels[c.Log.Level]
	check(known, "log.level: want debug, info, warn or error, got %q", c.Log.Level)
	check(slices.Contains([]string{"json", "text"}, c.Log.Format), "log.format: want json or text, got %q", c.Log.Format)
	if c.Traces.Endpoint != "" {
		_, err := endpoint(c.Traces.Endpoint)
		check(err == nil, "traces.endpoint: %v", err)
	}
	check(c.Traces.SampleRatio >= 0 && c.Traces.SampleRatio <= 1, "traces.sample_ratio: must be 0 to 1, got %v", c.Traces.SampleRatio)
	check(c.Traces.Queue >= 1 && c.Traces.Queue <= 1_000_000, "traces.queue: must be 1 to 1000000, got %d", c.Traces.Queue)
	check(c.Traces.Timeout > 0, "traces.timeout: must be > 0, got %v", c.Traces.Timeout)
	return errors.Join(errs...)
}

// endpoint reads a collector's URL and completes its path.
func endpoint(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("not a URL") // url.Error would repeat what may hold a password
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return "", fmt.Errorf("want http://host:port or https://host:port, got %q", u.Redacted())
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("credentials, queries and fragments have no place in it: %q", u.Redacted())
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// Logger writes the gateway's own log. Its level can be changed while it runs.
type Logger struct {
	*slog.Logger
	level *slog.LevelVar
}

// NewLogger returns a logger that writes to w, which must take a line with one
// Write.
func NewLogger(cfg Log, w io.Writer) *Logger {
	l := &Logger{level: new(slog.LevelVar)}
	l.Apply(cfg)
	options := &slog.HandlerOptions{Level: l.level}
	if cfg.Format == "text" {
		l.Logger = slog.New(slog.NewTextHandler(w, options))
	} else {
		l.Logger = slog.New(slog.NewJSONHandler(w, options))
	}
	return l
}

// Apply changes the level, also of loggers that were made from l. The format
// stays as it was.
func (l *Logger) Apply(cfg Log) { l.level.Set(levels[cfg.Level]) }

// NewRegistry returns a registry with the metrics of the Go runtime and the
// process, and the build's version.
func NewRegistry(version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "spillway_build_info", Help: "1, with the version in its label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	return r
}
