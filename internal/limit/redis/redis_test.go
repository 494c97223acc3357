package redis_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/limit/limittest"
	"github.com/spillway/spillway/internal/limit/redis"
	store "github.com/spillway/spillway/internal/store/redis"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// After a change of a cluster, the library has goroutines that sleep for up to 5 s
// before they close what is no longer needed, and end.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"))
}

// runs runs something until the test ends.
func runs(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// dial runs a client until the test ends, and waits for its connection.
func dial(t testing.TB, addrs ...string) *store.Client {
	t.Helper()
	c := store.Default()
	c.Addresses, c.Cluster = addrs, len(addrs) > 1
	return dialAs(t, c)
}

// dialAs is dial with a configuration.
func dialAs(t testing.TB, c store.Config) *store.Client {
	t.Helper()
	client, err := store.New(c, testkit.Discard())
	if err != nil {
		t.Fatal(err)
	}
	runs(t, client.Run)
	one := redis.New(client, settings(limit.ModeExact))
	testkit.Eventually(t, "all connections are there", func() bool {
		for i := range uint64(20) {
			if _, err := one.Take(context.Background(), time.Now(), []limit.Ask{{Key: limit.Key{i, i << 60}, Name: "first", Cost: 1, Room: 1, Size: 1}}); err != nil {
				return false
			}
		}
		return true
	})
	return client
}

// settings are those of a mode, with patience for a machine that is busy.
func settings(mode string) limit.StoreConfig {
	c := limit.Default().Store
	c.Kind, c.Mode, c.Timeout = limit.KindRedis, mode, time.Second
	return c
}

func TestStoreInOneServer(t *testing.T) {
	s := redistest.Start(t)
	client := dial(t, s.Addr())
	for _, mode := range []string{limit.ModeExact, limit.ModeLease} {
		t.Run(mode, func(t *testing.T) {
			limittest.TestStore(t, func(t *testing.T) limit.Store {
				s.Do("FLUSHALL")
				one := redis.New(client, settings(mode))
				runs(t, one.Run)
				return one
			})
		})
	}
}

func TestStoreInACluster(t *testing.T) {
	c := redistest.StartCluster(t)
	client := dial(t, c.Addrs()...)
	limittest.TestStore(t, func(t *testing.T) limit.Store {
		for _, n := range c.Nodes {
			n.Do("FLUSHALL")
		}
		one := redis.New(client, settings(limit.ModeExact))
		runs(t, one.Run)
		return one
	})
}

// gateway is a limiter on a Redis, which runs.
func gateway(t testing.TB, client *store.Client, s limit.StoreConfig, rules ...limit.Rule) *limit.Limiter {
	t.Helper()
	c := limit.Default()
	c.Rules, c.Store = rules, s
	l, err := limit.New(c, limit.Parts{Store: redis.New(client, s), Log: testkit.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	runs(t, l.Run)
	return l
}

// request is one of a tenant.
func request(tenant string) *inference.Request {
	return &inference.Request{Tenant: tenant, Fields: inference.Fields{Model: "m", PromptBytes: 40}}
}

// load sends requests through all gateways evenly for a time, so many a second, and
// returns how many were admitted within how long. half is called in the middle.
func load(gateways []*limit.Limiter, perSecond int, d time.Duration, half func()) (int64, time.Duration) {
	const clients = 6 // each gateway
	var admitted atomic.Int64
	began := time.Now()
	var wg sync.WaitGroup
	if half != nil {
		wg.Go(func() {
			timer := time.NewTimer(d / 2)
			<-timer.C
			half()
		})
	}
	for i := range clients * len(gateways) {
		wg.Go(func() {
			pace := time.NewTicker(time.Duration(clients*len(gateways)) * time.Second / time.Duration(perSecond))
			defer pace.Stop()
			for time.Since(began) < d {
				if _, err := gateways[i%len(gateways)].Reserve(context.Background(), time.Now(), request("a")); err == nil {
					admitted.Add(1)
				}
				<-pace.C
			}
		})
	}
	wg.Wait()
	return admitted.Load(), time.Since(began)
}

// three are three gateways on one Redis, each with a client of its own, that know of
// each other.
func three(t *testing.T, s *redistest.Server, set limit.StoreConfig, rules ...limit.Rule) (all []*limit.Limiter) {
	t.Helper()
	for range 3 {
		all = append(all, gateway(t, dial(t, s.Addr()), set, rules...))
	}
	testkit.Eventually(t, "three gateways know of each other", func() bool {
		for _, l := range all {
			if gauge(t, l, "spillway_limit_store_gateways") != 3 {
				return false
			}
		}
		return true
	})
	return all
}

// TestThreeGateways: clients spread evenly over three gateways get what the limit says.
func TestThreeGateways(t *testing.T) {
	rule := limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: limit.Bucket{Rate: limit.Rate{N: 200, Per: time.Second}, Burst: 50}}
	for _, mode := range []string{limit.ModeExact, limit.ModeLease} {
		t.Run(mode, func(t *testing.T) {
			s := redistest.Start(t)
			set := settings(mode)
			all := three(t, s, set, rule)
			got, took := load(all, 1000, 5*time.Second, nil)
			want := 50 + 200*took.Seconds()
			bound := want
			if mode == limit.ModeLease {
				bound += 200 * set.Lease.Seconds()
			}
			t.Logf("%d admitted in %v, burst + rate * time = %.0f (%+.2f%%), bound %.0f", got, took.Round(time.Millisecond),
				want, 100*(float64(got)/want-1), bound)
			if float64(got) < want*0.97 || float64(got) > want*1.03 || float64(got) > bound+1 {
				t.Errorf("%d admitted, want %.0f +- 3%% and at most %.0f", got, want, bound)
			}
			for i, l := range all {
				t.Logf("gateway %d: %v calls of Redis, %v decided ahead", i, gauge(t, l, "spillway_limit_redis_calls_total"), gauge(t, l, "spillway_limit_redis_leased_total"))
			}
		})
	}
}

// TestRedisKilledMidRun: each gateway goes on with a third of the limits.
func TestRedisKilledMidRun(t *testing.T) {
	rule := limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: limit.Bucket{Rate: limit.Rate{N: 200, Per: time.Second}, Burst: 50}}
	for _, mode := range []string{limit.ModeExact, limit.ModeLease} {
		t.Run(mode, func(t *testing.T) {
			s := redistest.Start(t)
			set := settings(mode)
			set.Timeout = 20 * time.Millisecond
			all := three(t, s, set, rule)
			got, took := load(all, 1000, 4*time.Second, s.Kill)
			want := 50 + 200*took.Seconds()
			bound := 50 + want // a further burst, which memory may not have seen used
			if mode == limit.ModeLease {
				bound += 200 * set.Lease.Seconds()
			}
			t.Logf("killed at half of %v: %d admitted, burst + rate * time = %.0f (%+.2f%%), bound %.0f", took.Round(time.Millisecond), got, want, 100*(float64(got)/want-1), bound)
			if float64(got) < want*0.85 || float64(got) > bound {
				t.Errorf("%d admitted, want %.0f to %.0f", got, want*0.85, bound)
			}
			for i, l := range all {
				if resting := gauge(t, l, "spillway_limit_store_resting"); resting != 1 {
					t.Errorf("gateway %d still asks", i)
				}
				if faults := gauge(t, l, "spillway_limit_store_faults_total"); faults > 100 {
					t.Errorf("gateway %d: %v faults: the breaker does not spare requests", i, faults)
				}
			}
			s.Restart()
			for _, l := range all {
				testkit.Eventually(t, "Redis is used again", func() bool { return gauge(t, l, "spillway_limit_store_resting") == 0 })
			}
			before := gauge(t, all[0], "spillway_limit_redis_calls_total")
			all[0].Reserve(t.Context(), time.Now(), request("another"))
			if gauge(t, all[0], "spillway_limit_redis_calls_total") != before+1 {
				t.Error("Redis is back and is not asked")
			}
		})
	}
}

// TestFailoverKeepsBuckets: what was used at the master is used at the replica that a
// sentinel puts in its place.
func TestFailoverKeepsBuckets(t *testing.T) {
	master := redistest.Start(t)
	replica := master.Replica()
	sentinel := redistest.StartSentinel(t, "main", master)
	c := store.Default()
	c.Addresses, c.Sentinel.Master = []string{sentinel.Addr()}, "main"
	rule := limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: limit.Bucket{Rate: limit.Rate{N: 10, Per: time.Hour}, Burst: 10}}
	l := gateway(t, dialAs(t, c), settings(limit.ModeExact), rule)
	admitted := func(n int) (got int) {
		for range n {
			if _, err := l.Reserve(t.Context(), time.Now(), request("a")); err == nil {
				got++
			}
		}
		return got
	}
	if got := admitted(6); got != 6 {
		t.Fatalf("%d of 6 were admitted", got)
	}
	master.Do("SET", "behind-the-others", "1")
	testkit.Eventually(t, "the replica has everything", func() bool { return replica.Do("GET", "behind-the-others") == "1" })
	testkit.Eventually(t, "the sentinel knows the replica", func() bool {
		return strings.Contains(sentinel.Do("SENTINEL", "REPLICAS", "main"), replica.Addr())
	})
	master.Kill()
	testkit.Eventually(t, "the sentinel orders a failover", func() bool { _, err := sentinel.Try("SENTINEL", "FAILOVER", "main"); return err == nil })
	testkit.Eventually(t, "buckets are at the new master", func() bool {
		faults := gauge(t, l, "spillway_limit_store_faults_total")
		_, err := l.Reserve(t.Context(), time.Now(), request(strconv.FormatInt(time.Now().UnixNano(), 10)))
		return err == nil && gauge(t, l, "spillway_limit_store_resting") == 0 && gauge(t, l, "spillway_limit_store_faults_total") == faults &&
			strings.Contains(replica.Do("ROLE"), "master")
	})
	if got := admitted(10); got != 4 {
		t.Errorf("%d were admitted after the failover, want the 4 that are left", got)
	}
}

