package app_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/route/experiment"
	"github.com/spillway/spillway/internal/testkit"
)

// lenient is a pool whose servers may fail without being left alone.
func lenient(name string, backup bool, instances ...*testkit.Instance) string {
	p := strings.Replace(pool(name, instances...), "{active: {type: off}}", "{active: {type: off}, passive: {max_fails: 1000}}", 1)
	if backup {
		p = strings.Replace(p, "models:", "backup: true\n          models:", 1)
	}
	return p
}

// experiment is how an experiment stands.
func (r *rig) experiment(name string) experiment.Status {
	r.t.Helper()
	status, body := r.get(r.admin + "/admin/experiments")
	var list admin.ExperimentList
	if err := json.Unmarshal([]byte(body), &list); err != nil || status != 200 {
		r.t.Fatalf("got %d %s", status, body)
	}
	for _, e := range list.Experiments {
		if e.Name == name {
			return e
		}
	}
	r.t.Fatalf("no experiment %s in %s", name, body)
	return experiment.Status{}
}

// canary is a section with one experiment of two arms, of which canary goes to the
// pool new.
func canary(more string) string {
	return "route: {experiments: [{name: new-servers, arms: [{name: control}, {name: canary, then: {pools: {new: 1}}}]" + more + "}]}"
}

// TestACanaryWithFaultsRollsItselfBack, while retries keep its faults from clients,
// says why, stays so over a restart, and begins again when an operator says so.
func TestACanaryWithFaultsRollsItselfBack(t *testing.T) {
	good := named(t, "good")
	bad := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if x.N%4 == 0 {
			x.JSON(502, `{"error":{"message":"a fault"}}`)
			return true
		}
		x.JSON(200, strings.Replace(testkit.Answer, "hello", "bad", 1))
		return true
	})
	config := text(lenient("gpu", false, good)+lenient("new", true, bad), "cache: {enabled: false}", "gateway: {retry: {budget: 1}}", canary(", guard: {error_rate: 0.02, ttft: 0}"), "store: {directory: "+t.TempDir()+"}")
	r := newRig(t, config)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := r.send("/v1/chat/completions", chat); err != nil || got.status != 200 {
					t.Errorf("a client got %d %s %v", got.status, got.text, err)
					return
				}
			}
		})
	}
	state := `spillway_route_experiment_state{experiment="new-servers",state="rolled_back"}`
	testkit.Eventually(t, "the canary is rolled back", func() bool { return r.number(state) == 1 })
	sent := bad.Requests()
	before := good.Requests()
	testkit.Eventually(t, "traffic goes on", func() bool { return good.Requests() > before+50 })
	close(stop)
	wg.Wait()
	if n := bad.Requests() - sent; n > 8 { // what was under way
		t.Errorf("%d requests went to the canary behind its end", n)
	}
	e := r.experiment("new-servers")
	if e.State.State != experiment.RolledBack || !strings.Contains(e.Reason, `error rate: of arm "canary"`) || e.Share != 0 || e.Arms[1].Faults == 0 {
		t.Errorf("got %+v", e)
	}
	if log := r.errs.String(); strings.Count(log, "an experiment is rolled back") != 1 || !strings.Contains(log, `of arm \"canary\"`) {
		t.Errorf("the log says %s", log)
	}
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if log := r.out.String(); !strings.Contains(log, `"experiment":"new-servers","arm":"canary"`) {
		t.Error("the access log knows of no arm")
	}

	again := newRig(t, config)
	sent = bad.Requests()
	for range 20 {
		if got := again.status(); got != 200 {
			t.Errorf("got %d", got)
		}
	}
	if e := again.experiment("new-servers"); e.State.State != experiment.RolledBack || bad.Requests() != sent || !strings.Contains(e.Reason, "error rate") {
		t.Errorf("after a restart: %+v, and %d requests to the canary", e.State, bad.Requests()-sent)
	}
	again.reload(strings.Replace(config, "name: canary,", "name: canary, weight: 2,", 1))
	if e := again.experiment("new-servers"); e.State.State != experiment.RolledBack {
		t.Errorf("a change of the arms starts it again: %+v", e.State)
	}
	if status, body := again.do("POST", again.admin+"/admin/experiments/new-servers", `{"state":"running","by":"op"}`); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	testkit.Eventually(t, "it begins again", func() bool { again.status(); return bad.Requests() > sent })
	if e := again.experiment("new-servers"); e.State.State != experiment.Running || e.By != "op" {
		t.Errorf("got %+v", e.State)
	}
}

