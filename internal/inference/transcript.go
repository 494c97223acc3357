package inference

import "time"

// Transcript is a whole answer as it was given, kept so that it can be given
// again, byte for byte. It is never changed once it is made.
type Transcript struct {
	Fields []HeaderField // of the head, what every reader may see
	Body   []byte        // the events of a stream one after the other, or an answer in one piece
	Marks  []Mark        // one an event, in order; nil: Body is an answer in one piece
	Whole  []byte        // the answer in one piece, put together from the events; nil: not yet
	Usage  Usage
}

// Mark is where an event of a Transcript ends and when it came.
type Mark struct {
	End   uint32 // offset in Body behind the event
	Wait  uint32 // microseconds since the event before; of the first one, since the request was sent
	Usage bool   // carries usage and nothing else: not for a client that did not ask for it
}

// Stream says whether the transcript is that of a stream.
func (t *Transcript) Stream() bool { return t.Marks != nil }

// Stored is an answer that a cache found, and what it may be used for.
type Stored struct {
	*Transcript
	Level string        // which level had it
	Age   time.Duration // since it was generated

	// Fresh answers may be used as they are. Others may be used, each on its own
	// condition: while another is fetched, when the servers are overloaded, when they
	// fail.
	Fresh, WhileRevalidate, IfOverloaded, IfError bool
}

// CacheControl is what a client says about the use of kept answers (RFC 9111
// section 5.2.1).
type CacheControl struct {
	NoStore      bool          // neither look up nor keep
	NoCache      bool          // do not look up; keep the new answer
	OnlyIfCached bool          // a kept answer or none
	MaxAge       time.Duration // the oldest answer that will do, when HasMaxAge
	HasMaxAge    bool
}
