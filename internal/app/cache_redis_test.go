package app_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// redisAt is the section of a store with a Redis.
func redisAt(addr string) string {
	return "store: {redis: {addresses: [\"" + addr + "\"], timeout: 300ms, connect_timeout: 500ms}}"
}

// late is how many look-ups a gateway went on without.
const late = `spillway_cache_trouble_total{reason="late"}`

func TestRedisFailsAndComesBack(t *testing.T) {
	for name, fault := range map[string]func(b *bed, s *redistest.Server, p *faultnet.Proxy) (begin, end func()){
		"killed": func(_ *bed, s *redistest.Server, _ *faultnet.Proxy) (begin, end func()) { return s.Kill, s.Restart },
		"stopped": func(_ *bed, s *redistest.Server, _ *faultnet.Proxy) (begin, end func()) {
			return s.Stop, s.Continue
		},
		"refuses connections": func(_ *bed, _ *redistest.Server, p *faultnet.Proxy) (begin, end func()) {
			return func() { p.Set(faultnet.Faults{Refuse: true}); p.Reset() }, func() { p.Set(faultnet.Faults{}) }
		},
		"says nothing": func(_ *bed, _ *redistest.Server, p *faultnet.Proxy) (begin, end func()) {
			return func() { p.Set(faultnet.Faults{BlackHole: true}) }, func() { p.Set(faultnet.Faults{}) }
		},
		"full": func(_ *bed, s *redistest.Server, _ *faultnet.Proxy) (begin, end func()) {
			return func() {
					s.Do("CONFIG", "SET", "maxmemory-policy", "noeviction")
					s.Do("CONFIG", "SET", "maxmemory", "1")
				},
				func() { s.Do("CONFIG", "SET", "maxmemory", "0") }
		},
		"loses all": func(b *bed, s *redistest.Server, p *faultnet.Proxy) (begin, end func()) {
			return func() { s.Do("FLUSHALL"); p.Reset(); s.Stop() }, s.Continue
		},
		"cut in the middle": func(_ *bed, _ *redistest.Server, p *faultnet.Proxy) (begin, end func()) {
			return func() { p.Set(faultnet.Faults{CutAfter: 700}) }, func() { p.Set(faultnet.Faults{}) }
		},
		"fails over": func(b *bed, s *redistest.Server, p *faultnet.Proxy) (begin, end func()) {
			replica := s.Replica()
			return func() {
				testkit.Eventually(b.T, "the replica has it all", func() bool { return replica.Do("DBSIZE") == s.Do("DBSIZE") })
				s.Kill()
			}, func() { replica.Promote(); p.Retarget(replica.Addr()) }
		},
		"is made a replica": func(b *bed, s *redistest.Server, p *faultnet.Proxy) (begin, end func()) {
			replica := s.Replica()
			return func() {
				testkit.Eventually(b.T, "the replica has it all", func() bool { return replica.Do("DBSIZE") == s.Do("DBSIZE") })
				replica.Promote()
				s.Follow(replica)
			}, func() { p.Retarget(replica.Addr()); p.Reset() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			p := faultnet.New(t, s.Addr())
			b := newBed(t, "redis", redisAt(p.Addr()))
			b.through(fault(b, s, p))
		})
	}
}

// TestASlowRedisCostsNoMoreThanTheTimeout: beyond it a look-up is given up.
func TestASlowRedisCostsNoMoreThanTheTimeout(t *testing.T) {
	for _, delay := range []time.Duration{3 * time.Millisecond, 20 * time.Millisecond, 200 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			p := faultnet.New(t, s.Addr())
			b := newBed(t, "redis", redisAt(p.Addr()))
			b.through(func() { p.Set(faultnet.Faults{Delay: delay}) }, func() {
				if b.asker.number(late) == 0 {
					t.Error("no look-up was late")
				}
				p.Set(faultnet.Faults{})
			})
		})
	}
}

// TestALateAnswerIsNotPutOverANewerOne: what Redis says when the request has gone on
// is for the next request, unless that has something newer.
func TestALateAnswerIsNotPutOverANewerOne(t *testing.T) {
	s := redistest.Start(t)
	p := faultnet.New(t, s.Addr())
	b := newBed(t, "redis", redisAt(p.Addr()))
	b.works("before")
	known := b.fill(4)
	p.Set(faultnet.Faults{Delay: 20 * time.Millisecond})
	for _, q := range known {
		first := b.asker.wants(q, "")
		if first.n != 2 { // the machine was so slow that the look-up was not late
			continue
		}
		due := time.Now().Add(50 * time.Millisecond) // nothing else to wait for: it would be put into memory now
		testkit.Eventually(t, "some time has passed", func() bool { return time.Now().After(due) })
		if got := b.asker.wants(q, ""); got.n != first.n {
			t.Errorf("%s: first generation %d, then %d", q, first.n, got.n)
		}
	}
}

