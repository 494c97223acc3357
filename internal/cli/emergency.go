package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/admin"
)

// newEmergency is the command `emergency`, with one subcommand for each thing to
// do with the switch.
func newEmergency(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "emergency",
		Short: "Switch the emergency mode of a running gateway",
		Long: `The emergency mode applies the profile of admission.emergency at once, until it is
switched off or its time is over: it refuses the classes that can wait, opens the
standby pools and starts the brownout before there is pressure. It outlives a
restart of the gateway. Where gateways stand side by side, switch each of them.`,
		Example: `  spillway emergency on --reason "two racks lost" --expiry 30m
  spillway emergency status
  spillway emergency off`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown command %q; give on, off or status", errUsage, args[0])
			}
			return c.Help()
		},
	}
	c.AddCommand(newEmergencyOn(env), newEmergencyOff(env), newEmergencyStatus(env))
	return c
}

// newEmergencyOn is the command `emergency on`.
func newEmergencyOn(env Env) *cobra.Command {
	o := &operator{env: env}
	var reason, by string
	var expiry time.Duration
	c := &cobra.Command{
		Use:   "on",
		Short: "Switch it on, or give one that is on another end and reason",
		Example: `  spillway emergency on --reason "two racks lost" --expiry 30m
  spillway emergency on --admin http://10.0.0.5:9090 --expiry 2h`,
		RunE: func(c *cobra.Command, _ []string) error {
			order := map[string]string{"state": "on", "by": by}
			if reason != "" {
				order["reason"] = reason
			}
			if c.Flags().Changed("expiry") {
				if expiry <= 0 {
					return fmt.Errorf("%w: --expiry must be positive, got %v", errUsage, expiry)
				}
				order["expiry"] = expiry.String()
			}
			return o.order(c.Context(), order)
		},
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&reason, "reason", "", "why, for the audit log and those who ask for the status")
	f.DurationVar(&expiry, "expiry", 0, "when it goes off by itself, at most 24h; default admission.emergency.expiry")
	byFlag(c, &by)
	return c
}

// newEmergencyOff is the command `emergency off`.
func newEmergencyOff(env Env) *cobra.Command {
	o := &operator{env: env}
	var by string
	c := &cobra.Command{
		Use:     "off",
		Short:   "Switch it off; when it is off already, nothing changes",
		Example: "  spillway emergency off",
		RunE: func(c *cobra.Command, _ []string) error {
			return o.order(c.Context(), map[string]string{"state": "off", "by": by})
		},
	}
	o.flags(c)
	byFlag(c, &by)
	return c
}

// newEmergencyStatus is the command `emergency status`.
func newEmergencyStatus(env Env) *cobra.Command {
	o := &operator{env: env}
	c := &cobra.Command{
		Use:     "status",
		Short:   "Print whether it is on, since when, until when, by whom and why",
		Example: "  spillway emergency status --json",
		RunE:    func(c *cobra.Command, _ []string) error { return o.ask(c.Context(), http.MethodGet, nil) },
	}
	o.flags(c)
	return c
}

// byFlag adds --by. The name of the user does not stand in the help.
func byFlag(c *cobra.Command, by *string) {
	c.Flags().StringVar(by, "by", userName(), "who gives the order, for the audit log; default the name of the user")
	c.Flags().Lookup("by").DefValue = ""
}

// userName is who runs the command; "" when nobody knows.
func userName() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

// order posts an order.
func (o *operator) order(ctx context.Context, order map[string]string) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	return o.ask(ctx, http.MethodPost, body)
}

// ask asks /admin/emergency and prints the state that comes back.
func (o *operator) ask(ctx context.Context, method string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	status, answer, err := o.call(ctx, method, "emergency", bytes.NewReader(body))
	if err != nil {
		return err
	}
	var state admin.EmergencyState
	if status == http.StatusOK && json.Unmarshal(answer, &state) == nil && state.Profile.Brownout != "" { // and not somebody else's {}
		return o.print(state)
	}
	return o.refusal(status, answer, "emergency switch")
}

// print prints a state.
func (o *operator) print(s admin.EmergencyState) error {
	if s.Warning != "" {
		fmt.Fprintln(o.env.Stderr, "spillway: warning:", s.Warning)
	}
	if o.json {
		e := json.NewEncoder(o.env.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	if !s.On {
		_, err := fmt.Fprintln(o.env.Stdout, "emergency mode is off")
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "emergency mode is on until %s (%v left)\n", s.Until.UTC().Format(time.RFC3339), time.Until(s.Until).Round(time.Second))
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "  %-14s  %s\n", name, value)
		}
	}
	row("since", s.Since.UTC().Format(time.RFC3339))
	row("by", s.By)
	row("from", s.From)
	row("reason", s.Reason)
	row("refused", strings.Join(s.Profile.Shed, ", "))
	standby := "stay closed"
	if s.Profile.StandbyPools {
		standby = "take work"
	}
	row("standby pools", standby)
	row("brownout", s.Profile.Brownout)
	_, err := io.WriteString(o.env.Stdout, b.String())
	return err
}
