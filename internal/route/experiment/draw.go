package experiment

import (
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// Draw is an experiment by request, which draws for each of them anew: of one that is
// not sent there is no saying where it would be.
type Draw struct {
	Name  string    `json:"name"`
	Share float64   `json:"share"` // of the requests that come so far, at this step of its ramp
	Arms  []ArmDraw `json:"arms"`
}

// ArmDraw is one arm of it; with a mirror the copy is the one arm.
type ArmDraw struct {
	Name  string  `json:"name"`
	Share float64 `json:"share"` // of the experiment's requests
}

// Preview implements route.Preview: it decides what does not depend on the request's id.
func (s *Set) Preview(now time.Time, req *inference.Request) route.Decision {
	d, _ := s.preview(now, req)
	return d
}

// Drawn lists the experiments that draw for a request, in the configured order, up to
// the one that takes whatever comes so far.
func (s *Set) Drawn(now time.Time, req *inference.Request) []Draw {
	_, drawn := s.preview(now, req)
	return drawn
}

// preview goes through the experiments as Steer does.
func (s *Set) preview(now time.Time, req *inference.Request) (d route.Decision, drawn []Draw) {
	for _, t := range s.table.Load().trials {
		share := t.draws(now, req)
		if share == 0 {
			if d, in := t.steer(now, req); in {
				return d, drawn
			}
			continue
		}
		one := Draw{Name: t.cfg.Name, Share: share}
		for i, name := range t.names {
			one.Arms = append(one.Arms, ArmDraw{name, t.armShare(i)})
		}
		if drawn = append(drawn, one); share >= 1 {
			break
		}
	}
	return d, drawn
}

// draws is the share of requests like this one that the experiment draws; 0 where it
// draws none, because of a key, its state or its condition, or copies them all.
func (t *trial) draws(now time.Time, req *inference.Request) float64 {
	state := t.life.state.Load()
	if t.cfg.By != byRequest || state.State != Running {
		return 0
	}
	share := t.share(now.Sub(state.Started))
	if t.control < 0 && share >= 1 || t.match != nil && !t.match.Match(now, req) {
		return 0
	}
	return share
}
