package gateway

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// maxRenewals bounds the answers that are renewed at one time. Further ones stay old
// until they are asked for again.
const maxRenewals = 64

// renewal generates answers anew that were used although they were no longer fresh.
type renewal struct {
	ctx    context.Context // ends with Run
	cancel context.CancelFunc
	under  sync.WaitGroup

	mu struct {
		sync.Mutex
		pending map[[32]byte]struct{}
		copies  int // of requests, under way
		ended   bool
	}
}

// init makes it ready.
func (r *renewal) init() {
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.mu.pending = make(map[[32]byte]struct{})
}

// begin reserves a renewal of a key, unless one is under way or there are too many.
func (r *renewal) begin(key [32]byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.mu.pending[key]; ok || r.mu.ended || len(r.mu.pending) >= maxRenewals {
		return false
	}
	r.mu.pending[key] = struct{}{}
	r.under.Add(1)
	return true
}

// end gives it back.
func (r *renewal) end(key [32]byte) {
	r.mu.Lock()
	delete(r.mu.pending, key)
	r.mu.Unlock()
	r.under.Done()
}

// Run waits until ctx ends, then ends the renewals and waits for them. Without Run
// they end with their requests' own time-outs.
func (g *Gateway) Run(ctx context.Context) error {
	<-ctx.Done()
	g.renewal.mu.Lock()
	g.renewal.mu.ended = true
	g.renewal.mu.Unlock()
	g.renewal.cancel()
	g.renewal.under.Wait()
	return nil
}

// refresh generates the answer to a request anew in the background, in the class
// that runs when nothing waits.
func (g *Gateway) refresh(req *inference.Request, known Known) {
	key := known.Key()
	if !g.renewal.begin(key) {
		return
	}
	r := Background(req, time.Now(), g.Timeout())
	go func() {
		defer g.renewal.end(key)
		defer survive(nil)
		g.Serve(g.renewal.ctx, r, Discard{})
	}()
}

// Background is a copy of a request that outlives it, and generates its answer anew
// when nothing else waits: for answers that are wanted later.
func Background(req *inference.Request, now time.Time, timeout time.Duration) *inference.Request {
	r := *req
	r.Header, r.Body = req.Header.Clone(), bytes.Clone(req.Body)
	r.Class, r.Cache = inference.Idle, inference.CacheControl{NoCache: true}
	r.Received, r.Deadline = now, now.Add(timeout)
	r.Wait, r.Patience, r.Ticket, r.Retry, r.DegradeOK = 0, 0, "", 0, false
	return &r
}

// Discard is a Reader for answers that nobody waits for.
type Discard struct{}

// Head implements Reader.
func (Discard) Head(*inference.Head) error { return nil }

// Write implements Reader.
func (Discard) Write([]byte, bool) error { return nil }

// Fail implements Reader.
func (Discard) Fail(*inference.Error) {}
