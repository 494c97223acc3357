// Package redis keeps the buckets of limits in a Redis or Valkey that gateways share.
//
//	<prefix>:1:limit:{<prefix>}:<rule>-<what>:<key>   string       of requests and tokens: when the bucket is full,
//	                                                               in microseconds since 2024 on the server's clock
//	                                                  sorted set   of concurrency: a member for each that is under way,
//	                                                               the score is when it counts as lost
//	<prefix>:1:limit:{<prefix>}:gateways              sorted set   the gateways that live, likewise
//
// Every check is one script over all buckets of a request, on the server's own time
// (TIME), so clocks of gateways do not matter and nothing happens between the check and
// the charge. A script's keys must be on one server: the tag in braces puts all limits
// of a prefix into one slot of a cluster, and so on one of its nodes.
//
// Every key has an end: a bucket goes a second after it is full, since a full bucket is
// as good as none; what is under way counts for half a minute beyond the last sign of
// its gateway.
//
// In the mode "lease" a gateway takes quota ahead and decides by itself while it lasts
// (lease.go). What is under way is asked of the server in both modes.
//
// Refunds, late charges and returns go through a bounded queue, in batches. What is
// dropped there, because the queue is full or the server is away, is counted; a lost
// refund errs on the strict side and is healed by time, a lost return by its expiry.
//
// Run owns one goroutine, the only one that writes batches, so that a sign of life of
// what is under way never overtakes its return. Locks are held for a few instructions,
// never across a call.
package redis

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/rueidis"

	"github.com/spillway/spillway/internal/limit"
	store "github.com/spillway/spillway/internal/store/redis"
)

// Bounds of the work in the background.
const (
	queueSize = 8192
	batchSize = 128
	batchTime = time.Second
	lastTime  = 200 * time.Millisecond // for what is left when Run ends
)

// How long a sign of life holds, and how often it is given. Gateways beat once a
// second.
const (
	heldLife    = 30 * time.Second
	heldEvery   = heldLife / 3
	gatewayLife = 5 * time.Second
)

// take checks all buckets and charges all or none. Six arguments a key: m, cost, room,
// size, how much more to take if there is room, how much to give back first; or h, the
// member, its life, the most at one time, and two that mean nothing. Times are in
// microseconds. It returns whether all were charged, and for each the state and how much
// more was taken. Half a microsecond is forgiven, which numbers lose on their way.
const take = `local t = redis.call('TIME')
local now = (t[1] - 1704067200) * 1000000 + t[2]
local state, ok = {}, 1
for i = 1, #KEYS do
	local a = i * 6 - 5
	if ARGV[a] == 'm' then
		local at = tonumber(redis.call('GET', KEYS[i]) or now) - ARGV[a + 5]
		if at < now then at = now end
		state[i] = at
		if at - now + ARGV[a + 2] > ARGV[a + 3] + 0.5 then ok = 0 end
	else
		redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
		state[i] = redis.call('ZCARD', KEYS[i])
		if state[i] >= tonumber(ARGV[a + 3]) then ok = 0 end
	end
end
local out = {tostring(ok)}
for i = 1, #KEYS do
	local a = i * 6 - 5
	local s, more = state[i], 0
	if ARGV[a] == 'm' then
		if ok == 1 then
			more = math.max(0, math.min(tonumber(ARGV[a + 4]), ARGV[a + 3] - (s - now) - ARGV[a + 1]))
			s = s + ARGV[a + 1] + more
		end
		if s > now and (ok == 1 or tonumber(ARGV[a + 5]) > 0) then
			redis.call('SET', KEYS[i], string.format('%.3f', s), 'PX', math.ceil((s - now) / 1000) + 1000)
		end
		s = s - now
	elseif ok == 1 then
		redis.call('ZADD', KEYS[i], now + ARGV[a + 2], ARGV[a + 1])
		redis.call('PEXPIRE', KEYS[i], math.ceil(ARGV[a + 2] / 1000) + 1000)
		s = s + 1
	end
	out[#out + 1] = string.format('%.3f', s)
	out[#out + 1] = string.format('%.3f', more)
end
return out`

// give changes buckets. Three arguments a key: m, the change, and one that means
// nothing; r and the member that returns; k, the member that lives, and for how long.
const give = `local t = redis.call('TIME')
local now = (t[1] - 1704067200) * 1000000 + t[2]
for i = 1, #KEYS do
	local a = i * 3 - 2
	if ARGV[a] == 'm' then
		local there, change = tonumber(redis.call('GET', KEYS[i]) or now), tonumber(ARGV[a + 1])
		local at = there + change
		if change > 0 then at = math.max(there, now) + change end
		if at > now then
			redis.call('SET', KEYS[i], string.format('%.3f', at), 'PX', math.ceil((at - now) / 1000) + 1000)
		else
			redis.call('DEL', KEYS[i])
		end
	elseif ARGV[a] == 'r' then
		redis.call('ZREM', KEYS[i], ARGV[a + 1])
	else
		redis.call('ZADD', KEYS[i], now + ARGV[a + 2], ARGV[a + 1])
		redis.call('PEXPIRE', KEYS[i], math.ceil(ARGV[a + 2] / 1000) + 1000)
	end
end
return #KEYS`

