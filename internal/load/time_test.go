package load_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/load"
)

// piped serves requests over in-memory connections, so that a run can live in
// a bubble of fake time. answer gets the number of the request and when it
// came, and writes the raw response.
type piped struct {
	mu      sync.Mutex
	start   time.Time
	arrived []time.Duration
	headers []http.Header
	answer  func(n int, w io.Writer)
}

func (p *piped) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		r := bufio.NewReader(server)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			at := time.Since(p.start)
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			p.mu.Lock()
			n := len(p.arrived)
			p.arrived = append(p.arrived, at)
			p.headers = append(p.headers, req.Header)
			p.mu.Unlock()
			p.answer(n, server)
		}
	}()
	return client, nil
}

// complete writes a complete stream.
func complete(w io.Writer) {
	text := token + token + finish + done
	fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
}

func refuse(w io.Writer, status int, header string) {
	fmt.Fprintf(w, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n%s\r\n", status, header)
}

// TestRetry checks when a client sends again, in fake time. The HTTP date is
// that of 7 s after the bubble's beginning, midnight UTC 2000-01-01.
func TestRetry(t *testing.T) {
	type span struct{ from, to time.Duration }
	const s, ms = time.Second, time.Millisecond
	at := func(d time.Duration) span { return span{d, d} }
	tests := map[string]struct {
		status  int
		header  string
		retries int
		want    []span // gaps between attempts
		code    string
	}{
		"off":              {status: 503, code: "http_503"},
		"backoff":          {status: 503, retries: 2, want: []span{{375 * ms, 500 * ms}, {750 * ms, s}}, code: "http_503"},
		"cap":              {status: 500, retries: 6, want: []span{{375 * ms, 500 * ms}, {750 * ms, s}, {1500 * ms, 2 * s}, {3 * s, 4 * s}, {6 * s, 8 * s}, {6 * s, 8 * s}}, code: "http_500"},
		"retry after":      {status: 429, header: "Retry-After: 3\r\n", retries: 1, want: []span{at(3 * s)}, code: "http_429"},
		"milliseconds win": {status: 429, header: "Retry-After: 3\r\nretry-after-ms: 250.5\r\n", retries: 1, want: []span{at(250500 * time.Microsecond)}, code: "http_429"},
		"date":             {status: 503, header: "Retry-After: Sat, 01 Jan 2000 00:00:07 GMT\r\n", retries: 1, want: []span{at(7 * s)}, code: "http_503"},
		"zero":             {status: 429, header: "Retry-After: 0\r\n", retries: 1, want: []span{{375 * ms, 500 * ms}}, code: "http_429"},
		"too long":         {status: 429, header: "Retry-After: 121\r\n", retries: 2, code: "http_429"},
		"longest":          {status: 429, header: "Retry-After: 120\r\n", retries: 1, want: []span{at(120 * s)}, code: "http_429"},
		"told not to":      {status: 429, header: "x-should-retry: false\r\n", retries: 2, code: "http_429"},
		"told to":          {status: 400, header: "x-should-retry: true\r\n", retries: 1, want: []span{{375 * ms, 500 * ms}}, code: "http_400"},
		"not ours":         {status: 400, retries: 2, code: "http_400"},
		"conflict":         {status: 409, retries: 1, want: []span{{375 * ms, 500 * ms}}, code: "http_409"},
		"past the time":    {status: 429, header: "Retry-After: 110\r\n", retries: 9, want: []span{at(110 * s)}, code: "http_429"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) { refuse(w, tt.status, tt.header) }}
				cfg := config("http://server", 1)
				cfg.Client.Timeout = 200 * s
				cfg.Client.Retries = tt.retries
				// The date is absolute, so the first attempt has to be at 0.
				cfg.Schedule = load.Default().Schedule
				cfg.Schedule.Trace.Path, cfg.Schedule.Trace.MaxRows = "testdata/azure-2023-conv.csv", 1
				sys := run(t, cfg, load.Options{Dial: p.dial})
				var got []time.Duration
				for i := 1; i < len(p.arrived); i++ {
					got = append(got, p.arrived[i]-p.arrived[i-1])
				}
				fits := slices.EqualFunc(got, tt.want, func(d time.Duration, w span) bool { return d >= w.from && d <= w.to })
				if !fits {
					t.Errorf("gaps: got %v, want %v", got, tt.want)
				}
				if sys.Errors[tt.code] != 1 || sys.Retries != int64(len(tt.want)) || sys.Attempts != int64(len(tt.want))+1 {
					t.Errorf("got errors %v, %d retries, %d attempts", sys.Errors, sys.Retries, sys.Attempts)
				}
				if n := len(p.headers); tt.retries > 0 && p.headers[n-1].Get("X-Stainless-Retry-Count") != fmt.Sprint(n-1) {
					t.Errorf("retry count header: got %q, want %d", p.headers[n-1].Get("X-Stainless-Retry-Count"), n-1)
				}
			})
		})
	}
}

func TestRetrySucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &piped{start: time.Now(), answer: func(n int, w io.Writer) {
			if n == 0 {
				refuse(w, 503, "Retry-After: 2\r\n")
				return
			}
			complete(w)
		}}
		cfg := config("http://server", 1)
		cfg.Client.Retries = 2
		cfg.Schedule.Profile = "2/s:500ms" // one request, at 250 ms
		s := run(t, cfg, load.Options{Dial: p.dial})
		if s.Answered != 1 || s.Retries != 1 || len(s.Errors) != 0 {
			t.Errorf("got answered %d, retries %d, errors %v", s.Answered, s.Retries, s.Errors)
		}
		// What the client waits for counts from the first send.
		if s.TTFT.Max < 2000 || s.TTFT.Max > 2003 {
			t.Errorf("TTFT: got %v ms, want 2000", s.TTFT.Max)
		}
	})
}

// arrivals runs cfg in fake time and returns when requests were sent.
func arrivals(t *testing.T, cfg load.Config) (out []time.Duration, sys load.System) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) { complete(w) }}
		sys = run(t, cfg, load.Options{Dial: p.dial})
		if sys.InvalidReason != "" {
			t.Errorf("invalid: %s", sys.InvalidReason)
		}
		slices.Sort(p.arrived)
		out = p.arrived
	})
	return out, sys
}

func TestUniformSchedule(t *testing.T) {
	cfg := config("http://server", 1)
	cfg.Schedule.Profile = "2/s:2s,ramp 0-4/s:2s,0/s:1s,burst 4/s:500ms"
	got, _ := arrivals(t, cfg)
	// Steps: every 500 ms from 250 ms on. The ramp expects t² arrivals within t
	// seconds, so the next ones come at the roots of 0.5, 1.5, 2.5, 3.5.
	const ms = time.Millisecond
	want := []time.Duration{250 * ms, 750 * ms, 1250 * ms, 1750 * ms, 2707 * ms, 3224 * ms, 3581 * ms, 3870 * ms, 5125 * ms, 5375 * ms}
	for i := range got {
		got[i] = got[i].Truncate(ms)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("send times (-want +got):\n%s", diff)
	}
}

func TestPoissonSchedule(t *testing.T) {
	cfg := config("http://server", 1)
	cfg.Schedule.Profile, cfg.Schedule.Rate, cfg.Schedule.Duration = "", 100, 20*time.Second
	cfg.Schedule.Arrivals = load.Poisson
	first, _ := arrivals(t, cfg)
	if n := len(first); n < 1850 || n > 2150 {
		t.Errorf("got %d arrivals, want about 2000", n)
	}
	// Gaps of a Poisson process: 1/e of them are longer than the mean.
	long := 0
	for i := 1; i < len(first); i++ {
		if first[i]-first[i-1] > 10*time.Millisecond {
			long++
		}
	}
	if share := float64(long) / float64(len(first)); share < 0.33 || share > 0.41 {
		t.Errorf("got %.2f of the gaps above the mean, want 0.37", share)
	}
	second, _ := arrivals(t, cfg)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Error("the same seed sends at other times")
	}
	cfg.Seed++
	if third, _ := arrivals(t, cfg); slices.Equal(first, third) {
		t.Error("another seed sends at the same times")
	}
}

