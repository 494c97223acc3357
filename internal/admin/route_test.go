package admin_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// oracle answers questions about routes, and keeps the last one.
type oracle struct {
	asked  admin.RouteQuestion
	answer *admin.RouteAnswer
	err    error
}

func (o *oracle) Explain(_ context.Context, q admin.RouteQuestion) (*admin.RouteAnswer, error) {
	o.asked = q
	return o.answer, o.err
}

// book is a ledger that keeps the days that it was asked for.
type book struct {
	from, to time.Time
	entries  []ledger.Entry
	err      error
}

func (b *book) Entries(_ context.Context, from, to time.Time) ([]ledger.Entry, error) {
	b.from, b.to = from, to
	return b.entries, b.err
}

// newRoutes returns a server over them.
func newRoutes(t *testing.T, o *oracle, b *book) *admin.Server {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	parts := admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: new(control), Routes: o, Log: log}
	if b != nil {
		parts.Ledger = b
	}
	s, err := admin.New(admin.Default(), parts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExplain(t *testing.T) {
	want := &admin.RouteAnswer{
		Model: "small", Asked: "large", Class: "batch", Headers: []string{"X-Tier"}, Rules: []admin.RouteRule{{Name: "r", When: "stream", True: true}}, Rule: "r",
		Steps: []admin.RouteStep{{Node: "eu", Status: "ready", Chosen: true}},
	}
	o := &oracle{answer: want}
	s := newRoutes(t, o, nil)
	w := ask(s, "POST", "/admin/route/explain", with(`{"surface":"chat","tenant":"acme","key":"k","class":"vip","ip":"1.2.3.4","headers":{"X-A":"b"},"body":{"model":"large"}}`))
	if got := decode[admin.RouteAnswer](t, w); w.Code != http.StatusOK || !cmp.Equal(&got, want) {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	asked := admin.RouteQuestion{Surface: "chat", Tenant: "acme", Key: "k", Class: "vip", IP: "1.2.3.4", Headers: map[string]string{"X-A": "b"}, Body: []byte(`{"model":"large"}`)}
	if d := cmp.Diff(o.asked, asked); d != "" {
		t.Error(d)
	}
	o.err, want.Error = inference.Errorf(inference.CodeNoCapacity, "nowhere"), "nowhere"
	if w := ask(s, "POST", "/admin/route/explain", with(`{}`)); w.Code != http.StatusOK || decode[admin.RouteAnswer](t, w).Error != "nowhere" {
		t.Errorf("a request that goes nowhere: got %d %s", w.Code, w.Body)
	}
	o.answer = nil
	for name, c := range map[string]struct {
		body string
		err  error
		want int
		text string
	}{
		"not JSON":       {"{", nil, 400, "invalid_request"},
		"a wrong answer": {`{}`, errors.New("body: no model"), 400, "body: no model"},
		"too large":      {`{"tenant":"` + strings.Repeat("x", 33<<20) + `"}`, nil, 413, "request_too_large"},
	} {
		o.err = c.err
		if w := ask(s, "POST", "/admin/route/explain", with(c.body)); w.Code != c.want || !strings.Contains(w.Body.String(), c.text) {
			t.Errorf("%s: got %d %.300s, want %d", name, w.Code, w.Body, c.want)
		}
	}
	if w := ask(s, "GET", "/admin/route/explain"); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: got %d", w.Code)
	}
	if w := ask(s, "POST", "/admin/route/explain", with(`{}`), func(r *http.Request) { r.Host = "evil.example" }); w.Code != http.StatusForbidden {
		t.Errorf("under another name: got %d %s", w.Code, w.Body)
	}
	plain, _ := newEmergency(t)
	if w := ask(plain, "POST", "/admin/route/explain", with(`{}`)); w.Code != http.StatusNotFound {
		t.Errorf("without routes: got %d", w.Code)
	}
}

func TestUsage(t *testing.T) {
	b := &book{entries: []ledger.Entry{{Day: "2026-11-20", Tenant: "acme", Key: "k", Model: "m", Amount: ledger.Amount{Requests: 2, Prompt: 10, Output: 3}}}}
	s := newRoutes(t, new(oracle), b)
	type page struct {
		From, To string
		Entries  []ledger.Entry
	}
	got := decode[page](t, ask(s, "GET", "/admin/usage?from=2026-11-01&to=2026-11-20"))
	if d := cmp.Diff(got, page{"2026-11-01", "2026-11-20", b.entries}); d != "" {
		t.Error(d)
	}
	if want := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC); !b.from.Equal(want) || !b.to.Equal(want.AddDate(0, 0, 19)) {
		t.Errorf("asked from %v to %v", b.from, b.to)
	}
	b.entries = nil
	w := ask(s, "GET", "/admin/usage")
	if got := decode[page](t, w); got.From != got.To || got.From != b.from.Format(time.DateOnly) || time.Since(b.from) > 25*time.Hour || !strings.Contains(w.Body.String(), `"entries": []`) {
		t.Errorf("today's: got %s", w.Body)
	}
	for _, query := range []string{"from=yesterday", "to=2026-13-01", "from=20261101"} {
		if w := ask(s, "GET", "/admin/usage?"+query); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "want a day such as") {
			t.Errorf("%s: got %d %s", query, w.Code, w.Body)
		}
	}
	b.err = errors.New("the database is away")
	if w := ask(s, "GET", "/admin/usage"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "is away") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if w := ask(newRoutes(t, new(oracle), nil), "GET", "/admin/usage"); w.Code != http.StatusNotFound {
		t.Errorf("without a ledger: got %d", w.Code)
	}
}
