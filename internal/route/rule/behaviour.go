package rule

import (
	"container/list"
	"math"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Behaviour keeps how tenants behave: exponentially fading counts, of which those of a
// tenant that has not been seen for long are the first to go. It is safe for
// concurrent use; a call holds the lock for a few instructions.
type Behaviour struct {
	most int

	mu struct {
		sync.Mutex
		tenants map[string]*list.Element // of *tenant
		recent  list.List                // the latest first
	}
}

// tenant is one tenant's past.
type tenant struct {
	name              string
	at                time.Time // up to when it is faded
	requests, errors  float64   // of the last hour
	answers, produced float64   // answers with tokens, and their tokens
	spend             float64   // of the last day
}

// How fast the past fades: what happened so long ago counts 1/e. A rate of r a second
// then stands at r times this time, as a count over a window of this length would.
const (
	fadeRequests = time.Hour
	fadeSpend    = 24 * time.Hour
)

// NewBehaviour keeps the past of the given number of tenants at most.
func NewBehaviour(tenants int) *Behaviour {
	b := &Behaviour{most: max(1, tenants)}
	b.mu.tenants = make(map[string]*list.Element)
	return b
}

// Observe counts a request that has ended. What Spillway asked for itself does not
// count.
func (b *Behaviour) Observe(rec *inference.Record) {
	if rec.Request.Class == inference.Idle || rec.Shadow {
		return
	}
	used, _ := rec.Spent()
	now := rec.Request.Received.Add(rec.Duration)
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tenant(now, rec.Request.Tenant)
	t.requests++
	t.spend += float64(used.PromptTokens + used.CompletionTokens)
	if used.CompletionTokens > 0 {
		t.answers++
		t.produced += float64(used.CompletionTokens)
	}
	if rec.Code != "" && rec.Code != inference.CodeCanceled {
		t.errors++
	}
}

// Of is a tenant's past; the zero Past is that of one that is not known.
func (b *Behaviour) Of(now time.Time, name string) Past {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.mu.tenants[name]
	if e == nil {
		return Past{}
	}
	t := e.Value.(*tenant)
	t.fade(now)
	p := Past{Requests: t.requests, Spend: t.spend}
	if t.requests > 0 {
		p.ErrorShare = t.errors / t.requests
	}
	if t.answers > 0 {
		p.OutputTokens = t.produced / t.answers
	}
	return p
}

// tenant finds a tenant's past, or begins it. The caller holds the lock.
func (b *Behaviour) tenant(now time.Time, name string) *tenant {
	if e := b.mu.tenants[name]; e != nil {
		b.mu.recent.MoveToFront(e)
		t := e.Value.(*tenant)
		t.fade(now)
		return t
	}
	if len(b.mu.tenants) >= b.most {
		last := b.mu.recent.Back()
		delete(b.mu.tenants, b.mu.recent.Remove(last).(*tenant).name)
	}
	t := &tenant{name: name, at: now}
	b.mu.tenants[name] = b.mu.recent.PushFront(t)
	return t
}

// fade lets the past fade up to now.
func (t *tenant) fade(now time.Time) {
	passed := now.Sub(t.at)
	if passed <= 0 {
		return
	}
	t.at = now
	keep := math.Exp(-float64(passed) / float64(fadeRequests))
	t.requests, t.errors = t.requests*keep, t.errors*keep
	t.answers, t.produced = t.answers*keep, t.produced*keep
	t.spend *= math.Exp(-float64(passed) / float64(fadeSpend))
}
