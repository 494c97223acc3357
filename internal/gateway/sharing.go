package gateway

import (
	"bytes"
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// sharing holds the flights that twins can join. A shared flight runs on its own
// goroutine, which ends when the flight does, at the latest when its last reader
// has left; every reader, the first one too, follows its tape.
type sharing struct {
	held atomic.Int64 // bytes on all tapes

	mu struct {
		sync.Mutex
		flights map[twin]*flight // one reader at least follows each
	}
}

// twin names the requests that one flight can answer: those of one key that agree on
// whether a lesser answer will do.
type twin struct {
	key       [32]byte
	degradeOK bool
}

// seat is one reader's place in a shared flight.
type seat struct {
	flight *flight
	at     *cursor
	lead   bool // the flight was started for this reader
	since  time.Time
}

// shared is what a flight has that several readers follow. Its zero value is that of
// a flight of one reader.
type shared struct {
	tape   *tape
	known  Known
	id     twin
	whole  bool // its first reader wants the answer in one piece
	landed chan struct{}

	tokens  atomic.Int64 // of the stream so far, for its first reader's limits
	retried bool         // another flight was begun in its place; guarded by the list's mutex
	claimed atomic.Bool  // a reader has taken the record
	unled   atomic.Bool  // the reader for whom it was started has left before the end
	urgent  urgency
}

// board takes a seat in the flight of the request's twins, or starts it. before is the
// reader's seat in a flight that failed, for which there is one more, that the retry
// budget has to allow: nil says that there is none, or none any more.
func (s *sharing) board(f *flight, known Known, before *seat) *seat {
	one := s.enter(f, known, before)
	if one != nil && one.lead {
		one.flight.depart(f)
	}
	return one
}

// enter is board up to the start of the flight, which others can join already.
func (s *sharing) enter(f *flight, known Known, before *seat) *seat {
	id := twin{known.Key(), f.req.DegradeOK}
	s.mu.Lock()
	defer s.mu.Unlock()
	if there := s.mu.flights[id]; there != nil {
		if at := there.admits(f.req); at != nil {
			f.rec.Cache = inference.CacheCoalesced
			return &seat{flight: there, at: at, since: time.Now()}
		}
	}
	if before != nil {
		failed := before.flight.shared
		if failed.retried || !f.set.budget.spend(time.Now()) {
			return nil
		}
		failed.retried = true
	}
	shared := f.lead(id, known)
	if s.mu.flights == nil {
		s.mu.flights = make(map[twin]*flight)
	}
	s.mu.flights[id] = shared
	f.rec.Cache = inference.CacheMiss
	at, _ := shared.shared.tape.join(f.req)
	return &seat{flight: shared, at: at, lead: true, since: time.Now()}
}

// remove takes a flight off the list. Another may stand in its place already.
func (s *sharing) remove(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.flights[f.shared.id] == f {
		delete(s.mu.flights, f.shared.id)
	}
}

// lead makes the flight for a request and its twins. The caller holds the list.
func (f *flight) lead(id twin, known Known) *flight {
	s := &flight{g: f.g, set: f.set}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(f.ctx))
	s.readers.Store(1)
	t := newTape(s.ctx, f.req.Surface, &f.g.sharing, f.set.Share)
	s.out = t
	s.shared = &shared{tape: t, known: known, id: id, whole: f.req.Assemble && !f.req.Stream, landed: make(chan struct{})}
	s.shared.urgent.begin(f.req)
	return s
}

// depart takes over the leader's plan and a copy of its request, and takes off. The
// copy is not made under the list's lock, because a large body takes a while.
func (f *flight) depart(leader *flight) {
	defer func() { go f.run() }() // whatever happens here: twins may be waiting
	f.req, f.plan = sharedRequest(leader.req), leader.plan
	f.plan.Request, f.rec.Request = f.req, f.req
}

// sharedRequest is a copy of a request that outlives it. Where the answer in one
// piece can be told from a stream, it asks for the stream; and of every stream for
// its usage, which is passed on to the readers that want it. That serves them all.
func sharedRequest(req *inference.Request) *inference.Request {
	r := *req
	r.Header = req.Header.Clone()
	if (req.Assemble || req.Stream) && !(req.Stream && req.IncludeUsage) {
		body := bytes.Join(wire.Rewrite(nil, req, wire.Edits{Stream: true, IncludeUsage: true}), nil)
		if fields, err := wire.ScanRequest(req.Surface, body); err == nil {
			fields.Model = req.Model // which may be another than the body's
			r.Body, r.Fields = body, fields
			return &r
		}
	}
	r.Body = bytes.Clone(req.Body)
	return &r
}

