package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spillway/spillway/internal/route/experiment"
)

// Experiments are the experiments of the router; *experiment.Set is one. Its methods
// are called from many goroutines.
type Experiments interface {
	// Status tells how every experiment stands.
	Status(now time.Time) []experiment.Status
	// Start begins an experiment that does not run, and Stop ends one. The error is
	// experiment.ErrUnknown, experiment.ErrNotKept behind an order that is in force, or
	// says what is wrong with the order.
	Start(now time.Time, name, by string) error
	// Stop ends an experiment, as Start begins one.
	Stop(now time.Time, name, by string) error
}

// ExperimentList is the answer of GET /admin/experiments.
type ExperimentList struct {
	Experiments []experiment.Status `json:"experiments"`
}

// ExperimentState is the answer of POST /admin/experiments/{name}.
type ExperimentState struct {
	experiment.Status
	// Warning is what went wrong behind an order that is in force, as when a restart
	// would not know of it.
	Warning string `json:"warning,omitempty"`
}

// experiments answers GET /admin/experiments.
func (s *Server) experiments(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, ExperimentList{s.parts.Experiments.Status(time.Now())})
}

// orderExperiment answers POST /admin/experiments/{name}. An order that is in force is
// 200, also when there is something to warn of.
func (s *Server) orderExperiment(w http.ResponseWriter, r *http.Request) {
	body, p := readBody(w, r)
	if p != nil {
		p.write(w)
		return
	}
	start, by, err := parseExperimentOrder(body)
	if err != nil {
		p := problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
		p.write(w)
		return
	}
	name, order := r.PathValue("name"), s.parts.Experiments.Stop
	if start {
		order = s.parts.Experiments.Start
	}
	err = order(time.Now(), name, by)
	all := s.parts.Experiments.Status(time.Now())
	var answer ExperimentState
	known := make([]string, 0, len(all))
	for i := range all {
		if known = append(known, all[i].Name); all[i].Name == name {
			answer.Status = all[i]
		}
	}
	switch {
	case errors.Is(err, experiment.ErrUnknown):
		p := problem{http.StatusNotFound, codeNotFound, fmt.Sprintf("unknown experiment %q", name)}
		p.write(w, detail{"known", known})
		return
	case errors.Is(err, experiment.ErrNotKept):
		answer.Warning = err.Error()
	case err != nil:
		p := problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
		p.write(w)
		return
	}
	s.log.Info("an experiment was ordered", "experiment", name, "start", start, "by", by, "from", r.RemoteAddr)
	writeJSON(w, http.StatusOK, answer)
}

// parseExperimentOrder reads what is to become of an experiment.
func parseExperimentOrder(body []byte) (start bool, by string, err error) {
	var v struct {
		State string `json:"state"`
		By    string `json:"by"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return false, "", fmt.Errorf("the body is no order: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return false, "", errors.New("the body is no order: something follows the JSON object")
	}
	switch v.State {
	case experiment.Running, experiment.Stopped:
		return v.State == experiment.Running, v.By, nil
	}
	return false, "", fmt.Errorf("state: want running or stopped, got %q", v.State)
}
