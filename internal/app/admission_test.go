package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
)

// oneSlot is a section that gives each instance one slot.
func oneSlot(more string) string {
	return "admission: {limit: static, static_limit: 1" + more + "}"
}

// post sends a chat request and returns the whole answer.
func (r *rig) post(body string, fields ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest("POST", r.api+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	res, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Errorf("the answer was cut: %v", err)
	}
	return res, string(b)
}

// ask is a request on its own goroutine, which ends with the answer.
func (r *rig) ask(body string, fields ...string) <-chan answered {
	done := make(chan answered, 1)
	go func() {
		res, text := r.post(body, fields...)
		done <- answered{res, text}
	}()
	return done
}

// answered is a whole answer.
type answered struct {
	*http.Response
	text string
}

// gated streams one event and ends when it is let, once a request.
func gated(t *testing.T) (inst *testkit.Instance, let func()) {
	open := make(chan struct{}, 64)
	inst = testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		whole := !strings.Contains(string(x.Body), `"stream":true`)
		if !whole {
			x.Stream()
			x.Delta("first")
		}
		select {
		case <-open:
		case <-time.After(15 * time.Second):
		}
		if whole {
			x.JSON(200, testkit.Answer)
			return true
		}
		x.Finish()
		return true
	})
	return inst, func() { open <- struct{}{} }
}

// waiting polls until n requests of a class wait.
func (r *rig) waiting(class string, n int) {
	r.t.Helper()
	series := fmt.Sprintf(`spillway_admission_waiting{class=%q,model="m"}`, class)
	testkit.Eventually(r.t, fmt.Sprintf("%d of class %s wait", n, class), func() bool { return r.metric(series) == strconv.Itoa(n) })
}