// admits gives a reader a cursor, or nil where it is too late for one. A reader that
// is more urgent, or waits longer, makes the flight so. The caller holds the list,
// so the tape is there.
func (f *flight) admits(req *inference.Request) *cursor {
	at, ended := f.shared.tape.join(req)
	if at == nil {
		return nil
	}
	for {
		n := f.readers.Load()
		if n == 0 && !ended { // the last one has left, and the flight ends
			f.shared.tape.quit(at)
			return nil
		}
		if f.readers.CompareAndSwap(n, n+1) {
			f.shared.urgent.urge(req)
			return at
		}
	}
}

// unseat counts a reader out. The last one ends the flight.
func (f *flight) unseat() (last bool) {
	if f.readers.Add(-1) > 0 {
		return false
	}
	f.cancel(errLeft)
	return true
}

// run is the life of a shared flight: the slower levels of the cache, and where they
// know nothing, a generation.
func (f *flight) run() {
	defer f.landShared()
	defer f.rescue()
	if s := f.shared.known.Fetch(f.ctx); s != nil {
		if s.Fresh || s.WhileRevalidate {
			f.shared.tape.play(s)
			return
		}
		f.shared.tape.keepStale(s)
	}
	winner, err := f.win()
	if err != nil {
		f.refuse(err)
		return
	}
	f.relay(winner)
	if f.shared.whole && f.rec.Complete {
		_, _ = f.shared.tape.onePiece() // its readers ask again, and are told
	}
}

// rescue turns a panic into a failure of the flight.
func (f *flight) rescue() {
	if p := recover(); p != nil {
		f.panicked(p)
		f.abandon()
	}
}

// panicked tells the readers.
func (f *flight) panicked(p any) {
	f.rec.Complete = false
	e := inference.Errorf(inference.CodeInternal, "internal error")
	e.Err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	f.shared.tape.Fail(e)
}

// landShared ends a shared flight: the answer is kept before the readers see the end
// and before the flight is off the list, so that whoever comes next finds it.
func (f *flight) landShared() {
	if p := recover(); p != nil { // another one, from rescue
		f.panicked(p)
	}
	t := f.shared.tape
	defer close(f.shared.landed)
	defer f.cancel(nil)
	defer t.release()
	defer f.g.sharing.remove(f)
	var kept *inference.Transcript
	if f.rec.Complete && f.rec.Code == "" && f.rec.Degraded == "" {
		kept = t.transcript(f.rec.Usage)
	}
	defer t.end()
	if kept != nil {
		f.keep(kept)
	}
}

// keep hands a whole answer to the cache. A defect there is the flight's failure, and
// not the process's end.
func (f *flight) keep(t *inference.Transcript) {
	defer func() {
		if p := recover(); p != nil {
			f.panicked(p)
		}
	}()
	f.shared.known.Keep(f.req, f.rec.Last().Model, t)
}

// stale is what the flight found in the cache and did not use.
func (s *seat) stale() *inference.Stored { return s.flight.shared.tape.left() }

// leave gives the seat up. The reader for whom the flight was started takes its record
// over, or, where that one left before the end, another that sees the end or makes it:
// what it cost is counted once. leave returns the kept answer that the flight found in
// its place.
func (s *seat) leave(f *flight) *inference.Stored {
	shared := s.flight.shared
	from, ended := shared.tape.quit(s.at)
	if s.flight.unseat() { // the last one sees it land, so that a drain waits for its answer to be kept
		<-s.flight.shared.landed
		ended = true
	}
	if s.lead && !ended {
		shared.unled.Store(true)
		ended = shared.tape.over() // others may have seen the end just before, and left it to this one
	}
	if ended && (s.lead || shared.unled.Load()) && shared.claimed.CompareAndSwap(false, true) {
		f.takeOver(&s.flight.rec)
	} else if from == nil {
		f.rec.Upstream += time.Since(s.since)
	}
	return from
}

// takeOver adds what a shared flight did to this request's record.
func (f *flight) takeOver(rec *inference.Record) {
	f.rec.Attempts = append(f.rec.Attempts, rec.Attempts...)
	f.rec.Queued += rec.Queued
	f.rec.Upstream += rec.Upstream
	f.rec.Borrowed = false
	f.rec.Tokens, f.rec.Gaps, f.rec.Usage = rec.Tokens, rec.Gaps, rec.Usage
}

// outcome tells a reader that got everything what the answer was.
func (s *seat) outcome(rec *inference.Record) {
	from := &s.flight.rec
	rec.Code, rec.Reason, rec.Complete, rec.Degraded = from.Code, from.Reason, from.Complete, from.Degraded
	rec.Usage, rec.Tokens, rec.Borrowed = from.Usage, from.Tokens, true
}
