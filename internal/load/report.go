package load

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"time"

	hdr "github.com/HdrHistogram/hdrhistogram-go"
)

// Report is the one schema of every measurement, documented in
// docs/report.md. Fields that do not apply are absent.
type Report struct {
	Scenario      string   `json:"scenario"`
	Seed          uint64   `json:"seed"`
	Valid         bool     `json:"valid"`
	InvalidReason string   `json:"invalid_reason,omitempty"`
	Systems       []System `json:"systems"`
}

// NewReport returns a valid report without systems.
func NewReport(scenario string, seed uint64) *Report {
	return &Report{Scenario: scenario, Seed: seed, Valid: true, Systems: []System{}}
}

// Add appends a system. A report is valid when all of its systems are.
func (r *Report) Add(s System) {
	r.Systems = append(r.Systems, s)
	if s.InvalidReason != "" {
		r.Invalidate(s.Name + ": " + s.InvalidReason)
	}
}

// Invalidate marks the report invalid; reasons are joined.
func (r *Report) Invalidate(reason string) {
	r.Valid = false
	if r.InvalidReason != "" {
		r.InvalidReason += "; "
	}
	r.InvalidReason += reason
}

// WriteJSON writes the report as indented JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	_, err = w.Write(append(out, '\n'))
	return err
}

// System is what one system under test made of the load.
type System struct {
	Name          string  `json:"name"`
	Load          float64 `json:"load,omitempty"`
	InvalidReason string  `json:"invalid_reason,omitempty"`
	// Seconds from the start of the run to the last answer.
	DurationS float64 `json:"duration_s,omitempty"`
	// Rows scheduled; every one is answered, truncated or an error.
	Offered int64 `json:"offered"`
	// Complete answers.
	Answered     int64    `json:"answered"`
	Availability *float64 `json:"availability,omitempty"`
	// Share of the offered requests that were answered within the SLO; of an
	// overload scenario the share of the work that could have been done.
	GoodputRatio *float64 `json:"goodput_ratio,omitempty"`
	// Of an overload scenario, in its measured window: the work that was asked for
	// divided by the optimum.
	OfferedLoad *float64 `json:"offered_load,omitempty"`
	// Requests of mean length
	// per second that the fleet could serve within the SLO, and those it did.
	Optimum  *float64 `json:"optimum,omitempty"`
	GoodPerS *float64 `json:"good_per_s,omitempty"`
	// The goodput's share of what load and fleet, as they changed, left room for.
	FeasibleRatio *float64 `json:"feasible_ratio,omitempty"`
	// Share of the work done for answers that missed the SLO.
	Wasted *float64 `json:"wasted,omitempty"`
	// Requests that no idle engine could have served within the SLO; not offered.
	Unservable int64       `json:"unservable,omitempty"`
	Rejections *Rejections `json:"rejections,omitempty"`
	// Share of the clients that came back with a ticket whose promise was kept.
	RetryAfterHonesty *float64 `json:"retry_after_honesty,omitempty"`
	Jain              *float64 `json:"jain,omitempty"`
	StarvationS       *float64 `json:"starvation_s,omitempty"`
	// Seconds from a trigger's end until the goodput was back; -1 is never.
	RecoveryS *float64 `json:"recovery_s,omitempty"`
	// Streams that ended cleanly without saying that they were complete.
	Truncated int64 `json:"truncated"`
	// Streams past their commit point on a killed instance at the kill.
	CutOpen *int64 `json:"cut_open,omitempty"`
	// Requests sent, retries included, and the retries among them.
	Attempts int64 `json:"attempts,omitempty"`
	Retries  int64 `json:"retries,omitempty"`
	// Final outcomes other than a complete answer, by code.
	Errors map[string]int64 `json:"errors,omitempty"`
	// Output tokens of complete answers, and per second of the run.
	OutputTokens int64    `json:"output_tokens,omitempty"`
	TokensPerS   *float64 `json:"tokens_per_s,omitempty"`
	TTFT         *Latency `json:"ttft_ms,omitempty"`
	ITL          *Latency `json:"itl_ms,omitempty"`
	TPOT         *Latency `json:"tpot_ms,omitempty"`
	E2E          *Latency `json:"e2e_ms,omitempty"`
	// How late requests were sent: the generator's own fault.
	ScheduleLag *Latency `json:"schedule_lag_ms,omitempty"`
	// Share of the engines' steps that began late.
	LateSteps *float64         `json:"late_steps,omitempty"`
	SLO       *Objectives      `json:"slo_ms,omitempty"`
	Classes   map[string]Group `json:"classes,omitempty"`
	Tenants   map[string]Group `json:"tenants,omitempty"`
	// How the load was made, where it differs from the recording.
	Notes []string `json:"notes,omitempty"`
}

