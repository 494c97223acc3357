package limit

import (
	"math"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Subject is whose tokens a Ledger is asked for: those of requests with all that it
// names. An empty field is any. It is an alias, so that a ledger need not import this
// package.
type Subject = struct{ Tenant, Key, Model string }

// Ledger knows what was spent. Spent is called from a request's goroutine for the
// first request of a subject, and from Run afterwards, so it must not wait: a ledger
// that has to look first says false, and is asked again a second later.
type Ledger interface {
	// Spent is how many tokens the requests of a subject cost that ended at or after an
	// instant, in all gateways as far as it has heard.
	Spent(subject Subject, since time.Time) (tokens int64, known bool)
}

// period is the span of a budget.
type period uint8

// The spans of budgets.
const (
	day period = iota
	month
)

// String is the reason of a refusal.
func (p period) String() string { return [...]string{"budget_day", "budget_month"}[p] }

// span is the calendar period that an instant is in, UTC.
func (p period) span(now time.Time) (from, to time.Time) {
	y, m, d := now.UTC().Date()
	if p == month {
		return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC), time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC)
	}
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC), time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC)
}

// budget is one limit of a rule on the tokens of a period. It does not change.
type budget struct {
	rule   *rule
	period period
	most   int64
	seed   Key
}

// subject is whose tokens count in the bucket that a request is charged to.
func (b *budget) subject(req *inference.Request) (s Subject) {
	for i, word := range subjects {
		if b.rule.by&(1<<i) == 0 {
			continue
		}
		switch word {
		case byTenant:
			s.Tenant = req.Tenant
		case byKey:
			if s.Key = req.Key; s.Key == "" { // guests: to a ledger no name is any
				s.Tenant = req.Tenant
			}
		case byModel:
			s.Model = req.Model
		}
	}
	return s
}

// draft is what a request wants of a budget, and holds of it.
type draft struct {
	key    Key
	budget *budget
	tokens int64
}

// Bounds of accounts.
const (
	mostAccounts = 1 << 16
	askEvery     = 10 * time.Second // for the ledger's word about an account in use
	askAgain     = time.Second      // where it knows nothing yet
)

// account is what is known of one budget of one subject.
type account struct {
	subject  Subject
	period   period
	from, to time.Time // the period under way
	spent    int64     // as far as is known; it never falls within a period
	reserved int64     // by requests under way
	asked    time.Time
	known    bool
	used     time.Time
}

// accounts keeps them, bounded: one that was not used for long goes, and the ledger
// knows what it had.
type accounts struct {
	ledger Ledger
	mu     struct {
		sync.Mutex
		all map[Key]*account
	}
}

// newAccounts returns accounts that ask a ledger; nil is none.
func newAccounts(l Ledger) *accounts {
	a := &accounts{ledger: l}
	a.mu.all = make(map[Key]*account)
	return a
}

// reserve takes from all budgets or from none, and then returns the one that has
// nothing left. As long as anything is left a request may take more than that: what
// an answer costs is a guess, and a large request is not refused for ever. spent says
// that the tokens are used, not only reserved.
func (a *accounts) reserve(now time.Time, req *inference.Request, drafts []draft) (over *draft, spent bool) {
	if len(drafts) == 0 {
		return nil, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range drafts {
		d := &drafts[i]
		acc := a.of(now, req, d)
		if acc.spent+acc.reserved < d.budget.most {
			continue
		}
		gone := acc.spent >= d.budget.most
		if over == nil || gone && (!spent || d.budget.period > over.budget.period) {
			over, spent = d, gone
		}
	}
	if over != nil {
		return over, spent
	}
	for i := range drafts {
		if acc := a.mu.all[drafts[i].key]; acc != nil { // many new ones at once push each other out
			acc.reserved += drafts[i].tokens
		}
	}
	return nil, false
}

// of finds or makes an account. The caller holds mu.
func (a *accounts) of(now time.Time, req *inference.Request, d *draft) *account {
	acc := a.mu.all[d.key]
	if acc == nil {
		if len(a.mu.all) >= mostAccounts {
			a.evict()
		}
		acc = &account{subject: d.budget.subject(req), period: d.budget.period}
		a.mu.all[d.key] = acc
	}
	acc.used = now
	acc.turn(now)
	if !acc.known && now.Sub(acc.asked) >= askAgain {
		a.ask(now, acc)
	}
	return acc
}

// turn begins a new period when the old one is over.
func (acc *account) turn(now time.Time) {
	if !now.Before(acc.from) && now.Before(acc.to) {
		return
	}
	acc.from, acc.to = acc.period.span(now)
	acc.spent, acc.known, acc.asked = 0, false, time.Time{}
}

// ask asks the ledger. Its word replaces the count here only upwards: what this
// gateway has spent may still be on its way to the ledger. The caller holds mu.
func (a *accounts) ask(now time.Time, acc *account) {
	acc.asked = now
	if a.ledger == nil {
		acc.known = true
		return
	}
	if n, known := a.ledger.Spent(acc.subject, acc.from); known {
		acc.known, acc.spent = true, max(acc.spent, n)
	}
}

// evict forgets the account that was not used for longest of a few. The caller holds
// mu.
func (a *accounts) evict() {
	var oldest Key
	var found *account
	seen := 0
	for k, acc := range a.mu.all { // begins anywhere
		if acc.reserved == 0 && (found == nil || acc.used.Before(found.used)) {
			oldest, found = k, acc
		}
		if seen++; seen >= sample && found != nil {
			break
		}
	}
	delete(a.mu.all, oldest)
}

// settle gives a reservation back and charges what was spent.
func (a *accounts) settle(now time.Time, drafts []draft, spent int64) {
	if len(drafts) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range drafts {
		acc := a.mu.all[drafts[i].key]
		if acc == nil {
			continue
		}
		acc.turn(now)
		acc.reserved = max(0, acc.reserved-drafts[i].tokens)
		acc.spent = min(acc.spent+spent, math.MaxInt64/4)
	}
}

// more adds to reservations.
func (a *accounts) more(drafts []draft, tokens int64) {
	if len(drafts) == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range drafts {
		drafts[i].tokens += tokens
		if acc := a.mu.all[drafts[i].key]; acc != nil {
			acc.reserved += tokens
		}
	}
}

// refresh asks the ledger about the accounts in use whose last word is old. Each is
// asked without the lock.
func (a *accounts) refresh(now time.Time) {
	if a.ledger == nil {
		return
	}
	type question struct {
		key     Key
		subject Subject
		from    time.Time
	}
	var due []question
	a.mu.Lock()
	for k, acc := range a.mu.all {
		acc.turn(now)
		if now.Sub(acc.asked) >= askEvery && now.Sub(acc.used) < 6*askEvery {
			acc.asked = now
			due = append(due, question{k, acc.subject, acc.from})
		}
	}
	a.mu.Unlock()
	for _, q := range due {
		n, known := a.ledger.Spent(q.subject, q.from)
		a.mu.Lock()
		if acc := a.mu.all[q.key]; known && acc != nil && acc.from.Equal(q.from) {
			acc.known, acc.spent = true, max(acc.spent, n)
		}
		a.mu.Unlock()
	}
}
