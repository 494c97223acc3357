package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// control is a program under control.
type control struct {
	mu       sync.Mutex
	state    admin.State
	err      error // of the next reload
	stopping bool
}

func (c *control) State() admin.State { c.mu.Lock(); defer c.mu.Unlock(); return c.state }

func (c *control) Unready() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return []string{"the gateway is stopping"}
	}
	return nil
}

func (c *control) Reload(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		c.state.LastError, c.state.LastErrorAt = c.err.Error(), loaded.Add(time.Hour)
		return c.err
	}
	c.state.Version++
	return nil
}

// loaded is when the test's configuration was loaded.
var loaded = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

// rig is a server with what it works on.
type rig struct {
	*admin.Server
	fleet   *fleet.Fleet
	control *control
	log     *bytes.Buffer
}

// newRig returns a server over two regions that share an address.
func newRig(t testing.TB, cfg admin.Config) *rig {
	t.Helper()
	r := &rig{fleet: fleet.New(slog.New(slog.DiscardHandler)), control: &control{state: admin.State{Hash: "abc", Version: 1, Source: "spillway.yaml", LoadedAt: loaded}}, log: new(bytes.Buffer)}
	pool := func(urls ...string) fleet.PoolLayout {
		p := fleet.PoolLayout{Name: "gpu", Weight: 2, MaxInFlight: 8, Models: map[string]string{"llama": "meta"}, Surfaces: []inference.Surface{inference.Chat}}
		for _, u := range urls {
			p.Static = append(p.Static, fleet.Target{URL: u})
		}
		return p
	}
	err := r.fleet.Apply(fleet.Layout{Regions: []fleet.RegionLayout{
		{Name: "eu", Pools: []fleet.PoolLayout{pool("http://10.0.0.1:8000", "http://10.0.0.2:8000/base")}},
		{Name: "us", Backup: true, Pools: []fleet.PoolLayout{pool("http://10.0.0.1:8000")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "test_total"}, func() float64 { return 42 }))
	r.Server, err = admin.New(cfg, admin.Parts{Fleet: r.fleet, Metrics: reg, Control: r.control, Log: slog.New(slog.NewTextHandler(r.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ask sends one request from this machine and returns the answer.
func ask(h http.Handler, method, path string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, "http://localhost:9090"+path, nil)
	for _, c := range change {
		c(req)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

// decode reads an answer's JSON.
func decode[T any](t testing.TB, w *httptest.ResponseRecorder) (v T) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return v
}

// failure is the body of an error.
type failure struct {
	Error struct{ Message, Type, Code string }
	Known []string
}

func TestRoutes(t *testing.T) {
	withPprof := admin.Default()
	withPprof.Pprof = true
	plain, profiled := newRig(t, admin.Default()), newRig(t, withPprof)
	tests := map[string]struct {
		h            http.Handler
		method, path string
		status       int
		has          string // in the body, or the code of an error
	}{
		"live":              {plain, "GET", "/livez", 200, `"live": true`},
		"ready":             {plain, "GET", "/readyz", 200, `"ready": true`},
		"metrics":           {plain, "GET", "/metrics", 200, "test_total 42"},
		"config":            {plain, "GET", "/admin/config", 200, `"hash": "abc"`},
		"fleet":             {plain, "GET", "/admin/fleet", 200, `"eu/gpu/10.0.0.1:8000"`},
		"head":              {plain, "HEAD", "/readyz", 200, ""},
		"no profiles":       {plain, "GET", "/debug/pprof/", 404, "not_found"},
		"profiles":          {profiled, "GET", "/debug/pprof/", 200, "goroutine"},
		"a profile":         {profiled, "GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		"command line":      {profiled, "GET", "/debug/pprof/cmdline", 200, ""},
		"unknown path":      {plain, "GET", "/nope", 404, "not_found"},
		"root":              {plain, "GET", "/", 404, "not_found"},
		"client's path":     {plain, "POST", "/v1/chat/completions", 404, "not_found"},
		"wrong method":      {plain, "POST", "/metrics", 405, "method_not_allowed"},
		"get of a drain":    {plain, "GET", "/admin/drain/x", 405, "method_not_allowed"},
		"get of a reload":   {plain, "GET", "/admin/reload", 405, "method_not_allowed"},
		"probes live":       {plain.Probes(), "GET", "/livez", 200, `"live": true`},
		"probes ready":      {plain.Probes(), "GET", "/readyz", 200, `"ready": true`},
		"probes alone":      {plain.Probes(), "GET", "/metrics", 404, "not_found"},
		"probes alone, too": {plain.Probes(), "POST", "/admin/reload", 404, "not_found"},
		"probe by post":     {plain.Probes(), "POST", "/livez", 405, "method_not_allowed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := ask(tt.h, tt.method, tt.path)
			if w.Code != tt.status {
				t.Fatalf("got status %d, want %d: %s", w.Code, tt.status, w.Body)
			}
			if w.Code < 400 && !strings.Contains(w.Body.String(), tt.has) {
				t.Errorf("got %s, want it to hold %q", w.Body, tt.has)
			}
			if w.Code >= 400 {
				if ct := w.Header().Get("Content-Type"); ct != "application/json" {
					t.Errorf("got content type %q, want JSON", ct)
				}
				if f := decode[failure](t, w); f.Error.Code != tt.has || f.Error.Message == "" || f.Error.Type == "" {
					t.Errorf("got error %+v, want code %s", f.Error, tt.has)
				}
			}
			if w.Code == 405 && w.Header().Get("Allow") == "" {
				t.Error("got no Allow with a 405")
			}
			if w.Header().Get("Cache-Control") != "no-store" {
				t.Error("the answer may be cached")
			}
		})
	}
}

func TestReady(t *testing.T) {
	far := time.Now().Add(time.Hour).UnixNano()
	every := func(f func(*fleet.Live)) func(*rig) {
		return func(r *rig) { r.fleet.Snapshot().Instances(func(i *fleet.Instance) { f(i.Live) }) }
	}
	tests := map[string]struct {
		change  func(*rig)
		reasons []string
		counts  map[string]int
	}{
		"open":        {func(*rig) {}, nil, map[string]int{"open": 3}},
		"all down":    {every(func(l *fleet.Live) { l.SetDown(true, 0) }), []string{"no instance is open"}, map[string]int{"down": 3}},
		"all drain":   {every(func(l *fleet.Live) { l.SetDraining(true) }), []string{"no instance is open"}, map[string]int{"draining": 3}},
		"all ejected": {every(func(l *fleet.Live) { l.Eject(far) }), []string{"no instance is open"}, map[string]int{"ejected": 3}},
		"all busy":    {every(func(l *fleet.Live) { l.Cool(far) }), nil, map[string]int{"cooling": 3}},
		"one left": {func(r *rig) {
			every(func(l *fleet.Live) { l.SetDown(true, 0) })(r)
			r.fleet.Snapshot().Regions[1].Pools[0].Instances[0].Live.SetDown(false, 0)
		}, nil, map[string]int{"down": 2, "open": 1}},
		"empty": {func(r *rig) {
			if err := r.fleet.Apply(fleet.Layout{}); err != nil {
				panic(err)
			}
		}, []string{"the fleet has no instance"}, map[string]int{}},
		"stopping":      {func(r *rig) { r.control.stopping = true }, []string{"the gateway is stopping"}, map[string]int{"open": 3}},
		"stopping, too": {func(r *rig) { r.control.stopping = true; every(func(l *fleet.Live) { l.SetDown(true, 0) })(r) }, []string{"the gateway is stopping", "no instance is open"}, map[string]int{"down": 3}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, admin.Default())
			tt.change(r)
			type readiness struct {
				Ready     bool
				Reasons   []string
				Instances map[string]int
			}
			for _, h := range []http.Handler{r, r.Probes()} {
				w := ask(h, "GET", "/readyz")
				if diff := cmp.Diff(readiness{tt.reasons == nil, tt.reasons, tt.counts}, decode[readiness](t, w)); diff != "" {
					t.Errorf("answer (-want +got):\n%s", diff)
				}
				if (w.Code == 200) != (tt.reasons == nil) || w.Code != 200 && w.Code != 503 {
					t.Errorf("got status %d", w.Code)
				}
			}
		})
	}
}

func TestDrain(t *testing.T) {
	all := []string{"eu/gpu/10.0.0.1:8000", "eu/gpu/10.0.0.2:8000/base", "us/gpu/10.0.0.1:8000"}
	tests := map[string]struct {
		name   string
		status int
		found  string
		known  []string
	}{
		"full name":           {"us/gpu/10.0.0.1:8000", 200, "us/gpu/10.0.0.1:8000", nil},
		"host and port":       {"10.0.0.2:8000", 200, "eu/gpu/10.0.0.2:8000/base", nil},
		"with its base path":  {"10.0.0.2:8000/base", 200, "eu/gpu/10.0.0.2:8000/base", nil},
		"full with base path": {"eu/gpu/10.0.0.2:8000/base", 200, "eu/gpu/10.0.0.2:8000/base", nil},
		"ambiguous":           {"10.0.0.1:8000", 409, "", []string{all[0], all[2]}},
		"ambiguous with pool": {"gpu/10.0.0.1:8000", 409, "", []string{all[0], all[2]}},
		"unknown":             {"10.0.0.9:8000", 404, "", all},
		"part of a host":      {"0.0.1:8000", 404, "", all},
		"nothing":             {"", 404, "", all},
	}
	type drained struct {
		Instance          string
		Draining, Changed bool
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, admin.Default())
			steps := []struct {
				method, path  string
				on, hasEffect bool
			}{
				{"POST", "/admin/drain/", true, true},
				{"POST", "/admin/drain/", true, false},
				{"DELETE", "/admin/drain/", false, true},
				{"POST", "/admin/undrain/", false, false},
			}
			for _, step := range steps {
				w := ask(r, step.method, step.path+tt.name)
				if w.Code != tt.status {
					t.Fatalf("%s %s: got status %d, want %d: %s", step.method, step.path, w.Code, tt.status, w.Body)
				}
				if tt.status != 200 {
					if diff := cmp.Diff(tt.known, decode[failure](t, w).Known); diff != "" {
						t.Errorf("known names (-want +got):\n%s", diff)
					}
					continue
				}
				if diff := cmp.Diff(drained{tt.found, step.on, step.hasEffect}, decode[drained](t, w)); diff != "" {
					t.Errorf("%s %s (-want +got):\n%s", step.method, step.path, diff)
				}
				i, _ := r.fleet.Snapshot().Instance(tt.found)
				if got := i.Status(time.Now().UnixNano()) == fleet.Draining; got != step.on {
					t.Errorf("%s %s: instance drains: %v, want %v", step.method, step.path, got, step.on)
				}
			}
			if got := strings.Count(r.log.String(), "msg=drain"); tt.status == 200 && got != 2 {
				t.Errorf("got %d log lines, want one for each change", got)
			}
		})
	}
}

func TestFleet(t *testing.T) {
	r := newRig(t, admin.Default())
	i, _ := r.fleet.Snapshot().Instance("us/gpu/10.0.0.1:8000")
	i.Live.SetDraining(true)
	i.Live.ObserveTTFT(time.Now().UnixNano(), 125*time.Millisecond)
	got := decode[admin.Picture](t, ask(r, "GET", "/admin/fleet"))
	if _, err := time.Parse(time.RFC3339Nano, got.At); err != nil {
		t.Error(err)
	}
	got.At = ""
	node := func(name, status string, weight float64, backup bool) admin.Node {
		return admin.Node{Name: name, Status: status, Weight: weight, Backup: backup}
	}
	models, surfaces := map[string]string{"llama": "meta"}, []string{"chat"}
	drained := node("us/gpu/10.0.0.1:8000", "draining", 1, false)
	drained.TTFTMillis = 125
	want := admin.Picture{Version: 1, Models: []string{"llama"}, Regions: []admin.Region{
		{Node: node("eu", "open", 1, false), Pools: []admin.Pool{{
			Node: node("eu/gpu", "open", 2, false), Models: models, Surfaces: surfaces, Instances: []admin.Instance{
				{Node: node("eu/gpu/10.0.0.1:8000", "open", 1, false), URL: "http://10.0.0.1:8000", Capacity: 8},
				{Node: node("eu/gpu/10.0.0.2:8000/base", "open", 1, false), URL: "http://10.0.0.2:8000/base", Capacity: 8},
			},
		}}},
		{Node: node("us", "draining", 1, true), Pools: []admin.Pool{{
			Node: node("us/gpu", "draining", 2, false), Models: models, Surfaces: surfaces, Instances: []admin.Instance{
				{Node: drained, URL: "http://10.0.0.1:8000", Capacity: 8},
			},
		}}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("picture (-want +got):\n%s", diff)
	}
	if err := r.fleet.Apply(fleet.Layout{}); err != nil {
		t.Fatal(err)
	}
	if body := ask(r, "GET", "/admin/fleet").Body.String(); strings.Contains(body, "null") {
		t.Errorf("an empty fleet has null in its picture: %s", body)
	}
}

func TestReload(t *testing.T) {
	r := newRig(t, admin.Default())
	if w := ask(r, "POST", "/admin/reload"); w.Code != 200 || decode[admin.State](t, w).Version != 2 {
		t.Errorf("reload: got %d %s", w.Code, w.Body)
	}
	r.control.err = errors.New("gateway.timeout: must be > 0, got 0s")
	w := ask(r, "POST", "/admin/reload")
	refused := decode[struct {
		Error  struct{ Message, Code string }
		Config admin.State
	}](t, w)
	if w.Code != 422 || refused.Error.Code != "invalid_config" || refused.Error.Message != r.control.err.Error() || refused.Config.Version != 2 {
		t.Errorf("refused reload: got %d %s", w.Code, w.Body)
	}
	want := admin.State{Hash: "abc", Version: 2, Source: "spillway.yaml", LoadedAt: loaded, LastError: r.control.err.Error(), LastErrorAt: loaded.Add(time.Hour)}
	if diff := cmp.Diff(want, decode[admin.State](t, ask(r, "GET", "/admin/config"))); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

func TestToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(token string) {
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first-token")
	cfg := admin.Config{Listen: "0.0.0.0:9090", TokenFile: path}
	r := newRig(t, cfg)
	bearer := func(v string) func(*http.Request) {
		return func(req *http.Request) { req.Host = "gw.example"; req.Header.Set("Authorization", v) }
	}
	status := func(path, auth string) int { return ask(r, "GET", path, bearer(auth)).Code }
	for auth, want := range map[string]int{"Bearer first-token": 200, "bearer first-token": 200, "Bearer second-token": 401, "Bearer ": 401, "": 401, "Basic first-token": 401, "first-token": 401} {
		if got := status("/admin/config", auth); got != want {
			t.Errorf("%q: got status %d, want %d", auth, got, want)
		}
	}
	for _, p := range []string{"/metrics", "/admin/fleet", "/nope"} {
		if got := status(p, ""); got != 401 {
			t.Errorf("%s without a token: got status %d, want 401", p, got)
		}
	}
	if status("/livez", "") != 200 || status("/readyz", "") != 200 {
		t.Error("the probes want a token")
	}
	write("second-token")
	if err := r.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if status("/admin/config", "Bearer first-token") != 401 || status("/admin/config", "Bearer second-token") != 200 {
		t.Error("the changed token is not in use after Apply")
	}
	write("")
	if err := r.Apply(cfg); err == nil || status("/admin/config", "Bearer second-token") != 200 || status("/admin/config", "") != 401 {
		t.Errorf("an empty token file changed something: %v", err)
	}
	if w := ask(r, "GET", "/admin/config", bearer("")); w.Header().Get("WWW-Authenticate") != "Bearer" || decode[failure](t, w).Error.Code != "unauthorized" {
		t.Errorf("got %v %s", w.Header(), w.Body)
	}
}

// TestBrowsers lets a page of another site ask, by its own name for this machine
// and across origins.
func TestBrowsers(t *testing.T) {
	r := newRig(t, admin.Default())
	host := func(h string) func(*http.Request) { return func(req *http.Request) { req.Host = h } }
	site := func(v string) func(*http.Request) {
		return func(req *http.Request) { req.Header.Set("Sec-Fetch-Site", v) }
	}
	tests := map[string]struct {
		method, path string
		change       func(*http.Request)
		want         int
	}{
		"localhost":            {"GET", "/admin/config", host("localhost:9090"), 200},
		"IPv4":                 {"GET", "/admin/config", host("127.0.0.1:9090"), 200},
		"IPv6":                 {"GET", "/admin/config", host("[::1]:9090"), 200},
		"IPv6, no port":        {"GET", "/admin/config", host("[::1]"), 200},
		"rebound name":         {"GET", "/admin/config", host("evil.example:9090"), 403},
		"looks like loopback":  {"GET", "/admin/config", host("127.0.0.1.evil.example"), 403},
		"no host":              {"GET", "/admin/config", host(""), 403},
		"probe by any name":    {"GET", "/readyz", host("evil.example"), 200},
		"post across sites":    {"POST", "/admin/reload", site("cross-site"), 403},
		"post from own page":   {"POST", "/admin/reload", site("same-origin"), 200},
		"drain across sites":   {"POST", "/admin/drain/10.0.0.2:8000", site("cross-site"), 403},
		"undrain across sites": {"DELETE", "/admin/drain/10.0.0.2:8000", site("cross-site"), 403},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if w := ask(r, tt.method, tt.path, tt.change); w.Code != tt.want {
				t.Errorf("got status %d, want %d: %s", w.Code, tt.want, w.Body)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	t.Setenv("ADMIN_TEST_TOKEN", "long enough")
	t.Setenv("ADMIN_TEST_SHORT", "short")
	gone := filepath.Join(t.TempDir(), "gone")
	tests := map[string]struct {
		cfg  admin.Config
		want []string // how the mistakes begin
	}{
		"default":             {admin.Default(), nil},
		"localhost":           {admin.Config{Listen: "localhost:1"}, nil},
		"IPv6 loopback":       {admin.Config{Listen: "[::1]:1"}, nil},
		"token":               {admin.Config{Listen: ":9090", TokenEnv: "ADMIN_TEST_TOKEN"}, nil},
		"all interfaces":      {admin.Config{Listen: ":9090"}, []string{"listen: "}},
		"another address":     {admin.Config{Listen: "10.0.0.1:9090"}, []string{"listen: "}},
		"no port":             {admin.Config{Listen: "127.0.0.1"}, []string{"listen: "}},
		"short token":         {admin.Config{Listen: ":9090", TokenEnv: "ADMIN_TEST_SHORT"}, []string{"token_env: "}},
		"unset variable":      {admin.Config{Listen: ":9090", TokenEnv: "ADMIN_TEST_UNSET"}, []string{"token_env: "}},
		"missing file":        {admin.Config{Listen: "x", TokenFile: gone}, []string{"listen: ", "token_file: "}},
		"both are given, too": {admin.Config{Listen: ":1", TokenFile: gone, TokenEnv: "ADMIN_TEST_TOKEN"}, []string{"token_file: "}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got []string
			if err := tt.cfg.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
				if strings.Contains(err.Error(), "short") && tt.cfg.TokenEnv == "ADMIN_TEST_SHORT" {
					t.Errorf("the error repeats the token: %v", err)
				}
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("got %q, want it to begin with %q", got[i], tt.want[i])
				}
			}
		})
	}
}

// TestRun serves a real listener and ends with its context.
func TestRun(t *testing.T) {
	r := newRig(t, admin.Default())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, ln) }()
	transport := new(http.Transport)
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + ln.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(body), "test_total 42") {
		t.Errorf("got %s", body)
	}
	transport.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, err := client.Get("http://" + ln.Addr().String() + "/livez"); err == nil {
		t.Error("the listener is open after the end")
	}
	closed := newRig(t, admin.Default())
	if err := closed.Run(t.Context(), ln); err == nil {
		t.Error("a closed listener gave no error")
	}
}

func ExampleServer_Probes() {
	f := fleet.New(slog.New(slog.DiscardHandler)) // without an instance
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: f, Metrics: prometheus.NewRegistry(), Control: new(control), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	w := httptest.NewRecorder()
	s.Probes().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	fmt.Println(w.Code)
	// Output: 503
}
