package admin_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
)

// emergency is a switch that notes its orders.
type emergency struct {
	mu     sync.Mutex
	state  admin.EmergencyState
	orders []string // "on" and "off"
	last   admin.EmergencyOrder
	err    error // of the next order
}

func (e *emergency) State() admin.EmergencyState { e.mu.Lock(); defer e.mu.Unlock(); return e.state }

func (e *emergency) On(order admin.EmergencyOrder) (admin.EmergencyState, error) {
	return e.carryOut("on", order)
}

func (e *emergency) Off(order admin.EmergencyOrder) (admin.EmergencyState, error) {
	return e.carryOut("off", order)
}

func (e *emergency) carryOut(name string, order admin.EmergencyOrder) (admin.EmergencyState, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.orders, e.last = append(e.orders, name), order
	if e.err != nil {
		return e.state, e.err
	}
	e.state.On, e.state.Reason = name == "on", order.Reason
	return e.state, nil
}

// newEmergency returns a server with a switch that is off.
func newEmergency(t testing.TB) (*admin.Server, *emergency) {
	t.Helper()
	e := &emergency{state: admin.EmergencyState{Profile: admin.EmergencyProfile{Shed: []string{"batch"}, StandbyPools: true, Brownout: "cap_tokens"}}}
	log := slog.New(slog.DiscardHandler)
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: new(control), Emergency: e, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s, e
}

// with gives a request its body.
func with(body string) func(*http.Request) {
	return func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded") // as curl does
	}
}

func TestEmergencyOrders(t *testing.T) {
	tests := map[string]struct {
		body  string
		order string
		want  admin.EmergencyOrder
	}{
		"on":           {`{"state":"on"}`, "on", admin.EmergencyOrder{}},
		"on, with all": {`{"state":"on","reason":"two racks lost","expiry":"1h30m","by":"alice"}`, "on", admin.EmergencyOrder{By: "alice", Reason: "two racks lost", Expiry: 90 * time.Minute}},
		"on, with null": {`{"state":"on","reason":null,"expiry":null,"by":null}
`, "on", admin.EmergencyOrder{}},
		"off":       {`{"state":"off"}`, "off", admin.EmergencyOrder{}},
		"off, whom": {`{"state":"off","by":"alice"}`, "off", admin.EmergencyOrder{By: "alice"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, e := newEmergency(t)
			w := ask(s, "POST", "/admin/emergency", with(tt.body))
			if w.Code != http.StatusOK || len(e.orders) != 1 || e.orders[0] != tt.order {
				t.Fatalf("got status %d, orders %v: %s", w.Code, e.orders, w.Body)
			}
			tt.want.From = "192.0.2.1:1234" // httptest's
			if diff := cmp.Diff(tt.want, e.last); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
			if got := decode[admin.EmergencyState](t, w); got.On != (tt.order == "on") || got.Reason != tt.want.Reason {
				t.Errorf("got %+v", got)
			}
			if diff := cmp.Diff(w.Body.String(), ask(s, "GET", "/admin/emergency").Body.String()); diff != "" {
				t.Errorf("GET says something else:\n%s", diff)
			}
		})
	}
}

func TestEmergencyStateIsWrittenInFull(t *testing.T) {
	s, e := newEmergency(t)
	text := func() string { return ask(s, "GET", "/admin/emergency").Body.String() }
	const off = `{
  "on": false,
  "profile": {
    "shed": [
      "batch"
    ],
    "standby_pools": true,
    "brownout": "cap_tokens"
  }
}
`
	if diff := cmp.Diff(off, text()); diff != "" {
		t.Errorf("off (-want +got):\n%s", diff)
	}
	e.state = admin.EmergencyState{On: true, Since: loaded, Until: loaded.Add(time.Hour), By: "alice", From: "127.0.0.1:1", Reason: "drill", Warning: "disk full", Profile: admin.EmergencyProfile{Shed: []string{}}}
	const on = `{
  "on": true,
  "since": "2026-11-20T10:00:00Z",
  "until": "2026-11-20T11:00:00Z",
  "by": "alice",
  "from": "127.0.0.1:1",
  "reason": "drill",
  "profile": {
    "shed": [],
    "standby_pools": false,
    "brownout": ""
  },
  "warning": "disk full"
}
`
	if diff := cmp.Diff(on, text()); diff != "" {
		t.Errorf("on (-want +got):\n%s", diff)
	}
}

