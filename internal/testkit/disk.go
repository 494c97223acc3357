package testkit

import (
	"os"

	"github.com/spillway/spillway/internal/store"
)

// DiskFault says which steps of the replacement of a file fail, and how. A write that
// fails has written half.
type DiskFault struct{ Create, Write, Sync, Close, Rename, SyncDir error }

// Disk is a disk with the faults, and the system's where there are none.
func (f DiskFault) Disk() store.Disk {
	d := store.Disk{Create: func(dir, pattern string) (store.File, error) {
		if f.Create != nil {
			return nil, f.Create
		}
		t, err := os.CreateTemp(dir, pattern)
		return &faultyFile{t, f}, err
	}}
	if f.Rename != nil {
		d.Rename = func(string, string) error { return f.Rename }
	}
	if f.SyncDir != nil {
		d.Sync = func(string) error { return f.SyncDir }
	}
	return d
}

// faultyFile is a file with faults.
type faultyFile struct {
	*os.File
	fault DiskFault
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
