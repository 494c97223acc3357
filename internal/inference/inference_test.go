package inference_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

func TestBytes(t *testing.T) {
	for text, want := range map[string]inference.Bytes{
		"0": 0, "65536": 65536, "64KiB": 65536, "32 MiB": 32 << 20, "1GiB": 1 << 30, "1kB": 1000, "2.5MB": 2_500_000, "7B": 7, "-1": -1,
	} {
		var got inference.Bytes
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q: got %d, %v; want %d", text, got, err, want)
		}
		var again inference.Bytes
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != got {
			t.Errorf("%q: %q does not read back: %d, %v", text, got.String(), again, err)
		}
	}
	for _, text := range []string{"", "x", "1XB", "0.5", "NaN", "Inf", "1e30", "MiB", "0x10"} {
		var got inference.Bytes
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q: got %d, want an error", text, got)
		}
	}
}

func TestSurfaces(t *testing.T) {
	for _, s := range inference.Surfaces() {
		got, ok := inference.ParseSurface(s.String())
		if !ok || got != s || s.Path() == "" {
			t.Errorf("%v: got %v, %v", s, got, ok)
		}
	}
	if _, ok := inference.ParseSurface("unknown"); ok || inference.Surface(200).String() != "unknown" {
		t.Error("a surface that does not exist was found")
	}
}

func TestClasses(t *testing.T) {
	order := []inference.Class{inference.Idle, inference.Batch, inference.Normal, inference.VIP}
	for i, c := range order {
		if c.Urgency() != i {
			t.Errorf("%v: urgency %d, want %d", c, c.Urgency(), i)
		}
		got, ok := inference.ParseClass(c.String())
		if ok == (c == inference.Idle) || ok && got != c {
			t.Errorf("%v: got %v, %v", c, got, ok)
		}
	}
}

func TestPromptTokens(t *testing.T) {
	r := inference.Request{Body: make([]byte, 100)}
	if r.PromptTokens() != 25 {
		t.Errorf("without a prompt: got %d", r.PromptTokens())
	}
	r.PromptAt = inference.Span{Start: 10, End: 15}
	if r.PromptTokens() != 2 || len(r.Prompt()) != 5 {
		t.Errorf("got %d tokens, %d bytes; want 2, 5", r.PromptTokens(), len(r.Prompt()))
	}
	r.PromptBytes, r.Images = 3, 2
	if got := r.PromptTokens(); got != 1+2*inference.ImageTokens {
		t.Errorf("with images: got %d", got)
	}
}

func TestGaps(t *testing.T) {
	var g inference.Gaps
	for _, d := range []time.Duration{0, time.Millisecond, time.Millisecond + 1, time.Hour} {
		g.Observe(d)
	}
	if g.Counts[0] != 2 || g.Counts[1] != 1 || g.Counts[len(g.Counts)-1] != 1 || g.Sum != time.Hour+2*time.Millisecond+1 {
		t.Errorf("got %+v", g)
	}
}

func TestVerdictNames(t *testing.T) {
	seen := map[string]bool{}
	for v := inference.VerdictOK; v <= inference.VerdictCanceled; v++ {
		seen[v.String()] = true
	}
	if len(seen) != 6 || inference.Verdict(99).String() != "unknown" {
		t.Errorf("got %v", seen)
	}
}

func TestUsageUpdate(t *testing.T) {
	u := inference.Usage{PromptTokens: 5, CompletionTokens: 1, CachedTokens: 2}
	u.Update(inference.Usage{CompletionTokens: 13, ReasoningTokens: 4})
	u.Update(inference.Usage{})
	if want := (inference.Usage{PromptTokens: 5, CompletionTokens: 13, CachedTokens: 2, ReasoningTokens: 4}); u != want {
		t.Errorf("got %+v, want %+v", u, want)
	}
}

// TestSpent is the definition of what a request is charged for.
func TestSpent(t *testing.T) {
	reported := inference.Usage{PromptTokens: 5, CompletionTokens: 13}
	unread := inference.Usage{PromptTokens: 10, CompletionTokens: 1} // a token for 4 bytes
	tried := []inference.Attempt{{}}
	request := func(stream bool) *inference.Request {
		return &inference.Request{Fields: inference.Fields{PromptBytes: 40, Stream: stream}}
	}
	for name, c := range map[string]struct {
		rec       inference.Record
		want      inference.Usage
		estimated bool
	}{
		"reported":                     {inference.Record{Attempts: tried, Usage: reported}, reported, false},
		"kept":                         {inference.Record{Usage: reported}, inference.Usage{}, false},
		"kept, after attempts":         {inference.Record{Attempts: tried, Usage: reported, Borrowed: true}, inference.Usage{}, false},
		"nothing was generated":        {inference.Record{Attempts: tried, Code: inference.CodeCanceled}, inference.Usage{}, false},
		"a stream that was left":       {inference.Record{Attempts: tried, Code: inference.CodeCanceled, TTFT: 1, Tokens: 3}, inference.Usage{PromptTokens: 10, CompletionTokens: 3}, true},
		"one piece, generated in part": {inference.Record{Attempts: tried, Code: inference.CodeCanceled, Tokens: 3}, inference.Usage{PromptTokens: 10, CompletionTokens: 3}, true},
		"one piece, left on the way":   {inference.Record{Attempts: tried, Code: inference.CodeCanceled, Bytes: 3}, unread, true},
		"one piece, whole":             {inference.Record{Attempts: tried, Complete: true, Bytes: 3}, unread, true},
	} {
		c.rec.Request = request(strings.Contains(name, "stream"))
		got, estimated := c.rec.Spent()
		if got != c.want || estimated != c.estimated {
			t.Errorf("%s: got %+v, %t; want %+v, %t", name, got, estimated, c.want, c.estimated)
		}
	}
}
