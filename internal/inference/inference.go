// Package inference holds the words that every part of Spillway shares: the
// request as it was understood, the classes, the verdicts on an attempt, the
// events of a stream, the error that a client may see and the record that is
// kept of a request.
//
// It is ring 0: the standard library only, no I/O, no clock. Values flow one
// way: api builds a Request, which is immutable from then on; route, gateway
// and upstream read it; a Record comes out at the end.
package inference

import (
	"cmp"
	"net/http"
	"net/netip"
	"time"
)

// Surface is one family of endpoints with its own body and stream format.
type Surface uint8

// The surfaces that Spillway serves. Messages and Responses are passed through
// unchanged to instances that declare them.
const (
	Chat Surface = iota
	Completions
	Embeddings
	Messages
	Responses
	surfaces
)

// surfaceWords is indexed by Surface.
var surfaceWords = [surfaces]struct{ name, path string }{
	Chat:        {"chat", "/v1/chat/completions"},
	Completions: {"completions", "/v1/completions"},
	Embeddings:  {"embeddings", "/v1/embeddings"},
	Messages:    {"messages", "/v1/messages"},
	Responses:   {"responses", "/v1/responses"},
}

// String returns the name used in configuration, metrics and logs.
func (s Surface) String() string {
	if s >= surfaces {
		return "unknown"
	}
	return surfaceWords[s].name
}

// Path returns the canonical URL path, with /v1.
func (s Surface) Path() string { return surfaceWords[s].path }

// Surfaces lists every surface in order.
func Surfaces() []Surface {
	all := make([]Surface, surfaces)
	for i := range all {
		all[i] = Surface(i)
	}
	return all
}

// ParseSurface finds a surface by its name.
func ParseSurface(name string) (Surface, bool) {
	for i, w := range surfaceWords {
		if w.name == name {
			return Surface(i), true
		}
	}
	return 0, false
}

// Class says how urgent a request is. The zero value is Normal.
type Class uint8

// The classes from a client's point of view. Idle is internal: no share,
// dispatched only when nothing waits; clients cannot ask for it.
const (
	Normal Class = iota
	VIP
	Batch
	Idle
)

// String returns the name used in configuration, metrics and logs.
func (c Class) String() string {
	switch c {
	case VIP:
		return "vip"
	case Batch:
		return "batch"
	case Idle:
		return "idle"
	}
	return "normal"
}

// Urgency orders the classes: a larger number is more urgent.
func (c Class) Urgency() int {
	switch c {
	case VIP:
		return 3
	case Normal:
		return 2
	case Batch:
		return 1
	}
	return 0
}

// ParseClass finds one of the classes that a tenant or client may name.
func ParseClass(name string) (Class, bool) {
	switch name {
	case "vip":
		return VIP, true
	case "normal":
		return Normal, true
	case "batch":
		return Batch, true
	}
	return Normal, false
}

// Span is a half-open range of byte offsets in a body. The zero Span means
// "absent": no JSON member value can begin at offset 0.
type Span struct{ Start, End int }

// Len is the length in bytes.
func (s Span) Len() int { return s.End - s.Start }

// Of returns the bytes of body that s covers.
func (s Span) Of(body []byte) []byte { return body[s.Start:s.End] }

// Fields are what the scan of a request's body found: the few members that
// decide, and where they stand, so that a rewrite touches nothing else.
type Fields struct {
	Model     string
	Stream    bool
	MaxTokens int64  // max_completion_tokens, max_output_tokens or max_tokens; 0 when absent
	User      string // "user", or metadata.user_id on the Messages surface
	Messages  int    // number of messages; 1 for a plain prompt or input

	// IncludeUsage says that the client itself asked for stream_options.include_usage.
	IncludeUsage bool

	// Rebuild says that the answer, which the client wants in one piece, can be put
	// together from a stream of the same request: chat and completions with one
	// choice and members that are known to change nothing but the tokens.
	Rebuild bool

	// Assemble says the same whatever the client wants: its stream holds all that the
	// answer in one piece would say.
	Assemble bool

	// Deterministic says that the same request is meant to get the same answer:
	// temperature 0 or a seed, or embeddings, and nothing that looks beyond the
	// request, such as a search of the web.
	Deterministic bool

	Images      int   // image parts in the prompt
	PromptBytes int64 // of the prompt as JSON text, without its image parts

	ModelAt         Span // the model's value, quotes included
	PromptAt        Span // the value of messages, prompt or input
	StreamAt        Span // the value of stream
	StreamOptionsAt Span // the value of stream_options
	UsageAt         Span // the value of stream_options.include_usage

	// MaxTokensAt are the values of max_tokens, max_completion_tokens and
	// max_output_tokens, in this order; a value may be null.
	MaxTokensAt [3]Span
}

