package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/kubernetes"
)

// decode makes typed slices of what is written in JSON.
func decode(t *testing.T, all ...object) []*kubernetes.EndpointSlice {
	t.Helper()
	var out []*kubernetes.EndpointSlice
	for _, o := range all {
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		s := new(kubernetes.EndpointSlice)
		if err := json.Unmarshal(text, s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// with changes a key of an object.
func with(o object, key string, value any) object {
	o[key] = value
	return o
}

func TestTargets(t *testing.T) {
	same := func(*kubernetes.Config) {}
	cases := map[string]struct {
		change func(*kubernetes.Config)
		slices []object
		want   []fleet.Target
		warned string // part of the only warning; "" is none
	}{
		"nothing": {change: same},
		"conditions": {same, []object{slice("a", "IPv4",
			on("10.0.0.1", "", "", ""), on("10.0.0.2", "", "ready", ""), on("10.0.0.3", "", "!ready", ""), on("10.0.0.4", "", "!ready serving terminating", ""),
			on("10.0.0.5", "", "ready serving terminating", ""))}, []fleet.Target{at(url(1)), at(url(2)), at(url(5))}, ""},
		"those that end are backups": {func(c *kubernetes.Config) { c.Terminating = true }, []object{slice("a", "IPv4",
			on("10.0.0.1", "", "ready", ""), on("10.0.0.2", "", "!ready serving terminating", ""), on("10.0.0.3", "", "!ready !serving terminating", ""), on("10.0.0.4", "", "!ready serving", ""))},
			[]fleet.Target{at(url(1)), {URL: url(2), Weight: 1, Backup: true}}, ""},
		"in two slices, the best state counts": {func(c *kubernetes.Config) { c.Terminating = true }, []object{
			slice("a", "IPv4", on("10.0.0.1", "", "!ready serving terminating", ""), on("10.0.0.2", "p", "ready", "")),
			slice("b", "IPv4", on("10.0.0.1", "", "ready", ""), on("10.0.0.2", "p", "!ready", "")),
		}, []fleet.Target{at(url(1)), at(url(2))}, ""},
		"a new pod has the address of one that ends": {func(c *kubernetes.Config) { c.Terminating = true }, []object{
			slice("a", "IPv4", on("10.0.0.1", "old", "!ready serving terminating", ""), on("10.0.0.1", "new", "ready", "")),
		}, []fleet.Target{at(url(1))}, ""},
		"two families": {same, []object{
			slice("a", "IPv6", on("fd00::1", "p1", "ready", ""), on("fd00::2", "p2", "ready", "")),
			slice("b", "IPv4", on("10.0.0.1", "p1", "ready", "")),
		}, []fleet.Target{at(url(1)), at("http://[fd00::2]:8000")}, ""},
		"IPv6 is preferred": {func(c *kubernetes.Config) { c.Prefer = "ipv6" }, []object{
			slice("a", "IPv6", on("fd00::1", "p1", "ready", "")), slice("b", "IPv4", on("10.0.0.1", "p1", "ready", ""), on("10.0.0.2", "p2", "ready", "")),
		}, []fleet.Target{at(url(2)), at("http://[fd00::1]:8000")}, ""},
		"names":              {same, []object{slice("a", "FQDN", on("a.example.com", "", "ready", ""))}, []fleet.Target{at("http://a.example.com:8000")}, ""},
		"no address":         {same, []object{slice("a", "IPv4", object{"addresses": []string{}})}, nil, ""},
		"no address at all":  {same, []object{slice("a", "IPv4", on("a/b", "", "ready", ""))}, nil, "is not an address"},
		"port by name":       {func(c *kubernetes.Config) { c.Port = "metrics" }, []object{slice("a", "IPv4", on("10.0.0.1", "", "ready", ""))}, []fleet.Target{at("http://10.0.0.1:9000")}, ""},
		"port by number":     {func(c *kubernetes.Config) { c.Port = "9000" }, []object{slice("a", "IPv4", on("10.0.0.1", "", "ready", ""))}, []fleet.Target{at("http://10.0.0.1:9000")}, ""},
		"no such port":       {func(c *kubernetes.Config) { c.Port = "grpc" }, []object{slice("a", "IPv4", on("10.0.0.1", "", "ready", ""))}, nil, `no port "grpc"`},
		"no such number":     {func(c *kubernetes.Config) { c.Port = "1" }, []object{slice("a", "IPv4", on("10.0.0.1", "", "ready", ""))}, nil, `no port "1"`},
		"empty slices":       {func(c *kubernetes.Config) { c.Port = "grpc" }, []object{slice("a", "IPv4")}, nil, ""},
		"all ports":          {func(c *kubernetes.Config) { c.Port = "80" }, []object{with(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "ports", nil)}, []fleet.Target{at("http://10.0.0.1:80")}, ""},
		"all ports, no name": {same, []object{with(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "ports", nil)}, nil, "no port"},
		"the only port":      {same, []object{with(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "ports", []object{{"port": 81}})}, []fleet.Target{at("http://10.0.0.1:81")}, ""},
		"a null port":        {same, []object{with(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "ports", []object{{"name": "http"}, {"name": "x", "port": 5}})}, []fleet.Target{at("http://10.0.0.1:5")}, ""},
		"zones":              {func(c *kubernetes.Config) { c.Zones = []string{"a", "b"} }, []object{slice("a", "IPv4", on("10.0.0.1", "", "ready", "a"), on("10.0.0.2", "", "ready", ""), on("10.0.0.3", "", "ready", "c"))}, []fleet.Target{at(url(1))}, ""},
		"selected pods": {func(c *kubernetes.Config) { c.PodLabels = "a=b" }, []object{slice("a", "IPv4", on("10.0.0.1", "w3", "ready", ""), on("10.0.0.2", "other", "ready", ""), on("10.0.0.3", "", "ready", ""))},
			[]fleet.Target{at(url(1))}, ""},
		"settings": {func(c *kubernetes.Config) { c.PodSettings = true }, []object{slice("a", "IPv4", on("10.0.0.1", "w3", "ready", ""), on("10.0.0.2", "other", "ready", ""))},
			[]fleet.Target{{URL: url(1), Weight: 3, Backup: true, MaxInFlight: 4}, at(url(2))}, ""},
		"scheme and path": {func(c *kubernetes.Config) { c.Scheme, c.Path = "https", "/x/" }, []object{slice("a", "IPv4", on("10.0.0.1", "", "ready", ""))}, []fleet.Target{at("https://10.0.0.1:8000/x")}, ""},
	}
	pods := []*meta.PartialObjectMetadata{{ObjectMeta: meta.ObjectMeta{Name: "w3",
		Labels: map[string]string{"spillway.dev/weight": "2", "spillway.dev/backup": "true"}, Annotations: map[string]string{"spillway.dev/weight": "3", "spillway.dev/max-in-flight": "4"}}}}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := config("x")
			c.change(&cfg)
			got, warnings, err := cfg.Targets(decode(t, c.slices...), pods)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" && len(c.want)+len(got) > 0 {
				t.Errorf("targets (-want +got):\n%s", diff)
			}
			if c.warned == "" && len(warnings) > 0 || c.warned != "" && (len(warnings) != 1 || !strings.Contains(warnings[0], c.warned)) {
				t.Errorf("warnings %q, want %q", warnings, c.warned)
			}
		})
	}
}

