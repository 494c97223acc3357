package cache

import (
	"context"
	"errors"
	"time"
)

// ErrMiss says that a level does not have the entry. It is the one error of Get
// that is no fault.
var ErrMiss = errors.New("not in the cache")

// Filter says which entries are meant: those that match every field that is set.
// The zero Filter means all.
type Filter struct {
	Key   *Key
	Scope string // as in Entry.Scope
	Model string
}

// Match says whether an entry is meant.
func (f Filter) Match(e *Entry) bool {
	return (f.Key == nil || *f.Key == e.Key) && (f.Scope == "" || f.Scope == e.Scope) && (f.Model == "" || f.Model == e.Model)
}

// Level is one place where answers are kept. All methods are safe for concurrent
// use, end with their context at the latest, and return errors that name what was
// tried. Entries are never changed, neither by a level nor by its caller.
//
// The contract is checked by cachetest.TestLevel.
type Level interface {
	// Get returns an entry that is not past its Stale instant at now, or ErrMiss. A
	// level that cannot answer, or holds something else under the key, returns
	// another error: the caller treats it as a miss and counts it as a fault.
	Get(ctx context.Context, key Key, now time.Time) (*Entry, error)
	// Put keeps entries, and replaces what it has under their keys, unless that was
	// stored later: a gateway that prolongs an answer may not know that another one has
	// renewed it. A reader sees all of an entry or nothing. The entries need not be kept: a level evicts as it must.
	Put(ctx context.Context, entries []*Entry) error
	// Purge forgets the entries that a filter means, and says how many they were; the
	// number may be an estimate.
	Purge(ctx context.Context, f Filter) (int, error)
	// Sweep forgets entries past their Stale instant, and brings the level within its
	// bounds. It is called from time to time. Its context bounds what it does; the error
	// is that context's where something is left over.
	Sweep(ctx context.Context, now time.Time) (int, error)
}

// Census is how much a level holds.
type Census struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"` // as the level keeps them
}

// Counter is a Level that knows how much it holds.
type Counter interface {
	Census(ctx context.Context) (Census, error)
}
