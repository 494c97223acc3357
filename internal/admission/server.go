package admission

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// server is what the governor keeps of an instance.
type server struct {
	objective atomic.Uint64 // float64 bits: what streams are judged by, seconds per token
	share     atomic.Uint64 // float64 bits: of the objective that the gap is steered to
	prefill   atomic.Uint64 // float64 bits: prompt tokens a second

	mu struct {
		sync.Mutex
		limiter  Limiter
		instance *fleet.Instance
		before   fleet.Reading
		upSince  int64
		samples  float64
		inFlight float64 // sums over samples
		standing float64
		running  float64 // most streams in a sample
	}
}

// newServer begins to learn about an instance.
func newServer(now time.Time, cfg *Config, i *fleet.Instance) *server {
	s := new(server)
	s.mu.limiter, s.mu.instance = newLimiter(cfg), i
	s.mu.before, s.mu.upSince = i.Live.Meter().Read(now.UnixNano()), i.Live.UpSince()
	first := s.mu.limiter.Next(&Signals{Provider: i.Pool.Provider, TTFT: time.Second})
	s.set(&first, i)
	return s
}

// newLimiter makes the limiter that is configured.
func newLimiter(cfg *Config) Limiter {
	switch cfg.Limit {
	case LimitStatic:
		return Static(cfg.StaticLimit)
	case LimitGradient:
		return NewGradient()
	case LimitGradient2:
		return NewGradient2()
	case LimitAIMD:
		return NewAIMD()
	case LimitOff:
		return Static(0)
	}
	return NewLearned()
}

// set puts limits where picks read them.
func (s *server) set(l *Limits, i *fleet.Instance) {
	i.Live.SetLimits(int64(l.Requests), int64(l.PromptTokens), int64(l.Memory))
}

// shortestPace is the number of tokens that a stream is judged over at least, so
// that one slow step of a short answer is no violation.
const shortestPace = 15

// observe judges an attempt that has ended.
func (s *server) observe(l *fleet.Lease, now time.Time, gaps int64, sum time.Duration) {
	meter := l.Instance.Live.Meter()
	if whole := l.Verdict == inference.VerdictOK; whole && gaps > 0 {
		meter.Calibrate(l.Usage.CompletionTokens-1, gaps)
		tokens := max(float64(gaps)*meter.PerEvent(), shortestPace)
		limit := math.Float64frombits(s.objective.Load())
		meter.Judge(limit > 0 && sum.Seconds()/tokens > limit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.limiter.Ended(Ended{
		Took: now.Sub(l.Start()), InFlight: l.Instance.Live.InFlight() + 1,
		Busy: l.Verdict == inference.VerdictBusy, Whole: l.Verdict == inference.VerdictOK,
	})
}

// sample notes what the instance does between two decisions.
func (s *server) sample() {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := s.mu.instance.Live
	s.mu.samples++
	s.mu.inFlight += float64(live.InFlight())
	s.mu.standing += float64(live.PromptTokens())
	s.mu.running = max(s.mu.running, float64(live.Streams()))
}

// demand is what the instance's clients want of it.
type demand struct {
	waiting    bool
	tpot, ttft time.Duration
}

// decide lets the limiter decide.
func (s *server) decide(now time.Time, d demand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.mu.instance
	live := i.Live
	r, b := live.Meter().Read(now.UnixNano()), s.mu.before
	in := Signals{
		Gaps:   float64(r.Gaps-b.Gaps) * live.Meter().PerEvent(),
		Firsts: r.Firsts - b.Firsts, Prompt: float64(r.Prompt - b.Prompt), Prompts: r.Prompts - b.Prompts, Reading: r.Reading - b.Reading, Oldest: live.Meter().Oldest(now.UnixNano()),
		Preempted: r.Preempt - b.Preempt, Busy: r.Busy - b.Busy, Ended: r.Ended - b.Ended, Slow: r.Slow - b.Slow, Context: float64(r.Context),
		Waiting: d.waiting, TPOT: d.tpot, TTFT: d.ttft, Provider: i.Pool.Provider,
	}
	if in.Gaps > 0 {
		in.Gap = time.Duration(float64(r.GapTime-b.GapTime) / in.Gaps)
	}
	if in.Firsts > 0 {
		in.First = (r.FirstAll - b.FirstAll) / time.Duration(in.Firsts)
		in.Ahead = float64(r.Ahead-b.Ahead) / float64(in.Firsts)
	}
	if s.mu.samples > 0 {
		in.InFlight, in.Standing = s.mu.inFlight/s.mu.samples, s.mu.standing/s.mu.samples
	}
	if up := live.UpSince(); up != s.mu.upSince {
		s.mu.upSince, in.Recovered = up, true
	}
	in.Running = s.mu.running
	s.mu.before, s.mu.samples, s.mu.inFlight, s.mu.standing, s.mu.running = r, 0, 0, 0, 0
	l := s.mu.limiter.Next(&in)
	s.set(&l, i)
	if learned, ok := s.mu.limiter.(*Learned); ok {
		s.objective.Store(math.Float64bits(learned.objective(d.tpot)))
		s.share.Store(math.Float64bits(learned.share))
		s.prefill.Store(math.Float64bits(learned.peak))
	}
}
