package identity_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// secretPepper is the pepper of the tests.
const secretPepper = "pepper-pepper-pepper-pepper-pepper"

// peppered is the first column of a key's line under the pepper.
func peppered(key string) string {
	h := hmac.New(sha256.New, []byte(secretPepper))
	h.Write([]byte(key))
	return "hmac:" + hex.EncodeToString(h.Sum(nil))
}

// noon is when the tests are.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// at returns the keys of a configuration at an instant that can be moved.
func at(t testing.TB, cfg identity.Config, now *time.Time) *identity.Keys {
	t.Helper()
	k, err := identity.New(cfg, identity.Parts{Log: testkit.Discard(), Now: func() time.Time { return *now }})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// with is the header of a request with a key.
func with(key string) http.Header { return http.Header{"Authorization": {"Bearer " + key}} }

// pepperFile writes the pepper.
func pepperFile(t testing.TB) string { return keysFile(t, secretPepper+"\n") }

func TestSettings(t *testing.T) {
	now := noon
	cfg := identity.Config{PepperFile: pepperFile(t), KeysFile: keysFile(t, strings.Join([]string{
		digest("plain") + " acme vip",
		"sha256:" + digest("named") + " beta normal id=beta-1 models=llama-*,qwen rps=1 rpm=2 tpm=3 concurrent=4 tokens_per_day=5 tokens_per_month=6 # a comment",
		peppered("salted") + " gamma batch expires=2026-11-20T13:00:00+01:00",
		peppered(strings.Repeat("x", 300)) + " long vip id=long revoked=2026-11-01T00:00:00Z",
		peppered(strings.Repeat("y", 300)) + " long vip id=long-2",
		peppered(strings.Repeat("z", 256)) + " long vip id=long-3",
		peppered("later") + " gamma batch expires=2026-11-20T12:00:01Z",
		digest("gone") + " delta vip revoked=2026-11-01T00:00:00Z",
		digest("far") + " delta vip expires=9999-12-31T00:00:00Z id=far",
		digest("both") + " delta vip revoked=2026-11-01T00:00:00Z",
		peppered("both") + " delta vip id=both",
		digest("both too") + " delta vip id=both-too",
		peppered("both too") + " delta vip expires=2026-11-01T00:00:00Z",
		digest("both good") + " delta vip id=good-1 expires=2026-12-01T00:00:00Z",
		peppered("both good") + " delta vip id=good-2",
	}, "\n"))}
	keys := at(t, cfg, &now)
	tests := map[string]struct {
		key  string
		want inference.Caller
		code inference.Code
	}{
		"plain": {"plain", inference.Caller{Tenant: "acme", Key: digest("plain")[:12], Class: inference.VIP}, ""},
		"named": {"named", inference.Caller{
			Tenant: "beta", Key: "beta-1", Class: inference.Normal, Models: []string{"llama-*", "qwen"},
			Quota: &inference.Quota{RequestsPerSecond: 1, RequestsPerMinute: 2, TokensPerMinute: 3, Concurrent: 4, TokensPerDay: 5, TokensPerMonth: 6},
		}, ""},
		"peppered":               {"later", inference.Caller{Tenant: "gamma", Key: peppered("later")[5:17], Class: inference.Batch}, ""},
		"longer than most":       {strings.Repeat("y", 300), inference.Caller{Tenant: "long", Key: "long-2", Class: inference.VIP}, ""},
		"as long as the buffer":  {strings.Repeat("z", 256), inference.Caller{Tenant: "long", Key: "long-3", Class: inference.VIP}, ""},
		"long and revoked":       {strings.Repeat("x", 300), inference.Caller{}, inference.CodeUnauthorized},
		"ends at this instant":   {"salted", inference.Caller{}, inference.CodeUnauthorized},
		"long after 2262":        {"far", inference.Caller{Tenant: "delta", Key: "far", Class: inference.VIP}, ""},
		"revoked, plain":         {"both", inference.Caller{}, inference.CodeUnauthorized},
		"ended, peppered":        {"both too", inference.Caller{}, inference.CodeUnauthorized},
		"two digests in force":   {"both good", inference.Caller{Tenant: "delta", Key: "good-2", Class: inference.VIP}, ""},
		"revoked":                {"gone", inference.Caller{}, inference.CodeUnauthorized},
		"the digest is no key":   {peppered("later")[5:], inference.Caller{}, inference.CodeUnauthorized},
		"the pepper is no key":   {secretPepper, inference.Caller{}, inference.CodeUnauthorized},
		"its kind is not a key":  {peppered("later"), inference.Caller{}, inference.CodeUnauthorized},
		"long, under the pepper": {strings.Repeat("x", 1000), inference.Caller{}, inference.CodeUnauthorized},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := keys.Identify(with(tt.key))
			var code inference.Code
			if e, ok := errors.AsType[*inference.Error](err); ok {
				code = e.Code
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || code != tt.code {
				t.Errorf("got code %q, want %q; caller (-want +got):\n%s", code, tt.code, diff)
			}
		})
	}
	if got := keys.Len(); got != 10 {
		t.Errorf("got %d keys in force, want 10", got)
	}
	now = noon.Add(time.Second)
	if _, err := keys.Identify(with("later")); err == nil {
		t.Error("a key works at the instant at which it ends")
	}
	if got := keys.Len(); got != 9 {
		t.Errorf("got %d keys in force a second later, want 9", got)
	}
}