// Objectives are the bounds that goodput was judged by, in milliseconds.
type Objectives struct {
	TTFT float64 `json:"ttft,omitempty"`
	TPOT float64 `json:"tpot,omitempty"`
}

// Group is a class's or tenant's part of a system.
type Group struct {
	Offered       int64            `json:"offered"`
	Answered      int64            `json:"answered"`
	Availability  *float64         `json:"availability,omitempty"`
	SLOAttainment *float64         `json:"slo_attainment,omitempty"`
	Errors        map[string]int64 `json:"errors,omitempty"`
	TTFT          *Latency         `json:"ttft_ms,omitempty"`
	E2E           *Latency         `json:"e2e_ms,omitempty"`
	// The class's own bounds.
	SLO *Objectives `json:"slo_ms,omitempty"`
}

// Rejections are the attempts that were answered with 503 or 429 before anything
// ran, and how long that took: at the client from the attempt's instant, and in
// the server where it says so.
type Rejections struct {
	Count       int64    `json:"count"`
	P99MS       *float64 `json:"p99_ms,omitempty"`
	ServerP99MS *float64 `json:"server_p99_ms,omitempty"`
}

// Latency summarises a distribution in milliseconds.
type Latency struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max,omitempty"`
	// Number of values.
	Count int64 `json:"count,omitempty"`
}

// Bounds of the histograms: microseconds up to an hour.
const (
	histogramMax    = int64(time.Hour / time.Microsecond)
	systemDigits    = 3 // significant digits of a system's values
	groupDigits     = 2 // of a class's or tenant's: there are many
	nanosPerMicro   = int64(time.Microsecond)
	microsPerMillis = 1000
)

// histogram records durations in microseconds; it is not safe for concurrent use.
type histogram struct{ *hdr.Histogram }

func newHistogram(digits int) histogram { return histogram{hdr.New(1, histogramMax, digits)} }

// record takes nanoseconds; values out of range count as the nearest bound.
func (h histogram) record(nanos int64) {
	// The value is inside the histogram's bounds, so it cannot be refused.
	_ = h.RecordValue(min(max(nanos/nanosPerMicro, 1), histogramMax))
}

// latency is nil for an empty histogram.
func (h histogram) latency() *Latency {
	if h.TotalCount() == 0 {
		return nil
	}
	q := func(p float64) float64 { return round(float64(h.ValueAtQuantile(p)) / microsPerMillis) }
	return &Latency{
		Mean: round(h.Mean() / microsPerMillis), P50: q(50), P90: q(90), P99: q(99), P999: q(99.9),
		Max: round(float64(h.Max()) / microsPerMillis), Count: h.TotalCount(),
	}
}

// round keeps three decimals: microseconds of a value in milliseconds.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }

// ratio is a share with six decimals, nil of nothing.
func ratio(part, whole int64) *float64 {
	if whole == 0 {
		return nil
	}
	v := math.Round(float64(part)/float64(whole)*1e6) / 1e6
	return &v
}

// millis converts a duration to milliseconds.
func millis(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }
