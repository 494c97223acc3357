package engine

import (
	"strconv"
)

// answer is all that the text of one response depends on.
type answer struct {
	id       string // without the surface's prefix
	created  int64  // Unix seconds
	model    string // as a JSON string, quotes included
	text     text
	prompt   int // tokens
	cached   int // tokens of the prompt found in the prefix cache; known from the first token on
	output   int // tokens, thinking included
	thinking int // the first tokens of the output that are reasoning
	length   bool
	usage    bool // the client asked for a usage chunk
}

func (a *answer) finish() string {
	if a.length {
		return "length"
	}
	return "stop"
}

// form is one kind of event around its token, rendered once per request. With a mid part, the event's number stands
// between head and mid.
type form struct{ head, mid, tail string }

func (f *form) append(dst []byte, number int, t text, token int) []byte {
	dst = append(dst, f.head...)
	if f.mid != "" {
		dst = strconv.AppendInt(dst, int64(number), 10)
		dst = append(dst, f.mid...)
	}
	dst = t.append(dst, token)
	return append(dst, f.tail...)
}

// framer renders one API's answers. Events include their framing ("data: ...\n\n").
type framer interface {
	// forms are the events around one token of reasoning and one of the text proper.
	forms(a *answer) (thinking, words form)
	// open lists the events before the first token.
	open(a *answer) []string
	// close lists the events after the last token; number is the count of events so far. The last one is the one that
	// a client takes for the end.
	close(a *answer, number int) []string
	// body is the whole answer when it is not streamed.
	body(dst []byte, a *answer) []byte
}

// framerOf is the table of surfaces that generate text.
func framerOf(surface string) framer {
	switch surface {
	case SurfaceCompletions:
		return completionFramer{}
	case SurfaceMessages:
		return messageFramer{}
	case SurfaceResponses:
		return responseFramer{}
	default:
		return chatFramer{}
	}
}

const doneEvent = "data: [DONE]\n\n"

// chatFramer is POST /v1/chat/completions.
type chatFramer struct{}

func (chatFramer) prefix(a *answer) string {
	return `data: {"id":"chatcmpl-` + a.id + `","object":"chat.completion.chunk","created":` +
		strconv.FormatInt(a.created, 10) + `,"model":` + a.model + `,"choices":[`
}

// suffix ends a chunk; with usage asked for, every chunk but the last says that there is none yet.
func (chatFramer) suffix(a *answer) string {
	if a.usage {
		return `],"usage":null}` + "\n\n"
	}
	return "]}\n\n"
}

func (f chatFramer) forms(a *answer) (thinking, words form) {
	head := f.prefix(a) + `{"index":0,"delta":{"`
	tail := `"},"logprobs":null,"finish_reason":null}` + f.suffix(a)
	return form{head: head + `reasoning_content":"`, tail: tail}, form{head: head + `content":"`, tail: tail}
}

func (f chatFramer) open(a *answer) []string {
	return []string{f.prefix(a) +
		`{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}` + f.suffix(a)}
}

func (f chatFramer) close(a *answer, _ int) []string {
	events := []string{f.prefix(a) +
		`{"index":0,"delta":{},"logprobs":null,"finish_reason":"` + a.finish() + `"}` + f.suffix(a)}
	if a.usage {
		events = append(events, f.prefix(a)+`],"usage":`+string(appendUsage(nil, a))+"}\n\n")
	}
	return append(events, doneEvent)
}

func (chatFramer) body(dst []byte, a *answer) []byte {
	dst = append(dst, `{"id":"chatcmpl-`...)
	dst = append(dst, a.id...)
	dst = append(dst, `","object":"chat.completion","created":`...)
	dst = strconv.AppendInt(dst, a.created, 10)
	dst = append(dst, `,"model":`...)
	dst = append(dst, a.model...)
	dst = append(dst, `,"choices":[{"index":0,"message":{"role":"assistant",`...)
	if a.thinking > 0 {
		dst = append(dst, `"reasoning_content":"`...)
		dst = a.text.appendRange(dst, 0, a.thinking)
		dst = append(dst, `",`...)
	}
	dst = append(dst, `"content":"`...)
	dst = a.text.appendRange(dst, a.thinking, a.output)
	dst = append(dst, `"},"logprobs":null,"finish_reason":"`...)
	dst = append(dst, a.finish()...)
	dst = append(dst, `"}],"usage":`...)
	return append(appendUsage(dst, a), '}')
}

// appendUsage adds OpenAI's usage object of the chat and completion surfaces.
func appendUsage(dst []byte, a *answer) []byte {
	dst = append(dst, `{"prompt_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.prompt), 10)
	dst = append(dst, `,"total_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.prompt+a.output), 10)
	dst = append(dst, `,"completion_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.output), 10)
	dst = append(dst, `,"prompt_tokens_details":{"cached_tokens":`...)
	dst = strconv.AppendInt(dst, int64(a.cached), 10)
	dst = append(dst, '}')
	if a.thinking > 0 {
		dst = append(dst, `,"completion_tokens_details":{"reasoning_tokens":`...)
		dst = strconv.AppendInt(dst, int64(a.thinking), 10)
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// completionFramer is POST /v1/completions.
type completionFramer struct{}

func (completionFramer) prefix(a *answer) string {
	return `data: {"id":"cmpl-` + a.id + `","object":"text_completion","created":` +
		strconv.FormatInt(a.created, 10) + `,"model":` + a.model + `,"choices":[`
}

func (f completionFramer) forms(a *answer) (thinking, words form) {
	words = form{
		head: f.prefix(a) + `{"index":0,"text":"`,
		tail: `","logprobs":null,"finish_reason":null}` + chatFramer{}.suffix(a),
	}
	return words, words
}

func (completionFramer) open(*answer) []string { return nil }

func (f completionFramer) close(a *answer, _ int) []string {
	events := []string{f.prefix(a) +
		`{"index":0,"text":"","logprobs":null,"finish_reason":"` + a.finish() + `"}` + chatFramer{}.suffix(a)}
	if a.usage {
		events = append(events, f.prefix(a)+`],"usage":`+string(appendUsage(nil, a))+"}\n\n")
	}
	return append(events, doneEvent)
}

func (completionFramer) body(dst []byte, a *answer) []byte {
	dst = append(dst, `{"id":"cmpl-`...)
	dst = append(dst, a.id...)
	dst = append(dst, `","object":"text_completion","created":`...)
	dst = strconv.AppendInt(dst, a.created, 10)
	dst = append(dst, `,"model":`...)
	dst = append(dst, a.model...)
	dst = append(dst, `,"choices":[{"index":0,"text":"`...)
	dst = a.text.appendRange(dst, 0, a.output)
	dst = append(dst, `","logprobs":null,"finish_reason":"`...)
	dst = append(dst, a.finish()...)
	dst = append(dst, `"}],"usage":`...)
	return append(appendUsage(dst, a), '}')
}
