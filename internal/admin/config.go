package admin

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

// Config is the section `admin` of the configuration: the listener for operators.
type Config struct {
	// Address to listen on for operators, as host:port. Beyond loopback a token is required.
	Listen string `yaml:"listen"`
	// Environment variable that holds the token which operators send as `Authorization: Bearer TOKEN`.
	TokenEnv string `yaml:"token_env"`
	// File that holds the token; it is read again on reload.
	TokenFile string `yaml:"token_file"`
	// Serve Go's profiles under /debug/pprof.
	Pprof bool `yaml:"pprof"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config { return Config{Listen: "127.0.0.1:9090"} }

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		errs = append(errs, fmt.Errorf("listen: want host:port, got %q", c.Listen))
	} else if c.TokenEnv == "" && c.TokenFile == "" && !isLoopback(host) {
		errs = append(errs, fmt.Errorf("listen: %q can be reached from other machines; set token_env or token_file, or listen on 127.0.0.1", c.Listen))
	}
	if _, err := c.token(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Bounds of a token's length in bytes. Shorter ones can be guessed.
const (
	minToken = 8
	maxToken = 4096
)

// token reads the token; "" is none. Its errors never repeat it.
func (c *Config) token() (string, error) {
	key, token := "token_env", ""
	switch {
	case c.TokenEnv != "" && c.TokenFile != "":
		return "", errors.New("token_file: give token_env or token_file, not both")
	case c.TokenEnv != "":
		token = os.Getenv(c.TokenEnv)
	case c.TokenFile != "":
		key = "token_file"
		f, err := os.Open(c.TokenFile)
		if err != nil {
			return "", fmt.Errorf("token_file: %w", err)
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("token_file: %w", err)
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
