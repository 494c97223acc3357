package redis

import (
	"context"
	"time"

	"github.com/spillway/spillway/internal/limit"
)

// Keep gives a sign of life of all that is held.
func (s *Store) Keep(ctx context.Context) { s.keep(ctx) }

// Credit is what a gateway holds of a bucket.
type Credit struct {
	store Store
	credit
}

// NewCredit returns what one of the gateways holds, who asked last at a time and took
// extra ahead then.
func NewCredit(lease time.Duration, gateways, have, extra int64, asked time.Time) *Credit {
	c := &Credit{credit: credit{have: have, extra: extra, asked: asked.UnixNano()}}
	c.store.lease = lease
	c.store.gateways.Store(gateways)
	return c
}

// Want is what a call asks Redis for, in nanoseconds of the bucket's time: what it takes
// ahead and what it gives back.
func (c *Credit) Want(a *limit.Ask, now time.Time) (extra, back int64) {
	w := c.want(&c.store, a, now.UnixNano())
	return w.extra, w.back
}

// Ended says that the call that takes ahead is over.
func (c *Credit) Ended() { c.ended() }
