package sqltest

import (
	"database/sql"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
)

// fast are settings of PostgreSQL for data that nobody misses.
func fast(s *server) []string {
	args := []string{"-D", s.path("data"), "-h", "127.0.0.1", "-p", strconv.Itoa(s.port)}
	for _, set := range []string{
		"fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=60", "unix_socket_directories=" + s.dir,
		"autovacuum=off", "wal_receiver_status_interval=1", "log_min_messages=fatal", "max_wal_senders=3",
	} {
		args = append(args, "-c", set)
	}
	return args
}

// The servers of this process. SIGQUIT ends PostgreSQL with all its children.
var (
	postgres = server{
		program: "postgres", pkg: "postgresql", user: "postgres", driver: "pgx", end: syscall.SIGQUIT, args: fast,
		admin: func(s *server) string { return s.postgres("postgres") },
		prepare: func(s *server) error {
			if err := os.WriteFile(s.path("password"), []byte(Password+"\n"), 0o644); err != nil {
				return err
			}
			return s.run("initdb", "-D", s.path("data"), "-U", "spillway", "-A", "scram-sha-256", "--pwfile="+s.path("password"),
				"-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
		},
	}
	replica = server{
		program: "postgres", pkg: "postgresql", user: "postgres", driver: "pgx", end: syscall.SIGQUIT, args: fast,
		admin: func(s *server) string { return s.postgres("postgres") },
		prepare: func(s *server) error {
			return s.run("pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(postgres.port), "-U", "spillway", "-w",
				"-D", s.path("data"), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")
		},
	}
)

// postgres is the DSN of a database of a server.
func (s *server) postgres(name string) string {
	return fmt.Sprintf("postgres://spillway:%s@127.0.0.1:%d/%s?sslmode=disable", Password, s.port, name)
}

// Postgres is the DSN of a new, empty database of PostgreSQL, by TCP.
func Postgres(t testing.TB) string {
	t.Helper()
	postgres.need(t)
	return postgres.postgres(postgres.database(t, "DROP DATABASE %s WITH (FORCE)"))
}

// Pair is a database of PostgreSQL and a replica of it on another server.
type Pair struct {
	Primary, Replica string // DSNs
}

// Replicated is a new, empty database of PostgreSQL with a replica. The replica
// follows when the test has ended.
func Replicated(t testing.TB) *Pair {
	t.Helper()
	postgres.need(t)
	replica.need(t)
	name := postgres.database(t, "DROP DATABASE %s WITH (FORCE)")
	p := &Pair{Primary: postgres.postgres(name), Replica: replica.postgres(name)}
	t.Cleanup(func() { p.Resume(t) })
	return p
}

// Pause makes the replica stand still: it answers, with what it has.
func (p *Pair) Pause(t testing.TB) {
	t.Helper()
	p.replay(t, "SELECT pg_wal_replay_pause()", "paused")
}

// Resume makes the replica follow again.
func (p *Pair) Resume(t testing.TB) {
	t.Helper()
	p.replay(t, "SELECT pg_wal_replay_resume()", "not paused")
}

// replay asks the replica's server and waits until it is so.
func (p *Pair) replay(t testing.TB, ask, want string) {
	t.Helper()
	db, err := sql.Open("pgx", replica.postgres("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(ask); err != nil {
		t.Fatal(err)
	}
	for state := ""; state != want; {
		if err := db.QueryRow("SELECT pg_get_wal_replay_pause_state()").Scan(&state); err != nil {
			t.Fatal(err)
		}
	}
}
