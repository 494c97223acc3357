package load_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/load"
)

// outcomes keeps what a run tells of its attempts.
type outcomes struct {
	mu  sync.Mutex
	all []load.Outcome
}

func (o *outcomes) add(x load.Outcome) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, x)
}

// sorted are the attempts by row.
func (o *outcomes) sorted() []load.Outcome {
	slices.SortFunc(o.all, func(a, b load.Outcome) int {
		return cmp.Or(cmp.Compare(a.Row, b.Row), cmp.Compare(a.Attempt, b.Attempt))
	})
	return o.all
}

// TestAttempts tells attempts in fake time: one is refused with a ticket after 10
// ms, comes back when it was told to, and is answered with a token every 20 ms.
func TestAttempts(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	tests := map[string]struct {
		refusal string
		change  func(*load.Config)
		want    []load.Outcome
		echo    string
	}{
		"ticket": {
			refusal: "retry-after-ms: 2500\r\nRetry-After: 3\r\nX-Retry-Ticket: t.1\r\nX-Spillway-Server-Ms: 0.75\r\n",
			want: []load.Outcome{
				{At: 250 * ms, Sent: 250 * ms, End: 260 * ms, Code: "http_503", Status: 503, RetryAfter: 2500 * ms, Ticket: true, Server: 750 * time.Microsecond},
				{Attempt: 1, At: 2760 * ms, Sent: 2760 * ms, First: 2790 * ms, End: 2810 * ms, Tokens: 2, Whole: true, Status: 200, Returner: true},
			},
		},
		"echoed": {
			refusal: "retry-after-ms: 2500\r\nX-Retry-Ticket: t.1\r\n",
			change:  func(c *load.Config) { c.Client.EchoTicket = true },
			want: []load.Outcome{
				{At: 250 * ms, Sent: 250 * ms, End: 260 * ms, Code: "http_503", Status: 503, RetryAfter: 2500 * ms, Ticket: true},
				{Attempt: 1, At: 2760 * ms, Sent: 2760 * ms, First: 2790 * ms, End: 2810 * ms, Tokens: 2, Whole: true, Status: 200, Returner: true},
			},
			echo: "t.1",
		},
		"no ticket": {
			refusal: "Retry-After: 2\r\nX-Spillway-Server-Ms: soon\r\n",
			want: []load.Outcome{
				{At: 250 * ms, Sent: 250 * ms, End: 260 * ms, Code: "http_503", Status: 503, RetryAfter: 2 * s},
				{Attempt: 1, At: 2260 * ms, Sent: 2260 * ms, First: 2290 * ms, End: 2310 * ms, Tokens: 2, Whole: true, Status: 200},
			},
		},
		"no retries": {
			refusal: "Retry-After: 2\r\nX-Retry-Ticket: t.1\r\n",
			change:  func(c *load.Config) { c.Client.Retries = 0 },
			want: []load.Outcome{
				{At: 250 * ms, Sent: 250 * ms, End: 260 * ms, Code: "http_503", Status: 503, RetryAfter: 2 * s, Ticket: true},
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &piped{start: time.Now(), answer: func(n int, w io.Writer) {
					if n == 0 {
						time.Sleep(10 * ms)
						refuse(w, 503, tt.refusal)
						return
					}
					io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
					time.Sleep(30 * ms)
					io.WriteString(w, token)
					time.Sleep(20 * ms)
					io.WriteString(w, token+finish+done)
				}}
				cfg := config("http://server", 1)
				cfg.Client.Retries = 2
				cfg.Classes = []load.Class{{Name: "vip", Share: 1}}
				cfg.Schedule.Profile = "2/s:500ms" // one request, at 250 ms
				if tt.change != nil {
					tt.change(&cfg)
				}
				var got outcomes
				run(t, cfg, load.Options{Dial: p.dial, Outcome: got.add})
				for i := range tt.want {
					tt.want[i].Class, tt.want[i].Prompt, tt.want[i].Output, tt.want[i].Due = "vip", 8, 128, 250*ms
				}
				if diff := gocmp.Diff(tt.want, got.sorted()); diff != "" {
					t.Errorf("outcomes (-want +got):\n%s", diff)
				}
				if last := p.headers[len(p.headers)-1].Get("X-Retry-Ticket"); last != tt.echo {
					t.Errorf("ticket sent back: got %q, want %q", last, tt.echo)
				}
			})
		})
	}
}

