// Package identity tells who sent a request: a credential becomes a tenant, a class
// and what else its owner may do.
//
// A key is known by its digest alone, in a file with one line per key (File), in a
// table of a database (identity/sql), or in both:
//
//	# digest                                                                 tenant  class   settings
//	9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08         acme    vip
//	hmac:5b1f0c7d2a9be3f1a40c8d2e6b7f9a1c3e5d7092b4f6a8c0e2d4f60718293a4b    beta    normal  models=llama-* rps=5
//
// A digest is the plain SHA-256 of a key with much entropy, or its HMAC-SHA-256 under
// a pepper that only the gateway has. A request's key is hashed and looked up by its
// digest, so neither the file nor a memory dump of the table gives a key away, and
// the time of a look-up says nothing about the keys that exist. A missing key, a
// wrong, an expired and a revoked one cost the same work and get the same answer.
// What looks like a JSON Web Token is shown to Tokens (identity/jwt) when it is no
// key. Where neither keys nor tokens are configured everybody is anonymous; beside
// them those are who show nothing at all, if the configuration lets them in.
//
// Keys is one atomic pointer to an immutable state. Apply reads the files and swaps
// the pointer, or changes nothing. Run reads the database again and again, and owns
// the goroutines of Tokens. While the database is away the last known keys stay.
package identity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Anonymous is the tenant of requests without a credential, unless the configuration
// names another.
const Anonymous = inference.Anonymous

// What Tokens and Database say beside nil.
var (
	// ErrToken: the token is not good, for whatever reason.
	ErrToken = errors.New("the token is not good")
	// ErrNotReady: no token can be judged yet.
	ErrNotReady = errors.New("no token can be judged yet")
	// ErrSomeKeys: some keys cannot be understood, and let nobody in.
	ErrSomeKeys = errors.New("some keys cannot be understood")
)

// Tokens judges bearer tokens that are no keys. It is safe for concurrent use.
type Tokens interface {
	// Apply replaces the configuration, and reads its files. Its error changes nothing.
	Apply(cfg JWTConfig) error
	// Run keeps what tokens are judged by up to date until ctx ends.
	Run(ctx context.Context) error
	// Verify returns whose token it is. digest is the token's SHA-256. The error is
	// ErrToken or ErrNotReady. It does not block.
	Verify(now time.Time, digest [sha256.Size]byte, token string) (inference.Caller, error)
	// State tells how what tokens are judged by is.
	State() SourceState
}

// Database keeps keys for several gateways. It is safe for concurrent use.
type Database interface {
	// Load returns all keys and their version, or none when known is still their
	// version. Negative versions are no version. With ErrSomeKeys it returns those
	// that could be understood.
	Load(ctx context.Context, known int64) (keys []Key, version int64, err error)
}

// SourceState is how something is that is read again and again.
type SourceState struct {
	Keys   int       // that it had last
	Read   time.Time // when it was last read with success; zero is never
	Faults int64     // failures since the start
}

// Parts are what Keys works with. Only Log is required.
type Parts struct {
	Tokens   Tokens           // nil: identity.jwt cannot be configured
	Database Database         // nil: identity.sql cannot be configured
	Now      func() time.Time // nil is time.Now
	Log      *slog.Logger
}

// Keys identifies requests. It is safe for concurrent use.
type Keys struct {
	parts   Parts
	log     *slog.Logger
	state   atomic.Pointer[state]
	changed chan struct{} // the configuration did

	known, anonymous, refused atomic.Int64

	mu struct {
		sync.Mutex
		cfg      Config
		secret   pepper
		file     []Key
		database []Key
		loaded   bool // the database's keys are known
		source   SourceState
	}
}

// New reads what the configuration names. It starts nothing.
func New(cfg Config, parts Parts) (*Keys, error) {
	k := &Keys{parts: parts, log: parts.Log.With("component", "identity"), changed: make(chan struct{}, 1)}
	if k.parts.Now == nil {
		k.parts.Now = time.Now
	}
	if err := k.Apply(cfg); err != nil {
		return nil, err
	}
	return k, nil
}

// Apply reads the files again, which may have changed while the configuration did
// not. Its error lists every mistake of the keys file; then the keys stay as they
// were.
func (k *Keys) Apply(cfg Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cfg.SQL && k.parts.Database == nil {
		return errors.New("sql: there is no database yet; restart the gateway")
	}
	secret, err := cfg.pepper()
	if err != nil {
		return err
	}
	file, err := cfg.load(secret)
	if err != nil {
		return err
	}
	switch {
	case k.parts.Tokens != nil:
		if err := k.parts.Tokens.Apply(cfg.JWT); err != nil {
			return fmt.Errorf("jwt.%w", err)
		}
	case cfg.JWT.Enabled():
		return errors.New("jwt: there is nothing that judges tokens")
	}
	if !cfg.SQL {
		k.mu.database, k.mu.loaded = nil, false
	}
	k.mu.cfg, k.mu.secret, k.mu.file = cfg, secret, file
	k.rebuild()
	select {
	case k.changed <- struct{}{}:
	default:
	}
	return nil
}

