package limit

import (
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Receipt is what a request holds of its limits, for one goroutine at a time. It must
// be settled once; a second time does nothing.
type Receipt struct {
	l      *Limiter
	begun  time.Time
	shared bool  // charged in the shared store
	factor int64 // by how many gateways the limits were divided
	asks   []Ask
	drafts []draft
	rules  []*rule

	counted bool  // tokens are limited
	covered int64 // tokens of answer that are paid for
	past    Key   // of the tenant's answers of the model

	// A request with a few limits is one allocation.
	firstAsks   [5]Ask
	firstDrafts [2]draft
	firstRules  [4]*rule
}

// spendStep is by how many tokens a stream beyond its reservation is charged at once.
const spendStep = 64

// gather collects what a request asks for.
func (r *Receipt) gather(set *settings, req *inference.Request) {
	p := parts{req: req, hash: set.hash}
	total := int64(-1)
	use := func(rule *rule) {
		r.rules = append(r.rules, rule)
		if total < 0 && rule.counts() {
			total = r.expect(set, req, &p)
		}
		for i := range rule.meters {
			m, n := &rule.meters[i], int64(1)
			if m.unit == tokens {
				n = total
			}
			r.asks = append(r.asks, m.ask(p.key(m.seed, rule.by), n))
		}
		for i := range rule.budgets {
			b := &rule.budgets[i]
			r.drafts = append(r.drafts, draft{key: p.key(b.seed, rule.by), budget: b, tokens: total})
		}
	}
	for _, rule := range set.rules {
		if rule.matches(req) {
			use(rule)
		}
	}
	if req.Quota != nil && *req.Quota != (inference.Quota{}) {
		use(set.quotas.of(*req.Quota))
	}
}

// counts says whether the rule limits tokens.
func (r *rule) counts() bool {
	return len(r.budgets) > 0 || slices.ContainsFunc(r.meters, func(m meter) bool { return m.unit == tokens })
}

// expect is how many tokens a request will probably cost.
func (r *Receipt) expect(set *settings, req *inference.Request, p *parts) int64 {
	r.counted = true
	prompt := max(0, req.PromptTokens())
	if req.Surface == inference.Embeddings {
		return prompt
	}
	tenant, model := slices.Index(subjects[:], byTenant), slices.Index(subjects[:], byModel)
	r.past = p.of(tenant).with(p.of(model))
	x := &set.Expected
	answer, known := r.l.expect.of(r.past, x.Quantile)
	if !known {
		answer = x.Default
	}
	if req.MaxTokens > 0 {
		answer = min(answer, req.MaxTokens)
	}
	r.covered = min(answer, x.Cap)
	return prompt + r.covered
}

// countOf is where what becomes of an ask is counted.
func (r *Receipt) countOf(a *Ask) *ruleCount {
	for _, rule := range r.rules {
		if rule.name == a.meter.rule {
			return rule.count
		}
	}
	return &r.l.count.quota
}

// Fields are the header fields that tell the client what is left.
func (r *Receipt) Fields(now time.Time) []inference.HeaderField {
	if len(r.asks) == 0 {
		return nil
	}
	return fields(r.asks, int64(now.Sub(r.begun)), r.factor)
}

// Spend is told how many tokens of answer were streamed so far, and charges what goes
// beyond the reservation. It never refuses. It compares two numbers, and touches
// buckets once in 64 tokens beyond the reservation.
func (r *Receipt) Spend(now time.Time, streamed int64) {
	if !r.counted || min(streamed, mostTokens) <= r.covered || r.asks == nil {
		return
	}
	n := (min(streamed, mostTokens) - r.covered + spendStep - 1) / spendStep * spendStep
	r.covered += n
	r.l.accounts.more(r.drafts, n)
	var changes []Ask
	for i := range r.asks {
		a := &r.asks[i]
		if a.meter.unit != tokens {
			continue
		}
		change := *a
		change.Cost = times(a.meter.rate.time(n), r.factor)
		a.Cost += change.Cost
		changes = append(changes, change)
	}
	r.l.give(now, changes, r.shared)
}

// Settle charges what the request cost, refunds the rest and gives back what is held.
// A request that was turned away by the gateway itself before a server was asked gets
// its place among the requests back too. It does not wait.
func (r *Receipt) Settle(now time.Time, rec *inference.Record) {
	if r.rules == nil {
		return // of nothing, or settled before
	}
	usage, _ := rec.Spent()
	spent := min(max(0, usage.PromptTokens), mostTokens) + min(max(0, usage.CompletionTokens), mostTokens)
	turnedAway := len(rec.Attempts) == 0 && ours(rec.Code)
	changes := r.asks[:0] // nobody needs the asks any more
	for _, a := range r.asks {
		switch a.meter.unit {
		case concurrent:
			a.Cost = -1
		case tokens:
			a.Cost = times(a.meter.rate.time(spent), r.factor) - a.Cost
		case requests:
			if !turnedAway {
				continue
			}
			a.Cost = -a.Cost
		}
		if a.Cost != 0 {
			changes = append(changes, a)
		}
	}
	r.l.give(now, changes, r.shared)
	r.l.accounts.settle(now, r.drafts, spent)
	for _, rule := range r.rules {
		rule.count.held(now.Sub(r.begun))
	}
	if r.counted && rec.Complete && len(rec.Attempts) > 0 && usage.CompletionTokens > 0 {
		r.l.expect.observe(r.past, usage.CompletionTokens)
	}
	r.asks, r.drafts, r.rules, r.counted = nil, nil, nil, false
}

// ours says whether a request that ended so was turned away for reasons that are not
// its client's.
func ours(code inference.Code) bool {
	switch code {
	case inference.CodeOverloaded, inference.CodeNoCapacity, inference.CodeDraining, inference.CodeInternal:
		return true
	}
	return false
}
