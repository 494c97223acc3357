package ledger

import (
	"context"
	"fmt"
	"time"
)

// Apply1 writes a batch of one row, of the model m on 20 November 2026.
func (l *Ledger) Apply1(ctx context.Context, id [16]byte, tenant string, a Amount) error {
	const day = 20777
	d := l.store.Shard(shardOf(tenant)).Database
	return l.apply(ctx, batch{id: id, database: d, rows: map[row]Amount{{day, tenant, "", "m"}: a}})
}

// Answered has the databases answer 0 to questions, with each of the subjects since each of the days.
func (l *Ledger) Answered(subjects []struct{ Tenant, Key, Model string }, days ...int64) {
	for _, s := range subjects {
		for _, day := range days {
			l.mu.questions[question{s.Tenant, s.Key, s.Model, day}] = &word{known: true, asked: time.Now()}
		}
	}
}

// Wrote has a batch written of one row for each subject, and returns what each question
// is told too much.
func (l *Ledger) Wrote(subjects []struct{ Tenant, Key, Model string }, day int64) (wrong map[string]int64) {
	b := batch{rows: make(map[row]Amount)}
	for i, s := range subjects {
		b.rows[row{day, s.Tenant, s.Key, s.Model}] = Amount{Prompt: int64(i), Output: 1}
	}
	before := make(map[question]int64)
	for q, w := range l.mu.questions {
		before[q] = w.tokens
	}
	l.written(b)
	wrong = make(map[string]int64)
	for q, w := range l.mu.questions {
		if more := w.tokens - before[q] - q.sum(b.rows); more != 0 {
			wrong[fmt.Sprint(q)] = more
		}
	}
	return wrong
}

// Writes is Wrote without a second look.
func (l *Ledger) Writes(subjects []struct{ Tenant, Key, Model string }, day int64) {
	b := batch{rows: make(map[row]Amount)}
	for _, s := range subjects {
		b.rows[row{day, s.Tenant, s.Key, s.Model}] = Amount{Prompt: 1}
	}
	l.written(b)
}

// Batches is how many there are whose fate is not known.
func (l *Ledger) Batches() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.batched)
}

// Doubt writes what waits of a ledger that does not run, takes the databases' word for
// lost, and looks questions up.
func (l *Ledger) Doubt(ctx context.Context) error {
	l.take()
	for _, b := range l.unsent {
		if err := l.apply(ctx, b); err != nil {
			return err
		}
	}
	l.lookUp(ctx)
	return nil
}
