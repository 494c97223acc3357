package jwt

import (
	"crypto/sha256"
	"fmt"
	"time"
)

// ParseSet reads a set of keys, and says how many it has.
func ParseSet(data []byte) (int, error) {
	keys, err := parseSet(data)
	return len(keys), err
}

// Remembered is the number of tokens that are.
func Remembered(v *Verifier) int {
	v.recent.mu.Lock()
	defer v.recent.mu.Unlock()
	return v.recent.order.Len()
}

// MaxRecent is the most of them.
const MaxRecent = maxRecent

// Remember makes a verifier remember n tokens.
func Remember(v *Verifier, n int) {
	for i := range n {
		v.recent.keep(&seen{digest: sha256.Sum256(fmt.Append(nil, i)), under: v.set.Load(), ends: time.Unix(1<<40, 0)})
	}
}
