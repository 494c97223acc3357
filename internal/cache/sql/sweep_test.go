package sql_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	"github.com/spillway/spillway/internal/store/sql"
)

// inShard puts n small entries into one shard.
func inShard(t *testing.T, level cache.Level, shard byte, n int, stale time.Time) {
	t.Helper()
	for i := 0; i < n; {
		var batch []*cache.Entry
		for range min(500, n-i) {
			e := cachetest.OnePiece(cachetest.NewEntry(fmt.Sprint(shard, stale, i), time.Now()), []byte("{}"))
			e.Key[0], e.Expires, e.Stale = shard<<4, stale, stale
			batch = append(batch, e)
			i++
		}
		if err := level.Put(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneSweepDeletesWhatIsOver(t *testing.T) {
	const size, each = 16 * 100_000, 3_000 // six times the share of a shard, and more than a turn takes
	for name, dsn := range databases() {
		t.Run(name, func(t *testing.T) {
			level, _ := open(t, dsn(t), t.TempDir(), size)
			now := time.Now()
			inShard(t, level, 3, each, now.Add(-time.Hour))
			inShard(t, level, 9, each, now.Add(time.Hour))
			n, err := level.Sweep(t.Context(), now)
			c, counted := level.Census(t.Context())
			if err != nil || counted != nil || n <= each || c.Entries != int64(2*each-n) || c.Bytes > size/16 || c.Bytes < size/32 {
				t.Errorf("Sweep = %d, %v, and %+v, %v is left of %d, want at most %d bytes", n, err, c, counted, 2*each, size/16)
			}
		})
	}
}

// TestEachSweepBeginsElsewhere: the first shards are on a server that takes connections
// and says nothing, so that each sweep ends there with its context.
func TestEachSweepBeginsElsewhere(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	const size = 16 * 100_000
	cfg := sql.Default()
	cfg.Databases = []sql.DatabaseConfig{
		{DSN: "postgres://u:p@" + silent.Addr().String() + "/d?sslmode=disable", Shards: "0-7"}, {DSN: "sqlite:a.db", Shards: "8-15"},
	}
	level, _ := start(t, cfg, t.TempDir(), size)
	inShard(t, level, 12, 300, time.Now().Add(-time.Hour))
	swept := 0
	for range 2 * sql.Shards {
		if swept == 300 {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		n, err := level.Sweep(ctx, time.Now())
		cancel()
		if swept += n; err == nil {
			t.Error("no word of the server that is silent")
		}
	}
	t.Errorf("%d of 300 were swept", swept)
}
