package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/load"
)

// newBench is the command `bench`, with one subcommand for each scenario.
func newBench(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Put the gateway through faults and masses of work, and judge it",
		Long: `Starts simulated model servers and a gateway as processes of their own, puts them
through a scenario, and prints one line for each requirement: the value, its limit,
ok or MISSED. The exit status is 1 when a requirement was missed.`,
		Example: `  spillway bench list
  spillway bench kill
  spillway bench streams --count 200 --duration 5s --json streams.json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown scenario %q; see 'spillway bench list'", errUsage, args[0])
			}
			return c.Help()
		},
	}
	for _, s := range bench.Scenarios() {
		c.AddCommand(newScenario(env, s))
	}
	c.AddCommand(newOverload(env), newHeadline(env), newBenchCache(env))
	c.AddCommand(&cobra.Command{
		Use:     "list",
		Short:   "List the scenarios",
		Example: "  spillway bench list",
		RunE: func(*cobra.Command, []string) error {
			for _, s := range bench.Scenarios() {
				if _, err := fmt.Fprintf(env.Stdout, "%-8s  %s\n", s.Name, s.About); err != nil {
					return err
				}
			}
			if _, err := fmt.Fprintf(env.Stdout, "%-8s  %s\n%-8s  %s\n", headlineName, headlineAbout, cacheName, cacheAbout); err != nil {
				return err
			}
			return listOverload(env)
		},
	})
	return c
}

// newScenario is the command of one scenario.
func newScenario(env Env, s bench.Scenario) *cobra.Command {
	opts := bench.Options{Out: env.Stdout, Err: env.Stderr}
	var jsonFile string
	c := &cobra.Command{
		Use:     s.Name,
		Short:   s.About,
		Example: "  spillway bench " + s.Name + " --json " + s.Name + ".json",
		RunE: func(c *cobra.Command, _ []string) error {
			return runScenario(c.Context(), env, s, opts, jsonFile)
		},
	}
	f := c.Flags()
	if s.Duration > 0 {
		f.DurationVar(&opts.Duration, "duration", s.Duration, "length of each load")
	}
	if s.Counted != "" || s.Count > 0 {
		f.IntVar(&opts.Count, "count", s.Count, "number of "+s.Counted)
	}
	if len(s.Sources) > 0 {
		f.StringVar(&opts.Source, "source", s.Sources[0], "where instances are found: "+strings.Join(s.Sources, " or "))
	}
	f.Uint64Var(&opts.Seed, "seed", 1, "fixes everything that is drawn")
	f.StringVar(&jsonFile, "json", "", "write the report and the verdicts to this file")
	return c
}

// runScenario plays a scenario and prints what came of it.
func runScenario(ctx context.Context, env Env, s bench.Scenario, opts bench.Options, jsonFile string) error {
	if opts.Duration < 0 || opts.Count < 0 {
		return fmt.Errorf("%w: --duration and --count must be positive", errUsage)
	}
	if len(s.Sources) > 0 && !slices.Contains(s.Sources, opts.Source) {
		return fmt.Errorf("%w: --source must be %s", errUsage, strings.Join(s.Sources, " or "))
	}
	if slices.Contains(s.Apart, opts.Source) && !bench.IsApart() {
		err := bench.RunApart(ctx, env.Args, env.Stdout, env.Stderr)
		if _, ok := errors.AsType[*exec.ExitError](err); ok {
			return errSaid
		}
		return err
	}
	var err error
	if opts.Binary, err = bench.Binary(); err != nil {
		return err
	}
	if f := terminal(env.Stderr); f != nil {
		opts.Show = load.NewProgress(f)
	}
	result, err := s.Run(ctx, opts)
	if err != nil {
		return err
	}
	return writeResult(env, result, jsonFile, true)
}

// writeResult prints a result, with its table or without, writes it to a file when one is named, and is an
// error when a requirement was missed.
func writeResult(env Env, result *bench.Result, file string, table bool) error {
	fmt.Fprintln(env.Stdout)
	shown := *result
	if !table {
		report := *result.Report
		report.Systems = nil
		shown.Report = &report
	}
	if err := shown.Write(env.Stdout); err != nil {
		return err
	}
	if file != "" {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		if err := errors.Join(result.WriteJSON(f), f.Close()); err != nil {
			return err
		}
	}
	if n := result.Missed(); n > 0 {
		return fmt.Errorf("%d of %d requirements missed", n, len(result.Verdicts))
	}
	return nil
}
