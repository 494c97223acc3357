package engine

import (
	"testing"
	"time"
)

func TestPaceOfSlowStart(t *testing.T) {
	s := newFaultSource(Faults{SlowStart: SlowStart{Factor: 3, Period: time.Second}}, 1)
	for _, tt := range []struct {
		after time.Duration
		want  float64
	}{{-time.Hour, 3}, {-1, 3}, {0, 3}, {time.Second / 2, 2}, {time.Second, 1}, {time.Hour, 1}} {
		if got := s.pace(s.mu.since.Add(tt.after)); got != tt.want {
			t.Errorf("%v after the start: %v, want %v", tt.after, got, tt.want)
		}
	}
}
