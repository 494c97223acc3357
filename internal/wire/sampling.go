package wire

import (
	"bytes"
	"math"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// readSampling notes what says whether the same request gets the same answer. A name
// with escapes may be that of a member that matters.
func (s *scanner) readSampling(key []byte, v jsontext.Value) error {
	s.live = s.live || bytes.IndexByte(key, '\\') >= 0
	switch string(key) {
	case "temperature":
		if v.Kind() == '0' {
			t, err := strconv.ParseFloat(string(v), 64)
			s.fixed = s.fixed || err == nil && t == 0
		}
	case "seed":
		s.fixed = s.fixed || fixedSeed(v)
	case "web_search_options", "previous_response_id", "conversation", "background", "container", "mcp_servers", "search_parameters", "enable_search", "plugins":
		s.live = s.live || v.Kind() != 'n' && v.Kind() != 'f'
	case "tools":
		if v.Kind() == '[' {
			return s.readTools(v)
		}
	}
	return nil
}

// fixedSeed says whether a seed is one: to llama.cpp 2^32-1 means a random one, and
// what is that once it is cut to 32 bits, such as -1, which vLLM takes for none.
func fixedSeed(v jsontext.Value) bool {
	n, err := strconv.ParseUint(string(v), 10, 64)
	return err == nil && uint32(n) != math.MaxUint32
}

// readTools looks for tools that the server itself runs, whose results change:
// all but functions, and Anthropic's, which have no type or the type custom.
func (s *scanner) readTools(v jsontext.Value) error {
	d := newDecoder(v)
	defer d.done()
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for k := d.PeekKind(); k != ']'; k = d.PeekKind() {
		if k != '{' {
			if err := d.SkipValue(); err != nil {
				return err
			}
			continue
		}
		if _, err := d.members(func(name []byte) error {
			v, err := d.ReadValue()
			if err == nil && (string(name) == `"type"` || bytes.IndexByte(name, '\\') >= 0) {
				s.live = s.live || string(v) != `"function"` && string(v) != `"custom"`
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
