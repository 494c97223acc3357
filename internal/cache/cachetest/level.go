package cachetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/inference"
)

// patience bounds every call and wait of the suite.
const patience = 15 * time.Second

// largest is the size of the largest answer in the suite, in bytes.
const largest = 2 << 20

// TestLevel checks a level. open returns an empty one that nobody else uses and
// that works; it has room for 64 MiB and ends with the test.
func TestLevel(t *testing.T, open func(t *testing.T) cache.Level) {
	for name, check := range map[string]func(*suite){
		"a miss":                      (*suite).miss,
		"round trip":                  (*suite).roundTrip,
		"round trip in one batch":     (*suite).batch,
		"replace":                     (*suite).replace,
		"a newer one stays":           (*suite).newer,
		"stale by the caller's clock": (*suite).stale,
		"stale while it runs":         (*suite).staleSoon,
		"purge by key":                (*suite).purgeKey,
		"purge by scope and model":    (*suite).purgeNames,
		"purge all":                   (*suite).purgeAll,
		"sweep":                       (*suite).sweep,
		"many keys":                   (*suite).manyKeys,
		"two scopes":                  (*suite).scopes,
		"used by many at once":        (*suite).concurrent,
		"cancelled":                   (*suite).cancelled,
		"census":                      (*suite).census,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			check(&suite{T: t, ctx: ctx, level: open(t), now: time.Now()})
		})
	}
}

// suite is one check at work.
type suite struct {
	*testing.T
	ctx   context.Context //nolint:containedctx // lives as long as one check
	level cache.Level
	now   time.Time
}

// put keeps entries, and sees to it that the level leaves them as they are.
func (s *suite) put(entries ...*cache.Entry) {
	s.Helper()
	var before []*cache.Entry
	for _, e := range entries {
		before = append(before, copyOf(e))
	}
	if err := s.level.Put(s.ctx, entries); err != nil {
		s.Fatalf("Put(%d entries) = %v", len(entries), err)
	}
	for i := range entries {
		if d := Diff(before[i], entries[i]); d != "" {
			s.Fatalf("Put changed its entry (-before +after):\n%s", d)
		}
	}
}

// wants checks that the level has e at now.
func (s *suite) wants(e *cache.Entry, now time.Time) {
	s.Helper()
	got, err := s.level.Get(s.ctx, e.Key, now)
	if err != nil {
		s.Fatalf("Get(%q) = %v, want the entry", e.Question, err)
	}
	if d := Diff(e, got); d != "" {
		s.Fatalf("Get(%q) (-want +got):\n%.2000s", e.Question, d)
	}
}

// misses checks that the level does not have the key at now.
func (s *suite) misses(key cache.Key, now time.Time) {
	s.Helper()
	if got, err := s.level.Get(s.ctx, key, now); !errors.Is(err, cache.ErrMiss) || got != nil {
		s.Fatalf("Get = %v, %v, want nil, %v", got, err, cache.ErrMiss)
	}
}

// eventually polls until ok.
func (s *suite) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(patience / 2); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	s.Fatalf("not reached: %s", what)
}

func (s *suite) miss() {
	s.misses(Key("nobody"), s.now)
	s.misses(cache.Key{}, s.now)
	s.put()
	s.put(NewEntry("a", s.now))
	near := Key("a")
	near[31] ^= 1
	s.misses(near, s.now)
}

