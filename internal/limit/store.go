package limit

import (
	"context"
	"time"
)

// Kind says how a bucket counts.
type Kind uint8

// The kinds of buckets.
const (
	// Metered buckets are GCRA: their whole state is one theoretical arrival time.
	Metered Kind = iota
	// Held buckets count what is under way.
	Held
)

// Ask is what a request wants of one bucket, and what became of it. The cost of a
// metered bucket is in its own time: the nanoseconds in which its rate gives what
// the request takes. So a bucket's state says nothing of its rate, which may change
// under it, and costs of unlike things are alike.
type Ask struct {
	Key  Key
	Kind Kind
	Name string // of the rule and what it counts, for people

	// Cost is what to charge. Of a Held bucket it is 1, and -1 gives back.
	Cost int64
	// Room is what must be free: a cost above the bucket's size asks for a full one,
	// and leaves a debt.
	Room int64
	// Size is what a full bucket holds, and of a Held one how many may be under way.
	Size int64

	// Lease tells apart what is held. A store that needs it sets it in Take and wants
	// it back in Give.
	Lease uint64
	// State is set by Take. Metered: the nanoseconds from now until the bucket is full
	// again, after the charge where the request is taken, before it otherwise. Held: how
	// many are under way. Below zero it is not known.
	State int64

	meter *meter // what the bucket is of; unknown to stores
}

// Over says whether the bucket, as Take found it, has no room.
func (a *Ask) Over() bool {
	if a.Kind == Held {
		return a.State >= a.Size
	}
	return a.State+a.Room > a.Size
}

// Store keeps buckets. Its methods may be called from many goroutines at once, and
// keep nothing of the slices that they are given.
//
// Buckets are GCRA: the "virtual scheduling" form of ITU-T I.371 (2004), annex A, as
// told by Brandur Leach, "Rate Limiting, Cells, and GCRA" (2015). A bucket is the
// instant at which it will be full; a charge moves that instant away, beginning at
// now or later; a request has room when the instant stays within Size of now; a refund
// moves it back. A bucket whose instant is past is as good as one that never was.
type Store interface {
	// Take charges all asks, or none and returns false; either way it sets their State.
	// It waits for a few milliseconds at most. After an error nobody knows what was
	// charged.
	Take(ctx context.Context, now time.Time, asks []Ask) (bool, error)
	// Give adds Cost to metered buckets, whatever room they have, refunds where it is
	// negative, and gives back what is held. It does not wait; what cannot be done is
	// dropped and counted by the store.
	Give(now time.Time, asks []Ask)
	// Beat tells that this gateway lives, and how many of them share the store.
	Beat(ctx context.Context) (gateways int, err error)
	// Run does the work in the background until ctx ends.
	Run(ctx context.Context) error
}

// Clock tells instants as nanoseconds. A wall clock that is set, by an hour say, moves
// them not at all: buckets would be empty for that hour, or full at once.
type Clock struct{ start time.Time }

// NewClock returns a clock.
func NewClock() Clock { return Clock{time.Now()} }

// Nano is an instant that time.Now has told, in nanoseconds since 1970 as they were
// counted when the clock was made.
func (c Clock) Nano(now time.Time) int64 { return c.start.UnixNano() + int64(now.Sub(c.start)) }
