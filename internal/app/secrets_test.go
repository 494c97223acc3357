package app_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	golang "github.com/golang-jwt/jwt/v5"

	"github.com/spillway/spillway/internal/cli"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
	"github.com/spillway/spillway/internal/testkit/sqltest"
)

// collector is an OTLP collector that keeps the bytes that it gets.
func collector(t *testing.T) (url string, said *testkit.Log) {
	said = new(testkit.Log)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		_, _ = io.Copy(said, body)
	}))
	t.Cleanup(s.Close)
	return s.URL, said
}

// forms are how a secret could be written, by name.
func forms(secret string) map[string]string {
	sum := sha256.Sum256([]byte(secret))
	return map[string]string{
		"itself": secret, "base64": base64.RawStdEncoding.EncodeToString([]byte(secret)), "base64url": base64.RawURLEncoding.EncodeToString([]byte(secret)),
		"hex": hex.EncodeToString([]byte(secret)), "SHA-256": hex.EncodeToString(sum[:]), "SHA-256 in base64": base64.RawStdEncoding.EncodeToString(sum[:]),
		"SHA-256, binary": string(sum[:]), "quoted in Go": strings.Trim(fmt.Sprintf("%q", sum[:]), `"`),
	}
}

// told collects what the world gets to see, by where.
type told struct {
	mu  sync.Mutex
	all map[string]*strings.Builder
}

// add notes what was seen.
func (s *told) add(where, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[string]*strings.Builder)
	}
	if s.all[where] == nil {
		s.all[where] = new(strings.Builder)
	}
	s.all[where].WriteString(what + "\n")
}

