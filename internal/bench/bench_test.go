package bench_test

import (
	"context"
	"encoding/json"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/bench"
	"github.com/spillway/spillway/internal/bench/registry"
	"github.com/spillway/spillway/internal/cli"
	"github.com/spillway/spillway/internal/load"
	"github.com/spillway/spillway/internal/testkit"
)

// TestMain lets the scenarios start their engines, gateways and themselves from this very
// binary, so that they are built as the tests are, with the race detector too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"bench", "engine", "serve"}, os.Args[1]) {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := cli.Main(ctx, cli.Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
		stop()
		os.Exit(code)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE")) // for the children: each would sleep for a second at its end
	goleak.VerifyTestMain(m)
}

// scenario finds a scenario by name.
func scenario(t *testing.T, name string) bench.Scenario {
	t.Helper()
	for _, s := range bench.Scenarios() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no scenario %q", name)
	return bench.Scenario{}
}

// TestDiscovery plays a short form of discovery with each registry, as the command
// does: one of them needs a process in a network of its own.
func TestDiscovery(t *testing.T) {
	for _, source := range bench.DiscoverySources() {
		t.Run(source, func(t *testing.T) {
			file, errs := filepath.Join(t.TempDir(), "result.json"), new(strings.Builder)
			args := []string{"bench", "discovery", "--duration", "5s", "--source", source, "--json", file}
			code := cli.Main(t.Context(), cli.Env{Args: args, Stdout: t.Output(), Stderr: errs})
			for _, missing := range []error{registry.ErrMissing, bench.ErrNoNetwork} {
				if strings.Contains(errs.String(), missing.Error()) {
					testkit.Missing(t, "%s", errs)
				}
			}
			text, err := os.ReadFile(file)
			if code != 0 || err != nil {
				t.Errorf("exit status %d, %v: %s", code, err, errs)
			}
			var result bench.Result
			if err := json.Unmarshal(text, &result); err != nil || len(result.Verdicts) != 7 || result.Missed() != 0 {
				t.Errorf("%v: %s", err, text)
			}
		})
	}
}

// TestScenarios plays short forms of the scenarios whose verdicts do not hang on
// how fast the machine is, with less work for a machine that runs other tests too.
func TestScenarios(t *testing.T) {
	cases := map[string]struct {
		opts     bench.Options
		verdicts int
	}{
		"kill":    {bench.Options{Duration: 6 * time.Second, Share: 0.3}, 4},
		"reload":  {bench.Options{Duration: 6 * time.Second, Count: 3}, 6},
		"leave":   {bench.Options{Count: 20}, 16},
		"refunds": {bench.Options{Count: 60}, 7},
	}
	binary, err := bench.Binary()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.opts.Binary, c.opts.Seed, c.opts.Out, c.opts.Err = binary, 1, t.Output(), t.Output()
			result, err := scenario(t, name).Run(t.Context(), c.opts)
			if err != nil {
				t.Fatal(err)
			}
			if len(result.Verdicts) != c.verdicts {
				t.Errorf("%d verdicts, want %d", len(result.Verdicts), c.verdicts)
			}
			for _, v := range result.Verdicts {
				if !v.OK {
					t.Error(v)
				}
			}
			for _, s := range result.Systems {
				if s.Offered == 0 || len(s.Errors) > 0 {
					t.Logf("%s: %d offered, errors %v", s.Name, s.Offered, s.Errors)
				}
			}
		})
	}
}

func TestResult(t *testing.T) {
	r := bench.Result{Report: load.NewReport("kill", 7), Verdicts: []bench.Verdict{
		{Name: "errors", Value: 0, Relation: bench.Exactly, Limit: 0, OK: true},
		{Name: "memory", Value: 61.5, Relation: bench.AtMost, Limit: 50, Unit: "kB"},
	}}
	if got := r.Missed(); got != 1 {
		t.Errorf("Missed() = %d, want 1", got)
	}
	var text, file strings.Builder
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0 (= 0)  ok\n", "61.5 kB (<= 50)  MISSED\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in\n%s", want, text.String())
		}
	}
	if err := r.WriteJSON(&file); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Scenario string          `json:"scenario"`
		Seed     uint64          `json:"seed"`
		Valid    bool            `json:"valid"`
		Verdicts []bench.Verdict `json:"verdicts"`
	}
	if err := json.Unmarshal([]byte(file.String()), &back); err != nil {
		t.Fatal(err)
	}
	if back.Scenario != "kill" || back.Seed != 7 || !back.Valid || !slices.Equal(back.Verdicts, r.Verdicts) {
		t.Errorf("read back %+v", back)
	}
}

func TestScenarioThatCannotBePlayed(t *testing.T) {
	_, err := scenario(t, "soak").Run(t.Context(), bench.Options{Binary: "/nonexistent", Out: t.Output(), Err: t.Output(), Count: 1})
	if err == nil || !strings.HasPrefix(err.Error(), "soak: start engine 1: ") {
		t.Errorf("error %v, want one that names the scenario and what could not be started", err)
	}
}
