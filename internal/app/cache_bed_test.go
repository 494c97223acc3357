package app_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
)

// bed is two gateways with one slower level that they share: what the filler asks,
// the asker finds there, because its own memory knows nothing of it.
type bed struct {
	*testing.T
	level         string // redis or sql
	o             *oracle
	filler, asker *rig
	questions     int
	mu            sync.Mutex
}

// newBed starts the gateways. sections are those of the slower level's store.
func newBed(t *testing.T, level string, sections ...string) *bed {
	b := &bed{T: t, level: level, o: newOracle(t, nil)}
	config := b.config(sections...)
	b.filler, b.asker = newRig(t, config), newRig(t, config)
	return b
}

// config is a gateway's configuration with one slower level.
func (b *bed) config(sections ...string) string {
	levels := "sql: {enabled: false}"
	if b.level == "sql" { // a database on a machine that does other things takes its time
		levels = "lookup_timeout: 50ms, redis: {enabled: false}"
	}
	return text(pool("gpu", b.o.Instance), append([]string{"cache: {" + levels + "}", "preload: {enabled: false}", roomy}, sections...)...)
}

// roomy admits all that tests of the cache ask at once, also on a machine that is so busy
// that the model server seems to be.
const roomy = "admission: {limit: static}"

// question is one that nobody has asked.
func (b *bed) question() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.questions++
	return fmt.Sprintf("question %d", b.questions)
}

// written is how many entries a gateway has written to the level.
func (b *bed) written(r *rig) float64 {
	return r.number(fmt.Sprintf(`spillway_cache_fills_total{level=%q,result="written"}`, b.level))
}

// fill has the filler ask questions and waits until the level has the answers.
func (b *bed) fill(n int) (questions []string) {
	b.Helper()
	before := b.written(b.filler)
	for i := range n {
		q := b.question()
		b.filler.wants(q, [...]string{streamed, ""}[i%2])
		questions = append(questions, q)
	}
	testkit.Eventually(b.T, "the level has the answers", func() bool { return b.written(b.filler) >= before+float64(n) })
	return questions
}

// works waits until what the filler asks is found by the asker in the level: with
// questions that nobody asked before, because each can be found there but once.
func (b *bed) works(when string) {
	b.Helper()
	q, before, spared, misses := "", 0.0, 0.0, 0
	testkit.Eventually(b.T, when+": a hit of level "+b.level, func() bool {
		if q == "" || b.trouble(b.filler) > spared || misses > 20 { // what was not written never will be
			q, before, spared, misses = b.question(), b.written(b.filler), b.trouble(b.filler), 0
			b.filler.wants(q, "")
		}
		if b.written(b.filler) == before {
			return false
		}
		// A replica may be a moment behind: a miss must not become the asker's own answer.
		s := surfaces["chat"]
		got, err := b.asker.send(s.path, s.body(q, streamed), "Cache-Control: only-if-cached")
		if err == nil && got.status == 504 {
			misses++
			return false
		}
		if wrong := judge("chat", q, streamed, got); err != nil || wrong != "" {
			b.Errorf("%s: %v %s", q, err, wrong)
		}
		q = ""
		return got.cache() == "hit" && got.level() == b.level && got.n == 1
	})
}

// ask asks questions, all of them several times and in all forms, from a few clients
// at once. Every answer must be right and whole, whatever the level does; and all of
// it takes no longer than without the level, but for its share of lookup_timeout.
func (b *bed) ask(questions []string) {
	b.Helper()
	const clients, patience = 4, 12 * time.Second
	began := time.Now()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for i := range questions {
				q := questions[(i+c*len(questions)/clients)%len(questions)]
				b.asker.wants(q, [...]string{streamed, withUsage, ""}[(i+c)%3])
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > patience {
		b.Errorf("%d questions took %v", clients*len(questions), took)
	}
	for _, q := range questions {
		if n := b.o.generations(q); n > 2 {
			b.Errorf("%s: %d generations of two gateways", q, n)
		}
	}
}

// fresh are questions that nobody has asked.
func (b *bed) fresh(n int) (questions []string) {
	for range n {
		questions = append(questions, b.question())
	}
	return questions
}

// trouble is what a gateway has met of a level's faults: late answers, look-ups and
// fills that failed or were spared.
func (b *bed) trouble(r *rig) float64 {
	n := r.number(`spillway_cache_trouble_total{reason="late"}`)
	for _, series := range []string{"lookups", "fills"} {
		for _, result := range []string{"fault", "skipped"} {
			n += r.number(fmt.Sprintf("spillway_cache_%s_total{level=%q,result=%q}", series, b.level, result))
		}
	}
	return n
}

// through is what a fault does to a bed: the gateways work before, answer rightly
// while it lasts, have met it, and find kept answers again behind it.
func (b *bed) through(begin, end func()) {
	b.Helper()
	b.works("before")
	known := b.fill(20)
	begin()
	before := b.trouble(b.asker) + b.trouble(b.filler)
	b.ask(append(known, b.fresh(10)...))
	for _, q := range b.fresh(6) {
		b.filler.wants(q, "")
	}
	testkit.Eventually(b.T, "the gateways have met the fault", func() bool { return b.trouble(b.asker)+b.trouble(b.filler) > before })
	end()
	b.works("behind it")
	if log := b.asker.errs.String() + b.filler.errs.String(); strings.Contains(log, "panic") {
		b.Errorf("a panic: %s", log)
	}
}