// beat tells that a gateway lives and counts those that do.
const beat = `local t = redis.call('TIME')
local now = (t[1] - 1704067200) * 1000000 + t[2]
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000))
return redis.call('ZCARD', KEYS[1])`

// Store keeps buckets in Redis. It implements limit.Store and prometheus.Collector.
type Store struct {
	client  *store.Client
	name    string // what every key begins with
	id      string // of this gateway
	lease   time.Duration
	ahead   bool // the mode is lease
	timeout time.Duration

	take, give, beat *rueidis.Lua

	leases   atomic.Uint64
	gateways atomic.Int64
	clock    limit.Clock
	credits  credits
	queue    chan change
	dropped  atomic.Uint64
	calls    atomic.Uint64
	local    atomic.Uint64 // requests that quota taken ahead was enough for

	mu struct {
		sync.Mutex
		held map[uint64]string // the keys of what is under way, by lease
	}
}

// change is one entry of the queue.
type change struct {
	kind byte // as in the script give
	key  string
	arg  string
}

// New returns a store over a client that somebody else runs. It starts nothing.
func New(client *store.Client, c limit.StoreConfig) *Store {
	var id [8]byte
	rand.Read(id[:]) // never fails
	s := &Store{
		client: client, name: client.Prefix() + ":1:limit:{" + client.Prefix() + "}:", id: hex.EncodeToString(id[:]),
		lease: c.Lease, ahead: c.Mode == limit.ModeLease, timeout: c.Timeout,
		take: rueidis.NewLuaScript(take), give: rueidis.NewLuaScript(give), beat: rueidis.NewLuaScript(beat),
		clock: limit.NewClock(), queue: make(chan change, queueSize),
	}
	s.gateways.Store(1)
	s.mu.held = make(map[uint64]string)
	s.credits.init()
	return s
}

// key is the name of a bucket.
func (s *Store) key(a *limit.Ask) string {
	b := make([]byte, 0, len(s.name)+len(a.Name)+40)
	b = append(append(append(b, s.name...), a.Name...), ':')
	for _, half := range a.Key {
		for shift := 56; shift >= 0; shift -= 8 {
			b = hex.AppendEncode(b, []byte{byte(half >> shift)})
		}
	}
	return string(b)
}

// member is a lease in a sorted set.
func (s *Store) member(lease uint64) string { return s.id + ":" + strconv.FormatUint(lease, 36) }

// micro writes nanoseconds as the scripts take them.
func micro(ns int64) string { return strconv.FormatFloat(float64(ns)/1000, 'f', 3, 64) }

// Take implements limit.Store.
func (s *Store) Take(ctx context.Context, now time.Time, asks []limit.Ask) (bool, error) {
	if s.ahead {
		return s.lend(ctx, now, asks)
	}
	wants := make([]want, len(asks))
	for i := range asks {
		wants[i].ask = &asks[i]
	}
	return s.charge(ctx, wants)
}

// want is one bucket of a call.
type want struct {
	ask    *limit.Ask
	credit *credit // of the mode lease; nil otherwise
	extra  int64   // to take ahead, if there is room
	back   int64   // to give back first
	got    int64   // of extra
}

