package api_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// events is a gateway that streams what it is given, then may fail.
func events(frames []string, fail *inference.Error) api.Serve {
	return func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		_ = begin(out)
		for _, f := range frames {
			_ = out.Write([]byte(f), true)
		}
		if fail != nil {
			out.Fail(fail)
		}
		return &inference.Record{Request: req}
	}
}

// asks are two forms of a streamed request: one that nearly all clients send, and
// one that only net/http reads. Streams are the same for both.
func asks() map[string]string {
	return map[string]string{"common form": post("/v1/chat/completions", stream), "chunked body": chunked(stream, 10)}
}

// raw reads the head of an answer and the chunks behind it, as they stand on the
// wire. ended says that the last chunk came.
func (c *conn) raw() (head http.Header, chunks []string, ended bool) {
	c.t.Helper()
	res, err := http.ReadResponse(c.br, &http.Request{Method: "POST"})
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	if len(res.TransferEncoding) != 1 || res.StatusCode != 200 {
		c.t.Fatalf("got %d, %v", res.StatusCode, res.Header)
	}
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			return res.Header, chunks, false
		}
		var n int
		if _, err := fmt.Sscanf(line, "%x\r\n", &n); err != nil {
			c.t.Fatalf("chunk size %q: %v", line, err)
		}
		data := make([]byte, n+2)
		if _, err := io.ReadFull(c.br, data); err != nil {
			return res.Header, chunks, false
		}
		if n == 0 {
			return res.Header, chunks, true
		}
		chunks = append(chunks, string(data[:n]))
	}
}

func TestStreamsAreByteExact(t *testing.T) {
	frames := []string{
		"data: {\"a\":1}\n\n", ": comment\n\n", "event: x\ndata: 1\ndata: 2\n\n", "data: \u00e9\u4e16\x00\n\n",
		"data: " + strings.Repeat("x", 100_000) + "\n\n", "data: [DONE]\n\n",
	}
	r := newRig(t, nil, events(frames, nil))
	c := r.dial()
	for _, request := range []string{asks()["common form"], asks()["chunked body"]} { // and the connection is in step behind a stream
		c.send(request)
		head, chunks, ended := c.raw()
		if got, want := strings.Join(chunks, ""), strings.Join(frames, ""); got != want || !ended {
			t.Errorf("got %.200q (ended %v), want %.200q", got, ended, want)
		}
		for name, want := range map[string]string{"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Length": ""} {
			if got := head.Values(name); strings.Join(got, "|") != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		if head.Get("X-Request-Id") == "" {
			t.Error("no X-Request-Id")
		}
	}
	c.Close()
	r.idle()
}

func TestEachFlushArrivesAtOnce(t *testing.T) {
	next, wrote := make(chan string), make(chan bool)
	r := newRig(t, nil, func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		_ = begin(out)
		for s := range next {
			_ = out.Write([]byte(s), true)
		}
		_ = out.Write([]byte("data: a\n\n"), false) // held back
		_ = out.Write([]byte("data: b\n\n"), true)
		wrote <- true
		<-wrote
		return &inference.Record{Request: req}
	})
	c := r.dial()
	c.send(post("/v1/chat/completions", stream))
	next <- "data: 0\n\n"
	res, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(res.Body)
	read := func(want string) {
		t.Helper()
		line, err := br.ReadString('\n')
		if line != want || err != nil {
			t.Fatalf("got %q, %v, want %q", line, err, want)
		}
		_, _ = br.ReadString('\n')
	}
	read("data: 0\n")
	for i := range 20 { // the next is sent only when the last has come
		next <- fmt.Sprintf("data: %d\n\n", i)
		read(fmt.Sprintf("data: %d\n", i))
	}
	close(next)
	<-wrote
	read("data: a\n")
	read("data: b\n")
	wrote <- true
	if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
	c.Close()
	r.idle()
}

func TestACutStreamDoesNotEndCleanly(t *testing.T) {
	cut := inference.Errorf(inference.CodeUpstreamCut, "it was cut")
	for _, s := range []inference.Surface{inference.Chat, inference.Completions, inference.Messages, inference.Responses} {
		body := strings.Replace(bodyFor(s), `{`, `{"stream":true,`, 1)
		for name, request := range map[string]string{"common form": post(s.Path(), body), "chunked body": strings.Replace(chunked(body, 10), "/v1/chat/completions", s.Path(), 1)} {
			t.Run(s.String()+" "+name, func(t *testing.T) {
				r := newRig(t, nil, events([]string{"data: 1\n\n"}, cut))
				c := r.dial()
				c.send(request)
				head, chunks, ended := c.raw()
				if ended {
					t.Error("the stream ended cleanly")
				}
				want := "data: 1\n\n" + `data: {"error":{"message":"it was cut","type":"server_error","param":null,"code":"upstream_cut"}}` + "\n\n"
				if s == inference.Messages {
					want = "data: 1\n\nevent: error\n" + `data: {"type":"error","error":{"type":"api_error","message":"it was cut"},"request_id":"` + head.Get("X-Request-Id") + `"}` + "\n\n"
				}
				if got := strings.Join(chunks, ""); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				c.Close()
				r.idle()
			})
		}
	}
}

