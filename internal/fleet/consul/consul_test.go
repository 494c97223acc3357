package consul_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/consul"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) {
	for _, v := range os.Environ() { // the machine's own Consul is nobody's business
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "CONSUL_") {
			os.Unsetenv(name)
		}
	}
	goleak.VerifyTestMain(m)
}

// scripted is a server that answers as a test says. The script is called with the
// number of the query, from 1.
type scripted struct {
	*httptest.Server
	mu struct {
		sync.Mutex
		queries []query
	}
}

// query is what was asked.
type query struct {
	index, token, url string
	at                time.Time
}

func script(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *scripted {
	t.Helper()
	s := new(scripted)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.mu.queries = append(s.mu.queries, query{r.URL.Query().Get("index"), r.Header.Get("X-Consul-Token"), r.URL.String(), time.Now()})
		n := len(s.mu.queries)
		s.mu.Unlock()
		answer(n, w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *scripted) queries() []query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]query(nil), s.mu.queries...)
}

// indexes are those that the first n queries came with.
func (s *scripted) indexes(t *testing.T, n int) []string {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("%d queries", n), func() bool { return len(s.queries()) >= n })
	var out []string
	for _, q := range s.queries()[:n] {
		out = append(out, q.index)
	}
	return out
}

// say answers with an index, "" for none, and a body.
func say(w http.ResponseWriter, index, body string) {
	if index != "" {
		w.Header().Set("X-Consul-Index", index)
	}
	w.Header().Set("X-Consul-LastContact", "0")
	w.Header().Set("X-Consul-KnownLeader", "true")
	fmt.Fprint(w, body)
}

// hold is a query that the agent holds back until the client leaves.
func hold(r *http.Request) { <-r.Context().Done() }

// entry is one passing instance in an answer.
func entry(host string, port int, tags ...string) string {
	return fmt.Sprintf(`{"Node":{"Address":"10.9.9.9"},"Service":{"ID":"i-%s-%d","Service":"vllm","Address":%q,"Port":%d,"Tags":["%s"],"Weights":{"Passing":1,"Warning":1}},"Checks":[{"CheckID":"c","Status":"passing"}]}`,
		host, port, host, port, strings.Join(tags, `","`))
}

func config(url string) consul.Config {
	cfg := consul.Default()
	cfg.Address, cfg.Service = url, "vllm"
	return cfg
}

// run starts a source and returns what it reports.
func run(t *testing.T, cfg consul.Config) (<-chan []fleet.Target, *testkit.Log) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	l := new(testkit.Log)
	src := consul.New(cfg, slog.New(slog.NewTextHandler(l, nil)))
	got := make(chan []fleet.Target, 64)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- src.Run(ctx, func(t []fleet.Target) { got <- t }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return got, l
}

func expect(t *testing.T, got <-chan []fleet.Target, want ...fleet.Target) {
	t.Helper()
	select {
	case targets := <-got:
		if diff := cmp.Diff(want, targets); diff != "" && len(want)+len(targets) > 0 {
			t.Fatalf("targets (-want +got):\n%s", diff)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("nothing reported; want %v", want)
	}
}

func at(url string) fleet.Target { return fleet.Target{URL: url, Weight: 1} }

func TestIndexes(t *testing.T) {
	t.Parallel()
	// What the agent says, and what is asked with next.
	said := []string{"5", "9", "7", "3", "", "garbage", "0", "12"}
	want := []string{"", "5", "9", "", "3", "1", "1", "1", "12"}
	s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > len(said) {
			hold(r)
			return
		}
		say(w, said[n-1], "["+entry("10.0.0.1", 8000)+"]")
	})
	got, _ := run(t, config(s.URL))
	expect(t, got, at("http://10.0.0.1:8000"))
	if diff := cmp.Diff(want, s.indexes(t, len(want))); diff != "" {
		t.Errorf("indexes (-want +got):\n%s", diff)
	}
	if len(got) != 0 {
		t.Errorf("the same set was reported again: %v", <-got)
	}
}

