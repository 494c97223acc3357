package sql_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

// servers are the kinds of server that a test runs on.
func servers() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{"postgres": sqltest.Postgres, "mariadb": sqltest.MariaDB}
}

// impatient is a configuration for networks with faults.
func impatient(c *sql.Config) { c.Timeout, c.ConnectTimeout = 2*time.Second, 2*time.Second }

func TestServersKeepWhatIsWritten(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			at := dsn(t)
			s, stop := open(t, only(at), "")
			for n := range sql.Shards {
				for _, body := range []string{"first", fmt.Sprint("it's \\ \"quoted\" ? $1 ", n)} {
					if err := put(t.Context(), s.Shard(n), n, body); err != nil {
						t.Fatal(err)
					}
				}
			}
			mistake := errors.New("a mistake")
			err := s.Shard(0).Write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
				return errors.Join(insert(ctx, s.Shard(0), c, 100, "undone"), mistake)
			})
			if !errors.Is(err, mistake) {
				t.Errorf("got %v, want the caller's own error", err)
			}
			stop()
			again, _ := open(t, only(at, func(c *sql.Config) { c.Migrate = false }), "")
			for n := range sql.Shards {
				if got, err := get(t.Context(), again.Shard(n), n); got != fmt.Sprint("it's \\ \"quoted\" ? $1 ", n) || err != nil {
					t.Errorf("shard %d: got %q and %v", n, got, err)
				}
			}
			if n, err := count(t.Context(), again.Shard(0)); n != 1 || err != nil {
				t.Errorf("got %d notes and %v, want 1", n, err)
			}
		})
	}
}

func TestTransactionThatLosesIsDoneAgain(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			s, _ := open(t, only(dsn(t)), "")
			shard := s.Shard(5)
			for id := range 2 {
				if err := put(t.Context(), shard, id, "x"); err != nil {
					t.Fatal(err)
				}
			}
			// Each has one row and wants the other's: one of them is a victim.
			var wg, both sync.WaitGroup
			both.Add(2)
			for who := range 2 {
				var once sync.Once
				wg.Go(func() {
					err := shard.WriteRelaxed(t.Context(), func(ctx context.Context, c *sql.Conn) error {
						for i := range 2 {
							if _, err := c.Bound.ExecContext(ctx, shard.Dialect().Bind("UPDATE "+shard.Table("notes")+" SET n = n + 1 WHERE id = ?"), (who+i)%2); err != nil {
								return err
							}
							once.Do(func() { both.Done(); both.Wait() })
						}
						return nil
					})
					if err != nil {
						t.Errorf("transaction %d: %v", who, err)
					}
				})
			}
			wg.Wait()
			var sum int
			if err := shard.ReadLatest(t.Context(), func(ctx context.Context, c *sql.Conn) error {
				return c.NewSelect().TableExpr(shard.Table("notes")).ColumnExpr("SUM(n)").Scan(ctx, &sum)
			}); sum != 4 || err != nil {
				t.Errorf("got %d and %v, want 4: each once", sum, err)
			}
		})
	}
}

func TestProcessesMigrateAServerAtOnce(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			at := dsn(t)
			together(t, t.TempDir(), at)
			s, _ := open(t, only(at), "")
			if n, err := count(t.Context(), s.Shard(3)); n != 4 || err != nil {
				t.Errorf("got %d notes and %v, want one of each process", n, err)
			}
			steps(t, s)
		})
	}
}

func TestServerThatIsDownAtTheStart(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			proxy, at := sqltest.Through(t, dsn(t))
			proxy.Set(faultnet.Faults{Refuse: true})
			s, _ := open(t, only(at, impatient), "")
			_, err := get(t.Context(), s.Shard(0), 1)
			for what, err := range map[string]error{"read": err, "write": put(t.Context(), s.Shard(0), 1, "x")} {
				if err == nil || strings.Contains(err.Error(), sqltest.Password) || !strings.Contains(err.Error(), s.Databases()[0].Name()) {
					t.Errorf("%s: got %v, want a failure of %s", what, err, s.Databases()[0].Name())
				}
			}
			if faultsOf(s, sql.FaultConnect) == 0 {
				t.Error("the failure is not counted")
			}
			proxy.Set(faultnet.Faults{})
			testkit.Eventually(t, "it is used once it is there", func() bool { return put(t.Context(), s.Shard(0), 1, "x") == nil })
		})
	}
}

