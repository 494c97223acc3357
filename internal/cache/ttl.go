package cache

import (
	"encoding/binary"
	"math"
	"math/bits"
	"time"
)

// lifetime is how long an answer with that many hits is fresh: the policy's time,
// once more for each doubling of the hits (ttl * (1 + log2(1 + hits)), whole steps),
// up to the policy's bound. A demand that is ten times as high earns three times as
// long, so that only answers asked for often and for long come near the bound.
func (p policy) lifetime(hits uint32) time.Duration {
	steps := bits.Len64(uint64(hits)+1) - 1
	if p.ttl > p.max/time.Duration(steps+1) {
		return p.max
	}
	return min(p.ttl*time.Duration(steps+1), p.max)
}

// step says whether a hit takes the lifetime a step further.
func step(hits uint32) bool { return bits.OnesCount64(uint64(hits)+1) == 1 }

// jittered moves a lifetime by up to the share j to either side. The key decides, so
// that every gateway comes to the same instant.
func jittered(d time.Duration, j float64, key Key) time.Duration {
	u := float64(binary.LittleEndian.Uint64(key[8:]))/math.MaxUint64*2 - 1
	return d + time.Duration(float64(d)*j*u)
}
