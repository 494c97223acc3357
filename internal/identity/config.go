package identity

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Config is the section `identity` of the configuration.
type Config struct {
	// File with one API key per line: the digest of the key, the tenant, the class (`vip`, `normal` or `batch`), and settings such as `models=llama-*` or `expires=2027-01-01T00:00:00Z`. `spillway key` writes it. Without a file, a database and JWT no key is asked for, and everybody is `anonymous` and `normal`.
	KeysFile string `yaml:"keys_file"`
	// Keep keys in the databases of `store.sql` too, on shard 0. Takes effect with a restart.
	SQL bool `yaml:"sql"`
	// How often the database is asked whether keys have changed; a revoked key works so long at most.
	Refresh time.Duration `yaml:"refresh"`
	// File with the secret under which keys are hashed (HMAC-SHA-256), of 32 bytes or more. Without one new keys are kept as their plain SHA-256. Keys that were made under another pepper are lost.
	PepperFile string `yaml:"pepper_file"`
	// Environment variable that holds the pepper, instead of a file.
	PepperEnv string `yaml:"pepper_env"`
	// JSON Web Tokens as credentials.
	JWT JWTConfig `yaml:"jwt"`
	// Requests that show no credential at all.
	Anonymous AnonymousConfig `yaml:"anonymous"`
}

// JWTConfig is how bearer tokens are judged that are JSON Web Tokens.
type JWTConfig struct {
	// Address of the issuer's keys, a JSON Web Key Set. It must be https, but on loopback.
	JWKSURL string `yaml:"jwks_url"`
	// File with the issuer's keys, instead of an address.
	JWKSFile string `yaml:"jwks_file"`
	// File with the secret, of 32 bytes or more, by which the HS algorithms are judged, instead of public keys.
	SecretFile string `yaml:"secret_file"`
	// What `iss` must be.
	Issuer string `yaml:"issuer"`
	// What must stand in `aud`.
	Audience string `yaml:"audience"`
	// Algorithms that are accepted. Empty: RS256, ES256 and EdDSA, or HS256 with a secret. The PS, larger RS, ES and HS ones are known too.
	Algorithms []string `yaml:"algorithms"`
	// Claim that names the tenant; a dot goes into an object.
	TenantClaim string `yaml:"tenant_claim"`
	// Claim that names the class. Empty, and for tokens without it: the default class.
	ClassClaim string `yaml:"class_claim"`
	// Claim with the patterns of the models that may be asked for, a list or words between spaces. Empty, and for tokens without it: all.
	ModelsClaim string `yaml:"models_claim"`
	// Class of tokens that name none: vip, normal or batch.
	DefaultClass string `yaml:"default_class"`
	// How far the clocks of the issuer and the gateway may differ.
	Leeway time.Duration `yaml:"leeway"`
	// How often the issuer's keys are read again; for a key that is not known, sooner.
	Refresh time.Duration `yaml:"refresh"`
}

