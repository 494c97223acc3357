package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/bench"
)

const (
	overloadName  = "overload"
	overloadAbout = "more load than can be served: goodput against the optimum, and against other systems"
)

// newOverload is the command `bench overload`.
func newOverload(env Env) *cobra.Command {
	o := bench.DefaultOverload()
	o.Out, o.Err = env.Stdout, env.Stderr
	var virtual, trail bool
	var args, jsonFile string
	c := &cobra.Command{
		Use:   overloadName,
		Short: overloadAbout,
		Long: `Puts systems in front of the same simulated engines, sends each the same requests
at the same instants, at multiples of what the engines could serve at best, and
prints what share of that optimum was served within the objectives: a first token
within 1 s (vip), 5 s (normal), 60 s (batch), and 50 ms per token. The gateway is
told them as admission.classes.{vip,normal,batch}.{ttft,tpot}.

With --virtual the engines' batching model and the gateway's own admission code run
in virtual time, without processes and network: minutes of load take a second, and
the same seed gives the same run.`,
		Example: `  spillway bench overload --virtual --load 0.8,1.2,2,5,10
  spillway bench overload --virtual --load 2 --systems all
  spillway bench overload --virtual --engine-args "--max-seqs 48" --trace arena-27clients --load 4`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Args = strings.Fields(args)
			if slices.Equal(o.Systems, []string{"all"}) {
				o.Systems = bench.OverloadSystems()
			}
			if trail {
				o.Trail = env.Stderr
			}
			if err := o.Validate(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if !virtual {
				return errors.New("overload: only --virtual can be played")
			}
			result, err := o.Virtual(c.Context())
			if err != nil {
				return err
			}
			return writeResult(env, result, jsonFile)
		},
	}
	f := c.Flags()
	f.Float64SliceVar(&o.Loads, "load", o.Loads, "offered load, as multiples of the capacity")
	f.StringSliceVar(&o.Systems, "systems", o.Systems, "systems to compare, or all: "+strings.Join(bench.OverloadSystems(), ", "))
	f.StringVar(&o.Limiter, "limiter", o.Limiter, "how spillway finds an engine's limit: learned, static, gradient, gradient2 or aimd")
	f.IntVar(&o.Engines, "engines", o.Engines, "number of engines")
	f.DurationVar(&o.Duration, "duration", o.Duration, "length of the load, warm-up included")
	f.DurationVar(&o.Warmup, "warmup", 0, "part of it that is not judged; 60s, or 20s in runs of less than two minutes")
	f.StringVar(&o.Trace, "trace", o.Trace, "trace to replay: a name in the folder SPILLWAY_DATA, a file, or "+bench.ExcerptTrace)
	f.StringVar(&args, "engine-args", "", "flags of 'spillway engine' that shape its batching")
	f.IntVar(&o.Retries, "retries", o.Retries, "how often a client tries again, as the SDKs do")
	f.IntVar(&o.Seeds, "seeds", o.Seeds, "runs of each system at each load")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "the first run's seed")
	f.BoolVar(&virtual, "virtual", false, "in virtual time")
	f.BoolVar(&trail, "trail", false, "print limits and queues every 5 s of virtual time to stderr")
	f.StringVar(&jsonFile, "json", "", "write the report and the verdicts to this file")
	return c
}

// listOverload tells of the command and its scenarios.
func listOverload(env Env) error {
	_, err := fmt.Fprintf(env.Stdout, "%-8s  %s\n", overloadName, overloadAbout)
	return err
}
