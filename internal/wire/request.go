package wire

import (
	"errors"
	"io"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spillway/spillway/internal/inference"
)

// ScanRequest validates the whole body and returns the few fields that decide.
// The body must be one JSON object in UTF-8 without duplicate names at any
// level, nested at most MaxDepth deep, with a model and, where the surface has
// one, a prompt. Errors are *inference.Error with CodeInvalidRequest and, where
// one field is at fault, its name in Param. The returned spans are offsets into
// body; the strings are copies.
func ScanRequest(surface inference.Surface, body []byte) (inference.Fields, error) {
	var f inference.Fields
	if err := checkDepth(body); err != nil {
		return f, invalid("", "the body is not acceptable JSON: %v", err)
	}
	d := newDecoder(body)
	defer d.done()
	if k := d.PeekKind(); k != '{' {
		if _, err := d.ReadValue(); err != nil {
			return f, syntaxError(err)
		}
		return f, invalid("", "the body must be a JSON object")
	}
	s := scanner{d: d, f: &f, prompt: promptMember(surface)}
	s.rebuild = surface == inference.Chat || surface == inference.Completions
	if _, err := d.members(s.member); err != nil {
		return f, syntaxError(err)
	}
	f.Assemble = s.rebuild && (f.Stream || f.StreamOptionsAt.Len() == 0 || s.noOptions)
	f.Rebuild = f.Assemble && !f.Stream
	f.Assemble = f.Assemble || surface == inference.Messages || surface == inference.Responses
	f.Deterministic = (s.fixed || surface == inference.Embeddings) && !s.live
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("data after the top-level object")
		}
		return f, syntaxError(err)
	}
	switch {
	case f.Model == "":
		return f, invalid("model", "you must provide a model parameter")
	case f.PromptAt.Len() == 0:
		return f, invalid(s.prompt, "missing required parameter: '%s'", s.prompt)
	}
	return f, nil
}

// promptMember is the member that carries the prompt on a surface.
func promptMember(surface inference.Surface) string {
	switch surface {
	case inference.Chat, inference.Messages:
		return "messages"
	case inference.Completions:
		return "prompt"
	}
	return "input"
}

// scanner fills Fields from the members of the top-level object.
type scanner struct {
	d       *decoder
	f       *inference.Fields
	prompt  string
	rebuild bool // nothing so far speaks against an answer from a stream

	noOptions bool // stream_options is null
	fixed     bool // temperature 0, or a seed
	live      bool // the answer depends on more than the request
}

// member reads the value of one top-level member.
func (s *scanner) member(name []byte) error {
	key := name[1 : len(name)-1]
	if string(key) == s.prompt {
		return s.readPrompt()
	}
	switch string(key) {
	case "stream_options":
		return s.readStreamOptions()
	case "metadata":
		return s.readMetadata()
	}
	v, err := s.d.ReadValue()
	if err != nil {
		return err
	}
	switch string(key) {
	case "model":
		if v.Kind() != '"' {
			return invalid("model", "'model' must be a string")
		}
		s.f.Model, s.f.ModelAt = text(v), s.spanOf(v)
	case "stream":
		switch v.Kind() {
		case 't', 'f', 'n':
			s.f.Stream = v.Kind() == 't'
			s.f.StreamAt = s.spanOf(v)
		default:
			return invalid("stream", "'stream' must be a boolean")
		}
	case "max_tokens":
		return s.readLimit(0, v)
	case "max_completion_tokens":
		return s.readLimit(1, v)
	case "max_output_tokens":
		return s.readLimit(2, v)
	case "user":
		if v.Kind() == '"' {
			s.f.User = text(v)
		}
	default:
		switch string(key) {
		case "system", "instructions", "tools", "functions": // the model reads them too
			s.f.PromptBytes += int64(len(v))
		}
		s.rebuild = s.rebuild && rebuildable(key, v)
		return s.readSampling(key, v)
	}
	return nil
}

// limitNames are the members that bound an answer's tokens, in the order of
// Fields.MaxTokensAt.
var limitNames = [...]string{"max_tokens", "max_completion_tokens", "max_output_tokens"}

// readLimit notes a bound on the answer's tokens.
func (s *scanner) readLimit(i int, v jsontext.Value) error {
	n, err := count(limitNames[i], v)
	if err != nil {
		return err
	}
	s.f.MaxTokens = max(s.f.MaxTokens, n)
	s.f.MaxTokensAt[i] = s.spanOf(v)
	return nil
}

// spanOf is where the value that was just read stands in the body.
func (s *scanner) spanOf(v jsontext.Value) inference.Span {
	end := int(s.d.InputOffset())
	return inference.Span{Start: end - len(v), End: end}
}

// readStreamOptions finds include_usage.
func (s *scanner) readStreamOptions() error {
	if k := s.d.PeekKind(); k != '{' {
		v, err := s.d.ReadValue()
		if err != nil {
			return err
		}
		if k != 'n' {
			return invalid("stream_options", "'stream_options' must be an object")
		}
		s.f.StreamOptionsAt, s.noOptions = s.spanOf(v), true
		return nil
	}
	// Without a stream the options are a mistake, which the server has to name.
	at, err := s.d.members(func(name []byte) error {
		v, err := s.d.ReadValue()
		if err == nil && string(name) == `"include_usage"` {
			s.f.IncludeUsage = v.Kind() == 't'
			s.f.UsageAt = s.spanOf(v)
		}
		return err
	})
	s.f.StreamOptionsAt = at
	return err
}

// readMetadata finds Anthropic's metadata.user_id.
func (s *scanner) readMetadata() error {
	if s.d.PeekKind() != '{' {
		return s.d.SkipValue()
	}
	_, err := s.d.members(func(name []byte) error {
		v, err := s.d.ReadValue()
		if err == nil && string(name) == `"user_id"` && v.Kind() == '"' && s.f.User == "" {
			s.f.User = text(v)
		}
		return err
	})
	return err
}

// count reads a non-negative number of tokens. null counts as absent.
func count(name string, v jsontext.Value) (int64, error) {
	switch v.Kind() {
	case 'n':
		return 0, nil
	case '0':
		n, err := strconv.ParseFloat(string(v), 64)
		if err == nil && n >= 0 && n == math.Trunc(n) && n <= math.MaxInt32 {
			return int64(n), nil
		}
	}
	return 0, invalid(name, "'%s' must be a whole number from 0 to %d", name, math.MaxInt32)
}

// invalid builds the error for a body that a client must mend.
func invalid(param, format string, args ...any) *inference.Error {
	e := inference.Errorf(inference.CodeInvalidRequest, format, args...)
	e.Param, e.NoRetry = param, true
	return e
}

// syntaxError words a tokenizer error for the client.
func syntaxError(err error) error {
	if e, ok := errors.AsType[*inference.Error](err); ok {
		return e
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return invalid("", "the body is not valid JSON: it ends too early")
	}
	if se, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return invalid("", "the body is not valid JSON: %v at byte %d", cause(se), se.ByteOffset)
	}
	return invalid("", "the body is not valid JSON: %v", err)
}

// cause shortens a tokenizer error to its reason.
func cause(e *jsontext.SyntacticError) error {
	if errors.Is(e.Err, jsontext.ErrDuplicateName) {
		return jsontext.ErrDuplicateName
	}
	return e.Err
}
