package admin_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/admin"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate
}

// newAuthority makes one.
func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := new(authority)
	a.cert, a.key, a.file, _ = a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority " + rand.Text()}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// issue makes a certificate, signed by the authority or, for the first, by itself.
func (a *authority) issue(t testing.TB, template *x509.Certificate) (cert *x509.Certificate, key *ecdsa.PrivateKey, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key, certFile, keyFile
}

// server makes the certificate of a listener.
func (a *authority) server(t testing.TB) (certFile, keyFile string) {
	_, _, certFile, keyFile = a.issue(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "gateway"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return certFile, keyFile
}

// client makes a certificate to show.
func (a *authority) client(t testing.TB, use x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	_, _, certFile, keyFile := a.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "operator"}, ExtKeyUsage: []x509.ExtKeyUsage{use}})
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// listening runs a server until the test ends, and returns where.
func listening(t *testing.T, r *rig) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// dial returns what asks a listener, showing certificates, and the status; 0 is no
// answer.
func dial(t *testing.T, addr string, ca *authority, certs ...tls.Certificate) func(path, token string) int {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	return func(path, token string) int {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "https://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
}

// TestCertificates lets clients with and without certificates in.
func TestCertificates(t *testing.T) {
	ca, evil := newAuthority(t), newAuthority(t)
	certFile, keyFile := ca.server(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("the-admin-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	alone := admin.Config{Listen: "0.0.0.0:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: ca.file}}
	both := alone
	both.TokenFile = token
	tokenOnly := both
	tokenOnly.TLS.ClientCAFile = ""
	operator, server := ca.client(t, x509.ExtKeyUsageClientAuth), ca.client(t, x509.ExtKeyUsageServerAuth)
	for name, tt := range map[string]struct {
		cfg     admin.Config
		certs   []tls.Certificate
		token   string
		probe   int
		operate int
	}{
		"a certificate":             {alone, []tls.Certificate{operator}, "", 200, 200},
		"no certificate":            {alone, nil, "", 200, 401},
		"a token for a certificate": {alone, nil, "the-admin-token", 200, 401},
		"of another authority":      {alone, []tls.Certificate{evil.client(t, x509.ExtKeyUsageClientAuth)}, "", 200, 401}, // clients keep back what is not asked for
		"of a server":               {alone, []tls.Certificate{server}, "", 0, 0},
		"both":                      {both, []tls.Certificate{operator}, "the-admin-token", 200, 200},
		"both, no token":            {both, []tls.Certificate{operator}, "", 200, 401},
		"both, no certificate":      {both, nil, "the-admin-token", 200, 401},
		"token alone":               {tokenOnly, nil, "the-admin-token", 200, 200},
		"token alone, a wrong one":  {tokenOnly, nil, "another-token", 200, 401},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			ask := dial(t, listening(t, newRig(t, tt.cfg)), ca, tt.certs...)
			for path, want := range map[string]int{"/livez": tt.probe, "/readyz": tt.probe, "/admin/config": tt.operate, "/metrics": tt.operate} {
				if got := ask(path, tt.token); got != want {
					t.Errorf("%s: got %d, want %d", path, got, want)
				}
			}
		})
	}
}

