package api

import (
	"net/http"
	"net/netip"
)

// ReadProxyHeader is the parser of the PROXY protocol, to be fuzzed.
var ReadProxyHeader = readProxyHeader

// ClientIP is the client's address behind trusted networks, to be fuzzed.
func ClientIP(networks []string, peer netip.Addr, h http.Header) netip.Addr {
	return newTrusted(networks).clientIP(peer, h)
}
