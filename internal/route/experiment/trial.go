package experiment

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// trial is one experiment under way: an immutable configuration with what was made of
// it, and pointers to what outlives a reload.
type trial struct {
	cfg     Config
	names   []string         // of the arms; of the copies alone with a mirror
	control int              // index of the arm that others are compared to; -1 is none
	upto    []float64        // ends of the arms' shares of [0, 1)
	match   Condition        // nil matches everything
	seed    uint64           // of the hash of keys
	mark    uint64           // of all that makes samples comparable
	tested  [metrics]bool    // which metrics get verdicts
	counts  []*counts        // by arm, for Prometheus
	life    *life            // shared with the trial that a reload has replaced
	ledger  *ledger          // likewise
	decide  []route.Decision // by arm
}

// newTrial works out what a configuration that has passed Validate means.
func newTrial(c Config) *trial {
	t := &trial{cfg: c, seed: xxhash.Sum64String(c.Name), control: -1}
	for _, name := range c.Metrics {
		for m := range metrics {
			t.tested[m] = t.tested[m] || metricNames[m] == name
		}
	}
	if c.Mirror.set() {
		to := c.Mirror.To
		to.Strict = true // copies are no load for the servers of those that they are of
		t.names = []string{mirrorArm}
		t.decide = []route.Decision{{Arm: inference.Arm{Experiment: c.Name, Arm: mirrorArm}, Mirror: &to}}
		t.mark = markOf(&c)
		return t
	}
	total, sum := 0, 0
	for i := range c.Arms {
		total += c.Arms[i].Weight
	}
	t.control = 0
	for i := range c.Arms {
		a := &c.Arms[i]
		if a.Name == c.Control {
			t.control = i
		}
		sum += a.Weight
		d := route.Decision{Arm: inference.Arm{Experiment: c.Name, Arm: a.Name}}
		if !a.Then.Empty() {
			d.Action = &a.Then
		}
		t.names, t.decide, t.upto = append(t.names, a.Name), append(t.decide, d), append(t.upto, float64(sum)/float64(total))
	}
	t.mark = markOf(&c)
	return t
}

// markOf is a digest of what a sample depends on: when it changes, old samples say
// nothing about new ones. The ramp, the guard and the metrics are not part of it.
func markOf(c *Config) uint64 {
	text := fmt.Sprintf("%q %q %q %q", c.When, c.By, c.Header, c.Control)
	for i := range c.Arms {
		text += fmt.Sprintf(" %q %d %+v", c.Arms[i].Name, c.Arms[i].Weight, c.Arms[i].Then) // maps print in order
	}
	return xxhash.Sum64String(text + fmt.Sprintf(" %+v", c.Mirror.To))
}

// Each use of a key has a hash of its own.
const (
	inHash     uint64 = 0x9e3779b97f4a7c15
	armHash    uint64 = 0x3c6ef372fe94f82a
	bucketHash uint64 = 0xdaa66d2c7ddf743f
)

// mix is the finalizer of splitmix64 (Steele, Lea and Flood 2014), by whose avalanche
// the uses of one hash are independent.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// unit maps a hash to [0, 1).
func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// steer says whether the request is part of the experiment, and what is done to it.
func (t *trial) steer(now time.Time, req *inference.Request) (d route.Decision, in bool) {
	state := t.life.state.Load()
	if state.State != Running {
		return d, false
	}
	share := t.share(now.Sub(state.Started))
	if share <= 0 {
		return d, false
	}
	h, ok := t.hash(req)
	if !ok || unit(mix(h^inHash)) >= share || t.match != nil && !t.match.Match(now, req) {
		return d, false
	}
	return t.decide[t.arm(h)], true
}

// arm is the index of the arm of a hashed key.
func (t *trial) arm(h uint64) int {
	x := unit(mix(h ^ armHash))
	for i, end := range t.upto {
		if x < end {
			return i
		}
	}
	return len(t.decide) - 1
}

// armShare is an arm's part of the requests that are in.
func (t *trial) armShare(i int) float64 {
	switch {
	case len(t.upto) == 0: // a mirror's
		return 1
	case i == 0:
		return t.upto[0]
	}
	return t.upto[i] - t.upto[i-1]
}

// share is the part of the requests that are in after some time.
func (t *trial) share(elapsed time.Duration) float64 {
	switch {
	case t.cfg.Mirror.set():
		return t.cfg.Mirror.Share
	case len(t.cfg.Ramp) == 0:
		return 1
	}
	share := 0.0
	for _, s := range t.cfg.Ramp {
		if elapsed >= s.After {
			share = s.Share
		}
	}
	return share
}

// bucket is the group of a request's key; 0 for all where no key is shared.
func (t *trial) bucket(req *inference.Request) uint8 {
	if t.cfg.By == byRequest {
		return 0
	}
	h, _ := t.hash(req)
	return uint8(mix(h^bucketHash) >> 56)
}

// hash is that of the request's key under the experiment's name, unless the request
// has none.
func (t *trial) hash(req *inference.Request) (uint64, bool) {
	var d xxhash.Digest
	d.ResetWithSeed(t.seed)
	key := ""
	switch t.cfg.By {
	case byTenant:
		key = req.Tenant
	case byKey:
		key = req.Key
	case byUser:
		if key = req.User; key != "" {
			write(&d, req.Tenant) // users are a tenant's own
		}
	case byIP:
		return hashIP(&d, req.ClientIP)
	case bySession:
		key = req.Header.Get(t.cfg.Header)
	case byRequest:
		key = req.ID
	}
	write(&d, key)
	return d.Sum64(), key != ""
}

// write adds a word and its end.
func write(d *xxhash.Digest, word string) {
	_, _ = d.WriteString(word) // it never fails
	_, _ = d.WriteString("\x00")
}

// hashIP hashes an address, of IPv6 the /64 that one client has.
func hashIP(d *xxhash.Digest, ip netip.Addr) (uint64, bool) {
	if !ip.IsValid() {
		return 0, false
	}
	b := ip.Unmap().As16()
	if !ip.Unmap().Is4() {
		clear(b[8:])
	}
	_, _ = d.Write(b[:])
	return d.Sum64(), true
}
