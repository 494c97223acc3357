package app_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
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
	answers("two")
	if n := begun.Load(); n != 2 {
		t.Errorf("%d sources were begun, want 2", n)
	}
}
