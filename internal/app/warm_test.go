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
