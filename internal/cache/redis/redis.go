// Package redis keeps answers in a Redis or Valkey that gateways share: level 2 of
// the cache. What is there can be read with redis-cli:
//
//	<prefix>:1:answer:<key>  hash         scope, model, surface, question, stored, expires, hits,
//	                                      bytes (of the answer), stored_ms, data (the answer, packed)
//	<prefix>:1:questions     list         the most recent questions, the newest first, a JSON object each
//	<prefix>:1:topics        sorted set   what is asked for most; the score is the demand, which halves every hour
//
// The prefix is that of store.redis, 1 is the version of this layout, and the key is
// that of the answer in hexadecimal, as in logs and in `spillway cache inspect`. For
// example
//
//	redis-cli hgetall spillway:1:answer:3fa8...
//	redis-cli lrange spillway:1:questions 0 9
//	redis-cli zrevrange spillway:1:topics 0 9 withscores
//
// Every name is written in one script together with the time at which it is gone, so
// there is never one without: an answer goes at its Stale instant, the list and the
// set a day after they were written last. Redis forgets them by itself, by its own
// clock; Sweep has nothing to do. A script names one key, so a cluster needs no hash
// tags and spreads answers over all of its slots.
//
// For the operator of the server: set `maxmemory`, and `maxmemory-policy
// volatile-ttl`, by which a full server forgets what would be gone soonest, and
// leaves alone what other programs keep without an expiry. With `noeviction` a full
// server refuses new answers, which costs hits and nothing else. Nothing here needs
// to survive a restart: `save ""` and `appendonly no` spare the disk. Replicas may
// lag or lose answers; a gateway reads from masters only. The texts of questions
// stand in the hashes and in the list; `questions: 0` keeps both out.
//
// What Get returns has passed cache.Decode: it is whole and of the key that was
// asked for. A value of another type, of another key, cut or changed, an answer that
// went to the wrong call, and every error of the server are errors, never entries.
//
// The package owns no goroutine. A Level has no state but its settings.
package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/spillway/spillway/internal/cache"
	store "github.com/spillway/spillway/internal/store/redis"
)

// listLife is how long the list and the set outlive their last change.
const listLife = 24 * time.Hour

// mostListed bounds the questions that one Put adds to the list.
const mostListed = 256

// keep puts a hash in the place of whatever is under a key, but of one that was stored
// later. The first command that writes must be one that a full server refuses: after
// it, a script may write what it likes. ARGV: when it is gone and when it was stored,
// in Unix milliseconds, then fields and values.
const keep = `local there = redis.pcall('HGET', KEYS[1], 'stored_ms')
if type(there) == 'string' and (tonumber(there) or 0) > tonumber(ARGV[2]) then return 0 end
local done = redis.pcall('HSET', KEYS[1], 'stored_ms', unpack(ARGV, 2))
if type(done) == 'table' and done.err then
	if not string.find(done.err, 'WRONGTYPE', 1, true) then return done end
	redis.call('UNLINK', KEYS[1])
	redis.call('HSET', KEYS[1], 'stored_ms', unpack(ARGV, 2))
end
redis.call('PEXPIREAT', KEYS[1], ARGV[1])
return 1`

// list adds to a capped list. ARGV: its cap, its life in milliseconds, then the new
// items.
const list = `redis.call('LPUSH', KEYS[1], unpack(ARGV, 3))
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`

// Level keeps entries in Redis. It implements cache.Level and cache.Counter.
type Level struct {
	client    *store.Client
	name      string // what every key begins with
	packFrom  int
	questions int
}

// New returns a level that uses a client that somebody else runs.
func New(client *store.Client, c cache.RedisConfig) *Level {
	return &Level{client: client, name: client.Prefix() + ":1:", packFrom: int(c.CompressFrom), questions: c.Questions}
}

// answer is the name of an entry.
func (l *Level) answer(key cache.Key) string { return l.name + "answer:" + key.String() }

// Get implements cache.Level.
func (l *Level) Get(ctx context.Context, key cache.Key, now time.Time) (*cache.Entry, error) {
	b, err := store.Do(ctx, l.client, func(ctx context.Context, r rueidis.Client) ([]byte, error) {
		return r.Do(ctx, r.B().Hget().Key(l.answer(key)).Field("data").Build()).AsBytes()
	})
	if rueidis.IsRedisNil(err) {
		return nil, cache.ErrMiss
	}
	if err != nil {
		return nil, fmt.Errorf("get %s from Redis: %w", key, err)
	}
	e, err := cache.Decode(key, b)
	if err != nil {
		return nil, fmt.Errorf("get %s from Redis: %d bytes: %w", key, len(b), err)
	}
	if now.After(e.Stale) {
		return nil, cache.ErrMiss
	}
	return e, nil
}

