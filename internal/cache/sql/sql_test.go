package sql_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	cachesql "github.com/spillway/spillway/internal/cache/sql"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("SPILLWAY_TEST_FILL"); dir != "" {
		if err := fill(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	sqltest.Main(m)
}

// room is the size of levels in tests.
const room = 256 << 20

// databases are the kinds of database that a test runs on.
func databases() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{
		"sqlite":   func(testing.TB) string { return "sqlite:cache.db" },
		"postgres": sqltest.Postgres,
		"mariadb":  sqltest.MariaDB,
	}
}

// open makes a level on one database, with what it is kept in.
func open(t testing.TB, dsn, dir string, size int64) (*cachesql.Level, *sql.Store) {
	t.Helper()
	cfg := sql.Default()
	cfg.Databases = []sql.DatabaseConfig{{DSN: dsn}}
	return start(t, cfg, dir, size)
}

// start makes a level that works until the test ends.
func start(t testing.TB, cfg sql.Config, dir string, size int64) (*cachesql.Level, *sql.Store) {
	t.Helper()
	store, err := sql.Open(cfg, dir, testkit.Discard(), cachesql.Migrations())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	level := cache.Default().SQL
	level.Size = inference.Bytes(size)
	return cachesql.New(store, level), store
}

func TestLevel(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			_, store := open(t, dsn(t), t.TempDir(), room)
			cachetest.TestLevel(t, func(t *testing.T) cache.Level {
				level := cachesql.New(store, cache.Default().SQL) // alone, on tables that are made once
				if _, err := level.Purge(t.Context(), cache.Filter{}); err != nil {
					t.Fatal(err)
				}
				return level
			})
		})
	}
}

func TestLevelOnSeveralDatabases(t *testing.T) {
	for name, dsns := range map[string]func(testing.TB) [2]string{
		"sqlite twice": func(testing.TB) [2]string { return [2]string{"sqlite:a.db", "sqlite:b.db"} },
		"servers":      func(t testing.TB) [2]string { return [2]string{sqltest.Postgres(t), sqltest.MariaDB(t)} },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sql.Default()
			pair := dsns(t)
			cfg.Databases = []sql.DatabaseConfig{{DSN: pair[0], Shards: "0-3,8-11"}, {DSN: pair[1], Shards: "4-7,12-15"}}
			level, store := start(t, cfg, t.TempDir(), room)
			var all []*cache.Entry
			for i := range 64 {
				all = append(all, cachetest.NewEntry(fmt.Sprint(i), time.Now()))
			}
			if err := level.Put(t.Context(), all); err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				wants(t, level, e)
			}
			rows := make([]int64, 2)
			for n := range sql.Shards {
				shard, at := store.Shard(n), 0
				if shard.Database == store.Databases()[1] {
					at = 1
				}
				if want := n / 4 % 2; at != want {
					t.Errorf("shard %d is on database %d, want %d", n, at, want)
				}
				if err := shard.Read(t.Context(), func(ctx context.Context, c *sql.Conn) error {
					got, err := c.NewSelect().TableExpr(shard.Table("cache")).Count(ctx)
					rows[at] += got
					return err
				}); err != nil {
					t.Fatal(err)
				}
			}
			if rows[0]+rows[1] != 64 || rows[0] == 0 || rows[1] == 0 {
				t.Errorf("got %v rows, want 64 on both", rows)
			}
			if n, err := level.Purge(t.Context(), cache.Filter{}); n != 64 || err != nil {
				t.Errorf("Purge = %d, %v, want 64", n, err)
			}
		})
	}
}

// wants checks that a level has an entry.
func wants(t testing.TB, level cache.Level, e *cache.Entry) {
	t.Helper()
	got, err := level.Get(t.Context(), e.Key, time.Now())
	if err != nil {
		t.Fatalf("Get = %v, want the entry", err)
	}
	if d := cachetest.Diff(e, got); d != "" {
		t.Fatalf("Get (-want +got):\n%.2000s", d)
	}
}

