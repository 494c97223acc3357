package inference

import (
	"errors"
	"fmt"
	"time"
)

// EventKind says what one event of a stream means to the gateway.
type EventKind uint8

// The kinds. Only EventDelta commits an answer; EventFinish and EventDone tell
// a complete answer from a cut one.
const (
	EventMeta      EventKind = iota // neither a delta nor an end: a role, an opening, a ping
	EventDelta                      // content, reasoning or tool-call tokens
	EventFinish                     // carries a finish reason
	EventUsage                      // carries usage and nothing else
	EventDone                       // the surface's terminal event
	EventError                      // the server reports an error in the stream
	EventComment                    // comment lines only
	EventMalformed                  // not what the surface allows
)

// Event is one server-sent event with what the scan found in it.
type Event struct {
	Raw   []byte // as received with the blank line that ends it; valid until the next read
	Kind  EventKind
	Usage Usage // set when the event carried usage
	At    time.Time
	More  bool // another event has arrived already: no need to flush for this one
}

// ErrNotYet says that what was waited for has not come by the given instant;
// the wait may be resumed.
var ErrNotYet = errors.New("not yet")

// HeaderField is one field of an answer's head.
type HeaderField struct{ Name, Value string }

// Head is how an upstream's answer begins.
type Head struct {
	Status int
	Length int64         // of the body in bytes; -1 when it is not known
	Stream bool          // the body is a stream of server-sent events
	Fields []HeaderField // what may be passed on to a client, canonical names
}

// Failure is what became of an attempt that gave no answer, with the verdict
// that decides what happens next.
type Failure struct {
	Verdict    Verdict
	Status     int           // the upstream's HTTP status; 0 when none came
	Reason     string        // short cause for logs and metrics: "connect", "reset", "stream_idle"
	Final      bool          // another instance would not do better
	RetryAfter time.Duration // what the upstream asked for, already bounded; 0 when it did not
	Head       *Head         // with Body, the answer to pass on when the verdict is yours
	Body       []byte
	Err        error
}

// Error implements error with the verdict, the reason and the cause.
func (f *Failure) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s (%s): %v", f.Reason, f.Verdict, f.Err)
	}
	return fmt.Sprintf("%s (%s)", f.Reason, f.Verdict)
}

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }
