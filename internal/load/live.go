package load

import (
	"sync"
	"sync/atomic"
	"time"
)

// maxInstances bounds the instances that streams are counted by: servers name
// them.
const maxInstances = 1024

// Live are the counters of a run that hooks and progress read while it goes
// on. It is safe for concurrent use.
type Live struct {
	offered, answered, failed, tokens atomic.Int64
	inFlight, waiting                 atomic.Int64
	start                             time.Time

	mu struct {
		sync.RWMutex
		instances map[string]*instance
		cutOpen   int64
		cut       bool
	}
}

// instance counts the streams of one instance past their first delta.
type instance struct{ begun, open atomic.Int64 }

// Offered is the number of rows whose instant has come.
func (l *Live) Offered() int64 { return l.offered.Load() }

// Answered is the number of complete answers.
func (l *Live) Answered() int64 { return l.answered.Load() }

// Failed is the number of rows that ended without a complete answer.
func (l *Live) Failed() int64 { return l.failed.Load() }

// InFlight is the number of rows sent and not yet ended, but for those that wait
// to be sent again.
func (l *Live) InFlight() int64 { return l.inFlight.Load() }

// Tokens is the number of deltas received.
func (l *Live) Tokens() int64 { return l.tokens.Load() }

// Elapsed is the time since the run began.
func (l *Live) Elapsed() time.Duration { return time.Since(l.start) }

// Open is the number of open streams of an instance whose first delta has
// arrived. Instances are named by the answer's X-Spillway-Instance header, or
// else by the host and port that answered.
func (l *Live) Open(instance string) int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if in := l.mu.instances[instance]; in != nil {
		return in.open.Load()
	}
	return 0
}

// Cut runs kill, which takes the instance away, and adds to the report's
// cut_open the streams that were past their commit point: those open when
// kill began, and those whose first delta arrived until grace after it ended,
// since that delta was on its way when the instance died. grace covers the
// path from the instance through a gateway to here; it must be shorter than
// the time until the instance is restored. Cut returns what it added.
func (l *Live) Cut(instance string, grace time.Duration, kill func() error) (int64, error) {
	in := l.instance([]byte(instance))
	// Begun is read first: a stream that begins between the two reads counts
	// twice rather than not at all, and cut_open stays an upper bound.
	begun := in.begun.Load()
	open := in.open.Load()
	err := kill()
	time.Sleep(grace)
	n := open + in.begun.Load() - begun
	l.mu.Lock()
	l.mu.cut = true
	l.mu.cutOpen += n
	l.mu.Unlock()
	return n, err
}

// cutOpen is nil when nothing was cut.
func (l *Live) cutOpen() *int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if !l.mu.cut {
		return nil
	}
	n := l.mu.cutOpen
	return &n
}

// instance returns the counters of an instance; beyond the bound instances
// share one.
func (l *Live) instance(name []byte) *instance {
	l.mu.RLock()
	in := l.mu.instances[string(name)]
	l.mu.RUnlock()
	if in != nil {
		return in
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(name)
	if l.mu.instances[key] == nil && len(l.mu.instances) >= maxInstances {
		key = codeOther
	}
	in = l.mu.instances[key]
	if in == nil {
		in = new(instance)
		l.mu.instances[key] = in
	}
	return in
}
