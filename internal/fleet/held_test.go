package fleet_test

import (
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// TestHeldIsNoGap says that the time in which a stream waited for its reader counts
// neither as the instance's gap nor as the stream's pace.
func TestHeldIsNoGap(t *testing.T) {
	f := testkit.Fleet(t, "127.0.0.1:1")
	req := &inference.Request{Surface: inference.Chat, Fields: inference.Fields{Model: "m", Stream: true, PromptBytes: 40}}
	now := time.Unix(1000, 0)
	lease, err := testkit.Plan(f, req).Acquire(now, nil)
	if err != nil {
		t.Fatal(err)
	}
	lease.FirstToken(now, time.Millisecond, true)
	for i := range 100 {
		if i%10 == 0 { // the reader takes a second for every tenth token
			lease.Held(time.Second)
			now = now.Add(time.Second)
		}
		now = now.Add(20 * time.Millisecond)
		lease.Token(now)
	}
	gaps, sum := lease.Pace()
	if gaps != 100 || sum != 2*time.Second {
		t.Errorf("pace: %d gaps in %v, want 100 in 2s", gaps, sum)
	}
	lease.Release(now)
	r := lease.Instance.Live.Meter().Read(now.UnixNano())
	if r.Gaps != 100 || r.GapTime != 2*time.Second {
		t.Errorf("meter: %d gaps in %v, want 100 in 2s", r.Gaps, r.GapTime)
	}
}
