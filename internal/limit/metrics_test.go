package limit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/limit"
)

// metrics are all series of a limiter, by name and labels.
func metrics(t testing.TB, l *limit.Limiter) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(l); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, p := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", p.GetName(), p.GetValue()))
			}
			all[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	l := limiter(t, fiveRules, limit.Parts{Store: limit.NewMemory(0)})
	before := len(metrics(t, l))
	for i := range uint32(100) {
		l.Admit(noon, flood(1))
		l.Admit(noon, flood(i))
		reserve(t, l, noon, request(fmt.Sprint("tenant", i), 1))
	}
	got := metrics(t, l)
	if len(got) != before {
		t.Errorf("%d series, want the %d of before there were subjects", len(got), before)
	}
	for name, want := range map[string]float64{
		`spillway_limit_checks_total{outcome="address",rule="address"}`:  96,
		`spillway_limit_checks_total{outcome="admitted",rule="address"}`: 104,
		`spillway_limit_checks_total{outcome="admitted",rule="tenant"}`:  100,
		`spillway_limit_entries{table="address"}`:                        100,
		`spillway_limit_entries{table="rule"}`:                           302,
		`spillway_limit_store_gateways{}`:                                1,
	} {
		if got[name] != want {
			t.Errorf("%s = %v, want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, "tenant1") || strings.Contains(name, "40.") {
			t.Errorf("a subject in %s", name)
		}
	}
}
