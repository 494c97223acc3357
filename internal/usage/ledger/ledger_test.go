package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/sqltest"
	"github.com/spillway/spillway/internal/usage/ledger"
)

func TestMain(m *testing.M) { sqltest.Main(m) }

// databases are the kinds of database that a test runs on.
func databases() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{
		"sqlite":   func(testing.TB) string { return "sqlite:ledger.db" },
		"postgres": sqltest.Postgres,
		"mariadb":  sqltest.MariaDB,
	}
}

// quick is a configuration that writes at once.
func quick() ledger.Config {
	cfg := ledger.Default()
	cfg.Flush = 100 * time.Millisecond
	return cfg
}

// started is a ledger at work.
type started struct {
	*ledger.Ledger
	stop func() // once more than once is once
}

// start makes a ledger on a database that works until the test ends.
func start(t testing.TB, dsn, dir string, cfg ledger.Config, log *testkit.Log) started {
	t.Helper()
	c := sql.Default()
	c.Databases = []sql.DatabaseConfig{{DSN: dsn}}
	store, err := sql.Open(c, dir, testkit.Discard(), ledger.Migrations())
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(cfg, store, slog.New(slog.NewTextHandler(log, nil)))
	storing, close := context.WithCancel(context.Background())
	ctx, cancel := context.WithCancel(context.Background())
	stored, ended := make(chan error, 1), make(chan error, 1)
	go func() { stored <- store.Run(storing) }()
	go func() { ended <- l.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		close()
		if err := <-stored; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return started{l, stop}
}

// today is the day of the tests' requests.
var today = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// record is a request that has ended.
func record(tenant, key, model string, prompt, output int64) *inference.Record {
	return &inference.Record{
		Request:  &inference.Request{Tenant: tenant, Key: key, Received: today, Fields: inference.Fields{Model: model}},
		Attempts: make([]inference.Attempt, 1), Complete: true, Duration: time.Second,
		Usage: inference.Usage{PromptTokens: prompt, CompletionTokens: output, CachedTokens: prompt / 2},
	}
}

// subject names what Spent is asked for.
type subject = struct{ Tenant, Key, Model string }

// spends polls until the ledger says so many tokens.
func (l started) spends(t *testing.T, s subject, since time.Time, want int64) {
	t.Helper()
	var got int64
	var known bool
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got, known = l.Spent(s, since); known && got == want {
			return
		}
	}
	t.Errorf("%+v since %s: got %d, %v, want %d", s, since.Format(time.DateOnly), got, known, want)
}