// TestIgnoreRetryAfter: such a client backs off by itself.
func TestIgnoreRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) { refuse(w, 503, "Retry-After: 60\r\nX-Retry-Ticket: t\r\n") }}
		cfg := config("http://server", 1)
		cfg.Client.Retries, cfg.Client.IgnoreRetryAfter, cfg.Client.Timeout = 1, true, 100*time.Second
		var got outcomes
		run(t, cfg, load.Options{Dial: p.dial, Outcome: got.add})
		all := got.sorted()
		if len(all) != 2 || all[1].Returner || all[0].RetryAfter != time.Minute {
			t.Fatalf("outcomes: got %+v", all)
		}
		if wait := all[1].Sent - all[0].End; wait < 375*time.Millisecond || wait > 500*time.Millisecond {
			t.Errorf("waited %v, want the client's own backoff", wait)
		}
	})
}

// TestRefused: only 503 and 429 say that nothing ran.
func TestRefused(t *testing.T) {
	for status, want := range map[int]bool{503: true, 429: true, 500: false, 502: false, 200: false, 0: false} {
		if got := (load.Outcome{Status: status}).Refused(); got != want {
			t.Errorf("status %d: refused %v, want %v", status, got, want)
		}
	}
}

// TestWaitingIsNotInFlight: clients told to come back later do not fill the
// places in flight, but are bounded too.
func TestWaitingIsNotInFlight(t *testing.T) {
	tests := map[string]struct {
		change   func(*load.Config)
		answered int64
		invalid  string
	}{
		"free":             {func(*load.Config) {}, 20, ""},
		"too many":         {func(c *load.Config) { c.Client.MaxWaiting = 5 }, 5, "client.max_waiting: 5 requests waited to be sent again"},
		"back all at once": {func(c *load.Config) { c.Client.MaxInFlight = 1 }, 1, "client.max_in_flight: 1 requests were in flight"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				p := &piped{start: start, answer: func(_ int, w io.Writer) {
					if d := time.Since(start); d < 10*time.Second {
						refuse(w, 503, "Retry-After: Sat, 01 Jan 2000 00:00:20 GMT\r\n")
						return
					}
					time.Sleep(time.Second)
					complete(w)
				}}
				cfg := config("http://server", 1)
				cfg.Schedule.Profile = "20/s:1s"
				cfg.Client.Retries, cfg.Client.MaxInFlight, cfg.Client.Timeout = 1, 20, time.Minute
				tt.change(&cfg)
				hooks := []load.Hook{{At: 5 * time.Second, Name: "look", Do: func(_ context.Context, live *load.Live) error {
					if n := live.InFlight(); n != 0 {
						t.Errorf("%d in flight while all wait", n)
					}
					return nil
				}}}
				s := run(t, cfg, load.Options{Dial: p.dial, Hooks: hooks})
				if s.Answered != tt.answered || !strings.HasPrefix(s.InvalidReason, tt.invalid) || (tt.invalid == "") != (s.InvalidReason == "") {
					t.Errorf("got %d answered, errors %v, reason %q; want %d and %q", s.Answered, s.Errors, s.InvalidReason, tt.answered, tt.invalid)
				}
			})
		})
	}
}

// TestDrain: what is open when the time to drain is over ends as undrained, on a
// connection and in the wait for a retry, and the run counts.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := &piped{start: start, answer: func(n int, w io.Writer) {
			switch n {
			case 0:
				time.Sleep(4 * time.Second)
				complete(w)
			case 1:
				time.Sleep(time.Hour)
			default:
				refuse(w, 503, "Retry-After: 100\r\n")
			}
		}}
		cfg := config("http://server", 1)
		cfg.Schedule.Profile = "3/s:1s"
		cfg.Client.Retries, cfg.Client.Timeout, cfg.Client.Drain = 1, 2*time.Hour, 5*time.Second
		s := run(t, cfg, load.Options{Dial: p.dial})
		if s.Answered != 1 || s.Errors["undrained"] != 1 || s.Errors["http_503"] != 1 || s.InvalidReason != "" {
			t.Errorf("got %d answered, errors %v, reason %q, want one of each", s.Answered, s.Errors, s.InvalidReason)
		}
		if took := time.Since(start); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("took %v, want 1 s of load and 5 s to drain", took)
		}
		time.Sleep(2 * time.Hour) // the server's own end
	})
}

