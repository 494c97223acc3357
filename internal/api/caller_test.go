package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
)

// doorman counts who was asked for, and refuses when it is told to.
type doorman struct {
	mu        sync.Mutex
	addresses []string
	callers   int
	refuse    error
}

// watch puts a doorman in front of a server.
func watch(r *rig, caller inference.Caller) *doorman {
	d := new(doorman)
	r.admit = func(ip netip.Addr) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.addresses = append(d.addresses, ip.String())
		return d.refuse
	}
	r.identity = func(h http.Header) (inference.Caller, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.callers++
		if h.Get("Authorization") == "Bearer wrong" {
			return inference.Caller{}, inference.Errorf(inference.CodeUnauthorized, "no")
		}
		return caller, nil
	}
	return d
}

// seen is what was counted since the last call.
func (d *doorman) seen() (addresses []string, callers int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	addresses, callers = d.addresses, d.callers
	d.addresses, d.callers = nil, 0
	return addresses, callers
}

// say sets what the doorman says from now on.
func (d *doorman) say(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

// limited is a refusal by a limit.
func limited() error {
	e := inference.Errorf(inference.CodeRateLimited, "too many")
	e.Reason, e.RetryAfter = "address", 1500*time.Millisecond
	e.Fields = []inference.HeaderField{{Name: "X-Ratelimit-Limit-Requests", Value: "5"}}
	return e
}

// TestEveryHeadIsJudgedOnce, whichever front answers it in the end, and before anything
// of its body is there.
func TestEveryHeadIsJudgedOnce(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.MaxBody, c.TrustedProxies = 4<<10, []string{"127.0.0.0/8"} }, nil)
	r.feedback = func(string, string, float64) error { return nil }
	d := watch(r, inference.Caller{Tenant: "acme"})
	large := strings.Replace(chat, "hi", strings.Repeat("x", 5<<10), 1)
	for name, c := range map[string]struct {
		request string
		want    int
	}{
		"answered":          {post("/v1/chat/completions", chat), 200},
		"a chunked body":    {chunked(chat, 10), 200},
		"expects":           {post("/v1/chat/completions", chat, "Expect: 100-continue"), 100},
		"a wrong type":      {strings.Replace(post("/v1/chat/completions", chat), "application/json", "text/plain", 1), 415},
		"an encoding":       {post("/v1/chat/completions", chat, "Content-Encoding: gzip"), 415},
		"too large":         {post("/v1/chat/completions", large), 413},
		"not JSON":          {post("/v1/chat/completions", "{"), 400},
		"a long head":       {post("/v1/chat/completions", chat, "X-Long: "+strings.Repeat("x", 5<<10)), 200},
		"a wrong key":       {post("/v1/chat/completions", chat, "Authorization: Bearer wrong"), 401},
		"the models":        {"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 200},
		"a model":           {"GET /v1/models/none HTTP/1.1\r\nHost: x\r\n\r\n", 404},
		"feedback":          {post("/v1/feedback", `{"id":"a","score":1}`), 204},
		"feedback, refused": {post("/v1/feedback", `{}`, "Authorization: Bearer wrong"), 401},
	} {
		t.Run(name, func(t *testing.T) {
			request := strings.Replace(c.request, "Host: x\r\n", "Host: x\r\nX-Forwarded-For: 8.8.8.8\r\n", 1)
			got := r.ask(request)
			if got.StatusCode != c.want {
				t.Errorf("got %d %s, want %d", got.StatusCode, got.body, c.want)
			}
			if addresses, callers := d.seen(); !cmp.Equal(addresses, []string{"8.8.8.8"}) || callers != 1 {
				t.Errorf("judged as %v, and %d callers", addresses, callers)
			}
			head, _, _ := strings.Cut(request, "\r\n\r\n")
			d.say(limited())
			defer d.say(nil)
			conn := r.dial()
			defer conn.Close()
			conn.send(head + "\r\n\r\n") // the body never comes
			method, _, _ := strings.Cut(request, " ")
			refused := conn.receive(method)
			refused.refused(t, 429, inference.CodeRateLimited)
			for field, want := range map[string]string{"Retry-After": "2", "Retry-After-Ms": "1500", "X-Ratelimit-Limit-Requests": "5", "X-Spillway-Reason": "address"} {
				if got := refused.Header.Get(field); got != want {
					t.Errorf("%s: got %q, want %q", field, got, want)
				}
			}
			if addresses, callers := d.seen(); len(addresses) != 1 || callers != 0 {
				t.Errorf("refused, and judged as %v, and %d callers", addresses, callers)
			}
			if rec := r.recorded(); rec.Code != inference.CodeRateLimited || rec.Reason != "address" || rec.Request.ClientIP.String() != "8.8.8.8" {
				t.Errorf("recorded as %+v", rec)
			}
		})
	}
	// The second request of a connection that was handed on is judged anew.
	conn := r.dial()
	wrong := strings.Replace(strings.Replace(post("/v1/chat/completions", ""), "application/json", "text/plain", 1), "\r\n\r\n", "\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n", 1)
	conn.send(strings.Repeat(wrong, 3))
	for range 3 {
		if got := conn.receive("POST"); got.StatusCode != 415 {
			t.Errorf("got %d", got.StatusCode)
		}
	}
	if addresses, callers := d.seen(); len(addresses) != 3 || callers != 3 {
		t.Errorf("three requests on one connection were judged as %v, and %d callers", addresses, callers)
	}
	// Whoever guesses keys is told of the limit, and not of the key.
	d.say(limited())
	if got := r.ask(post("/v1/chat/completions", chat, "Authorization: Bearer wrong")); got.StatusCode != 429 {
		t.Errorf("got %d", got.StatusCode)
	}
	// Whoever looks for paths and methods is limited too.
	for _, request := range []string{"GET /nothing", "GET /v1/chat/completions", "DELETE /v1/models", "GET /v1/feedback"} {
		d.seen()
		if got := r.ask(request + " HTTP/1.1\r\nHost: x\r\n\r\n"); got.StatusCode != 429 {
			t.Errorf("%s: got %d", request, got.StatusCode)
		}
		if addresses, callers := d.seen(); len(addresses) != 1 || callers != 0 {
			t.Errorf("%s: judged as %v, and %d callers", request, addresses, callers)
		}
	}
	r.ask("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
	if addresses, _ := d.seen(); len(addresses) != 0 {
		t.Errorf("probes are limited: %v", addresses)
	}
}

// TestACallerIsInItsRequests.
func TestACallerIsInItsRequests(t *testing.T) {
	r := newRig(t, nil, nil)
	quota := &inference.Quota{RequestsPerSecond: 3}
	watch(r, inference.Caller{Tenant: "acme", Key: "k1", Class: inference.Batch, Quota: quota})
	for _, request := range []string{post("/v1/chat/completions", chat), chunked(chat, 5), post("/v1/chat/completions", chat, "X-Long: "+strings.Repeat("x", 5<<10))} {
		if got := r.ask(request); got.StatusCode != 200 {
			t.Fatalf("got %d %s", got.StatusCode, got.body)
		}
		if last := r.last(); last.Tenant != "acme" || last.Key != "k1" || last.Class != inference.Batch || last.Quota != quota {
			t.Errorf("got %+v", last)
		}
	}
}

// TestModelsThatACallerMayAskFor: others look as if they were not there.
func TestModelsThatACallerMayAskFor(t *testing.T) {
	r := newRig(t, nil, nil)
	watch(r, inference.Caller{Tenant: "acme", Models: []string{"org/*", "s?"}})
	r.models = []string{"m", "org/model", "s1", "s12"}
	got := r.ask("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
	var list struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(got.body), &list); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range list.Data {
		names = append(names, m.ID)
	}
	if !cmp.Equal(names, []string{"org/model", "s1"}) {
		t.Errorf("got %v", names)
	}
	for model, want := range map[string]int{"org/model": 200, "s1": 200, "s12": 404, "m": 404, "none": 404, "org/a/b": 404} {
		before := r.serves.Load()
		a := r.ask(post("/v1/chat/completions", strings.Replace(chat, `"m"`, fmt.Sprintf("%q", model), 1)))
		if a.StatusCode != want || (r.serves.Load() > before) != (want == 200) {
			t.Errorf("%s: got %d %s, want %d", model, a.StatusCode, a.body, want)
		}
		if want == 404 {
			a.refused(t, 404, inference.CodeModelNotFound)
			if rec := r.recorded(); rec.Code != inference.CodeModelNotFound || rec.Request.Tenant != "acme" {
				t.Errorf("recorded as %+v", rec)
			}
		}
		if a := r.ask("GET /v1/models/" + model + " HTTP/1.1\r\nHost: x\r\n\r\n"); a.StatusCode != want && model != "org/a/b" {
			t.Errorf("GET %s: got %d, want %d", model, a.StatusCode, want)
		}
	}
}

func TestFeedbackIsTaken(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.MaxBody = 1 << 10 }, nil)
	watch(r, inference.Caller{Tenant: "acme"})
	var got []string
	r.feedback = func(tenant, request string, score float64) error {
		got = append(got, fmt.Sprint(tenant, " ", request, " ", score))
		if request == "none" {
			return inference.Errorf(inference.CodeNotFound, "no such answer")
		}
		return nil
	}
	for name, c := range map[string]struct {
		body string
		want int
		told string
	}{
		"a score": {`{"id":"req_1","score":-0.5,"comment":"dull"}`, 204, "acme req_1 -0.5"}, "zero": {`{"id":"req_1","score":0}`, 204, "acme req_1 0"},
		"unknown": {`{"id":"none","score":1}`, 404, "acme none 1"}, "no id": {`{"score":1}`, 400, ""}, "no score": {`{"id":"a"}`, 400, ""}, "null": {`{"id":"a","score":null}`, 400, ""},
		"a text": {`{"id":"a","score":"1"}`, 400, ""}, "a number as id": {`{"id":1,"score":1}`, 400, ""}, "not JSON": {`{"id":`, 400, ""}, "more": {`{"id":"a","score":1}{}`, 400, ""},
		"infinite": {`{"id":"a","score":1e400}`, 400, ""}, "long": {`{"id":"` + strings.Repeat("x", 129) + `","score":1}`, 400, ""}, "empty": {``, 400, ""},
		"too large": {`{"id":"a","score":1,"x":"` + strings.Repeat("x", 2<<10) + `"}`, 413, ""},
	} {
		got = nil
		a := r.ask(post("/v1/feedback", c.body, "X-Request-Id: this-one"))
		if a.StatusCode != c.want || strings.Join(got, ",") != c.told {
			t.Errorf("%s: got %d %s and %v, want %d and %s", name, a.StatusCode, a.body, got, c.want, c.told)
		}
		if a.StatusCode == 204 && a.body != "" || a.StatusCode != 204 && !strings.Contains(a.body, `"error"`) || a.Header.Get("X-Request-Id") != "this-one" {
			t.Errorf("%s: got %v %s", name, a.Header, a.body)
		}
	}
	if a := r.ask("GET /v1/feedback HTTP/1.1\r\nHost: x\r\n\r\n"); a.StatusCode != 405 || a.Header.Get("Allow") != "POST" {
		t.Errorf("GET: got %d %v", a.StatusCode, a.Header)
	}
	if r.serves.Load() != 0 {
		t.Error("feedback reached the gateway")
	}
}