// kinds are entries of every shape, by name.
func (s *suite) kinds() map[string]*cache.Entry {
	entry := func(name string, change func(*cache.Entry)) *cache.Entry {
		e := NewEntry(name, s.now)
		change(e)
		return e
	}
	all := []*cache.Entry{
		entry("stream", func(*cache.Entry) {}),
		entry("one piece", func(e *cache.Entry) { OnePiece(e, []byte(`{"choices":[{"message":{"content":"hello"}}]}`)) }),
		entry("empty body", func(e *cache.Entry) { OnePiece(e, nil) }),
		entry("no fields, no usage", func(e *cache.Entry) { e.Answer.Fields, e.Answer.Usage = nil, inference.Usage{} }),
		entry("empty texts", func(e *cache.Entry) {
			e.Model, e.Question, e.Hits = "", "", 0
			e.Answer.Fields = []inference.HeaderField{{}, {Name: "X-Empty"}}
		}),
		entry("every surface", func(e *cache.Entry) { e.Surface = inference.Responses }),
		entry("stream without events", func(e *cache.Entry) { e.Answer.Body, e.Answer.Marks = nil, []inference.Mark{} }),
		entry("empty events", func(e *cache.Entry) { Event(e, time.Hour, ""); Event(e, 0, "") }),
		entry("greatest numbers", func(e *cache.Entry) {
			e.Hits, e.Answer.Usage.PromptTokens, e.Answer.Marks[0].Wait = 1<<32-1, 1<<62, 1<<32-1
		}),
		entry("binary", func(e *cache.Entry) { OnePiece(e, everyByte()) }),
		entry("noise", func(e *cache.Entry) { OnePiece(e, Noise(1, 300_000)) }),
		entry("large", func(e *cache.Entry) { OnePiece(e, bytes.Repeat([]byte("large \x00"), largest/7)) }),
		entry("long stream", func(e *cache.Entry) {
			for i := range 3000 {
				Event(e, time.Duration(i)*time.Millisecond, fmt.Sprintf("data: {\"choices\":[{\"delta\":{\"content\":\"%d \"}}]}\n\n", i))
			}
		}),
		entry("texts of any bytes", func(e *cache.Entry) {
			e.Question = "caf\u00e9 \U0001f600 \xff\xfe cut here: \xe2\x82"
			e.Answer.Fields = []inference.HeaderField{{Name: "X-Latin", Value: "caf\xe9"}, {Name: "X-Quote", Value: "a'b\"c\\d\r\n\x00"}}
		}),
		entry("like code", func(e *cache.Entry) {
			e.Question, e.Model, e.Scope = `'; DROP TABLE answers; --`, `a"b'c\d%s?$1:x`, "{tag}*[a-z]\r\nGET x"
		}),
		entry("past its fresh life", func(e *cache.Entry) { e.Expires = s.now.Add(-time.Minute).Truncate(time.Millisecond) }),
	}
	byName := make(map[string]*cache.Entry)
	for i, e := range all {
		byName[fmt.Sprintf("%d: %.20s", i, e.Question)] = e
	}
	return byName
}

// everyByte is a body with every byte, and with what protocols end lines and
// texts by.
func everyByte() []byte {
	b := []byte("\r\n$-1\r\n\x00\\x00''\"\"")
	for i := range 256 {
		b = append(b, byte(i))
	}
	return b
}

func (s *suite) roundTrip() {
	all := s.kinds()
	for _, e := range all {
		s.put(e)
		s.wants(e, s.now)
	}
	for _, e := range all {
		s.wants(e, s.now)
	}
}

func (s *suite) batch() {
	var list []*cache.Entry
	for _, e := range s.kinds() {
		list = append(list, e)
	}
	for i := len(list); i < 62; i++ {
		list = append(list, NewEntry(fmt.Sprint("of a batch ", i), s.now))
	}
	first, last := NewEntry("twice", s.now), NewEntry("twice", s.now)
	last.Model, last.Hits = "another", 9
	s.put(append(append([]*cache.Entry{first}, list...), last)...)
	for _, e := range list {
		s.wants(e, s.now)
	}
	s.wants(last, s.now)
}

func (s *suite) replace() {
	for i, body := range []string{strings.Repeat("long ", 5000), "short", "", strings.Repeat("long again ", 500)} {
		e := OnePiece(NewEntry("replaced", s.now), []byte(body))
		e.Model, e.Scope, e.Hits = fmt.Sprint("m", i), fmt.Sprint("s", i), uint32(i)
		e.Stale = e.Stale.Add(-time.Duration(i) * time.Minute)
		s.put(e)
		s.wants(e, s.now)
		if i > 0 { // what it was is forgotten
			if _, err := s.level.Purge(s.ctx, cache.Filter{Scope: fmt.Sprint("s", i-1)}); err != nil {
				s.Fatal(err)
			}
			s.wants(e, s.now)
		}
	}
	stream := NewEntry("replaced", s.now)
	s.put(stream)
	s.wants(stream, s.now)
}

