package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/inference"
)

// EmergencyConfig is the key `admission.emergency`: the profile that the
// emergency switch applies.
type EmergencyConfig struct {
	// Classes that are refused while the switch is on: batch, normal. The gateway's own idle work goes with batch.
	Shed []string `yaml:"shed"`
	// Pools marked standby take work while the switch is on.
	StandbyPools bool `yaml:"standby_pools"`
	// Step of the brownout ladder that holds from the start, whatever the pressure: none, yield, cap_tokens, cheaper_model.
	Brownout string `yaml:"brownout"`
	// When the switch goes off by itself, unless the operator names another time; at most 24h.
	Expiry time.Duration `yaml:"expiry"`
}

// Bounds of what an operator may order.
const (
	// MaxExpiry is the longest time an emergency may last without being ordered
	// again: what outlives a day is no emergency, and a switch that nobody
	// remembers sheds work for nothing.
	MaxExpiry = 24 * time.Hour
	minExpiry = time.Second
	maxReason = 500 // bytes; it stands in one log line
	maxBy     = 100 // bytes
)

// DefaultEmergency is the profile of a file that says nothing.
func DefaultEmergency() EmergencyConfig {
	return EmergencyConfig{Shed: []string{inference.Batch.String()}, StandbyPools: true, Brownout: StepCapTokens.String(), Expiry: time.Hour}
}

// Validate returns every mistake, each with its key from `emergency` on.
func (c *EmergencyConfig) Validate() error {
	var errs []error
	for i, name := range c.Shed {
		switch class, ok := inference.ParseClass(name); {
		case !ok:
			errs = append(errs, fmt.Errorf("emergency.shed[%d]: unknown class %q; known are batch, normal", i, name))
		case class == inference.VIP:
			errs = append(errs, fmt.Errorf("emergency.shed[%d]: vip is what an emergency keeps answering", i))
		case slices.Contains(c.Shed[:i], name):
			errs = append(errs, fmt.Errorf("emergency.shed[%d]: %s is listed twice", i, name))
		}
	}
	if _, ok := ParseStep(c.Brownout); !ok {
		errs = append(errs, fmt.Errorf("emergency.brownout: unknown step %q; known are %v", c.Brownout, Steps()))
	}
	if err := checkExpiry(c.Expiry); err != nil {
		errs = append(errs, fmt.Errorf("emergency.expiry: %w", err))
	}
	return errors.Join(errs...)
}

// checkExpiry judges a time that an emergency may last.
func checkExpiry(d time.Duration) error {
	if d < minExpiry || d > MaxExpiry {
		return fmt.Errorf("must be %v to %v, got %v", minExpiry, MaxExpiry, d)
	}
	return nil
}

// Profile is what the switch applies, as the governor reads it. It is immutable.
type Profile struct {
	Shed         []inference.Class // refused; not to be changed
	StandbyPools bool              // pools marked standby take work
	Brownout     Step              // least step of the brownout ladder
	shed         [inference.Idle + 1]bool
}

// Sheds says whether requests of a class are refused. Idle goes with batch.
func (p *Profile) Sheds(c inference.Class) bool { return int(c) < len(p.shed) && p.shed[c] }

// newProfile reads a configuration that has passed Validate.
func newProfile(c EmergencyConfig) *Profile {
	p := &Profile{StandbyPools: c.StandbyPools}
	p.Brownout, _ = ParseStep(c.Brownout)
	for _, name := range c.Shed {
		if class, ok := inference.ParseClass(name); ok {
			p.Shed = append(p.Shed, class)
			p.shed[class] = true
		}
	}
	p.shed[inference.Idle] = p.shed[inference.Batch]
	return p
}

// Keeper is where the switch outlives the process; *store.Store is one. Its
// methods are called by one goroutine at a time and may wait for a disk.
type Keeper interface {
	// Read returns what was written under a name, or an error that is
	// fs.ErrNotExist.
	Read(name string) ([]byte, error)
	// Write replaces what is kept under a name, all of it or nothing.
	Write(name string, data []byte) error
	// Remove forgets a name. One that is not kept is no error.
	Remove(name string) error
}

// ErrNotKept marks errors of orders that were carried out, but that a restart
// would not know of.
var ErrNotKept = errors.New("the order is in force, but a restart would not know of it")

// Operator is who gave an order, for the audit log.
type Operator struct {
	Name string // as the operator gave it: it is not proven
	From string // the address that the order came from
}

