package file_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/file"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	cases := map[string]struct {
		in       string
		json     bool
		want     []fleet.Target
		warnings int
		mistakes []string // beginnings, in order
	}{
		"json": {
			in:   "[\n\t{\"targets\":[\"10.0.0.1:8000\",\"http://b:8000\"],\"labels\":{\"weight\":\"2\",\"backup\":\"true\",\"max_in_flight\":\"64\"}}, {\"targets\":[\"c\"],\"labels\":{\"weight\":3,\"backup\":false}}]\n",
			json: true,
			want: []fleet.Target{
				{URL: "http://10.0.0.1:8000", Weight: 2, Backup: true, MaxInFlight: 64},
				{URL: "http://b:8000", Weight: 2, Backup: true, MaxInFlight: 64}, {URL: "http://c", Weight: 3},
			},
		},
		"yaml": {
			in:   "- targets: [a:1, 'https://b/v1']\n  labels: {scheme: https}\n- targets: ['[::1]:8000']\n",
			want: []fleet.Target{{URL: "https://a:1"}, {URL: "https://b/v1"}, {URL: "http://[::1]:8000"}},
		},
		"unknown labels are left out": {in: "- targets: [a:1]\n  labels: {job: x, env: y}\n- targets: []\n  labels: {job: z}\n", want: []fleet.Target{{URL: "http://a:1"}}, warnings: 2},
		"twice":                       {in: "- targets: [a:1, a:1]\n", want: []fleet.Target{{URL: "http://a:1"}}, warnings: 1},
		"an empty list is a list":     {in: "[]"},
		"empty":                       {in: " \n", mistakes: []string{"the file is empty"}},
		"only a comment":              {in: "# x\n", mistakes: []string{"want a list"}},
		"null":                        {in: "null", json: true, mistakes: []string{"want a list"}},
		"not a list":                  {in: "targets: [a]\n", mistakes: []string{"want a list"}},
		"cut short":                   {in: `[{"targets":["a:1"`, json: true, mistakes: []string{"want a list"}},
		"more behind":                 {in: `[] []`, json: true, mistakes: []string{"want a list of targets and labels: something follows"}},
		"more documents":              {in: "[]\n---\n[]\n", mistakes: []string{"want a list of targets and labels: something follows"}},
		"unknown key":                 {in: `[{"target":["a:1"]}]`, json: true, mistakes: []string{"want a list"}},
		"label that is a list":        {in: "- targets: [a:1]\n  labels: {weight: [1]}\n", mistakes: []string{"want a list"}},
		"json label that is null":     {in: `[{"labels":{"weight":null}}]`, json: true, mistakes: []string{"want a list"}},
		"all mistakes": {
			in: "- targets: [a:1, 'ftp://x', 'https://y', 'http://u:p@h']\n  labels: {weight: '0', backup: maybe, max_in_flight: -1, scheme: http}\n- targets: [a]\n  labels: {scheme: gopher}\n",
			mistakes: []string{
				"[0].labels.backup: ", "[0].labels.max_in_flight: ", "[0].labels.weight: ", "[0].targets[1]: ", "[0].targets[2]: ",
				"[0].targets[3]: ", "[1].labels.scheme: ", "[1].targets[0]: ",
			},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, warnings, err := file.Parse([]byte(c.in), c.json)
			if len(c.mistakes) > 0 {
				if err == nil {
					t.Fatalf("got %v, want mistakes", got)
				}
				lines := strings.Split(err.Error(), "\n")
				if !strings.HasPrefix(c.mistakes[0], "[") {
					lines = lines[:1]
				}
				if len(lines) != len(c.mistakes) {
					t.Fatalf("got %q, want %q", lines, c.mistakes)
				}
				for i, want := range c.mistakes {
					if !strings.HasPrefix(lines[i], want) {
						t.Errorf("got %q, want %q", lines[i], want)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("targets (-want +got):\n%s", diff)
			}
			if len(warnings) != c.warnings {
				t.Errorf("warnings: got %q, want %d", warnings, c.warnings)
			}
		})
	}
}

func TestTooManyTargets(t *testing.T) {
	var b strings.Builder
	b.WriteString("- targets:\n")
	for i := range 10_001 {
		fmt.Fprintf(&b, "  - h%d:1\n", i)
	}
	if _, _, err := file.Parse([]byte(b.String()), false); err == nil || !strings.HasPrefix(err.Error(), "10001 targets") {
		t.Errorf("got %v", err)
	}
}

