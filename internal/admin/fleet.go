package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// readiness is the answer of /readyz.
type readiness struct {
	Ready     bool           `json:"ready"`
	Reasons   []string       `json:"reasons,omitempty"` // why not
	Instances map[string]int `json:"instances"`         // by status
}

// livez answers GET /livez: the process answers, so it lives.
func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]bool{"live": true})
}

// readyz answers GET /readyz: 200 when requests can be answered, else 503.
//
// An instance that is full or cooling counts: it is busy, not gone. If it did
// not, overload would take every gateway out of its balancer at the same time,
// and clients would get refused connections instead of a Retry-After.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	now := time.Now().UnixNano()
	v := readiness{Instances: make(map[string]int)}
	usable := 0
	s.parts.Fleet.Snapshot().Instances(func(i *fleet.Instance) {
		status := i.Status(now)
		v.Instances[status.String()]++
		if status <= fleet.Cooling {
			usable++
		}
	})
	v.Reasons = append(v.Reasons, s.parts.Control.Unready()...)
	switch {
	case len(v.Instances) == 0:
		v.Reasons = append(v.Reasons, "the fleet has no instance")
	case usable == 0:
		v.Reasons = append(v.Reasons, "no instance is open")
	}
	v.Ready = len(v.Reasons) == 0
	status := http.StatusOK
	if !v.Ready {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, v)
}

// Picture is the answer of GET /admin/fleet.
type Picture struct {
	Version int64    `json:"version"` // of the snapshot
	At      string   `json:"at"`      // RFC 3339
	Models  []string `json:"models"`
	Regions []Region `json:"regions"`
}

// Node is what a region, a pool and an instance have in common.
type Node struct {
	Name         string  `json:"name"`
	Status       string  `json:"status"`
	Weight       float64 `json:"weight"` // in effect, lowered in slow start
	Backup       bool    `json:"backup"`
	InFlight     int64   `json:"in_flight"`
	PromptTokens int64   `json:"prompt_tokens"` // estimated, waiting for their first token
	TTFTMillis   float64 `json:"ttft_ms"`       // moving average
	RTTMillis    float64 `json:"round_trip_ms"` // moving average
}

// Region is one region of a Picture.
type Region struct {
	Node
	Pools []Pool `json:"pools"`
}

// Pool is one pool of a Picture.
type Pool struct {
	Node
	Models    map[string]string `json:"models"` // name that clients use -> name asked for upstream
	Surfaces  []string          `json:"surfaces"`
	Instances []Instance        `json:"instances"`
}

// Instance is one instance of a Picture.
type Instance struct {
	Node
	URL      string `json:"url"`
	Capacity int64  `json:"capacity"` // most requests in flight; 0 is not known
}

// fleet answers GET /admin/fleet.
func (s *Server) fleet(w http.ResponseWriter, _ *http.Request) {
	now := time.Now()
	writeJSON(w, http.StatusOK, picture(s.parts.Fleet.Snapshot(), now))
}

// picture describes a snapshot at an instant. Lists are never null.
func picture(snap *fleet.Snapshot, now time.Time) Picture {
	at := now.UnixNano()
	p := Picture{Version: snap.Version, At: now.UTC().Format(time.RFC3339Nano), Models: append([]string{}, snap.Models()...), Regions: []Region{}}
	for _, r := range snap.Regions {
		region := Region{Node: node(&r.Node, at), Pools: []Pool{}}
		for _, fp := range r.Pools {
			pool := Pool{Node: node(&fp.Node, at), Models: fp.Models, Surfaces: []string{}, Instances: []Instance{}}
			if pool.Models == nil {
				pool.Models = map[string]string{}
			}
			for _, surface := range fp.Surfaces {
				pool.Surfaces = append(pool.Surfaces, surface.String())
			}
			for _, i := range fp.Instances {
				pool.Instances = append(pool.Instances, Instance{Node: node(&i.Node, at), URL: i.URL.String(), Capacity: i.Capacity})
			}
			region.Pools = append(region.Pools, pool)
		}
		p.Regions = append(p.Regions, region)
	}
	return p
}

// node describes one node.
func node(n *fleet.Node, now int64) Node {
	millis := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return Node{
		Name: n.Name, Status: n.Status(now).String(), Weight: n.EffectiveWeight(now), Backup: n.Backup,
		InFlight: n.Live.InFlight(), PromptTokens: n.Live.PromptTokens(), TTFTMillis: millis(n.Live.TTFT()), RTTMillis: millis(n.Live.RoundTrip()),
	}
}

// drained is the answer to a drain and its end.
type drained struct {
	Instance string `json:"instance"`
	Draining bool   `json:"draining"`
	Changed  bool   `json:"changed"`   // false: it was so already
	InFlight int64  `json:"in_flight"` // attempts that still run
}

// drain answers POST and DELETE /admin/drain/{instance...}: an instance that
// drains finishes what it has and gets nothing new.
func (s *Server) drain(on bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("instance")
		found, known := lookUp(s.parts.Fleet.Snapshot(), name)
		switch len(found) {
		case 0:
			p := problem{http.StatusNotFound, codeNotFound, fmt.Sprintf("unknown instance %q", name)}
			p.write(w, detail{"known", known})
			return
		case 1:
		default:
			p := problem{http.StatusConflict, codeAmbiguous, fmt.Sprintf("%q names %d instances; give the full name", name, len(found))}
			p.write(w, detail{"known", names(found)})
			return
		}
		i := found[0]
		v := drained{Instance: i.Name, Draining: on, Changed: i.Live.SetDraining(on), InFlight: i.Live.InFlight()}
		if v.Changed {
			s.log.Info("drain", "instance", v.Instance, "draining", on, "in_flight", v.InFlight, "by", r.RemoteAddr)
		}
		writeJSON(w, http.StatusOK, v)
	}
}

// maxKnown bounds the list of names in an answer.
const maxKnown = 100

// lookUp finds the instances that a name can mean: the one of that full name, or
// else all whose full name ends in it after a slash, so that "10.0.0.1:8000" and
// "gpu/10.0.0.1:8000" name the same as "eu/gpu/10.0.0.1:8000".
func lookUp(snap *fleet.Snapshot, name string) (found []*fleet.Instance, known []string) {
	var exact *fleet.Instance
	known = []string{}
	snap.Instances(func(i *fleet.Instance) {
		if len(known) < maxKnown {
			known = append(known, i.Name)
		}
		switch {
		case i.Name == name:
			exact = i
		case i.URL.Host == name || strings.HasSuffix(i.Name, "/"+name):
			found = append(found, i)
		}
	})
	if exact != nil {
		return []*fleet.Instance{exact}, known
	}
	return found, known
}

// names lists full names, at most maxKnown.
func names(instances []*fleet.Instance) []string {
	list := make([]string, 0, min(len(instances), maxKnown))
	for _, i := range instances[:min(len(instances), maxKnown)] {
		list = append(list, i.Name)
	}
	slices.Sort(list)
	return list
}
