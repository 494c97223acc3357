package gateway_test

import (
	"context"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// told is a reader that notes how many answers had begun when its own did.
type told struct {
	reader
	r     *rig
	begun int
}

// Head implements gateway.Reader.
func (c *told) Head(h *inference.Head) error {
	c.r.mu.Lock()
	c.begun = c.r.begun
	c.r.mu.Unlock()
	return c.reader.Head(h)
}

// TestAnAnswerBeginsBeforeItsReaderHasIt, once for each reader, whoever generates it.
func TestAnAnswerBeginsBeforeItsReaderHasIt(t *testing.T) {
	for name, cached := range map[string]bool{"alone": false, "from the cache": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, testkit.NewInstance(t, good))
			if cached {
				newShelf(r)
			}
			for i, body := range []string{plain, plain, stream, stream, rebuilt, rebuilt} {
				c := &told{r: r}
				r.gateway.Serve(context.Background(), r.request(body), c)
				if c.fail != nil || c.begun != i+1 || r.begun != i+1 {
					t.Errorf("%d: %d answers had begun, %d have; got %v", i, c.begun, r.begun, c.fail)
				}
			}
		})
	}
	r := newRig(t, nil)
	if r.serve(context.Background(), plain, nil).code(t, inference.CodeNoCapacity); r.begun != 0 {
		t.Error("a refusal begins as an answer")
	}
}

// TestTheFirstTokenOfAnAnswerInOnePiece is that of the stream that it is put together
// from, and where it is none, there is no saying when it came.
func TestTheFirstTokenOfAnAnswerInOnePiece(t *testing.T) {
	for name, cached := range map[string]bool{"alone": false, "shared": true} {
		t.Run(name, func(t *testing.T) {
			var r *rig
			var seen time.Time
			r = newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				x.Stream()
				x.Role()
				x.Delta("hello")
				testkit.Eventually(t, "the first token is seen", func() bool { return r.fleet.Snapshot().Regions[0].Pools[0].Instances[0].Live.TTFT() > 0 })
				seen = time.Now()
				x.Finish()
				return true
			}))
			if cached {
				newShelf(r)
			}
			r.serve(context.Background(), rebuilt, nil).code(t, "")
			rec := r.last()
			if first := rec.Attempts[0].Start + rec.Attempts[0].TTFT; first <= 0 || rec.Request.Received.Add(first).After(seen) {
				t.Errorf("the first token came %v after the request, %v after it was seen", first, rec.Request.Received.Add(first).Sub(seen))
			}
			if rec.Tokens == 0 || rec.TTFT != 0 {
				t.Errorf("got %+v", rec)
			}
		})
	}
}