// rebuild makes the state of what is known. The caller holds mu.
func (k *Keys) rebuild() {
	s, without := newState(&k.mu.cfg, k.mu.secret, k.mu.file, k.mu.database)
	s.waits = k.mu.cfg.SQL && !k.mu.loaded
	if without > 0 {
		k.log.Warn("keys of the database are refused: their digests need a pepper", "keys", without)
	}
	k.state.Store(s)
}

// Len is the number of keys in force; 0 without any.
func (k *Keys) Len() int { return k.state.Load().inForce(k.parts.Now()) }

// Ready says whether anybody can be let in: false as long as the keys of the database are
// not read yet, and no other credential is known.
func (k *Keys) Ready() bool {
	s := k.state.Load()
	return !s.waits || s.tokens || s.guests || s.inForce(k.parts.Now()) > 0
}

// Identify returns who sent a request. A key stands in Authorization (scheme Bearer)
// or in x-api-key, a token in either. X-Spillway-Class lowers the class; asking for a
// higher one than the credential has changes nothing. The error is an
// *inference.Error. A known key costs no allocation.
func (k *Keys) Identify(h http.Header) (inference.Caller, error) {
	c, err := k.judge(h)
	switch {
	case err != nil:
		k.refused.Add(1)
		return inference.Caller{}, err
	case c.Key == "":
		k.anonymous.Add(1)
	default:
		k.known.Add(1)
	}
	for _, name := range h["X-Spillway-Class"] {
		asked, ok := inference.ParseClass(name)
		if !ok {
			e := inference.Errorf(inference.CodeInvalidRequest, "unknown class %q in X-Spillway-Class; known are vip, normal and batch", clip(name))
			e.Param = "X-Spillway-Class"
			return inference.Caller{}, e
		}
		if asked.Urgency() < c.Class.Urgency() {
			c.Class = asked
		}
	}
	return c, nil
}

// judge finds whose credential a request shows.
func (k *Keys) judge(h http.Header) (inference.Caller, error) {
	s := k.state.Load()
	if s.anybody || s.guests && !shows(h) {
		return s.guest, nil
	}
	now := k.parts.Now()
	key := credential(h)
	found, sum := s.find(key, now)
	if found != nil && key != "" {
		return found.caller, nil
	}
	if s.tokens && isToken(key) {
		c, err := k.parts.Tokens.Verify(now, sum, key)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, ErrNotReady) {
			return inference.Caller{}, notReady()
		}
	}
	if s.waits {
		return inference.Caller{}, notReady()
	}
	return inference.Caller{}, unauthorized()
}

// unauthorized is the one answer to a missing and to a wrong credential.
func unauthorized() *inference.Error {
	e := inference.Errorf(inference.CodeUnauthorized, "the API key is missing or wrong; send it as \"Authorization: Bearer KEY\" or as \"x-api-key: KEY\"")
	e.Reason = "key"
	e.NoRetry = true
	return e
}

// notReady is the answer while it cannot be said whether a credential is good.
func notReady() *inference.Error {
	e := inference.Errorf(inference.CodeNoCapacity, "the API keys are not known yet; try again")
	e.Reason = "keys"
	e.RetryAfter = time.Second
	return e
}

// shows says whether a request shows a credential of any kind.
func shows(h http.Header) bool { return len(h["Authorization"])+len(h["X-Api-Key"]) > 0 }

// credential finds the key of a request; "" is none. Authorization counts
// before x-api-key, and a field that is repeated counts as missing, because
// which of the two was meant cannot be known.
func credential(h http.Header) string {
	const scheme = "bearer "
	if v := h["Authorization"]; len(v) == 1 && len(v[0]) > len(scheme) && strings.EqualFold(v[0][:len(scheme)], scheme) {
		return strings.Trim(v[0][len(scheme):], " ")
	}
	if v := h["X-Api-Key"]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// isToken says whether a credential has the shape of a JSON Web Token.
func isToken(key string) bool { return strings.Count(key, ".") == 2 }

// clip shortens what a client sent before it is repeated in an answer.
func clip(s string) string {
	if len(s) > 32 {
		return s[:32] + "..."
	}
	return s
}
