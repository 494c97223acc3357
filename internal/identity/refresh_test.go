package identity_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// database is one that can be away.
type database struct {
	mu      sync.Mutex
	keys    []identity.Key
	version int64
	err     error
	asked   []int64 // what was known
}

// Load implements identity.Database.
func (d *database) Load(_ context.Context, known int64) ([]identity.Key, int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, known)
	switch {
	case d.err != nil && !errors.Is(d.err, identity.ErrSomeKeys):
		return nil, -1, d.err
	case known == d.version:
		return nil, known, nil
	}
	return d.keys, d.version, d.err
}

// set changes what it has.
func (d *database) set(err error, keys ...identity.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version++
	d.keys, d.err = keys, err
}

// tokens knows one.
type tokens struct {
	applied identity.JWTConfig
	err     error
}

func (k *tokens) Apply(cfg identity.JWTConfig) error {
	if cfg.Issuer == "bad" {
		return errors.New("jwks_file: gone")
	}
	k.applied = cfg
	return nil
}

func (k *tokens) Run(ctx context.Context) error { <-ctx.Done(); return k.err }

func (k *tokens) Verify(_ time.Time, sum [32]byte, token string) (inference.Caller, error) {
	switch {
	case sum != sha256.Sum256([]byte(token)):
		return inference.Caller{}, errors.New("a wrong digest")
	case token == "good.to.ken":
		return inference.Caller{Tenant: "jane", Key: "jwt:1", Class: inference.VIP}, nil
	case token == "not.known.yet":
		return inference.Caller{}, identity.ErrNotReady
	}
	return inference.Caller{}, identity.ErrToken
}

func (k *tokens) State() identity.SourceState {
	return identity.SourceState{Keys: 1, Read: noon, Faults: 7}
}

// running runs keys until the test ends.
func running(t *testing.T, cfg identity.Config, parts identity.Parts) *identity.Keys {
	t.Helper()
	if parts.Log == nil {
		parts.Log = testkit.Discard()
	}
	k, err := identity.New(cfg, parts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return k
}

// code is what a request gets.
func code(k *identity.Keys, h http.Header) inference.Code {
	_, err := k.Identify(h)
	if e, ok := errors.AsType[*inference.Error](err); ok {
		return e.Code
	}
	return ""
}

// TestDatabase follows a database that changes and goes away.
func TestDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testkit.Log
		d := &database{err: errors.New("down")}
		cfg := identity.Default()
		cfg.SQL, cfg.KeysFile = true, keysFile(t, digest("of-the-file")+" acme vip\n")
		k := running(t, cfg, identity.Parts{Database: d, Log: slog.New(slog.NewTextHandler(&log, nil))})
		fresh := func(id string) identity.Key { n := newKey(t, id); n.Expires = time.Time{}; return n }
		want := func(when string, codes map[string]inference.Code) {
			t.Helper()
			synctest.Wait()
			for key, want := range codes {
				if got := code(k, with(key)); got != want {
					t.Errorf("%s, %s: got %q, want %q", when, key, got, want)
				}
			}
		}
		const no, notYet = inference.CodeUnauthorized, inference.CodeNoCapacity
		want("before it was ever read", map[string]inference.Code{"of-the-file": "", "one": notYet, "": notYet})
		d.set(nil, fresh("one"), fresh("two"))
		time.Sleep(cfg.Refresh)
		want("with two keys", map[string]inference.Code{"of-the-file": "", "one": "", "two": "", "three": no, "": no})
		gone := fresh("one")
		gone.Revoked = noon
		d.set(nil, gone, fresh("two"))
		time.Sleep(cfg.Refresh)
		want("one is revoked", map[string]inference.Code{"one": no, "two": ""})
		d.set(errors.New("down"))
		time.Sleep(10 * time.Minute)
		want("it is away", map[string]inference.Code{"of-the-file": "", "one": no, "two": ""})
		if n := log.Count("last known ones stay"); n != 2 { // at the start and now
			t.Errorf("got %d warnings, want 2: %s", n, &log)
		}
		d.set(fmt.Errorf("%w: a row", identity.ErrSomeKeys), fresh("three"))
		time.Sleep(cfg.Refresh)
		want("some rows are bad", map[string]inference.Code{"two": no, "three": ""})
		d.set(nil, fresh("three"))
		time.Sleep(2 * time.Minute)
		d.mu.Lock()
		whole := 0
		for _, known := range d.asked[len(d.asked)-24:] { // two minutes
			if known < 0 {
				whole++
			}
		}
		d.mu.Unlock()
		if whole < 2 || whole > 3 { // the ends of the two minutes may count
			t.Errorf("everything was read %d times in two minutes, want 2", whole)
		}
		salted := fresh("four")
		salted.Digest.Kind = identity.HMAC
		d.set(nil, salted)
		time.Sleep(cfg.Refresh)
		want("a pepper is missing", map[string]inference.Code{"four": no})
		if log.Count("need a pepper") == 0 {
			t.Errorf("nobody says so: %s", &log)
		}
		cfg.SQL = false
		d.set(nil, fresh("five"))
		if err := k.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(cfg.Refresh)
		want("without it", map[string]inference.Code{"five": no, "of-the-file": ""})
		cfg.SQL = true
		if err := k.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		want("with it again", map[string]inference.Code{"five": ""})
	})
}

