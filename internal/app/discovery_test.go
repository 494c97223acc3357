package app_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
)

// registered is an agent of Consul's that knows one instance of each service, and
// how often it was asked for each anew.
func registered(t *testing.T, services map[string]*testkit.Instance) (url string, begun *atomic.Int64) {
	t.Helper()
	begun = new(atomic.Int64)
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("index") { // nothing changes
			<-r.Context().Done()
			return
		}
		begun.Add(1)
		service := strings.TrimPrefix(r.URL.Path, "/v1/health/service/")
		if tag := r.URL.Query().Get("tag"); tag != "" {
			service = tag
		}
		host, port, _ := net.SplitHostPort(services[service].Addr)
		w.Header().Set("X-Consul-Index", "7")
		fmt.Fprintf(w, `[{"Node":{"Address":%q},"Service":{"ID":"a","Port":%s},"Checks":[]}]`, host, port)
	}))
	t.Cleanup(agent.Close)
	return agent.URL, begun
}

func TestConsulFollowsReloads(t *testing.T) {
	one, two := named(t, "one"), named(t, "two")
	agent, begun := registered(t, map[string]*testkit.Instance{"first": one, "second": two})
	found := func(tag string) string {
		return fmt.Sprintf("        - name: gpu\n          models: [m]\n          health: {active: {type: off}}\n          consul: {address: %q, service: vllm, tags: [%s]}\n", agent, tag)
	}
	r := newRig(t, text(found("first")))
	answers := func(want string) {
		t.Helper()
		testkit.Eventually(t, want+" answers", func() bool { _, body := r.chat(); return strings.Contains(body, want) })
	}
	reload := func(text string) {
		t.Helper()
		write(t, r.path, text)
		if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
			t.Fatalf("got %d %s", status, body)
		}
	}
	answers("one")
	reload(text(found("first"), "# the same source goes on"))
	answers("one")
	reload(text(found("second"))) // other tags: another source
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "two") {
		t.Errorf("at once after the reload: got %d %s, want what the new source has found", status, body)
	}
	testkit.Eventually(t, "the first source, a look ahead, and the second", func() bool { return begun.Load() == 3 })
	reload(text("        - {name: gpu, models: [m], health: {active: {type: off}}, instances: [{url: http://" + one.Addr + "}]}\n"))
	for range 8 { // the pool has no source any more
		if status, body := r.chat(); status != 200 || !strings.Contains(body, "one") {
			t.Errorf("without a source: got %d %s, want the instance of the configuration alone", status, body)
		}
	}
}

// TestRuleFindsItsNewPool reloads a pool with a source together with a rule that sends
// requests nowhere else: not one of them fails.
func TestRuleFindsItsNewPool(t *testing.T) {
	one, two := named(t, "one"), named(t, "two")
	agent, _ := registered(t, map[string]*testkit.Instance{"gpu": two})
	registry, err := url.Parse(agent)
	if err != nil {
		t.Fatal(err)
	}
	ready, proxy := make(chan struct{}), httputil.NewSingleHostReverseProxy(registry)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
			proxy.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(slow.Close)
	cpu := "        - {name: cpu, models: [m], instances: [{url: http://" + one.Addr + "}]}\n"
	r := newRig(t, text(cpu))
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "one") {
		t.Fatalf("got %d %s", status, body)
	}
	gpu := fmt.Sprintf("        - {name: gpu, models: [m], consul: {address: %q, service: gpu}}\n", slow.URL)
	write(t, r.path, text(cpu+gpu, "route: {rules: [{name: all, then: {pools: {gpu: 1}, strict: true}}]}"))
	reloaded := make(chan int, 1)
	go func() {
		status, _ := r.do("POST", r.admin+"/admin/reload", "")
		reloaded <- status
	}()
	for n, done := 0, false; !done; n++ {
		if n == 20 { // the registry has not answered yet
			close(ready)
		}
		select {
		case status := <-reloaded:
			if status != 200 || n < 20 {
				t.Fatalf("reload: %d after %d requests", status, n)
			}
			done = true
		default:
		}
		if status, body := r.chat(); status != 200 {
			t.Fatalf("during the reload: got %d %s", status, body)
		}
	}
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "two") {
		t.Errorf("after the reload: got %d %s, want the new pool", status, body)
	}
}
