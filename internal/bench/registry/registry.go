// Package registry starts real registries of instances on loopback ports: Consul
// agents and Kubernetes API servers with their etcd, and writes instances into
// them. The scenarios of bench and the tests of the sources of discovery share it.
//
// A registry belongs to who made it: New starts nothing, Start starts processes,
// Close ends them, and on Linux the kernel does when their parent is killed. Its
// methods are safe for concurrent use unless they say otherwise. Nothing of the
// programs is linked: `make deps` builds or installs them.
package registry

import (
	"bytes"
	"context"
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
	"time"
)

// ErrMissing says that a program is nowhere on this machine.
var ErrMissing = errors.New("is not on this machine: make deps gets it")

// patience bounds every wait for a registry.
const patience = 60 * time.Second

// find finds a program: the one that make deps has built, in .cache/bin of the
// working folder or one above it, or one that is installed.
func find(name string) (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if found, _ := filepath.Glob(filepath.Join(dir, ".cache/bin", name+"-v*[0-9]")); len(found) > 0 {
			return found[len(found)-1], nil
		}
		if filepath.Dir(dir) == dir {
			break
		}
		dir = filepath.Dir(dir)
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s %w", name, ErrMissing)
	}
	return path, nil
}

// free returns addresses, host:port, that nobody listens on now.
func free(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all of them at the end, so that no two are the same
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// await polls until ok, an error, or the end of patience.
func await(ctx context.Context, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// StatusError is an answer that is neither 200 nor 201.
type StatusError struct {
	Code int
	Text string // the body
}

// Error implements error.
func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Code, e.Text) }

// caller calls the API of a registry.
type caller struct {
	client *http.Client
	base   string
	header http.Header
}

// Call calls the API, with a body of JSON, nil for none, and returns the answer's
// body. Refusals are of type *StatusError.
func (c *caller) Call(ctx context.Context, method, path string, body any) (string, error) {
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			return "", err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, &b)
	if err != nil {
		return "", err
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	res, err := c.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err == nil && res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s %s: %w", method, path, &StatusError{res.StatusCode, strings.TrimSpace(string(data))})
	}
	return string(data), err
}

// process is a child that can be started again.
type process struct {
	path   string
	args   []string
	env    []string
	output *tail
	mu     struct {
		sync.Mutex
		cmd   *exec.Cmd // nil: it does not run
		ended chan struct{}
	}
}

// tail keeps the end of what is written to it. It is safe for concurrent use.
type tail struct {
	mu   sync.Mutex
	text []byte
}

// Write implements io.Writer.
func (b *tail) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	b.text = b.text[max(0, len(b.text)-4096):]
	return len(p), nil
}

// String is what was written last.
func (b *tail) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// start starts it.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output = new(tail)
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Env = p.output, p.output, dieWithParent(), p.env
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		defer close(ended)
		_ = cmd.Wait() // how it ended is its owner's doing
	}()
	p.mu.cmd, p.mu.ended = cmd, ended
	return nil
}

// check is an error when it does not run.
func (p *process) check() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return errors.New("it does not run")
	}
	select {
	case <-p.mu.ended:
		return fmt.Errorf("%s ended: %s", filepath.Base(p.path), p.output)
	default:
		return nil
	}
}

// signal sends a signal, if it runs.
func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd != nil {
		_ = p.mu.cmd.Process.Signal(sig) // it may just have ended
	}
}

// kill ends it at once and waits for its end.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return
	}
	_ = p.mu.cmd.Process.Kill() // it may just have ended
	<-p.mu.ended
	p.mu.cmd = nil
}
