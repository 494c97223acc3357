package load

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"
)

// plain undoes gzip when r is compressed.
func plain(r io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(2)
	if err != nil || magic[0] != 0x1f || magic[1] != 0x8b {
		return br, nil // a short or plain file: its reader judges it
	}
	return gzip.NewReader(br)
}

// csvRows reads rows from CSV whose columns are found by name.
type csvRows struct {
	r     *csv.Reader
	cols  []int
	parse func(p *csvParser) Row
	p     csvParser
	n     int
}

// csvParser hands the wanted columns of one record to a format and keeps its
// first mistake.
type csvParser struct {
	values []string
	base   time.Time // of the first row, for formats with a calendar
	err    error
}

func (p *csvParser) number(i int) int {
	n, err := strconv.Atoi(p.values[i])
	p.keep(err)
	return n
}

func (p *csvParser) seconds(i int) time.Duration {
	f, err := strconv.ParseFloat(p.values[i], 64)
	p.keep(err)
	d, err := seconds(f)
	p.keep(err)
	return d
}

func (p *csvParser) keep(err error) {
	if p.err == nil {
		p.err = err
	}
}

// seconds converts a number of seconds that a time.Duration can hold.
func seconds(f float64) (time.Duration, error) {
	if !(f >= 0 && f < math.MaxInt64/float64(2*time.Second)) {
		return 0, errRange
	}
	return time.Duration(math.Round(f * float64(time.Second))), nil
}

// newCSV reads the header line and finds the columns by their names.
func newCSV(src io.Reader, parse func(*csvParser) Row, columns ...string) (Rows, error) {
	r := csv.NewReader(src)
	r.ReuseRecord = true
	header, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	c := &csvRows{r: r, parse: parse, p: csvParser{values: make([]string, len(columns))}}
	for _, name := range columns {
		i := slices.Index(header, name)
		if i < 0 {
			return nil, fmt.Errorf("header has no column %q", name)
		}
		c.cols = append(c.cols, i)
	}
	return c, nil
}

// Next implements Rows.
func (c *csvRows) Next() (Row, error) {
	rec, err := c.r.Read()
	if err != nil {
		return Row{}, err
	}
	c.n++
	for i, col := range c.cols {
		c.p.values[i] = rec[col]
	}
	row := c.parse(&c.p)
	if c.p.err == nil {
		row, c.p.err = row.sane()
	}
	if c.p.err != nil {
		return Row{}, fmt.Errorf("row %d: %w", c.n, c.p.err)
	}
	return row, nil
}

// azureRow has instants of a calendar without a time zone.
func azureRow(p *csvParser) Row {
	at, err := time.Parse("2006-01-02 15:04:05", p.values[0])
	p.keep(err)
	if p.base.IsZero() {
		p.base = at
	}
	return Row{At: at.Sub(p.base), Input: p.number(1), Output: p.number(2)}
}

func arenaRow(p *csvParser) Row {
	return Row{At: p.seconds(0), Client: p.values[1], Input: p.number(2), Output: p.number(3)}
}

// lineRows reads rows from JSON lines.
type lineRows struct {
	s     *bufio.Scanner
	parse func(line []byte, first *time.Duration) (Row, error)
	first time.Duration // of the trace, set by formats whose clock does not begin at 0
	n     int
}

// scanLines splits src into lines of bounded length.
func scanLines(src io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(src)
	s.Buffer(make([]byte, 0, 64<<10), maxLineSize)
	return s
}

func newLines(src io.Reader, parse func([]byte, *time.Duration) (Row, error)) *lineRows {
	return &lineRows{s: scanLines(src), parse: parse, first: -1}
}

// Next implements Rows.
func (l *lineRows) Next() (Row, error) {
	for l.s.Scan() {
		l.n++
		if len(bytes.TrimSpace(l.s.Bytes())) == 0 {
			continue
		}
		row, err := l.parse(l.s.Bytes(), &l.first)
		if err == nil {
			row, err = row.sane()
		}
		if err != nil {
			return Row{}, fmt.Errorf("line %d: %w", l.n, err)
		}
		return row, nil
	}
	if err := l.s.Err(); err != nil {
		return Row{}, fmt.Errorf("line %d: %w", l.n+1, err)
	}
	return Row{}, io.EOF
}

