package cli_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route/experiment"
)

// experimenting starts an admin listener with two experiments: one whose canary is
// faster, and one that was rolled back because its canary fails.
func experimenting(t *testing.T) (url string, set *experiment.Set) {
	t.Helper()
	arms := []experiment.Arm{{Name: "control", Weight: 1}, {Name: "canary", Weight: 1}}
	good, bad := experiment.Default(), experiment.Default()
	good.Name, good.Arms, good.Guard.ErrorRate = "faster", arms, 0
	good.Ramp = []experiment.Step{{Share: 0.25}}
	bad.Name, bad.Arms = "failing", arms
	log := slog.New(slog.DiscardHandler)
	set, err := experiment.New([]experiment.Config{good, bad}, experiment.Parts{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(time.Second)
	for i := range 2000 {
		arm := arms[i%2].Name
		rec := &inference.Record{
			Request: &inference.Request{ID: fmt.Sprint(i), Received: now}, Arm: inference.Arm{Experiment: "faster", Arm: arm}, Attempts: make([]inference.Attempt, 1),
			Complete: true, TTFT: time.Duration(float64(time.Second) * math.Exp(math.Sin(float64(i)))), Usage: inference.Usage{CompletionTokens: 10},
		}
		if arm == "canary" {
			rec.TTFT /= 2
		}
		set.Observe(rec)
		if rec.Arm.Experiment = "failing"; arm == "canary" {
			rec.Code = inference.CodeUpstreamError
		}
		set.Observe(rec)
	}
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: gateway{}, Experiments: set, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return served(t, s), set
}

func TestExperimentCommands(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code int
		out  []string // expressions in what is printed
		errs string
	}{
		"status": {args: []string{"status"}, out: []string{
			`(?m)^faster: running since \d{4}-`, `assigned by request, 25% of the traffic now`, `canary +50% +1000 +0 +0 +0 +\d+ms +1\.\d+s`,
			`canary +ttft +1000 .* -50\.0% +-5\d\.\d% to -4\d\.\d% +better`, `canary +success +1000 +100\.00% .* \+0\.00pt .* undecided`,
			`(?m)^failing: rolled back since`, `because error rate: of arm "canary"`,
		}},
		"status of one":      {args: []string{"status", "failing"}, out: []string{`^failing: rolled back`}},
		"status --json":      {args: []string{"status", "--json"}, out: []string{`"state": "rolled_back"`, `"verdict": "better"`}},
		"status of none":     {args: []string{"status", "x"}, code: 2, errs: "known are [faster failing]"},
		"status of two":      {args: []string{"status", "faster", "failing"}, code: 2},
		"stop":               {args: []string{"stop", "faster", "--by", "alice"}, out: []string{`^experiment faster is stopped since .* by alice\n$`}},
		"stop --json":        {args: []string{"stop", "faster", "--json"}, out: []string{`"state": "stopped"`}},
		"start":              {args: []string{"start", "failing", "--by", "bob"}, out: []string{`^experiment failing is running since .* by bob\n$`}},
		"stop what":          {args: []string{"stop"}, code: 2, errs: "the name of an experiment"},
		"stop another":       {args: []string{"stop", "x"}, code: 2, errs: `unknown experiment "x"; known are [faster failing]`},
		"stop by two lines":  {args: []string{"stop", "faster", "--by", "a\nb"}, code: 2, errs: "by: must be one line"},
		"no such command":    {args: []string{"end"}, code: 2, errs: "status, stop or start"},
		"a server elsewhere": {args: []string{"status", "--admin", "http://127.0.0.1:1"}, code: 1, errs: "is the gateway up"},
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := experimenting(t)
			args := append([]string{"experiment"}, c.args...)
			if name != "no such command" && !strings.Contains(strings.Join(args, " "), "--admin") {
				args = append(args, "--admin", url)
			}
			code, out, errs := run(t, args...)
			if code != c.code || !strings.Contains(errs, c.errs) || c.errs == "" && code == 0 && errs != "" {
				t.Errorf("status %d, want %d; want %q in %q", code, c.code, c.errs, errs)
			}
			for _, part := range c.out {
				if !regexp.MustCompile(part).MatchString(out) {
					t.Errorf("no %q in\n%s", part, out)
				}
			}
		})
	}
}

func TestExperimentOrdersAreCarriedOut(t *testing.T) {
	url, set := experimenting(t)
	run(t, "experiment", "stop", "faster", "--admin", url)
	run(t, "experiment", "start", "failing", "--admin", url)
	all := set.Status(time.Now())
	if all[0].State.State != experiment.Stopped || all[1].State.State != experiment.Running {
		t.Errorf("got %+v and %+v", all[0].State, all[1].State)
	}
	for range 20 { // answers in one piece
		set.Observe(&inference.Record{
			Request: &inference.Request{Received: time.Now().Add(time.Second)}, Arm: inference.Arm{Experiment: "failing", Arm: "canary"},
			Attempts: make([]inference.Attempt, 1), Complete: true,
		})
	}
	if _, out, _ := run(t, "experiment", "status", "failing", "--admin", url); !strings.Contains(out, "\n  ttft: no samples of arm \"canary\" in 20 answers; its guard is idle\n") {
		t.Errorf("got\n%s", out)
	}
	_, out, _ := run(t, "experiment", "status", "--json", "--admin", url)
	var list admin.ExperimentList
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Experiments) != 2 {
		t.Errorf("%v in %s", err, out)
	}
	plain, _ := operated(t, admin.Default()) // a gateway without experiments
	if code, _, errs := run(t, "experiment", "status", "--admin", plain); code != 1 || !strings.Contains(errs, "has no experiments") {
		t.Errorf("status %d, %s", code, errs)
	}
}
