// Package consultest starts real Consul agents for tests: servers of their own in
// memory, on ports of their own, that end with the test, and with the test's
// process where the system can see to that.
//
// A test whose agent cannot be had on this machine is ended by testkit.Missing.
package consultest

import (
	"bytes"
	"encoding/json"
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

// patience bounds every wait for an agent.
const patience = 30 * time.Second

// node is the name of the node that Set registers services on.
const node = "sim"

// Agent is a Consul agent that is its own only server.
type Agent struct {
	t      testing.TB
	binary string
	hcl    string
	token  string
	http   string // host:port
	server string // port
	serf   string // port

	mu struct {
		sync.Mutex
		cmd   *exec.Cmd // nil: it does not run
		ended chan struct{}
	}
}

// Program is where Consul is: built by make deps, or installed; "" is nowhere.
func Program() string {
	dir, err := os.Getwd()
	for err == nil {
		if found, _ := filepath.Glob(filepath.Join(dir, ".cache/bin/consul-v*[0-9]")); len(found) > 0 {
			return found[len(found)-1]
		}
		if filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	path, _ := exec.LookPath("consul")
	return path
}

// Start starts an agent and waits until it is the leader. hcl is added to its
// configuration; token is the one to administer it with, "" where it asks for
// none.
func Start(t testing.TB, hcl, token string) *Agent {
	t.Helper()
	binary := Program()
	if binary == "" {
		testkit.Missing(t, "no consul on this machine: make deps builds it")
	}
	var problem error
	for range 5 { // a port may be taken before the agent has it
		a := &Agent{t: t, binary: binary, hcl: hcl, token: token, http: free(t)}
		_, a.server, _ = net.SplitHostPort(free(t))
		_, a.serf, _ = net.SplitHostPort(free(t))
		if problem = a.start(); problem == nil {
			t.Cleanup(a.Kill)
			return a
		}
	}
	t.Fatalf("start consul: %v", problem)
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

// start starts the process and waits until it answers.
func (a *Agent) start() error {
	_, port, _ := net.SplitHostPort(a.http)
	hcl := fmt.Sprintf("disable_update_check = true\nleave_on_terminate = false\nports { http = %s server = %s serf_lan = %s serf_wan = -1 dns = -1 grpc = -1 grpc_tls = -1 }\n%s",
		port, a.server, a.serf, a.hcl)
	output := new(bytes.Buffer)
	cmd := exec.Command(a.binary, "agent", "-dev", "-node", "agent", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn", "-hcl", hcl)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = output, output, dieWithParent()
	cmd.Env = []string{"HOME=" + a.t.TempDir(), "PATH=" + os.Getenv("PATH")}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	a.mu.Lock()
	a.mu.cmd, a.mu.ended = cmd, ended
	a.mu.Unlock()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case <-ended:
			return fmt.Errorf("it ended: %s", output)
		default:
		}
		// The agent registers itself when it leads and can write.
		if got, err := a.Try(http.MethodGet, "/v1/catalog/service/consul", nil); err == nil && strings.Contains(got, `"agent"`) {
			return nil
		}
	}
	a.Kill()
	return fmt.Errorf("no leader after %v: %s", patience, output)
}

// URL is the agent's address.
func (a *Agent) URL() string { return "http://" + a.http }

// Kill ends the process at once; what it kept is lost.
func (a *Agent) Kill() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.cmd == nil {
		return
	}
	a.mu.cmd.Process.Kill()
	<-a.mu.ended
	a.mu.cmd = nil
}

// signal sends a signal to the process, if it runs.
func (a *Agent) signal(sig syscall.Signal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.cmd != nil {
		a.mu.cmd.Process.Signal(sig)
	}
}

// Stop stops the process where it is: connections stay open, nothing is answered.
func (a *Agent) Stop() { a.signal(syscall.SIGSTOP) }

// Continue lets a stopped process go on.
func (a *Agent) Continue() { a.signal(syscall.SIGCONT) }

// Restart kills the agent, if it runs, and starts it at the same address, empty:
// its indexes begin again.
func (a *Agent) Restart() {
	a.t.Helper()
	a.Kill()
	if err := a.start(); err != nil {
		a.t.Fatalf("restart consul: %v", err)
	}
}

// Do calls the agent's API and returns the body. It fails the test where Try has
// an error.
func (a *Agent) Do(method, path string, body any) string {
	a.t.Helper()
	got, err := a.Try(method, path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	return got
}

// Try calls the agent's API with a body of JSON, nil for none.
func (a *Agent) Try(method, path string, body any) (string, error) {
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return "", err
		}
	}
	req, err := http.NewRequest(method, a.URL()+path, &b)
	if err != nil {
		return "", err
	}
	req.Close = true
	if a.token != "" {
		req.Header.Set("X-Consul-Token", a.token)
	}
	res, err := (&http.Client{Timeout: patience}).Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d: %s", method, path, res.StatusCode, data)
	}
	return string(data), err
}

// Service is an instance of a service as the catalog has it.
type Service struct {
	ID      string         `json:"ID"`
	Service string         `json:"Service"`
	Address string         `json:"Address,omitempty"`
	Port    int            `json:"Port"`
	Tags    []string       `json:"Tags,omitempty"`
	Meta    map[string]any `json:"Meta,omitempty"`
	Weights map[string]int `json:"Weights,omitempty"`
}

// Set writes an instance into the catalog with one check of the given status:
// passing, warning or critical. Its node's address is 10.0.0.9.
func (a *Agent) Set(s Service, status string) {
	a.t.Helper()
	a.Do(http.MethodPut, "/v1/catalog/register", map[string]any{
		"Node": node, "Address": "10.0.0.9", "SkipNodeUpdate": false, "Service": s,
		"Check": map[string]any{"Node": node, "CheckID": "check:" + s.ID, "Name": "check", "Status": status, "ServiceID": s.ID},
	})
}

// Remove takes an instance out of the catalog.
func (a *Agent) Remove(id string) {
	a.t.Helper()
	a.Do(http.MethodPut, "/v1/catalog/deregister", map[string]any{"Node": node, "ServiceID": id})
}
