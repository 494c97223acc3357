package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	"github.com/spillway/spillway/internal/cache/redis"
	store "github.com/spillway/spillway/internal/store/redis"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// little is the time of one look-up, and far more than it is what ends the test.
const (
	little  = 5 * time.Millisecond
	farMore = 3 * time.Second
)

// entries are n entries with bodies of a size.
func entries(n, size int) (all []*cache.Entry) {
	now := time.Now()
	for i := range n {
		e := cachetest.NewEntry(fmt.Sprint(i), now)
		e.Hits = 0 // so that it is listed
		all = append(all, cachetest.OnePiece(e, cachetest.Noise(uint64(i), size)))
	}
	return all
}

// judge looks every entry up, within a time for each, and counts what comes: the
// very entry, a miss, or a fault. Anything else, and an answer that is late, fails
// the test.
func judge(t *testing.T, l cache.Level, all []*cache.Entry, within time.Duration) (hits, misses, faults int) {
	t.Helper()
	for _, e := range all {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		began := time.Now()
		got, err := l.Get(ctx, e.Key, time.Now())
		cancel()
		if took := time.Since(began); took > within+farMore {
			t.Errorf("a look-up with %v of time takes %v", within, took)
		}
		switch {
		case err == nil && cachetest.Diff(e, got) == "":
			hits++
		case err == nil:
			t.Fatalf("Get = another entry (-want +got):\n%s", cachetest.Diff(e, got))
		case got != nil:
			t.Fatalf("Get = an entry and %v", err)
		case errors.Is(err, cache.ErrMiss):
			misses++
		default:
			faults++
		}
	}
	return hits, misses, faults
}

// wantHits waits until all entries are found with little time.
func wantHits(t *testing.T, l cache.Level, all []*cache.Entry) {
	t.Helper()
	testkit.Eventually(t, "every look-up is a hit again", func() bool {
		hits, misses, _ := judge(t, l, all, time.Second)
		if misses > 0 {
			t.Fatalf("%d of %d entries are lost", misses, len(all))
		}
		return hits == len(all)
	})
}

// proxied is a level behind a network with faults.
func proxied(t *testing.T) (*redistest.Server, *faultnet.Proxy, *redis.Level) {
	t.Helper()
	s := redistest.Start(t)
	p := faultnet.New(t, s.Addr())
	return s, p, redis.New(dial(t, at(p.Addr())), settings())
}

// refill waits until an empty server takes the first n entries, and checks that it
// has those and no others.
func refill(t *testing.T, l cache.Level, all []*cache.Entry, n int) {
	t.Helper()
	testkit.Eventually(t, "the level takes entries again", func() bool { return l.Put(t.Context(), all[:n]) == nil })
	testkit.Eventually(t, "look-ups go well again", func() bool {
		hits, misses, faults := judge(t, l, all, time.Second)
		if hits > n || misses > len(all)-n {
			t.Fatalf("%d hits, %d misses, %d faults, want %d hits", hits, misses, faults, n)
		}
		return faults == 0
	})
}

func TestKilledServer(t *testing.T) {
	s, l := server(t)
	all := entries(20, 1000)
	put(t, l, all...)
	s.Kill()
	if hits, misses, faults := judge(t, l, all, little); hits+misses > 0 {
		t.Errorf("of a dead server: %d hits, %d misses, %d faults, want faults", hits, misses, faults)
	}
	if err := l.Put(t.Context(), all); err == nil {
		t.Error("Put to a dead server goes well")
	}
	if _, err := l.Purge(t.Context(), cache.Filter{}); err == nil {
		t.Error("Purge of a dead server goes well")
	}
	if _, err := l.Census(t.Context()); err == nil {
		t.Error("Census of a dead server goes well")
	}
	s.Restart() // empty
	refill(t, l, all, 10)
}

func TestSlowAndSilentNetwork(t *testing.T) {
	s, p, l := proxied(t)
	all := entries(20, 1000)
	put(t, l, all...)
	for name, fault := range map[string]func(){
		"slow":    func() { p.Set(faultnet.Faults{Delay: 100 * time.Millisecond}) },
		"narrow":  func() { p.Set(faultnet.Faults{Bandwidth: 2000}) },
		"silent":  func() { p.Set(faultnet.Faults{BlackHole: true}) },
		"refused": func() { p.Set(faultnet.Faults{Refuse: true}); p.Reset() },
		"stopped": s.Stop,
	} {
		t.Run(name, func(t *testing.T) {
			fault()
			if hits, misses, faults := judge(t, l, all, little); faults != len(all) {
				t.Errorf("%d hits, %d misses, %d faults, want faults", hits, misses, faults)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*little)
			defer cancel()
			began := time.Now()
			if err := l.Put(ctx, all); err == nil {
				t.Error("Put goes well")
			}
			if took := time.Since(began); took > farMore {
				t.Errorf("Put with %v of time takes %v", 10*little, took)
			}
			p.Set(faultnet.Faults{})
			s.Continue()
			wantHits(t, l, all)
		})
	}
}

