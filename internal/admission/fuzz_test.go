package admission_test

import (
	"encoding/base64"
	"math"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// FuzzTicket shows texts that are no tickets, and tickets that were changed: none is
// honoured, and none is a reason to refuse a request that would be admitted without.
func FuzzTicket(f *testing.F) {
	flowed := newFlow(f, static(1))
	e := flowed.refuse(ask{tenant: "buyer", body: "b"})
	real, err := base64.RawURLEncoding.DecodeString(e.Ticket)
	if err != nil || len(real) == 0 {
		f.Fatalf("ticket %q: %v", e.Ticket, err)
	}
	f.Add(e.Ticket, uint16(0), uint8(0))
	f.Add("", uint16(0), uint8(0))
	f.Add("AAAA", uint16(3), uint8(1))
	for i := range real {
		f.Add("", uint16(i), uint8(0x80))
	}
	f.Fuzz(func(t *testing.T, text string, at uint16, bits uint8) {
		s := newStage(t, patient(1), layout(pool("p", 1, "m")))
		s.enter(ask{})
		s.now = flowed.now.Add(e.RetryAfter)
		for _, ticket := range []string{text, change(real, at, bits)} {
			if ticket == "" || ticket == e.Ticket {
				continue // the flow's own is that of another gateway, without a common secret
			}
			c := s.enter(showing(ask{tenant: "buyer", body: "b"}, ticket))
			c.want("waits")
			c.leave()
		}
		if got := metric(t, s.g, `tickets_claimed_total{class="normal"}`); got != 0 {
			t.Errorf("%v claimed", got)
		}
		// At the gateway that sold it, too, one that was changed is worth nothing.
		if ticket := change(real, at, bits); ticket != e.Ticket {
			flowed.t = t
			before := flowed.claimed()
			now := flowed.now
			flowed.now = now.Add(e.RetryAfter)
			if c := flowed.enter(showing(ask{tenant: "buyer", body: "b"}, ticket)); c.waiter != nil {
				c.leave()
			}
			flowed.now = now
			if got := flowed.claimed(); got != before {
				t.Errorf("%q was honoured", ticket)
			}
		}
	})
}

// change changes bits of a ticket.
func change(ticket []byte, at uint16, bits uint8) string {
	b := append([]byte(nil), ticket...)
	b[int(at)%len(b)] ^= bits
	return base64.RawURLEncoding.EncodeToString(b)
}

// FuzzEnter comes with odd requests to a gateway under load: each is admitted, waits or
// is refused with a time to come back, and all of them are gone in the end.
func FuzzEnter(f *testing.F) {
	f.Add(uint8(0), "t", "m", int64(0), int64(0), int64(1), int64(100), 0, 0, true, true)
	f.Add(uint8(1), "", "", int64(-1), int64(-1), int64(-1), int64(-1), -1, -1, false, false)
	f.Add(uint8(3), "t", "m", int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MinInt64), int64(math.MaxInt64), math.MaxInt32, 1000, true, false)
	f.Add(uint8(2), "t", "m", int64(1), int64(time.Hour), int64(time.Hour), int64(1<<40), 1, 1<<30, false, true)
	f.Fuzz(func(t *testing.T, class uint8, tenant, model string, wait, patience, deadline, prompt int64, retry, images int, stream, degrade bool) {
		s := newStage(t, static(1), layout(pool("p", 1, "m"), pool("q", 1, "n")))
		odd := ask{class: inference.Class(class % 4), tenant: tenant, model: model, pools: []string{"p"}, change: func(r *inference.Request) {
			r.Wait, r.Patience, r.Stream, r.DegradeOK = time.Duration(wait), time.Duration(patience), stream, degrade
			r.Retry, r.PromptBytes, r.Images, r.Tenant, r.Model = retry, prompt, images, tenant, model
			if deadline != 0 {
				r.Deadline = s.now.Add(time.Duration(deadline))
			}
		}}
		run := s.enter(ask{})
		var seats []*seat
		for i := range 6 {
			c := s.enter(odd)
			seats = append(seats, c)
			if c.err != nil {
				if e := refusal(t, c.err); e.RetryAfter > time.Minute || e.Position < 0 || (e.Code != inference.CodeOverloaded && e.Code != inference.CodeNoCapacity) {
					t.Fatalf("got %+v", e)
				}
			}
			if err := s.g.Check(); err != nil {
				t.Fatal(err)
			}
			if i == 2 {
				s.pass(300 * time.Millisecond)
			}
		}
		if snap := s.g.Snapshot(); snap.Pressure < 0 || math.IsNaN(snap.Pressure) || snap.Pools[0].Held < 0 || math.IsNaN(snap.Pools[0].Held) {
			t.Errorf("got %+v", snap)
		}
		run.release()
		s.pass(200 * time.Millisecond)
		for _, c := range seats {
			switch {
			case c.lease != nil:
				c.lease.Usage = inference.Usage{PromptTokens: prompt, CompletionTokens: prompt}
				c.release()
			}
		}
		for _, c := range seats {
			if c.waits() {
				c.leave()
			} else if c.lease != nil {
				c.lease.Release(s.now)
			}
		}
		s.pass(200 * time.Millisecond)
		s.idle()
	})
}
