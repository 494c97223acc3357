package consultest_test

import (
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/testkit/consultest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAgent(t *testing.T) {
	a := consultest.Start(t, "", "")
	a.Set(consultest.Service{ID: "a", Service: "vllm", Port: 8000, Tags: []string{"x"}}, "critical")
	if got := a.Do(http.MethodGet, "/v1/health/service/vllm", nil); !strings.Contains(got, `"x"`) || !strings.Contains(got, `"critical"`) {
		t.Errorf("the service is %s", got)
	}
	if got := a.Do(http.MethodGet, "/v1/health/service/vllm?passing", nil); strings.TrimSpace(got) != "[]" {
		t.Errorf("passing: %s", got)
	}
	a.Remove("a")
	if got := a.Do(http.MethodGet, "/v1/health/service/vllm", nil); strings.TrimSpace(got) != "[]" {
		t.Errorf("removed: %s", got)
	}
	a.Close()
	if _, err := a.Try(http.MethodGet, "/v1/status/leader", nil); err == nil {
		t.Error("a killed agent answers")
	}
	a.Restart()
	if _, err := a.Try(http.MethodGet, "/v1/nothing", nil); err == nil {
		t.Error("an unknown path is no error")
	}
}

func TestAgentWithTokens(t *testing.T) {
	const token = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	a := consultest.Start(t, `acl { enabled = true default_policy = "deny" tokens { initial_management = "`+token+`" agent = "`+token+`" } }`, token)
	a.Set(consultest.Service{ID: "a", Service: "vllm", Port: 8000}, "passing")
	res, err := http.Get(a.URL() + "/v1/acl/tokens")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("without the token: status %d", res.StatusCode)
	}
}
