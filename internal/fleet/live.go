package fleet

import (
	"math"
	"sync/atomic"
	"time"
)

// Status says whether a node can take a request, and if not, why. A smaller
// value is nearer to taking one.
type Status uint8

// The states, from best to worst.
const (
	Open     Status = iota // takes requests
	Full                   // at its capacity
	Cooling                // said busy; waits out its cool-down
	Stalled                // gives no sign of life
	Ejected                // taken out by passive health, until an instant
	Draining               // takes nothing new
	Standby                // in reserve, not switched on
	Down                   // failed its active checks, or has no member
)

// statusNames is indexed by Status.
var statusNames = [...]string{"open", "full", "cooling", "stalled", "ejected", "draining", "standby", "down"}

// String returns the name used in metrics, logs and the admin API.
func (s Status) String() string { return statusNames[s] }

// ttftTau is the time constant of the decay of the peak EWMA of TTFT: 10 s, as
// Finagle's PeakEwma load metric.
const ttftTau = 10 * time.Second

// Live is what a node is doing now. It belongs to the node's name and outlives
// snapshots. All methods are safe for concurrent use and none allocates.
type Live struct {
	inFlight     atomic.Int64
	promptTokens atomic.Int64

	extra      atomic.Int64  // requests of others, from the instance's own metrics
	extraUntil atomic.Int64  // 0 is no report
	perRequest atomic.Uint64 // float64 bits: share of the learned limit that a request takes; 0 is not known
	perToken   atomic.Uint64 // float64 bits: share of the window that a prompt token takes

	ttft      atomic.Uint64 // float64 bits, seconds
	ttftAt    atomic.Int64
	roundTrip atomic.Uint64 // float64 bits, seconds

	down         atomic.Bool
	draining     atomic.Bool
	upSince      atomic.Int64 // when it last came back; 0 is always
	ejectedUntil atomic.Int64 // 0 is not ejected; in the past it is half-open
	probing      atomic.Bool  // half-open: one request is out
	coolUntil    atomic.Int64
	stalledAt    atomic.Int64 // when the stall was last noticed or tested; 0 is not stalled
	standby      atomic.Bool  // in reserve

	limit  atomic.Int64 // learned: most requests in flight; 0 is not known
	window atomic.Int64 // learned: prompt tokens outstanding above which nothing more is taken; 0 is not known
	memory atomic.Int64 // learned: tokens held above which nothing more is taken; 0 is not known

	pulse Pulse
	meter Meter
}

// InFlight is the number of attempts that hold a lease.
func (l *Live) InFlight() int64 { return l.inFlight.Load() }

// PromptTokens is the estimate of prompt tokens that wait for their first token.
func (l *Live) PromptTokens() int64 { return l.promptTokens.Load() }

// Load is InFlight plus what the instance itself says it does for others, as
// long as that report is fresh at now (Unix nanoseconds).
func (l *Live) Load(now int64) int64 {
	n := l.inFlight.Load()
	if until := l.extraUntil.Load(); until != 0 && now < until {
		n += l.extra.Load()
	}
	return n
}

// Report corrects the load by an instance's own count of requests running and
// waiting: what exceeds our own count is somebody else's. It holds until the
// given instant (Unix nanoseconds); afterwards our own count stands alone.
func (l *Live) Report(requests int64, until int64) {
	l.extra.Store(max(0, requests-l.inFlight.Load()))
	l.extraUntil.Store(until)
}

// TTFT is the peak-sensitive moving average of the time to first token; 0 when
// nothing was observed.
func (l *Live) TTFT() time.Duration { return seconds(l.ttft.Load()) }

// ObserveTTFT adds one observation: a slower one counts at once, a faster one
// by 1-exp(-dt/tau) (Finagle's PeakEwma).
func (l *Live) ObserveTTFT(now int64, d time.Duration) {
	for {
		bits := l.ttft.Load()
		old, x := math.Float64frombits(bits), d.Seconds()
		if old > 0 && x < old {
			keep := math.Exp(-float64(now-l.ttftAt.Load()) / float64(ttftTau))
			x = old*keep + x*(1-keep)
		}
		if l.ttft.CompareAndSwap(bits, math.Float64bits(x)) {
			l.ttftAt.Store(now)
			return
		}
	}
}

// RoundTrip is the moving average of the network round trip as connects and
// health probes see it; 0 when nothing was observed.
func (l *Live) RoundTrip() time.Duration { return seconds(l.roundTrip.Load()) }

// ObserveRoundTrip adds one observation with weight 1/8 (RFC 6298's SRTT).
func (l *Live) ObserveRoundTrip(d time.Duration) {
	for {
		bits := l.roundTrip.Load()
		old, x := math.Float64frombits(bits), d.Seconds()
		if old > 0 {
			x = old + (x-old)/8
		}
		if l.roundTrip.CompareAndSwap(bits, math.Float64bits(x)) {
			return
		}
	}
}

// seconds turns float64 bits into a duration.
func seconds(bits uint64) time.Duration {
	return time.Duration(math.Float64frombits(bits) * float64(time.Second))
}

// SetDown records the verdict of active checks. It returns whether it changed.
func (l *Live) SetDown(down bool, now int64) bool {
	if l.down.Swap(down) == down {
		return false
	}
	if !down {
		l.upSince.Store(now)
	}
	return true
}

// SetDraining starts or ends a drain. It returns whether it changed.
func (l *Live) SetDraining(on bool) bool { return l.draining.Swap(on) != on }

// Eject takes the node out until the given instant (Unix nanoseconds). After it
// the node is half-open: one request at a time is let through until Readmit.
func (l *Live) Eject(until int64) {
	l.ejectedUntil.Store(until)
	l.probing.Store(false)
}

