package jwt_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	golang "github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/identity/jwt"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// noon is when tokens are judged.
var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// issuer makes tokens.
type issuer struct {
	rsa     *rsa.PrivateKey
	ec      *ecdsa.PrivateKey
	ed      ed25519.PrivateKey
	foreign *rsa.PrivateKey
}

// theIssuer is made once: RSA keys take their time.
var theIssuer = sync.OnceValue(func() *issuer {
	i := new(issuer)
	i.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	i.foreign, _ = rsa.GenerateKey(rand.Reader, 2048)
	i.ec, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, i.ed, _ = ed25519.GenerateKey(rand.Reader)
	return i
})

// b64 is base64url.
func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// rsaJWK is a public key as JSON.
func rsaJWK(kid string, k *rsa.PublicKey, more string) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":%q%s}`, kid, b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes()), more)
}

// set is the issuer's keys.
func (i *issuer) set() string {
	raw, _ := i.ec.PublicKey.Bytes()
	return fmt.Sprintf(`{"keys":[%s,{"kty":"EC","kid":"e","crv":"P-256","x":%q,"y":%q,"use":"sig"},{"kty":"OKP","kid":"o","crv":"Ed25519","x":%q,"alg":"EdDSA"},{"kty":"oct","kid":"s","k":"c2VjcmV0"}]}`,
		rsaJWK("r", &i.rsa.PublicKey, ""), b64(raw[1:33]), b64(raw[33:]), b64(i.ed.Public().(ed25519.PublicKey)))
}

// claims are those of a good token.
func claims(change ...func(golang.MapClaims)) golang.MapClaims {
	c := golang.MapClaims{"iss": "https://issuer", "aud": "spillway", "sub": "alice", "exp": noon.Add(time.Hour).Unix(), "nbf": noon.Add(-time.Hour).Unix()}
	for _, f := range change {
		f(c)
	}
	return c
}

// set returns a change of one claim.
func set(name string, v any) func(golang.MapClaims) { return func(c golang.MapClaims) { c[name] = v } }

// token signs claims.
func token(t testing.TB, m golang.SigningMethod, key any, header map[string]any, c golang.MapClaims) string {
	t.Helper()
	tok := golang.NewWithClaims(m, c)
	for k, v := range header {
		tok.Header[k] = v
	}
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kid is the header of a token that names its key.
func kid(id string) map[string]any { return map[string]any{"kid": id} }

// write writes a file.
func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// config is that of the issuer's keys in a file.
func config(t testing.TB, keys string) identity.JWTConfig {
	c := identity.Default().JWT
	c.JWKSFile, c.Issuer, c.Audience = write(t, keys), "https://issuer", "spillway"
	return c
}

// verifier applies a configuration.
func verifier(t testing.TB, cfg identity.JWTConfig, parts jwt.Parts) *jwt.Verifier {
	t.Helper()
	if parts.Log == nil {
		parts.Log = testkit.Discard()
	}
	v := jwt.New(parts)
	if err := v.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	return v
}

// judge shows a token.
func judge(v *jwt.Verifier, token string, at time.Time) (inference.Caller, error) {
	return v.Verify(at, sha256.Sum256([]byte(token)), token)
}

func TestGoodTokens(t *testing.T) {
	i := theIssuer()
	v := verifier(t, config(t, i.set()), jwt.Parts{})
	for name, tok := range map[string]string{
		"RS256":          token(t, golang.SigningMethodRS256, i.rsa, kid("r"), claims()),
		"ES256":          token(t, golang.SigningMethodES256, i.ec, kid("e"), claims()),
		"EdDSA":          token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims()),
		"without kid":    token(t, golang.SigningMethodEdDSA, i.ed, nil, claims()),
		"several aud":    token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("aud", []string{"x", "spillway"}))),
		"within leeway":  token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("exp", noon.Add(-10*time.Second).Unix()))),
		"nbf, in leeway": token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("nbf", noon.Add(10*time.Second).Unix()))),
	} {
		for _, how := range []string{"first", "remembered"} {
			c, err := judge(v, tok, noon)
			if err != nil || c.Tenant != "alice" || c.Class != inference.Normal || c.Models != nil || len(c.Key) != len("jwt:")+12 || !strings.HasPrefix(c.Key, "jwt:") {
				t.Errorf("%s, %s: got %+v, %v", name, how, c, err)
			}
		}
	}
}

