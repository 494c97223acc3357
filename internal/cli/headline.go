package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/load"
)

const (
	headlineName  = "headline"
	headlineAbout = "popular and rare questions, a burst, a killed server: straight at four servers, and through the gateway"
)

// newHeadline is the command `bench headline`.
func newHeadline(env Env) *cobra.Command {
	h := bench.Headline{Options: bench.Options{Out: env.Stdout, Err: env.Stderr}}
	var jsonFile string
	c := &cobra.Command{
		Use:   headlineName,
		Short: headlineAbout,
		Long: `Four simulated servers with a queue bound of 64 get about what they can serve
(280 requests/s, answers of 40 tokens in one piece, temperature 0), 1.6 times that for
a while, and lose one server (SIGKILL) for a fifth of the time. 60% of the requests
ask one of 2,000 popular questions (Zipf, s = 1), the rest are asked once. Clients
wait 10 s and do not try again. An answer counts when it is whole, right and in time.

The same load goes straight at the servers with blind round robin, through Spillway
with its defaults, and through Spillway with one part switched off. It takes 5 minutes
a system, with --fast one minute.`,
		Example: `  spillway bench headline --fast
  spillway bench headline --systems direct,spillway --json headline.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := h.Validate(); err != nil {
				return fmt.Errorf("%w: --systems: %w", errUsage, err)
			}
			var err error
			if h.Binary, err = bench.Binary(); err != nil {
				return err
			}
			if f := terminal(env.Stderr); f != nil {
				h.Show = load.NewProgress(f)
			}
			result, err := h.Run(c.Context())
			if err != nil {
				return err
			}
			return writeResult(env, result, jsonFile, true)
		},
	}
	f := c.Flags()
	f.BoolVar(&h.Fast, "fast", false, "one minute a system instead of five")
	f.StringSliceVar(&h.Systems, "systems", bench.HeadlineSystems(), "systems to play: "+strings.Join(bench.HeadlineSystems(), ", "))
	f.Uint64Var(&h.Seed, "seed", 1, "fixes everything that is drawn")
	f.StringVar(&jsonFile, "json", "", "write the report and the verdicts to this file")
	return c
}
