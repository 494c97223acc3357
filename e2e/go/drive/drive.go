// Package drive is what the drivers of openai-go's major versions share: the
// cases' results and the loop over them.
package drive

import (
	"encoding/json"
	"fmt"
	"os"
)

// Result is what came of one case, one JSON line.
type Result struct {
	Case      string   `json:"case"`
	Failure   string   `json:"failure,omitempty"` // the driver's own
	IDs       []string `json:"ids,omitempty"`
	Length    int      `json:"length,omitempty"`
	Chunks    int      `json:"chunks,omitempty"`
	Content   string   `json:"content,omitempty"`
	Finish    string   `json:"finish,omitempty"`
	Usage     int64    `json:"usage,omitempty"`
	Tool      string   `json:"tool,omitempty"`
	Arguments string   `json:"arguments,omitempty"`
	Reasoning string   `json:"reasoning,omitempty"`
	Unknown   string   `json:"unknown,omitempty"`
	Status    int      `json:"status,omitempty"`
	Code      string   `json:"code,omitempty"`
	Message   string   `json:"message,omitempty"`
	Raised    *Raised  `json:"raised,omitempty"`
}

// Raised is the error with which a stream ended.
type Raised struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

// Main runs the cases named behind the base URL on the command line.
func Main(cases func(baseURL string) map[string]func(*Result) error) {
	run := cases(os.Args[1])
	out := json.NewEncoder(os.Stdout)
	for _, name := range os.Args[2:] {
		r := Result{Case: name}
		if f := run[name]; f == nil {
			r.Failure = "unknown case"
		} else if err := f(&r); err != nil {
			r.Failure = err.Error()
		}
		if err := out.Encode(r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// Raise notes the error of a stream; nil is none.
func (r *Result) Raise(err error) {
	if err != nil {
		r.Raised = &Raised{Name: fmt.Sprintf("%T", err), Message: err.Error()}
	}
}

// Text is a JSON string's value, and "" for anything else.
func Text(raw string) string {
	var s string
	_ = json.Unmarshal([]byte(raw), &s) // not a string: ""
	return s
}
