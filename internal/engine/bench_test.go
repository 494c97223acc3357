package engine_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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

// processCPU is the CPU time of this process, user and system.
func processCPU(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkStreams measures the engine's CPU per event over loopback HTTP, its client being another process.
// Saturated: steps take no time, so the loop writes as fast as it can. Paced: 20,000 events/s, directly and through the
// handlers, which is what a connection without a direct way costs.
func BenchmarkStreams(b *testing.B) {
	for name, bench := range map[string]struct {
		step            time.Duration
		streams, tokens int
		handlers        bool // through the handlers, as on connections without a direct way
	}{
		"saturated":      {time.Nanosecond, 256, 1000, false},
		"paced":          {12800 * time.Microsecond, 256, 200, false}, // 20,000 events/s
		"paced/handlers": {12800 * time.Microsecond, 256, 200, true},
	} {
		b.Run(name, func(b *testing.B) {
			cfg := quick(nil)
			cfg.Batching.StepBase = bench.step
			s := start(b, cfg)
			if bench.handlers {
				plain := httptest.NewServer(s.Engine)
				defer plain.Close()
				s.addr = plain.Listener.Addr().String()
			}
			var cpu, wall time.Duration
			events := 0
			for b.Loop() {
				client := exec.Command(os.Args[0])
				client.Env = append(os.Environ(), benchTarget+"="+fmt.Sprintf("%s %d %d", s.addr, bench.streams, bench.tokens))
				client.Stderr = os.Stderr
				cpu0, begin := processCPU(b), time.Now()
				out, err := client.Output()
				if err != nil {
					b.Fatal(err)
				}
				cpu, wall = cpu+processCPU(b)-cpu0, wall+time.Since(begin)
				n, err := strconv.Atoi(strings.TrimSpace(string(out)))
				if want := bench.streams * (bench.tokens + 3); err != nil || n != want {
					b.Fatalf("client saw %q events, want %d", out, want)
				}
				events += n
			}
			b.ReportMetric(float64(cpu.Nanoseconds())/float64(events), "cpu-ns/event")
			b.ReportMetric(float64(events)/wall.Seconds(), "events/s")
			b.ReportMetric(float64(events)/cpu.Seconds(), "events/cpu-s")
			b.ReportMetric(100*s.Stats().LateShare, "late-%")
		})
	}
}

// BenchmarkUnary measures a whole small JSON request on one keep-alive connection, client included.
func BenchmarkUnary(b *testing.B) {
	cfg := quick(nil)
	cfg.Batching.StepBase = time.Nanosecond
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
