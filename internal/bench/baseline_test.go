package bench_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/load"
)

// update makes the tests write the files that they would compare with.
var update = flag.Bool("update", false, "write the golden files of testdata/ again")

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", path, diff)
	}
}

func TestProxyConfig(t *testing.T) {
	engines := []string{"127.0.0.1:1", "127.0.0.1:2"}
	cases := map[string]struct {
		system string
		proxy  bench.Proxy
		root   bool
	}{
		"nginx.conf":        {bench.SystemNginx, bench.Proxy{Rate: 42.5, Burst: 20}, true},
		"nginx-strict.conf": {bench.SystemNginx, bench.Proxy{Rate: 42.504}, false},
		"haproxy.cfg":       {bench.SystemHAProxy, bench.Proxy{MaxConn: 70, Queue: 800 * time.Millisecond}, true},
	}
	for file, c := range cases {
		t.Run(file, func(t *testing.T) {
			got, err := bench.ProxyConfig(c.system, c.proxy, engines, c.root)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, file, got)
		})
	}
}

// TestOverloadGateway: the gateway of a comparison has the objectives that it is
// judged by, and is otherwise as in a file that says nothing.
func TestOverloadGateway(t *testing.T) {
	dir := t.TempDir()
	o := bench.DefaultOverload()
	text := bench.OverloadGateway(o.Admission("static", 70), dir, []string{"http://127.0.0.1:1"})
	keys := bench.OverloadKeysFile([]load.Tenant{{Name: "acme"}, {Name: "vicuna-13b"}})
	if err := os.WriteFile(filepath.Join(dir, "keys"), []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := config.Parse("spillway.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default().Admission
	want.Limit, want.StaticLimit = "static", 70
	for c, ttft := range map[*struct{ TTFT, TPOT *time.Duration }]time.Duration{
		{&want.Classes.VIP.TTFT, &want.Classes.VIP.TPOT}:       time.Second,
		{&want.Classes.Normal.TTFT, &want.Classes.Normal.TPOT}: 5 * time.Second,
		{&want.Classes.Batch.TTFT, &want.Classes.Batch.TPOT}:   time.Minute,
	} {
		*c.TTFT, *c.TPOT = ttft, 50*time.Millisecond
	}
	if diff := cmp.Diff(want, file.Admission, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("admission (-want +got):\n%s", diff)
	}
	if want := filepath.Join(dir, "state"); file.Store.Directory != want || file.Usage.AccessLog != "off" {
		t.Errorf("store %q, access log %q, want %q and off", file.Store.Directory, file.Usage.AccessLog, want)
	}
}

func TestGrids(t *testing.T) {
	nginx := bench.NginxGrid(40)
	if first, last := nginx[0], nginx[len(nginx)-1]; len(nginx) != 9 || first != (bench.Proxy{Rate: 28}) || last != (bench.Proxy{Rate: 40, Burst: 100}) {
		t.Errorf("nginx: %v", nginx)
	}
	haproxy := bench.HAProxyGrid(80)
	if first, last := haproxy[0], haproxy[len(haproxy)-1]; len(haproxy) != 12 ||
		first != (bench.Proxy{MaxConn: 40, Queue: 800 * time.Millisecond}) || last != (bench.Proxy{MaxConn: 160, Queue: 30 * time.Second}) {
		t.Errorf("haproxy: %v", haproxy)
	}
}

// TestBatchAtOptimum: requests of 1000 prompt and 100 output tokens bring 0.1 ms +
// 10*0.04 ms to each step of theirs, so (50 - 8)/0.5 of them fill a step of 50 ms.
func TestBatchAtOptimum(t *testing.T) {
	o := bench.DefaultOverload()
	lengths := []bench.Lengths{{Prompt: 1000, Output: 100}}
	for args, want := range map[string]float64{"": 84, "--max-seqs=48": 48} {
		o.Args = nil
		if args != "" {
			o.Args = []string{args}
		}
		fleet, err := o.Fleet()
		if err != nil {
			t.Fatal(err)
		}
		if got := bench.BatchAtOptimum(fleet[0], lengths); got < want-1e-6 || got > want+1e-6 {
			t.Errorf("%q: %v sequences, want %v", args, got, want)
		}
	}
}
