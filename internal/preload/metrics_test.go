package preload_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/preload"
)

// metrics are the values that the preloader shows, by name without the prefix and
// labels.
func metrics(t testing.TB, p *preload.Preloader) map[string]float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(p)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.Metric {
			name := strings.TrimPrefix(f.GetName(), "spillway_preload_")
			for _, l := range m.Label {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

func wantMetrics(t testing.TB, p *preload.Preloader, want map[string]float64) {
	t.Helper()
	all := metrics(t, p)
	for name, w := range want {
		if got, ok := all[name]; !ok || got != w {
			t.Errorf("metric %s: got %v (%v), want %v", name, got, ok, w)
		}
	}
}