func TestQueriesThatAreNotHeldBackAreSlowedDown(t *testing.T) {
	t.Parallel()
	s := script(t, func(n int, w http.ResponseWriter, _ *http.Request) { say(w, fmt.Sprint(n), "[]") })
	got, _ := run(t, config(s.URL))
	expect(t, got)
	s.indexes(t, 6)
	q := s.queries()
	if first := q[3].at.Sub(q[0].at); first > 900*time.Millisecond {
		t.Errorf("the first four queries took %v: a burst must not wait", first)
	}
	if later := q[5].at.Sub(q[3].at); later < 700*time.Millisecond {
		t.Errorf("two queries beyond the burst took %v, want about one second", later)
	}
}

func TestChangesOfAHeldQueryArriveAtOnce(t *testing.T) {
	t.Parallel()
	change := make(chan string)
	s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
		body := "[]"
		if n > 1 {
			select {
			case body = <-change:
			case <-r.Context().Done():
				return
			}
		}
		say(w, fmt.Sprint(n), body)
	})
	cfg := config(s.URL)
	cfg.Wait, cfg.Tags, cfg.Filter = 5*time.Minute, []string{"gpu", "eu"}, `Service.Meta.x == "1"`
	cfg.Datacenter, cfg.Namespace, cfg.Partition = "dc2", "ns1", "p1"
	got, _ := run(t, cfg)
	expect(t, got)
	change <- "[" + entry("10.0.0.1", 1) + "]"
	expect(t, got, at("http://10.0.0.1:1"))
	change <- "[" + entry("10.0.0.2", 1) + "]"
	expect(t, got, at("http://10.0.0.2:1"))
	asked := s.queries()[1].url
	for _, want := range []string{"/v1/health/service/vllm?", "tag=gpu", "tag=eu", "filter=Service.Meta.x", "dc=dc2", "ns=ns1", "partition=p1", "stale=", "wait=300000ms", "passing=1", "index=1"} {
		if !strings.Contains(asked, want) {
			t.Errorf("asked %s: no %s", asked, want)
		}
	}
}

func TestErrorsKeepTheSetAndAreLoggedOnce(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t-token-of-the-test"
	huge := strings.Repeat(" ", 1<<20)
	wrong := map[string]func(w http.ResponseWriter, r *http.Request){
		"500": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "No cluster leader", 500) },
		"429": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "slow down", http.StatusTooManyRequests) },
		"403": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "ACL not found: "+r.Header.Get("X-Consul-Token"), http.StatusForbidden)
		},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		"garbage":   func(w http.ResponseWriter, _ *http.Request) { say(w, "7", "<html>") },
		"null":      func(w http.ResponseWriter, _ *http.Request) { say(w, "7", "null") },
		"an object": func(w http.ResponseWriter, _ *http.Request) { say(w, "7", `{"a":1}`) },
		"truncated": func(w http.ResponseWriter, _ *http.Request) { say(w, "7", "["+entry("10.0.0.2", 1)[:40]) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			say(w, "7", "[")
		},
		"hidden by rules": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
			say(w, "7", "[]")
		},
		"closed": func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); panic(http.ErrAbortHandler) },
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "[")
			for range 40 {
				fmt.Fprint(w, huge)
			}
			fmt.Fprint(w, "]")
		},
		"huge error": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			for range 4 {
				fmt.Fprint(w, strings.Repeat("x", 1<<20))
			}
		},
		"too many": func(w http.ResponseWriter, _ *http.Request) { say(w, "7", "["+strings.Repeat("{},", 10_000)+"{}]") },
	}
	for name, fail := range wrong {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
				switch {
				case n == 1:
					say(w, "4", "["+entry("10.0.0.1", 1)+"]")
				case n <= 3:
					fail(w, r)
				case n == 4:
					say(w, "5", "["+entry("10.0.0.2", 1)+"]")
				default:
					hold(r)
				}
			})
			cfg := config(s.URL)
			cfg.TokenFile = filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(cfg.TokenFile, []byte(secret+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			got, l := run(t, cfg)
			expect(t, got, at("http://10.0.0.1:1"))
			expect(t, got, at("http://10.0.0.2:1")) // nothing came between
			if diff := cmp.Diff([]string{"", "4", "", ""}, s.indexes(t, 4)); diff != "" {
				t.Errorf("indexes (-want +got):\n%s", diff)
			}
			if lost, back := l.Count("cannot be asked"), l.Count("answers again"); lost != 1 || back != 1 {
				t.Errorf("an outage was logged %d times and its end %d times: %s", lost, back, l)
			}
			if strings.Contains(l.String(), secret) {
				t.Errorf("the log has the token: %s", l)
			}
			if len(l.String()) > 2000 {
				t.Errorf("%d bytes were logged", len(l.String()))
			}
			for _, q := range s.queries() {
				if q.token != secret || strings.Contains(q.url, "elsewhere") {
					t.Errorf("query %+v", q)
				}
			}
		})
	}
}

