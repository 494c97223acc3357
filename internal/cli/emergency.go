package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/admin"
)

// What the admin listener is asked with.
const (
	adminTokenEnv = "SPILLWAY_ADMIN_TOKEN"
	adminTimeout  = 15 * time.Second // behind the gateway's own for a body
	maxAnswer     = 1 << 20          // bytes
	maxComplaint  = 300              // bytes of it in a message
)

// operator is how the admin listener of a running gateway is reached.
type operator struct {
	env      Env
	url      string
	tokenEnv string
	json     bool
}

// flags adds the flags that every command has that talks to a running gateway.
func (o *operator) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.url, "admin", "http://"+admin.Default().Listen, "base `URL` of the gateway's admin listener")
	f.StringVar(&o.tokenEnv, "token-env", adminTokenEnv, "environment `variable` that holds the admin token, where one is needed")
	f.BoolVar(&o.json, "json", false, "print the answer as JSON")
}

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
	base, err := url.Parse(o.url)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" {
		return fmt.Errorf("%w: --admin: want a URL as %s, got %q", errUsage, "http://"+admin.Default().Listen, o.url)
	}
	status, answer, err := o.send(ctx, method, base.JoinPath("admin", "emergency").String(), body)
	if err != nil {
		return fmt.Errorf("%w; is the gateway up, and is this its admin listener?", err)
	}
	var state admin.EmergencyState
	switch {
	case status == http.StatusOK && json.Unmarshal(answer, &state) == nil && state.Profile.Brownout != "": // and not somebody else's {}
		return o.print(state)
	case status == http.StatusBadRequest:
		return fmt.Errorf("%w: %s", errUsage, complaint(answer))
	case status == http.StatusUnauthorized:
		return fmt.Errorf("%s: %s; this command takes the token from %s", o.url, complaint(answer), o.tokenEnv)
	case status == http.StatusNotFound:
		return fmt.Errorf("%s has no emergency switch: give the address of a gateway's admin listener with --admin", o.url)
	}
	return fmt.Errorf("%s: status %d: %s", o.url, status, complaint(answer))
}

// send sends one request on a connection of its own.
func (o *operator) send(ctx context.Context, method, to string, body []byte) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if token := strings.TrimSpace(os.Getenv(o.tokenEnv)); token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	client := &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for one host
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, answer, err
}

// complaint is what an answer says is wrong: the message of an error, or the
// beginning of what somebody else's server said.
func complaint(answer []byte) string {
	var v struct{ Error struct{ Message string } }
	text := string(answer)
	if json.Unmarshal(answer, &v) == nil && v.Error.Message != "" {
		text = v.Error.Message
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	text = strings.TrimSpace(text)
	if len(text) > maxComplaint {
		text = strings.ToValidUTF8(text[:maxComplaint], "") + "..."
	}
	return text
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
