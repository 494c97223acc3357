package archtest_test

import (
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rings orders the packages: imports point to lower rings only. A folder that is
// not listed has its parent's ring. A package without a ring is a finding, so a
// new one is placed deliberately.
var rings = map[string]int{
	"internal/inference": 0,

	"internal/wire":  1,
	"internal/store": 1,
	"internal/fleet": 1,

	"internal/identity":  2,
	"internal/limit":     2,
	"internal/cache":     2,
	"internal/admission": 2,
	"internal/health":    2,
	"internal/route":     2,
	"internal/upstream":  2,
	"internal/job":       2,
	"internal/preload":   2,
	"internal/autoscale": 2,
	"internal/usage":     2,

	"internal/gateway": 3,

	"internal/api":       4,
	"internal/admin":     4,
	"internal/dashboard": 4,
	"internal/telemetry": 4,

	"internal/config": 5,

	"internal/engine": 6,
	"internal/load":   6,

	"internal/app":            7,
	"internal/bench/registry": 7, // real programs, for scenarios and tests

	"internal/bench": 8,

	"internal/cli": 9,

	"cmd/spillway": 10,
	"bench/proxy":  10, // measures the binary from outside and shares no code with it
	"tools":        10, // what make needs; nothing that ships
	"e2e":          10, // drives the gateway with the official SDKs
}

// The third parties of many packages.
const (
	prom     = "github.com/prometheus/client_golang/prometheus"
	otel     = "go.opentelemetry.io/otel"
	xxhash   = "github.com/cespare/xxhash/v2"
	yamlPath = "go.yaml.in/yaml/v3"
	rueidis  = "github.com/redis/rueidis"
	bun      = "github.com/uptrace/bun"
	expr     = "github.com/expr-lang/expr"
	jsontext = "github.com/go-json-experiment/json/jsontext"

	apimachinery = "k8s.io/apimachinery/pkg"
)

// thirdParties lists what a package may import beyond the standard library and
// this module, its tests aside. Rings 2 and 3 may also import what is in
// mechanismParties. Heavy clients belong to leaf adapters.
var thirdParties = map[string][]string{
	"internal/wire":         {jsontext},
	"internal/fleet":        {xxhash},
	"internal/fleet/file":   {"github.com/fsnotify/fsnotify", yamlPath},
	"internal/fleet/dns":    {"golang.org/x/net/dns/dnsmessage"},
	"internal/fleet/consul": {"github.com/hashicorp/consul/api"},
	"internal/fleet/kubernetes": {
		"k8s.io/client-go/rest", "k8s.io/client-go/tools/cache", "k8s.io/client-go/tools/clientcmd",
		apimachinery + "/api/errors", apimachinery + "/apis/meta/v1", apimachinery + "/labels", apimachinery + "/runtime",
		apimachinery + "/runtime/schema", apimachinery + "/runtime/serializer", apimachinery + "/util/net", apimachinery + "/util/wait",
		apimachinery + "/watch", "k8s.io/klog/v2", "github.com/go-logr/logr",
	},
	"internal/identity/jwt":     {"github.com/golang-jwt/jwt/v5"},
	"internal/route":            {xxhash}, // the nodes' hashes come from fleet: policies must use the same function
	"internal/route/experiment": {xxhash},
	"internal/route/geo":        {"github.com/oschwald/maxminddb-golang/v2"},
	"internal/route/rule":       {expr, expr + "/ast", expr + "/parser", expr + "/vm"},
	"internal/admin":            {prom, prom + "/promhttp"},
	"internal/telemetry": {
		prom, prom + "/collectors", otel + "/attribute", otel + "/codes", otel + "/propagation", otel + "/trace",
		otel + "/sdk/resource", otel + "/sdk/trace", otel + "/exporters/otlp/otlptrace/otlptracehttp",
	},
	"internal/config":       {yamlPath},
	"internal/engine":       {jsontext, "github.com/go-json-experiment/json", prom, prom + "/promhttp", xxhash, yamlPath},
	"internal/load":         {"github.com/HdrHistogram/hdrhistogram-go"},
	"internal/bench":        {"golang.org/x/sys/unix"},
	"internal/cache/memory": {"github.com/maypok86/otter/v2"},
	"internal/cache/redis":  {rueidis},
	"internal/cache/sql":    {bun},
	"internal/limit/redis":  {rueidis},
	"internal/store/redis":  {rueidis},
	"internal/store/sql": {
		bun, bun + "/dialect", bun + "/dialect/sqlitedialect", bun + "/dialect/pgdialect", bun + "/dialect/mysqldialect", bun + "/schema",
		"github.com/pressly/goose/v3", "github.com/pressly/goose/v3/database", "github.com/jackc/pgx/v5/stdlib", "github.com/jackc/pgx/v5",
		"github.com/jackc/pgx/v5/pgconn", "github.com/go-sql-driver/mysql", "modernc.org/sqlite", "modernc.org/sqlite/lib",
	},
	"internal/app": {prom, "github.com/fsnotify/fsnotify"},
	"internal/cli": {"github.com/spf13/cobra"},
}

// mechanismParties are the third parties of rings 2 and 3: the Prometheus client
// and the OpenTelemetry API.
var mechanismParties = []string{prom, otel, otel + "/attribute", otel + "/codes", otel + "/metric", otel + "/trace"}

// ringOf finds a package's ring.
func ringOf(p string) (int, bool) {
	for ; p != "." && p != "/"; p = path.Dir(p) {
		if r, ok := rings[p]; ok {
			return r, true
		}
	}
	return 0, false
}

// testOnly says whether a package exists for tests alone: it may import
// anything, and nothing but tests may import it.
func testOnly(p string) bool {
	base := path.Base(p)
	return base != "bench" && (strings.HasSuffix(base, "test") || strings.HasPrefix(p, "internal/testkit") || p == "internal/scenario")
}

// imports calls do for each import of a file.
func imports(s *source, do func(target string, own bool, at int)) {
	for i, spec := range s.ast.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		target, own := strings.CutPrefix(target, module+"/")
		do(target, own, i)
	}
}

