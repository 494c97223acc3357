// Package testkit has what tests of several packages share: a scripted model
// server, fleets in one line, and waits with a deadline. Nothing here is linked
// into the program.
package testkit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Exchange is one request as a scripted instance received it. The script writes
// the answer's bytes itself, and so can write any wrong ones.
type Exchange struct {
	net.Conn
	Request *http.Request
	Body    []byte
	N       int // number of the request at this instance, from 1
}

// Instance is a scripted model server on a loopback port. It ends with the test.
type Instance struct {
	Addr string

	script   func(*Exchange) bool
	listener net.Listener
	requests atomic.Int64
	accepted atomic.Int64
	open     atomic.Int64
	wg       sync.WaitGroup
	mu       struct {
		sync.Mutex
		conns map[net.Conn]bool
	}
}

// NewInstance starts an instance whose script answers each request; the
// connection is kept when the script returns true.
func NewInstance(t testing.TB, script func(*Exchange) bool) *Instance {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &Instance{Addr: ln.Addr().String(), script: script, listener: ln}
	i.mu.conns = make(map[net.Conn]bool)
	i.wg.Go(i.accept)
	t.Cleanup(i.Close)
	return i
}

// Close stops the instance and closes its connections.
func (i *Instance) Close() {
	i.listener.Close()
	i.CloseConns()
	i.wg.Wait()
}

// CloseConns closes all connections; the instance goes on listening.
func (i *Instance) CloseConns() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for c := range i.mu.conns {
		c.Close()
	}
}

// URL is the instance's base URL.
func (i *Instance) URL() string { return "http://" + i.Addr }

// Requests is the number of requests received.
func (i *Instance) Requests() int64 { return i.requests.Load() }

// Accepted is the number of connections accepted.
func (i *Instance) Accepted() int64 { return i.accepted.Load() }

// Open is the number of open connections.
func (i *Instance) Open() int64 { return i.open.Load() }

// accept serves connections until the listener closes.
func (i *Instance) accept() {
	for {
		c, err := i.listener.Accept()
		if err != nil {
			return
		}
		i.accepted.Add(1)
		i.open.Add(1)
		i.mu.Lock()
		i.mu.conns[c] = true
		i.mu.Unlock()
		i.wg.Go(func() { i.serve(c) })
	}
}

// serve answers the requests of one connection.
func (i *Instance) serve(c net.Conn) {
	defer func() {
		c.Close()
		i.mu.Lock()
		delete(i.mu.conns, c)
		i.mu.Unlock()
		i.open.Add(-1)
	}()
	br := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		n := i.requests.Add(1)
		if !i.script(&Exchange{Conn: c, Request: req, Body: body, N: int(n)}) {
			return
		}
	}
}

// Gone waits until the peer has closed the connection, and says whether it did
// so within the given time.
func (x *Exchange) Gone(within time.Duration) bool {
	_ = x.SetReadDeadline(time.Now().Add(within))
	_, err := x.Read(make([]byte, 1))
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

// JSON answers with a body of known length.
func (x *Exchange) JSON(status int, body string, fields ...string) {
	var extra bytes.Buffer
	for _, f := range fields {
		extra.WriteString(f + "\r\n")
	}
	fmt.Fprintf(x, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s",
		status, http.StatusText(status), len(body), extra.String(), body)
}

// Stream begins a chunked stream of server-sent events.
func (x *Exchange) Stream() {
	io.WriteString(x, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
}

// Chunk writes one chunk.
func (x *Exchange) Chunk(data string) { fmt.Fprintf(x, "%x\r\n%s\r\n", len(data), data) }

// Role, Delta and Finish are events of a chat stream.
func (x *Exchange) Role() {
	x.Chunk(`data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n")
}

// Delta writes one content token.
func (x *Exchange) Delta(text string) { x.Chunk(Delta(text)) }

// Finish writes the finish reason, the terminal event and the end of the body.
func (x *Exchange) Finish() {
	x.Chunk(FinishEvent)
	x.Chunk(DoneEvent)
	x.End()
}

// End writes the last chunk.
func (x *Exchange) End() { io.WriteString(x, "0\r\n\r\n") }

// Events of a chat stream.
const (
	FinishEvent = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	DoneEvent   = "data: [DONE]\n\n"
)

// Delta is the event of one content token.
func Delta(text string) string {
	return fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{"content":%q},"finish_reason":null}]}`+"\n\n", text)
}

// Answer is the body of a chat answer that is not a stream.
const Answer = `{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}`

// Log keeps what is written to it, by any number of goroutines.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// String is all that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Count is how often text was written.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// Discard is a logger that keeps nothing.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Fleet is a fleet of one region "eu" with one pool "gpu" of the given
// addresses (host:port), serving model "m" on every surface.
func Fleet(t testing.TB, addrs ...string) *fleet.Fleet {
	t.Helper()
	var targets []fleet.Target
	for _, a := range addrs {
		targets = append(targets, fleet.Target{URL: "http://" + a})
	}
	f := fleet.New(Discard())
	if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"m": "m"}, Surfaces: inference.Surfaces(), Static: targets,
	}}}}}); err != nil {
		t.Fatal(err)
	}
	return f
}

// Idle fails the test unless every counter of the fleet is zero soon.
func Idle(t testing.TB, f *fleet.Fleet) {
	t.Helper()
	Eventually(t, "every counter of the fleet is zero", func() bool {
		left := int64(0)
		s := f.Snapshot()
		for _, r := range s.Regions {
			left += r.Live.InFlight() + r.Live.PromptTokens()
			for _, p := range r.Pools {
				left += p.Live.InFlight() + p.Live.PromptTokens()
			}
		}
		s.Instances(func(i *fleet.Instance) { left += i.Live.InFlight() + i.Live.PromptTokens() })
		return left == 0
	})
}

// Eventually polls until ok is true, and fails the test after 10 s.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not reached: %s", what)
}

// First is a picker that takes the first open node.
type First struct{}

// Pick implements fleet.Picker.
func (First) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	for i, n := range nodes {
		if q.Open(n) {
			return i
		}
	}
	return -1
}

// Plan offers every pool of the fleet in order.
func Plan(f *fleet.Fleet, req *inference.Request) *fleet.Plan {
	p := fleet.NewPlan(req)
	for _, r := range f.Snapshot().Regions {
		for _, pool := range r.Pools {
			p.Candidates = append(p.Candidates, fleet.Candidate{Pool: pool, Model: pool.Models[req.Model], Picker: First{}})
		}
	}
	return p
}

// NewRawListener serves each connection with script and returns the address. It
// ends with the test.
func NewRawListener(t testing.TB, script func(io.ReadWriteCloser)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { script(c) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// Blackhole is an address where a connect gets no answer: a listener whose
// backlog is full. It ends with the test.
func Blackhole(t testing.TB) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for { // fill the backlog: the first connect that hangs shows that it is full
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}
