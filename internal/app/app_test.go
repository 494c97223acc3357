package app_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childConfig); path != "" {
		child(path)
		return
	}
	state, err := os.MkdirTemp("", "spillway-app") // of gateways whose configuration says nothing
	if err == nil {
		err = os.Setenv("STATE_DIRECTORY", state)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	sqltest.Main(m, func() { os.RemoveAll(state) })
}

// rig is a gateway that runs from a configuration file.
type rig struct {
	t         *testing.T
	path      string
	app       *app.App
	api       string
	admin     string
	hangup    chan os.Signal
	out, errs testkit.Log
	client    *http.Client
	stop      context.CancelFunc
	ended     chan error
}

// pool is a pool of the given instances in the configuration file.
func pool(name string, instances ...*testkit.Instance) string {
	var b strings.Builder
	fmt.Fprintf(&b, "        - name: %s\n          models: [m]\n          health: {active: {type: off}}\n          instances:\n", name)
	for _, i := range instances {
		fmt.Fprintf(&b, "            - %s\n", i.URL())
	}
	return b.String()
}

// text is a configuration file with pools and sections.
func text(pools string, sections ...string) string {
	return "api: {listen: \"127.0.0.1:0\", drain_timeout: 5s}\nadmin: {listen: \"127.0.0.1:0\"}\n" +
		strings.Join(sections, "\n") + "\nfleet:\n  regions:\n    - name: eu\n      pools:\n" + pools
}

// write replaces a file as editors do: a new one takes its name.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// newRig runs a gateway until the end of the test.
func newRig(t *testing.T, text string) *rig {
	t.Helper()
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "spillway.yaml"), hangup: make(chan os.Signal, 1), ended: make(chan error, 1)}
	write(t, r.path, text)
	file, err := config.Load(r.path)
	if err != nil {
		t.Fatal(err)
	}
	if r.app, err = app.New(file, app.Options{Version: "test", Path: r.path, Stdout: &r.out, Stderr: &r.errs}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	l, err := r.app.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.api, r.admin = "http://"+l.API.Addr().String(), "http://"+l.Admin.Addr().String()
	tr := &http.Transport{}
	r.client = &http.Client{Transport: tr, Timeout: 15 * time.Second}
	go func() { r.ended <- r.app.Run(ctx, l, r.hangup) }()
	t.Cleanup(func() {
		cancel()
		tr.CloseIdleConnections()
		if err := r.wait(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", r.errs.String())
		}
	})
	testkit.Eventually(t, "the gateway serves", func() bool { status, _ := r.get(r.api + "/livez"); return status == 200 })
	return r
}

// wait waits for the end of Run.
func (r *rig) wait() error {
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(20 * time.Second):
		return errors.New("did not end")
	}
}