func TestTraceSchedule(t *testing.T) {
	base := config("http://server", 1)
	base.Schedule = load.Default().Schedule
	base.Schedule.Trace.Path = "testdata/vllm-run-rtx4090-llama-3.1-8b.requests.jsonl"
	slots := base
	slots.Schedule.Trace.Path = "testdata/mooncake-conversation.jsonl"
	tests := map[string]struct {
		cfg    load.Config
		change func(*load.Config)
		count  int
		check  func([]time.Duration) bool
	}{
		"as recorded": {base, func(*load.Config) {}, 30, func(at []time.Duration) bool { return at[1] == 265091584 }},
		"twice as fast": {base, func(c *load.Config) { c.Schedule.Trace.Speed = 2 }, 30, func(at []time.Duration) bool {
			return at[1] == 265091584/2
		}},
		"offset": {base, func(c *load.Config) { c.Schedule.Trace.Start = 265 * time.Millisecond }, 29, func(at []time.Duration) bool { return at[0] == 91584 }},
		// Rows at 0, 265, 459 ms, ...: the first pass lacks one, the second none.
		"offset into the first pass": {base, func(c *load.Config) {
			c.Schedule.Trace.Offset = 200 * time.Millisecond
			c.Schedule.Trace.Window, c.Schedule.Duration = 300*time.Millisecond, 1500*time.Millisecond
		}, 3, func(at []time.Duration) bool {
			const gap = time.Second // of a pass with one row
			return at[0] == 65091584 && at[1] == at[0]+gap && at[2] == at[1]+265091584
		}},
		"window": {base, func(c *load.Config) { c.Schedule.Trace.Window = 300 * time.Millisecond }, 2, func([]time.Duration) bool { return true }},
		"repeats": {base, func(c *load.Config) {
			c.Schedule.Trace.MaxRows = 2
			c.Schedule.Duration = time.Second
		}, 4, func(at []time.Duration) bool { return at[2] == 2*at[1] && at[3] == 3*at[1] }},
		"repeats spread": {slots, func(c *load.Config) {
			// Ten rows of the first slot and three of the second, 3 s long each:
			// the next pass begins behind the second.
			c.Schedule.Trace.MaxRows, c.Schedule.Trace.Spread = 13, true
			c.Schedule.Duration = 8 * time.Second
		}, 20, func(at []time.Duration) bool { return at[10] == 3*time.Second && at[13] == 6*time.Second }},
		"slots":  {slots, func(c *load.Config) { c.Schedule.Trace.MaxRows = 12 }, 12, func(at []time.Duration) bool { return at[1] == 0 }},
		"spread": {slots, func(c *load.Config) { c.Schedule.Trace.MaxRows, c.Schedule.Trace.Spread = 12, true }, 12, func(at []time.Duration) bool { return at[1] > 0 && at[1] < 3*time.Second }},
		"lengths of a trace at a rate": {slots, func(c *load.Config) {
			c.Schedule.Rate, c.Schedule.Duration, c.Schedule.Arrivals = 10, 6*time.Second, load.Uniform
		}, 60, func(at []time.Duration) bool { return at[1]-at[0] == 100*time.Millisecond }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := tt.cfg
			tt.change(&cfg)
			at, _ := arrivals(t, cfg)
			if len(at) != tt.count || !tt.check(at) {
				t.Errorf("got %d send times, want %d: %v", len(at), tt.count, at)
			}
		})
	}
}

