package load

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Segment is a stretch of a profile whose rate moves linearly from From to To,
// in requests per second.
type Segment struct {
	From, To float64
	Length   time.Duration
}

// maxRate bounds a segment's rate, requests per second: one machine's
// generator is far below it.
const maxRate = 1e6

// ParseProfile reads a list of segments separated by commas:
//
//	10/s:30s            a step: 10 requests a second for 30 seconds
//	step 10/s:30s       the same
//	burst 200/s:5s      the same, for the reader
//	ramp 10-50/s:60s    from 10 to 50 requests a second within 60 seconds
func ParseProfile(text string) ([]Segment, error) {
	var out []Segment
	for part := range strings.SplitSeq(text, ",") {
		s, err := parseSegment(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("segment %q: %w", strings.TrimSpace(part), err)
		}
		out = append(out, s)
	}
	return out, nil
}

func parseSegment(text string) (Segment, error) {
	kind, rest := "step", text
	if word, after, ok := strings.Cut(text, " "); ok {
		kind, rest = word, strings.TrimSpace(after)
	}
	rates, length, ok := strings.Cut(rest, "/s:")
	if !ok {
		return Segment{}, fmt.Errorf("want RATE/s:DURATION")
	}
	d, err := time.ParseDuration(length)
	if err != nil {
		return Segment{}, err
	}
	if d <= 0 {
		return Segment{}, fmt.Errorf("duration must be > 0, got %s", d)
	}
	from, to := rates, rates
	switch kind {
	case "step", "burst":
	case "ramp":
		if from, to, ok = strings.Cut(rates, "-"); !ok {
			return Segment{}, fmt.Errorf("want ramp FROM-TO/s:DURATION")
		}
	default:
		return Segment{}, fmt.Errorf("unknown kind %q, known: step, ramp, burst", kind)
	}
	s := Segment{Length: d}
	if s.From, err = parseRate(from); err != nil {
		return Segment{}, err
	}
	s.To, err = parseRate(to)
	return s, err
}

func parseRate(text string) (float64, error) {
	r, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		return 0, err
	}
	if !(r >= 0 && r <= maxRate) {
		return 0, fmt.Errorf("rate must be between 0 and %g, got %g", float64(maxRate), r)
	}
	return r, nil
}

// expected is the number of arrivals that the segment expects.
func (s Segment) expected() float64 { return (s.From + s.To) / 2 * s.Length.Seconds() }

// at is the instant inside the segment by which n arrivals are expected: the
// root of from*t + slope*t*t/2 = n, in the form that stays exact when the
// slope is small.
func (s Segment) at(n float64) time.Duration {
	slope := (s.To - s.From) / s.Length.Seconds()
	root := math.Sqrt(max(0, s.From*s.From+2*slope*n))
	if s.From+root == 0 {
		return 0
	}
	return time.Duration(2 * n / (s.From + root) * float64(time.Second))
}

// clock turns a count of expected arrivals into instants of a profile: the
// inverse of the cumulative rate. Feeding it unit steps gives evenly spaced
// arrivals, unit exponential steps a Poisson process of the varying rate.
type clock struct {
	segments []Segment
	start    time.Duration // of segments[0]
	passed   float64       // arrivals expected before it
}

// at returns the instant by which n arrivals are expected, false behind the
// profile's end. n must not decrease from call to call.
func (c *clock) at(n float64) (time.Duration, bool) {
	for len(c.segments) > 0 {
		s := c.segments[0]
		if n-c.passed < s.expected() {
			return c.start + s.at(n-c.passed), true
		}
		c.passed += s.expected()
		c.start += s.Length
		c.segments = c.segments[1:]
	}
	return 0, false
}
