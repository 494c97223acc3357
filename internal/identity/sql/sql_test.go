package sql_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/identity"
	keysql "github.com/spillway/spillway/internal/identity/sql"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

func TestMain(m *testing.M) { sqltest.Main(m) }

// databases are the kinds of database that a test runs on.
func databases() map[string]func(testing.TB) string {
	return map[string]func(testing.TB) string{
		"sqlite":   func(testing.TB) string { return "sqlite:keys.db" },
		"postgres": sqltest.Postgres,
		"mariadb":  sqltest.MariaDB,
	}
}

// open makes a table that works until the test ends, with what it is kept in.
func open(t testing.TB, dsn, dir string) (*keysql.Table, *sql.Store) {
	t.Helper()
	cfg := sql.Default()
	cfg.Databases = []sql.DatabaseConfig{{DSN: dsn}}
	store, err := sql.Open(cfg, dir, testkit.Discard(), keysql.Migrations())
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
	return keysql.New(store), store
}

// noon is when the tests are.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// newKey is a key of a tenant, by its secret.
func newKey(t testing.TB, id, tenant string) identity.Key {
	t.Helper()
	var cfg identity.Config
	d, err := cfg.DigestOf("secret of " + id)
	if err != nil {
		t.Fatal(err)
	}
	return identity.Key{ID: id, Digest: d, Tenant: tenant, Class: inference.VIP}
}

// list is what the table has.
func list(t testing.TB, table *keysql.Table) []identity.Key {
	t.Helper()
	keys, err := table.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestRegister(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			table, _ := open(t, dsn(t), dir)
			ctx := t.Context()
			if keys, version, err := table.Load(ctx, -1); len(keys) != 0 || version != 0 || err != nil {
				t.Errorf("nothing: got %v, %d, %v", keys, version, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "keys.db")); err == nil {
				t.Error("a file was made before the first key")
			}
			all := newKey(t, "all", "Acme")
			all.Models, all.Expires, all.Revoked = []string{"a-*", "b"}, noon, noon.Add(time.Hour)
			all.Quota = inference.Quota{RequestsPerSecond: 1, RequestsPerMinute: 2, TokensPerMinute: 3, Concurrent: 4, TokensPerDay: 5, TokensPerMonth: 6}
			all.Digest.Kind = identity.HMAC
			few := newKey(t, "few", "acme") // which a database might take for the other tenant
			for _, k := range []identity.Key{all, few} {
				if err := table.Add(ctx, k); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff([]identity.Key{all, few}, list(t, table)); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
			_, version, err := table.Load(ctx, -1)
			if keys, again, err2 := table.Load(ctx, version); err != nil || err2 != nil || version != 2 || again != 2 || keys != nil {
				t.Errorf("got versions %d and %d, %v, %v, with %d keys of a known version", version, again, err, err2, len(keys))
			}
			same, taken := newKey(t, "few", "x"), newKey(t, "other", "x")
			taken.Digest = few.Digest
			for _, k := range []identity.Key{same, taken} {
				if err := table.Add(ctx, k); !errors.Is(err, identity.ErrTaken) {
					t.Errorf("got %v, want ErrTaken", err)
				}
			}
			if err := table.Update(ctx, "none", func(*identity.Key) (*identity.Key, error) { return nil, nil }); !errors.Is(err, identity.ErrUnknownKey) {
				t.Errorf("got %v, want ErrUnknownKey", err)
			}
			next := newKey(t, "next", "acme")
			rotate := func(more *identity.Key) error {
				return table.Update(ctx, "few", func(k *identity.Key) (*identity.Key, error) { k.Expires = noon; return more, nil })
			}
			if err := rotate(&taken); !errors.Is(err, identity.ErrTaken) || !list(t, table)[1].Expires.IsZero() {
				t.Errorf("half of a change is kept: %v", err)
			}
			if err := rotate(&next); err != nil {
				t.Fatal(err)
			}
			few.Expires = noon
			if diff := cmp.Diff([]identity.Key{all, few, next}, list(t, table)); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
			if _, version, _ := table.Load(ctx, -1); version != 3 {
				t.Errorf("got version %d, want 3: what fails changes nothing", version)
			}
		})
	}
}

