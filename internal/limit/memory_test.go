package limit_test

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/limit/limittest"
)

func TestMemory(t *testing.T) {
	limittest.TestStore(t, func(*testing.T) limit.Store { return limit.NewMemory(0) })
}

// TestLimitIsExact: a hundred clients' requests over 10 s at five times the limit.
func TestLimitIsExact(t *testing.T) {
	for name, tc := range map[string]struct {
		bucket limit.Bucket
		want   int64
	}{
		"ten a second, five at once":    {limit.Bucket{Rate: limit.Rate{N: 10, Per: time.Second}, Burst: 5}, 5 + 100},
		"600 a minute, 20 at once":      {limit.Bucket{Rate: limit.Rate{N: 600, Per: time.Minute}, Burst: 20}, 20 + 100},
		"7 a second, which is no whole": {limit.Bucket{Rate: limit.Rate{N: 7, Per: time.Second}, Burst: 3}, 3 + 70},
		"1000 a second":                 {limit.Bucket{Rate: limit.Rate{N: 1000, Per: time.Second}}, 1000 + 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			l := limiter(t, func(c *limit.Config) {
				c.Rules = []limit.Rule{{Name: "tenants", By: []string{"tenant"}, Requests: tc.bucket}}
			}, limit.Parts{})
			offered := int(5 * float64(tc.bucket.Rate.N) / tc.bucket.Rate.Per.Seconds() * 10)
			var admitted, asked atomic.Int64
			for tick := 0; tick <= 10_000; tick++ { // of 1 ms; what is due in one comes at once
				now := noon.Add(time.Duration(tick) * time.Millisecond)
				due := int64(min(offered, offered*tick/10_000+1)) // every client in its turn
				var wg sync.WaitGroup
				for range min(4, due-asked.Load()) {
					wg.Go(func() {
						for asked.Add(1) <= due {
							if _, err := l.Reserve(context.Background(), now, request("a", 1)); err == nil {
								admitted.Add(1)
							}
						}
					})
				}
				wg.Wait()
				asked.Store(min(asked.Load(), due))
			}
			if got := admitted.Load(); got < tc.want-1 || got > tc.want+1 {
				t.Errorf("%d were admitted, want %d +- 1", got, tc.want)
			}
		})
	}
}

func TestRetryAfterIsExact(t *testing.T) {
	l := limiter(t, nil, limit.Parts{})
	ip := netip.MustParseAddr("203.0.113.7")
	now := noon
	for i := range 50 {
		err := l.Admit(now, ip)
		if err == nil {
			continue
		}
		var e *inference.Error
		if !errors.As(err, &e) || e.Code != inference.CodeRateLimited || e.Reason != "address" || e.RetryAfter <= 0 {
			t.Fatalf("Admit = %v", err)
		}
		if l.Admit(now.Add(e.RetryAfter-time.Nanosecond), ip) == nil {
			t.Fatalf("%d: admitted before RetryAfter", i)
		}
		if err := l.Admit(now.Add(e.RetryAfter), ip); err != nil {
			t.Fatalf("%d: refused at RetryAfter: %v", i, err)
		}
		now = now.Add(e.RetryAfter)
	}
}

// admitted counts how many of n requests of an address may come at one instant.
func admitted(l *limit.Limiter, now time.Time, ip string, n int) (got int) {
	for range n {
		if l.Admit(now, netip.MustParseAddr(ip)) == nil {
			got++
		}
	}
	return got
}

func TestAddresses(t *testing.T) {
	l := limiter(t, nil, limit.Parts{})
	for _, tc := range []struct {
		ip   string
		want int
	}{
		{"203.0.113.1", 5},
		{"::ffff:203.0.113.1", 0}, // the same
		{"203.0.113.2", 5},
		{"2001:db8::1", 5},
		{"2001:db8::ffff:1", 0}, // the same /64
		{"2001:db8:0:1::1", 5},
		{"2001:db8:0:1::1%eth0", 0},
		{"127.0.0.1", 20}, {"::1", 20}, {"10.1.2.3", 20}, {"172.16.0.1", 20}, {"172.32.0.1", 5}, {"192.168.1.1", 20},
		{"169.254.1.1", 20}, {"fe80::1%eth0", 20}, {"fd00::1", 20}, {"::ffff:10.1.2.4", 20},
	} {
		if got := admitted(l, noon, tc.ip, 20); got != tc.want {
			t.Errorf("%s: %d of 20 admitted, want %d", tc.ip, got, tc.want)
		}
	}
	for range 20 {
		if err := l.Admit(noon, netip.Addr{}); err != nil {
			t.Fatalf("without an address: %v", err)
		}
	}
}

func TestEmergencyProfile(t *testing.T) {
	var on atomic.Bool
	l := limiter(t, func(c *limit.Config) {
		c.Address.EmergencyRate, c.Address.EmergencyBurst = limit.Rate{N: 1, Per: time.Second}, 2
	}, limit.Parts{Emergency: on.Load})
	on.Store(true)
	if got := admitted(l, noon, "203.0.113.1", 20); got != 2 {
		t.Errorf("%d admitted in an emergency, want 2", got)
	}
	on.Store(false)
	if got := admitted(l, noon.Add(10*time.Second), "203.0.113.1", 20); got != 5 {
		t.Errorf("%d admitted after it, want 5", got)
	}
}

// flood is the i-th address of an attacker.
func flood(i uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(40 + i>>24), byte(i >> 16), byte(i >> 8), byte(i)})
}

// TestTenMillionAddresses: memory stays under the cap, and who is over stays over.
func TestTenMillionAddresses(t *testing.T) {
	const entries, addresses = 400_000, 10_000_000 / slower
	l := limiter(t, func(c *limit.Config) { c.MaxEntries = entries }, limit.Parts{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	over := netip.MustParseAddr("203.0.113.1")
	now := noon
	for i := range uint32(addresses) {
		now = now.Add(100 * time.Nanosecond) // ten million a second: more are live than there is room for
		l.Admit(now, flood(i))
		if i%20_000 == 0 {
			l.Admit(now, over) // 500/s
		}
	}
	if err := l.Admit(now, over); err == nil {
		for range 5 {
			err = l.Admit(now, over)
		}
		if err == nil {
			t.Error("a flood of new addresses resets one that is over")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	n, bytes, idle, live := l.Addresses().Census()
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d entries, %d bytes by its own count, %d by the runtime's; %d idle and %d live ones evicted", n, bytes, grown, idle, live)
	if n > entries/2 || grown > entries/2*limit.EntryBytes*5/4 || bytes > entries/2*limit.EntryBytes*5/4 {
		t.Errorf("%d entries of %d, %d bytes, grown by %d, want at most %d", n, entries/2, bytes, grown, entries/2*limit.EntryBytes*5/4)
	}
	if idle+live+uint64(n) < addresses*99/100 {
		t.Errorf("%d evictions: the test showed nothing", idle+live)
	}
}

// TestFloodDoesNotFree: subjects that are over and quiet survive a flood, also one of
// more subjects than there is room for. Of very many, more in a shard than an eviction
// looks at, a few are forgotten.
func TestFloodDoesNotFree(t *testing.T) {
	for subjects, most := range map[int]int{200: 8, 1000: 150} {
		l := limiter(t, func(c *limit.Config) {
			c.MaxEntries = 8192
			c.Address.Rate, c.Address.Burst = limit.Rate{N: 5, Per: time.Hour}, 5
		}, limit.Parts{})
		over := make([]netip.Addr, subjects)
		for i := range over {
			over[i] = netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			for range 6 {
				l.Admit(noon, over[i])
			}
		}
		for i := range uint32(200_000) {
			l.Admit(noon.Add(time.Duration(i)*time.Microsecond), flood(i))
		}
		freed := 0
		for _, ip := range over {
			if l.Admit(noon.Add(time.Second), ip) == nil {
				freed++
			}
		}
		if freed > most {
			t.Errorf("%d of %d that were over may come again", freed, len(over))
		}
	}
}

// TestShrinks: a lower bound holds soon.
func TestShrinks(t *testing.T) {
	l := limiter(t, nil, limit.Parts{})
	for i := range uint32(50_000) {
		l.Admit(noon, flood(i))
	}
	c := limit.Default()
	c.MaxEntries = 8192
	if err := l.Apply(c); err != nil {
		t.Fatal(err)
	}
	for i := range uint32(100_000) {
		l.Admit(noon, flood(1_000_000+i))
	}
	if n, _, _, _ := l.Addresses().Census(); n > 4096 {
		t.Errorf("%d entries, want 4096", n)
	}
}

// TestTakeDoesNotAllocate for what is known.
func TestTakeDoesNotAllocate(t *testing.T) {
	l := limiter(t, func(c *limit.Config) { c.Address.Rate = limit.Rate{N: 1_000_000, Per: time.Second} }, limit.Parts{})
	ip := netip.MustParseAddr("203.0.113.7")
	m, asks := limit.NewMemory(0), benchAsks(5)
	now := noon
	for name, f := range map[string]func(){
		"Admit": func() { l.Admit(now, ip) },
		"Take":  func() { m.Take(context.Background(), now, asks) },
	} {
		if n := testing.AllocsPerRun(100, func() { now = now.Add(time.Second); f() }); n != 0 {
			t.Errorf("%s allocates %v times, want none", name, n)
		}
	}
}

// TestClock tells an instant as others do as long as nobody sets the clock.
func TestClock(t *testing.T) {
	if got := limit.NewClock().Nano(noon); got != noon.UnixNano() {
		t.Errorf("Nano(%v) = %d, want %d", noon, got, noon.UnixNano())
	}
}
