package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// quota is gateway.Limits, and counts its receipts.
type quota struct {
	refuse *inference.Error
	spend  func(tokens int64) // what Spend does besides; nil is nothing

	mu      sync.Mutex
	held    int
	charged []inference.Usage
	stepped []int64 // what Spend was told, of all receipts
}

// Reserve implements gateway.Limits.
func (r *rig) Reserve(_ context.Context, _ time.Time, _ *inference.Request) (gateway.Receipt, error) {
	q := r.limits
	if q == nil {
		return new(quota), nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse != nil {
		return nil, q.refuse
	}
	q.held++
	return q, nil
}

// Fields implements gateway.Receipt.
func (q *quota) Fields(time.Time) []inference.HeaderField {
	return []inference.HeaderField{{Name: "X-Ratelimit-Remaining-Requests", Value: "7"}}
}

// Spend implements gateway.Receipt.
func (q *quota) Spend(_ time.Time, tokens int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stepped = append(q.stepped, tokens)
	if q.spend != nil {
		q.spend(tokens)
	}
}

// Settle implements gateway.Receipt.
func (q *quota) Settle(_ time.Time, rec *inference.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held--
	u, _ := rec.Spent()
	q.charged = append(q.charged, u)
}

// settled checks that nothing is held and what was charged.
func (q *quota) settled(t *testing.T, want ...inference.Usage) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.held != 0 || !slices.Equal(q.charged, want) {
		t.Errorf("%d receipts are held and %+v was charged, want none and %+v", q.held, q.charged, want)
	}
}

func TestLimitsAreSettled(t *testing.T) {
	reported := inference.Usage{PromptTokens: 5, CompletionTokens: 1}
	for name, c := range map[string]struct {
		script func(*testkit.Exchange) bool
		body   string
		code   inference.Code
		want   inference.Usage
		steps  []int64
	}{
		"one piece":                             {reports, chatBody, "", reported, nil},
		"one piece without usage":               {good, chatBody, "", inference.Usage{PromptTokens: 8, CompletionTokens: 3}, nil},
		"one piece that no stream is asked for": {func(x *testkit.Exchange) bool { x.JSON(200, `{"choices":[{"x":1}]}`); return true }, severalBody, "", inference.Usage{PromptTokens: 8, CompletionTokens: 6}, nil},
		"a stream without usage": {func(x *testkit.Exchange) bool {
			x.Stream()
			x.Delta("a")
			x.Delta("b")
			x.Delta("c")
			x.Finish()
			return true
		}, streamBody, "", inference.Usage{PromptTokens: 8, CompletionTokens: 3}, []int64{2, 3}},
		"a stream that is cut": {func(x *testkit.Exchange) bool {
			x.Stream()
			x.Delta("a")
			x.Delta("b")
			return false
		}, streamBody, inference.CodeUpstreamCut, inference.Usage{PromptTokens: 8, CompletionTokens: 2}, []int64{2}},
		"nothing comes": {func(x *testkit.Exchange) bool { x.JSON(500, "{}"); return true }, chatBody, inference.CodeUpstreamError, inference.Usage{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, testkit.NewInstance(t, c.script))
			r.limits = new(quota)
			r.serve(t.Context(), c.body, nil).code(t, c.code)
			r.limits.settled(t, c.want)
			if !slices.Equal(r.limits.stepped, c.steps) {
				t.Errorf("while it was streamed: %v, want %v", r.limits.stepped, c.steps)
			}
		})
	}
}

// reports is an instance that says what its answer cost.
func reports(x *testkit.Exchange) bool {
	x.JSON(200, testkit.Answer)
	return true
}

