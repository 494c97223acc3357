// Package jwt judges bearer tokens that are JSON Web Tokens: their signature by the
// issuer's public keys or a shared secret, their time, issuer and audience, and reads
// from their claims who sends a request.
//
// The issuer's keys (a JSON Web Key Set, from an address or a file) are read when the
// configuration is applied or Run begins, again each refresh, and once sooner when a
// token names a key that is not known, every 30 s at most, so that tokens that were made
// up do not make the gateway an attacker of its issuer. The last good set stays while
// reading fails. A key is used only with the algorithms of its kind, and a token's own
// word counts only among the accepted ones; there is no algorithm "none", and no public
// key is ever used as a secret. Whatever is wrong with a token, the error is the same.
//
// Good tokens are remembered by their digest until they end, bounded, so that most
// requests cost a look-up. What is remembered was judged under certain settings, and
// counts while they are the same: new keys and a new configuration judge anew.
//
// A Verifier is one atomic pointer to immutable settings. Run owns its one goroutine's
// worth of work and ends with its context.
package jwt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
)

// Times of reading keys.
const (
	fetchTime = 10 * time.Second
	earlyGap  = 30 * time.Second // between readings that tokens ask for
	firstWait = time.Second      // after a failure; it doubles
	mostWait  = time.Minute
)

// maxRedirects bounds how often an issuer may send the gateway elsewhere.
const maxRedirects = 3

// Parts are what a Verifier works with. Only Log is required.
type Parts struct {
	Transport http.RoundTripper // reaches the issuer; nil is one of its own
	Log       *slog.Logger
}

// Verifier judges tokens. It implements identity.Tokens.
type Verifier struct {
	client *http.Client
	log    *slog.Logger
	set    atomic.Pointer[settings]
	recent *recent
	early  chan struct{} // a token names a key that is not known
	again  chan struct{} // the configuration has changed

	mu struct {
		sync.Mutex // orders changes of set
		state      identity.SourceState
	}
}

// settings are what tokens are judged by. They never change.
type settings struct {
	cfg    identity.JWTConfig
	class  inference.Class
	secret []byte // of the HS algorithms; nil: public keys
	keys   []key  // nil: not read yet
	raw    []byte // that they were read from
}

// New returns a verifier without a configuration, which finds no token good.
func New(parts Parts) *Verifier {
	transport := parts.Transport
	if transport == nil {
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: fetchTime}
	}
	v := &Verifier{
		client: &http.Client{Transport: transport, Timeout: fetchTime, CheckRedirect: secureRedirect},
		log:    parts.Log.With("component", "identity"), recent: newRecent(), early: make(chan struct{}, 1), again: make(chan struct{}, 1),
	}
	v.set.Store(&settings{})
	return v
}

// secureRedirect refuses to leave https.
func secureRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errors.New("too many redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("a redirect to an address without https")
	}
	return nil
}

// Apply implements identity.Tokens. Keys of an address that stays the same stay.
func (v *Verifier) Apply(cfg identity.JWTConfig) error {
	next := &settings{cfg: cfg}
	next.class, _ = inference.ParseClass(cfg.DefaultClass) // it was validated
	switch {
	case cfg.SecretFile != "":
		secret, err := cfg.Secret()
		if err != nil {
			return err
		}
		next.secret = secret
	case cfg.JWKSFile != "":
		raw, err := readFile(cfg.JWKSFile)
		if err == nil {
			next.keys, err = parseSet(raw)
		}
		if err != nil {
			return fmt.Errorf("jwks_file: %s: %w", cfg.JWKSFile, err)
		}
		next.raw = raw
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.set.Load()
	if cfg.JWKSURL != "" && cfg.JWKSURL == old.cfg.JWKSURL {
		next.keys, next.raw = old.keys, old.raw
	} else {
		v.mu.state.Read, v.mu.state.Keys = time.Time{}, len(next.keys)
		if cfg.JWKSURL == "" && cfg.Enabled() {
			v.mu.state.Read = time.Now()
		}
	}
	v.set.Store(next)
	select {
	case v.again <- struct{}{}:
	default:
	}
	return nil
}

// Verify implements identity.Tokens.
func (v *Verifier) Verify(now time.Time, digest [sha256.Size]byte, token string) (inference.Caller, error) {
	s := v.set.Load()
	if c, ok := v.recent.find(digest, s, now); ok {
		return c, nil
	}
	switch {
	case !s.cfg.Enabled() || len(token) > maxToken:
		return inference.Caller{}, identity.ErrToken
	case s.secret == nil && s.keys == nil:
		return inference.Caller{}, identity.ErrNotReady
	}
	c, ends, err := v.judge(s, now, token)
	if err != nil {
		if v.log.Enabled(context.Background(), slog.LevelDebug) {
			v.log.Debug("a token is refused", "why", why(err))
		}
		return inference.Caller{}, identity.ErrToken
	}
	v.recent.keep(&seen{digest, s, c, ends})
	return c, nil
}

// State implements identity.Tokens.
func (v *Verifier) State() identity.SourceState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.state
}

