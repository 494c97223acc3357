package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/load"
)

const (
	overloadName  = "overload"
	overloadAbout = "more load than can be served: goodput against the optimum, and against other systems"
)

// overloadRun is what the flags of `bench overload` say.
type overloadRun struct {
	bench.Overload
	virtual, trail             bool
	args, json, plots, docsDir string
}

// newOverload is the command `bench overload`.
func newOverload(env Env) *cobra.Command {
	r := &overloadRun{Overload: bench.DefaultOverload()}
	c := &cobra.Command{
		Use:   overloadName,
		Short: overloadAbout,
		Long: `Puts systems in front of the same simulated engines, sends each the same requests
at the same instants, at multiples of what the engines could serve at best, and
prints what share of that optimum was served within the objectives: a first token
within 1 s (vip), 5 s (normal), 60 s (batch), and 50 ms per token. The gateway is
told them as admission.classes.{vip,normal,batch}.{ttft,tpot}.

With --virtual the engines' batching model and the gateway's own admission code run
in virtual time, without processes and network: minutes of load take a second.`,
		Example: `  spillway bench overload --virtual --load 0.8,1.2,2,5,10
  spillway bench overload --virtual --load 2 --systems all
  spillway bench overload --virtual --scenario E6 --seeds 10
  spillway bench overload --virtual --engine-args "--max-seqs 48" --trace arena-27clients --load 4`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return r.run(c, env) },
	}
	f := c.Flags()
	f.Float64SliceVar(&r.Loads, "load", r.Loads, "offered load, as multiples of the capacity")
	f.StringSliceVar(&r.Systems, "systems", r.Systems, "systems to compare, or all: "+strings.Join(bench.OverloadSystems(), ", "))
	f.StringVar(&r.Limiter, "limiter", r.Limiter, "how spillway finds an engine's limit: learned, static, gradient, gradient2 or aimd")
	f.IntVar(&r.Engines, "engines", r.Engines, "number of engines")
	f.DurationVar(&r.Duration, "duration", r.Duration, "length of the load, warm-up included")
	f.DurationVar(&r.Warmup, "warmup", 0, "part of it that is not judged; 0 is 60s, or 20s in runs of less than two minutes")
	f.StringVar(&r.Trace, "trace", r.Trace, "trace to replay: a name in the folder SPILLWAY_DATA, a file, or "+bench.ExcerptTrace)
	f.StringVar(&r.args, "engine-args", "", "flags of 'spillway engine' that shape its batching")
	f.IntVar(&r.Retries, "retries", r.Retries, "how often a client tries again, as the SDKs do")
	f.IntVar(&r.Seeds, "seeds", r.Seeds, "runs of each system at each load")
	f.Uint64Var(&r.Seed, "seed", r.Seed, "the first run's seed")
	f.StringVar(&r.Scenario, "scenario", "", "a scenario of 'spillway bench list' instead of the comparison, or "+bench.AllScenarios)
	f.BoolVar(&r.virtual, "virtual", false, "in virtual time")
	f.BoolVar(&r.trail, "trail", false, "print limits and queues every 5 s of virtual time to stderr")
	f.StringVar(&r.json, "json", "", "write the report and the verdicts to this file")
	f.StringVar(&r.plots, "plot", "", "write the comparison's plots into this folder")
	f.StringVar(&r.docsDir, "docs", "", "write tables and plots into the page overload.md of this folder")
	return c
}

// run plays what is asked for and writes it where it is asked for.
func (r *overloadRun) run(c *cobra.Command, env Env) error {
	r.Out, r.Err, r.Args = env.Stdout, env.Stderr, strings.Fields(r.args)
	if slices.Equal(r.Systems, []string{"all"}) {
		r.Systems = bench.OverloadSystems()
	}
	if r.trail {
		r.Trail = env.Stderr
	}
	if err := r.Validate(); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	part, play := bench.DocsComparison, r.Virtual
	switch {
	case !r.virtual:
		var err error
		if r.Binary, err = bench.Binary(); err != nil {
			return err
		}
		if f := terminal(env.Stderr); f != nil {
			r.Show = load.NewProgress(f)
		}
		part, play = bench.DocsReal, r.Live
	case r.Scenario != "":
		part = bench.DocsScenarios
	}
	result, err := play(c.Context())
	if err != nil {
		return err
	}
	if r.plots != "" {
		if err := result.WritePlots(r.plots); err != nil {
			return err
		}
	}
	if r.docsDir != "" {
		if err := result.WriteDocs(r.docsDir, part); err != nil {
			return err
		}
	}
	// A scenario's table has a column for each of its runs: no terminal is that wide.
	return writeResult(env, result, r.json, r.Scenario == "")
}

// listOverload tells of the command and its scenarios.
func listOverload(env Env) error {
	fmt.Fprintf(env.Stdout, "%-8s  %s\n", overloadName, overloadAbout)
	for _, s := range bench.OverloadScenarios() {
		if _, err := fmt.Fprintf(env.Stdout, "%-8s  %s (overload --virtual --scenario %s)\n", s.Name, s.About, s.Name); err != nil {
			return err
		}
	}
	return nil
}