// TestAttacks shows what must never be taken.
func TestAttacks(t *testing.T) {
	i := theIssuer()
	v := verifier(t, config(t, i.set()), jwt.Parts{})
	good := token(t, golang.SigningMethodRS256, i.rsa, kid("r"), claims())
	part := strings.Split(good, ".")
	header := func(h string) string { return b64([]byte(h)) + "." + part[1] + "." + part[2] }
	der, err := x509.MarshalPKIXPublicKey(&i.rsa.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	ed := func(c golang.MapClaims) string { return token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), c) }
	for name, tok := range map[string]string{
		"none":                    token(t, golang.SigningMethodNone, golang.UnsafeAllowNoneSignatureType, kid("r"), claims()),
		"none, no kid":            token(t, golang.SigningMethodNone, golang.UnsafeAllowNoneSignatureType, nil, claims()),
		"None":                    b64([]byte(`{"alg":"None","kid":"r"}`)) + "." + part[1] + ".",
		"HS256 by the public key": token(t, golang.SigningMethodHS256, public, kid("r"), claims()),
		"HS256 by the modulus":    token(t, golang.SigningMethodHS256, i.rsa.N.Bytes(), kid("r"), claims()),
		"HS256 by a listed oct":   token(t, golang.SigningMethodHS256, []byte("secret"), kid("s"), claims()),
		"kid of another alg":      token(t, golang.SigningMethodRS256, i.rsa, kid("e"), claims()),
		"alg not accepted":        token(t, golang.SigningMethodPS256, i.rsa, kid("r"), claims()),
		"RS512 not accepted":      token(t, golang.SigningMethodRS512, i.rsa, kid("r"), claims()),
		"foreign key":             token(t, golang.SigningMethodRS256, i.foreign, kid("r"), claims()),
		"foreign key, own jwk":    token(t, golang.SigningMethodRS256, i.foreign, map[string]any{"kid": "r", "jwk": json.RawMessage(rsaJWK("r", &i.foreign.PublicKey, ""))}, claims()),
		"foreign key, own jku":    token(t, golang.SigningMethodRS256, i.foreign, map[string]any{"kid": "r", "jku": "https://evil/keys"}, claims()),
		"unknown kid":             token(t, golang.SigningMethodRS256, i.rsa, kid("x"), claims()),
		"kid is no text":          token(t, golang.SigningMethodRS256, i.rsa, map[string]any{"kid": 7}, claims()),
		"kid is empty":            token(t, golang.SigningMethodRS256, i.rsa, kid(""), claims()),
		"kid is a path":           token(t, golang.SigningMethodRS256, i.rsa, kid("../../dev/null"), claims()),
		"crit":                    token(t, golang.SigningMethodRS256, i.rsa, map[string]any{"kid": "r", "crit": []string{"exp"}}, claims()),
		"crit is null":            token(t, golang.SigningMethodRS256, i.rsa, map[string]any{"kid": "r", "crit": nil}, claims()),
		"expired":                 ed(claims(set("exp", noon.Add(-31*time.Second).Unix()))),
		"without exp":             ed(claims(func(c golang.MapClaims) { delete(c, "exp") })),
		"exp is a text":           ed(claims(set("exp", "tomorrow"))),
		"not yet":                 ed(claims(set("nbf", noon.Add(31*time.Second).Unix()))),
		"wrong issuer":            ed(claims(set("iss", "https://evil"))),
		"without issuer":          ed(claims(func(c golang.MapClaims) { delete(c, "iss") })),
		"wrong audience":          ed(claims(set("aud", "elsewhere"))),
		"without audience":        ed(claims(func(c golang.MapClaims) { delete(c, "aud") })),
		"without tenant":          ed(claims(func(c golang.MapClaims) { delete(c, "sub") })),
		"tenant is a list":        ed(claims(set("sub", []string{"a"}))),
		"tenant with a newline":   ed(claims(set("sub", "a\nb"))),
		"tenant that is ours":     ed(claims(set("sub", "#idle"))),
		"signature cut":           good[:len(good)-1],
		"signature gone":          part[0] + "." + part[1] + ".",
		"claims changed":          part[0] + "." + b64([]byte(`{"iss":"https://issuer","aud":"spillway","sub":"root","exp":9999999999}`)) + "." + part[2],
		"header changed":          header(`{"alg":"RS256","kid":"e"}`),
		"header is a list":        header(`[]`),
		"no base64":               "!!!.???.***",
		"nothing":                 "..",
		"too large":               good + strings.Repeat("A", 8<<10),
		"padded":                  part[0] + "=." + part[1] + "." + part[2],
	} {
		t.Run(name, func(t *testing.T) {
			c, err := judge(v, tok, noon)
			if !errors.Is(err, identity.ErrToken) || err.Error() != identity.ErrToken.Error() || !cmp.Equal(c, inference.Caller{}) {
				t.Errorf("got %+v, %v, want ErrToken alone", c, err)
			}
		})
	}
	if n := jwt.Remembered(v); n != 0 {
		t.Errorf("got %d bad tokens remembered, want none", n)
	}
	if _, err := judge(v, good, noon); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func TestClaims(t *testing.T) {
	i := theIssuer()
	cfg := config(t, i.set())
	cfg.TenantClaim, cfg.ClassClaim, cfg.ModelsClaim, cfg.DefaultClass = "org.team", "https://x.y/class", "models", "batch"
	v := verifier(t, cfg, jwt.Parts{})
	org := set("org", map[string]any{"team": "acme"})
	for name, tt := range map[string]struct {
		claims golang.MapClaims
		want   inference.Caller // without a key; no tenant is an error
	}{
		"default class":    {claims(org), inference.Caller{Tenant: "acme", Class: inference.Batch}},
		"class":            {claims(org, set("https://x.y/class", "vip")), inference.Caller{Tenant: "acme", Class: inference.VIP}},
		"unknown class":    {claims(org, set("https://x.y/class", "idle")), inference.Caller{}},
		"class of a type":  {claims(org, set("https://x.y/class", 1)), inference.Caller{}},
		"list of models":   {claims(org, set("models", []string{"a-*", "b"})), inference.Caller{Tenant: "acme", Class: inference.Batch, Models: []string{"a-*", "b"}}},
		"words of models":  {claims(org, set("models", "a-* b")), inference.Caller{Tenant: "acme", Class: inference.Batch, Models: []string{"a-*", "b"}}},
		"no model at all":  {claims(org, set("models", []string{})), inference.Caller{Tenant: "acme", Class: inference.Batch, Models: []string{}}},
		"models of a type": {claims(org, set("models", 1)), inference.Caller{}},
		"model of a type":  {claims(org, set("models", []any{"a", 1})), inference.Caller{}},
		"a bad pattern":    {claims(org, set("models", []string{"["})), inference.Caller{}},
		"a flat name wins": {claims(org, set("org.team", "beta")), inference.Caller{Tenant: "beta", Class: inference.Batch}},
		"not an object":    {claims(set("org", "acme")), inference.Caller{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := judge(v, token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), tt.claims), noon)
			if (got.Key == "") != (tt.want.Tenant == "") {
				t.Errorf("got the key %q", got.Key)
			}
			got.Key = ""
			if diff := cmp.Diff(tt.want, got); diff != "" || (err != nil) != (tt.want.Tenant == "") {
				t.Errorf("got %v, caller (-want +got):\n%s", err, diff)
			}
			if tt.want.Models != nil && len(tt.want.Models) == 0 && got.May("a") {
				t.Error("an empty list allows a model")
			}
		})
	}
}