// Bodies of requests with a prompt of 8 tokens.
const (
	severalBody = `{"model":"m","n":2,"messages":[{"role":"user","content":"hi"}]}` // which cannot be put together from a stream
	chatBody    = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	streamBody  = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

func TestARefusalByLimitsChargesNothing(t *testing.T) {
	inst := testkit.NewInstance(t, good)
	r := newRig(t, nil, inst)
	refuse := inference.Errorf(inference.CodeRateLimited, "too fast")
	r.limits = &quota{refuse: refuse}
	c := r.serve(t.Context(), chatBody, nil)
	c.code(t, inference.CodeRateLimited)
	r.limits.settled(t)
	if inst.Requests() != 0 || r.last().Code != inference.CodeRateLimited {
		t.Errorf("%d requests were sent, the record says %q", inst.Requests(), r.last().Code)
	}
}

func TestTheClientIsToldItsOwnLimits(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.JSON(200, testkit.Answer, "X-Ratelimit-Remaining-Requests: 99999", "X-Other: 1") // the first of the provider's account
		return true
	}))
	r.limits = new(quota)
	c := r.serve(t.Context(), chatBody, nil)
	var limits, others []string
	for _, f := range c.head.Fields {
		switch f.Name {
		case "X-Ratelimit-Remaining-Requests":
			limits = append(limits, f.Value)
		case "X-Other":
			others = append(others, f.Value)
		}
	}
	if !slices.Equal(limits, []string{"7"}) || !slices.Equal(others, []string{"1"}) {
		t.Errorf("got %v and %v", limits, others)
	}
}

func TestWhatIsNotGeneratedIsNotCharged(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, reports))
	newShelf(r)
	r.limits = new(quota)
	for range 2 {
		r.serve(t.Context(), severalBody, nil).code(t, "")
	}
	r.limits.settled(t, inference.Usage{PromptTokens: 5, CompletionTokens: 1}, inference.Usage{})
	if got := r.last().Cache; got != inference.CacheHit {
		t.Errorf("the second was a %s", got)
	}
	r.limits.mu.Lock()
	r.limits.charged = nil
	r.limits.mu.Unlock()
	background := r.request(strings.Replace(severalBody, "hi", "ho", 1))
	background.Class = inference.Idle
	r.gateway.Serve(t.Context(), background, gateway.Discard{})
	r.limits.settled(t)
}

// TestASharedStreamIsChargedAsItComes to the one for whom it was begun.
func TestASharedStreamIsChargedAsItComes(t *testing.T) {
	two := make(chan struct{})
	r := newRig(t, nil, testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("a")
		x.Delta("b")
		select {
		case <-two:
		case <-time.After(10 * time.Second):
			t.Error("two tokens were streamed, and nothing was charged")
		}
		x.Delta("c")
		x.Finish()
		return true
	}))
	newShelf(r)
	once := sync.OnceFunc(func() { close(two) })
	r.limits = &quota{spend: func(tokens int64) {
		if tokens == 2 {
			once()
		}
	}}
	r.serve(t.Context(), streamBody, nil).code(t, "")
	r.limits.settled(t, inference.Usage{PromptTokens: 8, CompletionTokens: 3})
	if n := slices.Max(append(r.limits.stepped, 0)); n != 3 {
		t.Errorf("Spend was told of %d tokens, want 3", n)
	}
}

