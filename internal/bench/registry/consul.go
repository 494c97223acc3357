package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
)

// node is the name of the node that Set registers services on, and its address.
const (
	node        = "sim"
	nodeAddress = "10.0.0.9"
)

// Consul is a Consul agent that is its own only server, in memory.
type Consul struct {
	caller
	process process
}

// NewConsul returns an agent that does not run. It writes below dir; hcl is added
// to its configuration, and token is the one to administer it with, "" where it
// asks for none. The error is ErrMissing where there is no Consul.
func NewConsul(dir, hcl, token string) (*Consul, error) {
	path, err := find("consul")
	if err != nil {
		return nil, err
	}
	at, err := free(3)
	if err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		_, ports[i], _ = net.SplitHostPort(at[i])
	}
	hcl = fmt.Sprintf("disable_update_check = true\nports { http = %s server = %s serf_lan = %s serf_wan = -1 dns = -1 grpc = -1 grpc_tls = -1 }\n%s",
		ports[0], ports[1], ports[2], hcl)
	a := &Consul{
		caller: caller{client: &http.Client{Timeout: patience, Transport: new(http.Transport)}, base: "http://" + at[0], header: http.Header{}},
		process: process{path: path, env: []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}, args: []string{
			"agent", "-dev", "-node", "agent", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn", "-hcl", hcl,
		}},
	}
	if token != "" {
		a.header.Set("X-Consul-Token", token)
	}
	return a, nil
}

// Start starts the agent, empty, and waits until it leads.
func (a *Consul) Start(ctx context.Context) error {
	if err := a.process.start(); err != nil {
		return err
	}
	err := await(ctx, func() (bool, error) {
		if err := a.process.check(); err != nil {
			return false, err
		}
		// The agent registers itself when it leads and can write.
		got, err := a.Call(ctx, http.MethodGet, "/v1/catalog/service/consul", nil)
		return err == nil && strings.Contains(got, `"agent"`), nil
	})
	if err != nil {
		a.Close()
		return fmt.Errorf("start consul: %w", err)
	}
	return nil
}

// URL is the agent's address.
func (a *Consul) URL() string { return a.base }

// Close ends the process at once; what it kept is lost.
func (a *Consul) Close() {
	a.process.kill()
	a.client.CloseIdleConnections()
}

// Signal sends a signal to the process.
func (a *Consul) Signal(sig syscall.Signal) { a.process.signal(sig) }

// Service is an instance of a service as the catalog has it.
type Service struct {
	ID      string            `json:"ID"`
	Service string            `json:"Service"`
	Address string            `json:"Address,omitempty"`
	Port    int               `json:"Port"`
	Tags    []string          `json:"Tags,omitempty"`
	Meta    map[string]string `json:"Meta,omitempty"`
	Weights map[string]int    `json:"Weights,omitempty"` // by passing and warning
}

// Set writes an instance into the catalog with one check of the given status:
// passing, warning or critical. Its node's address is 10.0.0.9.
func (a *Consul) Set(ctx context.Context, s Service, status string) error {
	_, err := a.Call(ctx, http.MethodPut, "/v1/catalog/register", map[string]any{
		"Node": node, "Address": nodeAddress, "Service": s,
		"Check": map[string]any{"Node": node, "CheckID": "check:" + s.ID, "Name": "check", "Status": status, "ServiceID": s.ID},
	})
	return err
}

// Remove takes an instance out of the catalog.
func (a *Consul) Remove(ctx context.Context, id string) error {
	_, err := a.Call(ctx, http.MethodPut, "/v1/catalog/deregister", map[string]any{"Node": node, "ServiceID": id})
	return err
}