func TestEmergencyOrdersThatAreRefused(t *testing.T) {
	tests := map[string]struct {
		body   string
		status int
		code   string
		has    string // in the message
	}{
		"empty":             {"", 400, "invalid_request", "no order"},
		"no JSON":           {"state=on", 400, "invalid_request", "no order"},
		"torn":              {`{"state":"on"`, 400, "invalid_request", "no order"},
		"a list":            {`["on"]`, 400, "invalid_request", "no order"},
		"something follows": {`{"state":"on"}{}`, 400, "invalid_request", "something follows"},
		"null":              {"null", 400, "invalid_request", "state: is missing"},
		"no state":          {`{"reason":"x"}`, 400, "invalid_request", "state: is missing"},
		"unknown state":     {`{"state":"ON"}`, 400, "invalid_request", `state: want on or off, got "ON"`},
		"state is a number": {`{"state":1}`, 400, "invalid_request", "no order"},
		"unknown field":     {`{"state":"on","expires":"5m"}`, 400, "invalid_request", `unknown field "expires"`},
		"bad duration":      {`{"state":"on","expiry":"soon"}`, 400, "invalid_request", `expiry: "soon" is no duration`},
		"no unit":           {`{"state":"on","expiry":"30"}`, 400, "invalid_request", `expiry: "30" is no duration`},
		"empty duration":    {`{"state":"on","expiry":""}`, 400, "invalid_request", "is no duration"},
		"a number":          {`{"state":"on","expiry":30}`, 400, "invalid_request", "no order"},
		"zero":              {`{"state":"on","expiry":"0s"}`, 400, "invalid_request", "expiry: must be positive"},
		"negative":          {`{"state":"on","expiry":"-5m"}`, 400, "invalid_request", "expiry: must be positive"},
		"too large a time":  {`{"state":"on","expiry":"9999999h"}`, 400, "invalid_request", "is no duration"},
		"off for a time":    {`{"state":"off","expiry":"5m"}`, 400, "invalid_request", "belong to the state on"},
		"off for a reason":  {`{"state":"off","reason":"over"}`, 400, "invalid_request", "belong to the state on"},
		"too large":         {`{"state":"on","reason":"` + strings.Repeat("x", 16<<10) + `"}`, 413, "request_too_large", "16384 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, e := newEmergency(t)
			w := ask(s, "POST", "/admin/emergency", with(tt.body))
			f := decode[failure](t, w)
			if w.Code != tt.status || f.Error.Code != tt.code || f.Error.Type != "admin_error" || !strings.Contains(f.Error.Message, tt.has) {
				t.Errorf("got %d %+v, want %d %s %q", w.Code, f.Error, tt.status, tt.code, tt.has)
			}
			if len(e.orders) != 0 {
				t.Errorf("carried out: %v", e.orders)
			}
		})
	}
	s, e := newEmergency(t)
	e.err = errors.New("expiry: must be 1s to 24h0m0s, got 48h0m0s")
	for _, body := range []string{`{"state":"on","expiry":"48h"}`, `{"state":"off"}`} {
		if w := ask(s, "POST", "/admin/emergency", with(body)); w.Code != 400 || decode[failure](t, w).Error.Message != e.err.Error() {
			t.Errorf("what the switch refuses: got %d %s", w.Code, w.Body)
		}
	}
}

