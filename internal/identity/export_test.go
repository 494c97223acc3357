package identity

import (
	"os"
	"sync/atomic"
)

// CountDigests makes a Keys count the digests that it computes.
func CountDigests(k *Keys) *atomic.Int64 {
	n := new(atomic.Int64)
	s := *k.state.Load()
	for _, x := range []*index{&s.plain, &s.peppered} {
		if inner := x.sum; inner != nil {
			x.sum = func(key string) digest { n.Add(1); return inner(key) }
		}
	}
	k.state.Store(&s)
	return n
}

// Fault says which steps of a change of a file fail, and how. A write that fails has
// written half.
type Fault struct{ Create, Write, Chmod, Sync, Close, Rename, SyncDir error }

// Into makes a file's steps fail.
func (f Fault) Into(file *File) {
	file.disk.create = func(dir, pattern string) (temporary, error) {
		if f.Create != nil {
			return nil, f.Create
		}
		t, err := os.CreateTemp(dir, pattern)
		return &faultyFile{t, f}, err
	}
	file.disk.rename = func(from, to string) error {
		if f.Rename != nil {
			return f.Rename
		}
		return os.Rename(from, to)
	}
	file.disk.sync = func(dir string) error {
		if f.SyncDir != nil {
			return f.SyncDir
		}
		return syncDir(dir)
	}
}

// faultyFile is a file with faults.
type faultyFile struct {
	*os.File
	fault Fault
}

// Write writes half before it fails.
func (f *faultyFile) Write(p []byte) (int, error) {
	if f.fault.Write == nil {
		return f.File.Write(p)
	}
	n, err := f.File.Write(p[:len(p)/2])
	if err == nil {
		err = f.fault.Write
	}
	return n, err
}

// Chmod fails without a change.
func (f *faultyFile) Chmod(mode os.FileMode) error {
	if f.fault.Chmod != nil {
		return f.fault.Chmod
	}
	return f.File.Chmod(mode)
}

// Sync fails without having synced.
func (f *faultyFile) Sync() error {
	if f.fault.Sync != nil {
		return f.fault.Sync
	}
	return f.File.Sync()
}

// Close closes in any case.
func (f *faultyFile) Close() error {
	err := f.File.Close()
	if f.fault.Close != nil {
		return f.fault.Close
	}
	return err
}
