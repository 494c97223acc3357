package app_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// patient is a gateway's configuration whose look-ups are never late, with levels.
func patient(o *oracle, levels string, sections ...string) string {
	return text(pool("gpu", o.Instance), append([]string{"cache: {lookup_timeout: 1s, " + levels + "}", "preload: {enabled: false}", roomy}, sections...)...)
}

// reaches waits until a gateway's look-ups and fills reach slower levels: until it is
// connected they come to nothing, and the level rests for a while.
func (r *rig) reaches(levels ...string) {
	r.t.Helper()
	for i, level := range levels {
		tries := 0
		testkit.Eventually(r.t, "level "+level+" is connected", func() bool {
			tries++
			r.wants(fmt.Sprint("try ", i, " ", tries, r.api), "")
			return r.number(fmt.Sprintf(`spillway_cache_lookups_total{level=%q,result="miss"}`, level)) > 0 &&
				r.number(fmt.Sprintf(`spillway_cache_level_resting{level=%q}`, level)) == 0
		})
	}
}

func TestAnswersOutliveARestart(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	for level, config := range map[string]func(o *oracle, dir string) string{
		"redis": func(o *oracle, _ string) string { return patient(o, "sql: {enabled: false}", redisAt(s.Addr())) },
		"sql": func(o *oracle, dir string) string {
			return patient(o, "redis: {enabled: true}", "store: {directory: "+dir+"}")
		},
		"both": func(o *oracle, dir string) string {
			return patient(o, "redis: {enabled: true}", "store: {directory: "+dir+", redis: {addresses: [\""+s.Addr()+"\"], prefix: both}}")
		},
	} {
		t.Run(level, func(t *testing.T) {
			o, dir := newOracle(t, nil), filepath.Join(t.TempDir(), "state")
			first := newRig(t, config(o, dir))
			want := level
			if level == "both" {
				want = "redis" // the first of them
			}
			first.reaches(want)
			for i := range 60 {
				first.wants(fmt.Sprint("question ", i), [...]string{streamed, ""}[i%2])
			}
			first.stop() // what waits to be written is written
			if err := first.wait(); err != nil {
				t.Fatal(err)
			}
			second := newRig(t, config(o, dir))
			second.reaches(want)
			found := make(map[string]int) // by level
			for i := range 60 {
				got := second.wants(fmt.Sprint("question ", i), streamed)
				if got.cache() != "hit" || got.n != 1 {
					t.Errorf("question %d: got %v of generation %d, want a hit", i, got.header, got.n)
				}
				found[got.level()]++
			}
			least := 60
			if level == "both" {
				least = 30 // SQL answers where Redis is late, as on a machine that has much to do
			}
			if found[want] < least || found[want]+found["sql"] < 60 {
				t.Errorf("got hits of %v, want them of level %s", found, want)
			}
		})
	}
}

func TestAPurgeEmptiesTheSharedLevels(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	o := newOracle(t, nil)
	store := "store: {redis: {addresses: [\"" + s.Addr() + "\"]}, sql: {databases: [{dsn: \"sqlite:" + filepath.Join(t.TempDir(), "cache.db") + "\"}]}}"
	one, two := newRig(t, patient(o, "redis: {enabled: true}", store)), newRig(t, patient(o, "redis: {enabled: true}", store))
	one.reaches("redis", "sql")
	two.reaches("redis", "sql")
	redis, sql := `spillway_cache_fills_total{level="redis",result="written"}`, `spillway_cache_fills_total{level="sql",result="written"}`
	inRedis, inSQL := one.number(redis), one.number(sql)
	for i := range 10 {
		one.wants(fmt.Sprint("question ", i), "")
	}
	testkit.Eventually(t, "both levels have the answers", func() bool { return one.number(redis) >= inRedis+10 && one.number(sql) >= inSQL+10 })
	inRedis, inSQL = two.number(redis), two.number(sql)
	testkit.Eventually(t, "the other gateway finds one", func() bool { return two.wants("question 9", "").level() == "memory" })
	testkit.Eventually(t, "and has prolonged it", func() bool { return two.number(redis) > inRedis && two.number(sql) > inSQL })
	status, body := one.do("POST", one.admin+"/admin/cache/purge", `{"all":true}`, "Content-Type: application/json")
	var answer struct{ Removed map[string]int }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 || answer.Removed["redis"] < 10 || answer.Removed["sql"] < 10 || answer.Removed["memory"] < 10 {
		t.Errorf("got %d %s, want 10 and more of each level", status, body)
	}
	if keys := s.Do("KEYS", "*"); keys != "" {
		t.Errorf("Redis still has %s", keys)
	}
	for i := range 9 { // the other's memory is its own, and has the tenth
		if got := two.wants(fmt.Sprint("question ", i), ""); got.cache() != "miss" || got.n != 2 {
			t.Errorf("question %d: got %v of generation %d, want a new answer", i, got.header, got.n)
		}
	}
	before := two.wants("question 9", "")
	if before.level() != "memory" {
		t.Errorf("got %v of what is in the other's memory", before.header)
	}
	if status, body := two.do("POST", two.admin+"/admin/cache/purge", `{"model":"m"}`, "Content-Type: application/json"); status != 200 {
		t.Errorf("got %d %s", status, body)
	}
	for _, r := range []*rig{one, two} {
		if got := r.wants("question 9", ""); got.n == before.n {
			t.Errorf("got %v of what was purged in both", got.header)
		}
	}
}