func TestWhatTwoGatewaysSpend(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			where, dir := dsn(t), t.TempDir()
			var both [2]started
			for i := range both {
				both[i] = start(t, where, dir, quick(), new(testkit.Log))
			}
			want := make(map[string]ledger.Amount)
			var total int64
			for i := range 400 {
				tenant, key, model := fmt.Sprint("tenant", i%7), fmt.Sprint("key", i%3), fmt.Sprint("model", i%2)
				prompt, output := rand.Int64N(1000), 1+rand.Int64N(1000)
				both[i%2].Observe(record(tenant, key, model, prompt, output))
				a := want[tenant+key+model]
				a.Requests, a.Prompt, a.Cached, a.Output = a.Requests+1, a.Prompt+prompt, a.Cached+prompt/2, a.Output+output
				want[tenant+key+model] = a
				total += prompt + output
			}
			both[0].spends(t, subject{}, today, total)
			both[1].spends(t, subject{}, today, total)
			var third, keyed int64
			for k, a := range want {
				if strings.HasPrefix(k, "tenant3") {
					third += a.Tokens()
					if strings.Contains(k, "key1") {
						keyed += a.Tokens()
					}
				}
			}
			both[0].spends(t, subject{Tenant: "tenant3"}, today, third)
			both[0].spends(t, subject{Tenant: "tenant3", Key: "key1"}, today.AddDate(0, 0, -19), keyed)
			both[0].spends(t, subject{Tenant: "tenant3"}, today.AddDate(0, 0, 1), 0)
			both[0].spends(t, subject{Tenant: "TENANT3"}, today, 0)
			entries, err := both[1].Entries(t.Context(), today, today)
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]ledger.Amount)
			for i, e := range entries {
				got[e.Tenant+e.Key+e.Model] = e.Amount
				if e.Day != "2026-11-20" || i > 0 && entries[i-1].Tenant > e.Tenant {
					t.Errorf("entry %d: %+v", i, e)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestANewQuestionIsAskedAtOnce, however seldom the ledger writes.
func TestANewQuestionIsAskedAtOnce(t *testing.T) {
	dir, cfg := t.TempDir(), ledger.Default()
	cfg.Flush = time.Hour
	before := start(t, "sqlite:ledger.db", dir, cfg, new(testkit.Log))
	before.Observe(record("a", "k", "m", 3, 4))
	before.stop()
	l := start(t, "sqlite:ledger.db", dir, cfg, new(testkit.Log))
	l.spends(t, subject{Tenant: "a"}, today, 7)
	l.spends(t, subject{Key: "k"}, today, 7)
}

func TestWhatCounts(t *testing.T) {
	l := start(t, "sqlite:ledger.db", t.TempDir(), quick(), new(testkit.Log))
	free := record("a", "", "m", 0, 0)
	shadow := record("a", "k", "m", 5, 5)
	shadow.Shadow, shadow.Request.Class = true, inference.Idle
	hit := record("a", "", "m", 5, 5)
	hit.Attempts = nil
	cut := record("a", "", "m", 0, 0)
	cut.Complete, cut.TTFT, cut.Tokens, cut.Request.PromptBytes = false, 1, 7, 40
	night := record("a", "", "m", 1, 1)
	night.Request.Received = time.Date(2026, 11, 20, 23, 59, 59, 500e6, time.UTC) // and ends on the next day
	for _, rec := range []*inference.Record{free, shadow, hit, cut, night} {
		l.Observe(rec)
	}
	l.spends(t, subject{Tenant: "a"}, today, 19)
	l.spends(t, subject{Tenant: "a", Key: "k"}, today, 0)
	l.spends(t, subject{Tenant: ledger.Idle}, today, 10)
	l.spends(t, subject{Tenant: "a"}, today.AddDate(0, 0, 1), 2)
	l.stop()
	again := start(t, "sqlite:ledger.db", t.TempDir(), quick(), new(testkit.Log))
	if entries, err := again.Entries(t.Context(), today, today); err != nil || len(entries) != 0 {
		t.Errorf("nothing was ever written there: got %v, %v", entries, err)
	}
}

func TestAStopWritesWhatWaits(t *testing.T) {
	dir := t.TempDir()
	slow := ledger.Default()
	slow.Flush = time.Minute
	l := start(t, "sqlite:ledger.db", dir, slow, new(testkit.Log))
	l.Observe(record("a", "k", "m", 30, 12))
	if l.Waiting() != 1 {
		t.Errorf("%d rows wait, want 1", l.Waiting())
	}
	l.stop()
	again := start(t, "sqlite:ledger.db", dir, quick(), new(testkit.Log))
	want := []ledger.Entry{{Day: "2026-11-20", Tenant: "a", Key: "k", Model: "m", Amount: ledger.Amount{Requests: 1, Prompt: 30, Cached: 15, Output: 12}}}
	got, err := again.Entries(t.Context(), today, today)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// TestABatchCountsOnce although the connection is cut while it is written, again and
// again, so that nobody knows whether it was.
func TestABatchCountsOnce(t *testing.T) {
	for name, dsn := range map[string]func(testing.TB) string{"postgres": sqltest.Postgres, "mariadb": sqltest.MariaDB} {
		t.Run(name, func(t *testing.T) {
			proxy, through := sqltest.Through(t, dsn(t))
			l := start(t, through, t.TempDir(), quick(), new(testkit.Log))
			l.Observe(record("warm", "", "m", 1, 0))
			l.spends(t, subject{Tenant: "warm"}, today, 1)
			var total int64
			pace := time.NewTicker(20 * time.Millisecond) // a flush comes every fifth time
			defer pace.Stop()
			for i := range 60 {
				n := 1 + rand.Int64N(100)
				l.Observe(record(fmt.Sprint("t", i%5), "", "m", n, 0))
				total += n
				if i%3 == 0 {
					proxy.Cut()
				}
				<-pace.C
			}
			testkit.Eventually(t, "all is written", func() bool { return l.Waiting() == 0 })
			entries, err := l.Entries(t.Context(), today, today)
			if err != nil {
				t.Fatal(err)
			}
			var got, requests int64
			for _, e := range entries {
				got, requests = got+e.Tokens(), requests+e.Requests
			}
			if got != total+1 || requests != 61 {
				t.Errorf("got %d tokens of %d requests, want %d of 61 (%d flushes failed)", got, requests, total+1, l.Faults())
			}
		})
	}
}

func TestTheSameBatchTwice(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			l := start(t, dsn(t), t.TempDir(), quick(), new(testkit.Log))
			id := [16]byte{1, 2, 3}
			for range 3 {
				if err := l.Apply1(t.Context(), id, "a", ledger.Amount{Requests: 1, Prompt: 7, Output: 3}); err != nil {
					t.Fatal(err)
				}
			}
			l.spends(t, subject{Tenant: "a"}, today, 10)
		})
	}
}

