package engine_test

import (
	"testing"
	"time"

	"github.com/spillway/spillway/internal/engine"
)

func TestPaceOfSlowStart(t *testing.T) {
	slow := engine.SlowStart{Factor: 3, Period: time.Second}
	for since, want := range map[time.Duration]float64{-time.Hour: 3, -1: 3, 0: 3, time.Second / 2: 2, time.Second: 1, time.Hour: 1} {
		if got := slow.Pace(since); got != want {
			t.Errorf("%v after the start: got %v, want %v", since, got, want)
		}
	}
	if got := (engine.SlowStart{}).Pace(0); got != 1 {
		t.Errorf("without one: got %v, want 1", got)
	}
}
