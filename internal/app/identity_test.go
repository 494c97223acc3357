package app_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	golang "github.com/golang-jwt/jwt/v5"

	"github.com/spillway/spillway/internal/testkit"
)

// bearer is the header field of a credential.
func bearer(key string) string { return "Authorization: Bearer " + key }

// newKey makes a key as operators do, and returns it and its id.
func newKey(t *testing.T, args ...string) (key, id string) {
	t.Helper()
	out := command(t, append([]string{"key"}, args...)...)
	m := regexp.MustCompile(`(?s)^(sw-\S+)\n.*id (\S+),`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("%v: got %s", args, out)
	}
	return m[1], m[2]
}

// who is what the last line of the access log says of a request with an id.
func (r *rig) who(id string) (tenant, class, key, code string) {
	r.t.Helper()
	var line struct {
		ID     string `json:"request_id"`
		Tenant string
		Class  string
		Key    string
		Code   string
	}
	testkit.Eventually(r.t, "the access log has "+id, func() bool {
		for text := range strings.Lines(r.out.String()) {
			if json.Unmarshal([]byte(text), &line) == nil && line.ID == id {
				return true
			}
		}
		return false
	})
	return line.Tenant, line.Class, line.Key, line.Code
}

// status asks with header fields.
func (r *rig) status(fields ...string) int {
	r.t.Helper()
	status, _ := r.chat(fields...)
	return status
}

// TestKeysOfFilesAndDatabases are made, rotated, and revoked while a gateway follows.
func TestKeysOfFilesAndDatabases(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	first, _ := newKey(t, "create", "--keys-file", file, "--tenant", "acme", "--class", "vip")
	r := newRig(t, text(pool("gpu", named(t, "one")), memoryOnly, "store: {directory: "+t.TempDir()+"}", "identity: {keys_file: "+file+", sql: true, refresh: 100ms}"))
	for name, where := range map[string][]string{"file": nil, "database": {"--sql"}} {
		t.Run(name, func(t *testing.T) {
			use := func(verb string, args ...string) []string {
				return slices.Concat([]string{verb, "-c", r.path}, where, args)
			}
			works := func(what, key string, want int) {
				t.Helper()
				testkit.Eventually(t, what, func() bool { return r.status(bearer(key)) == want })
			}
			old, id := newKey(t, use("create", "--tenant", "beta", "--class", "normal")...)
			works("a new key is in force", old, 200)
			next, _ := newKey(t, use("rotate", id, "--grace", "1h")...)
			works("the key that follows is in force", next, 200)
			if got := r.status(bearer(old)); got != 200 {
				t.Errorf("the old key within its grace: got %d", got)
			}
			if out := command(t, slices.Concat([]string{"key"}, use("revoke", id))...); !strings.Contains(out, "status 0") {
				t.Fatalf("got %s", out)
			}
			works("the old key is revoked", old, 401)
			if got := r.status(bearer(next)); got != 200 {
				t.Errorf("the next key: got %d", got)
			}
			short, _ := newKey(t, use("create", "--tenant", "beta", "--expires", "2s")...)
			works("a key for two seconds is in force", short, 200)
			works("it ends", short, 401)
		})
	}
	if got := r.status(bearer(first)); got != 200 {
		t.Errorf("the first key: got %d", got)
	}
}

