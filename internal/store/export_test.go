package store

import (
	"os"
)

// Fault says which steps of a write fail, and how. A write that fails has written
// half.
type Fault struct{ Create, Write, Sync, Close, Rename, SyncDir error }

// Into makes a store's steps fail.
func (f Fault) Into(s *Store) {
	s.disk.create = func(dir, pattern string) (file, error) {
		if f.Create != nil {
			return nil, f.Create
		}
		t, err := os.CreateTemp(dir, pattern)
		return &faultyFile{t, f}, err
	}
	s.disk.rename = func(from, to string) error {
		if f.Rename != nil {
			return f.Rename
		}
		return os.Rename(from, to)
	}
	s.disk.sync = func(dir string) error {
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
