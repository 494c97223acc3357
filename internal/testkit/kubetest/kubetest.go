// Package kubetest starts real Kubernetes API servers for tests, each with an etcd
// of its own. They end with the test.
//
// A test whose servers cannot be had on this machine is ended by testkit.Missing.
package kubetest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/spillway/spillway/internal/bench/registry"
	"github.com/spillway/spillway/internal/testkit"
)

// The tokens that a server knows: of its administrator, and of the user "reader"
// who may do nothing until a role is bound to them.
const (
	AdminToken  = registry.AdminToken
	ReaderToken = registry.ReaderToken
)

// StatusError is an answer other than 200 and 201.
type StatusError = registry.StatusError

// Server is an API server with its etcd. Its methods fail the test where those of
// registry.Kubernetes have an error.
type Server struct {
	*registry.Kubernetes
	t testing.TB
}

// Start starts a server and waits until it is ready.
func Start(t testing.TB) *Server {
	t.Helper()
	var problem error
	for range 5 { // a port may be taken before the server has it
		k, err := registry.NewKubernetes(t.TempDir())
		if errors.Is(err, registry.ErrMissing) {
			testkit.Missing(t, "%v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if problem = k.Start(t.Context()); problem == nil {
			t.Cleanup(k.Close)
			return &Server{k, t}
		}
	}
	t.Fatal(problem)
	return nil
}

// Restart kills the API server, if it runs, and starts it again. What was written
// is there, but no history of it.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	if err := s.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// Kubeconfig writes a kubeconfig and returns its path: the context "other" leads
// nowhere, the current one to the server at addr with the token in tokenFile, in a
// namespace.
func (s *Server) Kubeconfig(addr, tokenFile, namespace string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	if err := s.Kubernetes.Kubeconfig(path, addr, tokenFile, namespace); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Apply creates an object, or replaces it. path is that of its collection, such as
// /api/v1/namespaces/default/pods.
func (s *Server) Apply(path, name string, object any) {
	s.t.Helper()
	if err := s.Kubernetes.Apply(context.Background(), path, name, object); err != nil {
		s.t.Fatal(err)
	}
}

// Delete removes an object at once.
func (s *Server) Delete(path, name string) {
	s.t.Helper()
	if err := s.Kubernetes.Delete(context.Background(), path, name); err != nil {
		s.t.Fatal(err)
	}
}

// Try calls the server's API as the administrator, with a body of JSON, nil for
// none, and returns the answer's body. Refusals are of type *StatusError.
func (s *Server) Try(method, path string, body any) (string, error) {
	return s.Call(context.Background(), method, path, body)
}