// rest reads a stream to its end.
func rest(t *testing.T, br *bufio.Reader) {
	t.Helper()
	if b, err := io.ReadAll(br); err != nil || !strings.HasSuffix(string(b), testkit.DoneEvent) {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestTheSecondWaitsAndTheThirdIsRefused(t *testing.T) {
	inst, let := gated(t)
	r := newRig(t, text(pool("gpu", inst), oneSlot(", tickets: {enabled: false}")))
	first := r.begin()
	second := r.ask(stream)
	r.waiting("normal", 1)
	res, body := r.post(stream, "X-Spillway-Deadline-Ms: 1000") // one admission tells no rate that is good for this
	if res.StatusCode != 503 {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
	var e struct {
		Error struct{ Code, Type, Message string }
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error.Code != "server_is_overloaded" || e.Error.Message == "" {
		t.Errorf("got %s", body)
	}
	for name, want := range map[string]string{
		"Retry-After": "60", "Retry-After-Ms": "60000", "X-Should-Retry": "false", "X-Spillway-Reason": "predicted_wait",
		"X-Spillway-Queue-Position": "2", "X-Retry-Ticket": "",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if ms, err := strconv.Atoi(res.Header.Get("X-Spillway-Predicted-Wait-Ms")); err != nil || ms < 1000 {
		t.Errorf("X-Spillway-Predicted-Wait-Ms: %q", res.Header.Get("X-Spillway-Predicted-Wait-Ms"))
	}
	if inst.Requests() != 1 {
		t.Errorf("%d requests were sent", inst.Requests())
	}
	let()
	rest(t, first)
	let()
	if a := <-second; a.StatusCode != 200 || !strings.HasSuffix(a.text, testkit.DoneEvent) {
		t.Errorf("got %d %s", a.StatusCode, a.text)
	}
	r.waiting("normal", 0)
	for series, want := range map[string]string{
		`spillway_admission_admitted_total{class="normal"}`:                        "2",
		`spillway_admission_refused_total{class="normal",reason="predicted_wait"}`: "1",
		`spillway_admission_wait_seconds_count{class="normal"}`:                    "1",
		"spillway_admission_waiting_bytes":                                         "0",
	} {
		if got := r.metric(series); got != want {
			t.Errorf("%s: got %q, want %q", series, got, want)
		}
	}
	testkit.Eventually(t, "the access log has the refusal", func() bool {
		return strings.Contains(r.out.String(), "predicted_wait") && strings.Contains(r.out.String(), "server_is_overloaded")
	})
}

func TestAReloadOfAdmission(t *testing.T) {
	inst, let := gated(t)
	r := newRig(t, text(pool("gpu", inst), oneSlot("")))
	first := r.begin()
	second := r.ask(chat)
	r.waiting("normal", 1)
	write(t, r.path, text(pool("gpu", inst), "admission: {limit: static, static_limit: 2}"))
	if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	testkit.Eventually(t, "the second is sent", func() bool { return inst.Requests() == 2 })
	r.waiting("normal", 0)
	if got := r.metric(fmt.Sprintf("spillway_admission_instance_limit{instance=%q}", "eu/gpu/"+inst.Addr)); got != "2" {
		t.Errorf("the limit is %q", got)
	}
	write(t, r.path, text(pool("gpu", inst), "admission: {limit: static, static_limit: -1}"))
	if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 || !strings.Contains(body, "static_limit") {
		t.Errorf("got %d %s", status, body)
	}
	let()
	let()
	rest(t, first)
	if a := <-second; a.StatusCode != 200 {
		t.Errorf("got %d %s", a.StatusCode, a.text)
	}
}

func TestAnEmergencyShedsBatch(t *testing.T) {
	inst, let := gated(t)
	r := newRig(t, text(pool("gpu", inst), oneSlot(""), "store: {directory: "+t.TempDir()+"}")) // where the switch is kept
	first := r.begin()
	waits := r.ask(chat, "X-Spillway-Class: batch")
	r.waiting("batch", 1)
	if status, body := r.do("POST", r.admin+"/admin/emergency", `{"state":"on","by":"op","reason":"test"}`, "Content-Type: application/json"); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	for i, a := range []answered{<-waits, <-r.ask(chat, "X-Spillway-Class: batch")} {
		if a.StatusCode != 503 || a.Header.Get("X-Spillway-Reason") != "emergency" || a.Header.Get("Retry-After") != "60" || a.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%d: got %d %v %s", i, a.StatusCode, a.Header, a.text)
		}
	}
	if got := r.metric("spillway_admission_emergency"); got != "1" {
		t.Errorf("the metric says %q", got)
	}
	normal := r.ask(chat)
	r.waiting("normal", 1)
	let()
	rest(t, first)
	let()
	if a := <-normal; a.StatusCode != 200 {
		t.Errorf("got %d %s", a.StatusCode, a.text)
	}
	if status, body := r.do("POST", r.admin+"/admin/emergency", `{"state":"off","by":"op"}`, "Content-Type: application/json"); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	let()
	if a := <-r.ask(chat, "X-Spillway-Class: batch"); a.StatusCode != 200 {
		t.Errorf("behind the end: got %d %s", a.StatusCode, a.text)
	}
}

// TestAClientReturnsWithItsTicket through HTTP: refused, told when to come back, and
// admitted then, by the ticket or by nothing but its body.
func TestAClientReturnsWithItsTicket(t *testing.T) {
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Gone(10 * time.Millisecond) // that long it takes
		x.JSON(200, testkit.Answer)
		return true
	})
	r := newRig(t, text(pool("gpu", inst), oneSlot("")))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 12 { // a queue of 0.1 s and more
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					r.post(fmt.Sprintf(`{"model":"m","n":2,"messages":[{"role":"user","content":"background %d"}]}`, i))
				}
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	const body = `{"model":"m","n":2,"messages":[{"role":"user","content":"I return"}]}`
	refused := func() (ticket string, due time.Time) {
		testkit.Eventually(t, "a refusal with a ticket", func() bool {
			res, _ := r.post(body, "X-Spillway-Deadline-Ms: 10") // who would have to wait longer is refused
			ms, _ := strconv.Atoi(res.Header.Get("Retry-After-Ms"))
			seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
			if ticket, due = res.Header.Get("X-Retry-Ticket"), time.Now().Add(time.Duration(ms)*time.Millisecond); res.StatusCode == 503 && seconds < 1 {
				t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
			}
			return ticket != "" && ms < 5000
		})
		return ticket, due
	}
	claimed := func() string { return r.metric(`spillway_admission_tickets_claimed_total{class="normal"}`) }
	before := claimed()
	ticket, due := refused()
	testkit.Eventually(t, "it is due", func() bool { return time.Now().After(due) })
	res, text := r.post(body, "X-Retry-Ticket: "+ticket)
	if res.StatusCode != 200 {
		t.Errorf("with the ticket: got %d %v %s", res.StatusCode, res.Header, text)
	}
	if claimed() == before {
		t.Errorf("no ticket was claimed: %s", claimed())
	}
}

func TestMetricsOfAdmission(t *testing.T) {
	r := newRig(t, text(pool("gpu", named(t, "one"))))
	if status, body := r.chat(); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	r.do("POST", r.api+"/v1/chat/completions", stream)
	_, body := r.get(r.admin + "/metrics")
	for _, name := range []string{
		"admitted_total", "refused_total", "left_total", "client_retries_total", "tickets_invalid_total", "capped_total", "tickets_issued_total",
		"tickets_claimed_total", "tickets", "waiting", "waiting_bytes", "pressure", "brownout_step", "accounts", "instance_limit",
		"instance_window_tokens", "instance_memory_tokens", "instance_objective_share", "instance_prefill_tokens_per_second", "held_tokens",
		"refused_tokens_total", "unmet_tokens_total", "emergency", "emergency_until_seconds",
	} {
		if !strings.Contains(body, "\nspillway_admission_"+name+"{") && !strings.Contains(body, "\nspillway_admission_"+name+" ") {
			t.Errorf("no series of spillway_admission_%s", name)
		}
	}
	if !strings.Contains(body, "\nspillway_admission_wait_seconds_bucket{") {
		t.Error("no histogram of waits")
	}
}

// TestAPoolGoesAndComesBack by reloads, and the metrics go on.
func TestAPoolGoesAndComesBack(t *testing.T) {
	one, two := named(t, "one"), named(t, "two")
	r := newRig(t, text(pool("gpu", one)))
	for i, text := range []string{text(pool("cpu", two)), text(pool("gpu", one)), text(pool("cpu", two)), text(pool("gpu", one), oneSlot(""))} {
		if status, body := r.chat(); status != 200 {
			t.Fatalf("%d: got %d %s", i, status, body)
		}
		write(t, r.path, text)
		if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
			t.Fatalf("%d: got %d %s", i, status, body)
		}
		testkit.Eventually(t, "the governor knows the pools", func() bool { status, _ := r.get(r.admin + "/metrics"); return status == 200 })
	}
	if status, body := r.get(r.admin + "/metrics"); status != 200 || strings.Contains(body, "An error has occurred") {
		t.Errorf("got %d %.300s", status, body)
	}
	if got := r.metric(`spillway_admission_held_tokens{pool="eu/gpu"}`); got != "0" {
		t.Errorf("got %q", got)
	}
}
