// Package store is where a gateway keeps what must survive a restart.
//
// A Store is a directory of small files that are read and replaced as a whole. A
// write goes to a temporary file in the same directory, which is synced, renamed
// over the old one, and made lasting by a sync of the directory: at every instant,
// through a crash, a full disk or a directory that cannot be written, a name holds
// all of its old content or all of its new.
//
// Nothing is created before the first write, so that a gateway without anything
// to keep leaves no trace, and one without a directory works until it has
// something to keep. The package owns no goroutine; a Store has no state but its
// path, so nothing but the file system orders its callers. Gateways on one machine
// need directories of their own.
package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Config is the section `store` of the configuration: where the gateway keeps
// what must survive a restart.
type Config struct {
	// Directory for what must survive a restart, made with the first write. Empty means the first of `$STATE_DIRECTORY` (set by systemd), `$XDG_STATE_HOME/spillway` and `$HOME/.local/state/spillway`. Gateways on one machine need different ones.
	Directory string `yaml:"directory"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config { return Config{} }

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	if strings.ContainsRune(c.Directory, 0) {
		return fmt.Errorf("directory: %q is no path", c.Directory)
	}
	if info, err := os.Stat(c.Directory); c.Directory != "" && err == nil && !info.IsDir() {
		return fmt.Errorf("directory: %s is not a directory", c.Directory)
	}
	return nil
}

// Bounds of what is kept.
const (
	// MaxSize is the most bytes under one name. What is larger belongs into a
	// database.
	MaxSize = 1 << 20
	maxName = 64
)

// leftover is the age from which a temporary file belongs to a writer that died:
// no write takes as long.
const leftover = time.Hour

// temporary is what the names of temporary files begin with.
const temporary = ".tmp-"

// ErrNoDirectory is the cause when nothing can be kept because no directory is
// configured and the environment names none.
var ErrNoDirectory = errors.New("no directory to keep things in: set store.directory")

// Store keeps small files by name. It is safe for concurrent use, also by several
// processes; of two writes of one name the last holds.
type Store struct {
	dir  string
	disk Disk
}

// Open returns the store of a configuration. It creates nothing and works without
// a directory too: then every write fails with ErrNoDirectory. The error is that of
// a wrong configuration.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	dir := cfg.Directory
	if dir == "" {
		dir = fromEnvironment()
	}
	if dir != "" {
		abs, err := filepath.Abs(dir) // the process may change its working directory
		if err != nil {
			return nil, fmt.Errorf("directory: %w", err)
		}
		dir = abs
	}
	return &Store{dir: dir}, nil
}

// fromEnvironment is the directory when none is configured; "" is none. A path
// that is not absolute counts as not set, as the XDG specification has it.
func fromEnvironment() string {
	systemd, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	if filepath.IsAbs(systemd) {
		return systemd
	}
	if xdg := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(xdg) {
		return filepath.Join(xdg, "spillway")
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "spillway")
	}
	return ""
}

// Directory is where the store keeps its files; "" is nowhere. It may not exist yet.
func (s *Store) Directory() string { return s.dir }

// Read returns what is kept under a name. The error is fs.ErrNotExist when nothing
// is.
func (s *Store) Read(name string) ([]byte, error) {
	path, err := s.path(name)
	if errors.Is(err, ErrNoDirectory) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // a pipe would never end
		return nil, fmt.Errorf("read %s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, MaxSize)
	}
	return data, nil
}

// Write replaces what is kept under a name and returns once it is on the disk.
// After an error the name holds what it held before; only when the last sync
// failed it may hold the new content, which a loss of power may then undo.
func (s *Store) Write(name string, data []byte) error {
	path, err := s.path(name)
	if err == nil && len(data) > MaxSize {
		err = fmt.Errorf("%d bytes are more than %d", len(data), MaxSize)
	}
	if err == nil {
		err = makeDir(s.dir)
	}
	if err == nil {
		s.sweep()
		err = s.disk.Replace(path, data, nil)
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	return nil
}

// Remove forgets a name. One that is not kept is no error.
func (s *Store) Remove(name string) error {
	path, err := s.path(name)
	switch {
	case errors.Is(err, ErrNoDirectory):
		return nil
	case err != nil:
		return fmt.Errorf("forget %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // below a file there is nothing
			return nil
		}
		return fmt.Errorf("forget %s: %w", name, err)
	}
	if err := s.disk.sync(s.dir); err != nil {
		return fmt.Errorf("forget %s: %w", name, err)
	}
	return nil
}

// path is a name's file. Names are written in the code, so a bad one is a bug that
// must not reach another directory.
func (s *Store) path(name string) (string, error) {
	good := name != "" && len(name) <= maxName && name[0] != '.' && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
	switch {
	case !good:
		return "", fmt.Errorf("bad name %q", name)
	case s.dir == "":
		return "", ErrNoDirectory
	}
	return filepath.Join(s.dir, name), nil
}

// sweep removes what writers left that died between their first byte and their
// rename, so that a gateway that is killed again and again does not fill the disk.
func (s *Store) sweep() {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), temporary) {
			continue
		}
		if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > leftover {
			_ = os.Remove(filepath.Join(s.dir, f.Name())) // tried again with the next write
		}
	}
}

// makeDir makes a directory and those above it, for this user alone, and makes
// each lasting in the one above.
func makeDir(dir string) error {
	switch info, err := os.Stat(dir); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("%s is not a directory", dir)
	}
	parent := filepath.Dir(dir)
	if parent == dir {
		return fmt.Errorf("%s does not exist", dir) // a drive that is not there
	}
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		if info, again := os.Stat(dir); again == nil && info.IsDir() {
			return nil // another writer made it
		}
		return err
	}
	if err := (Disk{}).sync(parent); !errors.Is(err, fs.ErrPermission) { // a parent may be closed to readers
		return err
	}
	return nil
}
