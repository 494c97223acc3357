package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// Config says how a pool's instances are reached. It is part of the pool's
// section of the configuration.
type Config struct {
	// Name of the environment variable with the API key that is sent to the pool's instances.
	APIKeyEnv string `yaml:"api_key_env"`
	// File with the API key, read at start and at each reload. Not together with api_key_env.
	APIKeyFile string `yaml:"api_key_file"`
	// Header that carries the API key: `authorization` (as a bearer token) or `x-api-key`.
	APIKeyHeader string `yaml:"api_key_header"`
	// Pass the client's own Authorization, x-api-key and Cookie on to the instances.
	ForwardAuth bool `yaml:"forward_auth"`
	// Header fields to add to each request.
	Headers map[string]string `yaml:"headers" secret:"values"`
	// Ask for usage in every stream (stream_options.include_usage); taken out again when the client did not ask.
	IncludeUsage bool `yaml:"include_usage"`
	// Ask for answers in one piece as streams and put them together again: `auto` or `off`. Without it Spillway cannot see how fast the instance gives tokens, and learns its limit from streams alone. `auto` does it for chat and completions with one choice and known parameters, never in a pool with `provider: true`. Turn it off where the server's streams say less than its answers in one piece.
	Reassemble string `yaml:"reassemble"`
	// Longest time to connect, TLS included.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// Longest wait for the first token; 0 leaves it to the request's deadline.
	FirstTokenTimeout time.Duration `yaml:"first_token_timeout"`
	// Longest silence between two data events of a stream. Comments do not count.
	StreamIdleTimeout time.Duration `yaml:"stream_idle_timeout"`
	// Idle connections kept for each instance.
	MaxIdleConns int `yaml:"max_idle_conns"`
	// How long an idle connection is kept.
	IdleConnTimeout time.Duration `yaml:"idle_conn_timeout"`
	// Longest cool-down that an instance's own Retry-After can cause.
	MaxRetryAfter time.Duration `yaml:"max_retry_after"`
	// Use HTTP/2 where the instance offers it (https only).
	HTTP2 bool `yaml:"http2"`
	// Outbound proxy, as http://host:port. Requests then go through Go's http.Transport.
	Proxy string `yaml:"proxy"`
	// File with the certificate authorities to trust instead of the system's, PEM.
	TLSCAFile string `yaml:"tls_ca_file"`
	// Name to expect in the instance's certificate instead of its host name.
	TLSServerName string `yaml:"tls_server_name"`
}

// The values of Config.Reassemble.
const (
	ReassembleAuto = "auto"
	ReassembleOff  = "off"
)

// Default returns the configuration of a pool that says nothing.
func Default() Config {
	return Config{
		APIKeyHeader:      "authorization",
		IncludeUsage:      true,
		Reassemble:        ReassembleAuto,
		ConnectTimeout:    2 * time.Second,
		StreamIdleTimeout: 60 * time.Second,
		MaxIdleConns:      512,
		IdleConnTimeout:   90 * time.Second,
		MaxRetryAfter:     30 * time.Second,
	}
}

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.APIKeyEnv != "" && c.APIKeyFile != "" {
		bad("api_key_file: give either api_key_env or api_key_file")
	}
	if c.APIKeyEnv != "" {
		if _, ok := os.LookupEnv(c.APIKeyEnv); !ok {
			bad("api_key_env: environment variable %q is not set", c.APIKeyEnv)
		}
	}
	if c.APIKeyFile != "" {
		if _, err := os.Stat(c.APIKeyFile); err != nil {
			bad("api_key_file: %w", err)
		}
	}
	if !slices.Contains([]string{"authorization", "x-api-key"}, c.APIKeyHeader) {
		bad("api_key_header: want authorization or x-api-key, got %q", c.APIKeyHeader)
	}
	if c.Reassemble != ReassembleAuto && c.Reassemble != ReassembleOff {
		bad("reassemble: want auto or off, got %q", c.Reassemble)
	}
	for name, value := range c.Headers {
		if !validName(name) || strings.ContainsAny(value, "\r\n\x00") {
			bad("headers: field %q cannot be sent", name)
		} else if dropRequest[http.CanonicalHeaderKey(name)] {
			bad("headers: field %q is set by Spillway itself", name)
		}
	}
	for key, d := range map[string]time.Duration{
		"connect_timeout": c.ConnectTimeout, "stream_idle_timeout": c.StreamIdleTimeout, "idle_conn_timeout": c.IdleConnTimeout,
	} {
		if d <= 0 {
			bad("%s: must be > 0, got %v", key, d)
		}
	}
	if c.FirstTokenTimeout < 0 {
		bad("first_token_timeout: must be >= 0, got %v", c.FirstTokenTimeout)
	}
	if c.MaxRetryAfter < 0 {
		bad("max_retry_after: must be >= 0, got %v", c.MaxRetryAfter)
	}
	if c.MaxIdleConns < 0 {
		bad("max_idle_conns: must be >= 0, got %d", c.MaxIdleConns)
	}
	if c.Proxy != "" {
		if u, err := url.Parse(c.Proxy); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			bad("proxy: want http://host:port, got %q", c.Proxy)
		}
	}
	if c.TLSCAFile != "" {
		if _, err := roots(c.TLSCAFile); err != nil {
			bad("tls_ca_file: %w", err)
		}
	}
	return errors.Join(errs...)
}

// key reads the API key; "" is none.
func (c *Config) key() (string, error) {
	if c.APIKeyEnv != "" {
		return strings.TrimSpace(os.Getenv(c.APIKeyEnv)), nil
	}
	if c.APIKeyFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(c.APIKeyFile)
	if err != nil {
		return "", fmt.Errorf("api key: %w", err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsAny(key, "\r\n\x00") {
		return "", fmt.Errorf("api key: %s must hold one line", c.APIKeyFile)
	}
	return key, nil
}
