package app_test

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
)

// memoryOnly is a cache of one level, without what works ahead.
const memoryOnly = "cache: {sql: {enabled: false}}\npreload: {enabled: false}"

func TestSurfacesShareEntriesBetweenStreamsAndAnswersInOnePiece(t *testing.T) {
	o := newOracle(t, nil)
	r := newRig(t, text(o.all(), memoryOnly))
	for name, s := range surfaces {
		for _, first := range []string{streamed, withUsage, ""} {
			if first != "" && s.events == nil || first == withUsage && usageAt(name, []string{"", ""}) < 0 {
				continue
			}
			t.Run(name+first, func(t *testing.T) {
				q := "who is " + name + " " + strconv.Itoa(len(first))
				for i, more := range []string{first, first, "", streamed, withUsage, `,"user":"somebody"`} {
					if strings.Contains(more, "stream") && s.events == nil || more == withUsage && usageAt(name, []string{"", ""}) < 0 ||
						strings.Contains(more, "user") && (name == "messages" || name == "responses") {
						continue
					}
					got, err := r.send(s.path, s.body(q, more))
					if err != nil {
						t.Fatal(err)
					}
					if wrong := judge(name, q, more, got); wrong != "" {
						t.Errorf("%q behind %q: %s", more, first, wrong)
					}
					want := "hit"
					if i == 0 {
						want = "miss"
					}
					if got.cache() != want || i > 0 && (got.level() != "memory" || got.header.Get("Age") != "0") {
						t.Errorf("%q behind %q: got %v, want %s", more, first, got.header, want)
					}
					kind := "application/json"
					if strings.Contains(more, "stream") {
						kind = "text/event-stream"
					}
					if got := got.header.Get("Content-Type"); !strings.HasPrefix(got, kind) {
						t.Errorf("%q behind %q: Content-Type %q, want %s", more, first, got, kind)
					}
				}
				if n := o.generations(q); n != 1 {
					t.Errorf("%d generations", n)
				}
			})
		}
	}
}

func TestWhatClientsSayAboutKeptAnswers(t *testing.T) {
	o := newOracle(t, nil)
	r := newRig(t, text(pool("gpu", o.Instance), memoryOnly))
	for _, step := range []struct {
		q, control, want string
		n                int
	}{
		{"a", "no-store", "", 1},
		{"a", "", "miss", 2}, // it was not kept
		{"a", "no-store", "", 3},
		{"a", "", "hit", 2},
		{"a", "no-cache", "miss", 4},
		{"a", "", "hit", 4}, // that one was kept
		{"a", "max-age=60", "hit", 4},
		{"a", "max-age=0", "miss", 5},
		{"a", "only-if-cached", "hit", 5},
		{"a", "max-age=60, only-if-cached", "hit", 5},
		{"a", "nonsense", "hit", 5},
	} {
		got := r.wants(step.q, "", "Cache-Control: "+step.control)
		if got.cache() != step.want || got.n != step.n {
			t.Errorf("%s: got %q and generation %d, want %q and %d", step.control, got.cache(), got.n, step.want, step.n)
		}
	}
	for name, body := range map[string]string{
		"not kept yet":   surfaces["chat"].body("never asked", ""),
		"never kept":     strings.Replace(surfaces["chat"].body("never asked", ""), `"temperature":0,`, "", 1),
		"kept, too old":  surfaces["chat"].body("a", ""),
		"also no-store":  surfaces["chat"].body("never asked", ""),
		"also no-cache":  surfaces["chat"].body("a", ""),
		"a stream, too":  surfaces["chat"].body("never asked", streamed),
		"embeddings too": surfaces["embeddings"].body("never asked", ""),
	} {
		t.Run("only-if-cached: "+name, func(t *testing.T) {
			control, path := "Cache-Control: only-if-cached", surfaces["chat"].path
			switch name {
			case "kept, too old":
				control += ", max-age=0"
			case "also no-store":
				control += ", no-store"
			case "also no-cache":
				control += ", no-cache"
			case "embeddings too":
				path = surfaces["embeddings"].path
			}
			before := o.Requests()
			got, err := r.send(path, body, control)
			if err != nil || got.status != 504 || !strings.Contains(got.text, "not_cached") || o.Requests() != before {
				t.Errorf("got %d %s and %d generations, want 504 not_cached and none", got.status, got.text, o.Requests()-before)
			}
		})
	}
}

// all is a pool of the oracle's that serves every surface.
func (o *oracle) all() string {
	return strings.Replace(pool("gpu", o.Instance), "models: [m]", "models: [m]\n          surfaces: [chat, completions, embeddings, messages, responses]", 1)
}

// keysFile writes keys of tenants.
func keysFile(t *testing.T, lines ...string) string {
	path := filepath.Join(t.TempDir(), "keys")
	write(t, path, strings.Join(lines, ""))
	return path
}

