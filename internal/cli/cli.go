// Package cli is the command line: one file for each subcommand.
//
// Main is a function of its arguments, environment and streams, so that the
// commands are tested in-process. A command returns an error; Main prints it
// once and turns it into the exit status: 0 success, 1 the command did what it
// should and the result is bad (an invalid configuration, a missed goal), 2 the
// command could not be run as it was called.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Env is what a command sees of the world.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// errUsage marks errors in how a command was called.
var errUsage = errors.New("usage")

// errSaid is returned when everything was said already.
var errSaid = errors.New("said already")

// Main runs one command and returns the exit status. ctx ends with the first
// interrupt.
func Main(ctx context.Context, env Env) int {
	root := newRoot(env)
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errSaid):
		return 1
	}
	fmt.Fprintln(env.Stderr, "spillway:", strings.TrimPrefix(err.Error(), errUsage.Error()+": "))
	if errors.Is(err, errUsage) {
		fmt.Fprintln(env.Stderr, "Run 'spillway --help' for usage.")
		return 2
	}
	return 1
}

// newRoot is the tree of commands.
func newRoot(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "spillway",
		Short: "Keeps an LLM service answering when demand exceeds capacity",
		Long: `Spillway stands in front of model servers (vLLM, SGLang, llama.cpp, Ollama, any
OpenAI-compatible API) and decides for every request whether, when and where it
runs.`,
		Example: `  spillway demo --fast
  spillway serve --upstream http://127.0.0.1:8000 --listen :8080
  spillway check -c spillway.yaml`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(
		newServe(env), newCheck(env), newExplain(env), newEngine(env), newLoad(env), newDemo(env), newBench(env), newEmergency(env), newCache(env), newRoute(env), newUsage(env), newExperiment(env), newKey(env), newVersion(env),
	)
	for _, c := range root.Commands() {
		usageErrors(c)
	}
	root.SuggestionsMinimumDistance = 2
	root.Args = cobra.ArbitraryArgs // what is left is an unknown command; cobra's own error would not be one of usage
	root.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		hint := ""
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return fmt.Errorf("%w: unknown command %q%s", errUsage, args[0], hint)
	}
	return root
}

// usageErrors makes wrong arguments usage errors.
func usageErrors(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		return nil
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
}

// terminal returns the file behind a stream, or os.Stderr's equivalent that is
// no terminal, for progress.
func terminal(w io.Writer) *os.File {
	f, _ := w.(*os.File)
	return f
}