// TestASlowCanaryWithoutStreamsRollsItselfBack: its clients want one piece, and its
// servers are asked for streams all the same.
func TestASlowCanaryWithoutStreamsRollsItselfBack(t *testing.T) {
	answers := func(wait time.Duration, streams bool) *testkit.Instance {
		return testkit.NewInstance(t, func(x *testkit.Exchange) bool {
			x.Gone(wait)
			_ = x.SetReadDeadline(time.Time{}) // there may be another request
			if !streams {
				x.JSON(200, testkit.Answer)
				return true
			}
			x.Stream()
			x.Role()
			x.Delta("hello")
			x.Finish()
			return true
		})
	}
	guarded := canary(", guard: {error_rate: 0, ttft: 1}")
	for name, cache := range map[string]string{"alone": "cache: {enabled: false}", "shared": memoryOnly} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, text(lenient("gpu", false, answers(0, true))+lenient("new", true, answers(40*time.Millisecond, true)), cache, guarded, "store: {directory: "+t.TempDir()+"}"))
			n := 0
			testkit.Eventually(t, "the canary is rolled back", func() bool {
				n++
				body := strings.Replace(chat, `"hi"`, fmt.Sprintf(`"hi %d"`, n), 1)
				if res, got := r.post(strings.Replace(body, `"m"`, `"m","temperature":0`, 1)); res.StatusCode != 200 {
					t.Fatalf("got %d %s", res.StatusCode, got)
				}
				return r.number(`spillway_route_experiment_state{experiment="new-servers",state="rolled_back"}`) == 1
			})
			if e := r.experiment("new-servers"); !strings.HasPrefix(e.Reason, `ttft: typically`) || e.Idle != nil {
				t.Errorf("got %+v", e)
			}
		})
	}
	r := newRig(t, text(lenient("gpu", false, answers(0, false))+lenient("new", true, answers(0, false)), "cache: {enabled: false}", guarded, "store: {directory: "+t.TempDir()+"}"))
	for range 100 {
		if status, got := r.chat(); status != 200 {
			t.Fatalf("got %d %s", status, got)
		}
	}
	if e := r.experiment("new-servers"); len(e.Idle) != 2 || e.State.State != experiment.Running {
		t.Errorf("servers that do not stream: got %+v", e)
	}
}

