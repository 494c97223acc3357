package jwt

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
