package health

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// checker judges one instance by its probes. It belongs to one goroutine.
type checker struct {
	m    *Monitor
	job  job
	down bool

	passed, failed int // in a row
}

// delay is the time before the first probe: the configured one, and a share of
// the interval so that the instances of a start spread.
func (c *checker) delay() time.Duration {
	p := c.m.pool(c.job.pool)
	if p == nil {
		return 0
	}
	a := &p.Config.Active
	return a.InitialDelay + time.Duration(rand.Float64()*a.Jitter*float64(a.Interval))
}

// step probes once.
func (c *checker) step(ctx context.Context) time.Duration {
	p := c.m.pool(c.job.pool)
	if p == nil || !p.Config.Active.on() {
		return time.Hour // this worker is about to be ended
	}
	a := &p.Config.Active
	begun := time.Now()
	roundTrip, err := p.probe(ctx, &c.job)
	if ctx.Err() != nil {
		return 0
	}
	if roundTrip > 0 {
		c.job.live.ObserveRoundTrip(roundTrip)
		c.job.poolLive.ObserveRoundTrip(roundTrip)
		c.job.regionLive.ObserveRoundTrip(roundTrip)
	}
	c.judge(p, err)
	spread := 1 + a.Jitter*(2*rand.Float64()-1)
	return max(0, time.Duration(float64(a.Interval)*spread)-time.Since(begun))
}

// judge counts the result and marks the instance when a threshold is reached.
func (c *checker) judge(p *pool, err error) {
	r := c.m.record(c.job.live)
	unknown := errors.Is(err, errUnknown)
	if r.ruleMissing.Swap(unknown) != unknown {
		if unknown {
			c.m.log.Warn("a check says nothing; the instance stays as it is", "pool", p.name, "instance", c.job.name, "err", err)
		} else {
			c.m.log.Info("a check says something again", "pool", p.name, "instance", c.job.name)
		}
	}
	a := &p.Config.Active
	switch {
	case unknown:
		c.m.meter.probe(p.name, "unknown")
		return
	case err != nil:
		c.m.meter.probe(p.name, "failure")
		c.passed, c.failed = 0, min(c.failed+1, a.FailureThreshold)
		if !c.down && c.failed >= a.FailureThreshold {
			c.down = true
			c.job.live.SetDown(true, time.Now().UnixNano())
			c.m.log.Warn("instance is down", "pool", p.name, "instance", c.job.name, "check", a.Type, "err", err)
		}
	default:
		c.m.meter.probe(p.name, "success")
		c.failed, c.passed = 0, min(c.passed+1, a.SuccessThreshold)
		if c.down && c.passed >= a.SuccessThreshold {
			c.down = false
			c.m.recovered(c.job.live)
			c.job.live.SetDown(false, time.Now().UnixNano())
			c.m.log.Info("instance is up", "pool", p.name, "instance", c.job.name, "check", a.Type)
			c.m.learnAgain(c.job.pool)
		}
	}
}

// absolve marks an instance up that is no longer checked.
func (m *Monitor) absolve(j job) {
	m.record(j.live).ruleMissing.Store(false)
	if j.live.SetDown(false, time.Now().UnixNano()) {
		m.log.Info("instance is no longer checked and counts as up", "pool", j.pool, "instance", j.name)
	}
}
