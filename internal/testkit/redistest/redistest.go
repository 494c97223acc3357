// Package redistest starts real Redis servers for tests: single ones, replicas and
// clusters, on ports of their own, in temporary directories, without persistence.
// They end with the test, and with the test's process where the system can see to
// that.
//
// A test whose server cannot be had on this machine is ended by testkit.Missing.
package redistest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
)

// patience bounds every wait for a server.
const patience = 20 * time.Second

// Server is a redis-server process.
type Server struct {
	addr string
	args []string
	t    testing.TB

	mu struct {
		sync.Mutex
		cmd    *exec.Cmd // nil: it does not run
		output *bytes.Buffer
	}
}

// Start starts a server and waits until it answers. The arguments are those of
// redis-server, such as "--maxmemory", "4mb", and win over what is set here.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return start(t, nil, append([]string{
		"--save", "", "--appendonly", "no", "--dir", t.TempDir(), "--repl-diskless-sync-delay", "0", "--shutdown-timeout", "0",
	}, args...))
}

// start starts a server with arguments before and after those that every one needs.
func start(t testing.TB, before, after []string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		testkit.Missing(t, "no redis-server on this machine: make deps installs it")
	}
	var problem error
	for range 5 { // the port may be taken before the server has it
		s := &Server{t: t, addr: free(t)}
		_, port, _ := net.SplitHostPort(s.addr)
		s.args = slices.Concat(before, []string{"--bind", "127.0.0.1", "--port", port, "--daemonize", "no", "--loglevel", "warning"}, after)
		if problem = s.start(); problem == nil {
			t.Cleanup(s.Kill)
			return s
		}
	}
	t.Fatalf("start redis-server: %v", problem)
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
func (s *Server) start() error {
	cmd, output := exec.Command("redis-server", s.args...), new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = output, output, dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	s.mu.cmd, s.mu.output = cmd, output
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-ended:
			return fmt.Errorf("it ended: %s", output)
		default:
		}
		if _, err := s.Try("PING"); err == nil || refusal(err) {
			return nil
		}
	}
	s.Kill()
	return fmt.Errorf("no answer after %v: %s", patience, output)
}

// refusal says whether an error came from a server, which therefore runs.
func refusal(err error) bool {
	var r Error
	return errors.As(err, &r) && !strings.HasPrefix(string(r), "LOADING")
}

// Addr is host:port.
func (s *Server) Addr() string { return s.addr }

// signal sends a signal to the process, if it runs.
func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.cmd != nil {
		s.mu.cmd.Process.Signal(sig)
	}
}

// Kill ends the process at once; what it kept is lost.
func (s *Server) Kill() {
	s.mu.Lock()
	cmd := s.mu.cmd
	s.mu.cmd = nil
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Kill()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if errors.Is(cmd.Process.Signal(syscall.Signal(0)), os.ErrProcessDone) { // start waits for it
			return
		}
	}
	s.t.Errorf("redis-server on %s does not end", s.addr)
}

// Stop stops the process where it is: connections stay open, nothing is answered.
func (s *Server) Stop() { s.signal(syscall.SIGSTOP) }

// Continue lets a stopped process go on.
func (s *Server) Continue() { s.signal(syscall.SIGCONT) }

// Restart kills the server, if it runs, and starts it at the same address, empty.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		s.t.Fatalf("restart redis-server: %v", err)
	}
}

// Replica starts a server that follows this one, and waits until it has caught up.
func (s *Server) Replica(args ...string) *Server {
	s.t.Helper()
	host, port, _ := net.SplitHostPort(s.addr)
	r := Start(s.t, append([]string{"--replicaof", host, port}, args...)...)
	testkit.Eventually(s.t, "the replica follows", func() bool {
		return strings.Contains(r.Do("INFO", "replication"), "master_link_status:up")
	})
	return r
}

// Promote ends a replica's following: it takes writes.
func (s *Server) Promote() { s.t.Helper(); s.Do("REPLICAOF", "NO", "ONE") }

// Follow makes the server a replica of another; it refuses writes.
func (s *Server) Follow(of *Server) {
	s.t.Helper()
	host, port, _ := net.SplitHostPort(of.addr)
	s.Do("REPLICAOF", host, port)
}

// Error is an error that the server answered with, such as "WRONGTYPE ...".
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

// Do sends a command and returns the answer as text: of a list, one element a line;
// of nothing, "". It fails the test where Try has an error.
func (s *Server) Do(args ...string) string {
	s.t.Helper()
	got, err := s.Try(args...)
	if err != nil {
		s.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return got
}

// Try sends a command on a connection of its own. Errors that the server answers
// with are of type Error.
func (s *Server) Try(args ...string) (string, error) {
	c, err := net.DialTimeout("tcp", s.addr, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.Write(b.Bytes()); err != nil {
		return "", err
	}
	return answer(bufio.NewReader(c))
}

// answer reads one value of the protocol (RESP2).
func answer(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimSuffix(line[1:], "\r\n")
	switch kind {
	case '-':
		return "", Error(rest)
	case '$', '*':
	default:
		return rest, nil
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err
	}
	if kind == '$' {
		b := make([]byte, n+2)
		_, err := io.ReadFull(r, b)
		return string(b[:n]), err
	}
	lines := make([]string, n)
	for i := range lines {
		if lines[i], err = answer(r); err != nil {
			return "", err
		}
	}
	return strings.Join(lines, "\n"), nil
}
