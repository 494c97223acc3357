package redis_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	"github.com/spillway/spillway/internal/cache/redis"
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

// dial runs a client until the test ends, and waits for its connection.
func dial(t testing.TB, change func(*store.Config)) *store.Client {
	t.Helper()
	client, stop := start(t, change)
	t.Cleanup(stop)
	testkit.Eventually(t, "Redis answers", func() bool { return client.Err() == nil })
	return client
}

// start runs a client until stop is called.
func start(t testing.TB, change func(*store.Config)) (client *store.Client, stop func()) {
	t.Helper()
	c := store.Default()
	change(&c)
	client, err := store.New(c, testkit.Discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	return client, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// at is the configuration of one server.
func at(addr string) func(*store.Config) {
	return func(c *store.Config) { c.Addresses = []string{addr} }
}

// settings are the level's own.
func settings() cache.RedisConfig { return cache.Default().Redis }

func TestLevelInOneServer(t *testing.T) {
	s := redistest.Start(t)
	client := dial(t, at(s.Addr()))
	cachetest.TestLevel(t, func(*testing.T) cache.Level {
		s.Do("FLUSHALL")
		return redis.New(client, settings())
	})
}

func TestLevelInACluster(t *testing.T) {
	c := redistest.StartCluster(t)
	client := dial(t, func(s *store.Config) { s.Addresses, s.Cluster = c.Addrs(), true })
	cachetest.TestLevel(t, func(*testing.T) cache.Level {
		for _, n := range c.Nodes {
			n.Do("FLUSHALL")
		}
		return redis.New(client, settings())
	})
}

// server is a server with a level in it.
func server(t testing.TB, args ...string) (*redistest.Server, *redis.Level) {
	t.Helper()
	s := redistest.Start(t, args...)
	return s, redis.New(dial(t, at(s.Addr())), settings())
}

// put keeps entries.
func put(t testing.TB, l *redis.Level, entries ...*cache.Entry) {
	t.Helper()
	if err := l.Put(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
}

// name is what an entry is kept under.
func name(key cache.Key) string { return "spillway:1:answer:" + key.String() }

func TestPeopleCanReadIt(t *testing.T) {
	s, l := server(t)
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	e := cachetest.NewEntry("a", now)
	e.Stale, e.Hits = time.Now().Add(time.Hour).Truncate(time.Millisecond), 0
	put(t, l, e)
	for field, want := range map[string]string{
		"scope": "tenant", "model": "m", "surface": "chat", "question": "what is a?", "hits": "0", "stored_ms": strconv.FormatInt(now.UnixMilli(), 10),
		"stored": "2026-11-20T12:00:00Z", "expires": "2026-11-20T13:00:00Z", "bytes": strconv.Itoa(len(e.Answer.Body)),
	} {
		if got := s.Do("HGET", name(e.Key), field); got != want {
			t.Errorf("%s = %q, want %q", field, got, want)
		}
	}
	if gone := s.Do("PEXPIRETIME", name(e.Key)); gone != strconv.FormatInt(e.Stale.UnixMilli(), 10) {
		t.Errorf("it is gone at %s, want %d", gone, e.Stale.UnixMilli())
	}
	if b := []byte(s.Do("HGET", name(e.Key), "data")); true {
		if got, err := cache.Decode(e.Key, b); err != nil || cachetest.Diff(e, got) != "" {
			t.Errorf("data is not the entry: %v", err)
		}
	}
	var question map[string]string
	if err := json.Unmarshal([]byte(s.Do("LINDEX", "spillway:1:questions", "0")), &question); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"time": "2026-11-20T12:00:00Z", "scope": "tenant", "model": "m", "question": "what is a?", "key": e.Key.String(),
	} {
		if question[field] != want {
			t.Errorf("question: %s = %q, want %q", field, question[field], want)
		}
	}
}

func TestPackedFromItsSizeOn(t *testing.T) {
	s, l := server(t)
	body := []byte(strings.Repeat("again ", 10_000))
	put(t, l, cachetest.OnePiece(cachetest.NewEntry("large", time.Now()), body))
	if n, _ := strconv.Atoi(s.Do("HSTRLEN", name(cachetest.Key("large")), "data")); n > len(body)/10 {
		t.Errorf("%d bytes that repeat themselves are kept as %d", len(body), n)
	}
}

// withoutEnd lists the keys of a server that are never gone.
func withoutEnd(s *redistest.Server) (all []string) {
	for _, key := range strings.Fields(s.Do("KEYS", "*")) {
		if s.Do("TTL", key) == "-1" {
			all = append(all, key)
		}
	}
	return all
}

func TestEveryKeyHasAnEnd(t *testing.T) {
	s, l := server(t)
	for i := range 20 {
		put(t, l, generated(fmt.Sprint(i)), generated("again"))
	}
	if err := l.Topics(t.Context(), []redis.Topic{{Model: "m", Question: "q", Demand: 3}}); err != nil {
		t.Fatal(err)
	}
	if n := s.Do("DBSIZE"); n != "23" {
		t.Errorf("%s keys, want 21 answers, the list and the set", n)
	}
	if got := withoutEnd(s); len(got) > 0 {
		t.Errorf("keys without an end: %q", got)
	}
}

// generated is an entry that nobody has asked for again.
func generated(name string) *cache.Entry {
	e := cachetest.NewEntry(name, time.Now())
	e.Hits = 0
	return e
}

func TestRecentQuestions(t *testing.T) {
	s := redistest.Start(t)
	client := dial(t, at(s.Addr()))
	c := settings()
	c.Questions = 5
	l := redis.New(client, c)
	for i := range 8 {
		put(t, l, generated(fmt.Sprint(i)))
	}
	put(t, l, cachetest.NewEntry("1", time.Now())) // written again for its hits
	got := s.Do("LRANGE", "spillway:1:questions", "0", "-1")
	if n := strings.Count(got, "\n") + 1; n != 5 || !strings.Contains(strings.Split(got, "\n")[0], "what is 7?") {
		t.Errorf("the questions are %d:\n%s\nwant the last 5, the newest first", n, got)
	}

	s.Do("FLUSHALL")
	c.Questions = 0
	l = redis.New(client, c)
	put(t, l, cachetest.NewEntry("secret", time.Now()))
	if err := l.Topics(t.Context(), []redis.Topic{{Model: "m", Question: "secret", Demand: 3}}); err != nil {
		t.Fatal(err)
	}
	if keys := s.Do("KEYS", "*"); keys != name(cachetest.Key("secret")) {
		t.Errorf("with questions switched off there is %q", keys)
	}
	if q, data := s.Do("HGET", keysOf(s), "question"), s.Do("HGET", keysOf(s), "data"); q != "" || strings.Contains(data, "d2hhdCBpcyBzZWNyZXQ") {
		t.Errorf("with questions switched off the text is kept: %q", q)
	}
	if e, err := l.Get(t.Context(), cachetest.Key("secret"), time.Now()); err != nil || e.Question != "" || len(e.Answer.Marks) != 3 {
		t.Errorf("Get = %+v, %v, want the entry without its question", e, err)
	}
}

// keysOf is the only key of a server.
func keysOf(s *redistest.Server) string { return s.Do("KEYS", "*") }

func TestHotTopics(t *testing.T) {
	s := redistest.Start(t)
	c := settings()
	c.Questions = 3
	l := redis.New(dial(t, at(s.Addr())), c)
	rank := func(topics ...redis.Topic) string {
		t.Helper()
		if err := l.Topics(t.Context(), topics); err != nil {
			t.Fatal(err)
		}
		return s.Do("ZREVRANGE", "spillway:1:topics", "0", "-1", "WITHSCORES")
	}
	topic := func(q string, demand float64) redis.Topic {
		return redis.Topic{Model: "m", Question: q, Demand: demand}
	}
	if got, want := rank(topic("a", 1), topic("b", 4), topic("never", 0), topic("no number", math.NaN()), topic("endless", math.Inf(1))), "m: b\n4\nm: a\n1"; got != want {
		t.Errorf("topics %q, want %q", got, want)
	}
	got := rank(topic("a", 10), topic("c", 2), topic("d", 3)) // another gateway's, at once
	if !strings.HasPrefix(got, "m: a\n1") || strings.Contains(got, "m: c") || strings.Count(got, "m: ") != 3 {
		t.Errorf("topics %q, want the first three of all", got)
	}
	s.Do("PEXPIRE", "spillway:1:topics", strconv.FormatInt((22*time.Hour).Milliseconds(), 10)) // as if written two hours ago
	got = rank(topic("e", 100))
	if lines := strings.Split(got, "\n"); lines[0] != "m: e" || lines[1] != "100" || lines[2] != "m: a" {
		t.Errorf("topics %q", got)
	} else if score, _ := strconv.ParseFloat(lines[3], 64); score < 2.7 || score > 2.8 {
		t.Errorf("a demand of 11 is %v after two hours, want a quarter", score)
	}
	s.Do("PEXPIRE", "spillway:1:topics", "1000") // nearly a day ago
	if got = rank(topic("f", 1)); got != "m: f\n1" {
		t.Errorf("topics %q, want what is forgotten to be gone", got)
	}
	rank(topic(strings.Repeat("é", 200), 5))
	if got := strings.Split(s.Do("ZREVRANGE", "spillway:1:topics", "0", "0"), "\n")[0]; len(got) > 120 || len(got) < 118 || !utf8.ValidString(got) {
		t.Errorf("a long topic is kept as %d bytes: %q", len(got), got)
	}
	if before := s.Do("ZCARD", "spillway:1:topics"); rank() == "" || s.Do("ZCARD", "spillway:1:topics") != before {
		t.Error("no topics change the set")
	}
}

func TestPurgeForgetsTexts(t *testing.T) {
	s, l := server(t)
	put(t, l, generated("a"))
	if err := l.Topics(t.Context(), []redis.Topic{{Model: "m", Question: "q", Demand: 3}}); err != nil {
		t.Fatal(err)
	}
	s.Do("SET", "another program's", "1")
	s.Do("SET", "spillway:2:answer:x", "1") // another version's
	if n, err := l.Purge(t.Context(), cache.Filter{}); n != 1 || err != nil {
		t.Errorf("Purge = %d, %v, want 1", n, err)
	}
	if n := s.Do("DBSIZE"); n != "2" {
		t.Errorf("%s keys are left, want those of others:\n%s", n, s.Do("KEYS", "*"))
	}
}

func TestTwoPrefixesDoNotMix(t *testing.T) {
	s := redistest.Start(t)
	a := redis.New(dial(t, at(s.Addr())), settings())
	b := redis.New(dial(t, func(c *store.Config) { at(s.Addr())(c); c.Prefix = "spillway:1" }), settings())
	e := cachetest.NewEntry("a", time.Now())
	put(t, a, e)
	if _, err := b.Get(t.Context(), e.Key, time.Now()); !errors.Is(err, cache.ErrMiss) {
		t.Errorf("Get with another prefix = %v", err)
	}
	put(t, b, e)
	if n, err := a.Purge(t.Context(), cache.Filter{}); n != 1 || err != nil {
		t.Errorf("Purge = %d, %v, want 1", n, err)
	}
	if _, err := b.Get(t.Context(), e.Key, time.Now()); err != nil {
		t.Errorf("after a purge of another prefix Get = %v", err)
	}
}

func TestOneBadEntryDoesNotKeepOutOthers(t *testing.T) {
	_, l := server(t)
	good, bad, also := cachetest.NewEntry("good", time.Now()), cachetest.NewEntry("bad", time.Now()), cachetest.NewEntry("also good", time.Now())
	bad.Answer.Marks[0].End = 1 << 30
	if err := l.Put(t.Context(), []*cache.Entry{good, bad, also}); err == nil || !strings.Contains(err.Error(), "put 1 of 3") {
		t.Errorf("Put = %v", err)
	}
	for _, e := range []*cache.Entry{good, also} {
		if _, err := l.Get(t.Context(), e.Key, time.Now()); err != nil {
			t.Error(err)
		}
	}
}

func ExampleLevel() {
	c := store.Default()
	c.Addresses = []string{"localhost:6379"}
	client, err := store.New(c, testkit.Discard())
	if err != nil {
		fmt.Println(err)
		return
	}
	l := redis.New(client, cache.Default().Redis) // app runs the client: go client.Run(ctx)
	_, err = l.Get(context.Background(), cachetest.Key("a"), time.Now())
	fmt.Println(errors.Is(err, store.ErrNotConnected))
	// Output: true
}

// bench is a level in a server on loopback, and entries with a stream of 40 events.
func bench(b *testing.B, n int) (*redis.Level, []*cache.Entry) {
	_, l := server(b)
	var all []*cache.Entry
	for i := range n {
		e := cachetest.NewEntry(fmt.Sprint(i), time.Now())
		for j := range 40 {
			cachetest.Event(e, 20*time.Millisecond, fmt.Sprintf(
				`data: {"id":"chatcmpl-12345","object":"chat.completion.chunk","created":1763640000,"model":"m","choices":[{"index":0,"delta":{"content":" word%d"},"finish_reason":null}]}`+"\n\n", j*7919%1000))
		}
		all = append(all, e)
	}
	return l, all
}

func BenchmarkGet(b *testing.B) {
	l, all := bench(b, 64)
	put(b, l, all...)
	get := func(i int) {
		if _, err := l.Get(context.Background(), all[i%len(all)].Key, time.Now()); err != nil {
			b.Error(err)
		}
	}
	b.Run("one caller", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			get(i)
		}
	})
	b.Run("64 callers", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				get(i)
			}
		})
	})
}

func BenchmarkPut(b *testing.B) {
	l, all := bench(b, 64)
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				put(b, l, all[:n]...)
			}
		})
	}
}