// TestStoppedServer: a server that is silent costs a time-out a few times, not each.
func TestStoppedServer(t *testing.T) {
	for _, mode := range []string{limit.ModeExact, limit.ModeLease} {
		t.Run(mode, func(t *testing.T) {
			s := redistest.Start(t)
			set := settings(mode)
			set.Timeout = 5 * time.Millisecond
			l := gateway(t, dial(t, s.Addr()), set, limit.Rule{Name: "tenants", By: []string{"tenant"}, Requests: limit.Bucket{Rate: limit.Rate{N: 1000, Per: time.Second}}})
			reserve := func(tenant string) {
				if _, err := l.Reserve(context.Background(), time.Now(), request(tenant)); err != nil {
					t.Errorf("refused by the gateway's own share: %v", err)
				}
			}
			reserve("a")
			s.Stop()
			defer s.Continue()
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for j := range 200 {
						reserve(fmt.Sprint(i, j%3))
					}
				})
			}
			wg.Wait()
			if faults := gauge(t, l, "spillway_limit_store_faults_total"); faults < 1 || faults > 20 {
				t.Errorf("%v faults, want a few: %v", faults, metric(t, l))
			}
			s.Continue()
			testkit.Eventually(t, "Redis is used again", func() bool { return gauge(t, l, "spillway_limit_store_resting") == 0 })
		})
	}
}

