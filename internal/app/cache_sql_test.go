package app_test

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

// databaseAt is the section of a store with a database.
func databaseAt(dsn string, replicas ...string) string {
	return fmt.Sprintf("store: {sql: {databases: [{dsn: %q, replicas: [%s]}], lock_timeout: 200ms, timeout: 1s, connect_timeout: 500ms, max_lag: 2s}}",
		dsn, strings.Join(replicas, ", "))
}

// files are those of a SQLite database.
func files(path string) []string { return []string{path, path + "-wal", path + "-shm"} }

// connect opens the one connection of a test's own to a database.
func connect(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

// run runs statements.
func run(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func TestSQLiteFailsAndComesBack(t *testing.T) {
	for name, fault := range map[string]func(t *testing.T, path string) (begin, end func()){
		"locked": func(t *testing.T, path string) (begin, end func()) {
			c := connect(t, "sqlite", path)
			return func() { run(t, c, "PRAGMA busy_timeout=5000", "BEGIN IMMEDIATE") }, func() { run(t, c, "ROLLBACK") }
		},
		"damaged": func(t *testing.T, path string) (begin, end func()) {
			return func() {
					for _, f := range files(path)[:2] {
						info, err := os.Stat(f)
						if err != nil {
							t.Fatal(err)
						}
						file, err := os.OpenFile(f, os.O_WRONLY, 0)
						if err == nil {
							_, err = file.Write([]byte(strings.Repeat("no database ", int(info.Size())/12)))
						}
						if err != nil {
							t.Fatal(err)
						}
						file.Close()
					}
				}, func() {
					for _, f := range files(path) {
						os.Remove(f)
					}
				}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "cache.db")
			b := newBed(t, "sql", databaseAt("sqlite:"+path))
			b.works("first") // the file is there
			b.through(fault(t, path))
		})
	}
}

func TestSQLiteFileIsTakenAway(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cache.db")
	b := newBed(t, "sql", databaseAt("sqlite:"+path))
	b.works("before")
	known := b.fill(10)
	for _, f := range files(path) {
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	b.ask(append(known, b.fresh(5)...))
	b.works("with a new file")
}

// TestSQLiteIsLockedAtTheStart by a process that lets nobody read either.
func TestSQLiteIsLockedAtTheStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cache.db")
	b := newBed(t, "sql", databaseAt("sqlite:"+path))
	b.works("before")
	known := b.fill(10)
	for _, r := range []*rig{b.filler, b.asker} {
		r.stop()
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
	}
	c := connect(t, "sqlite", path)
	run(t, c, "PRAGMA locking_mode=EXCLUSIVE", "PRAGMA user_version=0", "BEGIN EXCLUSIVE")
	b.asker = newRig(t, b.config(databaseAt("sqlite:"+path)))
	b.ask(append(known, b.fresh(5)...))
	if b.trouble(b.asker) == 0 {
		t.Error("the gateway has not met the lock")
	}
	c.Close()
	b.filler = newRig(t, b.config(databaseAt("sqlite:"+path)))
	b.works("behind it")
}

func TestSQLiteMayNotBeWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "cache.db")
	b := newBed(t, "sql", databaseAt("sqlite:"+path))
	b.works("before")
	known := b.fill(4)
	for _, r := range []*rig{b.filler, b.asker} {
		r.stop()
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	config := strings.Replace(b.config(databaseAt("sqlite:"+path)), "lookup_timeout: 50ms", "lookup_timeout: 1s", 1)
	p := newProcess(t, config, 65534)
	b.asker = p.rig
	for _, q := range append(known, b.fresh(2)...) { // few, so that the level does not rest for long
		for _, more := range []string{streamed, ""} {
			p.wants(q, more)
		}
	}
	testkit.Eventually(t, "a fill has failed", func() bool { return b.trouble(p.rig) > 0 })
	if n := b.written(p.rig); n != 0 {
		t.Errorf("%v entries were written into a file that may not be written", n)
	}
	for f, mode := range map[string]os.FileMode{dir: 0o777, path: 0o666} {
		if err := os.Chmod(f, mode); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "answers are written when they may be", func() bool { p.wants(b.question(), ""); return b.written(p.rig) > 0 })
}

