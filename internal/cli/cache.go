package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/cache"
)

// newCache is the command `cache`, with one subcommand for each thing to do with
// the cache of a running gateway.
func newCache(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "cache",
		Short: "Look into the answer cache of a running gateway, empty it, fill it ahead",
		Long: `Works on a running gateway through its admin listener. Redis and the databases are
shared by the gateways that use them; the memory is each gateway's own.`,
		Example: `  spillway cache stats
  spillway cache warm questions.jsonl --tenant acme
  spillway cache purge --model llama-70b`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown command %q; give stats, inspect, purge or warm", errUsage, args[0])
			}
			return c.Help()
		},
	}
	c.AddCommand(newCacheStats(env), newCacheInspect(env), newCachePurge(env), newCacheWarm(env))
	return c
}

// cacheTime bounds what the cache is asked, but for warming.
const cacheTime = 2 * time.Minute

// get asks for JSON, and prints it as it came with --json.
func (o *operator) get(ctx context.Context, method, path string, body []byte, v any) (printed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, cacheTime)
	defer cancel()
	status, answer, err := o.call(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	if status != http.StatusOK {
		return false, o.refusal(status, answer, "cache")
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return false, fmt.Errorf("%s: %w", o.url, err)
	}
	if o.json {
		_, err = o.env.Stdout.Write(answer)
	}
	return o.json, err
}

// newCacheStats is the command `cache stats`.
func newCacheStats(env Env) *cobra.Command {
	o := &operator{env: env}
	c := &cobra.Command{
		Use:     "stats",
		Short:   "Print what each level holds, and its hits and faults since the start",
		Example: "  spillway cache stats --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var s cache.State
			if printed, err := o.get(c.Context(), http.MethodGet, "cache", nil, &s); printed || err != nil {
				return err
			}
			return writeStats(env.Stdout, &s)
		},
	}
	o.flags(c)
	return c
}

// writeStats prints a table of the levels.
func writeStats(w io.Writer, s *cache.State) error {
	var b strings.Builder
	if !s.Enabled {
		b.WriteString("the cache is off\n")
	}
	fmt.Fprintf(&b, "%-8s %12s %14s %12s %12s %8s %8s %10s %10s  %s\n", "level", "entries", "bytes", "hits", "misses", "faults", "skipped", "written", "unwritten", "state")
	for _, l := range s.Levels {
		entries, size := "-", "-"
		if l.Census != nil {
			entries, size = fmt.Sprint(l.Census.Entries), fmt.Sprint(l.Census.Bytes)
		}
		state := "ok"
		switch {
		case l.Resting:
			state = "resting after faults"
		case l.Error != "":
			state = l.Error
		case l.Refuses:
			state = "takes no new entries"
		}
		fmt.Fprintf(&b, "%-8s %12s %14s %12d %12d %8d %8d %10d %10d  %s\n", l.Name, entries, size, l.Hits, l.Misses, l.Faults, l.Skipped, l.Written, l.Lost, state)
	}
	fmt.Fprintf(&b, "%d entries wait to be written to slower levels, %d were dropped\n", s.Waiting, s.Dropped)
	_, err := io.WriteString(w, b.String())
	return err
}

// newCacheInspect is the command `cache inspect`.
func newCacheInspect(env Env) *cobra.Command {
	o := &operator{env: env}
	var body bool
	c := &cobra.Command{
		Use:   "inspect KEY",
		Short: "Print what each level has under a key",
		Long: `Prints what each level has under a key: whose it is, which model gave it, how long
it is fresh. Keys stand in the list of recent questions in Redis, and in what
'spillway cache warm' prints.`,
		Example: "  spillway cache inspect 5f0c...e1 --body",
		Args:    exactlyOne("a key"),
		RunE: func(c *cobra.Command, args []string) error {
			path := "cache/entries/" + url.PathEscape(args[0])
			if body {
				path += "?body=true"
			}
			var v struct {
				Entries []admin.CacheEntry `json:"entries"`
				Warning string             `json:"warning"`
			}
			printed, err := o.get(c.Context(), http.MethodGet, path, nil, &v)
			if err != nil {
				return err
			}
			if v.Warning != "" {
				fmt.Fprintln(env.Stderr, "spillway: warning:", v.Warning)
			}
			switch {
			case len(v.Entries) == 0:
				return errors.New("no level has an entry under this key")
			case printed:
				return nil
			}
			return writeEntries(env.Stdout, v.Entries)
		},
	}
	o.flags(c)
	c.Flags().BoolVar(&body, "body", false, "print the answer too, as it was received")
	return c
}

// exactlyOne asks for one argument, by its name.
func exactlyOne(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%w: give %s", errUsage, what)
		}
		return nil
	}
}

