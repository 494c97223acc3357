package api_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// A length costs a client nothing to announce, so it may not take memory from
// others before bytes arrive.
func TestAnnouncedBodiesTakeNothingFromOthers(t *testing.T) {
	const size = 1 << 20
	r := newRig(t, func(c *api.Config) { c.MaxBody, c.MaxBuffered = size, 2*size }, nil)
	for range 2 {
		r.dial().send(fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{", size))
	}
	time.Sleep(50 * time.Millisecond) // they have been read by now, or the test is kinder than it should be
	if a := r.ask(post("/v1/chat/completions", chat)); a.StatusCode != 200 {
		t.Errorf("two clients that sent a byte each shut the others out: %d %s", a.StatusCode, a.body)
	}
}

func TestAPanicInTheGatewayEndsOneConnectionOnly(t *testing.T) {
	r := newRig(t, nil, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		if req.User == "panic" {
			panic("of the test")
		}
		return echo(ctx, req, out)
	})
	c := r.dial()
	c.send(named("panic"))
	c.closed()
	c.Close()
	if a := r.ask(named("a")); a.body != "a" {
		t.Errorf("got %q", a.body)
	}
	r.idle()
}

// Requests that another reader on the way may split elsewhere (RFC 9112,
// sections 2.2, 5.2 and 6.3: refuse, or read one way; refusing is what cannot be
// used against anybody).
func TestAmbiguousHeads(t *testing.T) {
	const good = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(chat), chat)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(chat))
	r := newRig(t, func(c *api.Config) { c.ReadHeaderTimeout, c.IdleTimeout = 2*time.Second, 3*time.Second }, nil)
	for name, request := range map[string]string{
		"CL and TE":         good + fmt.Sprintf("Content-Length: %d\r\n", len(chunks)) + "Transfer-Encoding: chunked\r\n\r\n" + chunks,
		"TE and CL":         good + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + chunks,
		"the same CL twice": good + length + length + "\r\n" + chat,
		"bare LF":           strings.ReplaceAll(good+length, "\r\n", "\n") + "\n" + chat,
		"one bare LF":       good + "X-A: 1\n" + length + "\r\n" + chat,
		"obs-fold":          good + "X-A: 1\r\n folded\r\n" + length + "\r\n" + chat,
		"folded TE":         good + "Transfer-Encoding:\r\n chunked\r\n\r\n" + chunks,
		"folded CL":         good + "Content-Length:\r\n 4\r\n\r\n" + chat,
		"chunk with LF":     good + "Transfer-Encoding: chunked\r\n\r\n" + strings.ReplaceAll(chunks, "\r\n", "\n"),
		"TE in HTTP/1.0":    strings.Replace(good, "1.1", "1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n" + chunks,
	} {
		t.Run(name, func(t *testing.T) { r.refusesHead(t, request) })
	}
}

// What is too short for a request is refused once, not twice.
func TestShortGarbageGetsOneAnswer(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadHeaderTimeout = 200 * time.Millisecond }, nil)
	for name, request := range map[string]string{"one word": "hello\r\n\r\n", "binary": "\x00\x01\x02\x03\x04\r\n\r\n", "HTTP/0.9": "GET /\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.t = t
			c.send(request)
			if a := c.receive("GET"); a.StatusCode != 400 && a.StatusCode != 408 {
				t.Errorf("got %d %s", a.StatusCode, a.body)
			}
			c.closed()
			c.Close()
			r.idle()
		})
	}
	r.untouched()
}

func TestABadHostIsRefused(t *testing.T) {
	r := newRig(t, nil, nil)
	r.refusesHead(t, strings.Replace(post("/v1/chat/completions", chat), "Host: x", "Host: x y", 1))
}

// 256 fields are the limit whatever their names are.
func TestRepeatedFieldsCount(t *testing.T) {
	r := newRig(t, nil, nil)
	a := r.ask("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Same: 1\r\n", 300) + "Content-Length: 2\r\n\r\n{}")
	a.refused(t, 431, inference.CodeHeadTooLarge)
	r.untouched()
}

