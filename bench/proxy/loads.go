package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Load is one way to use a system, and how often.
type Load struct {
	Name string
	// Control sets the mock: the gap between events, the latency of a completion, silence.
	Control string
	// Mode, Clients and Rate are the client program's; mode "leave" is a program of its own.
	Mode    string
	Clients int
	Rate    int
	// Seconds and Warm override the window and the warm-up, 0 takes the run's own.
	Seconds, Warm float64
	// StopAfter ends the window after so many answers; 0 never.
	StopAfter int
	// Rounds bounds how often it runs, 0 in every round.
	Rounds int
	// Memory loads are preceded by a little traffic, so that what a first request allocates is not counted per client.
	Memory bool
	// Leftovers has the system watched after the load for files and goroutines that stay open.
	Leftovers bool
	// For says which systems it makes sense for.
	For func(System) bool
}

func everyone(System) bool     { return true }
func proxies(s System) bool    { return s.Command != "" }
func judged(s System) bool     { return s.Judged }
func onlyDirect(s System) bool { return s.Name == direct }
func (l Load) streaming() bool { return l.Mode == "stream" }
func quiet(gapUS int) string   { return fmt.Sprintf("gap_us=%d&latency_us=0&silent_after=-1", gapUS) }
func (l Load) window() float64 { return l.Seconds + l.Warm }
func (l Load) runs(r int) bool { return l.Rounds == 0 || r < l.Rounds }
func seconds(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// loads are all of them, in the order they run within a round. The rates and gaps are those of the goals: sseA and sseB
// are both 20,000 events/s, sseC offers 100,000 and saturates two cores.
func loads() []Load {
	return []Load{
		{Name: "rig", Control: quiet(0), Mode: "stream", Clients: 32, Rounds: 3, For: onlyDirect},
		{Name: "json", Control: quiet(0), Mode: "json", Clients: 64, For: everyone},
		{Name: "open500", Control: quiet(0), Mode: "open", Clients: 64, Rate: 500, For: everyone},
		{Name: "open3000", Control: quiet(0), Mode: "open", Clients: 64, Rate: 3000, For: everyone},
		{Name: "sseA", Control: quiet(5000), Mode: "stream", Clients: 100, For: everyone},
		{Name: "sseB", Control: quiet(50000), Mode: "stream", Clients: 1000, Memory: true, For: everyone},
		{Name: "sseC", Control: quiet(5000), Mode: "stream", Clients: 500, For: everyone},
		{Name: "idle", Control: quiet(0), Mode: "idle", Clients: 10000, Seconds: 3, Warm: 4, Rounds: 3, Memory: true, For: proxies},
		{Name: "leave", Mode: "leave", Clients: 25, Rounds: 1, For: proxies},
		{Name: "hold", Control: quiet(50000), Mode: "stream", Clients: 1000, Seconds: 30, Rounds: 1, Memory: true, Leftovers: true, For: proxies},
		{Name: "soak", Control: quiet(0), Mode: "stream", Clients: 32, Seconds: 240, StopAfter: 100000, Rounds: 1, For: judged},
	}
}

// PickLoads keeps the named loads (comma-separated; all when empty) and gives them the run's window.
func PickLoads(only string, window, warm float64) ([]Load, error) {
	all := loads()
	var names []string
	for n := range strings.SplitSeq(only, ",") {
		if n = strings.TrimSpace(n); n != "" {
			names = append(names, n)
		}
	}
	var picked, known []string
	out := all[:0:0]
	for _, l := range all {
		known = append(known, l.Name)
		if len(names) > 0 && !slices.Contains(names, l.Name) {
			continue
		}
		if l.Seconds == 0 {
			l.Seconds = window
		}
		if l.Warm == 0 {
			l.Warm = warm
		}
		picked = append(picked, l.Name)
		out = append(out, l)
	}
	for _, n := range names {
		if !slices.Contains(picked, n) {
			return nil, fmt.Errorf("unknown load %q (known: %s)", n, strings.Join(known, ", "))
		}
	}
	return out, nil
}

// args are the client program's arguments, without addresses and processes.
func (l Load) args(clients int) []string {
	a := []string{"-m", l.Mode, "-c", strconv.Itoa(clients), "-d", seconds(l.Seconds), "-w", seconds(l.Warm), "-k", benchKey}
	if l.Rate > 0 {
		a = append(a, "-r", strconv.Itoa(l.Rate))
	}
	if l.StopAfter > 0 {
		a = append(a, "-n", strconv.Itoa(l.StopAfter))
	}
	return a
}

// Spread is a histogram's summary as the client program prints it, in microseconds.
type Spread struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
}

