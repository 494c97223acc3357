package limit_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record is of a request that was answered with so many tokens.
func record(req *inference.Request, answer int64) *inference.Record {
	return &inference.Record{
		Request: req, Complete: true, TTFT: 1, Attempts: make([]inference.Attempt, 1),
		Usage: inference.Usage{PromptTokens: req.PromptTokens(), CompletionTokens: answer},
	}
}

// rules is a limiter with rules.
func rules(t testing.TB, all ...limit.Rule) *limit.Limiter {
	t.Helper()
	return limiter(t, func(c *limit.Config) { c.Rules = all }, limit.Parts{})
}

// per is a bucket.
func per(n int64, span time.Duration, burst int64) limit.Bucket {
	return limit.Bucket{Rate: limit.Rate{N: n, Per: span}, Burst: burst}
}

// reserve reserves and fails the test when it is refused.
func reserve(t testing.TB, l *limit.Limiter, now time.Time, req *inference.Request) *limit.Receipt {
	t.Helper()
	r, err := l.Reserve(context.Background(), now, req)
	if err != nil {
		t.Fatalf("Reserve = %v, want it taken", err)
	}
	return r
}

// refused reserves and fails the test unless it is refused for a reason.
func refused(t testing.TB, l *limit.Limiter, now time.Time, req *inference.Request, reason string) *inference.Error {
	t.Helper()
	_, err := l.Reserve(context.Background(), now, req)
	var e *inference.Error
	if !errors.As(err, &e) || e.Reason != reason || e.RetryAfter <= 0 {
		t.Fatalf("Reserve = %v, want a refusal with %s", err, reason)
	}
	return e
}

func TestSubjects(t *testing.T) {
	base := func() *inference.Request {
		return &inference.Request{Tenant: "t", Key: "k", Class: inference.Normal, ClientIP: flood(1), Fields: inference.Fields{Model: "m"}}
	}
	others := map[string]func(*inference.Request){
		"ip":      func(r *inference.Request) { r.ClientIP = flood(2) },
		"key":     func(r *inference.Request) { r.Key = "k2" },
		"tenant":  func(r *inference.Request) { r.Tenant = "t2" },
		"model":   func(r *inference.Request) { r.Model = "m2" },
		"surface": func(r *inference.Request) { r.Surface = inference.Embeddings },
		"class":   func(r *inference.Request) { r.Class = inference.VIP },
		"route":   func(r *inference.Request) { r.Rule = "heavy" },
	}
	for by := range others {
		for _, store := range []string{limit.KindLocal, limit.KindRedis} {
			l := limiter(t, func(c *limit.Config) {
				c.Rules = []limit.Rule{{Name: "one", By: []string{by}, Requests: per(1, time.Hour, 1)}}
				c.Store.Kind = store
			}, limit.Parts{Store: limit.NewMemory(0)})
			reserve(t, l, noon, base())
			for other, change := range others {
				req := base()
				change(req)
				if _, err := l.Reserve(t.Context(), noon, req); (err == nil) != (other == by) {
					t.Errorf("%s, by %s: another %s: Reserve = %v", store, by, other, err)
				}
			}
		}
	}
	l := rules(t, limit.Rule{Name: "one", By: []string{"model"}, Requests: per(1, time.Hour, 1)})
	reserve(t, l, noon, base())
	steered := base()
	steered.Asked = "another"
	refused(t, l, noon, steered, "rate_requests") // what was asked for is another's matter: m is what will run
}

func TestOnly(t *testing.T) {
	l := rules(t, limit.Rule{Name: "one", Only: limit.Only{
		Tenants: []string{"a*", "b"}, Models: []string{"*m"}, Keys: []string{"*-key"}, Classes: []string{"normal", "batch"}, Surfaces: []string{"chat"},
	}, Requests: per(1, time.Hour, 1)})
	reserve(t, l, noon, request("ab", 1))
	for name, change := range map[string]func(*inference.Request){
		"tenant":  func(r *inference.Request) { r.Tenant = "c" },
		"model":   func(r *inference.Request) { r.Model = "n" },
		"key":     func(r *inference.Request) { r.Key = "" },
		"class":   func(r *inference.Request) { r.Class = inference.VIP },
		"idle":    func(r *inference.Request) { r.Class = inference.Idle },
		"surface": func(r *inference.Request) { r.Surface = inference.Completions },
	} {
		req := request("a", 1)
		change(req)
		if _, err := l.Reserve(t.Context(), noon, req); err != nil {
			t.Errorf("%s: the rule matches: %v", name, err)
		}
	}
	refused(t, l, noon, request("b", 1), "rate_requests")
}

