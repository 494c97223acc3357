package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/load"
)

// Systems of the headline: the engines without anything before them, the gateway,
// and the gateway with one part switched off.
const (
	headlineDirect     = "direct"
	headlineSpillway   = "spillway"
	headlineNoCache    = "cache-off"
	headlineNoGovernor = "governor-off"
	headlineNoHealth   = "health-off"
)

// HeadlineSystems lists the systems of the headline in the order in which they are
// played.
func HeadlineSystems() []string {
	return []string{headlineDirect, headlineSpillway, headlineNoCache, headlineNoGovernor, headlineNoHealth}
}

// The headline's load: what a published case had before and after, from an
// availability of 92% and 2.3 s on average to 99.95% and 0.38 s.
const (
	headlineEngines   = 4
	headlineRate      = 280.0 // requests a second: about what the engines can serve
	headlineBurst     = 1.6   // times that
	headlinePrompt    = 200   // tokens
	headlineOutput    = 40    // tokens
	headlineTimeout   = 10 * time.Second
	headlineShare     = 0.6 // of the requests that ask popular questions
	headlineQuestions = 2000
	headlineSkew      = 1.0
	headlineLeast     = 10_000 // requests; fewer say nothing about 99.99%
	headlineVictim    = 1
)

// The headline's instants, as parts of the whole: with 300 s the burst is at 60 to
// 80 s, the kill at 180 s and the restart at 240 s.
const (
	headlineLength     = 300 * time.Second
	headlineFastLength = 60 * time.Second
	headlineBurstFrom  = 0.2
	headlineBurstTo    = 4.0 / 15
	headlineKill       = 0.6
	headlineRestore    = 0.8
)

// Headline is the comparison that the project is measured by: the same questions at
// the same instants, straight at four engines with blind round robin, and through
// the gateway.
type Headline struct {
	Fast    bool
	Systems []string // of HeadlineSystems
	Options
}

// Run plays the systems one after the other and judges the gateway against the
// direct way.
func (h *Headline) Run(ctx context.Context) (*Result, error) {
	length, least, ratio := headlineLength, 0.9999, 1.0/7
	if h.Fast {
		length, least, ratio = headlineFastLength, 0.9998, 1.0/6
	}
	result := &Result{Report: load.NewReport("headline", h.Seed), Verdicts: []Verdict{}}
	found := make(map[string]load.System)
	for _, name := range h.Systems {
		fmt.Fprintf(h.Out, "%s: %v\n", name, length)
		s, err := h.play(ctx, name, length)
		if err != nil {
			return nil, fmt.Errorf("headline: %s: %w", name, err)
		}
		if s.Offered < headlineLeast && s.InvalidReason == "" {
			s.InvalidReason = fmt.Sprintf("%d requests offered, fewer than %d", s.Offered, headlineLeast)
		}
		found[name] = s
		result.Add(s)
	}
	judge := &rig{Options: h.Options, result: result}
	if s, ok := found[headlineSpillway]; ok {
		judge.expect("spillway: answers that were whole, right and in time, of all offered", availability(s), AtLeast, least, "")
		if d, ok := found[headlineDirect]; ok {
			judge.expect("spillway: mean response time as a part of the direct one", meanResponse(s)/meanResponse(d), AtMost, ratio, "")
		}
	}
	h.tell(found)
	return result, nil
}

// availability is the share of the requests that were answered, as they should be.
func availability(s load.System) float64 { return float64(s.Answered) / float64(max(s.Offered, 1)) }

// meanResponse is the mean response time of answered requests in milliseconds.
func meanResponse(s load.System) float64 {
	if s.E2E == nil {
		return 0
	}
	return s.E2E.Mean
}

// tell prints the columns side by side, and what each part contributed.
func (h *Headline) tell(found map[string]load.System) {
	fmt.Fprintf(h.Out, "\n%-14s %10s %13s %10s %10s %10s  %s\n", "system", "offered", "availability", "mean ms", "p50 ms", "p99 ms", "failures")
	for _, name := range h.Systems {
		s := found[name]
		var p50, p99 float64
		if s.E2E != nil {
			p50, p99 = s.E2E.P50, s.E2E.P99
		}
		codes, _ := json.Marshal(s.Errors) // a map of numbers always marshals
		fmt.Fprintf(h.Out, "%-14s %10d %12.4f%% %10.1f %10.1f %10.1f  %s truncated %d\n", name, s.Offered, 100*availability(s), meanResponse(s), p50, p99, codes, s.Truncated)
	}
	whole, ok := found[headlineSpillway]
	if !ok {
		return
	}
	for _, part := range []string{headlineNoCache, headlineNoGovernor, headlineNoHealth} {
		if s, ok := found[part]; ok {
			fmt.Fprintf(h.Out, "%s costs %.4f points of availability and %+.1f ms on average\n", part, 100*(availability(whole)-availability(s)), meanResponse(s)-meanResponse(whole))
		}
	}
}

