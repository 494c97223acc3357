// Package load is an open-loop load generator for OpenAI-compatible servers,
// and the one report schema of every measurement.
//
// # How data moves
//
// A schedule (trace, rate or profile) yields rows in the order of their send
// times, which are fixed before anything is sent. The dispatcher, one
// goroutine inside [Generator.Run], waits for each row's instant and starts a
// goroutine that sends it, reads the answer and records the outcome. Latency
// counts from the scheduled instant, so a slow server cannot slow the
// generator down and hide its own delay (no coordinated omission). Recorded
// coding sessions are the exception: a person reads an answer before asking
// again, so they run as a fixed number of concurrent closed sessions and the
// report says so.
//
// # Who owns what
//
// Run owns every goroutine: the dispatcher, one per request in flight, one per
// hook, one for progress and one that interrupts open connections when the
// context ends. It returns after all of them. A connection belongs to one
// request at a time; between requests it lies in its endpoint's idle list.
//
// # Invariants
//
// offered = answered + truncated + the sum of errors: every row ends in one of
// them. An answer is complete only when it said so (a finish reason and the
// surface's terminal event). Requests in flight are bounded; at the bound a
// row is not sent late but counted as not_sent, and the report is invalid. So
// are rows that wait to be sent again, which are not in flight meanwhile. The
// true output length is told in the header X-Engine-Output-Tokens alone, for
// a simulated engine; max_tokens is one constant for all rows.
package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"
)

// Options are the parts of a run that are not configuration. The zero value
// is ready: no progress, no hooks, files of the operating system.
type Options struct {
	// Progress shows how the run goes; nil shows nothing.
	Progress Progress
	// Hooks run at fixed instants, each in its own goroutine.
	Hooks []Hook
	// Outcome is told how every attempt ended, from the goroutine that sent it:
	// it is called concurrently and must not block. nil is told nothing.
	Outcome func(Outcome)
	// Judge says whether a whole answer in one piece is the right one for a prompt and
	// a length in tokens; a wrong one ends its attempt as wrong_answer. It is called
	// concurrently and must not keep its arguments. nil takes every answer.
	Judge func(prompt []byte, output int, answer []byte) bool
	// FS holds the trace files when it is set (an embedded excerpt, say);
	// paths are then slash-separated and relative to it.
	FS fs.FS
	// Dial opens connections; nil dials with a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS configures https targets; nil means the system's roots.
	TLS *tls.Config
}

// Hook is something that happens at a given instant of the run.
type Hook struct {
	// At counts from the start of the run.
	At time.Duration
	// Name stands in the report's reason when Do fails.
	Name string
	// Do is called once. Its error makes the report invalid, because the
	// scenario did not happen; the run goes on. ctx ends with the run.
	Do func(ctx context.Context, live *Live) error
}

// open opens a file of the run's file system.
func (o Options) open(path string) (io.ReadCloser, error) {
	if o.FS != nil {
		return o.FS.Open(path)
	}
	return os.Open(path)
}

// Run generates the load of cfg against its target and reports on it. When
// ctx ends early it returns the report so far, marked invalid, together with
// the context's cause. Other errors are those of [New] and of an unreadable
// trace.
func Run(ctx context.Context, cfg Config, opts Options) (*Report, error) {
	g, err := New(cfg, opts)
	if err != nil {
		return nil, err
	}
	sys, err := g.Run(ctx)
	r := NewReport(cfg.Scenario, cfg.Seed)
	r.Add(sys)
	if err != nil {
		return r, fmt.Errorf("load %s: %w", cfg.Target.Name, err)
	}
	return r, nil
}