func TestSecret(t *testing.T) {
	i := theIssuer()
	secret := strings.Repeat("hush", 10)
	cfg := config(t, "")
	cfg.JWKSFile, cfg.SecretFile = "", write(t, secret+"\n")
	v := verifier(t, cfg, jwt.Parts{})
	for name, tt := range map[string]struct {
		token string
		good  bool
	}{
		"HS256":          {token(t, golang.SigningMethodHS256, []byte(secret), nil, claims()), true},
		"HS512":          {token(t, golang.SigningMethodHS512, []byte(secret), nil, claims()), false},
		"another secret": {token(t, golang.SigningMethodHS256, []byte("hush"), nil, claims()), false},
		"RS256":          {token(t, golang.SigningMethodRS256, i.rsa, kid("r"), claims()), false},
		"none":           {token(t, golang.SigningMethodNone, golang.UnsafeAllowNoneSignatureType, nil, claims()), false},
	} {
		if _, err := judge(v, tt.token, noon); (err == nil) != tt.good {
			t.Errorf("%s: got %v, want it good: %v", name, err, tt.good)
		}
	}
	cfg.SecretFile = write(t, "short")
	if err := v.Apply(cfg); err == nil || !strings.HasPrefix(err.Error(), "secret_file: ") || strings.Contains(err.Error(), "short\"") {
		t.Errorf("a short secret: got %v", err)
	}
}

