package experiment

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"
)

// Names of the states that an experiment can be in.
const (
	Running    = "running"
	Stopped    = "stopped"     // by an operator
	RolledBack = "rolled_back" // by its guard
)

// State is how an experiment stands.
type State struct {
	State   string    `json:"state"`            // Running, Stopped or RolledBack
	Started time.Time `json:"started"`          // when its ramp and its samples began
	Since   time.Time `json:"since"`            // when it came into this state
	By      string    `json:"by,omitempty"`     // who ordered it; "" nobody
	Reason  string    `json:"reason,omitempty"` // in words

	mark uint64 // of the configuration that it began with
}

// life is the state of a trial, which outlives reloads.
type life struct {
	state atomic.Pointer[State]
	kept  atomic.Pointer[State] // what was last written; nil is nothing
}

// set replaces the state.
func (l *life) set(s *State) { l.state.Store(s) }

// swap replaces the state unless it has changed.
func (l *life) swap(was, next *State) bool { return l.state.CompareAndSwap(was, next) }

// Errors of orders.
var (
	// ErrUnknown is the error for an experiment that is not configured.
	ErrUnknown = errors.New("no such experiment")
	// ErrNotKept marks orders that were carried out, but that a restart would not know
	// of.
	ErrNotKept = errors.New("the order is in force, but a restart would not know of it")
)

// Bounds of what stands in a file and in a log line.
const (
	maxBy     = 100     // bytes
	maxReason = 2 << 10 // bytes
)

// Start begins an experiment that was stopped or rolled back: with the ramp's first
// step, and without samples. One that is running stays as it is. The error is
// ErrUnknown, ErrNotKept, or says what is wrong with by. It may wait for the disk,
// behind what is in force at once.
func (s *Set) Start(now time.Time, name, by string) error { return s.order(now, name, by, Running) }

// Stop ends an experiment: no request is part of it. Its results stay. One that is
// stopped or rolled back stays as it is. Errors are those of Start.
func (s *Set) Stop(now time.Time, name, by string) error { return s.order(now, name, by, Stopped) }

// order carries out an order.
func (s *Set) order(now time.Time, name, by, state string) error {
	if len(by) > maxBy || !printable(by) {
		return fmt.Errorf("by: must be one line of printable text of at most %d bytes", maxBy)
	}
	s.orders.Lock()
	defer s.orders.Unlock()
	t := s.table.Load().byName[name]
	if t == nil {
		return fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	was := t.life.state.Load()
	if (state == Running) == (was.State == Running) {
		return s.save(t) // an earlier write may have failed
	}
	next := State{State: state, Started: was.Started, Since: now.Round(0), By: by, mark: t.mark}
	if state == Running {
		next.Started = now.Round(0)
		t.ledger.reset(s.epochs.Add(1), now)
	}
	if !t.life.swap(was, &next) {
		return s.save(t) // the guard was faster, and has said why
	}
	s.log.Warn("an experiment is "+state+" by order", "experiment", name, "by", by, "was", was.State, "was_reason", was.Reason)
	return s.save(t)
}

// printable says whether a text can stand in one line.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Run writes what has changed without an order until ctx ends, and once more then. A
// write that fails is tried again every retryEvery.
func (s *Set) Run(ctx context.Context) error {
	for _, t := range s.table.Load().trials {
		if state := t.life.state.Load(); state.State != Running {
			s.log.Warn("an experiment is not running since before the start", "experiment", t.cfg.Name, "state", state.State, "since", state.Since, "reason", state.Reason)
		}
	}
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		s.saveAll()
		select {
		case <-ctx.Done():
			s.saveAll()
			return nil
		case <-s.dirty:
		case <-retry.C:
		}
	}
}

// retryEvery is how long a state that could not be written waits.
const retryEvery = 30 * time.Second

// wake tells Run that something is to be kept.
func (s *Set) wake() {
	select {
	case s.dirty <- struct{}{}:
	default: // it knows
	}
}

// saveAll writes every state that is not kept.
func (s *Set) saveAll() {
	s.orders.Lock()
	defer s.orders.Unlock()
	for _, t := range s.table.Load().trials {
		_ = s.save(t) // logged, and tried again
	}
}

// save writes a trial's state unless it is kept. The caller holds orders.
func (s *Set) save(t *trial) error {
	state := t.life.state.Load()
	if t.life.kept.Load() == state {
		return nil
	}
	data, err := state.encode()
	if err == nil {
		err = s.parts.Keep.Write(fileOf(t.cfg.Name), data)
	}
	if err != nil {
		s.log.Error("the state of an experiment could not be kept", "experiment", t.cfg.Name, "state", state.State, "err", err)
		return fmt.Errorf("%w: %w", ErrNotKept, err)
	}
	t.life.kept.Store(state)
	return nil
}

// fileOf is the name that an experiment is kept under.
func fileOf(name string) string { return "experiment-" + name + ".json" }

// keptVersion is the form of the file. A change that an older release would misread
// takes the next number.
const keptVersion = 1

// kept is the file's content.
type kept struct {
	Version int    `json:"version"`
	Mark    string `json:"mark"`
	State
}

// encode writes a state.
func (s *State) encode() ([]byte, error) {
	k := kept{Version: keptVersion, Mark: fmt.Sprintf("%016x", s.mark), State: *s}
	k.Started, k.Since = k.Started.UTC(), k.Since.UTC()
	data, err := json.MarshalIndent(k, "", "  ")
	return append(data, '\n'), err
}

// decode reads a file.
func decode(data []byte) (*State, error) {
	var k kept
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&k); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	switch {
	case k.Version != keptVersion:
		return nil, fmt.Errorf("unknown version %d; this release writes %d", k.Version, keptVersion)
	case k.State.State != Running && k.State.State != Stopped && k.State.State != RolledBack:
		return nil, fmt.Errorf("unknown state %q", k.State.State)
	case k.Started.IsZero() || len(k.By) > maxBy || len(k.Reason) > maxReason || !printable(k.By) || !printable(k.Reason):
		return nil, errors.New("it has no beginning, or texts that are none")
	}
	if _, err := fmt.Sscanf(k.Mark, "%016x", &k.mark); err != nil {
		return nil, fmt.Errorf("mark: %w", err)
	}
	return &k.State, nil
}

// restore is the life of an experiment that the process meets for the first time. What
// cannot be read may have been a bad arm: it is not started. One that was running with
// other arms begins again.
func (s *Set) restore(now time.Time, t *trial) *life {
	l := new(life)
	fresh := &State{State: Running, Started: now.Round(0), Since: now.Round(0), mark: t.mark}
	l.set(fresh)
	data, err := s.parts.Keep.Read(fileOf(t.cfg.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return l
	}
	var state *State
	if err == nil {
		state, err = decode(data)
	}
	switch {
	case err != nil:
		l.set(&State{State: Stopped, Started: fresh.Started, Since: fresh.Since, Reason: "what was kept of it cannot be read: " + clean(err.Error()), mark: t.mark})
	case state.State == Running && (state.mark != t.mark || state.Started.After(now)):
	default:
		l.kept.Store(state)
		l.set(state)
	}
	return l
}

// clean makes one short line of a text.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, "?"))
	return strings.ToValidUTF8(s[:min(len(s), maxReason/2)], "")
}
