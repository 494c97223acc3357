package cli_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// listedKey is a key as list --json prints it.
type listedKey struct {
	ID, Tenant, Class, State, Digest string
	Models                           []string
	Quota                            inference.Quota
	Expires                          time.Time
}

// madeKey finds the secret that a command printed, and the id.
func madeKey(t *testing.T, code int, out, errs string) (secret, id string) {
	t.Helper()
	m := regexp.MustCompile(`^(sw-[\w-]{43})\n$`).FindStringSubmatch(out)
	n := regexp.MustCompile(`^id (\S+), tenant `).FindStringSubmatch(errs)
	if code != 0 || m == nil || n == nil {
		t.Fatalf("got %d %q %q, want a key and its id", code, out, errs)
	}
	if strings.Contains(errs, m[1]) {
		t.Errorf("the key is printed twice: %q", errs)
	}
	return m[1], n[1]
}

// listKeys lists keys as JSON.
func listKeys(t *testing.T, where ...string) map[string]listedKey {
	t.Helper()
	code, out, errs := run(t, append([]string{"key", "list", "--json"}, where...)...)
	if code != 0 {
		t.Fatalf("got %d %q", code, errs)
	}
	var list []listedKey
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	by := make(map[string]listedKey)
	for _, k := range list {
		by[k.ID] = k
	}
	return by
}

// configOf writes a configuration with a section identity.
func configOf(t *testing.T, section string) string {
	t.Helper()
	return file(t, good+"\nstore:\n  directory: "+t.TempDir()+"\nidentity:\n"+section)
}