// AnonymousConfig is who those are that show no credential.
type AnonymousConfig struct {
	// Let them in: `true`, `false`, or `auto`, which does where neither keys nor JWT are configured.
	Enabled string `yaml:"enabled"`
	// Their tenant.
	Tenant string `yaml:"tenant"`
	// Their class: vip, normal or batch.
	Class string `yaml:"class"`
	// Patterns of the models that they may ask for. Empty: all.
	Models []string `yaml:"models"`
	// Their limits, all of them together.
	Quota inference.Quota `yaml:"quota"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{
		Refresh:   5 * time.Second,
		JWT:       JWTConfig{TenantClaim: "sub", DefaultClass: inference.Normal.String(), Leeway: 30 * time.Second, Refresh: 15 * time.Minute},
		Anonymous: AnonymousConfig{Enabled: auto, Tenant: Anonymous, Class: inference.Normal.String()},
	}
}

// auto lets everybody in where nobody could show anything.
const auto = "auto"

// Bounds of secrets in bytes.
const (
	minSecret = 32
	maxSecret = 4096
)

// Validate returns every mistake in the section, those of the keys file
// included.
func (c *Config) Validate() error {
	secret, err := c.pepper()
	errs := []error{err}
	if err == nil {
		_, err := c.load(secret)
		errs = append(errs, err)
	}
	if c.SQL && (c.Refresh < 100*time.Millisecond || c.Refresh > time.Hour) {
		errs = append(errs, fmt.Errorf("refresh: must be 100ms to 1h0m0s, got %v", c.Refresh))
	}
	if !c.guests() && !c.asks() {
		errs = append(errs, errors.New("anonymous.enabled: nobody could send a request; give keys_file, sql or jwt, or let everybody in"))
	}
	return errors.Join(append(errs, c.JWT.validate(), c.Anonymous.validate())...)
}

// Files lists the files that the section names, whose changes matter.
func (c *Config) Files() []string {
	return slices.DeleteFunc([]string{c.KeysFile, c.PepperFile, c.JWT.JWKSFile, c.JWT.SecretFile}, func(s string) bool { return s == "" })
}

// asks says whether credentials are asked for.
func (c *Config) asks() bool { return c.KeysFile != "" || c.SQL || c.JWT.Enabled() }

// guests says whether requests without a credential get in.
func (c *Config) guests() bool {
	switch c.Anonymous.Enabled {
	case "true":
		return true
	case auto, "":
		return !c.asks()
	}
	return false
}

// pepper reads the pepper; nil is none. Its errors never repeat it.
func (c *Config) pepper() (pepper, error) {
	key, text := "pepper_env", ""
	switch {
	case c.PepperEnv != "" && c.PepperFile != "":
		return nil, errors.New("pepper_file: give pepper_env or pepper_file, not both")
	case c.PepperEnv != "":
		text = strings.TrimSpace(os.Getenv(c.PepperEnv))
	case c.PepperFile != "":
		key = "pepper_file"
		data, err := ReadSecret(c.PepperFile)
		if err != nil {
			return nil, fmt.Errorf("pepper_file: %w", err)
		}
		text = string(data)
	default:
		return nil, nil
	}
	if len(text) < minSecret || len(text) > maxSecret {
		return nil, fmt.Errorf("%s: the pepper must have %d to %d bytes, got %d", key, minSecret, maxSecret, len(text))
	}
	return pepper(text), nil
}

// ReadSecret reads a file with one secret, without the white space around it. Its
// errors never repeat it.
func ReadSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*maxSecret))
	if err != nil {
		return nil, err
	}
	return []byte(strings.TrimSpace(string(data))), nil
}

// load reads the keys file, if there is one.
func (c *Config) load(secret pepper) ([]Key, error) {
	if c.KeysFile == "" {
		return nil, nil
	}
	alone := !c.SQL && !c.JWT.Enabled() && !c.guests()
	return load(c.KeysFile, secret, alone)
}

// Enabled says whether tokens are accepted.
func (c *JWTConfig) Enabled() bool { return c.JWKSURL != "" || c.JWKSFile != "" || c.SecretFile != "" }

// Secret reads the secret of the HS algorithms. Its errors never repeat it.
func (c *JWTConfig) Secret() ([]byte, error) {
	secret, err := ReadSecret(c.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("secret_file: %w", err)
	}
	if len(secret) < minSecret || len(secret) > maxSecret {
		return nil, fmt.Errorf("secret_file: the secret must have %d to %d bytes, got %d", minSecret, maxSecret, len(secret))
	}
	return secret, nil
}

// Accepted lists the algorithms that are accepted.
func (c *JWTConfig) Accepted() []string {
	switch {
	case len(c.Algorithms) > 0:
		return c.Algorithms
	case c.SecretFile != "":
		return []string{"HS256"}
	}
	return []string{"RS256", "ES256", "EdDSA"}
}

// algorithms are those that can be accepted: of secrets, and of public keys.
var algorithms = map[bool][]string{
	true:  {"HS256", "HS384", "HS512"},
	false: {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"},
}

// validate returns every mistake in the section.
func (c *JWTConfig) validate() error {
	if !c.Enabled() {
		if c.Issuer != "" || c.Audience != "" {
			return errors.New("jwt: give jwks_url, jwks_file or secret_file")
		}
		return nil
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("jwt."+format, args...)) }
	if (c.JWKSURL != "" && c.JWKSFile != "") || (c.SecretFile != "" && c.JWKSURL+c.JWKSFile != "") {
		bad("jwks_url: give one of jwks_url, jwks_file and secret_file")
	}
	if c.JWKSURL != "" && !safeURL(c.JWKSURL) {
		bad("jwks_url: want an https address without a user, got %q", withoutUser(c.JWKSURL))
	}
	if c.SecretFile != "" {
		if _, err := c.Secret(); err != nil {
			bad("%w", err)
		}
	}
	if c.JWKSFile != "" {
		if _, err := os.Stat(c.JWKSFile); err != nil {
			bad("jwks_file: %w", err)
		}
	}
	if c.Issuer == "" {
		bad("issuer: is needed: without it, tokens of anybody with the same keys would be taken")
	}
	if c.Audience == "" {
		bad("audience: is needed: without it, tokens that are meant for other services would be taken")
	}
	for _, a := range c.Accepted() {
		if known := algorithms[c.SecretFile != ""]; !slices.Contains(known, a) {
			bad("algorithms: %q cannot be accepted here; known are %s", a, strings.Join(known, ", "))
		}
	}
	if c.TenantClaim == "" {
		bad("tenant_claim: is needed")
	}
	if _, ok := inference.ParseClass(c.DefaultClass); !ok {
		bad("default_class: must be vip, normal or batch, got %q", c.DefaultClass)
	}
	if c.Leeway < 0 || c.Leeway > 10*time.Minute {
		bad("leeway: must be 0s to 10m0s, got %v", c.Leeway)
	}
	if c.Refresh < time.Second || c.Refresh > 24*time.Hour {
		bad("refresh: must be 1s to 24h0m0s, got %v", c.Refresh)
	}
	return errors.Join(errs...)
}

// safeURL says whether what is read from an address can be believed.
func safeURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	local := err == nil && addr.IsLoopback() || u.Hostname() == "localhost"
	return u.Scheme == "https" || u.Scheme == "http" && local
}

// withoutUser is an address that may be shown.
func withoutUser(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.User != nil {
		return "one that must not be shown"
	}
	return u.Redacted()
}

// validate returns every mistake in the section.
func (c *AnonymousConfig) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("anonymous."+format, args...)) }
	switch c.Enabled {
	case "true", "false", auto, "":
	default:
		bad("enabled: must be true, false or auto, got %q", c.Enabled)
	}
	if c.Tenant != "" && !IsTenant(c.Tenant) {
		bad("tenant: %w", errTenant)
	}
	if _, ok := inference.ParseClass(c.Class); c.Class != "" && !ok {
		bad("class: must be vip, normal or batch, got %q", c.Class)
	}
	for i, m := range c.Models {
		if !IsPattern(m) {
			bad("models[%d]: %q is no pattern", i, m)
		}
	}
	for _, f := range quotas {
		if n := *f.in(&c.Quota); n < 0 || n > maxQuota {
			bad("quota.%s: must be 0 to %d, got %d", f.key, int64(maxQuota), n)
		}
	}
	return errors.Join(errs...)
}

// caller is who they are.
func (c *AnonymousConfig) caller() inference.Caller {
	class, _ := inference.ParseClass(c.Class) // what is not said is normal
	k := Key{Tenant: c.Tenant, Class: class, Models: c.Models, Quota: c.Quota}
	if k.Tenant == "" {
		k.Tenant = Anonymous
	}
	if len(k.Models) == 0 {
		k.Models = nil
	}
	return k.caller()
}
