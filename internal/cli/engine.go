package cli

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/engine"
)

// newEngine is the command `engine`.
func newEngine(env Env) *cobra.Command {
	cfg := engine.Default()
	var listen, faults string
	c := &cobra.Command{
		Use:   "engine",
		Short: "Run a simulated model server",
		Long: `Runs an OpenAI-compatible model server that needs no GPU: continuous batching with
chunked prefill, a KV-token budget and a prefix cache, and the overload styles of
the known engines. Answers are a function of the prompt. The header
X-Engine-Output-Tokens sets an answer's length. POST /faults makes it fail.`,
		Example: `  spillway engine --listen 127.0.0.1:8000
  spillway engine --listen :8001 --max-seqs 32 --overload ollama --queue 64
  spillway engine --listen :8002 --faults '{"cut":{"probability":0.1,"after_events":20}}'
  curl -d '{"error":{"probability":1,"status":503,"count":10}}' http://127.0.0.1:8000/faults`,
		RunE: func(c *cobra.Command, _ []string) error {
			if faults != "" {
				var err error
				if cfg.Faults, err = engine.ParseFaults([]byte(faults)); err != nil {
					return fmt.Errorf("%w: --faults: %w", errUsage, err)
				}
			}
			if err := cfg.Validate(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			log := slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			e, err := engine.New(cfg, log)
			if err != nil {
				return err
			}
			var lc net.ListenConfig
			ln, err := lc.Listen(c.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "engine listening on %s\n", ln.Addr())
			return e.Serve(c.Context(), ln)
		},
	}
	f := c.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:8000", "address to listen on")
	f.StringSliceVar(&cfg.Models, "model", cfg.Models, "model to serve; repeatable")
	f.StringSliceVar(&cfg.Surfaces, "surfaces", cfg.Surfaces, "APIs to serve")
	f.DurationVar(&cfg.Batching.StepBase, "step-base", cfg.Batching.StepBase, "duration of a step before its work")
	f.DurationVar(&cfg.Batching.StepPerSeq, "step-per-seq", cfg.Batching.StepPerSeq, "added for each sequence in the step")
	f.DurationVar(&cfg.Batching.StepPerPromptToken, "step-per-prompt-token", cfg.Batching.StepPerPromptToken, "added for each prompt token prefilled in the step")
	f.IntVar(&cfg.Batching.Chunk, "chunk", cfg.Batching.Chunk, "most prompt tokens prefilled in one step")
	f.IntVar(&cfg.Batching.MaxSeqs, "max-seqs", cfg.Batching.MaxSeqs, "most sequences in the batch")
	f.IntVar(&cfg.Batching.KVTokens, "kv-tokens", cfg.Batching.KVTokens, "KV memory in tokens")
	f.BoolVar(&cfg.Batching.PrefixCache, "prefix-cache", cfg.Batching.PrefixCache, "keep the KV of prompts for later requests")
	f.IntVar(&cfg.Batching.Queue, "queue", cfg.Batching.Queue, "most requests waiting beyond the batch; -1 is unbounded")
	f.StringVar(&cfg.Overload, "overload", cfg.Overload, "how a full queue is reported: vllm-unbounded, vllm, sglang, tgi, ollama")
	f.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "seed of the faults' random numbers")
	f.StringVar(&faults, "faults", "", "faults from the start on, as JSON; POST /faults replaces them")
	return c
}
