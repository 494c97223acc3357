package inference

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size in a configuration, written as a number of bytes or with a unit:
// 65536, 64KiB, 32MiB, 1GiB (powers of 1024), 1kB, 1MB, 1GB (powers of 1000).
type Bytes int64

// units are the suffixes of sizes, longest first.
var units = []struct {
	suffix string
	factor float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	number, factor := strings.TrimSpace(string(text)), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || v*factor != math.Trunc(v*factor) || math.Abs(v*factor) > 1<<53 {
		return fmt.Errorf("want a size such as 65536, 64KiB or 32MiB, got %q", text)
	}
	*b = Bytes(v * factor)
	return nil
}

// String writes the size with the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range []struct {
		suffix string
		factor Bytes
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if b != 0 && b%u.factor == 0 {
			return strconv.FormatInt(int64(b/u.factor), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}
