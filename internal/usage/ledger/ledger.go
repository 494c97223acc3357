// Package ledger keeps how many tokens were spent: by day, tenant, key and model, in
// the databases of store/sql, which several gateways can share.
//
// Observe adds a request to counts in memory. Run writes them out, at most the
// configured time later, as additions to the rows of their day. Each batch has a name
// of its own that is written in the same transaction, so that one whose fate was not
// known is not counted twice when it is written again. What a killed process had not
// written is lost: the counts of one flush. While a database is away the counts wait
// in memory, bounded: what is beyond the bound is counted under the model `other`.
//
// Spent answers from what was read last and from what waits; the questions that are
// asked often are looked up again by Run every few seconds. It never waits.
//
// Run owns the one goroutine. Ledger.mu is held for a few instructions, never while a
// database is asked.
package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store/sql"
)

// Config is the section `usage.ledger` of the configuration.
type Config struct {
	// Keep how many tokens each tenant, key and model has spent, by day. Budgets need it.
	Enabled bool `yaml:"enabled"`
	// How long counts wait in memory before they are written.
	Flush time.Duration `yaml:"flush"`
	// How many days are kept.
	Days int `yaml:"days"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config { return Config{Enabled: true, Flush: time.Second, Days: 400} }

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	if c.Flush < 100*time.Millisecond || c.Flush > time.Minute {
		errs = append(errs, fmt.Errorf("flush: must be 100ms to 1m, got %v", c.Flush))
	}
	if c.Days < 32 || c.Days > 10_000 {
		errs = append(errs, fmt.Errorf("days: must be 32 to 10000, got %d; budgets of a month need that month", c.Days))
	}
	return errors.Join(errs...)
}

// Bounds of what is kept in memory.
const (
	maxRows      = 50_000           // that wait to be written
	maxQuestions = 10_000           // of Spent
	askEvery     = 5 * time.Second  // how often a question is looked up again
	forgetAfter  = 10 * time.Minute // since it was asked last
	flushTime    = 10 * time.Second // for one flush
	sweepEvery   = time.Hour
	batchLife    = 24 * time.Hour // of a batch's name
	lastFlush    = 5 * time.Second
)

// otherModel stands for models beyond the bound.
const otherModel = "other"

// Idle is the tenant of what Spillway asks by itself, to renew answers, to make them
// ahead and to mirror requests: it cost as much, and is nobody's budget. No tenant has
// such a name.
const Idle = "#idle"

// Entry is one row: what the requests of a day, a tenant, a key and a model spent.
type Entry struct {
	Day    string `json:"day"` // 2026-11-20, UTC
	Tenant string `json:"tenant"`
	Key    string `json:"key,omitempty"` // public name of the credential
	Model  string `json:"model"`
	Amount
}

// Amount is what was spent.
type Amount struct {
	Requests  int64 `json:"requests"`
	Prompt    int64 `json:"prompt_tokens"`
	Cached    int64 `json:"cached_tokens"` // part of Prompt
	Output    int64 `json:"output_tokens"`
	Reasoning int64 `json:"reasoning_tokens"` // part of Output
	Estimated int64 `json:"estimated_tokens"` // part of both: no server reported them
}

// Tokens are those that budgets count.
func (a Amount) Tokens() int64 { return a.Prompt + a.Output }

// Add adds another amount.
func (a *Amount) Add(b Amount) {
	a.Requests += b.Requests
	a.Prompt += b.Prompt
	a.Cached += b.Cached
	a.Output += b.Output
	a.Reasoning += b.Reasoning
	a.Estimated += b.Estimated
}

// row names an entry.
type row struct {
	day                int64 // since 1970-01-01, UTC
	tenant, key, model string
}

// hash is the row's primary key.
func (r row) hash() [sha256.Size]byte {
	b := binary.AppendVarint(make([]byte, 0, 128), r.day)
	for _, s := range []string{r.tenant, r.key, r.model} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}

// Ledger keeps the counts. It is safe for concurrent use.
type Ledger struct {
	store  *sql.Store
	log    *slog.Logger
	flush  atomic.Int64 // nanoseconds
	days   atomic.Int64
	texts  [sql.Shards]texts
	folded atomic.Int64  // requests that count under another model than their own
	faults atomic.Int64  // flushes that failed
	unsent []batch       // Run's: written, but with an unknown fate
	wake   chan struct{} // of capacity 1: there is a new question

	mu struct {
		sync.Mutex
		waiting   map[row]Amount // not in a batch yet
		batched   []batch        // those of unsent, for Spent
		questions map[question]*word
	}
}

// batch is counts that are written to one database at once.
type batch struct {
	id       [16]byte
	database *sql.Database
	rows     map[row]Amount
}

// question is one of Spent.
type question struct {
	tenant, key, model string
	since              int64
}

// word is what the databases said to it.
type word struct {
	tokens int64
	known  bool
	at     time.Time // when they were asked
	asked  time.Time // when Spent was, last
}

// New returns a ledger in a store that was opened with Migrations. It starts nothing.
func New(cfg Config, store *sql.Store, log *slog.Logger) *Ledger {
	l := &Ledger{store: store, log: log.With("component", "usage")}
	l.wake = make(chan struct{}, 1)
	l.mu.waiting = make(map[row]Amount)
	l.mu.questions = make(map[question]*word)
	for n := range l.texts {
		l.texts[n] = textsOf(store.Shard(n))
	}
	l.Apply(cfg)
	return l
}

// Apply replaces the configuration.
func (l *Ledger) Apply(cfg Config) {
	l.flush.Store(int64(cfg.Flush))
	l.days.Store(int64(cfg.Days))
}

// dayOf is the day that an instant is on.
func dayOf(t time.Time) int64 { return floor(t.Unix(), 24*60*60) }

// floor is the quotient, rounded down.
func floor(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Observe counts a request that has ended, on the day of its end. What cost nothing does
// not count. It does not wait and keeps nothing of the record.
func (l *Ledger) Observe(rec *inference.Record) {
	used, estimated := rec.Spent()
	if used.Zero() {
		return
	}
	a := Amount{Requests: 1, Prompt: used.PromptTokens, Cached: used.CachedTokens, Output: used.CompletionTokens, Reasoning: used.ReasoningTokens}
	if estimated {
		a.Estimated = a.Tokens()
	}
	req := rec.Request
	r := row{dayOf(req.Received.Add(rec.Duration)), req.Tenant, req.Key, req.Model}
	if req.Class == inference.Idle {
		r.tenant, r.key = Idle, ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	sum, known := l.mu.waiting[r]
	if !known && len(l.mu.waiting) >= maxRows {
		l.folded.Add(1)
		r.model, r.key = otherModel, ""
		if sum, known = l.mu.waiting[r]; !known && len(l.mu.waiting) >= 2*maxRows {
			r.tenant = otherModel
			sum = l.mu.waiting[r]
		}
	}
	sum.Add(a)
	l.mu.waiting[r] = sum
}

// Spent is how many tokens the requests of a subject have cost that ended on or after
// the day of since: an empty name is any. known is false until the databases were
// asked, which Run does at once.
func (l *Ledger) Spent(subject struct{ Tenant, Key, Model string }, since time.Time) (tokens int64, known bool) {
	q := question{subject.Tenant, subject.Key, subject.Model, dayOf(since)}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.mu.questions[q]
	if w == nil {
		if len(l.mu.questions) >= maxQuestions {
			for old := range l.mu.questions { // any: it is asked again when it is needed
				delete(l.mu.questions, old)
				break
			}
		}
		w = &word{}
		l.mu.questions[q] = w
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
	w.asked = time.Now()
	if !w.known {
		return 0, false
	}
	tokens = w.tokens + q.sum(l.mu.waiting)
	for _, b := range l.mu.batched {
		tokens += q.sum(b.rows)
	}
	return tokens, true
}

// sum is what rows have for the question.
func (q question) sum(rows map[row]Amount) (tokens int64) {
	for r, a := range rows {
		if r.day >= q.since && (q.tenant == "" || r.tenant == q.tenant) && (q.key == "" || r.key == q.key) && (q.model == "" || r.model == q.model) {
			tokens += a.Tokens()
		}
	}
	return tokens
}

// Waiting is the number of rows that are not written yet.
func (l *Ledger) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.mu.waiting)
	for _, b := range l.mu.batched {
		n += len(b.rows)
	}
	return n
}

// Faults is how many flushes have failed, and Folded how many requests count under
// the model `other` because too many rows waited.
func (l *Ledger) Faults() int64 { return l.faults.Load() }

// Folded is how many requests count under another model than their own.
func (l *Ledger) Folded() int64 { return l.folded.Load() }

// Run writes the counts and looks questions up until ctx ends, and then writes what is
// left.
func (l *Ledger) Run(ctx context.Context) error {
	var swept time.Time
	timer := time.NewTimer(time.Duration(l.flush.Load()))
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-l.wake:
			l.lookUp(ctx)
			continue
		case <-timer.C:
		}
		timer.Reset(time.Duration(l.flush.Load()))
		l.write(ctx)
		l.lookUp(ctx)
		if now := time.Now(); now.Sub(swept) >= sweepEvery {
			swept = now
			l.sweep(ctx, now)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
	defer cancel()
	l.write(last)
	if n := l.Waiting(); n > 0 {
		l.log.Error("what was spent is lost: the database cannot be written", "rows", n)
	}
	return nil
}

// take makes batches of what waits: one for each database that has none under way.
func (l *Ledger) take() {
	l.mu.Lock()
	defer l.mu.Unlock()
	busy := make(map[*sql.Database]bool)
	for _, b := range l.unsent {
		busy[b.database] = true
	}
	fresh := make(map[*sql.Database]map[row]Amount)
	for r, a := range l.mu.waiting {
		d := l.store.Shard(shardOf(r.tenant)).Database
		if busy[d] {
			continue
		}
		if fresh[d] == nil {
			fresh[d] = make(map[row]Amount)
		}
		fresh[d][r] = a
		delete(l.mu.waiting, r)
	}
	for d, rows := range fresh {
		b := batch{database: d, rows: rows}
		binary.BigEndian.PutUint64(b.id[:8], rand.Uint64())
		binary.BigEndian.PutUint64(b.id[8:], rand.Uint64())
		l.unsent = append(l.unsent, b)
	}
	l.mu.batched = append([]batch(nil), l.unsent...)
}

// write writes what waits. What cannot be written stays.
func (l *Ledger) write(ctx context.Context) {
	l.take()
	if len(l.unsent) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	var left []batch
	for _, b := range l.unsent {
		if err := l.apply(ctx, b); err != nil {
			if l.faults.Add(1) == 1 || ctx.Err() == nil {
				l.log.Warn("the ledger cannot be written; counts wait in memory", "rows", len(b.rows), "err", err)
			}
			left = append(left, b)
			continue
		}
		l.written(b)
	}
	l.unsent = left
}

// written moves a batch from what waits to what the databases have said.
func (l *Ledger) written(b batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.mu.batched {
		if l.mu.batched[i].id == b.id {
			l.mu.batched = append(l.mu.batched[:i:i], l.mu.batched[i+1:]...)
			break
		}
	}
	days := make(map[int64]bool) // since which somebody asks: a few
	for q := range l.mu.questions {
		days[q.since] = true
	}
	for r, a := range b.rows {
		for since := range days {
			if r.day >= since {
				l.tell(r, since, a.Tokens())
			}
		}
	}
}

// tell adds a row's tokens to the questions since a day that it belongs to: those that
// name its tenant, key and model, or any. The caller holds mu, and requests that end wait
// for it, so the questions are looked up and not gone through.
func (l *Ledger) tell(r row, since, tokens int64) {
	for _, tenant := range [...]string{r.tenant, ""} {
		for _, key := range [...]string{r.key, ""} {
			for _, model := range [...]string{r.model, ""} {
				if w := l.mu.questions[question{tenant, key, model, since}]; w != nil && w.known {
					w.tokens += tokens
				}
				if model == "" {
					break // its own name is any
				}
			}
			if key == "" {
				break
			}
		}
		if tenant == "" {
			break
		}
	}
}

// lookUp asks the databases about what is asked often, and forgets the rest. It runs
// between flushes, so that nothing is counted twice.
func (l *Ledger) lookUp(ctx context.Context) {
	now := time.Now()
	var due []question
	l.mu.Lock()
	for q, w := range l.mu.questions {
		switch {
		case now.Sub(w.asked) > forgetAfter:
			delete(l.mu.questions, q)
		case !w.known || now.Sub(w.at) >= askEvery:
			due = append(due, q)
		}
	}
	l.mu.Unlock()
	if len(l.unsent) > 0 && len(due) > 0 {
		// A batch of unknown fate may be in the sums already, or not: it counts in any
		// case, so the last word stands until its fate is known.
		due = nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	for _, q := range due {
		tokens, err := l.ask(ctx, q)
		if err != nil {
			l.log.Debug("the ledger cannot be read", "err", err)
			return
		}
		l.mu.Lock()
		if w := l.mu.questions[q]; w != nil {
			w.tokens, w.known, w.at = tokens, true, now
		}
		l.mu.Unlock()
	}
}
