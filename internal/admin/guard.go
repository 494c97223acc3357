package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// tlsListener encrypts what connects as the settings of that moment say, so that
// certificates, and TLS itself, follow a reload.
type tlsListener struct {
	net.Listener
	server *Server
}

// Accept implements net.Listener. The handshake is made by whoever reads first.
func (l tlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if cfg := l.server.settings.Load().tls; cfg != nil {
		return tls.Server(c, cfg), nil
	}
	return c, nil
}

// admit judges a request by its head. nil lets it in.
func (g *guard) admit(r *http.Request) *problem {
	if g.metrics != nil && r.URL.Path == "/metrics" {
		return g.admitMetrics(r)
	}
	return g.admitOperator(r)
}

// admitMetrics judges a request for what has a token of its own.
func (g *guard) admitMetrics(r *http.Request) *problem {
	if matches(r, g.metrics) {
		return nil
	}
	if g.token == nil && g.clients == nil { // who is on this machine needs the token too: that is what it is for
		return &problem{http.StatusUnauthorized, codeUnauthorized, "the token for metrics is missing or wrong; send it as \"Authorization: Bearer TOKEN\""}
	}
	return g.admitOperator(r)
}

// admitOperator judges a request for what operators may do: everything that is
// configured must be shown.
func (g *guard) admitOperator(r *http.Request) *problem {
	if g.clients != nil && !g.certified(r) {
		return &problem{http.StatusUnauthorized, codeUnauthorized, "this listener asks for a client's certificate"}
	}
	if g.token != nil {
		if matches(r, g.token) {
			return nil
		}
		return &problem{http.StatusUnauthorized, codeUnauthorized, "the admin token is missing or wrong; send it as \"Authorization: Bearer TOKEN\""}
	}
	if g.clients == nil && (!isLoopback(r.Host) || !reachedHere(r)) {
		return &problem{http.StatusForbidden, codeForbidden, "without an admin token only requests to localhost are answered"}
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil { // browsers send certificates by themselves
		return &problem{http.StatusForbidden, codeForbidden, "requests from another site's page are refused"}
	}
	return nil
}

// matches says whether a request has the token with a digest. It takes as long for
// every token of a length.
func matches(r *http.Request, digest *[sha256.Size]byte) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return subtle.ConstantTimeCompare(sum[:], digest[:]) == 1 && strings.EqualFold(scheme, "bearer")
}

// certified says whether the client of a connection has a certificate of today's
// authorities. The handshake checked it by those of its own day.
func (g *guard) certified(r *http.Request) bool {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	opts := x509.VerifyOptions{Roots: g.clients, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, c := range r.TLS.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := r.TLS.PeerCertificates[0].Verify(opts)
	return err == nil
}

// reachedHere says whether a request came to an address of this machine alone. A reload
// may take the token away and does not move the listener.
func reachedHere(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return !ok || local.IP.IsLoopback()
}

// isLoopback says whether a host, with or without a port, is this machine by
// name or address.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}
