//go:build !unix

package identity

import (
	"errors"
	"io/fs"
	"os"
)

// tryLock makes a file that must not exist, and is removed with the lock. The error is
// ErrLocked while it exists.
func tryLock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, ErrLocked
	}
	if err != nil {
		return nil, err
	}
	return func() {
		f.Close()
		_ = os.Remove(path) // the next writer says that it is in the way
	}, nil
}

// keepOwner does nothing: a new file belongs to its directory's users.
func keepOwner(string, fs.FileInfo) error { return nil }