// TestAHerdOfTwinsCostsOneGeneration over HTTP, and its leader leaves in the middle.
func TestAHerdOfTwinsCostsOneGeneration(t *testing.T) {
	t.Parallel()
	const herd = 300
	begun, all := make(chan struct{}), make(chan struct{})
	first := sync.OnceFunc(func() { close(begun) })
	o := newOracle(t, func(string, int) {
		first()
		select {
		case <-all:
		case <-time.After(20 * time.Second):
		}
	})
	r := newRig(t, text(pool("gpu", o.Instance), memoryOnly))
	body := surfaces["chat"].body("everybody's", streamed)
	leader := &http.Client{Transport: &http.Transport{}}
	res, err := leader.Post(r.api+surfaces["chat"].path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil || !strings.Contains(line, "chat.completion.chunk") {
		t.Fatalf("the leader got %q, %v", line, err)
	}
	<-begun
	if got := res.Header.Get("X-Spillway-Cache"); got != "miss" {
		t.Errorf("the leader got %q", got)
	}
	replies := make([]reply, herd)
	forms := []string{streamed, withUsage, ""}
	var wg sync.WaitGroup
	for i := range herd {
		wg.Go(func() { replies[i] = r.wants("everybody's", forms[i%3]) })
	}
	testkit.Eventually(t, "the herd is there", func() bool { return r.number(`spillway_cache_lookups_total{level="memory",result="miss"}`) >= herd+1 })
	res.Body.Close() // the leader leaves, and its connection with it
	leader.CloseIdleConnections()
	testkit.Eventually(t, "the leader has left", func() bool { return strings.Contains(r.out.String(), `"code":"canceled"`) })
	close(all)
	wg.Wait()
	for i, got := range replies {
		if got.cache() != "coalesced" || got.n != 1 {
			t.Errorf("%d: got %v of generation %d", i, got.header, got.n)
		}
	}
	if n := o.Requests(); n != 1 {
		t.Errorf("%d generations", n)
	}
	if got := r.wants("everybody's", ""); got.cache() != "hit" {
		t.Errorf("behind them: got %v", got.header)
	}
}

// TestStaleAnswers where they are better than the alternative, with a second of real
// time in which they get old.
func TestStaleAnswers(t *testing.T) {
	t.Parallel()
	stale := func(what string) string {
		return "cache: {sql: {enabled: false}, ttl: 1s, max_ttl: 1s, jitter: 0, stale: {" + what + "}}\npreload: {enabled: false}"
	}
	const never = "while_revalidate: 0s, if_overloaded: 0s, if_error: 0s"
	gate := make(chan struct{})
	held := newOracle(t, func(q string, _ int) {
		if q == "long" {
			<-gate
		}
	})
	ready, none, broken := newOracle(t, nil), newOracle(t, nil), newOracle(t, nil)
	revalidating := newRig(t, text(pool("gpu", ready.Instance), stale("while_revalidate: 1h")))
	strict := newRig(t, text(pool("gpu", none.Instance), stale(never)))
	failing := newRig(t, text(pool("gpu", broken.Instance), stale("while_revalidate: 0s, if_error: 1h")))
	crowded := newRig(t, text(pool("gpu", held.Instance), stale("while_revalidate: 0s, if_error: 0s, if_overloaded: 1h"), oneSlot(", tickets: {enabled: false}")))
	for _, r := range []*rig{revalidating, strict, failing, crowded} {
		if got := r.wants("old", streamed); got.cache() != "miss" {
			t.Fatalf("got %v", got.header)
		}
	}
	due := time.Now().Add(1100 * time.Millisecond) // the shortest TTL, and the time is the matter
	testkit.Eventually(t, "the answers are old", func() bool { return time.Now().After(due) })

	announced := func(what string, got reply, degraded string) {
		t.Helper()
		if got.cache() != "stale" || got.level() != "memory" || got.n != 1 || got.header.Get("X-Spillway-Degraded") != degraded || got.header.Get("Age") == "0" {
			t.Errorf("%s: got %v of generation %d", what, got.header, got.n)
		}
	}
	announced("while_revalidate", revalidating.wants("old", ""), "")
	testkit.Eventually(t, "a new answer is there", func() bool { got := revalidating.wants("old", streamed); return got.cache() == "hit" && got.n == 2 })
	testkit.Eventually(t, "it came as idle", func() bool { return strings.Contains(revalidating.out.String(), `"class":"idle"`) })

	if got := strict.wants("old", ""); got.cache() != "miss" || got.n != 2 {
		t.Errorf("without stale answers: got %v of generation %d", got.header, got.n)
	}

	broken.broken.Store(true)
	announced("if_error", failing.wants("old", streamed), "stale")
	got, err := failing.send(surfaces["chat"].path, surfaces["chat"].body("never asked", ""))
	if err != nil || got.status < 500 {
		t.Errorf("without an answer: got %d %v %v", got.status, got.text, err)
	}
	broken.broken.Store(false)
	if got := failing.wants("old", ""); got.cache() != "miss" || got.n != 2 {
		t.Errorf("with the servers back: got %v of generation %d", got.header, got.n)
	}

	long := crowded.ask(surfaces["chat"].body("long", ""))
	testkit.Eventually(t, "the slot is taken", func() bool { return held.generations("long") == 1 })
	waits := crowded.ask(surfaces["chat"].body("waits", ""))
	crowded.waiting("normal", 1)
	announced("if_overloaded", crowded.wants("old", "", "X-Spillway-Deadline-Ms: 1000"), "stale")
	got, err = crowded.send(surfaces["chat"].path, surfaces["chat"].body("refused", ""), "X-Spillway-Deadline-Ms: 1000")
	if err != nil || got.status != 503 {
		t.Errorf("without an answer: got %d %v %v", got.status, got.text, err)
	}
	close(gate)
	for _, a := range []answered{<-long, <-waits} {
		if a.StatusCode != 200 {
			t.Errorf("got %d %s", a.StatusCode, a.text)
		}
	}
}

// TestHotQuestionsAreRefreshedBeforeTheyExpire by what nobody waits for, and people
// see them in Redis.
func TestHotQuestionsAreRefreshedBeforeTheyExpire(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	o := newOracle(t, nil)
	r := newRig(t, text(pool("gpu", o.Instance), redisAt(s.Addr()),
		"cache: {sql: {enabled: false}, ttl: 3s, max_ttl: 3s, jitter: 0, stale: {while_revalidate: 0s}}",
		"preload: {window: 1s, lead: 1s, horizon: 3s, min_demand: 0.5}"))
	misses := 0
	testkit.Eventually(t, "the hot question is refreshed twice", func() bool {
		if got := r.wants("what is hot", streamed); got.cache() == "miss" {
			misses++
		}
		return o.generations("what is hot") >= 3
	})
	if misses != 1 {
		t.Errorf("%d clients waited for a generation, want the first alone", misses)
	}
	testkit.Eventually(t, "the refreshes are recorded as idle", func() bool { return strings.Count(r.out.String(), `"class":"idle"`) >= 2 })
	if r.number(`spillway_preload_refreshes_total{result="done"}`) < 2 {
		t.Error("the metric does not know of the refreshes")
	}
	testkit.Eventually(t, "the hot topics are in Redis", func() bool {
		return strings.Contains(s.Do("ZREVRANGE", "spillway:1:topics", "0", "9", "WITHSCORES"), "what is hot")
	})
	if list := s.Do("LRANGE", "spillway:1:questions", "0", "9"); !strings.Contains(list, `"question":"what is hot"`) {
		t.Errorf("the recent questions are %s", list)
	}
}
