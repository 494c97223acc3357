package limit_test

import (
	"testing"
	"time"

	"github.com/spillway/spillway/internal/limit"
)

// TestAnEmergencyLeavesNoDebt: who was at the slow limit of an emergency is at the
// normal one as soon as it is over.
func TestAnEmergencyLeavesNoDebt(t *testing.T) {
	on := false
	l := limiter(t, func(c *limit.Config) {
		c.Address.Rate, c.Address.Burst = limit.Rate{N: 1000, Per: time.Hour}, 100
		c.Address.EmergencyRate, c.Address.EmergencyBurst = limit.Rate{N: 2, Per: time.Hour}, 2
	}, limit.Parts{Emergency: func() bool { return on }})
	admitted := func(n int) (count int) {
		for range n {
			if l.Admit(noon, flood(1)) == nil {
				count++
			}
		}
		return count
	}
	if got := admitted(10); got != 10 {
		t.Fatalf("before: %d of 10 are admitted", got)
	}
	on = true
	if got := admitted(10); got != 2 {
		t.Errorf("meanwhile: %d of 10 are admitted, want 2", got)
	}
	on = false
	if got := admitted(200); got != 90 {
		t.Errorf("afterwards: %d of 200 are admitted, want the 90 that are left", got)
	}
}
