package archtest_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/cli"
)

// commandLine finds the commands in the help of the root.
var commandLine = regexp.MustCompile(`(?m)^  ([a-z-]+) +\S`)

// help runs a command with --help.
func help(t *testing.T, args ...string) string {
	t.Helper()
	var out, problems strings.Builder
	code := cli.Main(t.Context(), cli.Env{Args: append(slices.Clone(args), "--help"), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &problems})
	if code != 0 || problems.Len() > 0 {
		t.Fatalf("spillway %v --help: exit status %d: %s", args, code, &problems)
	}
	return out.String()
}

// cliPage makes the page of the command line.
func cliPage(t *testing.T) string {
	t.Helper()
	t.Setenv("SPILLWAY_API_KEY", "") // a default of a flag
	var b strings.Builder
	b.WriteString("# Command line\n\nThe exit status is 0 on success, 1 when the result is bad (an invalid configuration, a missed goal), 2 when a command was called wrongly.\n")
	describeCommand(t, &b, nil)
	return b.String()
}

// describeCommand writes the help of a command and of those below it.
func describeCommand(t *testing.T, b *strings.Builder, path []string) {
	t.Helper()
	text := help(t, path...)
	if len(path) > 0 {
		fmt.Fprintf(b, "\n## `spillway %s`\n", strings.Join(path, " "))
	}
	fmt.Fprintf(b, "\n```text\n%s```\n", text)
	_, commands, _ := strings.Cut(text, "Available Commands:\n")
	commands, _, _ = strings.Cut(commands, "\n\n")
	for _, m := range commandLine.FindAllStringSubmatch(commands, -1) {
		if m[1] != "help" && (len(path) == 0 || path[0] != "completion") { // whose shells say the same
			describeCommand(t, b, append(slices.Clone(path), m[1]))
		}
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	text := cliPage(t)
	for _, want := range []string{"serve", "check", "explain", "engine", "load", "demo", "version"} {
		if !strings.Contains(text, "## `spillway "+want+"`") {
			t.Errorf("no command %s in %s", want, text)
		}
	}
}