// Readmit ends an ejection and begins slow start. It returns whether there was one.
func (l *Live) Readmit(now int64) bool {
	if l.ejectedUntil.Swap(0) == 0 {
		return false
	}
	l.probing.Store(false)
	l.upSince.Store(now)
	return true
}

// Ejected says whether the node is ejected or half-open.
func (l *Live) Ejected() bool { return l.ejectedUntil.Load() != 0 }

// Cool keeps new requests away until the given instant (Unix nanoseconds). A
// cool-down is only ever lengthened: a later, shorter one does not overwrite it.
func (l *Live) Cool(until int64) {
	for {
		old := l.coolUntil.Load()
		if until <= old || l.coolUntil.CompareAndSwap(old, until) {
			return
		}
	}
}

// CoolUntil is the end of the cool-down in Unix nanoseconds.
func (l *Live) CoolUntil() int64 { return l.coolUntil.Load() }

// status judges one instance.
func (l *Live) status(now, capacity int64) Status {
	switch {
	case l.down.Load():
		return Down
	case l.draining.Load():
		return Draining
	case l.standby.Load():
		return Standby
	}
	if until := l.ejectedUntil.Load(); until != 0 && (now < until || l.probing.Load()) {
		return Ejected
	}
	switch {
	case l.stalled(now):
		return Stalled
	case now < l.coolUntil.Load():
		return Cooling
	case !l.room(capacity):
		return Full
	}
	return Open
}

// room says whether one more request may run: below the configured capacity, the
// learned limit, and the budgets of prompt tokens and of memory. A budget is only
// ever overrun by the request that comes last, so that one which is larger than
// the whole budget runs when nothing else is outstanding.
func (l *Live) room(capacity int64) bool {
	n := l.inFlight.Load()
	if capacity > 0 && n >= capacity {
		return false
	}
	if limit := l.limit.Load(); limit > 0 && n >= limit {
		return false
	}
	if window := l.window.Load(); window > 0 && l.promptTokens.Load() >= window {
		return false
	}
	memory := l.memory.Load()
	return memory == 0 || n == 0 || l.meter.context.Load() < memory
}

// SetLimits sets what was learned about the instance: the most requests in flight,
// and the prompt tokens outstanding and the tokens held above which nothing more
// is taken. 0 is no limit.
func (l *Live) SetLimits(requests, promptTokens, memory int64) {
	l.limit.Store(requests)
	l.window.Store(promptTokens)
	l.memory.Store(memory)
	l.perRequest.Store(math.Float64bits(share(requests)))
	l.perToken.Store(math.Float64bits(share(promptTokens)))
}

// share is one part of n, 0 of nothing.
func share(n int64) float64 {
	if n <= 0 {
		return 0
	}
	return 1 / float64(n)
}

// Fullness is the share of the learned limits in use with one more request: of
// requests in flight, others' included, plus of outstanding prompt tokens; 0 when
// no limit is known.
func (l *Live) Fullness(now int64) float64 {
	return float64(l.Load(now)+1)*math.Float64frombits(l.perRequest.Load()) +
		float64(l.promptTokens.Load())*math.Float64frombits(l.perToken.Load())
}

// Limits returns what SetLimits set.
func (l *Live) Limits() (requests, promptTokens, memory int64) {
	return l.limit.Load(), l.window.Load(), l.memory.Load()
}

// Streams is the number of streams past their first token.
func (l *Live) Streams() int64 { return l.pulse.streams.Load() }

// Meter counts what passes the instance.
func (l *Live) Meter() *Meter { return &l.meter }

// UpSince is when the node last came back, in Unix nanoseconds; 0 is never.
func (l *Live) UpSince() int64 { return l.upSince.Load() }

// stalled notices a stall, and lets one request through every stallRetry, or
// every stallHeld while others wait there, as long as there is no sign of life.
func (l *Live) stalled(now int64) bool {
	at := l.stalledAt.Load()
	if at == 0 {
		if !l.pulse.silent(now) {
			return false
		}
		l.stalledAt.CompareAndSwap(0, now)
		return true
	}
	wait := int64(stallRetry)
	if l.pulse.streams.Load()+l.pulse.waiting() > 0 {
		wait = int64(stallHeld)
	}
	return now-at < wait
}

// alive records a sign of life, which ends a stall.
func (l *Live) alive(now int64) {
	l.pulse.beat.Store(now)
	if l.stalledAt.Load() != 0 {
		l.stalledAt.Store(0)
	}
}

// TTFTQuantile is a quantile (0..1) of the recent times to first token of streams,
// or of the recent times of answers in one piece; 0 when too few were observed to
// tell.
func (l *Live) TTFTQuantile(share float64, stream bool) time.Duration {
	return l.pulse.of(stream).first.Quantile(share)
}

// take reserves one slot, atomically against the capacity and the half-open
// probe. It reports whether the slot is that probe.
func (l *Live) take(now, capacity, tokens int64, panicking bool) (ok, probe bool) {
	if until := l.ejectedUntil.Load(); until != 0 && !panicking {
		if now < until || !l.probing.CompareAndSwap(false, true) {
			return false, false
		}
		probe = true
	}
	n, limit := l.inFlight.Add(1), l.limit.Load()
	if capacity > 0 && n > capacity || limit > 0 && n > limit {
		l.inFlight.Add(-1)
		if probe {
			l.probing.Store(false)
		}
		return false, false
	}
	if at := l.stalledAt.Load(); at != 0 {
		l.stalledAt.CompareAndSwap(at, now) // this request is the test; the next one waits its turn
	}
	if l.promptTokens.Add(tokens) == tokens || l.meter.readSince.Load() == 0 { // or an end was noted too late
		l.meter.reads(now, true)
	}
	l.meter.context.Add(tokens)
	return true, probe
}