func TestSettingsMistakes(t *testing.T) {
	const known = "known are id, models, expires, revoked, rps, rpm, tpm, concurrent, tokens_per_day and tokens_per_month"
	tests := map[string]struct{ setting, want string }{
		"no name":        {"sk-secret-key", "column 4: want name=value; " + known},
		"unknown":        {"secret=sk-secret-key", "column 4: unknown setting; " + known},
		"twice":          {"rps=1 rps=2", "column 5: a setting is given twice"},
		"no number":      {"rps=sk-secret-key", "column 4: rps must be a number of 1 to 1000000000000000"},
		"zero":           {"tpm=0", "column 4: tpm must be a number of 1 to 1000000000000000"},
		"negative":       {"concurrent=-1", "column 4: concurrent must be a number of 1 to 1000000000000000"},
		"no time":        {"expires=tomorrow", "column 4: expires must be a time such as 2027-01-01T00:00:00Z"},
		"year 1":         {"revoked=0001-01-01T00:00:00Z", "column 4: revoked must be a time such as 2027-01-01T00:00:00Z"},
		"a bad id":       {"id=sk:secret", "column 4: an id has 1 to 64 letters, digits, dots, dashes and underscores"},
		"no id":          {"id=", "column 4: an id has 1 to 64 letters, digits, dots, dashes and underscores"},
		"no pattern":     {"models=a,,b", "column 4: models: want patterns between commas, such as llama-*,qwen-7b, of at most 128 bytes each"},
		"a bad pattern":  {"models=[", "column 4: models: want patterns between commas, such as llama-*,qwen-7b, of at most 128 bytes each"},
		"many patterns":  {"models=" + strings.Repeat("a,", 64) + "a", "column 4: models: at most 64 patterns"},
		"without pepper": {"\n" + peppered("x") + " a vip", "an hmac digest needs identity.pepper_file or identity.pepper_env"},
		"an id twice":    {"id=x\n" + digest("b") + " a vip id=x", "the id of line 1 stands here once more"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := identity.Config{KeysFile: keysFile(t, digest("a")+" a vip "+tt.setting)}
			err := cfg.Validate()
			if err == nil || !strings.HasSuffix(err.Error(), ": "+tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestPepper(t *testing.T) {
	t.Setenv("TEST_PEPPER", secretPepper)
	t.Setenv("TEST_SHORT", "tooshort-pepper")
	gone := filepath.Join(t.TempDir(), "gone")
	line := peppered("x") + " a vip\n"
	long := hmac.New(sha256.New, []byte(strings.Repeat("p", 100)))
	long.Write([]byte("x"))
	longLine := fmt.Sprintf("hmac:%x a vip\n%s b vip\n", long.Sum(nil), peppered(strings.Repeat("x", 300)))
	t.Setenv("TEST_LONG", strings.Repeat("p", 100))
	for name, tt := range map[string]struct {
		cfg  identity.Config
		want string
	}{
		"file":         {identity.Config{PepperFile: pepperFile(t)}, ""},
		"environment":  {identity.Config{PepperEnv: "TEST_PEPPER"}, ""},
		"both":         {identity.Config{PepperEnv: "TEST_PEPPER", PepperFile: gone}, "pepper_file: give pepper_env or pepper_file, not both"},
		"short":        {identity.Config{PepperEnv: "TEST_SHORT"}, "pepper_env: the pepper must have 32 to 4096 bytes, got 15"},
		"not set":      {identity.Config{PepperEnv: "TEST_UNSET"}, "pepper_env: the pepper must have 32 to 4096 bytes, got 0"},
		"no file":      {identity.Config{PepperFile: gone}, "pepper_file: open "},
		"a long one":   {identity.Config{PepperEnv: "TEST_LONG", KeysFile: keysFile(t, longLine)}, ""},
		"another one":  {identity.Config{PepperFile: keysFile(t, strings.Repeat("z", 40))}, "refused"},
		"the empty":    {identity.Config{PepperFile: pepperFile(t), KeysFile: keysFile(t, peppered("")+" a vip\n")}, "this is the digest of an empty key"},
		"no pepper":    {identity.Config{}, "an hmac digest needs"},
		"a huge file":  {identity.Config{PepperFile: keysFile(t, strings.Repeat("z", 5000))}, "pepper_file: the pepper must have 32 to 4096 bytes, got 5000"},
		"file, spaces": {identity.Config{PepperFile: keysFile(t, "\n "+secretPepper+" \n")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.cfg.KeysFile == "" {
				tt.cfg.KeysFile = keysFile(t, line)
			}
			err := tt.cfg.Validate()
			if err == nil {
				var keys *identity.Keys
				if keys, err = newKeysOf(tt.cfg); err == nil {
					if _, err = keys.Identify(with("x")); err != nil {
						err = errors.New("refused")
					}
				}
			}
			got := fmt.Sprint(err)
			if tt.want == "" && err != nil || !strings.Contains(got, tt.want) || strings.Contains(got, "pepper-pepper") || strings.Contains(got, "tooshort") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestEqualWork counts the digests that requests cost: as many for every credential
// that lets nobody in, and never more than two.
func TestEqualWork(t *testing.T) {
	plain, salted := digest("known")+" a vip\n"+digest("gone")+" a vip revoked=2026-01-01T00:00:00Z\n", peppered("salted")+" a vip\n"
	for name, tt := range map[string]struct {
		file string
		want int64
	}{"plain": {plain, 1}, "peppered": {salted, 1}, "both": {plain + salted, 2}} {
		t.Run(name, func(t *testing.T) {
			now := noon
			keys := at(t, identity.Config{KeysFile: keysFile(t, tt.file), PepperFile: pepperFile(t)}, &now)
			count := identity.CountDigests(keys)
			var first error
			for what, h := range map[string]http.Header{
				"missing": {}, "wrong": with("wrong"), "revoked": with("gone"), "empty": with(""), "repeated": {"X-Api-Key": {"known", "salted"}},
				"long": with(strings.Repeat("y", 5000)), "another scheme": {"Authorization": {"Basic a25vd24="}}, "looks like a token": with("a.b.c"),
			} {
				count.Store(0)
				_, err := keys.Identify(h)
				if got := count.Load(); err == nil || got != tt.want {
					t.Errorf("%s: got %d digests and %v, want %d and an error", what, got, err, tt.want)
				}
				if first == nil {
					first = err
				}
				if diff := cmp.Diff(first, err); diff != "" {
					t.Errorf("%s has another answer: %s", what, diff)
				}
			}
			if count.Store(0); tt.file != salted {
				if _, err := keys.Identify(with("known")); err != nil || count.Load() > 2 {
					t.Errorf("got %v after %d digests", err, count.Load())
				}
			}
		})
	}
}

func TestAnonymous(t *testing.T) {
	file := keysFile(t, digest("k")+" acme vip\n")
	guests := identity.AnonymousConfig{Enabled: "true", Tenant: "guests", Class: "batch", Models: []string{"small-*"}, Quota: inference.Quota{RequestsPerMinute: 3}}
	guest := inference.Caller{Tenant: "guests", Class: inference.Batch, Models: []string{"small-*"}, Quota: &inference.Quota{RequestsPerMinute: 3}}
	known := inference.Caller{Tenant: "acme", Key: digest("k")[:12], Class: inference.VIP}
	nobody := inference.Caller{}
	cookie := http.Header{"Cookie": {"a=b"}}
	for name, tt := range map[string]struct {
		cfg    identity.Config
		header http.Header
		want   inference.Caller
	}{
		"guests beside keys":         {identity.Config{KeysFile: file, Anonymous: guests}, cookie, guest},
		"a key beside guests":        {identity.Config{KeysFile: file, Anonymous: guests}, with("k"), known},
		"a wrong key":                {identity.Config{KeysFile: file, Anonymous: guests}, with("x"), nobody},
		"an empty field":             {identity.Config{KeysFile: file, Anonymous: guests}, http.Header{"X-Api-Key": {""}}, nobody},
		"another scheme":             {identity.Config{KeysFile: file, Anonymous: guests}, http.Header{"Authorization": {"Basic eA=="}}, nobody},
		"two keys":                   {identity.Config{KeysFile: file, Anonymous: guests}, http.Header{"X-Api-Key": {"k", "k"}}, nobody},
		"no guests beside keys":      {identity.Config{KeysFile: file}, nil, nobody},
		"no guests, said so":         {identity.Config{KeysFile: file, Anonymous: identity.AnonymousConfig{Enabled: "false"}}, nil, nobody},
		"everybody":                  {identity.Config{}, with("x"), inference.Caller{Tenant: "anonymous", Class: inference.Normal}},
		"everybody, as guests":       {identity.Config{Anonymous: guests}, with("x"), guest},
		"an empty file and guests":   {identity.Config{KeysFile: keysFile(t, "# none yet\n"), Anonymous: guests}, nil, guest},
		"guests of the default name": {identity.Config{KeysFile: file, Anonymous: identity.AnonymousConfig{Enabled: "true"}}, nil, inference.Caller{Tenant: "anonymous", Class: inference.Normal}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			now := noon
			got, err := at(t, tt.cfg, &now).Identify(tt.header)
			if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != (tt.want.Tenant == "") {
				t.Errorf("got error %v, caller (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestConfigMistakes(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	short := keysFile(t, "short-secret\n")
	good := keysFile(t, strings.Repeat("hush", 10))
	jwt := func(change func(*identity.JWTConfig)) identity.Config {
		c := identity.Default()
		c.JWT.JWKSURL, c.JWT.Issuer, c.JWT.Audience = "https://issuer/keys", "i", "a"
		change(&c.JWT)
		return c
	}
	anonymous := func(change func(*identity.AnonymousConfig)) identity.Config {
		c := identity.Default()
		change(&c.Anonymous)
		return c
	}
	for name, tt := range map[string]struct {
		cfg  identity.Config
		want []string // how the mistakes begin
	}{
		"default":         {identity.Default(), nil},
		"jwt":             {jwt(func(*identity.JWTConfig) {}), nil},
		"on loopback":     {jwt(func(c *identity.JWTConfig) { c.JWKSURL = "http://127.0.0.1:1/keys" }), nil},
		"in the clear":    {jwt(func(c *identity.JWTConfig) { c.JWKSURL = "http://issuer/keys" }), []string{"jwt.jwks_url: want an https address"}},
		"with a password": {jwt(func(c *identity.JWTConfig) { c.JWKSURL = "https://u:hush@issuer/keys" }), []string{"jwt.jwks_url: want an https address without a user, got \"one that must not be shown\""}},
		"two sources":     {jwt(func(c *identity.JWTConfig) { c.JWKSFile = good }), []string{"jwt.jwks_url: give one of"}},
		"no file":         {jwt(func(c *identity.JWTConfig) { c.JWKSURL, c.JWKSFile = "", gone }), []string{"jwt.jwks_file: stat "}},
		"nobody's":        {jwt(func(c *identity.JWTConfig) { c.Issuer, c.Audience = "", "" }), []string{"jwt.issuer: is needed", "jwt.audience: is needed"}},
		"none":            {jwt(func(c *identity.JWTConfig) { c.Algorithms = []string{"none"} }), []string{`jwt.algorithms: "none" cannot be accepted here`}},
		"HS without":      {jwt(func(c *identity.JWTConfig) { c.Algorithms = []string{"RS256", "HS256"} }), []string{`jwt.algorithms: "HS256" cannot be accepted here`}},
		"a secret":        {jwt(func(c *identity.JWTConfig) { c.JWKSURL, c.SecretFile = "", good }), nil},
		"secret and RS":   {jwt(func(c *identity.JWTConfig) { c.JWKSURL, c.SecretFile, c.Algorithms = "", good, []string{"RS256"} }), []string{`jwt.algorithms: "RS256" cannot`}},
		"short secret":    {jwt(func(c *identity.JWTConfig) { c.JWKSURL, c.SecretFile = "", short }), []string{"jwt.secret_file: the secret must have 32 to 4096 bytes, got 12"}},
		"numbers": {jwt(func(c *identity.JWTConfig) {
			c.TenantClaim, c.DefaultClass, c.Leeway, c.Refresh = "", "idle", -1, 0
		}), []string{"jwt.tenant_claim: ", "jwt.default_class: ", "jwt.leeway: ", "jwt.refresh: "}},
		"half of jwt":    {identity.Config{JWT: identity.JWTConfig{Issuer: "x"}}, []string{"jwt: give jwks_url"}},
		"often":          {identity.Config{SQL: true, Refresh: time.Millisecond}, []string{"refresh: must be 100ms"}},
		"nobody":         {anonymous(func(c *identity.AnonymousConfig) { c.Enabled = "false" }), []string{"anonymous.enabled: nobody could send a request"}},
		"maybe":          {anonymous(func(c *identity.AnonymousConfig) { c.Enabled = "maybe" }), []string{"anonymous.enabled: nobody could", "anonymous.enabled: must be true, false or auto"}},
		"our own name":   {anonymous(func(c *identity.AnonymousConfig) { c.Tenant = "#idle" }), []string{"anonymous.tenant: "}},
		"bad anonymous":  {anonymous(func(c *identity.AnonymousConfig) { c.Tenant, c.Class, c.Models = "a\x00", "idle", []string{"["} }), []string{"anonymous.tenant: ", "anonymous.class: ", "anonymous.models[0]: "}},
		"negative quota": {anonymous(func(c *identity.AnonymousConfig) { c.Quota.TokensPerDay = -1 }), []string{"anonymous.quota.tokens_per_day: must be 0 to"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			if err := tt.cfg.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) || strings.Contains(got[i], "hush") || strings.Contains(got[i], "short-secret") {
					t.Errorf("got %q, want %q", got[i], tt.want[i])
				}
			}
		})
	}
}

func TestFiles(t *testing.T) {
	cfg := identity.Config{KeysFile: "k", JWT: identity.JWTConfig{JWKSFile: "j"}}
	if diff := cmp.Diff([]string{"k", "j"}, cfg.Files()); diff != "" {
		t.Error(diff)
	}
}

func TestAPepperedKeyAllocatesNothing(t *testing.T) {
	now := noon
	keys := at(t, identity.Config{KeysFile: keysFile(t, digest("p")+" a vip\n"+peppered("k")+" a vip rps=3\n"), PepperFile: pepperFile(t)}, &now)
	h := with("k")
	if n := testing.AllocsPerRun(200, func() { _, _ = keys.Identify(h) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func BenchmarkIdentifyPeppered(b *testing.B) {
	now := noon
	keys := at(b, identity.Config{KeysFile: keysFile(b, digest("p")+" a vip\n"+peppered("k")+" a vip rps=3\n"), PepperFile: pepperFile(b)}, &now)
	h := with("k")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := keys.Identify(h); err != nil {
			b.Fatal(err)
		}
	}
}

func TestApplyWithoutItsParts(t *testing.T) {
	for name, cfg := range map[string]identity.Config{
		"sql": {SQL: true, Refresh: time.Second},
		"jwt": {JWT: identity.JWTConfig{JWKSURL: "https://issuer/keys"}},
	} {
		if _, err := newKeysOf(cfg); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
