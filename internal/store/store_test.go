package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/store"
	"github.com/spillway/spillway/internal/testkit"
)

// open opens a store in a directory.
func open(t testing.TB, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Directory: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write keeps something.
func write(t testing.TB, s *store.Store, name, text string) {
	t.Helper()
	if err := s.Write(name, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// holds checks what a name holds.
func holds(t testing.TB, s *store.Store, name, want string) {
	t.Helper()
	got, err := s.Read(name)
	if err != nil || string(got) != want {
		t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
	}
}

// files lists a directory.
func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestDirectory(t *testing.T) {
	type environment struct{ state, xdg, home string }
	tests := map[string]struct {
		dir  string
		env  environment
		want string
	}{
		"configured":         {"/a/b", environment{"/s", "/x", "/h"}, "/a/b"},
		"systemd":            {"", environment{"/s", "/x", "/h"}, "/s"},
		"systemd, several":   {"", environment{"/s:/s2", "/x", "/h"}, "/s"},
		"XDG":                {"", environment{"", "/x", "/h"}, "/x/spillway"},
		"XDG, not absolute":  {"", environment{"", "x", "/h"}, "/h/.local/state/spillway"},
		"systemd, relative":  {"", environment{"s", "/x", "/h"}, "/x/spillway"},
		"home":               {"", environment{"", "", "/h"}, "/h/.local/state/spillway"},
		"home, not absolute": {"", environment{"", "", "h"}, ""},
		"nothing":            {"", environment{}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("STATE_DIRECTORY", tt.env.state)
			t.Setenv("XDG_STATE_HOME", tt.env.xdg)
			t.Setenv("HOME", tt.env.home)
			if got := open(t, tt.dir).Directory(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	work := t.TempDir()
	t.Chdir(work)
	if got := open(t, "state").Directory(); !filepath.IsAbs(got) || filepath.Base(got) != "state" {
		t.Errorf("a relative directory: got %q, want it absolute", got)
	}
}

func TestWriteReadRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := open(t, dir)
	if _, err := s.Read("x.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if err := s.Remove("x.json"); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("something was created before the first write")
	}
	write(t, s, "x.json", "one")
	write(t, s, "y.json", "other")
	write(t, s, "x.json", "")
	holds(t, s, "x.json", "")
	write(t, s, "x.json", "two")
	holds(t, s, "x.json", "two")
	holds(t, open(t, dir), "x.json", "two") // after a restart
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Dir(dir): 0o700, filepath.Join(dir, "x.json"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s: got mode %v, want %v", path, got, want)
		}
	}
	if err := s.Remove("x.json"); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{"y.json"}) {
		t.Errorf("got files %v, want y.json alone", got)
	}
}

func TestSizesAndNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	write(t, s, "full", strings.Repeat("x", store.MaxSize))
	holds(t, s, "full", strings.Repeat("x", store.MaxSize))
	if err := s.Write("full", make([]byte, store.MaxSize+1)); err == nil {
		t.Error("more than the bound was written")
	}
	holds(t, s, "full", strings.Repeat("x", store.MaxSize))
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, store.MaxSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Read("large"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file beyond the bound: got %d bytes, %v", len(got), err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, ".hidden", "A", "a b", "a\x00", strings.Repeat("a", 65)} {
		if err := s.Write(name, nil); err == nil {
			t.Errorf("%q was written", name)
		}
		if _, err := s.Read(name); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("reading %q: got %v, want a complaint about the name", name, err)
		}
		if err := s.Remove(name); err == nil {
			t.Errorf("%q was removed", name)
		}
	}
	if got := files(t, dir); !slices.Equal(got, []string{"full", "large"}) {
		t.Errorf("got files %v", got)
	}
}

// TestNowhere has neither a configuration nor an environment that names a directory.
func TestNowhere(t *testing.T) {
	for _, v := range []string{"STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"} {
		t.Setenv(v, "")
	}
	s := open(t, "")
	if _, err := s.Read("x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read: got %v, want fs.ErrNotExist", err)
	}
	if err := s.Remove("x"); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := s.Write("x", nil); !errors.Is(err, store.ErrNoDirectory) || !strings.Contains(err.Error(), "store.directory") {
		t.Errorf("write: got %v, want ErrNoDirectory and the key to set", err)
	}
}

