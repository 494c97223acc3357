package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxLateSteps is the share of late engine steps above which a run proves
// nothing: the machine, not the system under test, was the bottleneck.
const maxLateSteps = 0.02

// Bounds on one scrape.
const (
	scrapeTime  = 2 * time.Second
	scrapeBytes = 4 << 20
)

// steps are an engine's counters at one instant.
type steps struct {
	known       bool
	total, late float64
}

// scraper reads the step counters of simulated engines.
type scraper struct {
	urls   []string
	client *http.Client
}

func newScraper(urls []string, cfg *tls.Config) *scraper {
	return &scraper{urls: urls, client: &http.Client{Timeout: scrapeTime, Transport: &http.Transport{TLSClientConfig: cfg}}}
}

func (s *scraper) close() { s.client.CloseIdleConnections() }

// read reads all engines. One that cannot be read makes the run invalid: its
// steps cannot be vouched for.
func (s *scraper) read(ctx context.Context, rec *recorder) []steps {
	out := make([]steps, len(s.urls))
	for i, u := range s.urls {
		v, err := s.readOne(ctx, u)
		if err != nil {
			rec.invalidate(fmt.Sprintf("engine metrics %s: %v", u, err))
			continue
		}
		out[i] = v
	}
	return out
}

func (s *scraper) readOne(ctx context.Context, url string) (steps, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return steps{}, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return steps{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return steps{}, fmt.Errorf("status %d", resp.StatusCode)
	}
	return parseSteps(io.LimitReader(resp.Body, scrapeBytes))
}

// parseSteps sums the counters over their labels in the Prometheus text format.
func parseSteps(r io.Reader) (steps, error) {
	var v steps
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, ok := sample(lines.Text())
		if !ok {
			continue
		}
		switch name {
		case "engine_steps_total":
			v.total += value
			v.known = true
		case "engine_late_steps_total":
			v.late += value
		}
	}
	if err := lines.Err(); err != nil {
		return steps{}, err
	}
	if !v.known {
		return steps{}, fmt.Errorf("no engine_steps_total")
	}
	return v, nil
}

// sample splits a sample line into its name and value.
func sample(line string) (string, float64, bool) {
	end := strings.IndexAny(line, "{ ")
	if end <= 0 || line[0] == '#' {
		return "", 0, false
	}
	rest := line[end:]
	if i := strings.LastIndexByte(rest, '}'); i >= 0 {
		rest = rest[i+1:]
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return "", 0, false
	}
	f, err := strconv.ParseFloat(fields[0], 64)
	return line[:end], f, err == nil && !math.IsNaN(f)
}

// lateShare is the share of late steps between two readings, nil without
// steps. An engine whose counters fell was restarted: it counts from zero.
func lateShare(before, after []steps) *float64 {
	var total, late float64
	for i, a := range after {
		b := before[i]
		if !a.known {
			continue
		}
		if a.total < b.total {
			b = steps{}
		}
		total += a.total - b.total
		late += a.late - b.late
	}
	if total <= 0 {
		return nil
	}
	share := round(late/total*1000) / 1000
	return &share
}
