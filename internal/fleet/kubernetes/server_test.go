package kubernetes_test

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/kubetest"
)

// These run against real API servers, each one of its own.

const paths = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

func TestEndpoints(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t)
	cfg := config(s.Kubeconfig(s.Addr(), tokenFile(t, kubetest.AdminToken), "default"))
	got, l := run(t, cfg)
	reach(t, got) // nobody is there
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", ""), on("10.0.0.2", "p2", "", "")))
	reach(t, got, at(url(1)), at(url(2)))
	other := slice("z", "IPv4", on("10.0.9.9", "q", "ready", ""))
	other["metadata"].(object)["labels"] = object{"kubernetes.io/service-name": "other"}
	s.Apply(paths, "z", other)
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "!ready !serving", ""), on("10.0.0.2", "p2", "ready", "")))
	reach(t, got, at(url(2)))
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", ""), on("10.0.0.2", "p2", "!ready serving terminating", "")))
	reach(t, got, at(url(1)))

	// One slice becomes two, with an endpoint in both for a time, and one again.
	s.Apply(paths, "b", slice("b", "IPv4", on("10.0.0.1", "p1", "ready", ""), on("10.0.0.3", "p3", "ready", "")))
	reach(t, got, at(url(1)), at(url(3)))
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.4", "p4", "ready", "")))
	reach(t, got, at(url(1)), at(url(3)), at(url(4)))
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", ""), on("10.0.0.3", "p3", "ready", "")))
	s.Delete(paths, "b")
	reach(t, got, at(url(1)), at(url(3)))

	// The same pods have addresses of the other family.
	s.Apply(paths, "c", slice("c", "IPv6", on("fd00::1", "p1", "ready", ""), on("fd00::5", "p5", "ready", "")))
	reach(t, got, at(url(1)), at(url(3)), at("http://[fd00::5]:8000"))
	s.Delete(paths, "c")
	s.Delete(paths, "a")
	reach(t, got)
	if l.Count("level=WARN") != 0 {
		t.Errorf("log: %s", l)
	}
}

func TestPods(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t)
	const pods = "/api/v1/namespaces/default/pods"
	s.Apply(pods, "p1", pod("p1", object{"gpu": "h100"}, object{"spillway.dev/weight": "3", "spillway.dev/max-in-flight": "9"}))
	s.Apply(pods, "p2", pod("p2", object{"gpu": "l4"}, nil))
	s.Apply(pods, "p3", pod("p3", object{"gpu": "h100", "spillway.dev/backup": "true", "spillway.dev/weight": "2"}, object{"spillway.dev/weight": "many"}))
	s.Apply(paths, "a", slice("a", "IPv4",
		on("10.0.0.1", "p1", "ready", "eu-1"), on("10.0.0.2", "p2", "ready", "eu-1"), on("10.0.0.3", "p3", "ready", "eu-2"),
		on("10.0.0.4", "", "ready", "eu-1"), on("10.0.0.5", "p5", "ready", "")))
	file := s.Kubeconfig(s.Addr(), tokenFile(t, kubetest.AdminToken), "default")

	labels := config(file)
	labels.PodLabels, labels.PodSettings, labels.Port = "gpu=h100", true, "metrics"
	got, l := run(t, labels)
	reach(t, got, fleet.Target{URL: "http://10.0.0.1:9000", Weight: 3, MaxInFlight: 9}, fleet.Target{URL: "http://10.0.0.3:9000", Weight: 1, Backup: true})
	if l.Count("spillway.dev/weight: must be") != 1 {
		t.Errorf("log: %s", l)
	}
	zones := config(file)
	zones.Zones, zones.Port, zones.Scheme, zones.Path = []string{"eu-1"}, "8000", "https", "/v1/"
	inZones, _ := run(t, zones)
	reach(t, inZones, at("https://10.0.0.1:8000"), at("https://10.0.0.2:8000"), at("https://10.0.0.4:8000"))

	s.Delete(pods, "p1")
	reach(t, got, fleet.Target{URL: "http://10.0.0.3:9000", Weight: 1, Backup: true})
	s.Apply(pods, "p5", pod("p5", object{"gpu": "h100"}, object{"spillway.dev/weight": "7"}))
	reach(t, got, fleet.Target{URL: "http://10.0.0.3:9000", Weight: 1, Backup: true}, fleet.Target{URL: "http://10.0.0.5:9000", Weight: 7})
}

func TestServerRestarts(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t)
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", "")))
	got, l := run(t, config(s.Kubeconfig(s.Addr(), tokenFile(t, kubetest.AdminToken), "default")))
	reach(t, got, at(url(1)))
	s.Kill()
	testkit.Eventually(t, "the outage is logged", func() bool { return l.Count("cannot be asked") == 1 })
	s.Restart()
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", ""), on("10.0.0.2", "p2", "ready", "")))
	// The very next set: the outage and the restart changed nothing.
	if next := <-got; len(next) != 2 || next[1] != at(url(2)) {
		t.Errorf("targets %v", next)
	}
	if l.Count("answers again") != 1 {
		t.Errorf("log: %s", l)
	}
}