func TestOnlyRoutes(t *testing.T) {
	l := rules(t, limit.Rule{Name: "one", Only: limit.Only{Routes: []string{"heavy"}}, Requests: per(1, time.Hour, 1)})
	routed := func(names string) *inference.Request {
		req := request("a", 1)
		req.Rule = names
		return req
	}
	reserve(t, l, noon, routed("heavy"))
	for names, limited := range map[string]bool{"heavy": true, "europe,heavy": true, "": false, "light": false, "heavy2": false} {
		if _, err := l.Reserve(t.Context(), noon, routed(names)); (err != nil) != limited {
			t.Errorf("%q: %v, want it limited: %t", names, err, limited)
		}
	}
}

// TestAllOrNone: a refusal charges nothing anywhere.
func TestAllOrNone(t *testing.T) {
	l := rules(t,
		limit.Rule{Name: "all", Requests: per(10, time.Hour, 10), Tokens: per(100_000, time.Hour, 0), Concurrent: 10},
		limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: per(1, time.Hour, 1), Budget: limit.Budget{Day: 1_000_000}})
	reserve(t, l, noon, request("a", 10))
	for range 100 {
		refused(t, l, noon, request("a", 10), "rate_requests")
	}
	for i := range 9 {
		reserve(t, l, noon, request(fmt.Sprint("b", i), 10))
	}
	refused(t, l, noon, request("c", 10), "rate_requests") // and concurrent, which is free sooner
	if n := l.Local().Held(); n != 1 {
		t.Errorf("%d buckets hold something, want 1", n)
	}
}

func TestConcurrent(t *testing.T) {
	l := rules(t, limit.Rule{Name: "tenants", By: []string{"tenant"}, Concurrent: 2})
	a, b := reserve(t, l, noon, request("a", 1)), reserve(t, l, noon, request("a", 1))
	if e := refused(t, l, noon, request("a", 1), "concurrent"); !strings.Contains(e.Message, `"tenants"`) {
		t.Errorf("message %q does not name the rule", e.Message)
	}
	a.Settle(noon.Add(8*time.Second), record(request("a", 1), 1))
	a.Settle(noon.Add(8*time.Second), record(request("a", 1), 1)) // does nothing
	c := reserve(t, l, noon, request("a", 1))
	if e := refused(t, l, noon, request("a", 1), "concurrent"); e.RetryAfter != 4*time.Second {
		t.Errorf("RetryAfter = %v, want 4s: requests take 8s, and two are under way", e.RetryAfter)
	}
	b.Settle(noon, &inference.Record{})
	c.Settle(noon, &inference.Record{})
	if n := l.Local().Held(); n != 0 {
		t.Errorf("%d buckets hold something, want none", n)
	}
}

// TestTokens: reserved, charged as they stream, refunded.
func TestTokens(t *testing.T) {
	l := rules(t, limit.Rule{Name: "tokens", By: []string{"tenant"}, Tokens: per(60_000, time.Minute, 2000)}) // 1 ms each
	left := func(r *limit.Receipt) string { return value(r.Fields(noon), "X-Ratelimit-Remaining-Tokens") }
	req := request("a", 100)
	req.MaxTokens = 300
	r := reserve(t, l, noon, req)
	if got := left(r); got != "1600" {
		t.Errorf("%s tokens left, want 1600: 100 of prompt and 300 of answer are reserved", got)
	}
	for n := range int64(1000) {
		r.Spend(noon, n+1)
	}
	req.MaxTokens = 100
	small := reserve(t, l, noon, req)
	if got := left(small); got != "696" { // 2000 - 100 - (300 + 11 * 64) - 200
		t.Errorf("%s tokens left, want 696", got)
	}
	r.Settle(noon, record(req, 1000))
	small.Settle(noon, record(req, 50))
	if got := left(reserve(t, l, noon, req)); got != "550" { // 2000 - 1100 - 150 - 200
		t.Errorf("%s tokens left, want 550", got)
	}
	for _, rec := range []*inference.Record{
		{Request: req, Cache: inference.CacheHit, Complete: true, TTFT: 1, Tokens: 50}, // no attempt: nothing was spent
		{Request: req, Code: inference.CodeCanceled, Attempts: make([]inference.Attempt, 1)},
	} {
		r := reserve(t, l, noon.Add(time.Hour), req)
		r.Settle(noon.Add(time.Hour), rec)
	}
	if got := left(reserve(t, l, noon.Add(time.Hour), req)); got != "1800" {
		t.Errorf("%s tokens left, want 1800: hits and what was never answered cost nothing", got)
	}
}

