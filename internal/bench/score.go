package bench

import (
	"cmp"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// Try is one attempt of a logical request, as its client saw it. Instants count
// from the start of the run.
type Try struct {
	// Request is the index of the logical request; its attempts share it.
	Request int
	Class   inference.Class
	Tenant  string
	// Prompt and Output are the true lengths in tokens.
	Prompt, Output int
	// At is the instant from which the attempt is judged: the scheduled one, or
	// the promised one of an attempt that comes back when it was told to.
	At time.Duration
	// Sent is when it was really sent.
	Sent time.Duration
	// Admitted is when it got its slot, where that is known; 0 where it is not.
	Admitted time.Duration
	// First is when the first token came, 0 if none did. A whole answer without
	// it came in one piece.
	First time.Duration
	// End is the instant of the last byte, or of the rejection.
	End time.Duration
	// Tokens is the number of output tokens received.
	Tokens int
	// Whole says that the answer is complete.
	Whole bool
	// Refused says that it was answered with 503 or 429 before anything ran.
	Refused bool
	// RetryAfter is what a refusal asked for; 0 is nothing.
	RetryAfter time.Duration
	// Ticket says that the refusal carried a return ticket.
	Ticket bool
	// Returner says that this attempt comes back with a ticket.
	Returner bool
	// Server is the server time of a refusal, from body read to answer written,
	// where that is known; 0 where it is not.
	Server time.Duration
}

// Terms are what a run is judged by.
type Terms struct {
	// From and To are the measured window: from the end of the warm-up to the
	// end of the load.
	From, To time.Duration
	// TTFT bounds the time to the first token by class; a class without one has
	// no bound.
	TTFT map[inference.Class]time.Duration
	// TPOT bounds the mean time per output token, judged over at least 15 gaps:
	// (last - first)/max(n - 1, 15). 0 means no bound.
	TPOT time.Duration
	// Fleet is what the optimum is computed for. Work is measured by the first
	// server's law, so there must be one.
	Fleet []Server
	// Changes are later fleets in the order of their instants; the capacity is
	// their mean over the window.
	Changes []Change
	// Lengths are the trace's; empty takes those of the offered requests.
	Lengths []Lengths
	// Weights are the tenants' shares; a tenant without one has 1.
	Weights map[string]float64
	// Trigger is the disturbance that the run must recover from; zero is none.
	Trigger Trigger
}

// Change replaces the fleet from an instant on.
type Change struct {
	At    time.Duration
	Fleet []Server
}

// Trigger is a disturbance from Start to End.
type Trigger struct{ Start, End time.Duration }

// Scored is what a run was worth. Rates are per second of the window, work is in
// seconds (see [Work]).
//
// A logical request is offered when its first attempt's instant lies in the
// window; it is good when one of its attempts was, each judged from its own
// instant, whenever it ended. What no idle server of the first fleet could have
// served within its bounds is counted in Unservable and nowhere else.
type Scored struct {
	Window time.Duration
	// Offered, Answered and Good count logical requests, Refused those that were
	// not answered and whose last attempt was refused.
	Offered, Answered, Good, Refused, Unservable int
	// OfferedWork is the rate at which work was asked for, by first attempts;
	// Load is its multiple of the optimum. A part of a trace is seldom as busy as
	// the whole.
	OfferedWork, Load float64
	// Optimum is the capacity. With changes of the fleet Work and Rate are means
	// over the window and the other bounds those of the first fleet.
	Optimum Optimum
	// GoodWork, GoodRequests and GoodTokens are the goodput: what met its bounds
	// and ended inside the window.
	GoodWork, GoodRequests, GoodTokens float64
	// GoodputRatio is GoodWork / min(OfferedWork, Optimum.Work), 0 of nothing.
	GoodputRatio float64
	// Feasible is the rate of good work that the optimum, second by second, leaves
	// room for when load and fleet change, FeasibleRatio the goodput's share of it,
	// 0 of nothing. Under a steady load it is the lesser of offered work and optimum.
	Feasible, FeasibleRatio float64
	// ServedWork is the work of all tokens received on attempts sent inside the
	// window, Wasted the share of it on attempts that did not meet their bounds.
	ServedWork, Wasted float64
	Classes            map[inference.Class]ClassScore
	// Tenants is the part of each tenant.
	Tenants map[string]TenantScore
	// Jain is the mean fairness index over JainWindows windows of 10 s in which
	// at least two tenants wanted more than their max-min share; 0 without any.
	Jain        float64
	JainWindows int
	// Starvation is the longest time without a first token of the normal class
	// while normal requests were waiting for theirs.
	Starvation time.Duration
	Rejections RejectionScore
	Returns    ReturnScore
	// Recovery counts from the trigger's end; it means something only when
	// Recovered. Triggered says that there was one.
	Recovery             time.Duration
	Triggered, Recovered bool
}

// Quantiles are mean, nearest-rank quantiles and maximum of N durations.
type Quantiles struct {
	N                              int
	Mean, P50, P90, P99, P999, Max time.Duration
}

// ClassScore is one class's part.
type ClassScore struct {
	Offered, Answered, Good int
	// Attainment is Good / Offered, 0 of nothing.
	Attainment float64
	// TTFT counts from the instant of the attempt that got the token, E2E from
	// the first attempt's to the end of the whole answer.
	TTFT, E2E Quantiles
	// GoodWork is the class's part of the goodput.
	GoodWork float64
	// SLO are the bounds that the class was judged by.
	SLO *load.Objectives
}

// TenantScore is one tenant's part, in work per second of the window.
type TenantScore struct {
	// Offered counts every logical request once, Served is the work done for the
	// tenant inside the window and Good what met its bounds and ended there.
	Offered, Served, Good float64
}

// RejectionScore is about refused attempts sent inside the window. Latency counts
// from the attempt's instant to the last byte. Server holds those whose server
// time is known.
type RejectionScore struct {
	Latency, Server Quantiles
}

// ReturnScore is about attempts inside the window that came back with a ticket.
type ReturnScore struct {
	// Returned came back, Admitted of them were not refused, and Kept got their
	// slot (their first token, where the slot's instant is not known) within
	// max(1 s, 20% of the wait) of the promised instant.
	Returned, Admitted, Kept int
	// Honesty is Kept / Returned, 0 of nothing.
	Honesty float64
}

// Bounds of the judgement.
const (
	// keptWithin and keptShare are how far from the promise a kept one may be.
	keptWithin = time.Second
	keptShare  = 0.2
	// recoveredShare of the goodput before the trigger must be back for
	// recoveredFor. The goodput is the mean over that long: at tens of requests a
	// second, single seconds differ by more than the 5% without any trigger.
	recoveredShare = 0.95
	recoveredFor   = 10 * time.Second
	recoveryStep   = time.Second
)

// Score judges a run. The order of the attempts does not matter. An attempt that
// was still open when the run was stopped is one that is not whole.
func Score(tries []Try, terms Terms) Scored {
	s := &scorer{Terms: terms, out: Scored{
		Window: terms.To - terms.From, Classes: map[inference.Class]ClassScore{}, Tenants: map[string]TenantScore{},
	}, ttft: map[inference.Class][]time.Duration{}, e2e: map[inference.Class][]time.Duration{}}
	if len(terms.Fleet) == 0 || s.out.Window <= 0 {
		return s.out
	}
	s.group(tries)
	for _, r := range s.requests {
		s.request(r)
	}
	s.finish()
	s.out.Jain, s.out.JainWindows = s.jain()
	s.out.Starvation = s.starvation()
	s.out.Triggered = terms.Trigger.End > 0
	s.out.Recovery, s.out.Recovered = s.recovery()
	return s.out
}

// asked is a logical request: its attempts in the order in which they were sent.
type asked struct {
	tries   []Try
	lengths Lengths
	work    float64
}

// scorer is one judgement under way.
type scorer struct {
	Terms
	out        Scored
	requests   []asked // those that a server could serve
	lengths    []Lengths
	ttft, e2e  map[inference.Class][]time.Duration
	rejections []time.Duration
	server     []time.Duration
	wasted     float64
	phases     []phase
}

// group sorts the attempts by request and sets apart what nothing could serve.
func (s *scorer) group(tries []Try) {
	tries = slices.Clone(tries)
	slices.SortStableFunc(tries, func(a, b Try) int {
		return cmp.Or(cmp.Compare(a.Request, b.Request), cmp.Compare(a.Sent, b.Sent))
	})
	for len(tries) > 0 {
		n := 1
		for n < len(tries) && tries[n].Request == tries[0].Request {
			n++
		}
		r := asked{tries: tries[:n:n], lengths: Lengths{tries[0].Prompt, tries[0].Output}}
		tries = tries[n:]
		r.work = Work(s.Fleet[0].Batching, r.lengths)
		if s.servable(r) {
			s.requests = append(s.requests, r)
		} else if s.inside(r.tries[0].At) {
			s.out.Unservable++
		}
	}
}

func (s *scorer) servable(r asked) bool {
	return slices.ContainsFunc(s.Fleet, func(f Server) bool {
		return f.Serves(r.lengths, s.TTFT[r.tries[0].Class], s.TPOT)
	})
}

// inside says whether an instant lies in the window.
func (s *scorer) inside(at time.Duration) bool { return at >= s.From && at < s.To }

// good says whether an attempt met its bounds. An answer in one piece has to
// arrive by the instant at which a stream within both bounds would have ended.
func (s *scorer) good(t Try) bool {
	if !t.Whole {
		return false
	}
	ttft, bounded := s.TTFT[t.Class]
	if t.First == 0 {
		return !bounded || s.TPOT == 0 || t.End-t.At <= ttft+time.Duration(t.Tokens)*s.TPOT
	}
	return (!bounded || t.First-t.At <= ttft) && (s.TPOT == 0 || perToken(t.End-t.First, t.Tokens) <= s.TPOT)
}

// served is the work of what an attempt received.
func (s *scorer) served(t Try) float64 {
	l := Lengths{Output: t.Tokens}
	if t.First > 0 || t.Tokens > 0 {
		l.Prompt = t.Prompt
	}
	return Work(s.Fleet[0].Batching, l)
}

// request counts one logical request.
func (s *scorer) request(r asked) {
	first := r.tries[0]
	offered := s.inside(first.At)
	class, tenant := s.out.Classes[first.Class], s.out.Tenants[first.Tenant]
	answered, good := false, false
	for i, t := range r.tries {
		answered = answered || t.Whole
		met := s.good(t)
		if met && !good && s.inside(t.End) {
			s.out.GoodWork += r.work
			s.out.GoodRequests++
			s.out.GoodTokens += float64(t.Tokens)
			class.GoodWork += r.work
			tenant.Good += r.work
		}
		good = good || met
		if offered && t.First > 0 {
			s.ttft[first.Class] = append(s.ttft[first.Class], t.First-t.At)
		}
		if offered && t.Whole {
			s.e2e[first.Class] = append(s.e2e[first.Class], t.End-first.At)
		}
		if s.inside(t.Sent) {
			s.attempt(t, met, i > 0 && t.Returner, t.At-r.tries[max(0, i-1)].End)
		}
	}
	if offered {
		s.lengths = append(s.lengths, r.lengths)
		s.out.OfferedWork += r.work
		tenant.Offered += r.work
		count(offered, &s.out.Offered, &class.Offered)
		count(answered, &s.out.Answered, &class.Answered)
		count(good, &s.out.Good, &class.Good)
		count(!answered && r.tries[len(r.tries)-1].Refused, &s.out.Refused)
	}
	s.out.Classes[first.Class], s.out.Tenants[first.Tenant] = class, tenant
}

func count(when bool, to ...*int) {
	for _, n := range to {
		if when {
			*n++
		}
	}
}

// attempt counts one attempt sent inside the window. A returner was promised a
// slot after the wait.
func (s *scorer) attempt(t Try, met, returner bool, wait time.Duration) {
	w := s.served(t)
	s.out.ServedWork += w
	if !met {
		s.wasted += w
	}
	if t.Refused {
		s.rejections = append(s.rejections, t.End-t.At)
		if t.Server > 0 {
			s.server = append(s.server, t.Server)
		}
	}
	if !returner {
		return
	}
	s.out.Returns.Returned++
	if t.Refused {
		return
	}
	s.out.Returns.Admitted++
	began := cmp.Or(t.Admitted, t.First)
	within := max(keptWithin, time.Duration(keptShare*float64(wait)))
	count(began > 0 && (began-t.At).Abs() <= within, &s.out.Returns.Kept)
}

// finish turns sums into rates and shares.
func (s *scorer) finish() {
	o, sec := &s.out, s.out.Window.Seconds()
	if o.ServedWork > 0 {
		o.Wasted = s.wasted / o.ServedWork
	}
	for _, v := range []*float64{&o.OfferedWork, &o.GoodWork, &o.GoodRequests, &o.GoodTokens, &o.ServedWork} {
		*v /= sec
	}
	for c, v := range o.Classes {
		v.GoodWork /= sec
		if v.Offered > 0 {
			v.Attainment = float64(v.Good) / float64(v.Offered)
		}
		v.TTFT, v.E2E = quantiles(s.ttft[c]), quantiles(s.e2e[c])
		v.SLO = &load.Objectives{TTFT: inMillis(s.TTFT[c]), TPOT: inMillis(s.TPOT)}
		o.Classes[c] = v
	}
	s.service()
	for name, v := range o.Tenants {
		o.Tenants[name] = TenantScore{v.Offered / sec, v.Served / sec, v.Good / sec}
	}
	s.capacity()
	if most := min(o.OfferedWork, o.Optimum.Work); most > 0 {
		o.GoodputRatio = o.GoodWork / most
	}
	if o.Optimum.Work > 0 {
		o.Load = o.OfferedWork / o.Optimum.Work
	}
	if o.Feasible = s.feasible(); o.Feasible > 0 {
		o.FeasibleRatio = o.GoodWork / o.Feasible
	}
	o.Rejections = RejectionScore{quantiles(s.rejections), quantiles(s.server)}
	if n := o.Returns.Returned; n > 0 {
		o.Returns.Honesty = float64(o.Returns.Kept) / float64(n)
	}
}

// capacity computes the optimum of each fleet, and its mean over the window.
func (s *scorer) capacity() {
	lengths := s.Lengths
	if len(lengths) == 0 {
		lengths = s.lengths
	}
	o := &s.out.Optimum
	*o = NewOptimum(s.Fleet, s.TPOT, lengths)
	s.phases = []phase{{0, o.Work}}
	for _, c := range s.Changes {
		// In work of the first fleet's first server, whatever the other's law.
		s.phases = append(s.phases, phase{c.At, NewOptimum(c.Fleet, s.TPOT, lengths).Rate * o.MeanWork})
	}
	o.Work = s.capable(s.From, s.To) / s.out.Window.Seconds()
	if o.MeanWork > 0 {
		o.Rate = o.Work / o.MeanWork
	}
}

// quantiles sorts the values in place.
func quantiles(v []time.Duration) Quantiles {
	if len(v) == 0 {
		return Quantiles{}
	}
	slices.Sort(v)
	at := func(permille int) time.Duration { return v[(len(v)*permille+999)/1000-1] }
	sum := 0.0
	for _, d := range v {
		sum += float64(d)
	}
	return Quantiles{
		N: len(v), Mean: time.Duration(sum / float64(len(v))),
		P50: at(500), P90: at(900), P99: at(990), P999: at(999), Max: v[len(v)-1],
	}
}
