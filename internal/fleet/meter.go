package fleet

import (
	"math"
	"sync/atomic"
	"time"
)

// Meter counts what passes an instance, for those who learn from it: admission
// takes the difference of two readings. All counters but Context only grow. All
// methods are safe for concurrent use.
type Meter struct {
	gaps       atomic.Int64
	gapNanos   atomic.Int64
	firsts     atomic.Int64
	prompts    atomic.Int64
	firstNanos atomic.Int64
	ahead      atomic.Int64
	prefilled  atomic.Int64
	context    atomic.Int64
	readNanos  atomic.Int64 // time with prompts outstanding, but for the present one
	readSince  atomic.Int64 // when the present one began, Unix nanoseconds; 0 is none
	preempted  atomic.Int64
	known      atomic.Int64 // the engine's own count of preemptions, plus 1; 0 is not known
	busy       atomic.Int64
	ended      atomic.Int64
	slow       atomic.Int64
	perEvent   atomic.Uint64 // float64 bits: output tokens an event carries; 0 is not known
	unanswered [waitSlots]atomic.Int32
}

// Reading is the state of a Meter.
type Reading struct {
	Gaps     int64         // gaps between two events of a stream
	GapTime  time.Duration // their sum
	Firsts   int64         // first tokens
	FirstAll time.Duration // sum of the times from the lease to the first token
	Ahead    int64         // sum over first tokens of the prompt tokens outstanding when the lease was taken, its own included
	Prompt   int64         // prompt tokens whose first token has come
	Reading  time.Duration // time in which prompt tokens were outstanding
	Prompts  int64         // prompts that were read
	Context  int64         // tokens that running sequences hold: prompts and what was generated
	Preempt  int64         // sequences that the engine says it threw out for want of memory
	Busy     int64         // answers that said busy
	Ended    int64         // streams that ended whole and were judged
	Slow     int64         // those of them whose time per token was over its objective
}

// Layout of the record of when unanswered leases were taken: a minute in tenths of
// a second, so that it costs one atomic add at each end.
const (
	waitSlots = 600
	waitSlot  = int64(100 * time.Millisecond)
)

// Read returns the state at now (Unix nanoseconds). Counters are read one after
// the other.
func (m *Meter) Read(now int64) Reading {
	reading := m.readNanos.Load()
	if since := m.readSince.Load(); since != 0 {
		reading += max(0, now-since)
	}
	return Reading{
		Reading: time.Duration(reading),
		Gaps:    m.gaps.Load(), GapTime: time.Duration(m.gapNanos.Load()),
		Firsts: m.firsts.Load(), Prompts: m.prompts.Load(), FirstAll: time.Duration(m.firstNanos.Load()), Ahead: m.ahead.Load(),
		Prompt: m.prefilled.Load(), Context: m.context.Load(), Preempt: m.preempted.Load(), Busy: m.busy.Load(), Ended: m.ended.Load(), Slow: m.slow.Load(),
	}
}

// await counts a lease taken at an instant (Unix nanoseconds) that waits for its
// first token, or takes it off.
func (m *Meter) await(start int64, n int32) { m.unanswered[start/waitSlot%waitSlots].Add(n) }

// Oldest is how long the oldest lease without a first token has been held at now
// (Unix nanoseconds), in steps of 100 ms and up to a minute. Answers that are asked
// for in one piece do not count, but for embeddings.
func (m *Meter) Oldest(now int64) time.Duration {
	slot := now / waitSlot
	for age := int64(waitSlots - 1); age > 0; age-- {
		if m.unanswered[(slot-age+waitSlots)%waitSlots].Load() > 0 {
			return time.Duration(age * waitSlot)
		}
	}
	return 0
}

// reads notes that prompts are outstanding from now on, or are no longer. An event
// that another one overtakes costs the time between the two.
func (m *Meter) reads(now int64, on bool) {
	if on {
		m.readSince.Store(now)
		return
	}
	if since := m.readSince.Swap(0); since != 0 {
		m.readNanos.Add(max(0, now-since))
	}
}

// Judge counts a stream that ended whole, and whether it was too slow.
func (m *Meter) Judge(slow bool) {
	m.ended.Add(1)
	if slow {
		m.slow.Add(1)
	}
}

// Calibrate learns from a whole stream how many output tokens an event carries:
// engines that speculate or that bundle send several at once. One stream moves the
// mean by a sixteenth.
func (m *Meter) Calibrate(tokens, events int64) {
	if tokens <= 0 || events <= 0 {
		return
	}
	old := m.PerEvent()
	m.perEvent.Store(math.Float64bits(old + (float64(tokens)/float64(events)-old)/16))
}

// PerEvent is the mean number of output tokens that an event carries, 1 until
// something else was learned.
func (m *Meter) PerEvent() float64 {
	if bits := m.perEvent.Load(); bits != 0 {
		return math.Float64frombits(bits)
	}
	return 1
}

// Preempted takes note of the engine's own count of preemptions since its start;
// negative is not known. A count that falls is a new start.
func (m *Meter) Preempted(total int64) {
	if total < 0 {
		return
	}
	if last := m.known.Swap(total+1) - 1; last >= 0 && total > last {
		m.preempted.Add(total - last)
	}
}

// Busied counts an answer that said busy.
func (m *Meter) Busied() { m.busy.Add(1) }
