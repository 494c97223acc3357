package gateway

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// tape is an answer in progress that several readers follow, each at its own pace:
// the Reader of a shared flight. It holds the whole answer up to a bound, so that a
// reader that comes later catches up. Beyond the bound it becomes a window: nobody
// can join any more, nothing of it is kept, and the flight waits for the slowest
// reader, whose connection's own deadline cuts it when it takes nothing.
//
// Bytes that readers were given are never written again, so they read them without
// the lock.
type tape struct {
	surface inference.Surface
	max     int           // bytes that are held
	held    *atomic.Int64 // by all tapes
	most    int64         // of held; beyond it a tape becomes a window at once
	ctx     context.Context
	last    time.Time // of the event before

	assemble sync.Once
	whole    []byte // the answer in one piece, put together from the events
	broken   error  // why it could not be

	mu      sync.Mutex
	wake    chan struct{} // closed at the next change; nil: nobody waits
	turn    chan struct{} // closed at the next change but events: an end, a window, an answer in one piece
	room    chan struct{} // closed when a reader of a window has read or left; nil: nobody waits
	head    *inference.Head
	body    []byte
	marks   []inference.Mark // nil unless events are kept apart
	base    int              // offset of body in the answer
	window  bool
	cursors map[*cursor]struct{}
	holders int               // the readers, and the flight
	from    *inference.Stored // what is played is not new; nil: it is
	stale   *inference.Stored // what is left when the flight fails; nil: nothing
	failed  *inference.Error
	final   bool // the last event is there
	ended   bool
}

// cursor is how far a reader has come.
type cursor struct {
	at int // in the answer
}

// newTape returns an empty tape. ctx is the flight's.
func newTape(ctx context.Context, surface inference.Surface, s *sharing, cfg Share) *tape {
	return &tape{
		surface: surface, max: int(cfg.MaxAnswer), most: int64(cfg.Memory), held: &s.held, ctx: ctx, last: time.Now(),
		cursors: make(map[*cursor]struct{}), holders: 1,
	}
}

// changed wakes the readers that follow the events. The caller holds mu.
func (t *tape) changed() { wake(&t.wake) }

// turned wakes all readers. The caller holds mu.
func (t *tape) turned() {
	wake(&t.wake)
	wake(&t.turn)
}

// wake closes a channel that somebody waits for.
func wake(c *chan struct{}) {
	if *c != nil {
		close(*c)
		*c = nil
	}
}

// wait returns a channel that wake closes.
func wait(c *chan struct{}) <-chan struct{} {
	if *c == nil {
		*c = make(chan struct{})
	}
	return *c
}

// Head implements Reader.
func (t *tape) Head(head *inference.Head) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.head = head
	if head.Stream {
		t.marks = make([]inference.Mark, 0, 64)
	}
	return nil
}

// Write implements Reader: it adds whole events, or a piece of a body. Where the
// tape is a window it waits for room, and fails when the last reader has left.
func (t *tape) Write(p []byte, flush bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held.Add(int64(len(p)))
	if !t.window && (len(t.body)+len(p) > t.max || t.held.Load() > t.most) {
		t.window = true
		t.turned() // those that wait for the end must read as it comes
	}
	if t.window {
		if err := t.makeRoom(); err != nil {
			t.held.Add(-int64(len(p)))
			return err
		}
	} else if t.marks != nil {
		t.mark(p)
	}
	t.body = append(t.body, p...)
	switch {
	case t.window || t.marks == nil:
		t.turned()
	case flush:
		t.changed()
	}
	return nil
}

// mark notes where the events of p end.
func (t *tape) mark(p []byte) {
	now := time.Now()
	wait := now.Sub(t.last)
	t.last = now
	for end := 0; end < len(p); {
		n := wire.EventEnd(p[end:])
		raw := p[end : end+n]
		end += n
		kind := wire.SkimEvent(t.surface, raw).Kind
		t.final = t.final || kind == inference.EventDone
		t.marks = append(t.marks, inference.Mark{
			End: uint32(len(t.body) + end), Wait: uint32(min(wait.Microseconds(), 1<<32-1)), Usage: kind == inference.EventUsage,
		})
		wait = 0
	}
}

