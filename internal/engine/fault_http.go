package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxFaultBody bounds the body of POST /faults in bytes.
const maxFaultBody = 64 << 10

// showFaults is GET /faults: the faults, and how often each has struck since they were set.
func (e *Engine) showFaults(w http.ResponseWriter, _ *http.Request) {
	faults, fired := e.faults.current()
	body, err := renderFaults(faults, fired)
	if err != nil {
		e.log.Error("render faults", "error", err)
		(&problem{status: 500, kind: "server_error", message: err.Error()}).write(w, "")
		return
	}
	writeJSON(w, http.StatusOK, body)
}

// setFaults is POST /faults: JSON with the keys of the configuration's faults section, durations as "200ms". It
// replaces all faults; {} clears them.
func (e *Engine) setFaults(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(e.cfg.BodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxFaultBody))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	if err != nil {
		invalid("", "read faults: "+err.Error()).write(w, "")
		return
	}
	faults, err := ParseFaults(body)
	if err != nil {
		invalid("", err.Error()).write(w, "")
		return
	}
	e.faults.set(faults)
	e.log.Info("faults set", "faults", string(body))
	e.showFaults(w, r)
}

// ParseFaults reads faults from JSON with the configuration's keys, durations written "200ms", and returns every mistake.
// The YAML decoder knows both, and duplicates.
func ParseFaults(body []byte) (Faults, error) {
	var f Faults
	if !json.Valid(body) {
		return f, errors.New("faults must be a JSON object")
	}
	decoder := yaml.NewDecoder(bytes.NewReader(body))
	decoder.KnownFields(true)
	if err := decoder.Decode(&f); err != nil {
		return f, fmt.Errorf("faults: %w", err)
	}
	return f, f.Validate()
}

// renderFaults is the JSON of GET /faults, with the configuration's keys.
func renderFaults(f Faults, fired map[string]int) ([]byte, error) {
	text, err := yaml.Marshal(f)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"faults": tree, "fired": fired})
}
