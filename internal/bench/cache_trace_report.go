package bench

import (
	"fmt"
	"io"
	"math"
	"text/tabwriter"
	"time"
)

// CacheTraceRow is what a trace with one lifetime of answers came to.
type CacheTraceRow struct {
	Trace    string        `json:"trace"`
	TTL      time.Duration `json:"ttl_ns"` // 0 is without end
	Asked    int           `json:"asked"`
	Distinct int           `json:"distinct"`
	Entries  int           `json:"entries"` // that the bounded caches have room for

	Ceiling        int `json:"ceiling_hits"`          // without bounds; an answer lives from its making
	CeilingIfAsked int `json:"ceiling_if_asked_hits"` // without bounds; an answer lives from its last ask
	LRU            int `json:"lru_hits"`              // for comparison
	Plain          int `json:"hits"`                  // of the level in memory
	Preloaded      int `json:"preloaded_hits"`        // of it with the preloader
	Planned        int `json:"planned"`               // refreshes that the preloader planned
	Refreshes      int `json:"refreshes"`             // and those that it spent
}

// CacheTraceResult is what a CacheTrace has found.
type CacheTraceResult struct {
	Scenario string          `json:"scenario"`
	Share    float64         `json:"share_of_entries"`
	Rows     []CacheTraceRow `json:"rows"`
	Verdicts Verdicts        `json:"verdicts"`
}

// ttlName is how a lifetime is shown.
func ttlName(ttl time.Duration) string {
	switch {
	case ttl == 0:
		return "none"
	case ttl%(24*time.Hour) == 0:
		return fmt.Sprintf("%dd", ttl/(24*time.Hour))
	}
	return fmt.Sprintf("%.0fh", ttl.Hours())
}

// known asks for the ceilings that are known of RAGTrace, in percent: an hour is
// counted from the last ask there, a day from the making of the answer.
func (r *CacheTraceResult) known(rows []CacheTraceRow) {
	for _, row := range rows {
		hits, want := row.Ceiling, map[time.Duration]float64{0: 9.03, time.Hour: 4.41, 24 * time.Hour: 7.14}[row.TTL]
		if row.TTL == time.Hour {
			hits = row.CeilingIfAsked
		}
		percent := math.Round(1e4*portion(hits, row.Asked)) / 100
		r.Verdicts = append(r.Verdicts, verdict("ceiling without bounds, TTL "+ttlName(row.TTL), percent, Exactly, want, "%"))
	}
}

// judge asks for the share of the ceiling. Of the two ways to count a lifetime the
// one with more hits is the ceiling, so that the requirement holds for both.
func (r *CacheTraceResult) judge(rows []CacheTraceRow) {
	for _, row := range rows {
		ceiling := max(row.Ceiling, row.CeilingIfAsked)
		name := fmt.Sprintf("%g of the entries, TTL %s: share of the ceiling", r.Share, ttlName(row.TTL))
		r.Verdicts = append(r.Verdicts,
			verdict(name+", no preload", portion(row.Plain, ceiling), AtLeast, wantOfCeiling, ""),
			verdict(name+", preload", portion(row.Preloaded, ceiling), AtLeast, wantOfCeiling, ""))
	}
}

// Missed is the number of requirements that were not met.
func (r *CacheTraceResult) Missed() int { return r.Verdicts.Missed() }

// Write prints the table and the verdicts. Ratios are of all questions; a share is of
// the ceiling: in brackets that of answers that live from their last ask.
func (r *CacheTraceResult) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "trace\tTTL\tentries\tceiling\t(if asked)\tLRU\tshare\tmemory\tshare\twith preload\tshare\tpreload adds\trefreshes\trefreshes/hit added\t")
	for _, row := range r.Rows {
		percent := func(n int) string { return fmt.Sprintf("%.2f%%", 100*portion(n, row.Asked)) }
		of := func(n int) string {
			return fmt.Sprintf("%.3f (%.3f)", portion(n, row.Ceiling), portion(n, row.CeilingIfAsked))
		}
		price := "-"
		if added := row.Preloaded - row.Plain; added > 0 {
			price = fmt.Sprintf("%.1f", float64(row.Refreshes)/float64(added))
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%+d hits\t%d\t%s\t\n", row.Trace, ttlName(row.TTL), row.Entries,
			percent(row.Ceiling), percent(row.CeilingIfAsked), percent(row.LRU), of(row.LRU), percent(row.Plain), of(row.Plain),
			percent(row.Preloaded), of(row.Preloaded), row.Preloaded-row.Plain, row.Refreshes, price)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return r.Verdicts.write(w)
}

// WriteJSON writes rows and verdicts as one indented JSON object.
func (r *CacheTraceResult) WriteJSON(w io.Writer) error { return writeJSON(w, r) }
