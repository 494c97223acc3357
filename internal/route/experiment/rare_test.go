package experiment_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route/experiment"
)

// stream sends requests in virtual time to the arms of the first experiment, and has
// each answered by answer and scored by score, where there is one.
type stream struct {
	set    *experiment.Set
	rng    *rand.Rand
	now    time.Time
	from   func(rng *rand.Rand) string // the tenant; nil is one for all
	answer func(rng *rand.Rand, rec *inference.Record)
	score  func(rng *rand.Rand, arm string) float64
}

// newRare returns one that belongs to a seed.
func newRare(t *testing.T, cfg experiment.Config, seed int) *stream {
	return &stream{set: created(t, cfg), rng: rand.New(rand.NewPCG(uint64(seed), 3)), now: began()}
}

// send sends requests until one is in no arm, and calls look after each.
func (s *stream) send(t *testing.T, requests int, look func(i int)) {
	t.Helper()
	for i := range requests {
		s.now = s.now.Add(10 * time.Millisecond)
		req := inference.Request{ID: strconv.FormatUint(s.rng.Uint64(), 36), Tenant: "acme", Received: s.now}
		if s.from != nil {
			req.Tenant = s.from(s.rng)
		}
		rec := inference.Record{Request: &req, Arm: s.set.Steer(s.now, &req).Arm, Attempts: make([]inference.Attempt, 1), Complete: true}
		if rec.Arm.Arm == "" {
			return
		}
		if s.answer != nil {
			s.answer(s.rng, &rec)
		}
		give(s.set, &rec)
		if s.score != nil {
			if err := s.set.Feedback(req.Tenant, req.ID, s.score(s.rng, rec.Arm.Arm)); err != nil {
				t.Fatal(err)
			}
		}
		look(i)
	}
}

// verdict says whether any verdict names a difference now.
func (s *stream) verdict() bool {
	return slices.ContainsFunc(s.set.Verdicts("canary", nil), func(v string) bool { return v != experiment.Undecided && v != experiment.TooFew })
}

// thumbs are up with a probability.
func thumbs(rng *rand.Rand, up float64) float64 {
	if rng.Float64() < up {
		return 1
	}
	return -1
}

// TestRareValuesRaiseNoAlarm between arms that are alike but for their weights: an arm
// of few samples has often not met yet what is rare.
func TestRareValuesRaiseNoAlarm(t *testing.T) {
	cached := func(rng *rand.Rand, rec *inference.Record) { // a tenth of the prompts is known
		ttft := 400 * math.Exp(0.15*rng.NormFloat64())
		if rng.Float64() < 0.1 {
			ttft /= 20
		}
		rec.TTFT = time.Duration(ttft * float64(time.Millisecond))
	}
	refused := func(rng *rand.Rand, rec *inference.Record) { // one in a hundred is short
		rec.Usage.CompletionTokens = 256
		if rng.Float64() < 0.01 {
			rec.Usage.CompletionTokens = 20
		}
	}
	near := func(rng *rand.Rand, rec *inference.Record) { // a tenth of the tenants has short prompts
		ttft := 400 * math.Exp(0.15*rng.NormFloat64())
		if strings.HasSuffix(rec.Request.Tenant, "0") {
			ttft /= 20
		}
		rec.TTFT = time.Duration(ttft * float64(time.Millisecond))
	}
	for name, c := range map[string]struct {
		by           string
		control, arm int
		requests     int
		answer       func(*rand.Rand, *inference.Record)
		score        func(*rand.Rand, string) float64
	}{
		"ttft 90/10":            {"request", 90, 10, 1000, cached, nil},
		"ttft 50/50":            {"request", 50, 50, 200, cached, nil},
		"ttft 90/10, by tenant": {"tenant", 90, 10, 2000, near, nil},
		"tokens 95/5":           {"request", 95, 5, 8000, refused, nil},
		"scores 90/10":          {"request", 90, 10, 2000, nil, func(rng *rand.Rand, _ string) float64 { return thumbs(rng, 0.99) }},
	} {
		t.Run(name, func(t *testing.T) {
			share := thorough // a variable, so that both builds compile
			runs, alarms := int(200*max(share, 0.1)), 0
			for run := range runs {
				cfg := canary(c.control, c.arm)
				cfg.By, cfg.Metrics = c.by, []string{"ttft", "tokens", "score"}
				s, alarm := newRare(t, cfg, run), false
				s.answer, s.score = c.answer, c.score
				s.from = func(rng *rand.Rand) string { return fmt.Sprint("tenant-", run, "-", rng.IntN(200)) }
				s.send(t, c.requests, func(i int) { alarm = alarm || i%20 == 0 && s.verdict() })
				if alarm || s.set.Status(s.now)[0].State.State != experiment.Running {
					alarms++
				}
			}
			if most := max(2, runs*5/100); alarms > most {
				t.Errorf("%d of %d runs raise an alarm, want at most %d", alarms, runs, most)
			}
		})
	}
}

// TestEqualAnswersAreNoDifference, not in the last bit either.
func TestEqualAnswersAreNoDifference(t *testing.T) {
	for _, n := range []int64{16, 64, 100, 200, 500, 1000} {
		for _, by := range []string{"request", "tenant"} {
			cfg := canary(90, 10)
			cfg.By, cfg.Metrics = by, []string{"tokens", "score"}
			s := newRare(t, cfg, int(n))
			s.answer = func(rng *rand.Rand, rec *inference.Record) { rec.Usage.CompletionTokens = n }
			s.score = func(*rand.Rand, string) float64 { return 0.7 }
			s.send(t, 3000, func(i int) {
				if i%50 == 0 && s.verdict() {
					t.Fatalf("%d tokens, by %s: a verdict after %d requests: %+v", n, by, i, s.set.Status(s.now)[0].Arms[1].Metrics)
				}
			})
		}
	}
}

// TestScoresCoverTheTruth at every look at once, an arm's own and their difference.
func TestScoresCoverTheTruth(t *testing.T) {
	for name, up := range map[string][2]float64{
		"99%":            {0.99, 0.99},
		"97% and 95%":    {0.97, 0.95},
		"half":           {0.5, 0.5},
		"100% and 99.5%": {1, 0.995},
	} {
		t.Run(name, func(t *testing.T) {
			share := thorough // a variable, so that both builds compile
			runs, missed, apart := int(100*max(share, 0.1)), 0, 0
			for run := range runs {
				cfg := canary(50, 50)
				cfg.Metrics = []string{"score"}
				s := newRare(t, cfg, run)
				s.score = func(rng *rand.Rand, arm string) float64 {
					if arm == "canary" {
						return thumbs(rng, up[1])
					}
					return thumbs(rng, up[0])
				}
				out, wrong := false, false
				s.send(t, 1500, func(i int) {
					if i%20 != 0 {
						return
					}
					m := s.set.Status(s.now)[0].Arms[1].Metrics[4]
					out = out || outside(m.Interval, 2*up[1]-1)
					wrong = wrong || m.Versus != nil && outside(m.Versus.Interval, 2*(up[1]-up[0]))
				})
				if out {
					missed++
				}
				if wrong {
					apart++
				}
			}
			if most := max(2, runs*7/100); missed > most || apart > most {
				t.Errorf("of %d runs %d leave the interval and %d that of the difference, want at most %d", runs, missed, apart, most)
			}
		})
	}
}

// outside says whether an interval that is there leaves the truth out, or holds
// nothing but one value.
func outside(i *experiment.Interval, truth float64) bool {
	return i != nil && (truth < i.Low || truth > i.High || i.Low == i.High)
}
