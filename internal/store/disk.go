package store

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

// Disk replaces files. The zero value is the system's; a step that is set stands in
// for the system's, so that tests can make it fail.
type Disk struct {
	Create func(dir, pattern string) (File, error) // makes a temporary file with mode 0600
	Rename func(from, to string) error
	Sync   func(dir string) error // makes renames in a directory lasting
}

// File is a temporary file.
type File interface {
	io.WriteCloser
	// Name is its path.
	Name() string
	// Sync makes what was written lasting.
	Sync() error
}

// Replace puts a file with the data in the place of path. At every instant, through a
// crash and a full disk too, path holds all of its old content or all of its new.
// also, unless it is nil, is done to the new file, by its name, before it takes its
// place. After an error path holds what it held before; only when the last sync failed
// it may hold the new content, which a loss of power may then undo.
func (d Disk) Replace(path string, data []byte, also func(name string) error) error {
	create, rename := d.Create, d.Rename
	if create == nil {
		create = func(dir, pattern string) (File, error) { return os.CreateTemp(dir, pattern) }
	}
	if rename == nil {
		rename = os.Rename
	}
	dir := filepath.Dir(path)
	f, err := create(dir, temporary+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && also != nil {
		err = also(f.Name())
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // what cannot be removed now is no harm
		return err
	}
	return d.sync(dir)
}

// sync makes renames and removals in a directory lasting. Where the system or the file
// system knows no such thing, they are as lasting as they get.
func (d Disk) sync(dir string) error {
	if d.Sync != nil {
		return d.Sync(dir)
	}
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}
