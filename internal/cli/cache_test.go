package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cli"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
)

// kept is a cache that an operator works on.
type kept struct {
	mu      sync.Mutex
	entry   *cache.Entry // in memory; nil is none
	filter  cache.Filter
	fault   error
	items   []admin.WarmItem
	stopped chan error // what became of a list whose sender left
}

func (k *kept) State(context.Context) cache.State {
	return cache.State{Enabled: k.entry != nil, Waiting: 3, Dropped: 1, Levels: []cache.LevelState{
		{Name: "memory", Census: &cache.Census{Entries: 12, Bytes: 3456}, Hits: 78, Misses: 9},
		{Name: "redis", Resting: true}, {Name: "sql", Error: "the disk is full"}, {Name: "full", Refuses: true, Lost: 91},
	}}
}

func (k *kept) Purge(_ context.Context, f cache.Filter) (map[string]int, error) {
	k.filter = f
	return map[string]int{"memory": 2, "sql": 1}, k.fault
}

func (k *kept) Inspect(_ context.Context, key cache.Key) ([]cache.Found, error) {
	if k.entry == nil || k.entry.Key != key {
		return nil, k.fault
	}
	return []cache.Found{{Level: "memory", Entry: k.entry}}, k.fault
}

func (k *kept) Warm(ctx context.Context, items iter.Seq[admin.WarmItem], report func(admin.WarmResult)) error {
	for item := range items {
		k.mu.Lock()
		k.items = append(k.items, item)
		k.mu.Unlock()
		res := admin.WarmResult{Line: item.Line, Outcome: "done", Key: "k"}
		if item.Broken != nil {
			res = admin.WarmResult{Line: item.Line, Outcome: "refused", Error: item.Broken.Error()}
		}
		report(res)
	}
	if k.stopped != nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
		k.stopped <- ctx.Err()
	}
	return ctx.Err()
}

// caching starts an admin listener with a cache.
func caching(t *testing.T) (url string, k *kept) {
	t.Helper()
	k = new(kept)
	log := slog.New(slog.DiscardHandler)
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: gateway{}, Cache: k, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return served(t, s), k
}

// known is an entry.
func known(body string) *cache.Entry {
	now := time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)
	return cache.NewEntry(cache.Entry{
		Key: cache.Key{0xab}, Scope: "tenant:acme", Model: "llama", Surface: inference.Chat, Question: "why?", Hits: 7,
		Stored: now, Expires: now.Add(time.Hour), Stale: now.Add(2 * time.Hour), Answer: &inference.Transcript{Body: []byte(body), Usage: inference.Usage{PromptTokens: 3}},
	})
}

// list writes a list of requests.
func list(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list.jsonl")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCacheCommands(t *testing.T) {
	key := known("").Key.String()
	good := `{"model":"m","messages":[]}` + "\n"
	for name, c := range map[string]struct {
		args  []string
		code  int
		out   []string // parts of what is printed
		errs  string
		fault error
		empty bool // the cache has nothing
	}{
		"stats":                {args: []string{"stats"}, out: []string{"memory", "12", "3456", "78", "resting after faults", "the disk is full", "91  takes no new entries", "3 entries wait"}},
		"stats --json":         {args: []string{"stats", "--json"}, out: []string{`"name": "redis"`, `"fills_dropped": 1`}},
		"stats with a word":    {args: []string{"stats", "all"}, code: 2},
		"stats of a server":    {args: []string{"stats", "--admin", "ftp://x"}, code: 2, errs: "--admin"},
		"no such command":      {args: []string{"clear"}, code: 2, errs: "purge"},
		"inspect":              {args: []string{"inspect", key}, out: []string{"memory", "tenant:acme", "llama", "why?", "2026-11-20T11:00:00Z", "7 when"}},
		"inspect --body":       {args: []string{"inspect", key, "--body"}, out: []string{"the answer\n"}},
		"inspect --json":       {args: []string{"inspect", key, "--json"}, out: []string{`"scope": "tenant:acme"`, `"prompt_tokens": 3`}},
		"inspect, a fault":     {args: []string{"inspect", key}, fault: errors.New("redis is gone"), out: []string{"memory"}, errs: "redis is gone"},
		"inspect, nothing":     {args: []string{"inspect", key}, empty: true, code: 1, errs: "no level has an entry"},
		"inspect --json, none": {args: []string{"inspect", key, "--json"}, empty: true, code: 1, out: []string{`"entries": []`}, errs: "no level"},
		"inspect what":         {args: []string{"inspect"}, code: 2, errs: "a key"},
		"inspect two":          {args: []string{"inspect", key, key}, code: 2},
		"inspect no key":       {args: []string{"inspect", "5f0c"}, code: 2, errs: "64 hexadecimal digits"},
		"inspect a path":       {args: []string{"inspect", "../../x"}, code: 2, errs: "hexadecimal"},
		"purge":                {args: []string{"purge", key}, out: []string{"removed memory: 2, sql: 1"}},
		"purge --all":          {args: []string{"purge", "--all"}, out: []string{"removed"}},
		"purge by tenant":      {args: []string{"purge", "--tenant", "acme", "--model", "m"}, out: []string{"removed"}},
		"purge --json":         {args: []string{"purge", "--shared", "--json"}, out: []string{`"memory": 2`}},
		"purge, a fault":       {args: []string{"purge", "--all"}, fault: errors.New("redis is gone"), code: 1, out: []string{"removed"}, errs: "redis is gone"},
		"purge --json, fault":  {args: []string{"purge", "--all", "--json"}, fault: errors.New("redis is gone"), code: 1, out: []string{`"warning"`}, errs: "redis is gone"},
		"purge nothing":        {args: []string{"purge"}, code: 2, errs: "name what to forget"},
		"purge too much":       {args: []string{"purge", "--all", "--tenant", "a"}, code: 2, errs: "stands alone"},
		"purge both":           {args: []string{"purge", "--tenant", "a", "--shared"}, code: 2, errs: "exclude"},
		"purge two":            {args: []string{"purge", key, key}, code: 2},
		"purge no key":         {args: []string{"purge", "x"}, code: 2, errs: "key"},
		"purge a typo":         {args: []string{"purge", "--tennant", "a"}, code: 2},
		"warm":                 {args: []string{"warm", list(t, good+"\n"+good)}, out: []string{"line 1      done", "line 3      done"}},
		"warm --json":          {args: []string{"warm", list(t, good), "--json"}, out: []string{`"line":1`, `"outcome":"done"`}},
		"warm what":            {args: []string{"warm"}, code: 2, errs: "a file of requests"},
		"warm no file":         {args: []string{"warm", "/nonexistent"}, code: 1, errs: "no such file"},
		"warm a folder":        {args: []string{"warm", t.TempDir()}, code: 2, errs: "is a folder"},
		"warm a surface":       {args: []string{"warm", list(t, good), "--surface", "poems"}, code: 2, errs: "unknown surface"},
		"a broken line":        {args: []string{"warm", list(t, good+"{\n"+good)}, code: 1, out: []string{"line 1      done", "line 2      refused", "line 3      done"}, errs: "1 requests were not warmed"},
		"a line too long":      {args: []string{"warm", list(t, good+strings.Repeat("x", 5<<20))}, code: 1, out: []string{"line 1      done", "line 2      failed", "too long"}, errs: "not warmed"},
		"an empty list":        {args: []string{"warm", list(t, "")}},
	} {
		t.Run(name, func(t *testing.T) {
			url, k := caching(t)
			if k.fault = c.fault; !c.empty {
				k.entry = known("the answer")
			}
			args := append([]string{"cache"}, c.args...)
			if joined := strings.Join(args, " "); !strings.Contains(joined, "--admin") && !strings.Contains(joined, "clear") {
				args = append(args, "--admin", url)
			}
			code, out, errs := run(t, args...)
			if code != c.code || !strings.Contains(errs, c.errs) || c.errs == "" && code == 0 && errs != "" {
				t.Errorf("status %d, want %d; want %q in %q", code, c.code, c.errs, errs)
			}
			for _, part := range c.out {
				if !strings.Contains(out, part) {
					t.Errorf("no %q in\n%s", part, out)
				}
			}
		})
	}
}

