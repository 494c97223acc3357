package kubernetes_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/kubernetes"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/kubetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run starts a source and returns what it reports.
func run(t *testing.T, cfg kubernetes.Config) (<-chan []fleet.Target, *testkit.Log) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	l := new(testkit.Log)
	src := kubernetes.New(cfg, slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})))
	got := make(chan []fleet.Target, 256)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- src.Run(ctx, func(t []fleet.Target) { got <- t }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		for _, secret := range []string{kubetest.AdminToken, kubetest.ReaderToken} {
			if l.Count(secret) != 0 {
				t.Errorf("the log has a token: %s", l)
			}
		}
	})
	return got, l
}

// reach waits for a set of targets; those before it may be any. An empty one is
// not taken for an error.
func reach(t *testing.T, got <-chan []fleet.Target, want ...fleet.Target) {
	t.Helper()
	var last []fleet.Target
	for deadline := time.After(60 * time.Second); ; {
		select {
		case last = <-got:
			if len(last)+len(want) == 0 || cmp.Equal(want, last) {
				return
			}
		case <-deadline:
			t.Fatalf("targets (-want +got):\n%s", cmp.Diff(want, last))
		}
	}
}

func at(url string) fleet.Target { return fleet.Target{URL: url, Weight: 1} }

// object is an object as it is written in JSON.
type object = map[string]any

// on is an endpoint: of a pod, if it has a name, with the given conditions.
func on(address, podName, conditions, zone string) object {
	e := object{"addresses": []string{address}}
	c := object{}
	for _, name := range strings.Fields(conditions) {
		c[strings.TrimPrefix(name, "!")] = !strings.HasPrefix(name, "!")
	}
	e["conditions"] = c
	if podName != "" {
		e["targetRef"] = object{"kind": "Pod", "name": podName, "namespace": "default"}
	}
	if zone != "" {
		e["zone"] = zone
	}
	return e
}

// slice is an EndpointSlice of the service vllm with the ports http 8000 and
// metrics 9000.
func slice(name, family string, endpoints ...object) object {
	return object{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
		"metadata":    object{"name": name, "labels": object{"kubernetes.io/service-name": "vllm"}},
		"addressType": family, "endpoints": append([]object{}, endpoints...),
		"ports": []object{{"name": "http", "port": 8000}, {"name": "metrics", "port": 9000}},
	}
}

// pod is a pod with labels and annotations.
func pod(name string, labels, annotations object) object {
	return object{
		"apiVersion": "v1", "kind": "Pod", "metadata": object{"name": name, "labels": labels, "annotations": annotations},
		"spec": object{"containers": []object{{"name": "c", "image": "x"}}},
	}
}

// tokenFile writes a token to a file of its own.
func tokenFile(t *testing.T, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, token)
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func config(kubeconfig string) kubernetes.Config {
	cfg := kubernetes.Default()
	cfg.Kubeconfig, cfg.Service = kubeconfig, "vllm"
	return cfg
}

func url(i int) string { return fmt.Sprintf("http://10.0.0.%d:8000", i) }

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// exampleKubeconfig leads to a server that asks for nothing.
func exampleKubeconfig(server string) (path string, remove func()) {
	dir, err := os.MkdirTemp("", "kubeconfig")
	if err != nil {
		panic(err)
	}
	path = filepath.Join(dir, "kubeconfig")
	text := `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: "` + server + `"}}], contexts: [{name: c, context: {cluster: c}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err)
	}
	return path, func() { os.RemoveAll(dir) }
}
