package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// padded is a good body of exactly n bytes.
func padded(n int) string {
	const before, after = `{"model":"m","messages":[{"content":"`, `"}]}`
	return before + strings.Repeat("a", n-len(before)-len(after)) + after
}

// chunked is a request whose body comes in chunks of the given size.
func chunked(body string, size int) string {
	var b strings.Builder
	b.WriteString("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	for len(body) > 0 {
		n := min(size, len(body))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	return b.String() + "0\r\n\r\n"
}

func TestBodiesArriveAsTheyWereSent(t *testing.T) {
	r := newRig(t, nil, nil)
	for _, n := range []int{100, 4095, 16<<10 - 1, 16 << 10, 16<<10 + 1, 100_000, 3 << 20} {
		body := padded(n)
		for name, request := range map[string]string{
			"length": post("/v1/chat/completions", body), "chunks": chunked(body, 1+n/7), "one chunk": chunked(body, n),
		} {
			a := r.ask(request)
			if a.StatusCode != 200 || string(r.last().Body) != body && r.server.Buffered() != 0 {
				t.Errorf("%d bytes, %s: got %d %s", n, name, a.StatusCode, a.body)
			}
			if got := len(r.last().Body); got != n {
				t.Errorf("%d bytes, %s: the gateway got %d", n, name, got)
			}
		}
	}
	r.idle()
}

func TestABodyInManyPieces(t *testing.T) {
	got := make(chan string, 1)
	r := newRig(t, nil, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		got <- string(req.Body)
		return answerOK(ctx, req, out)
	})
	c := r.dial()
	for _, b := range []byte(post("/v1/chat/completions", chat)) {
		c.send(string(b))
	}
	if a := c.receive("POST"); a.StatusCode != 200 || <-got != chat {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
	c.Close()
	r.idle()
}

func TestTooLargeBodies(t *testing.T) {
	const limit = 1 << 20
	r := newRig(t, func(c *api.Config) { c.MaxBody, c.MaxBuffered = limit, 4*limit }, nil)
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"the limit by length":      {post("/v1/chat/completions", padded(limit)), 200},
		"the limit in chunks":      {chunked(padded(limit), 10_000), 200},
		"one byte more by length":  {post("/v1/chat/completions", padded(limit+1)), 413},
		"one byte more in chunks":  {chunked(padded(limit+1), 10_000), 413},
		"three times by length":    {post("/v1/chat/completions", padded(3*limit)), 413},
		"three times in chunks":    {chunked(padded(3*limit), 50_000), 413},
		"a chunk without an end":   {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n" + strings.Repeat("a", 3*limit), 413},
		"announced and never sent": {"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000000000000\r\n\r\n", 413},
	} {
		t.Run(name, func(t *testing.T) {
			before := r.serves.Load()
			conn := r.dial()
			sent := make(chan error, 1)
			go func() { _, err := io.WriteString(conn.Conn, c.request); sent <- err }()
			if c.status == 200 {
				if a := conn.receive("POST"); a.StatusCode != 200 {
					t.Errorf("got %d %s", a.StatusCode, a.body)
				}
				<-sent
				conn.Close()
				return
			}
			// The client reads only after it has written everything, as most do.
			if err := <-sent; err != nil {
				t.Errorf("the client could not send: %v", err)
			}
			a := conn.receive("POST")
			a.refused(t, 413, inference.CodeTooLarge)
			if a.Header.Get("X-Should-Retry") != "false" || !a.Close {
				t.Errorf("got %v", a.Header)
			}
			conn.closed()
			if r.serves.Load() != before {
				t.Error("the gateway was called")
			}
		})
	}
	a := r.ask("POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
	a.refusedMessages(t, 413, "request_too_large")
	r.idle()
}

func TestAClientThatSendsForeverIsCut(t *testing.T) {
	const limit = 1 << 16
	r := newRig(t, func(c *api.Config) { c.MaxBody, c.MaxBuffered = limit, 4*limit }, nil)
	c := r.dial()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	c.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	piece := fmt.Sprintf("8000\r\n%s\r\n", strings.Repeat("a", 0x8000))
	for {
		if _, err := io.WriteString(c.Conn, piece); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the server goes on reading")
			}
			break
		}
	}
	c.Close()
	r.untouched()
	r.idle()
}

