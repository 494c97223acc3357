package inference

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
}