// TestOneCallOfABurst: of requests that come at once, one asks Redis for a bucket and
// the others wait for what it brings.
func TestOneCallOfABurst(t *testing.T) {
	s := redistest.Start(t)
	one := redis.New(dial(t, s.Addr()), settings(limit.ModeLease))
	ask := limit.Ask{Key: limit.Key{1, 2}, Name: "x", Cost: int64(time.Millisecond), Room: int64(time.Millisecond), Size: int64(time.Hour)}
	for range 3 { // the demand is seen
		if ok, err := one.Take(t.Context(), time.Now(), []limit.Ask{ask}); !ok || err != nil {
			t.Fatalf("Take = %v, %v", ok, err)
		}
	}
	before := metric(t, one)["spillway_limit_redis_calls_total"]
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				if ok, err := one.Take(context.Background(), time.Now(), []limit.Ask{ask}); !ok || err != nil {
					t.Errorf("Take = %v, %v", ok, err)
				}
			}
		})
	}
	wg.Wait()
	if calls := metric(t, one)["spillway_limit_redis_calls_total"] - before; calls > 100 {
		t.Errorf("%v calls for 1000 requests", calls)
	} else {
		t.Logf("%v calls for 1000 requests", calls)
	}
}

// TestARefusalLeavesWhatWasTakenAhead of the buckets that had room.
func TestARefusalLeavesWhatWasTakenAhead(t *testing.T) {
	one := redis.New(dial(t, redistest.Start(t).Addr()), settings(limit.ModeLease))
	roomy := limit.Ask{Key: limit.Key{1, 2}, Name: "x", Cost: int64(time.Millisecond), Room: int64(time.Millisecond), Size: int64(time.Hour)}
	full := limit.Ask{Key: limit.Key{3, 4}, Name: "y", Cost: int64(time.Hour), Room: int64(time.Hour), Size: int64(time.Hour)}
	take := func(want bool, asks ...limit.Ask) {
		t.Helper()
		if ok, err := one.Take(t.Context(), time.Now(), asks); ok != want || err != nil {
			t.Fatalf("Take = %v, %v, want %v", ok, err, want)
		}
	}
	for range 4 { // the last takes two ahead
		take(true, roomy)
	}
	take(true, full)
	for range 20 {
		take(false, roomy, full)
	}
	before := metric(t, one)["spillway_limit_redis_calls_total"]
	take(true, roomy)
	take(true, roomy)
	if calls := metric(t, one)["spillway_limit_redis_calls_total"] - before; calls != 0 {
		t.Errorf("Redis was asked %v times: refused requests have used what was taken ahead", calls)
	}
	for range 4 {
		take(true, roomy)
	}
	more := roomy
	more.Cost, more.Room = int64(time.Minute), int64(time.Minute)
	for range 3 { // more than is held, so that Redis would be asked, were the other not known to be full
		take(false, more, full)
	}
	before = metric(t, one)["spillway_limit_redis_calls_total"]
	take(true, roomy)
	if calls := metric(t, one)["spillway_limit_redis_calls_total"] - before; calls != 0 {
		t.Errorf("Redis was asked %v times: what was to go back to it with a call that was not made is lost", calls)
	}
}

// TestCrashedGateway: what it held comes back by itself, as Redis counts.
func TestCrashedGateway(t *testing.T) {
	s := redistest.Start(t)
	rule := limit.Rule{Name: "tenants", By: []string{"tenant"}, Concurrent: 3}
	crashed, alive := redis.New(dial(t, s.Addr()), settings(limit.ModeExact)), dial(t, s.Addr()) // crashed never runs
	asks := []limit.Ask{{Key: limit.Key{1, 2}, Name: "x", Kind: limit.Held, Cost: 1, Room: 1, Size: 1}}
	if ok, err := crashed.Take(t.Context(), time.Now(), asks); !ok || err != nil {
		t.Fatalf("Take = %v, %v", ok, err)
	}
	key := s.Do("KEYS", "*:x:*")
	if ttl := s.Do("PTTL", key); ttl == "-1" || ttl == "-2" {
		t.Errorf("what is held has no end: PTTL %s = %s", key, ttl)
	}
	other := redis.New(alive, settings(limit.ModeExact))
	if ok, _ := other.Take(t.Context(), time.Now(), asks); ok {
		t.Fatal("two hold what one may")
	}
	member := s.Do("ZRANGE", key, "0", "0")
	s.Do("ZADD", key, "1", member) // half a minute later
	if ok, err := other.Take(t.Context(), time.Now(), asks); !ok || err != nil {
		t.Errorf("Take after the end of a crashed gateway's lease = %v, %v", ok, err)
	}

	l := gateway(t, alive, settings(limit.ModeExact), rule)
	var held []*limit.Receipt
	for range 3 {
		r, err := l.Reserve(t.Context(), time.Now(), request("a"))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, r)
	}
	if _, err := l.Reserve(t.Context(), time.Now(), request("a")); err == nil {
		t.Error("four hold what three may")
	}
	for _, r := range held {
		r.Settle(time.Now(), &inference.Record{})
	}
	testkit.Eventually(t, "what was held is back", func() bool {
		r, err := l.Reserve(t.Context(), time.Now(), request("a"))
		if err == nil {
			r.Settle(time.Now(), &inference.Record{})
		}
		return err == nil && s.Do("KEYS", "*concurrent*") == ""
	})
}

// TestKeysHaveAnEnd and are readable.
func TestKeysHaveAnEnd(t *testing.T) {
	s := redistest.Start(t)
	l := gateway(t, dial(t, s.Addr()), settings(limit.ModeExact), limit.Rule{
		Name: "tenants", By: []string{"tenant"}, Requests: limit.Bucket{Rate: limit.Rate{N: 1, Per: time.Minute}},
		Tokens: limit.Bucket{Rate: limit.Rate{N: 1000, Per: time.Minute}}, Concurrent: 3,
	})
	if _, err := l.Reserve(t.Context(), time.Now(), request("secret-tenant")); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"tenants-requests", "tenants-tokens", "tenants-concurrent"} {
		key := s.Do("KEYS", "spillway:1:limit:{spillway}:"+what+":*")
		if key == "" || s.Do("TTL", key) == "-1" {
			t.Errorf("%s: key %q, TTL %s", what, key, s.Do("TTL", key))
		}
	}
	if got := s.Do("KEYS", "*secret*"); got != "" {
		t.Errorf("a tenant's name in %s", got)
	}
}

// gauge is a metric of a limiter without its labels.
func gauge(t testing.TB, l *limit.Limiter, name string) float64 {
	t.Helper()
	v, ok := metric(t, l)[name]
	if !ok {
		t.Fatal(fmt.Errorf("no metric %s", name))
	}
	return v
}

