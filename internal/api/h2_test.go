package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
)

// certificate writes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AddCert(must(x509.ParseCertificate(der)))
	return certFile, keyFile, pool
}

// must takes a result that cannot fail here.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// h2 is a client that speaks HTTP/2 only, over TLS or in the clear.
func h2(t *testing.T, roots *x509.CertPool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(roots != nil)
	protocols.SetUnencryptedHTTP2(roots == nil)
	tr := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 15 * time.Second}
}

// call sends one request and reads its answer.
func call(t *testing.T, c *http.Client, method, url string, body io.Reader) *answer {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return &answer{res, string(b), err}
}

// overH2 asserts that a server serves HTTP/2 as it serves HTTP/1.1.
func overH2(t *testing.T, r *rig, c *http.Client, base string) {
	t.Helper()
	a := call(t, c, "POST", base+"/v1/chat/completions", strings.NewReader(chat))
	if a.StatusCode != 200 || a.ProtoMajor != 2 || a.body != ok || string(r.last().Body) != chat {
		t.Errorf("got %s %d %s", a.Proto, a.StatusCode, a.body)
	}
	if r.last().ClientIP.String() != "127.0.0.1" || r.last().ID != a.Header.Get("X-Request-Id") {
		t.Errorf("got %+v", r.last())
	}
	a = call(t, c, "GET", base+"/v1/models", nil)
	if a.StatusCode != 200 || !strings.Contains(a.body, "org/model") {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
	call(t, c, "POST", base+"/v1/chat/completions", strings.NewReader("{")).refused(t, 400, inference.CodeInvalidRequest)
	call(t, c, "GET", base+"/v1/nothing", nil).refused(t, 404, inference.CodeNotFound)
	call(t, c, "POST", base+"/v1/chat/completions", strings.NewReader(padded(3<<20))).refused(t, 413, inference.CodeTooLarge)
	if a := call(t, c, "POST", base+"/v1/chat/completions", strings.NewReader(padded(1<<20))); a.StatusCode != 200 {
		t.Errorf("the limit: got %d %s", a.StatusCode, a.body)
	}
}

func TestHTTP2InTheClear(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.MaxBody, c.MaxBuffered = 1<<20, 4<<20 }, nil)
	c := h2(t, nil)
	overH2(t, r, c, "http://"+r.addr)
	c.CloseIdleConnections()
	r.idle()
}

func TestTLS(t *testing.T) {
	certFile, keyFile, roots := certificate(t)
	r := newRig(t, func(c *api.Config) {
		c.MaxBody, c.MaxBuffered, c.TLSCertFile, c.TLSKeyFile = 1<<20, 4<<20, certFile, keyFile
		c.ReadHeaderTimeout = time.Second
	}, nil)
	c := h2(t, roots)
	overH2(t, r, c, "https://"+r.addr)
	c.CloseIdleConnections()

	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}} // HTTP/1.1 by ALPN
	defer tr.CloseIdleConnections()
	a := call(t, &http.Client{Transport: tr}, "POST", "https://"+r.addr+"/chat/completions", strings.NewReader(chat))
	if a.StatusCode != 200 || a.ProtoMajor != 1 || a.body != ok {
		t.Errorf("got %s %d %s", a.Proto, a.StatusCode, a.body)
	}
	tr.CloseIdleConnections()

	if _, err := tls.Dial("tcp", r.addr, &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was taken")
	}
	plain := r.dial() // no TLS at all
	plain.send(post("/v1/chat/completions", chat))
	if rest, _ := io.ReadAll(plain.br); bytes.Contains(rest, []byte("200 OK")) {
		t.Errorf("got %q", rest)
	}
	plain.Close()
	silent := r.dial() // a handshake that does not come
	silent.closed()
	silent.Close()
	r.idle()
}

func TestStreamsOverHTTP2(t *testing.T) {
	certFile, keyFile, roots := certificate(t)
	for name, secure := range map[string]bool{"TLS": true, "clear": false} {
		t.Run(name, func(t *testing.T) {
			next, left := make(chan string), make(chan error, 1)
			r := newRig(t, func(c *api.Config) {
				if secure {
					c.TLSCertFile, c.TLSKeyFile = certFile, keyFile
				}
			}, func(ctx context.Context, req *inference.Request, out api.Answer) *inference.Record {
				_ = begin(out)
				for s := range next {
					_ = out.Write([]byte(s), true)
				}
				switch req.User {
				case "cut":
					out.Fail(inference.Errorf(inference.CodeUpstreamCut, "cut"))
				case "leaves":
					select {
					case <-ctx.Done():
					case <-time.After(10 * time.Second):
					}
					left <- context.Cause(ctx)
				}
				return &inference.Record{Request: req}
			})
			base, c := "http://"+r.addr, h2(t, nil)
			if secure {
				base, c = "https://"+r.addr, h2(t, roots)
			}
			start := func(ctx context.Context, user string) (*http.Response, *bufio.Reader) {
				req := must(http.NewRequestWithContext(ctx, "POST", base+"/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true,"messages":[{}],"user":"`+user+`"}`)))
				go func() { next <- "data: 1\n\n" }()
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				return res, bufio.NewReader(res.Body)
			}
			res, br := start(t.Context(), "good")
			for range 5 { // each event arrives before the next is sent
				if line, err := br.ReadString('\n'); line != "data: 1\n" || err != nil {
					t.Fatalf("got %q, %v", line, err)
				}
				_, _ = br.ReadString('\n')
				next <- "data: 1\n\n"
			}
			close(next)
			if rest, err := io.ReadAll(br); string(rest) != "data: 1\n\n" || err != nil || res.ProtoMajor != 2 {
				t.Errorf("got %q, %v", rest, err)
			}
			next = make(chan string)
			_, br = start(t.Context(), "cut")
			close(next)
			rest, err := io.ReadAll(br)
			if err == nil || errors.Is(err, io.EOF) || !strings.Contains(string(rest), `"code":"upstream_cut"`) {
				t.Errorf("got %q, %v", rest, err)
			}
			next = make(chan string)
			ctx, leave := context.WithCancel(t.Context())
			start(ctx, "leaves")
			close(next)
			leave()
			if err := <-left; err == nil {
				t.Error("the stream went on without its client")
			}
			r.idle(c)
		})
	}
}