// TestArms keep their keys and their answers: through hits, retries, twins, and
// answers that are renewed.
func TestArms(t *testing.T) {
	control, treated := newOracle(t, nil), newOracle(t, nil)
	section := "cache: {sql: {enabled: false}, ttl: 1s, max_ttl: 1s, jitter: 0, stale: {while_revalidate: 1h}}\npreload: {enabled: false}"
	r := newRig(t, text(lenient("gpu", false, control.Instance)+lenient("new", true, treated.Instance), section, canary(", by: session, header: X-Session, guard: {error_rate: 0}"), "gateway: {retry: {budget: 1}}"))
	arm := func(session, question string) (string, reply) {
		before := treated.generations(question)
		got := r.wants(question, "", "X-Session: "+session)
		if treated.generations(question) > before {
			return "canary", got
		}
		return "control", got
	}
	sessions := map[string]string{} // one of each arm
	for i := range 64 {
		a, _ := arm(fmt.Sprint("session-", i), fmt.Sprint("who ", i))
		sessions[a] = fmt.Sprint("session-", i)
	}
	if len(sessions) != 2 {
		t.Fatalf("64 sessions are in %v", sessions)
	}
	for i := range 5 { // the same arm for every question
		for want, session := range sessions {
			if got, _ := arm(session, fmt.Sprint(want, i)); got != want {
				t.Errorf("session %s of %s was in %s", session, want, got)
			}
		}
	}
	for i, c := range []struct{ arm, cache string }{{"control", "miss"}, {"canary", "miss"}, {"control", "hit"}, {"canary", "hit"}} {
		if got := r.wants("shared", "", "X-Session: "+sessions[c.arm]); got.cache() != c.cache {
			t.Errorf("%d: %s got a %s, want a %s", i, c.arm, got.cache(), c.cache)
		}
	}
	if control.generations("shared") != 1 || treated.generations("shared") != 1 {
		t.Errorf("%d and %d generations, want one in each arm", control.generations("shared"), treated.generations("shared"))
	}
	if got := r.wants("shared", ""); got.cache() != "miss" || control.generations("shared") != 2 {
		t.Errorf("a request of no arm got a %s", got.cache())
	}

	// What is old is renewed in its own arm.
	due := time.Now().Add(1100 * time.Millisecond)
	testkit.Eventually(t, "the answers are old", func() bool { return time.Now().After(due) })
	if got := r.wants("shared", "", "X-Session: "+sessions["canary"]); got.cache() != "stale" {
		t.Errorf("got %s", got.cache())
	}
	testkit.Eventually(t, "the canary's answer is renewed by the canary", func() bool {
		got := r.wants("shared", "", "X-Session: "+sessions["canary"])
		return got.cache() == "hit" && got.n == 2 && treated.generations("shared") >= 2
	})

	// A retry leaves the canary's servers, and the request its arm.
	treated.Close()
	id := "retried"
	if got := r.wants("retried", "", "X-Session: "+sessions["canary"], "X-Request-Id: "+id); got.status != 200 || control.generations("retried") != 1 {
		t.Errorf("got %d by %d generations of control", got.status, control.generations("retried"))
	}
	testkit.Eventually(t, "its arm is canary's, with a fault", func() bool {
		for line := range strings.Lines(r.out.String()) {
			if strings.Contains(line, `"request_id":"retried"`) && strings.Contains(line, `"arm":"canary"`) && strings.Contains(line, "broken") {
				return true
			}
		}
		return false
	})
	if e := r.experiment("new-servers"); e.Arms[1].Faults != 1 || e.Arms[1].Failures != 0 || e.Arms[1].Cached == 0 {
		t.Errorf("got %+v", e.Arms[1])
	}
}

// TestTwinsOfDifferentArmsShareNoGeneration.
func TestTwinsOfDifferentArmsShareNoGeneration(t *testing.T) {
	enough := make(chan struct{})
	wait := func(string, int) { <-enough }
	control, treated := newOracle(t, wait), newOracle(t, wait)
	r := newRig(t, text(lenient("gpu", false, control.Instance)+lenient("new", true, treated.Instance), memoryOnly, canary(", by: session, header: X-Session, guard: {error_rate: 0}")))
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() { r.wants("together", streamed, fmt.Sprint("X-Session: ", i)) })
	}
	testkit.Eventually(t, "both arms generate", func() bool { return control.generations("together") > 0 && treated.generations("together") > 0 })
	testkit.Eventually(t, "all are there", func() bool {
		return r.number(`spillway_admission_admitted_total{class="normal"}`) == 2
	})
	close(enough)
	wg.Wait()
	if a, b := control.generations("together"), treated.generations("together"); a != 1 || b != 1 {
		t.Errorf("%d and %d generations, want 1 in each arm", a, b)
	}
}

