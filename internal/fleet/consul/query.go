package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/spillway/spillway/internal/fleet"
)

// Bounds on an answer.
const (
	maxAnswer  = 32 << 20 // bytes
	maxRefusal = 64 << 10 // bytes, of an answer that is an error
	maxTargets = 10_000
	// answerLimit is how long an answer may take beyond the time that the agent may
	// hold it back.
	answerLimit = 10 * time.Second
)

// answer is what the agent said.
type answer struct {
	targets  []fleet.Target
	warnings []string
	index    uint64 // 0: it said none
}

// client asks one agent. It belongs to one goroutine.
type client struct {
	cfg       *Config
	health    *api.Health
	transport *http.Transport
}

// newClient reads the certificates. It connects to nothing.
func (c *Config) newClient() (*client, error) {
	at, err := c.address()
	if err != nil {
		return nil, err
	}
	conf := api.DefaultConfig()
	if path, ok := strings.CutPrefix(at, "unix://"); ok {
		at = "http://localhost"
		conf.Transport.Proxy = nil
		conf.Transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
	}
	conf.Address, conf.Token, conf.TokenFile = at, "", ""
	tls := &conf.TLSConfig
	tls.CAFile, tls.CertFile = cmp.Or(c.TLS.CAFile, tls.CAFile), cmp.Or(c.TLS.CertFile, tls.CertFile)
	tls.KeyFile, tls.Address = cmp.Or(c.TLS.KeyFile, tls.KeyFile), cmp.Or(c.TLS.ServerName, tls.Address)
	if conf.Transport.TLSClientConfig, err = api.SetupTLSConfig(tls); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	conf.HttpClient = &http.Client{
		Transport: bounded{conf.Transport},
		// A redirect would take the token to another host.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	made, err := api.NewClient(conf)
	if err != nil {
		return nil, err
	}
	return &client{cfg: c, health: made.Health(), transport: conf.Transport}, nil
}

// ask sends one query. With an index the agent holds it back until what it knows
// is newer, or for cfg.Wait and a sixteenth of that at most.
func (c *client) ask(ctx context.Context, index uint64) (answer, error) {
	token, err := c.cfg.token()
	if err != nil {
		return answer{}, err
	}
	limit := answerLimit
	if index > 0 {
		limit += c.cfg.Wait + c.cfg.Wait/16
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	q := &api.QueryOptions{
		Namespace: c.cfg.Namespace, Partition: c.cfg.Partition, Datacenter: c.cfg.Datacenter, Filter: c.cfg.Filter,
		AllowStale: c.cfg.Stale, WaitIndex: index, WaitTime: c.cfg.Wait, Token: token,
	}
	entries, meta, err := c.health.ServiceMultipleTags(c.cfg.Service, c.cfg.Tags, c.cfg.PassingOnly, q.WithContext(ctx))
	switch {
	case err != nil && ctx.Err() != nil:
		return answer{}, fmt.Errorf("no answer within %v", limit)
	case err != nil:
		return answer{}, refusal(err, token)
	case entries == nil:
		return answer{}, errors.New("the answer is not a list")
	case len(entries) == 0 && meta.ResultsFilteredByACLs:
		return answer{}, errors.New("the token may not read the service or its nodes")
	case len(entries) > maxTargets:
		return answer{}, fmt.Errorf("%d instances; at most %d are taken", len(entries), maxTargets)
	}
	targets, warnings := c.cfg.targets(entries)
	return answer{targets, warnings, meta.LastIndex}, nil
}

// close closes the connections that are idle.
func (c *client) close() { c.transport.CloseIdleConnections() }

// refusal is an error as it may be logged: short and without the token, which an
// agent or what is before it might repeat.
func refusal(err error, token string) error {
	text := err.Error()
	if e, ok := errors.AsType[api.StatusError](err); ok {
		text = fmt.Sprintf("status %d: %s", e.Code, strings.Join(strings.Fields(e.Body), " "))
	}
	if token != "" {
		text = strings.ReplaceAll(text, token, "***")
	}
	return errors.New(text[:min(len(text), 300)])
}

// bounded bounds the bodies of answers.
type bounded struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	most := int64(maxAnswer)
	if res.StatusCode != http.StatusOK {
		most = maxRefusal
	}
	res.Body = fleet.Bounded(res.Body, most)
	return res, nil
}