func TestAnAgentThatHangs(t *testing.T) {
	t.Parallel()
	s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			hold(r)
			return
		}
		say(w, "1", "["+entry("10.0.0.1", 1)+"]")
	})
	got, l := run(t, config(s.URL))
	expect(t, got, at("http://10.0.0.1:1"))
	if l.Count("no answer within 10s") != 1 {
		t.Errorf("log: %s", l)
	}
}

func TestTheTokenIsReadBeforeEachQuery(t *testing.T) {
	change := make(chan struct{})
	s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 {
			select {
			case <-change:
			case <-r.Context().Done():
				return
			}
		}
		say(w, fmt.Sprint(n), "[]")
	})
	file := filepath.Join(t.TempDir(), "token")
	cfg := config(s.URL)
	cfg.TokenFile = file
	got, l := run(t, cfg)
	testkit.Eventually(t, "a missing file is logged", func() bool { return l.Count("token_file: open") == 1 })
	if n := len(s.queries()); n != 0 {
		t.Errorf("%d queries without the token", n)
	}
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n")
	expect(t, got)
	s.indexes(t, 2)
	write("second")
	change <- struct{}{}
	s.indexes(t, 3)
	if q := s.queries(); q[0].token != "first" || q[2].token != "second" {
		t.Errorf("tokens %q and %q", q[0].token, q[2].token)
	}
}

func TestEnvironment(t *testing.T) {
	s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 {
			hold(r)
			return
		}
		say(w, "1", "[]")
	})
	t.Setenv("CONSUL_HTTP_ADDR", strings.TrimPrefix(s.URL, "http://"))
	t.Setenv("CONSUL_HTTP_TOKEN", "of-the-environment")
	got, _ := run(t, config(""))
	expect(t, got)
	cfg := config("")
	cfg.TokenEnv = "SPILLWAY_TEST_TOKEN"
	t.Setenv(cfg.TokenEnv, "named")
	run(t, cfg)
	s.indexes(t, 3)
	tokens := make(map[string]bool)
	for _, q := range s.queries() {
		tokens[q.token] = true
	}
	if diff := cmp.Diff(map[string]bool{"of-the-environment": true, "named": true}, tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}

func TestSocketsAndCertificates(t *testing.T) {
	t.Parallel()
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("index") != "" {
			hold(r)
			return
		}
		say(w, "1", "["+entry("10.0.0.1", 1)+"]")
	})
	plain := httptest.NewUnstartedServer(answer)
	path := filepath.Join(t.TempDir(), "consul.sock")
	plain.Listener.Close()
	plain.Listener = listen(t, path)
	plain.Start()
	t.Cleanup(plain.Close)
	got, _ := run(t, config("unix://"+path))
	expect(t, got, at("http://10.0.0.1:1"))

	secure := httptest.NewTLSServer(answer)
	t.Cleanup(secure.Close)
	cfg := config(secure.URL)
	cfg.TLS.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	got, l := run(t, cfg)
	testkit.Eventually(t, "a missing file is logged", func() bool { return l.Count("ca.pem") == 1 })
	if err := os.WriteFile(cfg.TLS.CAFile, certificate(secure), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, got, at("http://10.0.0.1:1"))
}

func TestWarningsAreLoggedWhenTheyChange(t *testing.T) {
	t.Parallel()
	s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1, 2:
			say(w, fmt.Sprint(n), "["+entry("10.0.0.1", 1, "weight=many")+"]")
		case 3:
			var many []string
			for i := range 50 {
				many = append(many, entry("10.0.0.1", 70000+i))
			}
			say(w, "3", "["+strings.Join(many, ",")+"]")
		default:
			hold(r)
		}
	})
	got, l := run(t, config(s.URL))
	expect(t, got, at("http://10.0.0.1:1"))
	expect(t, got)
	if tags, ports, more := l.Count("tag weight"), l.Count("no usable address"), l.Count("more of the kind"); tags != 1 || ports != 20 || more != 1 {
		t.Errorf("logged %d, %d and %d times: %s", tags, ports, more, l)
	}
}
