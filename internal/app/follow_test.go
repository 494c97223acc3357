package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// TestReloadsOfWhoMayAndWhereUnderLoad change keys, limits, rules and experiments, some
// of them wrongly, and no request fails.
func TestReloadsOfWhoMayAndWhereUnderLoad(t *testing.T) {
	pools := lenient("gpu", false, named(t, "one")) + lenient("new", true, named(t, "two"))
	keys := make([]string, 3)
	for i := range keys {
		keys[i] = keysFile(t, keysLine("stays", "acme"), keysLine(fmt.Sprint("other-", i), "umbra"))
	}
	dir := t.TempDir()
	config := func(i int) string {
		return text(pools, "store: {directory: "+dir+"}", "cache: {enabled: false}", "identity: {keys_file: "+keys[i%3]+"}",
			[]string{"limit: {rules: [{name: a, by: [tenant], requests: {rate: 1000000/s}, concurrent: 1000}]}", "limit: {rules: [{name: b, requests: {rate: 1000000/s}}, {name: a, by: [tenant, model], requests: {rate: 2000000/s}, tokens: {rate: 1000000000/s}}]}", ""}[i%3],
			"route: {rules: ["+[]string{"", "{name: all, then: {headers: {X-A: b}}}", "{name: some, when: 'hour >= 0', then: {pools: {gpu: 1, new: 1}}}"}[i%3]+"], experiments: ["+
				[]string{"", "{name: e, arms: [{name: control}, {name: canary, then: {pools: {new: 1}}}]}", "{name: s, mirror: {to: {pools: {new: 1}}, share: 0.5}}, {name: e, by: tenant, arms: [{name: control}, {name: other, then: {class: batch}}]}"}[i/2%3]+"]}")
	}
	r := newRig(t, config(0))
	var sent, bad atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := r.send("/v1/chat/completions", chat, bearer("stays")); (err != nil || got.status != 200) && bad.Add(1) == 1 {
					t.Errorf("got %d %s %v", got.status, got.text, err)
				}
				sent.Add(1)
			}
		})
	}
	for i := range 18 {
		n := sent.Load()
		wrong := []string{"", strings.Replace(config(i), "route: {rules: [", "route: {rules: [{name: x, when: modell, then: {class: batch}}, ", 1), config(i) + "\nusage: {access_log: /none/here/log}\n"}[i%3]
		if wrong != "" {
			write(t, r.path, wrong)
			if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 {
				t.Errorf("%d: a wrong one got %d %s", i, status, body)
			}
		}
		r.reload(config(i))
		testkit.Eventually(t, "requests run with it", func() bool { return sent.Load() > n+20 })
		if got := r.status(bearer(fmt.Sprint("other-", i%3))); got != 200 {
			t.Errorf("%d: the key of its file: got %d", i, got)
		}
		if got := r.status(bearer(fmt.Sprint("other-", (i+1)%3))); got != 401 {
			t.Errorf("%d: the key of another file: got %d", i, got)
		}
	}
	close(stop)
	wg.Wait()
	if bad.Load() > 0 {
		t.Errorf("%d of %d requests were lost", bad.Load(), sent.Load())
	}
	if log := r.errs.String(); strings.Contains(log, "could not be restored") || strings.Contains(log, "panic") {
		t.Errorf("the log says %s", log)
	}
}

