package sql

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Config is the section `store.sql` of the configuration: the databases that keep
// what files are too small for.
type Config struct {
	// The databases. None means SQLite: a file `spillway.db` in the directory of `store`.
	Databases []DatabaseConfig `yaml:"databases"`
	// Most open connections to each server; further work waits for one. SQLite has as many readers, and one writer.
	MaxOpen int `yaml:"max_open"`
	// Most connections to each server that are kept open without work.
	MaxIdle int `yaml:"max_idle"`
	// A connection is replaced when it is as old as this, so that the load follows a server that moved.
	MaxLifetime time.Duration `yaml:"max_lifetime"`
	// A connection is closed after this time without work.
	MaxIdleTime time.Duration `yaml:"max_idle_time"`
	// Longest time for one read or write, connecting aside.
	Timeout time.Duration `yaml:"timeout"`
	// Longest time to connect to a server.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// Longest time to wait for another process that has locked a SQLite database.
	LockTimeout time.Duration `yaml:"lock_timeout"`
	// Replicas that are further behind their primary than this are not read from. It is measured once a second by the clocks of the gateways.
	MaxLag time.Duration `yaml:"max_lag"`
	// Most writes that wait for each database; a further one is refused.
	Queue int `yaml:"queue"`
	// Create and change tables as this version needs them. Without it somebody else must do so beforehand.
	Migrate bool `yaml:"migrate"`
}

// DatabaseConfig is one database, its replicas, and what it keeps.
type DatabaseConfig struct {
	// Where it is: `postgres://user:password@host:5432/name`, `mysql://user:password@host:3306/name` (MariaDB too; also `mysql://user:password@unix(/path/to/socket)/name`), or `sqlite:path`. Special characters in a password are percent-encoded, but for the `unix(...)` and `tcp(...)` forms. The migrations of PostgreSQL need a session of their own, which a pooler in transaction mode does not give.
	DSN string `yaml:"dsn"`
	// Copies of it that may be read from, in the same form. A replica is left alone while it fails or lags.
	Replicas []string `yaml:"replicas"`
	// Which of the 16 shards it keeps, such as `0-7,12`. May be left out where there is one database. To move a shard, copy its tables (those whose names end in its number) first.
	Shards string `yaml:"shards"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		MaxOpen: 16, MaxIdle: 8, MaxLifetime: 30 * time.Minute, MaxIdleTime: 5 * time.Minute,
		Timeout: 10 * time.Second, ConnectTimeout: 5 * time.Second, LockTimeout: 5 * time.Second, MaxLag: 10 * time.Second,
		Queue: 1024, Migrate: true,
	}
}

// Validate returns every mistake in the section. It connects to nothing.
func (c *Config) Validate() error {
	errs := []error{c.bounds()}
	seen := make(map[string]string)
	for i, db := range c.Databases {
		key := fmt.Sprintf("databases[%d].", i)
		for j, dsn := range append([]string{db.DSN}, db.Replicas...) {
			at := key + "dsn"
			if j > 0 {
				at = fmt.Sprintf("%sreplicas[%d]", key, j-1)
			}
			src, err := parseDSN(dsn, "")
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", at, err))
				continue
			}
			switch {
			case seen[src.name] != "":
				errs = append(errs, fmt.Errorf("%s: is %s once more", at, seen[src.name]))
			case j > 0 && src.dialect == SQLite:
				errs = append(errs, fmt.Errorf("%s: SQLite has no replicas", at))
			}
			seen[src.name] = at
		}
	}
	_, err := c.owners()
	return errors.Join(append(errs, err)...)
}

// bounds judges the numbers.
func (c *Config) bounds() error {
	var errs []error
	count := func(key string, n, least, most int) {
		if n < least || n > most {
			errs = append(errs, fmt.Errorf("%s: must be %d to %d, got %d", key, least, most, n))
		}
	}
	span := func(key string, d, least, most time.Duration) {
		if d < least || d > most {
			errs = append(errs, fmt.Errorf("%s: must be %v to %v, got %v", key, least, most, d))
		}
	}
	count("max_open", c.MaxOpen, 2, 10_000) // a migration has one for its lock
	count("max_idle", c.MaxIdle, 1, 10_000)
	count("queue", c.Queue, 1, 1_000_000)
	span("max_lifetime", c.MaxLifetime, time.Second, 30*24*time.Hour)
	span("max_idle_time", c.MaxIdleTime, time.Second, 30*24*time.Hour)
	span("timeout", c.Timeout, 10*time.Millisecond, time.Hour)
	span("connect_timeout", c.ConnectTimeout, 10*time.Millisecond, 5*time.Minute)
	span("lock_timeout", c.LockTimeout, time.Millisecond, 5*time.Minute)
	span("max_lag", c.MaxLag, 2*time.Second, 24*time.Hour)
	return errors.Join(errs...)
}

// owners says which database keeps each shard, by its place in the list; 0 when
// there is no list.
func (c *Config) owners() (of [Shards]int, err error) {
	if len(c.Databases) == 0 || len(c.Databases) == 1 && c.Databases[0].Shards == "" {
		return of, nil
	}
	for i := range of {
		of[i] = -1
	}
	var errs []error
	for i, db := range c.Databases {
		list, err := parseShards(db.Shards)
		if err != nil {
			errs = append(errs, fmt.Errorf("databases[%d].shards: %w", i, err))
		}
		for _, n := range list {
			if of[n] >= 0 {
				errs = append(errs, fmt.Errorf("databases[%d].shards: databases[%d] has shard %d too", i, of[n], n))
			}
			of[n] = i
		}
	}
	var missing []string
	for n, i := range of {
		if i < 0 {
			missing = append(missing, strconv.Itoa(n))
		}
	}
	if len(missing) > 0 && len(errs) == 0 {
		errs = append(errs, fmt.Errorf("databases: no database has shard %s", strings.Join(missing, ", ")))
	}
	return of, errors.Join(errs...)
}

// parseShards reads a list such as "0-7,12".
func parseShards(s string) (list []int, err error) {
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(strings.TrimSpace(low))
		to := from
		if err == nil && isRange {
			to, err = strconv.Atoi(strings.TrimSpace(high))
		}
		if err != nil || from < 0 || to >= Shards || to < from {
			return nil, fmt.Errorf("want numbers and ranges of 0 to %d such as 0-7,12, got %q", Shards-1, s)
		}
		for n := from; n <= to; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}
