package cache

import (
	"context"
	"errors"
	"time"
)

// operateTime bounds what an operator asks of one level.
const operateTime = 30 * time.Second

// LevelState is what an operator sees of a level.
type LevelState struct {
	Name    string  `json:"name"`
	Census  *Census `json:"census,omitempty"` // nil: the level does not know, or Error says why
	Hits    uint64  `json:"hits"`
	Misses  uint64  `json:"misses"`
	Faults  uint64  `json:"faults"`  // of look-ups
	Skipped uint64  `json:"skipped"` // not asked, because the level was resting
	Written uint64  `json:"written"`
	Lost    uint64  `json:"write_faults"` // entries that could not be written
	Resting bool    `json:"resting"`
	Refuses bool    `json:"refuses_writes"` // the last ones have all failed
	Error   string  `json:"error,omitempty"`
}

// State is what an operator sees of the cache.
type State struct {
	Enabled bool         `json:"enabled"`
	Levels  []LevelState `json:"levels"`
	Waiting int          `json:"fills_waiting"`
	Dropped uint64       `json:"fills_dropped"`
}

// State tells what the cache holds and does.
func (c *Cache) State(ctx context.Context) State {
	s := State{Enabled: c.set.Load().Enabled, Waiting: c.fills.waiting(), Dropped: c.fills.dropped.Load()}
	memory := LevelState{
		Name: memoryName, Hits: c.count.memoryHits.Load(), Misses: c.count.memoryMisses.Load(), Written: c.count.kept.Load(),
	}
	memory.ask(ctx, c.parts.Memory)
	s.Levels = append(s.Levels, memory)
	for _, g := range c.slower {
		l := LevelState{
			Name: g.name, Hits: g.count.hits.Load(), Misses: g.count.misses.Load(), Faults: g.count.faults.Load(),
			Lost: g.count.writeFaults.Load(), Refuses: g.refuses(), Skipped: g.count.skipped.Load() + g.count.writeSkipped.Load(), Written: g.count.written.Load(), Resting: g.open.Load() != 0,
		}
		l.ask(ctx, g.Level)
		s.Levels = append(s.Levels, l)
	}
	return s
}

// ask adds how much a level holds.
func (l *LevelState) ask(ctx context.Context, level Level) {
	counter, ok := level.(Counter)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, operateTime)
	defer cancel()
	census, err := counter.Census(ctx)
	if err != nil {
		l.Error = err.Error()
		return
	}
	l.Census = &census
}

// Purge forgets the entries that a filter means in every level, and says how many
// they were, by level. What waits to be written is forgotten too; an answer that is
// on its way at this moment is kept. An error of one level does not keep the others
// from it. The memory of other gateways is not reached: theirs end with their time.
func (c *Cache) Purge(ctx context.Context, f Filter) (map[string]int, error) {
	removed := make(map[string]int)
	var errs []error
	purge := func(name string, l Level) {
		ctx, cancel := context.WithTimeout(ctx, operateTime)
		defer cancel()
		n, err := l.Purge(ctx, f)
		removed[name] = n
		errs = append(errs, err)
	}
	c.fills.forget(f)
	writing, cancel := context.WithTimeout(ctx, c.set.Load().Fill.Timeout)
	defer cancel()
	c.fills.settle(writing)
	for i := len(c.slower) - 1; i >= 0; i-- { // from below, so that nothing is promoted again
		purge(c.slower[i].name, c.slower[i].Level)
	}
	purge(memoryName, c.parts.Memory)
	return removed, errors.Join(errs...)
}

// Found is an entry and the level that has it.
type Found struct {
	Level string
	Entry *Entry
}

// Inspect returns what each level has under a key. An error of one level does not
// keep the others from it.
func (c *Cache) Inspect(ctx context.Context, key Key) ([]Found, error) {
	var found []Found
	var errs []error
	look := func(name string, l Level) {
		ctx, cancel := context.WithTimeout(ctx, operateTime)
		defer cancel()
		e, err := l.Get(ctx, key, time.Now())
		switch {
		case err == nil:
			found = append(found, Found{name, e})
		case !errors.Is(err, ErrMiss):
			errs = append(errs, err)
		}
	}
	look(memoryName, c.parts.Memory)
	for _, g := range c.slower {
		look(g.name, g.Level)
	}
	return found, errors.Join(errs...)
}
