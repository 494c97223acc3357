package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// column is one metric of the tables.
type column struct {
	head, metric string
	ratio        bool // show its ratio to nginx as well
}

// columns of a load's table.
func columns(l Load) []column {
	switch l.Mode {
	case "json":
		return []column{{"CPU us/request", "cpu_us", true}, {"requests/s", "per_second", true}, {"RSS MB", "rss_mb", false}}
	case "open":
		return []column{{"p50 us", "p50_us", true}, {"p99 us", "p99_us", true}, {"CPU us/request", "cpu_us", true}}
	case "idle":
		return []column{{"KB/connection", "kb_per_client", true}, {"RSS MB", "rss_mb", false}}
	case "leave":
		var c []column
		for _, p := range []string{"mid", "silent", "first", "json"} {
			c = append(c, column{p + " seen", p + "_seen", false}, column{"p50 ms", p + "_p50_ms", false}, column{"p99 ms", p + "_p99_ms", false})
		}
		return c
	}
	c := []column{{"CPU us/event", "cpu_us", true}, {"events/s", "per_second", false}, {"delay p50 us", "delay_p50_us", true},
		{"delay p99 us", "delay_p99_us", true}, {"first event p50 us", "first_event_p50_us", false}}
	if l.Memory {
		c = append(c, column{"KB/stream", "kb_per_client", true})
	}
	if l.Leftovers {
		c = append(c, column{"files left", "files_left", false}, column{"goroutines left", "goroutines_left", false})
	}
	return append(c, column{"broken", "broken", false})
}

// describe says what a load is.
func describe(l Load) string {
	switch l.Mode {
	case "json":
		return fmt.Sprintf("JSON, closed loop, %d connections", l.Clients)
	case "open":
		return fmt.Sprintf("JSON, open loop, %d requests/s", l.Rate)
	case "idle":
		return fmt.Sprintf("%d idle keep-alive connections (fewer where open files are limited)", l.Clients)
	case "leave":
		return "client leaves: the upstream sees its connection closed"
	}
	gap, _, _ := strings.Cut(strings.TrimPrefix(l.Control, "gap_us="), "&")
	text := fmt.Sprintf("%d event streams, gap %s us", l.Clients, gap)
	if l.StopAfter > 0 {
		text += fmt.Sprintf(", %d in all", l.StopAfter)
	}
	return text
}

func cell(r Range) string {
	switch {
	case r.Rounds == 0:
		return "-"
	case r.Rounds == 1:
		return number(r.Median)
	}
	return fmt.Sprintf("%s [%s-%s]", number(r.Median), number(r.Min), number(r.Max))
}

// PrintTables writes one table a load: medians [min-max] over the rounds, and ratios to nginx paired by round.
func PrintTables(w io.Writer, r Results, systems []System, loads []Load) {
	for _, l := range loads {
		fmt.Fprintf(w, "\n%s: %s\n", l.Name, describe(l))
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		cols := columns(l)
		fmt.Fprint(t, "  system")
		for _, c := range cols {
			fmt.Fprintf(t, "\t%s", c.head)
			if c.ratio {
				fmt.Fprint(t, "\tx nginx")
			}
		}
		fmt.Fprintln(t)
		for _, s := range systems {
			if len(r[s.Name][l.Name]) == 0 {
				continue
			}
			fmt.Fprintf(t, "  %s", s.Name)
			for _, c := range cols {
				fmt.Fprintf(t, "\t%s", cell(r.Of(s.Name, l.Name, c.metric)))
				if c.ratio {
					fmt.Fprintf(t, "\t%s", cell(r.Ratio(s.Name, nginx, l.Name, c.metric)))
				}
			}
			fmt.Fprintln(t)
		}
		t.Flush()
	}
}

// PrintVerdicts writes the table of goals.
func PrintVerdicts(w io.Writer, title string, verdicts []Verdict) {
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  goal\tvalue\tmust\taim\tunit\tverdict")
	for _, v := range verdicts {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", v.Name, cell(v.Value), number(v.Must), number(v.Aim), v.Unit, v.Result)
	}
	t.Flush()
}

// fileReport is what -json writes. Its first fields are those of every report of this project.
type fileReport struct {
	Scenario string         `json:"scenario"`
	Valid    bool           `json:"valid"`
	Reason   string         `json:"reason,omitempty"`
	Machine  string         `json:"machine"`
	Rounds   int            `json:"rounds"`
	Systems  []systemReport `json:"systems"`
	Rig      []Verdict      `json:"rig"`
	Verdicts []Verdict      `json:"verdicts"`
}

type systemReport struct {
	Name  string              `json:"name"`
	Loads map[string][]Sample `json:"loads"`
}

func writeJSON(path string, f fileReport) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func systemReports(r Results, systems []System) []systemReport {
	var out []systemReport
	for _, s := range systems {
		out = append(out, systemReport{Name: s.Name, Loads: r[s.Name]})
	}
	return slices.Clip(out)
}
