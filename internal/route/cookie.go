package route

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"
)

// cookiePrefix begins the name of every cookie of Spillway's own; upstream does
// not forward those.
const cookiePrefix = "spillway"

// CookieConfig sets the cookie of session affinity. One cookie serves all tiers.
type CookieConfig struct {
	// Name of the cookie; must begin with `spillway`, because cookies that do are not forwarded to instances.
	Name string `yaml:"name"`
	// Send the cookie over TLS only. Set it when clients reach Spillway over TLS, itself or through a proxy.
	Secure bool `yaml:"secure"`
	// Environment variable with the secret that signs the cookie, at least 16 bytes. All gateways behind one address must share it.
	SecretEnv string `yaml:"secret_env"`
	// File with that secret, read at start and at each reload. Not together with secret_env.
	SecretFile string `yaml:"secret_file"`
}

// minSecret is the shortest secret in bytes that is accepted.
const minSecret = 16

// validate returns every mistake, keys relative to the section `cookie`.
func (c CookieConfig) validate() error {
	var errs []error
	if !strings.HasPrefix(c.Name, cookiePrefix) || strings.ContainsFunc(c.Name, notCookieName) {
		errs = append(errs, fmt.Errorf("name: want letters, digits, - and _ after the prefix %q, got %q", cookiePrefix, c.Name))
	}
	if c.SecretEnv != "" && c.SecretFile != "" {
		errs = append(errs, errors.New("secret_file: give either secret_env or secret_file"))
	} else if _, err := c.secret(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// notCookieName says whether r has no place in a cookie's name.
func notCookieName(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
}

// secret reads the configured secret; nil when none is configured.
func (c CookieConfig) secret() ([]byte, error) {
	var key, secret string
	switch {
	case c.SecretEnv != "":
		key, secret = "secret_env", os.Getenv(c.SecretEnv)
	case c.SecretFile != "":
		b, err := os.ReadFile(c.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("secret_file: %w", err)
		}
		key, secret = "secret_file", strings.TrimSpace(string(b))
	default:
		return nil, nil
	}
	if len(secret) < minSecret {
		return nil, fmt.Errorf("%s: the secret must have at least %d bytes, got %d", key, minSecret, len(secret))
	}
	return []byte(secret), nil
}

// randomSecret makes a secret for a gateway that was given none.
func randomSecret() []byte {
	b := make([]byte, 32)
	rand.Read(b) // never fails since Go 1.24
	return b
}

// The tiers, as positions in the cookie.
const (
	regionTier = iota
	poolTier
	instanceTier
	tierCount
)

// tagLen is the length of a tag in characters: 96 bits in base64.
const tagLen = 16

// signer makes and reads the cookie. Its value has one tag for each tier, joined
// by dots and empty for tiers without affinity by cookie. A tag is the HMAC-SHA-256
// of the node's name, so it cannot be made up, and it does not tell clients the
// address of an instance.
type signer struct {
	name   string
	secret []byte
	suffix string // the attributes that are always the same
}

// newSigner returns a signer.
func newSigner(c CookieConfig, secret []byte) *signer {
	s := &signer{name: c.Name, secret: secret, suffix: "; Path=/; HttpOnly; SameSite=Lax"}
	if c.Secure {
		s.suffix += "; Secure"
	}
	return s
}

// equal says whether both make the same cookies.
func (s *signer) equal(o *signer) bool {
	return s.name == o.name && s.suffix == o.suffix && hmac.Equal(s.secret, o.secret)
}

// tag signs a node's name.
func (s *signer) tag(node string) string {
	m := hmac.New(sha256.New, s.secret)
	m.Write([]byte(node))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil)[:tagLen*3/4])
}

// read returns the tag that the client's cookie holds for a tier, or "".
func (s *signer) read(h http.Header, tier int) string {
	v := cookieValue(h, s.name)
	for range tier {
		_, rest, ok := strings.Cut(v, ".")
		if !ok {
			return ""
		}
		v = rest
	}
	tag, _, _ := strings.Cut(v, ".")
	if len(tag) != tagLen {
		return ""
	}
	return tag
}

// write returns the Set-Cookie value with the names of a node on each tier, ""
// where the tier has no affinity by cookie. A ttl of 0 ends with the session.
// When the client has the same cookie already, and no ttl to extend, it returns "".
func (s *signer) write(h http.Header, names [tierCount]string, ttl time.Duration) string {
	var tags [tierCount]string
	for i, name := range names {
		if name != "" {
			tags[i] = s.tag(name)
		}
	}
	value := strings.Join(tags[:], ".")
	if ttl == 0 {
		if value == cookieValue(h, s.name) {
			return ""
		}
		return s.name + "=" + value + s.suffix
	}
	return s.name + "=" + value + "; Max-Age=" + strconv.FormatInt(int64(ttl/time.Second), 10) + s.suffix
}

// cookieValue finds a cookie without allocating; "" when it is not there. The
// first of the same name counts.
func cookieValue(h http.Header, name string) string {
	for _, line := range h["Cookie"] {
		for line != "" {
			var part string
			part, line, _ = strings.Cut(line, ";")
			part = strings.TrimLeft(part, " ")
			if len(part) > len(name) && part[len(name)] == '=' && part[:len(name)] == name {
				return strings.TrimRight(part[len(name)+1:], " ")
			}
		}
	}
	return ""
}

// canonicalHeader is the form under which a header stands in http.Header.
func canonicalHeader(name string) string { return textproto.CanonicalMIMEHeaderKey(name) }