// TestCopiesTouchNoClient, whatever becomes of the servers that get them.
func TestCopiesTouchNoClient(t *testing.T) {
	for name, c := range map[string]struct {
		shadow func(x *testkit.Exchange) bool
		dead   bool
		copies bool // that get there
	}{
		"that answer": {func(x *testkit.Exchange) bool {
			x.JSON(200, strings.Replace(testkit.Answer, "hello", "shadow", 1))
			return true
		}, false, true},
		"that fail":     {func(x *testkit.Exchange) bool { x.JSON(500, `{}`); return true }, false, true},
		"that hang":     {func(x *testkit.Exchange) bool { x.Gone(20 * time.Second); return false }, false, true},
		"that cut":      {func(x *testkit.Exchange) bool { x.Stream(); x.Delta("shadow"); return false }, false, true},
		"that are dead": {func(*testkit.Exchange) bool { return false }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			good, shadow := named(t, "good"), testkit.NewInstance(t, c.shadow)
			if c.dead {
				shadow.Close()
			}
			config := spenders(t, lenient("gpu", false, good)+lenient("next", true, shadow), "{name: all, by: [tenant], requests: {rate: 30/h}, tokens: {rate: 100000/d}, concurrent: 4}",
				"cache: {enabled: false}", "usage: {ledger: {flush: 100ms}}", "store: {directory: \""+t.TempDir()+"\"}",
				"route: {experiments: [{name: shadow, mirror: {to: {pools: {next: 1}}, share: 1}}]}")
			r := newRig(t, config)
			const n = 30
			for i := range n {
				began := time.Now()
				res, body := r.post(chat, bearer("acme-1"), fmt.Sprint("X-Request-Id: client-", i))
				if res.StatusCode != 200 || !strings.Contains(body, "good") {
					t.Errorf("a client got %d %s", res.StatusCode, body)
				}
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("a client waited for %v", took)
				}
			}
			if c.copies {
				testkit.Eventually(t, "copies are sent", func() bool { return shadow.Requests() >= 5 })
			}
			testkit.Eventually(t, "the ledger has the clients' requests", func() bool { got, _, _ := r.spending("acme"); return got >= n })
			if got, prompt, output := r.spending("acme"); got != n || prompt != n*5 || output != n {
				t.Errorf("the ledger has %d requests of %d and %d tokens", got, prompt, output)
			}
			if got := r.status(bearer("acme-1")); got != 429 {
				t.Errorf("request %d of %d: got %d", n+1, n, got)
			}
			if got := r.number(`spillway_gateway_requests_total{code="ok",model="m",pool="eu/gpu",surface="chat"}`); got != n {
				t.Errorf("%v requests are counted, want %d", got, n)
			}
			if _, metrics := r.get(r.admin + "/metrics"); strings.Contains(metrics, `spillway_gateway_requests_total{code="ok",model="m",pool="eu/next"`) {
				t.Error("copies are counted as requests")
			}
			if got := r.number("spillway_limit_held_entries"); got != 0 {
				t.Errorf("%v limits are held by nobody", got)
			}
			if c.dead {
				testkit.Eventually(t, "copies fail", func() bool { return r.experiment("shadow").Arms[0].Failures > 0 })
				if arm := r.experiment("shadow").Arms[0]; arm.Requests != arm.Failures {
					t.Errorf("of %d copies to dead servers %d fail", arm.Requests, arm.Failures)
				}
			}
			// Whoever scores a copied answer scores nothing: the client was in no arm.
			if status, body := r.do("POST", r.api+"/v1/feedback", `{"id":"client-1","score":1}`, bearer("acme-1")); status != 404 {
				t.Errorf("a score of a copy: got %d %s", status, body)
			}
			r.stop()
			if err := r.wait(); err != nil {
				t.Error(err)
			}
			for line := range strings.Lines(r.out.String()) {
				copied := strings.Contains(line, `"shadow":true`)
				if strings.Contains(line, `"instance":"eu/next/`) && !copied || strings.Contains(line, `"instance":"eu/gpu/`) && copied {
					t.Errorf("got %s", line)
				}
			}
		})
	}
}

// TestFeedbackAtOnce is taken, however soon after the last byte that matters it comes.
func TestFeedbackAtOnce(t *testing.T) {
	scored := make(chan struct{}, 1)
	slow := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		if !strings.Contains(string(x.Body), `"user":"streams"`) {
			x.JSON(200, testkit.Answer)
			return true
		}
		x.Stream()
		x.Role()
		x.Delta("hello")
		x.Chunk(testkit.FinishEvent + testkit.DoneEvent)
		<-scored // the answer has said all, but has not ended
		x.End()
		return true
	})
	for name, cache := range map[string]string{"generated": "cache: {enabled: false}", "shared, then cached": "cache: {sql: {enabled: false}}"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, spenders(t, lenient("gpu", false, slow), "{name: a, requests: {rate: 100000/h}}", cache,
				"route: {experiments: [{name: scored, metrics: [success, score], arms: [{name: control}, {name: same}]}]}"))
			scorer := &http.Client{Transport: new(http.Transport)} // whose connection waits for no handler
			t.Cleanup(scorer.CloseIdleConnections)
			for i := range 200 {
				id, body, last := fmt.Sprint("id-", i), chat, "}"
				if i%20 == 0 {
					body, last = strings.Replace(stream, `"m"`, `"m","user":"streams"`, 1), testkit.DoneEvent
				}
				body = strings.Replace(body, `"m"`, `"m","temperature":0`, 1) // may be kept
				req, err := http.NewRequest("POST", r.api+"/v1/chat/completions", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer acme-1")
				req.Header.Set("X-Request-Id", id)
				res, err := r.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got := ""
				for buf := make([]byte, 4096); res.StatusCode == 200 && !strings.HasSuffix(strings.TrimSpace(got), strings.TrimSpace(last)); {
					n, err := res.Body.Read(buf)
					if got += string(buf[:n]); err != nil {
						break
					}
				}
				score, err := http.NewRequest("POST", r.api+"/v1/feedback", strings.NewReader(`{"id":"`+id+`","score":1}`))
				if err != nil {
					t.Fatal(err)
				}
				score.Header.Set("Authorization", "Bearer acme-1")
				scores, err := scorer.Do(score)
				if err != nil {
					t.Fatal(err)
				}
				_ = scores.Body.Close()
				select {
				case scored <- struct{}{}:
				default: // nobody has waited for the last
				}
				_ = res.Body.Close()
				if res.StatusCode != 200 || scores.StatusCode != 204 {
					t.Fatalf("%s: got %d %q, and its score %d", id, res.StatusCode, got, scores.StatusCode)
				}
			}
		})
	}
}