// writeEntries prints entries, one block each.
func writeEntries(w io.Writer, entries []admin.CacheEntry) error {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%s\n", e.Level)
		row := func(name string, value any) { fmt.Fprintf(&b, "  %-9s %v\n", name, value) }
		row("scope", e.Scope)
		row("model", e.Model)
		row("surface", e.Surface)
		row("question", e.Question)
		row("stored", e.Stored.UTC().Format(time.RFC3339))
		row("fresh", "until "+e.Expires.UTC().Format(time.RFC3339))
		row("kept", "until "+e.Stale.UTC().Format(time.RFC3339))
		row("hits", fmt.Sprintf("%d when it was written", e.Hits))
		row("size", fmt.Sprintf("%d bytes, %d events", e.Bytes, e.Events))
		row("tokens", fmt.Sprintf("%d prompt, %d completion", e.Prompt, e.Output))
		if e.Body != "" {
			b.WriteString(e.Body)
			if !strings.HasSuffix(e.Body, "\n") {
				b.WriteByte('\n')
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// newCachePurge is the command `cache purge`.
func newCachePurge(env Env) *cobra.Command {
	o := &operator{env: env}
	var order struct {
		All    bool   `json:"all,omitempty"`
		Key    string `json:"key,omitempty"`
		Tenant string `json:"tenant,omitempty"`
		Shared bool   `json:"shared,omitempty"`
		Model  string `json:"model,omitempty"`
	}
	c := &cobra.Command{
		Use:   "purge [KEY]",
		Short: "Forget entries: one, a tenant's, a model's, or all",
		Long: `Forgets the entries that match everything that is named, in every level. Where
several gateways run, the memory of each is its own: purge each of them.`,
		Example: `  spillway cache purge --tenant acme --model llama-70b
  spillway cache purge --all`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				order.Key = args[0]
			}
			body, err := json.Marshal(order)
			if err != nil {
				return err
			}
			var v struct {
				Removed map[string]int `json:"removed"`
				Warning string         `json:"warning"`
			}
			printed, err := o.get(c.Context(), http.MethodPost, "cache/purge", body, &v)
			if err != nil {
				return err
			}
			levels := make([]string, 0, len(v.Removed))
			for l, n := range v.Removed {
				levels = append(levels, fmt.Sprintf("%s: %d", l, n))
			}
			slices.Sort(levels)
			if !printed {
				fmt.Fprintf(env.Stdout, "removed %s\n", strings.Join(levels, ", "))
			}
			if v.Warning != "" {
				return errors.New(v.Warning)
			}
			return nil
		},
	}
	o.flags(c)
	f := c.Flags()
	f.BoolVar(&order.All, "all", false, "everything")
	f.StringVar(&order.Tenant, "tenant", "", "what is a tenant's own")
	f.BoolVar(&order.Shared, "shared", false, "what tenants share")
	f.StringVar(&order.Model, "model", "", "what a model gave, by its name upstream")
	return c
}

// newCacheWarm is the command `cache warm`.
func newCacheWarm(env Env) *cobra.Command {
	o := &operator{env: env}
	var tenant, surface string
	c := &cobra.Command{
		Use:   "warm FILE",
		Short: "Ask a list of requests when nothing else waits, so that their answers are known",
		Long: `Sends a list of requests, one line of JSON each, to a running gateway, which asks
them as the class idle: they never take a slot that anybody waits for. A line is a
request's body as a client would send it, or {"tenant": ..., "surface": ..., "body":
{...}}. '-' reads standard input. Answers that are kept and fresh are not asked again.
One line is printed for each request; the status is 1 when one of them failed.

Without a keys file, only clients that send no credentials get these answers: the
others are told apart by what they send. Neither do clients in an arm of an experiment:
a list has none.`,
		Example: `  spillway cache warm questions.jsonl
  spillway cache warm questions.jsonl --tenant acme --json`,
		Args: exactlyOne("a file of requests, or -"),
		RunE: func(c *cobra.Command, args []string) error {
			file := env.Stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				if info, err := f.Stat(); err == nil && info.IsDir() {
					return fmt.Errorf("%w: %s is a folder; give a file of requests, or -", errUsage, args[0])
				}
				file = f
			}
			query := url.Values{"surface": {surface}}
			if tenant != "" {
				query.Set("tenant", tenant)
			}
			return o.warm(c.Context(), "cache/warm?"+query.Encode(), file)
		},
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&tenant, "tenant", "", "who will ask; without keys nobody in particular")
	f.StringVar(&surface, "surface", "chat", "chat, completions, embeddings, messages or responses")
	return c
}

// warm sends a list and prints what becomes of each line.
func (o *operator) warm(ctx context.Context, path string, list io.Reader) error {
	resp, err := o.open(ctx, http.MethodPost, path, list)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return err
		}
		return o.refusal(resp.StatusCode, answer, "cache")
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	outcomes := make(map[string]int)
	for lines.Scan() {
		var r admin.WarmResult
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("%s: %w", o.url, err)
		}
		outcomes[r.Outcome]++
		if o.json {
			fmt.Fprintf(o.env.Stdout, "%s\n", lines.Bytes())
			continue
		}
		fmt.Fprintf(o.env.Stdout, "line %-6d %-9s %s %s\n", r.Line, r.Outcome, r.Key, r.Error)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if bad := outcomes["failed"] + outcomes["given_up"] + outcomes["refused"]; bad > 0 {
		return fmt.Errorf("%d requests were not warmed", bad)
	}
	return nil
}
