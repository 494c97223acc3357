package e2e_test

import (
	"bytes"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/testkit"
)

// stack is a gateway with its model servers, for one SDK.
type stack struct {
	url       string // of the gateway, through a relay that watches its answers
	engine    *engine.Engine
	accessLog string
	comments  atomic.Int64 // keep-alive comments that clients were sent
	sent      testkit.Log  // what clients sent the gateway

	bodies struct {
		sync.Mutex
		of   map[string][]byte
		kept map[string][]string // by question
	}
}

// keep notes the last request body of a scripted model.
func (st *stack) keep(model string, body []byte) {
	st.bodies.Lock()
	defer st.bodies.Unlock()
	st.bodies.of[model] = bytes.Clone(body)
}

// asked is the last request body that reached a scripted model.
func (st *stack) asked(model string) []byte {
	st.bodies.Lock()
	defer st.bodies.Unlock()
	return st.bodies.of[model]
}

// keepAsked notes a request for an answer that the cache keeps.
func (st *stack) keepAsked(question string, body []byte) {
	st.bodies.Lock()
	defer st.bodies.Unlock()
	if st.bodies.kept == nil {
		st.bodies.kept = make(map[string][]string)
	}
	st.bodies.kept[question] = append(st.bodies.kept[question], string(body))
}

// askedKept are the requests that reached the server with a question.
func (st *stack) askedKept(question string) []string {
	st.bodies.Lock()
	defer st.bodies.Unlock()
	return slices.Clone(st.bodies.kept[question])
}

// watch is a relay of bytes in front of the gateway that keeps what clients send,
// retries and all, and counts the gateway's keep-alive comments, which no SDK shows.
// It ends with the test.
func (st *stack) watch(t *testing.T, gateway string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", gateway)
			if err != nil {
				client.Close()
				continue
			}
			mu.Lock()
			open[client], open[server] = true, true
			mu.Unlock()
			wg.Go(func() { relay(server, client, &st.sent) })
			wg.Go(func() { relay(client, server, &commentCounter{n: &st.comments}) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return "http://" + ln.Addr().String()
}

// relay copies until either side ends, and then ends both: a client that leaves
// is seen at once, and an aborted answer stays one.
func relay(to, from net.Conn, seen io.Writer) {
	_, _ = io.Copy(io.MultiWriter(to, seen), from)
	to.Close()
	from.Close()
}

// commentCounter counts the comments in what is written to it, split anywhere.
type commentCounter struct {
	n    *atomic.Int64
	tail []byte
}

// Write implements io.Writer.
func (c *commentCounter) Write(p []byte) (int, error) {
	comment := []byte("\n: keep-alive\n") // the chunk's length stands before it
	c.tail = append(c.tail, p...)
	c.n.Add(int64(bytes.Count(c.tail, comment)))
	if i := bytes.LastIndex(c.tail, comment); i >= 0 {
		c.tail = c.tail[i+len(comment):]
	}
	c.tail = bytes.Clone(c.tail[max(0, len(c.tail)-len(comment)+1):])
	return len(p), nil
}