// TestFaults makes each step of a write fail: the name holds what it held, no file
// is left behind, and the error says what happened.
func TestFaults(t *testing.T) {
	full := errors.New("no space left on device")
	tests := map[string]struct {
		fault testkit.DiskFault
		want  string // what the name holds then
	}{
		"create":         {testkit.DiskFault{Create: full}, "before"},
		"write":          {testkit.DiskFault{Write: full}, "before"},
		"sync":           {testkit.DiskFault{Sync: full}, "before"},
		"close":          {testkit.DiskFault{Close: full}, "before"},
		"rename":         {testkit.DiskFault{Rename: full}, "before"},
		"directory sync": {testkit.DiskFault{SyncDir: full}, "after"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, filepath.Join(t.TempDir(), "state"))
			write(t, s, "x", "before")
			s.On(tt.fault.Disk())
			if err := s.Write("x", []byte("after")); !errors.Is(err, full) || !strings.HasPrefix(err.Error(), "keep x: ") {
				t.Errorf("got %v, want what went wrong with x", err)
			}
			holds(t, s, "x", tt.want)
			if got := files(t, s.Directory()); !slices.Equal(got, []string{"x"}) {
				t.Errorf("got files %v, want x alone", got)
			}
			s.On(store.Disk{})
			write(t, s, "x", "better")
			holds(t, s, "x", "better")
		})
	}
	s := open(t, t.TempDir())
	write(t, s, "x", "")
	s.On(testkit.DiskFault{SyncDir: full}.Disk())
	if err := s.Remove("x"); !errors.Is(err, full) {
		t.Errorf("a removal that may not last: got %v", err)
	}
}

// TestObstacles finds something else where a file or directory should be.
func TestObstacles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	if err := os.MkdirAll(filepath.Join(dir, "x", "in it"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Write("x", nil); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "x")) {
		t.Errorf("writing to a directory: got %v", err)
	}
	if _, err := s.Read("x"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading a directory: got %v", err)
	}
	if err := s.Remove("x"); err == nil {
		t.Error("a directory with something in it was removed")
	}
	if got := files(t, dir); !slices.Equal(got, []string{"x"}) {
		t.Errorf("got files %v", got)
	}
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Write("y", nil); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a file where the directory was: got %v", err)
	}
}

// TestUnderAFile has a file where a directory above is needed.
func TestUnderAFile(t *testing.T) {
	block := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(block, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, filepath.Join(block, "state"))
	if err := s.Write("x", nil); err == nil || !strings.Contains(err.Error(), block+" is not a directory") {
		t.Errorf("got %v, want an error that names %s", err, block)
	}
	if err := s.Remove("x"); err != nil {
		t.Errorf("removing what cannot be there: %v", err)
	}
	if _, err := store.Open(store.Config{Directory: block}); err == nil || !strings.HasPrefix(err.Error(), "directory: ") {
		t.Errorf("a file was taken for a directory: %v", err)
	}
	if _, err := store.Open(store.Config{Directory: "a\x00b"}); err == nil || !strings.HasPrefix(err.Error(), "directory: ") {
		t.Errorf("got %v, want a complaint about the path", err)
	}
}

// TestLeftovers kills writers, as far as their files show it.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for name, age := range map[string]time.Duration{".tmp-x-1": 2 * time.Hour, ".tmp-x-2": time.Minute, "x.old": 2 * time.Hour} {
		path := filepath.Join(dir, name)
		when := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, []byte("torn"), 0o600), os.Chtimes(path, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, s, "x", "whole")
	if got := files(t, dir); !slices.Equal(got, []string{".tmp-x-2", "x", "x.old"}) {
		t.Errorf("got %v, want the old temporary file gone and nothing else", got)
	}
}

// TestConcurrentWriters lets readers see whole files only.
func TestConcurrentWriters(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state"))
	const size = 1 << 12
	var writers, readers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for range 10 {
				if err := s.Write("x", bytes.Repeat([]byte{'a' + byte(i)}, size)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			got, err := s.Read("x")
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if err == nil && (len(got) != size || !bytes.Equal(got, bytes.Repeat(got[:1], size))) {
				t.Errorf("a torn file of %d bytes", len(got))
			}
		}
	})
	writers.Wait()
	close(done)
	readers.Wait()
	if got := files(t, s.Directory()); !slices.Equal(got, []string{"x"}) {
		t.Errorf("got %v, want x alone", got)
	}
}

func ExampleStore() {
	dir, err := os.MkdirTemp("", "state")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(store.Config{Directory: dir})
	if err != nil {
		panic(err)
	}
	if err := s.Write("greeting.txt", []byte("hello")); err != nil {
		panic(err)
	}
	data, err := s.Read("greeting.txt")
	fmt.Println(string(data), err)
	// Output: hello <nil>
}
