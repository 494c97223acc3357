package identity_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store"
	"github.com/spillway/spillway/internal/testkit"
)

// newKey is a key of a tenant.
func newKey(t testing.TB, id string) identity.Key {
	t.Helper()
	cfg := identity.Config{}
	d, err := cfg.DigestOf(id)
	if err != nil {
		t.Fatal(err)
	}
	return identity.Key{
		ID: id, Digest: d, Tenant: "acme", Class: inference.Batch, Models: []string{"a-*", "b"},
		Quota: inference.Quota{RequestsPerSecond: 1, TokensPerMonth: 6}, Expires: noon.Add(time.Hour),
	}
}

// read is the content of a file.
func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// revoke ends a key.
func revoke(k *identity.Key) (*identity.Key, error) { k.Revoked = noon; return nil, nil }

// TestFileKeepsTheRest changes a file of which each line has its own ways.
func TestFileKeepsTheRest(t *testing.T) {
	const before = "\ufeff# by hand\r\n\n  DIGEST1   acme\tvip   # the boss \r\nnot a key at all\nhmac:DIGEST2 beta normal\texpires=2026-01-01T00:00:00Z rps=3#x\nDIGEST3 gamma batch"
	const after = "\ufeff# by hand\r\n\n  DIGEST1   acme\tvip revoked=2026-11-20T12:00:00Z   # the boss \r\nnot a key at all\nhmac:DIGEST2 beta normal\texpires=2026-11-20T13:00:00Z rps=3#x\nDIGEST3 gamma batch\n"
	digests := strings.NewReplacer("DIGEST1", digest("1"), "DIGEST2", digest("2"), "DIGEST3", digest("3"))
	path := keysFile(t, digests.Replace(before))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	f, ctx := identity.NewFile(path), t.Context()
	if err := f.Update(ctx, digest("1")[:12], revoke); err != nil {
		t.Fatal(err)
	}
	more := newKey(t, "more")
	if err := f.Update(ctx, digest("2")[:12], func(k *identity.Key) (*identity.Key, error) { k.Expires = noon.Add(time.Hour); return &more, nil }); err != nil {
		t.Fatal(err)
	}
	want := digests.Replace(after) + "sha256:" + digest("more") + " acme batch id=more models=a-*,b rps=1 tokens_per_month=6 expires=2026-11-20T13:00:00Z\n"
	if diff := cmp.Diff(want, read(t, path)); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("got mode %v, %v, want 0640", info.Mode(), err)
	}
	keys, err := f.List(ctx)
	if err == nil || !strings.HasPrefix(err.Error(), path+":4: the first column must be") || len(keys) != 4 || strings.Contains(err.Error(), "not a key") {
		t.Errorf("got %d keys and %v", len(keys), err)
	}
	if diff := cmp.Diff(more, keys[3]); diff != "" {
		t.Errorf("what was written is read as another key (-want +got):\n%s", diff)
	}
	if left, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(left) != 1 {
		t.Errorf("got %v, want the file alone", left)
	}
}

func TestFileRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	f, ctx := identity.NewFile(path), t.Context()
	if _, err := f.List(ctx); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	if err := f.Update(ctx, "x", revoke); !errors.Is(err, identity.ErrUnknownKey) {
		t.Errorf("no key: got %v", err)
	}
	if err := f.Add(ctx, newKey(t, "one")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, want 0600", info.Mode())
	}
	before := read(t, path)
	bad := func(change func(k *identity.Key)) identity.Key { k := newKey(t, "two"); change(&k); return k }
	for name, k := range map[string]identity.Key{
		"the id again":     bad(func(k *identity.Key) { k.ID = "one" }),
		"the digest again": bad(func(k *identity.Key) { k.Digest = newKey(t, "one").Digest }),
		"a bad id":         bad(func(k *identity.Key) { k.ID = "a b" }),
		"a second line":    bad(func(k *identity.Key) { k.Tenant = "a\nb" }),
		"two columns":      bad(func(k *identity.Key) { k.Tenant = "a b" }),
		"a comment":        bad(func(k *identity.Key) { k.Tenant = "a#b" }),
		"no tenant":        bad(func(k *identity.Key) { k.Tenant = "" }),
		"a comma":          bad(func(k *identity.Key) { k.Models = []string{"a,b"} }),
		"a space":          bad(func(k *identity.Key) { k.Models = []string{"a b"} }),
		"idle":             bad(func(k *identity.Key) { k.Class = inference.Idle }),
		"a negative limit": bad(func(k *identity.Key) { k.Quota.Concurrent = -1 }),
		"the empty key":    bad(func(k *identity.Key) { k.Digest = newKey(t, "").Digest }),
	} {
		if err := f.Add(ctx, k); err == nil || !strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	said := errors.New("no")
	if err := f.Update(ctx, "one", func(*identity.Key) (*identity.Key, error) { return nil, said }); !errors.Is(err, said) {
		t.Errorf("got %v, want what the change says", err)
	}
	if got := read(t, path); got != before {
		t.Errorf("a refused change changed the file: %q", got)
	}
	if err := identity.NewFile(t.TempDir()).Add(ctx, newKey(t, "x")); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: got %v", err)
	}
}

