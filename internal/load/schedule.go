package load

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"
)

// arrival is a row with the instant at which this run sends it.
type arrival struct {
	row  Row
	at   time.Duration // since the start of the run
	pass uint64        // which repetition of the trace it belongs to
}

// schedule yields arrivals in order; io.EOF ends it. It is for one goroutine.
type schedule interface {
	next() (arrival, error)
	io.Closer
}

// newSchedule builds the schedule of a configuration without sessions.
func newSchedule(cfg Config, opts Options) (schedule, error) {
	s := cfg.Schedule
	var rows schedule
	if s.Trace.Path != "" {
		open, err := opener(s.Trace, cfg.Seed, opts)
		if err != nil {
			return nil, err
		}
		rows = &traceSchedule{trace: s.Trace, open: open, repeat: s.Duration > 0 || timed(s), offset: -s.Trace.Offset}
	}
	if !timed(s) {
		return &until{rows, s.Duration}, nil
	}
	segments := []Segment{{From: s.Rate, To: s.Rate, Length: s.Duration}}
	if s.Profile != "" {
		var err error
		if segments, err = ParseProfile(s.Profile); err != nil {
			return nil, err
		}
	}
	p := &profileSchedule{
		clock: clock{segments: segments}, uniform: s.Arrivals == Uniform, rows: rows, request: cfg.Request,
		gaps: rand.New(rand.NewPCG(cfg.Seed, 1)), lengths: rand.New(rand.NewPCG(cfg.Seed, 2)),
	}
	return &until{p, s.Duration}, nil
}

// timed says whether a rate or profile gives the send times.
func timed(s Schedule) bool { return s.Rate > 0 || s.Profile != "" }

// until ends a schedule after a duration; 0 does not.
type until struct {
	schedule
	end time.Duration
}

func (u *until) next() (arrival, error) {
	a, err := u.schedule.next()
	if err == nil && u.end > 0 && a.at >= u.end {
		return arrival{}, io.EOF
	}
	return a, err
}

// profileSchedule sends by rate or profile, with lengths drawn or from a trace.
type profileSchedule struct {
	clock   clock
	uniform bool
	passed  float64
	rows    schedule // lengths; nil draws them
	request Request
	gaps    *rand.Rand
	lengths *rand.Rand
}

func (p *profileSchedule) next() (arrival, error) {
	p.step()
	at, ok := p.clock.at(p.passed)
	if !ok {
		return arrival{}, io.EOF
	}
	if p.rows != nil {
		a, err := p.rows.next()
		a.at = at
		return a, err
	}
	return arrival{at: at, row: Row{Input: p.length(p.request.PromptTokens), Output: p.length(p.request.OutputTokens)}}, nil
}

// step moves on by one expected arrival. Evenly spaced arrivals begin half a
// gap into the profile.
func (p *profileSchedule) step() {
	switch {
	case !p.uniform:
		p.passed += p.gaps.ExpFloat64()
	case p.passed == 0:
		p.passed = 0.5
	default:
		p.passed++
	}
}

func (p *profileSchedule) length(mean int) int {
	if p.request.Lengths == Exponential {
		return 1 + int(p.lengths.ExpFloat64()*float64(mean-1))
	}
	return mean
}

func (p *profileSchedule) Close() error {
	if p.rows == nil {
		return nil
	}
	return p.rows.Close()
}

// openPass begins one pass of a trace.
type openPass func(pass uint64) (Rows, io.Closer, error)

// opener knows how to begin a pass of the trace. ServeGen's tables are read
// once; the other formats stream from their file in every pass.
func opener(t Trace, seed uint64, opts Options) (openPass, error) {
	f, err := t.format()
	if err != nil {
		return nil, err
	}
	switch f {
	case ServeGen:
		return serveGenOpener(t, seed, opts)
	case RAGPulse:
		table, err := ragPulseTable(t, opts)
		if err != nil {
			return nil, err
		}
		return fileOpener(t, opts, func(r io.Reader) (Rows, error) {
			src, err := plain(r)
			return newLines(src, table.row), err
		}), nil
	}
	return fileOpener(t, opts, func(r io.Reader) (Rows, error) { return NewRows(r, f) }), nil
}

func fileOpener(t Trace, opts Options, read func(io.Reader) (Rows, error)) openPass {
	return func(uint64) (Rows, io.Closer, error) {
		file, err := opts.open(t.Path)
		if err != nil {
			return nil, nil, err
		}
		rows, err := read(file)
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("%s: %w", t.Path, err), file.Close())
		}
		return rows, file, nil
	}
}

// companion names the second file of a format: what stands beside the trace
// with the last mark replaced, unless the configuration names it.
func (t Trace) companion(old, replacement string) string {
	if t.Companion != "" {
		return t.Companion
	}
	i := strings.LastIndex(t.Path, old)
	if i < 0 {
		return ""
	}
	return t.Path[:i] + replacement + t.Path[i+len(old):]
}

