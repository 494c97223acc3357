package ledger

import (
	"context"
)

// Apply1 writes a batch of one row, of the model m on 20 November 2026.
func (l *Ledger) Apply1(ctx context.Context, id [16]byte, tenant string, a Amount) error {
	const day = 20777
	d := l.store.Shard(shardOf(tenant)).Database
	return l.apply(ctx, batch{id: id, database: d, rows: map[row]Amount{{day, tenant, "", "m"}: a}})
}
