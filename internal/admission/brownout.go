package admission

import (
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// yieldDivisor is what is left of the batch class's weight while it yields.
const yieldDivisor = 4

// The ladder is climbed at once and left a rung at a time, when the pressure has
// been below calmShare of the rung's threshold for calmFor.
const (
	calmShare = 0.7
	calmFor   = 3 * time.Second
)

// brownout finds the rung for the pressure, and which of those up to it are in
// force. The caller holds mu.
func (g *Governor) brownout(now time.Time, set *settings) {
	floor := StepNone
	if g.emergency != nil {
		if p := g.emergency.Profile(now); p != nil {
			floor = p.Brownout
		}
	}
	g.climb(now, set, floor)
	rungs := uint32(0)
	for _, s := range Steps()[1:] {
		if s <= g.Step() && (set.Brownout.at(s) > 0 || s <= floor) {
			rungs |= 1 << s
		}
	}
	g.rungs.Store(rungs)
}

// gives says whether a rung is in force.
func (g *Governor) gives(s Step) bool { return g.rungs.Load()&(1<<s) != 0 }

// climb moves to the rung for the pressure, which is not below the floor. The caller
// holds mu.
func (g *Governor) climb(now time.Time, set *settings, floor Step) {
	pressure := g.pressure(now, set)
	g.count.setPressure(pressure)
	was := g.Step()
	want := max(set.Brownout.step(pressure), floor)
	if want < was {
		if set.Brownout.step(pressure/calmShare) >= was {
			g.mu.calm = now
		}
		if g.mu.calm.IsZero() {
			g.mu.calm = now
		}
		if now.Sub(g.mu.calm) < calmFor {
			return
		}
		want = max(want, was-1)
	}
	g.mu.calm = time.Time{}
	if want != was {
		g.step.Store(int32(want))
		g.log.Info("brownout", "from", was.String(), "to", want.String(), "pressure", pressure)
	}
}

// at is a rung's threshold; 0 is never.
func (b *Brownout) at(s Step) float64 {
	switch s {
	case StepYield:
		return b.Yield
	case StepCapTokens:
		return b.CapTokens
	}
	return b.CheaperModel
}

// step is the highest rung whose threshold the pressure reaches.
func (b *Brownout) step(pressure float64) Step {
	step := StepNone
	for _, s := range Steps()[1:] {
		if at := b.at(s); at > 0 && pressure >= at {
			step = s
		}
	}
	return step
}

// pressure is the longest predicted wait of the classes vip and normal as a share
// of what they may wait, over all lanes. The caller holds mu.
func (g *Governor) pressure(now time.Time, set *settings) float64 {
	most := 0.0
	if g.waiting.Load() == 0 {
		return most
	}
	for _, l := range *g.lanes.Load() {
		for _, c := range []inference.Class{inference.VIP, inference.Normal} {
			q := &l.class[c]
			if q.n == 0 {
				continue
			}
			wait := (float64(q.n) + q.pledges.due(now, now.Add(time.Second))) / l.rate(c, set)
			most = max(most, wait/allowance(set.Classes.class(c).TTFT, l.firstToken(), admitShare).Seconds())
		}
	}
	return most
}

// lower applies to a lease what the rungs in force give up.
func (g *Governor) lower(l *lane, lease *fleet.Lease) {
	if lease.Class == inference.Batch && g.gives(StepYield) {
		lease.Degraded = StepYield.String()
	}
	req := lease.Request
	if !g.gives(StepCapTokens) || !req.DegradeOK || req.Surface == inference.Embeddings {
		return
	}
	most := l.learned.lengths.quantile(g.set.Load().Brownout.CapQuantile)
	if most > 0 && (req.MaxTokens == 0 || req.MaxTokens > most) {
		lease.MaxTokens = most
		if lease.Degraded != "" {
			lease.Degraded += ", "
		}
		lease.Degraded += fmt.Sprintf("max_tokens=%d", most)
		g.count.capped.Add(1)
	}
}

// reserve switches standby pools on and off with the emergency.
func (g *Governor) reserve(now time.Time) {
	p := g.emergency.Profile(now)
	on := p != nil && p.StandbyPools
	g.mu.Lock()
	changed := g.mu.reserve != on
	g.mu.reserve = on
	g.mu.Unlock()
	if changed {
		g.fleet.SetReserve(on)
	}
}
