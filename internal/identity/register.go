package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/store"
)

// What registers say beside what a disk or a database says.
var (
	// ErrUnknownKey: there is no key with that id.
	ErrUnknownKey = errors.New("there is no key with that id")
	// ErrTaken: there is a key with that id or digest already.
	ErrTaken = errors.New("there is a key with that id already")
	// ErrLocked: somebody else changes the keys.
	ErrLocked = errors.New("somebody else changes the keys at this moment")
)

// Register is where keys are kept and changed. It is safe for concurrent use, also
// by several processes, and changes all that a call says or nothing.
type Register interface {
	// List returns all keys, revoked ones too. With an error it returns those that could be read.
	List(ctx context.Context) ([]Key, error)
	// Add keeps a new key.
	Add(ctx context.Context, k Key) error
	// Update changes when a key ends: change gets it, may set Expires and Revoked, and
	// return a key that is to be kept with it. It may be called again. Its error
	// changes nothing.
	Update(ctx context.Context, id string, change func(k *Key) (more *Key, err error)) error
}

// File is a keys file that is changed. Every change writes a new file beside the old
// one, syncs it and renames it, so that a full disk or a crash loses nothing; what is
// no key stays as it is, byte for byte. A lock file keeps two writers apart.
type File struct {
	path string
	disk store.Disk
}

// lockTime is how long a change waits for another one.
const lockTime = 5 * time.Second

// NewFile returns the file with a path, which is made with the first key.
func NewFile(path string) *File {
	return &File{path: path}
}

// List implements Register. Its error lists the mistakes in the file.
func (f *File) List(context.Context) ([]Key, error) {
	data, err := readFile(f.path)
	if err != nil {
		return nil, err
	}
	lines, mistakes := parse(data, anyDigest)
	keys := make([]Key, len(lines))
	for i := range lines {
		keys[i] = lines[i].key
	}
	return keys, complain(f.path, mistakes)
}

// anyDigest takes digests of all kinds: to change a file no pepper is needed.
func anyDigest(*Key) error { return nil }

// Add implements Register.
func (f *File) Add(ctx context.Context, k Key) error {
	return f.change(ctx, func(data []byte) ([]byte, error) {
		lines, _ := parse(data, anyDigest)
		return appendKey(data, lines, &k)
	})
}

// appendKey puts a line behind all others.
func appendKey(data []byte, lines []line, k *Key) ([]byte, error) {
	if err := k.Check(); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(lines, func(l line) bool { return l.key.ID == k.ID || l.key.Digest == k.Digest }) {
		return nil, ErrTaken
	}
	data = slices.Clone(data)
	if len(data) > 0 && data[len(data)-1] != '\n' {
		data = append(data, '\n')
	}
	return append(append(data, k.Line()...), '\n'), nil
}

// Update implements Register.
func (f *File) Update(ctx context.Context, id string, change func(k *Key) (more *Key, err error)) error {
	return f.change(ctx, func(data []byte) ([]byte, error) {
		lines, _ := parse(data, anyDigest)
		i := slices.IndexFunc(lines, func(l line) bool { return l.key.ID == id })
		if i < 0 {
			return nil, ErrUnknownKey
		}
		k := lines[i].key
		more, err := change(&k)
		if err != nil {
			return nil, err
		}
		text := string(data[lines[i].start:lines[i].end])
		for _, at := range k.times() {
			text = withTime(text, at)
		}
		data = slices.Concat(data[:lines[i].start], []byte(text), data[lines[i].end:])
		if more == nil {
			return data, nil
		}
		return appendKey(data, lines, more)
	})
}

// withTime sets a time of a line, and leaves the rest as it is.
func withTime(text string, at moment) string {
	if at.time.IsZero() {
		return text
	}
	setting := " " + at.name + "="
	start := strings.Index(strings.ReplaceAll(text, "\t", " "), setting)
	if start < 0 {
		return text + setting + stamp(at.time)
	}
	start += len(setting)
	end := start + len(text[start:])
	if n := strings.IndexAny(text[start:], " \t"); n >= 0 {
		end = start + n
	}
	return text[:start] + stamp(at.time) + text[end:]
}

// change replaces the file.
func (f *File) change(ctx context.Context, edit func([]byte) ([]byte, error)) error {
	path, err := filepath.EvalSymlinks(f.path) // the link stays
	if errors.Is(err, fs.ErrNotExist) {
		path, err = f.path, nil
	}
	if err != nil {
		return err
	}
	unlock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer unlock()
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var data []byte
	if err == nil {
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s: not a regular file", path)
		}
		if data, err = readFile(path); err != nil {
			return err
		}
	}
	next, err := edit(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(next) > maxFile {
		return fmt.Errorf("%s: would be larger than %d MiB; identity.sql keeps more keys", path, maxFile>>20)
	}
	if bytes.Equal(next, data) {
		return nil
	}
	if err := f.replace(path, next, info); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// replace puts a new file in the place of path, with the mode and the owner of the
// old one. info is nil when there is none.
func (f *File) replace(path string, data []byte, info fs.FileInfo) error {
	return f.disk.Replace(path, data, func(name string) error {
		if info == nil {
			return nil
		}
		if err := os.Chmod(name, info.Mode().Perm()); err != nil {
			return err
		}
		return keepOwner(name, info)
	})
}

// lockFile takes a lock that other processes take too, and returns what gives it
// back.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	for {
		unlock, err = tryLock(path)
		if !errors.Is(err, ErrLocked) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
