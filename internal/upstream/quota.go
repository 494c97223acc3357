package upstream

import (
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// The prefixes of the header fields in which hosted APIs say what is left of an
// account's limits: OpenAI's, which many copy, and Anthropic's.
const (
	openAILimits    = "X-Ratelimit-"
	anthropicLimits = "Anthropic-Ratelimit-"
)

// isLimit says whether a header field tells of an account's limits, which are not
// the client's.
func isLimit(name string) bool {
	return strings.HasPrefix(name, openAILimits) || strings.HasPrefix(name, anthropicLimits)
}

// maxLimits bounds the limits that are read of one head: the known APIs have two
// to four.
const maxLimits = 8

// quota is what a head says about an account's limits.
type quota struct {
	limits [maxLimits]struct {
		name  string // "Requests", "Tokens"
		spent bool   // nothing remains
		reset time.Duration
	}
	n int
}

// readLimit notes a header field that tells of an account's limits.
func (h *parsedHead) readLimit(name string, value []byte) {
	if !isLimit(name) {
		return
	}
	if h.quota == nil {
		h.quota = new(quota)
	}
	h.quota.read(name, value, time.Now())
}

// read notes a header field that is one: X-Ratelimit-Remaining-Tokens,
// Anthropic-Ratelimit-Tokens-Reset.
func (q *quota) read(name string, value []byte, now time.Time) {
	var fact, limit string
	if rest, ok := strings.CutPrefix(name, openAILimits); ok {
		fact, limit, _ = strings.Cut(rest, "-")
	} else if rest, ok := strings.CutPrefix(name, anthropicLimits); ok {
		i := max(strings.LastIndexByte(rest, '-'), 0)
		limit, fact = rest[:i], strings.TrimPrefix(rest[i:], "-")
	}
	if limit == "" || fact != "Remaining" && fact != "Reset" {
		return
	}
	i := 0
	for i < q.n && q.limits[i].name != limit {
		i++
	}
	if i == maxLimits {
		return
	}
	q.n = max(q.n, i+1)
	l := &q.limits[i]
	l.name = limit
	if fact == "Reset" {
		l.reset, _ = parseReset(string(value), now)
		return
	}
	left, err := strconv.ParseFloat(string(value), 64)
	l.spent = err == nil && left <= 0
}

// maxCool bounds how long a limit that is spent keeps an account out of use, in
// case its reset is not what it seems.
const maxCool = 10 * time.Minute

// cool keeps requests away from an account until its spent limits are reset.
func (q *quota) cool(live *fleet.Live, now time.Time) {
	if q == nil {
		return
	}
	var wait time.Duration
	for _, l := range q.limits[:q.n] {
		if l.spent {
			wait = max(wait, l.reset)
		}
	}
	if wait > 0 {
		live.Cool(now.Add(min(wait, maxCool)).UnixNano())
	}
}

// maxReset is the longest reset that is believed, about 11 days in seconds: what
// is longer is an instant in a form of its own.
const maxReset = 1e6

// parseReset reads until when a limit is reset: a duration as Go writes it (6m0s,
// OpenAI), seconds, or an instant (RFC 3339, Anthropic). A reset that is over is 0.
func parseReset(s string, now time.Time) (time.Duration, bool) {
	d, err := time.ParseDuration(s)
	if err != nil {
		if sec, err := strconv.ParseFloat(s, 64); err == nil && sec >= 0 && sec <= maxReset {
			return time.Duration(sec * float64(time.Second)), true
		}
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return 0, false
		}
		d = at.Sub(now)
	}
	if d > maxReset*time.Second {
		return 0, false
	}
	return max(d, 0), true
}
