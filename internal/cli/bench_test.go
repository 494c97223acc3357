package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/cli"
)

// TestBenchOverload plays a short comparison and writes all that can be written.
func TestBenchOverload(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "overload.md")
	if err := os.WriteFile(page, []byte("<!-- begin comparison -->\n<!-- end comparison -->\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(dir, "report.json")
	code, out, stderr := runBench(t, "bench", "overload", "--virtual", "--load", "0.8,3", "--engines", "1", "--seeds", "1", "--duration", "60s",
		"--trace", bench.ExcerptTrace, "--json", report, "--plot", filepath.Join(dir, "plots"), "--docs", dir, "--trail")
	if code == 2 || !strings.Contains(out, "spillway 3x: goodput / optimum") || !strings.Contains(stderr, "in flight") {
		t.Fatalf("exit status %d\n%s%s", code, out, stderr)
	}
	for _, name := range []string{report, filepath.Join(dir, "plots", "goodput.svg"), filepath.Join(dir, "overload", "vip-ttft.svg")} {
		if data, err := os.ReadFile(name); err != nil || len(data) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text, err := os.ReadFile(page); err != nil || !strings.Contains(string(text), "| spillway |") {
		t.Errorf("the page: %v\n%s", err, text)
	}
}

// runBench runs one command in-process.
func runBench(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err strings.Builder
	code = cli.Main(t.Context(), cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &err})
	return code, out.String(), err.String()
}

func TestBenchCommand(t *testing.T) {
	code, out, _ := runBench(t, "bench", "list")
	if code != 0 {
		t.Fatalf("bench list: exit status %d", code)
	}
	for _, s := range bench.Scenarios() {
		if !strings.Contains(out, s.Name+" ") || !strings.Contains(out, s.About) {
			t.Errorf("bench list does not tell of %s:\n%s", s.Name, out)
		}
	}
	for _, s := range bench.OverloadScenarios() {
		if !strings.Contains(out, s.Name+" ") || !strings.Contains(out, s.About) {
			t.Errorf("bench list does not tell of %s:\n%s", s.Name, out)
		}
	}
	cases := map[string]struct {
		args []string
		code int
		want string // in stdout and stderr together
	}{
		"help":              {[]string{"bench"}, 0, "Available Commands"},
		"unknown":           {[]string{"bench", "nothing"}, 2, `unknown scenario "nothing"`},
		"negative":          {[]string{"bench", "kill", "--duration", "-1s"}, 2, "must be positive"},
		"overload scenario": {[]string{"bench", "overload", "--virtual", "--scenario", "E99"}, 2, `unknown "E99"`},
		"overload engine":   {[]string{"bench", "overload", "--virtual", "--engine-args", "--colour red"}, 2, "engine-args"},
		"overload trace":    {[]string{"bench", "overload", "--virtual", "--trace", "nothing"}, 1, "no trace nothing"},
		"no such flag":      {[]string{"bench", "kill", "--count", "3"}, 2, "unknown flag"},
		"too many":          {[]string{"bench", "kill", "now"}, 2, "now"},
		"faults with keys":  {[]string{"engine", "--listen", "256.0.0.1:0", "--faults", `{"stall":{"probability":1,"after_events":3,"duration":"2s"}}`}, 1, "256.0.0.1"},
		"unknown fault":     {[]string{"engine", "--listen", "256.0.0.1:0", "--faults", `{"stal":{}}`}, 2, "stal"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			code, out, err := runBench(t, c.args...)
			if code != c.code || !strings.Contains(out+err, c.want) {
				t.Errorf("exit status %d, want %d with %q in\n%s%s", code, c.code, c.want, out, err)
			}
		})
	}
}
