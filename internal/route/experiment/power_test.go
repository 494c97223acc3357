package experiment_test

import (
	"slices"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route/experiment"
)

// falseAlarms runs seeds of experiments whose arms are alike, looks after every tenth
// request at every verdict, and counts those seeds in which any verdict ever named a
// difference, and those in which the guard ended the experiment.
func falseAlarms(t *testing.T, cfg experiment.Config, seeds, requests int, prepare func(*world)) (verdicts, rollbacks, either int) {
	t.Helper()
	var seen []string
	for seed := range seeds {
		w := newWorld(created(t, cfg), uint64(seed))
		prepare(w)
		verdict := false
		for i := range requests {
			if w.step(100); i%10 == 9 && !verdict {
				seen = w.set.Verdicts(cfg.Name, seen[:0])
				verdict = slices.ContainsFunc(seen, func(v string) bool { return v != experiment.Undecided && v != experiment.TooFew })
			}
		}
		rolled := w.state() == experiment.RolledBack
		if verdict {
			verdicts++
		}
		if rolled {
			rollbacks++
		}
		if verdict || rolled {
			either++
		}
	}
	return verdicts, rollbacks, either
}

// TestAlikeArmsRaiseNoAlarm is the A/A experiment of the issue: at most 70 of 1,000
// seeds raise an alarm, over all metrics, arms and guards, however often one looks.
func TestAlikeArmsRaiseNoAlarm(t *testing.T) {
	three := canary(50, 50)
	three.Arms = append(three.Arms, experiment.Arm{Name: "other", Weight: 50})
	keyed := canary(50, 50)
	keyed.By = "tenant"
	for name, c := range map[string]struct {
		cfg             experiment.Config
		seeds, requests int
		prepare         func(*world)
	}{
		"two arms":   {canary(50, 50), 1000, 6000, func(*world) {}},
		"a canary":   {canary(90, 10), 300, 6000, func(*world) {}},
		"three arms": {three, 150, 6000, func(*world) {}},
		"by tenant":  {keyed, 300, 3000, func(w *world) { w.tenants = tenants(200) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seeds := int(float64(c.seeds) * thorough)
			verdicts, rollbacks, either := falseAlarms(t, c.cfg, seeds, c.requests, c.prepare)
			t.Logf("%d seeds: %d with a verdict, %d rolled back, %d with either", seeds, verdicts, rollbacks, either)
			if most := max(5, seeds*70/1000); either > most {
				t.Errorf("%d of %d seeds raise an alarm, want at most %d", either, seeds, most)
			}
		})
	}
}

// tenants have prompts of their own length, and some send more than others.
func tenants(n int) func(*world) (string, float64) {
	return func(w *world) (string, float64) {
		i := int(float64(n) * w.rng.Float64() * w.rng.Float64())
		// how slow a tenant is belongs to the seed and stays
		own := newStream(w.start.UnixNano()^int64(i)*7919, i)
		return "tenant-" + string(rune('a'+i%26)) + string(rune('a'+i/26)), 0.5 * own
	}
}

// detection returns how long each seed takes until the guard ends the experiment; 0 is
// never within the limit.
func detection(t *testing.T, cfg experiment.Config, rate float64, base, bad effect, limit time.Duration) []time.Duration {
	t.Helper()
	seeds := int(400 * thorough)
	all := make([]time.Duration, seeds)
	for seed := range seeds {
		w := newWorld(created(t, cfg), uint64(seed))
		w.base, w.effects["canary"] = base, bad
		for all[seed] = limit; w.now.Sub(w.start) < limit; {
			if w.step(rate) == (inference.Arm{}) { // all traffic is back where it was
				all[seed] = w.now.Sub(w.start)
				break
			}
		}
	}
	slices.Sort(all)
	return all
}

// TestBadArmIsRolledBackWithinAMinute is the canary of the issue. The share of the
// seeds that must make it is what the best test could reach at this error, less a
// little: 5% more errors in 300 requests are not always to be seen.
func TestBadArmIsRolledBackWithinAMinute(t *testing.T) {
	slow := effect{0.01, 1.5}
	for name, c := range map[string]struct {
		cfg  experiment.Config
		rate float64 // of all arms together
		base effect
		bad  effect
		want float64 // share of the seeds within a minute
	}{
		"errors: arm 10/s of 20/s, over 1%":  {canary(50, 50), 20, effect{0.01, 1}, effect{0.06, 1}, 0.97},
		"errors: arm 10/s of 100/s, over 1%": {canary(90, 10), 100, effect{0.01, 1}, effect{0.06, 1}, 0.98},
		"errors: arm 10/s of 20/s, over 0":   {canary(50, 50), 20, effect{0, 1}, effect{0.05, 1}, 0.99},
		"errors: arm 5/s of 10/s, over 0":    {canary(50, 50), 10, effect{0, 1}, effect{0.05, 1}, 0.97},
		"errors: arm 5/s of 10/s, over 0.1%": {canary(50, 50), 10, effect{0.001, 1}, effect{0.051, 1}, 0.96},
		"errors: arm 5/s of 10/s, over 1%":   {canary(50, 50), 10, effect{0.01, 1}, effect{0.06, 1}, 0.7},
		"errors: arm 1/s of 10/s, over 0":    {canary(90, 10), 10, effect{0, 1}, effect{0.05, 1}, 0.65},
		"TTFT +50%: arm 5/s of 10/s":         {canary(50, 50), 10, effect{0.01, 1}, slow, 0.98},
		"TTFT +50%: arm 1/s of 10/s":         {canary(90, 10), 10, effect{0.01, 1}, slow, 0.85},
		"TTFT +50%: arm 10/s of 100/s":       {canary(90, 10), 100, effect{0.01, 1}, slow, 0.99},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := detection(t, c.cfg, c.rate, c.base, c.bad, 5*time.Minute)
			within, _ := slices.BinarySearch(all, time.Minute)
			got := float64(within) / float64(len(all))
			t.Logf("median %v, p95 %v, within a minute %.1f%% of %d seeds", all[len(all)/2].Round(time.Second), all[len(all)*95/100].Round(time.Second), 100*got, len(all))
			if got < c.want-0.25*(1-thorough) {
				t.Errorf("%.1f%% are rolled back within a minute, want %.1f%%", 100*got, 100*c.want)
			}
		})
	}
}
