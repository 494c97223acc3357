package redis_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/store/redis"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

// After a change of a cluster, the library has goroutines that sleep for up to 5 s
// before they close what is no longer needed, and end.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*clusterClient)._refresh.func2"),
		goleak.IgnoreAnyFunction("github.com/redis/rueidis.(*call).DelayDo.func1"))
}

// quiet is a logger that keeps nothing.
func quiet() *slog.Logger { return testkit.Discard() }

// run starts a client; it ends with the test, and must end soon.
func run(t testing.TB, log *slog.Logger, change func(*redis.Config)) *redis.Client {
	t.Helper()
	c := redis.Default()
	change(&c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	client, err := redis.New(c, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not end")
		}
		if _, err := ask(context.Background(), client, "PING"); !errors.Is(err, redis.ErrNotConnected) {
			t.Errorf("a call after the end = %v, want %v", err, redis.ErrNotConnected)
		}
	})
	return client
}

// at is a configuration's change to one server.
func at(addr string) func(*redis.Config) {
	return func(c *redis.Config) { c.Addresses = []string{addr} }
}

// ask sends a command.
func ask(ctx context.Context, c *redis.Client, command string, args ...string) (string, error) {
	return redis.Do(ctx, c, func(ctx context.Context, r rueidis.Client) (string, error) {
		return r.Do(ctx, r.B().Arbitrary(command).Keys(args[:min(1, len(args))]...).Args(args[min(1, len(args)):]...).Build()).ToString()
	})
}

// answers waits until the client reaches a server.
func answers(t testing.TB, c *redis.Client) {
	t.Helper()
	testkit.Eventually(t, "Redis answers", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := ask(ctx, c, "PING")
		return err == nil && c.Err() == nil
	})
}

func TestSingle(t *testing.T) {
	s := redistest.Start(t)
	c := run(t, quiet(), func(c *redis.Config) { at(s.Addr())(c); c.DB, c.Prefix = 2, "x" })
	answers(t, c)
	if c.Prefix() != "x" {
		t.Errorf("Prefix = %q", c.Prefix())
	}
	if _, err := ask(t.Context(), c, "SET", "a", "1"); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t.Context(), c, "GET", "a"); got != "1" || err != nil {
		t.Errorf("GET = %q, %v", got, err)
	}
	if _, err := ask(t.Context(), c, "GET", "b"); !rueidis.IsRedisNil(err) {
		t.Errorf("GET of nothing = %v", err)
	}
	if got := s.Do("GET", "a"); got != "" {
		t.Error("the key is in database 0, want 2")
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	redistest.Start(t, "--unixsocket", path)
	answers(t, run(t, quiet(), at(path)))
}

func TestCluster(t *testing.T) {
	cl := redistest.StartCluster(t)
	c := run(t, quiet(), func(c *redis.Config) { c.Addresses, c.Cluster = cl.Addrs()[:1], true })
	answers(t, c)
	for i := range 30 {
		key := fmt.Sprint("key ", i)
		if _, err := ask(t.Context(), c, "SET", key, key); err != nil {
			t.Fatal(err)
		}
		if got, err := ask(t.Context(), c, "GET", key); got != key || err != nil {
			t.Errorf("GET = %q, %v", got, err)
		}
	}
	for _, n := range cl.Nodes {
		if n.Do("DBSIZE") == "0" {
			t.Errorf("%s has no key", n.Addr())
		}
	}
}

func TestStartsBeforeItsServer(t *testing.T) {
	s := redistest.Start(t)
	s.Kill()
	var log testkit.Log
	c := run(t, slog.New(slog.NewTextHandler(&log, nil)), at(s.Addr()))
	testkit.Eventually(t, "an attempt to connect has come to nothing", func() bool { return log.Count("cannot connect") > 0 })
	if _, err := ask(t.Context(), c, "PING"); !errors.Is(err, redis.ErrNotConnected) || !errors.Is(c.Err(), redis.ErrNotConnected) {
		t.Errorf("a call before the server is there = %v, Err = %v, want %v", err, c.Err(), redis.ErrNotConnected)
	}
	s.Restart()
	answers(t, c)
	if n := log.Count("level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, &log)
	}
}