// TestSignsOfLife: what is held for long stays held, also by a server that forgot it.
func TestSignsOfLife(t *testing.T) {
	s := redistest.Start(t)
	one := redis.New(dial(t, s.Addr()), settings(limit.ModeExact))
	ask := limit.Ask{Key: limit.Key{1, 2}, Name: "x", Kind: limit.Held, Cost: 1, Room: 1, Size: 2}
	first, second := []limit.Ask{ask}, []limit.Ask{ask}
	for _, asks := range [][]limit.Ask{first, second} {
		if ok, err := one.Take(t.Context(), time.Now(), asks); !ok || err != nil {
			t.Fatalf("Take = %v, %v", ok, err)
		}
	}
	back := first[0]
	back.Cost = -1
	one.Give(time.Now(), []limit.Ask{back})
	s.Do("FLUSHALL")
	one.Keep(t.Context())
	key := s.Do("KEYS", "*:x:*")
	if key == "" || s.Do("ZCARD", key) != "1" || s.Do("TTL", key) == "-1" {
		t.Errorf("key %q, want one that is held, with an end", key)
	}
}

// TestQueueIsBounded: what has no room is dropped and counted, and nobody waits.
func TestQueueIsBounded(t *testing.T) {
	one := redis.New(dial(t, redistest.Start(t).Addr()), settings(limit.ModeExact)) // nobody runs it
	for range 10_000 {
		one.Give(time.Now(), []limit.Ask{{Key: limit.Key{1, 2}, Name: "x", Cost: -1}})
	}
	got := metric(t, one)
	if got["spillway_limit_redis_queue_entries"] != 8192 || got["spillway_limit_redis_dropped_total"] != 10_000-8192 {
		t.Errorf("queue %v, dropped %v, want 8192 and the rest", got["spillway_limit_redis_queue_entries"], got["spillway_limit_redis_dropped_total"])
	}
}

// TestSettledInRedis: after disconnects at random Redis holds what the tokens say.
func TestSettledInRedis(t *testing.T) {
	for _, mode := range []string{limit.ModeExact, limit.ModeLease} {
		t.Run(mode, func(t *testing.T) {
			s := redistest.Start(t)
			l := gateway(t, dial(t, s.Addr()), settings(mode), limit.Rule{
				Name: "tokens", Tokens: limit.Bucket{Rate: limit.Rate{N: 24_000, Per: 24 * time.Hour}}, // 3.6 s each
			})
			began, total := time.Now(), int64(0)
			for i := range 60 {
				req := request("a") // 10 tokens of prompt
				req.MaxTokens = 100
				r, err := l.Reserve(t.Context(), time.Now(), req)
				if err != nil {
					t.Fatal(err)
				}
				rec := &inference.Record{Request: req, Complete: true, TTFT: 1, Attempts: make([]inference.Attempt, 1), Tokens: int64(i * 7 % 150)}
				if i%10 < 3 {
					rec.Complete, rec.Code = false, inference.CodeCanceled
				}
				for n := range rec.Tokens {
					r.Spend(time.Now(), n)
				}
				r.Settle(time.Now(), rec)
				spent, _ := rec.Spent()
				total += spent.PromptTokens + spent.CompletionTokens
			}
			var seconds float64
			testkit.Eventually(t, "Redis holds what was spent", func() bool {
				clock := strings.Fields(s.Do("TIME"))
				now, _ := strconv.ParseFloat(clock[0], 64)
				full, _ := strconv.ParseFloat(s.Do("GET", s.Do("KEYS", "*tokens*")), 64)
				seconds = full/1e6 + 1704067200 - now
				want := float64(total) * 3.6
				slack := 1 + time.Since(began).Seconds()
				if mode == limit.ModeLease {
					slack += 3.6 // what is held ahead
				}
				return seconds > want-slack && seconds < want+slack
			})
			t.Logf("%d tokens: the bucket is full again in %.0f s, want %.0f", total, seconds, float64(total)*3.6)
		})
	}
}

func BenchmarkTake(b *testing.B) {
	s := redistest.Start(b)
	for _, mode := range []string{limit.ModeExact, limit.ModeLease} {
		b.Run(mode, func(b *testing.B) {
			one := redis.New(dial(b, s.Addr()), settings(mode))
			runs(b, one.Run)
			var asks []limit.Ask
			for i := range uint64(5) {
				asks = append(asks, limit.Ask{Key: limit.Key{i, i}, Name: "x", Cost: 1000, Room: 1000, Size: int64(time.Hour)})
			}
			b.ReportAllocs()
			for b.Loop() {
				if ok, err := one.Take(context.Background(), time.Now(), asks); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}
