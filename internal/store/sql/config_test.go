package sql_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
)

func TestConfigIsReadAndValid(t *testing.T) {
	cfg := sql.Default()
	text := `
databases:
  - dsn: postgres://u:p@a/x
    replicas: ["postgres://u:p@b/x"]
    shards: 0-7
  - dsn: mysql://u:p@c/x
    shards: 8-14,15
max_open: 3
timeout: 2s
migrate: false
`
	if err := yaml.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	want := sql.Default()
	want.Databases = []sql.DatabaseConfig{
		{DSN: "postgres://u:p@a/x", Replicas: []string{"postgres://u:p@b/x"}, Shards: "0-7"},
		{DSN: "mysql://u:p@c/x", Shards: "8-14,15"},
	}
	want.MaxOpen, want.Timeout, want.Migrate = 3, 2*time.Second, false
	if diff := cmp.Diff(want, cfg); diff != "" {
		t.Error(diff)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if s, err := sql.Open(cfg, "", testkit.Discard()); err != nil {
		t.Error(err)
	} else if got, want := s.Shard(8).Name(), "mysql://c:3306/x"; got != want {
		t.Errorf("got shard 8 on %s, want %s", got, want)
	}
}

func TestMistakesOfConfigurations(t *testing.T) {
	const pg, my = "postgres://u:hunter2@a/x", "mysql://u:hunter2@b/x"
	list := func(l ...sql.DatabaseConfig) func(*sql.Config) { return func(c *sql.Config) { c.Databases = l } }
	for name, tt := range map[string]struct {
		change func(*sql.Config)
		want   []string // in the error, which has as many lines
	}{
		"nothing":         {func(*sql.Config) {}, nil},
		"one":             {list(sql.DatabaseConfig{DSN: pg}), nil},
		"one with all":    {list(sql.DatabaseConfig{DSN: pg, Shards: "0-15"}), nil},
		"one with some":   {list(sql.DatabaseConfig{DSN: pg, Shards: "1-14"}), []string{"databases: no database has shard 0, 15"}},
		"two":             {list(sql.DatabaseConfig{DSN: pg, Shards: " 0 - 7, 9"}, sql.DatabaseConfig{DSN: my, Shards: "8,10-15"}), nil},
		"none of two":     {list(sql.DatabaseConfig{DSN: pg, Shards: "0-7"}, sql.DatabaseConfig{DSN: my}), []string{"databases[1].shards: want numbers and ranges of 0 to 15"}},
		"doubled":         {list(sql.DatabaseConfig{DSN: pg, Shards: "0-8"}, sql.DatabaseConfig{DSN: my, Shards: "8-15"}), []string{"databases[1].shards: databases[0] has shard 8 too"}},
		"out of range":    {list(sql.DatabaseConfig{DSN: pg, Shards: "0-16"}), []string{`databases[0].shards: want numbers and ranges of 0 to 15 such as 0-7,12, got "0-16"`}},
		"backwards":       {list(sql.DatabaseConfig{DSN: pg, Shards: "9-3"}), []string{"databases[0].shards"}},
		"same twice":      {list(sql.DatabaseConfig{DSN: pg, Replicas: []string{"postgres://other@a:5432/x"}}), []string{"databases[0].replicas[0]: is databases[0].dsn once more"}},
		"sqlite replica":  {list(sql.DatabaseConfig{DSN: "sqlite:a.db", Replicas: []string{"sqlite:b.db"}}), []string{"databases[0].replicas[0]: SQLite has no replicas"}},
		"unknown scheme":  {list(sql.DatabaseConfig{DSN: "oracle://u:hunter2@a/x"}), []string{"databases[0].dsn: want an address that begins with postgres, mysql or sqlite"}},
		"no scheme":       {list(sql.DatabaseConfig{DSN: "u:hunter2@tcp(a)/x"}), []string{"databases[0].dsn: want an address"}},
		"no dsn":          {list(sql.DatabaseConfig{}), []string{"databases[0].dsn: want an address"}},
		"raw password pg": {list(sql.DatabaseConfig{DSN: "postgres://u:hunter2/#?@a/x"}), []string{"databases[0].dsn: not an address of PostgreSQL"}},
		"raw password my": {list(sql.DatabaseConfig{DSN: "mysql://u:hunter2/#?@a/x"}), []string{"databases[0].dsn: not an address of MySQL"}},
		"pg without name": {list(sql.DatabaseConfig{DSN: "postgres://u:hunter2@a/"}), []string{"databases[0].dsn: names no database"}},
		"my without name": {list(sql.DatabaseConfig{DSN: "mysql://u:hunter2@a"}), []string{"databases[0].dsn: names no database"}},
		"pg parameter":    {list(sql.DatabaseConfig{DSN: "postgres://u:hunter2@a/x?sslmode=perhaps"}), []string{"databases[0].dsn: not an address of PostgreSQL"}},
		"pg file":         {list(sql.DatabaseConfig{DSN: "postgres://u:hunter2@a/x?sslmode=verify-ca&sslrootcert=/no/such"}), []string{"databases[0].dsn: a file of its parameters: open /no/such"}},
		"my parameter":    {list(sql.DatabaseConfig{DSN: "mysql://u:hunter2@a/x?tls=perhaps"}), []string{"databases[0].dsn: not an address of MySQL"}},
		"my network":      {list(sql.DatabaseConfig{DSN: "mysql://u:hunter2@udp(a:3)/x?z=tcp("}), []string{"databases[0].dsn: not an address of MySQL"}},
		"numbers": {func(c *sql.Config) {
			c.MaxOpen, c.MaxIdle, c.Queue, c.Timeout, c.MaxLag = 0, -1, 0, 0, time.Second
			c.MaxLifetime, c.MaxIdleTime, c.ConnectTimeout, c.LockTimeout = 0, 0, 0, 0
		}, []string{
			"max_open: must be 2 to 10000, got 0", "max_idle: ", "queue: ", "max_lifetime: ", "max_idle_time: ",
			"timeout: must be 10ms to 1h0m0s, got 0s", "connect_timeout: ", "lock_timeout: ", "max_lag: must be 2s",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := sql.Default()
			tt.change(&cfg)
			err := cfg.Validate()
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("got %d mistakes, want %d: %v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("got %q, want %q in it", lines[i], want)
				}
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the password is in %q", err)
			}
			if _, again := sql.Open(cfg, "", testkit.Discard()); (again == nil) != (err == nil) {
				t.Errorf("Validate says %v and Open says %v", err, again)
			}
		})
	}
}