func TestCopiesShareNothingThatIsWritten(t *testing.T) {
	in := decode(t, slice("a", "IPv4", on("10.0.0.1", "p", "ready", "z")))[0]
	out := in.DeepCopyObject().(*kubernetes.EndpointSlice)
	if diff := cmp.Diff(in, out); diff != "" {
		t.Errorf("a copy differs: %s", diff)
	}
	out.Labels["x"], out.Endpoints[0].Addresses[0], out.Ports[0].Name = "y", "10.0.0.2", nil
	if in.Labels["x"] != "" || in.Endpoints[0].Addresses[0] != "10.0.0.1" || in.Ports[0].Name == nil {
		t.Errorf("a write to a copy changed %+v", in)
	}
}

func TestTooManyTargets(t *testing.T) {
	var all []object
	for i := range 101 {
		var e []object
		for j := range 100 {
			e = append(e, on(fmt.Sprintf("10.0.%d.%d", i, j), "", "ready", ""))
		}
		all = append(all, slice(fmt.Sprint(i), "IPv4", e...))
	}
	cfg := config("x")
	if _, _, err := cfg.Targets(decode(t, all...), nil); err == nil || !strings.HasPrefix(err.Error(), "10100 instances") {
		t.Errorf("got %v", err)
	}
}

func TestStoreIsBounded(t *testing.T) {
	changed := make(chan struct{}, 1)
	s := kubernetes.NewStore(changed)
	named := func(i int) *kubernetes.EndpointSlice {
		return &kubernetes.EndpointSlice{ObjectMeta: meta.ObjectMeta{Name: fmt.Sprint(i)}}
	}
	var many []any
	for i := range kubernetes.MaxObjects {
		many = append(many, named(i))
	}
	if _, known, _ := s.Len(); known {
		t.Error("known before it was filled")
	}
	s.Replace(many, "1")
	if n, known, err := s.Len(); n != kubernetes.MaxObjects || !known || err != nil {
		t.Errorf("%d, %v, %v", n, known, err)
	}
	s.Update(named(7))
	if _, _, err := s.Len(); err != nil {
		t.Errorf("an update: %v", err)
	}
	s.Add(named(-1))
	if _, _, err := s.Len(); err == nil {
		t.Error("one too many is no error")
	}
	s.Replace(append(many, named(-1)), "2")
	if _, _, err := s.Len(); err == nil {
		t.Error("a list that is too long is no error")
	}
	s.Replace(many[:3], "3")
	s.Delete(named(1))
	if n, _, err := s.Len(); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := s.Add("text"); err == nil {
		t.Error("an object of another kind is no error")
	}
	if len(changed) != 1 {
		t.Error("nothing was told")
	}
}