// misses checks that a level does not have a key, and does not fail.
func misses(t testing.TB, level cache.Level, key cache.Key) {
	t.Helper()
	if got, err := level.Get(t.Context(), key, time.Now()); !errors.Is(err, cache.ErrMiss) || got != nil {
		t.Fatalf("Get = %v, %v, want %v", got, err, cache.ErrMiss)
	}
}

func TestNothingIsCreatedBeforeTheFirstPut(t *testing.T) {
	dir := t.TempDir()
	level, _ := open(t, "sqlite:cache.db", dir, room)
	misses(t, level, cachetest.Key("a"))
	if n, err := level.Sweep(t.Context(), time.Now()); n != 0 || err != nil {
		t.Errorf("Sweep = %d, %v", n, err)
	}
	if n, err := level.Purge(t.Context(), cache.Filter{Scope: "a"}); n != 0 || err != nil {
		t.Errorf("Purge = %d, %v", n, err)
	}
	if c, err := level.Census(t.Context()); c != (cache.Census{}) || err != nil {
		t.Errorf("Census = %v, %v", c, err)
	}
	if err := level.Put(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 || err != nil {
		t.Errorf("got %v and %v, want nothing", left, err)
	}
}

func TestSweepKeepsTheBound(t *testing.T) {
	const size = 16 * 100_000 // room for about 9 in each of 16 shards
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			level, _ := open(t, dsn(t), t.TempDir(), size)
			now := time.Now()
			var all []*cache.Entry
			body := cachetest.Noise(1, 10_000)
			for i := range 640 {
				e := cachetest.OnePiece(cachetest.NewEntry(fmt.Sprint(i), now), body)
				e.Stale = e.Stale.Add(time.Duration(i) * time.Second)
				all = append(all, e)
			}
			for i := 0; i < len(all); i += 64 {
				if err := level.Put(t.Context(), all[i:i+64]); err != nil {
					t.Fatal(err)
				}
			}
			swept := 0
			for calls := 0; ; calls++ {
				n, err := level.Sweep(t.Context(), now)
				if err != nil || calls > 100 {
					t.Fatalf("Sweep = %d, %v, in call %d", n, err, calls)
				}
				if swept += n; n == 0 {
					break
				}
			}
			c, err := level.Census(t.Context())
			if err != nil || c.Bytes > size || c.Bytes < size/2 || c.Entries != int64(len(all)-swept) {
				t.Errorf("got %+v and %v after %d were swept, want at most %d bytes and not much less", c, err, swept, size)
			}
			// In each shard those are left that stay the longest.
			gone := make(map[byte]bool)
			for i := len(all) - 1; i >= 0; i-- {
				shard := all[i].Key[0] >> 4
				_, err := level.Get(t.Context(), all[i].Key, now)
				if err == nil && gone[shard] {
					t.Errorf("entry %d is there, and one that stays for longer is not", i)
				}
				gone[shard] = gone[shard] || err != nil
			}
		})
	}
}

func TestWhatIsNoEntryIsAnError(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			level, store := open(t, dsn(t), t.TempDir(), room)
			e, other := cachetest.NewEntry("a", time.Now()), cachetest.NewEntry("b", time.Now())
			form, err := e.Encode(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			foreign, err := other.Encode(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			flipped := append([]byte(nil), form...)
			flipped[len(flipped)/2] ^= 1
			for what, data := range map[string][]byte{"nothing": {}, "half": form[:len(form)/2], "a flipped bit": flipped, "another's": foreign} {
				if err := level.Put(t.Context(), []*cache.Entry{e}); err != nil {
					t.Fatal(err)
				}
				wants(t, level, e)
				shard := store.ShardOf(e.Key)
				if err := shard.Write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
					_, err := c.Bound.ExecContext(ctx, shard.Dialect().Bind("UPDATE "+shard.Table("cache")+" SET data = ?"), data)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if got, err := level.Get(t.Context(), e.Key, time.Now()); got != nil || !errors.Is(err, cache.ErrCorrupt) {
					t.Errorf("%s: Get = %v, %v, want %v", what, got, err, cache.ErrCorrupt)
				}
			}
		})
	}
}

