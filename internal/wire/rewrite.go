package wire

import (
	"bytes"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spillway/spillway/internal/inference"
)

// Rewrite returns the request's body as segments that, joined, differ from it
// in the model's name and in stream_options.include_usage alone. An empty
// model keeps the client's. The segments are appended to segs; those that are
// not edited alias req.Body, so nothing large is copied.
func Rewrite(segs [][]byte, req *inference.Request, model string, includeUsage bool) [][]byte {
	var edits [2]edit
	n := 0
	if model != "" && model != req.Model {
		quoted, err := jsontext.AppendQuote(nil, model)
		if err == nil {
			edits[n] = edit{at: req.ModelAt, with: quoted}
			n++
		}
	}
	if includeUsage && req.Stream && !req.IncludeUsage {
		edits[n] = usageEdit(req)
		n++
	}
	if n == 2 && edits[1].at.Start < edits[0].at.Start {
		edits[0], edits[1] = edits[1], edits[0]
	}
	from := 0
	for _, e := range edits[:n] {
		segs = append(segs, req.Body[from:e.at.Start], e.with)
		from = e.at.End
	}
	return append(segs, req.Body[from:])
}

// edit replaces the bytes at a span.
type edit struct {
	at   inference.Span
	with []byte
}

// usageEdit is the smallest change that makes include_usage true.
func usageEdit(req *inference.Request) edit {
	switch options := req.StreamOptionsAt; {
	case req.UsageAt.Len() > 0:
		return edit{at: req.UsageAt, with: []byte("true")}
	case options.Len() == 0:
		at := bytes.IndexByte(req.Body, '{') + 1
		return edit{at: inference.Span{Start: at, End: at}, with: []byte(`"stream_options":{"include_usage":true},`)}
	case bytes.IndexByte(options.Of(req.Body), '"') < 0: // null or an empty object
		return edit{at: options, with: []byte(`{"include_usage":true}`)}
	default:
		at := options.Start + 1
		return edit{at: inference.Span{Start: at, End: at}, with: []byte(`"include_usage":true,`)}
	}
}
