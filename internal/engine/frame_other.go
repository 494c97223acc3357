package engine

import (
	"fmt"
	"strconv"
)

// event renders a named event, the framing of the Anthropic and Responses surfaces.
func event(name, data string) string {
	return "event: " + name + "\ndata: " + data + "\n\n"
}

// messageFramer is POST /v1/messages of Anthropic.
type messageFramer struct{}

func (messageFramer) forms(*answer) (thinking, words form) {
	words = form{
		head: "event: content_block_delta\ndata: " +
			`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"`,
		tail: `"}}` + "\n\n",
	}
	return words, words
}

func (f messageFramer) open(a *answer) []string {
	return []string{
		event("message_start", fmt.Sprintf(`{"type":"message_start","message":{"id":"msg_%s","type":"message",`+
			`"role":"assistant","model":%s,"content":[],"stop_reason":null,"stop_sequence":null,"usage":%s}}`,
			a.id, a.model, f.usage(a, 1))),
		event("content_block_start",
			`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`),
		event("ping", `{"type":"ping"}`),
	}
}

func (f messageFramer) close(a *answer, _ int) []string {
	return []string{
		event("content_block_stop", `{"type":"content_block_stop","index":0}`),
		event("message_delta", fmt.Sprintf(`{"type":"message_delta","delta":{"stop_reason":"%s","stop_sequence":null},`+
			`"usage":{"output_tokens":%d}}`, f.stop(a), a.output)),
		event("message_stop", `{"type":"message_stop"}`),
	}
}

func (f messageFramer) body(dst []byte, a *answer) []byte {
	dst = fmt.Appendf(dst, `{"id":"msg_%s","type":"message","role":"assistant","model":%s,`+
		`"content":[{"type":"text","text":"`, a.id, a.model)
	dst = a.text.appendRange(dst, 0, a.output)
	return fmt.Appendf(dst, `"}],"stop_reason":"%s","stop_sequence":null,"usage":%s}`, f.stop(a), f.usage(a, a.output))
}

func (messageFramer) stop(a *answer) string {
	if a.length {
		return "max_tokens"
	}
	return "end_turn"
}

// usage counts cached tokens apart from the others, as Anthropic does.
func (messageFramer) usage(a *answer, output int) string {
	return fmt.Sprintf(`{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d,`+
		`"output_tokens":%d}`, a.prompt-a.cached, a.cached, output)
}

// responseFramer is POST /v1/responses of OpenAI. Its events are numbered from 0.
type responseFramer struct{}

func (responseFramer) forms(a *answer) (thinking, words form) {
	words = form{
		head: "event: response.output_text.delta\ndata: " + `{"type":"response.output_text.delta","sequence_number":`,
		mid:  `,"item_id":"msg_` + a.id + `","output_index":0,"content_index":0,"logprobs":[],"delta":"`,
		tail: `"}` + "\n\n",
	}
	return words, words
}

// numbered renders an event; fields begin with a comma.
func (responseFramer) numbered(kind string, number int, fields string) string {
	name := "response." + kind
	return event(name, `{"type":"`+name+`","sequence_number":`+strconv.Itoa(number)+fields+"}")
}

func (f responseFramer) open(a *answer) []string {
	begun := `,"response":` + f.response(a, "in_progress", "", "null")
	item := `,"output_index":0,"item":` + f.item(a, "in_progress", "")
	part := `,"item_id":"msg_` + a.id + `","output_index":0,"content_index":0,"part":` + f.part("")
	return []string{
		f.numbered("created", 0, begun),
		f.numbered("in_progress", 1, begun),
		f.numbered("output_item.added", 2, item),
		f.numbered("content_part.added", 3, part),
	}
}

func (f responseFramer) close(a *answer, number int) []string {
	written := string(a.text.appendRange(nil, 0, a.output))
	where := `,"item_id":"msg_` + a.id + `","output_index":0,"content_index":0`
	item := f.item(a, f.status(a), f.part(written))
	return []string{
		f.numbered("output_text.done", number, where+`,"logprobs":[],"text":"`+written+`"`),
		f.numbered("content_part.done", number+1, where+`,"part":`+f.part(written)),
		f.numbered("output_item.done", number+2, `,"output_index":0,"item":`+item),
		f.numbered(f.status(a), number+3, `,"response":`+f.response(a, f.status(a), item, f.usage(a))),
	}
}

func (f responseFramer) body(dst []byte, a *answer) []byte {
	written := string(a.text.appendRange(nil, 0, a.output))
	return append(dst, f.response(a, f.status(a), f.item(a, f.status(a), f.part(written)), f.usage(a))...)
}

func (responseFramer) status(a *answer) string {
	if a.length {
		return "incomplete"
	}
	return "completed"
}

func (responseFramer) part(written string) string {
	return `{"type":"output_text","annotations":[],"logprobs":[],"text":"` + written + `"}`
}

func (responseFramer) item(a *answer, status, part string) string {
	return fmt.Sprintf(`{"id":"msg_%s","type":"message","status":"%s","role":"assistant","content":[%s]}`,
		a.id, status, part)
}

func (responseFramer) response(a *answer, status, output, usage string) string {
	details := "null"
	if status == "incomplete" {
		details = `{"reason":"max_output_tokens"}`
	}
	return fmt.Sprintf(`{"id":"resp_%s","object":"response","created_at":%d,"status":"%s","error":null,`+
		`"incomplete_details":%s,"model":%s,"output":[%s],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],`+
		`"usage":%s}`, a.id, a.created, status, details, a.model, output, usage)
}

func (responseFramer) usage(a *answer) string {
	return fmt.Sprintf(`{"input_tokens":%d,"input_tokens_details":{"cached_tokens":%d},"output_tokens":%d,`+
		`"output_tokens_details":{"reasoning_tokens":0},"total_tokens":%d}`,
		a.prompt, a.cached, a.output, a.prompt+a.output)
}
