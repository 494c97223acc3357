// Package consultest starts real Consul agents for tests. They end with the test.
//
// A test whose agent cannot be had on this machine is ended by testkit.Missing.
package consultest

import (
	"context"
	"errors"
	"testing"

	"github.com/spillway/spillway/internal/bench/registry"
	"github.com/spillway/spillway/internal/testkit"
)

// Agent is a Consul agent that is its own only server. Its methods fail the test
// where those of registry.Consul have an error.
type Agent struct {
	*registry.Consul
	t testing.TB
}

// Service is an instance of a service as the catalog has it.
type Service = registry.Service

// Start starts an agent and waits until it is the leader. hcl is added to its
// configuration; token is the one to administer it with, "" where it asks for
// none.
func Start(t testing.TB, hcl, token string) *Agent {
	t.Helper()
	var problem error
	for range 5 { // a port may be taken before the agent has it
		c, err := registry.NewConsul(t.TempDir(), hcl, token)
		if errors.Is(err, registry.ErrMissing) {
			testkit.Missing(t, "%v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if problem = c.Start(t.Context()); problem == nil {
			t.Cleanup(c.Close)
			return &Agent{c, t}
		}
	}
	t.Fatal(problem)
	return nil
}

// Restart kills the agent, if it runs, and starts it at the same address, empty:
// its indexes begin again.
func (a *Agent) Restart() {
	a.t.Helper()
	a.Close()
	if err := a.Start(a.t.Context()); err != nil {
		a.t.Fatal(err)
	}
}

// Do calls the agent's API with a body of JSON, nil for none, and returns the
// answer's body.
func (a *Agent) Do(method, path string, body any) string {
	a.t.Helper()
	got, err := a.Try(method, path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	return got
}

// Try is Do with the error.
func (a *Agent) Try(method, path string, body any) (string, error) {
	return a.Call(context.Background(), method, path, body)
}

// Set writes an instance into the catalog with one check of the given status.
func (a *Agent) Set(s Service, status string) {
	a.t.Helper()
	if err := a.Consul.Set(context.Background(), s, status); err != nil {
		a.t.Fatal(err)
	}
}

// Remove takes an instance out of the catalog.
func (a *Agent) Remove(id string) {
	a.t.Helper()
	if err := a.Consul.Remove(context.Background(), id); err != nil {
		a.t.Fatal(err)
	}
}
