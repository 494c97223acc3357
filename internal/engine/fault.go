package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Chance says how often a fault strikes.
type Chance struct {
	// Probability that a request is hit, 0 (never) to 1 (always).
	Probability float64 `yaml:"probability"`
	// Count ends the fault after that many hits; 0 is no end.
	Count int `yaml:"count"`
}

// StatusFault answers with an error status instead of working.
type StatusFault struct {
	Chance `yaml:",inline"`
	// Status is the HTTP status to answer with, 400 to 599; 0 means 500 (503 for health).
	Status int `yaml:"status"`
}

// LatencyFault delays a request before it reaches the queue.
type LatencyFault struct {
	Chance `yaml:",inline"`
	// Delay before the request is queued.
	Delay time.Duration `yaml:"delay"`
}

// EventFault strikes inside an answer, after some of its events went out.
type EventFault struct {
	Chance `yaml:",inline"`
	// AfterEvents is the number of data events sent before; the role-only first chunk counts. An answer that is not
	// streamed counts one per token.
	AfterEvents int `yaml:"after_events"`
}

// CutFault breaks the connection in the middle of an answer.
type CutFault struct {
	EventFault `yaml:",inline"`
	// Reset sends a TCP reset instead of closing in mid-body; it may overtake the last events.
	Reset bool `yaml:"reset"`
}

// StallFault holds an answer's events back while its connection stays open.
type StallFault struct {
	EventFault `yaml:",inline"`
	// Duration of the stall; 0 lasts until the client leaves.
	Duration time.Duration `yaml:"duration"`
}

// SlowStart makes steps longer at first, as after loading a model.
type SlowStart struct {
	// Factor multiplies the step time at the beginning; it falls evenly to 1 over Period. 0 is off.
	Factor float64 `yaml:"factor"`
	// Period from the moment the fault is set until the engine is at full speed.
	Period time.Duration `yaml:"period"`
}

// Pace is the factor on step times when the start is so long ago: it falls from
// Factor to 1 over Period. A step that is late begins before the start; it has the
// whole factor and no more.
func (s SlowStart) Pace(since time.Duration) float64 {
	left := min(s.Period, s.Period-since)
	if s.Factor <= 1 || left <= 0 {
		return 1
	}
	return 1 + (s.Factor-1)*float64(left)/float64(s.Period)
}

// Faults are the mistakes an engine makes on purpose. The zero value makes none.
type Faults struct {
	// Error answers with an error status before anything is queued.
	Error StatusFault `yaml:"error"`
	// Latency delays requests.
	Latency LatencyFault `yaml:"latency"`
	// Reset closes the connection with a TCP reset before the response.
	Reset Chance `yaml:"reset"`
	// Cut breaks the connection in mid-answer.
	Cut CutFault `yaml:"cut"`
	// Stall stops an answer's events.
	Stall StallFault `yaml:"stall"`
	// Malformed replaces an event with broken JSON; an answer that is not streamed is cut short but complete as HTTP.
	Malformed EventFault `yaml:"malformed"`
	// MissingDone leaves out the last event ([DONE], message_stop, response.completed) and ends cleanly.
	MissingDone Chance `yaml:"missing_done"`
	// Unhealthy makes GET /health fail.
	Unhealthy StatusFault `yaml:"unhealthy"`
	// SlowStart makes steps longer at first.
	SlowStart SlowStart `yaml:"slow_start"`
}

// The faults that strike by chance, by their index in the counters.
const (
	faultError = iota
	faultLatency
	faultReset
	faultCut
	faultStall
	faultMalformed
	faultMissingDone
	faultUnhealthy
	faultKinds
)

// chances lists the faults that strike by chance with their keys, in the order of the constants.
func (f *Faults) chances() [faultKinds]struct {
	key    string
	chance Chance
} {
	return [faultKinds]struct {
		key    string
		chance Chance
	}{
		{"error", f.Error.Chance},
		{"latency", f.Latency.Chance},
		{"reset", f.Reset},
		{"cut", f.Cut.Chance},
		{"stall", f.Stall.Chance},
		{"malformed", f.Malformed.Chance},
		{"missing_done", f.MissingDone},
		{"unhealthy", f.Unhealthy.Chance},
	}
}