// TestOneAnswerToWhoMayNot is the same to the last byte but for the request's id and
// the clock, whatever is wrong with a credential, and on both fronts.
func TestOneAnswerToWhoMayNot(t *testing.T) {
	line := strings.TrimSpace(keysLine("revoked-key", "acme"))
	keys := keysFile(t, keysLine("good-key", "acme"), line+" revoked=2026-01-01T00:00:00Z\n",
		strings.TrimSpace(keysLine("expired-key", "acme"))+" expires=2026-01-01T00:00:00Z\n", strings.TrimSpace(keysLine("both-key", "acme"))+" expires=2099-01-01T00:00:00Z revoked=2099-01-01T00:00:00Z\n")
	for _, front := range []string{"lean", "net_http"} {
		for surface, path := range map[string]string{"chat": "/v1/chat/completions", "messages": "/v1/messages"} {
			r := newRig(t, strings.Replace(text(pool("gpu", named(t, "one")), memoryOnly, "identity: {keys_file: "+keys+"}"), "drain_timeout", "front: "+front+", drain_timeout", 1))
			var first string
			for name, field := range map[string]string{
				"none": "X-None: x", "wrong": bearer("wrong-key"), "wrong x-api-key": "X-Api-Key: wrong-key", "revoked": bearer("revoked-key"), "expired": bearer("expired-key"),
				"to be revoked": bearer("both-key"), "empty": "Authorization: ", "basic": "Authorization: Basic Z29vZC1rZXk=", "a token": bearer("a.b.c"), "long": bearer(strings.Repeat("k", 2000)),
				"another class": "X-Spillway-Class: vip",
			} {
				req, err := http.NewRequest("POST", r.api+path, strings.NewReader(chat))
				if err != nil {
					t.Fatal(err)
				}
				field, value, _ := strings.Cut(field, ": ")
				req.Header.Set(field, value)
				req.Header.Set("X-Request-Id", "the-same")
				res, err := r.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				res.Header.Del("Date")
				got := new(strings.Builder)
				fmt.Fprintf(got, "%s ", res.Status)
				if err := res.Header.Write(got); err != nil {
					t.Fatal(err)
				}
				var body [4096]byte
				n := 0
				for {
					m, err := res.Body.Read(body[n:])
					if n += m; err != nil {
						break
					}
				}
				res.Body.Close()
				got.Write(body[:n])
				if first == "" {
					first = got.String()
				}
				if got.String() != first || res.StatusCode != 401 {
					t.Errorf("%s, %s, %s: got\n%s\nwant\n%s", front, surface, name, got, first)
				}
			}
			if got := r.status(bearer("good-key")); got != 200 {
				t.Errorf("%s: the good key: got %d", front, got)
			}
		}
	}
}

func TestKeysHaveModels(t *testing.T) {
	inst := named(t, "one")
	pools := strings.Replace(pool("gpu", inst), "[m]", "[m, small-1, small-2, large]", 1)
	keys := keysFile(t, strings.TrimSpace(keysLine("some", "acme"))+" models=small-*,m\n", keysLine("all", "acme"))
	r := newRig(t, text(pools, memoryOnly, "identity: {keys_file: "+keys+", anonymous: {enabled: true, tenant: guests, class: batch, models: [small-1]}}",
		"route: {rules: [{name: enlarge, when: 'model == \"small-2\"', then: {model: large}}]}"))
	for name, c := range map[string]struct {
		field  string
		models []string
		status map[string]int
	}{
		// A rule may send a request where its client could not.
		"some":   {bearer("some"), []string{"m", "small-1", "small-2"}, map[string]int{"m": 200, "small-1": 200, "small-2": 200, "large": 404, "none": 404}},
		"all":    {bearer("all"), []string{"large", "m", "small-1", "small-2"}, map[string]int{"m": 200, "large": 200, "none": 404}},
		"guests": {"X-None: x", []string{"small-1"}, map[string]int{"m": 404, "small-1": 200, "large": 404, "none": 404}},
	} {
		t.Run(name, func(t *testing.T) {
			_, body := r.do("GET", r.api+"/v1/models", "", c.field)
			var list struct{ Data []struct{ ID string } }
			if err := json.Unmarshal([]byte(body), &list); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range list.Data {
				got = append(got, m.ID)
			}
			if slices.Sort(got); !slices.Equal(got, c.models) {
				t.Errorf("models are %v, want %v", got, c.models)
			}
			var refused string
			for _, model := range []string{"m", "small-1", "small-2", "large", "none"} {
				want, ok := c.status[model]
				if !ok {
					continue
				}
				status, body := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, `"m"`, `"`+model+`"`, 1), c.field)
				if status != want {
					t.Errorf("%s: got %d %s, want %d", model, status, body, want)
				}
				if status == 404 { // a model that is not there, and one that is not for this caller, look the same
					body = strings.ReplaceAll(body, `\"`+model+`\"`, "MODEL")
					if refused == "" {
						refused = body
					}
					if body != refused {
						t.Errorf("%s is refused as %s, others as %s", model, body, refused)
					}
				}
				if listed, _ := r.do("GET", r.api+"/v1/models/"+model, "", c.field); (listed == 200) != slices.Contains(c.models, model) {
					t.Errorf("GET /v1/models/%s: got %d", model, listed)
				}
			}
		})
	}
}