func TestConnectionsCutInTheMiddle(t *testing.T) {
	_, p, l := proxied(t)
	all := entries(20, 20_000)
	put(t, l, all...)
	for _, after := range []int{1, 5, 1000, 19_000, 20_100, 35_000} {
		p.Set(faultnet.Faults{CutAfter: after})
		judge(t, l, all, 100*time.Millisecond)
		p.Set(faultnet.Faults{})
		wantHits(t, l, all)
	}
	for range 10 { // while many look up
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { judge(t, l, all, 100*time.Millisecond) })
		}
		p.Reset()
		wg.Wait()
	}
	wantHits(t, l, all)
}

func TestFullServerThatRefuses(t *testing.T) {
	s, l := server(t, "--maxmemory", "6mb", "--maxmemory-policy", "noeviction")
	all := entries(400, 20_000)
	var refused error
	for _, e := range all {
		if err := l.Put(t.Context(), []*cache.Entry{e}); err != nil {
			refused = err
		}
	}
	if refused == nil || !strings.Contains(refused.Error(), "OOM") {
		t.Fatalf("400 entries of 20 kB in 6 MB: Put = %v, want OOM", refused)
	}
	hits, misses, faults := judge(t, l, all, time.Second)
	if faults > 0 || hits < 50 || misses < 50 {
		t.Errorf("%d hits, %d misses, %d faults, want hits and misses", hits, misses, faults)
	}
	if got := withoutEnd(s); len(got) > 0 {
		t.Errorf("keys without an end: %q", got)
	}
	if n, err := l.Purge(t.Context(), cache.Filter{}); n != hits || err != nil {
		t.Errorf("Purge of a full server = %d, %v, want %d", n, err, hits)
	}
	testkit.Eventually(t, "there is room again", func() bool { return l.Put(t.Context(), all[:1]) == nil })
}

func TestFullServerThatForgets(t *testing.T) {
	s, l := server(t, "--maxmemory", "6mb", "--maxmemory-policy", "volatile-ttl", "--maxmemory-samples", "10")
	s.Do("SET", "another program's", "1")
	all := entries(400, 20_000)
	soon, late := all[:200], all[200:]
	for _, e := range late {
		e.Stale = e.Stale.Add(1000 * time.Hour)
	}
	put(t, l, late[:100]...)
	for _, e := range append(soon, late[100:]...) {
		if err := l.Put(t.Context(), []*cache.Entry{e}); err != nil {
			t.Fatalf("Put to a full server = %v, want room for it", err)
		}
	}
	early, _, faults := judge(t, l, soon, time.Second)
	stay, _, more := judge(t, l, late, time.Second)
	if faults+more > 0 || early*4 > stay || stay < 50 {
		t.Errorf("%d entries that end soon and %d that end late are left, %d faults, want nearly all of them late", early, stay, faults+more)
	}
	if s.Do("GET", "another program's") != "1" {
		t.Error("what another program keeps without an end is forgotten")
	}
}

func TestFailover(t *testing.T) {
	s, p, l := proxied(t)
	replica := s.Replica()
	all := entries(20, 1000)
	put(t, l, all...)
	testkit.Eventually(t, "the replica has all", func() bool { return replica.Do("DBSIZE") == "21" })
	replica.Promote()
	s.Follow(replica)
	if err := l.Put(t.Context(), all); err == nil || !strings.Contains(err.Error(), "READONLY") {
		t.Errorf("Put to what is no master any more = %v, want READONLY", err)
	}
	if _, err := l.Purge(t.Context(), cache.Filter{}); err == nil {
		t.Error("Purge of what is no master any more goes well")
	}
	judge(t, l, all, time.Second) // the old master may have them, or be empty
	p.Retarget(replica.Addr())
	p.Reset()
	wantHits(t, l, all)
	put(t, l, all...)
	replica.Do("PING")
}

