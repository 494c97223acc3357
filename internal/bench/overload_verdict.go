package bench

import (
	"fmt"
	"strings"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// The requirements of a comparison.
const (
	goodVirtual   = 0.93 // of the optimum, in virtual time without retries
	goodRetries   = 0.90 // with retries, or in real time
	ofBestStatic  = 0.98 // of the best static limit of the same run
	vipAttained   = 0.98
	vipSteady     = 1.5  // times its p99 at the lowest load
	noHarm        = 0.02 // worse than direct below the capacity
	highestLoad   = 10   // where vip is judged
	belowCapacity = 1.0
)

// verdict judges a value.
func verdict(name string, value float64, rel Relation, limit float64, unit string) Verdict {
	r := rig{result: &Result{}}
	r.expect(name, value, rel, limit, unit)
	return r.result.Verdicts[0]
}

// compared is what a comparison must show, from the systems of its report: one entry
// of each system at each load.
func (o *Overload) compared(systems []load.System) []Verdict {
	return compareSystems(systems, map[bool]float64{true: goodRetries, false: goodVirtual}[o.Retries > 0])
}

// compareSystems judges the system spillway, against an absolute share of the optimum
// and against every other system of the same load.
func compareSystems(systems []load.System, good float64) []Verdict {
	var out []Verdict
	var calm *load.System // spillway below the capacity
	for i, s := range systems {
		if s.Name != SystemSpillway {
			continue
		}
		at := fmt.Sprintf("%s %gx: ", s.Name, s.Load)
		if s.Load <= belowCapacity {
			if calm == nil {
				calm = &systems[i]
			}
			out = append(out, unharmed(at, s, find(systems, SystemDirect, s.Load))...)
			continue
		}
		out = append(out, verdict(at+"goodput / optimum", *s.GoodputRatio, AtLeast, good, ""))
		for _, other := range systems {
			if other.Load != s.Load || other.Name == s.Name {
				continue
			}
			share := 1.0
			if strings.HasSuffix(other.Name, "-"+admission.LimitStatic) {
				share = ofBestStatic // which was searched for, by its outcome
			}
			out = append(out, verdict(at+"goodput / that of "+other.Name, *s.GoodputRatio/max(1e-6, *other.GoodputRatio), AtLeast, share, ""))
		}
		if s.Load < highestLoad {
			continue
		}
		vip := s.Classes[inference.VIP.String()]
		if vip.SLOAttainment != nil {
			out = append(out, verdict(at+"vip attainment", *vip.SLOAttainment, AtLeast, vipAttained, ""))
		}
		if calm != nil && vip.TTFT != nil {
			if before := calm.Classes[inference.VIP.String()].TTFT; before != nil {
				out = append(out, verdict(fmt.Sprintf("%svip p99 TTFT / at %gx", at, calm.Load), vip.TTFT.P99/before.P99, AtMost, vipSteady, ""))
			}
		}
	}
	return out
}

// unharmed compares a system below the capacity with nothing in its place.
func unharmed(at string, s load.System, direct *load.System) []Verdict {
	if direct == nil {
		return nil
	}
	out := []Verdict{verdict(at+"goodput / direct", *s.GoodputRatio / *direct.GoodputRatio, AtLeast, 1-noHarm, "")}
	if s.TTFT != nil && direct.TTFT != nil {
		out = append(out, verdict(at+"p50 TTFT / direct", s.TTFT.P50/direct.TTFT.P50, AtMost, 1+noHarm, ""))
	}
	return out
}

// find is the entry of a system at a load, nil where there is none.
func find(systems []load.System, name string, x float64) *load.System {
	for i := range systems {
		if systems[i].Name == name && systems[i].Load == x {
			return &systems[i]
		}
	}
	return nil
}