// Put implements cache.Level: all entries go to the server together. What cannot be
// written is left out; the error says how many, and why the first.
func (l *Level) Put(ctx context.Context, entries []*cache.Entry) error {
	var first error
	failed := 0
	fail := func(err error) {
		if failed++; first == nil {
			first = err
		}
	}
	writes := make([]write, 0, len(entries))
	var lines []string
	for _, e := range entries {
		w, err := l.write(e)
		if err != nil {
			fail(err)
			continue
		}
		writes = append(writes, w)
		if line := l.line(e); line != "" {
			lines = append(lines, line)
		}
	}
	if len(writes) > 0 {
		results, err := store.Do(ctx, l.client, func(ctx context.Context, r rueidis.Client) ([]rueidis.RedisResult, error) {
			return l.send(ctx, r, writes, lines), nil
		})
		if err != nil {
			return fmt.Errorf("put %d entries to Redis: %w", len(entries), err)
		}
		for _, result := range results {
			if err := result.Error(); err != nil {
				fail(err)
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("put %d of %d entries to Redis: %w", failed, len(entries), first)
	}
	return nil
}

// write is one entry as the script keep takes it.
type write struct {
	key  string
	args []string
}

// write puts an entry into the form in which it is kept.
func (l *Level) write(e *cache.Entry) (write, error) {
	if l.questions == 0 {
		without := *e
		without.Question = ""
		e = &without
	}
	data, err := e.Encode(l.packFrom)
	if err != nil {
		return write{}, err
	}
	if len(data) > store.LargestValue {
		return write{}, fmt.Errorf("%s has %d bytes, more than %d", e.Key, len(data), store.LargestValue)
	}
	return write{key: l.answer(e.Key), args: []string{
		strconv.FormatInt(e.Stale.UnixMilli(), 10), strconv.FormatInt(e.Stored.UnixMilli(), 10),
		"scope", e.Scope, "model", e.Model, "surface", e.Surface.String(), "question", e.Question,
		"stored", e.Stored.UTC().Format(time.RFC3339), "expires", e.Expires.UTC().Format(time.RFC3339),
		"hits", strconv.FormatUint(uint64(e.Hits), 10), "bytes", strconv.Itoa(len(e.Answer.Body)),
		"data", rueidis.BinaryString(data),
	}}, nil
}

// line is an entry in the list of recent questions, or nothing where none is kept, or
// the entry is written again for its hits.
func (l *Level) line(e *cache.Entry) string {
	if l.questions == 0 || e.Question == "" || e.Hits > 0 {
		return ""
	}
	b, err := json.Marshal(struct {
		Time     string `json:"time"`
		Scope    string `json:"scope"`
		Model    string `json:"model"`
		Question string `json:"question"`
		Key      string `json:"key"`
	}{e.Stored.UTC().Format(time.RFC3339), e.Scope, e.Model, e.Question, e.Key.String()})
	if err != nil {
		return ""
	}
	return string(b)
}

// send writes entries, and lines to the list. It returns what became of the entries:
// the list is for people, and what stands in its place must not keep answers out.
func (l *Level) send(ctx context.Context, r rueidis.Client, writes []write, lines []string) []rueidis.RedisResult {
	commands := make(rueidis.Commands, 0, len(writes)+1)
	for _, w := range writes {
		commands = append(commands, r.B().Eval().Script(keep).Numkeys(1).Key(w.key).Arg(w.args...).Build())
	}
	if lines = lines[max(0, len(lines)-mostListed):]; len(lines) > 0 {
		commands = append(commands, r.B().Eval().Script(list).Numkeys(1).Key(l.name+"questions").
			Arg(strconv.Itoa(l.questions), milliseconds(listLife)).Arg(lines...).Build())
	}
	return r.DoMulti(ctx, commands...)[:len(writes)]
}

// milliseconds is a time as scripts take it.
func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// Sweep implements cache.Level. Redis forgets by itself.
func (l *Level) Sweep(context.Context, time.Time) (int, error) { return 0, nil }

// Census implements cache.Counter. Answers are not counted one by one, which would
// take long: Entries are all keys of the database but the list and the set, and Bytes
// the data of all databases of the servers, so what other programs keep there counts
// too.
func (l *Level) Census(ctx context.Context) (cache.Census, error) {
	c, err := store.Do(ctx, l.client, func(ctx context.Context, r rueidis.Client) (c cache.Census, err error) {
		for _, node := range masters(ctx, r) {
			results := node.DoMulti(ctx, node.B().Dbsize().Build(), node.B().Info().Section("memory").Build())
			keys, err := results[0].AsInt64()
			if err != nil {
				return c, err
			}
			info, err := results[1].ToString()
			if err != nil {
				return c, err
			}
			c.Entries += keys
			c.Bytes += used(info)
		}
		for _, other := range []string{"questions", "topics"} {
			n, err := r.Do(ctx, r.B().Exists().Key(l.name+other).Build()).AsInt64()
			if err != nil {
				return c, err
			}
			c.Entries = max(0, c.Entries-n)
		}
		return c, nil
	})
	if err != nil {
		return cache.Census{}, fmt.Errorf("count what Redis has: %w", err)
	}
	return c, nil
}

// used reads the memory that data takes out of INFO; 0 where it does not say.
func used(info string) int64 {
	_, rest, _ := strings.Cut(info, "used_memory_dataset:")
	number, _, _ := strings.Cut(rest, "\r\n")
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// masters are the servers that hold keys of their own. One that does not say what it
// is counts as one, so that its error shows where it is used.
func masters(ctx context.Context, r rueidis.Client) []rueidis.Client {
	var all []rueidis.Client
	for _, node := range r.Nodes() {
		if r.Mode() == rueidis.ClientModeCluster {
			role, err := node.Do(ctx, node.B().Role().Build()).ToArray()
			if err == nil && len(role) > 0 {
				if name, err := role[0].ToString(); err == nil && name != "master" {
					continue
				}
			}
		}
		all = append(all, node)
	}
	return all
}

// firstError is the first of the results' errors.
func firstError(results []rueidis.RedisResult) error {
	for _, r := range results {
		if err := r.Error(); err != nil {
			return err
		}
	}
	return nil
}

// scanned is how many keys a server looks at for one SCAN.
const scanned = 512

// drop forgets a key if it is a hash with the scope and the model that are meant;
// empty means any.
const drop = `for i, field in ipairs({'scope', 'model'}) do
	if ARGV[i] ~= '' and redis.pcall('HGET', KEYS[1], field) ~= ARGV[i] then return 0 end
end
return redis.call('UNLINK', KEYS[1])`

// Purge implements cache.Level. Without a key it looks at every key of every master,
// and forgets the recent questions and the hot topics too. A master that fails does
// not keep the others from being purged.
func (l *Level) Purge(ctx context.Context, f cache.Filter) (int, error) {
	n, err := store.Do(ctx, l.client, func(ctx context.Context, r rueidis.Client) (int, error) {
		if f.Key != nil {
			return l.drop(ctx, r, []string{l.answer(*f.Key)}, f)
		}
		results := r.DoMulti(ctx, r.B().Unlink().Key(l.name+"questions").Build(), r.B().Unlink().Key(l.name+"topics").Build())
		n, errs := 0, []error{firstError(results)}
		for _, node := range masters(ctx, r) {
			dropped, err := l.purge(ctx, r, node, f)
			n, errs = n+dropped, append(errs, err)
		}
		return n, errors.Join(errs...)
	})
	if err != nil {
		return n, fmt.Errorf("purge Redis: %w", err)
	}
	return n, nil
}

// purge forgets the answers of one master that are meant.
func (l *Level) purge(ctx context.Context, r, node rueidis.Client, f cache.Filter) (n int, err error) {
	for cursor := uint64(0); ; {
		page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(l.name+"answer:*").Count(scanned).Build()).AsScanEntry()
		if err != nil {
			return n, err
		}
		dropped, err := l.drop(ctx, r, page.Elements, f)
		n += dropped
		if err != nil {
			return n, err
		}
		if cursor = page.Cursor; cursor == 0 {
			return n, nil
		}
	}
}

// drop forgets those of the keys that are meant.
func (l *Level) drop(ctx context.Context, r rueidis.Client, keys []string, f cache.Filter) (n int, err error) {
	if len(keys) == 0 {
		return 0, nil
	}
	commands := make(rueidis.Commands, 0, len(keys))
	for _, key := range keys {
		commands = append(commands, r.B().Eval().Script(drop).Numkeys(1).Key(key).Arg(f.Scope, f.Model).Build())
	}
	results := r.DoMulti(ctx, commands...)
	for _, result := range results {
		if dropped, err := result.AsInt64(); err == nil {
			n += int(dropped)
		}
	}
	return n, firstError(results)
}
