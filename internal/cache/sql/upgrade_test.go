package sql_test

import (
	"context"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	cachesql "github.com/spillway/spillway/internal/cache/sql"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
)

// TestTablesOfBefore are brought up to date, also where a step was done by halves, as
// far as the database lets that happen.
func TestTablesOfBefore(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			cfg, dir := sql.Default(), t.TempDir()
			cfg.Databases = []sql.DatabaseConfig{{DSN: dsn(t)}}
			all := cachesql.Migrations()
			old, err := sql.Open(cfg, dir, testkit.Discard(), sql.Migrations{Name: all.Name, Steps: all.Steps[:1]})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- old.Run(ctx) }()
			key := cachetest.Key("a")
			shard := old.ShardOf(key)
			if err := shard.Write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
				if _, err := c.Bound.ExecContext(ctx, shard.Dialect().Bind("INSERT INTO "+shard.Table("cache")+
					" (hash, scope, model, stale_ms, size, data) VALUES (?, ?, ?, ?, ?, ?)"), key[:], []byte("s"), []byte("m"), 1, 1, []byte("x")); err != nil {
					return err
				}
				if shard.Dialect() != sql.MySQL {
					return nil
				}
				half := all.Steps[1](sql.MySQL)
				for _, text := range half[:len(half)-sql.Shards/2] {
					if _, err := c.ExecContext(ctx, text); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			level, _ := start(t, cfg, dir, room)
			e := cachetest.NewEntry("a", time.Now())
			if err := level.Put(t.Context(), []*cache.Entry{e}); err != nil {
				t.Fatal(err)
			}
			wants(t, level, e)
		})
	}
}