// TestFullDisk makes each step of a change fail.
func TestFullDisk(t *testing.T) {
	full := errors.New("no space left on device")
	for name, tt := range map[string]struct {
		fault   testkit.DiskFault
		changed bool
	}{
		"create": {testkit.DiskFault{Create: full}, false}, "write": {testkit.DiskFault{Write: full}, false},
		"sync": {testkit.DiskFault{Sync: full}, false}, "close": {testkit.DiskFault{Close: full}, false}, "rename": {testkit.DiskFault{Rename: full}, false},
		"directory": {testkit.DiskFault{SyncDir: full}, true},
	} {
		t.Run(name, func(t *testing.T) {
			path := keysFile(t, digest("1")+" acme vip\n")
			before := read(t, path)
			f := identity.NewFile(path)
			f.On(tt.fault.Disk())
			if err := f.Add(t.Context(), newKey(t, "two")); !errors.Is(err, full) {
				t.Errorf("got %v, want %v", err, full)
			}
			if got := read(t, path); (got != before) != tt.changed {
				t.Errorf("got %q", got)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
				t.Errorf("got %v, want the file alone", left)
			}
			f.On(store.Disk{})
			if err := f.Add(t.Context(), newKey(t, "three")); err != nil {
				t.Errorf("there is room again: %v", err)
			}
		})
	}
}

// TestWritersWait lets many add keys at once, and one find the lock taken.
func TestWritersWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	var wg sync.WaitGroup
	for i := range 8 {
		k := newKey(t, fmt.Sprint("k", i))
		wg.Go(func() {
			if err := identity.NewFile(path).Add(t.Context(), k); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	keys, err := identity.NewFile(path).List(t.Context())
	if err != nil || len(keys) != 8 {
		t.Errorf("got %d keys, %v, want 8", len(keys), err)
	}
	f := identity.NewFile(path)
	err = f.Update(t.Context(), "k1", func(*identity.Key) (*identity.Key, error) { // it has the lock
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := identity.NewFile(path).Add(ctx, newKey(t, "late")); !errors.Is(err, identity.ErrLocked) {
			t.Errorf("got %v, want ErrLocked", err)
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestLinksStay changes a file through a symbolic link.
func TestLinksStay(t *testing.T) {
	path := keysFile(t, digest("1")+" acme vip\n")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := identity.NewFile(link).Add(t.Context(), newKey(t, "two")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 || strings.Count(read(t, path), "\n") != 2 {
		t.Errorf("got %v, %v, %q, want a link to two keys", info, err, read(t, path))
	}
}

func TestSecrets(t *testing.T) {
	a, b := identity.NewSecret(), identity.NewSecret()
	if a == b || len(a) != 46 || !strings.HasPrefix(a, "sw-") {
		t.Errorf("got %d bytes that begin with %q", len(a), a[:3])
	}
	cfg := identity.Config{PepperFile: pepperFile(t)}
	d, err := cfg.DigestOf(a)
	if err != nil || d.Kind != identity.HMAC || d.String() != peppered(a)[:13]+"..." || d.ID() != peppered(a)[5:17] {
		t.Errorf("got %v %s, %v", d, d.ID(), err)
	}
}

// FuzzLine writes what was read, and reads it again.
func FuzzLine(f *testing.F) {
	f.Add(digest("a") + " acme vip")
	f.Add("hmac:" + digest("a") + " acme batch id=x models=a,b* rps=3 expires=2027-01-01T00:00:00+05:00 revoked=2026-01-01T00:00:00Z")
	f.Fuzz(func(t *testing.T, line string) {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
			t.Skip(err)
		}
		keys, _ := identity.NewFile(path).List(t.Context())
		for _, k := range keys {
			if k.Check() != nil {
				continue // it can be kept as it stands, but not be written anew
			}
			if err := os.WriteFile(path, []byte(k.Line()), 0o600); err != nil {
				t.Fatal(err)
			}
			again, err := identity.NewFile(path).List(t.Context())
			if err != nil || len(again) != 1 {
				t.Fatalf("%q: got %d keys, %v", k.Line(), len(again), err)
			}
			if again[0].Line() != k.Line() || again[0].Digest != k.Digest || again[0].Expires.Unix() != k.Expires.Unix() {
				t.Errorf("got %q, want %q", again[0].Line(), k.Line())
			}
		}
	})
}

func ExampleFile() {
	dir, err := os.MkdirTemp("", "keys")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	var cfg identity.Config
	d, err := cfg.DigestOf("example-key")
	if err != nil {
		panic(err)
	}
	f := identity.NewFile(filepath.Join(dir, "keys.txt"))
	if err := f.Add(context.Background(), identity.Key{ID: d.ID(), Digest: d, Tenant: "acme", Class: inference.VIP}); err != nil {
		panic(err)
	}
	keys, err := f.List(context.Background())
	fmt.Println(keys[0].ID, keys[0].Digest, keys[0].Tenant, err)
	// Output: c018c41c1afa sha256:c018c41c... acme <nil>
}
