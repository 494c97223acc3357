package api

import (
	"net/http"
	"net/netip"
	"strings"
)

// trusted is the set of networks whose word about a client's address counts.
type trusted []netip.Prefix

// newTrusted parses networks that were validated before.
func newTrusted(networks []string) trusted {
	var t trusted
	for _, s := range networks {
		if p, err := parsePrefix(s); err == nil {
			t = append(t, p)
		}
	}
	return t
}

// has says whether a is one of the proxies.
func (t trusted) has(a netip.Addr) bool {
	for _, p := range t {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clientIP is the address of the client: the peer's own, or, when the peer is a
// trusted proxy, the last address in X-Forwarded-For or Forwarded that is not
// one. What stands before it was written by the client itself and proves
// nothing.
func (t trusted) clientIP(peer netip.Addr, h http.Header) netip.Addr {
	ip := peer
	if !t.has(ip) {
		return ip
	}
	hops := h["X-Forwarded-For"]
	read := hopAddr
	if len(hops) == 0 {
		hops, read = h["Forwarded"], forwardedFor
	}
	for i := len(hops) - 1; i >= 0; i-- {
		for rest := hops[i]; rest != ""; {
			hop := rest
			if c := strings.LastIndexByte(rest, ','); c >= 0 {
				hop, rest = rest[c+1:], rest[:c]
			} else {
				rest = ""
			}
			a, ok := read(strings.TrimSpace(hop))
			if !ok {
				return ip // an unreadable hop hides everything before it
			}
			if ip = a; !t.has(ip) {
				return ip
			}
		}
	}
	return ip
}

// peerIP is the address in net/http's RemoteAddr; invalid when it has none.
func peerIP(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// hopAddr reads an address with an optional port.
func hopAddr(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap(), true
	}
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return a.Unmap(), err == nil
}

// forwardedFor reads the for parameter of one element of Forwarded (RFC 7239).
func forwardedFor(element string) (netip.Addr, bool) {
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if ok && strings.EqualFold(name, "for") {
			return hopAddr(strings.Trim(value, `"`))
		}
	}
	return netip.Addr{}, false
}