// mooncakeBlock is the length of one block of a Mooncake trace, in tokens.
const mooncakeBlock = 512

func mooncakeRow(line []byte, _ *time.Duration) (Row, error) {
	var v struct {
		Timestamp float64  `json:"timestamp"`
		Input     int      `json:"input_length"`
		Output    int      `json:"output_length"`
		HashIDs   []uint64 `json:"hash_ids"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return Row{}, err
	}
	at, err := seconds(v.Timestamp / 1000)
	return Row{At: at, Input: v.Input, Output: v.Output, Prefix: runs(v.HashIDs, mooncakeBlock)}, err
}

// runs joins consecutive ids, which is what most lists of blocks consist of.
func runs(ids []uint64, tokens int) []Blocks {
	var out []Blocks
	for _, id := range ids {
		if n := len(out); n > 0 && out[n-1].Last+1 == id && id != 0 {
			out[n-1].Last = id
			continue
		}
		out = append(out, Blocks{First: id, Last: id, Tokens: tokens})
	}
	return out
}

// vllmRow has Unix times of arrival; the first row is the origin.
func vllmRow(line []byte, first *time.Duration) (Row, error) {
	var v struct {
		Input   int     `json:"input_toks"`
		Output  int     `json:"output_toks"`
		Arrival float64 `json:"arrival_time"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return Row{}, err
	}
	at, err := seconds(v.Arrival)
	if *first < 0 {
		*first = at
	}
	return Row{At: max(0, at-*first), Input: v.Input, Output: v.Output}, err
}

// components holds the lengths in tokens of RAGPulse's prompt components by
// id. Ids are distinct over all components.
type components map[uint64]int

// Mean lengths of RAGPulse's components, from its table of 26,924 components:
// used where the table is not at hand.
const (
	ragSystem  = 453
	ragPassage = 241
	ragHistory = 331
	ragWeb     = 412
	ragUser    = 8
)

// readComponents reads the table component,id,token_length.
func readComponents(r io.Reader) (components, error) {
	src, err := plain(r)
	if err != nil {
		return nil, err
	}
	rows, err := newCSV(src, func(p *csvParser) Row {
		return Row{Input: p.number(0), Output: p.number(1)}
	}, "id", "token_length")
	if err != nil {
		return nil, err
	}
	c := components{}
	for len(c) < 1<<20 {
		row, err := rows.Next()
		if err == io.EOF {
			return c, nil
		}
		if err != nil {
			return nil, err
		}
		c[uint64(row.Input)] = row.Output
	}
	return nil, fmt.Errorf("more than %d components", len(c))
}

// row reads a line whose prompt is made of identified components.
func (c components) row(line []byte, _ *time.Duration) (Row, error) {
	var v struct {
		Timestamp string `json:"timestamp"`
		Input     int    `json:"input_length"`
		Output    int    `json:"output_length"`
		Session   string `json:"session_id"`
		HashIDs   struct {
			System   []uint64 `json:"sys_prompt"`
			Passages []uint64 `json:"passages_ids"`
			History  []uint64 `json:"history"`
			Web      []uint64 `json:"web_search"`
			User     []uint64 `json:"user_input"`
		} `json:"hash_ids"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return Row{}, err
	}
	f, err := strconv.ParseFloat(v.Timestamp, 64)
	if err != nil {
		return Row{}, err
	}
	at, err := seconds(f)
	row := Row{At: at, Input: v.Input, Output: v.Output, Session: v.Session}
	row.Prefix = c.blocks(row.Prefix, v.HashIDs.System, ragSystem)
	row.Prefix = c.blocks(row.Prefix, v.HashIDs.Passages, ragPassage)
	row.Prefix = c.blocks(row.Prefix, v.HashIDs.History, ragHistory)
	row.Prefix = c.blocks(row.Prefix, v.HashIDs.Web, ragWeb)
	row.Prefix = c.blocks(row.Prefix, v.HashIDs.User, ragUser)
	return row, err
}

// blocks appends one block per id, mean tokens long where the table is silent.
func (c components) blocks(dst []Blocks, ids []uint64, mean int) []Blocks {
	for _, id := range ids {
		n, ok := c[id]
		if !ok {
			n = mean
		}
		if n > 0 {
			dst = append(dst, Blocks{First: id, Last: id, Tokens: n})
		}
	}
	return dst
}
