package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// stagger is the time over which the first sessions start: without it all of
// them would prefill at once.
const stagger = 10 * time.Second

// sessionPool hands out the sessions of a trace, repeating it under new names
// when the run is longer. It is safe for concurrent use.
type sessionPool struct {
	schedule Schedule
	opts     Options
	mu       struct {
		sync.Mutex
		reader *Sessions
		file   io.Closer
		pass   uint64
		count  int // sessions handed out in this pass
		seq    uint64
	}
}

func newSessionPool(s Schedule, opts Options) *sessionPool {
	return &sessionPool{schedule: s, opts: opts}
}

// next returns a session and its pass; io.EOF ends the trace.
func (p *sessionPool) next() (Session, uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.mu.reader == nil {
			if err := p.open(); err != nil {
				return Session{}, 0, err
			}
		}
		s, err := p.mu.reader.Next()
		if err == nil {
			p.mu.count++
			return s, p.mu.pass, nil
		}
		if err != io.EOF {
			return Session{}, 0, fmt.Errorf("%s: %w", p.schedule.Trace.Path, err)
		}
		if p.mu.count == 0 {
			return Session{}, 0, fmt.Errorf("%s: no sessions", p.schedule.Trace.Path)
		}
		if p.schedule.Duration == 0 {
			return Session{}, 0, io.EOF
		}
		if err := p.close(); err != nil {
			return Session{}, 0, err
		}
		p.mu.pass++
	}
}

// open begins a pass; the lock is held.
func (p *sessionPool) open() error {
	file, err := p.opts.open(p.schedule.Trace.Path)
	if err != nil {
		return err
	}
	reader, err := NewSessions(file)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", p.schedule.Trace.Path, err), file.Close())
	}
	p.mu.reader, p.mu.file, p.mu.count = reader, file, 0
	return nil
}

// close ends a pass; the lock is held.
func (p *sessionPool) close() error {
	if p.mu.file == nil {
		return nil
	}
	err := p.mu.file.Close()
	p.mu.reader, p.mu.file = nil, nil
	return err
}

// plan makes the request of a session's row.
func (p *sessionPool) plan(pl *planner, a arrival) job {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.seq++
	return pl.plan(a, p.mu.seq-1)
}

// runSessions keeps the configured number of sessions going.
func (g *Generator) runSessions(ctx context.Context) error {
	t := g.cfg.Schedule.Trace
	errs := make([]error, t.Sessions)
	var workers sync.WaitGroup
	for i := range t.Sessions {
		begin := time.Duration(float64(stagger) / t.Speed * float64(i) / float64(t.Sessions))
		workers.Go(func() { errs[i] = g.keepSession(ctx, begin) })
	}
	workers.Wait()
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	return errors.Join(append(errs, g.sessions.close())...)
}

// keepSession runs one session after the other from an instant on.
func (g *Generator) keepSession(ctx context.Context, due time.Duration) error {
	timer := newAlarm()
	for {
		s, pass, err := g.sessions.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		for i, row := range s.Rows {
			if i > 0 {
				due = g.live.Elapsed() + g.think(row)
			}
			if end := g.cfg.Schedule.Duration; end > 0 && due >= end {
				return nil
			}
			j := g.sessions.plan(g.planner, arrival{row: row, at: due, pass: pass})
			if !timer.wait(ctx, g.live.start.Add(due)) {
				return nil
			}
			g.live.offered.Add(1)
			g.live.inFlight.Add(1)
			g.send(ctx, j)
		}
		due = g.live.Elapsed()
	}
}

// think is the time between the previous answer and the row.
func (g *Generator) think(row Row) time.Duration {
	t := g.cfg.Schedule.Trace
	d := row.Think
	if t.ThinkCap > 0 {
		d = min(d, t.ThinkCap)
	}
	return time.Duration(float64(d) / t.Speed)
}
