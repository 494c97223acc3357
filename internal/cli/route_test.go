package cli_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/testkit"
)

// routed is a configuration with rules, an experiment and a mirror.
const routed = `
store: {directory: %DIR%}
route:
  rules:
    - {name: heavy, when: max_tokens > 100, then: {pools: {gpu: 1}, model: large, class: batch, headers: {X-Tier: heavy}}}
    - {name: odd, when: int(user) > 5, then: {pools: {gpu: 1}}}
    - {name: rest, then: {pools: {cpu: 1}, strict: true}}
  experiments:
    - {name: copies, when: tenant == "acme", mirror: {to: {pools: {next: 1}, strict: true}, share: 1}}
    - {name: some, when: tenant == "gamma", mirror: {to: {pools: {next: 1}}, share: 0.02}}
    - {name: each, when: tenant == "gamma", arms: [{name: control, weight: 9}, {name: new, then: {pools: {next: 1}}}], ramp: [{after: 0s, share: 0.5}, {after: 1h, share: 1}]}
    - {name: try, when: tenant == "beta" or tenant == "gamma", by: tenant, arms: [{name: control}, {name: new, weight: 1000000, then: {pools: {next: 1}}}]}
fleet:
  regions:
    - name: eu
      pools:
        - {name: gpu, models: [m, large], instances: ["http://10.0.0.1:8000"]}
        - {name: cpu, models: [m], instances: ["http://10.0.0.2:8000"]}
        - {name: next, backup: true, models: [m, large], instances: ["http://10.0.0.3:8000"]}
`

// routedFile writes it.
func routedFile(t *testing.T) string {
	t.Helper()
	return file(t, strings.ReplaceAll(routed, "%DIR%", t.TempDir()))
}

// asker is a gateway that does not run, behind an admin listener.
func asker(t *testing.T) (url string) {
	t.Helper()
	f, err := config.Load(routedFile(t))
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(f, app.Options{Version: "test", Stdout: new(testkit.Log), Stderr: new(testkit.Log)})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: gateway{}, Routes: a, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return served(t, s)
}

func TestRouteExplain(t *testing.T) {
	url := asker(t)
	plain, _ := operated(t, admin.Default()) // a gateway that explains nothing
	request := file(t, `{"model":"m","messages":[{"role":"user","content":"hi"}]}`)
	heavy := file(t, `{"model":"m","max_tokens":101,"messages":[]}`)
	here := []string{"-c", routedFile(t)}
	there := []string{"--admin", url}
	for name, c := range map[string]struct {
		args []string
		code int
		out  []string // expressions in what is printed
		errs string
	}{
		"light": {args: []string{"-f", request}, out: []string{
			`(?m)^rule +heavy +false +max_tokens > 100$`, `(?m)^rule +> rest +true +always$`, `(?m)^rule +odd +false +.*failed: `, `(?m)^model +m$`, `(?m)^class +normal$`,
			`(?m)^pool +> eu/cpu `, `(?m)^instance +> eu/cpu/10.0.0.2:8000 `,
		}},
		"heavy": {args: []string{"-f", heavy, "--class", "vip"}, out: []string{
			`(?m)^rule +> heavy +true`, `(?m)^model +large instead of m$`, `(?m)^class +batch$`, `(?m)^headers +changed: X-Tier$`, `(?m)^pool +> eu/gpu `, `(?m)^pool +eu/next .*backup`,
		}},
		"a copy": {args: []string{"-f", request, "--tenant", "acme"}, out: []string{`(?m)^mirror +a copy to eu/next$`}},
		"an arm": {args: []string{"-f", request, "--tenant", "beta"}, out: []string{`(?m)^experiment +try, arm new$`}},
		"a draw": {args: []string{"-f", request, "--tenant", "gamma"}, out: []string{
			`(?m)^experiment +some, drawn for each request: 2% of them, of those mirror 100%; what`,
			`(?m)^experiment +each, drawn for each request: 50% of them, of those control 90%, new 10%; what follows is without it$`,
			`(?m)^experiment +try, arm new$`,
		}},
		"JSON":            {args: []string{"-f", heavy, "--json"}, out: []string{`"asked_model": "m"`, `"rule": "heavy"`}},
		"another address": {args: []string{"-f", request, "--ip", "81.2.69.160", "--header", "X-A: b"}, out: []string{`(?m)^pool +> eu/cpu `}},
		"no file":         {args: nil, code: 2, errs: "give the body of a request with -f"},
		"a missing file":  {args: []string{"-f", "/none"}, code: 1, errs: "no such file"},
		"no JSON":         {args: []string{"-f", file(t, "{")}, code: 1, errs: "is not JSON"},
		"no model":        {args: []string{"-f", file(t, `{"model":"none","messages":[]}`)}, code: 2, errs: "none", out: []string{`(?m)^rule +> rest `, `(?m)^model +none$`}},
		"nowhere":         {args: []string{"-f", file(t, `{"model":"large","messages":[]}`)}, code: 2, errs: "no server of model", out: []string{`(?m)^rule +> rest +true +always$`, `(?m)^model +large$`}},
		"nowhere, JSON":   {args: []string{"-f", file(t, `{"model":"large","messages":[]}`), "--json"}, code: 2, errs: "no server of model", out: []string{`"rule": "rest"`, `"error": "no_capacity: no server of model`}},
		"a bad class":     {args: []string{"-f", request, "--class", "idle"}, code: 2, errs: "unknown class"},
		"a bad address":   {args: []string{"-f", request, "--ip", "x"}, code: 2, errs: "ip: "},
		"a bad surface":   {args: []string{"-f", request, "--surface", "x"}, code: 2, errs: "unknown surface"},
		"a bad field":     {args: []string{"-f", request, "--header", "x"}, code: 2, errs: "want 'Name: value'"},
		"a wrong word":    {args: []string{"-f", request, "more"}, code: 2},
	} {
		for where, args := range map[string][]string{"running": there, "from a file": here} {
			t.Run(name+", "+where, func(t *testing.T) {
				code, out, errs := run(t, append(append([]string{"route", "explain"}, c.args...), args...)...)
				if code != c.code || !strings.Contains(errs, c.errs) || code == 0 && errs != "" {
					t.Errorf("got %d %s %q, want %d and %q", code, out, errs, c.code, c.errs)
				}
				for _, part := range c.out {
					if !regexp.MustCompile(part).MatchString(out) {
						t.Errorf("no %q in\n%s", part, out)
					}
				}
				if name == "JSON" {
					var a admin.RouteAnswer
					if err := json.Unmarshal([]byte(out), &a); err != nil || len(a.Steps) == 0 {
						t.Errorf("%v in %s", err, out)
					}
				}
			})
		}
	}
	for name, c := range map[string]struct {
		args []string
		code int
		errs string
	}{
		"nobody is there": {[]string{"explain", "-f", request, "--admin", "http://127.0.0.1:1"}, 1, "is the gateway up"},
		"nobody explains": {[]string{"explain", "-f", request, "--admin", plain}, 1, "has no routes to explain"},
		"no such command": {[]string{"tell"}, 2, "give explain"},
		"a wrong file":    {[]string{"explain", "-f", request, "-c", file(t, "a: 1")}, 1, "mistake"},
		"no such file":    {[]string{"explain", "-f", request, "-c", "/none/spillway.yaml"}, 1, "no such file"},
	} {
		if code, out, errs := run(t, append([]string{"route"}, c.args...)...); code != c.code || !strings.Contains(errs, c.errs) {
			t.Errorf("%s: got %d %s %q", name, code, out, errs)
		}
	}
}

