package wire

import (
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spillway/spillway/internal/inference"
)

// neutral lists the members of a body that change nothing about the answer: who
// asks, how the answer travels, how it is billed or filed. What is not listed here
// tells two requests apart. The Responses surface repeats the request's members in
// its answer, so there only the way it travels is neutral.
func neutral(surface inference.Surface) []string {
	switch surface {
	case inference.Chat, inference.Completions:
		return []string{ // OpenAI's own, DeepSeek's user_id, and request_id and priority of vLLM and SGLang
			"stream", "user", "user_id", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store", "metadata", "request_id", "priority",
		}
	case inference.Embeddings:
		return []string{"user", "request_id", "priority"}
	case inference.Messages:
		return []string{"stream", "metadata"}
	}
	return []string{"stream"}
}

// AppendCanonical appends what a request's body asks for, in one form for all
// bodies that ask for the same: the members but the model and the neutral ones,
// names in the order and strings in the form of RFC 8785, numbers as they are
// written (so that integers beyond 2^53 stay apart, and 0 and 0.0 are two). Of
// stream_options only what goes beyond include_usage counts. The body must have
// passed ScanRequest. A body that hides one of these names behind escapes is
// refused: servers may not agree on what it asks for.
func AppendCanonical(dst []byte, req *inference.Request) ([]byte, error) {
	at := len(dst)
	dst = append(slices.Grow(dst, 2*len(req.Body)+16), req.Body...) // the copy that is brought into order stands in front of what is made of it
	from := len(dst)
	v := jsontext.Value(dst[at:from:from])
	if err := v.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		return dst[:at], syntaxError(err)
	}
	err := each(v, func(name, value []byte) error {
		key := string(name[1 : len(name)-1])
		switch {
		case key == "model":
			return nil
		case key == "stream" && req.StreamAt.Len() == 0 || key == "stream_options" && req.StreamOptionsAt.Len() == 0:
			return invalid(key, "'%s' is written with escapes", key)
		case slices.Contains(neutral(req.Surface), key):
			return nil
		case key == "stream_options":
			further, usage := furtherOptions(value)
			if usage && req.UsageAt.Len() == 0 {
				return invalid(key, "'include_usage' is written with escapes")
			}
			if value = further; value == nil {
				return nil
			}
		}
		dst = append(append(append(append(dst, name...), ':'), value...), ',')
		return nil
	})
	return append(dst[:at], dst[from:]...), err
}

// furtherOptions is what canonical stream_options say beside include_usage, or nil,
// and whether they have that one. Anything but an object is null.
func furtherOptions(value []byte) (further []byte, usage bool) {
	if value[0] != '{' {
		return nil, false
	}
	_ = each(value, func(name, v []byte) error { // it is canonical, so it is well-formed
		if string(name) == `"include_usage"` {
			usage = true
			return nil
		}
		further = append(append(append(append(further, name...), ':'), v...), ',')
		return nil
	})
	return further, usage
}

// maxQuestion is the size of a question for people, in bytes.
const maxQuestion = 200

// Question is the beginning of the last thing that a request asks, in plain text
// for people: of the last message's last text, of the prompt or of the input.
func Question(req *inference.Request) string {
	d := newDecoder(req.Prompt())
	defer d.done()
	last := lastText(d)
	if len(last) > maxQuestion {
		last = strings.ToValidUTF8(last[:maxQuestion], "")
	}
	return strings.Join(strings.Fields(last), " ")
}

// lastText finds the last string that is a text: a bare one, or the value of
// text or content, as deep as parts nest.
func lastText(d *decoder) string {
	var last, key string
	for {
		tok, err := d.ReadToken()
		if err != nil {
			return last
		}
		kind, n := d.StackIndex(d.StackDepth())
		switch {
		case tok.Kind() != '"':
		case kind == '{' && n%2 == 1:
			key = tok.String()
		case kind != '{' || key == "text" || key == "content":
			last = tok.String()
		}
	}
}
