package bench

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// RAGTrace is the trace that CacheTrace replays: requests of a question service, of
// which the user's question alone is looked at.
const RAGTrace = "ragpulse-days0-3"

// CacheTrace replays questions in trace time against the level in memory, with and
// without preloading, and judges its hits by those of a cache without bounds. It
// runs in virtual time, on the parts that a gateway is made of.
type CacheTrace struct {
	Trace string  // a file, or a name in the folder SPILLWAY_DATA
	Share float64 // entries that the cache has room for, by the number of distinct questions
	Drawn int     // synthetic questions to replay as well; 0 is none
	Seed  uint64  // fixes them
	Out   io.Writer
}

// DefaultCacheTrace is what is asked for: a tenth of the entries.
func DefaultCacheTrace() CacheTrace {
	return CacheTrace{Trace: RAGTrace, Share: 0.1, Drawn: 20_000, Seed: 1, Out: io.Discard}
}

// wantOfCeiling is the least share of the unbounded cache's hits that is asked for.
const wantOfCeiling = 0.8

// question is one line of a trace.
type question struct {
	at     time.Time
	text   string
	tokens int64 // of its answer
}

// cacheTTLs are the lifetimes of answers that are compared; 0 is without end.
var cacheTTLs = []time.Duration{0, time.Hour, 24 * time.Hour}

// Run replays the trace, and a synthetic one as a check that nothing suits the one
// trace only. Requirements are asked of the trace alone.
func (c *CacheTrace) Run(ctx context.Context) (*CacheTraceResult, error) {
	if c.Share <= 0 || c.Share > 1 || c.Drawn < 0 {
		return nil, fmt.Errorf("want a share of the entries above 0 and at most 1, and no negative number of questions, got %v and %d", c.Share, c.Drawn)
	}
	asked, err := c.read()
	if err != nil {
		return nil, err
	}
	result := &CacheTraceResult{Scenario: "cache-trace", Share: c.Share, Verdicts: []Verdict{}}
	if result.Rows, err = c.compare(ctx, c.Trace, asked); err != nil {
		return nil, err
	}
	if name, _, _ := strings.Cut(filepath.Base(c.Trace), "."); name == RAGTrace {
		result.known(result.Rows)
	}
	result.judge(result.Rows)
	if c.Drawn > 0 {
		rows, err := c.compare(ctx, "zipf-and-once", syntheticQuestions(c.Seed, c.Drawn))
		if err != nil {
			return nil, err
		}
		result.Rows = append(result.Rows, rows...)
	}
	return result, nil
}

// compare replays a trace with every lifetime.
func (c *CacheTrace) compare(ctx context.Context, name string, asked []question) ([]CacheTraceRow, error) {
	distinct := make(map[string]bool, len(asked))
	for _, q := range asked {
		distinct[q.text] = true
	}
	entries := max(1, int(c.Share*float64(len(distinct))))
	fmt.Fprintf(c.Out, "%s: %d questions, %d distinct; %d entries\n", name, len(asked), len(distinct), entries)
	var rows []CacheTraceRow
	for _, ttl := range cacheTTLs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		row := CacheTraceRow{Trace: name, Asked: len(asked), Distinct: len(distinct), Entries: entries, TTL: ttl}
		row.Ceiling = replay(ctx, asked, ttl, newEndless(ttl, false), nil).hits
		row.CeilingIfAsked = replay(ctx, asked, ttl, newEndless(ttl, true), nil).hits
		row.LRU = replay(ctx, asked, ttl, newRecent(entries, ttl), nil).hits
		clock := new(virtualClock)
		row.Plain = replay(ctx, asked, ttl, newMemoryShelf(entries, ttl, clock), nil).hits
		ahead := newMemoryShelf(entries, ttl, clock)
		played := replay(ctx, asked, ttl, ahead, newWarmed(ahead, ttl, asked[0].at))
		row.Preloaded, row.Refreshes, row.Planned = played.hits, played.refreshes, played.planned
		rows = append(rows, row)
	}
	return rows, nil
}

// read reads the trace.
func (c *CacheTrace) read() ([]question, error) {
	file := c.Trace
	if _, err := os.Stat(file); err != nil {
		if strings.ContainsRune(file, os.PathSeparator) {
			return nil, err
		}
		data := os.Getenv("SPILLWAY_DATA")
		if data == "" {
			data = filepath.Join("..", "shared", "data")
		}
		file = filepath.Join(data, c.Trace+".jsonl.gz")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%w (SPILLWAY_DATA names the folder of traces)", err)
	}
	defer f.Close()
	unpacked, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	asked, err := readQuestions(unpacked)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return asked, nil
}

// maxTraceLine is the longest line of a trace, in bytes.
const maxTraceLine = 1 << 20

// noon is the beginning of the trace's time: 12:00 of a day that is not published.
var noon = time.Date(2025, time.September, 17, 12, 0, 0, 0, time.UTC)

// readQuestions reads lines of RAGPulse: the ids of the user's question are its text.
func readQuestions(r io.Reader) ([]question, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxTraceLine)
	var asked []question
	for lines.Scan() {
		var v struct {
			Timestamp string `json:"timestamp"`
			Output    int64  `json:"output_length"`
			HashIDs   struct {
				User []uint64 `json:"user_input"`
			} `json:"hash_ids"`
		}
		if err := json.Unmarshal(lines.Bytes(), &v); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(asked)+1, err)
		}
		at, err := strconv.ParseFloat(v.Timestamp, 64)
		if err != nil || len(v.HashIDs.User) == 0 {
			return nil, fmt.Errorf("line %d: want a timestamp and hash_ids.user_input", len(asked)+1)
		}
		asked = append(asked, question{at: noon.Add(time.Duration(at * float64(time.Second))), text: fmt.Sprint(v.HashIDs.User), tokens: v.Output})
	}
	if len(asked) == 0 && lines.Err() == nil {
		return nil, errors.New("no questions")
	}
	return asked, lines.Err()
}

// The synthetic questions: 60% of a set of 2,000 by Zipf's law with the exponent 1,
// the others asked once, evenly over the trace's four days.
const (
	syntheticSet    = 2000
	syntheticShare  = 0.6
	syntheticLength = 4 * 24 * time.Hour
)

// syntheticQuestions draws n of them.
func syntheticQuestions(seed uint64, n int) []question {
	r := rand.New(rand.NewPCG(seed, 0))
	upTo, sum := make([]float64, syntheticSet), 0.0
	for i := range upTo {
		sum += 1 / float64(i+1)
		upTo[i] = sum
	}
	asked := make([]question, n)
	for i := range asked {
		text := "once " + strconv.Itoa(i)
		if r.Float64() < syntheticShare {
			text = "often " + strconv.Itoa(sort.SearchFloat64s(upTo, r.Float64()*sum))
		}
		asked[i] = question{at: noon.Add(syntheticLength * time.Duration(i) / time.Duration(n)), text: text, tokens: 200}
	}
	return asked
}
