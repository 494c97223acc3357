package bench

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// phase is the optimum, in work per second, from an instant on.
type phase struct {
	at   time.Duration
	work float64
}

// capable is the work that the optimum does between two instants.
func (s *scorer) capable(from, to time.Duration) float64 {
	sum := 0.0
	for i, p := range s.phases {
		end := to
		if i+1 < len(s.phases) {
			end = min(to, s.phases[i+1].at)
		}
		sum += p.work * max(0, end-max(from, p.at)).Seconds()
	}
	return sum
}

// feasibleStep is the time over which work is placed.
const feasibleStep = time.Second

// due is work that must be done by an instant to be good.
type due struct {
	by   time.Duration
	work float64
}

// dueHeap has the most urgent work first.
type dueHeap []due

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].by < h[j].by }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) { *h = append(*h, x.(due)) }

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	*h = (*h)[:last]
	return d
}

// feasible bounds the good work per second of the window when load or fleet
// change: the work of a request can be placed, in parts, between its first
// attempt's instant and the last instant at which an attempt of it could end
// within its bounds; in every second at most the optimum is done. Earliest
// deadline first places the most that way, all work being worth the same.
func (s *scorer) feasible() float64 {
	order := slices.Clone(s.requests)
	slices.SortFunc(order, func(a, b asked) int { return cmp.Compare(a.tries[0].At, b.tries[0].At) })
	var waiting dueHeap
	done := 0.0
	first := s.From%feasibleStep - feasibleStep // whole steps before the window
	for at := first; at < s.To; at += feasibleStep {
		end := min(at+feasibleStep, s.To)
		for len(order) > 0 && order[0].tries[0].At < end {
			heap.Push(&waiting, due{s.deadline(order[0]), order[0].work})
			order = order[1:]
		}
		room := s.capable(at, end)
		for len(waiting) > 0 && room > 0 {
			part := min(room, waiting[0].work)
			if waiting[0].by <= at {
				part = 0 // too late
			}
			room -= part
			if at >= s.From {
				done += part
			}
			if waiting[0].work -= part; waiting[0].work <= 0 || part == 0 {
				heap.Pop(&waiting)
			}
		}
	}
	return done / s.out.Window.Seconds()
}

// deadline is the last instant at which an attempt could have ended well.
func (s *scorer) deadline(r asked) time.Duration {
	ttft, bounded := s.TTFT[r.tries[0].Class]
	if !bounded || s.TPOT == 0 {
		return s.To
	}
	last := r.tries[0].At
	for _, t := range r.tries {
		last = max(last, t.At)
	}
	return last + ttft + time.Duration(max(r.lengths.Output-1, judgedGaps))*s.TPOT
}
