package kubernetes_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/kubernetes"
	"github.com/spillway/spillway/internal/testkit"
)

// scripted is an API server whose lists and watches a test writes. It does not send
// lists as watches, like servers before 1.32.
type scripted struct {
	*httptest.Server
	mu struct {
		sync.Mutex
		lists, watches int
		tokens         map[string]bool
	}
}

// scripts are called with the number of the request of their kind, from 1.
func script(t *testing.T, list, watch func(n int, w http.ResponseWriter, r *http.Request)) *scripted {
	t.Helper()
	s := new(scripted)
	s.mu.tokens = make(map[string]bool)
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "application/json")
		s.mu.Lock()
		s.mu.tokens[r.Header.Get("Authorization")] = true
		do, n := watch, &s.mu.watches
		if q.Get("watch") == "" {
			do, n = list, &s.mu.lists
		}
		if q.Get("sendInitialEvents") != "" {
			s.mu.Unlock()
			status(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents is forbidden")
			return
		}
		*n++
		number := *n
		s.mu.Unlock()
		do(number, w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *scripted) lists() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.lists
}

// status answers with an error as API servers write it.
func status(w http.ResponseWriter, code int, reason, message string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

// say answers a list.
func say(w http.ResponseWriter, version string, slices ...object) {
	json.NewEncoder(w).Encode(object{
		"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": object{"resourceVersion": version},
		"items": append([]object{}, slices...),
	})
}

// event writes one event of a watch.
func event(w http.ResponseWriter, kind string, o object) {
	json.NewEncoder(w).Encode(object{"type": kind, "object": o})
	w.(http.Flusher).Flush()
}

// versioned is an object with a resource version.
func versioned(o object, version string) object {
	o["metadata"].(object)["resourceVersion"] = version
	return o
}

// hold keeps a watch open.
func hold(_ int, w http.ResponseWriter, r *http.Request) {
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

// kubeconfig leads to the server.
func (s *scripted) kubeconfig(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	write(t, path, `{apiVersion: v1, kind: Config, current-context: test,
clusters: [{name: test, cluster: {server: "`+s.URL+`", certificate-authority-data: `+ca+`}}], users: [{name: u, user: {token: secret-of-the-kubeconfig}}],
contexts: [{name: test, context: {cluster: test, user: u}}]}`)
	return path
}

func TestExpiredWatchesAreListedAgain(t *testing.T) {
	t.Parallel()
	s := script(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		say(w, fmt.Sprint(100*n), versioned(slice("a", "IPv4", on(fmt.Sprintf("10.0.0.%d", n), "", "ready", "")), fmt.Sprint(100*n)))
	}, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1: // in the stream
			event(w, "ERROR", expired())
		case 2: // as the answer
			status(w, http.StatusGone, "Expired", "too old resource version")
		default:
			hold(n, w, r)
		}
	})
	got, l := run(t, config(s.kubeconfig(t)))
	reach(t, got, at(url(3)))
	if l.Count("level=WARN") != 0 {
		t.Errorf("log: %s", l)
	}
	if s.mu.Lock(); !s.mu.tokens["Bearer secret-of-the-kubeconfig"] || len(s.mu.tokens) != 1 {
		t.Errorf("tokens %v", s.mu.tokens)
	}
	s.mu.Unlock()
}

func TestWatchesGoOnAfterTheirEnd(t *testing.T) {
	t.Parallel()
	s := script(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		say(w, "7", versioned(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "7"))
	}, func(n int, w http.ResponseWriter, r *http.Request) {
		switch q := r.URL.Query().Get("resourceVersion"); {
		case n == 1 && q == "7":
			event(w, "MODIFIED", versioned(slice("a", "IPv4", on("10.0.0.2", "", "ready", "")), "9")) // and the connection ends
		case n == 2 && q == "9":
			event(w, "ADDED", versioned(slice("b", "IPv4", on("10.0.0.3", "", "ready", "")), "12"))
			event(w, "DELETED", versioned(slice("a", "IPv4"), "13"))
			hold(n, w, r)
		default:
			t.Errorf("watch %d from version %s", n, q)
			hold(n, w, r)
		}
	})
	got, _ := run(t, config(s.kubeconfig(t)))
	reach(t, got, at(url(3)))
	if n := s.lists(); n != 1 {
		t.Errorf("listed %d times", n)
	}
}