func TestACutAnswerDoesNotEndCleanly(t *testing.T) {
	for name, length := range map[string]int64{"length": 100, "chunks": -1} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
				_ = out.Head(&inference.Head{Status: 200, Length: length, Fields: []inference.HeaderField{{Name: "Content-Type", Value: "application/json"}}})
				_ = out.Write([]byte(`{"half":`), true)
				out.Fail(inference.Errorf(inference.CodeUpstreamCut, "cut"))
				return &inference.Record{Request: req}
			})
			a := r.ask(post("/v1/chat/completions", chat))
			if a.err == nil {
				t.Error("the answer ended cleanly")
			}
			if a.body != `{"half":` {
				t.Errorf("got %q", a.body)
			}
			r.idle()
		})
	}
}

func TestAnAnswerThatIsShorterThanAnnouncedDoesNotEndCleanly(t *testing.T) {
	r := newRig(t, nil, func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		_ = out.Head(&inference.Head{Status: 200, Length: 100})
		_ = out.Write([]byte(`half`), true)
		return &inference.Record{Request: req}
	})
	c := r.dial()
	c.send(post("/v1/chat/completions", chat) + post("/v1/chat/completions", chat))
	if a := c.receive("POST"); a.err == nil {
		t.Errorf("got %q", a.body)
	}
	c.Close()
	r.idle()
}

func TestACanceledStreamIsAborted(t *testing.T) {
	r := newRig(t, nil, events([]string{"data: 1\n\n"}, inference.Errorf(inference.CodeCanceled, "gone")))
	c := r.dial()
	c.send(post("/v1/chat/completions", stream))
	if _, chunks, ended := c.raw(); ended || strings.Contains(strings.Join(chunks, ""), "error") {
		t.Errorf("ended %v, got %q", ended, chunks)
	}
	c.Close()
	r.idle()
}

func TestKeepAliveComments(t *testing.T) {
	r := newRig(t, nil, events([]string{":\n", ":\n", "data: 1\n\n"}, nil))
	if a := r.ask(post("/v1/chat/completions", stream)); a.body != ":\n:\ndata: 1\n\n" {
		t.Errorf("got %q", a.body)
	}
	// An error behind a comment comes as a frame: the status was sent.
	r = newRig(t, nil, events([]string{":\n"}, inference.Errorf(inference.CodeOverloaded, "busy")))
	c := r.dial()
	c.send(post("/v1/chat/completions", stream))
	if _, chunks, ended := c.raw(); ended || !strings.HasPrefix(strings.Join(chunks, ""), ":\ndata: {\"error\":") {
		t.Errorf("ended %v, got %q", ended, chunks)
	}
}

func TestARefusalBehindTheGraceIsAFrame(t *testing.T) {
	e := inference.Errorf(inference.CodeOverloaded, "the servers are busy")
	e.RetryAfter, e.Ticket, e.Position = 3*time.Second, "v1.abc", 4 // there is no header left to say so
	for _, s := range []inference.Surface{inference.Chat, inference.Completions, inference.Messages, inference.Responses} {
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, nil, events([]string{": keep-alive\n", ": keep-alive\n"}, e))
			c := r.dial()
			c.send(post(s.Path(), strings.Replace(bodyFor(s), `{`, `{"stream":true,`, 1)))
			head, chunks, ended := c.raw()
			want := ": keep-alive\n: keep-alive\n" + `data: {"error":{"message":"the servers are busy","type":"server_error","param":null,"code":"server_is_overloaded"}}` + "\n\n"
			if s == inference.Messages {
				want = ": keep-alive\n: keep-alive\nevent: error\n" + `data: {"type":"error","error":{"type":"overloaded_error","message":"the servers are busy"},"request_id":"` + head.Get("X-Request-Id") + `"}` + "\n\n"
			}
			if got := strings.Join(chunks, ""); got != want || ended || head.Get("Retry-After") != "" {
				t.Errorf("ended %v, got %q, want %q", ended, got, want)
			}
			c.Close()
			r.idle()
		})
	}
}

func TestASlowReaderIsCut(t *testing.T) {
	for name, request := range asks() {
		t.Run(name, func(t *testing.T) { slowReader(t, request) })
	}
}

