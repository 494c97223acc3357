package health

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// reasonConnect is the reason of a failure to get a connection. Nothing listens
// there: waiting for more of them only makes the instance, which looks idle, a
// black hole for policies that prefer the least busy.
const reasonConnect = "connect"

// record is what is known of one instance beyond fleet.Live.
type record struct {
	clean       atomic.Bool // nothing that a success would reset
	ruleMissing atomic.Bool // the check's rule found no value
	loadMissing atomic.Bool // the instance's own load is not known

	mu struct {
		sync.Mutex
		failures  []time.Time // since the last success, within fail_timeout; at most max_fails
		ejections int         // in a row
		last      time.Duration
		since     time.Time // of the last readmission
		spared    bool      // would be ejected if another instance were left
		busy      pause
		spent     pause
	}
}

// pause is a run of answers that said to stay away.
type pause struct {
	count int       // in a row
	until time.Time // end of the cool-down
}

// record finds or makes the record of an instance.
func (m *Monitor) record(live *fleet.Live) *record {
	if r, ok := m.records.Load(live); ok {
		return r.(*record)
	}
	fresh := new(record)
	fresh.clean.Store(true)
	r, _ := m.records.LoadOrStore(live, fresh)
	return r.(*record)
}

// Observe learns what became of an attempt, at its end; a nil failure is a whole
// answer. Best called before the lease is released, so that a half-open
// instance's place is not given away before the verdict is in. It takes no lock
// when an instance that is well succeeds.
func (m *Monitor) Observe(lease *fleet.Lease, failure *inference.Failure) {
	i := lease.Instance
	r := m.record(i.Live)
	if failure == nil || failure.Verdict == inference.VerdictOK {
		if !r.clean.Load() {
			m.succeeded(lease, r)
		}
		return
	}
	p := m.pool(i.Pool.Name)
	if p == nil {
		return
	}
	switch failure.Verdict {
	case inference.VerdictBroken:
		m.failed(lease, r, &p.Config.Passive, failure.Reason == reasonConnect)
	case inference.VerdictBusy:
		r.clean.Store(false)
		m.cool(lease, r, p, failure)
	case inference.VerdictSpent:
		r.clean.Store(false)
		m.cool(lease, r, p, failure)
	}
}

