package load

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Planned is one request as a run sends it.
type Planned struct {
	// Row is its number, from 0.
	Row uint64
	// At is its instant since the start of the run.
	At time.Duration
	// Prompt and Output are its true lengths in tokens.
	Prompt, Output int
	// Class and Tenant are names, empty where the configuration gives none.
	Class, Tenant string
	// Streamed says that it asks for a stream.
	Streamed bool
	// Pass is the repetition of the trace that it belongs to, Prefix what its
	// prompt shares with others of the pass.
	Pass   uint64
	Prefix []Blocks
}

// Plan yields, without sending anything, the requests that a run with the same
// configuration and seed sends, in the order of their instants. An error is the
// last thing it yields. The target need not be set; of opts only FS matters.
// Closed sessions have no plan, since their instants depend on answers.
func Plan(cfg Config, opts Options) iter.Seq2[Planned, error] {
	return func(yield func(Planned, error) bool) {
		s, p, err := plan(cfg, opts)
		if err != nil {
			yield(Planned{}, err)
			return
		}
		for seq := uint64(0); ; seq++ {
			a, err := s.next()
			if err != nil {
				err = errors.Join(unless(err, io.EOF), s.Close())
				if err != nil {
					yield(Planned{}, fmt.Errorf("schedule: %w", err))
				}
				return
			}
			j := p.plan(a, seq)
			if !yield(Planned{
				Row: seq, At: j.due, Prompt: j.prompt.tokens, Output: j.output, Class: j.class, Tenant: j.tenant,
				Streamed: j.stream, Pass: a.pass, Prefix: j.prompt.prefix,
			}, nil) {
				_ = s.Close() // of a file that was only read
				return
			}
		}
	}
}

// unless is err, but nil where it is what is expected.
func unless(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}

// plan prepares the schedule and the planner of a run to no target.
func plan(cfg Config, opts Options) (schedule, *planner, error) {
	cfg.Target.Name, cfg.Target.Model, cfg.Target.BaseURLs = "plan", "plan", []string{"http://plan"}
	cfg.Target.TenantHeader = "X-Tenant" // tenants need no keys
	if err := cfg.Validate(); err != nil {
		return nil, nil, err
	}
	if f, err := cfg.Schedule.Trace.format(); err == nil && f == AgentSessions {
		return nil, nil, errors.New("schedule.trace: closed sessions have no plan")
	}
	surface, _ := inference.ParseSurface(cfg.Target.Surface)
	if surface == inference.Embeddings {
		cfg.Request.Streamed = 0
	}
	s, err := newSchedule(cfg, opts)
	return s, newPlanner(cfg, surface), err
}
