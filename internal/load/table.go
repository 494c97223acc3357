package load

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// WriteTable writes the report as plain text, one column per system.
func (r *Report) WriteTable(w io.Writer) error {
	t := &table{systems: r.Systems}
	t.row("", func(s System) string {
		if s.Load > 0 {
			return fmt.Sprintf("%s %gx", s.Name, s.Load)
		}
		return s.Name
	})
	t.count("offered", func(s System) *int64 { return &s.Offered })
	t.count("answered", func(s System) *int64 { return &s.Answered })
	t.count("truncated", func(s System) *int64 { return &s.Truncated })
	t.count("cut_open", func(s System) *int64 { return s.CutOpen })
	for _, code := range t.codes() {
		t.count("error "+code, func(s System) *int64 {
			n := s.Errors[code]
			return &n
		})
	}
	if slices.ContainsFunc(r.Systems, func(s System) bool { return s.Retries > 0 }) {
		t.count("retries", func(s System) *int64 { return &s.Retries })
	}
	t.percent("availability", func(s System) *float64 { return s.Availability })
	t.percent("goodput ratio", func(s System) *float64 { return s.GoodputRatio })
	t.overload()
	t.latency("TTFT", func(s System) *Latency { return s.TTFT })
	t.latency("ITL", func(s System) *Latency { return s.ITL })
	t.latency("E2E", func(s System) *Latency { return s.E2E })
	t.value("tokens/s", "%.0f", func(s System) *float64 { return s.TokensPerS })
	for _, class := range t.classes() {
		t.class(class)
	}
	t.value("send lag p99 ms", "%.2f", func(s System) *float64 {
		if s.ScheduleLag == nil {
			return nil
		}
		return &s.ScheduleLag.P99
	})
	t.percent("late engine steps", func(s System) *float64 { return s.LateSteps })
	return r.writeLines(w, t.render())
}