// TestFeedback is taken of the tenant that asked, once.
func TestFeedback(t *testing.T) {
	r := newRig(t, spenders(t, lenient("gpu", false, named(t, "one"))+lenient("new", true, named(t, "two")), "{name: a, requests: {rate: 10000/h}}", "cache: {enabled: false}",
		"route: {experiments: [{name: scored, when: 'max_tokens == 0', metrics: [success, score], arms: [{name: control}, {name: canary, then: {pools: {new: 1}}}]}]}"))
	for _, id := range []string{"one", "two", "three"} {
		if got := r.status(bearer("acme-1"), "X-Request-Id: "+id); got != 200 {
			t.Fatalf("got %d", got)
		}
	}
	if status, _ := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, "]}", `],"max_tokens":5}`, 1), bearer("acme-1"), "X-Request-Id: outside"); status != 200 {
		t.Fatalf("got %d", status)
	}
	if n := r.number("spillway_route_experiment_feedback_answers"); n != 3 {
		t.Errorf("%v answers are remembered, want 3", n)
	}
	for i, c := range []struct {
		body, key string
		want      int
	}{
		{`{"id":"one","score":1}`, "umbra-1", 404}, {`{"id":"one","score":1}`, "wrong", 401}, {`{"id":"one","score":1.5}`, "acme-1", 400}, {`{"id":"one","score":"1"}`, "acme-1", 400},
		{`{"id":"one"}`, "acme-1", 400}, {`{"score":1}`, "acme-1", 400}, {`[]`, "acme-1", 400}, {`{"id":"none","score":1}`, "acme-1", 404}, {`{"id":"outside","score":1}`, "acme-1", 404},
		{`{"id":"` + strings.Repeat("x", 200) + `","score":1}`, "acme-1", 400}, {`{"id":"one","score":1e999}`, "acme-1", 400},
		{`{"id":"one","score":1}`, "acme-2", 204}, // another key of the tenant
		{`{"id":"one","score":-1}`, "acme-1", 400}, {`{"id":"two","score":-1}`, "acme-1", 204}, {`{"id":"three","score":0}`, "acme-1", 204},
	} {
		for _, path := range []string{"/v1/feedback", "/feedback"} {
			if path == "/feedback" && c.want == 204 {
				continue
			}
			if status, body := r.do("POST", r.api+path, c.body, bearer(c.key)); status != c.want || status == 204 && body != "" {
				t.Errorf("%d %s %s of %s: got %d %s, want %d", i, path, c.body, c.key, status, body, c.want)
			}
		}
	}
	if status, _ := r.do("GET", r.api+"/v1/feedback", "", bearer("acme-1")); status != 405 {
		t.Errorf("GET: got %d", status)
	}
	n, sum := 0.0, 0.0
	for _, arm := range r.experiment("scored").Arms {
		for _, m := range arm.Metrics {
			if m.Metric == "score" {
				n, sum = n+float64(m.N), sum+m.Mean*float64(m.N)
			}
		}
	}
	if n != 3 || math.Abs(sum) > 1e-9 {
		t.Errorf("%v scores with a sum of %v", n, sum)
	}
}
