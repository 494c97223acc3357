package consul

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/spillway/spillway/internal/fleet"
)

// Bounds of Config.Wait; Consul takes a longer one for ten minutes.
const (
	minWait = time.Second
	maxWait = 10 * time.Minute
)

// Where the agent is, and its secret, when the configuration does not say: as
// for Consul's own tools.
const (
	addressVariable = "CONSUL_HTTP_ADDR"
	tokenVariable   = "CONSUL_HTTP_TOKEN"
	defaultAddress  = "http://127.0.0.1:8500"
)

// Config is the key `consul` in a pool's section of the configuration.
type Config struct {
	// The Consul agent, `http://host:port`, `https://host:port` or `unix:///path/of/a/socket`. Empty means the environment variable CONSUL_HTTP_ADDR, and without it http://127.0.0.1:8500.
	Address string `yaml:"address"`
	// Name of the service that the instances are registered as.
	Service string `yaml:"service"`
	// Tags that an instance must have, all of them.
	Tags []string `yaml:"tags"`
	// Filter expression that the agent applies, such as `Service.Meta.gpu == "h100" and "spot" not in Service.Tags`.
	Filter string `yaml:"filter"`
	// Datacenter to ask for; empty means the agent's.
	Datacenter string `yaml:"datacenter"`
	// Namespace of the service (Consul Enterprise); empty means the token's.
	Namespace string `yaml:"namespace"`
	// Admin partition of the service (Consul Enterprise); empty means the agent's.
	Partition string `yaml:"partition"`
	// Environment variable with the ACL token. Not together with token_file. Without both, CONSUL_HTTP_TOKEN is used when it is set.
	TokenEnv string `yaml:"token_env"`
	// File with the ACL token, read before each query.
	TokenFile string `yaml:"token_file"`
	// Certificates of an https address, read again after each failure.
	TLS TLSConfig `yaml:"tls"`
	// Longest time that the agent holds a query back while nothing changes, 1s to 10m.
	Wait time.Duration `yaml:"wait"`
	// Let any of Consul's servers answer, not only the leader: queries go on while there is no leader, and changes may be seen a little later.
	Stale bool `yaml:"stale"`
	// Take only instances all of whose checks pass. Without it those with a warning are taken too; critical ones and those in maintenance never are.
	PassingOnly bool `yaml:"passing_only"`
	// How instances without a tag `scheme=` are reached: `http` or `https`. With https, set the name to expect in their certificates (tls_server_name) where they are known by address.
	Scheme string `yaml:"scheme"`
	// Base path of instances without a tag `path=`.
	Path string `yaml:"path"`
}

// TLSConfig is the encryption of the agent's connection.
type TLSConfig struct {
	// File with the certificates (PEM) of the authorities that may sign the agent's; empty means those of the system.
	CAFile string `yaml:"ca_file"`
	// File with this gateway's certificate (PEM), where the agent asks for one.
	CertFile string `yaml:"cert_file"`
	// File with the key of the certificate (PEM).
	KeyFile string `yaml:"key_file"`
	// Name in the agent's certificate; empty means that of the address.
	ServerName string `yaml:"server_name"`
}

// Default returns the configuration of a section that says nothing.
func Default() Config {
	return Config{Wait: time.Minute, Stale: true, PassingOnly: true, Scheme: "http"}
}

// Validate returns every mistake in the section. It reads and connects to nothing:
// what files and the environment hold may come later.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Service != "", "service: is missing")
	check(word(c.Service, "/"), "service: must not contain slashes or control characters, got %q", c.Service)
	for i, tag := range c.Tags {
		check(tag != "" && word(tag, ""), "tags[%d]: must be a tag, got %q", i, tag)
	}
	check(word(c.Datacenter, " /"), "datacenter: must not contain spaces or slashes, got %q", c.Datacenter)
	check(word(c.Namespace, " /"), "namespace: must not contain spaces or slashes, got %q", c.Namespace)
	check(word(c.Partition, " /"), "partition: must not contain spaces or slashes, got %q", c.Partition)
	check(c.TokenEnv == "" || c.TokenFile == "", "token_file: has no place beside token_env")
	check((c.TLS.CertFile == "") == (c.TLS.KeyFile == ""), "tls.key_file: cert_file and key_file go together")
	check(c.Wait >= minWait && c.Wait <= maxWait, "wait: must be %v to %v, got %v", minWait, maxWait, c.Wait)
	check(c.Scheme == "http" || c.Scheme == "https", "scheme: want http or https, got %q", c.Scheme)
	if c.Path != "" {
		_, err := fleet.ParseURL("http://host" + c.Path)
		check(strings.HasPrefix(c.Path, "/") && err == nil, "path: must begin with a slash and be a path, got %q", c.Path)
	}
	if err := checkAddress(c.Address); c.Address != "" && err != nil {
		errs = append(errs, fmt.Errorf("address: %w", err))
	}
	return errors.Join(errs...)
}

// word says whether a text holds neither control characters nor any of the
// others named.
func word(s, others string) bool {
	return !strings.ContainsFunc(s, unicode.IsControl) && (others == "" || !strings.ContainsAny(s, others))
}

// checkAddress judges the address of an agent.
func checkAddress(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return err
	case u.User != nil:
		return errors.New("credentials have no place in it; use token_env or token_file")
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("want no query and no fragment, got %q", s)
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path), (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "":
		return nil
	}
	return fmt.Errorf("want http://host:port, https://host:port or unix:///path, got %q", s)
}

// address is where the agent is. What the environment says may lack a scheme.
func (c *Config) address() (string, error) {
	at := cmp.Or(c.Address, os.Getenv(addressVariable), defaultAddress)
	if !strings.Contains(at, "://") {
		at = "http://" + at
	}
	if err := checkAddress(at); err != nil {
		return "", fmt.Errorf("address of the agent: %w", err)
	}
	return at, nil
}

// maxToken is the longest token that is read, in bytes.
const maxToken = 4096

// token is the secret as it is now; "" is none.
func (c *Config) token() (string, error) {
	var text string
	switch {
	case c.TokenFile != "":
		data, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return "", fmt.Errorf("token_file: %w", err)
		}
		if text = strings.TrimSpace(string(data)); text == "" {
			return "", fmt.Errorf("token_file: %s is empty", c.TokenFile)
		}
	case c.TokenEnv != "":
		if text = strings.TrimSpace(os.Getenv(c.TokenEnv)); text == "" {
			return "", fmt.Errorf("token_env: %s is not set", c.TokenEnv)
		}
	default:
		text = strings.TrimSpace(os.Getenv(tokenVariable))
	}
	if len(text) > maxToken || !word(text, " ") {
		return "", errors.New("the token has spaces or control characters, or is too long")
	}
	return text, nil
}
