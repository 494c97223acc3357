package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/fleet"
)

// maxTargets is the most instances that one file may name.
const maxTargets = 10_000

// group is one entry of the file: targets with the same labels.
type group struct {
	Targets []string         `yaml:"targets" json:"targets"`
	Labels  map[string]value `yaml:"labels" json:"labels"`
}

// value is a label's value. Prometheus wants strings; numbers and truth values
// are taken as they are written.
type value string

// UnmarshalYAML takes any scalar.
func (v *value) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: a label must be a string", n.Line)
	}
	*v = value(n.Value)
	return nil
}

// UnmarshalJSON takes any scalar.
func (v *value) UnmarshalJSON(b []byte) error {
	switch b[0] {
	case '"':
		return json.Unmarshal(b, (*string)(v))
	case '{', '[', 'n':
		return errors.New("a label must be a string")
	}
	*v = value(b)
	return nil
}

// Parse reads a discovery file. It returns the targets with warnings about what
// was left out, or every mistake joined; then nothing of the file may be used. A
// file without content is a mistake, because it is most likely half written; an
// empty list is a list.
func Parse(data []byte, isJSON bool) ([]fleet.Target, []string, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil, errors.New("the file is empty; an empty list is written []")
	}
	groups, err := decode(data, isJSON)
	if err != nil {
		return nil, nil, err
	}
	p := parser{unknown: make(map[string]bool), seen: make(map[string]bool)}
	for i, g := range groups {
		p.group(i, g)
	}
	if len(p.targets) > maxTargets {
		p.bad("%d targets; at most %d are taken", len(p.targets), maxTargets)
	}
	if err := errors.Join(p.errs...); err != nil {
		return nil, nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.unknown)) {
		p.warnings = append(p.warnings, fmt.Sprintf("label %q is not used", name))
	}
	return p.targets, p.warnings, nil
}

// decode reads the list of groups strictly.
func decode(data []byte, isJSON bool) ([]group, error) {
	var groups []group
	var err error
	if isJSON {
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err = d.Decode(&groups); err == nil {
			if _, extra := d.Token(); extra != io.EOF {
				err = errors.New("something follows the list")
			}
		}
	} else {
		d := yaml.NewDecoder(bytes.NewReader(data))
		d.KnownFields(true)
		if err = d.Decode(&groups); err == nil {
			if extra := d.Decode(new(yaml.Node)); extra != io.EOF {
				err = errors.New("something follows the list")
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("want a list of targets and labels: %w", err)
	}
	if groups == nil {
		return nil, errors.New("want a list of targets and labels; an empty list is written []")
	}
	return groups, nil
}

// parser collects targets, mistakes and warnings.
type parser struct {
	targets  []fleet.Target
	errs     []error
	warnings []string
	unknown  map[string]bool
	seen     map[string]bool
}

// bad adds a mistake.
func (p *parser) bad(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

// group reads one entry.
func (p *parser) group(i int, g group) {
	var t fleet.Target
	scheme := ""
	for _, name := range slices.Sorted(maps.Keys(g.Labels)) {
		v := string(g.Labels[name])
		var err error
		switch name {
		case "weight":
			if t.Weight, err = strconv.Atoi(v); err != nil || t.Weight < 1 || t.Weight > 1_000_000 {
				p.bad("[%d].labels.weight: must be a whole number from 1 to 1000000, got %q", i, v)
			}
		case "backup":
			if t.Backup, err = strconv.ParseBool(v); err != nil {
				p.bad("[%d].labels.backup: must be true or false, got %q", i, v)
			}
		case "max_in_flight":
			if t.MaxInFlight, err = strconv.ParseInt(v, 10, 64); err != nil || t.MaxInFlight < 0 {
				p.bad("[%d].labels.max_in_flight: must be a whole number >= 0, got %q", i, v)
			}
		case "scheme":
			if scheme = v; v != "http" && v != "https" {
				p.bad("[%d].labels.scheme: must be http or https, got %q", i, v)
			}
		default:
			p.unknown[name] = true
		}
	}
	for k, address := range g.Targets {
		t.URL = address
		if !strings.Contains(address, "://") {
			t.URL = "http://" + address
			if scheme != "" {
				t.URL = scheme + "://" + address
			}
		} else if scheme != "" && !strings.HasPrefix(address, scheme+"://") {
			p.bad("[%d].targets[%d]: %q does not go with the label scheme %q", i, k, address, scheme)
			continue
		}
		if _, err := fleet.ParseURL(t.URL); err != nil {
			p.bad("[%d].targets[%d]: %w", i, k, err)
			continue
		}
		if p.seen[t.URL] {
			p.warnings = append(p.warnings, fmt.Sprintf("%s is named twice; the first entry counts", t.URL))
			continue
		}
		p.seen[t.URL] = true
		p.targets = append(p.targets, t)
	}
}
