//go:build unix

package identity

import (
	"io/fs"
	"os"
	"syscall"
)

// tryLock locks a file that is made for it, and removed with the lock. The system
// takes the lock from a process that ends. The error is ErrLocked while another
// process has it.
func tryLock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, ErrLocked
	}
	mine, err := f.Stat()
	now, err2 := os.Stat(path)
	if err != nil || err2 != nil || !os.SameFile(mine, now) { // it was removed by the one who had it
		f.Close()
		return nil, ErrLocked
	}
	return func() {
		_ = os.Remove(path) // an unlocked file in the way does no harm
		f.Close()
	}, nil
}

// keepOwner gives a new file to whom the old one belonged, so that a gateway can read
// what root has written.
func keepOwner(path string, old fs.FileInfo) error {
	is, ok := old.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if now, ok := info.Sys().(*syscall.Stat_t); ok && now.Uid == is.Uid && now.Gid == is.Gid {
		return nil
	}
	return os.Chown(path, int(is.Uid), int(is.Gid))
}
