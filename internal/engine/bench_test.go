package engine_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
)

// benchTarget, in the environment, turns the test binary into the benchmark's client: "address streams tokens".
// As a process of its own its CPU stays out of the engine's clock.
const benchTarget = "ENGINE_BENCH_TARGET"

// readStreams opens the streams, reads them to their ends as raw bytes and prints how many events came.
func readStreams(target string) int {
	var addr string
	var streams, tokens int
	if _, err := fmt.Sscan(target, &addr, &streams, &tokens); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	var wg sync.WaitGroup
	events := make([]int, streams)
	for i := range streams {
		wg.Go(func() {
			body := fmt.Sprintf(`{"model":"sim","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"%d"}]}`, tokens, i)
			c, err := net.Dial("tcp", addr)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			const carry = 5 // bytes kept from one read to the next: one less than the marker and than the end
			buf := make([]byte, carry+16<<10)
			for {
				n, err := c.Read(buf[carry:])
				events[i] += bytes.Count(buf[:carry+n], []byte("data: "))
				if bytes.HasSuffix(buf[:carry+n], []byte("0\r\n\r\n")) {
					return
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					return
				}
				copy(buf, buf[n:n+carry])
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range events {
		sum += n
	}
	fmt.Println(sum)
	return 0
}

// BenchmarkUnary measures a whole small JSON request on one keep-alive connection, client included.
func BenchmarkUnary(b *testing.B) {
	cfg := quick(nil)
	cfg.Batching.StepBase = 1
	s := start(b, cfg)
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	body := `{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":"` + strings.Repeat("word ", 200) + `"}]}`
	request := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	r := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.WriteString(c, request); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
	}
}
