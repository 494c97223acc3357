package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// OutputTokensHeader names the request header that fixes the answer's length in tokens. It stands above max_tokens, so
// that a load generator can keep the true length out of the body a gateway reads.
const OutputTokensHeader = "X-Engine-Output-Tokens"

// completionLength is OpenAI's default max_tokens of the completions surface.
const completionLength = 16

// payload has the fields of all surfaces that matter here; the rest of a body is ignored but must be valid JSON.
type payload struct {
	Model         string         `json:"model"`
	Messages      []message      `json:"messages"`
	System        jsontext.Value `json:"system"`
	Instructions  string         `json:"instructions"`
	Prompt        jsontext.Value `json:"prompt"`
	Input         jsontext.Value `json:"input"`
	N             *int           `json:"n"`
	Stream        bool           `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	MaxTokens           *int   `json:"max_tokens"`
	MaxCompletionTokens *int   `json:"max_completion_tokens"`
	MaxOutputTokens     *int   `json:"max_output_tokens"`
	Dimensions          *int   `json:"dimensions"`
	EncodingFormat      string `json:"encoding_format"`
}

type message struct {
	Role      string         `json:"role"`
	Content   jsontext.Value `json:"content"`
	ToolCalls jsontext.Value `json:"tool_calls"`
}

// readPayload reads a request's body within its limits of size and time.
func (e *Engine) readPayload(w http.ResponseWriter, r *http.Request) (*payload, *problem) {
	if kind := r.Header.Get("Content-Type"); kind != "" {
		if media, _, err := mime.ParseMediaType(kind); err != nil || media != "application/json" {
			return nil, &problem{
				status: 415, kind: "invalid_request_error",
				message: "Unsupported Media Type: only 'application/json' is allowed",
			}
		}
	}
	control := http.NewResponseController(w)
	// A server without deadlines (a test recorder) just reads without one.
	_ = control.SetReadDeadline(time.Now().Add(e.cfg.BodyTimeout))
	var body bytes.Buffer
	if n := r.ContentLength; n > 0 && n <= e.cfg.MaxBody {
		body.Grow(int(n) + bytes.MinRead)
	}
	_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, e.cfg.MaxBody))
	if err != nil { // the rest is not waited for
		w.Header().Set("Connection", "close")
	} else {
		_ = control.SetReadDeadline(time.Time{})
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &problem{
			status: 413, kind: "invalid_request_error",
			message: fmt.Sprintf("The request body is longer than %d bytes", tooLarge.Limit),
		}
	} else if err != nil {
		status := 400
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			status = 408
		}
		return nil, &problem{status: status, kind: "invalid_request_error", message: "The request body is incomplete"}
	}
	p := &payload{}
	if err := json.Unmarshal(body.Bytes(), p); err != nil {
		return nil, invalid("", "We could not parse the JSON body of your request: "+err.Error())
	}
	return p, nil
}

// check refuses what no surface takes.
func (e *Engine) check(p *payload) *problem {
	switch {
	case p.Model == "":
		return invalid("model", "you must provide a model parameter")
	case !slices.Contains(e.cfg.Models, p.Model):
		return &problem{
			status: 404, kind: "invalid_request_error", param: "model", code: `"model_not_found"`,
			message: fmt.Sprintf("The model `%s` does not exist or you do not have access to it.", p.Model),
		}
	case p.N != nil && *p.N != 1:
		return invalid("n", "n must be 1: this engine gives one choice per request")
	case p.Dimensions != nil && (*p.Dimensions < 1 || *p.Dimensions > maxDimensions):
		return invalid("dimensions", fmt.Sprintf("dimensions must be 1 to %d", maxDimensions))
	case p.EncodingFormat != "" && p.EncodingFormat != "float" && p.EncodingFormat != "base64":
		return invalid("encoding_format", "encoding_format must be float or base64")
	}
	return nil
}

// promptText is all text of a request that a model would read, roles included. One byte string decides tokens, prefix
// blocks and the answer.
func promptText(surface string, p *payload) ([]byte, *problem) {
	var text []byte
	var err error
	switch surface {
	case SurfaceCompletions:
		if text, err = appendInput(nil, p.Prompt, false); err != nil || len(p.Prompt) == 0 {
			return nil, invalid("prompt", "prompt must be a string, one string in an array, or an array of token ids")
		}
		return text, nil
	case SurfaceResponses:
		text = append(append(text, p.Instructions...), '\n')
		if text, err = appendInput(text, p.Input, false); err != nil || len(p.Input) == 0 {
			return nil, invalid("input", "input must be a string or an array of items")
		}
		return text, nil
	}
	if len(p.Messages) == 0 {
		return nil, invalid("messages", "messages must have at least one message")
	}
	if surface == SurfaceMessages {
		if p.MaxTokens == nil {
			return nil, invalid("max_tokens", "max_tokens: Field required")
		}
		if text, err = appendContent(text, p.System, 0); err != nil {
			return nil, invalid("system", "system must be a string or an array of blocks")
		}
	}
	for i, m := range p.Messages {
		if m.Role == "" {
			return nil, invalid(fmt.Sprintf("messages[%d].role", i), "every message needs a role")
		}
		text = append(append(text, m.Role...), '\n')
		if text, err = appendContent(text, m.Content, 0); err != nil {
			return nil, invalid(fmt.Sprintf("messages[%d].content", i), "content must be a string or an array of parts")
		}
		if m.ToolCalls.Kind() == '[' {
			text = append(text, m.ToolCalls...)
		}
		text = append(text, '\n')
	}
	return text, nil
}

// maxNesting bounds parts inside parts; every level is scanned anew, so depth costs time.
const maxNesting = 4

// appendContent adds a message's content: a string, null, or an array of parts.
func appendContent(dst []byte, v jsontext.Value, depth int) ([]byte, error) {
	switch v.Kind() {
	case 0, 'n':
		return dst, nil
	case '"':
		return jsontext.AppendUnquote(dst, v)
	case '[':
		return appendParts(dst, v, depth+1)
	default:
		return dst, errors.New("not text")
	}
}

// appendParts adds the text of parts; a part of another kind (an image) counts with its JSON text.
func appendParts(dst []byte, v jsontext.Value, depth int) ([]byte, error) {
	if depth > maxNesting {
		return dst, errors.New("parts are nested too deeply")
	}
	var parts []jsontext.Value
	if err := json.Unmarshal(v, &parts); err != nil {
		return dst, err
	}
	for _, raw := range parts {
		var part struct {
			Role    string         `json:"role"`
			Text    *string        `json:"text"`
			Content jsontext.Value `json:"content"`
		}
		if err := json.Unmarshal(raw, &part); err != nil {
			return dst, err
		}
		switch {
		case part.Text != nil:
			dst = append(dst, *part.Text...)
		case part.Content != nil:
			dst = append(append(dst, part.Role...), '\n')
			var err error
			if dst, err = appendContent(dst, part.Content, depth); err != nil {
				return dst, err
			}
		default:
			dst = append(dst, raw...)
		}
		dst = append(dst, '\n')
	}
	return dst, nil
}

// appendInput adds a prompt: a string, an array of token ids (4 bytes each, so 1 token each), an array of one string,
// or an array of parts. A nested one is already inside an array.
func appendInput(dst []byte, v jsontext.Value, nested bool) ([]byte, error) {
	if v.Kind() != '[' {
		if v.Kind() != '"' {
			return dst, errors.New("not text")
		}
		return jsontext.AppendUnquote(dst, v)
	}
	var items []jsontext.Value
	if err := json.Unmarshal(v, &items); err != nil || len(items) == 0 {
		return dst, errors.New("empty array")
	}
	switch items[0].Kind() {
	case '0':
		var ids []uint32
		if err := json.Unmarshal(v, &ids); err != nil {
			return dst, err
		}
		for _, id := range ids {
			dst = binary.LittleEndian.AppendUint32(dst, id)
		}
		return dst, nil
	case '{':
		return appendParts(dst, v, 1)
	default:
		inner := items[0].Kind()
		if len(items) != 1 || (inner == '[' && nested) {
			return dst, errors.New("more than one prompt")
		}
		return appendInput(dst, items[0], true)
	}
}

// outputLength is the answer's length in tokens, and whether a limit of the request set it.
func (e *Engine) outputLength(r *http.Request, surface string, p *payload, t text) (n int, limited bool, bad *problem) {
	if h := r.Header.Get(OutputTokensHeader); h != "" {
		n, err := strconv.Atoi(strings.TrimSpace(h))
		if err != nil || n < 1 || n > e.cfg.MaxOutput {
			return 0, false, invalid(OutputTokensHeader, fmt.Sprintf("must be 1 to %d", e.cfg.MaxOutput))
		}
		return n, false, nil
	}
	for _, limit := range []struct {
		key string
		n   *int
	}{
		{"max_completion_tokens", p.MaxCompletionTokens},
		{"max_output_tokens", p.MaxOutputTokens},
		{"max_tokens", p.MaxTokens},
	} {
		if limit.n == nil {
			continue
		}
		if *limit.n < 1 || *limit.n > e.cfg.MaxOutput {
			return 0, false, invalid(limit.key, fmt.Sprintf("%s must be 1 to %d", limit.key, e.cfg.MaxOutput))
		}
		return *limit.n, true, nil
	}
	if surface == SurfaceCompletions {
		return min(completionLength, e.cfg.MaxOutput), true, nil
	}
	return min(t.length(), e.cfg.MaxOutput), false, nil
}
