package archtest_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/testkit"
)

// description is what a prometheus.Desc says of itself.
var description = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: "(.*)", unit: "[^"]*", constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// described is one metric.
type described struct{ name, help, labels, kind string }

// metricPage makes the page of metrics from a gateway that has answered a
// request, so that each metric but counters of trouble shows its type.
func metricPage(t *testing.T) string {
	t.Helper()
	metrics := describeMetrics(t, serving(t))
	var b strings.Builder
	b.WriteString("# Metrics\n\nWhat `GET /metrics` on the admin listener gives, in Prometheus' text format, beside Go's own `go_*` and `process_*`. " +
		"A metric's name carries the package that owns it.\n\n| name | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, m := range metrics {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, m.labels, cell(m.help))
	}
	return b.String()
}

// describeMetrics lists the gateway's own metrics by name.
func describeMetrics(t *testing.T, r *prometheus.Registry) []described {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]string)
	for _, f := range families {
		kinds[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	ch := make(chan *prometheus.Desc)
	go func() { r.Describe(ch); close(ch) }()
	var all []described
	for d := range ch {
		m := description.FindStringSubmatch(d.String())
		if m == nil {
			t.Errorf("cannot read %s", d)
			continue
		}
		if !strings.HasPrefix(m[1], "spillway_") {
			continue
		}
		one := described{name: m[1], help: strings.ReplaceAll(m[2], `\"`, `"`), kind: kinds[m[1]], labels: labelNames(m[3], m[4])}
		if one.kind == "" && strings.HasSuffix(one.name, "_total") {
			one.kind = "counter" // of what has not happened here
		}
		if one.kind == "" || one.help == "" {
			t.Errorf("%s: type %q, help %q: both are wanted", one.name, one.kind, one.help)
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b described) int { return strings.Compare(a.name, b.name) })
	return all
}

// labelNames lists the labels of a description.
func labelNames(fixed, variable string) string {
	var names []string
	for pair := range strings.SplitSeq(fixed, ",") {
		if name, _, ok := strings.Cut(pair, "="); ok {
			names = append(names, "`"+name+"`")
		}
	}
	for name := range strings.SplitSeq(variable, ",") {
		if name != "" {
			names = append(names, "`"+name+"`")
		}
	}
	return strings.Join(names, ", ")
}

// serving runs a gateway with one simulated instance until the test ends, lets
// it answer one stream, and returns its metrics once all gauges have shown up.
func serving(t *testing.T) *prometheus.Registry {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	upstream := listen(t)
	e, err := engine.New(engine.Default(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- e.Serve(ctx, upstream) }()
	file, err := config.Parse("test.yaml", fmt.Appendf(nil, `
usage: {access_log: "off"}
store: {directory: %q}
route: {rules: [{name: r, then: {region: a}}], experiments: [{name: e, arms: [{name: a}, {name: b}]}]}
fleet: {regions: [{name: a, pools: [{name: b, instances: ["http://%s"], models: [sim], metrics: {kind: vllm, interval: 100ms}}]}]}
`, t.TempDir(), upstream.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(file, app.Options{Version: "test", Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	l := &app.Listeners{API: listen(t), Admin: listen(t)}
	go func() { ended <- a.Run(ctx, l, nil) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	ask(t, "http://"+l.API.Addr().String()+"/v1/chat/completions", fmt.Sprintf(`{"model":%q,"stream":true,"temperature":0,"messages":[{"role":"user","content":"hello"}],"max_tokens":3}`, engine.Default().Models[0]))
	testkit.Eventually(t, "the answer is in the database", func() bool {
		families, err := a.Metrics().Gather()
		return err == nil && slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "spillway_store_sql_usable" })
	})
	return a.Metrics()
}

// listen opens a port.
func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// ask posts a body and reads the whole answer.
func ask(t *testing.T, url, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v: %s", resp.StatusCode, err, text)
	}
}
