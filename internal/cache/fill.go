package cache

import (
	"context"
	"sync/atomic"
)

// fillBatch is the most entries that are written in one call.
const fillBatch = 64

// fillQueue holds the entries that wait to be written to the slower levels, one
// bounded line a level, so that a slow one does not hold up the others.
type fillQueue struct {
	lines    []fillLine
	maxBytes int64
	bytes    atomic.Int64 // over all lines
	dropped  atomic.Uint64
}

// fillLine is the line of one level.
type fillLine struct {
	entries chan *Entry
	idle    chan struct{} // gives a value whenever nothing is being written
}

// init makes the lines.
func (q *fillQueue) init(cfg FillConfig, levels int) {
	q.maxBytes = int64(cfg.Bytes)
	q.lines = make([]fillLine, levels)
	for i := range q.lines {
		q.lines[i].entries = make(chan *Entry, cfg.Queue)
		q.lines[i].idle = make(chan struct{})
	}
}

// add puts an entry into the lines of a set of levels, or drops it where there is
// no room.
func (q *fillQueue) add(e *Entry, levels uint) {
	size := int64(e.Size())
	for i := range q.lines {
		if levels&(1<<i) == 0 {
			continue
		}
		if q.bytes.Add(size) > q.maxBytes {
			q.bytes.Add(-size)
			q.dropped.Add(1)
			continue
		}
		select {
		case q.lines[i].entries <- e:
		default:
			q.bytes.Add(-size)
			q.dropped.Add(1)
		}
	}
}

// waiting is the number of entries in all lines.
func (q *fillQueue) waiting() (n int) {
	for i := range q.lines {
		n += len(q.lines[i].entries)
	}
	return n
}

// fill writes one level's line until ctx ends, and then what is left of it, for as
// long as one batch may take.
func (c *Cache) fill(ctx context.Context, level int) {
	line := &c.fills.lines[level]
	batch := make([]*Entry, 0, fillBatch)
	for {
		select {
		case e := <-line.entries:
			batch = append(batch[:0], e)
		case line.idle <- struct{}{}:
			continue
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.set.Load().Fill.Timeout)
			defer cancel()
			for batch = line.take(batch[:0]); len(batch) > 0 && last.Err() == nil; batch = line.take(batch[:0]) {
				c.write(last, level, batch)
			}
			return
		}
		c.write(context.WithoutCancel(ctx), level, line.take(batch)) // bounded, and worth waiting for at the end
	}
}

// forget takes what a filter means out of the lines, so that it is not written after
// it was purged. Of the others some may change places.
func (q *fillQueue) forget(f Filter) {
	for i := range q.lines {
		l := &q.lines[i]
		for range len(l.entries) {
			select {
			case e := <-l.entries:
				if !f.Match(e) {
					select {
					case l.entries <- e:
						continue
					default: // new ones have taken the room
						q.dropped.Add(1)
					}
				}
				q.bytes.Add(-int64(e.Size()))
			default:
			}
		}
	}
}

// settle waits until what is being written at this moment is written, which takes no
// longer than one batch may, or until ctx ends.
func (q *fillQueue) settle(ctx context.Context) {
	for i := range q.lines {
		select {
		case <-q.lines[i].idle:
		case <-ctx.Done():
			return
		}
	}
}

// take adds what waits to a batch, up to its size.
func (l *fillLine) take(batch []*Entry) []*Entry {
	for len(batch) < fillBatch {
		select {
		case e := <-l.entries:
			batch = append(batch, e)
		default:
			return batch
		}
	}
	return batch
}

// write writes a batch to a level.
func (c *Cache) write(ctx context.Context, level int, batch []*Entry) {
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.set.Load().Fill.Timeout)
	defer cancel()
	_ = c.slower[level].Put(ctx, batch) // counted and logged there; a level need not keep anything
	for _, e := range batch {
		c.fills.bytes.Add(-int64(e.Size()))
	}
	clear(batch) // the slice is used again, and must not keep the answers
}