// TestARefusedReloadTakesBackWhoMayAndWhere, at whatever point it is refused.
func TestARefusedReloadTakesBackWhoMayAndWhere(t *testing.T) {
	pools := lenient("gpu", false, named(t, "one")) + lenient("new", true, named(t, "two"))
	first, second := keysFile(t, keysLine("first", "acme")), keysFile(t, keysLine("second", "umbra"))
	dir := t.TempDir()
	config := func(keys, rule, limit, weight string, more ...string) string {
		return text(pools, append([]string{"store: {directory: " + dir + "}", "cache: {enabled: false}", "identity: {keys_file: " + keys + "}", "limit: {rules: [{name: a, by: [tenant], requests: {rate: " + limit + "}}]}",
			"route: {rules: [{name: " + rule + ", when: stream == false, then: {headers: {X-A: b}}}], experiments: [{name: e, arms: [{name: control}, {name: canary, weight: " + weight + ", then: {pools: {new: 1}}}]}]}"}, more...)...)
	}
	r := newRig(t, config(first, "old", "10/h", "1"))
	for range 4 {
		if got := r.status(bearer("first")); got != 200 {
			t.Fatalf("got %d", got)
		}
	}
	before := r.experiment("e")
	for name, wrong := range map[string]string{
		"a bad keys file":            config(keysFile(t, "garbage\n"), "next", "1/h", "2"),
		"no keys file":               config("/none", "next", "1/h", "2"),
		"a bad rule":                 strings.Replace(config(second, "next", "1/h", "2"), "stream == false", "stream == 7", 1),
		"a bad limit":                config(second, "next", "1/x", "2"),
		"a bad experiment":           config(second, "next", "1/h", "-2"),
		"no place for the log":       config(second, "next", "1/h", "2", "usage: {access_log: /none/here/log}"),
		"no database":                strings.Replace(config(second, "next", "1/h", "2"), "identity: {", "identity: {sql: true, ", 1),
		"a certificate that is none": strings.Replace(config(second, "next", "1/h", "2"), "admin: {", "admin: {tls: {cert_file: "+first+", key_file: "+first+"}, ", 1),
		"no authority":               strings.Replace(config(second, "next", "1/h", "2"), "health:", "upstream: {tls_ca_file: "+first+"}\n          health:", 1),
	} {
		write(t, r.path, wrong)
		if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 {
			t.Errorf("%s: got %d %s", name, status, body)
		}
		if got := r.status(bearer("second")); got != 401 {
			t.Errorf("%s: the key of the refused file got %d", name, got)
		}
		if _, body := r.do("POST", r.admin+"/admin/route/explain", `{"body":`+chat+`}`); !strings.Contains(body, `"rule": "old"`) {
			t.Errorf("%s: the rules are others: %s", name, body)
		}
		if e := r.experiment("e"); !e.Started.Equal(before.Started) || e.Arms[1].Share != 0.5 || e.Arms[0].Requests+e.Arms[1].Requests < 4 {
			t.Errorf("%s: the experiment is another: %+v", name, e)
		}
	}
	ok := 0
	for range 12 {
		if r.status(bearer("first")) == 200 {
			ok++
		}
	}
	if ok != 6 {
		t.Errorf("%d of the 6 requests that were left were admitted", ok)
	}
	if log := r.errs.String(); strings.Contains(log, "could not be restored") {
		t.Errorf("the log says %s", log)
	}
}

// TestAKeyIsRevokedWhileTheConfigurationIsWrong: the file of keys is followed in any
// case.
func TestAKeyIsRevokedWhileTheConfigurationIsWrong(t *testing.T) {
	keys := keysFile(t, keysLine("stays", "acme"), strings.TrimSpace(keysLine("stolen", "acme"))+" id=stolen\n")
	good := text(pool("gpu", named(t, "one")), memoryOnly, "identity: {keys_file: "+keys+"}")
	r := newRig(t, good)
	for name, wrong := range map[string]string{"not YAML": "a: [", "a mistake": good + "\nusage: {access_log: /none/here/log}\n"} {
		write(t, r.path, wrong)
		testkit.Eventually(t, name+": the configuration is refused", func() bool { return r.state().LastError != "" })
	}
	if got := r.status(bearer("stolen")); got != 200 {
		t.Fatalf("got %d", got)
	}
	if out := command(t, "key", "revoke", "--keys-file", keys, "stolen"); !strings.Contains(out, "status 0") {
		t.Fatal(out)
	}
	testkit.Eventually(t, "the key is revoked", func() bool { return r.status(bearer("stolen")) == 401 })
	if got := r.status(bearer("stays")); got != http.StatusOK {
		t.Errorf("the other key: got %d", got)
	}
	if s := r.state(); s.LastError == "" || s.Version != 1 {
		t.Errorf("the configuration is %+v", s)
	}
	write(t, keys, "garbage\n")
	testkit.Eventually(t, "the file of keys is refused", func() bool { return strings.Contains(r.errs.String(), "the keys stay as they were") })
	if got := r.status(bearer("stays")); got != http.StatusOK {
		t.Errorf("beside a broken file of keys: got %d", got)
	}
}

// TestASharedStoreTakesARestart, and a reload that names one is not refused for it.
func TestASharedStoreTakesARestart(t *testing.T) {
	s := redistest.Start(t)
	pools := pool("gpu", named(t, "one"))
	local := text(pools, "cache: {enabled: false}", "limit: {rules: [{name: a, requests: {rate: 3/h}}]}")
	shared := text(pools, "cache: {enabled: false}", "limit: {store: {kind: redis}, rules: [{name: a, requests: {rate: 4/h}}]}", redisAt(s.Addr()))
	r := newRig(t, local)
	for i, config := range []string{shared, shared + "# again\n", local, shared} {
		r.reload(config)
		if got := strings.Count(r.errs.String(), "limit.store"); got != []int{1, 1, 2, 3}[i] {
			t.Errorf("%d: %d warnings of limit.store", i, got)
		}
	}
	ok := 0
	for range 8 {
		if r.status() == 200 {
			ok++
		}
	}
	if ok != 4 {
		t.Errorf("%d of 4 were admitted", ok)
	}
}
