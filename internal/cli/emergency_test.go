package cli_test

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/user"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
)

// emergency is a switch without a governor.
type emergency struct {
	mu      sync.Mutex
	state   admin.EmergencyState
	last    admin.EmergencyOrder
	warning string
}

func (e *emergency) State() admin.EmergencyState { e.mu.Lock(); defer e.mu.Unlock(); return e.state }

func (e *emergency) On(order admin.EmergencyOrder) (admin.EmergencyState, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = order
	if order.Expiry > 24*time.Hour {
		return e.state, errors.New("expiry: must be 1s to 24h0m0s")
	}
	e.state = admin.EmergencyState{On: true, Since: time.Now(), Until: time.Now().Add(order.Expiry), By: order.By, From: order.From, Reason: order.Reason, Profile: e.state.Profile, Warning: e.warning}
	return e.state, nil
}

func (e *emergency) Off(order admin.EmergencyOrder) (admin.EmergencyState, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = order
	e.state = admin.EmergencyState{Profile: e.state.Profile, Warning: e.warning}
	return e.state, nil
}

// gateway is what admin needs of the rest of a gateway.
type gateway struct{ admin.Control }

// operated starts an admin listener with a switch.
func operated(t *testing.T, cfg admin.Config) (url string, e *emergency) {
	t.Helper()
	e = &emergency{state: admin.EmergencyState{Profile: admin.EmergencyProfile{Shed: []string{"batch"}, StandbyPools: true, Brownout: "cap_tokens"}}}
	log := slog.New(slog.DiscardHandler)
	s, err := admin.New(cfg, admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: gateway{}, Emergency: e, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return served(t, s), e
}

// served serves a handler until the test ends.
func served(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestEmergency(t *testing.T) {
	url, e := operated(t, admin.Default())
	call := func(want string, args ...string) {
		t.Helper()
		code, out, errs := run(t, append([]string{"emergency"}, append(args, "--admin", url)...)...)
		if code != 0 || errs != "" || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%v: got %d %q %q, want %q", args, code, out, errs, want)
		}
	}
	t.Setenv("SUDO_USER", "")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	const off = `^emergency mode is off\n$`
	call(off, "status")
	call(`^emergency mode is on until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \((30m0s|29m\d\ds) left\)
  since           .*Z
  by              `+regexp.QuoteMeta(me.Username)+`
  from            127\.0\.0\.1:\d+
  reason          two racks lost
  refused         batch
  standby pools   take work
  brownout        cap_tokens
$`, "on", "--reason", "two racks lost", "--expiry", "30m")
	if want := (admin.EmergencyOrder{By: me.Username, From: e.last.From, Reason: "two racks lost", Expiry: 30 * time.Minute}); cmp.Diff(want, e.last) != "" {
		t.Errorf("order (-want +got):\n%s", cmp.Diff(want, e.last))
	}
	call(`^emergency mode is on until`, "status")
	t.Setenv("SUDO_USER", "carol")
	call(`^emergency mode is on until`, "on")
	if e.last.By != "carol" || e.last.Expiry != 0 || e.last.Reason != "" {
		t.Errorf("got order %+v, want carol's with the gateway's own expiry", e.last)
	}
	e.state.Profile = admin.EmergencyProfile{Brownout: "none"}
	call(`from .*\n  standby pools   stay closed\n  brownout        none\n$`, "status")
	call(off, "off", "--by", "bob")
	if e.last.By != "bob" {
		t.Errorf("got order %+v", e.last)
	}
	call(off, "status")
}

func TestEmergencyInJSON(t *testing.T) {
	url, e := operated(t, admin.Default())
	for _, args := range [][]string{{"on", "--reason", "drill", "--expiry", "5m"}, {"status"}, {"off"}} {
		code, out, errs := run(t, append([]string{"emergency"}, append(args, "--json", "--admin", url+"/")...)...)
		var got admin.EmergencyState
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || errs != "" {
			t.Fatalf("%v: got %d %q %q, %v", args, code, out, errs, err)
		}
		if diff := cmp.Diff(e.State(), got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", args, diff)
		}
	}
}

// TestEmergencyWarns has an order in force that a restart would not know of.
func TestEmergencyWarns(t *testing.T) {
	url, e := operated(t, admin.Default())
	e.warning = "a restart would not know of it: disk full"
	for _, state := range []string{"on", "off"} {
		code, out, errs := run(t, "emergency", state, "--admin", url)
		if code != 0 || !strings.HasPrefix(out, "emergency mode is "+state) || errs != "spillway: warning: "+e.warning+"\n" {
			t.Errorf("%s: got %d %q %q", state, code, out, errs)
		}
	}
}

func TestEmergencyToken(t *testing.T) {
	const token = "a token of good length"
	t.Setenv("GATEWAY_TOKEN", token)
	url, _ := operated(t, admin.Config{TokenEnv: "GATEWAY_TOKEN"})
	tests := map[string]struct {
		env, value string
		args       []string
		code       int
		want       string
	}{
		"default variable": {"SPILLWAY_ADMIN_TOKEN", token, nil, 0, ""},
		"of a file":        {"SPILLWAY_ADMIN_TOKEN", token + "\n", nil, 0, ""},
		"another variable": {"OTHER", token, []string{"--token-env", "OTHER"}, 0, ""},
		"none":             {"OTHER", token, nil, 1, "this command takes the token from SPILLWAY_ADMIN_TOKEN"},
		"wrong":            {"SPILLWAY_ADMIN_TOKEN", "another token", nil, 1, "the admin token is missing or wrong"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SPILLWAY_ADMIN_TOKEN", "")
			t.Setenv(tt.env, tt.value)
			code, _, errs := run(t, append([]string{"emergency", "status", "--admin", url}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.want) || strings.Contains(errs, tt.value) {
				t.Errorf("got %d %q, want %d %q", code, errs, tt.code, tt.want)
			}
		})
	}
}

// TestEmergencyIsAskedWrongly finds other things at the address than an admin
// listener with a switch.
func TestEmergencyIsAskedWrongly(t *testing.T) {
	good, _ := operated(t, admin.Default())
	says := func(status int, header, body string) string {
		return served(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", header)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}))
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	var stolen string
	thief := served(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { stolen = r.Header.Get("Authorization") + r.URL.Path }))
	t.Setenv("SPILLWAY_ADMIN_TOKEN", "secret-of-the-operator")
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"nobody":           {[]string{"status", "--admin", gone.URL}, 1, "connection refused; is the gateway up"},
		"the clients'":     {[]string{"status", "--admin", says(404, "", `{"error":{"message":"unknown path"}}`)}, 1, "has no emergency switch"},
		"a page":           {[]string{"on", "--admin", says(502, "", "<html>\x1b[2J\nbad gateway")}, 1, "status 502: <html> [2J bad gateway"},
		"a long page":      {[]string{"on", "--admin", says(500, "", strings.Repeat("ü", 1000))}, 1, "ü...\n"},
		"somebody's JSON":  {[]string{"status", "--admin", says(200, "", "{}")}, 1, "status 200: {}"},
		"not JSON":         {[]string{"status", "--admin", says(200, "", "ok")}, 1, "status 200: ok"},
		"elsewhere":        {[]string{"status", "--admin", says(307, thief, "")}, 1, "status 307"},
		"refused order":    {[]string{"on", "--expiry", "48h", "--admin", good}, 2, "expiry: must be 1s to 24h0m0s\n"},
		"no URL":           {[]string{"status", "--admin", "localhost:9090"}, 2, `--admin: want a URL as http://127.0.0.1:9090, got "localhost:9090"`},
		"no host":          {[]string{"status", "--admin", "http://"}, 2, "--admin: want a URL"},
		"with a query":     {[]string{"status", "--admin", "http://a?b=c"}, 2, "--admin: want a URL"},
		"no time":          {[]string{"on", "--expiry", "0s", "--admin", good}, 2, "--expiry must be positive"},
		"bad time":         {[]string{"on", "--expiry", "soon", "--admin", good}, 2, "--expiry"},
		"unknown command":  {[]string{"start"}, 2, `unknown command "start"; give on, off or status`},
		"argument":         {[]string{"on", "now", "--admin", good}, 2, "now"},
		"off for a reason": {[]string{"off", "--reason", "over", "--admin", good}, 2, "unknown flag: --reason"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, out, errs := run(t, append([]string{"emergency"}, tt.args...)...)
			if code != tt.code || out != "" || !strings.HasPrefix(errs, "spillway: ") || !strings.Contains(errs, tt.want) {
				t.Errorf("got %d %q %q, want %d %q", code, out, errs, tt.code, tt.want)
			}
		})
	}
	if stolen != "" {
		t.Errorf("the token was sent on: %q", stolen)
	}
}

func TestEmergencyCompletion(t *testing.T) {
	code, out, _ := run(t, "__complete", "emergency", "")
	for _, want := range []string{"on\t", "off\t", "status\t"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("got %d %q, want %q", code, out, want)
		}
	}
	if code, out, _ = run(t, "__complete", "emergency", "on", "--e"); code != 0 || !strings.Contains(out, "--expiry") {
		t.Errorf("got %d %q", code, out)
	}
	code, out, _ = run(t, "emergency")
	if code != 0 || !strings.Contains(out, "Available Commands:") {
		t.Errorf("got %d %q", code, out)
	}
	t.Setenv("SUDO_USER", "carol")
	if _, out, _ = run(t, "emergency", "on", "--help"); strings.Contains(out, "carol") {
		t.Errorf("the help names the user, and so would its page:\n%s", out)
	}
}
