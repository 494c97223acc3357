package cachetest

import (
	"fmt"

	"github.com/spillway/spillway/internal/cache"
)

// purge forgets what the filter means, and checks that something was meant.
func (s *suite) purge(f cache.Filter) {
	s.Helper()
	n, err := s.level.Purge(s.ctx, f)
	if err != nil || n < 1 {
		s.Fatalf("Purge(%+v) = %d, %v, want at least 1", f, n, err)
	}
}

func (s *suite) purgeKey() {
	a, b := NewEntry("a", s.now), NewEntry("b", s.now)
	s.put(a, b)
	key := Key("nobody")
	if n, err := s.level.Purge(s.ctx, cache.Filter{Key: &key}); n != 0 || err != nil {
		s.Fatalf("Purge of a key that is not there = %d, %v, want 0", n, err)
	}
	s.purge(cache.Filter{Key: &a.Key})
	s.misses(a.Key, s.now)
	s.wants(b, s.now)
	if _, err := s.level.Purge(s.ctx, cache.Filter{Key: &b.Key, Scope: "not its scope"}); err != nil {
		s.Fatal(err)
	}
	s.wants(b, s.now)
	if _, err := s.level.Purge(s.ctx, cache.Filter{Key: &b.Key, Model: "not its model"}); err != nil {
		s.Fatal(err)
	}
	s.wants(b, s.now)
	s.purge(cache.Filter{Key: &b.Key, Scope: b.Scope, Model: b.Model})
	s.misses(b.Key, s.now)
	s.put(a)
	s.wants(a, s.now)
}

// alike are names that a careless comparison takes for the same.
var alike = [...]string{"name", "Name", "name ", "nam", "names", "n_me", "n%", "*", "nam[e]", "n\u00e4me", "na\u0308me", "'name'"}

func (s *suite) purgeNames() {
	for _, field := range []string{"scope", "model"} {
		var all []*cache.Entry
		for _, name := range alike {
			e := NewEntry(field+name, s.now)
			if field == "scope" {
				e.Scope = name
			} else {
				e.Model = name
			}
			all = append(all, e)
		}
		s.put(all...)
		for i, e := range all {
			if field == "scope" {
				s.purge(cache.Filter{Scope: e.Scope})
			} else {
				s.purge(cache.Filter{Model: e.Model})
			}
			s.misses(e.Key, s.now)
			for _, other := range all[i+1:] {
				s.wants(other, s.now)
			}
		}
	}
	both, scope, model := NewEntry("both", s.now), NewEntry("scope alone", s.now), NewEntry("model alone", s.now)
	both.Scope, both.Model, scope.Scope, model.Model = "x", "y", "x", "y"
	s.put(both, scope, model)
	s.purge(cache.Filter{Scope: "x", Model: "y"})
	s.misses(both.Key, s.now)
	s.wants(scope, s.now)
	s.wants(model, s.now)
}

func (s *suite) purgeAll() {
	var all []*cache.Entry
	for i := range 64 {
		e := NewEntry(fmt.Sprint(i), s.now)
		e.Scope = fmt.Sprint("s", i%5)
		all = append(all, e)
	}
	s.put(all...)
	s.purge(cache.Filter{})
	for _, e := range all {
		s.misses(e.Key, s.now)
	}
	if n, err := s.level.Purge(s.ctx, cache.Filter{}); n < 0 || err != nil {
		s.Fatalf("Purge of an empty level = %d, %v", n, err)
	}
	s.put(all[0])
	s.wants(all[0], s.now)
}

func (s *suite) scopes() {
	a, b := NewEntry("of a", s.now), NewEntry("of b", s.now)
	a.Scope, b.Scope = "a", "b"
	a.Question, b.Question = "the same question", "the same question"
	OnePiece(a, []byte("the secret of a"))
	OnePiece(b, []byte("the secret of b"))
	s.put(a)
	s.misses(b.Key, s.now)
	s.put(b)
	s.wants(a, s.now)
	s.wants(b, s.now)
	s.purge(cache.Filter{Scope: "a"})
	s.misses(a.Key, s.now)
	s.wants(b, s.now)
}
