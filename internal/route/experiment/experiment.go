// Package experiment splits traffic between arms that are compared, or copies a share
// of it, and ends an experiment by itself when an arm is worse.
//
// A Set is the second stage of route.Steering. Steer hashes the configured key of a
// request twice: one hash says whether it is part of the experiment at the ramp's
// present share, the other, independent one in which arm. Both depend on nothing but
// the key and the experiment's name, so that a key stays where it is across requests,
// gateways and restarts, and whoever is in at 5% is in at 20%.
//
// Begin is told of answers that begin, Observe of requests that are finished, Feedback of
// what users say. It is added up by arm, in constant memory. After each request the
// guard compares the arm with control by a sequential test, which is valid however often
// it looks; an arm that is certain to be worse ends the experiment, and all its traffic
// goes where it would go without it. Status compares the arms in the same way when it
// is asked. What is assumed, and what the tests are, stands in docs/experiments.md.
//
// Everything but the disk is done in the caller's goroutine. Run owns one goroutine's
// time: it writes what has changed without an order, and never holds up a request.
// New starts nothing and leaves no trace. Locks: orders (Start, Stop, Apply) and the
// disk follow each other under Set.orders; a trial's ledger.mu and the memory's mu are
// held for some arithmetic and are never held together. State is an atomic pointer to
// an immutable value.
package experiment

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// Condition says whether a request is part of an experiment. Match is called from many
// goroutines, does not block and does not keep the request.
type Condition interface {
	Match(now time.Time, req *inference.Request) bool
}

// Keep is where the state of experiments outlives the process; *store.Store is one.
// Its methods are called by one goroutine at a time and may wait for a disk.
type Keep interface {
	// Read returns what was written under a name, or an error that is
	// fs.ErrNotExist.
	Read(name string) ([]byte, error)
	// Write replaces what is kept under a name, all of it or nothing.
	Write(name string, data []byte) error
}

// Parts are what a Set works with. Log is required.
type Parts struct {
	// Compile makes a condition of the text of `when`. nil: there is no such language,
	// and conditions are a mistake.
	Compile func(text string) (Condition, error)
	Keep    Keep // nil forgets everything
	Log     *slog.Logger
}

// Set is all experiments of a gateway. It is safe for concurrent use.
type Set struct {
	parts  Parts
	log    *slog.Logger
	table  atomic.Pointer[table]
	memory *memory
	dirty  chan struct{} // something is to be kept
	epochs atomic.Uint64 // of ledgers
	descs  descs

	orders sync.Mutex // held for an order or a write, disk included
}

// table is what a reload replaces.
type table struct {
	trials []*trial
	byName map[string]*trial
}