// play runs one system from fresh engines to its figures.
func (h *Headline) play(ctx context.Context, name string, length time.Duration) (s load.System, err error) {
	r := &rig{Options: h.Options, result: new(Result)}
	if r.dir, err = os.MkdirTemp("", "spillway-bench-"); err != nil {
		return s, err
	}
	defer os.RemoveAll(r.dir)
	defer r.stop()
	if r.engines, err = startEngines(ctx, h.Binary, headlineEngines, h.Err, "--max-seqs", "256", "--queue", "64", "--prefix-cache=false"); err != nil {
		return s, err
	}
	urls := r.engines.urls()
	if name != headlineDirect {
		g, err := newGatewayProcess(r)
		if err != nil {
			return s, err
		}
		if err := os.WriteFile(g.config, []byte(headlineConfig(name, r.path("state"), urls)), 0o600); err != nil {
			return s, err
		}
		if err := g.launch(ctx); err != nil {
			return s, err
		}
		r.gateway = g
		urls = []string{g.url}
	}
	gen, err := load.New(h.load(name, urls, r.engines, length), load.Options{Progress: h.Show, Judge: rightAnswer, Hooks: h.faults(r.engines, length)})
	if err != nil {
		return s, err
	}
	return gen.Run(ctx)
}

// headlineConfig is the gateway's configuration: what a file says that names the
// engines and nothing else, but for the part that is switched off.
func headlineConfig(name, state string, urls []string) string {
	section, pool := "", ""
	switch name {
	case headlineNoCache:
		section = "cache: {enabled: false}\n"
	case headlineNoGovernor:
		section = "admission: {limit: \"off\"}\n"
	case headlineNoHealth:
		pool = "\n          health: {active: {type: \"off\"}, passive: {max_fails: 0}}"
	}
	return fmt.Sprintf(`%susage: {access_log: "off"}
telemetry: {log: {level: error}}
store: {directory: %q}
fleet:
  regions:
    - name: eu
      pools:
        - name: gpu
          models: [%s]%s
          %s
`, section, state, model, pool, list("instances", urls))
}

// load is what is sent.
func (h *Headline) load(name string, urls []string, e *engines, length time.Duration) load.Config {
	cfg := load.Default()
	cfg.Scenario, cfg.Seed, cfg.Load = "headline", h.Seed, 1
	cfg.Target.Name, cfg.Target.Model, cfg.Target.BaseURLs = name, model, urls
	from, to := at(length, headlineBurstFrom), at(length, headlineBurstTo)
	cfg.Schedule.Profile = fmt.Sprintf("%g/s:%v,burst %g/s:%v,%g/s:%v", headlineRate, from, headlineRate*headlineBurst, to-from, headlineRate, length-to)
	cfg.Request.Streamed, cfg.Request.PromptTokens, cfg.Request.OutputTokens, cfg.Request.Temperature = 0, headlinePrompt, headlineOutput, 0
	cfg.Request.Popular = load.Popular{Share: headlineShare, Questions: headlineQuestions, Skew: headlineSkew}
	cfg.Client.Timeout = headlineTimeout
	cfg.EngineMetrics = e.metrics(headlineVictim)
	return cfg
}

// at is an instant as a part of the whole.
func at(length time.Duration, part float64) time.Duration {
	return time.Duration(part * float64(length)).Round(time.Second)
}

// faults kills one engine and starts it again.
func (h *Headline) faults(e *engines, length time.Duration) []load.Hook {
	return []load.Hook{
		{At: at(length, headlineKill), Name: "kill", Do: func(context.Context, *load.Live) error { return e.all[headlineVictim].kill() }},
		{At: at(length, headlineRestore), Name: "restore", Do: func(ctx context.Context, _ *load.Live) error {
			return e.restart(ctx, headlineVictim)
		}},
	}
}

// rightAnswer says whether an answer is what an engine answers to the question.
func rightAnswer(prompt []byte, output int, answer []byte) bool {
	var v struct {
		Choices []struct {
			Message struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
	}
	return json.Unmarshal(answer, &v) == nil && len(v.Choices) == 1 && bytes.Equal([]byte(v.Choices[0].Message.Content), engine.Answer(prompt, output))
}

// Validate returns every mistake in what to play.
func (h *Headline) Validate() error {
	var errs []error
	for _, name := range h.Systems {
		if !slices.Contains(HeadlineSystems(), name) {
			errs = append(errs, fmt.Errorf("unknown system %q; known are %s", name, strings.Join(HeadlineSystems(), ", ")))
		}
	}
	return errors.Join(errs...)
}
