// Package drive is what the drivers of openai-go's major versions share: the
// cases' results and the loop over them, and over a case's turns.
package drive

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
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
	Turns     []Turn   `json:"turns,omitempty"`
	Repeats   int      `json:"repeats,omitempty"` // turns that had to be taken again
}

// Turn is what came of asking once for an answer that the cache keeps.
type Turn struct {
	Cache     string            `json:"cache,omitempty"` // the header field
	Chunks    []json.RawMessage `json:"chunks,omitempty"`
	Answer    json.RawMessage   `json:"answer,omitempty"`
	Vector    []float64         `json:"vector,omitempty"`
	Content   string            `json:"content,omitempty"`
	Finish    string            `json:"finish,omitempty"`
	Usage     int64             `json:"usage,omitempty"`
	Reasoning string            `json:"reasoning,omitempty"`
	Unknown   string            `json:"unknown,omitempty"`
	Tools     []Call            `json:"tools,omitempty"`
	Status    int               `json:"status,omitempty"`
	Code      string            `json:"code,omitempty"`
}

// Call is a call of a tool.
type Call struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
}

// Raised is the error with which a stream ended.
type Raised struct {
	Name    string `json:"name"`
	Message string `json:"message"`
}

// Main runs the cases behind the base URL on the command line. A case's name is its
// first word.
func Main(cases func(baseURL string) map[string]func(*Result) error) {
	run := cases(os.Args[1])
	out := json.NewEncoder(os.Stdout)
	for _, arg := range os.Args[2:] {
		r := Result{Case: arg}
		name, _, _ := strings.Cut(arg, " ")
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

// Take takes the turns that stand behind the case's name and its question: in order,
// those joined by + at the same time, with a moment between, in which a generation
// ends whose client left at the terminal event. Its answer may still be on its way into
// the cache: what joins it is asked again. Take returns the first error.
func (r *Result) Take(turn func(kind, question string, t *Turn) error) error {
	words := strings.Fields(r.Case)
	for i, group := range words[2:] {
		ask := func(kind string, t *Turn) error { return turn(kind, words[1], t) }
		if i > 0 {
			time.Sleep(50 * time.Millisecond)
		}
		turns, err := together(strings.Split(group, "+"), ask)
		for err == nil && i > 0 && turns[0].Cache == "coalesced" && r.Repeats < 500 {
			r.Repeats++
			time.Sleep(10 * time.Millisecond)
			turns, err = together(strings.Split(group, "+"), ask)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
		r.Turns = append(r.Turns, turns...)
	}
	return nil
}

// together takes turns at the same time.
func together(kinds []string, ask func(kind string, t *Turn) error) ([]Turn, error) {
	turns, errs := make([]Turn, len(kinds)), make([]error, len(kinds))
	var wg sync.WaitGroup
	for i, kind := range kinds {
		wg.Go(func() { errs[i] = ask(kind, &turns[i]) })
	}
	wg.Wait()
	return turns, errors.Join(errs...)
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