func TestEndsBeforeItsServerIsThere(t *testing.T) {
	for name, addr := range map[string]string{"refused": "127.0.0.1:1", "no answer to a connect": testkit.Blackhole(t)} {
		t.Run(name, func(t *testing.T) { run(t, quiet(), at(addr)) })
	}
	p := faultnet.New(t, redistest.Start(t).Addr())
	p.Set(faultnet.Faults{BlackHole: true})
	t.Run("no answer to a greeting", func(t *testing.T) { run(t, quiet(), at(p.Addr())) })
}

func TestServerGoesAndComes(t *testing.T) {
	s := redistest.Start(t)
	var log testkit.Log
	c := run(t, slog.New(slog.NewTextHandler(&log, nil)), at(s.Addr()))
	answers(t, c)
	for range 2 {
		s.Kill()
		testkit.Eventually(t, "the fault is seen", func() bool { return c.Err() != nil })
		if _, err := ask(t.Context(), c, "PING"); err == nil {
			t.Error("a call to a dead server goes well")
		}
		s.Restart()
		answers(t, c)
	}
	if gone, back := log.Count("level=WARN"), log.Count("contact with Redis again"); gone < 2 || back < 2 || gone > 4 {
		t.Errorf("%d and %d notices of two outages:\n%s", gone, back, &log)
	}
}

// within checks that a call with little time ends in time, many of them at once.
func within(t *testing.T, c *redis.Client, callers int) (failed int64) {
	t.Helper()
	var wg sync.WaitGroup
	var faults atomic.Int64
	began := time.Now()
	for range callers {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, err := ask(ctx, c, "GET", "a"); err != nil && !rueidis.IsRedisNil(err) {
				faults.Add(1)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d calls with 20 ms of time end after %v", callers, took)
	}
	return faults.Load()
}

func TestCallsEndWithTheirContext(t *testing.T) {
	s := redistest.Start(t)
	p := faultnet.New(t, s.Addr())
	c := run(t, quiet(), at(p.Addr()))
	answers(t, c)
	for name, fault := range map[string]func(){
		"slow":      func() { p.Set(faultnet.Faults{Delay: 100 * time.Millisecond}) },
		"silent":    func() { p.Set(faultnet.Faults{BlackHole: true}) },
		"stopped":   s.Stop,
		"cut again": func() { p.Set(faultnet.Faults{BlackHole: true}); p.Reset() },
		"garbage":   func() { p.Set(faultnet.Faults{Garbage: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")}) },
	} {
		t.Run(name, func(t *testing.T) {
			fault()
			failed := int64(0)
			for range 5 {
				failed += within(t, c, 1000) // more than there is room for in any queue
			}
			if failed != 5000 {
				t.Errorf("%d of 5000 calls fail, want all", failed)
			}
			p.Set(faultnet.Faults{})
			s.Continue()
			answers(t, c)
			testkit.Eventually(t, "calls with little time go well again", func() bool { return within(t, c, 1) == 0 })
		})
	}
}

func TestSlowAnswerDoesNotCostTheConnection(t *testing.T) {
	p := faultnet.New(t, redistest.Start(t).Addr())
	c := run(t, quiet(), at(p.Addr()))
	answers(t, c)
	for range 20 {
		answers(t, c) // all connections are there
	}
	before := p.Accepted()
	p.Set(faultnet.Faults{Delay: 50 * time.Millisecond})
	for range 10 {
		within(t, c, 1)
	}
	p.Set(faultnet.Faults{})
	testkit.Eventually(t, "calls with little time go well again", func() bool { return within(t, c, 1) == 0 })
	if n := p.Accepted() - before; n > 2 {
		t.Errorf("%d new connections for 10 slow answers", n)
	}
}

func TestBounded(t *testing.T) {
	s := redistest.Start(t)
	c := run(t, quiet(), func(c *redis.Config) { at(s.Addr())(c); c.Queue = 3 })
	answers(t, c)
	let, begun := make(chan struct{}), make(chan struct{}, 3)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			redis.Do(t.Context(), c, func(context.Context, rueidis.Client) (int, error) {
				begun <- struct{}{}
				<-let
				return 0, nil
			})
		})
	}
	for range 3 {
		<-begun
	}
	if _, err := ask(t.Context(), c, "PING"); !errors.Is(err, redis.ErrBusy) {
		t.Errorf("a call beyond the bound = %v, want %v", err, redis.ErrBusy)
	}
	close(let)
	wg.Wait()
	testkit.Eventually(t, "there is room again", func() bool { _, err := ask(t.Context(), c, "PING"); return err == nil })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ask(ctx, c, "PING"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call with an ended context = %v", err)
	}
}

func TestPassword(t *testing.T) {
	s := redistest.Start(t, "--requirepass", "hush hush")
	file := filepath.Join(t.TempDir(), "secret")
	for name, tc := range map[string]struct {
		secret string
		ok     bool
	}{"right": {"hush hush\n", true}, "wrong": {"guess a secret", false}} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(tc.secret), 0o600); err != nil {
				t.Fatal(err)
			}
			var log testkit.Log
			c := run(t, slog.New(slog.NewTextHandler(&log, nil)), func(c *redis.Config) { at(s.Addr())(c); c.PasswordFile = file })
			if tc.ok {
				answers(t, c)
			} else {
				testkit.Eventually(t, "the server refuses", func() bool { return log.Count("WRONGPASS") == 1 })
				if err := c.Err(); err == nil || strings.Contains(err.Error(), "guess") {
					t.Errorf("Err = %v", err)
				}
			}
			if text := log.String() + fmt.Sprintf("%v %+v", c.Err(), c.Err()); strings.Contains(text, "hush") || strings.Contains(text, "guess") {
				t.Errorf("a secret is shown:\n%s", text)
			}
		})
	}
	t.Setenv("SPILLWAY_TEST_REDIS", "hush hush")
	answers(t, run(t, quiet(), func(c *redis.Config) { at(s.Addr())(c); c.Username, c.PasswordEnv = "default", "SPILLWAY_TEST_REDIS" }))
}