func TestAClassIsLoweredAndNeverRaised(t *testing.T) {
	keys := keysFile(t, strings.Replace(keysLine("vip", "acme"), "normal", "vip", 1), strings.Replace(keysLine("batch", "acme"), "normal", "batch", 1), keysLine("normal", "acme"))
	r := newRig(t, text(pool("gpu", named(t, "one")), memoryOnly, "identity: {keys_file: "+keys+"}"))
	n := 0
	for key, want := range map[string]map[string]string{
		"vip": {"": "vip", "vip": "vip", "normal": "normal", "batch": "batch"}, "normal": {"": "normal", "vip": "normal", "batch": "batch"}, "batch": {"": "batch", "vip": "batch", "normal": "batch"},
	} {
		for asked, class := range want {
			n++
			id, fields := fmt.Sprint("class-", n), []string{bearer(key)}
			if asked != "" {
				fields = append(fields, "X-Spillway-Class: "+asked)
			}
			if got := r.status(append(fields, "X-Request-Id: "+id)...); got != 200 {
				t.Errorf("got %d", got)
			}
			if tenant, got, _, _ := r.who(id); got != class || tenant != "acme" {
				t.Errorf("a key of class %s asks for %q: got %s of %s, want %s", key, asked, got, tenant, class)
			}
		}
	}
	for _, class := range []string{"idle", "VIP", "none"} {
		if got := r.status(bearer("vip"), "X-Spillway-Class: "+class); got != 400 {
			t.Errorf("class %s: got %d", class, got)
		}
	}
}

// TestGuestsShareNoAnswers whose credentials for the servers differ, whatever their
// tenant is called.
func TestGuestsShareNoAnswers(t *testing.T) {
	for name, section := range map[string]string{
		"by default": "", "another name": "identity: {anonymous: {tenant: guests}}", "a quota": "identity: {anonymous: {tenant: guests, quota: {requests_per_minute: 1000}}}",
		"beside keys": "identity: {keys_file: " + keysFile(t, keysLine("key", "acme")) + ", anonymous: {enabled: true, tenant: guests}}",
	} {
		t.Run(name, func(t *testing.T) {
			o := newOracle(t, nil)
			r := newRig(t, text(pool("gpu", o.Instance), memoryOnly, section))
			fields := []string{"Api-Key: one", "Api-Key: two", "X-Goog-Api-Key: one", "Cookie: session=one", "X-None: x"}
			if name != "beside keys" {
				fields = append(fields, bearer("one"), bearer("two"), "X-Api-Key: one")
			}
			for round, want := range []string{"miss", "hit"} {
				for i, field := range fields {
					if got := r.wants("the same", "", field); got.cache() != want || got.n != i+1 {
						t.Errorf("%d %s: got %s of generation %d, want %s of %d", round, field, got.cache(), got.n, want, i+1)
					}
				}
			}
			if name != "beside keys" {
				return
			}
			if got := r.wants("the same", "", bearer("key")); got.cache() != "miss" {
				t.Errorf("a key gets a guest's answer: %s", got.cache())
			}
			for _, field := range []string{bearer("none"), "X-Api-Key: none", "Authorization: Basic eA=="} {
				if got := r.status(field); got != 401 {
					t.Errorf("%s beside guests: got %d", field, got)
				}
			}
		})
	}
}

// issuer is a server with the keys of an issuer.
type issuer struct {
	*httptest.Server
	mu   sync.Mutex
	keys map[string]ed25519.PrivateKey
	down bool
}