// do sends one request.
func (r *rig) do(method, url, body string, fields ...string) (status int, answer string) {
	r.t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	res, err := r.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// get reads a page.
func (r *rig) get(url string) (int, string) { r.t.Helper(); return r.do("GET", url, "") }

const (
	chat   = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	stream = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`
)

// chat asks a question.
func (r *rig) chat(fields ...string) (int, string) {
	r.t.Helper()
	return r.do("POST", r.api+"/v1/chat/completions", chat, fields...)
}

// state is what GET /admin/config says.
func (r *rig) state() admin.State {
	r.t.Helper()
	status, body := r.get(r.admin + "/admin/config")
	var s admin.State
	if err := json.Unmarshal([]byte(body), &s); err != nil || status != 200 {
		r.t.Fatalf("GET /admin/config: %d %s", status, body)
	}
	return s
}

// metric is the value of a series, "" when there is none.
func (r *rig) metric(series string) string {
	r.t.Helper()
	_, body := r.get(r.admin + "/metrics")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// named answers every request with a model server's name.
func named(t *testing.T, name string) *testkit.Instance {
	return testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.JSON(200, strings.Replace(testkit.Answer, "hello", name, 1))
		return true
	})
}

// held streams one event, then waits before it finishes.
func held(t *testing.T, finish <-chan struct{}) *testkit.Instance {
	return testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		x.Stream()
		x.Delta("first")
		select {
		case <-finish:
		case <-time.After(15 * time.Second):
		}
		x.Finish()
		return true
	})
}

// begin starts a stream and reads its first event.
func (r *rig) begin() *bufio.Reader {
	r.t.Helper()
	res, err := r.client.Post(r.api+"/v1/chat/completions", "application/json", strings.NewReader(stream))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { res.Body.Close() })
	br := bufio.NewReader(res.Body)
	if line, err := br.ReadString('\n'); err != nil || !strings.Contains(line, "first") {
		r.t.Fatalf("got %q, %v", line, err)
	}
	return br
}

func TestServes(t *testing.T) {
	r := newRig(t, text(pool("gpu", named(t, "one"))))
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "one") {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := r.get(r.api + "/v1/models"); status != 200 || !strings.Contains(body, `"id":"m"`) {
		t.Errorf("got %d %s", status, body)
	}
	for _, base := range []string{r.api, r.admin} {
		for _, path := range []string{"/livez", "/readyz"} {
			if status, body := r.get(base + path); status != 200 {
				t.Errorf("%s: got %d %s", path, status, body)
			}
		}
	}
	if status, _ := r.get(r.api + "/metrics"); status != 404 {
		t.Errorf("clients can read metrics: %d", status)
	}
	s := r.state()
	if s.Version != 1 || s.Source != r.path || s.LastError != "" || s.Hash == "" || s.LoadedAt.IsZero() {
		t.Errorf("got %+v", s)
	}
	testkit.Eventually(t, "the access log has the request", func() bool { return strings.Contains(r.out.String(), `"model":"m"`) })
}

func TestReload(t *testing.T) {
	one, two := named(t, "one"), named(t, "two")
	for name, how := range map[string]func(*rig){
		"file":   func(*rig) {},
		"hangup": func(r *rig) { r.hangup <- syscall.SIGHUP },
		"admin": func(r *rig) {
			if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
				t.Errorf("got %d %s", status, body)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, text(pool("gpu", one)))
			if _, body := r.chat(); !strings.Contains(body, "one") {
				t.Fatalf("got %s", body)
			}
			before := r.state()
			write(t, r.path, text(pool("gpu", two)))
			how(r)
			testkit.Eventually(t, "the new file is in force", func() bool { _, body := r.chat(); return strings.Contains(body, "two") })
			testkit.Eventually(t, "the state says so", func() bool {
				s := r.state()
				return s.Version >= 2 && s.Hash != before.Hash && s.LastError == "" && s.LoadedAt.After(before.LoadedAt)
			})
			if got := r.metric("spillway_config_last_reload_successful"); got != "1" {
				t.Errorf("got %q", got)
			}
			if got := r.metric(`spillway_config_reloads_total{result="refused"}`); got != "" && got != "0" {
				t.Errorf("got %q refused reloads", got)
			}
		})
	}
}

func TestAReloadNamesWhatNeedsARestart(t *testing.T) {
	one := named(t, "one")
	r := newRig(t, text(pool("gpu", one)))
	write(t, r.path, strings.Replace(text(pool("gpu", one)), "api: {", "api: {send_buffer: 64KiB, ", 1))
	testkit.Eventually(t, "the log names the key", func() bool {
		log := r.errs.String()
		return strings.Contains(log, "take effect with a restart") && strings.Contains(log, "api.send_buffer") && !strings.Contains(log, "api.listen")
	})
}

func TestABadFileKeepsTheOldOne(t *testing.T) {
	one := named(t, "one")
	good := text(pool("gpu", one))
	key := filepath.Join(t.TempDir(), "key")
	for name, c := range map[string]struct{ text, want string }{
		"not YAML":        {"api: [", "spillway.yaml:1: "},
		"empty":           {"", "at least one region"},
		"unknown key":     {good + "what: 1\n", "unknown key"},
		"two mistakes":    {strings.Replace(good, "drain_timeout: 5s", "drain_timeout: -5s, max_body: 0", 1), "max_body"},
		"no key file":     {good + "          upstream: {api_key_file: " + key + "}\n", "no such file"},
		"keys file":       {text(pool("gpu", one), "identity: {keys_file: "+key+"}"), "keys_file"},
		"access log":      {text(pool("gpu", one), "usage: {access_log: /nonexistent/dir/log}"), "access_log"},
		"no certificate":  {strings.Replace(good, "drain_timeout: 5s", "tls_cert_file: /nonexistent, tls_key_file: /nonexistent", 1), "tls_cert_file"},
		"unset variable":  {strings.Replace(good, one.URL(), "${SPILLWAY_TEST_NONE}", 1), "SPILLWAY_TEST_NONE"},
		"unknown surface": {strings.Replace(good, "models: [m]", "models: [m]\n          surfaces: [smell]", 1), "unknown surface"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, good)
			before := r.state()
			write(t, r.path, c.text)
			r.hangup <- syscall.SIGHUP
			testkit.Eventually(t, "the reload was refused", func() bool { return r.state().LastError != "" })
			s := r.state()
			if s.Hash != before.Hash || s.Version != 1 || s.LastErrorAt.IsZero() || !strings.Contains(s.LastError, c.want) {
				t.Errorf("got %+v, want the error to say %q", s, c.want)
			}
			if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 || !strings.Contains(body, c.want) {
				t.Errorf("got %d %s", status, body)
			}
			if r.metric("spillway_config_last_reload_successful") != "0" || r.metric(`spillway_config_reloads_total{result="refused"}`) == "" {
				t.Error("the metrics do not say so")
			}
			if !strings.Contains(r.errs.String(), "reload refused") {
				t.Error("the log does not say so")
			}
			if status, body := r.chat(); status != 200 || !strings.Contains(body, "one") {
				t.Errorf("got %d %s", status, body)
			}
			if r.app.File().Hash() != before.Hash {
				t.Error("the new file is in force")
			}
			write(t, r.path, good+"# mended\n")
			r.hangup <- syscall.SIGHUP
			testkit.Eventually(t, "the mended file is in force", func() bool { s := r.state(); return s.LastError == "" && s.Hash != before.Hash })
			if r.metric("spillway_config_last_reload_successful") != "1" {
				t.Error("the metric still says refused")
			}
		})
	}
}

// keysLine is a line of a keys file.
func keysLine(key, tenant string) string {
	return fmt.Sprintf("%x %s normal\n", sha256.Sum256([]byte(key)), tenant)
}

func TestARefusedReloadIsTakenBackWhole(t *testing.T) {
	one := named(t, "one")
	dir := t.TempDir()
	old, next := filepath.Join(dir, "old"), filepath.Join(dir, "next")
	write(t, old, keysLine("old-key", "a"))
	write(t, next, keysLine("next-key", "b"))
	r := newRig(t, text(pool("gpu", one), "identity: {keys_file: "+old+"}"))
	// The keys are good and applied first; the access log cannot be opened.
	write(t, r.path, text(pool("gpu", one), "identity: {keys_file: "+next+"}", "usage: {access_log: "+dir+"/none/log}"))
	if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 {
		t.Fatalf("got %d %s", status, body)
	}
	if status, body := r.chat("Authorization: Bearer old-key"); status != 200 {
		t.Errorf("the old key: got %d %s", status, body)
	}
	if status, _ := r.chat("Authorization: Bearer next-key"); status != 401 {
		t.Errorf("the new key: got %d", status)
	}
	if status, _ := r.chat(); status != 401 {
		t.Errorf("no key: got %d", status)
	}
}

// TestARefusedReloadLeavesExperimentsAlone: to take new arms back would be to begin
// again, without what was found so far.
func TestARefusedReloadLeavesExperimentsAlone(t *testing.T) {
	one := named(t, "one")
	arms := func(weight int) string {
		return fmt.Sprintf("route: {experiments: [{name: canary, arms: [{name: control, weight: %d}, {name: canary}]}]}", weight)
	}
	r := newRig(t, text(pool("gpu", one), arms(1)))
	if status, body := r.chat(); status != 200 {
		t.Fatalf("got %d %s", status, body)
	}
	var before string
	testkit.Eventually(t, "the request is counted", func() bool {
		_, before = r.do("GET", r.admin+"/admin/experiments", "")
		return strings.Contains(before, `"requests":1`) || strings.Contains(before, `"requests": 1`)
	})
	// The arms are good; a database cannot be used without a restart.
	write(t, r.path, text(pool("gpu", one), arms(3), "identity: {sql: true}"))
	if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 422 {
		t.Fatalf("got %d %s", status, body)
	}
	if _, after := r.do("GET", r.admin+"/admin/experiments", ""); after != before {
		t.Errorf("before the refused reload:\n%s\nafter it:\n%s", before, after)
	}
}

// TestTheKeysFileIsWatched, also where it is a link to a file in another directory.
func TestTheKeysFileIsWatched(t *testing.T) {
	for _, linked := range []bool{false, true} {
		t.Run(fmt.Sprintf("linked=%t", linked), func(t *testing.T) {
			keys := filepath.Join(t.TempDir(), "keys")
			write(t, keys, keysLine("first", "a"))
			path := keys
			if linked {
				path = filepath.Join(t.TempDir(), "link")
				if err := os.Symlink(keys, path); err != nil {
					t.Fatal(err)
				}
			}
			r := newRig(t, text(pool("gpu", named(t, "one")), "identity: {keys_file: "+path+"}"))
			if status, _ := r.chat("Authorization: Bearer second"); status != 401 {
				t.Fatalf("got %d", status)
			}
			write(t, keys, keysLine("first", "a")+keysLine("second", "b"))
			testkit.Eventually(t, "the second key is in force", func() bool { status, _ := r.chat("Authorization: Bearer second"); return status == 200 })
			write(t, keys, "garbage\n")
			testkit.Eventually(t, "the broken file was refused", func() bool { return r.state().LastError != "" })
			if status, _ := r.chat("Authorization: Bearer second"); status != 200 {
				t.Errorf("a broken file took a key away: %d", status)
			}
		})
	}
}

func TestStreamsAndCountersSurviveReloads(t *testing.T) {
	finish := make(chan struct{})
	slow, other := held(t, finish), named(t, "other")
	r := newRig(t, text(pool("gpu", slow)))
	br := r.begin()
	inFlight := `spillway_gateway_in_flight`
	_, metrics := r.get(r.admin + "/metrics")
	for line := range strings.Lines(metrics) {
		if strings.Contains(line, "in_flight") && strings.Contains(line, "eu") && strings.HasSuffix(line, " 1\n") {
			inFlight = strings.Fields(line)[0]
			break
		}
	}
	if got := r.metric(inFlight); got != "1" {
		t.Errorf("%s: got %q, want 1 in\n%s", inFlight, got, metrics)
	}
	for i, text := range []string{text(pool("gpu", slow, other)), text(pool("gpu", other)), text(pool("cpu", other)), text(pool("gpu", slow))} {
		write(t, r.path, text)
		if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
			t.Fatalf("reload %d: got %d %s", i, status, body)
		}
	}
	if got := r.metric(inFlight); got != "1" {
		t.Errorf("after reloads %s is %q, want 1", inFlight, got)
	}
	close(finish)
	rest, err := io.ReadAll(br)
	if err != nil || !strings.HasSuffix(string(rest), testkit.DoneEvent) {
		t.Errorf("the stream was cut: %q, %v", rest, err)
	}
	testkit.Eventually(t, "nothing is in flight", func() bool { return r.metric(inFlight) == "0" })
}

func TestReloadsUnderLoad(t *testing.T) {
	one, two := named(t, "one"), named(t, "two")
	r := newRig(t, text(pool("gpu", one, two)))
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
				if status, body := r.chat(); status != 200 && bad.Add(1) == 1 {
					t.Errorf("got %d %s", status, body)
				}
				sent.Add(1)
			}
		})
	}
	for i := range 10 {
		write(t, r.path, text(pool("gpu", [][]*testkit.Instance{{one}, {two}, {one, two}}[i%3]...), fmt.Sprintf("# %d", i)))
		n := sent.Load()
		if status, body := r.do("POST", r.admin+"/admin/reload", ""); status != 200 {
			t.Errorf("got %d %s", status, body)
		}
		testkit.Eventually(t, "requests run with it", func() bool { return sent.Load() > n+20 })
	}
	close(stop)
	wg.Wait()
	if bad.Load() > 0 {
		t.Errorf("%d of %d requests were lost", bad.Load(), sent.Load())
	}
}

func TestSourcesFollowReloads(t *testing.T) {
	one, two, three := named(t, "one"), named(t, "two"), named(t, "three")
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	targets := func(path string, i *testkit.Instance) { write(t, path, "- targets: ["+i.Addr+"]\n") }
	targets(a, one)
	targets(b, two)
	found := func(path string) string {
		return "        - name: gpu\n          models: [m]\n          health: {active: {type: off}}\n          file: {path: " + path + "}\n"
	}
	r := newRig(t, text(found(a)))
	answers := func(want string) {
		t.Helper()
		testkit.Eventually(t, want+" answers", func() bool { _, body := r.chat(); return strings.Contains(body, want) })
	}
	answers("one")
	targets(a, two)
	answers("two")
	targets(a, one)
	answers("one")
	r.reload(text(found(b))) // another file: the old source ends
	answers("two")
	targets(b, three)
	answers("three")
	targets(a, one) // nobody looks any more
	r.reload(text(found(b), "# the same source goes on"))
	answers("three")
	r.reload(text(pool("gpu", one))) // no source
	testkit.Eventually(t, "only what is written answers", func() bool {
		for range 5 {
			if _, body := r.chat(); !strings.Contains(body, "one") {
				return false
			}
		}
		return true
	})
	r.reload(text(found(b)))
	answers("three")
}

func TestADrainFinishesStreams(t *testing.T) {
	finish := make(chan struct{})
	r := newRig(t, text(pool("gpu", held(t, finish))))
	br := r.begin()
	r.stop()
	testkit.Eventually(t, "readyz says that it stops", func() bool { status, _ := r.get(r.admin + "/readyz"); return status == 503 })
	select {
	case err := <-r.ended:
		t.Fatalf("Run ended before the stream: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(finish)
	if rest, err := io.ReadAll(br); err != nil || !strings.HasSuffix(string(rest), testkit.DoneEvent) {
		t.Errorf("got %q, %v", rest, err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(r.errs.String(), "stopping") {
		t.Error("the log does not say so")
	}
}

func TestTheEndOfADrainCutsStreams(t *testing.T) {
	finish := make(chan struct{})
	instance := held(t, finish)
	r := newRig(t, strings.Replace(text(pool("gpu", instance)), "drain_timeout: 5s", "drain_timeout: 200ms", 1))
	br := r.begin()
	r.stop()
	rest, err := io.ReadAll(br)
	if err == nil || !strings.Contains(string(rest), `"code":"draining"`) {
		t.Errorf("got %q, %v", rest, err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	close(finish)
}

func TestListenErrorsAreClear(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for section, change := range map[string]func(*config.File){
		"api":   func(f *config.File) { f.API.Listen = taken.Addr().String() },
		"probe": func(f *config.File) { f.API.ProbeListen = taken.Addr().String() },
		"admin": func(f *config.File) { f.Admin.Listen = taken.Addr().String() },
	} {
		t.Run(section, func(t *testing.T) {
			file, err := config.Parse("f.yaml", []byte(text(pool("gpu", named(t, "one")))))
			if err != nil {
				t.Fatal(err)
			}
			change(file)
			a, err := app.New(file, app.Options{Stdout: io.Discard, Stderr: io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			l, err := a.Listen(t.Context())
			if err == nil {
				l.Close()
				t.Fatal("listens on an address in use")
			}
			if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.HasPrefix(err.Error(), strings.Replace(section, "probe", "api", 1)+": ") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAListenerThatFailsEndsRun(t *testing.T) {
	file, err := config.Parse("f.yaml", []byte(text(pool("gpu", named(t, "one")))))
	if err != nil {
		t.Fatal(err)
	}
	a, err := app.New(file, app.Options{Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Reload(t.Context()); err == nil {
		t.Error("reloaded without a file")
	}
	for _, which := range []string{"api", "admin"} {
		l, err := a.Listen(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if which == "api" {
			l.API.Close()
		} else {
			l.Admin.Close()
		}
		ended := make(chan error, 1)
		go func() { ended <- a.Run(t.Context(), l, nil) }()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: Run ended without an error", which)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: Run goes on without its listener", which)
		}
		l.Close()
		if a, err = app.New(file, app.Options{Stdout: io.Discard, Stderr: io.Discard}); err != nil {
			t.Fatal(err)
		}
	}
}

// Behind an outbound proxy a tcp check says whether the proxy can be reached:
// the instance's own address may mean nothing here.
func TestATCPCheckConnectsToTheProxy(t *testing.T) {
	proxy := named(t, "through the proxy")
	nowhere, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere.Close() // nothing listens there from now on
	r := newRig(t, text(fmt.Sprintf(`        - name: gpu
          models: [m]
          health: {active: {type: tcp, interval: 20ms, timeout: 1s, failure_threshold: 1}}
          upstream: {proxy: "%s"}
          instances: ["http://%s"]
`, proxy.URL(), nowhere.Addr())))
	testkit.Eventually(t, "the proxy was asked", func() bool { return proxy.Accepted() >= 3 })
	if status, body := r.get(r.admin + "/admin/fleet"); status != 200 || !strings.Contains(body, `"status": "open"`) {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := r.chat(); status != 200 || !strings.Contains(body, "through the proxy") {
		t.Errorf("got %d %s", status, body)
	}
}