func TestAServerThatForgot(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t)
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", "")))
	proxy := faultnet.New(t, s.Addr())
	got, l := run(t, config(s.Kubeconfig(proxy.Addr(), tokenFile(t, kubetest.AdminToken), "default")))
	reach(t, got, at(url(1)))
	proxy.Retarget("127.0.0.1:1")
	proxy.Reset()
	testkit.Eventually(t, "the outage is logged", func() bool { return l.Count("cannot be asked") == 1 })
	for i := 2; i < 40; i++ {
		s.Apply(paths, "a", slice("a", "IPv4", on(fmt.Sprintf("10.0.0.%d", i), "p", "ready", "")))
	}
	s.Apply(paths, "b", slice("b", "IPv4", on("10.0.0.77", "q", "ready", "")))
	s.Delete(paths, "b")
	s.Restart() // its cache begins here: a watch from before is answered 410 Gone
	proxy.Retarget(s.Addr())
	reach(t, got, at(url(39)))
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.40", "p", "ready", "")))
	reach(t, got, at(url(40)))
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t)
	s.Apply(paths, "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", "")))
	file := tokenFile(t, "not-known-to-anyone")
	got, l := run(t, config(s.Kubeconfig(s.Addr(), file, "default")))
	testkit.Eventually(t, "the refusal is logged", func() bool { return l.Count("cannot be asked") == 1 && l.Count("Unauthorized") == 1 })
	write(t, file, kubetest.ReaderToken) // may do nothing yet
	s.Apply("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", "reader", object{
		"metadata": object{"name": "reader"},
		"rules":    []object{{"apiGroups": []string{"discovery.k8s.io"}, "resources": []string{"endpointslices"}, "verbs": []string{"list", "watch"}}},
	})
	if len(got) != 0 {
		t.Errorf("reported %v", <-got)
	}
	s.Apply("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", "reader", object{
		"metadata": object{"name": "reader"}, "roleRef": object{"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
		"subjects": []object{{"kind": "User", "name": "reader"}},
	})
	reach(t, got, at(url(1)))
	if l.Count("answers again") != 1 {
		t.Errorf("log: %s", l)
	}
}

func TestInCluster(t *testing.T) {
	s := kubetest.Start(t)
	s.Apply("/api/v1/namespaces", "models", object{"metadata": object{"name": "models"}})
	s.Apply("/apis/discovery.k8s.io/v1/namespaces/models/endpointslices", "a", slice("a", "IPv4", on("10.0.0.1", "p1", "ready", "")))
	cfg := config("")
	cfg.ServiceAccount = t.TempDir()
	got, l := run(t, cfg)
	testkit.Eventually(t, "it is not in a cluster", func() bool { return l.Count("not in a cluster") == 1 })
	write(t, filepath.Join(cfg.ServiceAccount, "token"), kubetest.AdminToken+"\n")
	write(t, filepath.Join(cfg.ServiceAccount, "namespace"), "models")
	host, port, _ := net.SplitHostPort(s.Addr())
	t.Setenv("KUBERNETES_SERVICE_HOST", host)
	t.Setenv("KUBERNETES_SERVICE_PORT", port)
	testkit.Eventually(t, "there is no certificate", func() bool { return l.Count("ca.crt") == 1 })
	ca := read(t, s.CAFile())
	write(t, filepath.Join(cfg.ServiceAccount, "ca.crt"), ca)
	reach(t, got, at(url(1)))
}

func TestHundredInstancesFlap(t *testing.T) {
	t.Parallel()
	s := kubetest.Start(t)
	got, l := run(t, config(s.Kubeconfig(s.Addr(), tokenFile(t, kubetest.AdminToken), "default")))
	set := func(round int) (want []fleet.Target) {
		var e []object
		for i := range 100 {
			conditions := "ready"
			if (i+round)%2 == 1 {
				conditions = "!ready"
			} else {
				want = append(want, at(fmt.Sprintf("http://10.0.1.%d:8000", 100+i)))
			}
			e = append(e, on(fmt.Sprintf("10.0.1.%d", 100+i), fmt.Sprint("p", i), conditions, ""))
		}
		s.Apply(paths, "a", slice("a", "IPv4", e...))
		return want
	}
	var want []fleet.Target
	for round := range 21 {
		want = set(round)
	}
	begun := time.Now()
	reach(t, got, want...)
	t.Logf("the last change was seen within %v", time.Since(begun))
	if l.Count("level=WARN") != 0 {
		t.Errorf("log: %s", l)
	}
}
