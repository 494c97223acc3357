package limit_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
)

// noon is when tests begin.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// benchAsks are n asks of buckets with room for all of a benchmark.
func benchAsks(n int) []limit.Ask {
	asks := make([]limit.Ask, n)
	for i := range asks {
		asks[i] = limit.Ask{Key: limit.Key{uint64(i) * 0x9e3779b97f4a7c15, uint64(i) * 0xc2b2ae3d27d4eb4f}, Name: "a", Cost: 1, Room: 1, Size: 1 << 50}
	}
	return asks
}

func BenchmarkTake(b *testing.B) {
	for name, n := range map[string]int{"one": 1, "five": 5} {
		b.Run(name, func(b *testing.B) {
			m := limit.NewMemory(1 << 16)
			asks := benchAsks(n)
			now := noon
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Microsecond)
				if ok, _ := m.Take(context.Background(), now, asks); !ok {
					b.Fatal("refused")
				}
			}
		})
	}
}

func BenchmarkTakeParallel(b *testing.B) {
	m := limit.NewMemory(1 << 16)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		asks := benchAsks(5)
		for pb.Next() {
			m.Take(context.Background(), noon, asks)
		}
	})
}

// limiter is a limiter of a configuration.
func limiter(t testing.TB, change func(*limit.Config), parts limit.Parts) *limit.Limiter {
	t.Helper()
	c := limit.Default()
	if change != nil {
		change(&c)
	}
	l, err := limit.New(c, parts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func BenchmarkAdmit(b *testing.B) {
	l := limiter(b, func(c *limit.Config) { c.Address.Rate = limit.Rate{N: 1_000_000_000, Per: time.Second} }, limit.Parts{})
	ip := netip.MustParseAddr("203.0.113.7")
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		if err := l.Admit(now, ip); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAdmitNew(b *testing.B) {
	l := limiter(b, nil, limit.Parts{})
	ip := [4]byte{1}
	n := uint32(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		ip[1], ip[2], ip[3] = byte(n>>16), byte(n>>8), byte(n)
		l.Admit(noon, netip.AddrFrom4(ip))
	}
}

// fiveRules are five limits by different subjects.
func fiveRules(c *limit.Config) {
	plenty := limit.Bucket{Rate: limit.Rate{N: 1_000_000_000, Per: time.Second}}
	c.Rules = []limit.Rule{
		{Name: "tenant", By: []string{"tenant"}, Requests: plenty, Tokens: plenty},
		{Name: "key", By: []string{"key"}, Requests: plenty},
		{Name: "model", By: []string{"model"}, Requests: plenty},
		{Name: "ip", By: []string{"ip"}, Requests: plenty},
	}
	c.Rules[1].Name = "keys"
}

// request is a request of a tenant with a prompt of so many tokens.
func request(tenant string, prompt int64) *inference.Request {
	return &inference.Request{
		Tenant: tenant, Key: tenant + "-key", ClientIP: netip.MustParseAddr("203.0.113.7"),
		Fields: inference.Fields{Model: "m", PromptBytes: prompt * 4},
	}
}

func BenchmarkReserveAndSettleFive(b *testing.B) {
	l := limiter(b, fiveRules, limit.Parts{})
	req, rec := request("a", 100), &inference.Record{}
	rec.Request = req
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		r, err := l.Reserve(context.Background(), now, req)
		if err != nil {
			b.Fatal(err)
		}
		r.Settle(now, rec)
	}
}

func BenchmarkReserveFive(b *testing.B) {
	l := limiter(b, fiveRules, limit.Parts{})
	req := request("a", 100)
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		if _, err := l.Reserve(context.Background(), now, req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReserveStable makes keys that are the same in every gateway.
func BenchmarkReserveStable(b *testing.B) {
	l := limiter(b, func(c *limit.Config) { fiveRules(c); c.Store.Kind = limit.KindRedis }, limit.Parts{Store: limit.NewMemory(1 << 16)})
	req := request("a", 100)
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		if _, err := l.Reserve(context.Background(), now, req); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSpend(b *testing.B) {
	l := limiter(b, fiveRules, limit.Parts{})
	r, err := l.Reserve(context.Background(), noon, request("a", 100))
	if err != nil {
		b.Fatal(err)
	}
	n := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		n++
		r.Spend(noon, n)
	}
}
