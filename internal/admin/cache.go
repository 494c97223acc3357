package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/inference"
)

// Cache is the answer cache as operators reach it. Its methods are called from many
// goroutines.
type Cache interface {
	// State tells what the cache holds and does.
	State(ctx context.Context) cache.State
	// Purge forgets entries and says how many, by level. With an error too some may be
	// gone.
	Purge(ctx context.Context, f cache.Filter) (map[string]int, error)
	// Inspect returns what each level has under a key.
	Inspect(ctx context.Context, key cache.Key) ([]cache.Found, error)
	// Warm asks requests when nothing else waits and keeps their answers. report is told
	// of each, one at a time. It returns when all have been asked, or with the context's
	// error.
	Warm(ctx context.Context, items iter.Seq[WarmItem], report func(WarmResult)) error
}

// WarmItem is one request whose answer is to be in the cache.
type WarmItem struct {
	Line    int    // in the operator's list, from 1
	Surface string // chat, completions, embeddings, messages or responses
	Tenant  string // who will ask; "" is nobody in particular
	Body    []byte
	Broken  error // why the line is no request; nil: it is one
}

// WarmResult is what became of it.
type WarmResult struct {
	Line    int    `json:"line"`
	Outcome string `json:"outcome"` // done, fresh, twice, failed, given_up, or refused: nothing that is kept
	Key     string `json:"key,omitempty"`
	Error   string `json:"error,omitempty"`
	TookMS  int64  `json:"took_ms"`
}

// CacheEntry is an entry as GET /admin/cache/entries/{key} shows it.
type CacheEntry struct {
	Level    string    `json:"level"`
	Scope    string    `json:"scope"`
	Model    string    `json:"model"`
	Surface  string    `json:"surface"`
	Question string    `json:"question"`
	Stored   time.Time `json:"stored"`
	Expires  time.Time `json:"expires"`
	Stale    time.Time `json:"stale"`
	Hits     uint32    `json:"hits"`
	Bytes    int       `json:"bytes"`  // in memory
	Events   int       `json:"events"` // 0: an answer in one piece
	Prompt   int64     `json:"prompt_tokens"`
	Output   int64     `json:"completion_tokens"`
	Body     string    `json:"body,omitempty"` // with ?body=true
}

// cacheState answers GET /admin/cache.
func (s *Server) cacheState(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.parts.Cache.State(r.Context()))
}

// cacheEntries answers GET /admin/cache/entries/{key}.
func (s *Server) cacheEntries(w http.ResponseWriter, r *http.Request) {
	key, err := cache.ParseKey(r.PathValue("key"))
	if err != nil {
		p := problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
		p.write(w)
		return
	}
	body, _ := strconv.ParseBool(r.URL.Query().Get("body"))
	found, err := s.parts.Cache.Inspect(r.Context(), key)
	entries := make([]CacheEntry, 0, len(found))
	for _, f := range found {
		e := f.Entry
		shown := CacheEntry{
			Level: f.Level, Scope: e.Scope, Model: e.Model, Surface: e.Surface.String(), Question: e.Question,
			Stored: e.Stored, Expires: e.Expires, Stale: e.Stale, Hits: e.Hits, Bytes: e.Size(), Events: len(e.Answer.Marks),
			Prompt: e.Answer.Usage.PromptTokens, Output: e.Answer.Usage.CompletionTokens,
		}
		if body {
			shown.Body = string(bytes.ToValidUTF8(e.Answer.Body, []byte(string(utf8.RuneError))))
		}
		entries = append(entries, shown)
	}
	answer := map[string]any{"key": key.String(), "entries": entries}
	if err != nil {
		answer["warning"] = err.Error()
	}
	writeJSON(w, http.StatusOK, answer)
}

// purgeCache answers POST /admin/cache/purge.
func (s *Server) purgeCache(w http.ResponseWriter, r *http.Request) {
	body, p := readBody(w, r)
	if p != nil {
		p.write(w)
		return
	}
	filter, err := parsePurge(body)
	if err != nil {
		p := problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
		p.write(w)
		return
	}
	removed, err := s.parts.Cache.Purge(r.Context(), filter)
	s.log.Info("the cache was purged", "from", r.RemoteAddr, "filter", string(bytes.TrimSpace(body)), "removed", removed, "err", err)
	answer := map[string]any{"removed": removed}
	if err != nil {
		answer["warning"] = err.Error()
	}
	writeJSON(w, http.StatusOK, answer)
}

