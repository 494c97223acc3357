package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// Constants of the herd.
const (
	herdTokens = 200
	// herdMemory is what each client may add to the gateway's memory: its connection
	// and buffers, as measured by streams, and room for the collector.
	herdMemory = 96 << 10
	// herdLeaves is the event at which the first client leaves.
	herdLeaves = 50
)

// playHerd lets many clients ask the same question at once, then once more with a
// first client that leaves, and once more while the server that answers is killed.
func playHerd(ctx context.Context, r *rig) error {
	if err := r.start(ctx, 2); err != nil {
		return err
	}
	before, err := r.warm(ctx)
	if err != nil {
		return err
	}
	r.say("%d clients ask the same question of %d tokens at once", r.Count, herdTokens)
	h := &herd{rig: r, question: cacheQuestion(1, herdTokens, true), stream: true}
	if err := h.run(ctx, nil); err != nil {
		return err
	}
	h.judge("at once", 1)
	r.expect("at once: gateway's memory for each client at the most", (h.peak-before.rss)/float64(r.Count)/1024, AtMost, herdMemory>>10, "KiB")

	r.say("the first client leaves after %d tokens, the others have joined", herdLeaves)
	h = &herd{rig: r, question: cacheQuestion(2, herdTokens, true), stream: true, early: true}
	if err := h.run(ctx, nil); err != nil {
		return err
	}
	h.judge("the first client leaves", 1)

	r.say("the server that answers is killed (SIGKILL) under way; clients want one piece")
	h = &herd{rig: r, question: cacheQuestion(3, herdTokens, false)}
	if err := h.run(ctx, func() error { return r.killBusy(ctx) }); err != nil {
		return err
	}
	h.judge("the server is killed", 2)
	return r.expectZero(ctx)
}

// herd is one question of many clients.
type herd struct {
	*rig
	question []byte
	stream   bool
	early    bool // the first client asks first, and leaves

	whole, different atomic.Int64
	first            atomic.Pointer[[]byte]
	generations      float64
	peak             float64 // bytes of the gateway's memory
}

// run asks the question over connections that are open already. meanwhile happens
// when the generation is under way.
func (h *herd) run(ctx context.Context, meanwhile func() error) error {
	clients := make([]*asker, h.Count)
	for i := range clients {
		a, err := newAsker(ctx, h.gateway.url)
		if err != nil {
			return err
		}
		defer a.close()
		clients[i] = a
	}
	before, err := h.attempts(ctx)
	if err != nil {
		return err
	}
	rest := clients
	var leader *bufio.Scanner
	if h.early {
		if leader, err = h.begin(clients[0]); err != nil {
			return err
		}
		rest = clients[1:]
	}
	var wg sync.WaitGroup
	errs := make([]error, len(rest)+1)
	for i, a := range rest {
		wg.Go(func() { errs[i] = h.follow(a) })
	}
	if meanwhile != nil {
		wg.Go(func() { errs[len(rest)] = meanwhile() })
	}
	if leader != nil {
		for n := 0; n < herdLeaves && leader.Scan(); {
			if bytes.HasPrefix(leader.Bytes(), []byte("data:")) {
				n++
			}
		}
		clients[0].close()
	}
	watched := make(chan struct{})
	end := make(chan struct{})
	go func() { // ends with the questions
		defer close(watched)
		h.watch(ctx, end)
	}()
	wg.Wait()
	close(end)
	<-watched
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := h.attempts(ctx)
	h.generations = after - before
	return err
}

// begin asks the question first and reads the beginning of the answer.
func (h *herd) begin(a *asker) (*bufio.Scanner, error) {
	if err := a.send(h.question); err != nil {
		return nil, err
	}
	res, err := a.head() //nolint:bodyclose // the connection is closed under it: the client leaves
	if err != nil {
		return nil, err
	}
	return bufio.NewScanner(res.Body), nil
}

// follow asks the question and compares the answer with the first that came.
func (h *herd) follow(a *asker) error {
	got, err := a.ask(h.question)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if err == nil && got.whole(h.stream, herdTokens) {
		h.whole.Add(1)
	}
	h.first.CompareAndSwap(nil, &got.body)
	if !bytes.Equal(got.body, *h.first.Load()) {
		h.different.Add(1)
	}
	return nil
}

// watch keeps the most memory that the gateway takes.
func (h *herd) watch(ctx context.Context, end <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if f, err := h.gateway.footprint(ctx); err == nil {
			h.peak = max(h.peak, f.rss)
		}
		select {
		case <-end:
			return
		case <-tick.C:
		}
	}
}

// attempts is the number of generations that the gateway asked for. It is counted
// when a flight has ended.
func (h *herd) attempts(ctx context.Context) (n float64, err error) {
	last := -1.0
	err = settled(ctx, func() (bool, error) {
		m, err := h.gateway.metrics(ctx, h.gateway.admin)
		n = m.sum("spillway_gateway_attempts_total")
		same := n == last
		last = n
		return same, err
	})
	return n, err
}

// judge notes what became of the clients.
func (h *herd) judge(name string, generations float64) {
	clients := float64(h.Count)
	if h.early {
		clients--
	}
	h.expect(name+": clients with a whole answer", float64(h.whole.Load()), Exactly, clients, "")
	h.expect(name+": clients with other bytes than the first", float64(h.different.Load()), Exactly, 0, "")
	relation := Exactly
	if generations > 1 {
		relation = AtMost
	}
	h.expect(name+": generations", h.generations, relation, generations, "")
}

// killBusy kills the server that has the question.
func (r *rig) killBusy(ctx context.Context) error {
	killed := errors.New("no server has the question")
	err := settled(ctx, func() (bool, error) {
		for i, u := range r.engines.urls() {
			m, err := r.gateway.metrics(ctx, u)
			if err != nil {
				return false, fmt.Errorf("engine %d: %w", i, err)
			}
			if m.sum("vllm:num_requests_running") > 0 {
				killed = r.engines.all[i].kill()
				return true, nil
			}
		}
		return false, nil
	})
	return errors.Join(err, killed)
}
