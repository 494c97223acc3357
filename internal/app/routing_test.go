package app_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/testkit"
)

// places are the databases of test addresses.
const places = "../route/geo/testdata/"

// example is an example configuration with the test databases, in a directory of its
// own.
func example(t *testing.T, name string) *config.File {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../examples", name))
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(places)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/var/lib/GeoIP/GeoLite2-City.mmdb", here+"/GeoLite2-City-Test.mmdb", "/var/lib/GeoIP/GeoLite2-ASN.mmdb", here+"/GeoLite2-ASN-Test.mmdb").Replace(string(data))
	path := filepath.Join(t.TempDir(), "spillway.yaml")
	write(t, path, text+"\nstore: {directory: "+t.TempDir()+"}\n")
	file, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// still is a gateway that does not run.
func still(t *testing.T, file *config.File) *app.App {
	t.Helper()
	a, err := app.New(file, app.Options{Version: "test", Stdout: io.Discard, Stderr: new(testkit.Log)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// pools are those of an answer in the order in which they would be tried.
func poolsOf(a *admin.RouteAnswer) (names []string) {
	for _, s := range a.Steps {
		if strings.Count(s.Node, "/") == 1 {
			names = append(names, s.Node)
		}
	}
	return names
}

// TestTheRoutingExample sends what is heavy to GPUs, and keeps Europeans in Europe.
func TestTheRoutingExample(t *testing.T) {
	a := still(t, example(t, "routing.yaml"))
	ask := func(model, more string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"hi"}]%s}`, model, more))
	}
	long := json.RawMessage(fmt.Sprintf(`{"model":"llama-8b","messages":[{"role":"user","content":%q}]}`, strings.Repeat("word ", 4000)))
	image := json.RawMessage(`{"model":"llama-8b","messages":[{"role":"user","content":[{"type":"text","text":"what is it"},{"type":"image_url","image_url":{"url":"data:image/png;base64,aGk="}}]}]}`)
	const british, american, swedish = "81.2.69.160", "216.160.83.56", "89.160.20.112"
	for name, c := range map[string]struct {
		q     admin.RouteQuestion
		rule  string
		first []string // pools of which one comes first
		all   int      // pools
		only  string   // region of all of them
	}{
		"light":                     {admin.RouteQuestion{IP: american, Body: ask("llama-8b", "")}, "light", []string{"us/cpu", "us/gpu", "eu/cpu", "eu/gpu"}, 4, ""},
		"images":                    {admin.RouteQuestion{IP: american, Body: image}, "heavy", []string{"us/gpu", "eu/gpu"}, 4, ""},
		"a long prompt":             {admin.RouteQuestion{IP: american, Body: long}, "heavy", []string{"us/gpu", "eu/gpu"}, 4, ""},
		"a long answer":             {admin.RouteQuestion{IP: american, Body: ask("llama-8b", `,"max_tokens":2001`)}, "heavy", []string{"us/gpu", "eu/gpu"}, 4, ""},
		"not so long an answer":     {admin.RouteQuestion{IP: american, Body: ask("llama-8b", `,"max_tokens":2000`)}, "light", []string{"us/cpu", "us/gpu", "eu/cpu", "eu/gpu"}, 4, ""},
		"a large model":             {admin.RouteQuestion{IP: american, Body: ask("llama-70b", "")}, "heavy", []string{"us/gpu", "eu/gpu"}, 2, ""},
		"a Briton":                  {admin.RouteQuestion{IP: british, Body: ask("llama-8b", "")}, "data-stays-in-europe,light", []string{"eu/cpu", "eu/gpu"}, 2, "eu"},
		"a Swede with images":       {admin.RouteQuestion{IP: swedish, Body: image}, "data-stays-in-europe,heavy", []string{"eu/gpu"}, 2, "eu"},
		"a European elsewhere":      {admin.RouteQuestion{IP: american, Headers: map[string]string{"x-data-residency": "eu"}, Body: ask("llama-70b", "")}, "data-stays-in-europe,heavy", []string{"eu/gpu"}, 1, "eu"},
		"a guest who is not many":   {admin.RouteQuestion{IP: american, Tenant: "anonymous", Body: ask("llama-8b", "")}, "light", []string{"us/cpu", "us/gpu", "eu/cpu", "eu/gpu"}, 4, ""},
		"from a place without name": {admin.RouteQuestion{IP: "10.0.0.1", Body: ask("llama-8b", "")}, "light", []string{"us/cpu", "us/gpu", "eu/cpu", "eu/gpu"}, 4, ""},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(map[string]int)
			for range 60 {
				got, err := a.Explain(t.Context(), c.q)
				if err != nil {
					t.Fatal(err)
				}
				pools := poolsOf(got)
				if got.Rule != c.rule || len(pools) != c.all || !slices.Contains(c.first, pools[0]) {
					t.Fatalf("got rule %s to %v, want %s to one of %v of %d", got.Rule, pools, c.rule, c.first, c.all)
				}
				for _, p := range pools {
					if !strings.HasPrefix(p, c.only) {
						t.Errorf("%s stands behind", p)
					}
				}
				if heavy := strings.Contains(c.rule, "heavy"); heavy != slices.Equal(got.Headers, []string{"X-Tier"}) {
					t.Errorf("header fields %v are changed", got.Headers)
				}
				seen[strings.SplitN(pools[0], "/", 2)[1]]++
			}
			if c.rule == "light" && (seen["cpu"] < 30 || seen["gpu"] == 0) { // 3 to 1: 45 of 60
				t.Errorf("light requests are spread as %v", seen)
			}
		})
	}
	place, err := a.Explain(t.Context(), admin.RouteQuestion{IP: british, Body: ask("llama-8b", "")})
	if err != nil || !strings.Contains(place.Place, "GB") {
		t.Errorf("got %+v, %v", place, err)
	}
	for name, q := range map[string]admin.RouteQuestion{
		"no model": {Body: json.RawMessage(`{"messages":[]}`)}, "no such model": {Body: ask("none", "")}, "no address": {IP: "nowhere", Body: ask("llama-8b", "")},
		"no class": {Class: "idle", Body: ask("llama-8b", "")}, "no surface": {Surface: "none", Body: ask("llama-8b", "")}, "no body": {},
	} {
		if got, err := a.Explain(t.Context(), q); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// TestGuestsInARush are those of the example who have sent more than 600 requests in
// the last hour: a smaller model and a lower class, and the log says both.
func TestGuestsInARush(t *testing.T) {
	inst := named(t, "one")
	pools := strings.Replace(pool("gpu", inst), "[m]", "[m, small]", 1)
	r := newRig(t, text(pools, memoryOnly, `route: {rules: [{name: rush, when: 'tenant == "anonymous" and past.requests > 20', then: {model: small, class: batch}}]}`))
	for i := range 21 {
		if got := r.status("X-Request-Id: early-" + fmt.Sprint(i)); got != 200 {
			t.Errorf("got %d", got)
		}
	}
	testkit.Eventually(t, "the rush is noticed", func() bool {
		got := r.status("X-Request-Id: late")
		return got == 200 && strings.Contains(r.out.String(), `"model":"small","asked_model":"m"`)
	})
	for line := range strings.Lines(r.out.String()) {
		if strings.Contains(line, "asked_model") && (!strings.Contains(line, `"class":"batch"`) || !strings.Contains(line, `"rule":"rush"`)) {
			t.Errorf("got %s", line)
		}
		if strings.Contains(line, `"request_id":"early-0"`) && strings.Contains(line, "rush") {
			t.Errorf("the first request: %s", line)
		}
	}
}

// TestPlacesThroughHTTP: the address is the client's behind the proxy, a strict region
// that is down refuses, and one that is only preferred spills.
func TestPlacesThroughHTTP(t *testing.T) {
	us, eu := named(t, "us"), named(t, "eu")
	here, err := filepath.Abs(places)
	if err != nil {
		t.Fatal(err)
	}
	config := func(strict bool, european *testkit.Instance) string {
		return fronted(text(pool("gpu", us)+"    - name: europe\n      pools:\n"+pool("gpu", european), memoryOnly,
			fmt.Sprintf(`route: {geo: {city_file: %q, default_region: eu}, rules: [{name: europe, when: 'geo.continent == "EU"', then: {region: europe, strict: %t}}]}`, here+"/GeoLite2-City-Test.mmdb", strict)), behind)
	}
	r := newRig(t, config(true, eu))
	answers := func(ip, want string) {
		t.Helper()
		for i := range 5 {
			status, body := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, "hi", fmt.Sprint(ip, want, i), 1), "X-Forwarded-For: "+ip)
			if status != 200 || !strings.Contains(body, `"content":"`+want+`"`) {
				t.Errorf("%s: got %d %s, want %s", ip, status, body, want)
			}
		}
	}
	answers("10.9.9.9", "us") // no place: the default region, which is called eu here
	answers("10.1.1.1, 127.0.0.1", "us")
	answers("192.168.1.1", "us")
	if got := r.status("X-Forwarded-For: 81.2.69.160"); got != 200 {
		t.Errorf("got %d", got)
	}
	testkit.Eventually(t, "Europe has its client", func() bool { return eu.Requests() == 1 })
	eu.Close()
	if status, body := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, "hi", "down", 1), "X-Forwarded-For: 89.160.20.112", "X-Spillway-Deadline-Ms: 2000"); status < 500 {
		t.Errorf("a strict region that is down: got %d %s", status, body)
	}
	r.reload(config(false, eu))
	if status, body := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, "hi", "spill", 1), "X-Forwarded-For: 175.16.199.1"); status != 200 || !strings.Contains(body, `"content":"us"`) {
		t.Errorf("elsewhere: got %d %s", status, body)
	}
	if status, body := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, "hi", "spilled", 1), "X-Forwarded-For: 81.2.69.142"); status != 200 || !strings.Contains(body, `"content":"us"`) {
		t.Errorf("a region that is preferred and down: got %d %s", status, body)
	}
}

// TestExplainOfARunningGateway agrees with what requests do, and is asked by HTTP.
func TestExplainOfARunningGateway(t *testing.T) {
	cheap, dear := named(t, "cheap"), named(t, "dear")
	r := newRig(t, text(pool("gpu", dear)+pool("cpu", cheap), memoryOnly, "route: {rules: [{name: much, when: 'max_tokens > 100', then: {pools: {gpu: 1}}}, {name: rest, then: {pools: {cpu: 1}, strict: true}}]}"))
	for more, want := range map[string]string{`,"max_tokens":101`: "dear", `,"max_tokens":100`: "cheap", "": "cheap"} {
		body := strings.Replace(chat, "]}", "]"+more+"}", 1)
		status, answer := r.do("POST", r.admin+"/admin/route/explain", `{"body":`+body+`}`)
		var got admin.RouteAnswer
		if err := json.Unmarshal([]byte(answer), &got); err != nil || status != 200 {
			t.Fatalf("got %d %s", status, answer)
		}
		pool := map[string]string{"dear": "eu/gpu", "cheap": "eu/cpu"}[want]
		if pools := poolsOf(&got); pools[0] != pool {
			t.Errorf("%s is explained as %v", more, pools)
		}
		chosen := 0
		for _, s := range got.Steps {
			if s.Chosen && strings.Count(s.Node, "/") == 2 {
				chosen++
			}
		}
		if chosen != 1 {
			t.Errorf("%d instances are chosen", chosen)
		}
		if status, answer := r.do("POST", r.api+"/v1/chat/completions", body); status != 200 || !strings.Contains(answer, want) {
			t.Errorf("%s: got %d %s", more, status, answer)
		}
	}
	if _, metrics := r.do("GET", r.admin+"/metrics", ""); !strings.Contains(metrics, `spillway_route_rule_decisions_total{rule="much"} 1`) || !strings.Contains(metrics, `spillway_route_rule_decisions_total{rule="rest"} 2`) {
		t.Error("requests that are only explained are counted among those that rules decide")
	}
	if n := cheap.Requests() + dear.Requests(); n != 3 {
		t.Errorf("%d requests were sent", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := r.app.Explain(ctx, admin.RouteQuestion{Body: json.RawMessage(chat)}); err != nil {
		t.Error(err)
	}
}

// TestRulesAreRefusedAsAWhole when one of them cannot be.
func TestRulesAreRefusedAsAWhole(t *testing.T) {
	good := "route: {rules: [{name: all, then: {headers: {X-A: b}}}]}"
	r := newRig(t, text(pool("gpu", named(t, "one")), memoryOnly, good))
	for name, c := range map[string]struct{ rules, want string }{
		"a name":         {`{name: a, when: 'modell == "m"', then: {class: batch}}`, "modell"},
		"a type":         {`{name: a, when: 'prompt_tokens == "many"', then: {class: batch}}`, "rules[0].when"},
		"never true":     {`{name: a, when: 'class == "premium"', then: {class: batch}}`, "rules[0].when"},
		"shadowed":       {`{name: a, then: {class: batch}}, {name: b, when: stream, then: {class: normal}}`, "never decides"},
		"no pool":        {`{name: a, when: stream, then: {pools: {none: 1}}}`, "unknown pool"},
		"no region":      {`{name: a, when: stream, then: {region: mars}}`, "unknown region"},
		"no model":       {`{name: a, when: stream, then: {model: none}}`, "no pool serves"},
		"a credential":   {`{name: a, when: stream, then: {headers: {authorization: x}}}`, "cannot be changed"},
		"nothing to do":  {`{name: a, when: stream}`, "does nothing"},
		"the class vip":  {`{name: a, when: stream, then: {class: vip}}`, "class"},
		"one good, bad":  {`{name: a, when: stream, then: {class: batch}}, {name: a, when: 'hour > 3', then: {class: batch}}`, "already"},
		"a bad file too": {"{name: a, when: stream, then: {class: batch}}", "keys"},
	} {
		write(t, r.path, text(pool("gpu", named(t, "one")), memoryOnly, "route: {rules: ["+c.rules+"]}", map[bool]string{true: "identity: {keys_file: /none}"}[name == "a bad file too"]))
		status, body := r.do("POST", r.admin+"/admin/reload", "")
		if status != 422 || !strings.Contains(body, c.want) {
			t.Errorf("%s: got %d %s, want %q", name, status, body, c.want)
		}
		if _, answer := r.do("POST", r.admin+"/admin/route/explain", `{"body":`+chat+`}`); !strings.Contains(answer, `"rule": "all"`) {
			t.Errorf("%s: then %s", name, answer)
		}
		if got := r.status(); got != 200 {
			t.Errorf("%s: got %d", name, got)
		}
	}
}
