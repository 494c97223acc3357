// Package kubetest starts real Kubernetes API servers for tests, each with an etcd
// of its own: no controllers, no kubelets, so that tests write EndpointSlices and
// pods themselves. They listen on ports of their own, keep what they keep in
// temporary directories, and end with the test, and with the test's process where
// the system can see to that.
//
// A test whose servers cannot be had on this machine is ended by testkit.Missing.
package kubetest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
)

// patience bounds every wait for a server.
const patience = 60 * time.Second

// The tokens that a server knows: of its administrator, and of one who may do
// nothing until a role is bound to the user "reader".
const (
	AdminToken  = "admin-token-of-the-tests"
	ReaderToken = "reader-token-of-the-tests"
)

// Server is an API server with its etcd.
type Server struct {
	t      testing.TB
	dir    string
	addr   string // of the API server, host:port
	etcd   string // of etcd, host:port
	peer   string
	api    *process
	store  *process
	client *http.Client
}

// Programs are where kube-apiserver and etcd are: built or installed by make deps;
// "" is nowhere.
func Programs() (apiserver, etcd string) {
	dir, err := os.Getwd()
	for err == nil {
		if found, _ := filepath.Glob(filepath.Join(dir, ".cache/bin/kube-apiserver-v*[0-9]")); len(found) > 0 {
			apiserver = found[len(found)-1]
			break
		}
		if filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	if apiserver == "" {
		apiserver, _ = exec.LookPath("kube-apiserver")
	}
	etcd, _ = exec.LookPath("etcd")
	return apiserver, etcd
}

// Start starts a server and waits until it is ready.
func Start(t testing.TB) *Server {
	t.Helper()
	apiserver, etcd := Programs()
	if apiserver == "" {
		testkit.Missing(t, "no kube-apiserver on this machine: make deps builds it")
	}
	if etcd == "" {
		testkit.Missing(t, "no etcd on this machine: make deps installs it")
	}
	var problem error
	for range 5 { // a port may be taken before the server has it
		s := &Server{t: t, dir: t.TempDir(), addr: free(t), etcd: free(t), peer: free(t)}
		if problem = s.start(apiserver, etcd); problem == nil {
			return s
		}
	}
	t.Fatalf("start kube-apiserver: %v", problem)
	return nil
}

// free is an address that nobody listens on.
func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts etcd and the API server.
func (s *Server) start(apiserver, etcd string) error {
	ca, err := s.certificates()
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	s.client = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	if err := os.WriteFile(s.path("tokens"), []byte(AdminToken+",admin,1,\"system:masters\"\n"+ReaderToken+",reader,2\n"), 0o600); err != nil {
		return err
	}
	store, peers := "http://"+s.etcd, "http://"+s.peer
	s.store = newProcess(etcd, "--data-dir", s.path("etcd"), "--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers, "--logger", "zap", "--log-level", "error")
	_, port, _ := net.SplitHostPort(s.addr)
	s.api = newProcess(apiserver, "--etcd-servers", store, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--tls-cert-file", s.path("server.crt"), "--tls-private-key-file", s.path("server.key"),
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", s.path("server.key"),
		"--service-account-signing-key-file", s.path("server.key"), "--service-cluster-ip-range", "10.96.0.0/16",
		"--token-auth-file", s.path("tokens"), "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
		"--enable-priority-and-fairness=false", "--profiling=false", "--endpoint-reconciler-type", "none")
	s.t.Cleanup(func() {
		s.api.kill()
		s.store.kill()
	})
	if err := s.store.start(); err != nil {
		return err
	}
	return s.startAPI()
}

// startAPI starts the API server and waits until it is ready.
func (s *Server) startAPI() error {
	if err := s.api.start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if s.api.ended() || s.store.ended() {
			return fmt.Errorf("it ended: %s %s", s.api.output, s.store.output)
		}
		if got, err := s.Try(http.MethodGet, "/readyz", nil); err == nil && got == "ok" {
			return nil
		}
	}
	return fmt.Errorf("not ready after %v: %s", patience, s.api.output)
}

// path is a file of the server.
func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// Addr is the API server's host:port.
func (s *Server) Addr() string { return s.addr }

// Kill ends the API server at once; etcd goes on.
func (s *Server) Kill() { s.api.kill() }

// Stop stops the API server where it is: connections stay open, nothing is
// answered.
func (s *Server) Stop() { s.api.signal(syscall.SIGSTOP) }

// Continue lets a stopped API server go on.
func (s *Server) Continue() { s.api.signal(syscall.SIGCONT) }

// Restart kills the API server, if it runs, and starts it again. What was written
// is there, but no history of it.
func (s *Server) Restart() {
	s.t.Helper()
	s.api.kill()
	if err := s.startAPI(); err != nil {
		s.t.Fatalf("restart kube-apiserver: %v", err)
	}
}

// CAFile is a file with the certificate that signs the server's.
func (s *Server) CAFile() string { return s.path("ca.crt") }

// Kubeconfig writes a kubeconfig and returns its path: the context "other" leads
// nowhere, the current one to the server at addr with the token in tokenFile, in a
// namespace.
func (s *Server) Kubeconfig(addr, tokenFile, namespace string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
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
`, addr, s.CAFile(), tokenFile, namespace)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Apply creates an object, or replaces it. path is that of its collection, such as
// /api/v1/namespaces/default/pods.
func (s *Server) Apply(path, name string, object any) {
	s.t.Helper()
	_, err := s.Try(http.MethodPut, path+"/"+name, object)
	if e := new(StatusError); errors.As(err, &e) && e.Code == http.StatusNotFound {
		_, err = s.Try(http.MethodPost, path, object)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// Delete removes an object at once.
func (s *Server) Delete(path, name string) {
	s.t.Helper()
	if _, err := s.Try(http.MethodDelete, path+"/"+name+"?gracePeriodSeconds=0", nil); err != nil {
		s.t.Fatal(err)
	}
}

// StatusError is an answer other than 200 and 201.
type StatusError struct {
	Code int
	Text string
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Code, e.Text) }

// Try sends a request as the administrator, with a body of JSON, nil for none.
func (s *Server) Try(method, path string, body any) (string, error) {
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return "", err
		}
	}
	req, err := http.NewRequest(method, "https://"+s.addr+path, &b)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+AdminToken)
	req.Header.Set("Content-Type", "application/json")
	res, err := s.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		err = &StatusError{res.StatusCode, strings.TrimSpace(string(data))}
	}
	return string(data), err
}

// process is a child that can be started again.
type process struct {
	path   string
	args   []string
	output *buffer
	mu     struct {
		sync.Mutex
		cmd   *exec.Cmd // nil: it does not run
		ended chan struct{}
	}
}

// buffer keeps the end of what is written to it. It is safe for concurrent use.
type buffer struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	b.text = b.text[max(0, len(b.text)-4096):]
	return len(p), nil
}

// String is what was written last.
func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// newProcess is a process that was not started.
func newProcess(path string, args ...string) *process {
	return &process{path: path, args: args, output: new(buffer)}
}

// start starts it.
func (p *process) start() error {
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.output, p.output, dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.cmd, p.mu.ended = cmd, ended
	return nil
}

// ended says whether it does not run.
func (p *process) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return true
	}
	select {
	case <-p.mu.ended:
		return true
	default:
		return false
	}
}

// signal sends a signal, if it runs.
func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd != nil {
		p.mu.cmd.Process.Signal(sig)
	}
}

// kill ends it at once.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return
	}
	p.mu.cmd.Process.Kill()
	<-p.mu.ended
	p.mu.cmd = nil
}
