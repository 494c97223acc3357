package bench

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// jainWindow is the time over which shares are compared.
const jainWindow = 10 * time.Second

// refusedWaits is how long a refused request counts as waiting, so that a class
// that is refused altogether starves.
const refusedWaits = time.Second

// each calls add for the work that an attempt received: the prompt's when the
// first token came, the output's evenly from then to the end.
func (s *scorer) each(t Try, add func(from, to time.Duration, work float64)) {
	law := s.Fleet[0].Batching
	if t.First == 0 {
		add(t.End, t.End, s.served(t))
		return
	}
	add(t.First, t.First, Work(law, Lengths{Prompt: t.Prompt}))
	add(t.First, t.End, Work(law, Lengths{Output: t.Tokens}))
}

// within is the part of work spread evenly over [from, to] that lies in [low,
// high); work of one instant lies in it or not.
func within(from, to time.Duration, work float64, low, high time.Duration) float64 {
	if to <= from {
		if from >= low && from < high {
			return work
		}
		return 0
	}
	part := min(to, high) - max(from, low)
	return work * max(0, part.Seconds()) / (to - from).Seconds()
}

// service sums the work that each tenant received inside the window.
func (s *scorer) service() {
	for _, r := range s.requests {
		name := r.tries[0].Tenant
		tenant := s.out.Tenants[name]
		for _, t := range r.tries {
			s.each(t, func(from, to time.Duration, work float64) { tenant.Served += within(from, to, work, s.From, s.To) })
		}
		s.out.Tenants[name] = tenant
	}
}

// claim is what one tenant wanted and got in one window, divided by its weight.
type claim struct{ demand, served, weight float64 }

// jain is the mean of Jain's index over the windows of the run in which it says
// something.
func (s *scorer) jain() (mean float64, windows int) {
	sum := 0.0
	for _, claims := range s.claims() {
		if j, ok := jainIndex(claims); ok {
			sum += j
			windows++
		}
	}
	if windows == 0 {
		return 0, 0
	}
	return sum / float64(windows), windows
}

// claims gathers demand and service by window and tenant. A request is demanded
// in every window that an attempt of it begins in, refused or not, once.
func (s *scorer) claims() []map[string]claim {
	out := make([]map[string]claim, s.out.Window/jainWindow)
	for i := range out {
		out[i] = map[string]claim{}
	}
	index := func(at time.Duration) int {
		return min(int(max(0, at-s.From)/jainWindow), len(out))
	}
	for _, r := range s.requests {
		name := r.tries[0].Tenant
		weight := cmp.Or(s.Weights[name], 1)
		last := -1
		for _, t := range r.tries {
			if i := index(t.At); s.inside(t.At) && i < len(out) && i != last {
				c := out[i][name]
				out[i][name] = claim{c.demand + r.work/weight, c.served, weight}
				last = i
			}
			s.each(t, func(from, to time.Duration, work float64) {
				for i := index(from); i < len(out) && i <= index(to); i++ {
					low := s.From + time.Duration(i)*jainWindow
					c := out[i][name]
					out[i][name] = claim{c.demand, c.served + within(from, to, work, low, low+jainWindow)/weight, weight}
				}
			})
		}
	}
	return out
}

// jainIndex is (sum x)^2 / (n sum x^2) over the tenants that wanted more than
// their max-min share of what was served; it says nothing about fewer than two,
// or where none of them got anything.
func jainIndex(claims map[string]claim) (index float64, ok bool) {
	level := maxMin(claims)
	var sum, squares float64
	n := 0
	for _, c := range claims {
		if c.demand > level*(1+1e-9) {
			sum += c.served
			squares += c.served * c.served
			n++
		}
	}
	if n < 2 || squares == 0 {
		return 0, false
	}
	return sum * sum / (float64(n) * squares), true
}

// maxMin is the level to which the served work fills up the demands, per unit of
// weight: who wants less gets all, the others the level. It is infinite when
// everything that was wanted could be served.
func maxMin(claims map[string]claim) float64 {
	var left, weight float64
	all := make([]claim, 0, len(claims))
	for _, c := range claims {
		left += c.served * c.weight
		weight += c.weight
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b claim) int { return cmp.Compare(a.demand, b.demand) })
	for _, c := range all {
		if c.demand*weight >= left {
			return left / weight
		}
		left -= c.demand * c.weight
		weight -= c.weight
	}
	return math.Inf(1)
}

// span is a time in which something lasts.
type span struct{ from, to time.Duration }

// starvation is the longest time without a first token of the normal class while
// some normal request was waiting for one. A refused one waits until its last
// attempt ends, but at least [refusedWaits].
func (s *scorer) starvation() time.Duration {
	var waits []span
	var tokens []time.Duration
	for _, r := range s.requests {
		if r.tries[0].Class != inference.Normal {
			continue
		}
		w := span{r.tries[0].At, 0}
		for _, t := range r.tries {
			w.to = max(w.to, t.End)
			if t.Refused {
				w.to = max(w.to, t.End+refusedWaits)
			}
			if t.First > 0 {
				w.to = t.First
				tokens = append(tokens, t.First)
				break
			}
		}
		w = span{max(w.from, s.From), min(w.to, s.To)}
		if w.to > w.from {
			waits = append(waits, w)
		}
	}
	slices.Sort(tokens)
	longest := time.Duration(0)
	for _, w := range union(waits) {
		from := w.from
		i, _ := slices.BinarySearch(tokens, from)
		for ; i < len(tokens) && tokens[i] <= w.to; i++ {
			longest = max(longest, tokens[i]-from)
			from = tokens[i]
		}
		longest = max(longest, w.to-from)
	}
	return longest
}

// union joins spans that touch.
func union(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var out []span
	for _, x := range spans {
		if n := len(out); n > 0 && x.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, x.to)
			continue
		}
		out = append(out, x)
	}
	return out
}

// recovery is the time from the trigger's end to the first second from which on
// the goodput, over 10 s, is at least 95% of what it was before the trigger.
func (s *scorer) recovery() (time.Duration, bool) {
	before := s.Trigger.Start - s.From
	if s.Trigger.End == 0 || before <= 0 {
		return 0, false
	}
	want := s.goodput(s.From, s.Trigger.Start) * recoveredShare
	for at := s.Trigger.End; at+recoveredFor <= s.To; at += recoveryStep {
		if s.goodput(at, at+recoveredFor) >= want {
			return at - s.Trigger.End, true
		}
	}
	return 0, false
}

// goodput is the good work per second that ended in [from, to).
func (s *scorer) goodput(from, to time.Duration) float64 {
	sum := 0.0
	for _, r := range s.requests {
		for _, t := range r.tries {
			if t.End >= from && t.End < to && s.good(t) {
				sum += r.work
				break
			}
		}
	}
	return sum / (to - from).Seconds()
}

// Loss is the share of their service that the tenants lost from one run to
// another, all but the excepted one together, and the same of the tenant that
// lost most: what a flood by the excepted one cost the others. Below zero it is
// a gain. Tenants that got nothing before do not count.
func Loss(before, after map[string]TenantScore, except string) (total, worst float64) {
	var had, has float64
	worst = math.Inf(-1)
	for name, b := range before {
		if name == except || b.Served == 0 {
			continue
		}
		had += b.Served
		has += after[name].Served
		worst = max(worst, 1-after[name].Served/b.Served)
	}
	if had == 0 {
		return 0, 0
	}
	return 1 - has/had, worst
}
