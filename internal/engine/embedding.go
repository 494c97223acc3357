package engine

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxDimensions bounds an embedding's length, so that a small request cannot ask for a huge answer.
const maxDimensions = 8192

// maxInputs bounds the inputs of one embeddings request, as OpenAI does.
const maxInputs = 2048

// embeddingInputs splits the input field: a string, an array of strings, an array of token ids, or an array of those.
func embeddingInputs(v jsontext.Value) ([][]byte, *problem) {
	bad := invalid("input", "input must be a string, an array of at most 2048 strings, or token ids; none of them empty")
	items := []jsontext.Value{v}
	if v.Kind() == '[' {
		var list []jsontext.Value
		if err := json.Unmarshal(v, &list); err != nil || len(list) == 0 {
			return nil, bad
		}
		if kind := list[0].Kind(); kind == '"' || kind == '[' {
			items = list
		}
	}
	if len(items) > maxInputs {
		return nil, bad
	}
	inputs := make([][]byte, 0, len(items))
	for _, item := range items {
		in, err := appendInput(nil, item, true)
		if err != nil || len(in) == 0 {
			return nil, bad
		}
		inputs = append(inputs, in)
	}
	return inputs, nil
}

// embeddingText is the text the work is measured by: all inputs, one after the other.
func embeddingText(p *payload) ([]byte, *problem) {
	inputs, bad := embeddingInputs(p.Input)
	if bad != nil {
		return nil, bad
	}
	var text []byte
	for _, in := range inputs {
		text = append(text, in...)
	}
	return text, nil
}

// appendEmbeddings renders the answer of POST /v1/embeddings: unit vectors that depend on nothing but their input.
func (e *Engine) appendEmbeddings(dst []byte, a *answer, p *payload) []byte {
	dimensions := e.cfg.EmbeddingDimensions
	if p.Dimensions != nil {
		dimensions = *p.Dimensions
	}
	inputs, _ := embeddingInputs(p.Input) // was split once already, without a problem
	dst = append(dst, `{"object":"list","data":[`...)
	for i, in := range inputs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"object":"embedding","index":`...)
		dst = strconv.AppendInt(dst, int64(i), 10)
		dst = append(dst, `,"embedding":`...)
		dst = appendVector(dst, vector(newText(in), dimensions), p.EncodingFormat == "base64")
		dst = append(dst, '}')
	}
	dst = append(append(dst, `],"model":`...), a.model...)
	tokens := strconv.Itoa(a.prompt)
	return append(dst, `,"usage":{"prompt_tokens":`+tokens+`,"total_tokens":`+tokens+`}}`...)
}

// vector derives a unit vector from a text.
func vector(t text, dimensions int) []float32 {
	v := make([]float32, dimensions)
	sum := 0.0
	for i := range v {
		x := float64(int64(t.number(i))) / (1 << 63) // -1 to 1
		v[i] = float32(x)
		sum += x * x
	}
	scale := float32(1 / math.Sqrt(sum))
	for i := range v {
		v[i] *= scale
	}
	return v
}

func appendVector(dst []byte, v []float32, base64Format bool) []byte {
	if base64Format {
		raw := make([]byte, 0, 4*len(v))
		for _, x := range v {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
		}
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, raw)
		return append(dst, '"')
	}
	dst = append(dst, '[')
	for i, x := range v {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendFloat(dst, float64(x), 'g', -1, 32)
	}
	return append(dst, ']')
}
