package gateway_test

import (
	"context"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
)

// TestClientClosesBehindTheTerminalEvent is what openai-python does: it reads
// [DONE] and closes the connection, without waiting for the body's end.
func TestClientClosesBehindTheTerminalEvent(t *testing.T) {
	done, gone := make(chan bool, 1), make(chan bool, 1)
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Role()
		x.Delta("a")
		x.Chunk(testkit.FinishEvent)
		x.Chunk(testkit.DoneEvent)
		done <- true
		gone <- x.Gone(5 * time.Second)
		return false
	}))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { <-done; time.AfterFunc(20*time.Millisecond, cancel) }() // by then the reader has [DONE]
	r.serve(ctx, stream, nil).code(t, "")
	if !<-gone {
		t.Error("the upstream's connection stayed open")
	}
	r.seen("ok")
	if rec := r.last(); !rec.Complete || rec.Code != "" {
		t.Errorf("recorded as complete=%v, code %q", rec.Complete, rec.Code)
	}
}
