package load

import (
	"errors"
	"net/http"
	"time"
)

// Outcome is how one attempt of a row ended, as its client saw it. Instants count
// from the start of the run.
type Outcome struct {
	// Row is the number of the row, from 0; Attempt that of the attempt, from 0.
	Row     uint64
	Attempt int
	// Class and Tenant are names, empty where the configuration gives none.
	Class, Tenant string
	// Prompt and Output are the true lengths in tokens.
	Prompt, Output int
	// Due is the row's scheduled instant, At that of this attempt: Due, or the
	// end of the attempt before it and the wait until a retry.
	Due, At time.Duration
	// Sent is when the attempt was begun, First when its first delta came (0 if
	// none did), End when its answer was read.
	Sent, First, End time.Duration
	// Tokens are the output tokens received: usage of a complete answer where the
	// server reports it, else deltas.
	Tokens int64
	// Whole says that the answer is complete.
	Whole bool
	// Code names the error; it is empty for a complete or truncated answer.
	Code string
	// Status is the HTTP status, 0 when no answer began.
	Status int
	// RetryAfter is the wait that an error status asked for, 0 if none.
	RetryAfter time.Duration
	// Ticket says that an error status came with an X-Retry-Ticket.
	Ticket bool
	// Returner says that the attempt follows a refusal with a ticket, after the
	// wait that it asked for.
	Returner bool
	// Server is what X-Spillway-Server-Ms says of an error status, 0 if nothing.
	Server time.Duration
}

// Refused says whether the server answered, before it began, that it has no room
// or no quota.
func (o Outcome) Refused() bool {
	return o.Status == http.StatusServiceUnavailable || o.Status == http.StatusTooManyRequests
}

// attempt is one try of a row.
type attempt struct {
	n        int
	at, sent time.Duration
	deadline time.Time
	ticket   string // of the refusal before it
	returner bool
}

// errUndrained ends the rows that are open when the time to drain is over.
var errUndrained = errors.New("open after the time to drain")

// tell reports one attempt to whom it concerns.
func (g *Generator) tell(o *outcome, j job, a attempt, r result) {
	if g.opts.Outcome == nil {
		return
	}
	t := Outcome{
		Row: j.seq, Attempt: a.n, Class: j.class, Tenant: j.tenant, Prompt: j.prompt.tokens, Output: j.output,
		Due: j.due, At: a.at, Sent: a.sent, End: o.end, Tokens: o.tokens, Whole: o.answered(), Code: o.code,
		Status: r.status, RetryAfter: r.asked, Ticket: r.ticket != "", Returner: a.returner, Server: r.server,
	}
	if o.hasDelta {
		t.First = o.first
	}
	g.opts.Outcome(t)
}
