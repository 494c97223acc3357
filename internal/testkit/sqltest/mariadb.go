package sqltest

import (
	"fmt"
	"strconv"
	"syscall"
	"testing"
)

// maria is the server of this process.
var maria = server{
	program: "mariadbd", pkg: "mariadb-server", user: "mysql", driver: "mysql", end: syscall.SIGKILL,
	admin: func(s *server) string { return "root@unix(" + s.path("socket") + ")/mysql" },
	prepare: func(s *server) error {
		return s.run("mariadb-install-db", "--no-defaults", "--datadir="+s.path("data"), "--auth-root-authentication-method=normal",
			"--skip-test-db", "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M")
	},
	args: func(s *server) []string {
		return []string{
			"--no-defaults", "--datadir=" + s.path("data"), "--socket=" + s.path("socket"), "--pid-file=" + s.path("pid"),
			"--bind-address=127.0.0.1", "--port=" + strconv.Itoa(s.port), "--skip-name-resolve", "--skip-log-bin",
			"--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", "--performance-schema=OFF",
		}
	},
}

// MariaDB is the DSN of a new, empty database of MariaDB, by TCP.
func MariaDB(t testing.TB) string {
	t.Helper()
	maria.need(t)
	name := maria.database(t, "DROP DATABASE %s")
	user := fmt.Sprintf("CREATE USER IF NOT EXISTS spillway IDENTIFIED BY '%s'", Password)
	if err := maria.exec(user, "GRANT ALL ON *.* TO spillway"); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("mysql://spillway:%s@127.0.0.1:%d/%s", Password, maria.port, name)
}