// Validate returns all mistakes joined; each begins with the key path.
func (f Faults) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, c := range f.chances() {
		if p := c.chance.Probability; !(p >= 0 && p <= 1) {
			bad("%s.probability: must be 0 to 1, got %v", c.key, p)
		}
		if c.chance.Count < 0 {
			bad("%s.count: must be >= 0, got %d", c.key, c.chance.Count)
		}
	}
	for _, s := range []struct {
		key string
		got int
	}{{"error", f.Error.Status}, {"unhealthy", f.Unhealthy.Status}} {
		if s.got != 0 && (s.got < 400 || s.got > 599) {
			bad("%s.status: must be 400 to 599, got %d", s.key, s.got)
		}
	}
	for _, n := range []struct {
		key string
		got int
	}{{"cut", f.Cut.AfterEvents}, {"stall", f.Stall.AfterEvents}, {"malformed", f.Malformed.AfterEvents}} {
		if n.got < 0 {
			bad("%s.after_events: must be >= 0, got %d", n.key, n.got)
		}
	}
	for _, d := range []struct {
		key string
		got time.Duration
	}{{"latency.delay", f.Latency.Delay}, {"stall.duration", f.Stall.Duration}, {"slow_start.period", f.SlowStart.Period}} {
		if d.got < 0 {
			bad("%s: must be >= 0s, got %v", d.key, d.got)
		}
	}
	if s := f.SlowStart; s.Factor != 0 && !(s.Factor >= 1 && s.Factor <= 1e6) {
		bad("slow_start.factor: must be 1 to 1000000, got %v", s.Factor)
	} else if s.Factor != 0 && s.Period == 0 {
		bad("slow_start.period: must be > 0s when factor is set")
	}
	return errors.Join(errs...)
}

// plan is what one request will suffer. Event numbers are -1 where nothing happens.
type plan struct {
	status      int // 0 is no error
	delay       time.Duration
	reset       bool
	cutAt       int
	cutReset    bool
	stallAt     int
	stallFor    time.Duration
	malformedAt int
	missingDone bool
}

// faultSource draws each request's plan. It is safe for concurrent use.
type faultSource struct {
	mu struct {
		sync.Mutex
		faults Faults
		fired  [faultKinds]int
		random *rand.Rand
		since  time.Time // of slow start
	}
}

func newFaultSource(f Faults, seed uint64) *faultSource {
	s := &faultSource{}
	s.mu.random = rand.New(rand.NewPCG(seed, seed))
	s.set(f)
	return s
}

// set replaces all faults and starts their counts anew.
func (s *faultSource) set(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.faults, s.mu.fired, s.mu.since = f, [faultKinds]int{}, time.Now()
}

// current returns the faults and how often each has struck, by key.
func (s *faultSource) current() (Faults, map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fired := make(map[string]int, faultKinds)
	for kind, c := range s.mu.faults.chances() {
		fired[c.key] = s.mu.fired[kind]
	}
	return s.mu.faults, fired
}

// strikes decides one fault; the caller holds the lock.
func (s *faultSource) strikes(kind int, c Chance) bool {
	if c.Probability == 0 || (c.Count > 0 && s.mu.fired[kind] >= c.Count) || s.mu.random.Float64() >= c.Probability {
		return false
	}
	s.mu.fired[kind]++
	return true
}

// draw decides a request's faults.
func (s *faultSource) draw() plan {
	p := plan{cutAt: -1, stallAt: -1, malformedAt: -1}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &s.mu.faults
	if s.strikes(faultLatency, f.Latency.Chance) {
		p.delay = f.Latency.Delay
	}
	p.reset = s.strikes(faultReset, f.Reset)
	if p.reset {
		return p
	}
	if s.strikes(faultError, f.Error.Chance) {
		p.status = orElse(f.Error.Status, 500)
		return p
	}
	if s.strikes(faultCut, f.Cut.Chance) {
		p.cutAt, p.cutReset = f.Cut.AfterEvents, f.Cut.Reset
	}
	if s.strikes(faultStall, f.Stall.Chance) {
		p.stallAt, p.stallFor = f.Stall.AfterEvents, f.Stall.Duration
	}
	if s.strikes(faultMalformed, f.Malformed.Chance) {
		p.malformedAt = f.Malformed.AfterEvents
	}
	p.missingDone = s.strikes(faultMissingDone, f.MissingDone)
	return p
}

// health is the status GET /health answers with.
func (s *faultSource) health() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.mu.faults.Unhealthy; s.strikes(faultUnhealthy, f.Chance) {
		return orElse(f.Status, 503)
	}
	return 200
}

// pace is the factor on step times now.
func (s *faultSource) pace(now time.Time) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.faults.SlowStart.Pace(now.Sub(s.mu.since))
}

func orElse(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}
