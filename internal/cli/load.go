package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/load"
)

// newLoad is the command `load`.
func newLoad(env Env) *cobra.Command {
	cfg := load.Default()
	var jsonFile string
	var classes []string
	c := &cobra.Command{
		Use:   "load URL [URL...]",
		Short: "Send an open-loop load to an OpenAI-compatible server and report",
		Long: `Sends requests at instants that are fixed in advance, from a trace, a rate or a
profile, and reports what came of them. Latency counts from the scheduled instant,
so a slow server cannot hide its own delay. Several URLs are used blindly in turn.`,
		Example: `  spillway load http://127.0.0.1:8080 --model sim --rate 20 --duration 30s
  spillway load http://127.0.0.1:8080 --model sim --trace azure-2023-conv.csv.gz --speed 4 --duration 1m
  spillway load http://127.0.0.1:8080 --model sim --profile '10/s:30s,ramp 10-50/s:60s,burst 200/s:5s' --json out.json`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Target.BaseURLs = args
			if err := parseClasses(&cfg, classes); err != nil {
				return err
			}
			if err := cfg.Validate(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			opts := load.Options{}
			if f := terminal(env.Stderr); f != nil {
				opts.Progress = load.NewProgress(f)
			}
			report, err := load.Run(c.Context(), cfg, opts)
			if report == nil {
				return err
			}
			return errors.Join(writeReport(env, report, jsonFile), err)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Scenario, "scenario", cfg.Scenario, "name of the run in its report")
	f.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "fixes everything that is drawn")
	f.StringVar(&cfg.Target.Model, "model", cfg.Target.Model, "model to ask for")
	f.StringVar(&cfg.Target.Surface, "surface", cfg.Target.Surface, "chat, completions, embeddings, messages or responses")
	f.StringVar(&cfg.Target.APIKey, "api-key", os.Getenv("SPILLWAY_API_KEY"), "API key; default from SPILLWAY_API_KEY")
	f.Lookup("api-key").DefValue = ""
	f.StringVar(&cfg.Schedule.Trace.Path, "trace", "", "trace file to replay; its format is detected")
	f.StringVar(&cfg.Schedule.Trace.Format, "format", cfg.Schedule.Trace.Format, "format of the trace where its name does not tell")
	f.Float64Var(&cfg.Schedule.Trace.Speed, "speed", cfg.Schedule.Trace.Speed, "speed-up of the trace")
	f.DurationVar(&cfg.Schedule.Trace.Start, "start", 0, "skip this much of the trace's time")
	f.DurationVar(&cfg.Schedule.Trace.Window, "window", 0, "replay at most this much of the trace's time; 0 is all")
	f.IntVar(&cfg.Schedule.Trace.MaxRows, "max-rows", 0, "end a pass of the trace after this many rows; 0 is all")
	f.BoolVar(&cfg.Schedule.Trace.Spread, "spread", false, "distribute rows that share a time stamp")
	f.IntVar(&cfg.Schedule.Trace.Sessions, "sessions", cfg.Schedule.Trace.Sessions, "concurrent sessions of a session trace")
	f.Float64Var(&cfg.Schedule.Rate, "rate", 0, "requests a second")
	f.StringVar(&cfg.Schedule.Profile, "profile", "", "segments such as 10/s:30s,ramp 10-50/s:60s,burst 200/s:5s")
	f.StringVar(&cfg.Schedule.Arrivals, "arrivals", cfg.Schedule.Arrivals, "poisson or uniform, for rate and profile")
	f.DurationVar(&cfg.Schedule.Duration, "duration", 0, "length of the run; a shorter trace repeats; 0 is one pass")
	f.IntVar(&cfg.Request.PromptTokens, "prompt-tokens", cfg.Request.PromptTokens, "prompt length without a trace")
	f.IntVar(&cfg.Request.OutputTokens, "output-tokens", cfg.Request.OutputTokens, "answer length without a trace (simulated engines only)")
	f.Float64Var(&cfg.Request.Streamed, "streamed", cfg.Request.Streamed, "share of requests that ask for a stream, 0 to 1")
	f.Float64Var(&cfg.Request.Repeat, "repeat", cfg.Request.Repeat, "share of requests that repeat a recent prompt, 0 to 1")
	f.IntVar(&cfg.Request.MaxTokens, "max-tokens", cfg.Request.MaxTokens, "max_tokens of every request")
	f.StringSliceVar(&classes, "class", nil, "class=share, such as vip=0.2; repeatable")
	f.DurationVar(&cfg.Client.Timeout, "timeout", cfg.Client.Timeout, "how long a client waits for its complete answer")
	f.IntVar(&cfg.Client.Retries, "retries", cfg.Client.Retries, "how often a client tries again, as the SDKs do")
	f.IntVar(&cfg.Client.MaxInFlight, "max-in-flight", cfg.Client.MaxInFlight, "bound of requests in flight; reaching it makes the report invalid")
	f.DurationVar(&cfg.SLO.TTFT, "ttft-slo", cfg.SLO.TTFT, "longest good time to first token")
	f.DurationVar(&cfg.SLO.TPOT, "tpot-slo", cfg.SLO.TPOT, "longest good mean time per token")
	f.StringSliceVar(&cfg.EngineMetrics, "engine-metrics", nil, "metrics URLs of simulated engines, to check their lateness")
	f.StringVar(&jsonFile, "json", "", "write the report to this file")
	return c
}

// parseClasses reads the class mix.
func parseClasses(cfg *load.Config, classes []string) error {
	for _, s := range classes {
		name, share, ok := strings.Cut(s, "=")
		v, err := strconv.ParseFloat(share, 64)
		if !ok || err != nil {
			return fmt.Errorf("%w: --class: want class=share, got %q", errUsage, s)
		}
		cfg.Classes = append(cfg.Classes, load.Class{Name: name, Share: v})
	}
	return nil
}

// writeReport prints a report and writes it to a file when one is named.
func writeReport(env Env, report *load.Report, file string) error {
	if err := report.WriteTable(env.Stdout); err != nil {
		return err
	}
	if file == "" {
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(report.WriteJSON(f), f.Close())
}