// TestRemembered lets a remembered token end, and changes what it was judged by.
func TestRemembered(t *testing.T) {
	i := theIssuer()
	cfg := config(t, i.set())
	v := verifier(t, cfg, jwt.Parts{})
	tok := token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims())
	good := func(at time.Time) bool { _, err := judge(v, tok, at); return err == nil }
	if !good(noon) || !good(noon.Add(time.Hour)) || good(noon.Add(time.Hour+30*time.Second)) || jwt.Remembered(v) != 0 {
		t.Errorf("it does not end with exp and the leeway; %d remembered", jwt.Remembered(v))
	}
	if !good(noon) {
		t.Fatal("it is not good any more")
	}
	cfg.JWKSFile = write(t, fmt.Sprintf(`{"keys":[%s]}`, rsaJWK("r", &i.rsa.PublicKey, "")))
	if err := v.Apply(cfg); err != nil || good(noon) {
		t.Errorf("a token whose key is gone is good (%v)", err)
	}
	if err := v.Apply(identity.JWTConfig{}); err != nil || good(noon) {
		t.Errorf("a token is good without a configuration (%v)", err)
	}
	cfg.JWKSFile = write(t, "{}")
	if err := v.Apply(cfg); err == nil || !strings.HasPrefix(err.Error(), "jwks_file: ") {
		t.Errorf("a set without keys: got %v", err)
	}
}

func TestRememberedIsBounded(t *testing.T) {
	i := theIssuer()
	v := verifier(t, config(t, i.set()), jwt.Parts{})
	tok := token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims())
	if _, err := judge(v, tok, noon); err != nil {
		t.Fatal(err)
	}
	jwt.Remember(v, jwt.MaxRecent+100)
	if n := jwt.Remembered(v); n != jwt.MaxRecent {
		t.Errorf("got %d tokens, want %d", n, jwt.MaxRecent)
	}
	if _, err := judge(v, tok, noon); err != nil {
		t.Errorf("a token that was forgotten: %v", err)
	}
	if n := jwt.Remembered(v); n != jwt.MaxRecent {
		t.Errorf("got %d tokens, want %d", n, jwt.MaxRecent)
	}
}

func TestARememberedTokenAllocatesNothing(t *testing.T) {
	i := theIssuer()
	v := verifier(t, config(t, i.set()), jwt.Parts{})
	tok := token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims())
	sum := sha256.Sum256([]byte(tok))
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Verify(noon, sum, tok) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

// TestNothingOfATokenIsTold looks at the log of tokens that are refused.
func TestNothingOfATokenIsTold(t *testing.T) {
	i := theIssuer()
	var log testkit.Log
	v := verifier(t, config(t, i.set()), jwt.Parts{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for _, tok := range []string{
		token(t, golang.SigningMethodRS256, i.foreign, kid("r"), claims()), token(t, golang.SigningMethodEdDSA, i.ed, kid("hush-kid"), claims()),
		token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("sub", "hush\n"))), token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("iss", "hush"))),
		b64([]byte("hush")) + ".hush.hush", b64([]byte(`{"alg":"hush"}`)) + ".hush.hush",
	} {
		_, _ = judge(v, tok, noon)
		for part := range strings.SplitSeq(tok, ".") {
			if strings.Contains(log.String(), part) || strings.Contains(log.String(), "hush") {
				t.Errorf("the log tells of the token: %s", log.String())
			}
		}
	}
	if got := log.Count("a token is refused"); got != 6 {
		t.Errorf("got %d lines, want 6: %s", got, log.String())
	}
}

