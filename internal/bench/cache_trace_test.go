package bench_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/bench"
)

// excerpt is a replay of the trace's first questions.
func excerpt() bench.CacheTrace {
	c := bench.DefaultCacheTrace()
	c.Trace = filepath.Join("testdata", "ragpulse-days0-3-excerpt.jsonl.gz")
	c.Drawn = 0
	return c
}

// play replays it.
func play(t *testing.T, c bench.CacheTrace) *bench.CacheTraceResult {
	t.Helper()
	r, err := c.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ceilings counts what could be hit at most, straight from the file.
func ceilings(t *testing.T, file string, ttl int) (fromMaking, fromAsking int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	made, last := make(map[int]int), make(map[int]int)
	for lines := json.NewDecoder(z); lines.More(); {
		var v struct {
			Timestamp int `json:"timestamp,string"`
			HashIDs   struct {
				User []int `json:"user_input"`
			} `json:"hash_ids"`
		}
		if err := lines.Decode(&v); err != nil || len(v.HashIDs.User) != 1 {
			t.Fatalf("%+v: %v", v, err)
		}
		id := v.HashIDs.User[0]
		if at, ok := made[id]; ok && v.Timestamp-at <= ttl {
			fromMaking++
		} else {
			made[id] = v.Timestamp
		}
		if at, ok := last[id]; ok && v.Timestamp-at <= ttl {
			fromAsking++
		}
		last[id] = v.Timestamp
	}
	return fromMaking, fromAsking
}

func TestCacheTraceCeilings(t *testing.T) {
	c := excerpt()
	rows := play(t, c).Rows
	if len(rows) != 3 {
		t.Fatalf("got %d rows, want one a lifetime", len(rows))
	}
	for _, row := range rows {
		ttl := 1 << 40
		if row.TTL > 0 {
			ttl = int(row.TTL / time.Second)
		}
		making, asking := ceilings(t, c.Trace, ttl)
		if row.Ceiling != making || row.CeilingIfAsked != asking || making == 0 {
			t.Errorf("TTL %v: got ceilings %d and %d, want %d and %d", row.TTL, row.Ceiling, row.CeilingIfAsked, making, asking)
		}
		if row.Asked != 600 || row.Distinct < 500 || row.Entries != row.Distinct/10 {
			t.Errorf("got %d questions, %d distinct, %d entries", row.Asked, row.Distinct, row.Entries)
		}
	}
}

// With room for everything nothing is lost, and without end nothing can be gained.
func TestCacheTraceWithRoomForAll(t *testing.T) {
	c := excerpt()
	c.Share = 1
	for _, row := range play(t, c).Rows {
		if row.Plain != row.Ceiling || row.LRU != row.Ceiling {
			t.Errorf("TTL %v: got %d hits, LRU %d, want the ceiling %d", row.TTL, row.Plain, row.LRU, row.Ceiling)
		}
		if row.TTL == 0 && (row.Preloaded != row.Ceiling || row.Refreshes != 0) {
			t.Errorf("got %d hits with %d refreshes, want %d with none", row.Preloaded, row.Refreshes, row.Ceiling)
		}
	}
}

func TestCacheTraceWithATenth(t *testing.T) {
	for _, row := range play(t, excerpt()).Rows {
		if row.TTL == 0 && (row.Plain > row.Ceiling || row.Preloaded > row.Ceiling || row.LRU > row.Ceiling) {
			t.Errorf("got %d, %d and %d hits above a ceiling of %d", row.Plain, row.Preloaded, row.LRU, row.Ceiling)
		}
		if 3*row.Plain < row.Ceiling {
			t.Errorf("TTL %v: got %d hits of %d", row.TTL, row.Plain, row.Ceiling)
		}
		if row.Refreshes > row.Planned {
			t.Errorf("TTL %v: got %d refreshes of %d planned", row.TTL, row.Refreshes, row.Planned)
		}
	}
}

// The synthetic questions are drawn evenly from a law without memory: preloading
// helps where answers end, and never costs much.
func TestCacheTraceOfSyntheticQuestions(t *testing.T) {
	c := excerpt()
	c.Drawn = 1500
	rows := play(t, c).Rows[3:]
	if len(rows) != 3 {
		t.Fatalf("got %d rows, want 3", len(rows))
	}
	for _, row := range rows {
		if row.Trace != "zipf-and-once" || row.Asked != 1500 || row.Distinct < 600+300 || row.Distinct > 600+600 {
			t.Errorf("got %s with %d questions, %d distinct", row.Trace, row.Asked, row.Distinct)
		}
		if row.TTL == 0 && row.Ceiling != row.Asked-row.Distinct {
			t.Errorf("got a ceiling of %d, want %d", row.Ceiling, row.Asked-row.Distinct)
		}
		if row.TTL > 0 && (row.Preloaded <= row.Plain || row.Refreshes == 0) {
			t.Errorf("TTL %v: got %d hits without and %d with preload, %d refreshes", row.TTL, row.Plain, row.Preloaded, row.Refreshes)
		}
	}
}

func TestCacheTraceIsWritten(t *testing.T) {
	r := play(t, excerpt())
	var table, doc bytes.Buffer
	if err := errors.Join(r.Write(&table), r.WriteJSON(&doc)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ceiling", "with preload", " 1h ", " 1d ", "TTL none: share of the ceiling, no preload"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, &table)
		}
	}
	var back bench.CacheTraceResult
	if err := json.Unmarshal(doc.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, &back); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	missed := 0
	for _, v := range r.Verdicts {
		if !v.OK {
			missed++
		}
	}
	if len(r.Verdicts) != 6 || r.Missed() != missed {
		t.Errorf("got %d verdicts, %d missed, want 6, %d", len(r.Verdicts), r.Missed(), missed)
	}
}

func TestCacheTraceMistakes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, err := z.Write([]byte(text))
		if err := errors.Join(err, z.Close(), os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	plain := filepath.Join(dir, "plain.jsonl.gz")
	if err := os.WriteFile(plain, []byte("this is not packed"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SPILLWAY_DATA", dir)
	tests := map[string]struct {
		trace string
		share float64
		want  string
	}{
		"no such name":  {"nothing", 0.1, "SPILLWAY_DATA"},
		"no such file":  {filepath.Join(dir, "nothing"), 0.1, "no such file"},
		"not packed":    {plain, 0.1, "gzip"},
		"empty":         {file("empty.gz", ""), 0.1, "no questions"},
		"not JSON":      {file("words.gz", "words"), 0.1, "line 1"},
		"no question":   {file("none.gz", `{"timestamp":"1","hash_ids":{"user_input":[]}}`), 0.1, "line 1: want a timestamp"},
		"no time":       {file("never.gz", `{"hash_ids":{"user_input":[1]}}`), 0.1, "line 1: want a timestamp"},
		"share too big": {excerpt().Trace, 2, "want a share"},
		"no share":      {excerpt().Trace, 0, "want a share"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := excerpt()
			c.Trace, c.Share = tt.trace, tt.share
			if _, err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := excerpt()
	if _, err := c.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: got %v", err)
	}
}
