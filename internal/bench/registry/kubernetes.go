package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
)

// The tokens that an API server knows: of its administrator, and of a user
// "reader" who may do nothing until a role is bound to them.
const (
	AdminToken  = "admin-token-of-the-registry"
	ReaderToken = "reader-token-of-the-registry"
)

// Kubernetes is an API server with an etcd of its own, and nothing else: no
// controllers and no kubelets, so that EndpointSlices and pods are what is written.
type Kubernetes struct {
	caller
	dir  string
	addr string // host:port
	api  process
	etcd process
}

// NewKubernetes returns a server that does not run. It writes below dir. The error
// is ErrMissing where one of its programs is not there.
func NewKubernetes(dir string) (*Kubernetes, error) {
	apiserver, err := find("kube-apiserver")
	if err != nil {
		return nil, err
	}
	etcd, err := find("etcd")
	if err != nil {
		return nil, err
	}
	at, err := free(3)
	if err != nil {
		return nil, err
	}
	s := &Kubernetes{dir: dir, addr: at[0]}
	ca, err := s.certificates()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	s.caller = caller{
		client: &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}},
		base:   "https://" + s.addr,
		header: http.Header{"Authorization": {"Bearer " + AdminToken}, "Content-Type": {"application/json"}},
	}
	if err := os.WriteFile(s.path("tokens"), []byte(AdminToken+",admin,1,\"system:masters\"\n"+ReaderToken+",reader,2\n"), 0o600); err != nil {
		return nil, err
	}
	s.arguments(apiserver, etcd, at[1], at[2])
	return s, nil
}

// arguments says how the programs are started.
func (s *Kubernetes) arguments(apiserver, etcd, storeAddr, peerAddr string) {
	_, port, _ := net.SplitHostPort(s.addr)
	store, peers := "http://"+storeAddr, "http://"+peerAddr
	s.etcd = process{path: etcd, args: []string{
		"--data-dir", s.path("etcd"), "--listen-client-urls", store, "--advertise-client-urls", store, "--listen-peer-urls", peers,
		"--initial-advertise-peer-urls", peers, "--initial-cluster", "default=" + peers, "--logger", "zap", "--log-level", "error",
	}}
	s.api = process{path: apiserver, args: []string{
		"--etcd-servers", store, "--bind-address", "127.0.0.1", "--secure-port", port, "--advertise-address", "127.0.0.1",
		"--tls-cert-file", s.path("server.crt"), "--tls-private-key-file", s.path("server.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", s.path("server.key"),
		"--service-account-signing-key-file", s.path("server.key"), "--service-cluster-ip-range", "10.96.0.0/16",
		"--token-auth-file", s.path("tokens"), "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
		"--enable-priority-and-fairness=false", "--profiling=false", "--endpoint-reconciler-type", "none",
	}}
}

// path is a file of the server.
func (s *Kubernetes) path(name string) string { return filepath.Join(s.dir, name) }

// Start starts the API server, and etcd where it does not run, and waits until it
// is ready. What was written before is there, but no history of it.
func (s *Kubernetes) Start(ctx context.Context) error {
	if s.etcd.check() != nil {
		if err := s.etcd.start(); err != nil {
			return err
		}
	}
	if err := s.api.start(); err != nil {
		return err
	}
	err := await(ctx, func() (bool, error) {
		if err := errors.Join(s.api.check(), s.etcd.check()); err != nil {
			return false, err
		}
		got, err := s.Call(ctx, http.MethodGet, "/readyz", nil)
		return err == nil && got == "ok", nil
	})
	if err != nil {
		s.Close()
		return fmt.Errorf("start kube-apiserver: %w", err)
	}
	return nil
}

// Addr is the API server's host:port.
func (s *Kubernetes) Addr() string { return s.addr }

// CAFile is a file with the certificate that signs the server's.
func (s *Kubernetes) CAFile() string { return s.path("ca.crt") }

// Kill ends the API server at once; etcd goes on.
func (s *Kubernetes) Kill() {
	s.api.kill()
	s.client.CloseIdleConnections()
}

// Close ends both at once.
func (s *Kubernetes) Close() {
	s.Kill()
	s.etcd.kill()
}

// Signal sends a signal to the API server.
func (s *Kubernetes) Signal(sig syscall.Signal) { s.api.signal(sig) }

// Kubeconfig writes a kubeconfig: the context "other" leads nowhere, the current
// one to the server at addr with the token in tokenFile, in a namespace.
func (s *Kubernetes) Kubeconfig(file, addr, tokenFile, namespace string) error {
	return os.WriteFile(file, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: test
clusters:
- {name: test, cluster: {server: "https://%s", certificate-authority: %q}}
- {name: nowhere, cluster: {server: "https://127.0.0.1:1"}}
users:
- {name: gateway, user: {tokenFile: %q}}
contexts:
- {name: test, context: {cluster: test, user: gateway, namespace: %q}}
- {name: other, context: {cluster: nowhere, user: gateway}}
`, addr, s.CAFile(), tokenFile, namespace), 0o600)
}

// Apply creates an object, or replaces it. path is that of its collection, such as
// /api/v1/namespaces/default/pods.
func (s *Kubernetes) Apply(ctx context.Context, path, name string, object any) error {
	_, err := s.Call(ctx, http.MethodPut, path+"/"+name, object)
	if e, ok := errors.AsType[*StatusError](err); ok && e.Code == http.StatusNotFound {
		_, err = s.Call(ctx, http.MethodPost, path, object)
	}
	return err
}

// Delete removes an object at once.
func (s *Kubernetes) Delete(ctx context.Context, path, name string) error {
	_, err := s.Call(ctx, http.MethodDelete, path+"/"+name+"?gracePeriodSeconds=0", nil)
	return err
}