// newIssuer starts one.
func newIssuer(t *testing.T) *issuer {
	i := &issuer{keys: make(map[string]ed25519.PrivateKey)}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.down {
			w.WriteHeader(500)
			return
		}
		var set []map[string]string
		for kid, key := range i.keys {
			set = append(set, map[string]string{"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64.RawURLEncoding.EncodeToString(key.Public().(ed25519.PublicKey))})
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": set})
	}))
	t.Cleanup(i.Close)
	return i
}

// set replaces the issuer's keys by new ones.
func (i *issuer) set(kids ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	old := i.keys
	i.keys = make(map[string]ed25519.PrivateKey)
	for _, kid := range kids {
		if i.keys[kid] = old[kid]; old[kid] == nil {
			_, i.keys[kid], _ = ed25519.GenerateKey(rand.Reader)
		}
	}
}

// token signs claims.
func (i *issuer) token(t *testing.T, kid string, more golang.MapClaims) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	claims := golang.MapClaims{"iss": "https://issuer", "aud": "spillway", "sub": "alice", "exp": time.Now().Add(time.Hour).Unix(), "org": map[string]any{"team": "acme"}}
	for name, v := range more {
		claims[name] = v
	}
	token := golang.NewWithClaims(golang.SigningMethodEdDSA, claims)
	token.Header["kid"] = kid
	s, err := token.SignedString(i.keys[kid])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTokensOfAnIssuer(t *testing.T) {
	i := newIssuer(t)
	i.set("first")
	keys := keysFile(t, keysLine("a.key.withdots", "beta"))
	o := newOracle(t, nil)
	r := newRig(t, text(strings.Replace(pool("gpu", o.Instance), "[m]", "[m, other]", 1), memoryOnly, fmt.Sprintf("identity: {keys_file: %s, jwt: {jwks_url: %s, issuer: 'https://issuer', audience: spillway, tenant_claim: org.team, class_claim: class, models_claim: models, refresh: 1s}}", keys, i.URL)))
	good := i.token(t, "first", golang.MapClaims{"class": "vip", "models": []string{"m"}})
	testkit.Eventually(t, "the issuer's keys are known", func() bool { return r.status(bearer(good)) == 200 })
	if got := r.status(bearer(good), "X-Request-Id: by-token", "X-Spillway-Class: batch"); got != 200 {
		t.Errorf("got %d", got)
	}
	if tenant, class, _, _ := r.who("by-token"); tenant != "acme" || class != "batch" {
		t.Errorf("got %s %s", tenant, class)
	}
	if status, body := r.do("POST", r.api+"/v1/chat/completions", strings.Replace(chat, `"m"`, `"other"`, 1), bearer(good)); status != 404 {
		t.Errorf("another model: got %d %s", status, body)
	}
	if got := r.status(bearer("a.key.withdots")); got != 200 {
		t.Errorf("a key that looks like a token: got %d", got)
	}
	other := i.token(t, "first", golang.MapClaims{"org": map[string]any{"team": "umbra"}})
	for name, token := range map[string]string{
		"expired": i.token(t, "first", golang.MapClaims{"exp": time.Now().Add(-time.Hour).Unix()}), "for others": i.token(t, "first", golang.MapClaims{"aud": "x"}),
		"of others": i.token(t, "first", golang.MapClaims{"iss": "x"}), "without a team": i.token(t, "first", golang.MapClaims{"org": "acme"}),
		"cut": good[:len(good)-4], "without a signature": good[:strings.LastIndex(good, ".")+1], "of an unknown class": i.token(t, "first", golang.MapClaims{"class": "idle"}),
	} {
		if got := r.status(bearer(token)); got != 401 {
			t.Errorf("a token %s: got %d", name, got)
		}
	}
	// Answers are the tenant's own, and two tokens of it share them.
	for step, c := range []struct {
		token, want string
	}{{good, "miss"}, {other, "miss"}, {i.token(t, "first", golang.MapClaims{"sub": "bob"}), "hit"}} {
		if got := r.wants("whose", "", bearer(c.token)); got.cache() != c.want {
			t.Errorf("%d: got %s, want %s", step, got.cache(), c.want)
		}
	}
	i.set("first", "second")
	next := i.token(t, "second", nil)
	testkit.Eventually(t, "the second key is known", func() bool { return r.status(bearer(next)) == 200 })
	if got := r.status(bearer(good)); got != 200 {
		t.Errorf("the first key beside the second: got %d", got)
	}
	i.set("second")
	testkit.Eventually(t, "the first key is not taken any more", func() bool { return r.status(bearer(good)) == 401 })
	i.mu.Lock()
	i.down = true
	i.mu.Unlock()
	faults := `spillway_identity_source_faults_total{source="jwks"}`
	testkit.Eventually(t, "the issuer was found to be away", func() bool { return r.number(faults) > 0 })
	if got := r.status(bearer(next)); got != 200 {
		t.Errorf("while the issuer is away: got %d", got)
	}
}

