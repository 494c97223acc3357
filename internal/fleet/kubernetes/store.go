package kubernetes

import (
	"fmt"
	"maps"
	"slices"
	"sync"
)

// maxObjects bounds how many objects of a kind are kept.
const maxObjects = 50_000

// store keeps what matters of the objects of one kind. The reflector writes to it,
// from one goroutine; Run reads.
type store[T any] struct {
	read    func(object any) (key string, value T, ok bool)
	changed chan<- struct{} // gets a value after each change; values are merged

	mu struct {
		sync.Mutex
		known bool // it was filled once
		over  bool // there were more than maxObjects
		all   map[string]T
	}
}

// newStore returns a store that is not filled.
func newStore[T any](read func(any) (string, T, bool), changed chan<- struct{}) *store[T] {
	s := &store[T]{read: read, changed: changed}
	s.mu.all = make(map[string]T)
	return s
}

// values are what is kept, in the order of the keys. known says whether the store
// was filled once; the error says that there were too many objects to keep.
func (s *store[T]) values() (all []T, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.over {
		return nil, s.mu.known, fmt.Errorf("more than %d objects", maxObjects)
	}
	for _, key := range slices.Sorted(maps.Keys(s.mu.all)) {
		all = append(all, s.mu.all[key])
	}
	return all, s.mu.known, nil
}

// tell says that something changed.
func (s *store[T]) tell() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Add implements cache.ReflectorStore.
func (s *store[T]) Add(object any) error {
	key, value, ok := s.read(object)
	if !ok {
		return fmt.Errorf("unexpected %T", object)
	}
	s.mu.Lock()
	if _, old := s.mu.all[key]; old || len(s.mu.all) < maxObjects {
		s.mu.all[key] = value
	} else {
		s.mu.over = true // until they are listed again
	}
	s.mu.Unlock()
	s.tell()
	return nil
}

// Update implements cache.ReflectorStore.
func (s *store[T]) Update(object any) error { return s.Add(object) }

// Delete implements cache.ReflectorStore.
func (s *store[T]) Delete(object any) error {
	key, _, ok := s.read(object)
	if !ok {
		return fmt.Errorf("unexpected %T", object)
	}
	s.mu.Lock()
	delete(s.mu.all, key)
	s.mu.Unlock()
	s.tell()
	return nil
}

// Replace implements cache.ReflectorStore.
func (s *store[T]) Replace(objects []any, _ string) error {
	all := make(map[string]T, min(len(objects), maxObjects))
	for _, object := range objects {
		if key, value, ok := s.read(object); ok && len(all) < maxObjects {
			all[key] = value
		}
	}
	s.mu.Lock()
	s.mu.known, s.mu.over, s.mu.all = true, len(objects) > maxObjects, all
	s.mu.Unlock()
	s.tell()
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to do.
func (s *store[T]) Resync() error { return nil }
