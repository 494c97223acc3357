// Package cachetest checks that a level of the cache keeps the contract of
// cache.Level, and makes the entries that tests of levels use.
//
// TestLevel holds for levels that take the time from their caller as well as for
// those with a clock of their own: every instant in it is near the real time, and
// what must be gone is gone by both.
package cachetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/inference"
)

// Key is the key that NewEntry gives to an entry of this name.
func Key(name string) cache.Key { return sha256.Sum256([]byte(name)) }

// NewEntry makes an entry of three events, stored now, fresh for an hour and kept
// for two. Its key and texts follow from its name. The caller may change it before
// it is given to a level.
func NewEntry(name string, now time.Time) *cache.Entry {
	now = now.Truncate(time.Millisecond) // what the binary form keeps
	quoted, err := json.Marshal(name)
	if err != nil {
		quoted = []byte(`""`)
	}
	e := cache.NewEntry(cache.Entry{
		Key: Key(name), Scope: "tenant", Model: "m", Surface: inference.Chat, Question: "what is " + name + "?",
		Stored: now, Expires: now.Add(time.Hour), Stale: now.Add(2 * time.Hour), Hits: 3,
		Answer: &inference.Transcript{
			Fields: []inference.HeaderField{{Name: "Content-Type", Value: "text/event-stream"}, {Name: "X-Request-Id", Value: name}},
			Usage:  inference.Usage{PromptTokens: 5, CompletionTokens: 1, CachedTokens: 2, ReasoningTokens: 1},
		},
	})
	Event(e, 180*time.Millisecond, fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{"content":%s}}]}`+"\n\n", quoted))
	Event(e, 20*time.Millisecond, `data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}`+"\n\n")
	e.Answer.Marks[1].Usage = true
	Event(e, 0, "data: [DONE]\n\n")
	return e
}

// Event appends an event to a stream that no level has yet.
func Event(e *cache.Entry, wait time.Duration, text string) {
	t := e.Answer
	t.Body = append(t.Body, text...)
	t.Marks = append(t.Marks, inference.Mark{End: uint32(len(t.Body)), Wait: uint32(wait.Microseconds())})
}

// OnePiece gives an entry an answer that is not a stream.
func OnePiece(e *cache.Entry, body []byte) *cache.Entry {
	e.Answer = &inference.Transcript{
		Fields: []inference.HeaderField{{Name: "Content-Type", Value: "application/json"}},
		Body:   body, Usage: e.Answer.Usage,
	}
	return e
}

// Noise is n bytes that do not pack, the same for the same seed.
func Noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+8)
	for len(b) < n {
		v := r.Uint64()
		for range 8 {
			b = append(b, byte(v))
			v >>= 8
		}
	}
	return b[:n]
}

// Diff says how two entries differ, or nothing. The answer that is put together
// from events does not count: it can be made again. A stream without events is
// not an answer in one piece.
func Diff(want, got *cache.Entry) string {
	if want == nil || got == nil || want.Answer == nil || got.Answer == nil {
		return cmp.Diff(want, got)
	}
	a, b := want.Answer, got.Answer
	switch {
	case a.Stream() != b.Stream():
		return fmt.Sprintf("stream: %v, want %v", b.Stream(), a.Stream())
	case !bytes.Equal(a.Body, b.Body):
		at := 0
		for at < min(len(a.Body), len(b.Body)) && a.Body[at] == b.Body[at] {
			at++
		}
		return fmt.Sprintf("body of %d bytes, want %d, differs at %d: %.40q, want %.40q", len(b.Body), len(a.Body), at, b.Body[at:], a.Body[at:])
	case !slices.Equal(a.Marks, b.Marks):
		return cmp.Diff(a.Marks, b.Marks)
	}
	return cmp.Diff(want, got,
		cmpopts.IgnoreFields(inference.Transcript{}, "Whole", "Body", "Marks"), // cmp is slow on long ones
		cmpopts.IgnoreUnexported(cache.Entry{}),
		cmpopts.EquateEmpty(),
	)
}

// copyOf is an entry that shares nothing with e.
func copyOf(e *cache.Entry) *cache.Entry {
	c, t := *e, *e.Answer
	t.Fields = append([]inference.HeaderField(nil), t.Fields...)
	t.Body = bytes.Clone(t.Body)
	if t.Marks != nil {
		t.Marks = append(make([]inference.Mark, 0, len(t.Marks)), t.Marks...)
	}
	c.Answer = &t
	return &c
}