// New returns the experiments as they were kept; those that nobody has kept begin now.
// Its error lists every mistake.
func New(cfg []Config, parts Parts) (*Set, error) {
	if parts.Keep == nil {
		parts.Keep = forgetful{}
	}
	s := &Set{
		parts: parts, log: parts.Log.With("component", "route"), memory: newMemory(rememberedRequests, rememberedTime),
		dirty: make(chan struct{}, 1), descs: newDescs(),
	}
	s.table.Store(new(table))
	if err := s.Apply(cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// Apply replaces the configuration. An experiment whose arms, weights, key and
// condition stay goes on with its samples; one that changed begins again, unless it
// was stopped or rolled back, which it stays. Its error lists every mistake and
// changes nothing.
func (s *Set) Apply(cfg []Config) error {
	s.orders.Lock()
	defer s.orders.Unlock()
	if err := Validate(cfg); err != nil {
		return err
	}
	now, old := time.Now(), s.table.Load()
	next := &table{byName: make(map[string]*trial, len(cfg))}
	var errs []error
	for i, c := range cfg {
		t, err := s.build(now, c, old.byName[c.Name])
		if err != nil {
			errs = append(errs, fmt.Errorf("experiments[%d].when: %w", i, err))
			continue
		}
		next.trials = append(next.trials, t)
		next.byName[c.Name] = t
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, t := range next.trials {
		s.adopt(now, t, old.byName[t.cfg.Name])
	}
	s.table.Store(next)
	for _, t := range old.trials { // Run does not know of them any more
		if next.byName[t.cfg.Name] == nil {
			_ = s.save(t) // logged
		}
	}
	s.wake()
	return nil
}

// build makes a trial without a life of its own yet.
func (s *Set) build(now time.Time, c Config, was *trial) (*trial, error) {
	t := newTrial(c)
	if c.When != "" {
		if s.parts.Compile == nil {
			return nil, errors.New("conditions are not known here")
		}
		var err error
		if t.match, err = s.parts.Compile(c.When); err != nil {
			return nil, err
		}
	}
	t.counts = newCounts(t.names, was)
	return t, nil
}

// adopt gives a trial the life of the one that it replaces, or what was kept, or a new
// one. The caller holds orders.
func (s *Set) adopt(now time.Time, t, was *trial) {
	switch {
	case was == nil:
		t.life = s.restore(now, t)
		t.ledger = newLedger(len(t.names), t.cfg.By != byRequest, s.epochs.Add(1), now)
		return
	case was.mark == t.mark:
		t.life, t.ledger = was.life, was.ledger
		return
	}
	t.ledger = newLedger(len(t.names), t.cfg.By != byRequest, s.epochs.Add(1), now)
	t.life = new(life)
	state := *was.life.state.Load()
	state.mark = t.mark
	if state.State == Running {
		state.Started, state.Since, state.By, state.Reason = now.Round(0), now.Round(0), "", "its arms have changed"
		s.log.Info("an experiment begins again, because its arms have changed", "experiment", t.cfg.Name)
	} else {
		s.log.Warn("the arms of an experiment have changed, but it is not running", "experiment", t.cfg.Name, "state", state.State, "reason", state.Reason)
	}
	t.life.set(&state)
}

// Steer implements route.Steering. It allocates nothing by itself.
func (s *Set) Steer(now time.Time, req *inference.Request) route.Decision {
	for _, t := range s.table.Load().trials {
		if d, in := t.steer(now, req); in {
			return d
		}
	}
	return route.Decision{}
}

// Runs implements route.Arms.
func (s *Set) Runs(arm inference.Arm) bool {
	t := s.table.Load().byName[arm.Experiment]
	return t != nil && t.life.state.Load().State == Running && slices.ContainsFunc(t.cfg.Arms, func(a Arm) bool { return a.Name == arm.Arm })
}

// Observe adds a finished request to its arm. It does not block, and keeps neither the
// record nor its request. Records without an arm are passed over, and so are those of
// answers that Spillway renews or makes ahead: they run when nothing else waits.
func (s *Set) Observe(rec *inference.Record) {
	if rec.Arm.Arm == "" || rec.Request.Class == inference.Idle && !rec.Shadow {
		return
	}
	t, arm := s.find(rec.Arm)
	if t == nil {
		return
	}
	now := rec.Request.Received.Add(rec.Duration)
	one := sampleOf(rec)
	t.counts[arm].add(one.result)
	one.bucket = t.bucket(rec.Request)
	was := t.life.state.Load()
	if alarm := t.ledger.add(t, arm, one); alarm != nil && was.State == Running {
		s.rollBack(now, t, was, alarm)
	}
}

// Begin makes an answer one that can be scored, from before its client has any of it:
// the client may have its last byte, and score it, sooner than Observe is called. An
// answer that breaks off later can be scored, too. It does not block, and keeps
// neither the record nor its request.
func (s *Set) Begin(rec *inference.Record) {
	if rec.Arm.Arm == "" || rec.Request.Class == inference.Idle || rec.Status >= http.StatusMultipleChoices {
		return // nobody's answer, or an error
	}
	t, arm := s.find(rec.Arm)
	if t == nil || t.control < 0 { // of a copy nobody sees the answer
		return
	}
	if epoch := t.ledger.epoch(rec.Request.Received); epoch != 0 {
		s.memory.remember(time.Now(), key{rec.Request.Tenant, rec.Request.ID}, subject{t.cfg.Name, epoch, arm, t.bucket(rec.Request)})
	}
}

// find returns an experiment and the index of its arm; nil where there is none.
func (s *Set) find(of inference.Arm) (t *trial, arm int) {
	if t = s.table.Load().byName[of.Experiment]; t == nil {
		return nil, 0
	}
	if arm = slices.Index(t.names, of.Arm); arm < 0 {
		return nil, 0
	}
	return t, arm
}

// rollBack ends an experiment because of its guard, unless it is not any more what it
// was when the guard saw it.
func (s *Set) rollBack(now time.Time, t *trial, was *State, a *alarm) {
	reason := a.words(t, now.Sub(was.Started))
	next := *was
	next.State, next.Since, next.By, next.Reason = RolledBack, now.Round(0), "", reason
	if !t.life.swap(was, &next) {
		return
	}
	s.log.Warn("an experiment is rolled back", "experiment", t.cfg.Name, "reason", reason)
	s.wake()
}

// forgetful is the Keep of experiments that do not outlive their process.
type forgetful struct{}

// Read implements Keep.
func (forgetful) Read(string) ([]byte, error) { return nil, fs.ErrNotExist }

// Write implements Keep.
func (forgetful) Write(string, []byte) error { return nil }

// Names lists the experiments, sorted.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.table.Load().byName)) }
