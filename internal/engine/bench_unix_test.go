//go:build unix

package engine_test

import (
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

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