func TestCountsWaitWhileTheDatabaseIsAway(t *testing.T) {
	proxy, through := sqltest.Through(t, sqltest.Postgres(t))
	log := new(testkit.Log)
	l := start(t, through, t.TempDir(), quick(), log)
	l.Observe(record("a", "", "m", 1, 0))
	l.spends(t, subject{Tenant: "a"}, today, 1)
	proxy.Set(faultnet.Faults{Refuse: true})
	proxy.Cut()
	for range 50 {
		l.Observe(record("a", "", "m", 1, 1))
	}
	testkit.Eventually(t, "a flush has failed", func() bool { return l.Faults() > 0 })
	for range 3 { // flushes, of which each has something new
		before := l.Faults()
		l.Observe(record("b", "", "m", 1, 0))
		testkit.Eventually(t, "a flush has failed", func() bool { return l.Faults() > before })
	}
	if n := l.Batches(); n != 1 {
		t.Errorf("%d batches wait, want one for the database", n)
	}
	if got, known := l.Spent(subject{Tenant: "a"}, today); got != 101 || !known {
		t.Errorf("what waits does not count: got %d, %v, want 101", got, known)
	}
	proxy.Set(faultnet.Faults{})
	testkit.Eventually(t, "all is written", func() bool { return l.Waiting() == 0 })
	l.spends(t, subject{Tenant: "a"}, today, 101)
	if !strings.Contains(log.String(), "counts wait in memory") || strings.Contains(log.String(), "lost") {
		t.Errorf("the log says %s", log)
	}
}

// TestABatchInDoubt is in the databases' sums already, and counts once.
func TestABatchInDoubt(t *testing.T) {
	store, err := sql.Open(sql.Default(), t.TempDir(), testkit.Discard(), ledger.Migrations())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	l := ledger.New(quick(), store, testkit.Discard()) // nobody runs it
	l.Answered([]subject{{Tenant: "a"}}, today.Unix()/86_400)
	l.Observe(record("a", "", "m", 7, 3))
	if err := l.Doubt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := l.Spent(subject{Tenant: "a"}, today); got != 10 {
		t.Errorf("%d tokens are spent, want 10", got)
	}
}

func TestTooManyRows(t *testing.T) {
	store, err := sql.Open(sql.Default(), t.TempDir(), testkit.Discard(), ledger.Migrations())
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.New(quick(), store, testkit.Discard()) // nobody writes
	const n = 130_000
	for i := range n {
		l.Observe(record(fmt.Sprint("t", i), "k", "m", 1, 0))
	}
	if got := l.Waiting(); got > 100_001 {
		t.Errorf("%d rows wait", got)
	}
	if l.Folded() != n-50_000 {
		t.Errorf("%d requests are folded, want %d", l.Folded(), n-50_000)
	}
}