// RFC 9112, section 6.3: with both a length and a transfer coding the server
// refuses, or ends the connection with its answer.
func TestNothingIsSmuggledBehindChunks(t *testing.T) {
	r := newRig(t, nil, nil)
	inner := post("/v1/chat/completions", `{"model":"smuggled","messages":[{}]}`)
	r.smuggles(t, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+inner)
	r.smuggles(t, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"+inner)
}

// RFC 9112, section 9.6: a server that closes says so.
func TestConnectionCloseIsAnswered(t *testing.T) {
	r := newRig(t, nil, echo)
	c := r.dial()
	c.send(named("a", "Connection: close"))
	if a := c.receive("POST"); !a.Close {
		t.Errorf("no Connection: close in %v", a.Header)
	}
	c.closed()
}

func TestASlowHead(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadHeaderTimeout, c.IdleTimeout = 200*time.Millisecond, 2*time.Second }, nil)
	for name, begin := range map[string]string{
		"a letter":        "P",
		"the first line":  "POST /v1/chat/completions HTTP/1.1\r\n",
		"all but the end": "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.send(begin)
			a := c.receive("POST")
			a.refused(t, 408, inference.CodeBodyTimeout)
			c.closed()
			c.Close()
			r.idle()
		})
	}
	t.Run("a byte now and then", func(t *testing.T) {
		c := r.dial()
		c.send("POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ")
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for tick := time.NewTicker(50 * time.Millisecond); ; {
				select {
				case <-tick.C:
					c.send("a")
				case <-stop:
					tick.Stop()
					return
				}
			}
		}()
		c.receive("POST").refused(t, 408, inference.CodeBodyTimeout)
		close(stop)
		<-done
		c.Close()
		r.idle()
	})
	t.Run("nothing", func(t *testing.T) {
		c := r.dial()
		c.closed()
		c.Close()
		r.idle()
	})
	t.Run("the second request", func(t *testing.T) {
		c := r.dial()
		c.send(post("/v1/chat/completions", chat))
		if a := c.receive("POST"); a.StatusCode != 200 {
			t.Fatalf("got %d", a.StatusCode)
		}
		time.Sleep(250 * time.Millisecond) // idle is not slow
		c.send("POST /v1/chat")
		c.receive("POST").refused(t, 408, inference.CodeBodyTimeout)
		c.closed()
		c.Close()
		r.idle()
	})
	if n := r.serves.Load(); n != 1 {
		t.Errorf("%d requests reached the gateway", n)
	}
}

// Whoever reads a connection, it ends with the drain when it is idle, even while
// other connections stream.
func TestADrainClosesIdleConnections(t *testing.T) {
	for name, request := range asks() {
		for kind, before := range map[string]string{
			"common form": post("/v1/embeddings", bodyFor(inference.Embeddings)), "another form": "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
		} {
			t.Run(name+", idle behind "+kind, func(t *testing.T) {
				end := make(chan struct{})
				r := newRig(t, nil, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
					if req.Surface == inference.Embeddings {
						return answerOK(ctx, req, out)
					}
					return until(end)(ctx, req, out)
				})
				idle := r.dial()
				idle.send(before)
				idle.receive("POST")
				c := r.dial()
				c.send(request)
				testkit.Eventually(t, "the stream runs", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.mu.last != nil && r.mu.last.Stream })
				r.stop()
				_ = idle.SetReadDeadline(time.Now().Add(2 * time.Second)) // the stream's time is 5 s
				if _, err := idle.br.ReadByte(); err != io.EOF {
					t.Errorf("the idle connection: %v", err)
				}
				close(end)
				if err := r.wait(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A trusted proxy, or who stands in for it, that connects and says nothing does
// not hold a goroutine for ever.
func TestAProxyHeaderThatDoesNotCome(t *testing.T) {
	r := newRigBehindProxy(t)
	for name, begin := range map[string]string{"nothing": "", "v1": "PROXY TCP4 192.0", "v2": v2(1, 0x11, pair("192.0.2.8:5", "10.0.0.1:6"))[:20]} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.t = t
			c.send(begin)
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second)) // ten times read_header_timeout
			if _, err := io.ReadAll(c.br); err != nil {
				t.Errorf("the connection is still open: %v", err)
			}
			c.Close()
			r.idle()
		})
	}
}

// RFC 9110, section 15.5.6: a 405 must say which methods there are.
func TestWrongMethodNamesTheRightOne(t *testing.T) {
	r := newRig(t, nil, nil)
	if a := r.ask("GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n"); a.Header.Get("Allow") != "POST" {
		t.Errorf("Allow: %q, want POST", a.Header.Get("Allow"))
	}
	if a := r.ask(post("/v1/models", "{}")); !strings.Contains(a.Header.Get("Allow"), "GET") {
		t.Errorf("Allow: %q, want GET", a.Header.Get("Allow"))
	}
}
