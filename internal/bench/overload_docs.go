package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// WritePlots writes the plots of a comparison into a folder, which it makes.
func (r *Result) WritePlots(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, c := range overloadCharts(r.Systems) {
		if err := os.WriteFile(filepath.Join(dir, name), c.svg(), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// The parts of docs/overload.md that are generated.
const (
	DocsComparison = "comparison" // in virtual time
	DocsScenarios  = "scenarios"
	DocsReal       = "real" // in real time
)

// WriteDocs puts what a run has shown into the page overload.md of a folder, between
// the comments "<!-- begin PART -->" and "<!-- end PART -->", and a comparison's plots
// beside it.
func (r *Result) WriteDocs(dir, part string) error {
	page := filepath.Join(dir, "overload.md")
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	var b strings.Builder
	if part != DocsScenarios {
		plots := "overload"
		if part == DocsReal {
			plots = "overload-real"
		}
		if err := r.WritePlots(filepath.Join(dir, plots)); err != nil {
			return err
		}
		r.comparisonTables(&b, plots)
	}
	r.verdictTable(&b)
	text, err := replacePart(string(old), part, b.String())
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	return os.WriteFile(page, []byte(text), 0o644)
}

// replacePart replaces what stands between a part's comments.
func replacePart(text, part, body string) (string, error) {
	begin, end := "<!-- begin "+part+" -->\n", "<!-- end "+part+" -->"
	before, rest, ok := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return "", fmt.Errorf("no part %s", part)
	}
	return before + begin + "\n" + body + "\n" + end + after, nil
}

// comparisonTables writes a table of each figure: a line for each system, a column
// for each load.
func (r *Result) comparisonTables(b *strings.Builder, plots string) {
	fmt.Fprintf(b, "![goodput / optimum by offered load](%s/goodput.svg)\n\n![vip time to first token by offered load](%s/vip-ttft.svg)\n", plots, plots)
	vip := inference.VIP.String()
	for _, t := range []struct {
		title  string
		figure func(*load.System) (float64, bool)
		format string
	}{
		{"Goodput / optimum", func(s *load.System) (float64, bool) { return *s.GoodputRatio, true }, "%.3f"},
		{"Attainment of vip, over offered requests", func(s *load.System) (float64, bool) {
			v := s.Classes[vip].SLOAttainment
			return deref(v), v != nil
		}, "%.3f"},
		{"Time to first token of vip, p99, seconds", func(s *load.System) (float64, bool) {
			v := s.Classes[vip].TTFT
			if v == nil {
				return 0, false
			}
			return v.P99 / 1000, true
		}, "%.2f"},
		{"Jain's index over tenants", func(s *load.System) (float64, bool) { return deref(s.Jain), s.Jain != nil }, "%.3f"},
	} {
		fmt.Fprintf(b, "\n%s:\n\n", t.title)
		var loads []float64
		var names []string
		for _, s := range r.Systems {
			if !slices.Contains(loads, s.Load) {
				loads = append(loads, s.Load)
			}
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
		b.WriteString("| system |")
		for _, x := range loads {
			fmt.Fprintf(b, " %gx |", x)
		}
		b.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(loads)) + "\n")
		for _, name := range names {
			fmt.Fprintf(b, "| %s |", name)
			for _, x := range loads {
				cell := "-"
				if s := find(r.Systems, name, x); s != nil {
					if v, ok := t.figure(s); ok {
						cell = fmt.Sprintf(t.format, v)
					}
				}
				fmt.Fprintf(b, " %s |", cell)
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("\n")
	seen := map[string]bool{}
	for _, s := range r.Systems {
		for _, note := range s.Notes {
			if line := s.Name + ": " + note; !seen[line] && !strings.Contains(note, "seeds") {
				seen[line] = true
				fmt.Fprintf(b, "- %s\n", line)
			}
		}
	}
	b.WriteString("\n")
}

func deref(v *float64) float64 {
	if v == nil {
		return 0
	}
	return *v
}

// zeroVerdict ends the name of the requirement that nothing leaks.
const zeroVerdict = ": counters not at zero"

// verdictTable writes the requirements, those that every counter is zero as one.
func (r *Result) verdictTable(b *strings.Builder) {
	b.WriteString("| requirement | value | bar | |\n| --- | ---: | ---: | --- |\n")
	zero := Verdict{Name: "runs that end with every counter at zero", Relation: Exactly, OK: true}
	for _, v := range r.Verdicts {
		if strings.HasSuffix(v.Name, zeroVerdict) {
			zero.Limit++
			if v.OK {
				zero.Value++
			}
			zero.OK = zero.OK && v.OK
			continue
		}
		writeVerdict(b, v)
	}
	if zero.Limit > 0 {
		writeVerdict(b, zero)
	}
}

func writeVerdict(b *strings.Builder, v Verdict) {
	result := "ok"
	if !v.OK {
		result = "**missed**"
	}
	fmt.Fprintf(b, "| %s | %.4g%s | %s %.4g | %s |\n", v.Name, v.Value, v.Unit, v.Relation, v.Limit, result)
}