func TestServerGoesAndComesBack(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			proxy, at := sqltest.Through(t, dsn(t))
			s, _ := open(t, only(at, impatient), "")
			if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
				t.Fatal(err)
			}
			for what, faults := range map[string]faultnet.Faults{
				"gone": {Refuse: true}, "silent": {BlackHole: true}, "babbling": {Garbage: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
			} {
				proxy.Set(faults)
				if what == "gone" {
					proxy.Reset()
				}
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), soon)
				got, err := get(ctx, s.Shard(0), 1)
				if err == nil {
					t.Errorf("%s: got %q", what, got)
				}
				if err := put(ctx, s.Shard(0), 1, "y"); err == nil || strings.Contains(err.Error(), sqltest.Password) {
					t.Errorf("%s: write: got %v", what, err)
				}
				cancel()
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("%s: took %v of callers who had %v", what, took, soon)
				}
				proxy.Set(faultnet.Faults{})
				testkit.Eventually(t, "it is back", func() bool {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					got, err := get(ctx, s.Shard(0), 1)
					return got == "x" && err == nil
				})
			}
		})
	}
}

func TestCallersWithLittleTimeGetAConnection(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			proxy, at := sqltest.Through(t, dsn(t))
			s, _ := open(t, only(at, impatient), "")
			if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
				t.Fatal(err)
			}
			// To connect takes several ways there and back, to ask one or two.
			proxy.Set(faultnet.Faults{Delay: 20 * time.Millisecond})
			proxy.Reset()
			testkit.Eventually(t, "somebody gets an answer", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), 95*time.Millisecond)
				defer cancel()
				got, err := get(ctx, s.Shard(0), 1)
				return got == "x" && err == nil
			})
		})
	}
}

func TestSecretsStayOutOfLogs(t *testing.T) {
	for name, dsn := range servers() {
		t.Run(name, func(t *testing.T) {
			at := strings.Replace(dsn(t), sqltest.Password, "hunter2-wrong", 1)
			var log testkit.Log
			s, err := sql.Open(only(at), "", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), notes())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.Run(ctx) }()
			err = put(t.Context(), s.Shard(0), 1, "x")
			testkit.Eventually(t, "it is logged", func() bool { return log.Count("database cannot be used yet") > 0 })
			cancel()
			<-done
			if err == nil || strings.Contains(err.Error()+log.String(), "hunter2") {
				t.Errorf("got %v and the log %s, want a failure without the password", err, log.String())
			}
		})
	}
}

// replicated is a store with a replica that is in use, and note 1 on it.
func replicated(t *testing.T, primary, replica string, change func(*sql.Config)) *sql.Store {
	t.Helper()
	s, _ := open(t, only(primary, change, func(c *sql.Config) { c.Databases[0].Replicas = []string{replica} }), "")
	if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the replica is used", func() bool {
		got, err := get(t.Context(), s.Shard(0), 1)
		return usable(s) && got == "x" && err == nil
	})
	return s
}

// usable says whether the replica may be read from.
func usable(s *sql.Store) bool {
	for _, one := range s.Stats() {
		if one.Role == "replica" && one.Usable {
			return true
		}
	}
	return false
}

func TestReadsGoToTheReplicaUnlessItLags(t *testing.T) {
	pair := sqltest.Replicated(t)
	s := replicated(t, pair.Primary, pair.Replica, func(c *sql.Config) { c.MaxLag = 2 * time.Second })
	pair.Pause(t)
	if err := put(t.Context(), s.Shard(0), 1, "y"); err != nil {
		t.Fatal(err)
	}
	if got, err := get(t.Context(), s.Shard(0), 1); got != "x" || err != nil {
		t.Errorf("got %q and %v, want what the replica has", got, err)
	}
	var latest string
	if err := s.Shard(0).ReadLatest(t.Context(), func(ctx context.Context, c *sql.Conn) error {
		return c.Bound.QueryRowContext(ctx, "SELECT body FROM "+s.Shard(0).Table("notes")+" WHERE id = $1", 1).Scan(&latest)
	}); latest != "y" || err != nil {
		t.Errorf("got %q and %v, want what the primary has", latest, err)
	}
	testkit.Eventually(t, "a replica that lags is not read from", func() bool {
		got, err := get(t.Context(), s.Shard(0), 1)
		return got == "y" && err == nil && !usable(s)
	})
	pair.Resume(t)
	testkit.Eventually(t, "it is used again", func() bool { return usable(s) })
}

func TestReplicaThatFailsCostsNothing(t *testing.T) {
	pair := sqltest.Replicated(t)
	proxy, replica := sqltest.Through(t, pair.Replica)
	s := replicated(t, pair.Primary, replica, impatient)
	proxy.Set(faultnet.Faults{Refuse: true})
	proxy.Reset()
	for range 20 {
		if got, err := get(t.Context(), s.Shard(0), 1); got != "x" || err != nil {
			t.Fatalf("got %q and %v, want the primary's answer", got, err)
		}
	}
	testkit.Eventually(t, "it is left alone", func() bool { return !usable(s) })
	proxy.Set(faultnet.Faults{})
	testkit.Eventually(t, "it is used again", func() bool { return usable(s) })
}
