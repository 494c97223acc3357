package identity

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
)

// Kind says how a digest is made of a key.
type Kind uint8

// The kinds.
const (
	SHA256 Kind = iota // plain, for keys with much entropy
	HMAC               // HMAC-SHA-256 under the pepper
)

// String is the word that a digest begins with.
func (k Kind) String() string { return [...]string{"sha256", "hmac"}[k] }

// Digest is all that is kept of a key.
type Digest struct {
	Kind Kind
	Sum  [sha256.Size]byte
}

// String is the kind and the first digits, which is enough to find a key and too
// little to look one up.
func (d Digest) String() string { return d.Kind.String() + ":" + hex.EncodeToString(d.Sum[:4]) + "..." }

// ID is the public name of a key that was given none: 12 digits of its digest.
func (d Digest) ID() string { return hex.EncodeToString(d.Sum[:6]) }

// text is the digest as a keys file has it.
func (d Digest) text() string { return d.Kind.String() + ":" + hex.EncodeToString(d.Sum[:]) }

// prefix is what keys made here begin with, so that scanners for lost secrets find
// them.
const prefix = "sw-"

// NewSecret makes a key of 256 random bits.
func NewSecret() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// DigestOf is the digest under which a new key is kept: under the pepper, where the
// configuration has one.
func (c *Config) DigestOf(key string) (Digest, error) {
	secret, err := c.pepper()
	if err != nil {
		return Digest{}, err
	}
	if secret != nil {
		return Digest{HMAC, newMACs(secret).sum(key)}, nil
	}
	return Digest{SHA256, sum(key)}, nil
}

// pepper is the secret of the gateway under which keys are hashed; nil is none.
type pepper []byte

// common is the length in bytes up to which a key is hashed without an allocation.
const common = 256

// sum hashes a key. Keys of common length are copied to the stack first, because
// turning a string into bytes allocates.
func sum(key string) digest {
	var buf [common]byte
	if len(key) <= len(buf) {
		return sha256.Sum256(buf[:copy(buf[:], key)])
	}
	return sha256.Sum256([]byte(key))
}

// macs hash keys under a pepper, as RFC 2104 has it: with SHA-256 over the pepper in
// two disguises.
type macs struct {
	secret       pepper
	inner, outer [sha256.BlockSize]byte
}

// newMACs returns the hashes for a pepper.
func newMACs(secret pepper) *macs {
	m := &macs{secret: secret}
	block := []byte(secret)
	if len(block) > sha256.BlockSize {
		d := sha256.Sum256(block)
		block = d[:]
	}
	copy(m.inner[:], block)
	copy(m.outer[:], block)
	for i := range m.inner {
		m.inner[i] ^= 0x36
		m.outer[i] ^= 0x5c
	}
	return m
}

// sum hashes a key. For keys of common length everything is on the stack, which
// crypto/hmac cannot do.
func (m *macs) sum(key string) digest {
	if len(key) > common {
		h := hmac.New(sha256.New, m.secret)
		_, _ = h.Write([]byte(key)) // never fails
		return digest(h.Sum(nil))
	}
	var first [sha256.BlockSize + common]byte
	copy(first[:], m.inner[:])
	d := sha256.Sum256(first[:sha256.BlockSize+copy(first[sha256.BlockSize:], key)])
	var second [sha256.BlockSize + sha256.Size]byte
	copy(second[:], m.outer[:])
	copy(second[sha256.BlockSize:], d[:])
	return sha256.Sum256(second[:])
}
