package route

import (
	"math/bits"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// Constants of the block index (llm-d router: blocks of at least 64 tokens at 4
// bytes a token, at most 131,072 tokens of a prompt).
const (
	blockBytes = 256
	maxBlocks  = 2048
)

// chain is the hashes of a prompt's whole blocks. Each depends on all before it,
// so one hash stands for the prefix that ends there.
type chain struct {
	hashes [maxBlocks]uint64
	n      int
}

// fill hashes a prompt of a model.
func (c *chain) fill(model string, prompt []byte) {
	c.n = min(len(prompt)/blockBytes, maxBlocks)
	h := xxhash.Sum64String(model)
	for i := range c.hashes[:c.n] {
		h = mix(h + xxhash.Sum64(prompt[i*blockBytes:(i+1)*blockBytes]))
		c.hashes[i] = h | 1<<63 // never 0, which is an empty slot
	}
}

// all returns the hashes.
func (c *chain) all() []uint64 { return c.hashes[:c.n] }

// Layout of a blockSet: sets of eight slots, one cache line each. A slot holds the
// upper 48 bits of a hash and a 16-bit stamp.
const (
	ways      = 8
	stampBits = 16
	stampMask = 1<<stampBits - 1
)

// ages is how many stamps the blocks of a full set are told apart by. Stamps wrap
// after 64 times as many blocks as the set holds, when no old one is left.
const ages = 1024

// blockSet is the blocks that one node is believed to hold: a fixed number of
// slots, eight for each value of a hash's lower bits. A block that comes replaces
// the one of its eight that was used longest ago, so the set never grows and needs
// no sweep. Slots are atomic words without a lock: a lost race loses one block.
type blockSet struct {
	slots []atomic.Uint64
	mask  uint64
	shift int           // from added to a stamp
	added atomic.Uint64 // blocks ever added: the clock

	reports atomic.Bool // its server has reported cached tokens before
}

// newBlockSet returns an empty set for at least the given number of blocks.
func newBlockSet(blocks int) *blockSet {
	sets := 1 << bits.Len(uint(max(blocks, ages)-1)/ways)
	return &blockSet{
		slots: make([]atomic.Uint64, sets*ways),
		mask:  uint64(sets - 1),
		shift: bits.Len(uint(sets*ways/ages)) - 1,
	}
}

// line returns the slots where a hash may stand.
func (s *blockSet) line(h uint64) *[ways]atomic.Uint64 {
	i := (h & s.mask) * ways
	return (*[ways]atomic.Uint64)(s.slots[i : i+ways])
}

// has says whether the block is there.
func (s *blockSet) has(h uint64) bool {
	line := s.line(h)
	for i := range line {
		if line[i].Load()>>stampBits == h>>stampBits {
			return true
		}
	}
	return false
}

// add puts blocks in, or marks them as used now.
func (s *blockSet) add(hashes []uint64) {
	stamp := s.added.Load() >> s.shift & stampMask
	fresh := uint64(0)
	for _, h := range hashes {
		if s.put(h, stamp) {
			fresh++
		}
	}
	if fresh > 0 {
		s.added.Add(fresh)
	}
}

// put stores one block and says whether it was new.
func (s *blockSet) put(h, stamp uint64) bool {
	line := s.line(h)
	slot := h&^stampMask | stamp
	oldest, age := 0, uint64(0)
	for i := range line {
		v := line[i].Load()
		if v>>stampBits == h>>stampBits {
			if v != slot {
				line[i].Store(slot)
			}
			return false
		}
		a := (stamp-v)&stampMask + 1
		if v == 0 {
			a = stampMask + 2
		}
		if a > age {
			oldest, age = i, a
		}
	}
	line[oldest].Store(slot)
	return true
}

// drop takes blocks out.
func (s *blockSet) drop(hashes []uint64) {
	for _, h := range hashes {
		line := s.line(h)
		for i := range line {
			if v := line[i].Load(); v>>stampBits == h>>stampBits {
				line[i].CompareAndSwap(v, 0)
			}
		}
	}
}
