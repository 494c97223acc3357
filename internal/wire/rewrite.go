package wire

import (
	"bytes"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spillway/spillway/internal/inference"
)

// Edits are what Rewrite changes in a request's body. The zero value changes
// nothing.
type Edits struct {
	Model        string // the name to ask for; "" keeps the client's
	Stream       bool   // ask for a stream, also where the client did not
	IncludeUsage bool   // ask for usage at the end of a stream, where a surface has to be asked
	MaxTokens    int64  // the most tokens to ask for; 0 is no bound. A client's lower number stays
}

// maxEdits is the most edits of one body: what is put in front, the model, the
// options, the stream and three limits.
const maxEdits = 4 + len(limitNames)

// Rewrite returns the request's body as segments that, joined, differ from it in
// what e says alone. The segments are appended to segs; those that are not edited
// alias req.Body, so nothing large is copied.
func Rewrite(segs [][]byte, req *inference.Request, e Edits) [][]byte {
	r := rewriter{req: req}
	written := req.Model
	if req.Asked != "" {
		written = req.Asked
	}
	if e.Model != "" && e.Model != written {
		if quoted, err := jsontext.AppendQuote(nil, e.Model); err == nil {
			r.replace(req.ModelAt, quoted)
		}
	}
	if e.Stream && !req.Stream {
		r.member(req.StreamAt, "stream", "true")
	}
	asks := req.Surface == inference.Chat || req.Surface == inference.Completions // for usage, in stream_options
	if e.IncludeUsage && asks && (req.Stream || e.Stream) && !req.IncludeUsage {
		r.includeUsage()
	}
	if e.MaxTokens > 0 {
		r.limit(e.MaxTokens)
	}
	if len(r.front) > 0 {
		at := bytes.IndexByte(req.Body, '{') + 1
		r.replace(inference.Span{Start: at, End: at}, r.front)
	}
	from := 0
	for _, e := range r.edits[:r.n] {
		segs = append(segs, req.Body[from:e.at.Start], e.with)
		from = e.at.End
	}
	return append(segs, req.Body[from:])
}

// rewriter collects the edits of one body, in the order of their places.
type rewriter struct {
	req   *inference.Request
	edits [maxEdits]edit
	n     int
	front []byte // new members, each with its comma
}

// edit replaces the bytes at a span.
type edit struct {
	at   inference.Span
	with []byte
}

// replace adds an edit.
func (r *rewriter) replace(at inference.Span, with []byte) {
	i := r.n
	for ; i > 0 && r.edits[i-1].at.Start > at.Start; i-- {
		r.edits[i] = r.edits[i-1]
	}
	r.edits[i] = edit{at, with}
	r.n++
}

// member gives a top-level member a value, and adds the member where there is
// none.
func (r *rewriter) member(at inference.Span, name, value string) {
	if at.Len() > 0 {
		r.replace(at, []byte(value))
		return
	}
	r.front = append(append(append(append(append(r.front, '"'), name...), `":`...), value...), ',')
}

// includeUsage is the smallest change that makes include_usage true.
func (r *rewriter) includeUsage() {
	switch options := r.req.StreamOptionsAt; {
	case r.req.UsageAt.Len() > 0:
		r.replace(r.req.UsageAt, []byte("true"))
	case options.Len() == 0 || bytes.IndexByte(options.Of(r.req.Body), '"') < 0: // absent, null or an empty object
		r.member(options, "stream_options", `{"include_usage":true}`)
	default:
		at := options.Start + 1
		r.replace(inference.Span{Start: at, End: at}, []byte(`"include_usage":true,`))
	}
}

// limit lowers what the client set beyond n, and sets n where the client set
// nothing that the surface reads.
func (r *rewriter) limit(n int64) {
	value, bound := strconv.FormatInt(n, 10), false
	own := limitsOf(r.req.Surface)
	for i, at := range r.req.MaxTokensAt {
		if at.Len() == 0 || r.req.Body[at.Start] == 'n' {
			continue
		}
		bound = bound || own[i]
		if old, err := count(limitNames[i], at.Of(r.req.Body)); err == nil && old > n {
			r.replace(at, []byte(value))
		}
	}
	if bound {
		return
	}
	name := -1
	for i, at := range r.req.MaxTokensAt {
		if own[i] && (name < 0 || at.Len() > 0) { // null: the name that the client uses
			name = i
		}
	}
	if name >= 0 {
		r.member(r.req.MaxTokensAt[name], limitNames[name], value)
	}
}

// limitsOf says which of limitNames a surface reads.
func limitsOf(surface inference.Surface) (own [len(limitNames)]bool) {
	switch surface {
	case inference.Chat:
		own[0], own[1] = true, true
	case inference.Completions, inference.Messages:
		own[0] = true
	case inference.Responses:
		own[2] = true
	}
	return own
}
