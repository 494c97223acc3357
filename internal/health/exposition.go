package health

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// maxLine is the longest line of an exposition, and so the memory that reading
// one takes. Engines write lines of a few hundred bytes.
const maxLine = 64 << 10

// selector picks the series of one metric.
type selector struct {
	name   string
	labels map[string]string // that a series must have
	first  []string          // labels that must be absent or "0": ranks that repeat rank 0's numbers
}

// total is what a selector found.
type total struct {
	sum    float64
	series int // how many series were added up; 0 is a missing metric
}

// errExposition marks a text that is not in Prometheus' format.
var errExposition = errors.New("not Prometheus' text format")

// scan reads Prometheus' text format 0.0.4 and adds up, for each selector, the
// series that match it. Lines of other metrics are looked at no further than
// their name, so a histogram costs nothing. A value that is NaN is missing. More
// than maxListing bytes are an error, because a part would add up to too little.
func scan(body io.Reader, want []selector) ([]total, error) {
	counted := &counter{r: body}
	lines := bufio.NewScanner(counted)
	lines.Buffer(make([]byte, 4096), maxLine)
	totals := make([]total, len(want))
	var labels []label
	for lines.Scan() {
		line := bytes.TrimLeft(lines.Bytes(), " \t")
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		end := nameEnd(line)
		name, rest := line[:end], line[end:]
		if !wanted(name, want) {
			continue
		}
		var value float64
		var err error
		if labels, value, err = sample(rest, labels[:0]); err != nil {
			return nil, fmt.Errorf("%w: metric %q: %w", errExposition, name, err)
		}
		if math.IsNaN(value) {
			continue
		}
		for i := range want {
			if want[i].name == string(name) && want[i].matches(labels) {
				totals[i].sum += value
				totals[i].series++
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if counted.n > maxListing {
		return nil, fmt.Errorf("metrics: more than %d bytes", maxListing)
	}
	return totals, nil
}

// wanted says whether a selector asks for the metric.
func wanted(name []byte, want []selector) bool {
	for i := range want {
		if want[i].name == string(name) {
			return true
		}
	}
	return false
}

// label is one label of a series. The value is as written, or unescaped where it
// holds a backslash.
type label struct{ name, value []byte }

// matches says whether a series with these labels is asked for.
func (s *selector) matches(labels []label) bool {
	found := 0
	for _, l := range labels {
		if v, ok := s.labels[string(l.name)]; ok {
			if v != string(l.value) {
				return false
			}
			found++
		}
		for _, rank := range s.first {
			if rank == string(l.name) && string(l.value) != "0" {
				return false
			}
		}
	}
	return found == len(s.labels)
}

// nameEnd is the length of the metric name at the start of line.
func nameEnd(line []byte) int {
	for i, c := range line {
		if !nameByte(c) {
			return i
		}
	}
	return len(line)
}

// nameByte says whether c may stand in a metric's or label's name.
func nameByte(c byte) bool {
	return c == '_' || c == ':' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// sample reads what follows a metric's name: labels, the value, and perhaps a
// time stamp, which is ignored as is all behind it.
func sample(rest []byte, labels []label) ([]label, float64, error) {
	rest = bytes.TrimLeft(rest, " \t")
	if len(rest) > 0 && rest[0] == '{' {
		var err error
		if labels, rest, err = labelSet(rest[1:], labels); err != nil {
			return nil, 0, err
		}
	}
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return nil, 0, errors.New("no value")
	}
	v, err := strconv.ParseFloat(string(fields[0]), 64)
	if err != nil {
		return nil, 0, fmt.Errorf("value %q", fields[0])
	}
	return labels, v, nil
}

// labelSet reads labels up to the closing brace and returns what follows it.
func labelSet(rest []byte, labels []label) ([]label, []byte, error) {
	for {
		rest = bytes.TrimLeft(rest, " \t,")
		if len(rest) == 0 {
			return nil, nil, errors.New("labels do not end")
		}
		if rest[0] == '}' {
			return labels, rest[1:], nil
		}
		var l label
		end := nameEnd(rest)
		l.name, rest = rest[:end], bytes.TrimLeft(rest[end:], " \t")
		if end == 0 || len(rest) == 0 || rest[0] != '=' {
			return nil, nil, errors.New("a label without name or value")
		}
		rest = bytes.TrimLeft(rest[1:], " \t")
		if len(rest) == 0 || rest[0] != '"' {
			return nil, nil, errors.New("a label without a quoted value")
		}
		var err error
		if l.value, rest, err = quoted(rest[1:]); err != nil {
			return nil, nil, err
		}
		labels = append(labels, l)
	}
}

// quoted reads a label's value up to the closing quote.
func quoted(rest []byte) (value, after []byte, err error) {
	escaped := false
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if value = rest[:i]; escaped {
				value = unescape(value)
			}
			return value, rest[i+1:], nil
		}
	}
	return nil, nil, errors.New("a label value does not end")
}

// unescape resolves \\, \" and \n.
func unescape(s []byte) []byte {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
			if s[i] == 'n' {
				out = append(out, '\n')
				continue
			}
		}
		out = append(out, s[i])
	}
	return out
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}
