package app_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/testkit"
)

func TestAListIsWarmedLineByLine(t *testing.T) {
	open := make(chan struct{})
	o := newOracle(t, func(q string, n int) {
		if q == "slow" {
			<-open
		}
	})
	r := newRig(t, text(o.all(), memoryOnly))
	chat := surfaces["chat"].body
	r.wants("known", "")
	list := strings.Join([]string{
		chat("slow", ""), chat("quick", ""), chat("slow", `,"user":"twin"`), chat("slow", streamed), chat("known", ""), "",
		strings.Replace(chat("warm", ""), `"temperature":0`, `"temperature":1`, 1), "{", `{"model":"none","temperature":0,"messages":[]}`,
		`{"surface":"embeddings","body":{"model":"m","input":"vector"}}`, `{"surface":"poems","body":{}}`,
	}, "\n")
	req, err := http.NewRequest("POST", r.admin+"/admin/cache/warm", strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	res, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := map[int]string{}
	keys := map[int]string{}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		var w admin.WarmResult
		if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
			t.Fatal(err)
		}
		if _, twice := got[w.Line]; twice {
			t.Errorf("two results for line %d", w.Line)
		}
		got[w.Line], keys[w.Line] = w.Outcome, w.Key
		if w.Line == 11 { // the rest has been read
			close(open)
		}
	}
	want := map[int]string{1: "done", 2: "done", 3: "twice", 4: "twice", 5: "fresh", 7: "refused", 8: "refused", 9: "refused", 10: "done", 11: "refused"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if keys[1] == "" || keys[1] != keys[3] || keys[1] != keys[4] || keys[1] == keys[2] {
		t.Errorf("keys %v", keys)
	}
	if n := o.generations("slow"); n != 1 {
		t.Errorf("%d generations", n)
	}
	for _, q := range []string{"slow", "quick"} {
		if got := r.wants(q, ""); got.cache() != "hit" {
			t.Errorf("%s: %+v", q, got)
		}
	}
}

// TestAReloadOfRoutesForgetsWhatWasKeptToWarm: it would go where the old rules sent it.
func TestAReloadOfRoutesForgetsWhatWasKeptToWarm(t *testing.T) {
	one, two := newOracle(t, nil), newOracle(t, nil)
	config := func(pool string) string {
		return text(strings.Replace(one.all(), "name: gpu", "name: one", 1)+strings.Replace(two.all(), "name: gpu", "name: two", 1),
			"cache: {sql: {enabled: false}}", "route: {rules: [{name: residency, then: {pools: {"+pool+": 1}, strict: true}}]}")
	}
	r := newRig(t, config("one"))
	kept := func() float64 { return r.number("spillway_preload_request_bytes") }
	testkit.Eventually(t, "a request is kept", func() bool { r.wants("hot", ""); return kept() > 0 })
	r.reload(config("one") + "# nothing else\n")
	if kept() == 0 {
		t.Error("a reload that leaves the rules as they are forgets what was kept")
	}
	r.reload(config("two"))
	if n := kept(); n != 0 {
		t.Errorf("%v bytes of requests are still there that go where the old rules sent them", n)
	}
}

// warmed are the outcomes of a list, by line, and the first error.
func (r *rig) warmed(list ...string) (outcomes []string, because string) {
	r.t.Helper()
	_, body := r.do("POST", r.admin+"/admin/cache/warm", strings.Join(list, "\n"))
	for line := range strings.Lines(body) {
		var w admin.WarmResult
		if err := json.Unmarshal([]byte(line), &w); err != nil {
			r.t.Fatalf("%v: %s", err, line)
		}
		if outcomes = append(outcomes, w.Outcome); because == "" {
			because = w.Error
		}
	}
	return outcomes, because
}

func TestNothingIsWarmedWithoutACache(t *testing.T) {
	o := newOracle(t, nil)
	r := newRig(t, text(pool("gpu", o.Instance), "cache: {enabled: false}"))
	if got, because := r.warmed(surfaces["chat"].body("q", "")); len(got) != 1 || got[0] != "refused" || !strings.Contains(because, "cache.enabled") {
		t.Errorf("got %v: %s", got, because)
	}
}

// TestAListIsWarmedAsRulesHaveIt: a rule that gives requests a field which is part of
// the key does so for those of a list.
func TestAListIsWarmedAsRulesHaveIt(t *testing.T) {
	o := newOracle(t, nil)
	r := newRig(t, text(pool("gpu", o.Instance), memoryOnly, "route: {rules: [{name: all, then: {headers: {OpenAI-Project: p}}}]}"))
	for _, want := range []string{"done", "fresh"} {
		if got, because := r.warmed(surfaces["chat"].body("q", "")); len(got) != 1 || got[0] != want {
			t.Errorf("got %v %s, want %s", got, because, want)
		}
	}
	if got := r.wants("q", ""); got.cache() != "hit" {
		t.Errorf("got %v", got.header)
	}
}
