package main

import (
	"fmt"
	"math"
	"slices"
)

// Results holds the samples by system and load; the index is the round. A round without a measurement holds nil.
type Results map[string]map[string][]Sample

// Add appends the sample of a round.
func (r Results) Add(system, load string, round int, s Sample) {
	if r[system] == nil {
		r[system] = map[string][]Sample{}
	}
	l := r[system][load]
	for len(l) <= round {
		l = append(l, nil)
	}
	l[round] = s
	r[system][load] = l
}

// values are a metric's values in the rounds that have it.
func (r Results) values(system, load, metric string) []float64 {
	var v []float64
	for _, s := range r[system][load] {
		if x, ok := s[metric]; ok {
			v = append(v, x)
		}
	}
	return v
}

// Range is a median with the smallest and the largest value.
type Range struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Rounds int     `json:"rounds"`
}

// RangeOf summarises values; Rounds is 0 without any.
func RangeOf(v []float64) Range {
	if len(v) == 0 {
		return Range{}
	}
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return Range{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1], Rounds: n}
}

// Of is a metric of a system under a load.
func (r Results) Of(system, load, metric string) Range {
	return RangeOf(r.values(system, load, metric))
}

// Ratio is a metric of a system over that of the base, paired by round: what disturbs the machine for a while disturbs
// both, so the ratio is steadier than either.
func (r Results) Ratio(system, base, load, metric string) Range {
	var v []float64
	b := r[base][load]
	for i, s := range r[system][load] {
		if i >= len(b) {
			break
		}
		x, ok1 := s[metric]
		y, ok2 := b[i][metric]
		if ok1 && ok2 && y > 0 {
			v = append(v, x/y)
		}
	}
	return RangeOf(v)
}

// Sum adds a metric over all rounds of the loads; the second result says how many measurements had it.
func (r Results) Sum(system, metric string, names []string) (float64, int) {
	var sum float64
	n := 0
	for _, l := range names {
		for _, x := range r.values(system, l, metric) {
			sum += x
			n++
		}
	}
	return sum, n
}

// Goal is one line of the table of what must be shown.
type Goal struct {
	Name   string
	Loads  []string // more than one only for sums
	Metric string
	Kind   kind
	Unit   string
	// Must and Aim are inclusive bounds. Without an aim it equals must.
	Must, Aim float64
}

type kind int

const (
	value   kind = iota // the median, at most the bound
	ratio               // the ratio to nginx, at most the bound
	atLeast             // the smallest value, at least the bound
	sum                 // the sum over all rounds and loads, at most the bound
	floor               // the sum over all rounds and loads, at least the bound
)

// Goals are those of the project's first issue, "What must be shown", items 3 to 5.
func Goals() []Goal {
	streams := []string{"sseA", "sseB", "sseC", "hold", "soak"}
	all := append([]string{"json", "open500", "open3000", "idle"}, streams...)
	g := []Goal{
		{"CPU per JSON request, 64 connections", []string{"json"}, "cpu_us", ratio, "x nginx", 2.2, 1.2},
		{"CPU per event, saturated (500 x 5 ms)", []string{"sseC"}, "cpu_us", ratio, "x nginx", 1.25, 1.1},
		{"CPU per event, 20,000/s (100 x 5 ms)", []string{"sseA"}, "cpu_us", ratio, "x nginx", 2, 1.5},
		{"CPU per event, 20,000/s (1,000 x 50 ms)", []string{"sseB"}, "cpu_us", ratio, "x nginx", 2, 1.5},
		{"total p50 at 500 requests/s", []string{"open500"}, "p50_us", ratio, "x nginx", 1.2, 1.2},
		{"total p50 at 3,000 requests/s", []string{"open3000"}, "p50_us", ratio, "x nginx", 1.1, 1.1},
		{"event delay p50 (1,000 x 50 ms)", []string{"sseB"}, "delay_p50_us", ratio, "x nginx", 1.2, 1},
		{"event delay p99 (1,000 x 50 ms)", []string{"sseB"}, "delay_p99_us", ratio, "x nginx", 1.2, 1},
		{"RSS per open stream (1,000 x 50 ms)", []string{"sseB"}, "kb_per_client", value, "KB", 50, 20},
		{"RSS per open stream, held for 30 s", []string{"hold"}, "kb_per_client", value, "KB", 50, 20},
		{"open files left after that", []string{"hold"}, "files_left", value, "files", 0, 0},
		{"goroutines left after that", []string{"hold"}, "goroutines_left", value, "goroutines", 0, 0},
		{"RSS per idle connection", []string{"idle"}, "kb_per_client", value, "KB", 22, 6},
	}
	for _, p := range []string{"mid", "silent", "first", "json"} {
		g = append(g,
			Goal{"client leaves, " + p + ": upstream closed", []string{"leave"}, p + "_seen", atLeast, "of trials", 1, 1},
			Goal{"client leaves, " + p + ": p99", []string{"leave"}, p + "_p99_ms", value, "ms", 5, 5})
	}
	return append(g,
		Goal{"streams of the soak", []string{"soak"}, "answers", floor, "streams", 100000, 100000},
		Goal{"broken or stalled streams, all loads", streams, "broken", sum, "streams", 0, 0},
		Goal{"failed requests and dropped connections", all, "errors", sum, "requests", 0, 0},
		Goal{"wrong JSON answers", []string{"json", "open500", "open3000", "idle"}, "broken", sum, "answers", 0, 0})
}

