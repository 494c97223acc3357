package jwt

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"time"

	golang "github.com/golang-jwt/jwt/v5"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
)

// Bounds of what a token may say.
const (
	maxToken  = 8 << 10 // bytes
	maxModels = 64
)

// What is wrong with a token, for the log at its lowest level.
var (
	errHeader = errors.New("its header asks for what is not known here")
	errKey    = errors.New("no key of the issuer fits it")
	errClaims = errors.New("its tenant, class or models are not what they must be")
)

// judge verifies a token and reads who it names, and until when.
func (v *Verifier) judge(s *settings, now time.Time, token string) (c inference.Caller, ends time.Time, err error) {
	claims := golang.MapClaims{}
	parser := golang.NewParser(
		golang.WithValidMethods(s.cfg.Accepted()), golang.WithIssuer(s.cfg.Issuer), golang.WithAudience(s.cfg.Audience),
		golang.WithLeeway(s.cfg.Leeway), golang.WithExpirationRequired(), golang.WithStrictDecoding(),
		golang.WithTimeFunc(func() time.Time { return now }),
	)
	if _, err := parser.ParseWithClaims(token, claims, func(t *golang.Token) (any, error) { return v.keys(s, t) }); err != nil {
		return c, ends, err
	}
	c, err = callerOf(s, claims)
	if err != nil {
		return c, ends, err
	}
	at, err := claims.GetExpirationTime()
	if err != nil || at == nil {
		return c, ends, errClaims
	}
	return c, at.Add(s.cfg.Leeway), nil
}

// keys finds what a token's signature is judged by. A key fits one family of
// algorithms alone, so that a public key is never taken for a secret.
func (v *Verifier) keys(s *settings, t *golang.Token) (any, error) {
	if _, there := t.Header["crit"]; there { // RFC 7515, section 4.1.11: nothing that may stand there is known here
		return nil, errHeader
	}
	if s.secret != nil {
		if _, ok := t.Method.(*golang.SigningMethodHMAC); !ok {
			return nil, errHeader
		}
		return s.secret, nil
	}
	id := ""
	if given, there := t.Header["kid"]; there {
		var ok bool
		if id, ok = given.(string); !ok || id == "" {
			return nil, errHeader
		}
	}
	found, known := find(s.keys, id, t.Method.Alg())
	if !known {
		v.askEarly()
	}
	if len(found) == 0 {
		return nil, errKey
	}
	var set golang.VerificationKeySet
	for _, k := range found {
		set.Keys = append(set.Keys, k.public)
	}
	return set, nil
}

// callerOf reads who a token names.
func callerOf(s *settings, claims golang.MapClaims) (c inference.Caller, err error) {
	c.Class = s.class
	tenant, ok := claim(claims, s.cfg.TenantClaim).(string)
	if !ok || !identity.IsTenant(tenant) {
		return c, errClaims
	}
	c.Tenant = tenant
	if s.cfg.ClassClaim != "" {
		if said := claim(claims, s.cfg.ClassClaim); said != nil {
			name, _ := said.(string)
			if c.Class, ok = inference.ParseClass(name); !ok {
				return c, errClaims
			}
		}
	}
	if s.cfg.ModelsClaim != "" {
		if c.Models, err = models(claim(claims, s.cfg.ModelsClaim)); err != nil {
			return c, err
		}
	}
	subject, _ := claims["sub"].(string)
	if subject == "" {
		subject = "tenant " + tenant
	}
	sum := sha256.Sum256([]byte(s.cfg.Issuer + "\x00" + subject))
	c.Key = "jwt:" + hex.EncodeToString(sum[:6])
	return c, nil
}

// claim is what a token says under a name, or under names with dots between them, each
// within what the one before it says; nil is nothing.
func claim(claims map[string]any, name string) any {
	if v, there := claims[name]; there {
		return v
	}
	first, rest, ok := strings.Cut(name, ".")
	within, is := claims[first].(map[string]any)
	if !ok || !is {
		return nil
	}
	return claim(within, rest)
}

// models reads a claim with patterns. nil allows all, an empty list nothing.
func models(said any) ([]string, error) {
	list := []string{}
	switch said := said.(type) {
	case nil:
		return nil, nil
	case string:
		list = append(list, strings.Fields(said)...)
	case []any:
		for _, one := range said {
			name, ok := one.(string)
			if !ok {
				return nil, errClaims
			}
			list = append(list, name)
		}
	default:
		return nil, errClaims
	}
	if len(list) > maxModels || slices.ContainsFunc(list, func(p string) bool { return !identity.IsPattern(p) }) {
		return nil, errClaims
	}
	return list, nil
}

// why is what is wrong with a token in words that have nothing of it.
func why(err error) string {
	for _, known := range []error{
		errHeader, errKey, errClaims, golang.ErrTokenMalformed, golang.ErrTokenSignatureInvalid, golang.ErrTokenExpired,
		golang.ErrTokenNotValidYet, golang.ErrTokenInvalidIssuer, golang.ErrTokenInvalidAudience, golang.ErrTokenRequiredClaimMissing,
	} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "it cannot be verified"
}
