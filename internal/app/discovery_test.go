package app_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
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

// silent is registered, of an agent that answers when ready is closed.
func silent(t *testing.T, services map[string]*testkit.Instance) (address string, ready chan struct{}) {
	t.Helper()
	agent, _ := registered(t, services)
	registry, err := url.Parse(agent)
	if err != nil {
		t.Fatal(err)
	}
	ready = make(chan struct{})
	proxy := httputil.NewSingleHostReverseProxy(registry)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
			proxy.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(slow.Close)
	return slow.URL, ready
}

// reloading begins a reload, and returns where its status comes.
func (r *rig) reloading() <-chan int {
	reloaded := make(chan int, 1)
	go func() { // ends with the request, which has a time-out
		status, _ := r.do("POST", r.admin+"/admin/reload", "")
		reloaded <- status
	}()
	return reloaded
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
	answers("one")
	r.reload(text(found("first"), "# the same source goes on"))
	answers("one")
	r.reload(text(found("second"))) // other tags: another source
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "two") {
		t.Errorf("at once after the reload: got %d %s, want what the new source has found", status, body)
	}
	testkit.Eventually(t, "the first source, a look ahead, and the second", func() bool { return begun.Load() == 3 })
	r.reload(text("        - {name: gpu, models: [m], health: {active: {type: off}}, instances: [{url: http://" + one.Addr + "}]}\n"))
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
	slow, ready := silent(t, map[string]*testkit.Instance{"gpu": two})
	cpu := "        - {name: cpu, models: [m], instances: [{url: http://" + one.Addr + "}]}\n"
	r := newRig(t, text(cpu))
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "one") {
		t.Fatalf("got %d %s", status, body)
	}
	gpu := fmt.Sprintf("        - {name: gpu, models: [m], consul: {address: %q, service: gpu}}\n", slow)
	write(t, r.path, text(cpu+gpu, "route: {rules: [{name: all, then: {pools: {gpu: 1}, strict: true}}]}"))
	reloaded := r.reloading()
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

// TestRevocationDoesNotWaitForARegistry revokes a key while a reload waits for what a
// new source finds.
func TestRevocationDoesNotWaitForARegistry(t *testing.T) {
	slow, ready := silent(t, map[string]*testkit.Instance{"gpu": named(t, "two")})
	keys := filepath.Join(t.TempDir(), "keys")
	key, id := newKey(t, "create", "--keys-file", keys, "--tenant", "acme")
	cpu, identity := pool("cpu", named(t, "one")), "identity: {keys_file: "+keys+"}"
	r := newRig(t, text(cpu, memoryOnly, identity))
	write(t, r.path, text(cpu+fmt.Sprintf("        - {name: gpu, models: [m], consul: {address: %q, service: gpu}}\n", slow), memoryOnly, identity))
	reloaded := r.reloading()
	if got := r.status(bearer(key)); got != 200 {
		t.Fatalf("got %d", got)
	}
	command(t, "key", "revoke", "--keys-file", keys, id)
	again := r.reloading() // what the watcher does
	testkit.Eventually(t, "the key is refused", func() bool { return r.status(bearer(key)) == 401 })
	select {
	case status := <-reloaded:
		t.Errorf("the reload ended first: %d", status)
	default:
	}
	close(ready)
	for _, ended := range []<-chan int{reloaded, again} {
		if got := <-ended; got != 200 {
			t.Errorf("reload: %d", got)
		}
	}
}

// TestASourceThatHangs is of a kubeconfig that names a program which does not end: a
// reload goes on without it, and so does the end of the gateway.
func TestASourceThatHangs(t *testing.T) {
	t.Parallel()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	write(t, kubeconfig, fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: a
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: sh, args: [-c, "while test -e %s; do sleep 0.05; done"], interactiveMode: Never}}}]
`, kubeconfig)) // it ends with the test's directory
	cpu := pool("cpu", named(t, "one"))
	r := newRig(t, text(cpu, memoryOnly))
	write(t, r.path, text(cpu+fmt.Sprintf("        - {name: gpu, models: [m], kubernetes: {kubeconfig: %q, service: gpu}}\n", kubeconfig), memoryOnly))
	if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	if got := r.errs.Count("has not answered yet"); got != 1 {
		t.Errorf("it is said %d times that the source has not answered", got)
	}
	if got := r.status(); got != 200 {
		t.Errorf("got %d", got)
	}
	r.stop()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
}
