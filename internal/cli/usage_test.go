package cli_test

import (
	"context"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// book is a ledger of two days.
type book struct{}

// Entries implements admin.Ledger.
func (book) Entries(_ context.Context, from, to time.Time) ([]ledger.Entry, error) {
	if from.Year() == 1999 {
		return nil, errors.New("the database is away")
	}
	var list []ledger.Entry
	for _, e := range []ledger.Entry{
		{Day: "2026-11-01", Tenant: "acme", Key: "k1", Model: "large", Amount: ledger.Amount{Requests: 2, Prompt: 100, Cached: 10, Output: 40}},
		{Day: "2026-11-01", Tenant: "acme", Key: "k2", Model: "small", Amount: ledger.Amount{Requests: 1, Prompt: 7, Output: 3, Estimated: 10}},
		{Day: "2026-11-02", Tenant: "beta", Key: "k3", Model: "small", Amount: ledger.Amount{Requests: 5, Prompt: 50, Output: 5}},
	} {
		if day, err := time.Parse(time.DateOnly, e.Day); err == nil && !day.Before(from) && !day.After(to) {
			list = append(list, e)
		}
	}
	return list, nil
}

func TestUsage(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	s, err := admin.New(admin.Default(), admin.Parts{Fleet: fleet.New(log), Metrics: prometheus.NewRegistry(), Control: gateway{}, Ledger: book{}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	at := served(t, s)
	month := []string{"--from", "2026-11-01", "--to", "2026-11-30"}
	for name, c := range map[string]struct {
		args []string
		code int
		out  string // expression in what is printed
		errs string
	}{
		"by tenant":     {args: month, out: `acme +3 +107 +10 +43 +10\nbeta +5 +50 +0 +5 +0\n$`},
		"by two":        {args: append([]string{"--by", "day,model"}, month...), out: `2026-11-01  large +2 .*\n2026-11-01  small +1 .*\n2026-11-02  small +5 `},
		"one day":       {args: []string{"--from", "2026-11-02", "--to", "2026-11-02"}, out: `estimated\nbeta +5 `},
		"today":         {out: `^tenant +requests`},
		"as JSON":       {args: append([]string{"--json"}, month...), out: `"output_tokens": 40`},
		"a wrong day":   {args: []string{"--from", "yesterday"}, code: 2, errs: "from: want a day such as"},
		"a wrong name":  {args: []string{"--by", "colour"}, code: 2, errs: `unknown column "colour"; known are day, tenant, key, model`},
		"an argument":   {args: []string{"acme"}, code: 2, errs: "unknown command"},
		"it is away":    {args: []string{"--from", "1999-01-01"}, code: 1, errs: "the database is away"},
		"another flag":  {args: []string{"--day", "1"}, code: 2, errs: "unknown flag"},
		"the help text": {args: []string{"--help"}, out: `--from`},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := run(t, append([]string{"usage", "--admin", at}, c.args...)...)
			if code != c.code || !regexp.MustCompile(c.out).MatchString(out) || !strings.Contains(errs, c.errs) {
				t.Errorf("got %d, %q and %q, want %d, %q and %q", code, out, errs, c.code, c.out, c.errs)
			}
		})
	}
}
