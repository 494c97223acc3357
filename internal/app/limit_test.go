package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// fronted is a configuration whose listener has further settings.
func fronted(config, settings string) string {
	return strings.Replace(config, "drain_timeout", settings+", drain_timeout", 1)
}

// behind is a configuration of a gateway behind a proxy on this machine.
const behind = `trusted_proxies: ["127.0.0.0/8"]`

// raw sends bytes on a connection of their own and returns the answers that come, as
// many as are wanted.
func (r *rig) raw(request string, answers int) (statuses []int) {
	r.t.Helper()
	return r.rawFrom("127.0.0.1", request, answers)
}

// rawFrom is raw from an address of this machine.
func (r *rig) rawFrom(local, request string, answers int) (statuses []int) {
	r.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.Dial("tcp", strings.TrimPrefix(r.api, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		r.t.Fatal(err)
	}
	br := bufio.NewReader(c)
	for range answers {
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			r.t.Errorf("no answer: %v", err)
			return statuses
		}
		_, _ = io.Copy(io.Discard, res.Body)
		statuses = append(statuses, res.StatusCode)
	}
	return statuses
}

// TestAddressesAreLimitedByTheHeadAlone: a head is judged and charged once, whichever
// front answers it, and nothing of the body is waited for.
func TestAddressesAreLimitedByTheHeadAlone(t *testing.T) {
	for _, front := range []string{"lean", "net_http"} {
		t.Run(front, func(t *testing.T) {
			r := newRig(t, fronted(text(pool("gpu", named(t, "one")), memoryOnly, "limit: {address: {rate: 1/h, burst: 3}}"), behind+", max_body: 1KiB, front: "+front))
			head := func(ip, more string) string {
				return "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: " + ip + "\r\n" + more + "\r\n\r\n"
			}
			good := fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(chat), strings.Repeat(" ", 0)+chat)
			whole := func(ip string) string { return strings.TrimSuffix(head(ip, good), "\r\n\r\n") }
			for name, c := range map[string]struct {
				ip, request string
				want        int // while there is room
			}{
				"answered":                {"8.8.8.1", whole("8.8.8.1"), 200},
				"another content type":    {"8.8.8.2", head("8.8.8.2", "Content-Type: text/plain\r\nContent-Length: 0"), 415},
				"a body that never comes": {"8.8.8.3", head("8.8.8.3", "Content-Type: text/plain\r\nContent-Length: 500"), 415},
				"too large":               {"8.8.8.4", head("8.8.8.4", "Content-Length: 5000"), 413},
				"models":                  {"8.8.8.5", strings.Replace(head("8.8.8.5", "X-A: b"), "POST /v1/chat/completions", "GET /v1/models", 1), 200},
				"no feedback":             {"8.8.8.6", strings.Replace(head("8.8.8.6", "Content-Length: 2"), "/chat/completions", "/feedback", 1) + "{}", 400},
				"a chunked body":          {"8.8.8.7", head("8.8.8.7", "Transfer-Encoding: chunked") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(chat), chat), 200},
				"IPv6 by its /64":         {"2001:db8::1", whole("2001:db8::1"), 200},
			} {
				for i := range 3 {
					if got := r.raw(c.request, 1); got[0] != c.want {
						t.Errorf("%s %d: got %d, want %d", name, i, got[0], c.want)
					}
				}
				if got := r.raw(c.request, 1); got[0] != 429 {
					t.Errorf("%s: the fourth got %d", name, got[0])
				}
				// The body never comes, and the answer does.
				if got := r.raw(head(c.ip, "Content-Length: 500"), 1); got[0] != 429 {
					t.Errorf("%s: a head without its body got %d", name, got[0])
				}
			}
			if got := r.raw(whole("2001:db8::ffff:1"), 1); got[0] != 429 {
				t.Errorf("the same /64: got %d", got[0])
			}
			if got := r.raw(whole("2001:db8:0:1::1"), 1); got[0] != 200 {
				t.Errorf("another /64: got %d", got[0])
			}
			empty := head("8.8.8.9", "Content-Type: text/plain\r\nContent-Length: 0")
			if got := fmt.Sprint(r.raw(strings.Repeat(empty, 4), 4)); got != "[415 415 415 429]" {
				t.Errorf("on one connection: got %v", got)
			}
			for _, ip := range []string{"10.1.2.3", "192.168.1.1", "fd00::1", "127.0.0.1", "::1", "10.1.2.3, 127.0.0.1"} {
				for range 5 {
					if got := r.raw(whole(ip), 1); got[0] != 200 {
						t.Errorf("%s is exempt and got %d", ip, got[0])
					}
				}
			}
			if got := r.raw(whole("1.2.3.4, 8.8.8.1"), 1); got[0] != 429 {
				t.Errorf("whoever writes an address in front is another client: got %d", got[0])
			}
		})
	}
}