// EmergencyState is the switch at one instant.
type EmergencyState struct {
	On     bool
	Since  time.Time // when it was first switched on; zero when off
	Until  time.Time // when it goes off by itself; zero when off
	By     Operator  // who gave the order in force
	Reason string
	// Profile is what is applied, or would be. It is never nil.
	Profile *Profile
}

// Emergency is the switch between everyday work and an emergency. It applies a
// configured profile, ends by itself, and outlives a restart through its Keeper.
//
// It is safe for concurrent use: reads are one atomic load of an immutable
// state. Orders follow each other under a mutex that is held while they are
// kept, so that what is kept last is what was ordered last; neither a read nor Tick
// waits for it. Run owns one goroutine's time: the disk at the start and at an end.
type Emergency struct {
	keep            Keeper
	log             *slog.Logger
	onDesc, endDesc *prometheus.Desc
	live            atomic.Pointer[EmergencyState] // as ordered: expiry is judged by the reader
	expiry          atomic.Int64                   // of orders that name none, ns
	untidy          atomic.Bool                    // mu.tidy is not empty

	mu struct {
		sync.Mutex
		tidy []func() // what is left to say of the start, and to do on the disk, in order
	}
}

// NewEmergency returns the switch as it was kept: on when an emergency that was
// ordered before a restart goes on, else off; what cannot be read leaves it off. A
// nil keep forgets everything. The error is that of a wrong configuration. It
// neither logs nor writes: a command that builds a gateway without running it leaves
// no trace. Run does both, or the first order.
func NewEmergency(cfg EmergencyConfig, keep Keeper, log *slog.Logger) (*Emergency, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if keep == nil {
		keep = forgetful{}
	}
	e := &Emergency{
		keep: keep, log: log.With("component", "admission", "event", "emergency"),
		onDesc:  prometheus.NewDesc("spillway_admission_emergency", "1 while the emergency mode is on.", nil, nil),
		endDesc: prometheus.NewDesc("spillway_admission_emergency_until_seconds", "When the emergency mode ends by itself, Unix time; 0 while it is off.", nil, nil),
	}
	e.expiry.Store(int64(cfg.Expiry))
	e.live.Store(&EmergencyState{Profile: newProfile(cfg)})
	e.restore(time.Now())
	return e, nil
}

// Apply replaces the profile, also of an emergency that is on; its end stays. cfg
// has passed Validate.
func (e *Emergency) Apply(cfg EmergencyConfig) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expiry.Store(int64(cfg.Expiry))
	next := *e.live.Load()
	next.Profile = newProfile(cfg)
	e.live.Store(&next)
}

