package gateway

import (
	"strconv"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// Headers that say what the cache did.
const (
	cacheField    = "X-Spillway-Cache"
	degradedField = "X-Spillway-Degraded"
	degradedStale = "stale"
)

// share answers a request whose answer may be known, or may be on its way to
// somebody else: from the cache; else by following the flight of the first of its
// twins, which is started here when there is none. When that flight fails before
// this reader has anything of it, the readers elect one of them to lead another.
func (f *flight) share(known Known) *inference.Record {
	old := known.Stored(time.Now()) // from here on a flight may have known
	if old != nil && (old.Fresh || old.WhileRevalidate) {
		return f.replay(old, known)
	}
	if f.req.Cache.OnlyIfCached {
		if s := known.Fetch(f.ctx); s != nil && (s.Fresh || s.WhileRevalidate) {
			return f.replay(s, known)
		}
		return f.refuseUnkept()
	}
	var failed *inference.Error // of the flight before, in which there was this seat
	var before *seat
	for {
		s := f.g.sharing.board(f, known, before)
		if s == nil {
			if s := known.Fetch(f.ctx); s != nil && s.Fresh { // of the flight in its place, which is over
				return f.replay(s, known)
			}
			return f.refuseShared(failed, old, known)
		}
		stored, err := f.ride(s)
		if left := s.stale(); left != nil && accepts(f.req, left) && (old == nil || left.Age < old.Age) {
			old = left
		}
		switch {
		case stored != nil && (s.lead || accepts(f.req, stored)):
			return f.replay(stored, known)
		case stored != nil: // found for a twin, and not what this client wants
			continue
		case err == nil:
			return &f.rec
		case failed == nil && f.mayGoOn(err, s.lead):
			plan, broken := f.g.parts.Router.Plan(f.ctx, f.req) // the flight has used up the first
			if broken != nil {
				return f.refuse(broken)
			}
			f.follows(plan)
			failed, before = err, s
			continue
		}
		return f.refuseShared(err, old, known)
	}
}

// ride follows a flight and gives the seat up, also when the reader panics. It
// returns the kept answer that the flight found in the place of a new one.
func (f *flight) ride(s *seat) (stored *inference.Stored, err *inference.Error) {
	defer func() { stored = s.leave(f) }()
	return nil, f.follow(s)
}

// accepts says whether a kept answer is one that the request's client wants. What
// was found for a twin need not be.
func accepts(req *inference.Request, s *inference.Stored) bool {
	return !req.Cache.NoCache && !(req.Cache.HasMaxAge && s.Age > req.Cache.MaxAge)
}

// mayGoOn says whether a reader whose flight failed may follow another, or start one
// where no other reader has, which the retry budget has to allow as well. An answer
// that was cut is tried again by whoever got nothing of it; what a flight could not
// get at all, by those alone for whom it was not tried: its leader had its attempts.
func (f *flight) mayGoOn(err *inference.Error, led bool) bool {
	if f.ctx.Err() != nil || !time.Now().Before(f.req.Deadline) {
		return false
	}
	switch err.Code {
	case inference.CodeUpstreamCut:
		return true
	case inference.CodeUpstreamError, inference.CodeTimeout, inference.CodeCanceled, inference.CodeInternal:
		return !led
	}
	return false
}

// refuseUnkept answers a client that wants a kept answer or none.
func (f *flight) refuseUnkept() *inference.Record {
	e := inference.Errorf(inference.CodeNotCached, "the answer is not in the cache, and the request asks for nothing else")
	e.NoRetry = true // SDKs would ask for a 504 again, and nobody answers it meanwhile
	return f.refuse(e)
}

// refuseShared answers with an error, or with an old answer where that is better
// than this error.
func (f *flight) refuseShared(err *inference.Error, old *inference.Stored, known Known) *inference.Record {
	if old != nil && f.ctx.Err() == nil && (old.Stream() || !f.begun) { // comments have begun a stream
		switch err.Code {
		case inference.CodeOverloaded:
			if old.IfOverloaded {
				return f.replay(old, known)
			}
		case inference.CodeUpstreamError, inference.CodeUpstreamCut, inference.CodeTimeout, inference.CodeNoCapacity, inference.CodeInternal:
			if old.IfError {
				return f.replay(old, known)
			}
		}
	}
	return f.refuse(err)
}

// replay answers with what the cache has. One that is not fresh is announced, and
// refreshed in the background where it may be used meanwhile.
func (f *flight) replay(s *inference.Stored, known Known) *inference.Record {
	f.rec.Cache, f.rec.CacheLevel, f.rec.CacheAge, f.rec.Usage = inference.CacheHit, s.Level, s.Age, s.Usage
	f.rec.Borrowed = true
	if !s.Fresh {
		f.rec.Cache = inference.CacheStale
		if s.WhileRevalidate {
			f.g.refresh(f.req, known)
		} else {
			f.rec.Degraded = degradedStale
		}
	}
	age := strconv.FormatInt(int64(s.Age/time.Second), 10)
	fields := append(make([]inference.HeaderField, 0, len(s.Fields)+3), s.Fields...)
	fields = append(fields,
		inference.HeaderField{Name: cacheField, Value: string(f.rec.Cache) + "; level=" + s.Level + "; age=" + age},
		inference.HeaderField{Name: "Age", Value: age})
	if f.rec.Degraded != "" {
		fields = append(fields, inference.HeaderField{Name: degradedField, Value: f.rec.Degraded})
	}
	head := &inference.Head{Status: 200, Length: int64(len(s.Body)), Fields: fields}
	var err error
	switch {
	case s.Stream() && f.req.Stream:
		head.Stream, head.Length = true, -1
		err = f.replayEvents(head, s)
	case s.Stream():
		whole := s.Whole
		if whole == nil { // found for a twin that wants a stream
			if whole, err = wire.Assemble(f.req.Surface, s.Transcript); err != nil {
				return f.refuse(err)
			}
		}
		head.Length, head.Fields = int64(len(whole)), wire.OnePieceFields(fields)
		err = f.replayBody(head, whole)
	default:
		err = f.replayBody(head, s.Body)
	}
	if err != nil {
		f.rec.Code, f.rec.Reason = inference.CodeCanceled, "client_write"
		f.out.Fail(&inference.Error{Code: inference.CodeCanceled, Message: "the client closed the connection", Err: err})
		return &f.rec
	}
	f.rec.Complete = true
	return &f.rec
}

// replayBody sends an answer in one piece.
func (f *flight) replayBody(head *inference.Head, body []byte) error {
	if err := f.head(head); err != nil {
		return err
	}
	return f.send(body, true)
}

// replayEvents sends a stream's events, all at once or with the gaps with which they
// came. What carries usage alone is for clients that asked for it.
func (f *flight) replayEvents(head *inference.Head, s *inference.Stored) error {
	if err := f.head(head); err != nil {
		return err
	}
	f.rec.TTFT = time.Since(f.req.Received)
	from, sent := uint32(0), uint32(0) // sent: up to where all was sent or left out
	for i, m := range s.Marks {
		if m.Usage && !f.req.IncludeUsage {
			if err := f.send(s.Body[sent:from], false); err != nil {
				return err
			}
			sent = m.End
		} else {
			f.rec.Tokens++
		}
		from = m.End
		if f.set.Share.Pace != PaceOriginal {
			continue
		}
		if err := f.send(s.Body[sent:from], true); err != nil {
			return err
		}
		if sent = from; i+1 < len(s.Marks) {
			if err := f.pause(time.Duration(s.Marks[i+1].Wait) * time.Microsecond); err != nil {
				return err
			}
		}
	}
	return f.send(s.Body[sent:from], true)
}

// pause waits, no longer than the client stays, and not beyond its deadline: what is
// left of the answer then comes at once.
func (f *flight) pause(d time.Duration) error {
	timer := time.NewTimer(min(d, time.Until(f.req.Deadline)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}
