// Command testsum reads the output of `go test -json` on its standard input,
// prints failures whole, one line for each package, and at the end which tests
// did not run and why. The exit status is 1 when a test or package failed, or,
// with CI=true, when a test did not run anywhere.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// event is one line of `go test -json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build's output
	Test       string
	Output     string
	Elapsed    float64
}

// key names a test, or a package when Test is empty.
type key struct{ pkg, test string }

// summary is what became of the tests.
type summary struct {
	output   map[key][]string
	passed   map[key]bool
	skipped  map[key]string // with the reason
	failures int            // tests and packages
	failed   int            // tests
	out      io.Writer
}

func main() {
	os.Exit(Summarize(os.Stdin, os.Stdout, os.Getenv("CI") == "true"))
}

// Summarize reads events from in, writes the summary to out and returns the exit
// status. strict makes a test that ran nowhere a failure.
func Summarize(in io.Reader, out io.Writer, strict bool) int {
	s := &summary{output: make(map[key][]string), passed: make(map[key]bool), skipped: make(map[key]string), out: out}
	if err := s.read(in); err != nil {
		fmt.Fprintln(out, "testsum:", err)
		return 1
	}
	missing := s.report()
	passed := 0
	for k := range s.passed {
		if k.test != "" {
			passed++
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", passed, s.failed, missing)
	if s.failures > 0 || missing > 0 && strict {
		return 1
	}
	return 0
}

// read takes all events. What is not an event is printed.
func (s *summary) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(s.out, lines.Text())
			continue
		}
		s.add(e)
	}
	return lines.Err()
}

// add takes one event.
func (s *summary) add(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		s.output[k] = append(s.output[k], e.Output)
		return
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "pass":
		s.passed[k] = true
	case "fail":
		s.failures++
		if e.Test != "" {
			s.failed++
		}
		fmt.Fprint(s.out, strings.Join(s.output[k], ""))
	case "skip":
		if e.Test != "" && !strings.HasPrefix(e.Test, "Fuzz") { // a fuzz target passes over inputs
			s.skipped[k] = reason(s.output[k])
		}
	}
	if e.Test == "" && (e.Action == "pass" || e.Action == "fail") {
		fmt.Fprintf(s.out, "%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
	}
	if e.Action != "run" {
		delete(s.output, k)
	}
}

// reason is what a test said when it was skipped.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			_, after, found := strings.Cut(line, ".go:")
			if _, text, ok := strings.Cut(after, ": "); found && ok {
				return text
			}
			return line
		}
	}
	return "no reason given"
}

// report lists the tests that did not run anywhere and returns their number.
func (s *summary) report() int {
	var lines []string
	for k, why := range s.skipped {
		if !s.passed[k] {
			lines = append(lines, fmt.Sprintf("  %s %s: %s", k.pkg, k.test, why))
		}
	}
	slices.Sort(lines)
	if len(lines) == 0 {
		fmt.Fprintln(s.out, "Every test ran.")
		return 0
	}
	fmt.Fprintf(s.out, "%d tests did not run:\n%s\n", len(lines), strings.Join(lines, "\n"))
	return len(lines)
}