func TestNamesOfDatabases(t *testing.T) {
	for name, tt := range map[string]struct{ dsn, want string }{
		"pg":             {"postgres://u:hunter2@a/x", "postgres://a:5432/x"},
		"pg long":        {"postgresql://u:hunter2@a:99/x?sslmode=disable&application_name=y", "postgres://a:99/x"},
		"pg socket":      {"postgres:///x?host=/run/pg&user=u&password=hunter2", "postgres://unix(/run/pg/.s.PGSQL.5432)/x"},
		"pg escaped":     {"postgres://u:hunter2%2F%40@[::1]:99/x", "postgres://[::1]:99/x"},
		"my":             {"mysql://u:hunter2@a/x", "mysql://a:3306/x"},
		"my escaped":     {"mysql://u:hunter2%2F%40%3F@a:99/x?tls=true", "mysql://a:99/x"},
		"my ipv6":        {"mariadb://u:hunter2@[::1]:99/x", "mysql://[::1]:99/x"},
		"my socket":      {"mysql://u:hunter2@unix(/run/my.sock)/x", "mysql://unix(/run/my.sock)/x"},
		"my native":      {"mysql://u:hunter2/@tcp(a:99)/x?timeout=3s", "mysql://a:99/x"},
		"my nobody":      {"mysql://a/x", "mysql://a:3306/x"},
		"sqlite":         {"sqlite:a.db", "sqlite:a.db"},
		"sqlite slashes": {"sqlite:///var/a b?#.db", "sqlite:/var/a b?#.db"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := sql.Open(only(tt.dsn), "/d", testkit.Discard())
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Databases()[0].Name(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzDSN(f *testing.F) {
	for _, s := range []string{
		"postgres://u:hunter2@a:5432/x?sslmode=disable", "postgres://u:hunter2@a,b/x", "postgres:///x?host=/run/pg&password=hunter2",
		"mysql://u:hunter2@a/x?tls=true", "mysql://u:hunter2@unix(/run/a)/x", "mysql://u:hunter2@tcp([::1]:3)/x?loc=UTC",
		"mysql://u:hunter2/#@a/x", "postgres://u:hunter2#@a/x", "mysql://u:@hunter2:@a:3/x?hunter2", "sqlite:a", "sqlite://", "", ":", "mysql://(", "mysql://tcp(",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, dsn string) {
		cfg := only(dsn)
		err := cfg.Validate()
		if err != nil && strings.Contains(err.Error(), "hunter2") && !strings.HasPrefix(dsn, "sqlite:") {
			t.Errorf("the password is in %q", err)
		}
		s, again := sql.Open(cfg, "", testkit.Discard())
		if (err == nil) != (again == nil) {
			t.Fatalf("Validate says %v and Open says %v", err, again)
		}
		if err == nil && s.Databases()[0].Name() == "" {
			t.Error("a database without a name")
		}
	})
}