func TestOldDaysGo(t *testing.T) {
	cfg := quick()
	cfg.Days = 32
	dir := t.TempDir()
	l := start(t, "sqlite:ledger.db", dir, cfg, new(testkit.Log))
	now := time.Now()
	for _, days := range []int{0, 31, 40} {
		rec := record("a", "", "m", 1, 0)
		rec.Request.Received = now.AddDate(0, 0, -days)
		l.Observe(rec)
	}
	l.stop() // the sweep of the start came too early for them, perhaps
	again := start(t, "sqlite:ledger.db", dir, cfg, new(testkit.Log))
	testkit.Eventually(t, "the oldest is gone", func() bool {
		entries, err := again.Entries(t.Context(), now.AddDate(-1, 0, 0), now)
		return err == nil && len(entries) == 2
	})
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*ledger.Config)
		want   string
	}{
		"default": {func(*ledger.Config) {}, ""},
		"flush":   {func(c *ledger.Config) { c.Flush = time.Millisecond }, "flush: must be 100ms to 1m, got 1ms"},
		"days":    {func(c *ledger.Config) { c.Days = 7 }, "days: must be 32 to 10000, got 7; budgets of a month need that month"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := ledger.Default()
			c.change(&cfg)
			if err := cfg.Validate(); (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestWhatIsWrittenIsTold to every question that it belongs to, once.
func TestWhatIsWrittenIsTold(t *testing.T) {
	names := []string{"", "a", "b"}
	var all []subject
	for _, tenant := range names {
		for _, key := range names {
			for _, model := range names {
				all = append(all, subject{tenant, key, model})
			}
		}
	}
	l := start(t, "sqlite:ledger.db", t.TempDir(), quick(), new(testkit.Log))
	l.stop()
	l.Answered(all, 100, 120, 121)
	if wrong := l.Wrote(all, 120); len(wrong) > 0 {
		t.Errorf("questions are told wrong numbers of tokens: %v", wrong)
	}
}

// BenchmarkWritten is a flush of 2000 rows while 10,000 budgets are asked for. Requests
// that end wait for it.
func BenchmarkWritten(b *testing.B) {
	all := make([]subject, 5000)
	for i := range all {
		all[i].Tenant = fmt.Sprint("tenant-", i)
	}
	rows := make([]subject, 2000)
	for i := range rows {
		rows[i] = subject{fmt.Sprint("tenant-", i), "key", "model"}
	}
	l := start(b, "sqlite:ledger.db", b.TempDir(), quick(), new(testkit.Log))
	l.stop()
	l.Answered(all, 100, 120)
	for b.Loop() {
		l.Writes(rows, 120)
	}
}

func BenchmarkObserve(b *testing.B) {
	store, err := sql.Open(sql.Default(), b.TempDir(), testkit.Discard(), ledger.Migrations())
	if err != nil {
		b.Fatal(err)
	}
	l := ledger.New(quick(), store, testkit.Discard())
	rec := record("acme", "k1", "llama", 100, 50)
	b.ReportAllocs()
	for b.Loop() {
		l.Observe(rec)
	}
}

func ExampleLedger() {
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	store, err := sql.Open(sql.Default(), dir, testkit.Discard(), ledger.Migrations())
	if err != nil {
		fmt.Println(err)
		return
	}
	l := ledger.New(ledger.Default(), store, testkit.Discard())
	storing, close := context.WithCancel(context.Background())
	stored, ended := make(chan error, 1), make(chan error, 1)
	go func() { stored <- store.Run(storing) }()
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- l.Run(ctx) }()
	l.Observe(record("acme", "k1", "llama", 100, 50))
	stop()
	err = <-ended // what waited is written
	entries, listed := l.Entries(context.Background(), today, today)
	close()
	fmt.Println(errors.Join(err, listed, <-stored))
	for _, e := range entries {
		fmt.Println(e.Day, e.Tenant, e.Key, e.Model, e.Tokens())
	}
	// Output:
	// <nil>
	// 2026-11-20 acme k1 llama 150
}
