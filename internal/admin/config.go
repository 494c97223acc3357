package admin

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// Config is the section `admin` of the configuration: the listener for operators.
type Config struct {
	// Address to listen on for operators, as host:port. Beyond loopback a token or certificates of clients are required.
	Listen string `yaml:"listen"`
	// Environment variable that holds the token which operators send as `Authorization: Bearer TOKEN`.
	TokenEnv string `yaml:"token_env"`
	// File that holds the token; it is read again on reload.
	TokenFile string `yaml:"token_file"`
	// Environment variable that holds a token for /metrics alone. Where there is one, /metrics asks for it, and takes what operators show too.
	MetricsTokenEnv string `yaml:"metrics_token_env"`
	// File that holds the token for /metrics; it is read again on reload.
	MetricsTokenFile string `yaml:"metrics_token_file"`
	// HTTPS, and certificates of operators.
	TLS TLSConfig `yaml:"tls"`
	// Serve Go's profiles under /debug/pprof.
	Pprof bool `yaml:"pprof"`
}

// TLSConfig is how the listener is encrypted. Its files are read again on reload.
type TLSConfig struct {
	// Certificate of the listener with its chain, in PEM. Without one the listener speaks plain HTTP.
	CertFile string `yaml:"cert_file"`
	// Private key of the certificate, in PEM.
	KeyFile string `yaml:"key_file"`
	// Authorities of operators' certificates, in PEM. With it everything but the probes asks for a certificate, and no token is needed; where a token is configured too, both are.
	ClientCAFile string `yaml:"client_ca_file"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config { return Config{Listen: "127.0.0.1:9090"} }

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		errs = append(errs, fmt.Errorf("listen: want host:port, got %q", c.Listen))
	} else if c.TokenEnv == "" && c.TokenFile == "" && c.TLS.ClientCAFile == "" && !isLoopback(host) {
		errs = append(errs, fmt.Errorf("listen: %q can be reached from other machines; set token_env, token_file or tls.client_ca_file, or listen on 127.0.0.1", c.Listen))
	}
	_, err = c.guard()
	return errors.Join(append(errs, err)...)
}

// guard is what a listener asks of those who connect.
type guard struct {
	token   *[sha256.Size]byte // digest of the operators' token; nil: none is asked for
	metrics *[sha256.Size]byte // digest of the token for /metrics alone; nil: there is none
	tls     *tls.Config        // nil: plain HTTP
	clients *x509.CertPool     // authorities of operators' certificates; nil: none is asked for
}

// guard reads the tokens and certificates.
func (c *Config) guard() (g guard, err error) {
	var errs []error
	for _, one := range []struct {
		secret
		into **[sha256.Size]byte
	}{{secret{"token", c.TokenEnv, c.TokenFile}, &g.token}, {secret{"metrics_token", c.MetricsTokenEnv, c.MetricsTokenFile}, &g.metrics}} {
		token, err := one.read()
		if err != nil {
			errs = append(errs, err)
		}
		if token != "" {
			sum := sha256.Sum256([]byte(token))
			*one.into = &sum
		}
	}
	if g.tls, g.clients, err = c.TLS.load(); err != nil {
		errs = append(errs, err)
	}
	return g, errors.Join(errs...)
}

// load reads the certificates.
func (c *TLSConfig) load() (*tls.Config, *x509.CertPool, error) {
	switch {
	case c.CertFile == "" && c.KeyFile == "" && c.ClientCAFile == "":
		return nil, nil, nil
	case c.CertFile == "" || c.KeyFile == "":
		return nil, nil, errors.New("tls.cert_file: cert_file and key_file are needed for TLS, and TLS for certificates of clients")
	}
	cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, nil, fmt.Errorf("tls.cert_file: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	if c.ClientCAFile == "" {
		return cfg, nil, nil
	}
	pem, err := os.ReadFile(c.ClientCAFile)
	if err != nil {
		return nil, nil, fmt.Errorf("tls.client_ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("tls.client_ca_file: %s has no certificate in it", c.ClientCAFile)
	}
	cfg.ClientAuth, cfg.ClientCAs = tls.VerifyClientCertIfGiven, pool // probes have none
	return cfg, pool, nil
}

// Bounds of a token's length in bytes. Shorter ones can be guessed.
const (
	minToken = 8
	maxToken = 4096
)

// secret is a token with the key of the configuration that says where it is, less
// its ending.
type secret struct{ key, env, file string }

// read reads the token; "" is none. Its errors never repeat it.
func (s secret) read() (string, error) {
	key, token := s.key+"_env", ""
	switch {
	case s.env != "" && s.file != "":
		return "", fmt.Errorf("%[1]s_file: give %[1]s_env or %[1]s_file, not both", s.key)
	case s.env != "":
		token = os.Getenv(s.env)
	case s.file != "":
		key = s.key + "_file"
		f, err := os.Open(s.file)
		if err != nil {
			return "", fmt.Errorf("%s: %w", key, err)
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("%s: %w", key, err)
		}
		token = string(data)
	default:
		return "", nil
	}
	token = strings.TrimSpace(token)
	if len(token) < minToken || len(token) > maxToken {
		return "", fmt.Errorf("%s: the token must have %d to %d characters, got %d", key, minToken, maxToken, len(token))
	}
	return token, nil
}
