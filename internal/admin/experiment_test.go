package admin_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/route/experiment"
)

// readOnly is a disk that nothing can be kept on.
type readOnly struct{ err error }

func (readOnly) Read(string) ([]byte, error) { return nil, errors.New("a bad sector") }

func (r readOnly) Write(string, []byte) error { return r.err }

// newExperiments returns a server with one experiment.
func newExperiments(t *testing.T, keep experiment.Keep) *admin.Server {
	t.Helper()
	c := experiment.Default()
	c.Name, c.Arms = "new-model", []experiment.Arm{{Name: "control", Weight: 9}, {Name: "canary", Weight: 1}}
	log := slog.New(slog.DiscardHandler)
	set, err := experiment.New([]experiment.Config{c}, experiment.Parts{Log: log, Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: new(control), Experiments: set, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExperiments(t *testing.T) {
	s := newExperiments(t, nil)
	list := func() experiment.Status {
		t.Helper()
		w := ask(s, "GET", "/admin/experiments")
		all := decode[admin.ExperimentList](t, w).Experiments
		if w.Code != http.StatusOK || len(all) != 1 || all[0].Name != "new-model" || len(all[0].Arms) != 2 {
			t.Fatalf("got %d %s", w.Code, w.Body)
		}
		return all[0]
	}
	if got := list(); got.State.State != experiment.Running || got.Share != 1 {
		t.Errorf("got %+v", got)
	}
	for _, state := range []string{"stopped", "stopped", "running"} {
		w := ask(s, "POST", "/admin/experiments/new-model", with(fmt.Sprintf(`{"state":%q,"by":"alice"}`, state)))
		answer := decode[admin.ExperimentState](t, w)
		if w.Code != http.StatusOK || answer.State.State != state || answer.By != "alice" || answer.Warning != "" {
			t.Errorf("%s: got %d %s", state, w.Code, w.Body)
		}
		if got := list(); got.State.State != state {
			t.Errorf("%s: then %+v", state, got)
		}
	}
}

func TestExperimentOrdersThatAreNone(t *testing.T) {
	s := newExperiments(t, nil)
	for name, c := range map[string]struct {
		path, body string
		code       int
		want       string
	}{
		"no state":        {"new-model", `{}`, http.StatusBadRequest, "state: want running or stopped"},
		"another state":   {"new-model", `{"state":"rolled_back"}`, http.StatusBadRequest, "state: want"},
		"a typo":          {"new-model", `{"state":"stopped","buy":"x"}`, http.StatusBadRequest, "no order"},
		"two":             {"new-model", `{"state":"stopped"}{}`, http.StatusBadRequest, "something follows"},
		"two lines":       {"new-model", `{"state":"stopped","by":"a\nb"}`, http.StatusBadRequest, "by: must be"},
		"who":             {"old-model", `{"state":"stopped"}`, http.StatusNotFound, `unknown experiment \"old-model\"`},
		"which are known": {"old-model", `{"state":"stopped"}`, http.StatusNotFound, `"new-model"`},
		"a method":        {"", "", http.StatusNotFound, "unknown path"},
	} {
		w := ask(s, "POST", "/admin/experiments/"+c.path, with(c.body))
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
	if got := decode[admin.ExperimentList](t, ask(s, "GET", "/admin/experiments")).Experiments[0]; got.State.State != experiment.Running {
		t.Errorf("got %+v", got.State)
	}
	plain, _ := newEmergency(t)
	if w := ask(plain, "GET", "/admin/experiments"); w.Code != http.StatusNotFound {
		t.Errorf("without experiments: got %d", w.Code)
	}
}

func TestAnOrderThatIsNotKeptIsAWarning(t *testing.T) {
	s := newExperiments(t, readOnly{errors.New("the disk is full")})
	w := ask(s, "POST", "/admin/experiments/new-model", with(`{"state":"running"}`))
	if got := decode[admin.ExperimentState](t, w); w.Code != http.StatusOK || got.State.State != experiment.Running || !strings.Contains(got.Warning, "the disk is full") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}
