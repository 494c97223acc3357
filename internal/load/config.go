package load

import (
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Arrival laws of a rate or profile.
const (
	// Poisson draws independent arrivals: exponential gaps.
	Poisson = "poisson"
	// Uniform spaces arrivals evenly.
	Uniform = "uniform"
)

// Laws of drawn lengths.
const (
	// Fixed gives every request the same length.
	Fixed = "fixed"
	// Exponential draws lengths with the configured mean.
	Exponential = "exponential"
)

// Config says what to send, when, where and how the answers are judged.
type Config struct {
	// Scenario names the run in its report.
	Scenario string `yaml:"scenario"`
	// Seed fixes everything that is drawn: arrivals, lengths, prompts, mixes and jitter.
	Seed uint64 `yaml:"seed"`
	// Load is the offered load divided by the capacity, where the caller knows it; it is only reported.
	Load float64 `yaml:"load"`
	// Target is the server under test.
	Target Target `yaml:"target"`
	// Schedule fixes the send times.
	Schedule Schedule `yaml:"schedule"`
	// Request shapes prompts and answers.
	Request Request `yaml:"request"`
	// Classes is the mix of urgency; empty sends no class.
	Classes []Class `yaml:"classes"`
	// Tenants are the keys of clients; a trace's client picks the tenant of its name, else one by hash.
	Tenants []Tenant `yaml:"tenants"`
	// Client bounds and times the sending side.
	Client Client `yaml:"client"`
	// SLO is what a good answer keeps to.
	SLO SLO `yaml:"slo"`
	// EngineMetrics are the metrics URLs of simulated engines; a run with more than 2% late steps is invalid.
	EngineMetrics []string `yaml:"engine_metrics"`
}

// Target is one OpenAI-compatible server, or several taken blindly in turn.
type Target struct {
	// Name is the system's name in the report: direct, spillway, nginx.
	Name string `yaml:"name"`
	// BaseURLs are used round robin without looking at their state; a URL without a path means its /v1.
	BaseURLs []string `yaml:"base_urls"`
	// APIKey is sent as bearer token (x-api-key on the messages surface); empty sends none.
	APIKey string `yaml:"api_key"`
	// Model is the model asked for.
	Model string `yaml:"model"`
	// Surface is chat, completions, embeddings, messages or responses.
	Surface string `yaml:"surface"`
	// Headers are sent with every request.
	Headers map[string]string `yaml:"headers"`
	// TenantHeader names the header that tells the tenant to servers without keys; empty sends none.
	TenantHeader string `yaml:"tenant_header"`
}

// Schedule fixes when requests are sent. Exactly one of trace, rate and
// profile gives the times; a trace beside a rate or profile gives the lengths.
type Schedule struct {
	// Trace replays recorded requests.
	Trace Trace `yaml:"trace"`
	// Rate is a constant rate, requests per second.
	Rate float64 `yaml:"rate"`
	// Profile is a list of segments: "10/s:30s,ramp 10-50/s:60s,burst 200/s:5s".
	Profile string `yaml:"profile"`
	// Arrivals is poisson or uniform, for rate and profile.
	Arrivals string `yaml:"arrivals"`
	// Duration is the length of the run; a shorter trace repeats. 0 means one pass of the trace or profile.
	Duration time.Duration `yaml:"duration"`
}

// Trace names a recorded workload and the part of it to replay.
type Trace struct {
	// Path is the trace file, plain or gzip.
	Path string `yaml:"path"`
	// Format is the trace's format; empty detects it from the file's name.
	Format string `yaml:"format"`
	// Companion is the second file of formats that have one (servegen lengths, ragpulse component tokens); empty looks beside the trace.
	Companion string `yaml:"companion"`
	// Speed divides every gap.
	Speed float64 `yaml:"speed"`
	// RateScale multiplies the rates of a servegen trace without touching its clock.
	RateScale float64 `yaml:"rate_scale"`
	// Start skips this much of the trace's time.
	Start time.Duration `yaml:"start"`
	// Window replays at most this much of the trace's time after start; 0 means all.
	Window time.Duration `yaml:"window"`
	// Offset begins the first pass this far into it; later passes are whole.
	Offset time.Duration `yaml:"offset"`
	// MaxRows ends a pass after this many rows; 0 means no limit.
	MaxRows int `yaml:"max_rows"`
	// Spread distributes rows that share a time stamp evenly until the next one.
	Spread bool `yaml:"spread"`
	// Sessions is the number of concurrent closed sessions of a session trace.
	Sessions int `yaml:"sessions"`
	// ThinkCap bounds the think time inside a session, before speed divides it; 0 means as recorded.
	ThinkCap time.Duration `yaml:"think_cap"`
}

// Request shapes prompts and answers.
type Request struct {
	// PromptTokens is the prompt length without a trace, in tokens of 4 bytes.
	PromptTokens int `yaml:"prompt_tokens"`
	// OutputTokens is the answer length without a trace, in tokens.
	OutputTokens int `yaml:"output_tokens"`
	// Lengths is the law of those two: fixed or exponential.
	Lengths string `yaml:"lengths"`
	// MaxTokens is the max_tokens of every request, a constant so that nothing can read the true length from it; longer answers are cut to it.
	MaxTokens int `yaml:"max_tokens"`
	// MaxPromptTokens cuts longer prompts; 0 means no limit.
	MaxPromptTokens int `yaml:"max_prompt_tokens"`
	// Streamed is the share of requests that ask for a stream, 0 to 1.
	Streamed float64 `yaml:"streamed"`
	// IncludeUsage asks for the usage event of a stream.
	IncludeUsage bool `yaml:"include_usage"`
	// Repeat is the share of requests that send a recent prompt again, 0 to 1.
	Repeat float64 `yaml:"repeat"`
	// Popular makes a share of the requests ask popular questions.
	Popular Popular `yaml:"popular"`
	// Temperature is sent with every request; below 0 none is.
	Temperature float64 `yaml:"temperature"`
}

// Popular is a set of questions that are asked again and again, the first of them
// most often: question k with a probability proportional to k^-skew (Zipf's law).
type Popular struct {
	// Share is the share of the requests that ask one of them, 0 to 1; the rest are asked once.
	Share float64 `yaml:"share"`
	// Questions is their number.
	Questions int `yaml:"questions"`
	// Skew is the exponent of the law; 0 makes all equal.
	Skew float64 `yaml:"skew"`
}

// Class is a share of the requests with its urgency.
type Class struct {
	// Name is vip, normal or batch.
	Name string `yaml:"name"`
	// Share is its weight in the mix.
	Share float64 `yaml:"share"`
	// APIKey replaces the target's key; empty sends the header X-Spillway-Class instead.
	APIKey string `yaml:"api_key"`
	// TTFT replaces the SLO's bound on the time to first token; 0 keeps it. Servers are not told.
	TTFT time.Duration `yaml:"ttft"`
	// Patience is how long a client waits for the first token of a stream, from the instant of each attempt, before it goes away for good; 0 is as long as for the whole answer.
	Patience time.Duration `yaml:"patience"`
}

// Tenant is one paying client.
type Tenant struct {
	// Name is the client label of the trace that this tenant stands for.
	Name string `yaml:"name"`
	// Share is its weight among requests without a client label.
	Share float64 `yaml:"share"`
	// APIKey replaces the class's and the target's key; it may be empty where target.tenant_header tells the tenant.
	APIKey string `yaml:"api_key"`
}

// Client bounds and times the sending side.
type Client struct {
	// Timeout is how long a client waits for its complete answer, all attempts together, from the scheduled instant.
	Timeout time.Duration `yaml:"timeout"`
	// ConnectTimeout bounds one connection attempt.
	ConnectTimeout time.Duration `yaml:"connect_timeout"`
	// MaxInFlight bounds requests in flight; reaching it makes the report invalid.
	MaxInFlight int `yaml:"max_in_flight"`
	// MaxWaiting bounds requests that wait to be sent again; reaching it makes the report invalid.
	MaxWaiting int `yaml:"max_waiting"`
	// Retries is how often a client tries again as the official SDKs do (they default to 2); 0 never.
	Retries int `yaml:"retries"`
	// IgnoreRetryAfter makes clients choose the wait before a retry themselves, whatever the server asks for.
	IgnoreRetryAfter bool `yaml:"ignore_retry_after"`
	// EchoTicket sends the X-Retry-Ticket of a refusal back with the retry, which the official SDKs do not.
	EchoTicket bool `yaml:"echo_ticket"`
	// Drain is how long after the last instant answers are waited for; what is open then ends as undrained. 0 waits for all.
	Drain time.Duration `yaml:"drain"`
}

// SLO is what a good answer keeps to.
type SLO struct {
	// TTFT bounds the time from the scheduled instant to the first delta; 0 means no bound.
	TTFT time.Duration `yaml:"ttft"`
	// TPOT bounds the mean time per output token after the first; 0 means no bound.
	TPOT time.Duration `yaml:"tpot"`
}

// Default returns the configuration that flags and files start from: it lacks
// a target URL, a model and a schedule. The SLO is that of the evaluation plan
// (5 s for the normal class, 50 ms a token); the connect time-out and the
// total are those of the official Python SDK.
func Default() Config {
	return Config{
		Scenario: "load",
		Seed:     1,
		Target:   Target{Name: "target", Surface: inference.Chat.String()},
		Schedule: Schedule{
			Arrivals: Poisson,
			Trace:    Trace{Speed: 1, RateScale: 1, Sessions: 16, ThinkCap: 10 * time.Second},
		},
		Request: Request{PromptTokens: 256, OutputTokens: 128, Lengths: Fixed, MaxTokens: 4096, Streamed: 1, Temperature: -1},
		Client: Client{
			Timeout:        600 * time.Second,
			ConnectTimeout: 5 * time.Second,
			MaxInFlight:    10000,
			MaxWaiting:     100_000,
		},
		SLO: SLO{TTFT: 5 * time.Second, TPOT: 50 * time.Millisecond},
	}
}
