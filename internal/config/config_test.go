package config_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/config"
)

// fleet is the least that a configuration must say.
const fleet = `
fleet:
  regions:
    - name: eu
      pools:
        - name: gpu
          instances: ["http://a:8000"]
`

// parse reads a configuration that must be good.
func parse(t *testing.T, text string) *config.File {
	t.Helper()
	f, err := config.Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\nin\n%s", err, text)
	}
	return f
}

// mistakes reads a configuration that must be bad.
func mistakes(t *testing.T, text string) config.Mistakes {
	t.Helper()
	f, err := config.Parse("f.yaml", []byte(text))
	if err == nil {
		t.Fatalf("no mistake was found in\n%s", text)
	}
	if f != nil {
		t.Error("a file came with the mistakes")
	}
	m, ok := errors.AsType[config.Mistakes](err)
	if !ok {
		t.Fatalf("got %T, want Mistakes", err)
	}
	return m
}

func TestDefaults(t *testing.T) {
	f, d := parse(t, fleet), config.Default()
	for name, pair := range map[string][2]any{
		"api": {f.API, d.API}, "admin": {f.Admin, d.Admin}, "identity": {f.Identity, d.Identity}, "route": {f.Route, d.Route}, "cache": {f.Cache, d.Cache}, "preload": {f.Preload, d.Preload}, "admission": {f.Admission, d.Admission},
		"gateway": {f.Gateway, d.Gateway}, "usage": {f.Usage, d.Usage}, "telemetry": {f.Telemetry, d.Telemetry}, "store": {f.Store, d.Store},
	} {
		if diff := cmp.Diff(pair[1], pair[0]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	region, pool := config.DefaultRegion(), config.DefaultPool()
	got := f.Fleet.Regions[0]
	if got.Weight != region.Weight || got.Policy != region.Policy {
		t.Errorf("region: got %+v", got)
	}
	p := got.Pools[0]
	if diff := cmp.Diff(pool.Upstream, p.Upstream) + cmp.Diff(pool.Health, p.Health) + cmp.Diff(pool.Surfaces, p.Surfaces); diff != "" || p.SlowStart != pool.SlowStart || p.Weight != 1 {
		t.Errorf("pool: got %+v %s", p, diff)
	}
}

func TestDefaultsStayInsideLists(t *testing.T) {
	f := parse(t, `
fleet:
  regions:
    - name: eu
      weight: 3
      pools:
        - {name: a, instances: [http://a:1], upstream: {connect_timeout: 7s}}
        - {name: b, instances: [http://b:1], health: {active: {interval: 9s}}, surfaces: [messages]}
    - name: us
      policy: latency
      backup: true
      pools: [{name: a, instances: [http://c:1]}]
`)
	a, b, c := f.Fleet.Regions[0].Pools[0], f.Fleet.Regions[0].Pools[1], f.Fleet.Regions[1].Pools[0]
	d := config.DefaultPool()
	want := d.Upstream
	want.ConnectTimeout = 7 * time.Second
	if diff := cmp.Diff(want, a.Upstream); diff != "" {
		t.Errorf("one value hid the other defaults: %s", diff)
	}
	if b.Health.Active.Interval != 9*time.Second || b.Health.Active.Timeout != d.Health.Active.Timeout || b.Upstream.ConnectTimeout != d.Upstream.ConnectTimeout {
		t.Errorf("got %+v", b.Health.Active)
	}
	if diff := cmp.Diff([]string{"messages"}, b.Surfaces); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(d.Surfaces, c.Surfaces); diff != "" {
		t.Errorf("a list leaked into the next pool: %s", diff)
	}
	if f.Fleet.Regions[0].Weight != 3 || f.Fleet.Regions[1].Weight != 1 || !f.Fleet.Regions[1].Backup {
		t.Errorf("got %+v", f.Fleet.Regions)
	}
}

func TestFormsOfModelsAndInstances(t *testing.T) {
	f := parse(t, `
fleet:
  regions:
    - name: eu
      pools:
        - name: list
          models: [m, org/n]
          instances: ["http://a:1", {url: "http://b:1", weight: 3, backup: true, max_in_flight: 9}]
        - name: mapping
          models: {gpt: llama-70b}
          instances:
            - url: https://c
        - name: learned
          instances: [http://d:1]
        - name: found
          file: {path: targets.yaml}
        - name: named
          dns: {name: engines.local, port: 8000}
`)
	pools := f.Fleet.Regions[0].Pools
	if diff := cmp.Diff(config.Models{"m": "m", "org/n": "org/n"}, pools[0].Models); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(config.Models{"gpt": "llama-70b"}, pools[1].Models); diff != "" {
		t.Error(diff)
	}
	if pools[2].Models != nil {
		t.Errorf("models that were not given: %v", pools[2].Models)
	}
	if i := pools[0].Instances; i[0].URL != "http://a:1" || i[1].URL != "http://b:1" || i[1].Weight != 3 || !i[1].Backup || i[1].MaxInFlight != 9 {
		t.Errorf("got %+v", i)
	}
	if pools[3].File == nil || pools[3].File.Poll <= 0 || pools[3].File.Path != "targets.yaml" || pools[3].DNS != nil {
		t.Errorf("got %+v", pools[3].File)
	}
	if pools[4].DNS == nil || pools[4].File != nil {
		t.Errorf("got %+v", pools[4].DNS)
	}
}

func TestEveryMistakeAtOnceWithItsLine(t *testing.T) {
	got := mistakes(t, `api:
  listen: nowhere
  max_body: -1
  trusted_proxies:
    - 10.0.0.0/8
    - bogus
gateway:
  retry:
    attempts: 0
fleet:
  regions:
    - name: eu
      weight: 0
      policy: best
      pools:
        - name: a b
          instances:
            - http://a:1
            - ftp://b
            - http://a:1
          upstream:
            connect_timeout: 0s
          surfaces: [chat, telepathy]
        - name: gpu
        - name: gpu
          instances: [http://c:1]
    - name: eu
      pools: []
store:
  directory: /dev/null
`)
	want := map[string]int{ // key path -> line
		"api.listen": 2, "api.max_body": 3, "api.trusted_proxies": 5, "gateway.retry.attempts": 9,
		"fleet.regions[0].weight": 13, "fleet.regions[0].policy": 14, "fleet.regions[0].pools[0].name": 16,
		"fleet.regions[0].pools[0].instances[1]": 19, "fleet.regions[0].pools[0].instances[2]": 20,
		"fleet.regions[0].pools[0].upstream.connect_timeout": 22, "fleet.regions[0].pools[0].surfaces[1]": 23,
		"fleet.regions[0].pools[1].instances": 24, "fleet.regions[0].pools[2].name": 25, "fleet.regions[1].name": 27, "fleet.regions[1].pools": 28,
		"store.directory": 30,
	}
	found := make(map[string]int)
	last := 0
	for _, m := range got {
		found[m.Path] = m.Line
		if m.File != "f.yaml" || m.Text == "" {
			t.Errorf("got %+v", m)
		}
		if m.Line < last {
			t.Errorf("%v is out of order", m)
		}
		last = m.Line
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
	lines := strings.Split(got.Error(), "\n")
	if len(lines) != len(got) || !strings.HasPrefix(lines[0], "f.yaml:2: api.listen: ") {
		t.Errorf("got %s", got)
	}
}

func TestMistakesOfForm(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []string // a part of each mistake, in order
	}{
		"syntax":            {"api:\n  listen: [\n", []string{"f.yaml:"}},
		"tab":               {"api:\n\tlisten: x\n", []string{"f.yaml:2: "}},
		"not a mapping":     {"- a\n- b\n", []string{"f.yaml:1: the file must be a mapping"}},
		"a scalar":          {"hello", []string{"f.yaml:1: the file must be a mapping"}},
		"two documents":     {fleet + "---\napi: {}\n", []string{"f.yaml:8: one document is expected"}},
		"empty":             {"", []string{"fleet.regions: at least one region"}},
		"comments only":     {"# nothing\n", []string{"fleet.regions: at least one region"}},
		"no regions":        {"api:\n  listen: :1\n", []string{"at least one region"}},
		"unknown section":   {fleet + "apu: 1\n", []string{`f.yaml:8: apu: unknown key "apu"; known are admin, admission, api, cache, fleet, gateway, identity, limit, preload, route, store, telemetry, usage`}},
		"unknown key":       {fleet + "gateway:\n  retry:\n    attempt: 3\n", []string{`f.yaml:10: gateway.retry.attempt: unknown key "attempt"; known are attempts,`}},
		"unknown in a list": {strings.Replace(fleet, "- name: gpu", "- name: gpu\n          wieght: 2", 1), []string{`f.yaml:7: fleet.regions[0].pools[0].wieght: unknown key "wieght"; known are affinity, backup,`}},
		"unknown inline":    {strings.Replace(fleet, "- name: eu", "- name: eu\n      polcy: random", 1), []string{`f.yaml:5: fleet.regions[0].polcy: unknown key "polcy"`}},
		"unknown instance":  {strings.Replace(fleet, `["http://a:8000"]`, `[{url: "http://a:8000", wait: 2}]`, 1), []string{`f.yaml:7: fleet.regions[0].pools[0].instances[0].wait: unknown key "wait"; known are backup, max_in_flight, url, weight`}},
		"wrong types":       {fleet + "api:\n  max_body: lots\n  probes: perhaps\n  idle_timeout: 5\n  trusted_proxies: 3\n", []string{"f.yaml:9: ", "f.yaml:10: ", "f.yaml:11: ", "f.yaml:12: "}},
		"values with readers": {fleet + "limit:\n  address: {rate: foo,\n    exempt: [foo, 10.0.0.0/8]}\n  rules: [{name: a, by: [tenant], requests: {rate: 1 parsec}}]\napi: {max_body: lots}\n", []string{
			`f.yaml:9: limit.address.rate: want a rate`, `f.yaml:10: limit.address.exempt[0]: `, `f.yaml:11: limit.rules[0].requests.rate: want a rate`, `f.yaml:12: api.max_body: `,
		}},
		"mapping for value": {fleet + "api:\n  listen: {a: b}\n", []string{"f.yaml:9: "}},
		"value for section": {fleet + "api: 3\n", []string{"f.yaml:8: "}},
		"bad duration":      {fleet + "gateway:\n  timeout: 30 parsecs\n", []string{"f.yaml:9: "}},
		"duplicate key":     {fleet + "api:\n  listen: :1\n  listen: :2\n", []string{"f.yaml:10: "}},
		"duplicate section": {fleet + "api: {}\napi: {}\n", []string{"f.yaml:9: "}},
		"bad UTF-8":         {"api:\n  listen: \"\xff\"\n", []string{"f.yaml:"}},
		"unknown alias":     {"api: *nothing\n", []string{"f.yaml:"}},
		"alias of itself":   {"api: &a\n  listen: *a\n", []string{`f.yaml:2: the anchor "a" contains itself`}},
		"merge of itself":   {"fleet: &a\n  <<: *a\n", []string{`f.yaml:2: the anchor "a" contains itself`}},
		"merge in a circle": {"fleet: &a\n  <<: [{regions: &b [*a]}]\n", []string{`f.yaml:2: the anchor "a" contains itself`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := mistakes(t, c.text)
			if len(got) != len(c.want) {
				t.Fatalf("got %d mistakes, want %d:\n%v", len(got), len(c.want), got)
			}
			for i, want := range c.want {
				if !strings.Contains(got[i].String(), want) {
					t.Errorf("got %q, want %q in it", got[i], want)
				}
			}
		})
	}
}

func TestTypeErrorsAndUnknownKeysTogether(t *testing.T) {
	got := mistakes(t, fleet+"api:\n  max_body: lots\n  nonsense: 1\nusage:\n  what: 2\n")
	if len(got) != 3 || got[0].Line != 9 || got[1].Line != 10 || got[2].Line != 12 {
		t.Errorf("got\n%v", got)
	}
}

func TestBillionLaughs(t *testing.T) {
	for name, c := range map[string]struct{ first, next, last string }{
		"sequences": {"a0: &a0 [x]\n", "a%[1]d: &a%[1]d [*a%[2]d, *a%[2]d, *a%[2]d]\n", ""},
		"mappings":  {"a0: &a0 {x: 1}\n", "a%[1]d: &a%[1]d {a: *a%[2]d, b: *a%[2]d, c: *a%[2]d}\n", ""},
		"merges":    {"a0: &a0 {x: 1}\n", "a%[1]d: &a%[1]d {<<: [*a%[2]d, *a%[2]d, *a%[2]d]}\n", "fleet: {regions: [{name: a, pools: [*a40]}]}\napi: *a40\n"},
		"regions":   {"a0: &a0 {name: a}\n", "a%[1]d: &a%[1]d {<<: [*a%[2]d, *a%[2]d, *a%[2]d], pools: [*a%[2]d, *a%[2]d]}\n", "fleet: {regions: [*a40, *a40]}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			b.WriteString(c.first)
			for i := range 40 {
				fmt.Fprintf(&b, c.next, i+1, i)
			}
			start := time.Now()
			mistakes(t, b.String()+c.last)
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SPILLWAY_TEST_PORT", "8123")
	t.Setenv("SPILLWAY_TEST_EMPTY", "")
	t.Setenv("SPILLWAY_TEST_EVIL", "x\"\napi: {listen: evil}\n# ${SPILLWAY_TEST_PORT}")
	f := parse(t, strings.Replace(fleet, "http://a:8000", "http://a:${SPILLWAY_TEST_PORT}", 1)+`
api:
  listen: ":${SPILLWAY_TEST_PORT}"
  max_body: ${SPILLWAY_TEST_NONE:-1024}
  idle_timeout: ${SPILLWAY_TEST_NONE:-7s}
  probes: ${SPILLWAY_TEST_NONE:-false}
  probe_listen: "${SPILLWAY_TEST_EMPTY}"
admin:
  listen: 127.0.0.1:${SPILLWAY_TEST_PORT}
  token_env: "${SPILLWAY_TEST_NONE:-}"
`)
	if f.API.Listen != ":8123" || f.API.MaxBody != 1024 || f.API.IdleTimeout != 7*time.Second || f.API.Probes || f.API.ProbeListen != "" || f.Admin.Listen != "127.0.0.1:8123" {
		t.Errorf("got %+v", f.API)
	}
	if got := f.Fleet.Regions[0].Pools[0].Instances[0].URL; got != "http://a:8123" {
		t.Errorf("got %s", got)
	}
	got := mistakes(t, fleet+"api:\n  listen: ${SPILLWAY_TEST_NONE}\n  max_body: ${SPILLWAY_TEST_NONE2}\n")
	if len(got) < 2 || got[0].Line != 9 || got[0].Path != "api.listen" || !strings.Contains(got[0].Text, "SPILLWAY_TEST_NONE is not set") {
		t.Errorf("got\n%v", got)
	}
	// A variable's text is a value, never structure.
	got = mistakes(t, fleet+"api:\n  listen: ${SPILLWAY_TEST_EVIL}\n")
	if len(got) != 1 || got[0].Path != "api.listen" || !strings.Contains(got[0].Text, "evil") {
		t.Errorf("got\n%v", got)
	}
	// Keys are not expanded, and a dollar alone is a dollar.
	if got := mistakes(t, fleet+"${SPILLWAY_TEST_PORT}: 1\n"); !strings.Contains(got[0].Text, "unknown key") {
		t.Errorf("got\n%v", got)
	}
	f = parse(t, strings.Replace(fleet, "- name: gpu", "- name: gpu\n          upstream: {headers: {X-A: a$b$}}", 1))
	if got := f.Fleet.Regions[0].Pools[0].Upstream.Headers["X-A"]; got != "a$b$" {
		t.Errorf("got %q", got)
	}
}

func TestAnchors(t *testing.T) {
	f := parse(t, `
fleet:
  regions:
    - name: eu
      pools:
        - &pool
          name: gpu
          instances: [http://a:1]
          upstream: &upstream
            connect_timeout: 3s
        - name: spot
          instances: [http://b:1]
          upstream: *upstream
        - <<: *pool
          name: merged
        - <<: [{file: {path: a.yaml}}, *pool]
          name: found
          instances: []
    - name: us
      pools:
        - *pool
`)
	pools := f.Fleet.Regions[0].Pools
	for i, p := range append(slices.Clone(pools[:3]), f.Fleet.Regions[1].Pools...) {
		if p.Upstream.ConnectTimeout != 3*time.Second || len(p.Instances) != 1 || p.Upstream.IdleConnTimeout == 0 {
			t.Errorf("pool %d: got %+v", i, p.Upstream)
		}
	}
	if pools[2].Name != "merged" || f.Fleet.Regions[1].Pools[0].Name != "gpu" {
		t.Errorf("got %q, %q", pools[2].Name, f.Fleet.Regions[1].Pools[0].Name)
	}
	if p := pools[3]; p.File == nil || p.File.Path != "a.yaml" || p.File.Poll == 0 || len(p.Instances) != 0 {
		t.Errorf("a merged source of discovery: got %+v", p.File)
	}
	got := mistakes(t, `
fleet:
  regions:
    - name: eu
      pools:
        - &pool {name: gpu, instances: [http://a:1], nonsense: 1}
    - name: us
      pools: [*pool]
    - name: cn
      pools: [{<<: {nothing: 2}, name: a, instances: [http://a:1]}]
`)
	if len(got) != 2 || got[0].Line != 6 || got[1].Line != 10 || !strings.Contains(got[1].Text, `unknown key "nothing"`) {
		t.Errorf("got\n%v", got)
	}
}

// Names of models have dots and slashes.
func TestKeysWithDots(t *testing.T) {
	f := parse(t, strings.Replace(fleet, "- name: gpu", "- name: gpu\n          models:\n            gpt-4.1: org/llama-3.3\n            a: b", 1))
	var b strings.Builder
	if err := f.Explain(&b); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`models\.gpt-4\.1 +"org/llama-3\.3" +f\.yaml:8\n`).MatchString(b.String()) {
		t.Errorf("got %s", b.String())
	}
	got := mistakes(t, strings.Replace(fleet, "- name: gpu", "- name: gpu\n          models: [a]", 1)+"route:\n  fallbacks:\n    gpt-4.1: [a]\n    llama3:8b: [a]\n")
	if len(got) != 2 || got[0].Line != 11 || got[0].Path != "route.fallbacks.gpt-4.1" || got[1].Line != 12 || got[1].Path != "route.fallbacks.llama3:8b" {
		t.Errorf("got\n%v", got)
	}
}

func TestHash(t *testing.T) {
	a, b := parse(t, fleet), parse(t, fleet+"# more\n")
	if a.Hash() == "" || a.Hash() == b.Hash() || a.Hash() != config.Hash([]byte(fleet)) || config.Default().Hash() != "" {
		t.Errorf("got %q, %q, %q", a.Hash(), b.Hash(), config.Default().Hash())
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.yaml")
	if _, err := config.Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(path, []byte(fleet), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := config.Load(path); err != nil || f.Hash() != config.Hash([]byte(fleet)) {
		t.Errorf("got %v", err)
	}
}

// TestModelsOfStrictActions: a strict action whose pools do not serve its model would
// refuse every request.
func TestModelsOfStrictActions(t *testing.T) {
	const pools = `
fleet:
  regions:
    - name: eu
      pools:
        - {name: gpu, models: [m, large], instances: ["http://a"]}
        - {name: cpu, models: [m, small], instances: ["http://b"]}
    - name: us
      pools:
        - {name: gpu, models: [small], instances: ["http://c"]}
`
	learned := strings.Replace(pools, "name: cpu, models: [m, small]", "name: cpu", 1)
	for name, c := range map[string]struct {
		text, then string
		fine       bool
	}{
		"another pool's":     {pools, "{pools: {cpu: 1}, strict: true, model: large}", false},
		"another region's":   {pools, "{region: us, strict: true, model: large}", false},
		"in another region":  {pools, "{region: us, pools: {gpu: 1}, strict: true, model: large}", false},
		"a preference":       {pools, "{pools: {cpu: 1}, model: large}", true},
		"the pool's":         {pools, "{pools: {cpu: 1, us/gpu: 1}, strict: true, model: small}", true},
		"one pool's":         {pools, "{pools: {cpu: 1, eu/gpu: 1}, strict: true, model: large}", true},
		"the region's":       {pools, "{region: eu, strict: true, model: large}", true},
		"one that stands in": {pools + "route: {fallbacks: {large: [small]}, rules: [", "{pools: {cpu: 1}, strict: true, model: large}", true},
		"learned":            {learned, "{pools: {cpu: 1}, strict: true, model: large}", true},
		"learned elsewhere":  {learned, "{region: us, strict: true, model: large}", false},
	} {
		text := c.text
		if !strings.Contains(text, "route:") {
			text += "route: {rules: ["
		}
		text += "{name: r, then: " + c.then + "}]}\n"
		if c.fine {
			parse(t, text)
		} else if got := mistakes(t, text); len(got) != 1 || !strings.Contains(got[0].String(), `no pool serves model "large" where this strict action lets it run`) {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestReferencesBetweenSections(t *testing.T) {
	modelled := strings.Replace(fleet, "- name: gpu", "- name: gpu\n          models: [m]", 1)
	for name, c := range map[string]struct{ text, want string }{
		"hedged pool":           {fleet + "gateway:\n  hedge:\n    pools: [eu/none]\n", `unknown pool "eu/none"`},
		"fallback":              {modelled + "route:\n  fallbacks:\n    m: [other]\n", `no pool serves model "other"`},
		"two sources":           {strings.Replace(fleet, "- name: gpu", "- name: gpu\n          file: {path: a}\n          dns: {name: b, port: 1}", 1), "one source of discovery"},
		"slash in a name":       {strings.Replace(fleet, "name: eu", "name: e/u", 1), "slashes"},
		"no name":               {strings.Replace(fleet, "name: gpu", "name: ''", 1), "is missing"},
		"credentials in a URL":  {strings.Replace(fleet, "http://a", "http://user:secret@a", 1), "credentials"},
		"an unset key variable": {strings.Replace(fleet, "- name: gpu", "- name: gpu\n          upstream: {api_key_env: SPILLWAY_TEST_NONE}", 1), "is not set"},
		"a key file":            {strings.Replace(fleet, "- name: gpu", "- name: gpu\n          upstream: {api_key_file: /nonexistent/key}", 1), "no such file"},
		"max_in_flight":         {strings.Replace(fleet, "- name: gpu", "- name: gpu\n          max_in_flight: -1", 1), "max_in_flight: must be >= 0"},
	} {
		t.Run(name, func(t *testing.T) {
			got := mistakes(t, c.text)
			if len(got) != 1 || !strings.Contains(got[0].Text, c.want) && !strings.Contains(got[0].String(), c.want) || strings.Contains(got.Error(), "secret") {
				t.Errorf("got\n%v\nwant %q", got, c.want)
			}
			if got[0].Line == 0 {
				t.Errorf("no line in %v", got[0])
			}
		})
	}
	parse(t, modelled+"gateway:\n  hedge:\n    pools: [eu/gpu]\n")
	parse(t, fleet+"route:\n  fallbacks:\n    m: [other]\n") // models are learned: they may exist
}

func TestExplain(t *testing.T) {
	t.Setenv("SPILLWAY_TEST_PORT", "8123")
	f := parse(t, fleet+"api:\n  listen: :${SPILLWAY_TEST_PORT}\n  max_body: 1024\ngateway:\n  retry:\n    attempts: 2\n")
	f.From("admin.listen", "flag --admin-listen")
	var b strings.Builder
	if err := f.Explain(&b); err != nil {
		t.Fatal(err)
	}
	got := make(map[string][]string)
	for line := range strings.Lines(b.String()) {
		fields := strings.Fields(line)
		got[fields[0]] = fields[1:]
	}
	for path, want := range map[string]string{
		"api.listen":                                 `":8123" environment SPILLWAY_TEST_PORT (f.yaml:9)`,
		"api.max_body":                               "1KiB f.yaml:10",
		"api.idle_timeout":                           "2m0s default",
		"gateway.retry.attempts":                     "2 f.yaml:13",
		"gateway.retry.backoff":                      config.Default().Gateway.Retry.Backoff.String() + " default",
		"admin.listen":                               `"127.0.0.1:9090" flag --admin-listen`,
		"fleet.regions[0].name":                      `"eu" f.yaml:4`,
		"fleet.regions[0].weight":                    "1 default",
		"fleet.regions[0].pools[0].name":             `"gpu" f.yaml:6`,
		"fleet.regions[0].pools[0].surfaces":         "[chat, completions, embeddings] default",
		"fleet.regions[0].pools[0].slow_start":       "10s default",
		"fleet.regions[0].pools[0].instances[0].url": `"http://a:8000" f.yaml:7`,
	} {
		if strings.Join(got[path], " ") != want {
			t.Errorf("%s: got %q, want %q", path, strings.Join(got[path], " "), want)
		}
	}
	for _, section := range []string{"api", "admin", "identity", "route", "cache", "preload", "admission", "gateway", "usage", "telemetry", "store", "fleet"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(k string) bool { return strings.HasPrefix(k, section+".") }) {
			t.Errorf("nothing is said of %s", section)
		}
	}
	b.Reset()
	if err := config.Default().Explain(&b); err != nil || !strings.Contains(b.String(), "default") {
		t.Errorf("a configuration without a file: %v, %s", err, b.String())
	}
}

func TestValidateWithoutAFile(t *testing.T) {
	f := config.Default()
	m, ok := errors.AsType[config.Mistakes](f.Validate())
	if !ok || len(m) != 1 || m[0].Path != "fleet.regions" || m[0].Line != 0 || m[0].String() != "fleet.regions: at least one region is needed" {
		t.Errorf("got %v", m)
	}
}

// Every example is a configuration that works.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("there are no examples")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Chdir("../../examples") // key files and the like stand beside them
			text, err := os.ReadFile(filepath.Base(file))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`_env: *(\w+)`).FindAllSubmatch(text, -1) {
				t.Setenv(string(m[1]), "a-key-of-the-test-with-32-letters")
			}
			if _, err := config.Load(filepath.Base(file)); err != nil {
				t.Error(err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", fleet, "api: {listen: :1}\n", "a: &a [*a]\n", "fleet: {regions: [{name: ${X:-y}, pools: [{name: p, models: {a: b}, instances: [{url: http://a}]}]}]}", "- 1", "---\n---\n", "api: !!binary aGk=\n", "<<: {api: {}}", "fleet: {regions: [{<<: {name: a}}]}", "? [a]\n: b", "fleet: &a {<<: *a}", "fleet: {regions: &r [{<<: {name: a, pools: *r}}]}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		begun := time.Now()
		defer func() {
			if d := time.Since(begun); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		}()
		file, err := config.Parse("fuzz.yaml", data)
		if err != nil {
			m, ok := errors.AsType[config.Mistakes](err)
			if !ok || len(m) == 0 || file != nil {
				t.Fatalf("got %T %v", err, err)
			}
			for _, one := range m {
				if one.Text == "" || one.Line < 0 {
					t.Errorf("got %+v", one)
				}
			}
			return
		}
		if err := file.Validate(); err != nil {
			t.Errorf("parses, but: %v", err)
		}
		var b strings.Builder
		if err := file.Explain(&b); err != nil {
			t.Errorf("cannot be explained: %v", err)
		}
	})
}

func TestExplainHidesSecrets(t *testing.T) {
	t.Setenv("DSN", "postgres://u:first-secret@10.0.0.1/x?password=second-secret&sslmode=disable")
	f := parse(t, `
store:
  sql:
    databases:
      - {dsn: "${DSN}", shards: 0-7}
      - {dsn: "mysql://u:third/secret@me@unix(/run/mysql.sock)/x", replicas: ["mysql://u:fourth-secret@10.0.0.2/x"], shards: 8-15}
fleet:
  regions:
    - name: eu
      pools:
        - {name: gpu, instances: ["http://10.0.0.1:8000"], upstream: {proxy: "http://u:fifth-secret@10.0.0.3:3128", headers: {X-Token: sixth-secret}}}
`)
	var b strings.Builder
	if err := f.Explain(&b); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"first-secret", "second-secret", "third", "secret@me", "fourth", "fifth-", "sixth"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("%s... is shown in\n%s", secret, b.String())
		}
	}
	for _, want := range []string{
		`"postgres://u:(hidden)@10.0.0.1/x?password=(hidden)&sslmode=disable"`, `"mysql://u:(hidden)@unix(/run/mysql.sock)/x"`,
		"[mysql://u:(hidden)@10.0.0.2/x]", `"http://u:(hidden)@10.0.0.3:3128"`, "upstream.headers.X-Token", "http://10.0.0.1:8000",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%s is not in\n%s", want, b.String())
		}
	}
}
