package cli_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/cli"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// command is one command that runs.
type command struct {
	out, errs testkit.Log
	stop      context.CancelFunc
	ended     chan int
}

// start runs a command until it ends or is stopped.
func start(t *testing.T, args ...string) *command {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &command{stop: cancel, ended: make(chan int, 1)}
	go func() {
		c.ended <- cli.Main(ctx, cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &c.out, Stderr: &c.errs})
	}()
	t.Cleanup(func() { cancel(); c.wait(t) })
	return c
}

// wait returns the exit status.
func (c *command) wait(t *testing.T) int {
	t.Helper()
	select {
	case code := <-c.ended:
		c.ended <- code
		return code
	case <-time.After(30 * time.Second):
		t.Error("the command did not end")
		return -1
	}
}

// run runs a command to its end.
func run(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	c := start(t, args...)
	code = c.wait(t)
	return code, c.out.String(), c.errs.String()
}

// file writes a file for a test.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "spillway.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const good = `api:
  listen: 127.0.0.1:0
admin:
  listen: 127.0.0.1:0
fleet:
  regions:
    - name: eu
      pools:
        - name: gpu
          instances: ["http://127.0.0.1:1"]
`

var commands = []string{"check", "demo", "emergency", "engine", "explain", "load", "serve", "version"}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"help"}, {"--help"}, {"-h"}} {
		code, out, errs := run(t, args...)
		if code != 0 || errs != "" || !strings.Contains(out, "Examples:") {
			t.Errorf("%v: got %d %q %q", args, code, out, errs)
		}
		for _, c := range commands {
			if !regexp.MustCompile(`(?m)^  ` + c + ` +\S`).MatchString(out) {
				t.Errorf("%v does not list %s", args, c)
			}
		}
	}
	for _, c := range commands {
		for _, args := range [][]string{{c, "--help"}, {"help", c}} {
			code, out, errs := run(t, args...)
			if code != 0 || errs != "" || !strings.Contains(out, "Examples:\n  spillway "+c) {
				t.Errorf("%v: got %d %q %q", args, code, out, errs)
			}
		}
		_, out, _ := run(t, c, "--help")
		for flag := range strings.Lines(out) {
			if regexp.MustCompile(`^ +(-\w, )?--[\w-]+( \w+)?\s*$`).MatchString(strings.TrimRight(flag, "\n")) {
				t.Errorf("%s: no help for %q", c, flag)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	code, out, errs := run(t, "version")
	if code != 0 || errs != "" || !regexp.MustCompile(`^spillway \d+\.\d+\.\d+ \(.+, go1\..+, \w+/\w+\)\n$`).MatchString(out) {
		t.Errorf("got %d %q %q", code, out, errs)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, errs := run(t, "completion", shell); code != 0 || errs != "" || !strings.Contains(out, "spillway") {
			t.Errorf("%s: got %d %.100q %q", shell, code, out, errs)
		}
	}
	if code, out, _ := run(t, "__complete", "se"); code != 0 || !strings.Contains(out, "serve") {
		t.Errorf("got %d %q", code, out)
	}
}

// Status 2 is a command that could not be run as it was called.
func TestWrongCalls(t *testing.T) {
	path := file(t, good)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown command":      {[]string{"srve"}, `unknown command "srve"; did you mean serve?`},
		"nothing like it":      {[]string{"xyzzy"}, `unknown command "xyzzy"` + "\n"},
		"unknown flag":         {[]string{"serve", "--port", "1"}, "unknown flag: --port"},
		"unknown short flag":   {[]string{"serve", "-x"}, "unknown shorthand flag"},
		"flag without a value": {[]string{"serve", "-c"}, "flag needs an argument"},
		"no configuration":     {[]string{"serve"}, "--upstream"},
		"check without one":    {[]string{"check"}, "--upstream"},
		"explain without one":  {[]string{"explain"}, "--upstream"},
		"both":                 {[]string{"serve", "--config", path, "--upstream", "http://127.0.0.1:1"}, "--config and --upstream exclude each other"},
		"check with both":      {[]string{"check", "-c", path, "--upstream", "http://127.0.0.1:1"}, "--config and --upstream exclude each other"},
		"argument":             {[]string{"serve", "-c", path, "more"}, "more"},
		"version argument":     {[]string{"version", "x"}, "x"},
		"engine seqs":          {[]string{"engine", "--max-seqs", "0"}, "max_seqs"},
		"engine duration":      {[]string{"engine", "--step-base", "fast"}, "step-base"},
		"engine overload":      {[]string{"engine", "--overload", "panic"}, "overload"},
		"engine faults":        {[]string{"engine", "--faults", `{"nonsense":1}`}, "nonsense"},
		"engine faults JSON":   {[]string{"engine", "--faults", `{`}, "--faults"},
		"load without a URL":   {[]string{"load", "--rate", "1"}, "arg"},
		"load without a rate":  {[]string{"load", "http://127.0.0.1:1"}, ""},
		"load class":           {[]string{"load", "http://127.0.0.1:1", "--rate", "1", "--class", "vip"}, "--class"},
		"load bad URL":         {[]string{"load", "nowhere", "--rate", "1", "--duration", "1s"}, "nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := run(t, c.args...)
			if code != 2 || !strings.Contains(errs, c.want) || !strings.HasPrefix(errs, "spillway: ") || strings.HasPrefix(errs, "spillway: usage") {
				t.Errorf("got %d %q %q, want 2 and %q", code, out, errs, c.want)
			}
			if out != "" {
				t.Errorf("on standard output: %q", out)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	if code, out, errs := run(t, "check", "-c", file(t, good)); code != 0 || out != "the configuration is good\n" || errs != "" {
		t.Errorf("got %d %q %q", code, out, errs)
	}
	path := file(t, strings.Replace(good, "listen: 127.0.0.1:0", "listen: nowhere", 1)+"          weight: 0\ngateway:\n  retry: {attempts: 0}\n")
	code, out, errs := run(t, "check", "--config", path)
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	if code != 1 || out != "" || len(lines) != 4 || lines[3] != "spillway: 3 mistakes in the configuration" {
		t.Fatalf("got %d %q %q", code, out, errs)
	}
	for i, want := range []string{":2: api.listen: ", ":11: fleet.regions[0].pools[0].weight: ", ":13: gateway.retry.attempts: "} {
		if !strings.HasPrefix(lines[i], path+want) {
			t.Errorf("got %q, want %q", lines[i], path+want)
		}
	}
	code, _, errs = run(t, "check", "-c", file(t, good+"what: 1\n"))
	if code != 1 || !strings.Contains(errs, `unknown key "what"`) || !strings.HasSuffix(errs, "spillway: 1 mistake in the configuration\n") {
		t.Errorf("got %d %q", code, errs)
	}
	code, _, errs = run(t, "check", "-c", filepath.Join(t.TempDir(), "none.yaml"))
	if code != 1 || !strings.Contains(errs, "none.yaml") || !strings.HasPrefix(errs, "spillway: ") {
		t.Errorf("no file: got %d %q", code, errs)
	}
	code, _, errs = run(t, "check", "-c", file(t, good+"usage:\n  access_log: /nonexistent/dir/log\n"))
	if code != 1 || !strings.Contains(errs, ":12: usage.access_log: ") {
		t.Errorf("what is named but not there: got %d %q", code, errs)
	}
	code, _, errs = run(t, "check", "--upstream", "ftp://x")
	if code != 1 || !strings.Contains(errs, "ftp://x") {
		t.Errorf("got %d %q", code, errs)
	}
	if code, _, errs = run(t, "check", "--upstream", "http://127.0.0.1:1"); code != 0 {
		t.Errorf("got %d %q", code, errs)
	}
}

func TestExplain(t *testing.T) {
	path := file(t, good)
	code, out, errs := run(t, "explain", "-c", path, "--listen", "127.0.0.1:7")
	if code != 0 || errs != "" {
		t.Fatalf("got %d %q", code, errs)
	}
	for _, want := range []string{
		`(?m)^api\.listen +"127\.0\.0\.1:7" +flag --listen$`, `(?m)^admin\.listen +"127\.0\.0\.1:0" +` + regexp.QuoteMeta(path) + `:4$`,
		`(?m)^gateway\.retry\.attempts +\d+ +default$`, `(?m)^fleet\.regions\[0\]\.pools\[0\]\.instances\[0\]\.url +"http://127\.0\.0\.1:1" +` + regexp.QuoteMeta(path) + `:10$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s does not match in\n%s", want, out)
		}
	}
	code, out, _ = run(t, "explain", "--upstream", "http://127.0.0.1:1")
	if code != 0 || !regexp.MustCompile(`instances\[0\]\.url +"http://127\.0\.0\.1:1" +flag --upstream`).MatchString(out) {
		t.Errorf("got %d\n%s", code, out)
	}
	if code, out, errs = run(t, "explain", "-c", file(t, "a: 1")); code != 1 || out != "" || !strings.Contains(errs, "mistake") {
		t.Errorf("got %d %q %q", code, out, errs)
	}
}

