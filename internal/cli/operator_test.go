package cli_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestCertificates talks to a listener that wants a certificate.
func TestCertificates(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) == 0 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write([]byte(`{"levels":[]}`))
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	private, err := x509.MarshalPKCS8PrivateKey(s.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	ca := file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	key := file(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	for name, tt := range map[string]struct {
		args []string
		code int
		errs string
	}{
		"with one":          {[]string{"--tls-ca", ca, "--tls-cert", ca, "--tls-key", key}, 0, ""},
		"without":           {[]string{"--tls-ca", ca}, 1, "a certificate with --tls-cert"},
		"unknown authority": {nil, 1, "certificate"},
		"half":              {[]string{"--tls-ca", ca, "--tls-cert", ca}, 2, "go together"},
		"no certificate":    {[]string{"--tls-ca", key}, 1, "has no certificate in it"},
		"no file":           {[]string{"--tls-ca", ca + ".gone"}, 1, "--tls-ca: open"},
		"the wrong key":     {[]string{"--tls-ca", ca, "--tls-cert", ca, "--tls-key", ca}, 1, "--tls-cert: "},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := run(t, append([]string{"cache", "stats", "--json", "--admin", s.URL}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.errs) || (out != "") != (tt.code == 0) {
				t.Errorf("got %d %q %q, want %d %q", code, out, errs, tt.code, tt.errs)
			}
		})
	}
}
