package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/bench"
)

const (
	cacheName  = "cache"
	cacheAbout = "what a hit costs at the client, on each level; with --trace, what share of the possible hits a tenth of the entries reaches"
)

// newBenchCache is the command `bench cache`.
func newBenchCache(env Env) *cobra.Command {
	trace := bench.DefaultCacheTrace()
	trace.Out = env.Stdout
	var jsonFile string
	opts := bench.Options{Out: env.Stdout, Err: env.Stderr}
	s := bench.CacheScenario()
	c := &cobra.Command{
		Use:   cacheName,
		Short: cacheAbout,
		Long: `Measures what a hit costs at the client over loopback HTTP: in memory, in Redis where
redis-server is installed, in SQLite; beside the engine that generates the answers and
a bare GET of Redis. Streams of all levels must be the same bytes.

With --trace it replays four days of a question service in virtual time through the level in
memory and the preloader, and counts hits: without bounds (the ceiling), with a
share of the entries, and with preloading as well, for answers that live an hour,
a day, and without end. The same follows for synthetic questions, of which nothing
is asked. The exit status is 1 when less than 0.8 of the ceiling is reached.`,
		Example: `  spillway bench cache
  spillway bench cache --trace
  spillway bench cache --trace=ragpulse.jsonl.gz --share 0.05 --json cache.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if trace.Share <= 0 || trace.Share > 1 || trace.Drawn < 0 {
				return fmt.Errorf("%w: --share must be above 0 and at most 1, and --drawn not negative", errUsage)
			}
			if c.Flags().Changed("trace") {
				return runCacheTrace(c.Context(), env, trace, jsonFile)
			}
			return runScenario(c.Context(), env, s, opts, jsonFile)
		},
	}
	f := c.Flags()
	f.DurationVar(&opts.Duration, "duration", s.Duration, "length of the load at full speed")
	f.StringVar(&trace.Trace, "trace", trace.Trace, "replay a trace instead: a name in the folder SPILLWAY_DATA, or a file")
	f.Lookup("trace").NoOptDefVal = trace.Trace
	f.Float64Var(&trace.Share, "share", trace.Share, "entries that there is room for, by the number of distinct questions")
	f.IntVar(&trace.Drawn, "drawn", trace.Drawn, "synthetic questions to replay as well; 0 is none")
	f.Uint64Var(&trace.Seed, "seed", trace.Seed, "fixes the synthetic questions")
	f.StringVar(&jsonFile, "json", "", "write the numbers and the verdicts to this file")
	return c
}

// runCacheTrace replays a trace, prints what came of it, writes it to a file when one
// is named, and is an error when a requirement was missed.
func runCacheTrace(ctx context.Context, env Env, trace bench.CacheTrace, file string) error {
	result, err := trace.Run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(env.Stdout)
	if err := result.Write(env.Stdout); err != nil {
		return err
	}
	if file != "" {
		if err := writeFile(file, result.WriteJSON); err != nil {
			return err
		}
	}
	if n := result.Missed(); n > 0 {
		return fmt.Errorf("%d of %d requirements missed", n, len(result.Verdicts))
	}
	return nil
}

// writeFile makes a file of what write writes.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