// mint signs a token with a secret.
func mint(t *testing.T, secret, tenant string, ends time.Time) string {
	t.Helper()
	s, err := golang.NewWithClaims(golang.SigningMethodHS256, golang.MapClaims{"iss": "https://issuer", "aud": "spillway", "sub": tenant, "exp": ends.Unix()}).SignedString([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// secretFile is a file with a secret in it.
func secretFile(t *testing.T, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, secret+"\n")
	return path
}

// command runs a command of the program and returns what it printed.
func command(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	code := cli.Main(ctx, cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs})
	return fmt.Sprintf("%s\n%s\nstatus %d", out.String(), errs.String(), code)
}

// echoing is a model server that fails in many ways, and says in its errors which
// credential it was shown. The question is how.
func echoing(t *testing.T) *testkit.Instance {
	return testkit.NewInstance(t, func(x *testkit.Exchange) bool {
		body := fmt.Sprintf(`{"error":{"message":"wrong key %s %s","code":"invalid_api_key"}}`, x.Request.Header.Get("Authorization"), x.Request.Header.Get("X-Api-Key"))
		switch text := string(x.Body); {
		case strings.Contains(text, "ask 401"):
			x.JSON(401, body)
		case strings.Contains(text, "ask 400"):
			x.JSON(400, body)
		case strings.Contains(text, "ask 403"):
			x.JSON(403, body)
		case strings.Contains(text, "ask 429"):
			x.JSON(429, body)
		case strings.Contains(text, "ask 500"):
			x.JSON(500, body)
		case strings.Contains(text, "ask cut"):
			x.Stream()
			x.Delta("a")
			return false
		case strings.Contains(text, "ask garbage"):
			_, _ = io.WriteString(x, x.Request.Header.Get("Authorization")+"\r\n\r\n")
			return false
		case strings.Contains(text, "ask hang"):
			x.Stream()
			x.Delta("a")
			x.Gone(10 * time.Second)
			return false
		case strings.Contains(text, `"stream":true`):
			x.Stream()
			x.Delta("a")
			x.Finish()
		default:
			x.JSON(200, testkit.Answer)
		}
		return true
	})
}

// TestNoSecretIsTold runs a gateway with a secret of every kind through traffic of
// every kind, and looks for each of them in everything that it says to anybody.
func TestNoSecretIsTold(t *testing.T) {
	const (
		pepper, jwtSecret          = "pepper-RTYUIOPASDFGHJKLZXCVBNM123456", "jwtsecret-QWERTYUIOPASDFGHJKLZXCVBNM1"
		admin, metrics, upstream   = "admintoken-5H2K9D", "metricstoken-8Z3X7C", "upstreamkey-4F6V1B"
		redisPassword              = "redispassword-9J4M2N"
		inFile, revoked, expired   = "sk-infile-J8D7S6A5", "sk-revoked-K3L4Z5X6", "sk-expired-Q9W8E7R6"
		wrong, basic, foreign      = "sk-wrong-T5Y6U7I8", "basic-O1P2A3S4", "foreign-D5F6G7H8"
		peppered, proxySecret, sql = "sk-peppered-V4B5N6M7", "proxypassword-C8V7B6", "replicapassword-X7C6V5"
	)
	s := redistest.Start(t)
	if got := s.Do("CONFIG", "SET", "requirepass", redisPassword); got != "OK" {
		t.Fatalf("got %s", got)
	}
	dsn := sqltest.Postgres(t)
	through, dsn := sqltest.Through(t, dsn)
	replica := fmt.Sprintf("postgres://spillway:%s@127.0.0.1:1/none?sslmode=disable", sql)
	traces, spans := collector(t)
	mac := hmac.New(sha256.New, []byte(pepper))
	mac.Write([]byte(peppered))
	keys := keysFile(t, keysLine(inFile, "acme"), strings.TrimSpace(keysLine(revoked, "acme"))+" revoked=2026-01-01T00:00:00Z\n",
		strings.TrimSpace(keysLine(expired, "acme"))+" expires=2026-01-01T00:00:00Z\n", fmt.Sprintf("hmac:%x beta normal rpm=3\n", mac.Sum(nil)))
	inst := echoing(t)
	config := func(keys, more string) string {
		return fmt.Sprintf(`
api: {listen: "127.0.0.1:0", drain_timeout: 5s, trusted_proxies: ["127.0.0.0/8"]}
admin: {listen: "127.0.0.1:0", token_file: %q, metrics_token_file: %q, pprof: true}
identity:
  keys_file: %q
  sql: true
  refresh: 100ms
  pepper_file: %q
  jwt: {secret_file: %q, issuer: "https://issuer", audience: spillway}
limit: {address: {rate: 100000/s}, rules: [{name: tenants, by: [tenant], tokens: {rate: 1000000/m}, concurrent: 100}], store: {kind: redis}}
store:
  directory: %q
  redis: {addresses: [%q], password_file: %q, timeout: 300ms}
  sql: {databases: [{dsn: %q, replicas: [%q]}]}
telemetry: {log: {level: debug}, traces: {endpoint: %q, sample_ratio: 1}}
%s
fleet:
  regions:
    - name: eu
      pools:
        - name: gpu
          models: [m]
          health: {active: {type: off}, passive: {max_fails: 1000}}
          upstream: {api_key_file: %q}
          instances: [%q]
        - name: broken
          models: [broken]
          health: {active: {type: off}, passive: {max_fails: 1000, busy_time: 1ms, max_busy_time: 2ms, spent_time: 1ms, max_spent_time: 2ms}}
          upstream: {api_key_file: %q}
          instances: [%q]
        - name: behind
          models: [behind]
          health: {active: {type: off}}
          upstream: {proxy: "http://user:%s@127.0.0.1:1", headers: {X-Token: %q}}
          instances: [%q]
`, secretFile(t, admin), secretFile(t, metrics), keys, secretFile(t, pepper), secretFile(t, jwtSecret), t.TempDir(), s.Addr(), secretFile(t, redisPassword),
			dsn, replica, traces, more, secretFile(t, upstream), inst.URL(), secretFile(t, upstream), inst.URL(), proxySecret, foreign, inst.URL())
	}
	text := config(keys, "")
	r := newRig(t, text)
	var seen told
	inTable := ""
	{ // a key in the database, made as operators do
		out := command(t, "key", "create", "-c", r.path, "--sql", "--tenant", "gamma")
		inTable = strings.TrimSpace(strings.SplitN(out, "\n", 2)[0])
		if !strings.HasPrefix(inTable, "sw-") {
			t.Fatalf("got %s", out)
		}
	}
	good, stale := mint(t, jwtSecret, "delta", time.Now().Add(time.Hour)), mint(t, jwtSecret, "delta", time.Now().Add(-time.Hour))
	forged := mint(t, strings.Repeat("another", 6), "delta", time.Now().Add(time.Hour))
	credentials := map[string]string{
		"in the file": "Authorization: Bearer " + inFile, "x-api-key": "x-api-key: " + inFile, "peppered": "Authorization: Bearer " + peppered,
		"revoked": "Authorization: Bearer " + revoked, "expired": "Authorization: Bearer " + expired, "wrong": "Authorization: Bearer " + wrong,
		"basic": "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+basic)), "in the table": "Authorization: Bearer " + inTable,
		"token": "Authorization: Bearer " + good, "stale token": "Authorization: Bearer " + stale, "forged token": "x-api-key: " + forged,
	}
	testkit.Eventually(t, "the key of the database is in force", func() bool { status, _ := r.chat(credentials["in the table"]); return status == 200 })
	traffic := func() {
		var wg sync.WaitGroup
		defer wg.Wait()
		for name, credential := range credentials {
			wg.Go(func() {
				for i, ask := range []string{"hi", "ask 400", "ask 401", "ask 403", "ask 429", "ask 500", "ask garbage", "ask cut", `not JSON"`, "hi"} {
					model := "broken" // a server that failed is left alone for a while
					switch i {
					case 0, 8:
						model = "m"
					case 9:
						model = "behind" // an outbound proxy that nobody is
					}
					for _, more := range []string{"", streamed} {
						body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"%s"}]%s}`, model, ask, more)
						res, answer := r.told("POST", r.api+"/v1/chat/completions", body, credential, "X-Forwarded-For: 8.8.8.8", "X-Spillway-Deadline-Ms: 300",
							"Api-Key: "+foreign, "Cookie: session="+foreign, "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
						seen.add("answers to "+name, res+answer)
					}
				}
				for _, path := range []string{"/v1/models", "/v1/models/m", "/v1/nothing?key=x"} {
					res, answer := r.told("GET", r.api+path, "", credential)
					seen.add("answers to "+name, res+answer)
				}
				res, answer := r.told("POST", r.api+"/v1/feedback", `{"id":"x","score":1}`, credential)
				seen.add("answers to "+name, res+answer)
				r.leave(credential)
			})
		}
	}
	traffic()
	operators := func() {
		for _, token := range []string{"", admin, metrics, wrong} {
			for _, page := range []string{"/metrics", "/readyz", "/admin/config", "/admin/fleet", "/admin/cache", "/admin/usage", "/admin/experiments", "/admin/emergency", "/admin/nothing", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline"} {
				res, answer := r.told("GET", r.admin+page, "", "Authorization: Bearer "+token)
				seen.add("operators' "+page, res+answer)
			}
			question := fmt.Sprintf(`{"body":{"model":"m","messages":[]},"headers":{"Authorization":"Bearer %s","X-Api-Key":%q}}`, inFile, foreign)
			res, answer := r.told("POST", r.admin+"/admin/route/explain", question, "Authorization: Bearer "+token)
			seen.add("operators' explain", res+answer)
			res, answer = r.told("POST", r.admin+"/admin/reload", "", "Authorization: Bearer "+token)
			seen.add("operators' reload", res+answer)
		}
	}
	operators()
	seen.add("spillway explain", command(t, "explain", "-c", r.path))
	seen.add("spillway check", command(t, "check", "-c", r.path))
	seen.add("spillway key list", command(t, "key", "list", "-c", r.path)+command(t, "key", "list", "--json", "-c", r.path)+command(t, "key", "list", "--json", "--sql", "-c", r.path))
	// Mistakes: a key where its digest should be, and files that are something else.
	mistaken := []string{
		config(keysFile(t, inFile+" acme normal\n"), ""), config(keysFile(t, "acme "+inFile+" normal\n"), ""), config(keysFile(t, strings.TrimSpace(keysLine(inFile, "acme"))+" "+inFile+"="+wrong+"\n"), ""),
		strings.Replace(text, "secret_file: ", "jwks_file: ", 1), strings.Replace(text, dsn, dsn+"%zz", 1),
		strings.Replace(text, "listen: ", upstream+": ", 1) + upstream, text + "\nusage: {access_log: /none/" + "x" + "}\n",
	}
	for i, bad := range mistaken {
		if i == 5 {
			continue // what is written into the configuration itself may be shown by its mistakes
		}
		write(t, r.path, bad)
		res, answer := r.told("POST", r.admin+"/admin/reload", "", "Authorization: Bearer "+admin)
		seen.add("refused reloads", res+answer)
		if !strings.HasPrefix(res, "422") {
			t.Errorf("mistake %d: got %s %s", i, res, answer)
		}
		seen.add("mistakes in check", command(t, "check", "-c", r.path))
		seen.add("mistakes in key list", command(t, "key", "list", "-c", r.path))
	}
	write(t, r.path, text)
	through.Cut() // and what stores log when they go
	s.Kill()
	through.Retarget("127.0.0.1:1")
	traffic()
	operators()
	testkit.Eventually(t, "traces were sent", func() bool { return len(spans.String()) > 10_000 })
	r.stop()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	seen.add("the log", r.errs.String())
	seen.add("the access log", r.out.String())
	seen.add("traces", spans.String())

	secrets := map[string]string{
		"pepper": pepper, "JWT secret": jwtSecret, "admin token": admin, "metrics token": metrics, "upstream key": upstream, "password of Redis": redisPassword,
		"password of the database": sqltest.Password, "password of the replica": sql, "key in the file": inFile, "revoked key": revoked, "expired key": expired,
		"wrong key": wrong, "basic credential": basic, "foreign key": foreign, "peppered key": peppered, "key in the database": inTable, "token": good,
		"signature": good[strings.LastIndex(good, ".")+1:], "stale token": stale, "forged token": forged, "password of the proxy": proxySecret,
		"basic header": base64.StdEncoding.EncodeToString([]byte("user:" + basic)), "HMAC": hex.EncodeToString(mac.Sum(nil)),
	}
	for where, text := range seen.all {
		for name, secret := range secrets {
			for form, bytes := range forms(secret) {
				if i := strings.Index(text.String(), bytes); i >= 0 {
					t.Errorf("%s: the %s (%s) is told: ...%q...", where, name, form, text.String()[max(0, i-200):min(text.Len(), i+len(bytes)+40)])
				}
			}
		}
	}
	for where, want := range map[string]string{
		"the log": "reload refused", "the access log": `"code":"unauthorized"`, "traces": "chat", "operators' /metrics": "spillway_identity_requests_total",
		"spillway explain": "store.sql.databases[0].dsn", "spillway check": "good", "spillway key list": "gamma", "refused reloads": "invalid_config", "answers to wrong": "unauthorized",
		"answers to in the file": "upstream_error", "answers to peppered": "rate_limit_exceeded",
	} {
		if seen.all[where] == nil || !strings.Contains(seen.all[where].String(), want) {
			t.Errorf("%s has no %q, so this test looks in the wrong place: %s", where, want, seen.all[where])
		}
	}
}

// told sends a request and returns all of the answer: its head, and its body as far
// as it came.
func (r *rig) told(method, url, body string, fields ...string) (head, answer string) {
	r.t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	res, err := r.client.Do(req)
	if err != nil {
		return err.Error(), ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body) // streams may be cut
	h, err := json.Marshal(res.Header)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.Status + string(h), string(b)
}

// leave begins a stream and closes the connection in the middle of it.
func (r *rig) leave(fields ...string) {
	r.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(r.api, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	body := `{"model":"m","stream":true,"messages":[{"role":"user","content":"ask hang"}]}`
	fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n\r\n%s", len(body), strings.Join(fields, "\r\n"), body)
	_, _ = bufio.NewReader(c).ReadString('}')
}