// TestTheEarlierEndCounts keeps one key in two places.
func TestTheEarlierEndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := newKey(t, "k")
		gone.Revoked = noon
		d := &database{keys: []identity.Key{gone}, version: 3}
		cfg := identity.Default()
		cfg.SQL, cfg.KeysFile = true, keysFile(t, digest("k")+" acme vip\n")
		k := running(t, cfg, identity.Parts{Database: d})
		synctest.Wait()
		if got := code(k, with("k")); got != inference.CodeUnauthorized {
			t.Errorf("got %q for a key that the database has revoked", got)
		}
	})
}

func TestTokens(t *testing.T) {
	cfg := identity.Default()
	cfg.KeysFile = keysFile(t, digest("k")+" acme vip\n"+digest("a.key.too")+" acme vip\n")
	cfg.JWT.JWKSURL, cfg.JWT.Issuer = "https://issuer/keys", "i"
	verifier := new(tokens)
	k, err := identity.New(cfg, identity.Parts{Tokens: verifier, Log: testkit.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]inference.Code{
		"k": "", "a.key.too": "", "good.to.ken": "", "bad.to.ken": inference.CodeUnauthorized, "not.known.yet": inference.CodeNoCapacity, "x": inference.CodeUnauthorized,
		"": inference.CodeUnauthorized,
	} {
		if got := code(k, with(key)); got != want {
			t.Errorf("%q: got %q, want %q", key, got, want)
		}
	}
	h := with("good.to.ken")
	h.Set("X-Spillway-Class", "batch")
	if c, err := k.Identify(h); err != nil || c.Class != inference.Batch || c.Tenant != "jane" || c.Key != "jwt:1" {
		t.Errorf("got %+v, %v", c, err)
	}
	bad := cfg
	bad.JWT.Issuer, bad.KeysFile = "bad", ""
	if err := k.Apply(bad); err == nil || err.Error() != "jwt.jwks_file: gone" || code(k, with("k")) != "" {
		t.Errorf("got %v, and the keys changed", err)
	}
	cfg.JWT = identity.Default().JWT
	if err := k.Apply(cfg); err != nil || code(k, with("good.to.ken")) != inference.CodeUnauthorized {
		t.Errorf("a token is judged that nobody asked for (%v)", err)
	}
}

func TestRunEndsWithTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failed := errors.New("failed")
		k, err := identity.New(identity.Default(), identity.Parts{Tokens: &tokens{err: failed}, Log: testkit.Discard()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := k.Run(ctx); !errors.Is(err, failed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestMetrics(t *testing.T) {
	cfg := identity.Default()
	cfg.KeysFile = keysFile(t, digest("k")+" acme vip\n"+digest("old")+" acme vip expires=2020-01-01T00:00:00Z\n")
	cfg.Anonymous.Enabled = "true"
	k, err := identity.New(cfg, identity.Parts{Tokens: new(tokens), Log: testkit.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []http.Header{with("k"), with("k"), with("old"), with("secret-guess"), {}, {}, {}} {
		_, _ = k.Identify(h)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(k)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range families {
		for _, m := range f.Metric {
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			label := ""
			for _, l := range m.Label {
				label += l.GetValue()
			}
			fmt.Fprintf(&text, "%s{%s} %.0f\n", f.GetName(), label, value)
		}
	}
	want := fmt.Sprintf(`spillway_identity_keys{} 1
spillway_identity_requests_total{anonymous} 3
spillway_identity_requests_total{known} 2
spillway_identity_requests_total{refused} 2
spillway_identity_source_faults_total{jwks} 7
spillway_identity_source_faults_total{sql} 0
spillway_identity_source_read_timestamp_seconds{jwks} %d
spillway_identity_source_read_timestamp_seconds{sql} 0
`, noon.Unix())
	if text.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &text, want)
	}
}

// TestNoSecretIsTold looks for every secret of a busy gateway in all that it says.
func TestNoSecretIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said testkit.Log
		secrets := []string{secretPepper, "sw-known", "sw-salted", "sw-ended", "sw-revoked", "sw-wrong", "sw-of-the-database", "good.to.ken", "bad.to.ken"}
		for _, s := range secrets {
			secrets = append(secrets, digest(s), peppered(s)[5:])
		}
		path := keysFile(t, digest("sw-known")+" acme vip\n"+peppered("sw-salted")+" acme vip\n"+digest("sw-ended")+" acme vip expires=2000-01-01T00:00:00Z\n"+digest("sw-revoked")+" acme vip revoked=1999-01-01T00:00:00Z\n")
		cfg := identity.Default()
		cfg.SQL, cfg.KeysFile, cfg.PepperFile, cfg.JWT.JWKSURL = true, path, pepperFile(t), "https://issuer/keys"
		d := &database{keys: []identity.Key{newKey(t, "sw-of-the-database")}, version: 1}
		d.keys[0].ID = "of-the-database"
		k := running(t, cfg, identity.Parts{Database: d, Tokens: new(tokens), Log: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		synctest.Wait()
		for _, s := range secrets {
			for _, h := range []http.Header{with(s), {"X-Api-Key": {s}}, {"X-Api-Key": {s, s}}, {"Authorization": {s}}, {"Authorization": {"Basic " + s}}} {
				c, err := k.Identify(h)
				fmt.Fprintf(&said, "%+v %v %+v\n", c, err, err)
			}
		}
		list, err := identity.NewFile(path).List(t.Context())
		fmt.Fprintf(&said, "%v %+v %v %+v\n", list, list, err, d.keys)
		for _, lines := range []string{"sw-known acme vip", digest("sw-known") + " acme vip sw-wrong", digest("sw-known") + " acme vip\n" + digest("sw-known") + " b vip", digest("sw-known") + " acme sw-wrong", digest("sw-known") + " acme vip models=[sw-wrong"} {
			bad := cfg
			bad.KeysFile = keysFile(t, lines)
			fmt.Fprintf(&said, "%v %v\n", bad.Validate(), k.Apply(bad))
		}
		d.set(errors.New("down"))
		time.Sleep(time.Minute)
		reg := prometheus.NewRegistry()
		reg.MustRegister(k)
		families, err := reg.Gather()
		fmt.Fprintf(&said, "%v %v\n", families, err)
		if said.Count("acme") == 0 || said.Count("down") == 0 || said.Count("spillway_identity_keys") == 0 || said.Count("unauthorized") == 0 {
			t.Fatalf("nothing was said: %s", &said)
		}
		for _, s := range secrets {
			if n := said.Count(s); n > 0 {
				t.Errorf("%q is told %d times", s, n)
			}
		}
	})
}
