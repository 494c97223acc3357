package engine

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

const (
	// TokenBytes is the length of one simulated token in bytes, prompt and answer alike: the usual rule of thumb for
	// English text.
	TokenBytes = 4
	// BlockTokens is the prefix cache's granularity in tokens. vLLM's default is 16; 64 keeps the index small.
	BlockTokens = 64

	blockBytes = BlockTokens * TokenBytes
)

// Tokens is the number of simulated tokens in a text of the given length in bytes: rounded up, at least 1.
func Tokens(bytes int) int {
	return max(1, (bytes+TokenBytes-1)/TokenBytes)
}

// Chain appends to dst one hash per full block of the prompt. Each hash covers all bytes up to its block's end, so two
// prompts share a block exactly when they share everything before it. The salt (a model name) starts the chain. A
// last, partial block is never shared and has no hash.
func Chain(dst []uint64, salt string, prompt []byte) []uint64 {
	var pair [16]byte
	link := xxhash.Sum64String(salt)
	for ; len(prompt) >= blockBytes; prompt = prompt[blockBytes:] {
		binary.LittleEndian.PutUint64(pair[:8], link)
		binary.LittleEndian.PutUint64(pair[8:], xxhash.Sum64(prompt[:blockBytes]))
		link = xxhash.Sum64(pair[:])
		dst = append(dst, link)
	}
	return dst
}

// block is one cached prompt block. It is on the idle list exactly while refs is 0.
type block struct {
	hash       uint64
	refs       int
	prev, next *block
}

// prefixCache holds the KV blocks of prompts, shared by reference counting. Blocks nobody refers to stay until their
// room is needed, least recently used first. Its size is bounded by the KV budget that Batch enforces.
type prefixCache struct {
	blocks map[uint64]*block
	idle   block // sentinel of a ring: next is the least recently used
	idleN  int
}

func newPrefixCache() *prefixCache {
	c := &prefixCache{blocks: make(map[uint64]*block)}
	c.idle.prev, c.idle.next = &c.idle, &c.idle
	return c
}

// match is the number of leading blocks of chain that are cached, at most limit.
func (c *prefixCache) match(chain []uint64, limit int) int {
	limit = min(limit, len(chain))
	for i := range limit {
		if c.blocks[chain[i]] == nil {
			return i
		}
	}
	return limit
}

// acquire refers to the block, creating it when it is absent.
func (c *prefixCache) acquire(hash uint64) (created bool) {
	b := c.blocks[hash]
	if b == nil {
		c.blocks[hash] = &block{hash: hash, refs: 1}
		return true
	}
	if b.refs == 0 {
		c.unlink(b)
	}
	b.refs++
	return false
}

// release gives references back, last block first, so that a chain is evicted from its tail.
func (c *prefixCache) release(chain []uint64) {
	for i := len(chain) - 1; i >= 0; i-- {
		b := c.blocks[chain[i]]
		if b.refs--; b.refs > 0 {
			continue
		}
		b.prev, b.next = c.idle.prev, &c.idle
		b.prev.next, b.next.prev = b, b
		c.idleN++
	}
}

// evict drops the least recently used idle block and reports whether there was one.
func (c *prefixCache) evict() bool {
	b := c.idle.next
	if b == &c.idle {
		return false
	}
	c.unlink(b)
	delete(c.blocks, b.hash)
	return true
}

func (c *prefixCache) unlink(b *block) {
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
	c.idleN--
}

// tokens is the KV held by all cached blocks; idleTokens the part of it that may be evicted.
func (c *prefixCache) tokens() int     { return len(c.blocks) * BlockTokens }
func (c *prefixCache) idleTokens() int { return c.idleN * BlockTokens }