// line is one line of the gateway's log.
type line struct{ Msg, API, Admin, Level string }

// serving waits until a gateway serves, and returns its addresses.
func (c *command) serving(t *testing.T) (api, admin string) {
	t.Helper()
	testkit.Eventually(t, "the gateway serves", func() bool {
		for text := range strings.Lines(c.errs.String()) {
			var l line
			if json.Unmarshal([]byte(text), &l) == nil && l.Msg == "serving" {
				api, admin = "http://"+l.API, "http://"+l.Admin
			}
		}
		return api != ""
	})
	return api, admin
}

// fetch reads a page on a connection of its own.
func fetch(method, url, body string) (int, string) {
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Do(req)
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

func TestServeWithoutAFileLearnsTheModels(t *testing.T) {
	engine := start(t, "engine", "--listen", "127.0.0.1:0", "--model", "sim-a", "--step-base", "1ms")
	url := "http://" + engine.listening(t)
	c := start(t, "serve", "--upstream", url, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
	api, admin := c.serving(t)
	testkit.Eventually(t, "the model is learned", func() bool { _, body := fetch("GET", api+"/v1/models", ""); return strings.Contains(body, "sim-a") })
	status, body := fetch("POST", api+"/v1/chat/completions", `{"model":"sim-a","max_tokens":3,"messages":[{"role":"user","content":"hi"}]}`)
	if status != 200 || !strings.Contains(body, `"choices"`) {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := fetch("GET", admin+"/admin/config", ""); status != 200 || !strings.Contains(body, `"source": "flags"`) {
		t.Errorf("got %d %s", status, body)
	}
	if status, _ := fetch("POST", admin+"/admin/reload", ""); status != 422 {
		t.Errorf("a reload without a file: got %d", status)
	}
	c.stop() // Ctrl-C
	if code := c.wait(t); code != 0 {
		t.Errorf("got status %d after an interrupt: %s", code, c.errs.String())
	}
	engine.stop()
	if code := engine.wait(t); code != 0 {
		t.Errorf("the engine: got status %d after an interrupt: %s", code, engine.errs.String())
	}
}

// listening waits until an engine listens and returns its address.
func (c *command) listening(t *testing.T) (addr string) {
	t.Helper()
	testkit.Eventually(t, "the engine listens", func() bool {
		if m := regexp.MustCompile(`listening on (\S+)\n`).FindStringSubmatch(c.out.String()); m != nil {
			addr = m[1]
		}
		return addr != ""
	})
	return addr
}

func TestServeAFile(t *testing.T) {
	path := file(t, strings.Replace(good, "listen: 127.0.0.1:0", "listen: :1", 1)) // replaced by the flag, also after a reload
	c := start(t, "serve", "-c", path, "--listen", "127.0.0.1:0")
	api, admin := c.serving(t)
	if status, _ := fetch("GET", api+"/livez", ""); status != 200 {
		t.Errorf("got %d", status)
	}
	if status, body := fetch("POST", admin+"/admin/reload", ""); status != 200 || !strings.Contains(body, `"version": 2`) {
		t.Errorf("got %d %s", status, body)
	}
	c.stop()
	if code := c.wait(t); code != 0 {
		t.Errorf("got status %d: %s", code, c.errs.String())
	}
}

func TestServeFailsWithAReason(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	code, _, errs := run(t, "serve", "-c", file(t, good), "--listen", taken.Addr().String())
	if code != 1 || !strings.Contains(errs, "address already in use") || !strings.Contains(errs, taken.Addr().String()) {
		t.Errorf("got %d %q", code, errs)
	}
	code, _, errs = run(t, "serve", "-c", file(t, good+"what: 1\n"))
	if code != 1 || !strings.Contains(errs, "unknown key") {
		t.Errorf("got %d %q", code, errs)
	}
	code, _, errs = run(t, "serve", "--upstream", "http://127.0.0.1:1", "--listen", "nowhere")
	if code != 1 || !strings.Contains(errs, "api.listen") {
		t.Errorf("got %d %q", code, errs)
	}
	code, _, errs = run(t, "engine", "--listen", taken.Addr().String())
	if code != 1 || !strings.Contains(errs, "address already in use") {
		t.Errorf("got %d %q", code, errs)
	}
}

func TestLoadAgainstAnEngine(t *testing.T) {
	engine := start(t, "engine", "--listen", "127.0.0.1:0", "--step-base", "1ms")
	report := filepath.Join(t.TempDir(), "report.json")
	code, out, errs := run(t, "load", "http://"+engine.listening(t), "--model", "sim", "--rate", "20", "--duration", "1s", "--output-tokens", "3", "--prompt-tokens", "20", "--json", report)
	if code != 0 || !strings.Contains(out, "TTFT") && !strings.Contains(out, "ttft") {
		t.Fatalf("got %d\n%s\n%s", code, out, errs)
	}
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Systems []struct {
			Offered, Answered int64
			Errors            map[string]int64
		}
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Systems) != 1 || r.Systems[0].Offered == 0 || r.Systems[0].Answered != r.Systems[0].Offered || len(r.Systems[0].Errors) != 0 {
		t.Errorf("got %+v in %s", r, b)
	}
	code, _, errs = run(t, "load", "http://127.0.0.1:1", "--model", "sim", "--rate", "5", "--duration", "200ms", "--json", filepath.Join(t.TempDir(), "none", "report.json"))
	if code != 1 || !strings.Contains(errs, "report.json") {
		t.Errorf("a report that cannot be written: got %d %q", code, errs)
	}
}

func TestAnInterruptEndsALoad(t *testing.T) {
	engine := start(t, "engine", "--listen", "127.0.0.1:0", "--step-base", "1ms")
	url := "http://" + engine.listening(t)
	c := start(t, "load", url, "--model", "sim", "--rate", "20", "--duration", "10m", "--output-tokens", "2")
	answered := regexp.MustCompile(`(?m)^vllm:request_success_total.* [1-9]\d*$`)
	testkit.Eventually(t, "the engine has answered", func() bool { _, body := fetch("GET", url+"/metrics", ""); return answered.MatchString(body) })
	c.stop()
	if code := c.wait(t); code < 0 || code == 2 {
		t.Errorf("got status %d: %s", code, c.errs.String())
	}
}