func TestAddressesByDefault(t *testing.T) {
	r := newRig(t, fronted(text(pool("gpu", named(t, "one")), memoryOnly), behind))
	n, began := 0, time.Now()
	var last *http.Response
	for i := range 200 {
		res, _ := r.post(chat, "X-Forwarded-For: 9.9.9.9")
		if res.StatusCode == 200 {
			n++
		} else if last = res; res.StatusCode != 429 {
			t.Errorf("%d: got %d", i, res.StatusCode)
		}
	}
	if most := 5 + int(time.Since(began).Seconds()*10) + 1; n < 5 || n > most {
		t.Errorf("%d of 200 were admitted, want 5 to %d", n, most)
	}
	if last == nil {
		t.Fatal("nobody was refused")
	}
	for name, want := range map[string]string{"Retry-After": "1", "X-Spillway-Reason": "address", "X-Ratelimit-Limit-Requests": "5", "X-Ratelimit-Remaining-Requests": "0", "X-Should-Retry": ""} {
		if got := last.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if ms, err := strconv.Atoi(last.Header.Get("Retry-After-Ms")); err != nil || ms < 1 || ms > 100 {
		t.Errorf("Retry-After-Ms: %q", last.Header.Get("Retry-After-Ms"))
	}
	unproxied := newRig(t, text(pool("gpu", named(t, "one")), memoryOnly))
	for range 20 {
		if got := unproxied.status("X-Forwarded-For: 9.9.9.9"); got != 200 {
			t.Errorf("a field that anybody can send counts: got %d", got)
		}
	}
}

func TestAddressesInAnEmergency(t *testing.T) {
	r := newRig(t, fronted(text(pool("gpu", named(t, "one")), memoryOnly, "store: {directory: "+t.TempDir()+"}", "limit: {address: {rate: 1000/s, burst: 1000, emergency_rate: 1/s, emergency_burst: 2}}"), behind))
	turn := func(order string) {
		t.Helper()
		if status, body := r.do("POST", r.admin+"/admin/emergency", order, "Content-Type: application/json"); status != 200 {
			t.Fatalf("got %d %s", status, body)
		}
	}
	ask := func(n int) (ok int) {
		for range n {
			if r.status("X-Forwarded-For: 7.7.7.7") == 200 {
				ok++
			}
		}
		return ok
	}
	if got := ask(5); got != 5 {
		t.Errorf("before: %d of 5", got)
	}
	turn(`{"state":"on","by":"op","reason":"test"}`)
	began := time.Now()
	if got := ask(5); got > 2+int(time.Since(began).Seconds())+1 {
		t.Errorf("in the emergency: %d of 5", got)
	}
	turn(`{"state":"off","by":"op"}`)
	testkit.Eventually(t, "the emergency is over", func() bool { return ask(5) == 5 })
}

// spenders is a configuration with keys of tenants and rules of limits.
func spenders(t *testing.T, pools, rules string, more ...string) string {
	keys := keysFile(t, keysLine("acme-1", "acme"), keysLine("acme-2", "acme"), keysLine("umbra-1", "umbra"), strings.TrimSpace(keysLine("own", "own"))+" id=own rpm=3 concurrent=5\n")
	return text(pools, append([]string{"preload: {enabled: false}", "identity: {keys_file: \"" + keys + "\"}", "limit: {rules: [" + rules + "]}"}, more...)...)
}

func TestRulesOfLimits(t *testing.T) {
	pools := strings.Replace(pool("gpu", named(t, "one")), "[m]", "[m, large, small]", 1)
	ask := func(r *rig, key, model string) (*http.Response, string) {
		return r.post(strings.Replace(chat, `"m"`, `"`+model+`"`, 1), bearer(key))
	}
	admitted := func(r *rig, key, model string, n int) (ok int) {
		for range n {
			if res, _ := ask(r, key, model); res.StatusCode == 200 {
				ok++
			}
		}
		return ok
	}
	noCache := "cache: {enabled: false}"
	t.Run("tenants", func(t *testing.T) {
		r := newRig(t, spenders(t, pools, "{name: tenants, by: [tenant], requests: {rate: 4/h}}", noCache))
		if got := admitted(r, "acme-1", "m", 3) + admitted(r, "acme-2", "small", 3); got != 4 {
			t.Errorf("acme: %d of 4", got)
		}
		if got := admitted(r, "umbra-1", "m", 6); got != 4 {
			t.Errorf("umbra: %d of 4", got)
		}
		res, body := ask(r, "acme-1", "m")
		var e struct {
			Error struct{ Code, Type, Message string }
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error.Code != "rate_limit_exceeded" || e.Error.Type != "rate_limit_error" || !strings.Contains(e.Error.Message, "tenants") {
			t.Errorf("got %s", body)
		}
		for name, want := range map[string]string{
			"X-Ratelimit-Limit-Requests": "4", "X-Ratelimit-Remaining-Requests": "0", "Ratelimit-Policy": `"tenants-requests";q=4;w=3600`,
			"X-Spillway-Reason": "rate_requests", "X-Should-Retry": "false", // nobody's SDK waits for a quarter of an hour
		} {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err != nil || s < 800 || s > 900 {
			t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
		}
		if got := r.number(`spillway_limit_checks_total{outcome="rate_requests",rule="tenants"}`); got != 5 {
			t.Errorf("%v refusals are counted", got)
		}
		testkit.Eventually(t, "the access log has them", func() bool {
			return strings.Count(r.out.String(), `"code":"rate_limit_exceeded","reason":"rate_requests"`) == 5
		})
	})
	t.Run("keys and their quotas", func(t *testing.T) {
		r := newRig(t, spenders(t, pools, "{name: each, by: [key], requests: {rate: 5/h}}", noCache))
		for key, want := range map[string]int{"acme-1": 5, "acme-2": 5, "own": 3} {
			if got := admitted(r, key, "m", 8); got != want {
				t.Errorf("%s: %d of %d", key, got, want)
			}
		}
		// What the quota refused was not charged to the rule.
		if res, _ := ask(r, "own", "m"); res.Header.Get("X-Ratelimit-Limit-Requests") != "3" {
			t.Errorf("got %v", res.Header)
		}
	})
	t.Run("models, of which one stands for another", func(t *testing.T) {
		r := newRig(t, spenders(t, pools, "{name: large, by: [tenant, model], only: {models: [large]}, requests: {rate: 2/h}}", noCache,
			"route: {rules: [{name: enlarge, when: 'model == \"small\"', then: {model: large}}]}"))
		if got := admitted(r, "acme-1", "m", 5); got != 5 {
			t.Errorf("m: %d of 5", got)
		}
		if got := admitted(r, "acme-1", "large", 5); got != 2 {
			t.Errorf("large: %d of 2", got)
		}
		if got := admitted(r, "acme-1", "small", 5); got != 0 { // what would run is what is limited
			t.Errorf("small, which runs as large: %d of 0", got)
		}
		testkit.Eventually(t, "the access log has both models", func() bool { return strings.Count(r.out.String(), `"model":"large","asked_model":"small"`) == 5 })
	})
	t.Run("a reload keeps buckets", func(t *testing.T) {
		rules := "{name: tenants, by: [tenant], requests: {rate: 2/h}}"
		config := spenders(t, pools, rules, noCache)
		r := newRig(t, config)
		if got := admitted(r, "acme-1", "m", 4); got != 2 {
			t.Errorf("%d of 2", got)
		}
		r.reload(strings.Replace(config, rules, "{name: more, requests: {rate: 100/h}}, "+rules, 1))
		if got := admitted(r, "acme-1", "m", 4); got != 0 {
			t.Errorf("a reload gave %d back", got)
		}
		r.reload(strings.Replace(config, rules, strings.Replace(rules, "2/h", "4/h", 1), 1))
		if got := admitted(r, "umbra-1", "m", 6); got != 4 {
			t.Errorf("the new rate: %d of 4", got)
		}
	})
	t.Run("a refusal by one charges no other", func(t *testing.T) {
		r := newRig(t, spenders(t, pools, "{name: all, requests: {rate: 6/h}}, {name: tenants, by: [tenant], requests: {rate: 2/h}}", noCache))
		if got := admitted(r, "acme-1", "m", 20); got != 2 {
			t.Errorf("acme: %d of 2", got)
		}
		if got := admitted(r, "umbra-1", "m", 20) + admitted(r, "own", "m", 20); got != 4 {
			t.Errorf("others: %d of 4", got)
		}
	})
}

// TestConcurrencyIsGivenBack in whatever phase a client leaves.
func TestConcurrencyIsGivenBack(t *testing.T) {
	for name, c := range map[string]struct {
		slow  func(x *testkit.Exchange)
		body  string
		ready string // what the client waits for before it leaves
	}{
		"before the head":     {func(x *testkit.Exchange) { x.Gone(15 * time.Second) }, stream, ""},
		"before the first":    {func(x *testkit.Exchange) { x.Stream(); x.Role(); x.Gone(15 * time.Second) }, stream, ""},
		"in the middle":       {func(x *testkit.Exchange) { x.Stream(); x.Delta("a"); x.Gone(15 * time.Second) }, stream, "}"},
		"of an answer as one": {func(x *testkit.Exchange) { x.Gone(15 * time.Second) }, chat, ""},
	} {
		for _, cache := range []string{"cache: {enabled: false}", "cache: {sql: {enabled: false}}"} {
			t.Run(name+" "+cache[7:12], func(t *testing.T) {
				inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool { c.slow(x); return false })
				r := newRig(t, spenders(t, pool("gpu", inst), "{name: few, by: [tenant], concurrent: 2}", cache, oneSlot("")))
				held := func(n float64) bool { return r.number("spillway_limit_held_entries") == n }
				open := func() net.Conn {
					conn, err := net.Dial("tcp", strings.TrimPrefix(r.api, "http://"))
					if err != nil {
						t.Fatal(err)
					}
					_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
					body := strings.Replace(c.body, "hi", fmt.Sprint(rand.Int()), 1)
					fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", bearer("acme-1"), len(body), body)
					return conn
				}
				first := open()
				testkit.Eventually(t, "the first is sent", func() bool { return inst.Requests() == 1 })
				second := open() // which waits for a slot
				r.waiting("normal", 1)
				if res, body := r.post(chat, bearer("acme-2")); res.StatusCode != 429 || res.Header.Get("X-Spillway-Reason") != "concurrent" || res.Header.Get("Retry-After") == "" {
					t.Errorf("got %d %v %s", res.StatusCode, res.Header, body)
				}
				if !held(1) {
					t.Error("nothing is held")
				}
				second.Close()
				r.waiting("normal", 0)
				if c.ready != "" {
					if _, err := bufio.NewReader(first).ReadString(c.ready[0]); err != nil {
						t.Error(err)
					}
				}
				first.Close()
				testkit.Eventually(t, "both have given back what they held", func() bool { return held(0) })
			})
		}
	}
}

// spending is what GET /admin/usage says of a tenant.
func (r *rig) spending(tenant string) (requests, prompt, output int64) {
	r.t.Helper()
	status, body := r.get(r.admin + "/admin/usage")
	var v struct {
		Entries []struct {
			Tenant   string
			Requests int64
			Prompt   int64 `json:"prompt_tokens"`
			Output   int64 `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil || status != 200 {
		r.t.Fatalf("got %d %s", status, body)
	}
	for _, e := range v.Entries {
		if e.Tenant == tenant {
			requests, prompt, output = requests+e.Requests, prompt+e.Prompt, output+e.Output
		}
	}
	return requests, prompt, output
}

func TestBudgetsOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	config := spenders(t, pool("gpu", named(t, "one")), "{name: month, by: [tenant], budget: {month: 20}}", "cache: {enabled: false}", "store: {directory: "+dir+"}", "usage: {ledger: {flush: 100ms}}")
	r := newRig(t, config)
	for i := range 4 { // of 6 tokens each
		if got := r.status(bearer("acme-1")); got != 200 {
			t.Errorf("%d: got %d", i, got)
		}
	}
	refused := func(r *rig) {
		t.Helper()
		var res *http.Response
		var body string
		testkit.Eventually(t, "the budget is spent", func() bool { res, body = r.post(chat, bearer("acme-2")); return res.StatusCode == 429 })
		if !strings.Contains(body, "insufficient_quota") || res.Header.Get("X-Should-Retry") != "false" || res.Header.Get("X-Spillway-Reason") != "budget_month" {
			t.Errorf("got %v %s", res.Header, body)
		}
		if got := r.status(bearer("umbra-1")); got != 200 {
			t.Errorf("another tenant: got %d", got)
		}
	}
	refused(r)
	testkit.Eventually(t, "the ledger has it", func() bool { n, prompt, output := r.spending("acme"); return n == 4 && prompt == 20 && output == 4 })
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	again := newRig(t, config)
	if n, prompt, output := again.spending("acme"); n != 4 || prompt != 20 || output != 4 {
		t.Errorf("after the restart: %d requests of %d and %d tokens", n, prompt, output)
	}
	refused(again)
}

// TestWhatIsNotGeneratedCostsNothing: kept answers and followers of another's
// generation are requests without tokens.
func TestWhatIsNotGeneratedCostsNothing(t *testing.T) {
	enough := make(chan struct{})
	o := newOracle(t, func(q string, _ int) {
		if q == "together" {
			<-enough
		}
	})
	r := newRig(t, spenders(t, pool("gpu", o.Instance), "{name: tokens, by: [tenant], tokens: {rate: 100000/d}, requests: {rate: 100000/d}}", "cache: {sql: {enabled: false}}", "usage: {ledger: {flush: 100ms}}", "store: {directory: "+t.TempDir()+"}"))
	for i, want := range []string{"miss", "hit", "hit"} {
		if got := r.wants("again", streamed, bearer("acme-1")); got.cache() != want {
			t.Errorf("%d: got %s", i, got.cache())
		}
	}
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() { r.wants("together", []string{streamed, ""}[i%2], bearer("acme-2")) })
	}
	testkit.Eventually(t, "all of them are under way", func() bool {
		return r.number(`spillway_limit_checks_total{outcome="admitted",rule="tokens"}`) == 8 && o.generations("together") == 1
	})
	close(enough)
	wg.Wait()
	testkit.Eventually(t, "the ledger has two generations", func() bool { _, prompt, output := r.spending("acme"); return prompt == 10 && output == 26 })
	if n := o.generations("together"); n != 1 {
		t.Fatalf("%d generations", n)
	}
	res, body := r.post(`{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, bearer("acme-1"))
	if left, err := strconv.Atoi(res.Header.Get("X-Ratelimit-Remaining-Tokens")); err != nil || 100000-left < 36 || 100000-left > 36+25 { // and its own reservation
		t.Errorf("the bucket has %d of 100000 left behind two generations of 18 tokens: %s", left, body)
	}
	if lines := strings.Count(r.out.String(), `"code":"rate_limit`); lines > 0 {
		t.Errorf("%d were refused", lines)
	}
}

// TestAGenerationIsPaidForByWhoAskedForIt, and not by a twin that saw its end sooner;
// where the first has left, one of the twins pays.
func TestAGenerationIsPaidForByWhoAskedForIt(t *testing.T) {
	enough := make(chan struct{})
	o := newOracle(t, func(string, int) { <-enough })
	r := newRig(t, spenders(t, pool("gpu", o.Instance), "{name: a, tokens: {rate: 1000000/m}}", "cache: {sql: {enabled: false}, rules: [{tenants: [acme, umbra, own], shared: true, keep: deterministic}]}",
		"usage: {ledger: {flush: 100ms}}", "store: {directory: "+t.TempDir()+"}"))
	const n = 20
	joined := 0.0
	admitted := func(more float64) {
		t.Helper()
		joined += more
		testkit.Eventually(t, "they are under way", func() bool { return r.number(`spillway_limit_checks_total{outcome="admitted",rule="a"}`) == joined })
	}
	for i := range n {
		q := fmt.Sprint("question ", i)
		var wg sync.WaitGroup
		wg.Go(func() { r.wants(q, streamed, bearer("acme-1")) })
		testkit.Eventually(t, "it is generated", func() bool { return o.generations(q) == 1 })
		for range 3 {
			wg.Go(func() { r.wants(q, streamed, bearer("umbra-1")) })
		}
		admitted(4)
		enough <- struct{}{}
		wg.Wait()
	}
	testkit.Eventually(t, "the ledger has all of it", func() bool { _, prompt, output := r.spending("acme"); return prompt == 5*n && output == 13*n })
	if requests, prompt, output := r.spending("umbra"); requests+prompt+output != 0 {
		t.Errorf("those who followed pay for %d requests, %d and %d tokens", requests, prompt, output)
	}

	conn, err := net.Dial("tcp", strings.TrimPrefix(r.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	body := surfaces["chat"].body("left", streamed)
	fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", bearer("acme-1"), len(body), body)
	testkit.Eventually(t, "it is generated", func() bool { return o.generations("left") == 1 })
	var wg sync.WaitGroup
	wg.Go(func() { r.wants("left", streamed, bearer("umbra-1")) })
	admitted(2)
	conn.Close()
	testkit.Eventually(t, "the first has left", func() bool { return strings.Contains(r.out.String(), `"code":"canceled"`) })
	enough <- struct{}{}
	wg.Wait()
	testkit.Eventually(t, "who stayed has paid", func() bool { _, prompt, output := r.spending("umbra"); return prompt == 5 && output == 13 })
	if _, prompt, output := r.spending("acme"); prompt != 5*n || output != 13*n {
		t.Errorf("who left has paid too: %d and %d tokens", prompt, output)
	}
}

// TestTheLedgerAgreesWithLimits when clients leave at any moment: tokens that were
// streamed, the ledger and the bucket are one number.
func TestTheLedgerAgreesWithLimits(t *testing.T) {
	const burst = 1_000_000
	for _, cache := range []string{"{enabled: false}", "{sql: {enabled: false}}"} {
		t.Run(cache[1:4], func(t *testing.T) {
			inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
				x.Stream()
				for range 1 + len(x.Body)%7*40 {
					x.Delta("word ")
				}
				x.Finish()
				return true
			})
			r := newRig(t, spenders(t, pool("gpu", inst), fmt.Sprintf("{name: tokens, by: [tenant], tokens: {rate: 100000/d, burst: %d}}", burst), "cache: "+cache, "usage: {ledger: {flush: 100ms}}", "store: {directory: "+t.TempDir()+"}"))
			const n = 60
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					conn, err := net.Dial("tcp", strings.TrimPrefix(r.api, "http://"))
					if err != nil {
						t.Error(err)
						return
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
					body := fmt.Sprintf(`{"model":"m","temperature":0,"stream":true,"messages":[{"role":"user","content":"%s %d"}]}`, strings.Repeat("x", i), i)
					fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\nContent-Length: %d\r\n\r\n%s", bearer("acme-1"), len(body), body)
					if i%3 > 0 {
						_, _ = io.Copy(io.Discard, conn)
						return
					}
					_, _ = io.CopyN(io.Discard, conn, rand.Int64N(8000))
				})
			}
			wg.Wait()
			var spent int64
			testkit.Eventually(t, "every request is in the access log, and all of it in the ledger", func() bool {
				var lines int
				spent = 0
				for line := range strings.Lines(r.out.String()) {
					var v struct {
						Prompt int64 `json:"prompt_tokens"`
						Output int64 `json:"completion_tokens"`
					}
					if json.Unmarshal([]byte(line), &v) == nil && strings.Contains(line, `"tenant":"acme"`) {
						lines++
						spent += v.Prompt + v.Output
					}
				}
				_, prompt, output := r.spending("acme")
				return lines == n && prompt+output == spent
			})
			// An answer of nothing tells what is left: the reservation of its own is known.
			res, body := r.post(`{"model":"m","temperature":0,"max_tokens":1,"messages":[{"role":"user","content":"x"}]}`, bearer("acme-2"))
			left, err := strconv.ParseInt(res.Header.Get("X-Ratelimit-Remaining-Tokens"), 10, 64)
			if err != nil {
				t.Fatalf("got %v %s", res.Header, body)
			}
			if used := burst - left; used < spent || used > spent+20 { // its own reservation, and what has come back since
				t.Errorf("the bucket says that %d tokens are used, the ledger %d", used, spent)
			}
		})
	}
}

func TestTwoGatewaysShareLimits(t *testing.T) {
	for _, mode := range []string{"exact", "lease"} {
		t.Run(mode, func(t *testing.T) {
			s := redistest.Start(t)
			config := strings.Replace(spenders(t, pool("gpu", named(t, "one")), "{name: tenants, by: [tenant], requests: {rate: 20/h}}", "cache: {enabled: false}", redisAt(s.Addr())), "limit: {", "limit: {store: {kind: redis, mode: "+mode+", timeout: 500ms}, ", 1)
			gateways := []*rig{newRig(t, config), newRig(t, config)}
			for _, r := range gateways {
				testkit.Eventually(t, "Redis is connected, and both know of each other", func() bool {
					return r.number("spillway_limit_store_gateways") == 2 && r.number("spillway_limit_store_resting") == 0
				})
			}
			ok := 0
			for i := range 60 {
				if gateways[i%2].status(bearer("acme-1")) == 200 {
					ok++
				}
			}
			alone := 0 // decided by a gateway's own share, when a busy machine kept Redis silent for that one request
			for _, r := range gateways {
				alone += int(r.number("spillway_limit_store_fallbacks_total"))
			}
			if ok < 20-alone || ok > 20+alone || alone > 3 {
				t.Errorf("%d of 60 were admitted, %d requests decided without Redis; want 20 and none", ok, alone)
			}
			if dumped := dump(s); strings.Contains(dumped, "acme") || !strings.Contains(dumped, "tenants-requests") {
				t.Errorf("Redis has %s", dumped)
			}
		})
	}
}