// Anonymous is the tenant of requests where there are no keys.
const Anonymous = "anonymous"

// Request is one client request as Spillway understood it. It is built once by
// api and never changed afterwards, so it may be read from any goroutine. Body
// belongs to the request until its last reader is done with it.
type Request struct {
	ID       string
	Surface  Surface
	Received time.Time     // when the head had been read
	Deadline time.Time     // when the whole answer must be finished
	Tenant   string        // Anonymous without a keys file
	Class    Class         // after identity and the client's own lowering, or a rule's
	Key      string        // public name of the credential; "" is none
	Quota    *Quota        // limits of the credential alone; nil is none
	ClientIP netip.Addr    // after the trusted-proxy rules; may be invalid
	Header   http.Header   // the client's header fields, read-only
	RawQuery string        // the URL's query as received
	Body     []byte        // as received
	Wait     time.Duration // longest wait for a first token the client asked for; 0 is its class's

	Cache CacheControl // what the client says about the use of kept answers

	Patience  time.Duration // how long the client's SDK waits for the first byte of an answer; it only shortens a wait; 0 is not known
	Ticket    string        // a return ticket that the client shows, as it came; "" is none
	Retry     int           // which retry the client's SDK says this is; 0 is the first try
	DegradeOK bool          // the client takes a lesser answer rather than none

	// Asked is the model that the body names, where a rule or an experiment has put
	// another one into Model; "" where they are the same.
	Asked string

	// Rule names what has routed the request, several rules with commas between; "" is
	// none.
	Rule string

	// Steered is what routing decided for this request before, for routing alone: it
	// decides the same again. nil is nothing.
	Steered any

	Fields
}

// ImageTokens is what an image is reckoned to cost in prompt tokens, whatever its
// size: between 576 (LLaVA-1.5) and 1,369 (Qwen2-VL, one for 28 x 28 pixels of
// 1036 x 1036). Its bytes in the body say next to nothing.
const ImageTokens = 1000

// PromptTokens estimates the prompt's length in tokens at 4 bytes of text a
// token, which needs no tokenizer and is good enough to rank instances
// (llm-d router, tokenizer-free estimate), and ImageTokens an image.
func (r *Request) PromptTokens() int64 {
	n := r.PromptBytes
	if n <= 0 {
		n = int64(r.PromptAt.Len())
	}
	if n <= 0 {
		n = int64(len(r.Body))
	}
	return (n+3)/4 + ImageTokens*int64(r.Images)
}

// Prompt returns the bytes of messages, prompt or input as received.
func (r *Request) Prompt() []byte { return r.PromptAt.Of(r.Body) }

// Usage is what a model server says that a generation used, in tokens.
type Usage struct {
	PromptTokens     int64
	CompletionTokens int64
	CachedTokens     int64 // part of PromptTokens served from a prefix cache
	ReasoningTokens  int64 // part of CompletionTokens
}

// Zero says whether nothing was reported.
func (u Usage) Zero() bool { return u == Usage{} }

// Update takes over what a later report says. It may leave out what an earlier one said:
// Anthropic's last event has the answer's tokens alone.
func (u *Usage) Update(next Usage) {
	u.PromptTokens = cmp.Or(next.PromptTokens, u.PromptTokens)
	u.CompletionTokens = cmp.Or(next.CompletionTokens, u.CompletionTokens)
	u.CachedTokens = cmp.Or(next.CachedTokens, u.CachedTokens)
	u.ReasoningTokens = cmp.Or(next.ReasoningTokens, u.ReasoningTokens)
}
