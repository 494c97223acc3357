package sqltest_test

import (
	"database/sql"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

func TestMain(m *testing.M) { sqltest.Main(m) }

// ask runs a question that has a number for an answer.
func ask(t *testing.T, driver, dsn, question string) (n int) {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(question).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// do runs statements.
func do(t *testing.T, driver, dsn string, statements ...string) {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDatabasesAreTheirTestsOwn(t *testing.T) {
	for name, tt := range map[string]struct {
		driver string
		dsn    func(testing.TB) string
		native func(string) string
	}{
		"postgres": {"pgx", sqltest.Postgres, func(s string) string { return s }},
		"mariadb": {"mysql", sqltest.MariaDB, func(s string) string {
			s = strings.TrimPrefix(s, "mysql://")
			s = strings.Replace(s, "@", "@tcp(", 1)
			return strings.Replace(s, "/test", ")/test", 1)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for range 2 {
				dsn := tt.native(tt.dsn(t))
				do(t, tt.driver, dsn, "CREATE TABLE mine (n INTEGER)", "INSERT INTO mine VALUES (7)")
				if got := ask(t, tt.driver, dsn, "SELECT SUM(n) FROM mine"); got != 7 {
					t.Errorf("got %d, want 7", got)
				}
			}
		})
	}
}

func TestReplicaFollowsUnlessItIsPaused(t *testing.T) {
	pair := sqltest.Replicated(t)
	do(t, "pgx", pair.Primary, "CREATE TABLE mine (n INTEGER)", "INSERT INTO mine VALUES (1)")
	follows := func(want int) {
		t.Helper()
		testkit.Eventually(t, "the replica has it", func() bool {
			db, err := sql.Open("pgx", pair.Replica)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var n int
			return db.QueryRow("SELECT SUM(n) FROM mine").Scan(&n) == nil && n == want
		})
	}
	follows(1)
	pair.Pause(t)
	do(t, "pgx", pair.Primary, "INSERT INTO mine VALUES (1)")
	if got := ask(t, "pgx", pair.Replica, "SELECT SUM(n) FROM mine"); got != 1 {
		t.Errorf("got %d from a paused replica, want 1", got)
	}
	pair.Resume(t)
	follows(2)
}