// writeLines writes the table and what must be known to read it.
func (r *Report) writeLines(w io.Writer, table string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (seed %d)\n%s", r.Scenario, r.Seed, table)
	for _, s := range r.Systems {
		if o := s.SLO; o != nil && s.Optimum == nil {
			fmt.Fprintf(&b, "%s: goodput counts answers with TTFT <= %s and TPOT <= %s\n", s.Name, bound(o.TTFT), bound(o.TPOT))
		}
		for _, class := range slices.Sorted(maps.Keys(s.Classes)) {
			if o := s.Classes[class].SLO; o != nil {
				fmt.Fprintf(&b, "%s: the SLO of %s is TTFT <= %s and TPOT <= %s\n", s.Name, class, bound(o.TTFT), bound(o.TPOT))
			}
		}
		for _, n := range s.Notes {
			fmt.Fprintf(&b, "%s: %s\n", s.Name, n)
		}
	}
	if !r.Valid {
		fmt.Fprintf(&b, "INVALID: %s\n", r.InvalidReason)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func bound(ms float64) string {
	if ms == 0 {
		return "any"
	}
	return strconv.FormatFloat(ms, 'f', -1, 64) + " ms"
}

// table is rows of cells, the first one a label. absent cells are "-".
type table struct {
	systems []System
	rows    [][]string
}

const absent = "-"

// row appends a row, unless it is absent for every system.
func (t *table) row(label string, cell func(System) string) {
	row := []string{label}
	some := label == ""
	for _, s := range t.systems {
		c := cell(s)
		some = some || c != absent
		row = append(row, c)
	}
	if some {
		t.rows = append(t.rows, row)
	}
}

func (t *table) count(label string, v func(System) *int64) {
	t.row(label, func(s System) string {
		if n := v(s); n != nil {
			return strconv.FormatInt(*n, 10)
		}
		return absent
	})
}

func (t *table) value(label, format string, v func(System) *float64) {
	t.row(label, func(s System) string {
		if f := v(s); f != nil {
			return fmt.Sprintf(format, *f)
		}
		return absent
	})
}

func (t *table) percent(label string, v func(System) *float64) {
	t.value(label, "%.2f%%", func(s System) *float64 {
		f := v(s)
		if f == nil {
			return nil
		}
		p := *f * 100
		return &p
	})
}

// latency appends mean and percentiles.
func (t *table) latency(name string, v func(System) *Latency) {
	parts := []struct {
		label string
		of    func(*Latency) float64
	}{
		{"mean", func(l *Latency) float64 { return l.Mean }},
		{"p50", func(l *Latency) float64 { return l.P50 }},
		{"p90", func(l *Latency) float64 { return l.P90 }},
		{"p99", func(l *Latency) float64 { return l.P99 }},
		{"p99.9", func(l *Latency) float64 { return l.P999 }},
	}
	for _, p := range parts {
		t.value(name+" "+p.label+" ms", "%.1f", func(s System) *float64 {
			l := v(s)
			if l == nil {
				return nil
			}
			f := p.of(l)
			return &f
		})
	}
}

// overload appends what only overload scenarios know.
func (t *table) overload() {
	t.value("offered load", "%.2f", func(s System) *float64 { return s.OfferedLoad })
	t.percent("of the feasible", func(s System) *float64 { return s.FeasibleRatio })
	t.value("optimum/s", "%.2f", func(s System) *float64 { return s.Optimum })
	t.value("good/s", "%.2f", func(s System) *float64 { return s.GoodPerS })
	t.percent("work wasted", func(s System) *float64 { return s.Wasted })
	rejections := func(label, format string, v func(*Rejections) *float64) {
		t.value(label, format, func(s System) *float64 {
			if s.Rejections == nil {
				return nil
			}
			return v(s.Rejections)
		})
	}
	rejections("rejections", "%.0f", func(r *Rejections) *float64 {
		n := float64(r.Count)
		return &n
	})
	rejections("rejection p99 ms", "%.2f", func(r *Rejections) *float64 { return r.P99MS })
	rejections("in the server p99 ms", "%.3f", func(r *Rejections) *float64 { return r.ServerP99MS })
	t.percent("promises kept", func(s System) *float64 { return s.RetryAfterHonesty })
	t.value("Jain index", "%.3f", func(s System) *float64 { return s.Jain })
	t.value("starvation s", "%.2f", func(s System) *float64 { return s.StarvationS })
	t.row("recovery s", func(s System) string {
		switch v := s.RecoveryS; {
		case v == nil:
			return absent
		case *v < 0:
			return "never"
		default:
			return strconv.FormatFloat(*v, 'f', 0, 64)
		}
	})
}

// class appends the rows of one class.
func (t *table) class(name string) {
	t.row(name+" offered", func(s System) string {
		if g, ok := s.Classes[name]; ok {
			return strconv.FormatInt(g.Offered, 10)
		}
		return absent
	})
	t.percent(name+" within SLO", func(s System) *float64 { return s.Classes[name].SLOAttainment })
	t.value(name+" TTFT p50 ms", "%.1f", func(s System) *float64 {
		if l := s.Classes[name].TTFT; l != nil {
			return &l.P50
		}
		return nil
	})
	t.value(name+" TTFT p99 ms", "%.1f", func(s System) *float64 {
		if l := s.Classes[name].TTFT; l != nil {
			return &l.P99
		}
		return nil
	})
}

// codes lists the error codes of all systems.
func (t *table) codes() []string {
	all := map[string]bool{}
	for _, s := range t.systems {
		for code := range s.Errors {
			all[code] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// classes lists the classes of all systems.
func (t *table) classes() []string {
	all := map[string]bool{}
	for _, s := range t.systems {
		for name := range s.Classes {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// render aligns labels left and values right.
func (t *table) render() string {
	widths := make([]int, len(t.systems)+1)
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], len(c))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		fmt.Fprintf(&b, "%-*s", widths[0], row[0])
		for i, c := range row[1:] {
			fmt.Fprintf(&b, "  %*s", widths[i+1], c)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