// RigGoals are what the rig itself must reach, measured without a proxy, so that it can saturate the systems under test.
func RigGoals() []Goal {
	return []Goal{
		{"mock, JSON request", []string{"json"}, "mock_us", value, "us CPU", 8, 8},
		{"client, JSON request", []string{"json"}, "client_us", value, "us CPU", 8, 8},
		{"mock, event", []string{"rig"}, "mock_us", value, "us CPU", 5, 5},
		{"client, event", []string{"rig"}, "client_us", value, "us CPU", 5, 5},
		{"requests sent > 5 ms late at 3,000/s", []string{"open3000"}, "late_share", value, "of sent", 0.01, 0.01},
	}
}

// Verdict is a goal judged for one system.
type Verdict struct {
	System string  `json:"system"`
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Value  Range   `json:"value"`
	Must   float64 `json:"must"`
	Aim    float64 `json:"aim"`
	// Result is "aim", "must" (reached, but not the aim), "MISSED" or "not run".
	Result string `json:"result"`
}

// Judge compares a system's results with the goals.
func Judge(r Results, system string, goals []Goal) []Verdict {
	out := make([]Verdict, 0, len(goals))
	for _, g := range goals {
		v := Verdict{System: system, Name: g.Name, Unit: g.Unit, Must: g.Must, Aim: g.Aim}
		load := g.Loads[0]
		switch g.Kind {
		case ratio:
			v.Value = r.Ratio(system, nginx, load, g.Metric)
		case sum, floor:
			x, n := r.Sum(system, g.Metric, g.Loads)
			v.Value = Range{Median: x, Min: x, Max: x, Rounds: n}
		default:
			v.Value = r.Of(system, load, g.Metric)
		}
		v.Result = g.judge(v.Value)
		if v.Value.Rounds == 0 && len(r[system][load]) > 0 && g.Kind != ratio {
			v.Result = missed // the load ran without a value: e.g. no upstream was ever seen closed
		}
		out = append(out, v)
	}
	return out
}

const (
	missed = "MISSED"
	notRun = "not run"
)

func (g Goal) judge(v Range) string {
	if v.Rounds == 0 {
		return notRun
	}
	x, must, aim := v.Median, g.Must, g.Aim
	if g.Kind == atLeast {
		x = v.Min
	}
	if g.Kind == atLeast || g.Kind == floor {
		x, must, aim = -x, -must, -aim
	}
	switch {
	case math.IsNaN(x) || x > must:
		return missed
	case x > aim:
		return "must"
	}
	return "aim"
}

// Missed reports whether any verdict is a miss.
func Missed(v []Verdict) bool {
	return slices.ContainsFunc(v, func(v Verdict) bool { return v.Result == missed })
}

// number writes a value with three significant digits.
func number(x float64) string {
	switch a := math.Abs(x); {
	case x == math.Trunc(x) && a < 1e6:
		return fmt.Sprintf("%.0f", x)
	case a >= 100:
		return fmt.Sprintf("%.0f", x)
	case a >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}