// makeRoom drops what every reader has, and waits for the slowest where the window
// is full. The caller holds mu, which is given up meanwhile.
func (t *tape) makeRoom() error {
	for {
		least := t.base + len(t.body)
		for c := range t.cursors {
			least = min(least, c.at)
		}
		if drop := least - t.base; drop > 0 && drop >= len(t.body)/2 {
			t.body = append(make([]byte, 0, len(t.body)), t.body[drop:]...) // readers may still hold the old array
			t.base = least
			t.held.Add(-int64(drop))
		}
		if len(t.body) <= t.max {
			return t.ctx.Err()
		}
		room := wait(&t.room)
		t.turned()
		t.mu.Unlock()
		select {
		case <-room:
		case <-t.ctx.Done():
		}
		t.mu.Lock()
		if err := t.ctx.Err(); err != nil {
			return err
		}
	}
}

// Fail implements Reader.
func (t *tape) Fail(err *inference.Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = err
}

// play puts a kept answer on the tape.
func (t *tape) play(s *inference.Stored) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.from = s
	t.turned()
}

// keepStale notes a kept answer for the case that no new one comes.
func (t *tape) keepStale(s *inference.Stored) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stale = s
}

// left is that answer, or nil.
func (t *tape) left() *inference.Stored {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stale
}

// end says that nothing more comes.
func (t *tape) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.turned()
}

// join adds a reader at the beginning, and says whether the end is there too: many
// clients leave with the last event, before the flight has landed. It returns nil where the beginning is gone, or where a kept answer is played that the
// request does not accept.
func (t *tape) join(req *inference.Request) (c *cursor, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.window || t.failed != nil || t.from != nil && !accepts(req, t.from) {
		return nil, false
	}
	c = new(cursor)
	t.cursors[c] = struct{}{}
	t.holders++
	return c, t.ended || t.final
}

// quit removes a reader. It returns the kept answer that stands for this one, or
// nil, and whether the tape has ended.
func (t *tape) quit(c *cursor) (from *inference.Stored, ended bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.cursors, c)
	wake(&t.room)
	t.drop()
	return t.from, t.ended
}

// over says whether the tape has ended.
func (t *tape) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// release is the flight's quit.
func (t *tape) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop()
}

// drop counts a holder out; the last one's leaving frees the answer. The caller
// holds mu.
func (t *tape) drop() {
	if t.holders--; t.holders == 0 {
		t.held.Add(-int64(len(t.body)))
		t.body, t.marks = nil, nil
	}
}

// view is what a reader finds on the tape.
type view struct {
	head   *inference.Head
	part   []byte // what is new: whole events, or a piece of a body
	from   *inference.Stored
	window bool
	ended  bool
	failed *inference.Error
	wake   <-chan struct{} // closed at the next change; nil when the view has something to act on
}

// next returns what has come since the reader's last call. onlyEnd is a reader that
// wants to know of the end, or of the window, and nothing before.
func (t *tape) next(c *cursor, onlyEnd bool) view {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := view{head: t.head, from: t.from, window: t.window, ended: t.ended, failed: t.failed}
	if !onlyEnd || t.window || t.head != nil && !t.head.Stream {
		v.part = t.body[c.at-t.base:]
		v.part = v.part[:len(v.part):len(v.part)]
		if c.at += len(v.part); t.window {
			wake(&t.room)
		}
	}
	if len(v.part) == 0 && !v.ended && v.from == nil {
		if onlyEnd {
			v.wake = wait(&t.turn)
		} else {
			v.wake = wait(&t.wake)
		}
	}
	return v
}

// transcript is the answer as it is kept, or nil where it is not held whole. It is
// called before the tape ends.
func (t *tape) transcript(usage inference.Usage) *inference.Transcript {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.window || t.head == nil || t.head.Status != 200 {
		return nil
	}
	// What the tape has grown to is up to twice as large, and would stay in memory.
	kept := &inference.Transcript{Body: bytes.Clone(t.body), Marks: slices.Clone(t.marks), Whole: t.whole, Usage: usage}
	for _, f := range t.head.Fields {
		if f.Name == "Content-Type" {
			kept.Fields = append(kept.Fields, f)
		}
	}
	return kept
}

// onePiece is the answer put together from the events, once for all readers. It may
// be called when the flight is over and the tape is no window.
func (t *tape) onePiece() ([]byte, error) {
	t.assemble.Do(func() {
		t.mu.Lock()
		kept := &inference.Transcript{Body: t.body, Marks: t.marks}
		t.mu.Unlock()
		t.whole, t.broken = wire.Assemble(t.surface, kept)
	})
	return t.whole, t.broken
}
