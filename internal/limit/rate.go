package limit

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Rate is how much of something may come in how long, written `10/s`, `600/m`,
// `1000/h` or `5000/d`. The zero Rate is no limit, written `0`.
type Rate struct {
	N   int64         // how much, at least 1
	Per time.Duration // a second, a minute, an hour or a day
}

// mostRate bounds N: beyond it nothing is limited in practice, and sums stay far
// from the ends of an int64.
const mostRate = 1_000_000_000_000

// periods are the units of rates.
var periods = [...]struct {
	unit string
	per  time.Duration
}{{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}}

// ParseRate reads a rate. An empty text and `0` are no limit.
func ParseRate(s string) (Rate, error) {
	s = strings.TrimSpace(s)
	if s == "" || s == "0" {
		return Rate{}, nil
	}
	number, unit, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 63)
	if err == nil && n >= 1 && n <= mostRate {
		for _, p := range periods {
			if p.unit == strings.TrimSpace(unit) {
				return Rate{int64(n), p.per}, nil
			}
		}
	}
	return Rate{}, fmt.Errorf("want a rate such as 10/s, 600/m, 1000/h or 5000/d, of at most %d, got %q", int64(mostRate), s)
}

// Zero says whether the rate is no limit.
func (r Rate) Zero() bool { return r.N == 0 }

// String writes the rate as ParseRate reads it.
func (r Rate) String() string {
	for _, p := range periods {
		if p.per == r.Per && r.N != 0 {
			return strconv.FormatInt(r.N, 10) + "/" + p.unit
		}
	}
	return "0"
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(text []byte) error {
	got, err := ParseRate(string(text))
	if err == nil {
		*r = got
	}
	return err
}

// longestTime bounds what anything costs, in nanoseconds: 36 years. A debt of that
// length is as good as an endless one, and two of them added to the present stay
// within an int64.
const longestTime = 1 << 60

// time is how long the rate takes to give n, in nanoseconds, to the nearest one.
func (r Rate) time(n int64) int64 {
	if n < 0 {
		return -r.time(-n)
	}
	hi, lo := bits.Mul64(uint64(n), uint64(r.Per))
	lo, carry := bits.Add64(lo, uint64(r.N)/2, 0)
	if hi += carry; hi >= uint64(r.N) {
		return longestTime
	}
	q, _ := bits.Div64(hi, lo, uint64(r.N))
	return int64(min(q, longestTime))
}

// amount is how much the rate gives within t nanoseconds, rounded down but for a
// nanosecond that rounding may have taken from each.
func (r Rate) amount(t int64) int64 {
	if t <= 0 {
		return 0
	}
	hi, lo := bits.Mul64(uint64(t)+1, uint64(r.N))
	if hi >= uint64(r.Per) {
		return 1<<63 - 1
	}
	q, _ := bits.Div64(hi, lo, uint64(r.Per))
	return int64(min(q, 1<<63-1))
}
