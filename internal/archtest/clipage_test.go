package archtest_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/cli"
)

// commandLine finds the commands in the help of the root.
var commandLine = regexp.MustCompile(`(?m)^  ([a-z]+) +\S`)

// help runs a command with --help.
func help(t *testing.T, args ...string) string {
	t.Helper()
	var out, problems strings.Builder
	code := cli.Main(t.Context(), cli.Env{Args: append(args, "--help"), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &problems})
	if code != 0 || problems.Len() > 0 {
		t.Fatalf("spillway %v --help: exit status %d: %s", args, code, &problems)
	}
	return out.String()
}

// cliPage makes the page of the command line.
func cliPage(t *testing.T) string {
	t.Helper()
	t.Setenv("SPILLWAY_API_KEY", "") // a default of a flag
	top := help(t)
	_, commands, ok := strings.Cut(top, "Available Commands:\n")
	if !ok {
		t.Fatalf("no commands in %s", top)
	}
	commands, _, _ = strings.Cut(commands, "\n\n")
	var b strings.Builder
	fmt.Fprintf(&b, "# Command line\n\nThe exit status is 0 on success, 1 when the result is bad (an invalid configuration, a missed goal), 2 when a command was called wrongly.\n\n```text\n%s```\n", top)
	for _, m := range commandLine.FindAllStringSubmatch(commands, -1) {
		if m[1] == "help" {
			continue
		}
		fmt.Fprintf(&b, "\n## `spillway %s`\n\n```text\n%s```\n", m[1], help(t, m[1]))
	}
	return b.String()
}

func TestEveryCommandHasHelp(t *testing.T) {
	text := cliPage(t)
	for _, want := range []string{"serve", "check", "explain", "engine", "load", "demo", "version"} {
		if !strings.Contains(text, "## `spillway "+want+"`") {
			t.Errorf("no command %s in %s", want, text)
		}
	}
}