// parsePurge reads what to forget. Nothing named is a mistake, so that a misspelt
// order forgets nothing.
func parsePurge(body []byte) (f cache.Filter, err error) {
	var v struct {
		All    bool   `json:"all"`
		Key    string `json:"key"`
		Tenant string `json:"tenant"`
		Shared bool   `json:"shared"`
		Model  string `json:"model"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return f, fmt.Errorf("the body is no order: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return f, errors.New("the body is no order: something follows the JSON object")
	}
	named := v.Key != "" || v.Tenant != "" || v.Shared || v.Model != ""
	switch {
	case v.All && named:
		return f, errors.New("all: stands alone")
	case !v.All && !named:
		return f, errors.New("name what to forget: key, tenant, shared, model, or all")
	case v.Tenant != "" && v.Shared:
		return f, errors.New("tenant and shared exclude each other")
	}
	if v.Key != "" {
		key, err := cache.ParseKey(v.Key)
		if err != nil {
			return f, fmt.Errorf("key: %w", err)
		}
		f.Key = &key
	}
	f.Model = v.Model
	switch {
	case v.Shared:
		f.Scope = cache.SharedScope
	case v.Tenant != "":
		f.Scope = cache.TenantScope(v.Tenant)
	}
	return f, nil
}

// Bounds of a list of requests to warm.
const (
	maxWarmLine  = 4 << 20 // bytes
	warmPatience = 10 * time.Minute
)

// warmCache answers POST /admin/cache/warm: lines of JSON in, and for each of them a
// line of JSON out, as they are done.
func (s *Server) warmCache(w http.ResponseWriter, r *http.Request) {
	surface, tenant := r.URL.Query().Get("surface"), r.URL.Query().Get("tenant")
	if surface == "" {
		surface = inference.Chat.String()
	}
	if _, ok := inference.ParseSurface(surface); !ok {
		p := problem{http.StatusBadRequest, codeInvalidRequest, fmt.Sprintf("unknown surface %q; known are %v", surface, inference.Surfaces())}
		p.write(w)
		return
	}
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // not in tests without a connection
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	report := func(res WarmResult) {
		_ = out.Encode(res) // an operator that left ends the context
		_ = control.Flush()
	}
	list := &warmList{from: bufio.NewScanner(r.Body), item: WarmItem{Surface: surface, Tenant: tenant}, control: control}
	list.from.Buffer(make([]byte, 0, 64<<10), maxWarmLine)
	err := s.parts.Cache.Warm(r.Context(), list.items, report)
	if err = errors.Join(err, list.err); err != nil {
		report(WarmResult{Line: list.item.Line, Outcome: "failed", Error: err.Error()})
	}
}

// warmList reads an operator's list.
type warmList struct {
	from    *bufio.Scanner
	item    WarmItem // defaults, and the number of the last line
	control *http.ResponseController
	err     error
}

// items yields the requests, one a line that is not empty, those that are broken too.
// A line that is too long ends the list, since the next one cannot be found.
func (l *warmList) items(yield func(WarmItem) bool) {
	for {
		_ = l.control.SetReadDeadline(time.Now().Add(warmPatience)) // not in tests without a connection
		more := l.from.Scan()
		if l.err = l.from.Err(); !more && l.err == nil {
			return
		}
		l.item.Line++
		if l.err != nil {
			return
		}
		line := bytes.TrimSpace(l.from.Bytes())
		if len(line) > 0 && !yield(l.parse(bytes.Clone(line))) {
			return
		}
	}
}

// parse reads a line: a request's body, or an object with a body and whose it is.
func (l *warmList) parse(line []byte) WarmItem {
	item := l.item
	var v struct {
		Surface *string         `json:"surface"`
		Tenant  *string         `json:"tenant"`
		Body    json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		item.Broken = err
		return item
	}
	if v.Body == nil {
		item.Body = line
		return item
	}
	item.Body = v.Body
	if v.Surface != nil {
		item.Surface = *v.Surface
	}
	if v.Tenant != nil {
		item.Tenant = *v.Tenant
	}
	return item
}
