package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/route/experiment"
)

// newExperiment is the command `experiment`, with one subcommand for each thing to do
// with the experiments of a running gateway.
func newExperiment(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "experiment",
		Short: "Show, stop and start the experiments of a running gateway",
		Long: `Works on a running gateway through its admin listener. Each gateway judges its own
traffic and has its own state: where gateways stand side by side, ask each of them.`,
		Example: `  spillway experiment status
  spillway experiment stop new-model
  spillway experiment start new-model`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown command %q; give status, stop or start", errUsage, args[0])
			}
			return c.Help()
		},
	}
	c.AddCommand(newExperimentStatus(env), newExperimentOrder(env, "stop"), newExperimentOrder(env, "start"))
	return c
}

// newExperimentStatus is the command `experiment status`.
func newExperimentStatus(env Env) *cobra.Command {
	o := &operator{env: env}
	c := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Print how experiments stand, and how their arms compare",
		Long: `Prints how experiments stand and what their arms have given: typical values, and the
difference to the control arm with an interval that holds however often one looks.
A difference is called better or worse only when it is certain, over all arms and
metrics together.`,
		Example: `  spillway experiment status
  spillway experiment status new-model --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var list admin.ExperimentList
			if err := o.experiments(c.Context(), http.MethodGet, "experiments", nil, &list); err != nil {
				return err
			}
			if len(args) == 1 {
				known := make([]string, 0, len(list.Experiments))
				for i := range list.Experiments {
					known = append(known, list.Experiments[i].Name)
				}
				if list.Experiments = slices.DeleteFunc(list.Experiments, func(s experiment.Status) bool { return s.Name != args[0] }); len(list.Experiments) == 0 {
					return fmt.Errorf("%w: unknown experiment %q; known are %v", errUsage, args[0], known)
				}
			}
			if o.json {
				return o.writeJSON(list)
			}
			return writeExperiments(env.Stdout, list.Experiments)
		},
	}
	o.flags(c)
	return c
}

// newExperimentOrder is the command `experiment stop` or `experiment start`.
func newExperimentOrder(env Env, verb string) *cobra.Command {
	o := &operator{env: env}
	var by string
	state, short := experiment.Stopped, "End an experiment: its traffic goes where it would go without it"
	if verb == "start" {
		state, short = experiment.Running, "Begin an experiment that was stopped or rolled back, from its first step"
	}
	c := &cobra.Command{
		Use:     verb + " NAME",
		Short:   short,
		Example: "  spillway experiment " + verb + " new-model",
		Args:    exactlyOne("the name of an experiment"),
		RunE: func(c *cobra.Command, args []string) error {
			body, err := json.Marshal(map[string]string{"state": state, "by": by})
			if err != nil {
				return err
			}
			var s admin.ExperimentState
			if err := o.experiments(c.Context(), http.MethodPost, "experiments/"+url.PathEscape(args[0]), body, &s); err != nil {
				return err
			}
			if s.Warning != "" {
				fmt.Fprintln(env.Stderr, "spillway: warning:", s.Warning)
			}
			if o.json {
				return o.writeJSON(s)
			}
			_, err = fmt.Fprintf(env.Stdout, "experiment %s is %s\n", s.Name, stateWords(s.State))
			return err
		},
	}
	o.flags(c)
	byFlag(c, &by)
	return c
}

// experiments asks about experiments.
func (o *operator) experiments(ctx context.Context, method, path string, body []byte, v any) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	status, answer, err := o.call(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	var known struct{ Known []string }
	switch {
	case status == http.StatusNotFound && json.Unmarshal(answer, &known) == nil && known.Known != nil:
		return fmt.Errorf("%w: %s; known are %v", errUsage, complaint(answer), known.Known)
	case status != http.StatusOK:
		return o.refusal(status, answer, "experiments")
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("%s: %w", o.url, err)
	}
	return nil
}

// writeJSON prints a value.
func (o *operator) writeJSON(v any) error {
	e := json.NewEncoder(o.env.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// stateWords says how an experiment stands.
func stateWords(s experiment.State) string {
	text := fmt.Sprintf("%s since %s", strings.ReplaceAll(s.State, "_", " "), s.Since.UTC().Format(time.RFC3339))
	if s.By != "" {
		text += " by " + s.By
	}
	return text
}

// writeExperiments prints a block for each experiment.
func writeExperiments(w io.Writer, all []experiment.Status) error {
	var b strings.Builder
	if len(all) == 0 {
		b.WriteString("there are no experiments\n")
	}
	for i := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		writeExperiment(&b, &all[i])
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeExperiment prints one experiment with its arms.
func writeExperiment(b *strings.Builder, s *experiment.Status) {
	fmt.Fprintf(b, "%s: %s\n", s.Name, stateWords(s.State))
	if s.Reason != "" {
		fmt.Fprintf(b, "  because %s\n", s.Reason)
	}
	for _, words := range s.Idle {
		fmt.Fprintf(b, "  %s\n", words)
	}
	fmt.Fprintf(b, "  assigned by %s, %s of the traffic now, begun %s\n", s.Assigned, percent(s.Share), s.Started.UTC().Format(time.RFC3339))
	fmt.Fprintf(b, "  %-12s %6s %10s %8s %8s %8s %10s %10s\n", "arm", "share", "requests", "failures", "faults", "no part", "ttft p50", "ttft p95")
	for i := range s.Arms {
		a := &s.Arms[i]
		fmt.Fprintf(b, "  %-12s %6s %10d %8d %8d %8d %10s %10s\n", a.Name, percent(a.Share), a.Requests, a.Failures, a.Faults,
			a.Canceled+a.Excluded+a.Cached, valueOf("ttft", a.TTFTP50), valueOf("ttft", a.TTFTP95))
	}
	fmt.Fprintf(b, "  %-12s %-8s %8s %10s %-22s %9s %-24s %s\n", "arm", "metric", "n", "typical", "interval", "change", "interval", "verdict")
	for i := range s.Arms {
		for _, m := range s.Arms[i].Metrics {
			writeMetric(b, s.Arms[i].Name, &m)
		}
	}
}

// writeMetric prints one row: what the arm gave, and how it compares.
func writeMetric(b *strings.Builder, arm string, m *experiment.MetricStatus) {
	if m.N == 0 {
		return
	}
	own, versus, between, verdict := "", "", "", ""
	if m.Interval != nil {
		own = valueOf(m.Metric, m.Interval.Low) + " to " + valueOf(m.Metric, m.Interval.High)
	}
	if d := m.Versus; d != nil {
		versus, verdict = changeOf(m.Metric, d.Value), strings.ReplaceAll(d.Verdict, "_", " ")
		if d.Interval != nil {
			between = changeOf(m.Metric, d.Interval.Low) + " to " + changeOf(m.Metric, d.Interval.High)
		}
	}
	line := fmt.Sprintf("  %-12s %-8s %8d %10s %-22s %9s %-24s %s", arm, m.Metric, m.N, valueOf(m.Metric, m.Typical), own, versus, between, verdict)
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// percent prints a share.
func percent(f float64) string { return fmt.Sprintf("%.4g%%", 100*f) }

// valueOf prints a value of a metric.
func valueOf(metric string, v float64) string {
	switch metric {
	case "success":
		return fmt.Sprintf("%.2f%%", 100*v)
	case "ttft", "itl":
		d := time.Duration(v * float64(time.Second))
		if d > 100*time.Millisecond {
			return d.Round(time.Millisecond).String()
		}
		return d.Round(10 * time.Microsecond).String()
	}
	return fmt.Sprintf("%.4g", v)
}

// changeOf prints a difference to control: of success in points, of scores as it is,
// else relative.
func changeOf(metric string, v float64) string {
	switch metric {
	case "success":
		return fmt.Sprintf("%+.2fpt", 100*v)
	case "score":
		return fmt.Sprintf("%+.3g", v)
	}
	return fmt.Sprintf("%+.1f%%", 100*v)
}