// askEarly makes Run read the issuer's keys soon.
func (v *Verifier) askEarly() {
	select {
	case v.early <- struct{}{}:
	default:
	}
}

// Run implements identity.Tokens.
func (v *Verifier) Run(ctx context.Context) error {
	defer v.client.CloseIdleConnections()
	var last time.Time // an early reading
	wait := time.Duration(0)
	for {
		var next <-chan time.Time
		if cfg := v.set.Load().cfg; cfg.JWKSURL != "" || cfg.JWKSFile != "" {
			if err := v.refresh(ctx, cfg); err == nil {
				wait = 0
				next = time.After(cfg.Refresh)
			} else {
				wait = min(max(firstWait, 2*wait), mostWait, cfg.Refresh)
				next = time.After(wait)
			}
		}
		for again := false; !again; {
			select {
			case <-ctx.Done():
				return nil
			case <-next:
				again = true
			case <-v.again:
				wait, again = 0, true
			case <-v.early:
				if now := time.Now(); last.IsZero() || now.Sub(last) >= earlyGap {
					last, again = now, true
				}
			}
		}
	}
}

// refresh reads the issuer's keys once.
func (v *Verifier) refresh(ctx context.Context, cfg identity.JWTConfig) error {
	raw, err := v.read(ctx, cfg)
	var keys []key
	if err == nil {
		keys, err = parseSet(raw)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.set.Load()
	if s.cfg.JWKSURL != cfg.JWKSURL || s.cfg.JWKSFile != cfg.JWKSFile { // it was asked for something else meanwhile
		return nil
	}
	if err != nil {
		v.mu.state.Faults++
		v.log.Warn("the keys of the tokens' issuer cannot be read; the last known ones stay", "from", from(cfg), "keys", len(s.keys), "error", err)
		return err
	}
	v.mu.state.Read, v.mu.state.Keys = time.Now(), len(keys)
	if bytes.Equal(raw, s.raw) {
		return nil
	}
	next := *s
	next.keys, next.raw = keys, raw
	v.set.Store(&next)
	v.log.Info("the keys of the tokens' issuer are read", "from", from(cfg), "keys", len(keys))
	return nil
}

// from says where keys are read from, without what may be a secret.
func from(cfg identity.JWTConfig) string {
	if u, err := url.Parse(cfg.JWKSURL); err == nil && cfg.JWKSURL != "" {
		return u.Scheme + "://" + u.Host + u.EscapedPath()
	}
	return cfg.JWKSFile
}

// read reads a set of keys from where the configuration says.
func (v *Verifier) read(ctx context.Context, cfg identity.JWTConfig) ([]byte, error) {
	if cfg.JWKSFile != "" {
		return readFile(cfg.JWKSFile)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.JWKSURL, nil)
	if err != nil {
		return nil, errors.New("not an address")
	}
	req.Header.Set("Accept", "application/json")
	resp, err := v.client.Do(req)
	if err != nil {
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err // without the address, whose query may be a secret
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return bounded(resp.Body)
}

// readFile reads a set of keys from a file.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return bounded(f)
}

// bounded reads a set of keys.
func bounded(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSet+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSet {
		return nil, fmt.Errorf("larger than %d MiB", maxSet>>20)
	}
	return data, nil
}
