// Package wire reads and rewrites what travels between clients and model
// servers: the strict scan of a request's body, edits that touch few fields
// only, server-sent events, the facts in a stream's events and in an answer's
// body, one answer from a stream's chunks, and error bodies.
//
// Nothing here does I/O beyond the io.Reader it is given, and nothing is
// re-serialised: a body is scanned once and forwarded as received. All JSON
// goes through one tokenizer (jsontext), which refuses duplicate names and
// invalid UTF-8, so no two readers can disagree about what a body says.
package wire

import (
	"bytes"
	"errors"
	"sync"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/spillway/spillway/internal/inference"
)

// MaxDepth is the deepest nesting of arrays and objects that a body may have.
const MaxDepth = 1000

// errDepth says that a body nests deeper than MaxDepth.
var errDepth = errors.New("nesting deeper than 1000 levels")

// decoders are reused: a jsontext.Decoder carries its own name tables.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// decoder walks one JSON document in memory and knows the offsets in it.
type decoder struct {
	jsontext.Decoder
	src bytes.Buffer
	doc []byte
}

// newDecoder returns a decoder over doc; done gives it back.
func newDecoder(doc []byte) *decoder {
	d := decoders.Get().(*decoder)
	d.src, d.doc = *bytes.NewBuffer(doc), doc
	d.Reset(&d.src)
	return d
}

// done returns the decoder to the pool without keeping the document alive.
func (d *decoder) done() {
	d.src, d.doc = bytes.Buffer{}, nil
	d.Reset(&d.src)
	decoders.Put(d)
}

// next is the first byte of the next token, or 0 at the end. It is cheaper than
// PeekKind and judges nothing: it only says which call to make, and that call
// fails where the syntax is wrong.
func (d *decoder) next() byte {
	c, _ := d.peek()
	return c
}

// peek is next with the byte's offset.
func (d *decoder) peek() (c byte, at int) {
	for at = int(d.InputOffset()); at < len(d.doc); at++ {
		switch c := d.doc[at]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
		default:
			return c, at
		}
	}
	return 0, at
}

// checkDepth bounds the nesting of doc. Counting the brackets, including those
// inside strings, decides almost every document without walking it.
func checkDepth(doc []byte) error {
	if len(doc) < 2*MaxDepth || bytes.Count(doc, []byte{'['})+bytes.Count(doc, []byte{'{'}) <= MaxDepth {
		return nil
	}
	depth, inString := 0, false
	for i := 0; i < len(doc); i++ {
		switch c := doc[i]; {
		case inString:
			if c == '\\' {
				i++
			} else if c == '"' {
				inString = false
			}
		case c == '"':
			inString = true
		case c == '[' || c == '{':
			if depth++; depth > MaxDepth {
				return errDepth
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return nil
}

// members calls f for each member of the object that is next in d, with the
// name's raw bytes (quotes included), and returns where the object stands. f
// must consume the value.
func (d *decoder) members(f func(name []byte) error) (inference.Span, error) {
	var at inference.Span
	if _, err := d.ReadToken(); err != nil {
		return at, err
	}
	at.Start = int(d.InputOffset()) - 1
	for d.PeekKind() == '"' {
		name, err := d.ReadValue()
		if err != nil {
			return at, err
		}
		if err := f(name); err != nil {
			return at, err
		}
	}
	_, err := d.ReadToken()
	at.End = int(d.InputOffset())
	return at, err
}

// value reads the next value. Its bytes are a part of the document.
func (d *decoder) value() ([]byte, error) {
	v, err := d.ReadValue()
	if err != nil {
		return nil, err
	}
	end := int(d.InputOffset())
	return d.doc[end-len(v) : end], nil
}

// each calls f for each member of the object that is doc, with the name in quotes
// and the value. Both are parts of doc.
func each(doc []byte, f func(name, v []byte) error) error {
	d := newDecoder(doc)
	defer d.done()
	_, err := d.members(func(name []byte) error {
		end := d.InputOffset()
		name = doc[end-int64(len(name)) : end]
		v, err := d.value()
		if err != nil {
			return err
		}
		return f(name, v)
	})
	return err
}

// text unquotes a JSON string value. The common string without escapes costs
// one allocation.
func text(v jsontext.Value) string {
	if bytes.IndexByte(v, '\\') < 0 {
		return string(v[1 : len(v)-1])
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return ""
	}
	return string(b)
}