// slowReader sends a request and reads nothing of its answer.
func slowReader(t *testing.T, request string) {
	t.Helper()
	const sendBuffer = 32 << 10
	var written atomic.Int64
	broke := make(chan error, 1)
	frame := []byte("data: " + strings.Repeat("x", 1000) + "\n\n")
	r := newRig(t, func(c *api.Config) { c.WriteStallTimeout, c.SendBuffer = 500*time.Millisecond, sendBuffer }, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		err := begin(out)
		for err == nil {
			if err = out.Write(frame, true); err == nil {
				written.Add(int64(len(frame)))
			}
		}
		broke <- err
		out.Fail(inference.Errorf(inference.CodeCanceled, "the client takes nothing"))
		return &inference.Record{Request: req}
	})
	d := net.Dialer{Control: smallReceiveBuffer}
	nc, err := d.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(t, nc)
	c.send(request)
	select {
	case err := <-broke:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the write ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the client was not cut")
	}
	// What is in flight: both kernels' buffers (Linux doubles what is asked for) and ours.
	if n := written.Load(); n > 256<<10 {
		t.Errorf("%d bytes were taken from the upstream for a client that reads nothing", n)
	} else {
		t.Logf("%d bytes were taken from the upstream", n)
	}
	r.idle() // while the client still holds its end
	if rest, err := io.ReadAll(c.br); err == nil && strings.HasSuffix(string(rest), "0\r\n\r\n") {
		t.Error("the stream ended cleanly")
	}
	c.Close()
}

func TestAReaderThatIsSlowButReadsIsNotCut(t *testing.T) {
	frame := "data: " + strings.Repeat("x", 1000) + "\n\n"
	frames := make([]string, 400)
	for i := range frames {
		frames[i] = frame
	}
	r := newRig(t, func(c *api.Config) { c.WriteStallTimeout, c.SendBuffer = 400*time.Millisecond, 16<<10 }, events(frames, nil))
	d := net.Dialer{Control: smallReceiveBuffer}
	nc, err := d.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(t, nc)
	c.send(post("/v1/chat/completions", stream))
	res, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	total, buf := 0, make([]byte, 40_000)
	for err == nil {
		var n int
		n, err = io.ReadFull(res.Body, buf)
		total += n
		time.Sleep(100 * time.Millisecond)
	}
	if want := len(frame) * len(frames); total != want || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes, %v, want %d", total, err, want)
	}
	c.Close()
	r.idle()
}

func TestALeavingClientEndsItsRequest(t *testing.T) {
	for name, phase := range map[string]func(api.Answer){
		"before the answer": func(api.Answer) {},
		"behind a comment":  func(out api.Answer) { _ = begin(out); _ = out.Write([]byte(":\n"), true) },
		"while it streams":  func(out api.Answer) { _ = begin(out); _ = out.Write([]byte("data: 1\n\n"), true) },
		"within a JSON value": func(out api.Answer) {
			_ = out.Head(&inference.Head{Status: 200, Length: 100})
			_ = out.Write([]byte("{"), true)
		},
	} {
		for how, leave := range map[string]func(*conn){
			"close": func(c *conn) { c.Close() },
			"reset": func(c *conn) { _ = c.Conn.(*net.TCPConn).SetLinger(0); c.Close() },
		} {
			for form, request := range asks() {
				t.Run(name+", "+how+", "+form, func(t *testing.T) {
					ready, ended := make(chan bool, 1), make(chan error, 1)
					r := newRig(t, nil, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
						phase(out)
						ready <- true
						select {
						case <-ctx.Done():
							ended <- context.Cause(ctx)
						case <-time.After(10 * time.Second):
							ended <- nil
						}
						out.Fail(inference.Errorf(inference.CodeCanceled, "gone"))
						return &inference.Record{Request: req}
					})
					c := r.dial()
					c.send(request)
					<-ready
					leave(c)
					if err := <-ended; err == nil {
						t.Error("the request went on without its client")
					} else if e, ok := errors.AsType[*inference.Error](err); ok {
						t.Errorf("the cause %v is the server's own", e)
					}
					r.idle()
				})
			}
		}
	}
}

func TestASecondRequestDoesNotEndTheFirst(t *testing.T) {
	var n atomic.Int64
	hold := make(chan struct{})
	r := newRig(t, nil, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
		if n.Add(1) == 1 {
			select {
			case <-hold:
			case <-ctx.Done():
				t.Errorf("the first request was ended: %v", context.Cause(ctx))
			}
		}
		return answerOK(ctx, req, out)
	})
	c := r.dial()
	c.send(post("/v1/chat/completions", chat))
	testkit.Eventually(t, "the first request runs", func() bool { return n.Load() == 1 })
	c.send(post("/v1/chat/completions", chat))
	time.Sleep(50 * time.Millisecond) // an early end would be seen by now
	close(hold)
	for range 2 {
		if a := c.receive("POST"); a.StatusCode != 200 {
			t.Errorf("got %d", a.StatusCode)
		}
	}
	c.Close()
	r.idle()
}