func TestTruncatedBodies(t *testing.T) {
	r := newRig(t, nil, nil)
	whole := post("/v1/chat/completions", chat)
	for name, request := range map[string]string{
		"by length":         whole[:len(whole)-1],
		"no body":           whole[:len(whole)-len(chat)],
		"within a chunk":    "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
		"between chunks":    "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
		"behind the last":   "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
		"not a chunk":       "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
		"minus":             "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
		"overflowing chunk": "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
		"chunk too long":    "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.send(request)
			_ = c.Conn.(*net.TCPConn).CloseWrite() // the client can still read
			a := c.receive("POST")
			a.refused(t, 400, inference.CodeInvalidRequest)
			c.closed()
			c = r.dial()
			c.send(request)
			c.Close() // the client is gone altogether
			r.idle()
		})
	}
	r.untouched()
}

func TestBodiesTogetherAreBounded(t *testing.T) {
	const size = 1 << 20
	release := make(chan struct{})
	r := newRig(t, func(c *api.Config) { c.MaxBody, c.MaxBuffered = size, 3*size+size/2 }, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		<-release
		return answerOK(ctx, req, out)
	})
	var wg sync.WaitGroup
	for range 3 {
		c := r.dial()
		wg.Go(func() {
			c.send(post("/v1/chat/completions", padded(size)))
			if a := c.receive("POST"); a.StatusCode != 200 {
				t.Errorf("got %d %s", a.StatusCode, a.body)
			}
			c.Close()
		})
	}
	testkit.Eventually(t, "three bodies are in memory", func() bool { return r.serves.Load() == 3 })
	if n := r.server.Buffered(); n < 3*size || n > 3*size+size/2 {
		t.Errorf("%d bytes are in memory", n)
	}
	for name, request := range map[string]string{"length": post("/v1/chat/completions", padded(size)), "chunks": chunked(padded(size), 100_000)} {
		a := r.ask(request)
		a.refused(t, 503, inference.CodeOverloaded)
		if a.Header.Get("Retry-After") != "1" || a.Header.Get("X-Spillway-Reason") != "body_memory" {
			t.Errorf("%s: got %v", name, a.Header)
		}
	}
	close(release)
	wg.Wait()
	r.idle()
	if a := r.ask(post("/v1/chat/completions", padded(size))); a.StatusCode != 200 {
		t.Errorf("afterwards: got %d %s", a.StatusCode, a.body)
	}
	r.idle()
}

func TestASlowBody(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadBodyTimeout = 200 * time.Millisecond }, nil)
	for name, begin := range map[string]string{
		"length": "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
		"chunks": "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n50\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.send(begin)
			stop, done := make(chan struct{}), make(chan struct{})
			go func() { // a byte now and then does not help
				defer close(done)
				for tick := time.NewTicker(50 * time.Millisecond); ; {
					select {
					case <-tick.C:
						c.send(" ")
					case <-stop:
						tick.Stop()
						return
					}
				}
			}()
			c.receive("POST").refused(t, 408, inference.CodeBodyTimeout)
			close(stop)
			<-done
			c.closed()
			c.Close()
			r.idle()
		})
	}
	r.untouched()
}

func TestTheBodyTimeoutEndsWithTheBody(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadBodyTimeout = 150 * time.Millisecond }, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		select {
		case <-ctx.Done():
			out.Fail(inference.Errorf(inference.CodeInternal, "the context ended: %v", context.Cause(ctx)))
			return &inference.Record{Request: req}
		case <-time.After(400 * time.Millisecond):
		}
		return answerOK(ctx, req, out)
	})
	c := r.dial()
	for range 2 {
		c.send(post("/v1/chat/completions", chat))
		if a := c.receive("POST"); a.StatusCode != 200 {
			t.Errorf("got %d %s", a.StatusCode, a.body)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.MaxBody = 1000 }, nil)
	c := r.dial()
	head := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(chat))
	for range 2 {
		c.send(head)
		line, err := c.br.ReadString('\n')
		if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		if line, err = c.br.ReadString('\n'); line != "\r\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		c.send(chat)
		if a := c.receive("POST"); a.StatusCode != 200 {
			t.Errorf("got %d %s", a.StatusCode, a.body)
		}
	}
	c.Close()
	for name, request := range map[string]struct {
		head   string
		status int
		code   inference.Code
	}{
		"too large":   {strings.Replace(head, fmt.Sprint("Length: ", len(chat)), "Length: 1001", 1), 413, inference.CodeTooLarge},
		"media":       {strings.Replace(head, "Host: x", "Host: x\r\nContent-Type: text/html", 1), 415, inference.CodeUnsupportedMedia},
		"expectation": {strings.Replace(head, "100-continue", "200-ok", 1), 417, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.send(request.head) // and no body: the answer comes without it
			a := c.receive("POST")
			if a.StatusCode != request.status || request.code != "" && !strings.Contains(a.body, string(request.code)) {
				t.Errorf("got %d %s", a.StatusCode, a.body)
			}
			c.Close()
		})
	}
	r.idle()
}