// TestForcedCertificates shows certificates that the listener does not ask for.
func TestForcedCertificates(t *testing.T) {
	ca, evil := newAuthority(t), newAuthority(t)
	certFile, keyFile := ca.server(t)
	addr := listening(t, newRig(t, admin.Config{Listen: "0.0.0.0:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: ca.file}}))
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	cert := evil.client(t, x509.ExtKeyUsageClientAuth)
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	if resp, err := client.Get("https://" + addr + "/admin/config"); err == nil {
		resp.Body.Close()
		t.Errorf("got status %d with a certificate of another authority", resp.StatusCode)
	}
}

// TestCertificatesFollowApply changes certificates, authorities and TLS itself while a
// connection stays open.
func TestCertificatesFollowApply(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	certFile, keyFile := ca.server(t)
	cfg := admin.Config{Listen: "0.0.0.0:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: ca.file}}
	r := newRig(t, cfg)
	addr := listening(t, r)
	old := dial(t, addr, ca, ca.client(t, x509.ExtKeyUsageClientAuth))
	if got := old("/admin/config", ""); got != 200 {
		t.Fatalf("got status %d", got)
	}
	nextCert, nextKey := next.server(t)
	for from, to := range map[string]string{nextCert: certFile, nextKey: keyFile, next.file: ca.file} { // in place, as they are renewed
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	if got := old("/admin/config", ""); got != 401 { // on the connection from before
		t.Errorf("got status %d for a certificate whose authority is gone, want 401", got)
	}
	if got := dial(t, addr, ca)("/livez", ""); got != 0 {
		t.Errorf("the old certificate is still shown: %d", got)
	}
	if got := dial(t, addr, next, next.client(t, x509.ExtKeyUsageClientAuth))("/admin/config", ""); got != 200 {
		t.Errorf("got status %d with the new certificates", got)
	}
	if err := os.WriteFile(keyFile, []byte("secret garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(cfg); err == nil || strings.Contains(err.Error(), "garbage") {
		t.Errorf("a broken key: got %v", err)
	}
	if got := dial(t, addr, next)("/livez", ""); got != 200 {
		t.Errorf("got status %d: a broken key changed something", got)
	}
	if err := r.Apply(admin.Default()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + addr + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != 200 {
		t.Errorf("got status %d in the clear", resp.StatusCode)
	}
}

// TestMetricsToken asks for metrics and more with each of the tokens.
func TestMetricsToken(t *testing.T) {
	t.Setenv("ADMIN_TEST_TOKEN", "the-admin-token")
	t.Setenv("ADMIN_TEST_METRICS", "the-metrics-token")
	local := admin.Config{Listen: "127.0.0.1:1", MetricsTokenEnv: "ADMIN_TEST_METRICS"}
	remote := admin.Config{Listen: "0.0.0.0:1", MetricsTokenEnv: "ADMIN_TEST_METRICS", TokenEnv: "ADMIN_TEST_TOKEN"}
	for name, tt := range map[string]struct {
		cfg              admin.Config
		token            string
		metrics, operate int
	}{
		"its own":                {remote, "the-metrics-token", 200, 401},
		"the operators'":         {remote, "the-admin-token", 200, 200},
		"none":                   {remote, "", 401, 401},
		"a wrong one":            {remote, "the-metrics-tokem", 401, 401},
		"on loopback":            {local, "the-metrics-token", 200, 200},
		"on loopback, none":      {local, "", 401, 200},
		"on loopback, wrong one": {local, "the-admin-token", 401, 200},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			r := newRig(t, tt.cfg)
			for path, want := range map[string]int{"/metrics": tt.metrics, "/admin/config": tt.operate, "/livez": 200, "/readyz": 200} {
				w := ask(r, "GET", path, func(req *http.Request) {
					if tt.token != "" {
						req.Header.Set("Authorization", "Bearer "+tt.token)
					}
				})
				if w.Code != want {
					t.Errorf("%s: got %d, want %d", path, w.Code, want)
				}
				if strings.Contains(w.Body.String()+r.log.String(), "-token\"") || strings.Contains(w.Body.String(), "the-") {
					t.Errorf("%s: a token is told: %s", path, w.Body)
				}
			}
		})
	}
}

func TestValidateTLS(t *testing.T) {
	ca := newAuthority(t)
	certFile, keyFile := ca.server(t)
	_, otherKey := ca.server(t)
	gone := filepath.Join(t.TempDir(), "gone")
	t.Setenv("ADMIN_TEST_TOKEN", "long enough")
	for name, tt := range map[string]struct {
		cfg  admin.Config
		want []string // how the mistakes begin
	}{
		"mutual":            {admin.Config{Listen: ":1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: ca.file}}, nil},
		"TLS on loopback":   {admin.Config{Listen: "127.0.0.1:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile}}, nil},
		"TLS and a token":   {admin.Config{Listen: ":1", TokenEnv: "ADMIN_TEST_TOKEN", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile}}, nil},
		"TLS alone":         {admin.Config{Listen: ":1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile}}, []string{"listen: "}},
		"metrics alone":     {admin.Config{Listen: ":1", MetricsTokenEnv: "ADMIN_TEST_TOKEN"}, []string{"listen: "}},
		"no key":            {admin.Config{Listen: "127.0.0.1:1", TLS: admin.TLSConfig{CertFile: certFile}}, []string{"tls.cert_file: cert_file and key_file"}},
		"authorities alone": {admin.Config{Listen: ":1", TLS: admin.TLSConfig{ClientCAFile: ca.file}}, []string{"tls.cert_file: cert_file and key_file"}},
		"another key":       {admin.Config{Listen: "127.0.0.1:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: otherKey}}, []string{"tls.cert_file: "}},
		"no file":           {admin.Config{Listen: "127.0.0.1:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: gone}}, []string{"tls.client_ca_file: open"}},
		"no authority":      {admin.Config{Listen: "127.0.0.1:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: keyFile}}, []string{"tls.client_ca_file: "}},
		"all at once":       {admin.Config{Listen: "x", TokenFile: gone, MetricsTokenFile: gone, TLS: admin.TLSConfig{KeyFile: gone}}, []string{"listen: ", "token_file: ", "metrics_token_file: ", "tls.cert_file: "}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			if err := tt.cfg.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.want[i]) {
					t.Errorf("got %q, want it to begin with %q", got[i], tt.want[i])
				}
			}
		})
	}
}

// TestPagesWithACertificate lets a browser send its certificate for another site.
func TestPagesWithACertificate(t *testing.T) {
	ca := newAuthority(t)
	certFile, keyFile := ca.server(t)
	addr := listening(t, newRig(t, admin.Config{Listen: "0.0.0.0:1", TLS: admin.TLSConfig{CertFile: certFile, KeyFile: keyFile, ClientCAFile: ca.file}}))
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{ca.client(t, x509.ExtKeyUsageClientAuth)}}}
	defer transport.CloseIdleConnections()
	for site, want := range map[string]int{"cross-site": 403, "same-origin": 200} {
		req, err := http.NewRequest(http.MethodPost, "https://"+addr+"/admin/reload", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Sec-Fetch-Site", site)
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", site, resp.StatusCode, want)
		}
	}
}

// TestATokenThatIsTakenAway by a reload, together with a listener that a reload cannot
// change, opens nothing: who connects from elsewhere can name any host.
func TestATokenThatIsTakenAway(t *testing.T) {
	r := newRig(t, admin.Config{Listen: "127.0.0.1:9090"})
	at := func(ip string) func(*http.Request) {
		return func(req *http.Request) {
			local := &net.TCPAddr{IP: net.ParseIP(ip), Port: 9090}
			*req = *req.WithContext(context.WithValue(req.Context(), http.LocalAddrContextKey, local))
		}
	}
	for ip, want := range map[string]int{"127.0.0.1": 200, "::1": 200, "10.0.0.7": 403, "2001:db8::1": 403} {
		if got := ask(r, "GET", "/admin/config", at(ip)).Code; got != want {
			t.Errorf("connected to %s: got %d, want %d", ip, got, want)
		}
	}
	if got := ask(r, "GET", "/livez", at("10.0.0.7")).Code; got != 200 {
		t.Errorf("a probe got %d", got)
	}
}
