// Package file finds a pool's instances in a file, written as Prometheus' file
// service discovery (file_sd) has it, in YAML or JSON:
//
//	[{"targets": ["10.0.0.1:8000", "http://b:8000"], "labels": {"weight": "2", "backup": "true"}}]
//
// The labels weight, backup, max_in_flight and scheme are understood; others are
// left out with a warning, so that a file made for Prometheus serves as it is.
//
// Run works on its caller's goroutine and owns the watcher's. It watches the
// file's directory, not the file: editors and Kubernetes replace files and
// symbolic links instead of writing to them. A slow poll covers file systems
// that tell nothing. A file that is broken, empty or gone changes nothing: the
// last good set stays, and each mistake is logged once.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/spillway/spillway/internal/fleet"
)

// settle is how long the directory must be quiet before the file is read, so
// that a burst of events is one reading; maxSettle ends the wait in a directory
// that is never quiet.
const (
	settle    = 100 * time.Millisecond
	maxSettle = time.Second
)

// maxFile is the longest file that is read, in bytes.
const maxFile = 16 << 20

// Config is the key `file` in a pool's section of the configuration.
type Config struct {
	// The file, YAML or, when its name ends in .json, JSON.
	Path string `yaml:"path"`
	// Time between two looks at the file beside the watch on its directory.
	Poll time.Duration `yaml:"poll"`
}

// Default returns the configuration of a section that says nothing.
func Default() Config { return Config{Poll: 30 * time.Second} }

// Validate returns every mistake in the section. The file may appear later.
func (c *Config) Validate() error {
	var errs []error
	if c.Path == "" {
		errs = append(errs, errors.New("path: must name a file"))
	}
	if c.Poll < 10*time.Millisecond {
		errs = append(errs, fmt.Errorf("poll: must be >= 10ms, got %v", c.Poll))
	}
	return errors.Join(errs...)
}

// Source is the fleet.Source of one file.
type Source struct {
	cfg  Config
	log  *slog.Logger
	last struct {
		targets  []fleet.Target
		known    bool   // targets were reported
		problem  string // logged last; "" is none
		warnings []string
	}
}

var _ fleet.Source = (*Source)(nil)

// New returns a source that has read nothing yet.
func New(cfg Config, log *slog.Logger) *Source {
	return &Source{cfg: cfg, log: log.With("component", "fleet", "source", "file", "path", cfg.Path)}
}

// Run implements fleet.Source. It is called once and returns nil when ctx ends.
func (s *Source) Run(ctx context.Context, update func([]fleet.Target)) error {
	events, closed := s.watch()
	defer func() { closed() }()
	poll := time.NewTicker(s.cfg.Poll)
	defer poll.Stop()
	for {
		s.look(update)
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
			closed() // a directory that was replaced needs a new watch
			events, closed = s.watch()
		case _, ok := <-events:
			if !ok {
				events = nil
			} else if !quiet(ctx, events) {
				return nil
			}
		}
	}
}

// watch begins to watch the file's directory. Without a watcher the poll alone
// notices changes.
func (s *Source) watch() (<-chan fsnotify.Event, func()) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, func() {}
	}
	if err := w.Add(filepath.Dir(s.cfg.Path)); err != nil {
		_ = w.Close()
		return nil, func() {}
	}
	go func() { // ends when w is closed
		for range w.Errors {
		}
	}()
	return w.Events, func() { _ = w.Close() }
}

// quiet waits until no event came for a while. It returns false when ctx ends.
func quiet(ctx context.Context, events <-chan fsnotify.Event) bool {
	latest := time.NewTimer(maxSettle)
	defer latest.Stop()
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-latest.C:
			return true
		case <-timer.C:
			return true
		case _, ok := <-events:
			if !ok {
				return true
			}
			timer.Reset(settle)
		}
	}
}

// look reads the file and reports what changed.
func (s *Source) look(update func([]fleet.Target)) {
	targets, warnings, err := s.read()
	if err != nil {
		if problem := err.Error(); problem != s.last.problem {
			s.last.problem = problem
			for _, e := range unjoin(err) {
				s.log.Error("discovery file cannot be used; keeping the last good set", "err", e, "instances", len(s.last.targets))
			}
		}
		return
	}
	if s.last.problem != "" {
		s.last.problem = ""
		s.log.Info("discovery file is good again", "instances", len(targets))
	}
	if !slices.Equal(warnings, s.last.warnings) {
		s.last.warnings = warnings
		for _, w := range warnings {
			s.log.Warn("discovery file: " + w)
		}
	}
	if s.last.known && slices.Equal(targets, s.last.targets) {
		return
	}
	s.last.known, s.last.targets = true, targets
	update(slices.Clone(targets))
}

// read reads and parses the file.
func (s *Source) read() ([]fleet.Target, []string, error) {
	f, err := os.Open(s.cfg.Path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	return Parse(data, filepath.Ext(s.cfg.Path) == ".json")
}

// unjoin lists the mistakes in a joined error.
func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}