func serveGenOpener(t Trace, seed uint64, opts Options) (openPass, error) {
	lengthsPath := t.companion("rates.csv", "lengths.jsonl")
	if lengthsPath == "" {
		return nil, errors.New("schedule.trace.companion: needed, the lengths are not beside the rates")
	}
	rates, err := opts.open(t.Path)
	if err != nil {
		return nil, err
	}
	defer rates.Close()
	lengths, err := opts.open(lengthsPath)
	if err != nil {
		return nil, err
	}
	defer lengths.Close()
	law, err := NewServeGen(rates, lengths)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Path, err)
	}
	return func(pass uint64) (Rows, io.Closer, error) {
		return law.Rows(mix(seed, pass), t.RateScale), io.NopCloser(nil), nil
	}, nil
}

// ragPulseTable reads the component table. Without one beside the trace,
// components have the mean length of their kind.
func ragPulseTable(t Trace, opts Options) (components, error) {
	path := t.companion("days0-3.jsonl", "component-tokens.csv")
	if path == "" {
		return components{}, nil
	}
	file, err := opts.open(path)
	if errors.Is(err, fs.ErrNotExist) && t.Companion == "" {
		return components{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	c, err := readComponents(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// traceSchedule replays passes of a trace: its window, spread and sped up. A
// pass follows the one before it after one mean gap.
type traceSchedule struct {
	trace  Trace
	open   openPass
	repeat bool

	rows   Rows
	file   io.Closer
	pass   uint64
	offset time.Duration // of the open pass, native clock
	slot   []Row         // rows waiting, all of one instant
	ahead  *Row          // the first row behind the slot
	sent   int           // rows of the slot already given out
	count  int           // rows taken in this pass
	length time.Duration // from the first instant of the slot to the next
	first  time.Duration // instants of the pass's first and last row
	last   time.Duration
}

// maxSlot bounds the rows of one instant that are held to be spread.
const maxSlot = 1 << 14

func (t *traceSchedule) next() (arrival, error) {
	for t.sent == len(t.slot) {
		if err := t.fill(); err != nil {
			return arrival{}, err
		}
	}
	row := t.slot[t.sent]
	at := row.At
	if t.trace.Spread {
		at += time.Duration(int64(t.length) * int64(t.sent) / int64(len(t.slot)))
	}
	t.sent++
	at = time.Duration(float64(t.offset+at) / t.trace.Speed)
	return arrival{row: row, at: at, pass: t.pass}, nil
}

// fill holds the next slot: all rows of one instant with spread, else one row.
func (t *traceSchedule) fill() error {
	if t.rows == nil {
		if err := t.begin(); err != nil {
			return err
		}
	}
	t.slot, t.sent = t.slot[:0], 0
	for len(t.slot) < maxSlot {
		row, err := t.take()
		if err == io.EOF && len(t.slot) > 0 {
			return nil
		}
		if err == io.EOF {
			return t.finish()
		}
		if err != nil {
			return err
		}
		if len(t.slot) > 0 && row.At != t.slot[0].At {
			t.ahead = &row
			t.length = row.At - t.slot[0].At
			return nil
		}
		t.slot = append(t.slot, row)
		if !t.trace.Spread {
			return nil
		}
	}
	return nil
}

// begin opens a pass.
func (t *traceSchedule) begin() error {
	rows, file, err := t.open(t.pass)
	if err != nil {
		return err
	}
	t.rows, t.file, t.count, t.length = rows, file, 0, 0
	return nil
}

// finish closes the pass and moves the clock behind it.
func (t *traceSchedule) finish() error {
	if err := t.Close(); err != nil {
		return err
	}
	if t.count == 0 {
		return fmt.Errorf("%s: no rows in the window", t.trace.Path)
	}
	if !t.repeat {
		return io.EOF
	}
	gap := time.Second // of a trace with one instant
	if t.count > 1 && t.last > t.first {
		gap = (t.last - t.first) / time.Duration(t.count-1)
	}
	if t.trace.Spread {
		gap = max(gap, t.length) // the last slot is spread over its length
	}
	t.offset += t.last + gap
	t.pass++
	return nil
}

// take returns the next row of the pass inside the window. Instants never run
// backwards: a row that does is sent with the one before it.
func (t *traceSchedule) take() (Row, error) {
	if t.ahead != nil {
		row := *t.ahead
		t.ahead = nil
		return row, nil
	}
	for {
		if t.trace.MaxRows > 0 && t.count >= t.trace.MaxRows {
			return Row{}, io.EOF
		}
		row, err := t.rows.Next()
		if err == io.EOF {
			return Row{}, err
		}
		if err != nil {
			return Row{}, fmt.Errorf("%s: %w", t.trace.Path, err)
		}
		if row.At < t.trace.Start {
			continue
		}
		row.At -= t.trace.Start
		if t.trace.Window > 0 && row.At >= t.trace.Window {
			return Row{}, io.EOF
		}
		if t.pass == 0 && row.At < t.trace.Offset {
			continue
		}
		if t.count == 0 {
			t.first = row.At
		} else {
			row.At = max(row.At, t.last)
		}
		t.last = row.At
		t.count++
		return row, nil
	}
}

// Close closes the open pass.
func (t *traceSchedule) Close() error {
	if t.file == nil {
		return nil
	}
	err := t.file.Close()
	t.rows, t.file = nil, nil
	return err
}