// TestRouteExplainLeavesNothing: a gateway that is asked with -c writes nothing, and
// says nothing of the credentials of the question.
func TestRouteExplainLeavesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	logs := t.TempDir()
	path := file(t, strings.ReplaceAll(routed, "%DIR%", dir)+"identity: {sql: true}\nusage: {access_log: "+logs+"/access.log}\n")
	request := file(t, `{"model":"m","messages":[]}`)
	code, out, errs := run(t, "route", "explain", "-f", request, "-c", path, "--header", "Authorization: Bearer sk-of-somebody", "--header", "x-api-key: sk-of-somebody")
	if code != 0 || strings.Contains(out+errs, "sk-of-somebody") {
		t.Errorf("got %d %s %s", code, out, errs)
	}
	var left []string
	_ = filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			left = append(left, p)
		}
		return nil
	})
	if made, err := os.ReadDir(logs); err != nil || len(left)+len(made) > 0 {
		t.Errorf("it leaves %v, %v", left, made)
	}
}

// TestRouteExplainWithoutPlaces says why no client has one.
func TestRouteExplainWithoutPlaces(t *testing.T) {
	broken := file(t, "no database")
	path := file(t, strings.ReplaceAll(strings.Replace(routed, "route:\n", "route:\n  geo: {city_file: /none/city.mmdb, asn_file: "+broken+"}\n", 1), "%DIR%", t.TempDir()))
	code, out, errs := run(t, "route", "explain", "-f", file(t, `{"model":"m","messages":[]}`), "-c", path, "--ip", "81.2.69.160")
	for _, want := range []string{"places are not known", "city_file: open /none/city.mmdb", "asn_file: "} {
		if code != 0 || !strings.Contains(errs, want) {
			t.Errorf("got %d %s %q, want %q", code, out, errs, want)
		}
	}
}

// TestSecretsInWhatIsPrinted: configurations and keys are shown without what must not
// be known.
func TestSecretsInWhatIsPrinted(t *testing.T) {
	t.Setenv("THE_DSN", "postgres://u:dsn-hush@127.0.0.1:1/x")
	pepper := filepath.Join(t.TempDir(), "pepper")
	if err := os.WriteFile(pepper, []byte(strings.Repeat("pepper-hush", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(t.TempDir(), "keys.txt")
	_, key, _ := run(t, "key", "create", "--keys-file", keys, "--tenant", "acme")
	key = strings.TrimSpace(key)
	path := file(t, strings.Replace(strings.Replace(routed, "store: {directory: %DIR%}", "store: {directory: "+t.TempDir()+", sql: {databases: [{dsn: \"${THE_DSN}\"}]}}", 1), "%DIR%", "", 1)+"identity: {keys_file: "+keys+", pepper_file: "+pepper+"}\n")
	for name, args := range map[string][]string{
		"explain": {"explain", "-c", path}, "check": {"check", "-c", path}, "key list": {"key", "list", "-c", path}, "key list --json": {"key", "list", "--json", "-c", path},
		"a key as a command": {"key", key}, "a key as an id": {"key", "revoke", "-c", path, key},
	} {
		_, out, errs := run(t, args...)
		if out+errs == "" {
			t.Errorf("%s says nothing", name)
		}
		for _, secret := range []string{"hush", key} {
			if strings.Contains(out+errs, secret) {
				t.Errorf("%s prints %s: %s %s", name, secret, out, errs)
			}
		}
	}
}
