package redis

import "context"

// Keep gives a sign of life of all that is held.
func (s *Store) Keep(ctx context.Context) { s.keep(ctx) }
