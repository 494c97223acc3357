package consul_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/consultest"
)

// These run against a real agent.

func service(id string, port int, tags ...string) consultest.Service {
	return consultest.Service{ID: id, Service: "vllm", Address: "10.0.0.1", Port: port, Tags: tags}
}

func TestAgent(t *testing.T) {
	t.Parallel()
	a := consultest.Start(t, "", "")
	got, l := run(t, config(a.URL()))
	expect(t, got) // nobody is registered
	a.Set(service("a", 8001, "weight=3", "max_in_flight=7"), "passing")
	one := fleet.Target{URL: "http://10.0.0.1:8001", Weight: 3, MaxInFlight: 7}
	expect(t, got, one)
	node := service("b", 8002, "backup", "scheme=https", "path=/v1")
	node.Address, node.Weights = "", map[string]int{"Passing": 5, "Warning": 2}
	a.Set(node, "passing")
	two := fleet.Target{URL: "https://10.0.0.9:8002", Weight: 5, Backup: true}
	expect(t, got, one, two)
	a.Set(node, "critical")
	expect(t, got, one)
	a.Set(node, "warning")
	a.Set(node, "passing")
	expect(t, got, one, two)
	a.Remove("a")
	expect(t, got, two)
	a.Remove("b")
	expect(t, got)
	if l.Count("level=WARN") != 0 {
		t.Errorf("log: %s", l)
	}
}

func TestWarningsOfTheAgent(t *testing.T) {
	t.Parallel()
	a := consultest.Start(t, "", "")
	cfg := config(a.URL())
	cfg.PassingOnly, cfg.Tags, cfg.Filter = false, []string{"gpu", "eu"}, `Service.Meta.kind == "h100"`
	s := service("a", 8001, "gpu", "eu")
	s.Weights, s.Meta = map[string]int{"Passing": 5, "Warning": 2}, map[string]string{"kind": "h100"}
	a.Set(s, "warning")
	a.Set(service("no-tag", 8002, "gpu"), "passing")
	a.Set(service("no-meta", 8003, "gpu", "eu"), "passing")
	got, _ := run(t, cfg)
	expect(t, got, fleet.Target{URL: "http://10.0.0.1:8001", Weight: 2})
	a.Set(s, "passing")
	expect(t, got, fleet.Target{URL: "http://10.0.0.1:8001", Weight: 5})
	s.Weights["Warning"] = 0
	a.Set(s, "warning")
	expect(t, got)
}

func TestAgentsOwnServicesWithChecksAndMaintenance(t *testing.T) {
	t.Parallel()
	a := consultest.Start(t, "", "")
	cfg := config(a.URL())
	cfg.PassingOnly = false
	got, _ := run(t, cfg)
	expect(t, got)
	a.Do(http.MethodPut, "/v1/agent/service/register", map[string]any{
		"ID": "a", "Name": "vllm", "Address": "10.0.0.1", "Port": 8001, "Check": map[string]any{"CheckID": "alive", "TTL": "10m", "Status": "passing"},
	})
	expect(t, got, at("http://10.0.0.1:8001"))
	a.Do(http.MethodPut, "/v1/agent/check/fail/alive", nil)
	expect(t, got)
	a.Do(http.MethodPut, "/v1/agent/check/pass/alive", nil)
	expect(t, got, at("http://10.0.0.1:8001"))
	a.Do(http.MethodPut, "/v1/agent/service/maintenance/a?enable=true", nil)
	expect(t, got)
	a.Do(http.MethodPut, "/v1/agent/service/maintenance/a?enable=false", nil)
	expect(t, got, at("http://10.0.0.1:8001"))
}

func TestAgentRestarts(t *testing.T) {
	t.Parallel()
	a := consultest.Start(t, "", "")
	for i := range 30 { // its index is far ahead of that of an empty agent
		a.Set(service("a", 8001+i), "passing")
	}
	got, l := run(t, config(a.URL()))
	expect(t, got, at("http://10.0.0.1:8030"))
	a.Close()
	testkit.Eventually(t, "the outage is logged", func() bool { return l.Count("cannot be asked") == 1 })
	if len(got) != 0 {
		t.Fatalf("an outage was reported as %v", <-got)
	}
	a.Restart()
	a.Set(service("a", 9000), "passing")
	for { // an empty set may come first: the registry forgot everything
		targets := <-got
		if len(targets) == 1 && targets[0] == at("http://10.0.0.1:9000") {
			break
		}
		if len(targets) != 0 {
			t.Fatalf("targets %v", targets)
		}
	}
	if l.Count("cannot be asked") != 1 || l.Count("answers again") != 1 {
		t.Errorf("log: %s", l)
	}
}

func TestTokensOfTheAgent(t *testing.T) {
	t.Parallel()
	const manager, reader = "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "11111111-9dad-11d1-80b4-00c04fd430c8"
	a := consultest.Start(t, `acl { enabled = true default_policy = "deny" tokens { initial_management = "`+manager+`" agent = "`+manager+`" } }`, manager)
	a.Set(service("a", 8001), "passing")
	cfg := config(a.URL())
	cfg.TokenFile = filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(cfg.TokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("22222222-9dad-11d1-80b4-00c04fd430c8")
	got, l := run(t, cfg)
	testkit.Eventually(t, "a token that is not known is logged", func() bool { return l.Count("status 403") == 1 })
	a.Do(http.MethodPut, "/v1/acl/token", map[string]any{"SecretID": reader}) // may read nothing
	write(reader)
	a.Do(http.MethodPut, "/v1/acl/policy", map[string]any{"Name": "read", "Rules": `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`})
	if len(got) != 0 {
		t.Fatalf("what may not be read is reported as %v", <-got)
	}
	a.Do(http.MethodPut, "/v1/acl/token", map[string]any{"SecretID": "33333333-9dad-11d1-80b4-00c04fd430c8", "Policies": []map[string]string{{"Name": "read"}}})
	write("33333333-9dad-11d1-80b4-00c04fd430c8")
	expect(t, got, at("http://10.0.0.1:8001"))
	for _, secret := range []string{manager, reader, "22222222", "33333333"} {
		if l.Count(secret) != 0 {
			t.Errorf("the log has a token: %s", l)
		}
	}
}

func TestHundredInstancesFlap(t *testing.T) {
	t.Parallel()
	a := consultest.Start(t, "", "")
	all := func(status func(i int) string) {
		for i := range 100 {
			a.Set(service(fmt.Sprint("i", i), 8000+i), status(i))
		}
	}
	all(func(int) string { return "passing" })
	got, l := run(t, config(a.URL()))
	if n := len(<-got); n != 100 {
		t.Fatalf("%d instances", n)
	}
	want := 100
	for round := range 3 {
		all(func(i int) string { return []string{"passing", "critical"}[(i+round)%2] })
		want = 50
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for last := 0; last != want; {
		select {
		case targets := <-got:
			if last = len(targets); last > 100 {
				t.Fatalf("%d instances", last)
			}
			if last == want && targets[0].URL != "http://10.0.0.1:8000" { // the even ones, at the end
				last = 0
			}
		case <-ctx.Done():
			t.Fatalf("the last change was not seen")
		}
	}
	if l.Count("level=WARN") != 0 {
		t.Errorf("log: %s", l)
	}
}
