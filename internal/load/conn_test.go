package load_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// raw serves each request of a connection with the next of the answers, then
// closes the connection without a word.
func raw(t *testing.T, conns *atomic.Int64, answers ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			go answerAll(c, answers)
		}
	}()
	return "http://" + l.Addr().String()
}

func answerAll(c net.Conn, answers []string) {
	defer c.Close()
	r := bufio.NewReader(c)
	for _, a := range answers {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if _, err := io.WriteString(c, a); err != nil {
			return
		}
	}
}

// TestFraming meets the ways in which HTTP/1.1 can frame an answer.
func TestFraming(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
	events := token + finish + done
	ok := map[string]int64(nil)
	tests := map[string]struct {
		answer string
		errors map[string]int64
		broken int64 // truncated
	}{
		"chunks in pieces":    {answer: head + "Transfer-Encoding: chunked\r\n\r\n3\r\ndat\r\n" + "4;x=y\r\na: {\r\n" + chunk(events[7:]) + "0\r\nTrailer: x\r\n\r\n", errors: ok},
		"length":              {answer: head + "content-length: " + length(events) + "\r\n\r\n" + events, errors: ok},
		"until close":         {answer: head + "\r\n" + events, errors: ok},
		"HTTP/1.0":            {answer: "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + events, errors: ok},
		"informational first": {answer: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + head + "\r\n" + events, errors: ok},
		"cut by close":        {answer: head + "\r\n" + token, broken: 1},
		"short length":        {answer: head + "Content-Length: 9999\r\n\r\n" + token, errors: map[string]int64{"cut": 1}},
		"no last chunk":       {answer: head + "Transfer-Encoding: chunked\r\n\r\n" + chunk(token), errors: map[string]int64{"cut": 1}},
		"last chunk early":    {answer: head + "Transfer-Encoding: chunked\r\n\r\n" + chunk(token) + "0\r\n\r\n", broken: 1},
		"bad size":            {answer: head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + token, errors: map[string]int64{"malformed": 1}},
		"huge size":           {answer: head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + token, errors: map[string]int64{"malformed": 1}},
		"no line end":         {answer: head + "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", errors: map[string]int64{"malformed": 1}},
		"bad length":          {answer: head + "Content-Length: -1\r\n\r\n", errors: map[string]int64{"malformed": 1}},
		"other coding":        {answer: head + "Transfer-Encoding: gzip\r\n\r\n", errors: map[string]int64{"malformed": 1}},
		"not HTTP":            {answer: "SSH-2.0-OpenSSH\r\n\r\n", errors: map[string]int64{"malformed": 1}},
		"endless head":        {answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", errors: map[string]int64{"malformed": 1}},
		"endless event":       {answer: head + "\r\ndata: " + strings.Repeat("x", 2<<20), errors: map[string]int64{"malformed": 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int64
			s := run(t, config(raw(t, &conns, tt.answer), 1), load.Options{})
			if answered := s.Answered == 1; answered != (tt.errors == nil && tt.broken == 0) || s.Truncated != tt.broken || !maps.Equal(s.Errors, tt.errors) {
				t.Errorf("got answered %d truncated %d errors %v, want truncated %d errors %v", s.Answered, s.Truncated, s.Errors, tt.broken, tt.errors)
			}
		})
	}
}

func chunk(s string) string { return hex(len(s)) + "\r\n" + s + "\r\n" }

func hex(n int) string {
	const digits = "0123456789ABCDEF"
	if n < 16 {
		return digits[n : n+1]
	}
	return hex(n/16) + digits[n%16:n%16+1]
}

func length(s string) string {
	var b strings.Builder
	for _, d := range []int{len(s) / 100, len(s) / 10 % 10, len(s) % 10} {
		b.WriteByte('0' + byte(d))
	}
	return b.String()
}

// TestReuse: answers that ended properly leave the connection to the next
// request; one that the server has closed meanwhile is not used.
func TestReuse(t *testing.T) {
	events := token + finish + done
	full := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(events) + "0\r\n\r\n"
	one := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: " + length(events) + "\r\n\r\n" + events
	tests := map[string]struct {
		answers []string
		conns   int64
	}{
		"kept":                {[]string{full, one, full, one, full}, 1},
		"closed by server":    {[]string{full}, 5},
		"closed after 1.0":    {[]string{strings.Replace(one, "1.1", "1.0", 1), full}, 5},
		"closed when told to": {[]string{strings.Replace(full, "\r\n", "\r\nConnection: close\r\n", 1), full}, 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int64
			cfg := config(raw(t, &conns, tt.answers...), 1)
			cfg.Schedule.Profile = "10/s:500ms"
			s := run(t, cfg, load.Options{})
			if s.Answered != 5 || conns.Load() != tt.conns {
				t.Errorf("got %d answered over %d connections, errors %v, want 5 over %d", s.Answered, conns.Load(), s.Errors, tt.conns)
			}
		})
	}
}

func TestEarlyRefusal(t *testing.T) {
	// The server answers and closes without reading a body larger than the
	// socket's buffers: the answer counts, not the failed write.
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		io.WriteString(w, `{"error":{"code":"too_large"}}`)
		io.Copy(io.Discard, r.Body)
	})
	cfg := config(url, 1)
	cfg.Request.PromptTokens = 2 << 20
	if s := run(t, cfg, load.Options{}); s.Errors["too_large"] != 1 {
		t.Errorf("errors: got %v, want too_large", s.Errors)
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(sse(token, finish, done))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // it reports the handshakes that fail below
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	cfg := config(srv.URL, 3)
	cfg.Schedule.Profile = "30/s:100ms"
	if s := run(t, cfg, load.Options{TLS: &tls.Config{RootCAs: roots}}); s.Answered != 3 {
		t.Errorf("got %d answered, errors %v, want 3", s.Answered, s.Errors)
	}
	if s := run(t, cfg, load.Options{}); s.Errors["connect"] != 3 {
		t.Errorf("unknown authority: got errors %v, want connect", s.Errors)
	}
}

// FuzzAnswer reads whatever a server may write: a run always ends, and every
// row ends in one of its outcomes.
func FuzzAnswer(f *testing.F) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
	f.Add(head + "Transfer-Encoding: chunked\r\n\r\n" + chunk(token+finish+done) + "0\r\n\r\n")
	f.Add(head + "\r\n" + token + `data: {"error":{"code":"x","type":"y"}}` + "\n\n")
	f.Add("HTTP/1.1 503 X\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}")
	f.Add("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + whole)
	f.Fuzz(func(t *testing.T, answer string) {
		synctest.Test(t, func(t *testing.T) {
			cfg := config("http://server", 1)
			cfg.Client.Timeout = time.Minute
			cfg.Client.Retries = 1
			run(t, cfg, load.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go answerAll(server, []string{answer})
				return client, nil
			}})
		})
	})
}