// TestWritersAndPages adds keys from several sides, and reads more than a page.
func TestWritersAndPages(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			dsn, dir := dsn(t), t.TempDir()
			a, store := open(t, dsn, dir)
			b, _ := open(t, dsn, dir)
			var wg sync.WaitGroup
			for side, table := range []*keysql.Table{a, b} {
				wg.Go(func() {
					for i := range 5 {
						if err := table.Add(t.Context(), newKey(t, fmt.Sprintf("w%d-%d", side, i), "acme")); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if _, version, err := a.Load(t.Context(), -1); version != 10 || err != nil {
				t.Errorf("got version %d, %v, want 10", version, err)
			}
			shard := store.Shard(0)
			err := shard.Write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
				for i := range 2000 {
					k := newKey(t, fmt.Sprintf("p%04d", i), "acme")
					text := "INSERT INTO " + shard.Table("identity") + " VALUES (?, 0, ?, ?, ?, ?, 0, 0, 0, 0, 0, 0, 0, 0)"
					if _, err := c.Bound.ExecContext(ctx, shard.Dialect().Bind(text), []byte(k.ID), k.Digest.Sum[:], []byte(k.Tenant), []byte("vip"), []byte("")); err != nil {
						return err
					}
				}
				// One that no gateway understands.
				text := "UPDATE " + shard.Table("identity") + " SET class = ? WHERE id = ?"
				_, err := c.Bound.ExecContext(ctx, shard.Dialect().Bind(text), []byte("idle"), []byte("p1500"))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			keys, _, err := a.Load(t.Context(), -1)
			if len(keys) != 2009 || !errors.Is(err, identity.ErrSomeKeys) || !strings.Contains(err.Error(), `"p1500"`) {
				t.Errorf("got %d keys, %v, want all but p1500", len(keys), err)
			}
			keysql.Bound(a, 100)
			if _, version, err := a.Load(t.Context(), -1); err == nil || version != -1 || !strings.Contains(err.Error(), "more than 100 keys") {
				t.Errorf("got version %d, %v", version, err)
			}
			if err := a.Add(t.Context(), newKey(t, "late", "acme")); err == nil || !strings.Contains(err.Error(), "as many as there may be") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// gateway is what asks who somebody is.
func gateway(t *testing.T, table *keysql.Table) func(key string) bool {
	t.Helper()
	cfg := identity.Default()
	cfg.SQL, cfg.Refresh = true, 100*time.Millisecond
	keys, err := identity.New(cfg, identity.Parts{Database: table, Log: testkit.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- keys.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(key string) bool {
		_, err := keys.Identify(http.Header{"X-Api-Key": {key}})
		return err == nil
	}
}

// TestGatewaysFollow rotates and revokes while two gateways work.
func TestGatewaysFollow(t *testing.T) {
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			dsn, dir := dsn(t), t.TempDir()
			table, _ := open(t, dsn, dir)
			other, _ := open(t, dsn, dir)
			first, second := gateway(t, table), gateway(t, other)
			both := func(key string) bool { return first(key) && second(key) }
			none := func(key string) bool { return !first(key) && !second(key) }
			if err := table.Add(t.Context(), newKey(t, "old", "acme")); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "both know the key", func() bool { return both("secret of old") })
			next := newKey(t, "new", "acme")
			if err := table.Update(t.Context(), "old", func(k *identity.Key) (*identity.Key, error) { k.Expires = time.Now().Add(time.Hour); return &next, nil }); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "both know the new key", func() bool { return both("secret of new") })
			if !both("secret of old") {
				t.Error("the old key ended before its time")
			}
			if err := table.Update(t.Context(), "old", func(k *identity.Key) (*identity.Key, error) { k.Revoked = time.Now(); return nil, nil }); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "nobody takes the old key", func() bool { return none("secret of old") })
			if !both("secret of new") {
				t.Error("the new key went with the old one")
			}
		})
	}
}

// TestTheDatabaseGoesAway cuts the way to a server.
func TestTheDatabaseGoesAway(t *testing.T) {
	proxy, dsn := sqltest.Through(t, sqltest.Postgres(t))
	table, _ := open(t, dsn, "")
	if err := table.Add(t.Context(), newKey(t, "k", "acme")); err != nil {
		t.Fatal(err)
	}
	knows := gateway(t, table)
	testkit.Eventually(t, "the key is known", func() bool { return knows("secret of k") })
	proxy.Set(faultnet.Faults{Refuse: true})
	proxy.Reset()
	testkit.Eventually(t, "the database is away", func() bool { _, _, err := table.Load(t.Context(), -1); return err != nil })
	if !knows("secret of k") || knows("secret of x") {
		t.Error("the last known keys are gone")
	}
	proxy.Set(faultnet.Faults{})
	testkit.Eventually(t, "a key can be made again", func() bool { return table.Add(t.Context(), newKey(t, "late", "acme")) == nil })
	testkit.Eventually(t, "the new key is known", func() bool { return knows("secret of late") })
}