// places are where keys can be.
func places(t *testing.T) map[string][]string {
	t.Helper()
	pepper := filepath.Join(t.TempDir(), "pepper")
	if err := os.WriteFile(pepper, []byte(strings.Repeat("hush", 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := func() string { return filepath.Join(t.TempDir(), "keys.txt") }
	started := keys()
	if err := os.WriteFile(started, []byte("# ours\n"+strings.Repeat("ab", 32)+" old vip\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	return map[string][]string{
		"a new file":         {"--keys-file", keys()},
		"a file and pepper":  {"--keys-file", keys(), "--pepper-file", pepper},
		"a configured file":  {"-c", configOf(t, "  keys_file: "+started+"\n  pepper_file: "+pepper+"\n")},
		"a database":         {"-c", configOf(t, "  sql: true\n")},
		"a database, pepper": {"-c", configOf(t, "  sql: true\n  keys_file: "+started+"\n  pepper_file: "+pepper+"\n"), "--sql"},
	}
}

// TestKeyLife makes, rotates and revokes a key.
func TestKeyLife(t *testing.T) {
	for name, where := range places(t) {
		t.Run(name, func(t *testing.T) {
			key := func(args ...string) (int, string, string) {
				return run(t, append(append([]string{"key"}, args...), where...)...)
			}
			code, out, errs := key("create", "--tenant", "acme", "--class", "vip", "--models", "llama-*,qwen", "--expires", "720h", "--rps", "5", "--tokens-per-month", "9")
			secret, id := madeKey(t, code, out, errs)
			digest := sha256.Sum256([]byte(secret))
			want := "sha256:" + hex.EncodeToString(digest[:4]) + "..."
			if strings.Contains(name, "pepper") || strings.Contains(name, "configured") {
				h := hmac.New(sha256.New, []byte(strings.Repeat("hush", 10)))
				h.Write([]byte(secret))
				want = "hmac:" + hex.EncodeToString(h.Sum(nil)[:4]) + "..."
			}
			got := listKeys(t, where...)[id]
			if got.Tenant != "acme" || got.Class != "vip" || got.State != "active" || fmt.Sprint(got.Models) != "[llama-* qwen]" || got.Digest != want ||
				got.Quota != (inference.Quota{RequestsPerSecond: 5, TokensPerMonth: 9}) || time.Until(got.Expires).Round(time.Hour) != 720*time.Hour {
				t.Errorf("got %+v, want the digest %s and what was said", got, want)
			}
			code, out, errs = key("rotate", id, "--grace", "2h")
			next, nextID := madeKey(t, code, out, errs)
			keys := listKeys(t, where...)
			if next == secret || time.Until(keys[id].Expires).Round(time.Minute) != 2*time.Hour || !strings.Contains(errs, id+" ends at ") {
				t.Errorf("got %+v after a rotation: %s", keys[id], errs)
			}
			if n := keys[nextID]; n.Tenant != "acme" || fmt.Sprint(n.Models) != "[llama-* qwen]" || !n.Expires.Equal(got.Expires) || n.Quota != got.Quota || n.State != "active" {
				t.Errorf("the successor is %+v, want the settings of %+v", n, got)
			}
			if code, out, errs := key("revoke", id); code != 0 || !strings.HasPrefix(out, id+" is revoked since ") {
				t.Errorf("got %d %q %q", code, out, errs)
			}
			if code, _, errs := key("rotate", id); code != 1 || !strings.Contains(errs, "is revoked") {
				t.Errorf("rotating a revoked key: got %d %q", code, errs)
			}
			if code, _, errs := key("revoke", "nope"); code != 1 || !strings.Contains(errs, "no key with that id") {
				t.Errorf("got %d %q", code, errs)
			}
			if code, _, errs := key("create", "--tenant", "x", "--id", nextID); code != 1 || !strings.Contains(errs, "that id already") {
				t.Errorf("got %d %q", code, errs)
			}
			code, out, errs = key("list")
			if code != 0 || !regexp.MustCompile(`(?m)^`+id+` +acme +vip +revoked .*llama-\*,qwen +5 requests/s, 9 tokens/month$`).MatchString(out) {
				t.Errorf("got %d %q %q", code, out, errs)
			}
			for _, said := range []string{secret, next, hex.EncodeToString(digest[:])} {
				if strings.Contains(out+errs, said) {
					t.Errorf("the list has %q", said)
				}
			}
			nothingOf(t, where, secret, next)
		})
	}
}

// nothingOf looks for secrets in all that is kept.
func nothingOf(t *testing.T, where []string, secrets ...string) {
	t.Helper()
	for _, path := range where {
		err := filepath.Walk(filepath.Dir(path), func(p string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() || !filepath.IsAbs(path) {
				return err
			}
			data, err := os.ReadFile(p)
			for _, s := range secrets {
				if strings.Contains(string(data), s) {
					t.Errorf("%s has a key in it", p)
				}
			}
			return err
		})
		if err != nil && filepath.IsAbs(path) {
			t.Error(err)
		}
	}
}

func TestKeyMistakes(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys.txt")
	cfg := configOf(t, "  keys_file: "+file(t, strings.Repeat("ab", 32)+" a vip\n")+"\n")
	bad := file(t, "identity: {keys_fil: x}\n")
	create := func(args ...string) []string {
		return append([]string{"create", "--keys-file", keys, "--tenant", "a"}, args...)
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		errs string
	}{
		"nowhere":           {[]string{"list"}, 2, "give a configuration with -c, or a keys file"},
		"twice":             {[]string{"list", "--keys-file", keys, "-c", cfg}, 2, "give a configuration"},
		"no database":       {[]string{"list", "-c", cfg, "--sql"}, 1, "identity.sql is not set"},
		"sql of a file":     {[]string{"list", "--keys-file", keys, "--sql"}, 2, "--sql needs a configuration"},
		"pepper twice":      {[]string{"list", "-c", cfg, "--pepper-file", "x"}, 2, "the pepper is the configuration's"},
		"no place":          {[]string{"list", "-c", file(t, good)}, 1, "there is no place for keys"},
		"a bad file":        {[]string{"list", "-c", bad}, 1, "keys_fil"},
		"no file":           {[]string{"list", "--keys-file", keys}, 1, "no such file"},
		"no such command":   {[]string{"delete"}, 2, "give create, list, revoke or rotate"},
		"no tenant":         {[]string{"create", "--keys-file", keys}, 2, "--tenant: say who pays"},
		"two words":         {[]string{"create", "--keys-file", keys, "--tenant", "a b"}, 2, "without spaces"},
		"a class":           {create("--class", "idle"), 2, "--class: must be vip, normal or batch"},
		"models":            {create("--models", "a,,b"), 2, "--models: want patterns between commas"},
		"an id":             {create("--id", "a b"), 2, "an id has 1 to 64"},
		"a negative limit":  {create("--rps=-1"), 2, "rps must be 0 to"},
		"no time":           {create("--expires", "tomorrow"), 2, "--expires: want a time such as"},
		"the past":          {create("--expires", "2020-01-01T00:00:00Z"), 2, "is in the past"},
		"from now, back":    {create("--expires=-1h"), 2, "is in the past"},
		"no pepper":         {create("--pepper-file", keys+".gone"), 1, "pepper_file: open"},
		"revoke what":       {[]string{"revoke", "--keys-file", keys}, 2, "give the id of one key"},
		"revoke a key":      {[]string{"revoke", "sw-secret-secret", "--keys-file", keys}, 2, "this is a key; give its id"},
		"rotate two":        {[]string{"rotate", "sw-secret-secret", "b", "--keys-file", keys}, 2, "give the id of one key"},
		"a negative grace":  {[]string{"rotate", "a", "--grace=-1h", "--keys-file", keys}, 2, "--grace: must not be negative"},
		"no directory":      {[]string{"create", "--keys-file", filepath.Join(keys, "x", "y"), "--tenant", "a"}, 1, "no such file"},
		"a word too many":   {create("sw-secret-secret"), 2, "takes flags alone"},
		"a key for command": {[]string{"sw-secret-secret"}, 2, "unknown command"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := run(t, append([]string{"key"}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.errs) || out != "" {
				t.Errorf("got %d %q %q, want %d %q", code, out, errs, tt.code, tt.errs)
			}
			if strings.Contains(errs, "sw-s") {
				t.Errorf("the message repeats what may be a key: %q", errs)
			}
		})
	}
	if _, err := os.Stat(keys); err == nil {
		t.Error("a refused command made the file")
	}
}

// TestKeyBesideMistakes makes a key in a file that a gateway refuses.
func TestKeyBesideMistakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.txt")
	if err := os.WriteFile(path, []byte("secret-line vip\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := run(t, "key", "create", "--tenant", "acme", "--keys-file", path)
	madeKey(t, code, out, errs)
	if !strings.Contains(errs, "a gateway refuses the file until this is put right: "+path+":1: ") || strings.Contains(errs, "secret-line") {
		t.Errorf("got %q", errs)
	}
	data, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(data), "secret-line vip\n") {
		t.Errorf("got %q, %v", data, err)
	}
	if code, out, errs := run(t, "key", "list", "--keys-file", path); code != 1 || !strings.Contains(out, "acme") || !strings.Contains(errs, ":1: ") {
		t.Errorf("got %d %q %q, want the keys and the mistake", code, out, errs)
	}
}

// TestKeyOpensAGateway makes a key while keys are read from the file.
func TestKeyOpensAGateway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.txt")
	code, out, errs := run(t, "key", "create", "--tenant", "acme", "--keys-file", path)
	secret, id := madeKey(t, code, out, errs)
	keys, err := identity.New(identity.Config{KeysFile: path}, identity.Parts{Log: testkit.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := keys.Identify(map[string][]string{"Authorization": {"Bearer " + secret}})
	if err != nil || c.Tenant != "acme" || c.Key != id {
		t.Errorf("got %+v, %v", c, err)
	}
}