// certificate writes a certificate for 127.0.0.1 that signs itself, and its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"redis.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		var out bytes.Buffer
		if err := errors.Join(pem.Encode(&out, &pem.Block{Type: kind, Bytes: b}), os.WriteFile(path, out.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "EC PRIVATE KEY", secret)
}

func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	s := redistest.Start(t, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "yes")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	s.Do("CONFIG", "SET", "tls-port", port)
	tls := func(change func(*redis.TLSConfig)) func(*redis.Config) {
		return func(c *redis.Config) {
			at(addr)(c)
			c.TLS = redis.TLSConfig{Enabled: true, CAFile: cert, CertFile: cert, KeyFile: key}
			change(&c.TLS)
		}
	}
	for name, change := range map[string]func(*redis.TLSConfig){
		"by address": func(*redis.TLSConfig) {},
		"by name":    func(c *redis.TLSConfig) { c.ServerName = "redis.test" },
		"unchecked":  func(c *redis.TLSConfig) { c.CAFile, c.InsecureSkipVerify = "", true },
	} {
		t.Run(name, func(t *testing.T) { answers(t, run(t, quiet(), tls(change))) })
	}
	for name, change := range map[string]func(*redis.TLSConfig){
		"another name":      func(c *redis.TLSConfig) { c.ServerName = "other.test" },
		"unknown authority": func(c *redis.TLSConfig) { c.CAFile = "" },
		"no certificate":    func(c *redis.TLSConfig) { c.CertFile, c.KeyFile = "", "" },
	} {
		t.Run(name, func(t *testing.T) {
			var log testkit.Log
			c := run(t, slog.New(slog.NewTextHandler(&log, nil)), tls(change))
			testkit.Eventually(t, "it is refused", func() bool { return log.Count("cannot connect") == 1 && errors.Is(c.Err(), redis.ErrNotConnected) })
		})
	}
}

func TestSentinelFollowsAFailover(t *testing.T) {
	master := redistest.Start(t)
	replica := master.Replica()
	sentinel := redistest.StartSentinel(t, "main", master)
	c := run(t, quiet(), func(c *redis.Config) { at(sentinel.Addr())(c); c.Sentinel.Master = "main" })
	answers(t, c)
	if _, err := ask(t.Context(), c, "SET", "a", "1"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the replica has the key", func() bool { return replica.Do("GET", "a") == "1" })
	testkit.Eventually(t, "the sentinel knows the replica", func() bool {
		return strings.Contains(sentinel.Do("SENTINEL", "REPLICAS", "main"), replica.Addr())
	})
	master.Kill()
	testkit.Eventually(t, "the sentinel orders a failover", func() bool { _, err := sentinel.Try("SENTINEL", "FAILOVER", "main"); return err == nil })
	testkit.Eventually(t, "writes go to the new master", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := ask(ctx, c, "SET", "a", "2")
		return err == nil
	})
	if got := replica.Do("GET", "a"); got != "2" {
		t.Errorf("at the new master a = %q", got)
	}
}