func TestSQLiteWhileTheDiskIsFull(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cache.db")
	b := newBed(t, "sql", databaseAt("sqlite:"+path))
	p := newProcess(t, b.config(databaseAt("sqlite:"+path)), 0)
	inProcess := b.filler
	b.filler = p.rig // the one that writes is bounded
	b.through(func() { p.fileLimit("4096") }, func() { p.fileLimit("unlimited") })
	b.filler = inProcess
	b.works("with others")
}

func TestPostgresFailsAndComesBack(t *testing.T) {
	for name, fault := range map[string]func(t *testing.T, dsn string, p *faultnet.Proxy) (begin, end func()){
		"gone": func(_ *testing.T, _ string, p *faultnet.Proxy) (begin, end func()) {
			return func() { p.Set(faultnet.Faults{Refuse: true}); p.Reset() }, func() { p.Set(faultnet.Faults{}) }
		},
		"silent": func(_ *testing.T, _ string, p *faultnet.Proxy) (begin, end func()) {
			return func() { p.Set(faultnet.Faults{BlackHole: true}) }, func() { p.Set(faultnet.Faults{}) }
		},
		"garbage": func(_ *testing.T, _ string, p *faultnet.Proxy) (begin, end func()) {
			return func() { p.Set(faultnet.Faults{Garbage: []byte("\x00\xff garbage\r\n")}) }, func() { p.Set(faultnet.Faults{}); p.Reset() }
		},
		"read-only": func(t *testing.T, dsn string, p *faultnet.Proxy) (begin, end func()) {
			u, err := url.Parse(dsn)
			if err != nil {
				t.Fatal(err)
			}
			set := func(to string) func() {
				return func() {
					c := connect(t, "pgx", dsn)
					run(t, c, "SET default_transaction_read_only = off", "ALTER DATABASE "+strings.Trim(u.Path, "/")+" SET default_transaction_read_only = "+to)
					c.Close()
					p.Reset() // it holds for new connections
				}
			}
			return set("on"), set("off")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := sqltest.Postgres(t)
			p, through := sqltest.Through(t, dsn)
			b := newBed(t, "sql", databaseAt(through))
			b.works("first") // the tables are there
			b.through(fault(t, dsn, p))
		})
	}
}

// TestAReplicaThatLags: what it does not know yet is a miss, and later it is not asked.
func TestAReplicaThatLags(t *testing.T) {
	t.Parallel()
	pair := sqltest.Replicated(t)
	b := newBed(t, "sql", databaseAt(pair.Primary, `"`+pair.Replica+`"`))
	b.works("before")
	known := b.fill(10)
	pair.Pause(t)
	unknown := b.fill(10)
	b.ask(append(known, unknown...))
	testkit.Eventually(t, "the replica is not asked", func() bool {
		_, page := b.asker.get(b.asker.admin + "/metrics")
		return strings.Contains(page, `role="replica"} 0`)
	})
	b.works("with the primary alone")
	pair.Resume(t)
	b.works("with both")
}

// TestKilledInTheMiddleOfFills: what the file has then is whole answers.
func TestKilledInTheMiddleOfFills(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "cache.db")
	b := &bed{T: t, level: "sql", o: newOracle(t, nil)}
	config := strings.Replace(b.config(databaseAt("sqlite:"+path)), "lookup_timeout: 50ms", "lookup_timeout: 1s", 1)
	p := newProcess(t, config, 0)
	stop := make(chan struct{})
	var mu sync.Mutex
	var asked []string
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				q := b.question()
				got, err := p.send(surfaces["chat"].path, surfaces["chat"].body(q, streamed))
				if err == nil && judge("chat", q, streamed, got) == "" {
					mu.Lock()
					asked = append(asked, q)
					mu.Unlock()
				}
			}
		})
	}
	testkit.Eventually(t, "fills are under way", func() bool { return b.written(p.rig) >= 100 })
	p.kill()
	close(stop)
	wg.Wait()
	again := newProcess(t, config, 0)
	hits, last := 0, asked[max(0, len(asked)-200):]
	for _, q := range append(asked[:50:50], last...) {
		switch got := again.wants(q, streamed); {
		case got.cache() == "hit" && got.n == 1:
			hits++
		case got.cache() == "hit" && got.level() == "memory", got.cache() == "miss" && got.n == 2:
		default:
			t.Errorf("%s: got %v of generation %d, want a hit or a miss", q, got.header, got.n)
		}
	}
	if hits < 50 {
		t.Errorf("%d hits of %d answers that were written before the end, at least 100 of them", hits, len(asked))
	}
}
