package api

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Config is the section `api` of the configuration: the listener for clients.
type Config struct {
	// Address to listen on for clients, as host:port.
	Listen string `yaml:"listen"`
	// Certificate file, PEM. With it and tls_key_file the listener speaks TLS, HTTP/2 by ALPN.
	TLSCertFile string `yaml:"tls_cert_file"`
	// Private key file, PEM.
	TLSKeyFile string `yaml:"tls_key_file"`
	// Which front reads plain HTTP/1.1: `lean`, which answers requests in the common form itself and gives all others to net/http, or `net_http` for all. With TLS or the PROXY protocol, and where the system is not Linux, it is always net/http.
	Front string `yaml:"front"`
	// Longest time for a request's head to arrive.
	ReadHeaderTimeout time.Duration `yaml:"read_header_timeout"`
	// Longest time for a request's body to arrive.
	ReadBodyTimeout time.Duration `yaml:"read_body_timeout"`
	// How long an idle keep-alive connection is kept.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
	// A client that takes nothing for this long is cut.
	WriteStallTimeout time.Duration `yaml:"write_stall_timeout"`
	// Largest request head.
	MaxHeader inference.Bytes `yaml:"max_header"`
	// Largest request body.
	MaxBody inference.Bytes `yaml:"max_body"`
	// Most request bodies in memory at once, all requests together.
	MaxBuffered inference.Bytes `yaml:"max_buffered"`
	// Send buffer of each connection: what a slow reader can leave unread before its upstream is no longer read.
	SendBuffer inference.Bytes `yaml:"send_buffer"`
	// Networks of proxies in front of Spillway whose X-Forwarded-For, Forwarded and PROXY protocol headers are believed. A proxy must set or take out X-Forwarded-For: where both are there it counts, and Forwarded does not.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// Expect a PROXY protocol header (version 1 or 2) on connections from trusted proxies.
	ProxyProtocol bool `yaml:"proxy_protocol"`
	// Answer /livez and /readyz on this listener too.
	Probes bool `yaml:"probes"`
	// Extra address that answers /livez and /readyz only, as host:port; empty is none.
	ProbeListen string `yaml:"probe_listen"`
	// How long a stop waits for requests in progress before it cuts them.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
}

// The fronts.
const (
	FrontLean    = "lean"
	FrontNetHTTP = "net_http"
)

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Listen:            ":8080",
		Front:             FrontLean,
		ReadHeaderTimeout: 10 * time.Second,
		ReadBodyTimeout:   60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		WriteStallTimeout: 30 * time.Second,
		MaxHeader:         64 << 10,
		MaxBody:           32 << 20,
		MaxBuffered:       256 << 20,
		SendBuffer:        128 << 10,
		Probes:            true,
		DrainTimeout:      30 * time.Second,
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
	_, _, err := net.SplitHostPort(c.Listen)
	check(err == nil, "listen: want host:port, got %q", c.Listen)
	if c.ProbeListen != "" {
		_, _, err := net.SplitHostPort(c.ProbeListen)
		check(err == nil, "probe_listen: want host:port, got %q", c.ProbeListen)
	}
	check(c.Front == FrontLean || c.Front == FrontNetHTTP, "front: want lean or net_http, got %q", c.Front)
	check((c.TLSCertFile == "") == (c.TLSKeyFile == ""), "tls_key_file: give both tls_cert_file and tls_key_file or neither")
	if c.TLSCertFile != "" && c.TLSKeyFile != "" {
		_, err := tls.LoadX509KeyPair(c.TLSCertFile, c.TLSKeyFile)
		check(err == nil, "tls_cert_file: %v", err)
	}
	check(c.ReadHeaderTimeout > 0, "read_header_timeout: must be > 0, got %v", c.ReadHeaderTimeout)
	check(c.ReadBodyTimeout > 0, "read_body_timeout: must be > 0, got %v", c.ReadBodyTimeout)
	check(c.IdleTimeout > 0, "idle_timeout: must be > 0, got %v", c.IdleTimeout)
	check(c.WriteStallTimeout > 0, "write_stall_timeout: must be > 0, got %v", c.WriteStallTimeout)
	check(c.DrainTimeout >= 0, "drain_timeout: must be >= 0, got %v", c.DrainTimeout)
	check(c.MaxHeader >= 4096, "max_header: must be at least 4KiB, got %v", c.MaxHeader)
	check(c.MaxBody > 0, "max_body: must be > 0, got %v", c.MaxBody)
	check(c.MaxBuffered >= 64<<10, "max_buffered: must be at least 64KiB, got %v", c.MaxBuffered)
	check(c.MaxBuffered >= c.MaxBody, "max_buffered: must be at least max_body (%v), got %v", c.MaxBody, c.MaxBuffered)
	check(c.SendBuffer >= 4096, "send_buffer: must be at least 4KiB, got %v", c.SendBuffer)
	for _, s := range c.TrustedProxies {
		_, err := parsePrefix(s)
		check(err == nil, "trusted_proxies: want an address or a network such as 10.0.0.0/8, got %q", s)
	}
	check(!c.ProxyProtocol || len(c.TrustedProxies) > 0, "proxy_protocol: needs trusted_proxies")
	return errors.Join(errs...)
}

// parsePrefix reads a network, or a single address as a network of one.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	return netip.ParsePrefix(s)
}