// On switches the emergency mode on, or gives one that is on another end and
// reason. An expiry of 0 is the configured one. The error is ErrNotKept when the
// order is in force but could not be kept, and else says what is wrong with the
// order, which then changed nothing. It may wait for the disk, behind what is in
// force at once.
func (e *Emergency) On(now time.Time, by Operator, reason string, expiry time.Duration) (EmergencyState, error) {
	if expiry == 0 {
		expiry = time.Duration(e.expiry.Load())
	}
	if err := checkOrder(by, reason, expiry); err != nil {
		return e.State(now), err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expire(now)
	e.tidy()
	next := *e.live.Load()
	if !next.On {
		next.Since = now.Round(0)
	}
	next.On, next.Until, next.By, next.Reason = true, now.Add(expiry).Round(0), by, reason
	e.live.Store(&next)
	e.audit("emergency mode is on", &next, by)
	data, err := next.encode()
	if err == nil {
		err = e.keep.Write(emergencyFile, data)
	}
	if err != nil {
		return next, e.notKept(err)
	}
	return next, nil
}

// Off ends an emergency. The error is ErrNotKept when a restart would bring the
// emergency back, or says what is wrong with the order. When the mode is off
// already, nothing changes and nothing is logged.
func (e *Emergency) Off(now time.Time, by Operator) (EmergencyState, error) {
	if err := checkOrder(by, "", minExpiry); err != nil {
		return e.State(now), err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expire(now)
	e.tidy()
	if was := e.live.Load(); was.On {
		e.live.Store(&EmergencyState{Profile: was.Profile})
		e.audit("emergency mode is off", was, by)
	}
	state := *e.live.Load()
	if err := e.keep.Remove(emergencyFile); err != nil {
		return state, e.notKept(err)
	}
	return state, nil
}

// checkOrder judges what an operator said.
func checkOrder(by Operator, reason string, expiry time.Duration) error {
	if err := checkExpiry(expiry); err != nil {
		return fmt.Errorf("expiry: %w", err)
	}
	if err := checkLine(by.Name, maxBy); err != nil {
		return fmt.Errorf("by: %w", err)
	}
	if err := checkLine(by.From, maxBy); err != nil {
		return fmt.Errorf("from: %w", err)
	}
	if err := checkLine(reason, maxReason); err != nil {
		return fmt.Errorf("reason: %w", err)
	}
	return nil
}

// checkLine wants one short line of text: it is printed in logs and terminals.
func checkLine(s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("must have at most %d bytes, got %d", most, len(s))
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("must be one line of printable text")
	}
	return nil
}

// State returns the switch at an instant.
func (e *Emergency) State(now time.Time) EmergencyState {
	s := *e.live.Load()
	if !s.on(now) {
		return EmergencyState{Profile: s.Profile}
	}
	return s
}

// Profile returns what is to be applied at an instant, or nil when the switch is
// off. It does not allocate.
func (e *Emergency) Profile(now time.Time) *Profile {
	if s := e.live.Load(); s.on(now) {
		return s.Profile
	}
	return nil
}

// on says whether the emergency holds at an instant.
func (s *EmergencyState) on(now time.Time) bool { return s.On && now.Before(s.Until) }

// Tick notes the end of an emergency whose time is over with one line in the log.
// Readers do not wait for it: they judge by their own now. It never waits for the
// disk, nor for an order that does: a later Tick notes the end then.
func (e *Emergency) Tick(now time.Time) {
	if s := e.live.Load(); !s.On || s.on(now) || !e.mu.TryLock() {
		return
	}
	defer e.mu.Unlock()
	e.expire(now)
}

// tidyEvery bounds how long a file outlives its emergency.
const tidyEvery = time.Second

// Run does what is left to do on the disk, at the start and behind an end, and
// calls Tick, until ctx ends.
func (e *Emergency) Run(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		e.Tick(time.Now())
		if e.untidy.Load() {
			e.mu.Lock()
			e.tidy()
			e.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// later leaves something to tidy. The caller holds mu, or is the only one.
func (e *Emergency) later(do func()) {
	e.mu.tidy = append(e.mu.tidy, do)
	e.untidy.Store(true)
}

// tidy does what is left to do. The caller holds mu.
func (e *Emergency) tidy() {
	for _, do := range e.mu.tidy {
		do()
	}
	e.mu.tidy = nil
	e.untidy.Store(false)
}

// expire ends an emergency whose time is over. The caller holds mu.
func (e *Emergency) expire(now time.Time) {
	was := e.live.Load()
	if !was.On || was.on(now) {
		return
	}
	e.live.Store(&EmergencyState{Profile: was.Profile})
	e.audit("emergency mode has expired", was, was.By)
	e.later(e.forget)
}

// audit writes the one line of a change. s is the emergency that it is about.
func (e *Emergency) audit(message string, s *EmergencyState, by Operator) {
	e.log.Warn(message, "by", by.Name, "from", by.From, "reason", s.Reason, "since", s.Since, "until", s.Until,
		"shed", fmt.Sprint(s.Profile.Shed), "standby_pools", s.Profile.StandbyPools, "brownout", s.Profile.Brownout.String())
}

// notKept reports an order that is in force but not kept.
func (e *Emergency) notKept(err error) error {
	e.log.Error(ErrNotKept.Error(), "err", err)
	return fmt.Errorf("%w: %w", ErrNotKept, err)
}

// Describe implements prometheus.Collector.
func (e *Emergency) Describe(ch chan<- *prometheus.Desc) {
	ch <- e.onDesc
	ch <- e.endDesc
}

// Collect implements prometheus.Collector.
func (e *Emergency) Collect(ch chan<- prometheus.Metric) {
	on, end := 0.0, 0.0
	if s := e.State(time.Now()); s.On {
		on, end = 1, float64(s.Until.UnixNano())/1e9
	}
	ch <- prometheus.MustNewConstMetric(e.onDesc, prometheus.GaugeValue, on)
	ch <- prometheus.MustNewConstMetric(e.endDesc, prometheus.GaugeValue, end)
}
