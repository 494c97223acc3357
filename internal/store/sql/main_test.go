package sql_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

func TestMain(m *testing.M) {
	if job := os.Getenv("SPILLWAY_TEST_CHILD"); job != "" {
		child(job)
		return
	}
	sqltest.Main(m)
}

// notes is a table for tests: one a shard, with a counter and a text.
func notes() sql.Migrations {
	return sql.Migrations{Name: "notes", Steps: []sql.Step{
		func(d sql.Dialect) (list []string) {
			for n := range sql.Shards {
				list = append(list, "CREATE TABLE IF NOT EXISTS "+sql.Table("notes", n)+" (id INTEGER NOT NULL PRIMARY KEY, body VARCHAR(10000) NOT NULL)")
			}
			return list
		},
		func(d sql.Dialect) (list []string) {
			for n := range sql.Shards {
				list = append(list, "ALTER TABLE "+sql.Table("notes", n)+" ADD COLUMN n BIGINT NOT NULL DEFAULT 0")
			}
			return list
		},
	}}
}

// only is a configuration of one database.
func only(dsn string, change ...func(*sql.Config)) sql.Config {
	cfg := sql.Default()
	if dsn != "" {
		cfg.Databases = []sql.DatabaseConfig{{DSN: dsn}}
	}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

// open opens a store that runs until the test ends, or stop is called.
func open(t testing.TB, cfg sql.Config, dir string) (s *sql.Store, stop func()) {
	t.Helper()
	s, err := sql.Open(cfg, dir, testkit.Discard(), notes())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

// put writes a note.
func put(ctx context.Context, s *sql.Shard, id int, body string) error {
	return s.Write(ctx, func(ctx context.Context, c *sql.Conn) error { return insert(ctx, s, c, id, body) })
}

// insert writes a note in a transaction.
func insert(ctx context.Context, s *sql.Shard, c *sql.Conn, id int, body string) error {
	_, err := c.Bound.ExecContext(ctx, s.Dialect().Bind("INSERT INTO "+s.Table("notes")+" (id, body) VALUES (?, ?)")+s.Dialect().Upsert("id", "body"), id, body)
	return err
}

// get reads a note.
func get(ctx context.Context, s *sql.Shard, id int) (body string, err error) {
	err = s.Read(ctx, func(ctx context.Context, c *sql.Conn) error {
		return c.Bound.QueryRowContext(ctx, s.Dialect().Bind("SELECT body FROM "+s.Table("notes")+" WHERE id = ?"), id).Scan(&body)
	})
	return body, err
}

// count counts the notes of a shard.
func count(ctx context.Context, s *sql.Shard) (n int64, err error) {
	err = s.ReadLatest(ctx, func(ctx context.Context, c *sql.Conn) (err error) {
		n, err = c.NewSelect().TableExpr(s.Table("notes")).Count(ctx)
		return err
	})
	return n, err
}

// child is what this test's binary does when a test runs it.
func child(job string) {
	dir := os.Getenv("SPILLWAY_TEST_DIR")
	var err error
	switch job {
	case "write":
		err = childWrites(dir)
	case "read-only":
		err = childReadOnly(dir)
	case "migrate":
		err = childMigrates(dir, os.Getenv("SPILLWAY_TEST_DSN"))
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// childStore opens a store without a test.
func childStore(ctx context.Context, cfg sql.Config, dir string) (*sql.Store, chan error, error) {
	s, err := sql.Open(cfg, dir, testkit.Discard(), notes())
	if err != nil {
		return nil, nil, err
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return s, done, nil
}

// childWrites writes until it is killed, and says which writes were done.
func childWrites(dir string) error {
	s, _, err := childStore(context.Background(), sql.Default(), dir)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if err := put(context.Background(), s.Shard(i%sql.Shards), i, fmt.Sprint("note ", i)); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// childMigrates waits for a file to appear, and then migrates.
func childMigrates(dir, dsn string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	fmt.Println("ready")
	for missing := true; missing && ctx.Err() == nil; time.Sleep(100 * time.Microsecond) {
		_, err := os.Stat(filepath.Join(dir, "go"))
		missing = err != nil
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	s, done, err := childStore(run, only(dsn), dir)
	if err != nil {
		return err
	}
	err = put(ctx, s.Shard(3), os.Getpid(), "here")
	stop()
	return errors.Join(err, <-done)
}

// childReadOnly reads and writes a database that it may not write.
func childReadOnly(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	run, stop := context.WithCancel(ctx)
	defer stop()
	s, done, err := childStore(run, sql.Default(), dir)
	if err != nil {
		return err
	}
	body, err := get(ctx, s.Shard(0), 1)
	fmt.Printf("read %q %v\n", body, err)
	fmt.Printf("write %v\n", put(ctx, s.Shard(0), 2, "x"))
	stop()
	return <-done
}
