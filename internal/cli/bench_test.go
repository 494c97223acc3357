package cli_test

import (
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/cli"
)

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
	cases := map[string]struct {
		args []string
		code int
		want string // in stdout and stderr together
	}{
		"help":             {[]string{"bench"}, 0, "Available Commands"},
		"unknown":          {[]string{"bench", "nothing"}, 2, `unknown scenario "nothing"`},
		"negative":         {[]string{"bench", "kill", "--duration", "-1s"}, 2, "must be positive"},
		"no such flag":     {[]string{"bench", "kill", "--count", "3"}, 2, "unknown flag"},
		"too many":         {[]string{"bench", "kill", "now"}, 2, "now"},
		"faults with keys": {[]string{"engine", "--listen", "256.0.0.1:0", "--faults", `{"stall":{"probability":1,"after_events":3,"duration":"2s"}}`}, 1, "256.0.0.1"},
		"unknown fault":    {[]string{"engine", "--listen", "256.0.0.1:0", "--faults", `{"stal":{}}`}, 2, "stal"},
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