func TestWhatOperatorsOrder(t *testing.T) {
	url, k := caching(t)
	run(t, "cache", "purge", "--tenant", "acme", "--model", "m", "--admin", url)
	if k.filter != (cache.Filter{Scope: cache.TenantScope("acme"), Model: "m"}) {
		t.Errorf("purged %+v", k.filter)
	}
	run(t, "cache", "purge", "--shared", "--admin", url)
	if k.filter.Scope != cache.SharedScope {
		t.Errorf("purged %+v", k.filter)
	}
	run(t, "cache", "purge", "--all", "--admin", url)
	if k.filter != (cache.Filter{}) {
		t.Errorf("purged %+v", k.filter)
	}
	run(t, "cache", "warm", list(t, `{"model":"m"}`+"\n"+`{"tenant":"x","surface":"embeddings","body":{"input":"a"}}`), "--tenant", "acme", "--admin", url)
	if got := fmt.Sprintf("%s %s %s, %s %s %s", k.items[0].Tenant, k.items[0].Surface, k.items[0].Body, k.items[1].Tenant, k.items[1].Surface, k.items[1].Body); got != `acme chat {"model":"m"}, x embeddings {"input":"a"}` {
		t.Errorf("warmed %s", got)
	}
	big := known(strings.Repeat("long ", 1<<20))
	k.entry = big
	code, out, errs := run(t, "cache", "inspect", big.Key.String(), "--body", "--admin", url)
	if code != 0 || len(out) < 5<<20 {
		t.Errorf("a large answer: status %d, %d bytes, %s", code, len(out), errs)
	}
	code, out, _ = run(t, "cache", "stats", "--json", "--admin", url)
	var s cache.State
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 || len(s.Levels) != 4 {
		t.Errorf("status %d, %v in %s", code, err, out)
	}
	if code, _, errs := run(t, "cache", "stats", "--admin", "http://127.0.0.1:1"); code != 1 || !strings.Contains(errs, "is the gateway up") {
		t.Errorf("status %d, %s", code, errs)
	}
	plain, _ := operated(t, admin.Default()) // a gateway without a cache
	if code, _, errs := run(t, "cache", "stats", "--admin", plain); code != 1 || !strings.Contains(errs, "has no cache") {
		t.Errorf("status %d, %s", code, errs)
	}
}

// TestAnOperatorWhoLeavesEndsTheList, whose lines before that were taken.
func TestAnOperatorWhoLeavesEndsTheList(t *testing.T) {
	url, k := caching(t)
	k.stopped = make(chan error, 1)
	in, out := io.Pipe()
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		cli.Main(ctx, cli.Env{Args: []string{"cache", "warm", "-", "--admin", url}, Stdin: in, Stdout: io.Discard, Stderr: io.Discard})
	}()
	if _, err := io.WriteString(out, `{"model":"m"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the first line is taken", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.items) == 1
	})
	leave()
	out.CloseWithError(errors.New("gone"))
	<-done
	if err := <-k.stopped; err == nil {
		t.Error("the list goes on")
	}
}
