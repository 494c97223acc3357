package route

import (
	"encoding/binary"
	"net/netip"

	"github.com/spillway/spillway/internal/fleet"
)

// IPHash keeps a client's address at one node as long as that is open, and
// spreads its clients when it is not. Shares follow the weights. IPv6 clients
// count by their /64, which one host has to itself. A request without a known
// address goes anywhere.
type IPHash struct{}

// Pick implements Policy.
func (IPHash) Pick(q *fleet.Query, nodes []*fleet.Node) int {
	key, ok := ipKey(q.Request.ClientIP)
	if !ok {
		key = q.Rand
	}
	return rendezvous(key, nodes, q)
}

// ipKey hashes an address, IPv6 by its /64.
func ipKey(ip netip.Addr) (uint64, bool) {
	if !ip.IsValid() {
		return 0, false
	}
	b := ip.As16()
	if ip.Is4() || ip.Is4In6() {
		return mix(uint64(binary.BigEndian.Uint32(b[12:])) | 4<<32), true
	}
	return mix(binary.BigEndian.Uint64(b[:8])), true
}