// TestPatience: a client that gets no token in time goes away for good; one that
// does stays as long as clients do, and so does one that gets its answer in one
// piece.
func TestPatience(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	tests := map[string]struct {
		first    time.Duration
		streamed float64
		whole    bool
		end      time.Duration
	}{
		"goes away":    {2*s + ms, 1, false, 2 * s},
		"just in time": {2*s - ms, 1, true, 62*s - ms},
		"one piece":    {2*s + ms, 0, true, 62*s + ms},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) {
					time.Sleep(tt.first)
					if tt.streamed == 0 {
						time.Sleep(time.Minute)
						const whole = `{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}`
						fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(whole), whole)
						return
					}
					io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"+token)
					time.Sleep(time.Minute)
					io.WriteString(w, finish+done)
				}}
				cfg := config("http://server", 1)
				cfg.Request.Streamed = tt.streamed
				cfg.Client.Retries, cfg.Client.Timeout = 2, 10*time.Minute
				cfg.Classes = []load.Class{{Name: "vip", Share: 1, Patience: 2 * s}}
				cfg.Schedule.Profile = "2/s:500ms" // one request, at 250 ms
				var got outcomes
				run(t, cfg, load.Options{Dial: p.dial, Outcome: got.add})
				if len(got.all) != 1 {
					t.Fatalf("%d attempts, want 1", len(got.all))
				}
				if o := got.all[0]; o.Whole != tt.whole || o.End != 250*ms+tt.end {
					t.Errorf("whole %v at %v (%s), want %v at %v", o.Whole, o.End, o.Code, tt.whole, 250*ms+tt.end)
				}
				time.Sleep(2 * time.Hour) // the server's own end
			})
		})
	}
}

// TestClassSLO: a class with its own bound on TTFT is judged by it.
func TestClassSLO(t *testing.T) {
	const ms = time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		p := &piped{start: time.Now(), answer: func(_ int, w io.Writer) {
			time.Sleep(400 * ms)
			complete(w)
		}}
		cfg := config("http://server", 1)
		cfg.Schedule.Profile = "20/s:2s"
		cfg.Classes = []load.Class{{Name: "vip", Share: 1, TTFT: 100 * ms}, {Name: "batch", Share: 1, TTFT: time.Second}, {Name: "normal", Share: 1}}
		cfg.SLO.TTFT = 300 * ms
		s := run(t, cfg, load.Options{Dial: p.dial})
		for class, want := range map[string]struct {
			attainment float64
			slo        *load.Objectives
		}{"vip": {0, &load.Objectives{TTFT: 100, TPOT: 50}}, "batch": {1, &load.Objectives{TTFT: 1000, TPOT: 50}}, "normal": {0, nil}} {
			g := s.Classes[class]
			if g.Offered == 0 || *g.SLOAttainment != want.attainment || gocmp.Diff(want.slo, g.SLO) != "" {
				t.Errorf("%s: got %d offered, attainment %v, SLO %v, want %v and %v", class, g.Offered, *g.SLOAttainment, g.SLO, want.attainment, want.slo)
			}
		}
		if want := float64(s.Classes["batch"].Offered) / float64(s.Offered); math.Abs(*s.GoodputRatio-want) > 1e-5 {
			t.Errorf("goodput ratio: got %v, want %v", *s.GoodputRatio, want)
		}
	})
}

func TestTenantHeader(t *testing.T) {
	rec := new(record)
	cfg := config(serve(t, rec.handler), 20)
	cfg.Schedule.Trace.Path = "testdata/arena-27clients.csv"
	cfg.Target.TenantHeader, cfg.Target.APIKey = "X-Tenant", "sk-all"
	cfg.Classes = []load.Class{{Name: "batch", Share: 1}}
	check := func(tenants map[string]load.Group, key func(tenant string) string) {
		t.Helper()
		got := map[string]int64{}
		for _, h := range rec.headers {
			name := h.Get("X-Tenant")
			got[name]++
			if h.Get("Authorization") != key(name) || h.Get("X-Spillway-Class") != "batch" {
				t.Errorf("headers of %q: got %v", name, h)
			}
		}
		for name, g := range tenants {
			if got[name] != g.Offered {
				t.Errorf("%s: header %d times, offered %d", name, got[name], g.Offered)
			}
		}
		if len(got) != len(tenants) || len(got) < 2 {
			t.Errorf("got %d names, %d tenants", len(got), len(tenants))
		}
		rec.headers = nil
	}
	check(run(t, cfg, load.Options{}).Tenants, func(string) string { return "Bearer sk-all" })
	cfg.Tenants = []load.Tenant{{Name: "a"}, {Name: "b", APIKey: "sk-b"}}
	check(run(t, cfg, load.Options{}).Tenants, func(tenant string) string {
		if tenant == "b" {
			return "Bearer sk-b"
		}
		return "Bearer sk-all"
	})
}
