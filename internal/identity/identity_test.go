package identity_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// digest is the first column of a key's line.
func digest(key string) string {
	d := sha256.Sum256([]byte(key))
	return hex.EncodeToString(d[:])
}

// newKeysOf returns the keys of a configuration.
func newKeysOf(cfg identity.Config) (*identity.Keys, error) {
	return identity.New(cfg, identity.Parts{Log: testkit.Discard()})
}

// keysFile writes a keys file.
func keysFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newKeys returns keys for a vip, a normal and a batch tenant.
func newKeys(t testing.TB) *identity.Keys {
	t.Helper()
	long := strings.Repeat("k", 1000)
	path := keysFile(t, fmt.Sprintf("# keys\n%s acme vip\n\n%s\tbeta  normal # a comment\r\n%s crawl batch\n%s long vip",
		digest("sk-acme"), strings.ToUpper(digest("sk-beta")), digest("sk-crawl"), digest(long)))
	k, err := newKeysOf(identity.Config{KeysFile: path})
	if err != nil {
		t.Fatal(err)
	}
	if k.Len() != 4 {
		t.Fatalf("got %d keys, want 4", k.Len())
	}
	return k
}

func TestIdentify(t *testing.T) {
	keys := newKeys(t)
	open, err := newKeysOf(identity.Default())
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		keys   *identity.Keys
		header http.Header
		tenant string
		class  inference.Class
		code   inference.Code
	}{
		"bearer":                  {keys, http.Header{"Authorization": {"Bearer sk-acme"}}, "acme", inference.VIP, ""},
		"scheme in lower case":    {keys, http.Header{"Authorization": {"bearer  sk-acme "}}, "acme", inference.VIP, ""},
		"x-api-key":               {keys, http.Header{"X-Api-Key": {"sk-beta"}}, "beta", inference.Normal, ""},
		"a long key":              {keys, http.Header{"X-Api-Key": {strings.Repeat("k", 1000)}}, "long", inference.VIP, ""},
		"bearer before x-api-key": {keys, http.Header{"Authorization": {"Bearer sk-acme"}, "X-Api-Key": {"sk-beta"}}, "acme", inference.VIP, ""},
		"another scheme":          {keys, http.Header{"Authorization": {"Basic c2stYWNtZQ=="}, "X-Api-Key": {"sk-beta"}}, "beta", inference.Normal, ""},
		"lowered":                 {keys, http.Header{"X-Api-Key": {"sk-acme"}, "X-Spillway-Class": {"batch"}}, "acme", inference.Batch, ""},
		"lowered by a step":       {keys, http.Header{"X-Api-Key": {"sk-acme"}, "X-Spillway-Class": {"normal"}}, "acme", inference.Normal, ""},
		"not raised":              {keys, http.Header{"X-Api-Key": {"sk-crawl"}, "X-Spillway-Class": {"vip"}}, "crawl", inference.Batch, ""},
		"the lowest of two":       {keys, http.Header{"X-Api-Key": {"sk-acme"}, "X-Spillway-Class": {"batch", "vip"}}, "acme", inference.Batch, ""},
		"unknown class":           {keys, http.Header{"X-Api-Key": {"sk-acme"}, "X-Spillway-Class": {"urgent"}}, "", 0, inference.CodeInvalidRequest},
		"idle cannot be asked":    {keys, http.Header{"X-Api-Key": {"sk-acme"}, "X-Spillway-Class": {"idle"}}, "", 0, inference.CodeInvalidRequest},
		"no key":                  {keys, http.Header{}, "", 0, inference.CodeUnauthorized},
		"empty key":               {keys, http.Header{"Authorization": {"Bearer "}}, "", 0, inference.CodeUnauthorized},
		"wrong key":               {keys, http.Header{"Authorization": {"Bearer sk-acmf"}}, "", 0, inference.CodeUnauthorized},
		"the digest is no key":    {keys, http.Header{"X-Api-Key": {digest("sk-acme")}}, "", 0, inference.CodeUnauthorized},
		"two keys":                {keys, http.Header{"X-Api-Key": {"sk-acme", "sk-beta"}}, "", 0, inference.CodeUnauthorized},
		"no key, unknown class":   {keys, http.Header{"X-Spillway-Class": {"urgent"}}, "", 0, inference.CodeUnauthorized},
		"no file":                 {open, http.Header{"Authorization": {"Bearer whatever"}}, "anonymous", inference.Normal, ""},
		"no file, lowered":        {open, http.Header{"X-Spillway-Class": {"batch"}}, "anonymous", inference.Batch, ""},
		"no file, not raised":     {open, http.Header{"X-Spillway-Class": {"vip"}}, "anonymous", inference.Normal, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := tt.keys.Identify(tt.header)
			tenant, class := c.Tenant, c.Class
			var code inference.Code
			if e, ok := errors.AsType[*inference.Error](err); ok {
				code = e.Code
			} else if err != nil {
				t.Fatalf("got error %T, want *inference.Error", err)
			}
			if tenant != tt.tenant || class != tt.class || code != tt.code {
				t.Errorf("got %q %v %q, want %q %v %q", tenant, class, code, tt.tenant, tt.class, tt.code)
			}
		})
	}
}

