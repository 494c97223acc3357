package config_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/config"
)

// pool is a configuration whose one pool has the given lines.
func pool(lines ...string) []byte {
	return fmt.Appendf(nil, "fleet:\n  regions:\n    - name: eu\n      pools:\n        - name: gpu\n          models: [m]\n          %s\n", strings.Join(lines, "\n          "))
}

func TestSourcesHaveDefaults(t *testing.T) {
	f, err := config.Parse("x", pool("consul: {service: vllm, tags: [gpu], stale: false}"))
	if err != nil {
		t.Fatal(err)
	}
	c := f.Fleet.Regions[0].Pools[0].Consul
	if c == nil || c.Wait != time.Minute || c.Stale || !c.PassingOnly || len(c.Tags) != 1 || c.Scheme != "http" {
		t.Errorf("consul is %+v", c)
	}
	if f, err = config.Parse("x", pool("kubernetes: {service: vllm, zones: [a]}")); err != nil {
		t.Fatal(err)
	}
	k := f.Fleet.Regions[0].Pools[0].Kubernetes
	if k == nil || k.ServiceAccount == "" || k.Prefer != "ipv4" || len(k.Zones) != 1 {
		t.Errorf("kubernetes is %+v", k)
	}
}

func TestAPoolHasOneSource(t *testing.T) {
	cases := map[string]struct {
		lines []string
		want  string
	}{
		"consul and kubernetes": {[]string{"consul: {service: a}", "kubernetes: {service: a}"}, "pools[0].kubernetes: a pool has one source of discovery, and consul is given too"},
		"dns and consul":        {[]string{"dns: {name: a, port: 1}", "consul: {service: a}"}, "pools[0].consul: a pool has one source of discovery, and dns is given too"},
		"none":                  {nil, "a pool needs instances, file, dns, consul or kubernetes"},
		"consul's own":          {[]string{"consul: {}"}, "pools[0].consul.service: is missing"},
		"kubernetes' own":       {[]string{"kubernetes: {service: a, prefer: b}"}, "pools[0].kubernetes.prefer: want ipv4 or ipv6"},
		"an unknown key":        {[]string{"consul: {service: a, passing: true}"}, "passing"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse("x", pool(c.lines...))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
