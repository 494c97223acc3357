package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Batching is the law of a [Batch]. The defaults describe a mid-size model on one accelerator.
type Batching struct {
	// StepBase is the duration of a step before anything is added for its work.
	StepBase time.Duration `yaml:"step_base"`
	// StepPerSeq is added per sequence that takes part in the step.
	StepPerSeq time.Duration `yaml:"step_per_seq"`
	// StepPerPromptToken is added per prompt token prefilled in the step.
	StepPerPromptToken time.Duration `yaml:"step_per_prompt_token"`
	// Chunk is the most prompt tokens prefilled in one step, all sequences together.
	Chunk int `yaml:"chunk"`
	// MaxSeqs is the most sequences in the batch.
	MaxSeqs int `yaml:"max_seqs"`
	// KVTokens is the KV memory in tokens, prefix cache included. Prompt plus output of one request must fit into it.
	KVTokens int `yaml:"kv_tokens"`
	// PrefixCache keeps the KV of prompts for later requests with the same beginning.
	PrefixCache bool `yaml:"prefix_cache"`
	// Queue is the most requests waiting beyond the free places of the batch; -1 is unbounded.
	Queue int `yaml:"queue"`
}

// Validate returns all mistakes joined; each begins with the key.
func (c Batching) Validate() error {
	var errs []error
	atLeast := func(key string, got, low int) {
		if got < low {
			errs = append(errs, fmt.Errorf("%s: must be >= %d, got %d", key, low, got))
		}
	}
	notNegative := func(key string, got time.Duration) {
		if got < 0 {
			errs = append(errs, fmt.Errorf("%s: must be >= 0s, got %v", key, got))
		}
	}
	notNegative("step_base", c.StepBase)
	notNegative("step_per_seq", c.StepPerSeq)
	notNegative("step_per_prompt_token", c.StepPerPromptToken)
	if c.StepBase+c.StepPerSeq <= 0 {
		errs = append(errs, errors.New("step_base: must be > 0s unless step_per_seq is"))
	}
	atLeast("chunk", c.Chunk, 1)
	atLeast("max_seqs", c.MaxSeqs, 1)
	atLeast("kv_tokens", c.KVTokens, BlockTokens)
	atLeast("queue", c.Queue, -1)
	return errors.Join(errs...)
}

// Surfaces that an engine can serve.
const (
	SurfaceChat        = "chat"        // POST /v1/chat/completions (OpenAI)
	SurfaceCompletions = "completions" // POST /v1/completions (OpenAI)
	SurfaceEmbeddings  = "embeddings"  // POST /v1/embeddings (OpenAI)
	SurfaceMessages    = "messages"    // POST /v1/messages (Anthropic)
	SurfaceResponses   = "responses"   // POST /v1/responses (OpenAI)
)

// Ways to say that the queue is full, each as the named server does.
const (
	OverloadVLLMUnbounded = "vllm-unbounded" // never says so: queues without limit, as vLLM does by default
	OverloadVLLM          = "vllm"           // 503
	OverloadSGLang        = "sglang"         // 503, but a 200 with an error event on streams
	OverloadTGI           = "tgi"            // 429 "Model is overloaded"
	OverloadOllama        = "ollama"         // 503 "server busy"
)

// Config describes one engine.
type Config struct {
	// Models are the names the engine answers to. A name that contains "reason" thinks first: half of its answer is
	// reasoning_content.
	Models []string `yaml:"models"`
	// Surfaces are the APIs to serve: chat, completions, embeddings, messages (Anthropic), responses (OpenAI).
	Surfaces []string `yaml:"surfaces"`
	// Batching is the batching model.
	Batching Batching `yaml:"batching"`
	// Overload is the way a full queue is reported: vllm-unbounded (no limit), vllm (503), sglang (200 and an error
	// event on streams), tgi (429), ollama (503).
	Overload string `yaml:"overload"`
	// Seed starts the random numbers that decide which requests a fault hits.
	Seed uint64 `yaml:"seed"`
	// MaxBody is the longest request body in bytes.
	MaxBody int64 `yaml:"max_body"`
	// MaxOutput is the longest answer in tokens that a request may ask for.
	MaxOutput int `yaml:"max_output"`
	// EmbeddingDimensions is the length of an embedding when the request names none.
	EmbeddingDimensions int `yaml:"embedding_dimensions"`
	// BodyTimeout bounds the reading of a request's body.
	BodyTimeout time.Duration `yaml:"body_timeout"`
	// WriteTimeout cuts a client that does not read for that long.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// DrainTimeout is how long Serve lets open answers run on once it is told to stop.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// Faults are the faults from the start on; POST /faults replaces them.
	Faults Faults `yaml:"faults"`
}

