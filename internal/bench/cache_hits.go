package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Constants of the hits: as many questions as are asked of each level, an answer's
// tokens, and the load of the throughput.
const (
	hitQuestions = 1000
	hitTokens    = 40
	hitRounds    = 5
	hitConns     = 16
	hitFillConns = 8
	hitStreams   = 20
	hitDirect    = 20
)

// The requirements: half of the hits of a level within so many microseconds at the
// client, and so many hits a second on the machine that the client runs on too.
const (
	hitMemoryP50 = 150.0
	hitRedisP50  = 600.0
	hitRate      = 20_000.0
)

// playHits measures what a hit costs at the client, on each level, beside the engine
// itself and beside a bare GET of Redis.
func playHits(ctx context.Context, r *rig) error {
	redis, err := startRedis(ctx, r)
	if err != nil {
		return err
	}
	if redis != nil {
		defer redis.stop()
	}
	if r.engines, err = startEngines(ctx, r.Binary, 1, r.Err, "--step-base", "1ms", "--step-per-seq", "10us", "--step-per-prompt-token", "1us"); err != nil {
		return err
	}
	direct, err := askAll(ctx, r.engines.urls()[0], hitDirect, 1, func(int, answered) error { return nil })
	if err != nil {
		return err
	}
	r.row("engine, direct (40 tokens at 1 ms, one piece)", direct)
	levels := []struct{ name, config string }{{"sql", ""}}
	if redis != nil {
		levels = append(levels, struct{ name, config string }{"redis", fmt.Sprintf("  redis: {addresses: [%q]}\n", redis.at)})
	}
	for _, l := range levels {
		if err := r.playLevel(ctx, l.name, l.config); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if redis == nil {
		return nil
	}
	bare, err := redisGets(ctx, redis.at)
	if err != nil {
		return err
	}
	r.row("Redis GET of 4 KiB, bare", bare)
	return nil
}

// row prints how long questions took.
func (r *rig) row(name string, t times) {
	r.say("%-42s p50 %9.1f us   p90 %9.1f us   p99 %9.1f us   (%d)", name, t.at(0.5), t.at(0.9), t.at(0.99), len(t))
}

// cacheConfig is a gateway with one slower level.
func cacheConfig(g *gatewayProcess, state, level, store string, urls []string) error {
	return replaceFile(g.config, fmt.Appendf(nil, `usage: {access_log: "off"}
telemetry: {log: {level: error}}
cache: {sql: {enabled: %t}, lookup_timeout: 100ms}
store:
  directory: %q
%sfleet:
  regions:
    - name: eu
      pools:
        - name: gpu
          models: [%s]
          %s
`, level == "sql", state, store, model, list("instances", urls)))
}

// playLevel fills one slower level, measures memory, starts the gateway anew, so that
// its memory is empty, and measures the level.
func (r *rig) playLevel(ctx context.Context, level, store string) error {
	g, err := newGatewayProcess(r)
	if err != nil {
		return err
	}
	if err := cacheConfig(g, r.path("state-"+level), level, store, r.engines.urls()); err != nil {
		return err
	}
	if err := g.launch(ctx); err != nil {
		return err
	}
	r.gateway = g
	defer r.stopGateway()
	if _, err := askAll(ctx, g.url, hitQuestions, hitFillConns, expectCache("miss")); err != nil {
		return err
	}
	if err := settled(ctx, func() (bool, error) {
		m, err := g.metrics(ctx, g.admin)
		return m[fmt.Sprintf(`spillway_cache_fills_total{level=%q,result="written"}`, level)] >= hitQuestions, err
	}); err != nil {
		return err
	}
	streams, err := r.streams(ctx, "memory", nil)
	if err != nil {
		return err
	}
	if level == "sql" {
		if err := r.playMemory(ctx); err != nil {
			return err
		}
	}
	g.stop()
	if err := g.launch(ctx); err != nil {
		return err
	}
	again, err := r.streams(ctx, level, streams)
	if err != nil {
		return err
	}
	r.expect("streams of "+level+" that are the same bytes as those of memory", float64(again.same), Exactly, hitStreams, "")
	took, err := askAll(ctx, g.url, hitQuestions, 1, func(i int, a answered) error {
		if i < hitStreams {
			return nil // asked as a stream already: it is in memory now
		}
		return expectCache("hit; level="+level)(i, a)
	})
	if err != nil {
		return err
	}
	r.row("hit in "+level, took[hitStreams:])
	if level == "redis" {
		r.expect("hit in redis, p50 at the client", took[hitStreams:].at(0.5), AtMost, hitRedisP50, "us")
	}
	return nil
}

// stopGateway ends the gateway alone.
func (r *rig) stopGateway() {
	if r.gateway != nil {
		r.gateway.stop()
		r.gateway = nil
	}
}

// expectCache checks what the gateway says that its cache did.
func expectCache(want string) func(int, answered) error {
	return func(i int, a answered) error {
		if !strings.HasPrefix(a.cache, want) {
			return fmt.Errorf("question %d: X-Spillway-Cache is %q, not %q", i, a.cache, want)
		}
		return nil
	}
}

// seen are streams as a level gave them.
type seen struct {
	bodies [hitStreams][]byte
	same   int // as those before
}

// streams asks the first questions as streams, which a level must have.
func (r *rig) streams(ctx context.Context, level string, before *seen) (*seen, error) {
	a, err := newAsker(ctx, r.gateway.url)
	if err != nil {
		return nil, err
	}
	defer a.close()
	s := new(seen)
	for i := range s.bodies {
		got, err := a.ask(cacheQuestion(i, hitTokens, true))
		if err == nil && !got.whole(true, hitTokens) {
			err = errors.New("not a whole stream")
		}
		if err == nil {
			err = expectCache("hit; level="+level)(i, got)
		}
		if err != nil {
			return nil, fmt.Errorf("stream %d: %w", i, err)
		}
		s.bodies[i] = got.body
		if before != nil && bytes.Equal(got.body, before.bodies[i]) {
			s.same++
		}
	}
	return s, nil
}

// playMemory measures hits in memory: one client's, and as many as there can be.
func (r *rig) playMemory(ctx context.Context) error {
	var took times
	for range hitRounds {
		t, err := askAll(ctx, r.gateway.url, hitQuestions, 1, expectCache("hit; level=memory"))
		if err != nil {
			return err
		}
		took = append(took, t...)
	}
	r.row("hit in memory", took)
	r.expect("hit in memory, p50 at the client", took.at(0.5), AtMost, hitMemoryP50, "us")
	before, err := r.gateway.footprint(ctx)
	if err != nil {
		return err
	}
	length := r.Duration
	var n atomic.Int64
	end := time.Now().Add(length)
	errs := make([]error, hitConns)
	var wg sync.WaitGroup
	for c := range hitConns {
		wg.Go(func() { errs[c] = r.hammer(ctx, c, end, &n) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := r.gateway.footprint(ctx)
	if err != nil {
		return err
	}
	rate := float64(n.Load()) / length.Seconds()
	r.say("%d connections: %.0f hits/s, %.1f us of the gateway's processor time each", hitConns, rate, (after.processor-before.processor)*1e6/float64(max(n.Load(), 1)))
	r.expect("hits a second, client on the same machine", rate, AtLeast, hitRate, "")
	return nil
}

// hammer asks one connection's questions until the end.
func (r *rig) hammer(ctx context.Context, c int, end time.Time, n *atomic.Int64) error {
	a, err := newAsker(ctx, r.gateway.url)
	if err != nil {
		return err
	}
	defer a.close()
	question := cacheQuestion(c, hitTokens, false)
	for time.Now().Before(end) && ctx.Err() == nil {
		got, err := a.ask(question)
		if err == nil && !got.whole(false, hitTokens) {
			err = errors.New("not a whole answer")
		}
		if err == nil {
			err = expectCache("hit; level=memory")(c, got)
		}
		if err != nil {
			return err
		}
		n.Add(1)
	}
	return nil
}

// redisProcess is a Redis of the scenario's own.
type redisProcess struct {
	process
	at string // host:port
}

// startRedis starts a Redis, or says that there is none.
func startRedis(ctx context.Context, r *rig) (*redisProcess, error) {
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		if binary, err = exec.LookPath("valkey-server"); err != nil {
			r.say("neither redis-server nor valkey-server is here: the level in Redis is not measured")
			return nil, nil
		}
	}
	at, err := freeAddr()
	if err != nil {
		return nil, err
	}
	dir := r.path("redis")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(at)
	p := &redisProcess{at: at}
	p.process = process{name: "redis", binary: binary, errors: r.Err, args: []string{
		"--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--maxmemory", "256mb", "--maxmemory-policy", "volatile-ttl",
	}}
	return p, p.start(ctx, "Ready to accept connections")
}

// redisGets measures bare GETs of a value of about an answer's size, over one
// connection.
func redisGets(ctx context.Context, at string) (times, error) {
	const size = 4 << 10
	a, err := newAsker(ctx, at)
	if err != nil {
		return nil, err
	}
	defer a.close()
	if err := a.send(fmt.Appendf(nil, "*3\r\n$3\r\nSET\r\n$5\r\nbench\r\n$%d\r\n%s\r\n", size, bytes.Repeat([]byte{'x'}, size))); err != nil {
		return nil, err
	}
	if line, err := a.r.ReadString('\n'); err != nil || line != "+OK\r\n" {
		return nil, fmt.Errorf("SET: %q, %w", line, err)
	}
	took := make(times, hitQuestions)
	answer := make([]byte, size+2)
	for i := range took {
		start := time.Now()
		if err := a.send([]byte("*2\r\n$3\r\nGET\r\n$5\r\nbench\r\n")); err != nil {
			return nil, err
		}
		if _, err := a.r.ReadString('\n'); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(a.r, answer); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)
	}
	return took, nil
}