// TestCredentialsStayHere reach no server where they are Spillway's own.
func TestCredentialsStayHere(t *testing.T) {
	var seen testkit.Log
	inst := testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		_ = x.Request.Header.Write(&seen)
		x.JSON(200, testkit.Answer)
		return true
	})
	i := newIssuer(t)
	i.set("first")
	r := newRig(t, text(pool("gpu", inst), memoryOnly, fmt.Sprintf("identity: {keys_file: %s, jwt: {jwks_url: %s, issuer: 'https://issuer', audience: spillway}, anonymous: {enabled: true}}", keysFile(t, keysLine("our-key", "acme")), i.URL),
		"route: {rules: [{name: all, when: 'tenant != \"\"', then: {headers: {X-Rule: 'yes', X-Debug: ''}}}]}"))
	token := i.token(t, "first", golang.MapClaims{"sub": "alice"})
	testkit.Eventually(t, "tokens are judged", func() bool { return r.status(bearer(token)) == 200 })
	for _, field := range []string{bearer("our-key"), "X-Api-Key: our-key", bearer(token), "X-Api-Key: " + token} {
		if got := r.status(field, "X-Debug: remove-me"); got != 200 {
			t.Errorf("%s: got %d", field, got)
		}
	}
	if s := seen.String(); strings.Contains(s, "our-key") || strings.Contains(s, token) || strings.Contains(s, "remove-me") || strings.Count(s, "X-Rule: yes") < 5 {
		t.Errorf("a server got %s", s)
	}
}

// TestWhileTheDatabaseOfKeysIsAway nobody is let in or turned away for good who is not
// known.
func TestWhileTheDatabaseOfKeysIsAway(t *testing.T) {
	keys := keysFile(t, keysLine("in-file", "acme"))
	r := newRig(t, text(pool("gpu", named(t, "one")), memoryOnly, "identity: {keys_file: "+keys+", sql: true, refresh: 100ms}", "store: {sql: {databases: [{dsn: 'postgres://u@127.0.0.1:1/x?sslmode=disable'}], connect_timeout: 1s}}"))
	if got := r.status(bearer("in-file")); got != 200 {
		t.Errorf("a key of the file: got %d", got)
	}
	if got := r.status(bearer("in-table")); got != 503 {
		t.Errorf("a key that may be in the database: got %d", got)
	}
	if status, body := r.get(r.admin + "/readyz"); status != 200 {
		t.Errorf("ready, as keys of the file are served: got %d %s", status, body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.app.Reload(ctx); err != nil {
		t.Errorf("a reload meanwhile: %v", err)
	}
	nobody := newRig(t, text(pool("gpu", named(t, "one")), memoryOnly, "identity: {sql: true, refresh: 100ms}", "store: {sql: {databases: [{dsn: 'postgres://u@127.0.0.1:1/x?sslmode=disable'}], connect_timeout: 1s}}"))
	if status, body := nobody.get(nobody.admin + "/readyz"); status != 503 || !strings.Contains(body, "the keys are not read yet") {
		t.Errorf("nobody can be let in: got %d %s", status, body)
	}
}