// Report is the client program's output. CPU is in nanoseconds, memory in bytes.
type Report struct {
	Seconds    float64 `json:"seconds"`
	Answers    float64 `json:"answers"`
	Events     float64 `json:"events"`
	Total      float64 `json:"total"`
	Open       float64 `json:"open"`
	Broken     float64 `json:"broken"`
	Refused    float64 `json:"refused"`
	LastStatus int     `json:"last_status"`
	Failed     float64 `json:"failed"`
	Dropped    float64 `json:"dropped"`
	Stalled    float64 `json:"stalled"`
	LateSends  float64 `json:"late_sends"`
	Latency    Spread  `json:"latency_us"`
	Delay      Spread  `json:"delay_us"`
	FirstEvent Spread  `json:"first_event_us"`
	SUT        float64 `json:"sut_cpu_ns"`
	Mock       float64 `json:"mock_cpu_ns"`
	Client     float64 `json:"client_cpu_ns"`
	RSSBefore  float64 `json:"rss_before"`
	RSSEnd     float64 `json:"rss_end"`
	RSSMax     float64 `json:"rss_max"`
	Files0     float64 `json:"files_before"`
	Files1     float64 `json:"files_end"`
}

// Sample is one measurement: metric names to values. A metric that does not apply is absent.
type Sample map[string]float64

// Derive turns the client's report into the metrics of a load. It is an error when nothing was answered.
func (l Load) Derive(r Report) (Sample, error) {
	s := Sample{
		"answers": r.Total,
		"errors":  r.Refused + r.Failed + r.Dropped,
		"broken":  r.Broken + r.Stalled,
		"rss_mb":  max(r.RSSEnd, r.RSSMax) / 1e6,
	}
	units := r.Answers
	if l.streaming() {
		units = r.Events
		s["delay_p50_us"], s["delay_p99_us"] = r.Delay.P50, r.Delay.P99
		s["first_event_p50_us"] = r.FirstEvent.P50
	}
	if l.Mode == "idle" {
		if r.Open == 0 {
			return s, fmt.Errorf("no idle connection is open")
		}
		s["kb_per_client"] = (r.RSSEnd - r.RSSBefore) / 1000 / r.Open
		return s, nil
	}
	if units == 0 {
		return s, fmt.Errorf("nothing was answered (last status %d, %v failed, %v broken)", r.LastStatus, r.Failed, r.Broken)
	}
	s["cpu_us"] = r.SUT / 1000 / units
	s["mock_us"], s["client_us"] = r.Mock/1000/units, r.Client/1000/units
	s["per_second"] = units / r.Seconds
	if l.Mode == "open" {
		s["p50_us"], s["p99_us"] = r.Latency.P50, r.Latency.P99
		s["late_share"] = r.LateSends / units
	}
	if l.Memory {
		s["kb_per_client"] = (max(r.RSSEnd, r.RSSMax) - r.RSSBefore) / 1000 / float64(l.Clients)
	}
	return s, nil
}

// LeavePhase is one phase of the leave program's output.
type LeavePhase struct {
	Trials float64 `json:"trials"`
	Seen   float64 `json:"seen"`
	P50    float64 `json:"p50_ms"`
	P99    float64 `json:"p99_ms"`
}

// DeriveLeave turns the leave program's output into metrics: per phase the share of trials in which the upstream was seen
// closed, and how long it took in ms.
func DeriveLeave(phases map[string]LeavePhase) Sample {
	s := Sample{}
	for name, p := range phases {
		s[name+"_seen"] = 0
		if p.Trials > 0 {
			s[name+"_seen"] = p.Seen / p.Trials
		}
		if p.Seen > 0 {
			s[name+"_p50_ms"], s[name+"_p99_ms"] = p.P50, p.P99
		}
	}
	return s
}