func TestNodeOfAClusterDies(t *testing.T) {
	c := redistest.StartCluster(t)
	l := redis.New(dial(t, func(s *store.Config) { s.Addresses, s.Cluster = c.Addrs(), true }), settings())
	all := entries(60, 1000)
	put(t, l, all...)
	c.Nodes[1].Kill()
	testkit.Eventually(t, "the others answer", func() bool {
		hits, misses, faults := judge(t, l, all, 50*time.Millisecond)
		return hits > 20 && faults > 5 && misses == 0
	})
	if err := l.Put(t.Context(), all); err == nil {
		t.Error("Put of entries whose node is dead goes well")
	}
	if n, err := l.Purge(t.Context(), cache.Filter{Scope: "tenant"}); err == nil || n < 20 {
		t.Errorf("Purge with a dead node = %d, %v, want what the others have, and an error", n, err)
	}
}

// bulk is a value of the protocol.
func bulk(b []byte) []byte { return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(b), b) }

func TestGarbageOnTheWire(t *testing.T) {
	_, p, l := proxied(t)
	all := entries(20, 1000)
	put(t, l, all...)
	other, err := cachetest.NewEntry("another's secret", time.Now()).Encode(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	for name, garbage := range map[string]string{
		"http":                 "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
		"zeros":                strings.Repeat("\x00", 100),
		"noise":                string(cachetest.Noise(1, 1000)),
		"line ends":            "\r\n\r\n\r\n",
		"a number":             ":1\r\n",
		"a word":               "+OK\r\n",
		"a list":               "*2\r\n$1\r\na\r\n$1\r\nb\r\n",
		"a push":               ">2\r\n$7\r\nmessage\r\n$1\r\nb\r\n",
		"a text":               "$5\r\nhello\r\n",
		"an empty text":        "$0\r\n\r\n",
		"another key's entry":  string(bulk(other)),
		"half an entry":        string(bulk(other[:len(other)/2])),
		"a text that is cut":   "$500\r\nhello",
		"a length too great":   "$99999999\r\nhello",
		"a length below zero":  "$-5\r\nhello",
		"an endless list":      "*99999999\r\n",
		"many nested lists":    strings.Repeat("*1\r\n", 10_000),
		"loading":              "-LOADING Redis is loading the dataset in memory\r\n",
		"moved":                "-MOVED 1 127.0.0.1:1\r\n",
		"ask":                  "-ASK 1 127.0.0.1:1\r\n",
		"cluster down":         "-CLUSTERDOWN The cluster is down\r\n",
		"not allowed":          "-NOPERM this user has no permissions to run the 'hget' command\r\n",
		"an error of no words": "-\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			p.Set(faultnet.Faults{Garbage: []byte(garbage)})
			if hits, misses, _ := judge(t, l, all, 10*time.Millisecond); hits+misses > 0 {
				t.Errorf("%d hits, %d misses, want faults", hits, misses)
			}
			p.Set(faultnet.Faults{})
			p.Reset()
			wantHits(t, l, all)
		})
	}
}