// TestEmergencyDoors tries the ways in that are closed.
func TestEmergencyDoors(t *testing.T) {
	s, e := newEmergency(t)
	without := newRig(t, admin.Default())
	t.Setenv("ADMIN_TEST_TOKEN", "long enough")
	locked, _ := newEmergency(t)
	if err := locked.Apply(admin.Config{TokenEnv: "ADMIN_TEST_TOKEN"}); err != nil {
		t.Fatal(err)
	}
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	tests := map[string]struct {
		h      http.Handler
		method string
		change func(*http.Request)
		status int
		code   string
	}{
		"delete":              {s, "DELETE", nil, 405, "method_not_allowed"},
		"put":                 {s, "PUT", nil, 405, "method_not_allowed"},
		"another site's page": {s, "POST", set("Sec-Fetch-Site", "cross-site"), 403, "forbidden"},
		"another host":        {s, "POST", func(r *http.Request) { r.Host = "evil.example" }, 403, "forbidden"},
		"no token":            {locked, "POST", nil, 401, "unauthorized"},
		"wrong token":         {locked, "GET", set("Authorization", "Bearer long"), 401, "unauthorized"},
		"no switch":           {without, "POST", nil, 404, "not_found"},
		"no switch, get":      {without, "GET", nil, 404, "not_found"},
		"the clients' door":   {s.Probes(), "POST", nil, 404, "not_found"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			changes := []func(*http.Request){with(`{"state":"on"}`)}
			if tt.change != nil {
				changes = append(changes, tt.change)
			}
			w := ask(tt.h, tt.method, "/admin/emergency", changes...)
			if w.Code != tt.status || decode[failure](t, w).Error.Code != tt.code {
				t.Errorf("got %d %s, want %d %s", w.Code, w.Body, tt.status, tt.code)
			}
		})
	}
	if len(e.orders) != 0 {
		t.Errorf("carried out: %v", e.orders)
	}
	if w := ask(locked, "POST", "/admin/emergency", with(`{"state":"on"}`), set("Authorization", "Bearer long enough")); w.Code != 200 {
		t.Errorf("with the token: got %d %s", w.Code, w.Body)
	}
}

// pipes is a listener whose connections live in a bubble.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { p.once.Do(func() { close(p.done) }); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// TestEmergencyOrderThatDoesNotArrive promises a body and sends half of it.
func TestEmergencyOrderThatDoesNotArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := newEmergency(t)
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer ln.Close()
		wg.Go(func() {
			if err := s.Run(t.Context(), ln); err == nil {
				t.Error("a closed listener gave no error")
			}
		})
		client, server := net.Pipe()
		defer client.Close()
		ln.conns <- server
		start := time.Now()
		if _, err := io.WriteString(client, "POST /admin/emergency HTTP/1.0\r\nHost: localhost\r\nContent-Length: 14\r\n\r\n{\"sta"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(client)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 408 ") || !strings.Contains(string(answer), "request_timeout") {
			t.Errorf("got %q, %v", answer, err)
		}
		if waited := time.Since(start); waited < 10*time.Second || waited > 15*time.Second || len(e.orders) != 0 {
			t.Errorf("waited %v, carried out %v", waited, e.orders)
		}
	})
}

// FuzzEmergencyOrder sends any body: it is carried out or refused, in JSON.
func FuzzEmergencyOrder(f *testing.F) {
	for _, body := range []string{"", "{}", `{"state":"on"}`, `{"state":"off","by":"x"}`, `{"state":"on","expiry":"1h","reason":"x"}`, `{"state":"on","expiry":"9e9h"}`} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		s, e := newEmergency(t)
		w := ask(s, "POST", "/admin/emergency", with(body))
		if !json.Valid(w.Body.Bytes()) || (w.Code == 200) != (len(e.orders) == 1) || w.Code != 200 && w.Code != 400 && w.Code != 413 {
			t.Errorf("got %d %s, orders %v", w.Code, w.Body, e.orders)
		}
		if e.last.Expiry < 0 {
			t.Errorf("got %+v", e.last)
		}
	})
}