// TestLargeRequest: one that is larger than the bucket is taken when it is full.
func TestLargeRequest(t *testing.T) {
	l := rules(t, limit.Rule{Name: "tokens", Tokens: per(1000, time.Second, 0)})
	large := request("a", 10_000)
	large.MaxTokens = 1
	r := reserve(t, l, noon, large)
	e := refused(t, l, noon, request("a", 1), "rate_tokens")
	if e.RetryAfter < 9*time.Second || e.RetryAfter > 10*time.Second {
		t.Errorf("RetryAfter = %v, want the debt to be paid", e.RetryAfter)
	}
	r.Settle(noon, record(large, 1))
	e = refused(t, l, noon, large, "rate_tokens")
	if want := 10_001 * time.Millisecond; e.RetryAfter != want {
		t.Errorf("RetryAfter = %v, want %v: until the bucket is full", e.RetryAfter, want)
	}
	reserve(t, l, noon.Add(e.RetryAfter), large)
}

// TestTurnedAway: who is refused for our reasons has not used a request.
func TestTurnedAway(t *testing.T) {
	l := rules(t, limit.Rule{Name: "requests", Requests: per(1, time.Hour, 1)})
	for _, code := range []inference.Code{inference.CodeOverloaded, inference.CodeNoCapacity, inference.CodeDraining} {
		reserve(t, l, noon, request("a", 1)).Settle(noon, &inference.Record{Code: code})
	}
	reserve(t, l, noon, request("a", 1)).Settle(noon, &inference.Record{Code: inference.CodeCanceled})
	refused(t, l, noon, request("a", 1), "rate_requests")
	tried := noon.Add(time.Hour)
	reserve(t, l, tried, request("a", 1)).Settle(tried, &inference.Record{Code: inference.CodeNoCapacity, Attempts: make([]inference.Attempt, 1)})
	refused(t, l, tried, request("a", 1), "rate_requests") // a server was asked
}