func TestLargestEntries(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			_, store := open(t, dsn(t), t.TempDir(), room)
			level := cachesql.New(store, cache.SQLConfig{CompressFrom: 1 << 30, Size: room})
			var batch []*cache.Entry
			for i, size := range []int{7<<20 - 1000, 3 << 20, 3 << 20, 8 << 20, 100} {
				batch = append(batch, cachetest.OnePiece(cachetest.NewEntry(fmt.Sprint(i), time.Now()), bytes.Repeat([]byte("'"), size)))
			}
			if err := level.Put(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			for i, e := range batch {
				if i == 3 {
					misses(t, level, e.Key)
				} else {
					wants(t, level, e)
				}
			}
		})
	}
}

// version is the n-th entry of a key, so that it can be told what one should be.
func version(key, n int) *cache.Entry {
	e := cachetest.NewEntry(fmt.Sprint("key ", key), time.UnixMilli(1_800_000_000_000))
	e.Stale = time.Now().Add(time.Hour).Truncate(24 * time.Hour).Add(48 * time.Hour)
	e.Hits = uint32(n)
	return cachetest.OnePiece(e, cachetest.Noise(uint64(key*1000+n), 1000+n*1000))
}

// keys is how many of them are filled again and again.
const keys = 48

// fill fills a level until it is killed, and says which round is done.
func fill(dir string) error {
	store, err := sql.Open(sql.Default(), dir, testkit.Discard(), cachesql.Migrations())
	if err != nil {
		return err
	}
	go func() { _ = store.Run(context.Background()) }()
	level := cachesql.New(store, cache.Default().SQL)
	var batches [8][]*cache.Entry
	for n := range batches {
		for key := range keys {
			batches[n] = append(batches[n], version(key, n))
		}
	}
	for round := 0; ; round++ {
		if err := level.Put(context.Background(), batches[round%len(batches)]); err != nil {
			return err
		}
		fmt.Println(round)
	}
}

func TestKilledDuringAFill(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "SPILLWAY_TEST_FILL="+dir)
		cmd.Stderr = os.Stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		rounds := 0
		for lines := bufio.NewScanner(pipe); lines.Scan(); rounds++ {
			if rounds == 20 {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if rounds < 20 {
			t.Fatalf("%d rounds were done", rounds)
		}
		level, _ := open(t, "sqlite:spillway.db", dir, room)
		found := 0
		for key := range keys {
			got, err := level.Get(t.Context(), version(key, 0).Key, time.Now())
			switch {
			case errors.Is(err, cache.ErrMiss):
				continue
			case err != nil:
				t.Fatal(err)
			}
			found++
			if d := cachetest.Diff(version(key, int(got.Hits)), got); d != "" {
				t.Fatalf("part of an entry (-want +got):\n%.2000s", d)
			}
		}
		if found != keys {
			t.Errorf("got %d of %d that were put before", found, keys)
		}
	}
}

func TestLaggingReplicaIsAMiss(t *testing.T) {
	pair := sqltest.Replicated(t)
	cfg := sql.Default()
	cfg.Databases = []sql.DatabaseConfig{{DSN: pair.Primary, Replicas: []string{pair.Replica}}}
	cfg.MaxLag = time.Hour
	level, store := start(t, cfg, t.TempDir(), room)
	before, e := cachetest.NewEntry("before", time.Now()), cachetest.NewEntry("a", time.Now())
	if err := level.Put(t.Context(), []*cache.Entry{before}); err != nil {
		t.Fatal(err)
	}
	used := func() bool {
		for _, s := range store.Stats() {
			if s.Role == "replica" && s.Usable {
				return true
			}
		}
		return false
	}
	testkit.Eventually(t, "the replica is used and has the entry", func() bool {
		_, err := level.Get(t.Context(), before.Key, time.Now())
		return used() && err == nil
	})
	pair.Pause(t)
	if err := level.Put(t.Context(), []*cache.Entry{e}); err != nil {
		t.Fatal(err)
	}
	misses(t, level, e.Key)
	wants(t, level, before)
	pair.Resume(t)
	testkit.Eventually(t, "the replica has followed", func() bool {
		got, err := level.Get(t.Context(), e.Key, time.Now())
		return err == nil && cmp.Equal(cachetest.Diff(e, got), "")
	})
}