func TestGarbageUnderTheKey(t *testing.T) {
	s, l := server(t)
	e := cachetest.NewEntry("a", time.Now())
	key := name(e.Key)
	put(t, l, e)
	data := s.Do("HGET", key, "data")
	other, err := cachetest.NewEntry("another's secret", time.Now()).Encode(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	flipped := []byte(data)
	flipped[len(flipped)/2] ^= 0x10
	for name, set := range map[string][]string{
		"a string":            {"SET", key, data},
		"a list":              {"LPUSH", key, data},
		"garbage":             {"HSET", key, "data", "garbage"},
		"nothing":             {"HSET", key, "data", ""},
		"cut":                 {"HSET", key, "data", data[:len(data)-1]},
		"a bit flipped":       {"HSET", key, "data", string(flipped)},
		"longer":              {"HSET", key, "data", data + "\n"},
		"another key's entry": {"HSET", key, "data", string(other)},
	} {
		t.Run(name, func(t *testing.T) {
			s.Do("DEL", key)
			s.Do(set...)
			if got, err := l.Get(t.Context(), e.Key, time.Now()); err == nil || errors.Is(err, cache.ErrMiss) || got != nil {
				t.Errorf("Get = %v, %v, want a fault", got, err)
			}
			put(t, l, e)
			if hits, _, _ := judge(t, l, []*cache.Entry{e}, time.Second); hits != 1 {
				t.Error("an entry does not replace it")
			}
			if s.Do("TTL", key) == "-1" {
				t.Error("the key has no end")
			}
		})
	}
	s.Do("DEL", key)
	s.Do("HSET", key, "scope", "tenant") // a hash of somebody else
	if _, err := l.Get(t.Context(), e.Key, time.Now()); !errors.Is(err, cache.ErrMiss) {
		t.Errorf("Get of a hash without data = %v, want a miss", err)
	}
	s.Do("SET", "spillway:1:answer:x", "no hash")
	if n, err := l.Purge(t.Context(), cache.Filter{Scope: "tenant"}); n != 1 || err != nil {
		t.Errorf("Purge of a scope = %d, %v, want 1", n, err)
	}
	if n, err := l.Purge(t.Context(), cache.Filter{}); n != 1 || err != nil {
		t.Errorf("Purge of all = %d, %v, want 1: garbage goes too", n, err)
	}
	s.Do("SET", "spillway:1:questions", "no list")
	s.Do("SET", "spillway:1:topics", "no set")
	put(t, l, e) // what is for people does not keep answers out
	if err := l.Topics(t.Context(), []redis.Topic{{Demand: 1}}); err == nil || !strings.Contains(err.Error(), "WRONGTYPE") {
		t.Errorf("Topics = %v, want WRONGTYPE", err)
	}
}

// TestKilledDuringAFill ends connections and servers while large batches are on
// their way: what is there afterwards is whole, and has an end.
func TestKilledDuringAFill(t *testing.T) {
	s, p, l := proxied(t)
	all := entries(16, 40_000)
	old := entries(16, 20_000) // what is there before, under the same keys
	kept, lost := 0, 0
	for round := range 5 {
		p.Set(faultnet.Faults{})
		testkit.Eventually(t, "the entries before are written", func() bool { return l.Put(t.Context(), old) == nil })
		p.Set(faultnet.Faults{Bandwidth: 2 << 20})
		filled := make(chan error, 1)
		go func() { filled <- l.Put(t.Context(), all) }()
		timer := time.NewTimer(time.Duration(round*30) * time.Millisecond)
		<-timer.C
		p.Reset()
		if err := <-filled; err == nil {
			kept++
		} else {
			lost++
		}
		p.Set(faultnet.Faults{})
		for i, e := range all {
			var got *cache.Entry
			testkit.Eventually(t, "look-ups are hits again", func() bool {
				var err error
				if got, err = l.Get(t.Context(), e.Key, time.Now()); errors.Is(err, cache.ErrMiss) {
					t.Fatalf("round %d: an entry is lost", round)
				}
				return err == nil
			})
			if cachetest.Diff(e, got) != "" && cachetest.Diff(old[i], got) != "" {
				t.Fatalf("round %d: neither the old nor the new entry:\n%s", round, cachetest.Diff(e, got))
			}
		}
		if got := withoutEnd(s); len(got) > 0 {
			t.Fatalf("keys without an end: %q", got)
		}
	}
	if lost == 0 {
		t.Errorf("%d of 5 fills went well: nothing was shown", kept)
	}
}

func TestServerKilledDuringAFill(t *testing.T) {
	s, l := server(t)
	all := entries(64, 10_000)
	for range 4 {
		filled := make(chan struct{})
		go func() {
			defer close(filled)
			for l.Put(t.Context(), all) == nil { // until the server dies
			}
		}()
		judge(t, l, all, time.Second)
		s.Kill()
		<-filled
		s.Restart()
		refill(t, l, all, 32)
	}
}

func TestClosedClient(t *testing.T) {
	s := redistest.Start(t)
	client, stop := start(t, at(s.Addr()))
	l := redis.New(client, settings())
	testkit.Eventually(t, "Redis answers", func() bool { return client.Err() == nil })
	all := entries(5, 1000)
	put(t, l, all...)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				judge(t, l, all, time.Second)
			}
		})
	}
	stop()
	wg.Wait()
	if _, err := l.Get(t.Context(), all[0].Key, time.Now()); !errors.Is(err, store.ErrNotConnected) {
		t.Errorf("Get = %v, want %v", err, store.ErrNotConnected)
	}
	if err := l.Put(t.Context(), all); !errors.Is(err, store.ErrNotConnected) {
		t.Errorf("Put = %v, want %v", err, store.ErrNotConnected)
	}
	if _, err := l.Purge(t.Context(), cache.Filter{}); !errors.Is(err, store.ErrNotConnected) {
		t.Errorf("Purge = %v, want %v", err, store.ErrNotConnected)
	}
	if err := l.Put(t.Context(), nil); err != nil {
		t.Errorf("Put of nothing = %v", err)
	}
}

func TestExpiryByTheServersClock(t *testing.T) {
	s, l := server(t)
	e := generated("a")
	e.Stale = time.Now().Add(150 * time.Millisecond).Truncate(time.Millisecond)
	put(t, l, e)
	testkit.Eventually(t, "Redis forgets the entry by itself", func() bool { return s.Do("EXISTS", name(e.Key)) == "0" })
	if time.Now().Before(e.Stale) {
		t.Error("it is gone before its time")
	}
	if n := s.Do("LLEN", "spillway:1:questions"); n != "1" {
		t.Errorf("%s questions, want 1", n)
	}
}
