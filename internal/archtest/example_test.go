package archtest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/inference"
)

// environment finds the variables that a configuration reads secrets from.
var environment = regexp.MustCompile(`(?:api_key_env|token_env|secret_env): *([A-Z_]+)`)

// accept parses a whole configuration and reports every mistake.
func accept(t *testing.T, name, text string) error {
	t.Helper()
	for _, m := range environment.FindAllStringSubmatch(text, -1) {
		t.Setenv(m[1], "a-secret-of-good-length")
	}
	_, err := config.Parse(name, []byte(text))
	return err
}

func TestExamplesAreGood(t *testing.T) {
	t.Chdir(filepath.Join(root(t), "examples"))
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("got examples %v, %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := accept(t, name, string(text)); err != nil {
			t.Error(err)
		}
		if err := accept(t, name, string(text)+"\nnonsense: 1\n"); err == nil {
			t.Errorf("%s: a mistake in it would not be seen", name)
		}
	}
}

// fenced finds the YAML in a page.
var fenced = regexp.MustCompile("(?s)```yaml\n(.*?)```")

// pages are all pages of documentation, by path from the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "bench/*/*.md", "e2e/*.md"} {
		files, err := filepath.Glob(filepath.Join(root(t), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(root(t), f)
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.ToSlash(name)] = string(text)
		}
	}
	return all
}

func TestConfigurationsInPagesAreGood(t *testing.T) {
	checked := 0
	for name, text := range pages(t) {
		for _, m := range fenced.FindAllStringSubmatch(text, -1) {
			if checked++; accept(t, name, m[1]) != nil {
				t.Errorf("%s: %v", name, accept(t, name, m[1]))
			}
			if name == "README.md" && strings.Count(m[1], "\n") > 25 {
				t.Errorf("README.md: an example of %d lines is not short", strings.Count(m[1], "\n"))
			}
		}
	}
	if checked == 0 {
		t.Error("no configuration was found in any page")
	}
}

// link finds the targets of links.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// brokenLinks lists the links of a page whose file is not there.
func brokenLinks(dir, page, text string) (broken []string) {
	for _, m := range link.FindAllStringSubmatch(text, -1) {
		target, _, _ := strings.Cut(m[1], "#")
		if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, filepath.Dir(page), target)); err != nil {
			broken = append(broken, m[1])
		}
	}
	return broken
}

func TestLinksLeadSomewhere(t *testing.T) {
	all := pages(t)
	for _, want := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/operating.md"} {
		if all[want] == "" {
			t.Errorf("%s is missing", want)
		}
	}
	for name, text := range all {
		for _, target := range brokenLinks(root(t), name, text) {
			t.Errorf("%s: %s leads nowhere", name, target)
		}
	}
	if got := brokenLinks(root(t), "docs/x.md", "[a](../go.mod) [b](none.md) [c](https://example.com)"); !slices.Equal(got, []string{"none.md"}) {
		t.Errorf("got broken links %v, want none.md", got)
	}
}

// record is the name of an architecture decision record.
var record = regexp.MustCompile(`^docs/adr/(\d{4})-[a-z0-9-]+\.md$`)

// recordParts are the headings of one.
var recordParts = []string{"## Context", "## Decision", "## Rejected", "## Consequences", "## How we would know it is wrong"}

// recordMistakes lists what is wrong with a record.
func recordMistakes(name, text string) (wrong []string) {
	if !record.MatchString(name) {
		wrong = append(wrong, "is not named NNNN-title.md")
	}
	if n := strings.Count(text, "\n"); n > 80 {
		wrong = append(wrong, "has more than 80 lines")
	}
	for _, part := range recordParts {
		if !strings.Contains(text, part+"\n") {
			wrong = append(wrong, "has no "+part)
		}
	}
	return wrong
}

func TestDecisionRecords(t *testing.T) {
	found := 0
	for name, text := range pages(t) {
		if !strings.HasPrefix(name, "docs/adr/") {
			continue
		}
		found++
		for _, wrong := range recordMistakes(name, text) {
			t.Errorf("%s %s", name, wrong)
		}
	}
	if found < 7 {
		t.Errorf("got %d records, want all of them", found)
	}
	if got := len(recordMistakes("docs/adr/one.md", strings.Repeat("\n", 81))); got != 2+len(recordParts) {
		t.Errorf("got %d mistakes in a bad record, want %d", got, 2+len(recordParts))
	}
}

func TestErrorCodesAreExplained(t *testing.T) {
	text := pages(t)["docs/operating.md"]
	for _, code := range inference.Codes() {
		if !strings.Contains(text, "| `"+string(code)+"` |") {
			t.Errorf("docs/operating.md does not explain %s", code)
		}
	}
}
