package api_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
)

// echo answers with the request's user and its connection's own text.
func echo(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
	body := req.User
	head := inference.Head{Status: 200, Length: int64(len(body)), Fields: []inference.HeaderField{{Name: "Content-Type", Value: "text/plain"}}}
	if out.Head(&head) == nil {
		_ = out.Write([]byte(body), true)
	}
	return &inference.Record{Request: req}
}

// named is a request with a user.
func named(user string, fields ...string) string {
	return post("/v1/chat/completions", fmt.Sprintf(`{"model":"m","user":%q,"messages":[{}]}`, user), fields...)
}

func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	r := newRig(t, nil, echo)
	c := r.dial()
	var all strings.Builder
	for i := range 20 {
		switch i % 4 {
		case 0, 1:
			all.WriteString(named(fmt.Sprint("u", i)))
		case 2:
			all.WriteString("GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n")
		case 3:
			all.WriteString("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
		}
	}
	c.send(all.String() + chunked(`{"model":"m","user":"last","messages":[{}]}`, 10))
	for i := range 20 {
		a := c.receive("POST")
		if i%4 == 2 {
			a.refused(t, 404, inference.CodeNotFound)
		} else if want := map[bool]string{true: "probe", false: fmt.Sprint("u", i)}[i%4 == 3]; a.StatusCode != 200 || a.body != want {
			t.Errorf("answer %d: got %d %q, want %q", i, a.StatusCode, a.body, want)
		}
	}
	if a := c.receive("POST"); a.body != "last" {
		t.Errorf("got %d %q", a.StatusCode, a.body)
	}
	c.Close()
	r.idle()
}

func TestARefusedBodyEndsThePipeline(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.MaxBody = 1000 }, echo)
	c := r.dial()
	c.send(named("first") + post("/v1/chat/completions", strings.Repeat("a", 1001)) + named("never"))
	if a := c.receive("POST"); a.body != "first" {
		t.Errorf("got %q", a.body)
	}
	c.receive("POST").refused(t, 413, inference.CodeTooLarge)
	c.closed()
	if n := r.serves.Load(); n != 1 {
		t.Errorf("%d requests reached the gateway", n)
	}
	c.Close()
	r.idle()
}

func TestKeepAlive(t *testing.T) {
	r := newRig(t, nil, echo)
	for name, c := range map[string]struct {
		request string
		keeps   bool
	}{
		"1.1":              {named("a"), true},
		"1.1 close listed": {named("a", "Connection: x, Close"), false},
		"1.0":              {strings.Replace(named("a"), "1.1", "1.0", 1), false},
		"1.0 keep-alive":   {strings.Replace(named("a", "Connection: keep-alive"), "1.1", "1.0", 1), true},
		"error":            {post("/v1/chat/completions", "{"), true},
		"not found":        {"GET /no HTTP/1.1\r\nHost: x\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.dial()
			conn.send(c.request)
			if a := conn.receive("POST"); a.StatusCode >= 500 || a.Close == c.keeps {
				t.Errorf("got %d, Close %v", a.StatusCode, a.Close)
			}
			if !c.keeps {
				conn.closed()
			} else if conn.send(named("b")); conn.receive("POST").body != "b" {
				t.Error("the connection was not kept")
			}
			conn.Close()
			r.idle()
		})
	}
}

func TestHTTP10Streams(t *testing.T) {
	r := newRig(t, nil, func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		_ = begin(out)
		_ = out.Write([]byte("data: 1\n\n"), true)
		if req.User == "cut" {
			out.Fail(inference.Errorf(inference.CodeUpstreamCut, "cut"))
		}
		return &inference.Record{Request: req}
	})
	c := r.dial()
	c.send(strings.Replace(named("a"), "1.1", "1.0", 1))
	if a := c.receive("POST"); a.body != "data: 1\n\n" || len(a.TransferEncoding) > 0 {
		t.Errorf("got %q, %v", a.body, a.TransferEncoding)
	}
	// There are no chunks to leave out: only a reset tells a cut from an end.
	c = r.dial()
	c.send(strings.Replace(named("cut"), "1.1", "1.0", 1))
	if a := c.receive("POST"); !strings.HasPrefix(a.body, "data: 1\n\ndata: {\"error\":") {
		t.Errorf("got %q", a.body)
	}
	c.Close()
	r.idle()
}

func TestAnswersOfConcurrentConnectionsDoNotMix(t *testing.T) {
	r := newRig(t, nil, echo)
	var wg sync.WaitGroup
	for i := range 20 {
		c := r.dial()
		wg.Go(func() {
			for j := range 30 {
				want := fmt.Sprintf("%d-%d-%s", i, j, strings.Repeat("x", i*j))
				c.send(named(want))
				if a := c.receive("POST"); a.body != want {
					t.Errorf("got %.40q, want %.40q", a.body, want)
				}
			}
			c.Close()
		})
	}
	wg.Wait()
	r.idle()
}
