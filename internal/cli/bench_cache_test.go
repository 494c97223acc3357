package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBenchCache(t *testing.T) {
	report := filepath.Join(t.TempDir(), "cache.json")
	trace := filepath.Join("..", "bench", "testdata", "ragpulse-days0-3-excerpt.jsonl.gz")
	code, out, stderr := runBench(t, "bench", "cache", "--trace="+trace, "--share", "1", "--drawn", "0", "--json", report)
	if code != 0 || !strings.Contains(out, "with preload") || !strings.Contains(out, "share of the ceiling") {
		t.Fatalf("exit status %d\n%s%s", code, out, stderr)
	}
	if data, err := os.ReadFile(report); err != nil || !strings.Contains(string(data), `"verdicts"`) {
		t.Errorf("the report: %v\n%s", err, data)
	}
	// So little room misses the requirement.
	if code, out, stderr := runBench(t, "bench", "cache", "--trace="+trace, "--share", "0.03", "--drawn", "0"); code != 1 || !strings.Contains(out, "MISSED") || !strings.Contains(stderr, "requirements missed") {
		t.Errorf("exit status %d, want 1\n%s%s", code, out, stderr)
	}
	if code, _, stderr := runBench(t, "bench", "cache", "--share", "3"); code != 2 || !strings.Contains(stderr, "--share") {
		t.Errorf("exit status %d, want 2: %s", code, stderr)
	}
	t.Setenv("SPILLWAY_DATA", t.TempDir())
	if code, _, stderr := runBench(t, "bench", "cache", "--trace"); code != 1 || !strings.Contains(stderr, "SPILLWAY_DATA") {
		t.Errorf("exit status %d, want 1: %s", code, stderr)
	}
}
