package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/usage/ledger"
)

// newUsage is the command `usage`.
func newUsage(env Env) *cobra.Command {
	o := &operator{env: env}
	var from, to string
	var by []string
	c := &cobra.Command{
		Use:   "usage",
		Short: "Print what was spent, from the ledger of a running gateway",
		Long: `Sums up requests and tokens of days (UTC), as the ledger has them: what the servers
reported, or what was estimated where they reported nothing. The latest requests
may be missing for about a second.`,
		Example: `  spillway usage
  spillway usage --from 2026-11-01 --to 2026-11-30 --by tenant,model
  spillway usage --json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, one := range by {
				if !slices.Contains(usageColumns, one) {
					return fmt.Errorf("%w: --by: unknown column %q; known are %s", errUsage, one, strings.Join(usageColumns, ", "))
				}
			}
			query := url.Values{}
			for name, day := range map[string]string{"from": from, "to": to} {
				if day != "" {
					query.Set(name, day)
				}
			}
			status, answer, err := o.call(c.Context(), http.MethodGet, "usage?"+query.Encode(), nil)
			switch {
			case err != nil:
				return err
			case status != http.StatusOK:
				return o.refusal(status, answer, "ledger")
			case o.json:
				_, err = env.Stdout.Write(answer)
				return err
			}
			var page struct{ Entries []ledger.Entry }
			if err := json.Unmarshal(answer, &page); err != nil {
				return fmt.Errorf("%s: %w", o.url, err)
			}
			return writeUsage(env.Stdout, page.Entries, by)
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "", "first `day`, as 2026-11-01; empty is today")
	f.StringVar(&to, "to", "", "last `day`; empty is today")
	f.StringSliceVar(&by, "by", []string{"tenant"}, "what has a line of its own: "+strings.Join(usageColumns, ", "))
	o.flags(c)
	return c
}

// usageColumns are what entries can be told apart by.
var usageColumns = []string{"day", "tenant", "key", "model"}

// writeUsage prints the sums of entries.
func writeUsage(w io.Writer, entries []ledger.Entry, by []string) error {
	sums := make(map[string]ledger.Amount)
	var names []string
	for _, e := range entries {
		var parts []string
		for _, column := range by {
			parts = append(parts, map[string]string{"day": e.Day, "tenant": e.Tenant, "key": e.Key, "model": e.Model}[column])
		}
		name := strings.Join(parts, "  ")
		if _, ok := sums[name]; !ok {
			names = append(names, name)
		}
		sum := sums[name]
		sum.Add(e.Amount)
		sums[name] = sum
	}
	slices.Sort(names)
	var b strings.Builder
	fmt.Fprintf(&b, "%-40s %10s %14s %14s %14s %14s\n", strings.Join(by, "  "), "requests", "prompt", "cached", "output", "estimated")
	for _, name := range names {
		a := sums[name]
		fmt.Fprintf(&b, "%-40s %10d %14d %14d %14d %14d\n", name, a.Requests, a.Prompt, a.Cached, a.Output, a.Estimated)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
