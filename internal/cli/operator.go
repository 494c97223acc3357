package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/admin"
)

// What the admin listener is asked with.
const (
	adminTokenEnv = "SPILLWAY_ADMIN_TOKEN"
	adminTimeout  = 15 * time.Second // behind the gateway's own for a body
	maxAnswer     = 256 << 20        // bytes; entries can be printed with all of their text
	maxLine       = 1 << 20          // bytes of an answer that comes line by line
	maxComplaint  = 300              // bytes of it in a message
)

// operator is how the admin listener of a running gateway is reached.
type operator struct {
	env      Env
	url      string
	tokenEnv string
	ca       string // file of authorities
	cert     string // file of this client's certificate
	key      string // file of its key
	json     bool
}

// flags adds the flags that every command has that talks to a running gateway.
func (o *operator) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.url, "admin", "http://"+admin.Default().Listen, "base `URL` of the gateway's admin listener")
	f.StringVar(&o.tokenEnv, "token-env", adminTokenEnv, "environment `variable` that holds the admin token, where one is needed")
	f.StringVar(&o.ca, "tls-ca", "", "`file` with the authorities of the listener's certificate, in PEM; empty: the system's")
	f.StringVar(&o.cert, "tls-cert", "", "`file` with a certificate to show, in PEM, where one is needed")
	f.StringVar(&o.key, "tls-key", "", "`file` with its private key, in PEM")
	f.BoolVar(&o.json, "json", false, "print the answer as JSON")
}

// open asks a path below /admin on a connection of its own. The caller closes the
// answer's body.
func (o *operator) open(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	base, err := url.Parse(o.url)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" {
		return nil, fmt.Errorf("%w: --admin: want a URL as %s, got %q", errUsage, "http://"+admin.Default().Listen, o.url)
	}
	path, query, _ := strings.Cut(path, "?")
	to := base.JoinPath("admin", path)
	to.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, to.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if token := strings.TrimSpace(os.Getenv(o.tokenEnv)); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	secure, err := o.tls()
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: secure},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for one host
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w; is the gateway up, and is this its admin listener?", err)
	}
	return resp, nil
}

// tls is how the listener's certificate is judged, and what it is shown.
func (o *operator) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.ca != "" {
		pem, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tls-ca: %s has no certificate in it", o.ca)
		}
	}
	if (o.cert == "") != (o.key == "") {
		return nil, fmt.Errorf("%w: --tls-cert and --tls-key go together", errUsage)
	}
	if o.cert != "" {
		cert, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert: %w", err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// call asks a path below /admin and reads the whole answer.
func (o *operator) call(ctx context.Context, method, path string, body io.Reader) (status int, answer []byte, err error) {
	resp, err := o.open(ctx, method, path, body)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, answer, err
}

// refusal words an answer that is not what was asked for. what is missing where
// there is no such path.
func (o *operator) refusal(status int, answer []byte, what string) error {
	switch status {
	case http.StatusBadRequest:
		return fmt.Errorf("%w: %s", errUsage, complaint(answer))
	case http.StatusUnauthorized:
		return fmt.Errorf("%s: %s; this command takes the token from %s, and a certificate with --tls-cert", o.url, complaint(answer), o.tokenEnv)
	case http.StatusNotFound:
		return fmt.Errorf("%s has no %s: give the address of a gateway's admin listener with --admin", o.url, what)
	}
	return fmt.Errorf("%s: status %d: %s", o.url, status, complaint(answer))
}

// complaint is what an answer says is wrong: the message of an error, or the
// beginning of what somebody else's server said.
func complaint(answer []byte) string {
	var v struct{ Error struct{ Message string } }
	text := string(answer)
	if json.Unmarshal(answer, &v) == nil && v.Error.Message != "" {
		text = v.Error.Message
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	text = strings.TrimSpace(text)
	if len(text) > maxComplaint {
		text = strings.ToValidUTF8(text[:maxComplaint], "") + "..."
	}
	return text
}