// Default is an engine with vLLM's manners: an unbounded queue, every surface, no faults.
func Default() Config {
	return Config{
		Models:   []string{"sim", "sim-reason"},
		Surfaces: []string{SurfaceChat, SurfaceCompletions, SurfaceEmbeddings, SurfaceMessages, SurfaceResponses},
		Batching: Batching{
			StepBase:           8 * time.Millisecond,
			StepPerSeq:         100 * time.Microsecond,
			StepPerPromptToken: 40 * time.Microsecond,
			Chunk:              1024,
			MaxSeqs:            256,
			KVTokens:           400_000,
			PrefixCache:        true,
			Queue:              -1,
		},
		Overload:            OverloadVLLM,
		Seed:                1,
		MaxBody:             16 << 20,
		MaxOutput:           131_072,
		EmbeddingDimensions: 256,
		BodyTimeout:         30 * time.Second,
		WriteTimeout:        30 * time.Second,
		DrainTimeout:        10 * time.Second,
	}
}

// Validate returns all mistakes joined; each begins with the key path relative to the engine's section.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Models) == 0 {
		bad("models: must name at least one model")
	}
	for i, m := range c.Models {
		if m == "" || len(m) > 256 || strings.ContainsFunc(m, func(r rune) bool { return r < ' ' || r == 0xFFFD }) {
			bad("models[%d]: must be 1 to 256 bytes of printable UTF-8, got %q", i, m)
		}
	}
	known := Default().Surfaces
	if len(c.Surfaces) == 0 {
		bad("surfaces: must name at least one of %s", strings.Join(known, ", "))
	}
	for i, s := range c.Surfaces {
		if !slices.Contains(known, s) {
			bad("surfaces[%d]: must be one of %s, got %q", i, strings.Join(known, ", "), s)
		}
	}
	errs = append(errs, under("batching", c.Batching.Validate()))
	styles := []string{OverloadVLLMUnbounded, OverloadVLLM, OverloadSGLang, OverloadTGI, OverloadOllama}
	if !slices.Contains(styles, c.Overload) {
		bad("overload: must be one of %s, got %q", strings.Join(styles, ", "), c.Overload)
	}
	if c.Overload == OverloadVLLMUnbounded && c.Batching.Queue >= 0 {
		bad("overload: %s never refuses, so batching.queue must be -1, got %d", c.Overload, c.Batching.Queue)
	}
	for _, n := range []struct {
		key string
		got int64
	}{
		{"max_body", c.MaxBody}, {"max_output", int64(c.MaxOutput)},
		{"embedding_dimensions", int64(c.EmbeddingDimensions)},
	} {
		if n.got < 1 {
			bad("%s: must be > 0, got %d", n.key, n.got)
		}
	}
	if c.EmbeddingDimensions > maxDimensions {
		bad("embedding_dimensions: must be <= %d, got %d", maxDimensions, c.EmbeddingDimensions)
	}
	for _, d := range []struct {
		key string
		got time.Duration
	}{{"body_timeout", c.BodyTimeout}, {"write_timeout", c.WriteTimeout}, {"drain_timeout", c.DrainTimeout}} {
		if d.got <= 0 {
			bad("%s: must be > 0s, got %v", d.key, d.got)
		}
	}
	errs = append(errs, under("faults", c.Faults.Validate()))
	return errors.Join(errs...)
}

// under puts a section's name before each of its mistakes.
func under(section string, err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, fmt.Errorf("%s.%w", section, e))
	}
	return errors.Join(errs...)
}