// TestACopyIsSentAndItsAnswerDropped as the plan says, without a part in the client's
// answer, limits or cache.
func TestACopyIsSentAndItsAnswerDropped(t *testing.T) {
	var shadowed []*http.Request
	var mu sync.Mutex
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if x.Request.Header.Get("X-Shadow") != "" {
			mu.Lock()
			shadowed = append(shadowed, x.Request)
			mu.Unlock()
			x.JSON(200, strings.Replace(testkit.Answer, "hello", "from the shadow", 1))
			return true
		}
		return reports(x)
	})
	r := newRig(t, nil, inst)
	r.limits = new(quota)
	arm := inference.Arm{Experiment: "shadow", Arm: "mirror"}
	r.plan = func(p *fleet.Plan) {
		if p.Request.Class == inference.Idle {
			return
		}
		copied := *p.Request
		copied.Header = http.Header{"X-Shadow": {"1"}}
		p.Mirror = testkit.Plan(r.fleet, &copied)
		p.Mirror.Arm = arm
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.gateway.Run(ctx) }()
	c := r.serve(t.Context(), chatBody, nil)
	c.code(t, "")
	if strings.Contains(c.body.String(), "shadow") {
		t.Errorf("the client got %s", c.body.String())
	}
	records := func() []inference.Record {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Clone(r.records)
	}
	testkit.Eventually(t, "both are recorded", func() bool { return len(records()) == 2 })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	shadows := 0
	for _, rec := range records() {
		if !rec.Shadow {
			if rec.Arm != (inference.Arm{}) || rec.Request.Class == inference.Idle {
				t.Errorf("the client's record: %+v", rec)
			}
			continue
		}
		shadows++
		if rec.Arm != arm || rec.Request.Class != inference.Idle || !rec.Complete || rec.Code != "" || rec.Request.Body == nil {
			t.Errorf("the copy's record: %+v", rec)
		}
	}
	if shadows != 1 || len(shadowed) != 1 {
		t.Errorf("%d copies are recorded and %d were sent, want 1", shadows, len(shadowed))
	}
	r.limits.settled(t, inference.Usage{PromptTokens: 5, CompletionTokens: 1})
}

func TestCopiesAreBounded(t *testing.T) {
	release := make(chan struct{})
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if x.Request.Header.Get("X-Shadow") != "" {
			<-release
		}
		return good(x)
	})
	r := newRig(t, nil, inst)
	r.plan = func(p *fleet.Plan) {
		copied := *p.Request
		copied.Header = http.Header{"X-Shadow": {"1"}}
		p.Mirror = testkit.Plan(r.fleet, &copied)
	}
	const n = 100
	for i := range n {
		r.serve(t.Context(), strings.Replace(chatBody, "hi", fmt.Sprint("hi", i), 1), nil).code(t, "")
	}
	testkit.Eventually(t, "the copies are sent", func() bool { return inst.Requests() == n+64 })
	close(release)
	testkit.Eventually(t, "they end", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.records) == n+64 })
}

// TestADefectInACopyIsNotTheProcess: nobody waits for a copy who could be told.
func TestADefectInACopyIsNotTheProcess(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	r.plan = func(p *fleet.Plan) {
		copied := *p.Request
		p.Mirror = testkit.Plan(r.fleet, &copied)
	}
	r.enter = func(now time.Time, plan *fleet.Plan, tried []*fleet.Instance) (*fleet.Lease, gateway.Place, error) {
		if plan.Request.Class == inference.Idle {
			panic("on purpose")
		}
		lease, err := plan.Acquire(now, tried)
		return lease, nil, err
	}
	r.serve(t.Context(), chatBody, nil).code(t, "")
	testkit.Eventually(t, "both are recorded", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.records) == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.records {
		if rec.Shadow && (rec.Code != inference.CodeInternal || rec.Complete) {
			t.Errorf("the copy's record: %+v", rec)
		}
	}
}

// TestACopyReadsNothingOfItsClient, who may be gone: its header fields are the next
// request's by then.
func TestACopyReadsNothingOfItsClient(t *testing.T) {
	r := newRig(t, nil, testkit.NewInstance(t, good))
	asked := make(chan string, 2)
	r.plan = func(p *fleet.Plan) {
		client := p.Request
		p.Cookie = func(*fleet.Instance) string { asked <- client.Class.String(); return "" }
		copied := *client
		p.Mirror = testkit.Plan(r.fleet, &copied)
		p.Mirror.Cookie = func(*fleet.Instance) string { asked <- "copy"; return "" }
	}
	r.serve(t.Context(), chatBody, nil).code(t, "")
	testkit.Eventually(t, "both are recorded", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.records) == 2 })
	close(asked)
	for who := range asked {
		if who == "copy" {
			t.Error("a cookie was made for the copy, of the client's header fields")
		}
	}
}
