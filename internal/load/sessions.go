package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Session is one conversation: its rows are sent one after the other, each a
// think time after the answer before it.
type Session struct {
	Name string
	Rows []Row
}

// maxSessionRows bounds the requests of one recorded session.
const maxSessionRows = 1 << 14

// Sessions reads recorded conversations one at a time. It is for one
// goroutine.
//
// A nested conversation (a sub-agent's) becomes a session of its own behind
// the conversation that started it: the recording has no clock common to both.
type Sessions struct {
	lines *bufio.Scanner
	n     int
	held  []byte    // the first line of the next recorded session
	ready []Session // conversations of the last recorded session
}

// NewSessions reads an agent-sessions trace from r, plain or gzip.
func NewSessions(r io.Reader) (*Sessions, error) {
	src, err := plain(r)
	if err != nil {
		return nil, err
	}
	return &Sessions{lines: scanLines(src)}, nil
}

// sessionLine is one line of the trace, of any kind.
type sessionLine struct {
	Kind      string  `json:"kind"`
	Session   string  `json:"session"`
	Agent     string  `json:"agent"`
	BlockSize int     `json:"block_size"`
	Input     int     `json:"in"`
	Output    int     `json:"out"`
	Think     float64 `json:"think_time"`
	HashIDs   string  `json:"hash_ids"`
}

// Next returns the next conversation; io.EOF ends the trace.
func (s *Sessions) Next() (Session, error) {
	for len(s.ready) == 0 {
		if err := s.load(); err != nil {
			return Session{}, err
		}
	}
	next := s.ready[0]
	s.ready = s.ready[1:]
	return next, nil
}

// load reads one recorded session, which is a run of lines, into ready.
func (s *Sessions) load() error {
	name, block, total := "", 64, 0
	index := map[string]int{} // agent -> position in ready
	for {
		line, err := s.line()
		if err == io.EOF && name != "" {
			return nil
		}
		if err != nil {
			return err
		}
		var v sessionLine
		if err := json.Unmarshal(line, &v); err != nil {
			return s.fail(err)
		}
		if v.Session == "" {
			return s.fail(errors.New("no session"))
		}
		if name == "" {
			name = v.Session
		}
		if v.Session != name {
			s.held = bytes.Clone(line)
			return nil
		}
		switch v.Kind {
		case "session":
			block = v.BlockSize
		case "request":
			if total++; total > maxSessionRows {
				return s.fail(fmt.Errorf("session has more than %d requests", maxSessionRows))
			}
			if err := s.add(v, block, index); err != nil {
				return s.fail(err)
			}
		}
	}
}

// add appends a request to its conversation.
func (s *Sessions) add(v sessionLine, block int, index map[string]int) error {
	if block <= 0 || block > maxTokens {
		return errRange
	}
	blocks, err := parseRanges(v.HashIDs, block)
	if err != nil {
		return err
	}
	think, err := seconds(v.Think)
	if err != nil {
		return err
	}
	name := v.Session
	if v.Agent != "" {
		name += "/" + v.Agent
	}
	row, err := Row{Input: v.Input, Output: v.Output, Session: name, Think: think, Prefix: blocks}.sane()
	if err != nil {
		return err
	}
	i, ok := index[v.Agent]
	if !ok {
		i = len(s.ready)
		index[v.Agent] = i
		s.ready = append(s.ready, Session{Name: row.Session})
	}
	s.ready[i].Rows = append(s.ready[i].Rows, row)
	return nil
}

// line returns the held line or the next one that is not blank.
func (s *Sessions) line() ([]byte, error) {
	if s.held != nil {
		line := s.held
		s.held = nil
		return line, nil
	}
	for s.lines.Scan() {
		s.n++
		if len(bytes.TrimSpace(s.lines.Bytes())) > 0 {
			return s.lines.Bytes(), nil
		}
	}
	if err := s.lines.Err(); err != nil {
		return nil, s.fail(err)
	}
	return nil, io.EOF
}

func (s *Sessions) fail(err error) error { return fmt.Errorf("line %d: %w", s.n, err) }

// parseRanges reads "1-247,250".
func parseRanges(text string, tokens int) ([]Blocks, error) {
	var out []Blocks
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 63)
		if err != nil {
			return nil, fmt.Errorf("hash_ids: %w", err)
		}
		last, err := strconv.ParseUint(to, 10, 63)
		if err != nil {
			return nil, fmt.Errorf("hash_ids: %w", err)
		}
		if last < first {
			return nil, fmt.Errorf("hash_ids: range %q runs backwards", part)
		}
		out = append(out, Blocks{First: first, Last: last, Tokens: tokens})
	}
	return out, nil
}
