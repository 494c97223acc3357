package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

var (
	// ErrTooLong refuses a sequence whose prompt and output together exceed the KV budget: it could never finish.
	ErrTooLong = errors.New("prompt and output exceed the KV budget")
	// ErrFull refuses a sequence because the queue is at its bound.
	ErrFull = errors.New("request queue is full")
)

type sequenceState uint8

const (
	stateNew sequenceState = iota
	stateWaiting
	stateRunning
	stateDone
)

// Sequence is one request inside a [Batch]. The caller fills the exported fields, submits it once and leaves it alone;
// the batch owns the rest.
type Sequence struct {
	// Prompt is the prompt's length in tokens, at least 1.
	Prompt int
	// Output is the number of tokens to generate. 0 is a prefill alone, as embeddings need.
	Output int
	// Blocks is the prompt's block chain (see [Chain]); nil shares nothing.
	Blocks []uint64
	// Owner is the caller's own reference; the batch never reads it.
	Owner any

	state      sequenceState
	generated  int
	prefilled  int // tokens with KV since the last admission
	target     int // tokens to prefill before the next token comes: prompt plus what a preemption threw away
	private    int // KV tokens outside shared blocks
	shared     int // leading Blocks referred to
	cached     int
	counted    bool // its prefix lookup is in the counters
	submitted  time.Duration
	admitted   time.Duration
	prev, next *Sequence
}

// Generated is the number of tokens produced so far.
func (s *Sequence) Generated() int { return s.generated }

// Cached is the number of prompt tokens the prefix cache spared at the first admission.
func (s *Sequence) Cached() int { return s.cached }

// Queued is the time from submission to first admission; meaningful once the sequence has run.
func (s *Sequence) Queued() time.Duration { return s.admitted - s.submitted }

// Step is what one engine step does. Its slices are valid until the next call of [Batch.Step].
type Step struct {
	// Duration of the step; 0 says that nothing runs and nothing waits.
	Duration time.Duration
	// Prefilled is the number of prompt tokens computed, Sequences the number of sequences that took part.
	Prefilled, Sequences int
	// Emitted lists the sequences that have one more token when the step ends, oldest first.
	Emitted []*Sequence
	// Finished lists the sequences that are complete when the step ends. Their KV is free from the next step on.
	Finished []*Sequence
	// Preempted lists the sequences thrown out to make room, newest first. They wait at the queue's head.
	Preempted []*Sequence
}

// Load is a Batch's state and its counters since the start, in tokens unless said otherwise.
type Load struct {
	Running, Waiting           int // sequences
	KVUsed                     int // by running sequences, shared blocks once
	KVIdle                     int // cached blocks nobody refers to
	PrefixQueries, PrefixHits  uint64
	Preemptions                uint64 // sequences thrown out
	PromptTokens, OutputTokens uint64
}

// Batch is continuous batching without clock and without I/O. Each step gives every decoding sequence one token and
// spends at most Chunk tokens on prefill, oldest sequence first; then it admits from the queue, first come first served,
// while there is room for the next prefill chunk. When a running sequence finds no KV room the newest is preempted:
// its KV is freed and prompt and generated tokens are prefilled again later, as in vLLM's recompute mode.
//
// A Batch is deterministic. It is not safe for concurrent use.
type Batch struct {
	cfg     Batching
	pace    float64
	running []*Sequence // by admission, oldest first
	queue   Sequence    // sentinel of a ring: next is the head
	waiting int
	private int // KV tokens outside the cache
	cache   *prefixCache
	count   Load
	step    Step
}

// NewBatch makes an empty batch. The settings must be valid.
func NewBatch(cfg Batching) *Batch {
	b := &Batch{cfg: cfg, pace: 1, cache: newPrefixCache()}
	b.queue.prev, b.queue.next = &b.queue, &b.queue
	return b
}

// SetPace multiplies the duration of later steps: 2 is an engine of half the speed. It must be above 0.
func (b *Batch) SetPace(factor float64) { b.pace = factor }

// Load reports state and counters.
func (b *Batch) Load() Load {
	l := b.count
	l.Running, l.Waiting = len(b.running), b.waiting
	l.KVIdle = b.cache.idleTokens()
	l.KVUsed = b.private + b.cache.tokens() - l.KVIdle
	return l
}

// Submit queues a sequence. It returns [ErrTooLong], [ErrFull], or an error for a prompt below 1 token or a sequence
// that was submitted before.
func (b *Batch) Submit(s *Sequence, now time.Duration) error {
	if s.Prompt < 1 || s.Output < 0 || s.state != stateNew {
		return fmt.Errorf("submit sequence of %d+%d tokens: not a fresh, non-empty sequence", s.Prompt, s.Output)
	}
	if s.Prompt+s.Output > b.cfg.KVTokens {
		return ErrTooLong
	}
	if room := b.cfg.MaxSeqs - len(b.running); b.cfg.Queue >= 0 && b.waiting >= b.cfg.Queue+room {
		return ErrFull
	}
	s.submitted, s.target = now, s.Prompt
	b.enqueue(s, b.queue.prev)
	return nil
}

// Cancel removes a sequence at once, queued or running, frees its KV and reports whether it was there.
func (b *Batch) Cancel(s *Sequence) bool {
	switch s.state {
	case stateWaiting:
		b.dequeue(s)
	case stateRunning:
		i := slices.Index(b.running, s)
		b.running = slices.Delete(b.running, i, i+1)
		b.free(s)
	default:
		return false
	}
	s.state = stateDone
	return true
}

