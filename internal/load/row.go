package load

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Row is one request of a workload.
type Row struct {
	// At is the row's instant since the trace's beginning, at native speed.
	At time.Duration
	// Input and Output are lengths in tokens, at least 1.
	Input, Output int
	// Client is the label of who sent it, empty where the trace has none.
	Client string
	// Session is the conversation it belongs to, empty where the trace has none.
	Session string
	// Think is the time between the previous answer of the session and this request.
	Think time.Duration
	// Prefix are the identified blocks that the prompt begins with.
	Prefix []Blocks
}

// Blocks is a run of prompt blocks with the consecutive identities First to
// Last, each Tokens long. Equal identity and length mean equal text.
type Blocks struct {
	First, Last uint64
	Tokens      int
}

// Rows yields the rows of one pass in the order of their instants; io.EOF
// ends it. It is for one goroutine.
type Rows interface {
	Next() (Row, error)
}

// Bounds on one row, against broken or hostile files.
const (
	maxTokens   = 16 << 20 // tokens of one prompt or answer: a body of 64 MiB
	maxSpans    = 1 << 16  // block runs of one prompt
	maxLineSize = 4 << 20  // bytes of one line; the longest known is 0.5 MB
	maxLabel    = 128      // bytes of a client or session label that are kept
)

// errRange says that a number of a row cannot be true.
var errRange = errors.New("value out of range")

// Format is a trace format by the name of its reference file.
type Format string

// The known formats.
const (
	// Azure2023 is CSV with TIMESTAMP, ContextTokens, GeneratedTokens.
	Azure2023 Format = "azure-2023"
	// Mooncake is JSON lines with timestamp (ms) and hash_ids of 512-token blocks.
	Mooncake Format = "mooncake"
	// Arena is CSV with client, prompt_len, output_len, req_time_s.
	Arena Format = "arena"
	// RAGPulse is JSON lines with timestamp (s) and hash_ids by component.
	RAGPulse Format = "ragpulse"
	// VLLMRun is the request log of a measured vLLM run, JSON lines with arrival_time.
	VLLMRun Format = "vllm-run"
	// AgentSessions are recorded coding sessions without a common clock.
	AgentSessions Format = "agent-sessions"
	// ServeGen are fitted arrival laws per client and window, with a companion file of lengths.
	ServeGen Format = "servegen"
)

// formatMarks are what file names of each format contain.
var formatMarks = []struct {
	mark   string
	format Format
}{
	{"azure-2023", Azure2023},
	{"mooncake", Mooncake},
	{"arena-27clients", Arena},
	{"ragpulse", RAGPulse},
	{"vllm-run", VLLMRun},
	{"agent-coding-sessions", AgentSessions},
	{"servegen", ServeGen},
}

// Formats lists the known formats.
func Formats() []Format {
	out := make([]Format, len(formatMarks))
	for i, m := range formatMarks {
		out[i] = m.format
	}
	return out
}

// DetectFormat finds a trace's format from its file name.
func DetectFormat(name string) (Format, error) {
	base := strings.ToLower(path.Base(strings.ReplaceAll(name, "\\", "/")))
	for _, m := range formatMarks {
		if strings.Contains(base, m.mark) {
			return m.format, nil
		}
	}
	return "", fmt.Errorf("cannot tell the format of %q from its name, name one of %v", base, Formats())
}

// format is the trace's format, named or detected.
func (t Trace) format() (Format, error) {
	if t.Format == "" {
		return DetectFormat(t.Path)
	}
	for _, f := range Formats() {
		if Format(t.Format) == f {
			return f, nil
		}
	}
	return "", fmt.Errorf("unknown format %q, known: %v", t.Format, Formats())
}

// NewRows reads a trace with a clock of its own from r, plain or gzip.
// ServeGen needs [NewServeGen] and AgentSessions [NewSessions].
func NewRows(r io.Reader, f Format) (Rows, error) {
	src, err := plain(r)
	if err != nil {
		return nil, err
	}
	switch f {
	case Azure2023:
		return newCSV(src, azureRow, "TIMESTAMP", "ContextTokens", "GeneratedTokens")
	case Arena:
		return newCSV(src, arenaRow, "req_time_s", "client", "prompt_len", "output_len")
	case Mooncake:
		return newLines(src, mooncakeRow), nil
	case RAGPulse:
		return newLines(src, components{}.row), nil
	case VLLMRun:
		return newLines(src, vllmRow), nil
	default:
		return nil, fmt.Errorf("format %q has no rows with a clock", f)
	}
}

// sane bounds a parsed row. Lengths of 0 occur in recordings and become 1: an
// empty prompt cannot be sent and an empty answer cannot be measured.
func (r Row) sane() (Row, error) {
	if r.Input < 0 || r.Output < 0 || r.Input > maxTokens || r.Output > maxTokens || r.At < 0 || len(r.Prefix) > maxSpans {
		return Row{}, errRange
	}
	r.Input, r.Output = max(r.Input, 1), max(r.Output, 1)
	r.Client, r.Session = label(r.Client), label(r.Session)
	return r, nil
}

// label keeps the printable ASCII of a name, bounded, so that it can stand in
// JSON and header lines as it is.
func label(s string) string {
	if len(s) > maxLabel {
		s = s[:maxLabel]
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '"' || r == '\\' {
			return '_'
		}
		return r
	}, s)
}