func TestReadOnlyServerStillAnswers(t *testing.T) {
	level, store := open(t, sqltest.Postgres(t), "", room)
	e := cachetest.NewEntry("a", time.Now())
	if err := level.Put(t.Context(), []*cache.Entry{e}); err != nil {
		t.Fatal(err)
	}
	set := func(how string) {
		t.Helper()
		if err := store.Shard(0).ReadLatest(t.Context(), func(ctx context.Context, c *sql.Conn) error {
			_, err := c.ExecContext(ctx, "DO $do$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' "+how+"'; END $do$")
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	set("SET default_transaction_read_only = on")
	again, _ := openWithoutMigrations(t, store)
	wants(t, again, e)
	err := again.Put(t.Context(), []*cache.Entry{cachetest.NewEntry("b", time.Now())})
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Put = %v, want that it is read-only", err)
	}
}

// openWithoutMigrations makes a level on the same database with connections of its own.
func openWithoutMigrations(t *testing.T, store *sql.Store) (*cachesql.Level, *sql.Store) {
	t.Helper()
	address, database, _ := strings.Cut(strings.TrimPrefix(store.Databases()[0].Name(), "postgres://"), "/")
	cfg := sql.Default()
	cfg.Migrate = false
	cfg.Databases = []sql.DatabaseConfig{{DSN: fmt.Sprintf("postgres://spillway:%s@%s/%s?sslmode=disable", sqltest.Password, address, database)}}
	return start(t, cfg, "", room)
}

func ExampleNew() {
	dir, _ := os.MkdirTemp("", "example-")
	defer os.RemoveAll(dir)
	store, err := sql.Open(sql.Default(), dir, testkit.Discard(), cachesql.Migrations())
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- store.Run(ctx) }()

	level := cachesql.New(store, cache.Default().SQL)
	e := cachetest.NewEntry("the capital of France", time.Now())
	fmt.Println(level.Put(ctx, []*cache.Entry{e}))
	got, err := level.Get(ctx, e.Key, time.Now())
	fmt.Println(got.Question, err)
	stop()
	fmt.Println(<-done)
	// Output:
	// <nil>
	// what is the capital of France? <nil>
	// <nil>
}

// BenchmarkGet is a look-up of an answer of 4 KiB among 2000.
func BenchmarkGet(b *testing.B) {
	for name, dsn := range databases() {
		b.Run(name, func(b *testing.B) {
			level, _ := open(b, dsn(b), b.TempDir(), room)
			var batch []*cache.Entry
			for i := range 2000 {
				batch = append(batch, cachetest.OnePiece(cachetest.NewEntry(fmt.Sprint(i), time.Now()), cachetest.Noise(uint64(i), 4096)))
			}
			for i := 0; i < len(batch); i += 50 {
				if err := level.Put(b.Context(), batch[i:i+50]); err != nil {
					b.Fatal(err)
				}
			}
			now := time.Now()
			ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
			defer cancel()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				if _, err := level.Get(ctx, batch[i%2000].Key, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPut is a batch of 64 answers of 4 KiB.
func BenchmarkPut(b *testing.B) {
	for name, dsn := range databases() {
		b.Run(name, func(b *testing.B) {
			level, _ := open(b, dsn(b), b.TempDir(), room)
			var batch []*cache.Entry
			for i := range 64 {
				batch = append(batch, cachetest.OnePiece(cachetest.NewEntry(fmt.Sprint(i), time.Now()), cachetest.Noise(uint64(i), 4096)))
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := level.Put(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