// Step plans and carries out one step that begins now. Tokens belong to its end, now + Duration; a sequence that is
// cancelled meanwhile keeps its place in the returned lists, so the caller must know its cancelled sequences.
func (b *Batch) Step(now time.Duration) Step {
	b.retire()
	b.step.Emitted, b.step.Finished, b.step.Preempted = b.step.Emitted[:0], b.step.Finished[:0], b.step.Preempted[:0]
	b.step.Sequences = 0
	budget := b.advance(b.cfg.Chunk)
	if len(b.step.Preempted) == 0 {
		budget = b.admit(now, budget)
	}
	b.step.Prefilled = b.cfg.Chunk - budget
	b.step.Duration = 0
	if b.step.Sequences > 0 {
		b.step.Duration = b.duration(b.step.Sequences, b.step.Prefilled)
	}
	return b.step
}

func (b *Batch) duration(sequences, prefilled int) time.Duration {
	d := b.cfg.StepBase + time.Duration(sequences)*b.cfg.StepPerSeq + time.Duration(prefilled)*b.cfg.StepPerPromptToken
	return max(1, time.Duration(float64(d)*b.pace))
}

// retire removes the sequences that the previous step finished.
func (b *Batch) retire() {
	if len(b.step.Finished) == 0 {
		return
	}
	kept := b.running[:0]
	for _, s := range b.running {
		if !s.complete() {
			kept = append(kept, s)
			continue
		}
		b.free(s)
		s.state = stateDone
	}
	clear(b.running[len(kept):])
	b.running = kept
}

func (s *Sequence) complete() bool {
	return s.generated == s.Output && s.prefilled >= s.target
}

// advance gives each running sequence its token or its share of the prefill budget, oldest first, and returns what is
// left of the budget. A preemption only ever hits a sequence that this step has not served yet.
func (b *Batch) advance(budget int) int {
	for i := 0; i < len(b.running); i++ {
		s := b.running[i]
		need := 1
		if s.prefilled < s.target {
			need = min(budget, s.target-s.prefilled)
		}
		if need == 0 {
			continue
		}
		for !b.reserve(need) {
			b.preempt(b.running[len(b.running)-1])
			if s.state != stateRunning {
				return budget
			}
		}
		if s.prefilled < s.target {
			budget -= need
			b.prefill(s, need)
			continue
		}
		s.private++
		b.private++
		b.step.Sequences++
		b.emit(s)
	}
	return budget
}

// admit moves sequences from the queue's head into the batch while there is a place, prefill budget and KV room.
func (b *Batch) admit(now time.Duration, budget int) int {
	for b.waiting > 0 && budget > 0 && len(b.running) < b.cfg.MaxSeqs {
		s := b.queue.next
		hit := 0
		if b.cfg.PrefixCache {
			hit = b.cache.match(s.Blocks, (s.target-1)/BlockTokens) // the last token is always computed
		}
		for _, hash := range s.Blocks[:hit] {
			b.cache.acquire(hash)
		}
		need := min(budget, s.target-hit*BlockTokens)
		if !b.reserve(need) {
			b.cache.release(s.Blocks[:hit])
			break
		}
		b.dequeue(s)
		s.state, s.shared, s.prefilled = stateRunning, hit, hit*BlockTokens
		if !s.counted {
			s.counted, s.cached, s.admitted = true, s.prefilled, now
			b.count.PromptTokens += uint64(s.Prompt)
			if b.cfg.PrefixCache {
				b.count.PrefixQueries += uint64(s.Prompt)
				b.count.PrefixHits += uint64(s.cached)
			}
		}
		b.running = append(b.running, s)
		budget -= need
		b.prefill(s, need)
	}
	return budget
}

// prefill computes n reserved tokens of a sequence; the last of them yields a token.
func (b *Batch) prefill(s *Sequence, n int) {
	s.prefilled += n
	s.private += n
	b.private += n
	b.step.Sequences++
	if b.cfg.PrefixCache {
		for s.shared < len(s.Blocks) && (s.shared+1)*BlockTokens <= min(s.prefilled, s.Prompt) {
			b.cache.acquire(s.Blocks[s.shared])
			s.shared++
			s.private -= BlockTokens
			b.private -= BlockTokens
		}
	}
	if s.prefilled < s.target {
		return
	}
	if s.Output == 0 {
		b.step.Finished = append(b.step.Finished, s)
		return
	}
	b.emit(s)
}

func (b *Batch) emit(s *Sequence) {
	s.generated++
	b.count.OutputTokens++
	b.step.Emitted = append(b.step.Emitted, s)
	if s.generated == s.Output {
		b.step.Finished = append(b.step.Finished, s)
	}
}

// reserve makes room for n KV tokens, at the expense of idle cached blocks, and reports whether there is.
func (b *Batch) reserve(n int) bool {
	for b.private+b.cache.tokens()+n > b.cfg.KVTokens {
		if !b.cache.evict() {
			return false
		}
	}
	return true
}

// preempt throws the newest running sequence out, to the head of the queue.
func (b *Batch) preempt(s *Sequence) {
	b.running[len(b.running)-1] = nil
	b.running = b.running[:len(b.running)-1]
	b.free(s)
	s.target = s.Prompt + s.generated
	b.enqueue(s, &b.queue)
	b.count.Preemptions++
	b.step.Preempted = append(b.step.Preempted, s)
}

// free gives the KV of a sequence back; its shared blocks stay cached.
func (b *Batch) free(s *Sequence) {
	b.cache.release(s.Blocks[:s.shared])
	b.private -= s.private
	s.shared, s.private, s.prefilled = 0, 0, 0
}

// enqueue puts a sequence behind the given place of the ring.
func (b *Batch) enqueue(s, after *Sequence) {
	s.state = stateWaiting
	s.prev, s.next = after, after.next
	s.prev.next, s.next.prev = s, s
	b.waiting++
}

func (b *Batch) dequeue(s *Sequence) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
	b.waiting--
}