func TestSets(t *testing.T) {
	i := theIssuer()
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	raw, _ := i.ec.PublicKey.Bytes()
	x, y := b64(raw[1:33]), b64(raw[33:])
	ec := func(crv, x, y, more string) string {
		return fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q%s}`, crv, x, y, more)
	}
	whole := rsaJWK("r", &i.rsa.PublicKey, "")
	for name, tt := range map[string]struct {
		keys string
		want int // 0 is an error
	}{
		"all kinds":           {i.set()[9 : len(i.set())-2], 3},
		"none":                {``, 0},
		"for encryption":      {rsaJWK("r", &i.rsa.PublicKey, `,"use":"enc"`), 0},
		"to sign":             {rsaJWK("r", &i.rsa.PublicKey, `,"key_ops":["sign"]`), 0},
		"to verify":           {rsaJWK("r", &i.rsa.PublicKey, `,"key_ops":["verify"],"use":"sig","alg":"PS256","x5c":["eA=="]`), 1},
		"alg of another kind": {rsaJWK("r", &i.rsa.PublicKey, `,"alg":"ES256"`), 0},
		"alg is symmetric":    {rsaJWK("r", &i.rsa.PublicKey, `,"alg":"HS256"`), 0},
		"alg none":            {rsaJWK("r", &i.rsa.PublicKey, `,"alg":"none"`), 0},
		"small RSA":           {rsaJWK("r", &small.PublicKey, ""), 0},
		"even exponent":       {strings.Replace(whole, `"e":"AQAB"`, `"e":"Ag"`, 1), 0},
		"exponent one":        {strings.Replace(whole, `"e":"AQAB"`, `"e":"AQ"`, 1), 0},
		"huge exponent":       {strings.Replace(whole, `"e":"AQAB"`, `"e":"`+b64(make([]byte, 5))+`AQABAQABAQAB"`, 1), 0},
		"no modulus":          {`{"kty":"RSA","e":"AQAB"}`, 0},
		"huge modulus":        {`{"kty":"RSA","e":"AQAB","n":"` + b64([]byte(strings.Repeat("\xff", 2000))) + `"}`, 0},
		"no base64":           {`{"kty":"RSA","e":"AQAB","n":"+/+/"}`, 0},
		"another curve":       {ec("secp256k1", x, y, ""), 0},
		"not on the curve":    {ec("P-256", y, x, ""), 0},
		"of another size":     {ec("P-384", x, y, ""), 0},
		"short":               {ec("P-256", x[:20], y, ""), 0},
		"X25519":              {`{"kty":"OKP","crv":"X25519","x":"` + x + `"}`, 0},
		"short Ed25519":       {`{"kty":"OKP","crv":"Ed25519","x":"eHh4"}`, 0},
		"symmetric":           {`{"kty":"oct","k":"c2VjcmV0"}`, 0},
		"a list in a list":    {`[]`, 0},
		"a bad one and good":  {`{"kty":"RSA"},` + whole + `,7`, 1},
		"many":                {strings.TrimSuffix(strings.Repeat(whole+",", 257), ","), 0},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := jwt.ParseSet([]byte(`{"keys":[` + tt.keys + `]}`))
			if n != tt.want || (err != nil) != (tt.want == 0) {
				t.Errorf("got %d, %v, want %d keys", n, err, tt.want)
			}
		})
	}
	for _, text := range []string{"", "null", "[]", `{"keys":{}}`, "<html>", `{"keys":[]} x`} {
		if n, err := jwt.ParseSet([]byte(text)); err == nil {
			t.Errorf("%q: got %d keys", text, n)
		}
	}
}

// TestTwoKeysWithoutAName has a token that does not say which of two it means.
func TestTwoKeysWithoutAName(t *testing.T) {
	i := theIssuer()
	both := fmt.Sprintf(`{"keys":[%s,%s]}`, rsaJWK("a", &i.foreign.PublicKey, ""), rsaJWK("a", &i.rsa.PublicKey, ""))
	v := verifier(t, config(t, both), jwt.Parts{})
	if _, err := judge(v, token(t, golang.SigningMethodRS256, i.rsa, nil, claims()), noon); err == nil {
		t.Error("a key was guessed")
	}
	if _, err := judge(v, token(t, golang.SigningMethodRS256, i.rsa, kid("a"), claims()), noon); err != nil {
		t.Errorf("two keys have the name: %v", err)
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte(theIssuer().set()))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if n, err := jwt.ParseSet(data); (n == 0) != (err != nil) {
			t.Errorf("got %d keys and %v", n, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	i := theIssuer()
	good := token(f, golang.SigningMethodEdDSA, i.ed, kid("o"), claims())
	f.Add(good)
	f.Add(token(f, golang.SigningMethodNone, golang.UnsafeAllowNoneSignatureType, nil, claims()))
	f.Add("e30.e30.")
	v := verifier(f, config(f, i.set()), jwt.Parts{})
	f.Fuzz(func(t *testing.T, tok string) {
		if c, err := judge(v, tok, noon); err == nil && tok != good {
			t.Errorf("got in as %+v", c)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	i := theIssuer()
	v := verifier(b, config(b, i.set()), jwt.Parts{})
	for name, m := range map[string]struct {
		method golang.SigningMethod
		key    crypto.Signer
		kid    string
	}{"RS256": {golang.SigningMethodRS256, i.rsa, "r"}, "ES256": {golang.SigningMethodES256, i.ec, "e"}, "EdDSA": {golang.SigningMethodEdDSA, i.ed, "o"}} {
		tok := token(b, m.method, m.key, kid(m.kid), claims())
		sum := sha256.Sum256([]byte(tok))
		b.Run(name+"/first", func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				if _, err := v.Verify(noon, sha256.Sum256(fmt.Append(nil, n, name)), tok); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/remembered", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(noon, sum, tok); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