func (s *suite) newer() {
	old, renewed, last := NewEntry("renewed", s.now.Add(-time.Minute)), NewEntry("renewed", s.now), NewEntry("renewed", s.now)
	OnePiece(old, []byte("old"))
	old.Hits, old.Expires, old.Stale = 100, old.Expires.Add(time.Hour), old.Stale.Add(time.Hour)
	old.Scope, old.Model = "of the old one", "of the old one"
	last.Hits, last.Expires = 7, last.Expires.Add(time.Minute) // prolonged
	s.put(old)
	s.wants(old, s.now)
	s.put(renewed)
	s.wants(renewed, s.now)
	s.put(old)
	s.wants(renewed, s.now)
	if n, err := s.level.Purge(s.ctx, cache.Filter{Scope: old.Scope, Model: old.Model}); n != 0 || err != nil {
		s.Fatalf("Purge of what was replaced = %d, %v, want 0", n, err)
	}
	s.put(last)
	s.wants(last, s.now)
	s.put(old, renewed, last, old)
	s.wants(last, s.now)
	s.purge(cache.Filter{Key: &old.Key})
	s.put(last, old)
	s.wants(last, s.now)
	s.purge(cache.Filter{Key: &old.Key})
	s.put(old)
	s.wants(old, s.now)
}

func (s *suite) stale() {
	e := NewEntry("kept", s.now)
	s.put(e)
	s.wants(e, s.now)
	s.wants(e, e.Expires.Add(time.Minute)) // no longer fresh, still kept
	s.wants(e, e.Stale.Add(-time.Millisecond))
	s.misses(e.Key, e.Stale.Add(time.Millisecond))
	s.misses(e.Key, e.Stale.Add(1000*time.Hour))

	for name, ago := range map[string]time.Duration{"an instant ago": 10 * time.Millisecond, "long ago": 10000 * time.Hour} {
		past := NewEntry(name, s.now)
		past.Expires, past.Stale = s.now.Add(-2*ago), s.now.Add(-ago)
		s.put(past)
		s.misses(past.Key, s.now)
	}
	gone := NewEntry("kept", s.now) // what replaces an entry may be gone at once
	gone.Expires, gone.Stale = s.now.Add(-2*time.Hour), s.now.Add(-time.Hour)
	s.put(gone)
	s.misses(gone.Key, s.now)
	s.put(e)
	s.wants(e, s.now)

	forever := NewEntry("forever", s.now)
	forever.Expires, forever.Stale = s.now.AddDate(90, 0, 0).Truncate(time.Millisecond), s.now.AddDate(100, 0, 0).Truncate(time.Millisecond)
	s.put(forever)
	s.wants(forever, s.now)
}

func (s *suite) staleSoon() {
	e := NewEntry("soon gone", s.now)
	e.Expires, e.Stale = s.now.Add(100*time.Millisecond).Truncate(time.Millisecond), s.now.Add(200*time.Millisecond).Truncate(time.Millisecond)
	stays := NewEntry("stays", s.now)
	s.put(e, stays)
	s.eventually("the entry is past its stale instant", func() bool {
		now := time.Now()
		got, err := s.level.Get(s.ctx, e.Key, now)
		switch {
		case errors.Is(err, cache.ErrMiss):
			return !time.Now().Before(e.Stale) // not before it is time
		case err != nil:
			s.Fatal(err)
		case now.After(e.Stale):
			s.Fatalf("an entry is given %v after its stale instant", now.Sub(e.Stale))
		case Diff(e, got) != "":
			s.Fatalf("another entry (-want +got):\n%s", Diff(e, got))
		}
		return false
	})
	s.wants(stays, time.Now())
}