// checkRings finds imports that do not point to a lower ring.
func checkRings(t *tree) (found []finding) {
	t.each(isCode, func(f *folder, s *source) {
		if testOnly(f.path) {
			return
		}
		ring, known := ringOf(f.path)
		if !known {
			found = append(found, t.at(s.ast.Package, "package %s has no ring: place it in the table of rings", f.path))
			return
		}
		imports(s, func(target string, own bool, at int) {
			if !own || testOnly(target) || strings.HasPrefix(f.path, target+"/") {
				return
			}
			if r, ok := ringOf(target); !ok || r >= ring {
				found = append(found, t.at(s.ast.Imports[at].Pos(), "%s (ring %d) must not import %s (ring %d)", f.path, ring, target, r))
			}
		})
	})
	return found
}

// checkThirdParties finds imports from outside that a package may not have.
func checkThirdParties(t *tree) (found []finding) {
	t.each(isCode, func(f *folder, s *source) {
		if testOnly(f.path) {
			return
		}
		allowed := thirdParties[f.path]
		if ring, ok := ringOf(f.path); ok && (ring == 2 || ring == 3) {
			allowed = slices.Concat(allowed, mechanismParties)
		}
		imports(s, func(target string, own bool, at int) {
			host, _, _ := strings.Cut(target, "/")
			if own || !strings.Contains(host, ".") || slices.Contains(allowed, target) {
				return
			}
			found = append(found, t.at(s.ast.Imports[at].Pos(), "%s must not import %s", f.path, target))
		})
	})
	return found
}

// checkTestOnly finds code that imports what is for tests.
func checkTestOnly(t *tree) (found []finding) {
	t.each(isCode, func(f *folder, s *source) {
		if testOnly(f.path) {
			return
		}
		imports(s, func(target string, own bool, at int) {
			if own && testOnly(target) || target == "testing" {
				found = append(found, t.at(s.ast.Imports[at].Pos(), "%s is for tests only", target))
			}
		})
	})
	return found
}

// outsiders lists what pkg depends on, however indirectly, beyond the standard
// library and this module.
func outsiders(t *testing.T, pkg string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+"/"+pkg)
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(p string) bool { return strings.HasPrefix(p, module+"/") })
}

// strangers are the outsiders that the core may not have.
func strangers(all []string) []string {
	return slices.DeleteFunc(all, func(p string) bool {
		return p == xxhash || strings.HasPrefix(p, "github.com/go-json-experiment/json/")
	})
}

func TestGatewayDependsOnWordsOnly(t *testing.T) {
	if got := strangers(outsiders(t, "internal/gateway")); len(got) > 0 {
		t.Errorf("internal/gateway depends on %v, want the standard library, our own words, the JSON tokenizer and xxhash", got)
	}
	if got := strangers(outsiders(t, "internal/admin")); !slices.Contains(got, prom) {
		t.Errorf("internal/admin depends on %v, want %s in it: this test would see nothing", got, prom)
	}
}
