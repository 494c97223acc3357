package experiment

import (
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Scores lie between MinScore and MaxScore: thumbs are -1 and 1, stars go from 0 to 1.
const (
	MinScore = -1
	MaxScore = 1
)

// Causes of refused scores.
var (
	// ErrNoRequest says that no answer under this id can be scored by this tenant: it
	// was never part of an experiment, is another tenant's, or too long ago.
	ErrNoRequest = errors.New("no answer of an experiment has this id")
	// ErrScored says that the answer has its score.
	ErrScored = errors.New("the answer was scored before")
	// ErrScore says that the score is out of range.
	ErrScore = errors.New("the score is out of range")
)

// Bounds of what is remembered of answers, so that they can be scored: about 16 MiB.
const (
	rememberedRequests = 1 << 16
	rememberedTime     = 24 * time.Hour
	maxID              = 128 // bytes of a request's id; longer ones cannot be scored
)

// Feedback adds a user's score of an answer to its arm. A request is known by its
// tenant and its id together. It has one score: the first. The error is an
// *inference.Error around ErrNoRequest, ErrScored or ErrScore.
func (s *Set) Feedback(tenant, requestID string, value float64) error {
	if !(value >= MinScore && value <= MaxScore) {
		return refusal(inference.CodeInvalidRequest, "score", "the score must be a number from -1 to 1", ErrScore)
	}
	of, err := s.memory.claim(time.Now(), key{tenant, requestID})
	if err == nil {
		if t := s.table.Load().byName[of.experiment]; t == nil || !t.ledger.score(of, value) {
			err = ErrNoRequest
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrScored):
		return refusal(inference.CodeInvalidRequest, "id", "this answer was scored before", err)
	}
	return refusal(inference.CodeNotFound, "id", "no answer that can be scored has this id: it was not part of an experiment, or is too old", err)
}

// refusal is the client's mistake.
func refusal(code inference.Code, param, message string, cause error) error {
	e := inference.Errorf(code, "%s", message)
	e.Param, e.NoRetry, e.Err = param, true, cause
	return e
}

// key names a request. Ids alone may be the clients' own, and meet.
type key struct{ tenant, id string }

// subject is what a score is about.
type subject struct {
	experiment string
	epoch      uint64
	arm        int
	bucket     uint8
}

// answer is one that can be scored.
type answer struct {
	key
	subject
	at     time.Time
	scored bool
}

// memory keeps the last answers of experiments, up to a count and an age. An answer is
// remembered once and touched once, by its score, so that the oldest is also the one
// that was not used for longest.
type memory struct {
	keep time.Duration
	most int

	mu struct {
		sync.Mutex
		ring  []answer // grows up to most, then goes round
		first int      // the oldest
		known map[key]int
	}
}

// newMemory returns an empty one.
func newMemory(most int, keep time.Duration) *memory {
	m := &memory{keep: keep, most: most}
	m.mu.known = make(map[key]int)
	return m
}

// remember makes an answer one that can be scored.
func (m *memory) remember(now time.Time, k key, of subject) {
	if k.id == "" || len(k.id) > maxID {
		return
	}
	k.id = strings.Clone(k.id) // not all of the head that it is part of
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, known := m.mu.known[k]; known {
		if now.Sub(m.mu.ring[at].at) < m.keep {
			return // an id that is used twice: the first is meant
		}
		m.mu.ring[at].key = key{} // its place goes with its time
	}
	a := answer{key: k, subject: of, at: now}
	if len(m.mu.ring) < m.most {
		m.mu.known[k] = len(m.mu.ring)
		m.mu.ring = append(m.mu.ring, a)
		return
	}
	at := m.mu.first
	if old := m.mu.ring[at].key; old.id != "" {
		delete(m.mu.known, old)
	}
	m.mu.ring[at], m.mu.known[k] = a, at
	m.mu.first = (at + 1) % m.most
}

// claim takes the right to score an answer.
func (m *memory) claim(now time.Time, k key) (subject, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, known := m.mu.known[k]
	if !known || now.Sub(m.mu.ring[at].at) >= m.keep {
		return subject{}, ErrNoRequest
	}
	a := &m.mu.ring[at]
	if a.scored {
		return subject{}, ErrScored
	}
	a.scored = true
	return a.subject, nil
}

// len is how many answers are remembered.
func (m *memory) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.mu.known)
}

// finite returns f, or 0 where it is no number, which JSON does not have.
func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}
