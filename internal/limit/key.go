package limit

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
)

// Key names one bucket by 128 bits: a rule, a kind, and what the rule is kept by.
//
// Two buckets with one key are one bucket: who shares it gets less, never more. Names
// are hashed with a secret of the process, or with SHA-256 where gateways share a
// store, so nobody can look for such a pair; among a million buckets chance makes
// one with a probability of 2^-89. Addresses are not hashed but permuted, so no two
// of them share a bucket of one rule.
type Key [2]uint64

// with adds a part to a key. For a given key it is a permutation of the parts: three
// rounds of a Feistel network over the multiply-and-shift of MurmurHash3's finalizer.
func (k Key) with(part Key) Key {
	a, b := k[0]^part[0], k[1]^part[1]
	a ^= scramble(b ^ 0x9e3779b97f4a7c15)
	b ^= scramble(a ^ 0xc2b2ae3d27d4eb4f)
	a ^= scramble(b ^ 0x165667b19e3779f9)
	return Key{a, b}
}

// scramble spreads every bit over all.
func scramble(x uint64) uint64 {
	hi, lo := bits.Mul64(x^0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53)
	return hi ^ lo ^ x>>29
}

// hasher makes keys of names.
type hasher struct {
	stable       bool // the same in every gateway
	first, other maphash.Seed
	secret       Key // where every chain of parts begins
}

// newHasher returns a hasher with a secret of its own, or a stable one.
func newHasher(stable bool) hasher {
	h := hasher{stable: stable, first: maphash.MakeSeed(), other: maphash.MakeSeed()}
	if !stable {
		h.secret = h.text("")
	}
	return h
}

// text hashes a name.
func (h *hasher) text(s string) Key {
	if !h.stable {
		return Key{maphash.String(h.first, s), maphash.String(h.other, s)}
	}
	sum := sha256.Sum256([]byte(s))
	return Key{binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// network is the part of a key that stands for a client's address: an IPv4 address,
// or the /64 of an IPv6 address, which one client has to itself. The zero address has
// a part of its own.
func network(ip netip.Addr) Key {
	ip = ip.Unmap()
	switch {
	case ip.Is4():
		b := ip.As4()
		return Key{4, uint64(binary.BigEndian.Uint32(b[:]))}
	case ip.Is6():
		b := ip.As16()
		return Key{6, binary.BigEndian.Uint64(b[:8])}
	}
	return Key{}
}
