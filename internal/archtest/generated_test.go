package archtest_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// update says that generated pages are written instead of compared: make docs.
var update = flag.Bool("update", false, "write the generated pages of docs/ again")

// madeBy is the first line of each generated page.
const madeBy = "<!-- Made by `make docs` from the code. Change the comments there. -->\n\n"

func TestGeneratedPagesAreFresh(t *testing.T) {
	dir := filepath.Join(root(t), "docs")
	pages := configPages(t)
	pages["metrics.md"] = metricPage(t)
	pages["cli.md"] = cliPage(t)
	for name, text := range pages {
		if problem := compare(filepath.Join(dir, name), madeBy+text); problem != "" {
			t.Errorf("docs/%s is stale; run make docs: %s", name, problem)
		}
	}
	old, err := filepath.Glob(filepath.Join(dir, "config", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range old {
		if _, ok := pages["config/"+filepath.Base(p)]; ok {
			continue
		}
		if *update {
			if err := os.Remove(p); err != nil {
				t.Error(err)
			}
			continue
		}
		t.Errorf("docs/config/%s belongs to no section; run make docs", filepath.Base(p))
	}
}

// compare says how a file differs from what it should be, or writes it.
func compare(path, want string) string {
	got, err := os.ReadFile(path)
	if err == nil && bytes.Equal(got, []byte(want)) {
		return ""
	}
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err.Error()
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			return err.Error()
		}
		return ""
	}
	if err != nil {
		return err.Error()
	}
	return "\n" + cmp.Diff(strings.Split(string(got), "\n"), strings.Split(want, "\n"))
}

func TestAStalePageIsSeen(t *testing.T) {
	if *update {
		return // this very run writes instead of comparing
	}
	path := filepath.Join(t.TempDir(), "page.md")
	if compare(path, "a\n") == "" {
		t.Error("a page that is missing was taken for a fresh one")
	}
	if err := os.WriteFile(path, []byte("a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if problem := compare(path, "a\n"); problem != "" {
		t.Errorf("a fresh page: %s", problem)
	}
	if compare(path, "b\n") == "" {
		t.Error("a stale page was taken for a fresh one")
	}
}

// cell makes text fit into a table.
func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "\\|")
}