func TestValidate(t *testing.T) {
	cases := map[string]struct {
		change func(*kubernetes.Config)
		want   string // beginning of the message; "" is valid
	}{
		"default":          {func(*kubernetes.Config) {}, ""},
		"no service":       {func(c *kubernetes.Config) { c.Service = "" }, "service: is missing"},
		"service":          {func(c *kubernetes.Config) { c.Service = "a,b" }, "service: must be"},
		"namespace":        {func(c *kubernetes.Config) { c.Namespace = "A" }, "namespace: "},
		"port":             {func(c *kubernetes.Config) { c.Port = "0" }, "port: "},
		"port name":        {func(c *kubernetes.Config) { c.Port = "a b" }, "port: "},
		"context alone":    {func(c *kubernetes.Config) { c.Kubeconfig, c.Context = "", "a" }, "context: "},
		"in cluster":       {func(c *kubernetes.Config) { c.Kubeconfig = "" }, ""},
		"nothing to ask":   {func(c *kubernetes.Config) { c.Kubeconfig, c.ServiceAccount = "", "" }, "service_account: "},
		"scheme":           {func(c *kubernetes.Config) { c.Scheme = "ftp" }, "scheme: "},
		"prefer":           {func(c *kubernetes.Config) { c.Prefer = "v4" }, "prefer: "},
		"path":             {func(c *kubernetes.Config) { c.Path = "v1" }, "path: "},
		"zone":             {func(c *kubernetes.Config) { c.Zones = []string{""} }, "zones[0]: "},
		"selector":         {func(c *kubernetes.Config) { c.PodLabels = "a=b,c notin (d,e),!f" }, ""},
		"a wrong selector": {func(c *kubernetes.Config) { c.PodLabels = "a==" + "=b" }, "pod_labels: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := config("x")
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add("3", "true", "9")
	f.Add("-1", "maybe", "99999999999999999999")
	f.Fuzz(func(t *testing.T, weight, backup, most string) {
		values := map[string]string{"spillway.dev/weight": weight, "spillway.dev/backup": backup, "spillway.dev/max-in-flight": most}
		s, errs := kubernetes.ParseSettings(func(key string) string { return values[key] })
		if s.Weight < 0 || s.Weight > 1_000_000 || s.MaxInFlight < 0 || len(errs) > 3 {
			t.Errorf("%q: %+v, %v", values, s, errs)
		}
	})
}