func TestGarbageOnTheWireOfRedisIsNoAnswer(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := faultnet.New(t, s.Addr())
	b := newBed(t, "redis", redisAt(p.Addr()))
	b.works("before")
	other := b.fill(1)[0]
	entry := s.Do("HGET", keyOf(s, other), "data")
	for name, garbage := range map[string]string{
		"noise":                  "\x00\xff\x17 garbage \r\n\r\n",
		"a status":               "+OK\r\n",
		"nothing":                "$-1\r\n",
		"a number":               ":7\r\n",
		"a text":                 "$5\r\nhello\r\n",
		"a list":                 "*2\r\n$5\r\nhello\r\n$5\r\nworld\r\n",
		"an error":               "-ERR no\r\n",
		"a page of HTTP":         "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
		"another answer's bytes": fmt.Sprintf("$%d\r\n%s\r\n", len(entry), entry),
		"an endless length":      "$9000000000\r\nhello\r\n",
	} {
		known := b.fill(1)
		p.Set(faultnet.Faults{Garbage: []byte(garbage)})
		for _, q := range append(known, b.fresh(1)...) { // fewer faults than those for which the level rests
			for _, more := range []string{streamed, ""} {
				if got := b.asker.wants(q, more); got.level() == "redis" {
					t.Errorf("%s: a hit of level redis", name)
				}
			}
		}
		p.Set(faultnet.Faults{})
		p.Reset()
		b.works("behind " + name)
	}
}

// keyOf is the name of the answer to a question in Redis.
func keyOf(s *redistest.Server, question string) string {
	for name := range strings.SplitSeq(s.Do("KEYS", "spillway:1:answer:*"), "\n") {
		if name != "" && s.Do("TYPE", name) == "hash" && s.Do("HGET", name, "question") == question {
			return name
		}
	}
	return ""
}

func TestGarbageUnderTheKeysOfRedisIsAMiss(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	b := newBed(t, "redis", redisAt(s.Addr()))
	b.works("before")
	known := b.fill(9)
	data := make([]string, len(known))
	for i, q := range known {
		data[i] = s.Do("HGET", keyOf(s, q), "data")
	}
	flipped := []byte(data[2])
	flipped[len(flipped)/2] ^= 1
	for i, garbage := range []string{
		data[8], data[1][:len(data[1])-1], string(flipped), "", "garbage", data[5] + "x", strings.Repeat("\x00", len(data[6])),
	} {
		s.Do("HSET", keyOf(s, known[i]), "data", garbage)
	}
	list := keyOf(s, known[7])
	s.Do("DEL", list)
	s.Do("LPUSH", list, "not", "a hash")
	for i, q := range known[:8] {
		if got := b.asker.wants(q, streamed); got.cache() != "miss" || got.n != 2 {
			t.Errorf("garbage %d: got %v of generation %d, want a new answer", i, got.header, got.n)
		}
	}
	// What is there was put in order by the new answers, for the next gateway.
	testkit.Eventually(t, "the answers are in Redis again", func() bool {
		return !slices.ContainsFunc(known[:8], func(q string) bool { return keyOf(s, q) == "" || len(s.Do("HGET", keyOf(s, q), "data")) < 100 })
	})
	b.asker = newRig(t, strings.Replace(b.config(redisAt(s.Addr())), "cache: {", "cache: {lookup_timeout: 1s, ", 1))
	b.works("with a third gateway")
	for i, q := range known {
		if got := b.asker.wants(q, ""); got.level() != "redis" || got.n != 2 && i < 8 {
			t.Errorf("%d: got %v of generation %d, want the new one from Redis", i, got.header, got.n)
		}
	}
}

// TestTwinsOfALookUpGetWhatTheyAskFor: who wants a new answer gets one, though a twin
// is about to get a kept one.
func TestTwinsOfALookUpGetWhatTheyAskFor(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	p := faultnet.New(t, s.Addr())
	b := newBed(t, "redis", redisAt(p.Addr()))
	b.asker.reload(strings.Replace(b.config(redisAt(p.Addr())), "cache: {", "cache: {lookup_timeout: 1s, ", 1))
	b.works("before")
	known := b.fill(2)
	p.Set(faultnet.Faults{Delay: 30 * time.Millisecond}) // of 100 ms that the last level has
	for i, control := range []string{"no-cache", "max-age=0"} {
		asked := b.asker.number(`spillway_cache_lookups_total{level="memory",result="miss"}`)
		first := make(chan reply, 1)
		go func() { first <- b.asker.wants(known[i], streamed) }()
		testkit.Eventually(t, "the first asks Redis", func() bool {
			return b.asker.number(`spillway_cache_lookups_total{level="memory",result="miss"}`) > asked
		})
		got := b.asker.wants(known[i], "", "Cache-Control: "+control)
		if got.n < 2 || got.cache() == "hit" { // the third, where Redis has been too late for the first request
			t.Errorf("%s: got %v of generation %d, want a new answer", control, got.header, got.n)
		}
		<-first // right in any case: the kept one, or a new one where Redis took its time
	}
}
