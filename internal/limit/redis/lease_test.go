package redis_test

import (
	"testing"
	"time"

	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/limit/redis"
)

// TestOneCallTakesAhead asks for a bucket twice at once, as a request does that may not
// wait for another's call: what the demand earns is taken ahead once.
func TestOneCallTakesAhead(t *testing.T) {
	now, ask := time.Unix(1000, 0), &limit.Ask{Cost: 10}
	c := redis.NewCredit(time.Second, 2, 7, 20, now.Add(-time.Second/2))
	want := func(when string, extra, back int64) {
		t.Helper()
		if e, b := c.Want(ask, now); e != extra || b != back {
			t.Errorf("%s: got %d ahead and %d back, want %d and %d", when, e, b, extra, back)
		}
	}
	want("the first call: twice the last, and what is held", 40, 7)
	want("a second meanwhile: its own cost alone", 0, 0)
	c.Ended()
	want("afterwards", 40, 0)
}
