package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/load"
)

// newDemo is the command `demo`.
func newDemo(env Env) *cobra.Command {
	d := bench.Demo{Out: env.Stdout, Err: env.Stderr}
	var jsonFile string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show what the gateway does when a model server dies",
		Long: `Starts four simulated model servers in two regions, replays a recorded trace
(azure-2023-conv, CC BY 4.0, Microsoft Azure) first straight at them with blind
round robin, then through Spillway, kills one server in the middle of each run,
restores it, and prints both results side by side. It takes about 90 seconds, with
--fast about 30.`,
		Example: `  spillway demo --fast
  spillway demo --trace azure-2023-conv.csv.gz --json demo.json`,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if d.Binary, err = bench.Binary(); err != nil {
				return err
			}
			if f := terminal(env.Stderr); f != nil {
				d.Show = load.NewProgress(f)
			}
			report, err := d.Run(c.Context())
			if report == nil {
				return err
			}
			fmt.Fprintln(env.Stdout)
			return errors.Join(writeReport(env, report, jsonFile), err)
		},
	}
	f := c.Flags()
	f.BoolVar(&d.Fast, "fast", false, "about 30 seconds")
	f.StringVar(&d.Trace, "trace", "", "the whole azure-2023-conv trace instead of the excerpt in the binary")
	f.Uint64Var(&d.Seed, "seed", 1, "fixes everything that is drawn")
	f.StringVar(&jsonFile, "json", "", "write the report to this file")
	return c
}