func TestErrorsKeepTheSetAndAreLoggedOnce(t *testing.T) {
	t.Parallel()
	wrong := map[string]func(w http.ResponseWriter, r *http.Request){
		"500": func(w http.ResponseWriter, _ *http.Request) { status(w, 500, "InternalError", "etcd is away") },
		"503": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) },
		"429": func(w http.ResponseWriter, _ *http.Request) { status(w, 429, "TooManyRequests", "slow down") },
		"403": func(w http.ResponseWriter, _ *http.Request) { status(w, 403, "Forbidden", "may not") },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		"garbage":   func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"truncated": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"kind":"EndpointSliceList","items":[{`) },
		"other":     func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1"}`) },
		"closed":    func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1",`)
			for range 80 {
				fmt.Fprint(w, strings.Repeat(" ", 1<<20))
			}
			fmt.Fprint(w, `"items":[]}`)
		},
	}
	for name, fail := range wrong {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen := make(chan struct{})
			s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
				switch n {
				case 1:
					say(w, "7", versioned(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "7"))
				case 2, 3:
					fail(w, r)
				default:
					say(w, "9", versioned(slice("a", "IPv4", on("10.0.0.2", "", "ready", "")), "9"))
				}
			}, func(n int, w http.ResponseWriter, r *http.Request) {
				if n > 1 {
					hold(n, w, r)
					return
				}
				w.(http.Flusher).Flush()
				<-seen
				event(w, "ERROR", expired())
			})
			got, l := run(t, config(s.kubeconfig(t)))
			if first := <-got; len(first) != 1 || first[0] != at(url(1)) {
				t.Errorf("targets %v", first)
			}
			close(seen)
			if next := <-got; len(next) != 1 || next[0] != at(url(2)) { // nothing came between
				t.Fatalf("targets %v", next)
			}
			if lost, back := l.Count("cannot be asked"), l.Count("answers again"); lost != 1 || back != 1 {
				t.Errorf("an outage was logged %d times and its end %d times: %s", lost, back, l)
			}
			if strings.Contains(l.String(), "secret-of-the-kubeconfig") {
				t.Errorf("the log has the token: %s", l)
			}
		})
	}
}

// expired is what a watch gets whose history is forgotten.
func expired() object {
	return object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version"}
}

func TestAWrongConfigurationIsTriedAgain(t *testing.T) {
	for name, wrong := range map[string]func(good, server string) string{
		"no file":           nil,
		"no such context":   func(good, _ string) string { return strings.ReplaceAll(good, "name: test,", "name: other,") },
		"no usable address": func(good, server string) string { return strings.ReplaceAll(good, server, "127.0.0.1:1:9") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := script(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
				say(w, "7", versioned(slice("a", "IPv4", on("10.0.0.1", "", "ready", "")), "7"))
			}, hold)
			good := read(t, s.kubeconfig(t))
			cfg := config(filepath.Join(t.TempDir(), "config"))
			cfg.Context = "test"
			if wrong != nil {
				write(t, cfg.Kubeconfig, wrong(good, s.URL))
			}
			got, l := run(t, cfg)
			testkit.Eventually(t, "it is logged", func() bool { return l.Count("cannot be asked") == 1 })
			write(t, cfg.Kubeconfig, good)
			reach(t, got, at(url(1)))
		})
	}
}

func Example() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Has("watch") {
			http.Error(w, "not here", http.StatusBadRequest)
			return
		}
		say(w, "7", slice("a", "IPv4", on("10.0.0.1", "", "ready", "")))
	}))
	defer server.Close()
	file, remove := exampleKubeconfig(server.URL)
	defer remove()
	cfg := kubernetes.Default()
	cfg.Kubeconfig, cfg.Service = file, "vllm"
	ctx, stop := context.WithCancel(context.Background())
	_ = kubernetes.New(cfg, slog.New(slog.DiscardHandler)).Run(ctx, func(targets []fleet.Target) {
		fmt.Println(targets)
		stop()
	})
	// Output: [{http://10.0.0.1:8000 1 false 0}]
}
