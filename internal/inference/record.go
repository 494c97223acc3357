package inference

import "time"

// Attempt is what became of one try of one request at one instance.
type Attempt struct {
	Region   string
	Pool     string
	Instance string
	Model    string // the name asked for upstream
	Verdict  Verdict
	Status   int           // upstream's HTTP status; 0 when none came
	Reason   string        // short cause when the verdict is not ok
	Connect  time.Duration // until a connection was ready and the request written
	TTFT     time.Duration // from the attempt's start to the first delta; 0 when none came
	Duration time.Duration // from the attempt's start to its end
	Hedge    bool
}

// Record is everything that is kept of a finished request. The gateway hands
// it over once, after the last byte; the receiver must not keep Request.
type Record struct {
	Request  *Request
	Code     Code // "" when the client got its answer
	Reason   string
	Status   int // HTTP status sent; 0 when none was
	Attempts []Attempt
	Usage    Usage
	Tokens   int64 // deltas counted in passing; 0 for answers that are not streamed
	Bytes    int64 // sent to the client

	TTFT     time.Duration // from Received to the first delta sent; 0 when none was
	Duration time.Duration // from Received to the last byte
	Upstream time.Duration // part of Duration spent waiting for upstreams
	Complete bool          // the answer ended as its surface demands
	Degraded string        // what was lowered, e.g. a fallback model
}

// Last returns the attempt that gave the answer, or the last one that did not.
func (r *Record) Last() *Attempt {
	if len(r.Attempts) == 0 {
		return nil
	}
	return &r.Attempts[len(r.Attempts)-1]
}