// TestRefundsAreExact: after disconnects at random the buckets stand where the tokens
// that were spent say, and the ledger's sum is the same.
func TestRefundsAreExact(t *testing.T) {
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		// A day's worth at once: nothing is refused, and the bucket is never full again.
		l := rules(t, limit.Rule{Name: "tokens", By: []string{"tenant"}, Tokens: per(86_400_000, 24*time.Hour, 0), Concurrent: 1000, Budget: limit.Budget{Day: 1 << 40}})
		var mu sync.Mutex
		ledger, disconnects := int64(0), 0
		first := reserve(t, l, noon, request("a", 1))
		first.Settle(noon, record(request("a", 1), 50_000_000))
		ledger += 50_000_001
		var wg sync.WaitGroup
		for range 4 {
			own := rand.New(rand.NewPCG(random.Uint64(), 2))
			wg.Go(func() {
				for range 50 {
					req := request("a", own.Int64N(500)+1)
					req.MaxTokens = own.Int64N(3) * 100 // at times less than what comes
					now := noon.Add(time.Duration(own.Int64N(int64(time.Minute))))
					r, err := l.Reserve(context.Background(), now, req)
					if err != nil {
						t.Errorf("Reserve = %v", err)
						return
					}
					answer := own.Int64N(2000)
					rec := record(req, answer)
					gone := own.IntN(10) < 3
					if gone { // no usage is reported: what was counted in passing holds
						answer = own.Int64N(answer + 1)
						rec = &inference.Record{Request: req, Code: inference.CodeCanceled, Attempts: make([]inference.Attempt, 1), Tokens: answer, TTFT: 1}
					}
					for n := int64(0); n <= answer; n += 1 + own.Int64N(50) {
						r.Spend(now, n)
					}
					r.Settle(now.Add(time.Second), rec)
					spent, _ := rec.Spent()
					mu.Lock()
					ledger += spent.PromptTokens + spent.CompletionTokens
					if gone {
						disconnects++
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		probe := request("a", 1)
		probe.MaxTokens = 1
		r := reserve(t, l, noon, probe)
		i := slices.IndexFunc(r.Asks(), func(a limit.Ask) bool { return a.Name == "tokens-tokens" })
		if got, want := r.Asks()[i].State, (ledger+2)*int64(time.Millisecond); got != want {
			t.Errorf("seed %d: the bucket is full again in %v, want %v", seed, time.Duration(got), time.Duration(want))
		}
		if disconnects < 30 {
			t.Errorf("seed %d: %d disconnects of 200, want about 60", seed, disconnects)
		}
		r.Settle(noon, &inference.Record{})
		if got := l.Spent(); got != ledger {
			t.Errorf("seed %d: the budget has spent %d, want %d", seed, got, ledger)
		}
		if n := l.Local().Held(); n != 0 {
			t.Errorf("seed %d: %d buckets hold something", seed, n)
		}
	}
}

// TestExpected: the p90 of a tenant's past answers is what is reserved.
func TestExpected(t *testing.T) {
	x := limit.NewPast()
	var random *rand.Rand
	for name, draw := range map[string]func() float64{
		"even":       func() float64 { return 1 + random.Float64()*1000 },
		"log normal": func() float64 { return math.Exp(5 + random.NormFloat64()) },
		"one length": func() float64 { return 200 },
		"two":        func() float64 { return []float64{50, 50, 50, 4000}[random.IntN(4)] },
	} {
		k := limit.Key{uint64(name[0]), uint64(name[1])}
		random = rand.New(rand.NewPCG(k[0], k[1]))
		if _, known := x.Of(k, 0.9); known {
			t.Errorf("%s: known before there was an answer", name)
		}
		var all []float64
		for range 2000 {
			v := math.Ceil(draw())
			all = append(all, v)
			x.Observe(k, int64(v))
		}
		slices.Sort(all)
		for _, q := range []float64{0.5, 0.9, 0.99} {
			want := all[int(q*float64(len(all)))]
			got, known := x.Of(k, q)
			if q == 0.5 && name == "two" {
				want = 50
			}
			if !known || math.Abs(float64(got)/want-1) > 0.5 || q == 0.9 && math.Abs(float64(got)/want-1) > 0.15 {
				t.Errorf("%s: p%v = %d, want %v +- 15%%", name, 100*q, got, want)
			}
		}
		for range 1500 { // the past fades
			x.Observe(k, 10)
		}
		if got, _ := x.Of(k, 0.9); got > 12 {
			t.Errorf("%s: after 1500 answers of 10 tokens p90 = %d", name, got)
		}
	}
	for i := range uint64(50_000) { // bounded
		x.Observe(limit.Key{i, i * 0x9e3779b97f4a7c15}, 10)
	}
}

func TestExpectedIsReserved(t *testing.T) {
	l := rules(t, limit.Rule{Name: "tokens", Tokens: per(1_000_000, time.Second, 0)})
	for range 100 {
		reserve(t, l, noon, request("a", 1)).Settle(noon, record(request("a", 1), 100))
	}
	for name, tc := range map[string]struct {
		change func(*inference.Request)
		least  string
		most   string
	}{
		"its past":       {func(*inference.Request) {}, "100", "110"},
		"its own bound":  {func(r *inference.Request) { r.MaxTokens = 30 }, "30", "30"},
		"another tenant": {func(r *inference.Request) { r.Tenant = "b" }, "512", "512"},
		"another model":  {func(r *inference.Request) { r.Model = "n" }, "512", "512"},
		"embeddings":     {func(r *inference.Request) { r.Surface = inference.Embeddings }, "0", "0"},
	} {
		req := request("a", 1)
		tc.change(req)
		r := reserve(t, l, noon.Add(time.Hour), req)
		var left, least, most int64
		fmt.Sscan(value(r.Fields(noon.Add(time.Hour)), "X-Ratelimit-Remaining-Tokens"), &left)
		fmt.Sscan(tc.least, &least)
		fmt.Sscan(tc.most, &most)
		if got := 1_000_000 - left - 1; got < least || got > most {
			t.Errorf("%s: %d tokens of answer reserved, want %d to %d", name, got, least, most)
		}
		r.Settle(noon.Add(time.Hour), &inference.Record{})
	}
}

// value is a header field's.
func value(fields []inference.HeaderField, name string) string {
	for _, f := range fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

func TestFields(t *testing.T) {
	l := rules(t,
		limit.Rule{Name: "wide", Requests: per(1000, time.Minute, 0), Tokens: per(1_000_000, time.Minute, 0)},
		limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: per(60, time.Minute, 10), Tokens: per(6000, time.Minute, 0), Concurrent: 20})
	req := request("a", 1000)
	req.MaxTokens = 2000
	r := reserve(t, l, noon, req)
	want := []inference.HeaderField{
		{Name: "X-Ratelimit-Limit-Requests", Value: "10"},
		{Name: "X-Ratelimit-Remaining-Requests", Value: "9"},
		{Name: "X-Ratelimit-Reset-Requests", Value: "1s"},
		{Name: "X-Ratelimit-Limit-Tokens", Value: "6000"},
		{Name: "X-Ratelimit-Remaining-Tokens", Value: "4488"},
		{Name: "X-Ratelimit-Reset-Tokens", Value: "15.12s"},
		{Name: "Ratelimit", Value: `"tenants-tokens";r=4488;t=16`},
		{Name: "Ratelimit-Policy", Value: `"tenants-tokens";q=6000;w=60`},
	}
	if diff := cmp.Diff(want, r.Fields(noon)); diff != "" {
		t.Errorf("Fields (-want +got):\n%s", diff)
	}
	for _, f := range want {
		if f.Name != textproto.CanonicalMIMEHeaderKey(f.Name) {
			t.Errorf("%s is not canonical", f.Name)
		}
	}
	if got := value(r.Fields(noon.Add(500*time.Millisecond)), "X-Ratelimit-Reset-Requests"); got != "500ms" {
		t.Errorf("half a second later reset = %s, want 500ms", got)
	}
	for range 9 {
		small := request("a", 1)
		small.MaxTokens = 1
		reserve(t, l, noon, small)
	}
	e := refused(t, l, noon, request("a", 1), "rate_requests")
	if e.Code != inference.CodeRateLimited || e.NoRetry || value(e.Fields, "X-Ratelimit-Remaining-Requests") != "0" || value(e.Fields, "Ratelimit") != `"tenants-requests";r=0;t=10` {
		t.Errorf("refusal %+v", e)
	}
	if strings.Contains(e.Message, "a-key") {
		t.Errorf("message %q", e.Message)
	}
	if got := reserve(t, rules(t), noon, req).Fields(noon); got != nil {
		t.Errorf("without rules: %v", got)
	}
}

func TestQuotaOfAKey(t *testing.T) {
	quota := func(q inference.Quota) *inference.Request {
		r := request("a", 10)
		r.MaxTokens, r.Quota = 10, &q
		return r
	}
	for name, tc := range map[string]struct {
		quota  inference.Quota
		want   int
		reason string
	}{
		"per second": {inference.Quota{RequestsPerSecond: 3, RequestsPerMinute: 100}, 3, "rate_requests"},
		"per minute": {inference.Quota{RequestsPerSecond: 100, RequestsPerMinute: 4}, 4, "rate_requests"},
		"tokens":     {inference.Quota{TokensPerMinute: 100}, 5, "rate_tokens"},
		"concurrent": {inference.Quota{Concurrent: 6}, 6, "concurrent"},
		"day":        {inference.Quota{TokensPerDay: 40}, 2, "budget_day"},
		"month":      {inference.Quota{TokensPerMonth: 60}, 3, "budget_month"},
	} {
		l := rules(t)
		for range tc.want {
			reserve(t, l, noon, quota(tc.quota))
		}
		refused(t, l, noon, quota(tc.quota), tc.reason)
		other := quota(tc.quota)
		other.Key = "another"
		if _, err := l.Reserve(t.Context(), noon, other); err != nil {
			t.Errorf("%s: another key: %v", name, err)
		}
		without := quota(inference.Quota{})
		reserve(t, l, noon, without)
	}
}

// ledger is a Ledger of fixed numbers.
type ledger struct {
	mu    sync.Mutex
	spent map[limit.Subject]int64
	since []time.Time
	while func() // what happens while it is asked, once; nil is nothing
}

func (l *ledger) Spent(s limit.Subject, since time.Time) (int64, bool) {
	l.mu.Lock()
	while := l.while
	l.while = nil
	l.mu.Unlock()
	if while != nil {
		while()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = append(l.since, since)
	n, known := l.spent[s]
	return n, known
}

func (l *ledger) set(s limit.Subject, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spent[s] = n
}

func TestBudget(t *testing.T) {
	book := &ledger{spent: map[limit.Subject]int64{{Tenant: "a"}: 900}}
	l := limiter(t, func(c *limit.Config) {
		c.Rules = []limit.Rule{{Name: "tenants", By: []string{"tenant"}, Budget: limit.Budget{Day: 1000, Month: 5000}}}
	}, limit.Parts{Ledger: book})
	req := request("a", 30)
	req.MaxTokens = 30
	for range 2 {
		reserve(t, l, noon, req).Settle(noon, record(req, 20)) // 50 each
	}
	e := refused(t, l, noon, req, "budget_day")
	if e.Code != inference.CodeQuotaSpent || !e.NoRetry || e.RetryAfter != 12*time.Hour {
		t.Errorf("refusal %+v, want insufficient_quota, not to be tried again before midnight", e)
	}
	if !strings.Contains(e.Message, "2026-11-21T00:00:00Z") || !strings.Contains(e.Message, "1000 tokens") {
		t.Errorf("message %q", e.Message)
	}
	if want := []time.Time{noon.Add(-12 * time.Hour), noon.AddDate(0, 0, -19).Add(-12 * time.Hour)}; !slices.EqualFunc(book.since, want, time.Time.Equal) {
		t.Errorf("the ledger was asked since %v, want %v", book.since, want)
	}
	book.set(limit.Subject{Tenant: "a"}, 4950) // of the month, and of the next day
	next := noon.Add(13 * time.Hour)
	if e := refused(t, l, next, req, "budget_day"); e.RetryAfter != 23*time.Hour {
		t.Errorf("RetryAfter = %v, want 23h", e.RetryAfter)
	}
	reserve(t, l, noon, request("b", 30)) // the ledger knows nothing of it
}

// TestBudgetWithoutLedger counts by itself, holds back what is reserved, and begins
// again with a new month.
func TestBudgetWithoutLedger(t *testing.T) {
	l := rules(t, limit.Rule{Name: "all", Budget: limit.Budget{Month: 1000}})
	req := request("a", 500)
	req.MaxTokens = 100
	first, second := reserve(t, l, noon, req), reserve(t, l, noon, req) // beyond it: something was left
	e := refused(t, l, noon, req, "budget_month")
	if e.Code != inference.CodeRateLimited || e.NoRetry || e.RetryAfter > time.Minute {
		t.Errorf("refusal %+v, want one to be tried again: nothing is spent yet", e)
	}
	first.Settle(noon, record(req, 10))
	second.Settle(noon, &inference.Record{Code: inference.CodeUpstreamError})
	reserve(t, l, noon, req).Settle(noon, record(req, 700)) // 510 + 1200
	e = refused(t, l, noon, req, "budget_month")
	if want := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC).Sub(noon); e.Code != inference.CodeQuotaSpent || e.RetryAfter != want {
		t.Errorf("refusal %+v, want insufficient_quota for %v", e, want)
	}
	reserve(t, l, noon.AddDate(0, 0, 11), req)
}

// TestBudgetOfGuests counts what requests without a key have spent, and not what all
// keys have.
func TestBudgetOfGuests(t *testing.T) {
	book := &ledger{spent: map[limit.Subject]int64{{}: 5000, {Key: "a-key"}: 5000, {Tenant: "anonymous"}: 10}}
	l := limiter(t, func(c *limit.Config) {
		c.Rules = []limit.Rule{{Name: "keys", By: []string{"key"}, Budget: limit.Budget{Day: 1000}}}
	}, limit.Parts{Ledger: book})
	guest := request("anonymous", 30)
	guest.Key = ""
	reserve(t, l, noon, guest)
	refused(t, l, noon, request("a", 30), "budget_day")
}

// TestUsageBeyondReason neither refunds what was never charged nor wraps a sum.
func TestUsageBeyondReason(t *testing.T) {
	l := rules(t, limit.Rule{Name: "tenants", By: []string{"tenant"}, Tokens: per(1000, time.Minute, 1000), Budget: limit.Budget{Month: 1 << 40}})
	req := request("a", 30)
	rec := record(req, math.MaxInt64)
	rec.Usage.PromptTokens = math.MaxInt64
	for range 2 {
		r, err := l.Reserve(t.Context(), noon, req)
		if err != nil {
			break
		}
		r.Spend(noon, math.MaxInt64)
		r.Settle(noon, rec)
	}
	if n := l.Spent(); n < 1<<40 {
		t.Errorf("%d tokens were spent, want more than the budget", n)
	}
	refused(t, l, noon, req, "budget_month")
}

// TestLedgerIsAskedAgain by Run, and only its higher word counts.
func TestLedgerIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book := &ledger{spent: map[limit.Subject]int64{}}
		l := limiter(t, func(c *limit.Config) {
			c.Rules = []limit.Rule{{Name: "tenants", By: []string{"tenant"}, Budget: limit.Budget{Day: 1000}}}
		}, limit.Parts{Ledger: book})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		req := request("a", 100)
		req.MaxTokens = 1
		reserve(t, l, time.Now(), req).Settle(time.Now(), record(req, 1)) // not known, and so let through
		book.set(limit.Subject{Tenant: "a"}, 50)                          // ours is on its way
		time.Sleep(15 * time.Second)
		reserve(t, l, time.Now(), req)
		book.set(limit.Subject{Tenant: "a"}, 2000) // other gateways spent more
		time.Sleep(15 * time.Second)
		refused(t, l, time.Now(), req, "budget_day")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestAnAnswerForYesterday, which comes when the day is over, says nothing of today.
func TestAnAnswerForYesterday(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		book := &ledger{spent: map[limit.Subject]int64{{Tenant: "a"}: 50}}
		l := limiter(t, func(c *limit.Config) {
			c.Rules = []limit.Rule{{Name: "tenants", By: []string{"tenant"}, Budget: limit.Budget{Day: 1000}}}
		}, limit.Parts{Ledger: book})
		req := request("a", 1)
		req.MaxTokens = 1
		reserve(t, l, time.Now(), req)
		tomorrow := time.Now().Add(24 * time.Hour)
		book.mu.Lock()
		book.while = func() {
			book.set(limit.Subject{Tenant: "a"}, 0)
			reserve(t, l, tomorrow, req) // the account is that of the next day
			book.set(limit.Subject{Tenant: "a"}, 5000)
		}
		book.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		time.Sleep(10*time.Second + time.Millisecond)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		reserve(t, l, tomorrow, req)
	})
}

// TestReload: buckets and counters survive under a rule's name, whatever its numbers.
func TestReload(t *testing.T) {
	rule := limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: per(10, time.Hour, 10), Concurrent: 100}
	l := rules(t, rule)
	held := reserve(t, l, noon, request("a", 1))
	for range 9 {
		reserve(t, l, noon, request("a", 1))
	}
	c := limit.Default()
	c.Rules = []limit.Rule{{Name: "others", Requests: per(100, time.Hour, 0)}, rule}
	if err := l.Apply(c); err != nil {
		t.Fatal(err)
	}
	refused(t, l, noon, request("a", 1), "rate_requests")
	c.Rules[1].Requests = per(100, time.Hour, 100) // ten times as much: the debt in time stays
	if err := l.Apply(c); err != nil {
		t.Fatal(err)
	}
	reserve(t, l, noon.Add(36*time.Second), request("a", 1))
	refused(t, l, noon.Add(36*time.Second), request("a", 1), "rate_requests")
	held.Settle(noon, &inference.Record{})
	bad := c
	bad.MaxEntries = 1
	if err := l.Apply(bad); err == nil {
		t.Error("a wrong configuration is taken")
	}
	if got := metrics(t, l)[`spillway_limit_checks_total{outcome="rate_requests",rule="tenants"}`]; got != 2 {
		t.Errorf("refusals of the rule = %v, want 2: counters survive", got)
	}
}

// broken is a shared store that can fail, and be late.
type broken struct {
	*limit.Memory
	mu       sync.Mutex
	err      error
	gateways int
	calls    int
	late     time.Duration // a beat
}

func (b *broken) Take(ctx context.Context, now time.Time, asks []limit.Ask) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.calls++; b.err != nil {
		return false, b.err
	}
	return b.Memory.Take(ctx, now, asks)
}

