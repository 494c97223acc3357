package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/usage"
)

// newRoute is the command `route`.
func newRoute(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:     "route",
		Short:   "Say where requests go, and why",
		Example: "  spillway route explain -f request.json --tenant acme",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown command %q; give explain", errUsage, args[0])
			}
			return c.Help()
		},
	}
	c.AddCommand(newRouteExplain(env))
	return c
}

// newRouteExplain is the command `route explain`.
func newRouteExplain(env Env) *cobra.Command {
	o := &operator{env: env}
	var q admin.RouteQuestion
	var file, config string
	var headers []string
	c := &cobra.Command{
		Use:   "explain",
		Short: "Show the decision for one request, tier by tier",
		Long: `Shows which rules are true of a request, in which arm of an experiment it is, and
which region, pool and instance it would go to, with what stands behind them.
Nothing is sent.

Asks a running gateway, which knows the load and health of its servers; with -c
the decision is that of a gateway that has just started with this configuration.`,
		Example: `  spillway route explain -f request.json --tenant acme --ip 81.2.69.160
  spillway route explain -f request.json -c spillway.yaml
  echo '{"model":"llama","messages":[]}' | spillway route explain -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if q.Body, err = readRequest(env, file); err != nil {
				return err
			}
			q.Headers = make(map[string]string)
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return fmt.Errorf("%w: --header: want 'Name: value', got %q", errUsage, h)
				}
				q.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			answer, err := o.explain(c.Context(), config, q)
			if answer == nil {
				return err
			}
			if o.json {
				e := json.NewEncoder(env.Stdout)
				e.SetIndent("", "  ")
				return errors.Join(e.Encode(answer), err)
			}
			return errors.Join(writeRoute(env.Stdout, answer), err)
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "file", "f", "", "`file` with the body of the request, JSON; - is standard input")
	f.StringVarP(&config, "config", "c", "", "configuration `file`, instead of a running gateway")
	f.StringVar(&q.Surface, "surface", "chat", "chat, completions, embeddings, messages or responses")
	f.StringVar(&q.Tenant, "tenant", "", "who asks; empty is anonymous")
	f.StringVar(&q.Key, "key", "", "public name of the key, never the key itself")
	f.StringVar(&q.Class, "class", "normal", "vip, normal or batch")
	f.StringVar(&q.IP, "ip", "", "address of the client")
	f.StringArrayVar(&headers, "header", nil, "header field of the request, as `'Name: value'`; repeatable")
	o.flags(c)
	return c
}

// readRequest reads the body of a request.
func readRequest(env Env, file string) (json.RawMessage, error) {
	if file == "" {
		return nil, fmt.Errorf("%w: give the body of a request with -f; - is standard input", errUsage)
	}
	in := env.Stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	body, err := io.ReadAll(io.LimitReader(in, maxAnswer))
	if err != nil {
		return nil, err
	}
	if !json.Valid(body) {
		return nil, fmt.Errorf("%s is not JSON", file)
	}
	return body, nil
}

// explain asks a running gateway, or one that is made of a configuration. Of a request
// that goes nowhere it returns the answer as far as it goes, and the error.
func (o *operator) explain(ctx context.Context, config string, q admin.RouteQuestion) (*admin.RouteAnswer, error) {
	if config != "" {
		src := source{file: config}
		file, err := src.load()
		if err != nil {
			return nil, mistakes(o.env, err)
		}
		if err := file.Route.Geo.Readable(); err != nil { // what the gateway would log
			fmt.Fprintln(o.env.Stderr, "spillway: warning: places are not known: route.geo:", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		file.Telemetry.Log.Level, file.Usage.AccessLog = "error", usage.Off // a running gateway's file has another owner
		a, err := app.New(file, app.Options{Version: version, Stdout: io.Discard, Stderr: o.env.Stderr})
		if err != nil {
			return nil, err
		}
		answer, err := a.Explain(ctx, q)
		if err != nil {
			if e, ok := errors.AsType[*inference.Error](err); ok && e.Code == inference.CodeModelNotFound {
				err = fmt.Errorf("%w; models that servers list and instances that are discovered are known to a running gateway alone", err)
			}
			return answer, fmt.Errorf("%w: %w", errUsage, err) // as of a running gateway
		}
		return answer, nil
	}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	status, answer, err := o.call(ctx, http.MethodPost, "route/explain", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, o.refusal(status, answer, "routes to explain")
	}
	found := new(admin.RouteAnswer)
	if err := json.Unmarshal(answer, found); err != nil {
		return nil, fmt.Errorf("%s: %w", o.url, err)
	}
	if found.Error != "" {
		return found, fmt.Errorf("%w: %s", errUsage, found.Error)
	}
	return found, nil
}

// writeRoute prints a decision.
func writeRoute(w io.Writer, a *admin.RouteAnswer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", name, fmt.Sprintf(format, args...))
	}
	if a.Place != "" {
		line("client", "%s", a.Place)
	}
	decided := strings.Split(a.Rule, ",")
	for _, r := range a.Rules {
		mark, when := " ", r.When
		for _, name := range decided {
			if name == r.Name {
				mark = ">"
			}
		}
		if when == "" {
			when = "always"
		}
		if r.Error != "" {
			when += "   failed: " + r.Error
		}
		line("rule", "%s %-20s %-6t %s", mark, r.Name, r.True, when)
	}
	for _, d := range a.Drawn {
		arms := make([]string, 0, len(d.Arms))
		for _, arm := range d.Arms {
			arms = append(arms, arm.Name+" "+percent(arm.Share))
		}
		line("experiment", "%s, drawn for each request: %s of them, of those %s; what follows is without it", d.Name, percent(d.Share), strings.Join(arms, ", "))
	}
	if a.Experiment != "" {
		line("experiment", "%s, arm %s", a.Experiment, a.Arm)
	}
	line("model", "%s%s", a.Model, map[bool]string{true: " instead of " + a.Asked}[a.Asked != ""])
	line("class", "%s", a.Class)
	if len(a.Headers) > 0 {
		line("headers", "changed: %s", strings.Join(a.Headers, ", "))
	}
	if a.Mirror != "" {
		line("mirror", "a copy to %s", a.Mirror)
	}
	for _, s := range a.Steps {
		tier := []string{"region", "pool", "instance"}[min(2, strings.Count(s.Node, "/"))]
		note := s.Policy
		for _, add := range []struct {
			said bool
			text string
		}{{s.Affinity != "", "kept together by " + s.Affinity}, {s.Fallback != "", "as " + s.Fallback}, {s.Backup, "backup"}} {
			if add.said {
				note += ", " + add.text
			}
		}
		line(tier, "%s %-32s %-9s load %-4d tokens %-8d %s", map[bool]string{true: ">", false: " "}[s.Chosen], s.Node, s.Status, s.Load, s.Tokens, note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