// TestUnauthorizedIsOneAnswer compares what a client without a key learns with
// what one with a wrong key learns.
func TestUnauthorizedIsOneAnswer(t *testing.T) {
	keys := newKeys(t)
	_, missing := keys.Identify(http.Header{})
	_, wrong := keys.Identify(http.Header{"X-Api-Key": {"sk-secret-guess"}})
	if diff := cmp.Diff(missing, wrong); diff != "" {
		t.Errorf("missing and wrong key differ: %s", diff)
	}
	if strings.Contains(wrong.Error(), "guess") {
		t.Errorf("the error repeats the key: %v", wrong)
	}
}

func TestFileMistakes(t *testing.T) {
	good := digest("good") + " acme vip\n"
	tests := map[string]struct {
		content string
		want    []string // without the path
	}{
		"empty":           {"# nothing\n", []string{":1: no key in it; nobody could send a request"}},
		"a key, no hash":  {"sk-plain acme vip\n", []string{":1: the first column must be a SHA-256 in 64 hexadecimal digits, got 8 characters"}},
		"not hexadecimal": {strings.Repeat("x", 64) + " acme vip\n", []string{":1: the first column must be a SHA-256 in 64 hexadecimal digits, got other characters"}},
		"the empty key":   {digest("") + " acme vip\n", []string{":1: this is the SHA-256 of an empty key, which would let everybody in"}},
		"a tenant's name": {digest("a") + " " + strings.Repeat("a", 65) + " vip\n" + digest("b") + " a\x01b vip\n", []string{
			":1: a tenant's name has at most 64 bytes of printable characters and does not begin with #",
			":2: a tenant's name has at most 64 bytes of printable characters and does not begin with #",
		}},
		"all at once": {good + "\n" + good + digest("b") + " beta\n" + digest("c") + " gamma idle\n", []string{
			":3: the key " + digest("good")[:8] + "... stands in line 1 already",
			":4: want 3 columns (sha256-of-the-key tenant class), got 2",
			":5: the third column must be a class: vip, normal or batch",
		}},
		"too many to list": {strings.Repeat("x\n", 101), append(repeat(100, ":%d: want 3 columns (sha256-of-the-key tenant class), got 1"), ": 1 more mistakes")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := keysFile(t, tt.content)
			cfg := identity.Config{KeysFile: path}
			err := cfg.Validate()
			if err == nil {
				t.Fatal("got no error")
			}
			got := strings.Split(err.Error(), "\n")
			for i := range got {
				got[i] = strings.TrimPrefix(got[i], "keys_file: "+path)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("mistakes (-want +got):\n%s", diff)
			}
			if strings.Contains(err.Error(), "sk-plain") || strings.Contains(err.Error(), digest("good")) {
				t.Errorf("the error tells a key or a whole digest: %v", err)
			}
		})
	}
}