// charge asks the server for all or none, sets the states of the asks and notes what
// is held.
func (s *Store) charge(ctx context.Context, wants []want) (bool, error) {
	keys, args := make([]string, len(wants)), make([]string, 0, 6*len(wants))
	for i := range wants {
		w := &wants[i]
		keys[i] = s.key(w.ask)
		if w.ask.Kind == limit.Held {
			w.ask.Lease = s.leases.Add(1)
			args = append(args, "h", s.member(w.ask.Lease), micro(int64(heldLife)), strconv.FormatInt(w.ask.Size, 10), "0", "0")
		} else {
			args = append(args, "m", micro(w.ask.Cost), micro(w.ask.Room), micro(w.ask.Size), micro(w.extra), micro(w.back))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	s.calls.Add(1)
	got, err := store.Do(ctx, s.client, func(ctx context.Context, r rueidis.Client) ([]string, error) {
		return s.take.Exec(ctx, r, keys, args).AsStrSlice()
	})
	if err == nil && len(got) != 1+2*len(wants) {
		err = errors.New("an answer of another form")
	}
	for i := range wants {
		if err == nil {
			err = wants[i].read(got[1+2*i], got[2+2*i])
		}
	}
	ok := err == nil && got[0] == "1"
	for i := range wants {
		if a := wants[i].ask; a.Kind == limit.Held {
			s.note(ok, err, keys[i], a.Lease)
		}
	}
	if err != nil {
		return false, fmt.Errorf("check limits in Redis: %w", err)
	}
	return ok, nil
}

// read takes what the server said.
func (w *want) read(state, more string) error {
	x, err := strconv.ParseFloat(state, 64)
	if err != nil {
		return err
	}
	y, err := strconv.ParseFloat(more, 64)
	if err != nil {
		return err
	}
	w.ask.State, w.got = int64(x), int64(y*1000)
	if w.ask.Kind == limit.Metered {
		w.ask.State = int64(x * 1000)
	}
	return nil
}

// note remembers what is held. After an error nobody knows, so it is returned.
func (s *Store) note(ok bool, err error, key string, lease uint64) {
	if ok {
		s.mu.Lock()
		s.mu.held[lease] = key
		s.mu.Unlock()
	} else if err != nil {
		s.put(change{'r', key, s.member(lease)})
	}
}

// put queues a change, or drops it.
func (s *Store) put(c change) {
	select {
	case s.queue <- c:
	default:
		s.dropped.Add(1)
	}
}

// Give implements limit.Store.
func (s *Store) Give(_ time.Time, asks []limit.Ask) {
	for i := range asks {
		a := &asks[i]
		if a.Kind == limit.Metered {
			s.put(change{'m', s.key(a), micro(a.Cost)})
			if s.ahead && a.Cost < 0 {
				s.credits.refunded(a.Key)
			}
			continue
		}
		s.mu.Lock()
		key, ok := s.mu.held[a.Lease]
		delete(s.mu.held, a.Lease)
		s.mu.Unlock()
		if ok {
			s.put(change{'r', key, s.member(a.Lease)})
		}
	}
}

// Beat implements limit.Store.
func (s *Store) Beat(ctx context.Context) (int, error) {
	n, err := store.Do(ctx, s.client, func(ctx context.Context, r rueidis.Client) (int64, error) {
		return s.beat.Exec(ctx, r, []string{s.name + "gateways"}, []string{s.id, micro(int64(gatewayLife))}).AsInt64()
	})
	if err != nil {
		return 0, fmt.Errorf("beat in Redis: %w", err)
	}
	s.gateways.Store(max(n, 1))
	return int(n), nil
}

// Run sends changes and signs of life until ctx ends, and then what is left, for a
// moment.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(heldEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.leave(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
			s.keep(ctx)
		case c := <-s.queue:
			s.send(ctx, s.batch(c))
		}
	}
}

// batch takes what waits in the queue.
func (s *Store) batch(first change) []change {
	all := append(make([]change, 0, batchSize), first)
	for len(all) < batchSize {
		select {
		case c := <-s.queue:
			all = append(all, c)
		default:
			return all
		}
	}
	return all
}

// send sends changes; what fails is dropped.
func (s *Store) send(ctx context.Context, changes []change) {
	keys, args := make([]string, len(changes)), make([]string, 0, 3*len(changes))
	for i, c := range changes {
		keys[i] = c.key
		args = append(args, string(c.kind), c.arg, micro(int64(heldLife)))
	}
	ctx, cancel := context.WithTimeout(ctx, batchTime)
	defer cancel()
	if _, err := store.Do(ctx, s.client, func(ctx context.Context, r rueidis.Client) (int64, error) {
		return s.give.Exec(ctx, r, keys, args).AsInt64()
	}); err != nil {
		s.dropped.Add(uint64(len(changes)))
	}
}

// keep gives a sign of life of all that is held.
func (s *Store) keep(ctx context.Context) {
	var all []change
	s.mu.Lock()
	for lease, key := range s.mu.held {
		all = append(all, change{'k', key, s.member(lease)})
	}
	s.mu.Unlock()
	for len(all) > 0 && ctx.Err() == nil {
		n := min(batchSize, len(all))
		s.send(ctx, all[:n])
		all = all[n:]
	}
}

// leave sends what is left and takes this gateway out of the count.
func (s *Store) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastTime)
	defer cancel()
	all := []change{{'r', s.name + "gateways", s.id}}
	for len(s.queue) > 0 && ctx.Err() == nil {
		s.send(ctx, s.batch(<-s.queue))
	}
	s.send(ctx, all)
}

// descs are the store's own metrics: changes dropped, changes that wait, calls, and
// requests that needed none.
func descs() [4]*prometheus.Desc {
	d := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("spillway_limit_redis_"+name, help, nil, nil)
	}
	return [...]*prometheus.Desc{
		d("dropped_total", "Refunds, late charges and returns that did not reach Redis."),
		d("queue_entries", "Refunds, late charges and returns that wait to be sent."),
		d("calls_total", "Checks that Redis was asked for."),
		d("leased_total", "Checks that quota taken ahead was enough for."),
	}
}

// Describe implements prometheus.Collector.
func (s *Store) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs() {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	d := descs()
	ch <- prometheus.MustNewConstMetric(d[0], prometheus.CounterValue, float64(s.dropped.Load()))
	ch <- prometheus.MustNewConstMetric(d[1], prometheus.GaugeValue, float64(len(s.queue)))
	ch <- prometheus.MustNewConstMetric(d[2], prometheus.CounterValue, float64(s.calls.Load()))
	ch <- prometheus.MustNewConstMetric(d[3], prometheus.CounterValue, float64(s.local.Load()))
}
