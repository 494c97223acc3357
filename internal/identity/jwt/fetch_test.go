package jwt_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	golang "github.com/golang-jwt/jwt/v5"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/identity/jwt"
	"github.com/spillway/spillway/internal/testkit"
)

// server is an issuer's server, without a network.
type server struct {
	mu     sync.Mutex
	answer func(*http.Request) (*http.Response, error)
	asked  int
}

// RoundTrip implements http.RoundTripper.
func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.asked++
	answer := s.answer
	s.mu.Unlock()
	return answer(r)
}

// now makes the server answer so from now on.
func (s *server) now(answer func(*http.Request) (*http.Response, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// requests is how often it was asked.
func (s *server) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// says answers with a body.
func says(status int, body string, fields ...string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		h := make(http.Header)
		for i := 0; i+1 < len(fields); i += 2 {
			h.Set(fields[i], fields[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// hangs answers when the client has had enough.
func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// remote runs a verifier whose keys come from a server.
func remote(t *testing.T, s *server, log *testkit.Log) (v *jwt.Verifier, cfg identity.JWTConfig) {
	t.Helper()
	cfg = identity.Default().JWT
	cfg.JWKSURL, cfg.Issuer, cfg.Audience = "https://issuer/keys?hush", "https://issuer", "spillway"
	v = verifier(t, cfg, jwt.Parts{Transport: s, Log: slog.New(slog.NewTextHandler(log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), "hush") {
			t.Errorf("the log tells the whole address: %s", log)
		}
	})
	return v, cfg
}

// TestTheIssuerRotates changes the keys behind an address.
func TestTheIssuerRotates(t *testing.T) {
	i := theIssuer()
	synctest.Test(t, func(t *testing.T) {
		s, log := &server{answer: says(200, i.set())}, new(testkit.Log)
		v, cfg := remote(t, s, log)
		exp := set("exp", time.Now().Add(48*time.Hour).Unix())
		nbf := set("nbf", time.Now().Unix())
		old := token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(exp, nbf))
		next := token(t, golang.SigningMethodRS256, i.foreign, kid("new"), claims(exp, nbf))
		good := func(tok string) bool { _, err := judge(v, tok, time.Now()); return err == nil }
		synctest.Wait()
		if !good(old) || good(next) {
			t.Fatal("the first keys are not in force")
		}
		synctest.Wait() // the unknown key made it ask early, before the change
		s.now(says(200, fmt.Sprintf(`{"keys":[%s]}`, rsaJWK("new", &i.foreign.PublicKey, ""))))
		before := s.requests()
		for range 100 {
			good(next)
			synctest.Wait()
		}
		if got := s.requests() - before; got != 0 {
			t.Errorf("got %d requests within 30s of the last early one, want none", got)
		}
		time.Sleep(30 * time.Second)
		good(next)
		synctest.Wait()
		if !good(next) || good(old) {
			t.Error("the new keys are not in force after an early reading")
		}
		before = s.requests()
		time.Sleep(cfg.Refresh)
		synctest.Wait()
		if got := s.requests() - before; got != 1 {
			t.Errorf("got %d readings in a refresh, want 1", got)
		}
		if st := v.State(); st.Keys != 1 || st.Faults != 0 || time.Since(st.Read) > time.Second {
			t.Errorf("got state %+v", st)
		}
	})
}

// TestTheIssuerFails lets the server do everything but answer.
func TestTheIssuerFails(t *testing.T) {
	i := theIssuer()
	for name, answer := range map[string]func(*http.Request) (*http.Response, error){
		"hangs":     hangs,
		"refuses":   func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") },
		"500":       says(500, i.set()),
		"garbage":   says(200, "<html>"),
		"no keys":   says(200, `{"keys":[]}`),
		"only oct":  says(200, `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`),
		"endless":   says(200, i.set()+strings.Repeat(" ", 2<<20)),
		"elsewhere": says(302, "", "Location", "http://evil/keys"),
		"a circle":  says(302, "", "Location", "https://issuer/keys"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, log := &server{answer: answer}, new(testkit.Log)
				v, _ := remote(t, s, log)
				tok := token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("exp", time.Now().Add(48*time.Hour).Unix()), set("nbf", time.Now().Unix())))
				time.Sleep(time.Minute)
				if _, err := judge(v, tok, time.Now()); !errors.Is(err, identity.ErrNotReady) {
					t.Errorf("before the first keys: got %v, want ErrNotReady", err)
				}
				if n, faults := s.requests(), v.State().Faults; n < 2 || n > 40 || faults < 2 {
					t.Errorf("got %d requests and %d faults in a minute, want a few", n, faults)
				}
				s.now(says(200, i.set()))
				time.Sleep(2 * time.Minute)
				if _, err := judge(v, tok, time.Now()); err != nil {
					t.Errorf("the server is well again: got %v", err)
				}
				s.now(answer)
				time.Sleep(3 * time.Hour)
				if _, err := judge(v, tok, time.Now()); err != nil {
					t.Errorf("the last good keys are gone: %v", err)
				}
				if n := s.requests(); n > 1000 {
					t.Errorf("got %d requests in three hours", n)
				}
			})
		})
	}
}

// TestApplyKeepsTheKeysOfAnAddress reloads.
func TestApplyKeepsTheKeysOfAnAddress(t *testing.T) {
	i := theIssuer()
	synctest.Test(t, func(t *testing.T) {
		s, log := &server{answer: says(200, i.set())}, new(testkit.Log)
		v, cfg := remote(t, s, log)
		tok := token(t, golang.SigningMethodEdDSA, i.ed, kid("o"), claims(set("exp", time.Now().Add(48*time.Hour).Unix()), set("nbf", time.Now().Unix())))
		synctest.Wait()
		s.now(hangs)
		cfg.DefaultClass = "vip"
		if err := v.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		if c, err := judge(v, tok, time.Now()); err != nil || c.Class.String() != "vip" {
			t.Errorf("got %+v, %v, want the new class by the old keys", c, err)
		}
		cfg.JWKSURL = "https://other/keys"
		if err := v.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := judge(v, tok, time.Now()); !errors.Is(err, identity.ErrNotReady) {
			t.Errorf("the keys of another issuer are used: %v", err)
		}
	})
}
