//go:build unix

package load_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// responder is a raw TCP server that reads a request by its Content-Length and
// writes one canned answer: the cheapest server there is.
func responder(b *testing.B, answer []byte) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go respond(c, answer)
		}
	}()
	return "http://" + l.Addr().String()
}

func respond(c net.Conn, answer []byte) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 16<<10)
	for {
		length := 0
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// streamAnswer is a chunked answer of n deltas, each event a chunk.
func streamAnswer(n int) []byte {
	var b strings.Builder
	b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	pad := strings.Replace(token, `{"choices"`, `{"id":"chatcmpl-0123456789","object":"chat.completion.chunk","created":1760000000,"model":"m","choices"`, 1)
	for range n {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(pad), pad)
	}
	for _, e := range []string{finish, done} {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(e), e)
	}
	b.WriteString("0\r\n\r\n")
	return []byte(b.String())
}

// cpu is the process's CPU time, the responder's included.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sendAll runs b.N requests as fast as they are scheduled. The cost includes
// the responder, which shares the process.
func sendAll(b *testing.B, url string, streamed float64, events int) {
	cfg := load.Default()
	cfg.Target.BaseURLs, cfg.Target.Model = []string{url}, "m"
	cfg.Schedule.Arrivals = load.Uniform
	const rate = 4000
	cfg.Schedule.Profile = fmt.Sprintf("%d/s:%s", rate, time.Duration(b.N)*time.Second/rate)
	cfg.Request.Streamed = streamed
	b.ReportAllocs()
	before := cpu(b)
	r, err := load.Run(b.Context(), cfg, load.Options{})
	if err != nil {
		b.Fatal(err)
	}
	spent := cpu(b) - before
	if s := r.Systems[0]; s.Answered != s.Offered {
		b.Fatalf("got %d of %d answered, errors %v", s.Answered, s.Offered, s.Errors)
	}
	n := float64(r.Systems[0].Offered)
	b.ReportMetric(float64(spent.Nanoseconds())/n/1000, "cpu-µs/request")
	if events > 0 {
		b.ReportMetric(float64(spent.Nanoseconds())/n/float64(events), "cpu-ns/event")
	}
}

// BenchmarkRequest is the cost of a request answered in one piece.
func BenchmarkRequest(b *testing.B) {
	answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(whole), whole)
	sendAll(b, responder(b, []byte(answer)), 0, 0)
}

// BenchmarkEvent is the cost of streamed events: 128 a request.
func BenchmarkEvent(b *testing.B) { sendAll(b, responder(b, streamAnswer(128)), 1, 128) }

// BenchmarkTrace is the cost of reading a row of a trace.
func BenchmarkTrace(b *testing.B) {
	for _, name := range []string{"azure-2023-conv.csv", "mooncake-conversation.jsonl"} {
		b.Run(name, func(b *testing.B) {
			text, err := os.ReadFile("testdata/" + name)
			if err != nil {
				b.Fatal(err)
			}
			f, err := load.DetectFormat(name)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			rows := 0
			for b.Loop() {
				r, err := load.NewRows(bytes.NewReader(text), f)
				for ; err == nil; rows++ {
					_, err = r.Next()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(rows), "ns/row")
		})
	}
}