// succeeded resets what failures and busy answers left. An ejected instance is
// readmitted by the request that was let through to test it, or by one that had
// no other choice; an old stream that ends well proves nothing.
func (m *Monitor) succeeded(lease *fleet.Lease, r *record) {
	i := lease.Instance
	if i.Live.Ejected() {
		if lease.Probe() || lease.Panic {
			m.readmit(i, "a request succeeded")
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i.Live.Ejected() {
		return
	}
	r.mu.failures = r.mu.failures[:0]
	r.mu.busy.count, r.mu.spent.count = 0, 0
	if r.mu.spared {
		r.mu.spared = false
		m.log.Info("last instance of its pool works again", "pool", i.Pool.Name, "instance", i.Name)
	}
	r.clean.Store(true)
}

// readmit ends an ejection.
func (m *Monitor) readmit(i *fleet.Instance, why string) {
	r := m.record(i.Live)
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !i.Live.Readmit(now.UnixNano()) {
		return
	}
	r.mu.since = now
	r.mu.failures = r.mu.failures[:0]
	m.meter.readmissions.WithLabelValues(i.Pool.Name).Inc()
	m.log.Info("instance readmitted", "pool", i.Pool.Name, "instance", i.Name, "why", why)
}

// failed counts a failure that was the instance's own fault.
func (m *Monitor) failed(lease *fleet.Lease, r *record, cfg *Passive, connect bool) {
	if cfg.MaxFails == 0 {
		return
	}
	i := lease.Instance
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clean.Store(false)
	if i.Live.Ejected() {
		// Attempts from before the ejection say nothing new.
		if lease.Probe() {
			m.eject(i, r, cfg, "probe")
		}
		return
	}
	for len(r.mu.failures) > 0 && now.Sub(r.mu.failures[0]) > cfg.FailTimeout {
		r.mu.failures = r.mu.failures[1:]
	}
	for missing := cfg.MaxFails - len(r.mu.failures); missing > 0; missing-- {
		r.mu.failures = append(r.mu.failures, now)
		if !connect {
			break
		}
	}
	if len(r.mu.failures) < cfg.MaxFails {
		return
	}
	reason := "failures"
	if connect {
		reason = reasonConnect
	}
	m.eject(i, r, cfg, reason)
}

// eject takes the instance out, longer each time in a row. The caller holds
// r.mu.
func (m *Monitor) eject(i *fleet.Instance, r *record, cfg *Passive, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if cfg.KeepLast && !i.Live.Ejected() && !m.another(i, now) {
		if !r.mu.spared {
			r.mu.spared = true
			m.log.Warn("instance fails, but it is the last one of its pool and stays", "pool", i.Pool.Name, "instance", i.Name, "reason", reason)
		}
		return
	}
	// An instance that stayed in for longer than it was out begins anew.
	if !i.Live.Ejected() && now.Sub(r.mu.since) > max(r.mu.last, cfg.FailTimeout) {
		r.mu.ejections = 0
	}
	d := grown(cfg.EjectTime, cfg.MaxEjectTime, r.mu.ejections)
	d -= jitter(d, cfg.Jitter)
	r.mu.ejections++
	r.mu.last, r.mu.spared, r.mu.failures = d, false, r.mu.failures[:0]
	i.Live.Eject(now.Add(d).UnixNano())
	m.meter.ejections.WithLabelValues(i.Pool.Name, reason).Inc()
	m.log.Warn("instance ejected", "pool", i.Pool.Name, "instance", i.Name, "reason", reason, "for", d)
}

// another says whether a pool has a usable instance beside i.
func (m *Monitor) another(i *fleet.Instance, now time.Time) bool {
	if current, ok := m.fleet.Snapshot().Instance(i.Name); ok {
		i = current
	}
	for _, other := range i.Pool.Instances {
		if other.Live != i.Live && usable(other, now.UnixNano()) && !other.Live.Ejected() {
			return true
		}
	}
	return false
}

// usable says whether an instance may get requests at all.
func usable(i *fleet.Instance, now int64) bool {
	s := i.Status(now)
	return s != fleet.Down && s != fleet.Draining
}

// recovered lets an ejected instance be tested at once, because its active
// checks pass again.
func (m *Monitor) recovered(live *fleet.Live) {
	r := m.record(live)
	r.mu.Lock()
	defer r.mu.Unlock()
	if live.Ejected() {
		live.Eject(time.Now().UnixNano())
	}
}

// cool keeps requests away from an instance that is busy or whose account is
// spent. Answers that come while it cools belong to attempts from before and do
// not count again; only what they ask for is obeyed.
func (m *Monitor) cool(lease *fleet.Lease, r *record, p *pool, failure *inference.Failure) {
	cfg := &p.Config.Passive
	i := lease.Instance
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	run, first, longest := &r.mu.busy, cfg.BusyTime, cfg.MaxBusyTime
	if failure.Verdict == inference.VerdictSpent {
		run, first, longest = &r.mu.spent, cfg.SpentTime, cfg.MaxSpentTime
	}
	d := failure.RetryAfter + jitter(failure.RetryAfter, cfg.Jitter)
	if !now.Before(run.until) {
		own := grown(first, longest, run.count)
		own -= jitter(own, cfg.Jitter)
		if d == 0 || failure.Verdict == inference.VerdictSpent {
			d = max(d, own)
		}
		run.count++
		m.meter.coolDowns.WithLabelValues(p.name, failure.Verdict.String()).Inc()
		if failure.Verdict == inference.VerdictSpent && run.count == 1 {
			m.log.Warn("account behind the instance is spent", "pool", p.name, "instance", i.Name, "reason", failure.Reason, "for", d)
		}
	}
	if until := now.Add(d); until.After(run.until) {
		run.until = until
		i.Live.Cool(until.UnixNano())
	}
}

// grown is first doubled n times, at most longest.
func grown(first, longest time.Duration, n int) time.Duration {
	for ; n > 0 && first < longest; n-- {
		first *= 2
	}
	return min(first, longest)
}

// jitter is a random part of d, up to the given share.
func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(rand.Float64() * share * float64(d))
}