// repeat formats n lines.
func repeat(n int, format string) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf(format, i+1)
	}
	return lines
}

func TestValidate(t *testing.T) {
	none := identity.Default()
	if err := none.Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
	gone := identity.Config{KeysFile: filepath.Join(t.TempDir(), "gone")}
	if err := gone.Validate(); !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "keys_file: ") {
		t.Errorf("missing file: got %v", err)
	}
	large := identity.Config{KeysFile: keysFile(t, strings.Repeat("#\n", 9<<20))}
	if err := large.Validate(); err == nil || !strings.Contains(err.Error(), "larger than 16 MiB") {
		t.Errorf("large file: got %v", err)
	}
}

// TestApply reloads a file that changed, then one that is wrong, then none.
func TestApply(t *testing.T) {
	path := keysFile(t, digest("old")+" acme vip\n")
	cfg := identity.Config{KeysFile: path}
	keys, err := newKeysOf(cfg)
	if err != nil {
		t.Fatal(err)
	}
	who := func(key string) string {
		c, _ := keys.Identify(http.Header{"X-Api-Key": {key}})
		return c.Tenant
	}
	steps := []struct {
		content  string
		fails    bool
		old, new string
	}{
		{digest("new") + " acme vip\n", false, "", "acme"},
		{digest("old") + " acme vip\nbad line\n", true, "", "acme"},
	}
	for _, step := range steps {
		if err := os.WriteFile(path, []byte(step.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := keys.Apply(cfg); (err != nil) != step.fails {
			t.Errorf("apply: got %v, want an error: %v", err, step.fails)
		}
		if who("old") != step.old || who("new") != step.new {
			t.Errorf("got old=%q new=%q, want %q %q", who("old"), who("new"), step.old, step.new)
		}
	}
	if err := keys.Apply(identity.Default()); err != nil || who("x") != identity.Anonymous {
		t.Errorf("without a file: got %v, tenant %q", err, who("x"))
	}
}

func TestIdentifyAllocatesNothing(t *testing.T) {
	keys := newKeys(t)
	h := http.Header{"Authorization": {"Bearer sk-acme"}, "X-Spillway-Class": {"batch"}}
	if n := testing.AllocsPerRun(100, func() { keys.Identify(h) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func FuzzKeysFile(f *testing.F) {
	f.Add([]byte(digest("a") + " acme vip\n"))
	f.Add([]byte("\ufeff# x\r\n" + digest("a") + " acme vip # y\n" + digest("a") + " b batch"))
	f.Add([]byte("sk-secret acme vip"))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Skip(err)
		}
		keys, err := newKeysOf(identity.Config{KeysFile: path})
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.HasPrefix(line, "keys_file: "+path+":") {
					t.Errorf("mistake without its place: %q", line)
				}
			}
			return
		}
		if keys.Len() == 0 {
			t.Error("a file without keys was accepted")
		}
		if _, err := keys.Identify(http.Header{}); err == nil {
			t.Error("a request without a key got in")
		}
	})
}

func BenchmarkIdentify(b *testing.B) {
	keys := newKeys(b)
	h := http.Header{"Authorization": {"Bearer sk-acme"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Identify(h); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleKeys_Identify() {
	file, err := os.CreateTemp("", "keys")
	if err != nil {
		panic(err)
	}
	defer os.Remove(file.Name())
	fmt.Fprintf(file, "%x acme vip\n", sha256.Sum256([]byte("sk-1234")))
	file.Close()

	keys, err := identity.New(identity.Config{KeysFile: file.Name()}, identity.Parts{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	h := make(http.Header)
	h.Set("Authorization", "Bearer sk-1234")
	h.Set("X-Spillway-Class", "batch")
	c, err := keys.Identify(h)
	fmt.Println(c.Tenant, c.Class, err)
	// Output: acme batch <nil>
}
