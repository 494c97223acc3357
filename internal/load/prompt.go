package load

import (
	"bytes"
	"strconv"

	"github.com/spillway/spillway/internal/inference"
)

// Sizes of the prompt text, in bytes.
const (
	bytesPerToken = 4       // of every prompt, and of the simulated engine
	segmentBytes  = 2048    // text between two markers
	markerBytes   = 16      // 64 bits as letters
	corpusBytes   = 1 << 16 // text that segments are cut from
)

// prompt identifies the text of one request's prompt.
type prompt struct {
	salt   uint64 // of the run and pass: identities of one pass are not those of another
	unique uint64 // identity of what follows the shared blocks
	prefix []Blocks
	tokens int
}

// scribe writes prompts. Text is cut from a fixed corpus behind a marker made
// of the identity, so that a prompt costs little more than its copy: distinct
// identities differ within their first 16 bytes, equal ones are equal
// throughout. The alphabet needs no escape in JSON. It is safe for concurrent
// use.
type scribe struct{ corpus []byte }

func newScribe() *scribe {
	c := make([]byte, corpusBytes+segmentBytes)
	for i := 0; i < len(c); i += bytesPerToken {
		x := mix(uint64(i), 0x5ca1ab1e)
		c[i] = 'a' + byte(x%26)
		c[i+1] = 'a' + byte(x>>8%26)
		c[i+2] = 'a' + byte(x>>16%26)
		c[i+3] = ' '
	}
	return &scribe{corpus: c}
}

// mix hashes two words: the finalizer of splitmix64 over their sum in golden
// ratio steps.
func mix(a, b uint64) uint64 {
	x := a + (b+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// text appends the prompt, exactly tokens x 4 bytes.
func (s *scribe) text(dst []byte, p prompt) []byte {
	left := p.tokens * bytesPerToken
	for _, b := range p.prefix {
		for id := b.First; id <= b.Last && left > 0; id++ {
			n := min(b.Tokens*bytesPerToken, left)
			dst = s.block(dst, mix(p.salt, id), n)
			left -= n
		}
	}
	return s.block(dst, mix(p.salt^0xffff, p.unique), left)
}

// block appends n bytes that the identity determines. A shorter block of the
// same identity is a prefix of a longer one.
func (s *scribe) block(dst []byte, id uint64, n int) []byte {
	for i := uint64(0); n > 0; i++ {
		h := mix(id, i)
		seg := min(n, segmentBytes)
		n -= seg
		var marker [markerBytes]byte
		for j := range marker {
			marker[j] = 'a' + byte(h>>(4*j)&15)
		}
		dst = append(dst, marker[:min(seg, markerBytes)]...)
		if rest := seg - markerBytes; rest > 0 {
			at := int(h>>32%(corpusBytes/bytesPerToken)) * bytesPerToken
			dst = append(dst, s.corpus[at:at+rest]...)
		}
	}
	return dst
}

// bodyForm is the request body of a surface around its prompt.
type bodyForm struct {
	head   []byte // up to the prompt's first byte
	tail   []byte // behind it, with stream false
	stream []byte // the same with stream true
}

// newBodyForm prepares the constant parts.
func newBodyForm(s inference.Surface, model string, r Request) bodyForm {
	open, end, limit := `"messages":[{"role":"user","content":"`, `"}]`, `"max_tokens":`
	switch s {
	case inference.Completions:
		open, end = `"prompt":"`, `"`
	case inference.Embeddings:
		open, end, limit = `"input":"`, `"`, ""
	case inference.Responses:
		open, end, limit = `"input":"`, `"`, `"max_output_tokens":`
	}
	var f bodyForm
	f.head = append([]byte(`{"model":`), jsonString(model)...)
	f.head = append(f.head, ',')
	f.head = append(f.head, open...)
	f.tail = []byte(end)
	if r.Temperature >= 0 && s != inference.Embeddings {
		f.tail = strconv.AppendFloat(append(f.tail, `,"temperature":`...), r.Temperature, 'g', -1, 64)
	}
	if limit != "" {
		f.tail = append(f.tail, ',')
		f.tail = strconv.AppendInt(append(f.tail, limit...), int64(r.MaxTokens), 10)
	}
	f.stream = append(bytes.Clone(f.tail), `,"stream":true`...)
	if r.IncludeUsage && (s == inference.Chat || s == inference.Completions) {
		f.stream = append(f.stream, `,"stream_options":{"include_usage":true}`...)
	}
	return f
}

// end returns what follows the prompt, without the user field and the last brace.
func (f bodyForm) end(stream bool) []byte {
	if stream {
		return f.stream
	}
	return f.tail
}
