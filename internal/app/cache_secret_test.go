package app_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// dump is all that a Redis has, as text.
func dump(s *redistest.Server) string {
	var all strings.Builder
	for name := range strings.SplitSeq(s.Do("KEYS", "*"), "\n") {
		all.WriteString(name + "\n")
		switch s.Do("TYPE", name) {
		case "hash":
			all.WriteString(s.Do("HGETALL", name))
		case "list":
			all.WriteString(s.Do("LRANGE", name, "0", "-1"))
		case "zset":
			all.WriteString(s.Do("ZRANGE", name, "0", "-1", "WITHSCORES"))
		default:
			all.WriteString("?")
		}
		all.WriteString("\n")
	}
	return all.String()
}

// TestSecretsAndQuestionsStayWhereTheyBelong: keys of clients are in no level and no
// log, and the texts of questions are in no log, whatever fails.
func TestSecretsAndQuestionsStayWhereTheyBelong(t *testing.T) {
	t.Parallel()
	const key, foreign, question = "sk-secret-of-acme", "sk-passed-on", "xylophones in Zanzibar"
	for name, withKeys := range map[string]bool{"a keys file": true, "credentials that are passed on": false} {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t)
			o, dir := newOracle(t, nil), t.TempDir()
			path := filepath.Join(dir, "cache.db")
			sections := []string{
				"store: {redis: {addresses: [\"" + s.Addr() + "\"], timeout: 300ms}, sql: {databases: [{dsn: \"sqlite:" + path + "\"}]}}",
				"cache: {redis: {compress_from: 1MiB}, sql: {compress_from: 1MiB}}", "telemetry: {log: {level: debug}}",
				"preload: {window: 1s, lead: 1s, horizon: 1h, min_demand: 0.1}",
			}
			credential := "Authorization: Bearer " + foreign
			if withKeys {
				sections = append(sections, "identity: {keys_file: "+keysFile(t, keysLine(key, "acme"))+"}")
				credential = "Authorization: Bearer " + key
			}
			r := newRig(t, text(o.all(), sections...))
			testkit.Eventually(t, "Redis is connected, before anybody asks", func() bool { return strings.Contains(r.errs.String(), "connected to Redis") })
			for name, surface := range surfaces {
				for _, more := range []string{"", streamed} {
					if more != "" && surface.events == nil {
						continue
					}
					if got, err := r.send(surface.path, surface.body(question, more), credential); err != nil || judge(name, question, more, got) != "" {
						t.Errorf("%s: got %d %s %v", name, got.status, got.text, err)
					}
				}
			}
			written := func(level string) float64 {
				return r.number(fmt.Sprintf(`spillway_cache_fills_total{level=%q,result="written"}`, level))
			}
			testkit.Eventually(t, "both levels have the answers", func() bool { return written("redis") >= 5 && written("sql") >= 5 })
			kept := dump(s)
			for _, f := range files(path) {
				b, _ := os.ReadFile(f)
				kept += string(b)
			}
			if !strings.Contains(kept, question) {
				t.Error("the dump has not even the question: it looks in the wrong places")
			}
			s.Kill() // and faults, with what they log
			o.broken.Store(true)
			for i := range 12 {
				_, _ = r.send(surfaces["chat"].path, surfaces["chat"].body(fmt.Sprint(question, i), ""), credential)
			}
			r.do("POST", r.admin+"/admin/cache/purge", `{"model":"m"}`, "Content-Type: application/json")
			r.stop()
			if err := r.wait(); err != nil {
				t.Error(err)
			}
			logs := r.errs.String() + r.out.String()
			if strings.Count(logs, "\n") < 12 {
				t.Errorf("the logs are empty: %s", logs)
			}
			for what, where := range map[string]string{"the levels": kept, "the logs": logs} {
				for _, secret := range []string{key, foreign, fmt.Sprintf("%x", sha256.Sum256([]byte(key)))} {
					if strings.Contains(where, secret) {
						t.Errorf("%s are in %s", secret, what)
					}
				}
			}
			if i := strings.Index(logs, question); i >= 0 {
				t.Errorf("the question is in the logs: %s", logs[max(0, i-300):i+50])
			}
		})
	}
}