// TestNoCoordinatedOmission: a server that freezes for a second delays every
// request whose instant lies in it, by what is left of the second.
func TestNoCoordinatedOmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := &piped{start: start, answer: func(_ int, w io.Writer) {
			if at := time.Since(start); at < time.Second {
				time.Sleep(time.Second - at)
			}
			complete(w)
		}}
		cfg := config("http://server", 1)
		cfg.Schedule.Profile = "100/s:2s"
		s := run(t, cfg, load.Options{Dial: p.dial})
		// Waits of the first 100 requests run from 995 ms down to 5 ms.
		if s.Answered != 200 || s.TTFT.Max < 990 || s.TTFT.Mean < 245 || s.TTFT.Mean > 255 {
			t.Errorf("got %d answered, TTFT %+v, want a mean of 250 ms", s.Answered, s.TTFT)
		}
		if s.E2E.P50 > 10 || s.E2E.P90 < 790 || s.E2E.P90 > 800 {
			t.Errorf("E2E: got %+v, want p50 5 and p90 795", s.E2E)
		}
	})
}

// TestLatencies: TTFT, ITL, TPOT and goodput of streams whose times are known.
func TestLatencies(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		ttft, itl time.Duration
		good      float64
	}{
		"within":    {40 * ms, 10 * ms, 1},
		"slow":      {40 * ms, 30 * ms, 0},
		"late":      {400 * ms, 10 * ms, 0},
		"inclusive": {100 * ms, 20 * ms, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) {
					io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
					time.Sleep(tt.ttft)
					for i := range 11 {
						if i > 0 {
							time.Sleep(tt.itl)
						}
						fmt.Fprintf(w, "%x\r\n%s\r\n", len(token), token)
					}
					fmt.Fprintf(w, "%x\r\n%s\r\n0\r\n\r\n", len(finish+done), finish+done)
				}}
				cfg := config("http://server", 1)
				cfg.Classes = []load.Class{{Name: "vip", Share: 1}}
				cfg.Schedule.Profile = "1/s:5s"
				cfg.SLO = load.SLO{TTFT: 100 * ms, TPOT: 20 * ms}
				s := run(t, cfg, load.Options{Dial: p.dial})
				near := func(what string, l *load.Latency, want time.Duration) {
					t.Helper()
					if got := time.Duration(l.P50 * float64(ms)); got < want-want/500 || got > want+want/500+time.Microsecond {
						t.Errorf("%s p50: got %s, want %s", what, got, want)
					}
				}
				near("TTFT", s.TTFT, tt.ttft)
				near("ITL", s.ITL, tt.itl)
				near("TPOT", s.TPOT, tt.itl)
				near("E2E", s.E2E, tt.ttft+10*tt.itl)
				if s.ITL.Count != 50 || s.OutputTokens != 55 {
					t.Errorf("got %d gaps, %d tokens, want 50, 55", s.ITL.Count, s.OutputTokens)
				}
				if *s.GoodputRatio != tt.good || *s.Classes["vip"].SLOAttainment != tt.good {
					t.Errorf("goodput: got %v, vip %v, want %v", *s.GoodputRatio, *s.Classes["vip"].SLOAttainment, tt.good)
				}
			})
		})
	}
}

// TestLateGenerator: a generator that is late says so.
func TestLateGenerator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) { complete(w) }}
		// Reading the trace delays the dispatcher, as an overloaded machine would.
		cfg := config("http://server", 1)
		cfg.Schedule = load.Default().Schedule
		cfg.Schedule.Trace.Path = "mooncake-conversation.jsonl"
		s := run(t, cfg, load.Options{Dial: p.dial, FS: slowFS{}})
		if want := "schedule lag p99"; len(s.InvalidReason) < len(want) || s.InvalidReason[:len(want)] != want {
			t.Errorf("reason: got %q, want %s", s.InvalidReason, want)
		}
	})
}
