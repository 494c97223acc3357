package bench_test

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/load"
)

// compared is the result of a comparison that nobody has made.
func compared() *bench.Result {
	value := func(v float64) *float64 { return &v }
	r := &bench.Result{Report: load.NewReport("overload", 1)}
	for _, x := range []float64{0.8, 2, 10} {
		r.Add(load.System{Name: "direct", Load: x, GoodputRatio: value(0.1 / x), Notes: []string{"2 seeds; whatever"}})
		r.Add(load.System{Name: "spillway", Load: x, GoodputRatio: value(0.96), Jain: value(0.97), Notes: []string{`set to "<all>"`}, Classes: map[string]load.Group{
			"vip": {Offered: 10, SLOAttainment: value(0.99), TTFT: &load.Latency{P99: 400 + 10*x}},
		}})
	}
	r.Verdicts = []bench.Verdict{
		{Name: "spillway 2x: goodput / optimum", Value: 0.96, Relation: bench.AtLeast, Limit: 0.93, OK: true},
		{Name: "spillway 10x: vip attainment", Value: 0.97, Relation: bench.AtLeast, Limit: 0.98},
		{Name: "direct 2x: counters not at zero", Relation: bench.Exactly, OK: true},
		{Name: "spillway 2x: counters not at zero", Relation: bench.Exactly, OK: true},
	}
	return r
}

// TestWritePlots writes well-formed SVG with a line for each system, the same bytes
// each time.
func TestWritePlots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "plots")
	if err := compared().WritePlots(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"goodput.svg":  {">direct<", ">spillway<", ">0.8x<", ">10x<"},
		"vip-ttft.svg": {">direct<", ">spillway<", "p99"},
	} {
		svg, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		dec, elements := xml.NewDecoder(strings.NewReader(string(svg))), 0
		for {
			token, err := dec.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, ok := token.(xml.StartElement); ok {
				elements++
			}
		}
		if elements < 20 || strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
			t.Errorf("%s: %d elements\n%s", name, elements, svg)
		}
		for _, w := range want {
			if !strings.Contains(string(svg), w) {
				t.Errorf("%s lacks %q", name, w)
			}
		}
		if err := compared().WritePlots(dir); err != nil {
			t.Fatal(err)
		}
		if again, _ := os.ReadFile(filepath.Join(dir, name)); string(again) != string(svg) {
			t.Errorf("%s: two runs differ", name)
		}
	}
}

func TestWriteDocs(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "overload.md")
	text := "# Page\n<!-- begin comparison -->\nold\n<!-- end comparison -->\nbetween\n<!-- begin scenarios -->\n<!-- end scenarios -->\nafter\n"
	if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{bench.DocsComparison, bench.DocsScenarios} {
		if err := compared().WriteDocs(dir, part); err != nil {
			t.Fatal(err)
		}
	}
	out, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	got := string(out)
	for _, want := range []string{
		"# Page\n", "\nbetween\n", "\nafter\n", "overload/goodput.svg", "| spillway | 0.960 | 0.960 | 0.960 |", "| direct | - | - | - |", "- spillway: set to",
		"| spillway 10x: vip attainment | 0.97 | >= 0.98 | **missed** |", "| runs that end with every counter at zero | 2 | = 2 | ok |",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the page lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") || strings.Contains(got, "seeds;") {
		t.Errorf("the page has what it should not:\n%s", got)
	}
	if err := compared().WriteDocs(dir, bench.DocsReal); err == nil || !strings.Contains(err.Error(), "no part real") {
		t.Errorf("a page without the part: %v", err)
	}
	if err := compared().WriteDocs(t.TempDir(), bench.DocsReal); err == nil {
		t.Error("a folder without the page is no error")
	}
}