func TestTenantsShareNothingUnlessARuleSaysSo(t *testing.T) {
	o := newOracle(t, nil)
	keys := keysFile(t, keysLine("key-of-acme", "acme"), keysLine("another-of-acme", "acme"), keysLine("key-of-umbra", "umbra"))
	config := func(rules string) string {
		return text(pool("gpu", o.Instance), "identity: {keys_file: "+keys+"}", "preload: {enabled: false}",
			"cache: {sql: {enabled: false}, rules: ["+rules+"]}")
	}
	acme, again, umbra := "Authorization: Bearer key-of-acme", "Authorization: Bearer another-of-acme", "Authorization: Bearer key-of-umbra"
	r := newRig(t, config(""))
	for i, step := range []struct {
		key, want string
		n         int
	}{{acme, "miss", 1}, {umbra, "miss", 2}, {again, "hit", 1}, {umbra, "hit", 2}, {acme, "hit", 1}} {
		for _, more := range []string{streamed, ""} {
			if got := r.wants("the same", more, step.key); got.n != step.n || got.cache() != step.want && more == streamed {
				t.Errorf("%d %s: got %s of generation %d, want %s of %d", i, more, got.cache(), got.n, step.want, step.n)
			}
		}
	}
	r.reload(config("{tenants: [acme, umbra], shared: true, keep: deterministic}"))
	for i, step := range []struct{ key, want string }{{acme, "miss"}, {umbra, "hit"}, {again, "hit"}} {
		got := r.wants("the same", streamed, step.key)
		if got.cache() != step.want || got.n != 3 {
			t.Errorf("shared %d: got %s of generation %d, want %s of 3", i, got.cache(), got.n, step.want)
		}
		if all := fmt.Sprint(got.header, got.text); strings.Contains(all, "acme") {
			t.Errorf("the first tenant's name is in the answer: %s", all)
		}
	}
}

func TestClientsWithoutTenantsAreToldApartByCredentials(t *testing.T) {
	o := newOracle(t, nil)
	r := newRig(t, text(pool("gpu", o.Instance), memoryOnly))
	for i, step := range []struct {
		field, want string
		n           int
	}{
		{"Authorization: Bearer one", "miss", 1}, {"Authorization: Bearer two", "miss", 2}, {"X-Api-Key: one", "miss", 3}, {"X-None: x", "miss", 4},
		{"Authorization: Bearer one", "hit", 1}, {"Authorization: Bearer two", "hit", 2}, {"X-Api-Key: one", "hit", 3}, {"X-None: y", "hit", 4},
	} {
		if got := r.wants("the same", "", step.field); got.cache() != step.want || got.n != step.n {
			t.Errorf("%d %s: got %s of generation %d, want %s of %d", i, step.field, got.cache(), got.n, step.want, step.n)
		}
	}
}

func TestRulesHoldForTheNextRequestBehindAReload(t *testing.T) {
	o := newOracle(t, nil)
	config := func(rules, more string) string {
		return text(pool("gpu", o.Instance), "preload: {enabled: false}", "cache: {sql: {enabled: false}, rules: ["+rules+"]"+more+"}")
	}
	r := newRig(t, config("", ""))
	if got := r.wants("q", ""); got.cache() != "miss" {
		t.Fatalf("got %v", got.header)
	}
	r.reload(config("{models: [m], keep: off}", ""))
	if got := r.wants("q", ""); got.cache() != "" || got.n != 2 {
		t.Errorf("with keep: off: got %v, generation %d", got.header, got.n)
	}
	r.reload(config("{surfaces: [messages], keep: off}", ""))
	if got := r.wants("q", ""); got.cache() != "hit" || got.n != 1 {
		t.Errorf("with a rule of another surface: got %v, generation %d", got.header, got.n)
	}
	r.reload(config("", ", enabled: false"))
	if got := r.wants("q", ""); got.cache() != "" || got.n != 3 {
		t.Errorf("without a cache: got %v, generation %d", got.header, got.n)
	}
	warm := strings.Replace(surfaces["chat"].body("warm", streamed), `"temperature":0`, `"temperature":1`, 1)
	for i, want := range []string{"", "miss", "hit"} {
		if i == 1 {
			r.reload(config("{keep: all}", ""))
		}
		if got, err := r.send(surfaces["chat"].path, warm); err != nil || got.cache() != want || judge("chat", "warm", streamed, got) != "" {
			t.Errorf("keep: all, %d: got %v %s, want %q", i, got.header, got.text, want)
		}
	}
	if strings.Contains(r.errs.String(), "take effect with a restart") {
		t.Error("the log asks for a restart that nothing needs")
	}
	r.reload(config("", ", memory: {size: 64MiB}, redis: {questions: 7}"))
	testkit.Eventually(t, "the log names what needs a restart", func() bool {
		log := r.errs.String()
		return strings.Contains(log, "take effect with a restart") && strings.Contains(log, "cache.memory") && strings.Contains(log, "cache.redis") &&
			!strings.Contains(log, "cache.sql")
	})
}

func TestARefusedReloadKeepsTheRules(t *testing.T) {
	o := newOracle(t, nil)
	r := newRig(t, text(pool("gpu", o.Instance), memoryOnly))
	r.wants("q", "")
	for _, bad := range []string{"rules: [{keep: sometimes}]", "ttl: 1ms", "lookup_timeout: 1h", "rules: [{keep: off, shared: true}]"} {
		write(t, r.path, text(pool("gpu", o.Instance), "cache: {sql: {enabled: false}, "+bad+"}"))
		if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 || !strings.Contains(body, "cache.") {
			t.Errorf("%s: got %d %s", bad, status, body)
		}
	}
	if got := r.wants("q", ""); got.cache() != "hit" {
		t.Errorf("got %v", got.header)
	}
}