// run starts a source and returns what it reports.
func run(t *testing.T, cfg file.Config) (<-chan []fleet.Target, *testkit.Log) {
	t.Helper()
	l := new(testkit.Log)
	src := file.New(cfg, slog.New(slog.NewTextHandler(l, nil)))
	got := make(chan []fleet.Target, 16)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- src.Run(ctx, func(t []fleet.Target) { got <- t }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return got, l
}

func expect(t *testing.T, got <-chan []fleet.Target, urls ...string) {
	t.Helper()
	select {
	case targets := <-got:
		var have []string
		for _, target := range targets {
			have = append(have, target.URL)
		}
		if diff := cmp.Diff(urls, have); diff != "" {
			t.Fatalf("targets (-want +got):\n%s", diff)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("nothing reported; want %v", urls)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watchOnly makes a change that the watch does not see go unseen.
func watchOnly(path string) file.Config { return file.Config{Path: path, Poll: time.Hour} }

func TestRunFollowsWritesAndKeepsTheLastGoodSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpu.yaml")
	got, l := run(t, watchOnly(path))
	eventually(t, "the missing file is not logged", func() bool { return l.Count("cannot be used") == 1 })
	write(t, path, "- targets: [a:1]\n  labels: {job: x}\n")
	expect(t, got, "http://a:1")
	if l.Count("good again") != 1 || l.Count("is not used") != 1 {
		t.Errorf("log: %s", l.String())
	}
	write(t, path, "- targets: [a:1, 'ftp://x', 'gopher://y']\n")
	eventually(t, "not every mistake is logged", func() bool { return l.Count("cannot be used") == 3 })
	if err := os.Rename(path, path+".bak"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed file is not logged", func() bool { return l.Count("cannot be used") == 4 })
	write(t, path+".new", "- targets: [a:1, b:2]\n")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	expect(t, got, "http://a:1", "http://b:2")
	write(t, path, "[]")
	expect(t, got)
	if len(got) != 0 {
		t.Errorf("more was reported: %v", <-got)
	}
}

func TestRunLogsAMistakeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpu.yaml")
	write(t, path, "nonsense")
	_, l := run(t, file.Config{Path: path, Poll: 10 * time.Millisecond})
	eventually(t, "not logged", func() bool { return l.Count("cannot be used") == 1 })
	time.Sleep(200 * time.Millisecond) // about twenty polls
	if n := l.Count("cannot be used"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func TestRunFollowsSymbolicLinks(t *testing.T) { // as Kubernetes mounts a ConfigMap
	dir := t.TempDir()
	version := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "gpu.json"), text)
	}
	link := func(to, name string) {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", `[{"targets":["a:1"]}]`)
	link("..1", "..data")
	link(filepath.Join("..data", "gpu.json"), "gpu.json")
	got, _ := run(t, watchOnly(filepath.Join(dir, "gpu.json")))
	expect(t, got, "http://a:1")
	version("..2", `[{"targets":["b:1"]}]`)
	link("..2", "..tmp")
	if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	expect(t, got, "http://b:1")
}

func TestRunPollsWithoutADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	path := filepath.Join(dir, "gpu.yaml")
	got, _ := run(t, file.Config{Path: path, Poll: 20 * time.Millisecond})
	for range 2 { // made, removed, and made again
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, path+".tmp", fmt.Sprintf("- targets: ['h:%d']\n", time.Now().UnixNano()%60000+1))
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got:
		case <-time.After(10 * time.Second):
			t.Fatal("not noticed")
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestValidate(t *testing.T) {
	good := file.Default()
	good.Path = "x"
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	bad := file.Config{}
	if err := bad.Validate(); err == nil || err.Error() != "path: must name a file\npoll: must be >= 10ms, got 0s" {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`[{"targets":["10.0.0.1:8000"],"labels":{"weight":"2"}}]`), true)
	f.Add([]byte("- targets: [a:1]\n  labels: {scheme: https, backup: true, max_in_flight: 3}\n"), false)
	f.Add([]byte("- &a\n  targets: [x]\n- *a\n"), false)
	f.Fuzz(func(t *testing.T, data []byte, isJSON bool) {
		targets, _, err := file.Parse(data, isJSON)
		if err != nil && targets != nil {
			t.Errorf("targets %v with an error", targets)
		}
		for _, target := range targets {
			if _, err := fleet.ParseURL(target.URL); err != nil || target.Weight < 0 || target.MaxInFlight < 0 {
				t.Errorf("unusable target %+v: %v", target, err)
			}
		}
	})
}
