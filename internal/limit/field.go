package limit

import (
	"strconv"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Names of header fields in their canonical form. The first six are OpenAI's; the
// last two those of draft-ietf-httpapi-ratelimit-headers-10.
var fieldNames = [...][3]string{
	requests: {"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"},
	tokens:   {"X-Ratelimit-Limit-Tokens", "X-Ratelimit-Remaining-Tokens", "X-Ratelimit-Reset-Tokens"},
}

// The fields of the Internet draft.
const (
	fieldState  = "Ratelimit"
	fieldPolicy = "Ratelimit-Policy"
)

// left is how much of its bucket an ask leaves, at an instant so many nanoseconds after
// it was answered. share is that of the bucket's size.
func (a *Ask) left(since, factor int64) (n int64, reset time.Duration, share float64) {
	state := max(0, a.State-max(0, since))
	free := max(0, a.Size-state)
	return min(a.meter.most, a.meter.rate.amount(free)) / factor, time.Duration(state), float64(free) / float64(a.Size)
}

// fields are the header fields that say what is left: of requests and of tokens those
// of the bucket that is closest to its limit, and in the draft's form the closest of
// all. factor is by how many gateways the limits are divided.
func fields(asks []Ask, since, factor int64) []inference.HeaderField {
	var closest [2]*Ask
	for i := range asks {
		a := &asks[i]
		if a.Kind == Held || a.State < 0 {
			continue
		}
		c := &closest[a.meter.unit]
		if *c == nil {
			*c = a
			continue
		}
		_, _, share := a.left(since, factor)
		if _, _, least := (*c).left(since, factor); share < least {
			*c = a
		}
	}
	all := make([]inference.HeaderField, 0, 8)
	var nearest *Ask
	lowest := 2.0
	for u, a := range closest {
		if a == nil {
			continue
		}
		n, reset, share := a.left(since, factor)
		all = append(all, inference.HeaderField{Name: fieldNames[u][0], Value: strconv.FormatInt(a.meter.most, 10)},
			inference.HeaderField{Name: fieldNames[u][1], Value: strconv.FormatInt(n, 10)},
			inference.HeaderField{Name: fieldNames[u][2], Value: roundUp(reset, time.Millisecond).String()})
		if share < lowest {
			nearest, lowest = a, share
		}
	}
	if nearest == nil {
		return nil
	}
	n, reset, _ := nearest.left(since, factor)
	name := `"` + nearest.meter.name + `"`
	return append(all,
		inference.HeaderField{Name: fieldState, Value: name + ";r=" + strconv.FormatInt(n, 10) + ";t=" + seconds(int64(reset))},
		inference.HeaderField{Name: fieldPolicy, Value: name + ";q=" + strconv.FormatInt(nearest.meter.most, 10) + ";w=" + seconds(nearest.Size)})
}

// roundUp is a time in whole units.
func roundUp(d, unit time.Duration) time.Duration { return (d + unit - 1).Truncate(unit) }

// seconds are nanoseconds in whole seconds, rounded up.
func seconds(ns int64) string {
	return strconv.FormatInt(int64(roundUp(time.Duration(ns), time.Second)/time.Second), 10)
}

// Bounds of the wait for one of those who are under way: what is not known is guessed.
const (
	leastHold = 250 * time.Millisecond
	mostHold  = 30 * time.Second
)

// wait is how long a bucket that is over needs until it has room: exactly, or for what
// is under way until the next of them ends, if they end as they did of late.
func (a *Ask) wait(hold int64) time.Duration {
	if a.Kind == Held {
		return min(max(time.Duration(hold/max(1, a.Size)), leastHold), mostHold)
	}
	return time.Duration(a.State + a.Room - a.Size)
}

// refusal words the refusal of a request by its buckets.
func refusal(asks []Ask, factor int64, hold func(*Ask) int64) (*inference.Error, *Ask) {
	worst, wait := &asks[0], time.Millisecond // another clock may be a microsecond behind
	for i := range asks {
		a := &asks[i]
		if w := a.wait(hold(a)); a.Over() && (!worst.Over() || w > wait) {
			worst, wait = a, w
		}
	}
	m := worst.meter
	var e *inference.Error
	if m.unit == concurrent {
		e = inference.Errorf(inference.CodeRateLimited, "limit %q: %d requests are under way, and no more may be; try again when one has ended", m.rule, m.most)
	} else {
		e = inference.Errorf(inference.CodeRateLimited, "limit %q: %v %v, %d at once, are used up; try again in %v", m.rule, m.rate, m.unit, m.most, roundUp(wait, time.Millisecond))
	}
	e.Reason, e.RetryAfter = unitWords[m.unit].reason, wait
	e.Fields = fields(asks, 0, factor)
	return e, worst
}

// spentRefusal words the refusal by a budget.
func spentRefusal(now time.Time, d *draft, spent bool, hold int64) *inference.Error {
	b := d.budget
	if !spent {
		e := inference.Errorf(inference.CodeRateLimited, "limit %q: requests under way hold the rest of the budget; try again when one has ended", b.rule.name)
		e.Reason, e.RetryAfter = b.period.String(), min(max(time.Duration(hold), leastHold), mostHold)
		return e
	}
	_, end := b.period.span(now)
	e := inference.Errorf(inference.CodeQuotaSpent, "limit %q: the budget of %d tokens is spent until %s", b.rule.name, b.most, end.Format(time.RFC3339))
	e.Reason, e.RetryAfter, e.NoRetry = b.period.String(), end.Sub(now), true
	return e
}
