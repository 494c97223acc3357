package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"time"
)

// Config is the section `store.redis` of the configuration: a Redis or Valkey that
// gateways share.
type Config struct {
	// Servers as `host:port`, or one `/path/of/a/socket`. None means that Redis is not used. Of a cluster, some of its nodes; with `sentinel`, the sentinels.
	Addresses []string `yaml:"addresses"`
	// The servers are a Redis cluster.
	Cluster bool `yaml:"cluster"`
	// Find the server by asking sentinels.
	Sentinel SentinelConfig `yaml:"sentinel"`
	// User of the access control list; empty means the default user.
	Username string `yaml:"username"`
	// Environment variable with the password. Not together with password_file.
	PasswordEnv string `yaml:"password_env"`
	// File with the password, read at start and at each reload.
	PasswordFile string `yaml:"password_file"`
	// Number of the database; a cluster has only 0.
	DB int `yaml:"db"`
	// Encryption of the connections.
	TLS TLSConfig `yaml:"tls"`
	// Begin of the name of every key, so that gateways and other programs can share a server. Gateways with the same prefix share what they keep.
	Prefix string `yaml:"prefix"`
	// Connections to each server that all short commands share: 1, 2, 4 or 8.
	Connections int `yaml:"connections"`
	// Most further connections to each server, for commands that wait there.
	BlockingConnections int `yaml:"blocking_connections"`
	// Longest time to connect to a server.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// A connection without any answer for so long is given up and replaced.
	Timeout time.Duration `yaml:"timeout"`
	// Most calls under way at once; a further one fails at once.
	Queue int `yaml:"queue"`
}

// SentinelConfig says how to find the server by sentinels.
type SentinelConfig struct {
	// Name that the sentinels know the server by. Empty means that there are no sentinels.
	Master string `yaml:"master"`
	// User at the sentinels; empty means the default user.
	Username string `yaml:"username"`
	// Environment variable with the password at the sentinels. Not together with password_file.
	PasswordEnv string `yaml:"password_env"`
	// File with the password at the sentinels.
	PasswordFile string `yaml:"password_file"`
}

// TLSConfig is the encryption of connections.
type TLSConfig struct {
	// Encrypt connections.
	Enabled bool `yaml:"enabled"`
	// File with the certificates (PEM) of the authorities that may sign the server's; empty means those of the system.
	CAFile string `yaml:"ca_file"`
	// File with this gateway's certificate (PEM), where the server asks for one.
	CertFile string `yaml:"cert_file"`
	// File with the key of the certificate (PEM).
	KeyFile string `yaml:"key_file"`
	// Name in the server's certificate; empty means that of the address.
	ServerName string `yaml:"server_name"`
	// Do not check the server's certificate: whoever is on the way can read and change everything.
	InsecureSkipVerify bool `yaml:"insecure_skip_verify"`
}

// Default returns the configuration of a file that says nothing: no Redis.
func Default() Config {
	return Config{
		Prefix: "spillway", Connections: 2, BlockingConnections: 32,
		ConnectTimeout: 2 * time.Second, Timeout: time.Second, Queue: 512,
	}
}

// Enabled says whether a server is configured.
func (c *Config) Enabled() bool { return len(c.Addresses) > 0 }

// prefixes are the prefixes that mean themselves in patterns of SCAN and in the
// hash tags of a cluster.
var prefixes = regexp.MustCompile(`^[A-Za-z0-9_.:/-]{1,64}$`)

// Validate returns every mistake in the section. It connects to nothing.
func (c *Config) Validate() error {
	errs := c.places()
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	count := func(key string, n, least, most int) {
		if n < least || n > most {
			bad("%s: must be %d to %d, got %d", key, least, most, n)
		}
	}
	span := func(key string, d time.Duration) {
		if d < 10*time.Millisecond || d > time.Minute {
			bad("%s: must be 10ms to 1m, got %v", key, d)
		}
	}
	count("db", c.DB, 0, 1<<20)
	count("connections", c.Connections, 1, 8)
	if c.Connections&(c.Connections-1) != 0 {
		bad("connections: must be 1, 2, 4 or 8, got %d", c.Connections)
	}
	count("blocking_connections", c.BlockingConnections, 1, 10_000)
	count("queue", c.Queue, 1, 1<<14)
	span("connect_timeout", c.ConnectTimeout)
	span("timeout", c.Timeout)
	if !prefixes.MatchString(c.Prefix) {
		bad("prefix: want 1 to 64 letters, digits or _.:/-, got %q", c.Prefix)
	}
	if _, err := password(c.PasswordEnv, c.PasswordFile); err != nil {
		bad("%w", err)
	}
	if _, err := password(c.Sentinel.PasswordEnv, c.Sentinel.PasswordFile); err != nil {
		bad("sentinel.%w", err)
	}
	if _, err := c.TLS.config(); err != nil {
		bad("tls.%w", err)
	}
	return errors.Join(errs...)
}

// places judges the addresses and what is said of the servers there.
func (c *Config) places() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for i, a := range c.Addresses {
		switch host, port, err := net.SplitHostPort(a); {
		case strings.HasPrefix(a, "/"):
			if len(c.Addresses) > 1 || c.Cluster || c.Sentinel.Master != "" || c.TLS.Enabled {
				bad("addresses[%d]: a socket is the only address, of a single server without TLS", i)
			}
		case strings.Contains(a, "@") || strings.Contains(a, "://"): // a URL, which may hold a password
			bad("addresses[%d]: want host:port and no URL; users and passwords have keys of their own", i)
		case err != nil:
			bad("addresses[%d]: %w", i, err)
		case host == "" || port == "":
			bad("addresses[%d]: want host:port, got %q", i, a)
		}
	}
	switch {
	case c.Cluster && c.Sentinel.Master != "":
		bad("cluster: a cluster has no sentinels")
	case c.Cluster && c.DB != 0:
		bad("db: a cluster has database 0 only, got %d", c.DB)
	case len(c.Addresses) > 1 && !c.Cluster && c.Sentinel.Master == "":
		bad("addresses: more than one server needs cluster: true or sentinel.master")
	}
	return errs
}

// password reads a secret from where a section says it is.
func password(env, file string) (string, error) {
	switch {
	case env != "" && file != "":
		return "", errors.New("password_file: give either password_env or password_file")
	case env != "":
		s, ok := os.LookupEnv(env)
		if !ok {
			return "", fmt.Errorf("password_env: environment variable %q is not set", env)
		}
		return s, nil
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("password_file: %w", err)
		}
		return strings.TrimRight(string(b), "\r\n"), nil
	}
	return "", nil
}

// config reads the files, and returns nil where connections are not encrypted.
func (c *TLSConfig) config() (*tls.Config, error) {
	if !c.Enabled {
		if *c != (TLSConfig{}) {
			return nil, errors.New("enabled: must be true where TLS is configured")
		}
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: no certificate in %s", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("cert_file: a certificate and its key belong together")
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}
