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

// brownout finds the rung for the pressure. The caller holds mu.
func (g *Governor) brownout(now time.Time, set *settings) {
	pressure := g.pressure(now, set)
	g.count.setPressure(pressure)
	floor := StepNone
	if g.emergency != nil {
		if p := g.emergency.Profile(now); p != nil {
			floor = p.Brownout
		}
	}
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

// step is the highest rung whose threshold the pressure reaches.
func (b *Brownout) step(pressure float64) Step {
	step := StepNone
	for s, at := range map[Step]float64{StepYield: b.Yield, StepCapTokens: b.CapTokens, StepCheaperModel: b.CheaperModel} {
		if at > 0 && pressure >= at {
			step = max(step, s)
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
			wait := float64(q.n+q.pledges.due(now, now.Add(time.Second))) / l.rate(c, set)
			most = max(most, wait/allowance(set.Classes.class(c).TTFT, l.firstToken(), admitShare).Seconds())
		}
	}
	return most
}

// lower applies what the rung gives up to a lease.
func (g *Governor) lower(step Step, l *lane, lease *fleet.Lease) {
	if lease.Class == inference.Batch {
		lease.Degraded = StepYield.String()
	}
	req := lease.Request
	if step < StepCapTokens || !req.DegradeOK || req.Surface == inference.Embeddings {
		return
	}
	most := l.learned.lengths.quantile(g.set.Load().Brownout.CapQuantile)
	if most > 0 && (req.MaxTokens == 0 || req.MaxTokens > most) {
		lease.MaxTokens = most
		lease.Degraded = fmt.Sprintf("max_tokens=%d", most)
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