func (b *broken) Beat(context.Context) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.late > 0 {
		<-time.After(b.late)
	}
	return b.gateways, b.err
}

func (b *broken) set(err error, gateways int) (calls int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.gateways = err, gateways
	return b.calls
}

// TestSharedStoreFails: limits divided by the gateways, from where they stood, and back.
func TestSharedStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &broken{Memory: limit.NewMemory(0), gateways: 4}
		l := limiter(t, func(c *limit.Config) {
			c.Store.Kind = limit.KindRedis
			c.Rules = []limit.Rule{{Name: "tenants", By: []string{"tenant"}, Requests: per(40, time.Second, 40), Concurrent: 400}}
		}, limit.Parts{Store: b, Log: testkit.Discard()})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		synctest.Wait()
		take := func(tenant string) (n int) {
			for range 100 {
				if _, err := l.Reserve(ctx, time.Now(), request(tenant, 1)); err == nil {
					n++
				}
			}
			return n
		}
		if n := take("a"); n != 40 {
			t.Errorf("%d through the store, want 40", n)
		}
		before := b.set(errors.New("gone"), 0)
		if n := take("a"); n != 0 {
			t.Errorf("%d when the store goes, want 0: the bucket is known to be empty", n)
		}
		if n := take("b"); n != 10 {
			t.Errorf("%d of another, want a quarter", n)
		}
		time.Sleep(10 * time.Second)
		if n := take("b"); n != 10 {
			t.Errorf("%d later, want a quarter", n)
		}
		if calls := b.set(errors.New("gone"), 0); calls-before != 3 {
			t.Errorf("%d calls of a store that is gone, want 3", calls-before)
		}
		r := reserve(t, l, time.Now(), request("c", 1))
		if got := value(r.Fields(time.Now()), "X-Ratelimit-Remaining-Requests"); got != "9" {
			t.Errorf("remaining = %s, want 9", got)
		}
		b.mu.Lock()
		b.late = 100 * time.Millisecond
		b.mu.Unlock()
		b.set(nil, 4)
		time.Sleep(5 * time.Second)
		if _, resting := l.Gateways(); !resting {
			t.Error("a store that is too slow for requests is asked again")
		}
		b.mu.Lock()
		b.late = 0
		b.mu.Unlock()
		b.set(nil, 1) // it forgot, and hears of the others one after the other
		time.Sleep(1500 * time.Millisecond)
		if n, resting := l.Gateways(); n != 4 || resting {
			t.Errorf("%d gateways, resting %v, want 4 and not", n, resting)
		}
		r.Settle(time.Now(), &inference.Record{})
		if n := take("d"); n != 40 {
			t.Errorf("%d when it is back, want 40", n)
		}
		time.Sleep(10 * time.Second)
		if n, _ := l.Gateways(); n != 1 {
			t.Errorf("%d gateways, want 1: the others stay away", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestRaces uses everything at once; the race detector judges.
func TestRaces(t *testing.T) {
	l := limiter(t, fiveRules, limit.Parts{Ledger: &ledger{spent: map[limit.Subject]int64{}}})
	c := limit.Default()
	fiveRules(&c)
	c.Rules = append(c.Rules, limit.Rule{Name: "budget", By: []string{"tenant"}, Concurrent: 5, Budget: limit.Budget{Day: 1 << 40}})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 300 {
				now := noon.Add(time.Duration(i) * time.Millisecond)
				l.Admit(now, flood(uint32(i)))
				req := request(fmt.Sprint("t", (i+g)%7), 10)
				req.Quota = &inference.Quota{RequestsPerSecond: int64(i%5 + 1), Concurrent: 3}
				if r, err := l.Reserve(context.Background(), now, req); err == nil {
					r.Spend(now, 2000)
					r.Fields(now)
					r.Settle(now, record(req, 100))
				}
				if i%50 == 0 {
					if err := l.Apply(c); err != nil {
						t.Error(err)
					}
					metrics(t, l)
				}
			}
		})
	}
	wg.Wait()
	if n := l.Local().Held(); n != 0 {
		t.Errorf("%d buckets hold something", n)
	}
}
